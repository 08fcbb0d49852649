"""The address sets of pools in Redis: one script call for any number of addresses of one pool."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from netweft_common import errors

from netweft_ipam.domain import pools, refusals
from netweft_ipam.domain.leases import (
    AddressAsk,
    AddressReturn,
    Claim,
    Lease,
    LeaseEvent,
    LeaseFilter,
    Owner,
    OwnerKind,
    RequestTag,
)
from netweft_ipam.domain.pools import PoolId, PoolUse, parse_pool_id
from netweft_ipam.store import keys, records, scripts
from netweft_ipam.store.connection import Connection
from netweft_ipam.store.protocol import LeasePage
from netweft_ipam.store.registry import Entry

# Statuses of request.lua, transfer.lua, adopt.lua.
_GRANTED, _STANDS, _IN_USE, _RESTING, _HOLDS_ANOTHER, _EXHAUSTED, _QUOTA = range(7)
# One item of request.lua: length of the key less 1, twice the group plus 1 if a ref follows.
_ITEM = struct.Struct(">BH").pack
# How long requests for one address go straight to request.lua after lease.lua could not serve one: where addresses come
# and go, some have rested at most times.
_LONG_S = 1.0
# What a named tuple's own constructor does, in half the time.
_make = tuple.__new__
_MOVED, _NOT_HELD, _OTHER_OWNER, _OLD_EPOCH = range(4)
_ADOPTED, _MOVED_AWAY, _LOST = range(3)


# Scripts after which something may end that could not before.
_TO_BE_SWEPT = frozenset({"lease", "request", "release", "adopt", "transfer", "close"})

# What scripts say for the server's history where it is not looked at.
UNCHECKED = "unchecked"


class StaleHistory(Exception):  # a signal inside the store, never told to a caller
    """The server continues another history than the one that the pool was confirmed on.

    Args:
        history: The server's history now.
    """

    def __init__(self, history: str) -> None:
        super().__init__(history)
        self.history = history


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What a sweep of a family did.

    Attributes:
        ended: Leases.
        wanted: Hosts whose heartbeats must be read before their leases may end.
        is_more: Whether more is due now.
        is_waiting: Whether leases with a TTL or resting addresses are left.
    """

    ended: int
    wanted: tuple[str, ...]
    is_more: bool
    is_waiting: bool


class Families:
    """Runs scripts over address sets.

    Args:
        connection: The store.
        prefix: Prefix of all keys.
        now_ms: Time in ms; 0: the server's own.
        quarantine_ms: How long a released address rests.
        check_history: Whether leases are refused on a server whose history was not confirmed.
        events_kept: Entries of a subnet's history that are kept, of up to 256 events each; 0: none.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        prefix: str,
        now_ms: Callable[[], int],
        quarantine_ms: int,
        check_history: bool,
        events_kept: int,
    ) -> None:
        self._connection = connection
        self._prefix = prefix
        self._now_ms = now_ms
        self._quarantine_ms = quarantine_ms
        self._options = f"{int(check_history)}:{events_kept}"
        self._long_until_s: dict[PoolId, float] = {}
        # Keys of what was changed here since its last sweep.
        self._changed: set[str] = set()

    async def open(self, entry: Entry) -> bool:
        """Make a registered pool ready; return whether it lives, else its end was decided before. Idempotent.

        Raises:
            Exhausted: The subnet has had as many pools as it can have.
        """
        layout = self._layout(entry.id)
        code, *_ = await self._run(
            "open", layout, entry.family_generation, entry.generation, layout.range, _quota(entry)
        )
        if code == b"CROWDED":
            raise refusals.pool_crowded(entry.id, 65_535)
        return bool(code != b"GONE")

    async def close(self, entry: Entry, *, infrastructure: bool) -> int:
        """End a pool's address set; returns how many leases stand in the way, 0: it is gone. Idempotent."""
        layout = self._layout(entry.id)
        code, *rest = await self._run(
            "close", layout, layout.range, entry.generation, int(infrastructure), self._quarantine_ms
        )
        return int(rest[0]) if code == b"HELD" else 0

    async def confirm(self, pool: PoolId, history: str) -> None:
        """Say that a pool is whole on a server's history."""
        await self._run("confirm", self._layout(pool), history)

    async def use(self, pool: PoolId) -> PoolUse | None:
        """Return a pool's use; None when it has no address set."""
        layout = self._layout(pool)
        code, *counts = await self._run("use", layout, layout.range)
        if code == b"NOPOOL":
            return None
        leased, quarantined, next_free_ms, family_leased, family_quarantined = counts
        return PoolUse(
            leased=leased,
            quarantined=quarantined,
            next_free_ms=next_free_ms if family_quarantined else 0,
            family_leased=family_leased,
            family_quarantined=family_quarantined,
        )

    async def check_tag(self, pool: PoolId, tag: RequestTag) -> None:
        """Refuse a request id that the pool has seen with another body."""
        code, *_ = await self._run("seen", self._layout(pool), tag.id, tag.fingerprint)
        if code == b"REUSED":
            raise refusals.request_id_reused(tag.id)

    async def request(
        self, pool: PoolId, asks: Sequence[AddressAsk], tag: RequestTag
    ) -> tuple[list[Lease | errors.NetweftError], str, set[str]] | None:
        """Lease addresses; None when the pool has no address set.

        Returns:
            The outcomes, the server's history, and the hosts to be noted because one of them has its first lease here.

        Raises:
            AlreadyExists: The request id came with another body.
            StaleHistory: The server's history was not confirmed; nothing was done.
        """
        if len(asks) == 1 and asks[0].address is None and not asks[0].serial and not self._takes_long(pool):
            code, *answer = await self._lease(self._layout(pool), asks[0], tag)
            if code != b"ALL":
                return _leased(pool, self._layout(pool), asks[0], code, answer)
            if answer[0]:
                self._long_until_s[pool] = time.monotonic() + _LONG_S
        return await self._request(pool, asks, tag)

    async def _request(
        self, pool: PoolId, asks: Sequence[AddressAsk], tag: RequestTag
    ) -> tuple[list[Lease | errors.NetweftError], str, set[str]] | None:
        layout = self._layout(pool)
        groups: dict[tuple[str, OwnerKind, int, bool], int] = {}
        items: list[bytes] = []
        for (name, host_id, kind), address, ttl_s, serial in asks:
            group = (host_id, kind, ttl_s, serial)
            number = groups.get(group)
            if number is None:
                number = groups[group] = len(groups) + 1
            key = name.encode()
            if address is None:
                items += (_ITEM(len(key) - 1, number << 1), keys.digest(key), key)
            else:
                items += (_ITEM(len(key) - 1, number << 1 | 1), keys.digest(key), layout.ref(address).encode(), key)
        heads: list[str | int] = []
        for host_id, kind, ttl_s, serial in groups:
            heads += (host_id, int(kind), ttl_s, int(serial))
        code, *answer = await self._run(
            "request",
            layout,
            tag.id,
            tag.fingerprint,
            layout.range,
            layout.low,
            layout.high,
            len(groups),
            *heads,
            b"".join(items),
        )
        if code == b"NOPOOL":
            return None
        if code == b"REUSED":
            raise refusals.request_id_reused(tag.id)
        if code == b"STALE":
            raise StaleHistory(answer[0].decode())
        hosts = {group[0] for group in groups if group[0]} if answer[3] else set()
        return _outcomes(pool, layout, asks, answer), answer[7].decode(), hosts

    async def _lease(self, layout: keys.Layout, ask: AddressAsk, tag: RequestTag) -> list[Any]:
        owner = ask.owner
        return await self._run(
            "lease",
            layout,
            tag.id,
            tag.fingerprint,
            layout.range,
            layout.low,
            layout.high,
            owner.host_id,
            int(owner.kind),
            ask.ttl_s,
            owner.key,
        )

    def _takes_long(self, pool: PoolId) -> bool:
        """Return whether lease.lua has lately found that the pool's state is not for it."""
        until_s = self._long_until_s.get(pool)
        if until_s is None:
            return False
        if time.monotonic() < until_s:
            return True
        del self._long_until_s[pool]
        return False

    async def release(
        self, pool: PoolId, returns: Sequence[AddressReturn], tag: RequestTag
    ) -> list[errors.NetweftError | None] | None:
        """Give addresses back; None when the pool has no address set.

        Raises:
            AlreadyExists: The request id came with another body.
        """
        layout = self._layout(pool)
        items: list[str | int] = []
        for item in returns:
            items += (layout.ref(item.address), item.owner_key, item.epoch)
        code, *rest = await self._run(
            "release",
            layout,
            tag.id,
            tag.fingerprint,
            layout.range,
            self._quarantine_ms,
            *items,
            # Without either, a second run might end a lease that the first one's caller has got since.
            repeatable=bool(tag.id) or all(item.epoch for item in returns),
        )
        if code == b"NOPOOL":
            return None
        if code == b"REUSED":
            raise refusals.request_id_reused(tag.id)
        statuses, words = rest[0][: len(returns)], iter(json.loads(rest[0][len(returns) :]))
        outcomes: list[errors.NetweftError | None] = []
        for item, status in zip(returns, statuses, strict=True):
            if status == ord("0"):
                outcomes.append(None)
            elif status == ord("1"):
                outcomes.append(refusals.not_the_owner(pool, item.address, next(words), item.owner_key))
            else:
                outcomes.append(refusals.stale_epoch(pool, item.address, int(next(words)), item.epoch))
        return outcomes

    async def renew(self, pool: PoolId, host_id: str, silent_ms: int) -> int | None:
        """Renew a host's leases in a family; returns how many it holds there, None when the family is no more."""
        code, *held = await self._run("renew", self._layout(pool), host_id, silent_ms)
        return None if code == b"NOPOOL" else int(held[0])

    def is_changed(self, pool: PoolId) -> bool:
        """Return whether this process has changed anything in a pool's family since it was swept last."""
        return self._layout(pool).key in self._changed

    def forget_changes(self, swept: Iterable[PoolId]) -> None:
        """Forget changes in all families but those of a whole sweep: they are no more, or were never at rest."""
        self._changed &= {self._layout(pool).key for pool in swept}

    async def sweep(self, pool: PoolId, *, limit: int, heartbeats: Mapping[str, int]) -> Swept:
        """End what is over, in at most `limit` blocks of 16 addresses.

        Args:
            pool: A pool of the family.
            limit: Blocks at most.
            heartbeats: Until when each host that may be judged need not be heard of (ms); leases of others stay.

        Raises:
            StaleHistory: The server's history was not confirmed; nothing was done.
        """
        layout = self._layout(pool)
        self._changed.discard(layout.key)
        flat = [part for pair in heartbeats.items() for part in pair]
        code, *answer = await self._run("sweep", layout, self._quarantine_ms, limit, *flat)
        if code == b"STALE":
            raise StaleHistory(answer[0].decode())
        ended, wanted, is_more, is_waiting = answer
        return Swept(
            ended=int(ended),
            wanted=tuple(name.decode() for name in wanted),
            is_more=bool(is_more),
            is_waiting=bool(is_waiting),
        )

    async def transfer(
        self, pool: PoolId, returns: Sequence[AddressReturn], host_id: str, tag: RequestTag
    ) -> tuple[list[Lease | errors.NetweftError], str] | None:
        """Move leases to another host; None when the pool has no address set.

        Returns:
            The outcomes, and the server's history.

        Raises:
            AlreadyExists: The request id came with another body.
            StaleHistory: The server's history was not confirmed; nothing was done.
        """
        layout = self._layout(pool)
        items: list[str | int] = []
        for item in returns:
            items += (layout.ref(item.address), item.owner_key, item.epoch)
        code, *answer = await self._run(
            "transfer", layout, tag.id, tag.fingerprint, layout.range, host_id, *items, repeatable=bool(tag.id)
        )
        if code == b"NOPOOL":
            return None
        if code == b"REUSED":
            raise refusals.request_id_reused(tag.id)
        if code == b"STALE":
            raise StaleHistory(answer[0].decode())
        packed, words, kinds, server = answer
        outcomes: list[Lease | errors.NetweftError] = []
        rows = zip(returns, layout.result.iter_unpack(packed), words, kinds, strict=True)
        for item, (status, epoch, time_ms, expires_ms, _), word, kind in rows:
            if status == _MOVED:
                owner = Owner(word.decode(), host_id, OwnerKind(kind - ord("0")))
                outcomes.append(Lease(pool, item.address, owner, epoch, time_ms, expires_ms))
            elif status == _NOT_HELD:
                outcomes.append(refusals.not_leased(pool, item.address))
            elif status == _OTHER_OWNER:
                outcomes.append(refusals.not_the_owner(pool, item.address, word.decode(), item.owner_key))
            else:
                outcomes.append(refusals.stale_epoch(pool, item.address, epoch, item.epoch))
        return outcomes, server.decode()

    async def adopt(
        self, pool: PoolId, host_id: str, claims: Sequence[Claim]
    ) -> tuple[list[Lease | errors.NetweftError], str] | None:
        """Take back what a host holds; None when the pool has no address set.

        Returns:
            The outcomes, and the server's history.
        """
        layout = self._layout(pool)
        items: list[str | bytes | int] = []
        for claim in claims:
            key = claim.owner.key.encode()
            items += (layout.ref(claim.address), key, keys.digest(key), int(claim.owner.kind), claim.epoch, claim.ttl_s)
        code, *answer = await self._run("adopt", layout, layout.range, host_id, *items)
        if code == b"NOPOOL":
            return None
        packed, words, server = answer
        outcomes: list[Lease | errors.NetweftError] = []
        rows = zip(claims, layout.result.iter_unpack(packed), words, strict=True)
        for claim, (status, epoch, time_ms, expires_ms, _), word in rows:
            if status == _ADOPTED:
                outcomes.append(Lease(pool, claim.address, claim.owner, epoch, time_ms, expires_ms))
            elif status == _MOVED_AWAY:
                outcomes.append(refusals.lease_moved(pool, claim.address, epoch))
            else:
                outcomes.append(refusals.address_in_use(pool, claim.address, word.decode()))
        return outcomes, server.decode()

    async def lookup(self, family: PoolId, address: int) -> Lease | None:
        """Return who holds an address of a family, or None."""
        layout = self._layout(family)
        code, *answer = await self._run("lookup", layout, layout.ref(address))
        if code == b"FREE":
            return None
        packed, part, host_id, beat_ms = answer
        record, _ = records.read(packed, 0, address)
        pool = parse_pool_id(f"{family}/{part.decode()}", field="pool_id") if part else family
        return record.lease(pool, {record.host: (int(beat_ms), host_id.decode())})

    async def events(
        self, pool: PoolId, *, start: str, back: bool, entries: int
    ) -> list[tuple[str, list[LeaseEvent]]] | None:
        """Return entries of the stream with their events, from an entry on or back; None when there is no such pool."""
        layout = self._layout(pool)
        code, *answer = await self._run("events", layout, layout.range, "back" if back else "on", start, entries)
        if code == b"NOPOOL":
            return None
        flat, names = answer
        hosts = records.read_hosts(names)
        ids = [entry.decode() for entry in flat[::2]]
        return [
            (entry, records.read_events(layout, entry, packed, hosts))
            for entry, packed in zip(ids, flat[1::2], strict=True)
        ]

    async def page(self, pool: PoolId, *, wanted: LeaseFilter, after: int | None, limit: int) -> LeasePage | None:
        """Return a page of leases; None when the pool has no address set."""
        layout = self._layout(pool)
        key = wanted.owner_key.encode()
        code, *answer = await self._run(
            "list",
            layout,
            layout.range,
            "" if after is None else layout.ref(after),
            limit,
            key,
            keys.digest(key) if key else "",
            wanted.host_id,
        )
        if code == b"NOPOOL":
            return None
        index, names, texts, hosts, following = answer
        digits = layout.width - 1
        blocks = zip((names[at : at + digits] for at in range(0, len(names), digits)), texts, strict=True)
        leases = records.read_leases(layout, index, blocks, records.read_host_fields(hosts))
        start = 0 if after is None else bisect.bisect_right(leases.addresses, after)
        part = leases.part(start, start + limit)
        if len(leases.addresses) - start > limit:
            return LeasePage(part, part.addresses[-1])
        return LeasePage(part, layout.base + int(following, 16) if following else None)

    def _layout(self, pool: PoolId) -> keys.Layout:
        return keys.layout(self._prefix, pool)

    async def _run(
        self, script: str, layout: keys.Layout, *args: str | bytes | int, repeatable: bool = True
    ) -> list[Any]:
        loaded = scripts.load("" if script == "lease" else "pool", script)
        try:
            return await self._connection.run(
                loaded,
                layout.key,
                self._now_ms(),
                layout.width,
                layout.bucket_digits,
                self._options,
                *args,
                repeatable=repeatable,
            )
        finally:
            # Afterwards, for a sweep that came before it has not seen it.
            if script in _TO_BE_SWEPT:
                self._changed.add(layout.key)


def _quota(entry: Entry) -> str:
    quota = pools.quota(entry.labels)
    return "" if quota is None else str(quota)


def _leased(
    pool: PoolId, layout: keys.Layout, ask: AddressAsk, code: bytes, answer: list[Any]
) -> tuple[list[Lease | errors.NetweftError], str, set[str]] | None:
    """Return what lease.lua says; see Families.request."""
    if code == b"NOPOOL":
        return None
    if code == b"STALE":
        raise StaleHistory(answer[0].decode())
    ref, epoch, time_ms, expires_ms, host_is_new, server = answer
    lease = Lease(pool, layout.base + int(ref, 16), ask.owner, epoch, time_ms, expires_ms)
    return [lease], server.decode(), {ask.owner.host_id} if host_is_new else set()


def _outcomes(
    pool: PoolId, layout: keys.Layout, asks: Sequence[AddressAsk], answer: list[Any]
) -> list[Lease | errors.NetweftError]:
    """Return what request.lua says."""
    now_ms, packed, words, _, held, resting, next_free_ms, _, epoch = answer
    use = PoolUse(family_leased=held, family_quarantined=resting, next_free_ms=next_free_ms if resting else 0)
    base, width, at = layout.base, layout.width, 0
    if packed[:: 1 + width].count(_GRANTED) * (1 + width) == len(packed) == len(asks) * (1 + width):
        # All are granted, which is what most answers say.
        refs = packed.decode().split("\0")[1:]
        return [
            _make(Lease, (pool, base + int(ref, 16), ask[0], number, now_ms, ask[2] and now_ms + ask[2] * 1000))
            for ref, ask, number in zip(refs, asks, itertools.count(epoch + 1))
        ]
    word = iter(words)
    outcomes: list[Lease | errors.NetweftError] = []
    for ask in asks:
        if packed[at] == _GRANTED:
            end = at + 1 + width
            address = base + int(packed[at + 1 : end], 16)
            epoch, at = epoch + 1, end
            outcomes.append(Lease(pool, address, ask.owner, epoch, now_ms, ask.ttl_s and now_ms + ask.ttl_s * 1000))
        else:
            outcomes.append(_outcome(pool, ask, layout.result.unpack_from(packed, at), word, use))
            at += layout.result.size
    return outcomes


def _outcome(
    pool: PoolId, ask: AddressAsk, result: tuple[Any, ...], word: Iterator[bytes], use: PoolUse
) -> Lease | errors.NetweftError:
    """Return one result of request.lua that is no fresh grant."""
    status, epoch, time_ms, expires_ms, ref = result
    address = pool.subnet.base + int(ref, 16)
    if status == _STANDS:
        host_id = next(word).decode()
        owner = ask.owner if host_id == ask.owner.host_id else Owner(ask.owner.key, host_id, ask.owner.kind)
        return Lease(pool, address, owner, epoch, time_ms, expires_ms)
    if status == _IN_USE:
        return refusals.address_in_use(pool, address, next(word).decode())
    if status == _RESTING:
        return refusals.address_resting(pool, address, time_ms)
    if status == _HOLDS_ANOTHER:
        assert ask.address is not None
        return refusals.owner_holds_another(pool, ask.owner.key, ask.address, address)
    if status == _QUOTA:
        return refusals.quota_reached(pool, time_ms)
    assert status == _EXHAUSTED
    return refusals.exhausted(pool, use)
