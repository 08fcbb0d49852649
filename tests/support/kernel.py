"""A LinuxKernel in a host of its own, and states to put it into."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path

from netweft_agent.domain.plan import Operation, plan
from netweft_agent.domain.resources import (
    HOST,
    Address,
    Fdb,
    Key,
    Link,
    Namespace,
    Neighbour,
    PeerEnd,
    Port,
    Redirect,
    Resource,
    Route,
    Sysctl,
    TokenBucket,
    Vxlan,
)
from netweft_agent.kernel.linux import LinuxKernel
from netweft_common.errors import NetweftError

from tests.support.netns import Netns

State = dict[Key, Resource]


class Host:
    """A network namespace that plays the host, and the kernel layer in it."""

    def __init__(self, netns: Netns, run_dir: Path) -> None:
        self.netns = netns
        self.run_dir = run_dir
        self.kernel = self.new_kernel()

    def new_kernel(self) -> LinuxKernel:
        """Return what a restarted agent would have."""
        return self.netns.run(lambda: LinuxKernel(self.run_dir))

    def exec(self, *command: str, ns: str = HOST) -> str:
        """Run a command as somebody else would, and return what it prints."""
        inside = ["nsenter", f"--net={self.kernel.netns_path(ns)}"] if ns else []
        return self.netns.exec([*inside, *command]).stdout

    async def execute(self, steps: Sequence[Operation]) -> list[NetweftError | None]:
        return await self.kernel.execute(steps)

    async def make(self, *resources: Resource, owner: str = "test") -> list[NetweftError]:
        """Add resources to what is there, and return what went wrong."""
        wanted = state(resources)
        return [error for error in await self.execute(plan(wanted, {}, dict.fromkeys(wanted, owner))) if error]

    async def remove(self, *resources: Resource) -> list[NetweftError]:
        """Remove resources, and return what went wrong."""
        return [error for error in await self.execute(plan({}, state(resources), {})) if error]

    async def observe(self, wanted: Mapping[Key, Resource]) -> State:
        return dict((await self.kernel.observe(wanted)).resources)


@contextlib.asynccontextmanager
async def new_host() -> AsyncIterator[Host]:
    """Make a host, and remove it with everything on it."""
    with Netns() as netns, tempfile.TemporaryDirectory(prefix="netweft-run-") as folder:
        host = Host(netns, Path(folder))
        try:
            yield host
        finally:
            left = (await host.kernel.observe({})).resources
            await host.execute(plan({}, left, {}))
            await host.kernel.close()


def state(resources: Iterable[Resource]) -> State:
    """Return resources by key."""
    return {resource.key: resource for resource in resources}


def sandbox(number: int = 1) -> list[Resource]:
    """Return the namespace of a sandbox as the agent makes it."""
    ns = f"sandbox/s{number}"
    return [
        Namespace(ns=ns),
        Sysctl(ns=ns, path="net/ipv6/conf/default/disable_ipv6", value="1"),
        Link(ns=ns, name="lo", kind="loopback"),
    ]


def bridge() -> list[Resource]:
    """Return the host's part of a bridge network 10.1.0.0/16."""
    return [
        Link(ns=HOST, name="nwb-1", kind="bridge", mtu=1450, mac="02:00:00:00:00:01", ipv6=False),
        Address(ns=HOST, link="nwb-1", address="10.1.0.1/16"),
    ]


def endpoint(number: int = 1, *, isolated: bool = False) -> list[Resource]:
    """Return an IPv4 endpoint of that network, 10.1.0.<1 + number>, in the sandbox of the same number."""
    ns, name, mac = f"sandbox/s{number}", f"nwv-{number}", f"02:42:0a:01:00:{number + 1:02x}"
    return [
        Link(
            ns=HOST,
            name=name,
            kind="veth",
            mtu=1450,
            master="nwb-1",
            ipv6=False,
            peer=PeerEnd(ns=ns, name="eth0", mac=mac),
            port=Port(isolated=isolated),
        ),
        Link(ns=ns, name="eth0", kind="peer", mtu=1450, mac=mac, ipv6=False, peer=PeerEnd(ns=HOST, name=name)),
        Address(ns=ns, link="eth0", address=f"10.1.0.{number + 1}/16"),
        Route(ns=ns, destination="0.0.0.0/0", link="eth0", via="10.1.0.1"),
    ]


def limits(number: int = 1, *, rate: int = 125_000, ns: str = HOST) -> list[Resource]:
    """Return limits of that endpoint, both ways, in bytes a second."""
    link, shaper = f"nwv-{number}", f"nws-{number}"
    return [
        TokenBucket(ns=ns, link=link, rate=rate, burst=65536, limit=80000),
        Link(ns=ns, name=shaper, kind="ifb", ipv6=False),
        TokenBucket(ns=ns, link=shaper, rate=rate, burst=65536, limit=80000),
        Redirect(ns=ns, link=link, to=shaper),
    ]


def endpoint6(number: int = 1) -> list[Resource]:
    """Return an IPv6 endpoint on the same bridge, fd00:1::<1 + number>, as eth6."""
    ns, name = f"sandbox/s{number}", f"nwv-6-{number}"
    return [
        Link(ns=HOST, name=name, kind="veth", master="nwb-1", ipv6=False, peer=PeerEnd(ns=ns, name="eth6")),
        Link(ns=ns, name="eth6", kind="peer", ipv6=True, peer=PeerEnd(ns=HOST, name=name)),
        Address(ns=ns, link="eth6", address=f"fd00:1::{number + 1:x}/64"),
        Route(ns=ns, destination="::/0", link="eth6", via="fd00:1::1"),
        Neighbour(ns=ns, link="eth6", ip="fd00:1::1", mac="02:00:00:00:00:01"),
    ]


def overlay() -> list[Resource]:
    """Return the namespace of an overlay network, with one remote endpoint."""
    ns = "network/n1"
    return [
        Namespace(ns=ns),
        Link(ns=ns, name="br0", kind="bridge", mtu=1400, mac="02:00:00:00:00:02", ipv6=False),
        Link(
            ns=ns,
            name="vxlan0",
            kind="vxlan",
            mtu=1400,
            master="br0",
            ipv6=True,
            vxlan=Vxlan(vni=4097, local="192.0.2.1"),
            socket_ns=HOST,
            port=Port(learning=False, neigh_suppress=True),
        ),
        Address(ns=ns, link="br0", address="10.9.0.1/16"),
        Route(ns=ns, destination="198.51.100.0/24", link="br0", via="10.9.0.7"),
        *remote(9),
    ]


def remote(number: int, vtep: str = "192.0.2.9") -> list[Resource]:
    """Return what a host knows of a remote endpoint."""
    ns, mac = "network/n1", f"02:42:0a:09:00:{number:02x}"
    return [
        Fdb(ns=ns, link="vxlan0", mac=mac, vtep=vtep),
        Neighbour(ns=ns, link="vxlan0", ip=f"10.9.0.{number}", mac=mac),
        Neighbour(ns=ns, link="vxlan0", ip=f"fd00:9::{number:x}", mac=mac),
    ]
