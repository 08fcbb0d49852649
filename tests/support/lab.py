"""A host with bridge networks in the real kernel, and a neighbour on the wire: what drivers render, with real packets.

neighbour 192.0.2.9, 2001:db8::9 --- wire0 192.0.2.1, 2001:db8::1 host, with networks and sandboxes as objects say
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec
from netweft_agent.domain import shards
from netweft_agent.domain.objects import Endpoint, HostFiles, Object, Ref
from netweft_agent.domain.plan import Operation, implied, plan
from netweft_agent.domain.resources import Key, Resource
from netweft_agent.engine.desired import Desired
from netweft_agent.engine.render import Renderer
from netweft_agent.engine.store import ObjectStore
from netweft_agent.kernel.linux import LinuxKernel
from netweft_common.errors import NetweftError

from tests.support.agent import DRIVERS, FACTS
from tests.support.netns import Netns, veth

HOST4, HOST6 = "192.0.2.1", "2001:db8::1"
NEIGHBOUR4, NEIGHBOUR6 = "192.0.2.9", "2001:db8::9"
NO_DAD = ("net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")


class Lab:
    """The host, its kernel layer, and objects that are brought to it as the engine would, without its bookkeeping."""

    def __init__(self, host: Netns, neighbour: Netns, run_dir: Path, *, ports_per_bridge: int = shards.PORTS) -> None:
        self.ports_per_bridge = ports_per_bridge
        self.host = host
        self.neighbour = neighbour
        self.store = ObjectStore()
        self.known: dict[Key, Resource] = {}
        self.run_dir = run_dir
        self._boxes: dict[str, Netns] = {}
        self._start()

    def _start(self) -> None:
        self.kernel = self.host.run(lambda: LinuxKernel(self.run_dir))
        facts = msgspec.structs.replace(FACTS, run_dir=str(self.run_dir))
        self.renderer = Renderer(DRIVERS, facts, HostFiles(), self.kernel.ports, ports_per_bridge=self.ports_per_bridge)

    async def restart(self) -> tuple[Operation, ...]:
        """End the agent without a word and start another; return what the new one finds to do."""
        await self.kernel.close()
        self._start()
        wanted = self.desired()
        found = (await self.kernel.observe(wanted)).resources
        self.known = {key: one for key, one in found.items() if key in wanted}
        steps = plan(wanted, found, {})
        await self.kernel.execute(steps)
        return steps

    def desired(self) -> Mapping[Key, Resource]:
        """Return all that the objects want."""
        return self._desired().resources

    def _desired(self) -> Desired:
        wishes = self.renderer.render(self.store, self.renderer.everything(self.store))
        desired = Desired()
        _, refused = desired.replace(wishes.by_owner)
        for error in (wishes.refused | refused).values():
            raise error
        return desired

    async def put(self, *items: Object) -> tuple[Operation, ...]:
        """Bring objects to the host, and return what was done.

        Raises:
            NetweftError: One was refused, by its driver or by the kernel; all are taken back.
        """
        before = {item.ref: self.store.objects.get(item.ref) for item in items}
        try:
            for item in items:
                if isinstance(item, Endpoint):
                    held = self.store.endpoint(item.id)
                    item = self.renderer.complete(self.store, item, held)  # noqa: PLW2901  # as the engine does
                    self.renderer.check(self.store, item)
                self.store.put(item)
            return await self._bring()
        except NetweftError:
            for ref, item_before in before.items():
                self.store.restore(ref, item_before, None)
            await self._bring()
            raise

    async def gone(self, *items: Object | Ref) -> tuple[Operation, ...]:
        """Take objects away, and return what was done."""
        for item in items:
            self.store.remove(item if isinstance(item, Ref) else item.ref)
        return await self._bring()

    async def _bring(self) -> tuple[Operation, ...]:
        desired = self._desired()
        steps = plan(desired.resources, self.known, {key: desired.owner(key) for key in desired.resources})
        results = await self.kernel.execute(steps)
        done = {
            step.resource.key
            for step, error in zip(steps, results, strict=True)
            if error is None and step.after is None
        }
        for key in implied(done, self.known):
            del self.known[key]
        for step, error in zip(steps, results, strict=True):
            key = step.resource.key
            if error is None and step.after is not None:
                self.known[key] = step.after
            elif error is None:
                self.known.pop(key, None)
        for error in results:
            if error is not None:
                raise error
        return steps

    def endpoint(self, identifier: str) -> Endpoint:
        """Return an endpoint as the host holds it."""
        found = self.store.endpoint(identifier)
        assert found is not None, identifier
        return found

    def box(self, endpoint: Endpoint) -> Netns:
        """Return the namespace that an endpoint is in."""
        sandbox = self.store.sandbox(endpoint.sandbox_id)
        assert sandbox is not None, endpoint.sandbox_id
        if sandbox.id not in self._boxes:
            self._boxes[sandbox.id] = Netns.at(self.kernel.netns_path(sandbox.ns))
        return self._boxes[sandbox.id]

    async def close(self) -> None:
        """Remove what was made."""
        for box in self._boxes.values():
            box.close()
        left = (await self.kernel.observe({})).resources
        await self.kernel.execute(plan({}, left, {}))
        await self.kernel.close()


@contextlib.asynccontextmanager
async def new_lab(*, bridge_nf: bool = False, ports_per_bridge: int = shards.PORTS) -> AsyncIterator[Lab]:
    """Make a host with a neighbour on the wire, and remove it with everything on it.

    Args:
        bridge_nf: Let bridged frames pass through the host's IP firewall (br_netfilter), as Docker does.
        ports_per_bridge: Endpoints of a network that share a bridge.
    """
    with Netns() as host, Netns() as neighbour, tempfile.TemporaryDirectory(prefix="netweft-run-") as folder:
        number = int(bridge_nf)
        host.exec(["sysctl", "-qw", *NO_DAD])
        neighbour.exec(["sysctl", "-qw", *NO_DAD])
        # Without the module there is nothing to switch off.
        host.exec(
            [
                "sysctl",
                "-qw",
                f"net.bridge.bridge-nf-call-iptables={number}",
                f"net.bridge.bridge-nf-call-ip6tables={number}",
            ],
            check=bridge_nf,
        )
        host.exec(["ip", "link", "set", "lo", "up"])
        veth(host, "wire0", neighbour, "wire0")
        for ns, four, six in ((host, HOST4, HOST6), (neighbour, NEIGHBOUR4, NEIGHBOUR6)):
            ns.exec(["ip", "address", "add", f"{four}/24", "dev", "wire0"])
            ns.exec(["ip", "address", "add", f"{six}/64", "dev", "wire0", "nodad"])
        lab = Lab(host, neighbour, Path(folder), ports_per_bridge=ports_per_bridge)
        try:
            yield lab
        finally:
            await lab.close()
