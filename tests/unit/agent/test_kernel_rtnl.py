"""Encoded requests, read by pyroute2 as somebody else's eyes, and answers decoded to values."""

from __future__ import annotations

import struct

import pytest
from netweft_agent.domain.resources import Port, Vxlan
from netweft_agent.kernel import dumps, netlink, rtnl
from pyroute2.netlink.rtnl.marshal import MarshalRtnl


def read(message: bytes):
    (found,) = MarshalRtnl().parse(message)
    return found


def test_a_veth_is_born_with_everything_and_its_other_end_in_place():
    message = rtnl.create_veth(
        "nwv-1",
        mtu=1450,
        mac="02:00:00:00:00:01",
        master_index=7,
        peer_name="eth0",
        peer_mtu=1400,
        peer_mac="02:00:00:00:00:02",
        peer_ns_fd=9,
    )

    link = read(message)

    info = link.get_attr("IFLA_LINKINFO")
    peer = info.get_attr("IFLA_INFO_DATA").get_attr("VETH_INFO_PEER")
    names = ("IFLA_IFNAME", "IFLA_MTU", "IFLA_ADDRESS", "IFLA_MASTER", "IFLA_GROUP")
    assert ("nwv-1", 1450, "02:00:00:00:00:01", 7, 0x6E77) == tuple(link.get_attr(name) for name in names)
    assert "veth" == info.get_attr("IFLA_INFO_KIND")
    names = ("IFLA_IFNAME", "IFLA_MTU", "IFLA_ADDRESS", "IFLA_NET_NS_FD", "IFLA_GROUP")
    assert ("eth0", 1400, "02:00:00:00:00:02", 9, 0x6E77) == tuple(peer.get_attr(name) for name in names)
    assert netlink.NLM_F_CREATE | netlink.NLM_F_EXCL == link["header"]["flags"] & 0xF00
    assert 0 == link["flags"]


@pytest.mark.parametrize(
    ("local", "attribute"), [("192.0.2.1", "IFLA_VXLAN_LOCAL"), ("2001:db8::1", "IFLA_VXLAN_LOCAL6")]
)
def test_a_vxlan_device_does_not_learn_and_answers_for_its_neighbours(local, attribute):
    message = rtnl.create_vxlan("vxlan0", Vxlan(vni=4097, local=local), mtu=1400, mac=None, ns_fd=5)

    link = read(message)

    data = link.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
    names = ("IFLA_VXLAN_ID", attribute, "IFLA_VXLAN_PORT", "IFLA_VXLAN_LEARNING", "IFLA_VXLAN_PROXY")
    assert (4097, local, 4789, 0, 1) == tuple(data.get_attr(name) for name in names)
    assert (5, 1400) == (link.get_attr("IFLA_NET_NS_FD"), link.get_attr("IFLA_MTU"))


@pytest.mark.parametrize(
    ("up", "flags", "change"), [(True, 1, 1), (False, 0, 1), (None, 0, 0)], ids=["up", "down", "as it is"]
)
def test_a_link_is_set_up_down_or_left(up, flags, change):
    link = read(rtnl.set_link(3, up=up))

    assert (3, flags, change) == (link["index"], link["flags"], link["change"])


def test_port_attributes_are_all_written():
    link = read(rtnl.set_link(3, port=Port(isolated=True, learning=False)))

    info = link.get_attr("IFLA_LINKINFO")
    data = info.get_attr("IFLA_INFO_SLAVE_DATA")
    words = ("ISOLATED", "MODE", "LEARNING", "UNICAST_FLOOD", "NEIGH_SUPPRESS")
    assert "bridge" == info.get_attr("IFLA_INFO_SLAVE_KIND")
    assert (1, 0, 0, 1, 0) == tuple(data.get_attr(f"IFLA_BRPORT_{word}") for word in words)


@pytest.mark.parametrize(
    ("cidr", "family", "prefix", "nodad"),
    [("10.1.0.2/16", 2, 16, False), ("fd00::2/64", 10, 64, True), ("10.1.0.2", 2, 32, False)],
)
def test_an_address_carries_our_protocol_and_ipv6_skips_duplicate_detection(cidr, family, prefix, nodad):
    address = read(rtnl.add_address(4, cidr))

    assert (family, prefix, 4) == (address["family"], address["prefixlen"], address["index"])
    assert cidr.partition("/")[0] == address.get_attr("IFA_LOCAL") == address.get_attr("IFA_ADDRESS")
    assert (110, nodad) == (address.get_attr("IFA_PROTO"), bool((address.get_attr("IFA_FLAGS") or 0) & 0x02))


@pytest.mark.parametrize(
    ("destination", "via", "family", "prefix", "scope"),
    [
        ("0.0.0.0/0", "10.1.0.1", 2, 0, 0),
        ("198.51.100.0/24", None, 2, 24, 253),
        ("::/0", "fd00::1", 10, 0, 0),
        ("2001:db8::/48", None, 10, 48, 0),
    ],
)
def test_a_route_carries_our_protocol_and_the_scope_of_its_kind(destination, via, family, prefix, scope):
    route = read(rtnl.add_route(destination, 4, via))

    assert (family, prefix, 110, 254, scope) == tuple(
        route[name] for name in ("family", "dst_len", "proto", "table", "scope")
    )
    assert (4, via) == (route.get_attr("RTA_OIF"), route.get_attr("RTA_GATEWAY"))
    assert (destination.partition("/")[0] if prefix else None) == route.get_attr("RTA_DST")


def test_a_removed_route_names_our_protocol_unless_all_is_ours():
    assert (110, 0) == tuple(
        read(rtnl.delete_route("198.51.100.0/24", 4, None, ours=ours))["proto"] for ours in (True, False)
    )


def test_a_neighbour_is_permanent_and_carries_our_protocol():
    neighbour = read(rtnl.replace_neighbour(4, "10.1.0.9", "02:00:00:00:00:09"))

    assert (4, 0x80, 2) == (neighbour["ifindex"], neighbour["state"], neighbour["family"])
    assert ("10.1.0.9", "02:00:00:00:00:09", 110) == tuple(
        neighbour.get_attr(name) for name in ("NDA_DST", "NDA_LLADDR", "NDA_PROTOCOL")
    )


@pytest.mark.parametrize(
    ("vtep", "flags", "state"), [("192.0.2.9", 0x02, 0xC0), (None, 0x04, 0x42)], ids=["device's own", "bridge's"]
)
def test_a_forwarding_entry_is_the_devices_own_or_the_bridges(vtep, flags, state):
    entry = dumps.fdb(rtnl.replace_fdb(4, "02:00:00:00:00:09", vtep)[16:])

    assert dumps.FdbInfo(4, "02:00:00:00:00:09", vtep, 0, state, flags) == entry


def test_many_links_are_deleted_by_their_group():
    link = read(rtnl.delete_group(0x6E78))

    assert ("RTM_DELLINK", 0, 0x6E78) == (link["event"], link["index"], link.get_attr("IFLA_GROUP"))


# --- decoding ---

CONF = struct.pack("=27i", *([0] * 3), 1, *([0] * 22), 1)
BODY = (
    struct.pack("=BBHiII", 0, 0, 1, 12, 1, 0)
    + netlink.attr_string(rtnl.IFLA_IFNAME, "nwv-1")
    + netlink.attr_u32(rtnl.IFLA_MTU, 1450)
    + netlink.attr(rtnl.IFLA_ADDRESS, bytes.fromhex("020000000001"))
    + netlink.attr_u32(rtnl.IFLA_MASTER, 7)
    + netlink.attr_u32(rtnl.IFLA_LINK, 2)
    + netlink.attr_u32(rtnl.IFLA_LINK_NETNSID, 3)
    + netlink.attr_u32(rtnl.IFLA_GROUP, 0x6E77)
    + netlink.nest(
        rtnl.IFLA_LINKINFO,
        netlink.attr_string(rtnl.IFLA_INFO_KIND, "veth"),
        netlink.attr_string(rtnl.IFLA_INFO_SLAVE_KIND, "bridge"),
        netlink.nest(rtnl.IFLA_INFO_SLAVE_DATA, netlink.attr_u8(rtnl.IFLA_BRPORT_ISOLATED, 1)),
    )
    + netlink.nest(rtnl.IFLA_AF_SPEC, netlink.nest(10, netlink.attr(2, CONF)))
)


def test_a_link_is_decoded():
    expected = dumps.LinkInfo(
        ifindex=12,
        name="nwv-1",
        up=True,
        kind="veth",
        mtu=1450,
        mac="02:00:00:00:00:01",
        master_index=7,
        link_index=2,
        link_nsid=3,
        group=0x6E77,
        ipv6_disabled=True,
        accept_ra=1,
        port=Port(isolated=True),
        vxlan=None,
    )

    assert expected == dumps.link(BODY)


def test_what_is_read_of_a_newborn_veth_is_what_a_full_decoding_says():
    full = dumps.link(BODY)

    expected = (full.ifindex, full.link_index, full.link_nsid, full.ipv6_disabled, full.accept_ra)
    assert expected == dumps.born(BODY)


def test_what_is_compared_of_a_link_is_read_as_all_of_it_is():
    full = dumps.link(BODY)

    expected = (full.ifindex, full.name, full.up, full.mtu, full.mac, full.master_index)

    assert expected == dumps.link_state(BODY)


@pytest.mark.parametrize(
    ("disabled", "accept_ra", "ipv6"),
    [(True, 0, False), (True, 1, False), (False, 0, True), (False, 1, None), (False, 2, None)],
)
def test_ipv6_that_takes_router_advertisements_is_neither_on_nor_off(disabled, accept_ra, ipv6):
    info = dumps.link(BODY)._replace(ipv6_disabled=disabled, accept_ra=accept_ra)

    assert ipv6 is info.ipv6


def test_a_link_without_ipv6_state_has_ipv6_off():
    without = BODY[: -len(netlink.nest(rtnl.IFLA_AF_SPEC, netlink.nest(10, netlink.attr(2, CONF))))]

    assert (False, (12, 2, 3, True, 0)) == (dumps.link(without).ipv6, dumps.born(without))


@pytest.mark.parametrize("cut", range(0, len(BODY) - 16, 3))
def test_a_cut_off_answer_never_raises(cut):
    found = dumps.link(BODY[: 16 + cut])

    assert 12 == found.ifindex == dumps.born(BODY[: 16 + cut])[0]
