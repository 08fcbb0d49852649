"""Limits of endpoints with real packets: what passes at once, what waits, what is dropped, and who can change that."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator
from ipaddress import ip_interface

import msgspec
import pytest
from netweft_agent.domain.plan import plan

from tests.support.agent import endpoint, limits, network, oid, sandbox, subnets
from tests.support.lab import Lab, new_lab
from tests.support.netns import Netns, require_root, require_tool

pytestmark = [pytest.mark.netns, pytest.mark.anyio]

LEFT, RIGHT = "10.1.0.5", "10.1.0.6"
PORT = 5000
DATAGRAM = bytes(1400)
COUNT = 1000
"""Datagrams of a burst: 1.4 MB, where a limit of 64 KiB has room for 45 and as many again come through meanwhile."""
FEW = COUNT // 3
_SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 33, 32
PATIENCE_S = 10


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(autouse=True)
def _needs():
    require_root()
    require_tool("tc")


@pytest.fixture(params=[False, True], ids=["routed", "br_netfilter"])
async def lab(request, anyio_backend):
    async with new_lab(bridge_nf=request.param) as lab:
        yield lab


def left(**fields):
    return endpoint(addresses=(ip_interface(f"{LEFT}/24"),), **fields)


RIGHT_BOX = sandbox(102)
OTHER = endpoint(1002, sandbox=102, addresses=(ip_interface(f"{RIGHT}/24"),))


def host_ns(lab: Lab, driver: str) -> Netns:
    return lab.host if driver == "bridge" else Netns.at(lab.kernel.netns_path(f"network/{oid(1)}"))


def qdiscs(ns: Netns) -> dict[str, dict[str, int]]:
    """Return counters of the token buckets of a namespace, by what the names of their links begin with."""
    found = json.loads(ns.exec(["tc", "-s", "-j", "qdisc", "show"]).stdout)
    return {one["dev"].partition("-")[0]: one for one in found if one["kind"] == "tbf"}


@contextlib.contextmanager
def open_socket(ns: Netns, kind: socket.SocketKind, at: str) -> Iterator[socket.socket]:
    sock = ns.run(lambda: socket.socket(socket.AF_INET, kind))
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 64 << 20)
        sock.settimeout(PATIENCE_S)
        sock.bind((at, PORT))
        yield sock


async def arrived(sender: Netns, source: str, receiver: Netns, target: str, buckets: Netns) -> int:
    """Send a burst of datagrams and return how many came, once nothing waits in any token bucket."""
    with (
        open_socket(sender, socket.SOCK_DGRAM, source) as out,
        open_socket(receiver, socket.SOCK_DGRAM, target) as came,
    ):
        out.sendto(b"first", (target, PORT))  # ARP is done with when this has come
        assert b"first" == came.recv(100)
        for _ in range(COUNT):
            out.sendto(DATAGRAM, (target, PORT))
        async with asyncio.timeout(PATIENCE_S):
            while any(one["backlog"] for one in qdiscs(buckets).values()):
                await asyncio.sleep(0)
        came.settimeout(0)
        count = 0
        with contextlib.suppress(BlockingIOError):
            while came.recv(2000):
                count += 1
        return count


WAYS = {
    "none": (None, (True, True)),
    "into the container": (limits(ingress=1_000_000), (False, True)),
    "out of it": (limits(egress=1_000_000), (True, False)),
    "both": (limits(1_000_000, 1_000_000), (False, False)),
    "a burst for all": (limits(1_000_000, 1_000_000, ingress_burst=20 << 20, egress_burst=20 << 20), (True, True)),
}
"""Limits, and whether all of a burst arrives in the container, and from it."""


@pytest.mark.parametrize("driver", ["bridge", "overlay"])
@pytest.mark.parametrize(("wanted", "expected"), WAYS.values(), ids=WAYS)
async def test_what_is_more_than_burst_and_queue_is_dropped_in_the_limited_direction_alone(
    lab, driver, wanted, expected
):
    item = left(bandwidth=wanted)
    await lab.put(network(driver=driver), sandbox(), RIGHT_BOX, item, OTHER)
    mine, theirs, buckets = lab.box(item), lab.box(OTHER), host_ns(lab, driver)

    into = await arrived(theirs, RIGHT, mine, LEFT, buckets)
    out = await arrived(mine, LEFT, theirs, RIGHT, buckets)

    assert expected == (into == COUNT, out == COUNT)
    assert all(45 < count < FEW or count == COUNT for count in (into, out)), (into, out)


async def test_a_limit_changes_in_place_and_an_open_connection_goes_on(lab):
    item = left(bandwidth=limits(1_000_000, 1_000_000))
    await lab.put(network(), sandbox(), RIGHT_BOX, item, OTHER)
    mine, theirs = lab.box(item), lab.box(OTHER)
    with (
        open_socket(mine, socket.SOCK_STREAM, LEFT) as listener,
        open_socket(theirs, socket.SOCK_STREAM, RIGHT) as caller,
    ):
        listener.listen()
        caller.connect((LEFT, PORT))
        server, _ = listener.accept()
        with server:
            server.settimeout(PATIENCE_S)
            said = []
            changes = (limits(2_000_000, 3_000_000), limits(2_000_000), None, limits(egress=4_000_000))
            commands = []
            for number, wanted in enumerate(changes):
                steps = await lab.put(msgspec.structs.replace(item, bandwidth=wanted))
                commands.append([step.command().split(" handle")[0].split(" clsact")[0] for step in steps])
                caller.sendall(b"%d" % number)
                server.sendall(server.recv(10))
                said.append(caller.recv(10))

    veth, shaper = f"nwv-{oid(1001)[:11]}", f"nws-{oid(1001)[:11]}"
    assert [b"0", b"1", b"2", b"3"] == said
    assert [f"tc qdisc replace dev {veth} root", f"tc qdisc replace dev {shaper} root"] == commands[0]
    assert [f"tc filter del dev {veth} ingress pref 28279", f"ip link del {shaper}"] == commands[1]
    assert [f"tc qdisc del dev {veth} root"] == commands[2]
    assert [
        f"ip link add {shaper} group 0x6e77 addrgenmode none up type ifb",
        f"tc qdisc replace dev {shaper} root",
        f"tc qdisc add dev {veth}",
    ] == commands[3]


async def test_what_waits_is_kept_when_a_limit_changes(lab):
    item = left(bandwidth=limits(8_000, ingress_burst=8 << 20))
    await lab.put(network(), sandbox(), RIGHT_BOX, item, OTHER)
    await lab.put(msgspec.structs.replace(item, bandwidth=limits(8_000)))
    mine, theirs = lab.box(item), lab.box(OTHER)
    with (
        open_socket(theirs, socket.SOCK_DGRAM, RIGHT) as out,
        open_socket(mine, socket.SOCK_DGRAM, LEFT) as came,
    ):
        for _ in range(80):
            out.sendto(DATAGRAM, (LEFT, PORT))
        waiting = qdiscs(lab.host)["nwv"]

        await lab.put(msgspec.structs.replace(item, bandwidth=limits(1 << 30)))
        passed = [came.recv(2000) for _ in range(80 - waiting["drops"])]

    assert 0 < waiting["qlen"]
    assert [DATAGRAM] * (80 - waiting["drops"]) == passed
    assert waiting["drops"] == qdiscs(lab.host)["nwv"]["drops"]


async def test_a_privileged_container_cannot_lift_its_limits(lab):
    item = left(bandwidth=limits(1_000_000, 1_000_000))
    await lab.put(network(), sandbox(), RIGHT_BOX, item, OTHER)
    mine, theirs = lab.box(item), lab.box(OTHER)

    mine.exec(["tc", "qdisc", "replace", "dev", "eth0", "root", "pfifo", "limit", "1000"])
    mine.exec(["tc", "qdisc", "add", "dev", "eth0", "clsact"])
    mine.exec(["tc", "qdisc", "del", "dev", "eth0", "root"])

    assert FEW > await arrived(theirs, RIGHT, mine, LEFT, lab.host)
    assert FEW > await arrived(mine, LEFT, theirs, RIGHT, lab.host)
    assert {"nwv", "nws"} == qdiscs(lab.host).keys()


async def test_an_endpoint_behind_a_limit_still_sends_as_itself_only(lab):
    item = left(bandwidth=limits(egress=1_000_000_000))
    await lab.put(network(), sandbox(), RIGHT_BOX, item, OTHER)
    mine, theirs = lab.box(item), lab.box(OTHER)
    mine.exec(["ip", "address", "add", "10.1.0.77/24", "dev", "eth0"])

    assert COUNT == await arrived(mine, LEFT, theirs, RIGHT, lab.host)
    with (
        open_socket(mine, socket.SOCK_DGRAM, "10.1.0.77") as out,
        open_socket(theirs, socket.SOCK_DGRAM, RIGHT) as came,
        open_socket(mine, socket.SOCK_DGRAM, LEFT) as honest,
    ):
        out.sendto(b"as another", (RIGHT, PORT))
        honest.sendto(b"as myself", (RIGHT, PORT))

        assert b"as myself" == came.recv(100)


TAMPERING = {
    "the way in": ["tc qdisc del dev VETH root"],
    "the way out": ["tc qdisc del dev SHAPER root"],
    "its redirection": ["tc filter del dev VETH ingress"],
    "the place of its redirection": ["tc qdisc del dev VETH clsact"],
    "what it passes": ["ip link del SHAPER"],
    "rates": ["tc qdisc change dev VETH root handle 6e77: tbf rate 1gbit burst 1mb limit 2mb"],
    "another discipline": ["tc qdisc replace dev SHAPER root handle 1: htb"],
    "all": ["ip link del SHAPER", "tc qdisc del dev VETH root", "tc qdisc del dev VETH clsact"],
}


@pytest.mark.parametrize("commands", TAMPERING.values(), ids=TAMPERING)
async def test_a_restarted_agent_finds_limits_as_they_are_and_repairs_what_others_did(lab, commands):
    item = left(bandwidth=limits(1_000_000, 1_000_000))
    await lab.put(network(), sandbox(), RIGHT_BOX, item, OTHER)
    untouched = await lab.restart()
    for command in commands:
        words = command.replace("VETH", f"nwv-{oid(1001)[:11]}").replace("SHAPER", f"nws-{oid(1001)[:11]}")
        lab.host.exec(words.split())

    repaired = await lab.restart()
    left_to_do = plan(lab.desired(), (await lab.kernel.observe(lab.desired())).resources, {})

    assert () == untouched
    assert repaired
    assert () == left_to_do
    assert FEW > await arrived(lab.box(OTHER), RIGHT, lab.box(item), LEFT, lab.host)
    assert FEW > await arrived(lab.box(item), LEFT, lab.box(OTHER), RIGHT, lab.host)


async def test_filters_of_others_stay_when_a_limit_goes(lab):
    item = left(bandwidth=limits(egress=1_000_000))
    await lab.put(network(), sandbox(), RIGHT_BOX, item, OTHER)
    veth = f"nwv-{oid(1001)[:11]}"
    theirs = (
        f"tc filter add dev {veth} ingress pref 1 protocol all u32 match u32 0 0 action mirred egress mirror dev lo"
    )
    lab.host.exec(theirs.split())

    await lab.put(msgspec.structs.replace(item, bandwidth=None))

    found = lab.host.exec(["tc", "filter", "show", "dev", veth, "ingress"]).stdout
    assert ("pref 1 " in found, "pref 28279" in found) == (True, False)


async def test_the_end_of_an_endpoint_takes_its_limits_along(lab):
    items = [
        endpoint(
            1001 + number,
            sandbox=101,
            interface_name=f"eth{number}",
            addresses=(ip_interface(f"10.1.0.{number + 5}/24"),),
            bandwidth=limits(1_000_000, 1_000_000),
        )
        for number in range(3)
    ]
    await lab.put(network(subnets=subnets("10.1.0.0/24")), sandbox(), *items)
    made = len(lab.host.exec(["tc", "qdisc", "show"]).stdout.splitlines())

    await lab.gone(*items)
    found = (await lab.kernel.observe({})).resources

    assert 9 < made
    assert [] == [key for key in found if key[0] in {"limit", "redirect"} or "nws-" in key[-1]]
    assert "nw" not in lab.host.exec(["tc", "qdisc", "show"]).stdout
