from __future__ import annotations

import asyncio

import msgspec
import pytest
from netweft_common import errors
from netweft_controller.domain import commits
from netweft_controller.domain.objects import Endpoint, Host, Kind, Network, Sandbox, Scope
from netweft_controller.store import memory, protocol
from netweft_controller.store import redis as redis_store

pytestmark = pytest.mark.anyio

NETWORK = Network(id="a" * 32, name="front", driver="bridge", scope=Scope.LOCAL, labels={"ü": "\x00\n:"})


def creating(*values, once=None, take=(), free=()):
    builder = commits.Builder()
    for value in values:
        builder.create(value)
    for claim, owner in take:
        builder.take(claim, owner)
    for claim in free:
        builder.free(claim)
    return builder.build(once)


async def test_a_new_store_has_an_id_and_revision_zero(store):
    first = await store.open()
    second = await store.open()

    assert first == second
    assert len(first.store_id) == 32
    assert first.revision == 0


async def test_a_commit_takes_the_next_revision_and_is_loaded_back_as_it_was(store):
    await store.open()
    values = [
        NETWORK,
        Sandbox(id="b" * 32, container_id="c1", host_id="h" * 32),
        Endpoint(id="c" * 32, name="e1", network_id=NETWORK.id),
        Host(id="d" * 32, name="h1", agent_target="unix:/x"),
    ]

    first = await store.commit(creating(*values[:2]))
    second = await store.commit(creating(*values[2:]))
    loaded = await store.load()

    assert [1, 2] == [first.entry.revision, second.entry.revision]
    assert 2 == loaded.revision
    by_id = {record.value.id: record for record in loaded.records}
    assert values == [by_id[value.id].value for value in values]
    assert [1, 1, 2, 2] == [by_id[value.id].revision for value in values]
    assert first.entry.time_ms == by_id[NETWORK.id].created_ms


async def test_an_update_keeps_the_time_of_creation(store):
    await store.open()
    first = await store.commit(creating(NETWORK))
    record = (await store.load()).records[0]
    builder = commits.Builder()
    builder.update(record, msgspec.structs.replace(NETWORK, internal=True))

    await store.commit(builder.build())

    (loaded,) = (await store.load()).records
    assert loaded.value.internal
    assert 2 == loaded.revision
    assert first.entry.time_ms == loaded.created_ms


async def test_a_delete_removes_the_object_and_logs_it_as_it_was(store):
    await store.open()
    await store.commit(creating(NETWORK))
    (record,) = (await store.load()).records
    builder = commits.Builder()
    builder.delete(record)

    await store.commit(builder.build())

    assert [] == (await store.load()).records
    entries = await store.read_log(1, 10)
    assert [commits.Write(commits.Action.DELETED, NETWORK)] == [w for e in entries for w in e.writes]


@pytest.mark.parametrize("revision", [0, 7], ids=["exists already", "another version"])
async def test_a_guard_that_does_not_hold_refuses_the_whole_commit(store, revision):
    await store.open()
    await store.commit(creating(NETWORK))
    guard = commits.Guard(kind=Kind.NETWORK, id=NETWORK.id, revision=revision)
    other = msgspec.structs.replace(NETWORK, id="e" * 32)
    good = creating(other, take=[("network-name/x", other.id)])

    outcome = await store.commit(msgspec.structs.replace(good, guards=(*good.guards, guard)))

    assert commits.Refused(1, guard=guard) == outcome
    assert 1 == len((await store.load()).records)
    assert isinstance(await store.commit(creating(other, take=[("network-name/x", "someone")])), commits.Committed)


async def test_a_claim_belongs_to_one_owner_until_that_owner_drops_it(store):
    await store.open()
    take = commits.Commit(take=(("vni/7", "one"),))
    await store.commit(take)

    refused = await store.commit(commits.Commit(take=(("vni/7", "two"),)))
    again = await store.commit(take)
    await store.commit(commits.Commit(drop=(("vni/7", "two"),)))
    still = await store.commit(commits.Commit(take=(("vni/7", "two"),)))
    await store.commit(commits.Commit(drop=(("vni/7", "one"),)))
    taken = await store.commit(commits.Commit(take=(("vni/7", "two"),)))

    assert commits.Refused(0, claim="vni/7", owner="one") == refused
    assert isinstance(again, commits.Committed)
    assert commits.Refused(0, claim="vni/7", owner="one") == still
    assert isinstance(taken, commits.Committed)


async def test_a_claim_that_must_be_free_refuses_while_anybody_holds_it(store):
    await store.open()
    await store.commit(commits.Commit(take=(("tomb/x", "reaper"),)))

    refused = await store.commit(creating(NETWORK, free=["tomb/x"]))
    await store.commit(commits.Commit(drop=(("tomb/x", "reaper"),)))
    done = await store.commit(creating(NETWORK, free=["tomb/x"]))

    assert commits.Refused(0, claim="tomb/x", owner="reaper") == refused
    assert isinstance(done, commits.Committed)


async def test_a_request_is_done_once_and_remembered(store):
    await store.open()
    request = commits.Request(id="CreateNetwork/r1", fingerprint=b"\x00\xff", outcome=b"made \x00")

    first = await store.commit(creating(NETWORK, once=request))
    second = await store.commit(creating(NETWORK, once=msgspec.structs.replace(request, fingerprint=b"other")))

    assert isinstance(first, commits.Committed)
    assert commits.Replayed(request, 1) == second
    assert request == await store.find_request(request.id)
    assert 1 == await store.revision()


async def test_a_request_is_done_again_only_on_top_of_what_is_remembered_of_it(store):
    await store.open()
    first = commits.Request(id="r1", fingerprint=b"f", outcome=b"1")
    second = msgspec.structs.replace(first, outcome=b"2")
    await store.commit(commits.Commit(once=first))

    done = await store.commit(commits.Commit(once=second, after=first))
    late = await store.commit(commits.Commit(once=first, after=first))
    gone = await store.commit(commits.Commit(once=msgspec.structs.replace(first, id="r2"), after=first))

    assert isinstance(done, commits.Committed)
    assert commits.Replayed(second, 0) == late
    assert commits.Replayed(None, 0) == gone


async def test_a_refused_request_is_not_remembered(store):
    await store.open()
    await store.commit(creating(NETWORK))
    request = commits.Request(id="r1", fingerprint=b"f", outcome=b"")

    await store.commit(creating(NETWORK, once=request))

    assert await store.find_request("r1") is None


async def test_what_is_remembered_can_be_overwritten_and_forgotten(store):
    await store.open()
    one = commits.Request(id="r1", fingerprint=b"f", outcome=b"1")
    two = commits.Request(id="r2", fingerprint=b"f", outcome=b"2")
    await store.commit(commits.Commit(once=one, remember=(two,)))

    await store.commit(commits.Commit(remember=(msgspec.structs.replace(two, outcome=b"3"),), forget=("r1",)))

    assert await store.find_request("r1") is None
    assert b"3" == (await store.find_request("r2")).outcome


async def test_a_commit_without_writes_takes_no_revision(store):
    await store.open()

    outcome = await store.commit(commits.Commit(take=(("x", "y"),)))

    assert 0 == outcome.entry.revision
    assert [] == await store.read_log(0, 10)


async def test_the_log_is_read_in_pages_from_any_revision(store):
    await store.open()
    for n in range(5):
        await store.commit(creating(msgspec.structs.replace(NETWORK, id=f"{n:032x}")))

    page = await store.read_log(1, 2)

    assert [2, 3] == [entry.revision for entry in page]
    assert [4, 5] == [entry.revision for entry in await store.read_log(3, 10)]
    assert [] == await store.read_log(5, 10)


async def test_the_tail_waits_for_the_next_entry_and_skips_what_was_seen_meanwhile(store):
    await store.open()
    seen = 0
    waiting = asyncio.create_task(store.tail(lambda: seen, 5.0))
    await asyncio.sleep(0)
    await store.commit(creating(NETWORK))

    entries = await waiting
    seen = 1
    later = await store.tail(lambda: seen, 0.01)

    assert [1] == [entry.revision for entry in entries]
    assert NETWORK == entries[0].writes[0].value
    assert [] == later


async def test_a_store_behind_what_was_seen_of_it_is_noticed_and_gets_another_id(store):
    before = await store.open()
    await store.commit(creating(NETWORK))

    with pytest.raises(protocol.StoreReplacedError):
        await store.commit(creating(NETWORK), seen_revision=40)
    after = await store.open(store_id=before.store_id, seen_revision=40)

    assert after.store_id != before.store_id
    assert 40 == after.revision


async def test_a_store_that_was_cut_says_where_to_whoever_knows_the_one_before(store):
    before = await store.open()
    await store.commit(creating(NETWORK))

    same = await store.open(store_id=before.store_id, seen_revision=1)
    first = await store.open(store_id=before.store_id, seen_revision=40)
    second = await store.open(store_id=before.store_id, seen_revision=90)
    known = await store.open(store_id=first.store_id, seen_revision=40)
    stranger = await store.open(store_id="f" * 32, seen_revision=9)
    newcomer = await store.open()

    assert [None, 1, 1, None, None, None] == [one.cut for one in (same, first, second, known, stranger, newcomer)]
    assert {first.store_id} == {one.store_id for one in (second, known, stranger, newcomer)}


async def test_an_empty_store_has_nothing_of_the_one_that_was_known(store):
    found = await store.open(store_id="f" * 32, seen_revision=9)

    assert (0, 9) == (found.cut, found.revision)


async def test_of_commits_on_one_version_exactly_one_is_done(store):
    await store.open()
    await store.commit(creating(NETWORK))
    (record,) = (await store.load()).records

    def change(n):
        builder = commits.Builder()
        builder.update(record, msgspec.structs.replace(NETWORK, labels={"n": str(n)}))
        return store.commit(builder.build())

    outcomes = await asyncio.gather(*(change(n) for n in range(20)))

    assert 1 == sum(isinstance(outcome, commits.Committed) for outcome in outcomes)


async def test_heartbeats_are_kept_by_host_at_the_stores_time(store):
    await store.open()
    first = await store.beat({"h1": 7, "h2": 0})
    await store.forget_heartbeat("h2")

    second = await store.beat({})

    assert {"h1": first.now_ms, "h2": first.now_ms} == first.last_ms
    assert {"h1": 7, "h2": 0} == first.revisions
    assert {"h1": first.now_ms} == second.last_ms
    assert {"h1": 7} == second.revisions
    assert second.now_ms >= first.now_ms


async def test_a_commit_of_the_largest_batch_fits(store):
    await store.open()
    values = [Endpoint(id=f"{n:032x}", name=f"e{n}", network_id="n") for n in range(3072)]

    outcome = await store.commit(creating(*values, take=[(f"name/{v.id}", v.id) for v in values]))

    assert isinstance(outcome, commits.Committed)
    assert 3072 == len((await store.load()).records)


async def test_the_log_is_cut_by_what_it_holds(store_server):
    await store_server.ready()
    store = redis_store.RedisStore(store_server.url, prefix="cut", log_writes=160)
    await store.open()
    for batch in range(100):
        await store.commit(creating(*(msgspec.structs.replace(NETWORK, id=f"{batch:016x}{n:016x}") for n in range(10))))

    with pytest.raises(errors.OutOfRange):
        await store.read_log(50, 10)
    assert 10 <= len(await store.read_log(85, 100)) <= 17
    await store.close()


async def test_a_log_that_was_cut_says_so():
    store = memory.MemoryStore(log_length=2)
    await store.open()
    for n in range(5):
        await store.commit(creating(msgspec.structs.replace(NETWORK, id=f"{n:032x}")))

    with pytest.raises(errors.OutOfRange):
        await store.read_log(1, 10)
