"""The store in Redis: the registry and the address sets, made to agree.

A pool lives in two hash tags: the registry of its space says that it exists, its family holds the addresses. Making one
writes the registry, then the family; ending one ends the family, where the decision is final for the pool's generation,
then leaves the registry. What a crash leaves between two steps is finished by the next call, or sweep, that meets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence

from netweft_common import errors, logs

from netweft_ipam.domain import refusals, settling
from netweft_ipam.domain.addressing import Subnet, format_address
from netweft_ipam.domain.leases import (
    AddressAsk,
    AddressReturn,
    Claim,
    Lease,
    LeaseColumns,
    LeaseEvent,
    LeaseFilter,
    Renewal,
    RequestTag,
)
from netweft_ipam.domain.pools import Pool, PoolAsk, PoolId, PoolUse, parse_pool_id
from netweft_ipam.domain.roster import Roster
from netweft_ipam.domain.settling import Patience
from netweft_ipam.store import keys
from netweft_ipam.store.beats import Beats
from netweft_ipam.store.connection import Connection, Epoch
from netweft_ipam.store.families import UNCHECKED, Families, StaleHistory
from netweft_ipam.store.hosts import HostBook
from netweft_ipam.store.protocol import BEFORE_ALL, LeasePage, PoolPage
from netweft_ipam.store.registry import Entry, Overlap, Registry

_SWEEP_PAGE = 50
_SWEEP_PAUSE_S = 0.002
"""For each subnet that was looked at, between two pages: about two thirds of the time are others'."""
_SWEEP_BLOCKS = 128
_SWEEPS_AT_REST = 12
"""In one of so many sweeps a subnet has its turn in which nothing can end, unless this process has changed it."""
_EVENT_ENTRIES = 16

_LOG = logs.get(part="store")


class RedisStore:
    """Pools and leases in Redis or Valkey, 7.0 and later.

    Args:
        connection: The store; closed by `aclose`.
        prefix: Prefix of all keys.
        quarantine_ms: How long a released address rests.
        check_history: Whether a change of server (restart, promotion) is noticed before leases are given out.
        patience: How long hosts are waited for after such a change.
        events_kept: Entries of a subnet's history that are kept, of up to 256 events each; 0: none.
        now_ms: Time in ms for tests; None: the server's own.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        prefix: str = "netweft",
        quarantine_ms: int = 5000,
        check_history: bool = True,
        patience: Patience = settling.DEFAULT_PATIENCE,
        events_kept: int = 1024,
        now_ms: Callable[[], int] | None = None,
    ) -> None:
        self._connection = connection
        self._prefix = keys.check_prefix(prefix)
        clock = now_ms if now_ms is not None else lambda: 0
        self._registry = Registry(connection, prefix, clock)
        self._events_kept = events_kept
        self._families = Families(
            connection,
            prefix=prefix,
            now_ms=clock,
            quarantine_ms=quarantine_ms,
            check_history=check_history,
            events_kept=events_kept,
        )
        self._hosts = HostBook(connection, prefix, clock)
        self._patience = patience
        self._epoch = Epoch("", frozenset())
        self._epoch_changes = 0
        # Subnets in which nothing can end, after how many changes of the epoch that was seen, and whose turn it is.
        self._resting: frozenset[PoolId] = frozenset()
        self._rested_under = 0
        self._sweeps = -1
        # Heartbeats of reporting hosts that this process has seen, ms by the store's clock: the store may lose them.
        self._beats: dict[str, int] = {}
        self._gathered = Beats(self._beat_hosts)

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

        async def attempt() -> tuple[list[Lease | errors.NetweftError], str] | None:
            answer = await self._families.request(pool, asks, tag)
            if answer is None:
                return None
            outcomes, server, new_hosts = answer
            for host_id in new_hosts:
                await self._hosts.add_pool(host_id, str(pool.family))
            return outcomes, server

        return await self._settled(pool, attempt)

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

    async def beat_host(self, host_id: str, *, silent_ms: int = 0) -> Renewal:
        """See Store."""
        return await self._gathered.add(host_id, silent_ms)

    async def _beat_hosts(self, silent_ms: Mapping[str, int]) -> dict[str, Renewal]:
        epoch = (await self._read_epoch()).id
        beat_ms, reported = await self._hosts.beat(silent_ms, epoch)
        self._beats |= dict.fromkeys(self._beats.keys() & silent_ms.keys(), beat_ms)
        return {
            host_id: Renewal(renewed=0, store_epoch=epoch, reassert=not has_reported)
            for host_id, has_reported in reported.items()
        }

    async def renew_host(self, host_id: str, *, silent_ms: int = 0) -> Renewal:
        """See Store."""
        beaten = await self.beat_host(host_id, silent_ms=silent_ms)
        names = await self._hosts.pools(host_id)
        pools = [parse_pool_id(name, field="pool_id") for name in names]
        held = await asyncio.gather(*(self._families.renew(pool, host_id, silent_ms) for pool in pools))
        for name, count in zip(names, held, strict=True):
            if count is None:
                await self._hosts.remove_pool(host_id, name)
        return dataclasses.replace(beaten, renewed=sum(count or 0 for count in held))

    async def bind_agent(self, host_id: str, name: str) -> str:
        """See Store."""
        return await self._hosts.bind(host_id, name)

    async def set_roster(self, roster: Roster) -> None:
        """See Store."""
        await self._hosts.set_roster(roster)

    async def read_roster(self, known: Roster | None) -> Roster | None:
        """See Store."""
        return await self._hosts.read_roster(known)

    async def reassert(
        self, host_id: str, store_epoch: str, claims: Mapping[PoolId, Sequence[Claim]], *, complete: bool
    ) -> dict[PoolId, list[Lease | errors.NetweftError]]:
        """See Store."""
        epoch = await self._read_epoch()
        if store_epoch != epoch.id:
            raise refusals.store_epoch_stale(store_epoch, epoch.id)
        outcomes = {pool: await self._adopt(pool, host_id, listed, epoch) for pool, listed in claims.items()}
        if complete:
            # A failover in the meantime gave the epoch another name, under which this report then does not stand.
            self._beats[host_id] = await self._hosts.reported(host_id, store_epoch)
        return outcomes

    async def transfer(
        self, pool: PoolId, returns: Sequence[AddressReturn], host_id: str, tag: RequestTag
    ) -> list[Lease | errors.NetweftError]:
        """See Store."""

        async def attempt() -> tuple[list[Lease | errors.NetweftError], str] | None:
            answer = await self._families.transfer(pool, returns, host_id, tag)
            if answer is not None and any(isinstance(outcome, Lease) for outcome in answer[0]):
                await self._hosts.add_pool(host_id, str(pool.family))
            return answer

        return await self._settled(pool, attempt)

    async def lookup(self, space: str, subnet: Subnet) -> Lease:
        """See Store."""
        family = await self._registry.find_family(space, subnet)
        if family is None:
            raise refusals.address_unknown(space, format_address(subnet.version, subnet.base))
        lease = await self._families.lookup(family, subnet.base)
        if lease is None:
            raise refusals.not_leased(family, subnet.base)
        return lease

    async def list_events(
        self, pool: PoolId, *, address: int | None, before: str, limit: int
    ) -> tuple[list[LeaseEvent], str]:
        """See Store."""
        found: list[LeaseEvent] = []
        entry, _, number = before.partition(".")
        start, below = entry, int(number or 0)
        while True:
            entries = await self._families.events(pool, start=start, back=True, entries=_EVENT_ENTRIES)
            if entries is None:
                await self._finish_open(pool)
                return [], ""
            for name, events in entries:
                shown = events[:below] if name == entry else events
                for event in reversed(shown):
                    if address is None or event.address == address:
                        found.append(event)
                        if len(found) == limit:
                            return found, event.id
            if len(entries) < _EVENT_ENTRIES:
                return found, ""
            # "(id": strictly before it.
            start = f"({entries[-1][0]}"

    async def read_events(self, pool: PoolId, *, after: str, limit: int) -> list[LeaseEvent]:
        """See Store."""
        if not after:
            newest, _ = await self.list_events(pool, address=None, before="", limit=1)
            if not self._events_kept:
                raise refusals.no_history(pool)
            return newest
        entry, _, number = after.partition(".")
        position = int(number or 0)
        entries = await self._families.events(pool, start=entry, back=False, entries=_EVENT_ENTRIES)
        if entries is None:
            await self._finish_open(pool)
            return []
        found = [event for _, events in entries for event in events]
        if after == BEFORE_ALL:
            return found[:limit]
        if not entries or entries[0][0] != entry or position >= len(entries[0][1]):
            raise refusals.events_lost(pool, after)
        return found[position + 1 :][:limit]

    async def observe(self) -> None:
        """See Store."""
        await self._read_epoch()

    async def list_leases(self, pool: PoolId, *, wanted: LeaseFilter, after: int | None, limit: int) -> LeasePage:
        """See Store."""
        page = await self._families.page(pool, wanted=wanted, after=after, limit=limit)
        if page is None:
            await self._finish_open(pool)
            return LeasePage(LeaseColumns(), None)
        return page

    async def sweep(self) -> int:
        """See Store."""
        ended = 0
        start: PoolId | None = None
        epoch_changes = self._epoch_changes
        # Nothing ends in what was at rest the last time unless other replicas have leased there: they sweep it too.
        resting, self._resting = self._resting, frozenset()
        if self._rested_under != epoch_changes:
            resting = frozenset()
        still: set[PoolId] = set()
        seen: set[PoolId] = set()
        turn = self._sweeps = (self._sweeps + 1) % _SWEEPS_AT_REST
        while True:
            entries = await self._registry.page(space="", start=start, limit=_SWEEP_PAGE + 1)
            due: list[PoolId] = []
            for family in dict.fromkeys(entry.id.family for entry in entries[:_SWEEP_PAGE]):
                if family in seen:  # its pools are on two pages
                    continue
                seen.add(family)
                rests = family in resting and not self._families.is_changed(family)
                if rests and zlib.crc32(str(family).encode()) % _SWEEPS_AT_REST != turn:
                    still.add(family)
                else:
                    due.append(family)
            for family, (count, is_waiting) in zip(
                due, await asyncio.gather(*map(self._sweep_family, due)), strict=True
            ):
                ended += count
                if not is_waiting:
                    still.add(family)
            if len(entries) <= _SWEEP_PAGE:
                break
            start = entries[_SWEEP_PAGE].id
            # After many leases in many subnets all are due: callers would wait behind them for seconds.
            await asyncio.sleep(len(due) * _SWEEP_PAUSE_S)
        self._families.forget_changes(seen)
        self._resting, self._rested_under = frozenset(still), epoch_changes
        return ended

    async def weaknesses(self) -> list[str]:
        """See Store."""
        return await self._connection.weaknesses()

    async def check(self) -> None:
        """See Store."""
        await self._connection.command("PING")

    async def aclose(self) -> None:
        """See Store."""
        await self._connection.close()

    async def _read_epoch(self) -> Epoch:
        epoch = await self._connection.epoch()
        if epoch != self._epoch:
            if self._epoch.id:
                _LOG.warning("the store continues another history", store_epoch=epoch.id, before=self._epoch.id)
            self._epoch = epoch
            self._epoch_changes += 1
        return epoch

    async def _settled(
        self,
        pool: PoolId,
        attempt: Callable[[], Awaitable[tuple[list[Lease | errors.NetweftError], str] | None]],
    ) -> list[Lease | errors.NetweftError]:
        """Do what needs a pool that is open and settled; it is done again when the store changed meanwhile.

        An answer that a server gave just before it was replaced may be of the part that was lost. Callers may have seen
        the new epoch by then, so they must not see the old answer after it; asking again is idempotent.
        """
        for _ in range(5):
            changes = self._epoch_changes
            try:
                answer = await attempt()
            except StaleHistory as stale:
                await self._settle(pool, stale.history)
                continue
            if answer is None:
                await self._finish_open(pool)
                continue
            outcomes, server = answer
            if server != UNCHECKED and server not in self._epoch.histories:
                if server not in (await self._read_epoch()).histories:
                    continue
                # Only our reading was old: the answer is of the server that is current.
                return outcomes
            if changes == self._epoch_changes:
                return outcomes
        raise errors.Unavailable(
            "POOL_UNSETTLED", f"pool {pool} is being made or ended by others; try again", pool_id=str(pool)
        )

    async def _settle(self, pool: PoolId, history: str) -> None:
        """Confirm a pool on a server's history if the hosts have reported.

        Raises:
            Unavailable: Hosts are still waited for.
        """
        if history == UNCHECKED:
            await self._families.confirm(pool, history)
            return
        epoch = await self._read_epoch()
        if history not in epoch.histories:
            # This reading is older or newer than the script's; reports under its epoch say nothing of that server.
            return
        reports = await self._hosts.reports(epoch.id, live_ms=self._patience.live_ms, seen=self._beats)
        wait_ms = settling.wait_ms(reports, self._patience)
        if wait_ms:
            raise refusals.settling(pool, reports.missing, wait_ms)
        await self._families.confirm(pool, history)

    async def _adopt(
        self, pool: PoolId, host_id: str, claims: Sequence[Claim], epoch: Epoch
    ) -> list[Lease | errors.NetweftError]:
        for _ in range(3):
            answer = await self._families.adopt(pool, host_id, claims)
            if answer is not None:
                outcomes, server = answer
                if server != UNCHECKED and server not in epoch.histories:
                    raise refusals.store_epoch_stale(epoch.id, (await self._read_epoch()).id)
                await self._hosts.add_pool(host_id, str(pool.family))
                return outcomes
            try:
                # The making of the pool itself was lost, its labels too.
                await self.request_pool(PoolAsk(space=pool.space, subnet=pool.subnet, range=pool.range), RequestTag())
            except errors.FailedPrecondition as overlap:
                try:
                    await self._finish_open(pool)
                except errors.NotFound:
                    return [overlap] * len(claims)
        return [refusals.pool_unknown(pool)] * len(claims)

    async def _sweep_family(self, family: PoolId) -> tuple[int, bool]:
        """Return how many leases ended, and whether more can."""
        ended, more, is_waiting = 0, True, True
        heartbeats: dict[str, int] = {}
        while more:
            try:
                swept = await self._families.sweep(family, limit=_SWEEP_BLOCKS, heartbeats=heartbeats)
            except StaleHistory as stale:
                with contextlib.suppress(errors.Unavailable):
                    await self._settle(family, stale.history)
                return ended, True
            ended += swept.ended
            for host_id in swept.wanted:
                # The host's own record is asked before its leases end: the pool may not have heard of its heartbeat.
                heartbeats[host_id] = await self._hosts.last_beat(host_id)
                if heartbeats[host_id]:
                    await self._hosts.add_pool(host_id, str(family))
            more, is_waiting = swept.is_more or bool(swept.wanted), swept.is_waiting
        return ended, is_waiting

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


def _pool(entry: Entry, use: PoolUse | None) -> Pool:
    return Pool(id=entry.id, labels=entry.labels, created_ms=entry.created_ms, use=use or PoolUse())
