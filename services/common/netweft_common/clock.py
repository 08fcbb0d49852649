"""Time as a dependency: what the system says, or what a test says."""

from __future__ import annotations

import asyncio
import datetime as dt
import heapq
import itertools
import time
from typing import Protocol


class Clock(Protocol):
    """What code that waits or stamps asks for the time."""

    def monotonic(self) -> float:
        """Return seconds that never go back; only differences mean anything."""
        ...

    def now(self) -> dt.datetime:
        """Return the time of day, in UTC."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait; may be cancelled."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        """Return CLOCK_MONOTONIC in seconds."""
        return time.monotonic()

    def now(self) -> dt.datetime:
        """Return CLOCK_REALTIME in UTC."""
        return dt.datetime.now(tz=dt.UTC)

    async def sleep(self, seconds: float) -> None:
        """Wait on the event loop."""
        await asyncio.sleep(seconds)


SYSTEM = SystemClock()


class ManualClock:
    """A clock that moves when a test says so.

    Args:
        start: Time of day at the beginning.
    """

    def __init__(self, start: dt.datetime = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)) -> None:
        self._start = start
        self._elapsed_s = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        """Return the seconds that `advance` has added up."""
        return self._elapsed_s

    def now(self) -> dt.datetime:
        """Return the start plus what `advance` has added up."""
        return self._start + dt.timedelta(seconds=self._elapsed_s)

    @property
    def sleepers(self) -> int:
        """How many tasks sleep now."""
        return sum(not future.done() for _, _, future in self._sleepers)

    async def sleep(self, seconds: float) -> None:
        """Wait until `advance` has passed the time; zero or less yields once."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed_s + seconds, next(self._order), future))
        await future

    async def advance(self, seconds: float) -> None:
        """Move the time, waking sleepers in the order of their times; each runs before the next one wakes."""
        end = self._elapsed_s + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            at, _, future = heapq.heappop(self._sleepers)
            self._elapsed_s = at
            if not future.done():
                future.set_result(None)
                await settle()
        self._elapsed_s = end

    async def wait_sleepers(self, count: int) -> None:
        """Wait until at least so many tasks sleep."""
        while self.sleepers < count:  # noqa: ASYNC110  # turns of the loop, not time
            await asyncio.sleep(0)


async def settle(turns: int = 20) -> None:
    """Let tasks that can run without I/O run, for some turns of the event loop."""
    for _ in range(turns):
        await asyncio.sleep(0)
