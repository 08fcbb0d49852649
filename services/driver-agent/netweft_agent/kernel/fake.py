"""A kernel of dictionaries: the double of `LinuxKernel` for tests of what is built upon it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence

from netweft_common import errors

from netweft_agent.domain.announcement import Announcement, Place
from netweft_agent.domain.plan import Operation
from netweft_agent.domain.resources import HOST, File, Key, Link, Namespace, Ns, Resource, Sysctl
from netweft_agent.kernel.api import Observation, Statistics
from netweft_agent.kernel.run import Run


class Crash(BaseException):
    """The process died here, as far as the test is concerned; like KeyboardInterrupt, nobody should catch it."""


class FakeKernel:
    """Implements api.Kernel on a mapping of key to resource.

    Args:
        fail_at: Asked before each step; what it returns is that step's error.

    Attributes:
        state: What there is, ours or not. Tests may change it, which is drift.
        foreign: Keys in `state` that are somebody else's.
        executed: Steps that took effect, in order, over all calls.
        calls: Number of steps of each call of `execute`.
        counters: What `statistics` tells, by namespace and link.
        announced: What neighbours were told, in order, each with whether it was at once.
        hushed: Of what they are told no more, in order.
        observations: Namespaces that `observe` was asked for, call by call.
        taken_over: How often `observe` was to go on with what is there.
    """

    def __init__(self, *, fail_at: Callable[[Operation], errors.NetweftError | None] | None = None) -> None:
        self.state: dict[Key, Resource] = {}
        self.foreign: set[Key] = set()
        self.executed: list[Operation] = []
        self.calls: list[int] = []
        self.observations: list[frozenset[Ns] | None] = []
        self.taken_over = 0
        self.counters: dict[tuple[Ns, str], Statistics] = {}
        self.announced: list[tuple[Announcement, bool]] = []
        self.hushed: list[Place] = []
        self.fail_at = fail_at
        self.closed = False
        self._crash_after: int | None = None
        self._changes: asyncio.Queue[Ns | None] = asyncio.Queue()

    # --- what tests steer with ---

    def commands(self) -> list[str]:
        """Return what was executed, as an administrator would type it, each with its namespace in front."""
        return [f"{step.resource.ns or 'host'}: {command}" for step in self.executed if (command := step.command())]

    def crash_after(self, steps: int) -> None:
        """Raise Crash once so many more steps have taken effect; what was done stays done."""
        self._crash_after = steps

    def drift(self, ns: Ns = HOST) -> None:
        """Tell listeners that somebody changed something in the namespace."""
        self._changes.put_nowait(ns)

    # --- the kernel ---

    async def execute(self, steps: Sequence[Operation]) -> list[errors.NetweftError | None]:
        """Carry out the steps; see api.Kernel.

        Raises:
            Crash: As ordered by `crash_after`.
        """
        self.calls.append(len(steps))
        await asyncio.sleep(0)  # like the real one, other tasks get their turn
        run = Run(steps)
        for index, step in enumerate(steps):
            if not run.begin([index]):
                continue
            error = (self.fail_at(step) if self.fail_at is not None else None) or self._refusal(step)
            if error is not None:
                run.fail(index, error)
                continue
            if self._crash_after is not None:
                if self._crash_after == 0:
                    self._crash_after = None
                    raise Crash
                self._crash_after -= 1
            self._take(step)
            self.executed.append(step)
        return run.results

    async def observe(
        self, wanted: Mapping[Key, Resource], namespaces: Collection[Ns] | None = None, *, take_over: bool = True
    ) -> Observation:
        """Look at the state; see api.Kernel. What is not in the asked namespaces is left out."""
        await asyncio.sleep(0)
        self.observations.append(None if namespaces is None else frozenset(namespaces))
        self.taken_over += take_over
        seen = {}
        for key, resource in self.state.items():
            if namespaces is not None and resource.ns not in namespaces:
                continue
            if key in wanted or (key not in self.foreign and not isinstance(resource, Sysctl | File)):
                seen[key] = resource
        return Observation(resources=seen, foreign=frozenset(self.foreign & wanted.keys() & seen.keys()))

    async def statistics(self, ns: Ns) -> dict[str, Statistics]:
        """Return counters of a namespace's links but lo, all zero but what `counters` says."""
        await asyncio.sleep(0)
        links = [
            one for one in self.state.values() if isinstance(one, Link) and one.ns == ns and one.kind != "loopback"
        ]
        return {link.name: self.counters.get((ns, link.name), Statistics()) for link in links}

    def announce(self, announcements: Collection[Announcement]) -> None:
        """Note what neighbours are told in the background."""
        self.announced += [(one, False) for one in announcements]

    async def announce_now(self, announcements: Collection[Announcement]) -> None:
        """Note what neighbours are told at once."""
        await asyncio.sleep(0)
        self.announced += [(one, True) for one in announcements]

    def hush(self, places: Collection[Place]) -> None:
        """Note of what neighbours are told no more."""
        self.hushed += places

    def netns_path(self, ns: Ns) -> str:
        """Return the path by which other processes could open the namespace; empty when it is not held."""
        if ns == HOST:
            return "/proc/1/ns/net"
        found = self.state.get(("netns", ns))
        if not isinstance(found, Namespace):
            return ""
        return found.source or f"/run/netweft/netns/{ns.replace('/', '-')}"

    async def changes(self) -> AsyncIterator[Ns]:
        """Yield what `drift` is called with, until closed."""
        while (ns := await self._changes.get()) is not None:
            yield ns

    async def close(self) -> None:
        """End the iterators of `changes`; the state stays, as a kernel's does."""
        self.closed = True
        self._changes.put_nowait(None)

    # --- what a kernel does by itself ---

    def _refusal(self, step: Operation) -> errors.NetweftError | None:
        """Refuse what the real kernel refuses: something without what it needs, or somebody else's."""
        if step.after is None:
            return None
        key = step.after.key
        if key in self.foreign:
            return errors.FailedPrecondition(f"FOREIGN_{key[0].upper()}", f"{' '.join(key)} is somebody else's")
        for need in step.after.needs():
            if need not in self.state and need != ("netns", HOST):
                return errors.FailedPrecondition("MISSING_NEED", f"{' '.join(key)} needs {' '.join(need)}")
        return None

    def _take(self, step: Operation) -> None:
        resource = step.resource
        if step.after is not None:
            self.state[resource.key] = step.after
        elif not isinstance(resource, Sysctl):  # settings are never put back
            self.state.pop(resource.key, None)
            self._wither()

    def _wither(self) -> None:
        """Remove what has lost something it needs, as the death of a link takes its addresses."""
        while True:
            dead = [
                key
                for key, resource in self.state.items()
                if any(need not in self.state and need != ("netns", HOST) for need in resource.needs())
            ]
            if not dead:
                return
            for key in dead:
                del self.state[key]
