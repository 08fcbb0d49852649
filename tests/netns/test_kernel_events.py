"""Tampering is told once per namespace, and our own work never."""

from __future__ import annotations

import asyncio
import socket

import pytest
from netweft_agent.domain.plan import plan
from netweft_agent.domain.resources import HOST

from tests.support.kernel import Host, bridge, endpoint, endpoint6, limits, new_host, overlay, sandbox, state
from tests.support.netns import require_root

pytestmark = [pytest.mark.netns, pytest.mark.anyio]

EVERYTHING = [
    *bridge(),
    *overlay(),
    *(part for n in (1, 2) for part in (*sandbox(n), *endpoint(n))),
    *endpoint6(2),
    *limits(1),
]
PATIENCE_S = 5


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Ear:
    """Listens, and knows when everything that was caused before has been heard."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._heard: asyncio.Queue[str] = asyncio.Queue()
        self._task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for ns in self._host.kernel.changes():
            self._heard.put_nowait(ns)

    async def ready(self) -> None:
        """Wait until tampering is heard at all."""
        while not self._host.kernel._monitor._sockets:  # no event tells of a listener
            await asyncio.sleep(0)

    async def at_rest(self) -> None:
        """Wait until what the writer caused has been read: what comes then is somebody else's for certain."""
        while self._host.kernel._monitor._deaf:  # as above
            await asyncio.sleep(0)

    async def heard(self) -> set[str]:
        """Return what was heard up to a change that is made now, in a namespace that nothing else is done in."""
        self._host.exec("nft", "add", "table", "inet", "netweft", ns="sandbox/s9")
        found = set()
        async with asyncio.timeout(PATIENCE_S):
            while "sandbox/s9" not in found:
                found.add(await self._heard.get())
        # What was read together with that change is told together with it.
        while not self._heard.empty():
            found.add(self._heard.get_nowait())
        return found - {"sandbox/s9"}

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture
async def host(anyio_backend):
    require_root()
    async with new_host() as made:
        await made.make(*sandbox(9))
        yield made


@pytest.fixture
async def ear(host):
    listening = Ear(host)
    await listening.ready()
    yield listening
    await listening.stop()


TAMPERING = {
    "link down": (HOST, "ip link set nwv-1 down", {HOST}),
    "link off its bridge": (HOST, "ip link set nwv-1 nomaster", {HOST}),
    "link deleted": (HOST, "ip link del nwv-1", {HOST, "sandbox/s1"}),
    "link renamed": (HOST, "ip link set nwv-1 down name other", {HOST}),
    "far end renamed": ("sandbox/s1", "ip link set eth0 down name other", {"sandbox/s1"}),
    "link moved away": (HOST, "ip link set nwv-1 netns sandbox-s2", {HOST}),
    "bridge deleted": (HOST, "ip link del nwb-1", {HOST}),
    "mtu of the far end": ("sandbox/s1", "ip link set eth0 mtu 1300", {"sandbox/s1"}),
    "far end down": ("sandbox/s2", "ip link set eth0 down", {"sandbox/s2"}),
    "address": (HOST, "ip address del 10.1.0.1/16 dev nwb-1", {HOST}),
    "addresses flushed": ("sandbox/s1", "ip address flush dev eth0", {"sandbox/s1"}),
    "route": ("sandbox/s2", "ip route del default", {"sandbox/s2"}),
    "connected route": ("sandbox/s2", "ip route del 10.1.0.0/16", {"sandbox/s2"}),
    "connected route of IPv6": ("sandbox/s2", "ip -6 route del fd00:1::/64 dev eth6", {"sandbox/s2"}),
    "connected route of a bridge": (HOST, "ip route del 10.1.0.0/16", {HOST}),
    "route replaced": ("sandbox/s2", "ip route replace default via 10.1.0.7", {"sandbox/s2"}),
    "neighbour": ("network/n1", "ip neighbour del 10.9.0.9 dev vxlan0", {"network/n1"}),
    "forwarding entry": ("network/n1", "bridge fdb del 02:42:0a:09:00:09 dev vxlan0 self", {"network/n1"}),
    "tunnel": ("network/n1", "ip link del vxlan0", {"network/n1"}),
    "limit": (HOST, "tc qdisc del dev nwv-1 root", {HOST}),
    "limit changed": (
        HOST,
        "tc qdisc change dev nwv-1 root handle 6e77: tbf rate 1gbit burst 64kb limit 80000",
        {HOST},
    ),
    "limit replaced": (HOST, "tc qdisc replace dev nws-1 root pfifo", {HOST}),
    "redirect": (HOST, "tc filter del dev nwv-1 ingress", {HOST}),
    "place of the redirect": (HOST, "tc qdisc del dev nwv-1 clsact", {HOST}),
    "what the limit acts on": (HOST, "ip link del nws-1", {HOST}),
    "a table of our name": (HOST, "nft add table inet netweft", {HOST}),
}


@pytest.mark.parametrize(("ns", "command", "told"), TAMPERING.values(), ids=TAMPERING.keys())
async def test_tampering_is_told_and_its_repair_is_not(host: Host, ear: Ear, ns, command, told):
    desired = state([*EVERYTHING, *sandbox(9)])
    await host.execute(plan(desired, {}, {}))
    await ear.at_rest()

    host.exec(*command.replace("sandbox-s2", host.kernel.netns_path("sandbox/s2")).split(), ns=ns)
    heard = await ear.heard()
    await host.execute(plan(desired, await host.observe(desired), {}))
    heard_of_repair = await ear.heard()

    assert (told, set()) == (heard, heard_of_repair)
    left = plan(desired, await host.observe(desired), {})
    assert {"sandbox/s9"} == {step.resource.ns for step in left}


async def test_a_connected_route_that_was_put_back_goes_with_its_address(host: Host):
    desired = state([*EVERYTHING, *sandbox(9)])
    await host.execute(plan(desired, {}, {}))
    as_made = [host.exec("ip", f"-{family}", "route", ns="sandbox/s2") for family in (4, 6)]

    for command in ("ip route del 10.1.0.0/16", "ip -6 route del fd00:1::/64 dev eth6"):
        host.exec(*command.split(), ns="sandbox/s2")
    steps = plan(desired, await host.observe(desired), {})
    await host.execute(steps)
    put_back = [host.exec("ip", f"-{family}", "route", ns="sandbox/s2") for family in (4, 6)]
    for command in ("ip address flush dev eth0", "ip address flush dev eth6"):
        host.exec(*command.split(), ns="sandbox/s2")

    assert {"address"} == {step.resource.key[0] for step in steps if step.resource.ns != "sandbox/s9"}
    assert [sorted(one.splitlines()) for one in as_made] == [sorted(one.splitlines()) for one in put_back]
    assert "proto kernel" not in "".join(host.exec("ip", f"-{family}", "route", ns="sandbox/s2") for family in (4, 6))


AFTER_A_RESTART = ("link down", "link deleted", "mtu of the far end", "far end down", "address", "limit", "redirect")


@pytest.mark.parametrize("name", AFTER_A_RESTART)
async def test_tampering_is_told_to_an_agent_that_has_only_looked(host: Host, name):
    ns, command, told = TAMPERING[name]
    desired = state([*EVERYTHING, *sandbox(9)])
    await host.execute(plan(desired, {}, {}))
    await host.kernel.close()
    host.kernel = host.new_kernel()
    left_to_do = plan(desired, await host.observe(desired), {})
    ear = Ear(host)
    await ear.ready()

    host.exec(*command.split(), ns=ns)
    heard = await ear.heard()
    await ear.stop()

    assert () == left_to_do
    assert told == heard


async def test_own_work_is_not_told(host: Host, ear: Ear):
    desired = state(EVERYTHING)

    await host.execute(plan(desired, {}, {}))
    await host.execute(plan({}, state([*endpoint(1), *endpoint(2)]), {}))
    await host.execute(plan(state(endpoint(1)), {}, {}))
    await host.execute(plan({}, desired, {}))

    assert set() == await ear.heard()


FOREIGN = {
    "a bridge": (HOST, "ip link add theirs type bridge"),
    "another table": (HOST, "nft add table inet theirs"),
    "an address on their link": ("sandbox/s1", "ip address add 127.9.9.9/32 dev lo"),
    "a route": ("sandbox/s1", "ip route add 198.51.100.0/24 via 10.1.0.9"),
    "a limit of the other end": ("sandbox/s1", "tc qdisc add dev eth0 root pfifo"),
    "a filter beside ours": (
        HOST,
        "tc filter add dev nwv-1 egress u32 match u32 0 0 action mirred egress mirror dev lo",
    ),
    "a limit of a link without one of ours": (HOST, "tc qdisc add dev nwv-2 root pfifo"),
    "a neighbour": ("sandbox/s1", "ip neighbour add 10.1.0.9 lladdr 02:00:00:00:00:09 dev eth0"),
}


@pytest.mark.parametrize(("ns", "command"), FOREIGN.values(), ids=FOREIGN.keys())
async def test_what_others_make_for_themselves_is_not_told(host: Host, ear: Ear, ns, command):
    await host.make(*EVERYTHING)

    host.exec(*command.split(), ns=ns)

    assert set() == await ear.heard()


async def test_when_events_were_lost_every_namespace_is_told(host: Host, ear: Ear):
    await host.make(*EVERYTHING)
    held = set(host.kernel._namespaces.held())
    for sock in host.kernel._monitor._sockets:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    script = "\n".join(f"link set dev nwb-1 alias x{number}" for number in range(50))
    host.netns.exec(["ip", "-batch", "-"], stdin=script)

    heard = await ear.heard()

    assert held - {"sandbox/s9"} == heard


async def test_closing_the_kernel_ends_the_events(host: Host):
    ear = Ear(host)
    await ear.ready()

    host.kernel._monitor.close()

    async with asyncio.timeout(PATIENCE_S):
        await ear._task


async def test_a_veth_numbers_its_namespace_without_being_asked(host: Host, ear: Ear, monkeypatch):
    monkeypatch.setattr(host.kernel._executor, "_number", lambda spaces: None)
    await host.make(*bridge(), *sandbox(1), *endpoint(1))
    await ear.at_rest()

    host.exec("ip", "address", "flush", "dev", "eth0", ns="sandbox/s1")

    assert {"sandbox/s1"} == await ear.heard()
