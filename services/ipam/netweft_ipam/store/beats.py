"""Heartbeats are written together: a write that the store syncs to disk costs as much as a hundred of them."""

from __future__ import annotations

import asyncio
import time
import typing
from collections.abc import Awaitable, Callable, Mapping

SPACING_S = 0.05
"""So long after one write the next one begins, with all that has come meanwhile; where none was, at once."""

_T = typing.TypeVar("_T")


class Beats(typing.Generic[_T]):
    """Gathers heartbeats of many callers.

    Args:
        write: Writes the times that hosts may be silent, in ms, by host id; returns what each host is answered. It has
            no caller's deadline, and must end by itself.
        spacing_s: Between the beginnings of two writes.
        monotonic: Clock in seconds.
    """

    def __init__(
        self,
        write: Callable[[Mapping[str, int]], Awaitable[Mapping[str, _T]]],
        *,
        spacing_s: float = SPACING_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._spacing_s = spacing_s
        self._monotonic = monotonic
        self._gathered: dict[str, int] = {}
        self._next: asyncio.Task[Mapping[str, _T]] | None = None
        self._begun_s = -spacing_s

    async def add(self, host_id: str, silent_ms: int) -> _T:
        """Write a heartbeat, together with others, and return what its host is answered.

        Raises:
            NetweftError: The write failed, for all that were in it.
        """
        self._gathered[host_id] = max(silent_ms, self._gathered.get(host_id, 0))
        if self._next is None:
            self._next = asyncio.create_task(self._flush(), name="heartbeats")
            self._next.add_done_callback(_retrieved)
        # A caller who gives up takes nothing from the others.
        return (await asyncio.shield(self._next))[host_id]

    async def _flush(self) -> Mapping[str, _T]:
        await asyncio.sleep(max(0.0, self._begun_s + self._spacing_s - self._monotonic()))
        self._begun_s = self._monotonic()
        gathered, self._gathered, self._next = self._gathered, {}, None
        return await self._write(gathered)


def _retrieved(task: asyncio.Task[Mapping[str, _T]]) -> None:
    """Take note of how a write ended, though all that waited for it may have given up."""
    if not task.cancelled():
        task.exception()
