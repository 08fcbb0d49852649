"""Encode rtnetlink requests: links, addresses, routes, neighbours and forwarding entries, as bytes.

Every attach goes through here, so it is `struct` and concatenation only: pyroute2's encoder takes 280 µs a link, this
one 6 µs. Numbers are those of `linux/rtnetlink.h`, `if_link.h`, `if_addr.h` and `neighbour.h`. What the kernel says
back is read in `kernel/dumps.py`.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
import struct

from netweft_agent.domain import resources
from netweft_agent.kernel import netlink

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWNSID, RTM_DELNSID, RTM_GETNSID = 88, 89, 90

AF_BRIDGE = 7
IFF_UP = 1
LOOPBACK_INDEX = 1
"""The kernel gives a namespace's loopback this index (LOOPBACK_IFINDEX, net/flow.h)."""

IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_LINK = 5
IFLA_MASTER = 10
IFLA_LINKINFO = 18
IFLA_AF_SPEC = 26
IFLA_GROUP = 27
IFLA_NET_NS_FD = 28
IFLA_EXT_MASK = 29
IFLA_NUM_TX_QUEUES = 31
IFLA_NUM_RX_QUEUES = 32
IFLA_LINK_NETNSID = 37
IFLA_INFO_KIND = 1
IFLA_INFO_DATA = 2
IFLA_INFO_SLAVE_KIND = 4
IFLA_INFO_SLAVE_DATA = 5
VETH_INFO_PEER = 1
RTEXT_FILTER_SKIP_STATS = 8

IFLA_BRPORT_MODE = 4
IFLA_BRPORT_LEARNING = 8
IFLA_BRPORT_UNICAST_FLOOD = 9
IFLA_BRPORT_NEIGH_SUPPRESS = 32
IFLA_BRPORT_ISOLATED = 33

IFLA_VXLAN_ID = 1
IFLA_VXLAN_LOCAL = 4
IFLA_VXLAN_LEARNING = 7
IFLA_VXLAN_PROXY = 11
IFLA_VXLAN_PORT = 15
IFLA_VXLAN_LOCAL6 = 17

IFA_ADDRESS = 1
IFA_LOCAL = 2
IFA_FLAGS = 8
IFA_PROTO = 11
IFA_F_NODAD = 0x02
IFA_F_PERMANENT = 0x80

RTA_DST = 1
RTA_OIF = 4
RTA_GATEWAY = 5
RTA_PRIORITY = 6
RTA_PREFSRC = 7
RTA_TABLE = 15
RT_TABLE_MAIN = 254
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_NOWHERE = 0, 253, 255
RTN_UNICAST = 1
RTPROT_KERNEL = 2

NDA_DST = 1
NDA_LLADDR = 2
NDA_MASTER = 9
NDA_PROTOCOL = 12
NTF_SELF = 0x02
NTF_MASTER = 0x04
NUD_REACHABLE = 0x02
NUD_NOARP = 0x40
NUD_PERMANENT = 0x80

NETNSA_NSID = 1
NETNSA_FD = 3

_IFINFO = struct.Struct("=BBHiII")
_IFADDR = struct.Struct("=BBBBi")
_RTMSG = struct.Struct("=BBBBBBBBI")
_NDMSG = struct.Struct("=BBHiHBB")

_PREFIX_METRIC = 256  # IP6_RT_PRIO_ADDRCONF
_CREATE = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
_REPLACE = netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE

_NO_LINK = _IFINFO.pack(0, 0, 0, 0, 0, 0)
_OURS = netlink.attr_u32(IFLA_GROUP, resources.LINK_GROUP)
_SKIP_STATS = netlink.attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
_ADDRESS_PROTOCOL = netlink.attr_u8(IFA_PROTO, resources.PROTOCOL)
_NODAD = netlink.attr_u32(IFA_FLAGS, IFA_F_NODAD | IFA_F_PERMANENT)
# A veth gets a queue for each possible processor otherwise: time and memory for what only XDP and GRO use.
_ONE_QUEUE = netlink.attr_u32(IFLA_NUM_TX_QUEUES, 1) + netlink.attr_u32(IFLA_NUM_RX_QUEUES, 1)


def packed_mac(mac: str) -> bytes:
    """Return the six bytes of a MAC address in colon form."""
    return bytes.fromhex(mac.replace(":", ""))


@functools.lru_cache(maxsize=4096)
def packed_ip(address: str) -> tuple[int, bytes]:
    """Return the address family and the bytes of an IP address."""
    if ":" in address:
        return socket.AF_INET6, ipaddress.IPv6Address(address).packed
    return socket.AF_INET, socket.inet_aton(address)


def _split(cidr: str) -> tuple[int, bytes, int]:
    address, _, prefix = cidr.partition("/")
    family, packed = packed_ip(address)
    return family, packed, int(prefix) if prefix else len(packed) * 8


def _birth_attributes(name: str, mtu: int | None, mac: str | None) -> bytes:
    words = netlink.attr_string(IFLA_IFNAME, name) + _OURS
    if mtu is not None:
        words += netlink.attr_u32(IFLA_MTU, mtu)
    if mac is not None:
        words += netlink.attr(IFLA_ADDRESS, packed_mac(mac))
    return words


def _birth(attributes: bytes, kind: str, data: bytes = b"") -> bytes:
    info = netlink.attr_string(IFLA_INFO_KIND, kind) + (netlink.nest(IFLA_INFO_DATA, data) if data else b"")
    return netlink.message(RTM_NEWLINK, _CREATE, _NO_LINK, attributes, netlink.nest(IFLA_LINKINFO, info))


def create_link(name: str, kind: str, data: bytes = b"", *, parent_index: int | None = None) -> bytes:
    """Encode the creation of a link of any type, with its IFLA_INFO_DATA encoded already."""
    attributes = _birth_attributes(name, None, None)
    if parent_index is not None:
        attributes += netlink.attr_u32(IFLA_LINK, parent_index)
    return _birth(attributes, kind, data)


def create_bridge(name: str, *, mac: str | None) -> bytes:
    """Encode the creation of a bridge.

    Without its MTU: only one that is changed later counts as the user's, any other follows the ports and falls back to
    1500 when the last one goes (`br_mtu_auto_adjust`, net/bridge/br_if.c).
    """
    return _birth(_birth_attributes(name, None, mac), "bridge")


def create_veth(
    name: str,
    *,
    mtu: int | None,
    mac: str | None,
    master_index: int | None,
    peer_name: str,
    peer_mtu: int | None,
    peer_mac: str | None,
    peer_ns_fd: int,
) -> bytes:
    """Encode the creation of a veth pair whose other end is born, named, in the namespace of `peer_ns_fd`."""
    attributes = _birth_attributes(name, mtu, mac) + _ONE_QUEUE
    if master_index is not None:
        attributes += netlink.attr_u32(IFLA_MASTER, master_index)
    peer = (
        _NO_LINK
        + _birth_attributes(peer_name, peer_mtu, peer_mac)
        + _ONE_QUEUE
        + netlink.attr_u32(IFLA_NET_NS_FD, peer_ns_fd)
    )
    return _birth(attributes, "veth", netlink.nest(VETH_INFO_PEER, peer))


def create_vxlan(
    name: str, vxlan: resources.Vxlan, *, mtu: int | None, mac: str | None, ns_fd: int | None = None
) -> bytes:
    """Encode the creation of a VXLAN device, sent where its UDP socket shall be.

    Args:
        name: Final name.
        vxlan: RFC 7348 attributes.
        mtu: In bytes.
        mac: Colon form.
        ns_fd: Namespace that the device is born in; None: that of the socket.
    """
    attributes = _birth_attributes(name, mtu, mac)
    if ns_fd is not None:
        attributes += netlink.attr_u32(IFLA_NET_NS_FD, ns_fd)
    family, local = packed_ip(vxlan.local)
    data = b"".join(
        (
            netlink.attr_u32(IFLA_VXLAN_ID, vxlan.vni),
            netlink.attr(IFLA_VXLAN_LOCAL if family == socket.AF_INET else IFLA_VXLAN_LOCAL6, local),
            netlink.attr(IFLA_VXLAN_PORT, struct.pack(">H", vxlan.port)),
            netlink.attr_u8(IFLA_VXLAN_LEARNING, 0),
            netlink.attr_u8(IFLA_VXLAN_PROXY, vxlan.proxy),
        )
    )
    return _birth(attributes, "vxlan", data)


def get_link(name: str) -> bytes:
    """Encode the question for one link by name."""
    return netlink.message(RTM_GETLINK, 0, _NO_LINK, netlink.attr_string(IFLA_IFNAME, name), _SKIP_STATS)


def set_link(
    index: int,
    *,
    up: bool | None = None,
    mtu: int | None = None,
    mac: str | None = None,
    master_index: int | None = None,
    group: int | None = None,
    port: resources.Port | None = None,
) -> bytes:
    """Encode a change of a link; what is None stays as it is, `master_index` 0 takes it off its bridge.

    Bridge port attributes need a master that is set already, in an earlier message (`__rtnl_newlink`,
    net/core/rtnetlink.c).
    """
    parts = [_IFINFO.pack(0, 0, 0, index, IFF_UP if up else 0, 0 if up is None else IFF_UP)]
    if mtu is not None:
        parts.append(netlink.attr_u32(IFLA_MTU, mtu))
    if mac is not None:
        parts.append(netlink.attr(IFLA_ADDRESS, packed_mac(mac)))
    if master_index is not None:
        parts.append(netlink.attr_u32(IFLA_MASTER, master_index))
    if group is not None:
        parts.append(netlink.attr_u32(IFLA_GROUP, group))
    if port is not None:
        parts.append(_port(port))
    return netlink.message(RTM_NEWLINK, 0, *parts)


@functools.lru_cache(maxsize=64)
def _port(port: resources.Port) -> bytes:
    data = (
        netlink.attr_u8(IFLA_BRPORT_MODE, port.hairpin)
        + netlink.attr_u8(IFLA_BRPORT_LEARNING, port.learning)
        + netlink.attr_u8(IFLA_BRPORT_UNICAST_FLOOD, port.flood)
        + netlink.attr_u8(IFLA_BRPORT_NEIGH_SUPPRESS, port.neigh_suppress)
        + netlink.attr_u8(IFLA_BRPORT_ISOLATED, port.isolated)
    )
    kind = netlink.attr_string(IFLA_INFO_SLAVE_KIND, "bridge")
    return netlink.nest(IFLA_LINKINFO, kind, netlink.nest(IFLA_INFO_SLAVE_DATA, data))


def delete_group(group: int) -> bytes:
    """Encode the deletion of all links of a link group, in one grace period of the kernel; ENODEV: there are none."""
    return netlink.message(RTM_DELLINK, 0, _NO_LINK, netlink.attr_u32(IFLA_GROUP, group))


def add_address(index: int, cidr: str) -> bytes:
    """Encode an address of ours: IFA_PROTO 110, and for IPv6 IFA_F_NODAD, since addresses are allocated."""
    family, packed, prefix = _split(cidr)
    head = _IFADDR.pack(family, prefix, 0, 0, index)
    both = netlink.attr(IFA_LOCAL, packed) + netlink.attr(IFA_ADDRESS, packed) + _ADDRESS_PROTOCOL
    if family == socket.AF_INET6:
        both += _NODAD
    return netlink.message(RTM_NEWADDR, _CREATE, head, both)


def delete_address(index: int, cidr: str) -> bytes:
    """Encode the removal of an address."""
    family, packed, prefix = _split(cidr)
    head = _IFADDR.pack(family, prefix, 0, 0, index)
    return netlink.message(RTM_DELADDR, 0, head, netlink.attr(IFA_LOCAL, packed) + netlink.attr(IFA_ADDRESS, packed))


def _route(kind: int, flags: int, destination: str, index: int, via: str | None, *, ours: bool) -> bytes:
    family, packed, prefix = _split(destination)
    scope = RT_SCOPE_UNIVERSE if via is not None or family == socket.AF_INET6 else RT_SCOPE_LINK
    if kind == RTM_DELROUTE:
        scope = RT_SCOPE_NOWHERE  # any, for the kernel's match
    protocol = resources.PROTOCOL if ours else 0
    parts = [_RTMSG.pack(family, prefix, 0, 0, RT_TABLE_MAIN, protocol, scope, RTN_UNICAST, 0)]
    if prefix:
        parts.append(netlink.attr(RTA_DST, packed))
    if via is not None:
        gateway_family, gateway = packed_ip(via)
        assert gateway_family == family, f"route {destination} via {via}: two address families"
        parts.append(netlink.attr(RTA_GATEWAY, gateway))
    parts.append(netlink.attr_u32(RTA_OIF, index))
    return netlink.message(kind, flags, *parts)


def add_route(destination: str, index: int, via: str | None, *, replace: bool = False) -> bytes:
    """Encode a route of ours (RTPROT 110) in the main table."""
    return _route(RTM_NEWROUTE, _REPLACE if replace else _CREATE, destination, index, via, ours=True)


def add_connected_route(index: int, cidr: str) -> bytes:
    """Encode the route that the kernel makes with an address, as it makes it: so it goes with the address too.

    See `fib_magic` (net/ipv4/fib_frontend.c) and `addrconf_prefix_route` (net/ipv6/addrconf.c).
    """
    family, packed, _ = _split(cidr)
    _, destination, prefix = _split(resources.connected_prefix(cidr))
    scope = RT_SCOPE_LINK if family == socket.AF_INET else RT_SCOPE_UNIVERSE
    head = _RTMSG.pack(family, prefix, 0, 0, RT_TABLE_MAIN, RTPROT_KERNEL, scope, RTN_UNICAST, 0)
    parts = [head, netlink.attr(RTA_DST, destination), netlink.attr_u32(RTA_OIF, index)]
    if family == socket.AF_INET6:
        return netlink.message(RTM_NEWROUTE, _CREATE, *parts, netlink.attr_u32(RTA_PRIORITY, _PREFIX_METRIC))
    # Another link may have the same prefix, and its own route to it.
    append = netlink.NLM_F_CREATE | netlink.NLM_F_APPEND
    return netlink.message(RTM_NEWROUTE, append, *parts, netlink.attr(RTA_PREFSRC, packed))


def delete_route(destination: str, index: int, via: str | None, *, ours: bool) -> bytes:
    """Encode the removal of a route; `ours`: one of another protocol to the same destination stays."""
    return _route(RTM_DELROUTE, 0, destination, index, via, ours=ours)


def replace_neighbour(index: int, ip: str, mac: str) -> bytes:
    """Encode a permanent neighbour, marked ours by NDA_PROTOCOL."""
    family, packed = packed_ip(ip)
    before, between, after = _neighbour_around(index, family)
    return before + packed + between + packed_mac(mac) + after


@functools.lru_cache(maxsize=1024)
def _neighbour_around(index: int, family: int) -> tuple[bytes, bytes, bytes]:
    """Return what is before, between and after address and MAC in the message of a permanent neighbour."""
    address = netlink.attr(NDA_DST, bytes(16 if family == socket.AF_INET6 else 4))
    message = netlink.message(
        RTM_NEWNEIGH,
        _REPLACE,
        _NDMSG.pack(family, 0, 0, index, NUD_PERMANENT, 0, 0),
        address + netlink.attr(NDA_LLADDR, bytes(6)) + netlink.attr_u8(NDA_PROTOCOL, resources.PROTOCOL),
    )
    address_at = netlink.HEADER_SIZE + _NDMSG.size + 4
    between_at = address_at + len(address) - 4
    return message[:address_at], message[between_at : between_at + 4], message[between_at + 10 :]


def delete_neighbour(index: int, ip: str) -> bytes:
    """Encode the removal of a neighbour."""
    family, packed = packed_ip(ip)
    return netlink.message(RTM_DELNEIGH, 0, _NDMSG.pack(family, 0, 0, index, 0, 0, 0), netlink.attr(NDA_DST, packed))


def replace_fdb(index: int, mac: str, vtep: str | None) -> bytes:
    """Encode a forwarding entry: of the VXLAN device itself (`vtep` given), else a static one of the link's bridge."""
    before, after = _fdb_around(index, vtep)
    return before + packed_mac(mac) + after


@functools.lru_cache(maxsize=4096)
def _fdb_around(index: int, vtep: str | None) -> tuple[bytes, bytes]:
    """Return what is before and after the MAC in the message of a forwarding entry."""
    words = netlink.attr(NDA_LLADDR, bytes(6))
    if vtep is None:
        head = _NDMSG.pack(AF_BRIDGE, 0, 0, index, NUD_NOARP | NUD_REACHABLE, NTF_MASTER, 0)
    else:
        head = _NDMSG.pack(AF_BRIDGE, 0, 0, index, NUD_NOARP | NUD_PERMANENT, NTF_SELF, 0)
        words += netlink.attr(NDA_DST, packed_ip(vtep)[1])
    message = netlink.message(RTM_NEWNEIGH, _REPLACE, head, words)
    mac_at = netlink.HEADER_SIZE + _NDMSG.size + 4
    return message[:mac_at], message[mac_at + 6 :]


def delete_fdb(index: int, mac: str, *, master: bool) -> bytes:
    """Encode the removal of a forwarding entry of the link's bridge (`master`) or of the device itself."""
    head = _NDMSG.pack(AF_BRIDGE, 0, 0, index, 0, NTF_MASTER if master else NTF_SELF, 0)
    return netlink.message(RTM_DELNEIGH, 0, head, netlink.attr(NDA_LLADDR, packed_mac(mac)))


def dump_links() -> bytes:
    """Encode the question for all links, without their counters."""
    return netlink.message(RTM_GETLINK, netlink.NLM_F_DUMP, _NO_LINK, _SKIP_STATS)


def dump_statistics() -> bytes:
    """Encode a dump of all links with their counters."""
    return netlink.message(RTM_GETLINK, netlink.NLM_F_DUMP, _NO_LINK)


def dump_addresses() -> bytes:
    """Encode the question for all addresses."""
    return netlink.message(RTM_GETADDR, netlink.NLM_F_DUMP, _IFADDR.pack(0, 0, 0, 0, 0))


def dump_routes(family: int = 0) -> bytes:
    """Encode the question for all routes of all tables."""
    return netlink.message(RTM_GETROUTE, netlink.NLM_F_DUMP, _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))


def dump_neighbours() -> bytes:
    """Encode the question for all IPv4 and IPv6 neighbours."""
    return netlink.message(RTM_GETNEIGH, netlink.NLM_F_DUMP, _NDMSG.pack(0, 0, 0, 0, 0, 0, 0))


def dump_fdb() -> bytes:
    """Encode the question for the forwarding entries of all bridges and devices."""
    return netlink.message(RTM_GETNEIGH, netlink.NLM_F_DUMP, _NDMSG.pack(AF_BRIDGE, 0, 0, 0, 0, 0, 0))


def assign_nsid(ns_fd: int) -> bytes:
    """Encode the wish that the receiving namespace has an id for another; EEXIST: it has one."""
    return netlink.message(
        RTM_NEWNSID, 0, b"\0\0\0\0", netlink.attr_u32(NETNSA_FD, ns_fd), netlink.attr_u32(NETNSA_NSID, 0xFFFFFFFF)
    )


def get_nsid(ns_fd: int) -> bytes:
    """Encode the question for that id."""
    return netlink.message(RTM_GETNSID, 0, b"\0\0\0\0", netlink.attr_u32(NETNSA_FD, ns_fd))
