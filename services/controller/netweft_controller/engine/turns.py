"""How much is under way at a time, so that under more load than there is room for what was begun is finished.

An attach that waits too long for its host is undone: leases, record and what the host has of it. Where all callers are
let in at once on a cluster that cannot follow, all wait too long, and all that is done is to undo. Here those beyond
the limit wait before anything is done for them, and those beyond a further one are told at once to come again.

A host has a part of the limit at most, so that one that stands still holds up nobody else.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator, Collection, Iterable

from netweft_common import errors

from netweft_controller.domain.specs import SandboxRef
from netweft_controller.domain.state import State

PART_OF_HOST = 4
"""A host has this part of all turns at most."""
WAITING_EACH = 16
"""Callers that may wait, for each turn there is."""
RETRY_AFTER_S = 1.0


class Turns:
    """Turns of callers whose work is on some hosts. Not thread-safe: one event loop owns it.

    Args:
        at_once: How many may be under way; 0: any number.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._of_host = max(1, at_once // PART_OF_HOST)
        self._running = 0
        self._on_host: collections.Counter[str] = collections.Counter()
        self._waiting: dict[asyncio.Future[None], frozenset[str]] = {}
        self._wanted: collections.Counter[str] = collections.Counter()
        """Hosts that somebody waits for: who comes later does not overtake him there."""

    @property
    def running(self) -> int:
        """How many have their turn."""
        return self._running

    @property
    def waiting(self) -> int:
        """How many wait for theirs."""
        return len(self._waiting)

    @contextlib.asynccontextmanager
    async def turn(self, hosts: Collection[str], patience_s: float) -> AsyncIterator[None]:
        """Wait for a turn and have it while the block runs.

        Args:
            hosts: Where the work is.
            patience_s: How long to wait for it.

        Raises:
            Unavailable: It did not come in time, or too many wait already. Nothing was done.
        """
        if self._at_once <= 0:
            yield
            return
        place = frozenset(hosts)
        if place & self._wanted.keys() or not self._has_room(place):
            await self._wait(place, patience_s)
        else:
            self._begin(place)
        try:
            yield
        finally:
            self._running -= 1
            self._leave(self._on_host, place)
            self._wake()

    def _has_room(self, place: frozenset[str]) -> bool:
        return self._running < self._at_once and all(self._on_host[host] < self._of_host for host in place)

    def _begin(self, place: frozenset[str]) -> None:
        self._running += 1
        self._on_host.update(place)

    @staticmethod
    def _leave(counts: collections.Counter[str], place: frozenset[str]) -> None:
        for host in place:
            counts[host] -= 1
            if not counts[host]:
                del counts[host]

    async def _wait(self, place: frozenset[str], patience_s: float) -> None:
        """Wait until `_wake` has begun the turn."""
        if len(self._waiting) >= WAITING_EACH * self._at_once:
            raise _busy(f"{self._running} attaches are under way and {len(self._waiting)} wait")
        future = asyncio.get_running_loop().create_future()
        self._waiting[future] = place
        self._wanted.update(place)
        try:
            async with asyncio.timeout(patience_s):
                await future
        except BaseException as error:
            if future.done() and not future.cancelled():
                # It came in the same moment.
                self._running -= 1
                self._leave(self._on_host, place)
            elif self._waiting.pop(future, None) is not None:
                self._leave(self._wanted, place)
            self._wake()
            if isinstance(error, TimeoutError):
                raise _busy(f"{self._running} attaches that came before are under way") from error
            raise

    def _wake(self) -> None:
        """Begin the turns of those for whom there is room, in the order in which they came."""
        blocked: set[str] = set()
        for future, place in list(self._waiting.items()) if self._waiting else ():
            if self._running >= self._at_once:
                break
            if future.done():
                continue  # given up in this moment
            if place & blocked or not self._has_room(place):
                blocked |= place
                continue
            del self._waiting[future]
            self._leave(self._wanted, place)
            self._begin(place)
            future.set_result(None)


def places(state: State, refs: Iterable[SandboxRef | None]) -> set[str]:
    """Return the hosts of sandboxes, as far as that is known before they are checked."""
    found: set[str] = set()
    for ref in refs:
        if isinstance(ref, str):
            record = state.sandboxes.get(ref) or next(iter(state.sandboxes_of_container(ref)), None)
            found.add(record.value.host_id if record is not None else "")
        elif ref is not None:
            # Without a host named it is the only one there is.
            found.add(state.host_ids_by_name.get(ref.host, ref.host) if ref.host else next(iter(state.hosts), ""))
    return found


def _busy(what: str) -> errors.Unavailable:
    return errors.Unavailable(
        "CONTROLLER_BUSY",
        f"this controller has no time for more attaches now ({what}) and has done nothing for this one; ask again with"
        " the same request id, less at a time, or give it more turns (NETWEFT_CONTROLLER_ATTACHES_AT_ONCE)",
        retry_after_s=RETRY_AFTER_S,
    )
