"""The replica applies the log in its order, whoever brings the entries, and starts anew when it must."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt

import msgspec
import pytest
from netweft_common import deadline, errors
from netweft_controller.domain import changes, commits
from netweft_controller.domain.objects import EndpointState, Host, Network, Scope
from netweft_controller.engine.liveness import Liveness
from netweft_controller.engine.settle import Confirmed, settle
from netweft_controller.engine.work import Work
from netweft_controller.store.memory import MemoryStore
from netweft_controller.store.protocol import StoreReplacedError
from netweft_controller.sync import hostwatch
from netweft_controller.sync import replica as replica_module
from netweft_controller.sync.replica import Replica

pytestmark = pytest.mark.anyio

NETWORK = Network(id="a" * 32, name="front", driver="bridge", scope=Scope.LOCAL)
OTHER = msgspec.structs.replace(NETWORK, id="b" * 32, name="back")


def entry(revision, number=None):
    value = msgspec.structs.replace(NETWORK, id=f"{number or revision:032x}", name=f"n{revision}")
    return commits.Entry(revision, 0, (commits.Write(commits.Action.CREATED, value),))


def create(value):
    builder = commits.Builder()
    builder.create(value)
    return builder.build()


class Ear:
    def __init__(self):
        self.heard = []

    def changed(self, state, deltas):
        self.heard.append((state.revision, [delta.id for delta in deltas]))

    def reloaded(self, state):
        self.heard.append("reloaded")


@pytest.fixture
async def replica(anyio_backend):
    replica = Replica(MemoryStore())
    await replica.load()
    return replica


async def test_before_the_first_load_everything_is_unavailable():
    with pytest.raises(errors.Unavailable):
        _ = Replica(MemoryStore()).state


async def test_early_entries_wait_for_their_predecessors(replica):
    ear = Ear()
    replica.subscribe(ear)

    for revision in (3, 2, 5, 1, 4, 3, 1):
        replica.offer(entry(revision))

    assert [1, 2, 3, 4, 5] == [revision for revision, _ in ear.heard]
    assert 5 == replica.state.revision == len(replica.state.networks)


async def test_a_commit_is_visible_when_it_returns_also_when_others_were_before_it(replica):
    store = replica.store
    other = msgspec.structs.replace(NETWORK, id="b" * 32, name="back")
    await store.commit(create(other))

    async with asyncio.TaskGroup() as group:
        following = group.create_task(replica.run())
        await replica.commit(create(NETWORK))
        assert {NETWORK.id, other.id} == replica.state.networks.keys()
        following.cancel()


@pytest.mark.parametrize("others", [1, 2], ids=["one entry behind", "two entries behind"])
async def test_a_commit_without_writes_does_not_take_the_place_of_an_entry_that_was_not_read_yet(replica, others):
    made = [msgspec.structs.replace(NETWORK, id=f"{n:032x}", name=f"n{n}") for n in range(others)]
    for value in made:
        await replica.store.commit(create(value))

    async with asyncio.TaskGroup() as group:
        following = group.create_task(replica.run())
        await replica.commit(commits.Commit(take=(("claim", "me"),)))
        assert {value.id for value in made} == replica.state.networks.keys()
        following.cancel()


async def test_a_request_is_looked_up_on_top_of_all_that_was_committed(replica):
    once = commits.Request(id="r1", fingerprint=b"f", outcome=b"1")
    await replica.store.commit(msgspec.structs.replace(create(NETWORK), once=once))

    async with asyncio.TaskGroup() as group:
        following = group.create_task(replica.run())
        assert once == await replica.find_request("r1")
        assert {NETWORK.id} == replica.state.networks.keys()
        following.cancel()


class Away:
    """A store whose log cannot be followed for a while."""

    def __init__(self, store):
        self.store = store
        self.failures = 0
        self.answered = []

    def __getattr__(self, name):
        return getattr(self.store, name)

    async def tail(self, after, wait_s):
        if self.failures:
            self.failures -= 1
            raise errors.Unavailable("STORE_UNREACHABLE", "away")
        self.answered.append(after())
        return await self.store.tail(after, 0.0)


async def test_each_outage_is_waited_out_from_the_shortest_delay_on(replica, monkeypatch):
    monkeypatch.setattr(replica_module, "_delays", lambda: iter([0.0, 0.0, 60.0]))
    replica._delays = replica_module._delays()
    away = replica.store = Away(replica.store)

    async with asyncio.TaskGroup() as group:
        following = group.create_task(replica.run())
        async with asyncio.timeout(10):
            for _ in range(3):
                away.failures = 2
                while away.failures:
                    await asyncio.sleep(0)
                away.answered.clear()
                while not away.answered:
                    await asyncio.sleep(0)
        following.cancel()

    assert away.answered


async def test_who_waits_for_an_entry_ends_the_rest_of_an_outage(replica, monkeypatch):
    away = replica.store = Away(replica.store)
    monkeypatch.setattr(replica, "_delays", iter([60.0]))
    away.failures = 1

    async with asyncio.TaskGroup() as group:
        following = group.create_task(replica.run())
        while away.failures:
            await asyncio.sleep(0)
        await away.store.commit(create(NETWORK))
        async with asyncio.timeout(10):
            await replica.reached(1)
        following.cancel()

    assert {NETWORK.id} == replica.state.networks.keys()


async def test_a_commit_whose_predecessors_do_not_come_is_unavailable_in_time(replica):
    await replica.store.commit(create(msgspec.structs.replace(NETWORK, id="b" * 32)))
    deadline.set_remaining(0.05)

    try:
        with pytest.raises(errors.Unavailable, match="not yet read"):
            await replica.commit(create(NETWORK))
    finally:
        deadline.set_remaining(None)


async def test_a_decision_is_made_again_on_what_others_have_done(replica):
    other = Replica(replica.store)
    await other.load()
    await other.commit(create(NETWORK))
    seen = []

    def decision(state):
        seen.append(len(state.networks))
        return create(NETWORK) if NETWORK.id not in state.networks else None

    async with asyncio.TaskGroup() as group:
        following = group.create_task(replica.run())
        assert await replica.decide(decision) is None
        following.cancel()

    assert [0, 1] == seen


async def test_a_decision_that_never_holds_is_a_conflict(replica):
    await replica.commit(create(NETWORK))

    with pytest.raises(errors.Conflict, match="network"):
        await replica.decide(lambda _: create(NETWORK))


async def test_a_restored_store_is_loaded_again_with_another_id_and_what_it_lost_is_written_again(replica):
    await replica.commit(create(NETWORK))
    ear = Ear()
    replica.subscribe(ear)
    before = replica.state.store_id
    store = replica.store
    store._identity = msgspec.structs.replace(store._identity, revision=0)
    store._objects.clear()
    store._log.clear()

    with pytest.raises(StoreReplacedError):
        await replica.commit(create(OTHER))
    async with asyncio.TaskGroup() as group:
        following = group.create_task(replica.run())
        async with asyncio.timeout(5):
            while replica.state.store_id == before:
                await asyncio.sleep(0.001)
        await replica.commit(create(OTHER))
        following.cancel()

    assert ["reloaded", (3, [OTHER.id])] == ear.heard
    assert [NETWORK, OTHER] == [record.value for record in replica.state.networks.values()]


async def test_the_log_is_read_from_memory_while_it_is_there(replica):
    for number in range(1, 6):
        await replica.commit(create(msgspec.structs.replace(NETWORK, id=f"{number:032x}", name=f"n{number}")))
    replica.store.read_log = None

    assert [3, 4, 5] == [one.revision for one in await replica.read_log(2)]
    assert [] == await replica.read_log(5)


async def test_memory_keeps_few_entries_when_they_are_large(replica):
    for revision in range(1, 11):
        writes = tuple(
            commits.Write(
                commits.Action.CREATED, msgspec.structs.replace(NETWORK, id=f"{revision * 10**6 + n:032x}", name=str(n))
            )
            for n in range(5000)
        )
        replica.offer(commits.Entry(revision, 0, writes))

    assert 3 == len(replica._recent)


# Streams to hosts


@pytest.fixture
async def watched(replica):
    watches = hostwatch.HostWatches(replica)
    await replica.commit(create(Host(id="1" * 32, name="h1", agent_target="unix:/x")))
    return replica, watches


async def test_a_watch_of_an_unknown_host_is_refused(watched):
    _, watches = watched

    with pytest.raises(errors.NotFound):
        await anext(watches.stream("2" * 32, resume_revision=0, store_id=""))

    assert frozenset() == watches.host_ids


async def test_an_empty_host_gets_an_empty_snapshot(watched):
    replica, watches = watched
    stream = watches.stream("1" * 32, resume_revision=0, store_id="")

    batch = await anext(stream)
    await stream.aclose()

    assert (True, True, [], replica.state.revision) == (
        batch.snapshot,
        batch.snapshot_end,
        list(batch.changes),
        batch.revision,
    )


async def test_another_stores_revision_means_a_snapshot(watched):
    _, watches = watched
    stream = watches.stream("1" * 32, resume_revision=1, store_id="other")

    assert (await anext(stream)).snapshot
    await stream.aclose()


async def test_a_large_snapshot_comes_in_parts_of_which_the_last_says_so(watched, monkeypatch):
    _, watches = watched
    monkeypatch.setattr(hostwatch, "CHUNK", 10)
    told = [changes.Change(1, changes.HostKind.PEER, str(n), None) for n in range(25)]
    monkeypatch.setattr(changes, "view", lambda *_: told)
    stream = watches.stream("1" * 32, resume_revision=0, store_id="")

    batches = [await anext(stream) for _ in range(3)]
    await stream.aclose()

    assert [10, 10, 5] == [len(batch.changes) for batch in batches]
    assert [False, False, True] == [batch.snapshot_end for batch in batches]


async def test_a_host_that_does_not_read_is_sent_away(watched, monkeypatch):
    _, watches = watched
    monkeypatch.setattr(hostwatch, "NOTES_MAX", 5)
    stream = watches.stream("1" * 32, resume_revision=0, store_id="")
    await anext(stream)
    (watch,) = watches._watches["1" * 32]
    watch.note([(changes.HostKind.PEER, str(n)) for n in range(6)], 1, 0.0)

    with pytest.raises(errors.Conflict, match="resume"):
        await anext(stream)


ENDPOINT = (changes.HostKind.ENDPOINT, "e")
PEER = (changes.HostKind.PEER, "p")
NET = (changes.HostKind.NETWORK, "n")


def change(key, revision):
    return changes.Change(revision, *key, None)


@pytest.mark.parametrize(
    ("noted", "told", "after_s", "taken"),
    [
        ([(ENDPOINT, 5)], [], 0.01, []),
        ([(ENDPOINT, 5)], [], 0.06, [ENDPOINT]),
        ([(ENDPOINT, 5)], [change(ENDPOINT, 5)], 0.06, []),
        ([(ENDPOINT, 5)], [change(ENDPOINT, 4)], 0.06, [ENDPOINT]),
        ([(ENDPOINT, 5), (ENDPOINT, 7)], [change(ENDPOINT, 5)], 0.06, [ENDPOINT]),
        ([(PEER, 5), (ENDPOINT, 5)], [], 0.01, [PEER]),
        ([(NET, 5), (PEER, 5), (ENDPOINT, 5)], [], 0.01, [PEER, NET, ENDPOINT]),
        ([(NET, 5), (ENDPOINT, 5)], [change(NET, 5), change(ENDPOINT, 5)], 0.01, []),
    ],
    ids=[
        "held back",
        "for a moment",
        "or until the host has it",
        "not an older version of it",
        "nor the version before",
        "peers go at once",
        "and a new network with all that is its",
        "unless the host has all of it",
    ],
)
def test_what_a_call_applies_directly_is_not_told_again(noted, told, after_s, taken):
    watch = hostwatch._Watch()
    for key, revision in noted:
        watch.note([key], revision, 0.0)

    watch.told(told)

    assert taken == watch.take(after_s)


async def test_a_host_is_not_past_what_is_held_back(build, watched, endpoint_of):
    replica, watches = watched
    await replica.commit(create(Host(id="2" * 32, name="h2", agent_target="unix:/y", vtep_address="192.0.2.2")))
    await replica.commit(create(msgspec.structs.replace(NETWORK, scope=Scope.GLOBAL)))
    ids = {"network_id": NETWORK.id, "host_id": "1" * 32, "state": EndpointState.JOINED}
    first = msgspec.structs.replace(endpoint_of(1), **ids)
    await replica.commit(create(first))
    stream = watches.stream("1" * 32, resume_revision=0, store_id="")
    began = (await anext(stream)).revision

    await replica.commit(create(msgspec.structs.replace(endpoint_of(2), **ids)))
    await replica.commit(create(msgspec.structs.replace(endpoint_of(3), **ids | {"host_id": "2" * 32})))
    peers, own = await anext(stream), await anext(stream)
    await stream.aclose()

    assert (["peer"], began) == ([one.kind for one in peers.changes], peers.revision)
    assert (["endpoint"], began + 2) == ([one.kind for one in own.changes], own.revision)


@pytest.fixture
async def elsewhere(build, watched, endpoint_of):
    """A host's stream behind its snapshot, and what makes an endpoint of a network of its on another host."""
    replica, watches = watched
    await replica.commit(create(Host(id="2" * 32, name="h2", agent_target="unix:/y", vtep_address="192.0.2.2")))
    await replica.commit(create(msgspec.structs.replace(NETWORK, scope=Scope.GLOBAL)))
    ids = {"network_id": NETWORK.id, "state": EndpointState.JOINED}
    await replica.commit(create(msgspec.structs.replace(endpoint_of(1), host_id="1" * 32, **ids)))
    stream = watches.stream("1" * 32, resume_revision=0, store_id="")
    await anext(stream)

    async def make(number):
        made = msgspec.structs.replace(endpoint_of(number), host_id="2" * 32, **ids)
        await replica.commit(create(made))
        return made.id

    yield stream, make
    await stream.aclose()


async def test_a_change_that_comes_alone_is_told_at_once(elsewhere, monkeypatch):
    monkeypatch.setattr(hostwatch, "COALESCE_S", 3600.0)
    stream, make = elsewhere

    made = await make(2)

    assert [made] == [one.id for one in (await anext(stream)).changes]


async def test_what_comes_soon_after_is_told_together(elsewhere, monkeypatch):
    monkeypatch.setattr(hostwatch, "COALESCE_S", 1.0)
    stream, make = elsewhere
    first = await make(2)
    told = [await anext(stream)]

    following = asyncio.create_task(anext(stream))
    made = []
    for number in (3, 4, 5):
        made.append(await make(number))
        await asyncio.sleep(0)  # the stream has its turn, and waits
    told.append(await following)

    assert [[first], made] == [[one.id for one in batch.changes] for batch in told]


async def test_a_silent_stream_moves_its_revision_on(watched, monkeypatch):
    replica, watches = watched
    monkeypatch.setattr(hostwatch, "BOOKMARK_S", 0.01)
    stream = watches.stream("1" * 32, resume_revision=0, store_id="")
    await anext(stream)
    await replica.commit(create(NETWORK))

    batch = await anext(stream)
    await stream.aclose()

    assert ((), replica.state.revision, False) == (tuple(batch.changes), batch.revision, batch.snapshot)


async def test_a_host_that_is_asked_is_told_how_far_it_has_come_and_reports(watched):
    replica, watches = watched
    stream = watches.stream("1" * 32, resume_revision=0, store_id="")
    await anext(stream)
    await replica.commit(create(NETWORK))

    watches.ask("1" * 32)
    watches.ask("2" * 32)  # watches elsewhere, if at all
    batch = await anext(stream)
    await stream.aclose()

    assert ((), replica.state.revision, True) == (tuple(batch.changes), batch.revision, batch.report_now)


async def test_a_host_is_asked_once_in_a_while_however_many_wait_for_it(watched, monkeypatch):
    _, watches = watched
    monkeypatch.setattr(hostwatch, "ASK_S", 3600.0)
    stream = watches.stream("1" * 32, resume_revision=0, store_id="")
    await anext(stream)

    for _ in range(5):
        watches.ask("1" * 32)
    first = await anext(stream)
    watches.ask("1" * 32)
    second = asyncio.create_task(anext(stream))
    await asyncio.wait([second], timeout=0.1)

    assert (True, False) == (first.report_now, second.done())
    second.cancel()
    await asyncio.wait([second])


async def test_a_host_that_is_asked_has_everything_first(elsewhere, watched, monkeypatch):
    monkeypatch.setattr(hostwatch, "COALESCE_S", 3600.0)
    replica, watches = watched
    stream, make = elsewhere
    made = await make(2)

    watches.ask("1" * 32)
    told, asked = await anext(stream), await anext(stream)

    assert ([made], False) == ([one.id for one in told.changes], told.report_now)
    assert ([], replica.state.revision, True) == (list(asked.changes), asked.revision, asked.report_now)


@pytest.mark.parametrize(("silent_s", "acks"), [(0.0, [1.0]), (0.5, [1.0]), (7.5, [3.75])])
async def test_a_host_that_may_be_silent_is_told_as_late_how_far_it_has_come(
    replica, endpoint_of, monkeypatch, silent_s, acks
):
    watches = hostwatch.HostWatches(replica, silent_s=lambda: silent_s)
    noted = []
    monkeypatch.setattr(
        hostwatch._Watch, "note", lambda self, keys, revision, now_s, ack_s: noted.append(ack_s) or True
    )
    await replica.commit(create(Host(id="1" * 32, name="h1", agent_target="unix:/x")))
    await replica.commit(create(NETWORK))
    stream = watches.stream("1" * 32, resume_revision=0, store_id="")
    await anext(stream)

    ids = {"network_id": NETWORK.id, "host_id": "1" * 32, "state": EndpointState.JOINED}
    await replica.commit(create(msgspec.structs.replace(endpoint_of(1), **ids)))
    await stream.aclose()

    assert acks == noted


async def test_a_reload_starts_every_stream_anew(watched):
    replica, watches = watched
    stream = watches.stream("1" * 32, resume_revision=0, store_id="")
    await anext(stream)

    await replica.load()

    assert (await anext(stream)).snapshot
    await stream.aclose()


# Work, heartbeats, confirmations


async def test_work_goes_on_when_its_caller_is_gone():
    done = asyncio.Event()
    go = asyncio.Event()

    async def saga():
        await go.wait()
        done.set()

    async with Work() as work:
        calling = asyncio.create_task(work.finish(saga(), name="saga"))
        await asyncio.sleep(0)
        calling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await calling
        go.set()

    assert done.is_set()


async def test_a_failure_is_the_callers_and_nobody_elses():
    async def fail():
        raise errors.Exhausted("X", "x")

    async with Work() as work:
        with pytest.raises(errors.Exhausted):
            await work.finish(fail(), name="fail")

        assert 1 == await work.finish(asyncio.sleep(0, 1), name="fine")


async def test_calls_with_one_request_join():
    calls = []

    async def saga():
        calls.append(1)
        await asyncio.sleep(0)
        return len(calls)

    async with Work() as work:
        results = await asyncio.gather(*(work.once("m/r1", b"f", saga, name="saga") for _ in range(5)))
        with pytest.raises(errors.AlreadyExists, match="r1"):
            await asyncio.gather(
                work.once("m/r1", b"f", saga, name="saga"), work.once("m/r1", b"other", saga, name="saga")
            )

    assert [1] * 5 == results


async def test_a_host_is_lost_after_its_grace_by_one_clock_or_the_others():
    now = 0.0
    store = MemoryStore(now_ms=lambda: 1_000_000 + int(now * 1000))
    one, two = (Liveness(store, grace=dt.timedelta(seconds=15), monotonic=lambda: now) for _ in range(2))
    one.beat("h")
    assert ("ready", "lost") == (one.state("h"), two.state("h"))
    await one.exchange()
    now = 10.0
    await two.exchange()
    assert "ready" == two.state("h")
    now = 15.1
    assert ("lost", "lost") == (one.state("h"), two.state("h"))
    await one.forget("h")
    await two.exchange()
    assert (1_000_000, 0) == (one.heartbeat_ms("h"), two.heartbeat_ms("h"))


async def test_a_confirmation_of_another_version_is_dropped(build):
    build.host()
    build.network()
    build.sandbox()
    build.endpoint(state=EndpointState.JOINING)
    record = next(iter(build.state.endpoints.values()))

    stale = settle(build.state, [Confirmed(id=record.value.id, revision=record.revision - 1)])
    fresh = settle(build.state, [Confirmed(id=record.value.id, revision=record.revision, interface_name="eth0")])

    assert stale is None
    assert "eth0" == fresh.writes[0].value.interface_name
