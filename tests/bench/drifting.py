"""Work `drift-repair`: how long it takes from what others do to a host's network to its repair, for each kind.

From the end of the command that does it to the first look that shows what was there before; a look costs a few
milliseconds, for it is a command too.
"""

from __future__ import annotations

import asyncio
import time

from netweft_cli import stack
from netweft_client import AsyncClient

from tests.bench import attaching, figures
from tests.support import tampering

WORKS = ("drift-repair",)
TIMES = 7
PATIENCE_S = 70.0
"""Longer than the pass that finds what nobody has told of."""
REST_S = 0.3
"""Longer than the agent takes its own events for its own."""


def run(works: set[str]) -> attaching.Table:
    """Time the work asked for."""
    del works
    with attaching.running_stack("host1", "host2") as running:
        place = asyncio.run(_place(running))
        took = {kind: [_repair_ms(one, place) for _ in range(TIMES)] for kind, one in tampering.TAMPERINGS.items()}
    return {"drift-repair": {kind: figures.of(times).as_json() for kind, times in took.items()}}


async def _place(running: stack.Stack) -> tampering.Place:
    async with AsyncClient(target=running.layout.controller) as client:
        return await tampering.place(client, running.layout)


def _repair_ms(one: tampering.Tampering, place: tampering.Place) -> float:
    whole = one.seen(place)
    time.sleep(REST_S)
    place.run(one.where, one.command)
    start = time.perf_counter()
    while one.seen(place) != whole:
        if time.perf_counter() - start > PATIENCE_S:
            raise SystemExit(f"never mended: {one.command}")
    return (time.perf_counter() - start) * 1e3
