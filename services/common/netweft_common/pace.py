"""How often hosts speak: the more there are, the more seldom each, so that heartbeats stay a small part of the work."""

from __future__ import annotations

import time
from collections.abc import Callable

HEARD_S = 15.0
"""Hosts are counted over so long a time; longer than any host may be silent."""
SILENT_MOST_S = 10.0
"""Longer than that no host may be silent."""
SILENT_LEAST_S = 2.0
"""Below that a host is told nothing, and speaks as often as its own settings say."""


class Pace:
    """Counts the hosts that this process hears; what one of them tells another replica is that one's.

    Args:
        per_second: Heartbeats a second that are taken from all hosts together; 0: each speaks as often as it likes.
        most_s: How long a host may be silent at most: half of the time that it is missed after; short times are none.
        monotonic: Clock in seconds.
    """

    def __init__(
        self, per_second: int, *, most_s: float = SILENT_MOST_S, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = per_second
        self._most_s = min(most_s, SILENT_MOST_S)
        self._monotonic = monotonic
        self._heard: set[str] = set()
        self._heard_before = 0
        self._since_s = monotonic()

    def silent_ms(self, host_id: str) -> int:
        """Note that a host speaks, and return how long it may be silent from now on, in ms; 0: as long as it likes."""
        if self._per_second <= 0:
            return 0
        now_s = self._monotonic()
        if now_s - self._since_s >= HEARD_S:
            self._heard_before = len(self._heard) if now_s - self._since_s < 2 * HEARD_S else 0
            self._heard, self._since_s = set(), now_s
        self._heard.add(host_id)
        return round(1000 * self.silent_s)

    @property
    def silent_s(self) -> float:
        """How long hosts may be silent, in seconds, by the last count; 0: as long as they like."""
        if self._per_second <= 0:
            return 0.0
        wanted_s = min(max(len(self._heard), self._heard_before) / self._per_second, self._most_s)
        return 0.0 if wanted_s <= SILENT_LEAST_S else wanted_s
