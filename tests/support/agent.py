"""What tests of the agent share: objects in one line each, and a running engine over the kernel's double."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_interface, ip_network
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from netweft_agent.domain import shards
from netweft_agent.domain.objects import (
    Bandwidth,
    Endpoint,
    Facts,
    HostFiles,
    Network,
    Object,
    Peer,
    PublishedPort,
    Ref,
    Sandbox,
    Subnet,
)
from netweft_agent.domain.plan import Operation
from netweft_agent.domain.resources import Key, Resource, Sysctl
from netweft_agent.drivers import base
from netweft_agent.drivers.bridge import BridgeDriver
from netweft_agent.drivers.host import HostDriver
from netweft_agent.drivers.null import NullDriver
from netweft_agent.drivers.overlay import OverlayDriver
from netweft_agent.engine.engine import Engine, Status
from netweft_agent.engine.journal import Journal
from netweft_agent.engine.render import Renderer
from netweft_agent.engine.store import Change
from netweft_agent.kernel.fake import FakeKernel
from netweft_common.errors import KernelError, NetweftError

FACTS = Facts(
    host_id="h" * 32,
    vtep="192.0.2.1",
    underlay_mtu=1500,
    underlay=ip_interface("192.0.2.1/24"),
    underlay_link="underlay0",
    run_dir="/run/netweft",
    features=frozenset({"tbf", "ifb", "mirred"}),
)
DRIVERS: Mapping[str, base.Driver] = {
    "bridge": BridgeDriver(),
    "overlay": OverlayDriver(),
    "host": HostDriver(),
    "null": NullDriver(),
}
HOST_FILES = HostFiles(resolv_conf="nameserver 192.0.2.53\nsearch example.net\n")


def oid(number: int) -> str:
    """Make an id whose first eleven and last ten digits differ from those of any other number."""
    return f"{number:011x}{0:011x}{number:010x}"


def subnets(*texts: str) -> tuple[Subnet, ...]:
    """Make subnets of texts, each with its first address as gateway; `-` in front: without one."""
    made = []
    for text in texts:
        subnet = ip_network(text.lstrip("-"))
        gateway = None if text.startswith("-") else ip_interface(f"{subnet[1]}/{subnet.prefixlen}")
        made.append(Subnet(subnet=subnet, gateway=gateway))
    return tuple(made)


def network(number: int = 1, driver: str = "bridge", **fields: Any) -> Network:
    """Make a network; an overlay has its claims."""
    fields.setdefault("subnets", subnets(f"10.{number}.0.0/24"))
    fields.setdefault("claims", {"vni": 4095 + number, "transit": number} if driver == "overlay" else {})
    return Network(id=oid(number), name=f"net{number}", driver=driver, **fields)


def sandbox(number: int = 101, **fields: Any) -> Sandbox:
    """Make a sandbox."""
    return Sandbox(id=oid(number), **fields)


def endpoint(number: int = 1001, network: int = 1, sandbox: int = 101, **fields: Any) -> Endpoint:
    """Make an endpoint whose interface is eth0 unless told otherwise, with one address of its network."""
    fields.setdefault("interface_name", "eth0")
    fields.setdefault("addresses", (ip_interface(f"10.{network}.0.{number % 250 + 2}/24"),))
    return Endpoint(id=oid(number), name=f"ep{number}", network_id=oid(network), sandbox_id=oid(sandbox), **fields)


def port(container_port: int, host_port: int = 0, host_address: str = "", protocol: str = "tcp") -> PublishedPort:
    """Make a published port, assigned where it is exact."""
    return PublishedPort(
        protocol=protocol,
        container_port=container_port,
        host_address=host_address,
        host_port=host_port,
        assigned_port=host_port,
    )


def limits(ingress: int = 0, egress: int = 0, *, ingress_burst: int = 0, egress_burst: int = 0) -> Bandwidth:
    """Make limits, in bits a second and bits."""
    return Bandwidth(ingress_rate=ingress, ingress_burst=ingress_burst, egress_rate=egress, egress_burst=egress_burst)


def peer(number: int = 5001, network: int = 1, **fields: Any) -> Peer:
    """Make a peer on another host; `addresses` are interfaces, as those of endpoints."""
    fields.setdefault("vtep", "192.0.2.2")
    fields.setdefault("mac", f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}")
    fields.setdefault("addresses", (ip_interface(f"10.{network}.0.{number % 100 + 100}/24"),))
    fields["addresses"] = tuple(str(one.ip) for one in fields["addresses"])
    return Peer(endpoint_id=oid(number), network_id=oid(network), host_id="e" * 32, **fields)


def put(revision: int, *items: Object) -> list[Change]:
    """Make the changes that put these objects at a revision."""
    return [Change(ref=item.ref, revision=revision, put=_at(item, revision)) for item in items]


def gone(revision: int, *refs: Ref | Object) -> list[Change]:
    """Make the changes by which these objects are gone at a revision."""
    return [Change(ref=one if isinstance(one, Ref) else one.ref, revision=revision) for one in refs]


def _at(item: Object, revision: int) -> Object:
    return msgspec.structs.replace(item, revision=revision)


def refused(step: Operation, errno: int = 16) -> KernelError:
    """Make the kernel's refusal of a step."""
    return KernelError(step.command() or "-", " ".join(step.resource.key), errno)


class FailAt:
    """Fails the steps of these places in the order of execution, counted from 0 over all calls."""

    def __init__(self, *places: int) -> None:
        self.places = set(places)
        self.count = 0
        self.failed: list[Operation] = []

    def __call__(self, step: Operation) -> NetweftError | None:
        """Return the error of the step, if it is its turn."""
        place, self.count = self.count, self.count + 1
        if place not in self.places:
            return None
        self.failed.append(step)
        return refused(step)


def lasting(state: Mapping[Key, Resource]) -> dict[Key, Resource]:
    """Return a state without settings, which are never put back."""
    return {key: one for key, one in state.items() if not isinstance(one, Sysctl)}


class Rig:
    """An engine that runs, over a fake kernel and a journal in a folder. Enter it again after `stop` or a crash."""

    def __init__(
        self,
        folder: Path,
        *,
        kernel: FakeKernel | None = None,
        drivers: Mapping[str, base.Driver] = DRIVERS,
        facts: Facts = FACTS,
        ports_per_bridge: int = shards.PORTS,
    ) -> None:
        self.kernel = kernel if kernel is not None else FakeKernel()
        self.path = folder / "journal"
        self._drivers = drivers
        self._facts = facts
        self._ports_per_bridge = ports_per_bridge
        self._task: asyncio.Task[None] | None = None
        self.journal = Journal(self.path)
        self.engine = self._make()

    def _make(self) -> Engine:
        renderer = Renderer(self._drivers, self._facts, HOST_FILES, ports_per_bridge=self._ports_per_bridge)
        return Engine(kernel=self.kernel, renderer=renderer, journal=self.journal)

    async def start(self) -> Self:
        """Start an engine of the journal."""
        self.journal = Journal(self.path)
        self.engine = self._make()
        await self.engine.start()
        self._task = asyncio.create_task(self.engine.run())
        return self

    def has_ended(self) -> bool:
        """Return whether the engine's task has died; takes its exception."""
        ended = self._task is not None and self._task.done()
        if ended and self._task is not None:
            self._task.exception()
        return ended

    async def stop(self) -> None:
        """End the engine's task, as a crash would between two jobs."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._task = None
        self.journal.close()

    async def restart(self) -> None:
        """Stop and start."""
        await self.stop()
        await self.start()

    async def __aenter__(self) -> Self:
        """Start."""
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        await self.stop()

    async def put(self, revision: int, *items: Object) -> list[Status]:
        """Apply these objects at a revision."""
        return await self.engine.apply(put(revision, *items))

    async def gone(self, revision: int, *items: Ref | Object) -> list[Status]:
        """Apply that these objects are gone."""
        return await self.engine.apply(gone(revision, *items))

    def rendered(self) -> dict[Key, Resource]:
        """Render what the engine's store says, from nothing."""
        renderer = Renderer(self._drivers, self._facts, self.engine._renderer.host)  # tests may look inside
        wishes = renderer.render(self.engine.store, renderer.everything(self.engine.store))
        return {key: one for wanted in wishes.by_owner.values() for key, one in wanted.items()}

    def rendered_and_granted(self) -> dict[Key, Resource]:
        """Render what the store says, without settings, and without owners that contradict those who were first."""
        refused = self.engine._unrendered  # tests may look inside
        renderer = Renderer(self._drivers, self._facts, HOST_FILES)
        wishes = renderer.render(self.engine.store, renderer.everything(self.engine.store))
        return lasting(
            {
                key: one
                for owner, wanted in wishes.by_owner.items()
                if owner not in refused
                for key, one in wanted.items()
            }
        )

    def count(self) -> int:
        """Return how many steps the kernel has executed."""
        return len(self.kernel.executed)


def errors_of(statuses: Sequence[Status]) -> list[str]:
    """Return the reasons of the statuses' errors; empty for those that are well."""
    return ["" if one.error is None else one.error.reason for one in statuses]


async def until(condition: Callable[[], object]) -> None:
    """Let other tasks run until the condition holds; TimeoutError after five seconds."""
    async with asyncio.timeout(5):
        while not condition():  # what is waited for has no event
            await asyncio.sleep(0)


def by_key(resources: Iterable[Resource]) -> dict[Key, Resource]:
    """Return resources by their keys."""
    return {one.key: one for one in resources}
