"""The planner's rules, a case each: what is there, what is wanted, and the commands in order."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from netweft_agent.domain import nft
from netweft_agent.domain.plan import Operation, plan
from netweft_agent.domain.resources import (
    HOST,
    Address,
    Fdb,
    File,
    Link,
    Namespace,
    PeerEnd,
    Route,
    Sysctl,
    Vxlan,
)

from tests.support.agent import by_key

BOX, NET = "sandbox/1", "network/1"
OWNED = Namespace(ns=BOX)
GIVEN = Namespace(ns=BOX, source="/run/netns/c1")
LO = Link(ns=BOX, name="lo", kind="loopback")
BRIDGE = Link(ns=HOST, name="br0", kind="bridge", mtu=1500)
VETH = Link(ns=HOST, name="nwv-1", kind="veth", master="br0", peer=PeerEnd(ns=BOX, name="eth0"))
ETH0 = Link(ns=BOX, name="eth0", kind="peer", peer=PeerEnd(ns=HOST, name="nwv-1"))
ADDRESS = Address(ns=BOX, link="eth0", address="10.0.0.2/24")
DEFAULT = Route(ns=BOX, destination="0.0.0.0/0", link="eth0", via="10.0.0.1")
HOSTS = File(ns=BOX, path="/run/hosts", content="x")
SETTING = Sysctl(ns=HOST, path="net/ipv4/ip_forward", value="1")
TABLE = nft.Table("inet", "netweft")
FIREWALL = nft.NftTable(ns=HOST, table=TABLE)
SPEC = nft.Set(name="bridges", key=(nft.IFNAME,))
SET = nft.NftSet(ns=HOST, table=TABLE, spec=SPEC)
ELEMENT = nft.NftElement(ns=HOST, table=TABLE, spec=SPEC, item=("br0",))
VXLAN = Link(ns=NET, name="vxlan0", kind="vxlan", vxlan=Vxlan(vni=1, local="192.0.2.1"))
FDB = Fdb(ns=NET, link="vxlan0", mac="02:00:00:00:00:01", vtep="192.0.2.2")
NETWORK = Namespace(ns=NET)

WHOLE = (OWNED, LO, BRIDGE, VETH, ETH0, ADDRESS, DEFAULT, HOSTS, SETTING, FIREWALL, SET, ELEMENT)

CASES = {
    "all is made in the order of needs, policy before links": (
        (),
        WHOLE,
        """+netns +sysctl +file +nft-table +nft-set +nft-element
        +link:br0 +link:nwv-1 +link:lo +link:eth0 +address +route""",
    ),
    "all goes the other way, firewall after links, namespaces last": (
        WHOLE,
        (),
        "-link:lo -link:nwv-1 -link:br0 -file -sysctl -nft-table -netns",
    ),
    "a bridge that may be somebody else's is let go of, and its address goes by itself": (
        (replace(BRIDGE, shared=True), replace(ADDRESS, ns=HOST, link="br0")),
        (),
        "-address -link:br0",
    ),
    "a namespace of ours takes along what is in it": ((OWNED, LO, replace(DEFAULT, link="lo")), (), "-link:lo -netns"),
    "a given namespace lives on, so all of ours in it is removed": (
        (GIVEN, BRIDGE, VETH, ETH0, ADDRESS, DEFAULT),
        (BRIDGE,),
        "-link:nwv-1 -netns",
    ),
    "what is in a given namespace by itself is removed by itself": (
        (GIVEN, LO, Route(ns=BOX, destination="10.9.0.0/16", link="lo")),
        (GIVEN, LO),
        "-route",
    ),
    "a bridge that is made anew leaves its ports, which are enslaved again": (
        (replace(BRIDGE, kind="vxlan", vxlan=Vxlan(vni=1, local="192.0.2.1")), replace(VETH, master=None), ETH0, OWNED),
        (BRIDGE, VETH, ETH0, OWNED),
        "-link:br0 +link:br0 ~link:nwv-1",
    ),
    "a tunnel of another VNI is made anew with its forwarding entries": (
        (NETWORK, VXLAN, FDB),
        (NETWORK, replace(VXLAN, vxlan=Vxlan(vni=2, local="192.0.2.1")), FDB),
        "-link:vxlan0 +link:vxlan0 +fdb",
    ),
    "a link that misses its other end is made anew": (
        (OWNED, VETH),
        (OWNED, VETH, ETH0, ADDRESS),
        "-link:nwv-1 +link:nwv-1 +link:eth0 +address",
    ),
    "an other end of another name means another pair": (
        (OWNED, VETH, ETH0, ADDRESS),
        (
            OWNED,
            replace(VETH, peer=PeerEnd(ns=BOX, name="net0")),
            replace(ETH0, name="net0"),
            replace(ADDRESS, link="net0"),
        ),
        "-link:nwv-1 +link:nwv-1 +link:net0 +address",
    ),
    "another address writes the routes of the link again, since the kernel drops them with the last": (
        (OWNED, VETH, ETH0, ADDRESS, DEFAULT),
        (OWNED, VETH, ETH0, replace(ADDRESS, address="10.0.0.3/24"), DEFAULT),
        "-address +address +route",
    ),
    "a namespace given by another path starts from nothing": (
        (GIVEN, LO, VETH, ETH0, ADDRESS, DEFAULT, HOSTS),
        (replace(GIVEN, source="/run/netns/c2"), LO, VETH, ETH0, ADDRESS, DEFAULT, HOSTS),
        "-link:lo -link:nwv-1 -netns +netns +link:nwv-1 +link:lo +link:eth0 +address +route",
    ),
    "a default route goes over in place": (
        (OWNED, VETH, ETH0, ADDRESS, DEFAULT),
        (OWNED, VETH, ETH0, ADDRESS, replace(DEFAULT, via="10.0.0.9")),
        "~route",
    ),
    "a file that somebody edited is left alone": ((replace(HOSTS, content=None),), (HOSTS,), ""),
    "attributes of None are not managed": ((replace(BRIDGE, mac="02:00:00:00:00:09"),), (BRIDGE,), ""),
    "a set of another type is made anew in one go with its elements": (
        (FIREWALL, SET, ELEMENT),
        (FIREWALL, replace(SET, spec=replace(SPEC, size=9)), replace(ELEMENT, spec=replace(SPEC, size=9))),
        "-nft-set +nft-set +nft-element",
    ),
}


@pytest.mark.parametrize(("present", "desired", "expected"), CASES.values(), ids=CASES)
def test_plan(present, desired, expected):
    steps = plan(by_key(desired), by_key(present), {})

    assert expected.split() == [_word(step) for step in steps]


def _word(step: Operation) -> str:
    sign = "-" if step.after is None else "+" if step.before is None else "~"
    kind, _, *name = step.resource.key
    return f"{sign}{kind}:{name[0]}" if kind == "link" else f"{sign}{kind}"


def test_a_step_names_the_owner_of_its_key():
    steps = plan(by_key([BRIDGE, SETTING]), {}, {BRIDGE.key: "network/7"})

    assert {"network/7", "host"} == {step.owner for step in steps}


def test_an_operation_prints_what_it_does_and_its_inverse_what_undoes_it():
    (step,) = plan(by_key([ADDRESS]), {}, {})

    assert "ip address add 10.0.0.2/24 dev eth0" == step.command()
    assert "ip address del 10.0.0.2/24 dev eth0" == step.inverse().command()
