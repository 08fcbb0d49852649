"""Which hosts live: heartbeats, shared between controllers through the store.

A heartbeat is no change of intent: it takes no revision, and many are written in one call.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Callable

from netweft_common import errors, logs

from netweft_controller.domain.objects import HostState
from netweft_controller.store.protocol import Store

_log = logs.get()
_PERIOD_S = 1.0


class Liveness:
    """Heartbeats of all hosts.

    Args:
        store: Where controllers share them.
        grace: How long after its last heartbeat a host counts as ready.
        monotonic: Clock in seconds.
    """

    def __init__(self, store: Store, *, grace: dt.timedelta, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._grace_s = grace.total_seconds()
        self._monotonic = monotonic
        self._unwritten: set[str] = set()
        # Revision that each host's kernel follows, as it said last, here or anywhere.
        self._revisions: dict[str, int] = {}
        # When each host was heard of last: by our clock, which measures, and by the store's, which is shown.
        self._heard_s: dict[str, float] = {}
        self._shown_ms: dict[str, int] = {}
        # The store's clock, seconds since 1970, less ours that measures; None: it was not read yet.
        self._store_clock_s: float | None = None
        # Since when heartbeats were exchanged without a gap; None: they are not.
        self._exchanging_since_s: float | None = None

    def beat(self, host_id: str, revision: int = 0) -> None:
        """Take note of a heartbeat, and of the revision that the host's kernel follows; 0: it did not say."""
        self._heard_s[host_id] = self._monotonic()
        self._unwritten.add(host_id)
        if revision:
            self._revisions[host_id] = revision

    def revision(self, host_id: str) -> int:
        """Return the revision up to which a host's kernel follows the intent, as far as it is known."""
        return self._revisions.get(host_id, 0)

    def state(self, host_id: str) -> HostState:
        """Return whether a host lives."""
        heard_s = self._heard_s.get(host_id)
        if heard_s is None or self._monotonic() - heard_s > self._grace_s:
            return HostState.LOST
        return HostState.READY

    def lost_for_s(self, host_id: str) -> float:
        """Return for how long a host has surely been silent, in seconds; 0 while it is ready, or nobody can know.

        While the store is away, other controllers may hear what this one does not.
        """
        if self._exchanging_since_s is None or self.state(host_id) is HostState.READY:
            return 0.0
        now_s = self._monotonic()
        return min(now_s - self._heard_s.get(host_id, self._exchanging_since_s), now_s - self._exchanging_since_s)

    def now_s(self) -> float:
        """Return the time by the store's clock, in seconds since 1970: one for all controllers, whatever theirs say.

        Until the store has been heard it is this machine's.
        """
        return time.time() if self._store_clock_s is None else self._store_clock_s + self._monotonic()

    def heartbeat_ms(self, host_id: str) -> int:
        """Return the time of the last heartbeat by the store's clock, in milliseconds since 1970; 0: none."""
        return self._shown_ms.get(host_id, 0)

    async def exchange(self) -> None:
        """Write what was heard here, and read what was heard anywhere.

        Raises:
            Unavailable: The store does not answer; what was heard is written the next time.
        """
        hosts = list(self._unwritten)
        try:
            beats = await self._store.beat({host_id: self.revision(host_id) for host_id in hosts})
        except errors.NetweftError:
            self._exchanging_since_s = None
            raise
        self._unwritten.difference_update(hosts)
        now_s = self._monotonic()
        if self._exchanging_since_s is None:
            self._exchanging_since_s = now_s
        self._store_clock_s = beats.now_ms / 1000 - now_s
        self._shown_ms = dict(beats.last_ms)
        for host_id, revision in beats.revisions.items():
            # A host that has another store's revisions says so here before it is read from there.
            if host_id not in self._unwritten and host_id not in hosts:
                self._revisions[host_id] = revision
        for host_id, last_ms in beats.last_ms.items():
            heard_s = now_s - (beats.now_ms - last_ms) / 1000
            self._heard_s[host_id] = max(heard_s, self._heard_s.get(host_id, heard_s))

    async def forget(self, host_id: str) -> None:
        """Drop a host that was deleted.

        Raises:
            Unavailable: The store does not answer.
        """
        self._unwritten.discard(host_id)
        self._heard_s.pop(host_id, None)
        self._revisions.pop(host_id, None)
        await self._store.forget_heartbeat(host_id)

    async def run(self) -> None:
        """Exchange until cancelled."""
        while True:
            try:
                await self.exchange()
            except errors.Unavailable as error:
                _log.debug("heartbeats wait", error=error.message)
            await asyncio.sleep(_PERIOD_S)
