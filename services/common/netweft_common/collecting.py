"""Garbage collection in processes that keep much for long.

What services keep are small objects that refer to nobody in circles, and reference counting frees them. CPython's
collector looks at all of them again whenever they have grown by a quarter, and at the younger ones more often: with
100,000 endpoints the process stands still for a second, and attaching spends a fifth of its time so.
So what has survived a collection of the middle generation is frozen (gc.freeze), which takes it out of further looks.
A circle that was in use at that moment and is dropped later stays; therefore all is looked at once more whenever twice
as much is frozen as was kept the last time, which bounds what can stay.
"""

from __future__ import annotations

import asyncio
import gc

YOUNG = 50_000
"""Objects more than before at which the youngest are looked at: some 5 ms."""
MIDDLE = 5
"""Such looks until those that survived them are looked at too, and frozen."""
_NEVER = 1 << 30
_LOOK_S = 0.25


class Collector:
    """Sets the collector up, and freezes what survives; what is there when it is made is frozen at once."""

    def __init__(self) -> None:
        gc.freeze()
        gc.set_threshold(YOUNG, MIDDLE, _NEVER)
        self._kept = gc.get_freeze_count()
        self._looks = self._count()

    @staticmethod
    def _count() -> int:
        return int(gc.get_stats()[1]["collections"])

    def step(self) -> None:
        """Freeze what has survived since the last step, if anything has been looked at since."""
        looks = self._count()
        if looks == self._looks:
            return
        self._looks = looks
        gc.freeze()
        if gc.get_freeze_count() > 2 * self._kept:
            gc.unfreeze()
            gc.collect()
            gc.freeze()
            self._kept = gc.get_freeze_count()

    async def run(self) -> None:
        """Step again and again until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self.step()
