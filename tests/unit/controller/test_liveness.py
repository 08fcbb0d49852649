"""How long a host has surely been lost."""

from __future__ import annotations

import datetime as dt

import pytest
from netweft_common import errors
from netweft_controller.engine.liveness import Liveness
from netweft_controller.store.protocol import Heartbeats

pytestmark = pytest.mark.anyio

HOST = "1" * 32


class Store:
    """Heartbeats alone; the store's clock and ours go alike."""

    def __init__(self):
        self.now_s = 1000.0
        self.last_ms = {}
        self.revisions = {}
        self.is_away = False

    async def beat(self, hosts):
        if self.is_away:
            raise errors.Unavailable("AWAY", "away")
        now_ms = int(self.now_s * 1000)
        self.last_ms |= dict.fromkeys(hosts, now_ms)
        self.revisions |= hosts
        return Heartbeats(now_ms=now_ms, last_ms=dict(self.last_ms), revisions=dict(self.revisions))

    def monotonic(self):
        return self.now_s


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def liveness(store):
    return Liveness(store, grace=dt.timedelta(seconds=15), monotonic=store.monotonic)


async def test_a_silent_host_is_lost_for_as_long_as_it_has_been_silent(store, liveness):
    liveness.beat(HOST)
    await liveness.exchange()

    store.now_s += 15
    ready_s = liveness.lost_for_s(HOST)
    store.now_s += 25

    assert (0.0, 40.0) == (ready_s, liveness.lost_for_s(HOST))


async def test_a_controller_that_has_just_come_knows_of_no_silence(store, liveness):
    store.last_ms[HOST] = 0
    await liveness.exchange()

    store.now_s += 5

    assert 5.0 == liveness.lost_for_s(HOST)


async def test_silence_while_the_store_was_away_counts_for_nothing(store, liveness):
    liveness.beat(HOST)
    await liveness.exchange()
    store.is_away = True
    store.now_s += 3600
    with pytest.raises(errors.Unavailable):
        await liveness.exchange()
    away_s = liveness.lost_for_s(HOST)

    store.is_away = False
    await liveness.exchange()
    store.now_s += 20

    assert (0.0, 20.0) == (away_s, liveness.lost_for_s(HOST))


async def test_the_revision_of_a_host_is_known_to_whoever_reads_the_store(store, liveness):
    other = Liveness(store, grace=dt.timedelta(seconds=15), monotonic=store.monotonic)
    liveness.beat(HOST, 7)
    await liveness.exchange()

    await other.exchange()

    assert (7, 7, 0) == (liveness.revision(HOST), other.revision(HOST), other.revision("2" * 32))


async def test_what_a_host_says_here_is_not_overwritten_by_what_it_said_before(store, liveness):
    liveness.beat(HOST, 7)
    await liveness.exchange()
    liveness.beat(HOST, 9)
    await liveness.exchange()
    liveness.beat(HOST)

    await liveness.exchange()

    assert 9 == liveness.revision(HOST)
