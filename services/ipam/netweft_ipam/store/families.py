"""The address sets of pools in Redis: one script call for any number of addresses of one pool."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

from netweft_common import errors

from netweft_ipam.domain import refusals
from netweft_ipam.domain.leases import AddressAsk, AddressReturn, Lease, LeaseFilter, Owner, OwnerKind, RequestTag
from netweft_ipam.domain.pools import PoolId, PoolUse
from netweft_ipam.store import keys, scripts
from netweft_ipam.store.connection import Connection
from netweft_ipam.store.protocol import LeasePage
from netweft_ipam.store.registry import Entry

# Statuses of request.lua.
_GRANTED, _STANDS, _IN_USE, _RESTING, _HOLDS_ANOTHER, _EXHAUSTED = range(6)

_HEAD = struct.Struct(">BBHI6s6s")
_TTL_HEAD = struct.Struct(">I6s")
_HELD_KIND = {index: OwnerKind(index) for index in range(4)}


class StaleHistory(Exception):  # a signal inside the store, never told to a caller
    """The server continues another history than the one that the pool was confirmed on.

    Args:
        history: The server's history now.
    """

    def __init__(self, history: str) -> None:
        super().__init__(history)
        self.history = history


class Families:
    """Runs scripts over address sets.

    Args:
        connection: The store.
        prefix: Prefix of all keys.
        now_ms: Time in ms; 0: the server's own.
        quarantine_ms: How long a released address rests.
        check_history: Whether leases are refused on a server whose history was not confirmed.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        prefix: str,
        now_ms: Callable[[], int],
        quarantine_ms: int,
        check_history: bool,
    ) -> None:
        self._connection = connection
        self._prefix = prefix
        self._now_ms = now_ms
        self._quarantine_ms = quarantine_ms
        self._check_history = check_history

    async def open(self, entry: Entry) -> bool:
        """Make a registered pool ready; return whether it lives, else its end was decided before. Idempotent.

        Raises:
            Exhausted: The subnet has had as many pools as it can have.
        """
        layout = self._layout(entry.id)
        code, *_ = await self._run("open", layout, entry.family_generation, entry.generation, layout.range)
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
    ) -> tuple[list[Lease | errors.NetweftError], set[str]] | None:
        """Lease addresses; None when the pool has no address set.

        Returns:
            The outcomes, and the hosts to be noted because one of them has its first lease here.

        Raises:
            AlreadyExists: The request id came with another body.
            StaleHistory: The server's history was not confirmed; nothing was done.
        """
        layout = self._layout(pool)
        groups: dict[tuple[str, OwnerKind, int, bool], str] = {}
        items: list[str | bytes] = []
        for ask in asks:
            owner = ask.owner
            group = (owner.host_id, owner.kind, ask.ttl_s, ask.serial)
            spec = groups.get(group)
            if spec is None:
                spec = groups[group] = str(len(groups) + 1)
            key = owner.key.encode()
            items += (
                key,
                keys.digest(key),
                spec if ask.address is None else f"{spec}:{layout.ref(ask.address)}",
            )
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
            *items,
        )
        if code == b"NOPOOL":
            return None
        if code == b"REUSED":
            raise refusals.request_id_reused(tag.id)
        if code == b"STALE":
            raise StaleHistory(answer[0].decode())
        hosts = {group[0] for group in groups if group[0]} if answer[3] else set()
        return _outcomes(pool, layout, asks, answer), hosts

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
            "release", layout, tag.id, tag.fingerprint, layout.range, self._quarantine_ms, *items
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

    async def renew(self, pool: PoolId, host_id: str) -> int:
        """Renew a host's leases in a family; returns how many it holds there."""
        _, held = await self._run("renew", self._layout(pool), host_id)
        return int(held)

    async def sweep(self, pool: PoolId, *, limit: int, heartbeats: dict[str, int]) -> tuple[int, list[str], bool]:
        """End what is over, in at most `limit` blocks of 16 addresses.

        Args:
            pool: A pool of the family.
            limit: Blocks at most.
            heartbeats: Last heartbeat (ms) of each host that may be judged; leases of other hosts stay.

        Returns:
            Leases ended, hosts that must be judged first, whether more is due.
        """
        flat = [part for pair in heartbeats.items() for part in pair]
        _, ended, wanted, more = await self._run("sweep", self._layout(pool), self._quarantine_ms, limit, *flat)
        return int(ended), [name.decode() for name in wanted], bool(more)

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
        packed, names, following = answer
        leases = _unpack_leases(pool, layout, packed, names)
        return LeasePage(leases, layout.base + int(following, 16) if following else None)

    def _layout(self, pool: PoolId) -> keys.Layout:
        return keys.layout(self._prefix, pool)

    async def _run(self, script: str, layout: keys.Layout, *args: str | bytes | int) -> list[Any]:
        return await self._connection.run(
            scripts.load("pool", script),
            layout.key,
            self._now_ms(),
            layout.width,
            layout.bucket_digits,
            int(self._check_history),
            *args,
        )


def _outcomes(
    pool: PoolId, layout: keys.Layout, asks: Sequence[AddressAsk], answer: list[Any]
) -> list[Lease | errors.NetweftError]:
    _, packed, words, _, held, resting, next_free_ms = answer
    use = PoolUse(family_leased=held, family_quarantined=resting, next_free_ms=next_free_ms if resting else 0)
    word = iter(words)
    base = layout.base
    outcomes: list[Lease | errors.NetweftError] = []
    for ask, (status, epoch, time_ms, expires_ms, ref) in zip(asks, layout.result.iter_unpack(packed), strict=True):
        if status == _GRANTED:
            outcomes.append(Lease(pool, base + int(ref, 16), ask.owner, epoch, time_ms, expires_ms))
            continue
        address = base + int(ref, 16) if ref else base
        if status == _STANDS:
            host_id = next(word).decode()
            owner = ask.owner if host_id == ask.owner.host_id else Owner(ask.owner.key, host_id, ask.owner.kind)
            outcomes.append(Lease(pool, address, owner, epoch, time_ms, expires_ms))
        elif status == _IN_USE:
            outcomes.append(refusals.address_in_use(pool, address, next(word).decode()))
        elif status == _RESTING:
            outcomes.append(refusals.address_resting(pool, address, time_ms))
        elif status == _HOLDS_ANOTHER:
            assert ask.address is not None
            outcomes.append(refusals.owner_holds_another(pool, ask.owner.key, ask.address, address))
        else:
            assert status == _EXHAUSTED
            outcomes.append(refusals.exhausted(pool, use))
    return outcomes


def _unpack_leases(pool: PoolId, layout: keys.Layout, packed: bytes, names: list[Any]) -> tuple[Lease, ...]:
    hosts = {names[at]: (names[at + 1], names[at + 2].decode()) for at in range(0, len(names), 3)}
    leases = []
    at, width = 0, layout.width
    while at < len(packed):
        address = layout.base + int(packed[at : at + width], 16)
        at += width
        first, key_len, _, host, epoch, created = _HEAD.unpack_from(packed, at)
        at += _HEAD.size
        renewed_ms, host_id = hosts.get(host, (0, ""))
        created_ms, expires_ms = int.from_bytes(created, "big"), 0
        if first >= 128:
            ttl_s, renewed = _TTL_HEAD.unpack_from(packed, at)
            at += _TTL_HEAD.size
            expires_ms = max(int.from_bytes(renewed, "big"), renewed_ms) + ttl_s * 1000
        key = packed[at : at + key_len + 1].decode()
        at += key_len + 1
        owner = Owner(key, host_id, _HELD_KIND[(first >> 4) & 3])
        leases.append(Lease(pool, address, owner, int.from_bytes(epoch, "big"), created_ms, expires_ms))
    return tuple(leases)
