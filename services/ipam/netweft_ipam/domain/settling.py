"""When pools may give addresses out again after the store has lost, or may have lost, the end of its log.

Hosts are the second copy of the truth: each reports what it holds under the new store epoch. Until all live ones have,
or their time is over, a free address may be somebody's.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long hosts are waited for.

    Attributes:
        live_ms: A host counts as live whose last heartbeat came no longer before the newest of all in the last epoch.
        least_ms: At least so long, when there are live hosts: one whose first heartbeat was lost shows up in it.
        most_ms: At most so long.
    """

    live_ms: int = 60_000
    least_ms: int = 1_000
    most_ms: int = 30_000


DEFAULT_PATIENCE = Patience()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """How far the hosts have reported under a store epoch.

    Attributes:
        now_ms: Time of the reading.
        since_ms: When the epoch was first seen.
        live: How many hosts are live.
        missing: Live hosts that have not reported, or the first of them.
    """

    now_ms: int
    since_ms: int
    live: int
    missing: tuple[str, ...]


def wait_ms(reports: Reports, patience: Patience) -> int:
    """Return how long pools must still wait at most, in ms; 0: they may give addresses out."""
    if not reports.live:
        return 0
    waited = reports.now_ms - reports.since_ms
    if not reports.missing:
        return max(0, patience.least_ms - waited)
    return max(0, max(patience.least_ms, patience.most_ms) - waited)
