"""The store in Redis: the registry and the address sets, made to agree.

A pool lives in two hash tags: the registry of its space says that it exists, its family holds the addresses. Making one
writes the registry, then the family; ending one ends the family, where the decision is final for the pool's generation,
then leaves the registry. What a crash leaves between two steps is finished by the next call, or sweep, that meets it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence

from netweft_common import errors

from netweft_ipam.domain import refusals
from netweft_ipam.domain.leases import AddressAsk, AddressReturn, Lease, LeaseFilter, RequestTag
from netweft_ipam.domain.pools import Pool, PoolAsk, PoolId, PoolUse, parse_pool_id
from netweft_ipam.store import keys
from netweft_ipam.store.connection import Connection
from netweft_ipam.store.families import Families, StaleHistory
from netweft_ipam.store.protocol import LeasePage, PoolPage
from netweft_ipam.store.registry import Entry, Overlap, Registry

_SWEEP_PAGE = 200
_SWEEP_BLOCKS = 128


class RedisStore:
    """Pools and leases in Redis or Valkey, 7.0 and later.

    Args:
        connection: The store; closed by `aclose`.
        prefix: Prefix of all keys.
        quarantine_ms: How long a released address rests.
        check_history: Whether a change of server (restart, promotion) is noticed before leases are given out.
        now_ms: Time in ms for tests; None: the server's own.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        prefix: str = "netweft",
        quarantine_ms: int = 5000,
        check_history: bool = True,
        now_ms: Callable[[], int] | None = None,
    ) -> None:
        self._connection = connection
        self._prefix = keys.check_prefix(prefix)
        clock = self._now_ms = now_ms if now_ms is not None else lambda: 0
        self._registry = Registry(connection, prefix, clock)
        self._families = Families(
            connection, prefix=prefix, now_ms=clock, quarantine_ms=quarantine_ms, check_history=check_history
        )

    async def request_pool(self, ask: PoolAsk, tag: RequestTag) -> Pool:
        """See Store."""
        if not tag.id:
            # A retry inside the client of a call whose answer was lost must not take a second pool.
            tag = RequestTag(f"auto-{secrets.token_hex(8)}", b"\0" * 16)
        found = await self._registry.reserve(ask, tag)
        if isinstance(found, Overlap) and await self._clear(found.pool or PoolId(ask.space, found.subnet)):
            found = await self._registry.reserve(ask, tag)
        if found is None:
            version = ask.choices[0].base.version
            raise refusals.pools_exhausted(ask.space, f"of IPv{version} /{ask.choices[0].size}")
        if isinstance(found, Overlap):
            assert ask.subnet is not None
            raise refusals.pool_overlap(PoolId(ask.space, ask.subnet, ask.range), found.subnet)
        try:
            lives = await self._families.open(found)
        except errors.Exhausted:
            await self._end(found, infrastructure=False, tag=RequestTag())
            raise
        if not lives:
            await self._registry.remove(found, RequestTag())
            raise errors.Conflict("POOL_ENDED", f"pool {found.id} was released at the same time; ask again")
        return _pool(found, await self._families.use(found.id))

    async def release_pool(self, pool: PoolId, *, infrastructure: bool, tag: RequestTag) -> None:
        """See Store."""
        entry = await self._registry.find_to_end(pool, tag)
        if entry is None:
            return
        held = await self._end(entry, infrastructure=infrastructure, tag=tag)
        if held:
            raise refusals.pool_in_use(pool, held)

    async def get_pool(self, pool: PoolId) -> Pool:
        """See Store."""
        entry, use = await asyncio.gather(self._registry.find(pool), self._families.use(pool))
        if entry is None:
            raise refusals.pool_unknown(pool)
        return _pool(entry, use)

    async def list_pools(self, *, space: str, start: PoolId | None, limit: int) -> PoolPage:
        """See Store."""
        entries = await self._registry.page(space=space, start=start, limit=limit + 1)
        uses = await asyncio.gather(*(self._families.use(entry.id) for entry in entries[:limit]))
        pools = tuple(_pool(entry, use) for entry, use in zip(entries, uses, strict=False))
        return PoolPage(pools, entries[limit].id if len(entries) > limit else None)

    async def request_addresses(
        self, pool: PoolId, asks: Sequence[AddressAsk], tag: RequestTag
    ) -> list[Lease | errors.NetweftError]:
        """See Store."""
        for _ in range(3):
            try:
                answer = await self._families.request(pool, asks, tag)
            except StaleHistory as stale:
                await self._families.confirm(pool, stale.history)
                continue
            if answer is None:
                await self._finish_open(pool)
                continue
            outcomes, new_hosts = answer
            for host_id in new_hosts:
                await self._connection.command("SADD", self._host_pools(host_id), str(pool.family))
            return outcomes
        raise errors.Unavailable(
            "POOL_UNSETTLED", f"pool {pool} is being made or ended by others; try again", pool_id=str(pool)
        )

    async def release_addresses(
        self, pool: PoolId, returns: Sequence[AddressReturn], tag: RequestTag
    ) -> list[errors.NetweftError | None]:
        """See Store."""
        outcomes = await self._families.release(pool, returns, tag)
        if outcomes is None:
            await self._finish_open(pool)
            # It was registered and never opened, so it has no leases to give back.
            return [None] * len(returns)
        return outcomes

    async def check_tag(self, pool: PoolId, tag: RequestTag) -> None:
        """See Store."""
        await self._families.check_tag(pool, tag)

    async def renew_host(self, host_id: str) -> int:
        """See Store."""
        await self._connection.command("SET", self._host_beat(host_id), await self._time_ms())
        names = await self._connection.command("SMEMBERS", self._host_pools(host_id))
        pools = [parse_pool_id(name.decode(), field="pool_id") for name in names]
        return sum(await asyncio.gather(*(self._families.renew(pool, host_id) for pool in pools)))

    async def list_leases(self, pool: PoolId, *, wanted: LeaseFilter, after: int | None, limit: int) -> LeasePage:
        """See Store."""
        page = await self._families.page(pool, wanted=wanted, after=after, limit=limit)
        if page is None:
            await self._finish_open(pool)
            return LeasePage((), None)
        return page

    async def sweep(self) -> int:
        """See Store."""
        ended = 0
        start: PoolId | None = None
        while True:
            entries = await self._registry.page(space="", start=start, limit=_SWEEP_PAGE + 1)
            families = {entry.id.family for entry in entries[:_SWEEP_PAGE]}
            ended += sum(await asyncio.gather(*(self._sweep_family(family) for family in families)))
            if len(entries) <= _SWEEP_PAGE:
                return ended
            start = entries[_SWEEP_PAGE].id

    async def check(self) -> None:
        """See Store."""
        await self._connection.command("PING")

    async def aclose(self) -> None:
        """See Store."""
        await self._connection.close()

    async def _sweep_family(self, family: PoolId) -> int:
        ended, more = 0, True
        heartbeats: dict[str, int] = {}
        while more:
            count, wanted, more = await self._families.sweep(family, limit=_SWEEP_BLOCKS, heartbeats=heartbeats)
            ended += count
            for host_id in wanted:
                # The host's own record is asked before its leases end: the pool may not have heard of its heartbeat.
                beat = await self._connection.command("GET", self._host_beat(host_id))
                heartbeats[host_id] = int(beat or 0)
                if beat:
                    await self._connection.command("SADD", self._host_pools(host_id), str(family))
            more = more or bool(wanted)
        return ended

    async def _end(self, entry: Entry, *, infrastructure: bool, tag: RequestTag) -> int:
        held = await self._families.close(entry, infrastructure=infrastructure)
        if not held:
            await self._registry.remove(entry, tag)
        return held

    async def _clear(self, pool: PoolId) -> bool:
        """Finish the end of a pool that a crash has left registered; return whether it was so."""
        entry = await self._registry.find(pool)
        if entry is None:
            return True
        if await self._families.open(entry):
            return False
        await self._registry.remove(entry, RequestTag())
        return True

    async def _finish_open(self, pool: PoolId) -> None:
        """Open a pool that is registered and has no address set.

        Raises:
            NotFound: It is not registered, or its end was decided.
        """
        entry = await self._registry.find(pool)
        if entry is None:
            raise refusals.pool_unknown(pool)
        if not await self._families.open(entry):
            await self._registry.remove(entry, RequestTag())
            raise refusals.pool_unknown(pool)

    async def _time_ms(self) -> int:
        if now := self._now_ms():
            return now
        seconds, micros = await self._connection.command("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    def _host_pools(self, host_id: str) -> str:
        return f"{{{self._prefix}:host:{host_id}}}:pools"

    def _host_beat(self, host_id: str) -> str:
        return f"{{{self._prefix}:host:{host_id}}}:beat"


def _pool(entry: Entry, use: PoolUse | None) -> Pool:
    return Pool(id=entry.id, labels=entry.labels, created_ms=entry.created_ms, use=use or PoolUse())
