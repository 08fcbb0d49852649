"""Simulated hosts: real agents but for the kernel, many in one process.

Each has its own engine, journal, server, link to the controller and word to IPAM, wired as in `netweft_agent.app`, and
for a kernel the double. They share one event loop. To the services each is a connection of its own: it dials them by a
name of its own, a symbolic link to their socket, for gRPC joins what one process sends to one name.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from ipaddress import IPv4Address
from pathlib import Path

from netweft.agent.v1 import agent_pb2_grpc
from netweft.common.v1 import host_pb2
from netweft_agent.domain.objects import Facts, HostFiles, Ref
from netweft_agent.domain.plan import Operation
from netweft_agent.domain.resources import Fdb
from netweft_agent.drivers import base
from netweft_agent.engine.engine import Engine, Status
from netweft_agent.engine.journal import Journal, Position
from netweft_agent.engine.render import Renderer
from netweft_agent.engine.store import Change
from netweft_agent.kernel.fake import FakeKernel
from netweft_agent.rpc import convert, link, servicer
from netweft_agent.rpc.leases import LeaseKeeper
from netweft_common import client, server

FIRST_VTEP = IPv4Address("198.18.0.1")
"""Of host 0; those of the others follow (RFC 2544's range for tests of this kind)."""


class CountingEngine(Engine):
    """An engine that notes what it was told, and by which way.

    Attributes:
        applied: Changes that came by Apply, by object, revision and whether it is there.
        streamed: The same, by WatchHost.
        snapshots: Snapshots taken.
    """

    applied: Counter[tuple[Ref, int, bool]]
    streamed: Counter[tuple[Ref, int, bool]]
    snapshots: int

    def forget_counts(self) -> None:
        """Count from nothing."""
        self.applied, self.streamed, self.snapshots = Counter(), Counter(), 0

    async def apply(
        self, changes: Sequence[Change], position: Position | None = None, *, store_id: str = ""
    ) -> list[Status]:
        """Note the changes and take them."""
        told = self.applied if position is None else self.streamed
        told.update((one.ref, one.revision, one.put is not None) for one in changes)
        return await super().apply(changes, position, store_id=store_id)

    async def apply_snapshot(self, changes: Sequence[Change], position: Position) -> None:
        """Note the changes and take them."""
        self.snapshots += 1
        self.streamed.update((one.ref, one.revision, one.put is not None) for one in changes)
        await super().apply_snapshot(changes, position)


class LeanKernel(FakeKernel):
    """The double without its diary, which would outgrow the state; instead it says when entries for peers came.

    Attributes:
        steps: How many steps took effect.
        written_s: By MAC address, when a forwarding entry to another host was written, by the monotonic clock, which is
            one for all processes of a machine; None: nobody wants to know.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.written_s: dict[str, float] | None = None

    def _take(self, step: Operation) -> None:
        super()._take(step)
        if self.written_s is not None and isinstance(step.after, Fdb) and step.after.vtep is not None:
            self.written_s[step.after.mac] = time.monotonic()

    async def execute(self, steps: Sequence[Operation]) -> list:
        """Carry out the steps, and forget that."""
        results = await super().execute(steps)
        self.steps += len(self.executed)
        self.executed.clear()
        self.calls.clear()
        self.announced.clear()
        self.hushed.clear()
        return results


class SimulatedHost:
    """One host. Start it again after `stop`: its kernel and its journal are still there, as after an agent's death.

    Args:
        number: Place among all hosts; gives id, name and tunnel address.
        folder: Run directory of the simulation, with `controller.sock` and `ipam.sock` in it.
        lease_interval_s: Between two words to IPAM; None: none.
        prefix: Of its name.
    """

    def __init__(self, number: int, folder: Path, *, lease_interval_s: float | None = 2.0, prefix: str = "h") -> None:
        self.number = number
        self.id = f"{number:032x}"
        self.name = f"{prefix}{number}"
        self.vtep = str(FIRST_VTEP + number)
        self.kernel = LeanKernel()
        self._folder = folder
        self._own = folder / self.name
        self._lease_interval_s = lease_interval_s
        self._stack = contextlib.AsyncExitStack()
        self.engine: CountingEngine

    async def start(self) -> None:
        """Start the agent; returns when the host is registered, or that has failed once."""
        self._own.mkdir(exist_ok=True)
        async with contextlib.AsyncExitStack() as stack:
            journal = Journal(self._own / "journal")
            stack.callback(journal.close)
            facts = Facts(host_id=self.id, vtep=self.vtep, underlay_mtu=1500, run_dir="/run/netweft")
            drivers = _drivers()
            engine = CountingEngine(kernel=self.kernel, renderer=Renderer(drivers, facts, _FILES), journal=journal)
            engine.forget_counts()
            await engine.start()
            self.engine = engine
            _run(stack, engine.run())
            keeper = None
            if self._lease_interval_s is not None:
                to_ipam = await stack.enter_async_context(client.Connection(self._dial("ipam")))
                keeper = LeaseKeeper([to_ipam], engine, self.id, interval_s=self._lease_interval_s)
            report = host_pb2.HostFacts(
                agent_version=version("netweft-agent"),
                drivers=[convert.driver_info(one) for _, one in sorted(drivers.items())],
                underlay_mtu_bytes=1500,
            )
            grpc_server = server.Server(listen_at=[f"unix:{self._own}/agent.sock"], access=servicer.ACCESS)
            grpc_server.add(
                agent_pb2_grpc.add_AgentServiceServicer_to_server,
                servicer.AgentServicer(engine, self.id, report, keeper),
            )
            await stack.enter_async_context(grpc_server)
            to_controller = await stack.enter_async_context(client.Connection(self._dial("controller")))
            host = host_pb2.Host(
                id=self.id,
                name=self.name,
                agent_target=grpc_server.targets[0],
                vtep_address=self.vtep,
                facts=report,
            )
            way = link.Link(to_controller, engine, host, keeper)
            _run(stack, way.run())
            if keeper is not None:
                _run(stack, keeper.run())
            await way.tried(60.0)
            self._stack = stack.pop_all()

    async def stop(self) -> None:
        """End the agent, between two jobs of its engine."""
        await self._stack.aclose()
        self._stack = contextlib.AsyncExitStack()

    def lose(self) -> None:
        """Lose the journal and all of the kernel, as by a boot; while it is stopped."""
        shutil.rmtree(self._own)
        self.kernel = LeanKernel()

    def _dial(self, service: str) -> str:
        path = self._own / f"{service}.sock"
        path.unlink(missing_ok=True)
        path.symlink_to(self._folder / f"{service}.sock")
        return f"unix:{path}"


_FILES = HostFiles(resolv_conf="nameserver 192.0.2.53\n")
_loaded: dict[str, base.Driver] = {}


def _drivers() -> dict[str, base.Driver]:
    """Return drivers that no other host has: they remember what they have rendered for theirs."""
    if not _loaded:
        _loaded.update(base.load())
    return {name: type(one)() for name, one in _loaded.items()}


def _run(stack: contextlib.AsyncExitStack, coroutine) -> None:
    """Run something until the stack is closed; what it dies of comes out there."""
    task = asyncio.get_running_loop().create_task(coroutine)

    async def end() -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    stack.push_async_callback(end)


async def until(condition: Callable[[], object], *, timeout_s: float = 60.0, look_s: float = 0.005) -> None:
    """Let others work until something holds, looking at it every `look_s` seconds.

    Raises:
        TimeoutError: It does not.
    """
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(look_s)
