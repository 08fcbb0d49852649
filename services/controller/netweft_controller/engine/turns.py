"""How much is under way at a time, so that under more load than there is room for what was begun is finished.

An attach that waits too long for its host is undone: leases, record and what the host has of it. Where all callers are
let in at once on a cluster that cannot follow, all wait too long, and all that is done is to undo. Here those beyond
the limit wait before anything is done for them, and those beyond a further one are told at once to come again.

A host has a part of the turns at most, and its callers a queue of their own, so that one that stands still holds up
nobody else. What is on several hosts, or on none, waits for no host's part: one of them that stands still would hold up
the others.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator, Iterator

from netweft_common import errors

PART_OF_HOST = 8
"""A host has this part of all turns at most."""
WAITING_EACH = 8
"""Callers that may wait for a host, for each turn that it has."""
RETRY_AFTER_S = 1.0


class Turns:
    """Turns of callers whose work is on some host. Not thread-safe: one event loop owns it.

    Args:
        at_once: How many may be under way; 0 or less: any number.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._of_host = max(1, at_once // PART_OF_HOST)
        self._all = asyncio.Semaphore(max(0, at_once))
        self._hosts: dict[str, asyncio.Semaphore] = {}
        self._users: collections.Counter[str] = collections.Counter()
        """Callers of each host, those who wait included; a host without any has no semaphore."""
        self._waiting: set[asyncio.Task[object]] = set()
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._waiting)

    def has_room(self, host: str) -> bool:
        """Whether a caller for a host, or for none in particular (""), would have his turn at once."""
        return self._at_once <= 0 or not (self._all.locked() or (host in self._hosts and self._hosts[host].locked()))

    def close(self) -> None:
        """Have all who wait, and who come from now on and would have to, told that this controller goes down."""
        self._closed = True
        for task in self._waiting:
            task.cancel()

    @contextlib.asynccontextmanager
    async def turn(self, host: str, patience_s: float) -> AsyncIterator[None]:
        """Wait for a turn and have it while the block runs.

        Args:
            host: Where the work is; empty: on several hosts, or none.
            patience_s: How long to wait.

        Raises:
            Unavailable: It did not come in time, or too many wait already, or the controller goes down. Nothing was
                done.
        """
        if self._at_once <= 0:
            yield
            return
        async with contextlib.AsyncExitStack() as stack:
            if host:
                stack.enter_context(self._using(host))
            semaphores = [self._hosts[host], self._all] if host else [self._all]
            if self.has_room(host):
                for one in semaphores:
                    await stack.enter_async_context(one)
            else:
                await self._wait(stack, semaphores, host, patience_s)
            yield

    @contextlib.contextmanager
    def _using(self, host: str) -> Iterator[None]:
        """Keep a host's semaphore while the block runs."""
        self._hosts.setdefault(host, asyncio.Semaphore(self._of_host))
        self._users[host] += 1
        try:
            yield
        finally:
            self._users[host] -= 1
            if not self._users[host]:
                del self._users[host], self._hosts[host]

    async def _wait(
        self, stack: contextlib.AsyncExitStack, semaphores: list[asyncio.Semaphore], host: str, patience_s: float
    ) -> None:
        if self._closed:
            raise _leaving()
        if host and self._users[host] > self._of_host * (1 + WAITING_EACH):
            raise _busy(f"{self._users[host] - 1} for this host are under way or wait")
        if not host and self.waiting >= self._at_once * WAITING_EACH:
            raise _busy(f"{self._at_once} are under way and {self.waiting} wait")
        task = asyncio.current_task()
        assert task is not None, "a coroutine runs in a task"
        self._waiting.add(task)
        try:
            async with asyncio.timeout(patience_s):
                for one in semaphores:
                    await stack.enter_async_context(one)
        except TimeoutError as error:
            raise _busy("those that came before are still under way") from error
        except asyncio.CancelledError:
            if self._closed and task.uncancel() == 0:
                raise _leaving() from None
            raise
        finally:
            self._waiting.discard(task)


def _busy(what: str) -> errors.Unavailable:
    return errors.Unavailable(
        "CONTROLLER_BUSY",
        f"this controller has no time for more attaches now ({what}), and has done nothing in this call; ask again with"
        " the same request id, or have fewer at a time",
        retry_after_s=RETRY_AFTER_S,
    )


def _leaving() -> errors.Unavailable:
    return errors.Unavailable(
        "SERVER_DRAINING",
        "this controller is going down, and has done nothing in this call; ask another one, or again, with the same"
        " request id",
        retry_after_s=RETRY_AFTER_S,
    )
