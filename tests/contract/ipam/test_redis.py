# the house writes expected == actual
"""What only the store in Redis can show: parallel callers, chunks, crashes, and what its keys hold."""

from __future__ import annotations

import asyncio
import os
import random
import uuid

import pytest
import redis
from netweft_common import errors
from netweft_ipam.domain.leases import AddressAsk, AddressReturn, Claim, Lease, Owner, RequestTag
from netweft_ipam.domain.pools import PoolAsk
from netweft_ipam.domain.settling import Patience
from netweft_ipam.store import keys
from netweft_ipam.store.connection import Connection
from netweft_ipam.store.redis_store import RedisStore

from tests.support.ipam import PREDEFINED, Desk, ask, pool_id, subnet, text, told
from tests.support.ipam_audit import audit_at_rest
from tests.support.store import StoreServer

pytestmark = pytest.mark.anyio

LONG = os.environ.get("NETWEFT_LONG") == "1"
SUBNETS = 16_384 if LONG else 1024
CRASHES = 1000 if LONG else 8


@pytest.fixture
def raw(server):
    client = redis.Redis(unix_socket_path=server.socket_path)
    yield client
    client.close()


@pytest.mark.timeout(600)
async def test_pools_requested_in_parallel_are_each_given_out_once(redis_store):
    choices = PREDEFINED.choices("GlobalDefault", 4)
    wanted = PoolAsk(space="GlobalDefault", choices=choices)
    gate = asyncio.Semaphore(64)

    async def request() -> str:
        async with gate:
            return str((await redis_store.request_pool(wanted, RequestTag())).id.subnet)

    given = await asyncio.gather(*(request() for _ in range(SUBNETS)))

    first = subnet("10.0.0.0/24")
    expected = {str(type(first)(4, first.base + (number << 8), 24)) for number in range(SUBNETS)}
    assert expected == set(given)


@pytest.mark.parametrize("prefix", range(21, 30))
async def test_clients_that_race_for_a_pool_get_exactly_what_it_holds(server, clock, prefix):
    name = f"t{uuid.uuid4().hex[:8]}"
    stores = [RedisStore(Connection.open(server.url), prefix=name, now_ms=clock) for _ in range(8)]
    pool = pool_id(await Desk(stores[0]).pool(f"g/10.1.0.0/{prefix}"))
    wishes = pool.capacity + 10

    async def client(number: int) -> list[Lease | errors.NetweftError]:
        outcomes = []
        batch = max(1, wishes // 40)
        for at in range(number * batch, wishes * 8, 8 * batch):
            mine = range(at, min(at + batch, wishes * 8))
            asks = [AddressAsk(Owner(f"e{number}-{key}")) for key in mine]
            outcomes += await stores[number].request_addresses(pool, asks, RequestTag())
        return outcomes

    outcomes = [
        outcome for found in await asyncio.gather(*(client(number) for number in range(8))) for outcome in found
    ]
    for store in stores:
        await store.aclose()

    leases = [outcome for outcome in outcomes if isinstance(outcome, Lease)]
    assert pool.capacity == len(leases) == len({lease.address for lease in leases})
    assert {"ADDRESSES_EXHAUSTED"} == {told(outcome) for outcome in outcomes if not isinstance(outcome, Lease)}


async def test_allocation_goes_on_in_the_next_chunk(redis_store, raw):
    desk = Desk(redis_store)
    pool = await desk.pool("g/10.0.0.0/14")
    await desk.lease(pool, ask("a"))
    tag = keys.layout(redis_store._prefix, pool_id(pool)).key[:-1]
    raw.set(f"{tag}b:0", b"\xff" * 8191 + b"\xfe")  # one address left in the first chunk
    raw.set(f"{tag}b:1", b"\xff" * 8192)
    raw.zadd(f"{tag}c", {"1": 0})

    given = await desk.lease(pool, ask("b"), ask("c"), ask("d", "10.3.255.254"), ask("e"))

    assert ["10.0.255.255", "10.2.0.0", "10.3.255.254", "10.2.0.1"] == given


async def test_a_wide_pool_costs_what_is_used(redis_store, raw):
    desk = Desk(redis_store)
    before = raw.info("memory")["used_memory"]
    wide = await desk.pool("g/10.0.0.0/8")
    six = await desk.pool("g/fd00::/64")

    await desk.lease(wide, ask("a"), ask("b", "10.255.255.254"))
    await desk.lease(six, ask("a"), ask("b", "fd00::ffff:ffff:ffff:ffff"))

    assert raw.info("memory")["used_memory"] - before < 100_000


async def test_a_lease_takes_at_most_250_bytes_of_the_store(redis_store, raw):
    desk = Desk(redis_store)
    pool = await desk.pool("g/10.1.0.0/18")
    before = raw.info("memory")["used_memory"]

    for start in range(0, 16_382, 4096):
        names = [f"endpoint/{uuid.uuid4()}" for _ in range(start, min(start + 4096, 16_382))]
        await desk.lease(pool, *(ask(name, host=f"host-{number % 50}") for number, name in enumerate(names)))

    assert 16_382 == (await redis_store.get_pool(pool_id(pool))).use.leased
    assert (raw.info("memory")["used_memory"] - before) / 16_382 < 250


@pytest.mark.timeout(1200)
async def test_after_a_kill_at_any_moment_bitmap_records_and_indexes_agree():
    chance = random.Random(3)
    with StoreServer(appendfsync="always") as server:
        store = RedisStore(Connection.open(server.url), prefix="crash", quarantine_ms=20, events_kept=50)
        desk = Desk(store)
        pool = pool_id(await desk.pool("g/10.1.0.0/22"))
        held: dict[str, str] = {}
        numbers = iter(range(10**9))
        # Not ended by a cancellation: a client library that swallowed one had this test run for ever.
        over = asyncio.Event()

        async def churn() -> None:
            """Lease and release until it is over; `held` has what was acknowledged and not asked back."""
            while not over.is_set():
                try:
                    if held and chance.random() < len(held) / 1000:
                        mine = [held.popitem() for _ in range(min(len(held), chance.randint(1, 40)))]
                        items = [AddressReturn(pool.subnet.base + int(key), owner) for key, owner in mine]
                        await store.release_addresses(pool, items, RequestTag())
                    else:
                        asks = [ask(f"e{next(numbers)}", host=f"h{chance.randint(0, 3)}") for _ in range(40)]
                        for lease in await store.request_addresses(pool, asks, RequestTag()):
                            if isinstance(lease, Lease):
                                address = str(lease.address - pool.subnet.base)
                                assert address not in held, f"{text(lease)} was given out twice"
                                held[address] = lease.owner.key
                except errors.Unavailable:
                    await asyncio.sleep(0.005)

        tasks = [asyncio.create_task(churn()) for _ in range(3)]
        try:
            for _ in range(CRASHES):
                await asyncio.sleep(chance.uniform(0.005, 0.05))
                await asyncio.to_thread(server.kill9)
                await asyncio.to_thread(server.restart)
                with redis.Redis(unix_socket_path=server.socket_path) as client:
                    # One snapshot of all keys, while the churn goes on: nothing else runs between two of its reads.
                    assert [] == await asyncio.to_thread(audit_at_rest, client, "crash")
                assert not [task for task in tasks if task.done()]
        finally:
            over.set()
            async with asyncio.timeout(30):
                ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [None] * 3 == ended
        stored = {str(lease.address - pool.subnet.base): lease.owner.key for lease in await desk.listed(str(pool))}
        await store.aclose()

    assert held.items() <= stored.items()


@pytest.mark.parametrize("away_s", [1.0, 3600.0], ids=["a moment", "an hour"])
async def test_hosts_that_lived_when_the_store_went_away_are_waited_for_however_long_that_was(clock, away_s):
    with StoreServer(appendfsync="always") as server:
        patience = Patience(live_ms=60_000, least_ms=0, most_ms=30_000)

        def opened() -> RedisStore:
            return RedisStore(Connection.open(server.url), prefix="away", now_ms=clock, patience=patience)

        async def report(store: RedisStore, host: str) -> None:
            epoch = (await store.renew_host(host)).store_epoch
            await store.reassert(host, epoch, {}, complete=True)

        before = opened()
        pool = await Desk(before).pool("g/10.1.0.0/24")
        for host in ("gone", "h1", "h2"):
            await report(before, host)
            clock.advance(61 if host == "gone" else 1)
        await before.aclose()
        server.kill9()
        clock.advance(away_s)
        server.restart()
        # Another process: what the last one remembers of its hosts is not the store's.
        store = opened()
        found = []
        for host in ("h1", "h2"):
            with pytest.raises(errors.Unavailable) as caught:
                await Desk(store).lease(pool, ask("e"))
            found.append(caught.value.metadata["missing"])
            await report(store, host)
        given = await Desk(store).lease(pool, ask("e"))
        await store.aclose()

    assert ["h1,h2", "h2"] == found
    assert ["10.1.0.1"] == given


# Sweeps


async def sweep_of(store):
    """Sweep once; returns how many leases ended, and how many subnets were looked at."""
    looked_at = []
    store._connection.observe(lambda script, _: looked_at.append(script))
    ended = await store.sweep()
    store._connection.observe(lambda script, _: None)
    return ended, looked_at.count("sweep")


async def test_a_sweep_leaves_out_subnets_in_which_nothing_can_end(redis_store):
    desk = Desk(redis_store)
    pools = [await desk.pool(f"g/10.{number}.0.0/24") for number in range(3)]
    for pool in pools:
        await desk.lease(pool, ask("a"))

    looked_at = [(await sweep_of(redis_store))[1] for _ in range(25)]

    # All at first, then each in its turn, once in twelve sweeps.
    assert [3, 3, 3] == [looked_at[0], sum(looked_at[1:13]), sum(looked_at[13:])]


@pytest.fixture
def no_turns(monkeypatch):
    """Let subnets in which nothing can end have no turn."""
    monkeypatch.setattr("netweft_ipam.store.redis_store._SWEEPS_AT_REST", 1 << 40)


async def test_a_sweep_looks_at_subnets_with_ttls_and_resting_addresses(no_turns, redis_store, clock):
    desk = Desk(redis_store)
    with_ttl, resting, neither = [await desk.pool(f"g/10.{number}.0.0/24") for number in range(3)]
    await desk.lease(with_ttl, ask("a", ttl_s=30))
    await desk.lease(neither, ask("a"))
    await desk.lease(resting, ask("a"))
    await desk.give_back(resting, ("10.1.0.1", "a"))

    first = [await sweep_of(redis_store) for _ in range(2)]
    clock.advance(29)
    rested = [await sweep_of(redis_store) for _ in range(2)]
    clock.advance(1)
    late = [await sweep_of(redis_store) for _ in range(3)]

    assert [(0, 3), (0, 2)] == first
    assert [(0, 2), (0, 1)] == rested
    # The address that ended rests until its quarantine is over.
    assert [(1, 1), (0, 1), (0, 1)] == late


@pytest.mark.parametrize("change", ["request", "transfer", "reassert", "refused close"])
async def test_what_changes_in_a_subnet_at_rest_is_swept_in_time(no_turns, redis_store, clock, change):
    desk = Desk(redis_store)
    pool = await desk.pool("g/10.1.0.0/24")
    [lease] = await desk.leases(pool, ask("a"))
    assert [(0, 1), (0, 0)] == [await sweep_of(redis_store) for _ in range(2)]

    if change == "request":
        await desk.lease(pool, ask("b", ttl_s=5))
    elif change == "transfer":
        await redis_store.transfer(pool_id(pool), [AddressReturn(lease.address, "a")], "h2", RequestTag())
    elif change == "refused close":
        await desk.lease(pool, ask("b", ttl_s=5))
        with pytest.raises(errors.FailedPrecondition):
            await desk.drop(pool)
    else:
        claim = Claim(Owner("a", "h1"), lease.address, lease.epoch, ttl_s=5)
        epoch = (await redis_store.beat_host("h1")).store_epoch
        await redis_store.reassert("h1", epoch, {pool_id(pool): [claim]}, complete=True)
    clock.advance(6)

    # The second look is for the heartbeat of the host.
    expected = {"request": (1, 1), "refused close": (1, 1), "transfer": (0, 1), "reassert": (1, 2)}
    assert expected[change] == await sweep_of(redis_store)


async def test_a_lease_of_a_replica_that_is_gone_is_swept_by_the_others(server, clock):
    name = f"t{uuid.uuid4().hex[:8]}"
    gone, other = [RedisStore(Connection.open(server.url), prefix=name, now_ms=clock) for _ in range(2)]
    pool = await Desk(gone).pool("g/10.1.0.0/24")
    await Desk(gone).lease(pool, ask("b"))
    assert [(0, 1), 0] == [await sweep_of(other), (await sweep_of(other))[0]]
    await Desk(gone).lease(pool, ask("a", ttl_s=5))
    await gone.aclose()
    clock.advance(6)

    assert 1 == sum([(await sweep_of(other))[0] for _ in range(12)])
    await other.aclose()


async def test_after_a_change_of_epoch_every_subnet_is_swept(no_turns, redis_store):
    desk = Desk(redis_store)
    await desk.lease(await desk.pool("g/10.1.0.0/24"), ask("a"))
    before = [await sweep_of(redis_store) for _ in range(2)]

    redis_store._epoch_changes += 1

    assert [(0, 1), (0, 0)] == before
    assert [(0, 1), (0, 0)] == [await sweep_of(redis_store) for _ in range(2)]


async def test_a_page_goes_on_behind_pools_that_went_meanwhile(redis_store, raw):
    desk = Desk(redis_store)
    pools = [await desk.pool(f"g/10.{number}.0.0/24") for number in range(6)]
    # As between two reads: the list of names still has them.
    gone = [keys.pool_name(pool_id(one)) for one in pools[1:3]]
    assert 2 == raw.hdel(keys.space_key(redis_store._prefix, "g"), *gone)

    page = await redis_store.list_pools(space="g", start=None, limit=3)

    assert [pools[0], pools[3], pools[4]] == [str(one.id) for one in page.pools]
    assert pools[5] == str(page.next)


async def test_heartbeats_have_no_subnet_swept(no_turns, redis_store):
    desk = Desk(redis_store)
    await desk.lease(await desk.pool("g/10.1.0.0/24"), ask("a", host="h1"))
    assert [(0, 1), (0, 0)] == [await sweep_of(redis_store) for _ in range(2)]

    await redis_store.renew_host("h1")

    assert (0, 0) == await sweep_of(redis_store)
