"""Decode what rtnetlink tells: links, addresses, routes, neighbours and forwarding entries, as small values.

Only what resources are made of is read. Numbers are those of the kernel's headers, named in `kernel/rtnl.py`.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from netweft_agent.domain import resources
from netweft_agent.kernel import netlink, rtnl

_IFINFO = struct.Struct("=BBHiII")
_IFADDR = struct.Struct("=BBBBi")
_RTMSG = struct.Struct("=BBBBBBBBI")
_NDMSG = struct.Struct("=BBHiHBB")
_ATTRIBUTE = struct.Struct("=HH")
_U32 = struct.Struct("=I")
_S32 = struct.Struct("=i")
_COUNTERS = struct.Struct("=8Q")

_LINK_PARTS = frozenset(
    {
        rtnl.IFLA_ADDRESS,
        rtnl.IFLA_IFNAME,
        rtnl.IFLA_MTU,
        rtnl.IFLA_LINK,
        rtnl.IFLA_MASTER,
        rtnl.IFLA_LINKINFO,
        rtnl.IFLA_AF_SPEC,
        rtnl.IFLA_GROUP,
        rtnl.IFLA_LINK_NETNSID,
    }
)
_PORT_PARTS = frozenset(
    {
        rtnl.IFLA_BRPORT_MODE,
        rtnl.IFLA_BRPORT_LEARNING,
        rtnl.IFLA_BRPORT_UNICAST_FLOOD,
        rtnl.IFLA_BRPORT_NEIGH_SUPPRESS,
        rtnl.IFLA_BRPORT_ISOLATED,
    }
)
_IFLA_STATS64 = 23
_IFLA_INET6_CONF = 2
# Positions in the array of IFLA_INET6_CONF (enum of linux/ipv6.h).
_DEVCONF_ACCEPT_RA = 3
_DEVCONF_DISABLE_IPV6 = 26


class LinkInfo(NamedTuple):
    """One link as the kernel tells it."""

    ifindex: int
    name: str
    up: bool
    kind: str
    """IFLA_INFO_KIND; `loopback` for lo; empty for hardware."""
    mtu: int
    mac: str
    master_index: int
    link_index: int
    """IFLA_LINK: of a veth, the other end's index in its own namespace."""
    link_nsid: int | None
    """IFLA_LINK_NETNSID: id of the namespace that `link_index` is in; None: this one."""
    group: int
    ipv6_disabled: bool
    accept_ra: int
    port: resources.Port | None
    vxlan: resources.Vxlan | None

    @property
    def ipv6(self) -> bool | None:
        """As in resources.Link; None where IPv6 is on and takes router advertisements, which is never wanted."""
        if self.ipv6_disabled:
            return False
        return True if self.accept_ra == 0 else None


class AddressInfo(NamedTuple):
    """One address."""

    ifindex: int
    address: str
    protocol: int
    """IFA_PROTO; 0 where nobody said, or the kernel is older than 5.18."""


class RouteInfo(NamedTuple):
    """One route of a single next hop."""

    destination: str
    ifindex: int
    via: str | None
    table: int
    kind: int
    protocol: int
    cloned: bool
    priority: int


class NeighbourInfo(NamedTuple):
    """One neighbour."""

    ifindex: int
    ip: str
    mac: str
    state: int
    flags: int
    protocol: int


class FdbInfo(NamedTuple):
    """One forwarding entry of a bridge or a device."""

    ifindex: int
    mac: str
    vtep: str | None
    master_index: int
    state: int
    flags: int


class Counters(NamedTuple):
    """Counters of one link, in the order of rtnl_link_stats64 (linux/if_link.h)."""

    rx_packets: int
    tx_packets: int
    rx_bytes: int
    tx_bytes: int
    rx_errors: int
    tx_errors: int
    rx_dropped: int
    tx_dropped: int


def counters(body: bytes) -> tuple[str, Counters]:
    """Decode name and counters out of the body of an RTM_NEWLINK that carries them."""
    found = netlink.attributes(body, _IFINFO.size)
    return _string(found.get(rtnl.IFLA_IFNAME)), Counters._make(_COUNTERS.unpack_from(found[_IFLA_STATS64]))


def text_mac(packed: bytes) -> str:
    """Return six bytes in lower-case colon form."""
    return packed.hex(":")


def text_ip(packed: bytes) -> str:
    """Return the canonical text of an address."""
    return socket.inet_ntop(socket.AF_INET6 if len(packed) == 16 else socket.AF_INET, packed)


def _string(payload: bytes | None) -> str:
    return payload.rstrip(b"\0").decode() if payload else ""


def _number(payload: bytes | None, default: int = 0) -> int:
    return _U32.unpack_from(payload)[0] if payload else default


def _flag(found: dict[int, bytes], kind: int, *, default: bool) -> bool:
    return bool(found[kind][0]) if kind in found else default


def link(body: bytes) -> LinkInfo:
    """Decode the body of an RTM_NEWLINK or RTM_DELLINK."""
    _, _, hardware, index, flags, _ = _IFINFO.unpack_from(body)
    found = netlink.selected(body, _LINK_PARTS, _IFINFO.size)
    info = netlink.attributes(found.get(rtnl.IFLA_LINKINFO, b""))
    kind = _string(info.get(rtnl.IFLA_INFO_KIND))
    if not kind and hardware == 772:  # ARPHRD_LOOPBACK
        kind = "loopback"
    disabled, accept_ra = _ipv6(found.get(rtnl.IFLA_AF_SPEC))
    port = None
    if _string(info.get(rtnl.IFLA_INFO_SLAVE_KIND)) == "bridge":
        port = _port(netlink.selected(info.get(rtnl.IFLA_INFO_SLAVE_DATA, b""), _PORT_PARTS))
    nsid = found.get(rtnl.IFLA_LINK_NETNSID)
    return LinkInfo(
        ifindex=index,
        name=_string(found.get(rtnl.IFLA_IFNAME)),
        up=bool(flags & rtnl.IFF_UP),
        kind=kind,
        mtu=_number(found.get(rtnl.IFLA_MTU)),
        mac=text_mac(found.get(rtnl.IFLA_ADDRESS, b"")),
        master_index=_number(found.get(rtnl.IFLA_MASTER)),
        link_index=_number(found.get(rtnl.IFLA_LINK)),
        link_nsid=_S32.unpack(nsid)[0] if nsid else None,
        group=_number(found.get(rtnl.IFLA_GROUP)),
        ipv6_disabled=disabled,
        accept_ra=accept_ra,
        port=port,
        vxlan=_vxlan(netlink.attributes(info.get(rtnl.IFLA_INFO_DATA, b""))) if kind == "vxlan" else None,
    )


class LinkState(NamedTuple):
    """What others may do to a link that is ours; fields as in LinkInfo."""

    ifindex: int
    name: str
    up: bool
    mtu: int
    mac: str
    master_index: int


def link_state(body: bytes) -> LinkState:
    """Read what is compared of a link: a third of the time of `link`, which every event of our own would cost."""
    _, _, _, index, flags, _ = _IFINFO.unpack_from(body)
    name, mtu, mac, master = b"", 0, b"", 0
    unpack = _ATTRIBUTE.unpack_from
    offset, end = _IFINFO.size, len(body)
    while offset + 4 <= end:
        size, kind = unpack(body, offset)
        if size < 4 or offset + size > end:
            break
        if kind == rtnl.IFLA_IFNAME:
            name = body[offset + 4 : offset + size]
        elif kind == rtnl.IFLA_MTU:
            mtu = _U32.unpack_from(body, offset + 4)[0]
        elif kind == rtnl.IFLA_ADDRESS:
            mac = body[offset + 4 : offset + size]
        elif kind == rtnl.IFLA_MASTER:
            master = _U32.unpack_from(body, offset + 4)[0]
        offset += (size + 3) & ~3
    return LinkState(index, _string(name), bool(flags & rtnl.IFF_UP), mtu, text_mac(mac), master)


class Born(NamedTuple):
    """What only the kernel knows of a link that was just created.

    Attributes:
        other: Index of the other end; 0: none.
        nsid: Id of the other end's namespace in the link's own; None: it is the same.
    """

    ifindex: int
    other: int
    nsid: int | None
    ipv6_disabled: bool
    accept_ra: int


def born(body: bytes) -> Born:
    """Read a link that was just created: a fifth of the time of `link`, which every attach would pay."""
    index: int = _S32.unpack_from(body, 4)[0]
    other, peer_nsid, spec = 0, None, None
    offset, end = _IFINFO.size, len(body)
    while offset + 4 <= end:
        size, kind = _ATTRIBUTE.unpack_from(body, offset)
        if size < 4 or offset + size > end:
            break
        if kind == rtnl.IFLA_LINK:
            other = _U32.unpack_from(body, offset + 4)[0]
        elif kind == rtnl.IFLA_LINK_NETNSID:
            peer_nsid = _S32.unpack_from(body, offset + 4)[0]
        elif kind & netlink.NLA_TYPE_MASK == rtnl.IFLA_AF_SPEC:
            spec = body[offset + 4 : offset + size]
        offset += (size + 3) & ~3
    return Born(index, other, peer_nsid, *_ipv6(spec))


def _ipv6(payload: bytes | None) -> tuple[bool, int]:
    # A link without IPv6 state (MTU below 1280, no IPv6 in the kernel) has IPv6 off.
    conf = netlink.first(netlink.first(payload or b"", socket.AF_INET6), _IFLA_INET6_CONF)
    if not conf or len(conf) <= _DEVCONF_DISABLE_IPV6 * 4:
        return True, 0
    return (
        _S32.unpack_from(conf, _DEVCONF_DISABLE_IPV6 * 4)[0] != 0,
        _S32.unpack_from(conf, _DEVCONF_ACCEPT_RA * 4)[0],
    )


def _port(found: dict[int, bytes]) -> resources.Port:
    return resources.Port(
        isolated=_flag(found, rtnl.IFLA_BRPORT_ISOLATED, default=False),
        hairpin=_flag(found, rtnl.IFLA_BRPORT_MODE, default=False),
        learning=_flag(found, rtnl.IFLA_BRPORT_LEARNING, default=True),
        flood=_flag(found, rtnl.IFLA_BRPORT_UNICAST_FLOOD, default=True),
        neigh_suppress=_flag(found, rtnl.IFLA_BRPORT_NEIGH_SUPPRESS, default=False),
    )


def _vxlan(found: dict[int, bytes]) -> resources.Vxlan:
    local = found.get(rtnl.IFLA_VXLAN_LOCAL) or found.get(rtnl.IFLA_VXLAN_LOCAL6)
    return resources.Vxlan(
        vni=_number(found.get(rtnl.IFLA_VXLAN_ID)),
        local=text_ip(local) if local else "",
        port=struct.unpack(">H", found.get(rtnl.IFLA_VXLAN_PORT, b"\0\0"))[0],
        proxy=_flag(found, rtnl.IFLA_VXLAN_PROXY, default=False),
    )


def address(body: bytes) -> AddressInfo:
    """Decode the body of an RTM_NEWADDR or RTM_DELADDR."""
    _, prefix, _, _, index = _IFADDR.unpack_from(body)
    found = netlink.attributes(body, _IFADDR.size)
    packed = found.get(rtnl.IFA_LOCAL) or found[rtnl.IFA_ADDRESS]
    protocol = found.get(rtnl.IFA_PROTO)
    return AddressInfo(index, f"{text_ip(packed)}/{prefix}", protocol[0] if protocol else 0)


def route(body: bytes) -> RouteInfo:
    """Decode the body of an RTM_NEWROUTE or RTM_DELROUTE; of several next hops, none is told."""
    family, prefix, _, _, table, protocol, _, kind, flags = _RTMSG.unpack_from(body)
    found = netlink.attributes(body, _RTMSG.size)
    gateway = found.get(rtnl.RTA_GATEWAY)
    packed = found.get(rtnl.RTA_DST, bytes(16 if family == socket.AF_INET6 else 4))
    return RouteInfo(
        destination=f"{text_ip(packed)}/{prefix}" if family in {socket.AF_INET, socket.AF_INET6} else "",
        ifindex=_number(found.get(rtnl.RTA_OIF)),
        via=text_ip(gateway) if gateway else None,
        table=_number(found.get(rtnl.RTA_TABLE), table),
        kind=kind,
        protocol=protocol,
        cloned=bool(flags & 0x200),  # RTM_F_CLONED
        priority=_number(found.get(rtnl.RTA_PRIORITY)),
    )


def neighbour(body: bytes) -> NeighbourInfo:
    """Decode the body of an RTM_NEWNEIGH or RTM_DELNEIGH of IPv4 or IPv6."""
    _, _, _, index, state, flags, _ = _NDMSG.unpack_from(body)
    found = netlink.attributes(body, _NDMSG.size)
    protocol = found.get(rtnl.NDA_PROTOCOL)
    return NeighbourInfo(
        ifindex=index,
        ip=text_ip(found[rtnl.NDA_DST]) if len(found.get(rtnl.NDA_DST, b"")) in {4, 16} else "",
        mac=text_mac(found.get(rtnl.NDA_LLADDR, b"")),
        state=state,
        flags=flags,
        protocol=protocol[0] if protocol else 0,
    )


def fdb(body: bytes) -> FdbInfo:
    """Decode the body of an RTM_NEWNEIGH or RTM_DELNEIGH of AF_BRIDGE."""
    _, _, _, index, state, flags, _ = _NDMSG.unpack_from(body)
    found = netlink.attributes(body, _NDMSG.size)
    vtep = found.get(rtnl.NDA_DST)
    return FdbInfo(
        ifindex=index,
        mac=text_mac(found.get(rtnl.NDA_LLADDR, b"")),
        vtep=text_ip(vtep) if vtep else None,
        master_index=_number(found.get(rtnl.NDA_MASTER)),
        state=state,
        flags=flags,
    )


def nsid(body: bytes) -> int:
    """Decode the body of an RTM_NEWNSID; -1: there is none."""
    payload = netlink.attributes(body, 4).get(rtnl.NETNSA_NSID)
    return _S32.unpack(payload)[0] if payload else -1
