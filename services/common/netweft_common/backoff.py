"""Exponential back-off with jitter, as a pure iterator of delays."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator


def delays(
    *,
    first_s: float = 0.1,
    factor: float = 2.0,
    limit_s: float = 10.0,
    jitter: float = 0.5,
    rand: Callable[[], float] = random.random,
) -> Iterator[float]:
    """Yield delays in seconds without end: first, first * factor, ... up to the limit, each shortened at random.

    Args:
        first_s: First delay.
        factor: Growth of one delay to the next, at least 1.
        limit_s: Longest delay.
        jitter: Share of a delay that chance may take away, 0 to 1; clients that failed together do not return together.
        rand: Source of chance in [0, 1).
    """
    delay_s = min(first_s, limit_s)
    while True:
        yield delay_s * (1.0 - jitter * rand())
        delay_s = min(delay_s * factor, limit_s)
