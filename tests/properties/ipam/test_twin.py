"""Redis and its twin in memory never differ: a random walk over both, compared step by step."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from netweft_common import errors
from netweft_ipam.domain.addressing import format_address
from netweft_ipam.domain.leases import AddressAsk, AddressReturn, Claim, Owner, OwnerKind, RequestTag
from netweft_ipam.domain.pools import PoolAsk
from netweft_ipam.domain.settling import Patience
from netweft_ipam.store.connection import Connection
from netweft_ipam.store.memory import MemoryStore
from netweft_ipam.store.protocol import Store
from netweft_ipam.store.redis_store import RedisStore

from tests.support.ipam import PREDEFINED, Clock, Desk, pool_id, subnet, tag
from tests.support.ipam_audit import audit
from tests.support.store import StoreServer

# The whole walk of 200 examples of 200 steps takes minutes: NETWEFT_LONG=1.
LONG = os.environ.get("NETWEFT_LONG") == "1"

POOLS = [
    "g/10.1.0.0/29",
    "g/10.1.0.0/28",
    "g/10.1.0.16/30",
    "g/10.1.0.32/27",
    "g/10.1.0.32/27/10.1.0.40/30",
    "g/10.1.0.32/27/10.1.0.60/30",
    "g/10.1.0.64/31",
    "g/fd00::/125",
    "h/10.1.0.0/29",
]
KEYS = [f"k{number}" for number in range(6)]
HOSTS = ["", "h1", "h2"]

pools = st.sampled_from(POOLS)
keys = st.sampled_from(KEYS)
hosts = st.sampled_from(HOSTS)
kinds = st.sampled_from(list(OwnerKind))
offsets = st.integers(0, 31)
request_ids = st.sampled_from(["", "", "", "r1", "r2"])
asks = st.lists(
    st.tuples(keys, hosts, kinds, st.none() | offsets, st.sampled_from([0, 0, 10, 40]), st.booleans()),
    min_size=1,
    max_size=8,
)


@pytest.fixture(scope="module", autouse=True)
def server():
    with StoreServer(appendfsync="no") as Walk.server:
        yield


class Walk(RuleBasedStateMachine):
    """Each step is done to both stores; what they answer, and what they then hold, must be the same."""

    server: ClassVar[StoreServer]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.prefix = f"w{uuid.uuid4().hex[:8]}"
        self.raw = redis.Redis(unix_socket_path=self.server.socket_path)
        self.redis = RedisStore(
            Connection.open(self.server.url),
            prefix=self.prefix,
            quarantine_ms=5000,
            now_ms=self.clock,
            patience=Patience(least_ms=0),
        )
        self.memory = MemoryStore(quarantine_ms=5000, now_ms=self.clock)

    def teardown(self) -> None:
        assert [] == audit(self.raw, self.prefix)
        self.raw.flushall()  # the audit of later walks reads all keys there are
        self.raw.close()
        self.loop.run_until_complete(self.redis.aclose())
        self.loop.close()

    def both(self, step: Callable[[Desk], Awaitable[Any]]) -> Any:
        answers = [self.loop.run_until_complete(outcome(step(Desk(store)))) for store in (self.memory, self.redis)]
        assert answers[0] == answers[1]
        return answers[0]

    @initialize()
    def some_pools(self) -> None:
        for pool in ("g/10.1.0.0/29", "g/10.1.0.32/27/10.1.0.40/30", "g/10.1.0.32/27"):
            self.both(lambda desk, pool=pool: desk.pool(pool))

    @rule(pool=pools, request_id=request_ids)
    def make_pool(self, pool: str, request_id: str) -> None:
        self.both(lambda desk: desk.pool(pool, request_id))

    @rule(size=st.none() | st.integers(22, 26), skip=st.lists(st.integers(0, 1023), max_size=2))
    def make_any_pool(self, size: int | None, skip: list[int]) -> None:
        exclude = tuple(sorted(subnet(f"10.{number >> 2}.{(number & 3) * 64}.0/28") for number in skip))
        ask = PoolAsk(space="GlobalDefault", choices=PREDEFINED.choices("GlobalDefault", 4, size), exclude=exclude)
        self.both(lambda desk: chosen(desk.store, ask))

    @rule(pool=pools, request_id=request_ids, infrastructure=st.booleans())
    def drop_pool(self, pool: str, request_id: str, infrastructure: bool) -> None:
        self.both(lambda desk: desk.drop(pool, request_id, infrastructure=infrastructure))

    @rule(pick=st.integers(0, 9))
    def drop_any_pool(self, pick: int) -> None:
        page = self.both(lambda desk: listed_pools(desk.store, "GlobalDefault"))
        if page:
            self.both(lambda desk: desk.drop(page[pick % len(page)][0]))

    @rule(pool=pools, wishes=asks, request_id=request_ids)
    def lease(self, pool: str, wishes: list[Any], request_id: str) -> None:
        wanted = pool_id(pool)
        made = [
            AddressAsk(Owner(key, host, kind), address_of(wanted, offset), ttl_s, serial)
            for key, host, kind, offset, ttl_s, serial in wishes
        ]
        self.both(lambda desk: desk.leases(pool, *made, request_id=request_id))

    @rule(
        pool=pools, items=st.lists(st.tuples(offsets, st.sampled_from(["", *KEYS])), max_size=6), request_id=request_ids
    )
    def give_back(self, pool: str, items: list[tuple[int, str]], request_id: str) -> None:
        inside = pool_id(pool).subnet
        texts = [(format_address(inside.version, inside.base + offset % inside.size), key) for offset, key in items]
        self.both(lambda desk: desk.give_back(pool, *texts, request_id=request_id))

    @rule(host=st.sampled_from(HOSTS[1:]))
    def renew(self, host: str) -> None:
        self.both(lambda desk: renewed(desk.store, host))

    @rule()
    def sweep(self) -> None:
        self.both(lambda desk: desk.store.sweep())

    @rule(seconds=st.sampled_from([1, 3, 5, 20]))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(pool=pools, limit=st.integers(1, 5), key=st.sampled_from(["", "k1"]), host=hosts)
    def look(self, pool: str, limit: int, key: str, host: str) -> None:
        self.both(lambda desk: desk.listed(pool, limit=limit, key=key, host=host))
        self.both(lambda desk: desk.store.get_pool(pool_id(pool)))
        self.both(lambda desk: listed_pools(desk.store, ""))

    @rule(
        pool=pools,
        items=st.lists(st.tuples(offsets, st.sampled_from(["", *KEYS])), max_size=4),
        host=st.sampled_from(HOSTS[1:]),
        request_id=request_ids,
    )
    def transfer(self, pool: str, items: list[tuple[int, str]], host: str, request_id: str) -> None:
        wanted = pool_id(pool)
        returns = [AddressReturn(wanted.subnet.base + offset % wanted.subnet.size, key) for offset, key in items]
        mark = tag(request_id, repr((returns, host))) if request_id else RequestTag()
        self.both(lambda desk: desk.store.transfer(wanted, returns, host, mark))

    @rule(
        pool=pools,
        claims=st.lists(st.tuples(keys, kinds, offsets, st.integers(-20, 20), st.sampled_from([0, 10])), max_size=4),
        host=st.sampled_from(HOSTS[1:]),
    )
    def report(self, pool: str, claims: list[Any], host: str) -> None:
        wanted = pool_id(pool)
        epoch = self.clock.now_ms // 1000 * 65536
        made = [
            Claim(Owner(key, host, kind), address, epoch + shift, ttl_s)
            for key, kind, offset, shift, ttl_s in claims
            if (address := address_of(wanted, offset)) is not None
        ]
        self.both(lambda desk: reported(desk.store, host, {wanted: made}))

    @rule(pool=pools)
    def tell(self, pool: str) -> None:
        self.both(lambda desk: history(desk.store, pool))

    @rule()
    def keys_agree(self) -> None:
        assert [] == audit(self.raw, self.prefix)


async def history(store: Store, pool: str) -> list[Any]:
    found, _ = await store.list_events(pool_id(pool), address=None, before="", limit=1000)
    # One sweep may end leases in any order.
    return sorted((event.time_ms, event.type, event.address, event.owner.key, event.epoch) for event in found)


async def reported(store: Store, host: str, claims: Any) -> list[Any]:
    epoch = (await store.renew_host(host)).store_epoch
    [answers] = (await store.reassert(host, epoch, claims, complete=True)).values()
    return answers


async def outcome(step: Awaitable[Any]) -> Any:
    """Return an answer, or an error as data; errors in answers likewise."""
    try:
        answer = await step
    except errors.NetweftError as error:
        return as_data(error)
    return [as_data(item) for item in answer] if isinstance(answer, list) else answer


def as_data(item: Any) -> Any:
    return (type(item), item.reason, item.message, item.metadata) if isinstance(item, errors.NetweftError) else item


async def renewed(store: Store, host: str) -> int:
    return (await store.renew_host(host)).renewed


async def chosen(store: Store, ask: PoolAsk) -> str:
    return str((await store.request_pool(ask, RequestTag())).id)


async def listed_pools(store: Store, space: str) -> list[Any]:
    page = await store.list_pools(space=space, start=None, limit=1000)
    return [(str(pool.id), pool.use, pool.created_ms) for pool in page.pools]


def address_of(pool: Any, offset: int | None) -> int | None:
    """Return an address that can be leased, or None."""
    if offset is None:
        return None
    address = pool.subnet.base + offset % pool.subnet.size
    return None if pool.is_reserved(address) else address


Walk.TestCase.settings = settings(
    max_examples=200 if LONG else 15,
    stateful_step_count=200 if LONG else 40,
    database=None,  # leaves no file in the clone
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
test_redis_and_its_twin_never_differ = pytest.mark.timeout(3600 if LONG else 120)(Walk.TestCase)
