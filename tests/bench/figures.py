"""Figures of one work: what is kept of many timings."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Median and 99th percentile in milliseconds, and how many a second when done one after the other."""

    median_ms: float
    p99_ms: float
    per_second: float

    def as_json(self) -> dict[str, float]:
        return {name: round(value, 3) for name, value in dataclasses.asdict(self).items()}


def of(took_ms: Sequence[float]) -> Figures:
    """Sum up timings of single items, in milliseconds."""
    ordered = sorted(took_ms)
    return Figures(
        median_ms=statistics.median(ordered),
        p99_ms=ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
        per_second=1e3 * len(ordered) / sum(ordered),
    )
