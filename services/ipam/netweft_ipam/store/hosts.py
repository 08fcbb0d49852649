"""The book of hosts in Redis: heartbeats, and who has reported under a store epoch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from netweft_ipam.domain.roster import Roster
from netweft_ipam.domain.settling import Reports
from netweft_ipam.store import scripts
from netweft_ipam.store.connection import Connection


class HostBook:
    """Reads and writes the book.

    Args:
        connection: The store.
        prefix: Prefix of all keys.
        now_ms: Time in ms; 0: the server's own.
    """

    def __init__(self, connection: Connection, prefix: str, now_ms: Callable[[], int]) -> None:
        self._connection = connection
        self._prefix = prefix
        self._key = f"{{{prefix}:hosts}}:live"
        self._now_ms = now_ms

    async def beat(self, silent_ms: Mapping[str, int], store_epoch: str) -> tuple[int, dict[str, bool]]:
        """Note heartbeats; returns the time in ms, and whether each host has reported under the epoch.

        Args:
            silent_ms: How long each host may be silent from now on, by its id.
            store_epoch: The present one.
        """
        flat = [part for pair in silent_ms.items() for part in pair]
        now, *reported = await self._run("beat", store_epoch, *flat)
        return int(now), dict(zip(silent_ms, map(bool, reported), strict=True))

    async def reported(self, host_id: str, store_epoch: str) -> int:
        """Note that a host has reported all it holds under an epoch; returns the time in ms."""
        [now] = await self._run("assert", store_epoch, host_id)
        return int(now)

    async def reports(self, store_epoch: str, *, live_ms: int, seen: Mapping[str, int]) -> Reports:
        """Return how far the hosts have reported.

        Args:
            store_epoch: Under which epoch.
            live_ms: How long a host counts as live after its last heartbeat.
            seen: Last heartbeats (ms) that this process knows of: the store may have lost them.
        """
        flat = [part for pair in seen.items() for part in pair]
        now, since, live, missing = await self._run("window", store_epoch, live_ms, *flat)
        return Reports(
            now_ms=int(now), since_ms=int(since), live=int(live), missing=tuple(name.decode() for name in missing)
        )

    async def last_beat(self, host_id: str) -> int:
        """Return until when a host need not be heard of, since it was last, ms since the epoch; 0: it never was."""
        score = await self._connection.command("ZSCORE", f"{self._key[:-4]}beats", host_id)
        return int(float(score)) if score is not None else 0

    async def bind(self, host_id: str, name: str) -> str:
        """Return by which name a host's agent goes: this one, if none was bound before. Idempotent."""
        key = f"{self._key[:-4]}names"
        await self._connection.command("HSETNX", key, host_id, name)
        bound = await self._connection.command("HGET", key, host_id)
        return bound.decode() if bound is not None else name

    async def set_roster(self, roster: Roster) -> None:
        """Keep which hosts there are, unless a newer list of the same controllers is kept. Idempotent."""
        names = json.dumps(None if roster.names is None else dict(roster.names))
        await self._run("roster", "", roster.store_id, roster.revision, names)

    async def read_roster(self, known: Roster | None) -> Roster | None:
        """Return which hosts there are; the names are read only where the list is another than the known one."""
        key = f"{self._key[:-4]}roster"
        store_id, revision = await self._connection.command("HMGET", key, "store_id", "revision")
        if store_id is None:
            return None
        if known is not None and (known.store_id, known.revision) == (store_id.decode(), int(revision)):
            return known
        # Together, for the list may have been exchanged since.
        store_id, revision, names = await self._connection.command("HMGET", key, "store_id", "revision", "names")
        return Roster(store_id=store_id.decode(), revision=int(revision), names=json.loads(names))

    async def pools(self, host_id: str) -> list[str]:
        """Return ids of the families where a host has, or had, leases."""
        names = await self._connection.command("SMEMBERS", self._pools_key(host_id))
        return sorted(name.decode() for name in names)

    async def add_pool(self, host_id: str, family: str) -> None:
        """Note that a host has leases in a family. Idempotent."""
        await self._connection.command("SADD", self._pools_key(host_id), family)

    async def remove_pool(self, host_id: str, family: str) -> None:
        """Forget a family that is no more. Idempotent."""
        await self._connection.command("SREM", self._pools_key(host_id), family)

    def _pools_key(self, host_id: str) -> str:
        return f"{{{self._prefix}:host:{host_id}}}:pools"

    async def _run(self, script: str, store_epoch: str, *args: str | int) -> list[Any]:
        return await self._connection.run(scripts.load("hosts", script), self._key, self._now_ms(), store_epoch, *args)
