"""The registry of pools in Redis: which pools each address space has."""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from netweft_ipam.domain import refusals
from netweft_ipam.domain.addressing import Subnet
from netweft_ipam.domain.leases import RequestTag
from netweft_ipam.domain.pools import PoolAsk, PoolId
from netweft_ipam.store import keys, scripts
from netweft_ipam.store.connection import Connection


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A pool as the registry knows it.

    Attributes:
        id: The pool.
        family_generation: Tells this life of the subnet from an earlier one.
        generation: Tells this life of the pool from an earlier one.
        created_ms: Time of creation, ms since the epoch.
        labels: The user's labels.
    """

    id: PoolId
    family_generation: str
    generation: str
    created_ms: int
    labels: Mapping[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Overlap:
    """What stands in the way of a pool; `pool` when that is known to be one and the same."""

    subnet: Subnet
    pool: PoolId | None


class Registry:
    """Reads and writes the registry.

    Args:
        connection: The store.
        prefix: Prefix of all keys.
        now_ms: Time in ms; 0: the server's own.
    """

    def __init__(self, connection: Connection, prefix: str, now_ms: Callable[[], int]) -> None:
        self._connection = connection
        self._prefix = prefix
        self._now_ms = now_ms
        self._known_spaces: set[str] = set()

    @property
    def _spaces_key(self) -> str:
        return f"{{{self._prefix}}}:spaces"

    async def reserve(self, ask: PoolAsk, tag: RequestTag) -> Entry | Overlap | None:
        """Enter a pool; None when no predefined one is free.

        Raises:
            AlreadyExists: The request id came with another body.
        """
        if ask.space not in self._known_spaces:
            # Before the pool, so that every pool is in a listed space; a space without pools lists as nothing.
            await self._connection.command("ZADD", self._spaces_key, 0, ask.space)
            self._known_spaces.add(ask.space)
        labels = json.dumps(dict(ask.labels), ensure_ascii=False, separators=(",", ":")) if ask.labels else ""
        code, *answer = await self._run(
            "reserve", ask.space, tag, secrets.token_hex(8), secrets.token_hex(8), labels, *_wanted(ask)
        )
        if code == b"REUSED":
            raise refusals.request_id_reused(tag.id)
        if code == b"EXHAUSTED":
            return None
        if code == b"OVERLAP":
            return _overlap(ask, [part.decode() for part in answer])
        return _entry(ask.space, answer[0].decode(), answer[1])

    async def find(self, pool: PoolId) -> Entry | None:
        """Return a pool's entry, or None."""
        name = keys.pool_name(pool)
        record = await self._connection.command("HGET", keys.space_key(self._prefix, pool.space), name)
        return None if record is None else _entry(pool.space, name, record)

    async def find_to_end(self, pool: PoolId, tag: RequestTag) -> Entry | None:
        """Return a pool's entry for its end; None when this very request has ended it before.

        Raises:
            NotFound: It does not exist.
            AlreadyExists: The request id came with another body.
        """
        code, *answer = await self._run("find", pool.space, tag, keys.pool_name(pool))
        if code == b"REUSED":
            raise refusals.request_id_reused(tag.id)
        if code == b"UNKNOWN":
            raise refusals.pool_unknown(pool)
        return None if code == b"DONE" else _entry(pool.space, keys.pool_name(pool), answer[0])

    async def remove(self, entry: Entry, tag: RequestTag) -> None:
        """Take a pool out whose addresses are gone. Idempotent."""
        subnet = entry.id.subnet
        await self._run(
            "remove",
            entry.id.space,
            tag,
            keys.pool_name(entry.id),
            entry.generation,
            str(subnet.version),
            keys.hexadecimal(subnet.version, subnet.base),
            keys.hexadecimal(subnet.version, subnet.last),
            keys.subnet_name(subnet),
        )

    async def page(self, *, space: str, start: PoolId | None, limit: int) -> Sequence[Entry]:
        """Return up to `limit` entries from `start` on, of a space or of all."""
        found: list[Entry] = []
        spaces = [space] if space else await self._spaces(start.space if start else "")
        for name in spaces:
            at = f"[{keys.pool_name(start)}" if start is not None and start.space == name else "-"
            key = keys.space_key(self._prefix, name)
            while (wanted := limit - len(found)) > 0:
                names = await self._connection.command("ZRANGEBYLEX", f"{key[:-1]}l", at, "+", "LIMIT", 0, wanted)
                if names:
                    records = await self._connection.command("HMGET", key, *names)
                    # A pool that went between the two reads is simply not there, and the page goes on behind it.
                    found += [
                        _entry(name, pool.decode(), record)
                        for pool, record in zip(names, records, strict=True)
                        if record is not None
                    ]
                if len(names) < wanted:
                    break
                at = f"({names[-1].decode()}"
        return found

    async def find_family(self, space: str, subnet: Subnet) -> PoolId | None:
        """Return the family that contains a subnet, or None."""
        key = keys.space_key(self._prefix, space)
        at = f"{subnet.version}{keys.hexadecimal(subnet.version, subnet.base)}"
        # Allocated subnets never overlap, so only the last one that begins at or before it can contain it.
        names = await self._connection.command(
            "ZREVRANGEBYLEX", f"{key[:-1]}z", f"({at}.", f"[{subnet.version}", "LIMIT", 0, 1
        )
        if not names:
            return None
        first, last = (int(part, 16) for part in names[0].decode()[1:].split("-"))
        found = Subnet(subnet.version, first, subnet.bits - (last - first).bit_length())
        return PoolId(space, found) if found.contains(subnet) else None

    async def _spaces(self, start: str) -> list[str]:
        names = await self._connection.command("ZRANGEBYLEX", self._spaces_key, f"[{start}" if start else "-", "+")
        return [name.decode() for name in names]

    async def _run(self, script: str, space: str, tag: RequestTag, *args: str | int) -> list[Any]:
        return await self._connection.run(
            scripts.load("space", script),
            keys.space_key(self._prefix, space),
            self._now_ms(),
            tag.id,
            tag.fingerprint,
            *args,
        )


def _wanted(ask: PoolAsk) -> list[str | int]:
    if ask.subnet is not None:
        pool = PoolId(ask.space, ask.subnet, ask.range)
        return [
            "fixed",
            str(ask.subnet.version),
            *_ends(ask.subnet),
            keys.subnet_name(ask.subnet),
            keys.pool_name(pool),
        ]
    version = ask.choices[0].base.version
    wanted: list[str | int] = ["choose", str(version), len(ask.choices)]
    for choice in ask.choices:
        wanted += [*_ends(choice.base), choice.size]
    for subnet in ask.exclude:
        if subnet.version == version:
            wanted += _ends(subnet)
    return wanted


def _ends(subnet: Subnet) -> list[str]:
    return [keys.hexadecimal(subnet.version, subnet.base), keys.hexadecimal(subnet.version, subnet.last)]


def _overlap(ask: PoolAsk, answer: list[str]) -> Overlap:
    if len(answer) == 1:
        pool = keys.parse_pool_name(ask.space, answer[0])
        return Overlap(pool.subnet, pool)
    first, last = int(answer[0][1:], 16), int(answer[1], 16)
    assert ask.subnet is not None
    subnet = Subnet(ask.subnet.version, first, ask.subnet.bits - (last - first).bit_length())
    return Overlap(subnet, None)


def _entry(space: str, name: str, record: bytes) -> Entry:
    text = record.decode()
    return Entry(
        id=keys.parse_pool_name(space, name),
        family_generation=text[:16],
        generation=text[16:32],
        created_ms=int(text[32:45]),
        labels=json.loads(text[45:]) if len(text) > 45 else {},
    )
