"""The real kernel: composes the writer thread, the reader thread, the announcer and the event socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from netweft_common.errors import NetweftError

from netweft_agent.domain.announcement import Announcement, Place
from netweft_agent.domain.nft import NftTable
from netweft_agent.domain.plan import Operation
from netweft_agent.domain.resources import Key, Namespace, Ns, PortHold, Resource, Sysctl
from netweft_agent.kernel.announcer import Announcer
from netweft_agent.kernel.api import Observation, Statistics
from netweft_agent.kernel.executor import Executor
from netweft_agent.kernel.files import Files
from netweft_agent.kernel.monitor import Monitor
from netweft_agent.kernel.netns import Namespaces
from netweft_agent.kernel.observer import Observer
from netweft_agent.kernel.ports import Ports
from netweft_agent.kernel.settings import LOOK_INTERVAL_S, Settings
from netweft_agent.kernel.thread import Worker


class LinuxKernel:
    """The kernel of the host that this process runs on; implements api.Kernel.

    Make it in a thread that is in the network namespace that shall count as the host's. Needs CAP_NET_ADMIN and
    CAP_SYS_ADMIN, for the events of other namespaces CAP_NET_BROADCAST (without, they are not told), and a descriptor
    for each sandbox and some 300 more.

    Args:
        run_dir: Directory for what lives as long as the host is up: pinned namespaces, notes on managed files. It is
            made when needed, and should be on a mount that containers share if they are to open namespaces by path.
        file_roots: Folders below which hosts and resolv.conf may be written where a caller says; None: anywhere.
    """

    def __init__(self, run_dir: Path, file_roots: Sequence[Path] | None = None) -> None:
        files = Files(run_dir, file_roots)
        self._namespaces = Namespaces(run_dir)
        self.ports = Ports(self._namespaces)
        """Held ports; also finds free ones."""
        self._executor = Executor(self._namespaces, files, self.ports)
        self._observer = Observer(self._namespaces, files, self.ports)
        self._announcer = Announcer(self._namespaces)
        self._writer = Worker("netweft-writer", self._executor.idle)
        self._reader = Worker("netweft-reader")
        self._monitor = Monitor(self._namespaces, self._executor, self._reader)
        self._settings = Settings(self._namespaces)
        self._started = False

    async def execute(self, steps: Sequence[Operation]) -> list[NetweftError | None]:
        """Carry out the steps; see api.Kernel."""
        await self._start()
        settings = [place for place, step in enumerate(steps) if isinstance(step.resource, Sysctl)]
        with self._monitor.writing():
            for place in settings:
                self._settings.forget(steps[place].resource.key)
            results = await self._writer.call(lambda: self._executor.execute(steps))
        self._keep(one for place in settings if results[place] is None and (one := steps[place].after) is not None)
        return results

    async def observe(
        self, wanted: Mapping[Key, Resource], namespaces: Collection[Ns] | None = None, *, take_over: bool = True
    ) -> Observation:
        """Look at the kernel; see api.Kernel."""
        await self._start()
        # What is doomed is still there for a moment, and would be seen.
        await self._writer.call(self._executor.flush)
        # A hold ends with the process that had it: after a restart it is taken again, and nothing has changed.
        unbound = [one for key, one in wanted.items() if isinstance(one, PortHold) and not self.ports.has(key)]
        if unbound and take_over:
            await self._writer.call(lambda: self.ports.adopt(unbound))
        seen = await self._reader.call(lambda: self._observer.observe(wanted, namespaces))
        if not take_over:
            return seen
        # What exists gets no operation, so after a restart nothing else would open it for those that follow.
        found = [part for part in seen.resources.values() if isinstance(part, Namespace)]
        unheld = [namespace for namespace in found if not self._namespaces.holds(namespace.ns)]
        if unheld:
            await self._writer.call(lambda: self._executor.adopt(unheld, seen.doomed))
        tables = [part for part in seen.resources.values() if isinstance(part, NftTable)]
        wants = [one for part in tables if isinstance(one := wanted.get(part.key), NftTable)]
        await self._writer.call(lambda: self._executor.take_over(wants, seen.indexes, wanted))
        self._keep(part for key, part in seen.resources.items() if part == wanted.get(key))
        return seen

    async def statistics(self, ns: Ns) -> dict[str, Statistics]:
        """Return the counters of a namespace's links but lo, by name; see api.Kernel."""
        return await self._reader.call(lambda: self._observer.statistics(ns))

    def announce(self, announcements: Collection[Announcement]) -> None:
        """Have neighbours told in the background; see api.Kernel."""
        self._announcer.put(announcements)

    async def announce_now(self, announcements: Collection[Announcement]) -> None:
        """Tell neighbours; see api.Kernel. In the writer's thread, for on a large bridge it takes milliseconds."""
        await self._writer.call(lambda: self._announcer.tell(announcements))

    def hush(self, places: Collection[Place]) -> None:
        """Leave out what is still to be told; see api.Kernel."""
        self._announcer.drop(places)

    def netns_path(self, ns: Ns) -> str:
        """Return the path by which other processes can open the namespace; empty when it is not held."""
        return self._namespaces.path(ns)

    def changes(self) -> AsyncIterator[Ns]:
        """Yield the name of a namespace after a change in it that we did not make; see api.Kernel.

        The kernel tells of all changes but those of settings, which are looked at every 0.2 s.
        """
        return self._changes()

    async def _changes(self) -> AsyncIterator[Ns]:
        looking = asyncio.ensure_future(self._look_at_settings())
        try:
            async for ns in self._monitor.changes():
                yield ns
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    async def _look_at_settings(self) -> None:
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            for ns in await self._reader.call(self._settings.look):
                self._monitor.tell(ns)

    def _keep(self, parts: Iterable[Resource]) -> None:
        """Have settings that are as wanted now watched from now on."""
        for part in parts:
            if isinstance(part, Sysctl):
                self._settings.keep(part)

    async def close(self) -> None:
        """Delete what waits to be deleted, and give up sockets and threads; idempotent."""
        if not self._writer.closed:
            await self._writer.call(self._executor.close)
        await asyncio.to_thread(self._announcer.close)
        self._monitor.close()
        await self._writer.close()
        await self._reader.close()
        self.ports.close()
        self._settings.close()
        self._namespaces.close()

    async def _start(self) -> None:
        if not self._started:
            self._started = True
            await self._writer.call(self._executor.start)
