"""Networks of more endpoints than a bridge takes, here two, with real packets.

one and two are on the first bridge, three and four on a further one, five on another: 10.1.0.11 to .15, fd00:1::11 to
::15. Each test is made with and without br_netfilter, which shows bridged frames to the host's firewall.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections import Counter
from contextlib import closing
from ipaddress import ip_interface

import msgspec
import pytest
from netweft_agent.domain import names
from netweft_agent.domain.resources import HOST, Link

from tests.support import frames
from tests.support.agent import FACTS, Rig, endpoint, limits, network, oid, peer, port, sandbox, subnets
from tests.support.kernel import new_host
from tests.support.lab import HOST4, HOST6, NEIGHBOUR4, NEIGHBOUR6, Lab, new_lab
from tests.support.netns import Netns, require_root, require_tool
from tests.support.packets import at_once, tcp, udp

pytestmark = [pytest.mark.netns, pytest.mark.anyio]

COUNT = 5
OUTSIDE = {4: NEIGHBOUR4, 6: NEIGHBOUR6}
GATEWAY = {4: "10.1.0.1", 6: "fd00:1::1"}


@pytest.fixture(autouse=True)
def _needs():
    require_root()
    require_tool("ip")


@pytest.fixture(params=[False, True], ids=["routed", "br_netfilter"])
async def lab(request):
    async with new_lab(bridge_nf=request.param, ports_per_bridge=2) as lab:
        yield lab


@pytest.fixture
async def plain():
    async with new_lab(ports_per_bridge=2) as lab:
        yield lab


def own(number, version):
    return f"10.1.0.{10 + number}" if version == 4 else f"fd00:1::{10 + number}"


def mac(number):
    return f"02:42:00:00:00:{10 + number}"


def one(number, **fields):
    """Make an endpoint of both families, in a sandbox of its own."""
    addresses = (ip_interface(f"{own(number, 4)}/24"), ip_interface(f"{own(number, 6)}/64"))
    return endpoint(1000 + number, 1, 100 + number, addresses=addresses, mac=mac(number), **fields)


def net(**options):
    internal = bool(options.pop("internal", False))
    wanted = subnets("10.1.0.0/24", "fd00:1::/64")
    return network(subnets=wanted, enable_ipv6=True, options=options, internal=internal)


async def crowd(lab: Lab, *changed, count=COUNT, **options):
    """Put the network with its endpoints, some of them as said, and return each one's namespace by number."""
    items = {item.id: item for item in (*(one(number) for number in range(1, count + 1)), *changed)}
    await lab.put(net(**options), *(sandbox(100 + number) for number in range(1, count + 1)), *items.values())
    return {number: lab.box(one(number)) for number in range(1, count + 1)}


def bridges_of(lab):
    """Return the endpoints on each bridge of the network, by the bridge's name."""
    found: dict[str, list[int]] = {}
    for line in lab.host.exec(["ip", "-o", "link"]).stdout.splitlines():
        port_of = re.search(r": nwv-(\S+)@.* master (\S+)", line)
        if port_of:
            number = next(n for n in range(1, 20) if oid(1000 + n).startswith(port_of[1]))
            found.setdefault(port_of[2], []).append(number)
    return {name: sorted(numbers) for name, numbers in found.items()}


FIRST, SECOND, THIRD = names.bridge(oid(1)), names.further_bridge(oid(1), 1), names.further_bridge(oid(1), 2)


async def test_endpoints_beyond_a_bridge_are_on_a_further_one_and_all_reach_each_other(lab):
    boxes = await crowd(lab)

    pairs = [(a, b, v) for a in boxes for b in boxes if a != b for v in (4, 6)]
    seen = at_once(
        *(
            lambda a=a, b=b, v=v: udp(boxes[a], (own(b, v), 900 + a), boxes[b], (own(b, v), 900 + a))
            for a, b, v in pairs
        )
    )

    assert {FIRST: [1, 2], SECOND: [3, 4], THIRD: [5]} == bridges_of(lab)
    assert {(a, b, v): own(a, v) for a, b, v in pairs} == dict(zip(pairs, seen, strict=True))


async def test_with_icc_off_nobody_meets_anybody_and_all_reach_the_gateway_and_beyond(lab):
    boxes = await crowd(lab, icc="false")
    routes = {4: ["10.1.0.{}/32", "via", "10.1.0.1"], 6: ["fd00:1::{}/128", "via", "fd00:1::1"]}
    pairs = [(a, b, v) for a, b in ((1, 2), (1, 3), (3, 1), (3, 4), (3, 5), (5, 4)) for v in (4, 6)]

    def ask():
        return at_once(
            *(
                lambda a=a, b=b, v=v: udp(boxes[a], (own(b, v), 900 + a), boxes[b], (own(b, v), 900 + a))
                for a, b, v in pairs
            )
        )

    directly = ask()
    gateway = at_once(
        *(
            lambda n=n, v=v: udp(boxes[n], (GATEWAY[v], 900 + n), lab.host, (GATEWAY[v], 900 + n))
            for n in boxes
            for v in (4, 6)
        )
    )
    outside = at_once(
        *(
            lambda n=n, v=v: tcp(boxes[n], (OUTSIDE[v], 900 + n), lab.neighbour, (OUTSIDE[v], 900 + n))
            for n in boxes
            for v in (4, 6)
        )
    )
    from_host = at_once(
        *(lambda n=n, v=v: udp(lab.host, (own(n, v), 9), boxes[n], (own(n, v), 9)) for n in boxes for v in (4, 6))
    )
    for n, box in boxes.items():
        for b in set(boxes) - {n}:
            for way in routes.values():
                box.exec(["ip", "route", "add", *[part.format(10 + b) for part in way]])
    through_host = ask()

    assert [None] * len(pairs) == directly
    assert [own(n, v) for n in boxes for v in (4, 6)] == gateway
    assert [HOST4, HOST6] * COUNT == outside
    assert [GATEWAY[4], GATEWAY[6]] * COUNT == from_host
    assert [None] * len(pairs) == through_host


@pytest.mark.parametrize("rp_filter", ["0", "1", "2"])
async def test_a_published_port_of_a_further_bridge_is_reached_from_everywhere(lab, rp_filter):
    lab.host.exec(
        ["sysctl", "-qw", f"net.ipv4.conf.all.rp_filter={rp_filter}", f"net.ipv4.conf.default.rp_filter={rp_filter}"]
    )
    boxes = await crowd(lab, one(3, ports=(port(8080, 80),)), one(1, ports=(port(8080, 81),)))
    await lab.put(network(2), sandbox(201), endpoint(1020, 2, 201))
    stranger = lab.box(endpoint(1020, 2, 201))
    three = {HOST4: (own(3, 4), 8080), HOST6: (own(3, 6), 8080), "127.0.0.1": (own(3, 4), 8080)}

    def ask(client, host, number=3):
        return tcp(
            client, (host, 80 if number == 3 else 81), boxes[number], (own(number, 6 if ":" in host else 4), 8080)
        )

    seen = {
        "neighbour": [ask(lab.neighbour, HOST4), ask(lab.neighbour, HOST6)],
        "host": [ask(lab.host, host) for host in three],
        "itself": [ask(boxes[3], HOST4), ask(boxes[3], HOST6)],
        "another network": [ask(stranger, HOST4)],
        # To a port of the first bridge, from further ones.
        "to the first": [ask(boxes[number], host, 1) is not None for number in (2, 3, 5) for host in (HOST4, HOST6)],
        "of the same network": [
            ask(boxes[number], host) is not None for number in (1, 4, 5) for host in (HOST4, HOST6)
        ],
    }

    assert seen == {
        "neighbour": [NEIGHBOUR4, NEIGHBOUR6],
        "host": [HOST4, HOST6, GATEWAY[4]],
        "itself": [GATEWAY[4], GATEWAY[6]],
        "another network": ["10.2.0.22"],
        "to the first": [True] * 6,
        "of the same network": [True] * 6,
    }


async def test_datagrams_of_a_published_port_find_their_way_back_across_bridges(lab):
    boxes = await crowd(lab, one(3, ports=(port(8080, 80, protocol="udp"),)))

    seen = [udp(client, (HOST4, 80), boxes[3], (own(3, 4), 8080)) for client in (lab.neighbour, *boxes.values())]

    assert NEIGHBOUR4 == seen[0]
    assert None not in seen


async def test_an_internal_network_with_further_bridges_stays_inside(lab):
    boxes = await crowd(lab, internal=True)
    await lab.put(network(2), sandbox(201), endpoint(1020, 2, 201, ports=(port(8080, 80),)))
    for number in (1, 3):
        boxes[number].exec(["ip", "route", "add", "default", "via", GATEWAY[4]])

    inside = [udp(boxes[3], (own(n, 4), 9), boxes[n], (own(n, 4), 9)) for n in (1, 4, 5)]
    outside = [tcp(boxes[n], (NEIGHBOUR4, 9), lab.neighbour, (NEIGHBOUR4, 9)) for n in (1, 3)]
    elsewhere = [tcp(boxes[n], (HOST4, 80), lab.box(endpoint(1020, 2, 201)), ("10.2.0.22", 8080)) for n in (1, 3)]

    assert ([own(3, 4)] * 3, [None, None], [None, None]) == (inside, outside, elsewhere)


MARK = frames.ethernet(mac(3), frames.IPV4, frames.udp4(own(3, 4), own(1, 4)))
LIES = {
    "another MAC": frames.ethernet(mac(9), frames.IPV4, frames.udp4(own(3, 4), own(1, 4))),
    "the gateway's address": frames.ethernet(mac(3), frames.IPV4, frames.udp4(GATEWAY[4], own(1, 4))),
    "another's address": frames.ethernet(mac(3), frames.IPV6, frames.udp6(own(4, 6), own(1, 6))),
    "ARP as the gateway": frames.ethernet(mac(3), frames.ARP, frames.arp(2, mac(3), GATEWAY[4], own(1, 4), mac(1))),
    "a router": frames.ethernet(mac(3), frames.IPV6, frames.router_advertisement("fe80::1")),
    "a DHCP server": frames.ethernet(mac(3), frames.IPV4, frames.udp4(own(3, 4), "255.255.255.255", 67, 68)),
}


@pytest.mark.parametrize("receiver", [1, 4, 5], ids=["the first", "its own", "another"])
async def test_an_endpoint_of_a_further_bridge_sends_as_itself_only_to_whatever_bridge(plain, receiver):
    boxes = await crowd(plain)
    truth = frames.ethernet(mac(3), frames.IPV6, frames.udp6(own(3, 6), own(1, 6)))

    seen = frames.seen(boxes[3], [*LIES.values(), truth, MARK], MARK, boxes[receiver])

    assert [truth, MARK] == seen


def raw(box):
    """Open a socket for whole frames in an endpoint's namespace."""
    made = box.run(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))  # ETH_P_ALL
    made.bind(("eth0", 3))
    made.settimeout(2)
    return made


@pytest.mark.parametrize("receiver", [1, 2, 3, 4, 5])
async def test_a_broadcast_comes_to_each_endpoint_once_and_not_back_to_its_sender(lab, receiver):
    # Frames that were translated may turn round at the trunk; this one must not.
    boxes = await crowd(lab)
    question = frames.ethernet(mac(3), frames.ARP, frames.arp(1, mac(3), own(3, 4), "10.1.0.77"))
    last_by = 2 if receiver == 1 else 1
    last = frames.ethernet(mac(last_by), frames.ARP, frames.arp(1, mac(last_by), own(last_by, 4), "10.1.0.78"))

    heard = []
    with closing(raw(boxes[receiver])) as ears, closing(raw(boxes[3])) as asker, closing(raw(boxes[last_by])) as ender:
        asker.send(question)
        ender.send(last)
        while last not in heard:
            frame, (_, _, kind, *_) = ears.recvfrom(2048)
            heard += [frame] if kind != socket.PACKET_OUTGOING and frame in {question, last} else []

    assert [*([question] if receiver != 3 else []), last] == heard


async def test_without_the_guard_an_endpoint_bridges_for_others_across_bridges(plain):
    boxes = await crowd(plain, anti_spoof="false")
    nested = ["ip", "link", "add", "mv0", "link", "eth0", "address", "02:42:00:00:00:77", "type", "macvlan"]
    boxes[3].exec([*nested, "mode", "bridge"])
    boxes[3].exec(["ip", "address", "add", "10.1.0.77/32", "dev", "mv0"])
    boxes[3].exec(["ip", "link", "set", "mv0", "up"])

    seen = [udp(boxes[n], ("10.1.0.77", 9), boxes[3], ("10.1.0.77", 9)) for n in (1, 4, 5)]

    assert [own(n, 4) for n in (1, 4, 5)] == seen


@pytest.mark.parametrize("where", [NEIGHBOUR4, GATEWAY[4], own(1, 4)], ids=["beyond", "the host", "another endpoint"])
async def test_the_host_takes_nothing_in_that_is_addressed_to_a_further_bridge(lab, where):
    # Else there would be a way past what is said of the first bridge, here that ports are isolated.
    boxes = await crowd(lab, icc="false")
    places = {NEIGHBOUR4: lab.neighbour, GATEWAY[4]: lab.host, own(1, 4): boxes[1]}
    bridge_mac = {FIRST: names.mac(oid(1)), SECOND: names.further_mac(oid(1), 1)}
    lab.host.exec(["ip", "neighbour", "replace", own(1, 4), "lladdr", mac(1), "dev", FIRST])

    def datagram(bridge, to):
        packet = frames.udp4(own(3, 4), to, data=bridge.encode())
        return frames.ethernet(mac(3), frames.IPV4, packet, bridge_mac[bridge])

    with (
        closing(places[where].run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))) as ears,
        closing(boxes[3].run(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))) as mouth,
    ):
        ears.bind((where, 5001))
        ears.settimeout(1)
        mouth.bind(("eth0", 0))
        for bridge in (SECOND, FIRST):
            mouth.send(datagram(bridge, where))
        try:
            first_heard = ears.recv(64).decode()
        except TimeoutError:
            first_heard = "nothing"

    assert ("nothing" if where == own(1, 4) else FIRST) == first_heard


async def test_the_gateway_has_one_mac_for_all(plain):
    boxes = await crowd(plain)

    for _ in range(3):
        for number, box in boxes.items():
            box.exec(["ip", "neighbour", "flush", "all"])
            assert udp(box, (GATEWAY[4], 9), plain.host, (GATEWAY[4], 9)) == own(number, 4)

    tables = [box.exec(["ip", "neighbour", "show", GATEWAY[4]]).stdout for box in boxes.values()]
    assert [names.mac(oid(1))] * COUNT == [re.findall("lladdr (\\S+)", table)[0] for table in tables]


async def test_an_agent_that_starts_again_writes_nothing(lab):
    boxes = await crowd(lab, one(3, ports=(port(8080, 80),), bandwidth=limits(80_000_000, 80_000_000)))

    steps = await lab.restart()

    assert () == steps
    assert own(3, 4) == udp(boxes[3], (own(1, 4), 9), boxes[1], (own(1, 4), 9))


async def test_bridges_fill_up_again_and_the_last_endpoint_takes_its_bridge_along(plain):
    await crowd(plain)
    before = await plain.kernel.observe({})

    await plain.gone(one(1), one(5))
    without_third = plain.host.exec(["ip", "-o", "link"]).stdout
    await plain.put(sandbox(106), one(6), sandbox(107), one(7))
    again = bridges_of(plain)
    await plain.gone(one(7), one(6), one(4), one(3))
    left = bridges_of(plain)
    alone = plain.host.exec(["ip", "-o", "link"]).stdout + plain.host.exec(["nft", "list", "ruleset"]).stdout
    await plain.gone(one(2))

    assert THIRD in str(before.resources)
    assert "-02" not in without_third
    assert {FIRST: [2, 6], SECOND: [3, 4], THIRD: [7]} == again
    assert {FIRST: [2]} == left
    assert [] == re.findall(r"nw[btf]-\w{8}-|shards", alone)
    assert "nw" not in plain.host.exec(["ip", "-o", "link"]).stdout.replace("netweft", "")


DAMAGES = {
    "the bridge is gone": ["ip", "link", "del", SECOND],
    "the trunk is gone": ["ip", "link", "del", names.trunk(oid(1), 1)[0]],
    "the trunk is gone at its far end": ["ip", "link", "del", names.trunk(oid(1), 1)[1]],
    "the trunk is off the first bridge": ["ip", "link", "set", names.trunk(oid(1), 1)[0], "nomaster"],
    "the far end is off its bridge": ["ip", "link", "set", names.trunk(oid(1), 1)[1], "nomaster"],
    "the far end is down": ["ip", "link", "set", names.trunk(oid(1), 1)[1], "down"],
    "the far end has another name": ["ip", "link", "set", names.trunk(oid(1), 1)[1], "down", "name", "other0"],
    "the far end is isolated": ["bridge", "link", "set", "dev", names.trunk(oid(1), 1)[1], "isolated", "on"],
    "a port is on the wrong bridge": ["ip", "link", "set", names.veth(oid(1003)), "master", FIRST],
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_what_somebody_has_damaged_is_repaired(plain, damage):
    boxes = await crowd(plain, icc="false")
    plain.host.exec(DAMAGES[damage])

    first, second = await plain.restart(), await plain.restart()

    outside = [tcp(boxes[n], (NEIGHBOUR4, 9), plain.neighbour, (NEIGHBOUR4, 9)) for n in (3, 4, 5)]
    meet = udp(boxes[3], (own(1, 4), 9), boxes[1], (own(1, 4), 9))
    assert first
    assert ((), [HOST4] * 3, None) == (second, outside, None if meet is None else "they meet")
    assert {FIRST: [1, 2], SECOND: [3, 4], THIRD: [5]} == bridges_of(plain)


async def test_an_event_tells_that_the_far_end_of_a_trunk_has_lost_its_bridge(plain):
    await crowd(plain)
    changes = plain.kernel.changes()
    heard = anext(changes)
    far = names.trunk(oid(1), 1)[1]

    task = asyncio.ensure_future(heard)
    await asyncio.sleep(0.2)  # the listener opens its sockets
    plain.host.exec(["ip", "link", "set", far, "nomaster"])

    assert HOST == await asyncio.wait_for(task, 10)
    await plain.kernel.execute([])


async def test_a_network_of_many_bridges_takes_changes_of_its_options(plain):
    boxes = await crowd(plain)

    await plain.put(msgspec.structs.replace(net(icc="false"), revision=2))
    apart = udp(boxes[3], (own(1, 4), 9), boxes[1], (own(1, 4), 9))
    await plain.put(msgspec.structs.replace(net(mtu="1400"), revision=3))
    boxes[3].exec(["ip", "neighbour", "flush", "all"])  # it has asked for the address in vain
    together = udp(boxes[3], (own(1, 4), 9), boxes[1], (own(1, 4), 9))

    mtus = [one.mtu for one in plain.known.values() if isinstance(one, Link) and one.kind in {"bridge", "veth", "peer"}]
    assert (None, own(3, 4), {1400}) == (apart, together, set(mtus))
    assert () == await plain.restart()


# --- overlays --------------------------------------------------------------------------------------------------------

PEER_MAC = "02:42:00:00:00:99"


def far_away(lab, vni):
    """Make the neighbour a host of an overlay with one endpoint, 10.1.0.99."""
    lab.neighbour.exec(
        [
            "ip",
            "link",
            "add",
            "vx0",
            "address",
            PEER_MAC,
            "mtu",
            "1450",
            "type",
            "vxlan",
            "id",
            str(vni),
            "local",
            NEIGHBOUR4,
            "remote",
            HOST4,
            "dstport",
            "4789",
        ]
    )
    lab.neighbour.exec(["ip", "address", "add", "10.1.0.99/24", "dev", "vx0"])
    lab.neighbour.exec(["ip", "link", "set", "vx0", "up"])
    for n in range(1, 6):
        lab.neighbour.exec(["ip", "neighbour", "add", own(n, 4), "lladdr", names.mac(oid(1000 + n)), "dev", "vx0"])


async def test_an_overlay_has_further_bridges_too_and_its_endpoints_reach_peers_and_the_world(lab):
    overlay = network(driver="overlay", subnets=subnets("10.1.0.0/24"))
    items = [endpoint(1000 + n, 1, 100 + n, addresses=(ip_interface(f"{own(n, 4)}/24"),)) for n in range(1, 6)]
    items[2] = msgspec.structs.replace(items[2], ports=(port(8080, 80),))
    far = peer(5001, vtep=NEIGHBOUR4, mac=PEER_MAC, addresses=(ip_interface("10.1.0.99/24"),))
    await lab.put(overlay, *(sandbox(100 + n) for n in range(1, 6)), *items, far)
    far_away(lab, overlay.claims["vni"])
    boxes = {n: lab.box(item) for n, item in enumerate(items, 1)}

    inside = [udp(boxes[a], (own(b, 4), 9), boxes[b], (own(b, 4), 9)) for a, b in ((1, 3), (3, 1), (3, 4), (5, 3))]
    peers = [udp(boxes[n], ("10.1.0.99", 9), lab.neighbour, ("10.1.0.99", 9)) for n in (1, 3, 5)]
    back = [udp(lab.neighbour, (own(n, 4), 9), boxes[n], (own(n, 4), 9)) for n in (1, 3, 5)]
    outside = [
        send(boxes[n], (NEIGHBOUR4, 9), lab.neighbour, (NEIGHBOUR4, 9)) for n in (1, 3, 5) for send in (tcp, udp)
    ]

    assert [own(1, 4), own(3, 4), own(3, 4), own(5, 4)] == inside
    places = (lab.neighbour, lab.host, *(boxes[n] for n in (1, 3, 4, 5)))
    published = [tcp(client, (HOST4, 80), boxes[3], (own(3, 4), 8080)) for client in places]

    # Somebody takes another's MAC, which is guarded in bridge networks alone: nobody is taken for another.
    with closing(raw(boxes[3])) as mouth:
        mouth.send(frames.ethernet(names.mac(oid(1001)), frames.ARP, frames.arp(1, mac(3), own(3, 4), own(5, 4))))
    to_the_right_one = udp(boxes[5], (own(1, 4), 9), boxes[1], (own(1, 4), 9))

    assert own(5, 4) == to_the_right_one
    assert [own(n, 4) for n in (1, 3, 5)] == peers
    assert NEIGHBOUR4 == published[0]
    assert None not in published
    assert ["10.1.0.99"] * 3 == back
    assert [HOST4] * 6 == outside
    assert () == await lab.restart()
    await lab.gone(*items[2:])
    assert [] == [
        one for one in lab.known.values() if isinstance(one, Link) and one.name.startswith(("shard", "trunk"))
    ]


# --- more than a bridge takes -----------------------------------------------------------------------------------------

MANY = 1100


async def test_a_network_has_more_endpoints_on_a_host_than_a_bridge_takes_ports(tmp_path):
    def an_endpoint(number):
        address = ip_interface(f"10.1.{number // 250}.{number % 250 + 2}/16")
        return endpoint(10_000 + number, 1, 20_000 + number, addresses=(address,))

    async with new_host() as host:
        before = host.exec("ip", "-o", "link"), host.exec("nft", "list", "ruleset")
        rig = Rig(tmp_path, kernel=host.kernel, facts=msgspec.structs.replace(FACTS, run_dir=str(host.run_dir)))
        async with rig:
            await rig.put(1, network(subnets=subnets("10.1.0.0/16")))
            failed = []
            for start in range(0, MANY, 100):
                items = [an_endpoint(number) for number in range(start, start + 100)]
                failed += await rig.put(start + 2, *(sandbox(20_000 + n) for n in range(start, start + 100)), *items)
            ports = Counter(re.findall(r": nwv-.* master (\S+)", host.exec("ip", "-o", "link")))
            ends = [Netns.at(host.kernel.netns_path(sandbox(20_000 + n).ns)) for n in (0, MANY - 1)]
            addresses = [str(an_endpoint(n).addresses[0].ip) for n in (0, MANY - 1)]
            seen = [
                udp(ends[0], (addresses[1], 9), ends[1], (addresses[1], 9)),
                udp(ends[1], (addresses[0], 9), ends[0], (addresses[0], 9)),
                udp(ends[1], ("10.1.0.1", 9), host.netns, ("10.1.0.1", 9)),
            ]
            drift = await rig.engine.observe()
            for space in ends:
                space.close()
            for start in range(0, MANY, 550):
                some = range(start, start + 550)
                failed += await rig.gone(
                    9000 + start, *(an_endpoint(n) for n in some), *(sandbox(20_000 + n) for n in some)
                )
            await rig.gone(9999, network())
            await host.kernel.execute([])
        left = host.exec("ip", "-o", "link"), host.exec("nft", "list", "ruleset")

    assert [] == [one for one in failed if one.error is not None]
    assert [250, 250, 250, 250, 100] == sorted(ports.values(), reverse=True)
    assert [*addresses, addresses[1]] == seen
    assert () == drift[1]
    assert before == left
