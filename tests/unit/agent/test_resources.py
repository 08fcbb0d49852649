"""Resources: what they are called, what they need, when what is there will do, and what an administrator would type."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from netweft_agent.domain import names
from netweft_agent.domain.objects import Kind, Ref
from netweft_agent.domain.resources import (
    HOST,
    Address,
    Fdb,
    File,
    Link,
    Namespace,
    Neighbour,
    PeerEnd,
    Port,
    PortHold,
    Redirect,
    Route,
    Sysctl,
    TokenBucket,
    Vxlan,
    as_down,
)
from netweft_agent.domain.state import HostState
from netweft_common.errors import Internal

from tests.support.agent import oid

BOX, NET = "sandbox/1", "network/1"
BRIDGE = Link(ns=HOST, name="br0", kind="bridge", mtu=1500, mac="02:00:00:00:00:01", ipv6=False)
VXLAN = Link(
    ns=NET,
    name="vxlan0",
    kind="vxlan",
    mtu=1450,
    master="br0",
    vxlan=Vxlan(vni=5, local="192.0.2.1", port=8472),
    port=Port(learning=False, flood=False),
    socket_ns=HOST,
)
VETH = Link(
    ns=HOST, name="nwv-1", kind="veth", master="br0", peer=PeerEnd(ns=BOX, name="eth0", mac="02:00:00:00:00:02")
)
PEER = Link(ns=BOX, name="eth0", kind="peer", mac="02:00:00:00:00:02", peer=PeerEnd(ns=HOST, name="nwv-1"))
LO = Link(ns=BOX, name="lo", kind="loopback")

BUCKET = TokenBucket(ns=HOST, link="nwv-1", rate=1_000_000, burst=65536, limit=115536)

HOLD = PortHold(ns=HOST, protocol="udp", address="::", port=53, targets=("[fd00::2]:5353",))

COMMANDS = {
    "a held port": (
        PortHold(ns=HOST, protocol="tcp", address="192.0.2.1", port=80, targets=("10.0.0.2:8080",)),
        "hold 192.0.2.1:80/tcp for 10.0.0.2:8080",
        "release 192.0.2.1:80/tcp && conntrack -D -p tcp --orig-port-dst 80",
    ),
    "a held port of IPv6": (
        HOLD,
        "hold [::]:53/udp for [fd00::2]:5353",
        "release [::]:53/udp && conntrack -D -p udp --orig-port-dst 53",
    ),
    "a limit": (
        BUCKET,
        "tc qdisc replace dev nwv-1 root handle 6e77: tbf rate 8000000bit burst 65536b limit 115536b",
        "tc qdisc del dev nwv-1 root handle 6e77:",
    ),
    "a redirect": (
        Redirect(ns=HOST, link="nwv-1", to="nws-1"),
        (
            "tc qdisc add dev nwv-1 clsact && tc filter add dev nwv-1 ingress pref 28279 protocol all "
            "u32 match u32 0 0 action mirred egress redirect dev nws-1"
        ),
        "tc filter del dev nwv-1 ingress pref 28279",
    ),
    "what a limit acts on": (
        Link(ns=HOST, name="nws-1", kind="ifb", ipv6=False),
        "ip link add nws-1 group 0x6e77 addrgenmode none up type ifb",
        "ip link del nws-1",
    ),
    "a namespace of ours": (Namespace(ns=BOX), "ip netns add sandbox-1", "ip netns del sandbox-1"),
    "a given namespace": (
        Namespace(ns=BOX, source="pid:7"),
        "ip netns attach sandbox-1 pid:7",
        "ip netns del sandbox-1",
    ),
    "bridge": (
        BRIDGE,
        "ip link add br0 mtu 1500 address 02:00:00:00:00:01 group 0x6e77 addrgenmode none up type bridge",
        "ip link del br0",
    ),
    "tunnel": (
        VXLAN,
        (
            "ip link add vxlan0 mtu 1450 master br0 group 0x6e77 up netns network-1 type vxlan id 5 local 192.0.2.1 "
            "dstport 8472 nolearning proxy && bridge link set dev vxlan0 learning off flood off"
        ),
        "ip link del vxlan0",
    ),
    "pair": (
        VETH,
        (
            "ip link add nwv-1 master br0 group 0x6e77 up type veth "
            "peer name eth0 address 02:00:00:00:00:02 netns sandbox-1"
        ),
        "ip link del nwv-1",
    ),
    "its other end, which goes with it": (PEER, "ip link set eth0 address 02:00:00:00:00:02 group 0x6e77 up", ""),
    "loopback, which never goes": (LO, "ip link set lo up", ""),
    "IPv4 address": (
        Address(ns=BOX, link="eth0", address="10.0.0.2/24"),
        "ip address add 10.0.0.2/24 dev eth0",
        "ip address del 10.0.0.2/24 dev eth0",
    ),
    "IPv6 address": (
        Address(ns=BOX, link="eth0", address="fd00::2/64"),
        "ip address add fd00::2/64 dev eth0 nodad",
        "ip address del fd00::2/64 dev eth0",
    ),
    "route by a next hop": (
        Route(ns=BOX, destination="0.0.0.0/0", link="eth0", via="10.0.0.1"),
        "ip route add 0.0.0.0/0 via 10.0.0.1 dev eth0 proto 110",
        "ip route del 0.0.0.0/0 via 10.0.0.1 dev eth0",
    ),
    "IPv6 route on the link": (
        Route(ns=BOX, destination="fd01::/64", link="eth0"),
        "ip -6 route add fd01::/64 dev eth0 proto 110",
        "ip -6 route del fd01::/64 dev eth0",
    ),
    "neighbour": (
        Neighbour(ns=NET, link="vxlan0", ip="10.0.0.9", mac="02:00:00:00:00:09"),
        "ip neighbour replace 10.0.0.9 lladdr 02:00:00:00:00:09 dev vxlan0 nud permanent",
        "ip neighbour del 10.0.0.9 dev vxlan0",
    ),
    "entry of a tunnel": (
        Fdb(ns=NET, link="vxlan0", mac="02:00:00:00:00:09", vtep="192.0.2.2"),
        "bridge fdb replace 02:00:00:00:00:09 dev vxlan0 self permanent dst 192.0.2.2",
        "bridge fdb del 02:00:00:00:00:09 dev vxlan0 self",
    ),
    "entry of a bridge": (
        Fdb(ns=NET, link="vxlan0", mac="02:00:00:00:00:09"),
        "bridge fdb replace 02:00:00:00:00:09 dev vxlan0 master static",
        "bridge fdb del 02:00:00:00:00:09 dev vxlan0 master",
    ),
    "setting, which is never put back": (
        Sysctl(ns=HOST, path="net/ipv4/ip_forward", value="1"),
        "sysctl -w net.ipv4.ip_forward=1",
        "",
    ),
    "file": (
        File(ns=BOX, path="/run/x/hosts", content="a"),
        "install -m 644 /dev/stdin /run/x/hosts",
        "rm -f /run/x/hosts",
    ),
}


@pytest.mark.parametrize(("resource", "add", "delete"), COMMANDS.values(), ids=COMMANDS)
def test_it_prints_what_makes_and_what_removes_it(resource, add, delete):
    assert (add, delete) == (resource.add_command(), resource.delete_command())


def test_a_link_prints_what_changes_it():
    assert "ip link set nwv-1 mtu 1400 master br0 group 0x6e77 up && bridge link set dev nwv-1 isolated on" == replace(
        VETH, mtu=1400, port=Port(isolated=True)
    ).change_command(VETH)
    assert "ip link set lo down" == as_down(LO).change_command(LO)


def test_a_route_is_changed_by_replacing_it():
    route = Route(ns=BOX, destination="0.0.0.0/0", link="eth0", via="10.0.0.1")

    assert "ip route replace 0.0.0.0/0 via 10.0.0.1 dev eth0 proto 110" == route.change_command(route)


@pytest.mark.parametrize(
    ("wanted", "there", "will_do"),
    [
        (BRIDGE, replace(BRIDGE, mac="02:00:00:00:00:09"), False),
        (replace(BRIDGE, mac=None), BRIDGE, True),
        (replace(BRIDGE, mtu=None), BRIDGE, True),
        (replace(BRIDGE, ipv6=None), BRIDGE, True),
        (BRIDGE, as_down(BRIDGE), False),
        (VETH, replace(VETH, master=None), False),
        (replace(VETH, master=None), VETH, False),
        (VETH, replace(VETH, peer=None), True),
        (replace(VETH, port=Port(isolated=True)), replace(VETH, port=Port()), False),
        (VXLAN, replace(VXLAN, vxlan=Vxlan(vni=6, local="192.0.2.1", port=8472)), False),
        (Namespace(ns=BOX), Namespace(ns=BOX, source="pid:1"), False),
        (File(ns=BOX, path="/x", content="a"), File(ns=BOX, path="/x", content="b"), False),
        (File(ns=BOX, path="/x", content="a"), File(ns=BOX, path="/x", content=None), True),
    ],
)
def test_what_is_there_will_do(wanted, there, will_do):
    assert will_do == wanted.matches(there)


@pytest.mark.parametrize(
    ("wanted", "there", "convertible"),
    [
        (BRIDGE, replace(BRIDGE, mtu=9000, up=False), True),
        (BRIDGE, replace(BRIDGE, kind="vxlan"), False),
        (VXLAN, replace(VXLAN, vxlan=Vxlan(vni=6, local="192.0.2.1", port=8472)), False),
        (VXLAN, replace(VXLAN, mtu=9000), True),
        (Namespace(ns=BOX), Namespace(ns=BOX, source="pid:1"), False),
    ],
)
def test_what_the_kernel_can_change_in_place(wanted, there, convertible):
    assert convertible == wanted.convertible(there)


@pytest.mark.parametrize("resource", [one for one, _, _ in COMMANDS.values()], ids=COMMANDS)
def test_a_resource_does_for_itself_and_its_key_names_its_namespace(resource):
    assert resource.matches(resource)
    assert resource.ns == resource.key[1]


def test_a_port_says_only_what_is_not_the_kernels_default():
    assert "" == Port().words()
    assert (
        "isolated on hairpin on learning off flood off neigh_suppress on"
        == Port(isolated=True, hairpin=True, learning=False, flood=False, neigh_suppress=True).words()
    )


def test_names_fit_the_kernel_and_come_from_ids():
    for name in (names.bridge(oid(1)), names.veth(oid(1)), names.uplink(oid(1))):
        assert 15 == len(name)
    assert f"network/{oid(1)}" == names.network_ns(oid(1))


def test_an_address_made_of_an_id_is_local_and_unicast():
    mac = names.mac("f" * 32)

    assert "02:ff:ff:ff:ff:ff" == mac
    assert 2 == int(mac[:2], 16) & 3


def test_an_owner_cannot_want_two_things_of_one_key():
    state = HostState()
    state.add("network/1", BRIDGE)
    state.add("network/1", BRIDGE)

    with pytest.raises(Internal, match="renders two different resources"):
        state.add("network/1", replace(BRIDGE, mtu=9000))


def test_owners_may_share_a_resource():
    state = HostState()
    state.add("network/1", BRIDGE)
    state.add("network/2", BRIDGE)

    assert {BRIDGE.key: BRIDGE} == state.resources()
    assert [BRIDGE] == list(state)
    assert state.owners()[BRIDGE.key] in {"network/1", "network/2"}


def test_a_reference_prints_as_the_owner_that_it_is():
    assert f"endpoint/{oid(7)}" == str(Ref(kind=Kind.ENDPOINT, id=oid(7)))


OBSERVED_BUCKETS = {
    "the same": (BUCKET, BUCKET, True),
    "a burst as the kernel rounds it": (BUCKET, replace(BUCKET, burst=65535), True),
    "another burst": (BUCKET, replace(BUCKET, burst=65400), False),
    "another rate": (BUCKET, replace(BUCKET, rate=1_000_001), False),
    "another limit": (BUCKET, replace(BUCKET, limit=115537), False),
    "a burst too long to be told": (
        replace(BUCKET, rate=1000, burst=2**31),
        replace(BUCKET, rate=1000, burst=12),
        True,
    ),
    "a fast one, whose unit of time is long": (
        replace(BUCKET, rate=2**37, burst=2**31),
        replace(BUCKET, rate=2**37, burst=2**31 - 8000),
        True,
    ),
}


@pytest.mark.parametrize(("wanted", "observed", "expected"), OBSERVED_BUCKETS.values(), ids=OBSERVED_BUCKETS)
def test_a_limit_will_do_when_rate_and_queue_are_right_and_the_burst_is_as_the_kernel_tells_it(
    wanted, observed, expected
):
    assert expected == wanted.matches(observed)


def test_a_redirect_is_changed_by_taking_the_old_one_first():
    wanted = Redirect(ns=HOST, link="nwv-1", to="nws-1")

    command = wanted.change_command(replace(wanted, to=""))

    assert wanted.delete_command() + " && " + wanted.add_command() == command
