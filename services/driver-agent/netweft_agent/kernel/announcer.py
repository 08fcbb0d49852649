"""Tell neighbours of addresses in the background, so that no attach waits for it.

Telling is cheap for who tells, 15 µs, but a bridge hands a broadcast to each of its ports before the teller goes on, 4
to 5 µs a port; so on a bridge of a thousand, three times cost more than the attach. A thread of its own does it, at
most a tenth of the time; another closes the sockets, which waits for the kernel's grace periods. What waits is bounded,
and of each interface only the last announcement counts. What is left out does little harm: a neighbour that believes in
an old MAC asks again after half a minute (`base_reachable_time_ms` in ip-sysctl.rst).
"""

from __future__ import annotations

import heapq
import itertools
import math
import queue
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from netweft_agent.domain.announcement import Announcement, Place
from netweft_agent.kernel import gratuitous
from netweft_agent.kernel.netns import Namespaces

SOON_S = 0.1
"""For how long nothing new may have come before announcements are told: who attaches one after the other needs the
processors himself."""
LIMIT = 16384
"""Interfaces that wait at most; what comes then is not told."""
LATEST_S = 10.0
"""How long one that is due waits for that at most."""
SHARE = 10
"""The thread works one part in so many of its time."""
AT_ONCE_S = 0.001
"""How long the thread works before it rests."""
UNCLOSED = 64
"""Sockets that wait to be closed, up to which the thread opens more."""
CLOSING_S = 0.05
"""How long it waits for some of them."""


@dataclass(slots=True)
class _Turn:
    """An announcement that waits: what is left of it, and when it is due."""

    announcement: Announcement
    due_s: float


class Turns:
    """Announcements that wait, by when they are due; of each place one. Not thread-safe.

    Args:
        limit: How many wait at most.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._turns: dict[Place, _Turn] = {}
        self._heap: list[tuple[float, int, Place, _Turn]] = []
        self._numbers = itertools.count()
        self._taken: Announcement | None = None
        """What is being told; its rest waits for its interval, unless the place is added or dropped meanwhile."""

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._turns)

    def add(self, announcement: Announcement, due_s: float) -> bool:
        """Have an announcement told from then on, in place of an older one of the same place.

        Returns:
            False where too many wait, and it will not be told.
        """
        place = announcement.place
        self.drop(place)
        if announcement.count < 1:
            return True
        if len(self._turns) >= self._limit:
            return False
        turn = self._turns[place] = _Turn(announcement, due_s)
        heapq.heappush(self._heap, (due_s, next(self._numbers), place, turn))
        if len(self._heap) > 2 * self._limit:
            self._heap = [entry for entry in self._heap if self._turns.get(entry[2]) is entry[3]]
            heapq.heapify(self._heap)
        return True

    def drop(self, place: Place) -> None:
        """Leave out what is left to tell of a place; idempotent."""
        self._turns.pop(place, None)
        if self._taken is not None and self._taken.place == place:
            self._taken = None

    def due_s(self) -> float | None:
        """Return when the next one is due; None: nothing waits."""
        while self._heap and self._turns.get(self._heap[0][2]) is not self._heap[0][3]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self, now_s: float) -> Announcement | None:
        """Return one that is due; None: there is none. Say with `told` what became of it before the next one."""
        due_s = self.due_s()
        if due_s is None or due_s > now_s:
            return None
        _, _, place, turn = heapq.heappop(self._heap)
        del self._turns[place]
        self._taken = turn.announcement
        return turn.announcement

    def told(self, now_s: float, *, lost: bool = False) -> None:
        """Have the one that was taken wait for its next time; `lost`: there is nobody who could tell it any more."""
        taken, self._taken = self._taken, None
        if taken is not None and not lost:
            self.add(taken.rest(), now_s + taken.interval_ms / 1000)


class Announcer:
    """The threads; they begin with the first announcement. Any thread may call.

    Args:
        namespaces: Registry.
        limit: Interfaces that wait at most.
        soon_s: For how long nothing new may have come before announcements are told.
    """

    def __init__(self, namespaces: Namespaces, *, limit: int = LIMIT, soon_s: float = SOON_S) -> None:
        self._namespaces = namespaces
        self._soon_s = soon_s
        self._quiet_at_s = 0.0
        """When it is quiet, if nothing more comes."""
        self._changed = threading.Condition(threading.Lock())
        self._turns = Turns(limit)
        self._wakes_s = 0.0
        """When the thread looks again by itself."""
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._doomed: queue.SimpleQueue[socket.socket | None] = queue.SimpleQueue()
        self.left_out = 0
        """Announcements that were not taken, because too many waited."""

    def put(self, announcements: Iterable[Announcement]) -> None:
        """Have announcements told soon, and go on at once."""
        self._quiet_at_s = time.monotonic() + self._soon_s
        self._add(announcements, self._quiet_at_s)

    def tell(self, announcements: Iterable[Announcement]) -> None:
        """Tell announcements now, in the calling thread, and the rest of each when it is due."""
        for one in announcements:
            if self._tell(one):
                self._add([one.rest()], time.monotonic() + one.interval_ms / 1000)

    def drop(self, places: Iterable[Place]) -> None:
        """Leave out what is left to tell of these places; what is being told is not taken back."""
        with self._changed:
            for place in places:
                self._turns.drop(place)

    def close(self) -> None:
        """Leave out what waits, and end the threads; idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        for thread in self._threads:
            thread.join()

    def _add(self, announcements: Iterable[Announcement], due_s: float) -> None:
        with self._changed:
            if self._closed:
                return
            for one in announcements:
                self.left_out += not self._turns.add(one, due_s)
            self._start()
            first_s = self._turns.due_s()
            if first_s is not None and first_s < self._wakes_s:
                self._wakes_s = first_s
                self._changed.notify()

    def _start(self) -> None:
        if not self._threads:
            work = {"netweft-announcer": self._run, "netweft-closer": self._close_sockets}
            self._threads = [threading.Thread(target=run, name=name, daemon=True) for name, run in work.items()]
            for thread in self._threads:
                thread.start()

    def _tell(self, announcement: Announcement) -> bool:
        return gratuitous.tell(self._namespaces, announcement, self._doomed.put)

    # --- the threads ---

    def _run(self) -> None:
        while self._wait():
            began_s = worked_until_s = time.monotonic()
            while worked_until_s - began_s < AT_ONCE_S and (one := self._take()) is not None:
                told = self._tell(one)
                worked_until_s = time.monotonic()
                with self._changed:
                    self._turns.told(worked_until_s, lost=not told)
            self._rest((worked_until_s - began_s) * (SHARE - 1))
            while self._doomed.qsize() > UNCLOSED and not self._closed:
                self._rest(CLOSING_S)
        self._doomed.put(None)

    def _take(self) -> Announcement | None:
        with self._changed:
            return None if self._closed else self._turns.take(time.monotonic())

    def _wait(self) -> bool:
        """Wait until something is due; False: it is time to end."""
        with self._changed:
            while not self._closed:
                due_s, now_s = self._work_s(), time.monotonic()
                if due_s is not None and due_s <= now_s:
                    self._wakes_s = now_s  # nothing that comes now is due earlier, so nothing wakes it from its rest
                    return True
                self._wakes_s = math.inf if due_s is None else due_s
                self._changed.wait(None if due_s is None else due_s - now_s)
        return False

    def _work_s(self) -> float | None:
        """Return when there is work: when something is due and it is quiet, but not too long after; None: never."""
        due_s = self._turns.due_s()
        return None if due_s is None else max(due_s, min(self._quiet_at_s, due_s + LATEST_S))

    def _rest(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed, seconds)

    def _close_sockets(self) -> None:
        while (sock := self._doomed.get()) is not None:
            sock.close()
