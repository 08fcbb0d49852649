"""The store's twin in memory: the same rules, written as plainly as they can be.

It is what the contract suite compares Redis with, and what other services test against. It searches address by address,
so it is for small pools.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence

from netweft_common import errors

from netweft_ipam.domain import pools, predefined, refusals
from netweft_ipam.domain.addressing import Subnet, format_address
from netweft_ipam.domain.leases import (
    AddressAsk,
    AddressReturn,
    Claim,
    Lease,
    LeaseColumns,
    LeaseEvent,
    LeaseEventType,
    LeaseFilter,
    LeaseHolder,
    Owner,
    Renewal,
    RequestTag,
)
from netweft_ipam.domain.pools import Pool, PoolAsk, PoolId, PoolUse
from netweft_ipam.domain.roster import Roster
from netweft_ipam.store.protocol import BEFORE_ALL, LeasePage, PoolPage

# This process is the whole history there is.
_STORE_EPOCH = "memory"


@dataclasses.dataclass(slots=True)
class _Cell:
    """An address that was leased at least once."""

    lease: Lease
    held: bool = True
    ttl_s: int = 0
    renewed_ms: int = 0
    rests_until_ms: int = 0


@dataclasses.dataclass(slots=True)
class _Family:
    """The addresses of one subnet."""

    cells: dict[int, _Cell] = dataclasses.field(default_factory=dict)
    cursors: dict[PoolId, int] = dataclasses.field(default_factory=dict)
    seen: dict[str, bytes] = dataclasses.field(default_factory=dict)
    answers: dict[str, list[errors.NetweftError | None]] = dataclasses.field(default_factory=dict)
    beats: dict[str, int] = dataclasses.field(default_factory=dict)
    events: list[LeaseEvent] = dataclasses.field(default_factory=list)
    epoch: int = 0
    settled: bool = False

    def hear(self, host_id: str, until_ms: int) -> None:
        """Note until when a host need not be heard of, unless that is known to be later."""
        self.beats[host_id] = max(self.beats.get(host_id, 0), until_ms)


class MemoryStore:
    """Pools and leases in this process.

    Args:
        quarantine_ms: How long a released address rests.
        now_ms: Time in ms; the system's by default.
    """

    def __init__(self, *, quarantine_ms: int = 5000, now_ms: Callable[[], int] | None = None) -> None:
        self._quarantine_ms = quarantine_ms
        self._now_ms = now_ms if now_ms is not None else lambda: time.time_ns() // 1_000_000
        self._pools: dict[PoolId, Pool] = {}
        self._families: dict[PoolId, _Family] = {}
        self._book: dict[str, int] = {}
        """Until when hosts need not be heard of, ms."""
        self._reported: dict[str, bool] = {}
        self._agents: dict[str, str] = {}
        self._roster: Roster | None = None
        self._pool_requests: dict[tuple[str, str], tuple[bytes, Pool | None]] = {}

    async def request_pool(self, ask: PoolAsk, tag: RequestTag) -> Pool:
        """See Store."""
        if known := self._known_request(ask.space, tag):
            pool = known[1]
            if pool is not None and self._pools.get(pool.id) is pool:
                return self._with_use(pool)
        pool_id = self._choose(ask) if ask.subnet is None else PoolId(ask.space, ask.subnet, ask.range)
        if ask.subnet is not None:
            self._refuse_overlap(pool_id)
        now = self._now_ms()
        if pool_id.family not in self._families:
            self._families[pool_id.family] = _Family(epoch=now // 1000 * 65536)
        pool = self._pools[pool_id] = Pool(id=pool_id, labels=dict(ask.labels), created_ms=now)
        if tag.id:
            self._pool_requests[ask.space, tag.id] = (tag.fingerprint, pool)
        return self._with_use(pool)

    async def release_pool(self, pool: PoolId, *, infrastructure: bool, tag: RequestTag) -> None:
        """See Store."""
        if self._known_request(pool.space, tag):
            return
        self._get(pool)
        cells = [cell for cell in self._families[pool.family].cells.values() if cell.held and cell.lease.pool == pool]
        held = [cell for cell in cells if not (infrastructure and cell.lease.owner.kind.is_infrastructure)]
        if held:
            raise refusals.pool_in_use(pool, len(held))
        for cell in cells:
            self._end(self._families[pool.family], cell, LeaseEventType.RELEASED)
        del self._pools[pool]
        if not any(other.family == pool.family for other in self._pools):
            del self._families[pool.family]
        if tag.id:
            self._pool_requests[pool.space, tag.id] = (tag.fingerprint, None)

    async def get_pool(self, pool: PoolId) -> Pool:
        """See Store."""
        return self._with_use(self._get(pool))

    async def list_pools(self, *, space: str, start: PoolId | None, limit: int) -> PoolPage:
        """See Store."""
        wanted = sorted(
            (pool for pool in self._pools if (not space or pool.space == space)),
            key=_list_order,
        )
        if start is not None:
            wanted = [pool for pool in wanted if _list_order(pool) >= _list_order(start)]
        page = tuple(self._with_use(self._pools[pool]) for pool in wanted[:limit])
        return PoolPage(page, wanted[limit] if len(wanted) > limit else None)

    async def request_addresses(
        self, pool: PoolId, asks: Sequence[AddressAsk], tag: RequestTag
    ) -> list[Lease | errors.NetweftError]:
        """See Store."""
        self._get(pool)
        family = self._families[pool.family]
        await self.check_tag(pool, tag)
        if tag.id:
            family.seen[tag.id] = tag.fingerprint
        self._settle(family)
        self._free_rested(family)
        outcomes = [self._request(pool, family, ask) for ask in asks]
        # What is told of a full pool is its use at the end of the call.
        return [refusals.exhausted(pool, self._use(pool)) if outcome is None else outcome for outcome in outcomes]

    async def release_addresses(
        self, pool: PoolId, returns: Sequence[AddressReturn], tag: RequestTag
    ) -> list[errors.NetweftError | None]:
        """See Store."""
        self._get(pool)
        family = self._families[pool.family]
        await self.check_tag(pool, tag)
        if tag.id in family.answers:
            return family.answers[tag.id]
        outcomes = [self._release(pool, family, item) for item in returns]
        if tag.id:
            family.seen[tag.id] = tag.fingerprint
            family.answers[tag.id] = outcomes
        return outcomes

    async def check_tag(self, pool: PoolId, tag: RequestTag) -> None:
        """See Store."""
        family = self._families.get(pool.family)
        if family and tag.id and family.seen.get(tag.id, tag.fingerprint) != tag.fingerprint:
            raise refusals.request_id_reused(tag.id)

    async def beat_host(self, host_id: str, *, silent_ms: int = 0) -> Renewal:
        """See Store."""
        return dataclasses.replace(await self.renew_host(host_id, silent_ms=silent_ms), renewed=0)

    async def renew_host(self, host_id: str, *, silent_ms: int = 0) -> Renewal:
        """See Store."""
        self._reported.setdefault(host_id, False)
        self._book[host_id] = max(self._book.get(host_id, 0), self._now_ms() + silent_ms)
        renewed = 0
        for family in self._families.values():
            family.hear(host_id, self._now_ms() + silent_ms)
            renewed += sum(cell.held and cell.lease.owner.host_id == host_id for cell in family.cells.values())
        return Renewal(renewed=renewed, store_epoch=_STORE_EPOCH, reassert=not self._reported[host_id])

    async def bind_agent(self, host_id: str, name: str) -> str:
        """See Store."""
        return self._agents.setdefault(host_id, name)

    async def set_roster(self, roster: Roster) -> None:
        """See Store."""
        if roster.follows(self._roster):
            self._roster = roster

    async def read_roster(self, known: Roster | None) -> Roster | None:
        """See Store."""
        return known if known == self._roster else self._roster

    async def reassert(
        self, host_id: str, store_epoch: str, claims: Mapping[PoolId, Sequence[Claim]], *, complete: bool
    ) -> dict[PoolId, list[Lease | errors.NetweftError]]:
        """See Store."""
        if store_epoch != _STORE_EPOCH:
            raise refusals.store_epoch_stale(store_epoch, _STORE_EPOCH)
        outcomes: dict[PoolId, list[Lease | errors.NetweftError]] = {}
        for pool, listed in claims.items():
            if pool not in self._pools:
                ask = PoolAsk(space=pool.space, subnet=pool.subnet, range=pool.range)
                try:
                    await self.request_pool(ask, RequestTag())
                except errors.FailedPrecondition as overlap:
                    outcomes[pool] = [overlap] * len(listed)
                    continue
            family = self._families[pool.family]
            outcomes[pool] = [self._adopt(pool, family, host_id, claim) for claim in listed]
            family.hear(host_id, self._now_ms())
        if complete:
            self._reported[host_id] = True
        return outcomes

    async def transfer(
        self, pool: PoolId, returns: Sequence[AddressReturn], host_id: str, tag: RequestTag
    ) -> list[Lease | errors.NetweftError]:
        """See Store."""
        self._get(pool)
        family = self._families[pool.family]
        await self.check_tag(pool, tag)
        self._settle(family)
        again = bool(tag.id) and tag.id in family.seen
        if tag.id:
            family.seen[tag.id] = tag.fingerprint
        return [self._transfer(pool, family, item, host_id, again=again) for item in returns]

    async def lookup(self, space: str, subnet: Subnet) -> Lease:
        """See Store."""
        for pool, family in self._families.items():
            if pool.space == space and pool.subnet.contains(subnet):
                cell = family.cells.get(subnet.base)
                if cell is None or not cell.held:
                    raise refusals.not_leased(pool, subnet.base)
                return self._as_held(family, cell)
        raise refusals.address_unknown(space, format_address(subnet.version, subnet.base))

    async def list_events(
        self, pool: PoolId, *, address: int | None, before: str, limit: int
    ) -> tuple[list[LeaseEvent], str]:
        """See Store."""
        self._get(pool)
        events = self._families[pool.family].events
        end = _position(before) if before else len(events)
        found = [event for event in reversed(events[:end]) if address in (None, event.address)]
        return found[:limit], found[limit - 1].id if len(found) > limit else ""

    async def read_events(self, pool: PoolId, *, after: str, limit: int) -> list[LeaseEvent]:
        """See Store."""
        self._get(pool)
        events = self._families[pool.family].events
        if not after:
            return events[-1:]
        if after == BEFORE_ALL:
            return events[:limit]
        start = _position(after)
        if after not in [event.id for event in events[start : start + 1]]:
            raise refusals.events_lost(pool, after)
        return events[start + 1 :][:limit]

    async def observe(self) -> None:
        """See Store."""

    async def list_leases(self, pool: PoolId, *, wanted: LeaseFilter, after: int | None, limit: int) -> LeasePage:
        """See Store."""
        self._get(pool)
        family = self._families[pool.family]
        found = [
            self._as_held(family, cell)
            for address, cell in sorted(family.cells.items())
            if cell.held
            and cell.lease.pool == pool
            and (after is None or address > after)
            and wanted.owner_key in ("", cell.lease.owner.key)
            and wanted.host_id in ("", cell.lease.owner.host_id)
        ]
        part = found[:limit]
        columns = LeaseColumns(
            addresses=[lease.address for lease in part],
            keys=[lease.owner.key.encode() for lease in part],
            epochs=[lease.epoch for lease in part],
            created_ms=[lease.created_ms for lease in part],
            expires_ms=[lease.expires_ms for lease in part],
            holders=[LeaseHolder(*lease.owner[1:], len(lease.owner.key.encode())) for lease in part],
        )
        return LeasePage(columns, part[-1].address if len(found) > limit else None)

    async def sweep(self) -> int:
        """See Store."""
        ended = 0
        for family in self._families.values():
            if not family.settled:
                self._settle(family)
                continue
            for cell in family.cells.values():
                host_id = cell.lease.owner.host_id if cell.held else ""
                if host_id in self._book and self._is_over(family, cell):
                    family.hear(host_id, self._book[host_id])  # the pool may not have heard of it
                if self._is_over(family, cell):
                    self._end(family, cell, LeaseEventType.EXPIRED)
                    ended += 1
            self._free_rested(family)
        return ended

    async def weaknesses(self) -> list[str]:
        """See Store."""
        return ["leases are kept in memory alone; a restart forgets them"]

    async def check(self) -> None:
        """See Store."""

    async def aclose(self) -> None:
        """See Store."""

    def _settle(self, family: _Family) -> None:
        """Put a fresh family's epochs above all that an earlier life may have given out."""
        if not family.settled:
            family.settled = True
            family.epoch = max(family.epoch + (1 << 20), self._now_ms() // 1000 * 65536)

    def _get(self, pool: PoolId) -> Pool:
        if pool not in self._pools:
            raise refusals.pool_unknown(pool)
        return self._pools[pool]

    def _known_request(self, space: str, tag: RequestTag) -> tuple[bytes, Pool | None] | None:
        known = self._pool_requests.get((space, tag.id)) if tag.id else None
        if known and known[0] != tag.fingerprint:
            raise refusals.request_id_reused(tag.id)
        return known

    def _choose(self, ask: PoolAsk) -> PoolId:
        taken = {pool.subnet for pool in self._pools if pool.space == ask.space}
        subnet = predefined.first_free(ask.choices, taken, ask.exclude)
        if subnet is None:
            first = ask.choices[0]
            raise refusals.pools_exhausted(ask.space, f"of IPv{first.base.version} /{first.size}")
        return PoolId(ask.space, subnet)

    def _refuse_overlap(self, pool: PoolId) -> None:
        if pool in self._pools:
            raise refusals.pool_overlap(pool, pool.subnet)
        for other in sorted(self._pools, key=lambda other: (other.subnet.base < pool.subnet.base, other.subnet.base)):
            if other.space != pool.space or not other.subnet.overlaps(pool.subnet):
                continue
            if pool.range is None or other.subnet != pool.subnet:
                raise refusals.pool_overlap(pool, other.subnet)

    def _with_use(self, pool: Pool) -> Pool:
        return dataclasses.replace(pool, use=self._use(pool.id))

    def _use(self, pool: PoolId) -> PoolUse:
        cells = self._families[pool.family].cells.values()
        resting = [cell for cell in cells if not cell.held and cell.rests_until_ms]
        held = [cell for cell in cells if cell.held]
        return PoolUse(
            leased=sum(cell.lease.pool == pool for cell in held),
            quarantined=sum(cell.lease.pool == pool for cell in resting),
            next_free_ms=min((cell.rests_until_ms for cell in resting), default=0),
            family_leased=len(held),
            family_quarantined=len(resting),
        )

    def _as_held(self, family: _Family, cell: _Cell) -> Lease:
        if not cell.ttl_s:
            return cell.lease._replace(expires_ms=0)
        renewed = max(cell.renewed_ms, family.beats.get(cell.lease.owner.host_id, 0) if cell.lease.owner.host_id else 0)
        return cell.lease._replace(expires_ms=renewed + cell.ttl_s * 1000)

    def _is_over(self, family: _Family, cell: _Cell) -> bool:
        return bool(cell.held and cell.ttl_s) and self._as_held(family, cell).expires_ms <= self._now_ms()

    def _free_rested(self, family: _Family) -> None:
        for cell in family.cells.values():
            if not cell.held and cell.rests_until_ms <= self._now_ms():
                cell.rests_until_ms = 0

    def _end(self, family: _Family, cell: _Cell, event: LeaseEventType) -> None:
        self._note(family, event, cell.lease)
        cell.held = False
        cell.ttl_s = 0
        cell.rests_until_ms = self._now_ms() + self._quarantine_ms if self._quarantine_ms else 0

    def _note(self, family: _Family, event: LeaseEventType, lease: Lease) -> None:
        now = self._now_ms()
        family.events.append(
            LeaseEvent(
                id=f"{now}-0.{len(family.events)}",
                type=event,
                time_ms=now,
                address=lease.address,
                owner=lease.owner,
                epoch=lease.epoch,
            )
        )

    def _transfer(
        self, pool: PoolId, family: _Family, item: AddressReturn, host_id: str, *, again: bool
    ) -> Lease | errors.NetweftError:
        cell = family.cells.get(item.address)
        if cell is None or not cell.held:
            return refusals.not_leased(pool, item.address)
        owner = cell.lease.owner
        if item.owner_key not in ("", owner.key):
            return refusals.not_the_owner(pool, item.address, owner.key, item.owner_key)
        there = owner.host_id == host_id
        if item.epoch not in (0, cell.lease.epoch) and not (there and again):
            return refusals.stale_epoch(pool, item.address, cell.lease.epoch, item.epoch)
        if not there:
            family.epoch += 1
            moved = Owner(owner.key, host_id, owner.kind)
            cell.lease = cell.lease._replace(owner=moved, epoch=family.epoch)
            cell.renewed_ms = self._now_ms()
            self._note(family, LeaseEventType.TRANSFERRED, cell.lease)
        return self._as_held(family, cell)._replace(pool=pool)

    def _adopt(self, pool: PoolId, family: _Family, host_id: str, claim: Claim) -> Lease | errors.NetweftError:
        cell = family.cells.get(claim.address)
        now = self._now_ms()
        family.epoch = max(family.epoch, claim.epoch)
        if cell is not None and cell.held:
            lease = cell.lease
            mine = lease.owner.key == claim.owner.key
            if lease.epoch > claim.epoch and not (mine and lease.owner.host_id == host_id):
                if mine:
                    return refusals.lease_moved(pool, claim.address, lease.epoch)
                return refusals.address_in_use(pool, claim.address, lease.owner.key)
            if mine and lease.owner.kind is claim.owner.kind:
                cell.lease = lease._replace(owner=claim.owner, epoch=max(lease.epoch, claim.epoch))
                cell.ttl_s, cell.renewed_ms = claim.ttl_s, now
                return self._as_held(family, cell)._replace(pool=pool)
        made = Lease(pool, claim.address, claim.owner, claim.epoch, now)
        cell = family.cells[claim.address] = _Cell(made, ttl_s=claim.ttl_s, renewed_ms=now)
        self._note(family, LeaseEventType.REASSERTED, made)
        return self._as_held(family, cell)

    def _request(self, pool: PoolId, family: _Family, ask: AddressAsk) -> Lease | errors.NetweftError | None:
        mine = [
            family.cells[at]
            for at in sorted(at for at, c in family.cells.items() if c.lease.owner.key == ask.owner.key)
        ]
        standing = next((cell for cell in mine if _is_same_claim(cell, pool, ask.owner)), None)
        if ask.address is not None:
            return self._request_that(pool, family, ask, ask.address, standing)
        if standing is not None:
            return self._stand(family, standing, ask)
        if (refusal := self._over_quota(pool)) is not None:
            return refusal
        sticky = (
            cell.lease.address for cell in mine if not cell.held and pool.first <= cell.lease.address <= pool.last
        )
        address = next(sticky, None)
        if address is not None:
            return self._grant(pool, family, ask, address)
        address = self._find_free(pool, family, serial=ask.serial)
        if address is None:
            return None
        family.cursors[pool] = address
        return self._grant(pool, family, ask, address)

    def _request_that(
        self, pool: PoolId, family: _Family, ask: AddressAsk, address: int, standing: _Cell | None
    ) -> Lease | errors.NetweftError:
        cell = family.cells.get(address)
        if cell is not None and cell.held:
            if _is_same_claim(cell, pool, ask.owner):
                return self._stand(family, cell, ask)
            return refusals.address_in_use(pool, address, cell.lease.owner.key)
        if ask.owner.kind.is_single and standing is not None:
            return refusals.owner_holds_another(pool, ask.owner.key, address, standing.lease.address)
        if cell is not None and cell.rests_until_ms > self._now_ms() and cell.lease.owner.key != ask.owner.key:
            return refusals.address_resting(pool, address, cell.rests_until_ms)
        return self._over_quota(pool) or self._grant(pool, family, ask, address)

    def _over_quota(self, pool: PoolId) -> errors.NetweftError | None:
        quota = pools.quota(self._pools[pool].labels)
        return refusals.quota_reached(pool, quota) if quota is not None and self._use(pool).leased >= quota else None

    def _find_free(self, pool: PoolId, family: _Family, *, serial: bool) -> int | None:
        start = pool.first
        if serial:
            cursor = family.cursors.get(pool, pool.last)
            start = cursor + 1 if pool.first <= cursor < pool.last else pool.first
        for address in itertools.chain(range(start, pool.last + 1), range(pool.first, start)):
            cell = family.cells.get(address)
            if cell is None or not (cell.held or cell.rests_until_ms):
                return address
        return None

    def _grant(self, pool: PoolId, family: _Family, ask: AddressAsk, address: int) -> Lease:
        family.epoch += 1
        now = self._now_ms()
        cell = family.cells[address] = _Cell(
            Lease(pool, address, ask.owner, family.epoch, now), ttl_s=ask.ttl_s, renewed_ms=now
        )
        self._note(family, LeaseEventType.LEASED, cell.lease)
        return self._as_held(family, cell)

    def _stand(self, family: _Family, cell: _Cell, ask: AddressAsk) -> Lease:
        cell.ttl_s, cell.renewed_ms = ask.ttl_s, self._now_ms()
        if not cell.lease.owner.host_id:
            owner = Owner(cell.lease.owner.key, ask.owner.host_id, cell.lease.owner.kind)
            cell.lease = cell.lease._replace(owner=owner)
        return self._as_held(family, cell)

    def _release(self, pool: PoolId, family: _Family, item: AddressReturn) -> errors.NetweftError | None:
        cell = family.cells.get(item.address)
        if cell is None or not cell.held:
            return None
        holder = cell.lease.owner.key
        if item.owner_key not in ("", holder):
            return refusals.not_the_owner(pool, item.address, holder, item.owner_key)
        if item.epoch not in (0, cell.lease.epoch):
            return refusals.stale_epoch(pool, item.address, cell.lease.epoch, item.epoch)
        self._end(family, cell, LeaseEventType.RELEASED)
        return None


def _is_same_claim(cell: _Cell, pool: PoolId, owner: Owner) -> bool:
    lease = cell.lease
    return cell.held and lease.pool == pool and lease.owner.key == owner.key and lease.owner.kind is owner.kind


def _position(event_id: str) -> int:
    """Return where an event stands in its family's list."""
    return int(event_id.partition(".")[2])


def _list_order(pool: PoolId) -> tuple[str, int, int, int, int, int]:
    part = pool.range
    subnet = pool.subnet
    return (
        pool.space,
        subnet.version,
        subnet.base,
        subnet.prefix,
        part.base if part else -1,
        part.prefix if part else -1,
    )
