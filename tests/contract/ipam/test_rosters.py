"""Which hosts there are, as a store keeps it: the newest list of the controllers that spoke last."""

from __future__ import annotations

import pytest
from netweft_ipam.domain.roster import Roster

pytestmark = pytest.mark.anyio


def roster(revision, names=None, store_id="s1"):
    return Roster(store_id=store_id, revision=revision, names=names)


async def test_nobody_has_said_which_hosts_there_are_at_first(store):
    assert None is await store.read_roster(None)


async def test_the_newest_list_is_kept_whoever_is_late(store):
    first, second = roster(5, {"a" * 32: "h1"}), roster(7, {"b" * 32: "h2", "c" * 32: ""})

    await store.set_roster(first)
    before = await store.read_roster(None)
    await store.set_roster(second)
    await store.set_roster(first)

    assert first == before
    assert second == await store.read_roster(before)
    assert second == await store.read_roster(second)


async def test_a_list_at_the_same_revision_takes_the_place_of_the_known_one(store):
    await store.set_roster(roster(5, {"a" * 32: "h1"}))
    await store.set_roster(roster(5))

    assert roster(5) == await store.read_roster(None)


async def test_another_store_of_the_controllers_begins_anew(store):
    await store.set_roster(roster(900, {"a" * 32: "h1"}))
    await store.set_roster(roster(3, {}, store_id="s2"))

    assert roster(3, {}, store_id="s2") == await store.read_roster(None)
