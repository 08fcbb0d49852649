"""The few netlink requests that a stack's underlay takes: links, addresses, routes, and a look at what is there.

The agent's netlink is the agent's own; clients import no service, and these are a dozen messages. Everything acts in
the namespace of the calling thread (`netns.call`). Sources: rtnetlink(7), linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

_REQUEST, _ACK, _DUMP, _EXCL, _CREATE = 0x1, 0x4, 0x300, 0x200, 0x400
_ERROR, _DONE = 2, 3
_NEWLINK, _DELLINK, _GETLINK, _NEWADDR, _NEWROUTE = 16, 17, 18, 20, 24
_IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_GROUP, _IFLA_NET_NS_FD = 3, 10, 18, 27, 28
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_UP = 1
_NFT = 10 << 8
_BATCH_BEGIN, _BATCH_END, _GETTABLE, _DELTABLE = 16, 17, _NFT | 1, _NFT | 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A network interface."""

    index: int
    name: str
    group: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Table:
    """An nftables table; family is the kernel's number, NFPROTO_*."""

    family: int
    name: str


def add_bridge(name: str) -> None:
    """Create a bridge and bring it up."""
    _link(name, _nest(_IFLA_LINKINFO, _attr(_INFO_KIND, b"bridge")))


def add_veth(name: str, *, master: str, peer: str, peer_netns_fd: int) -> None:
    """Create a pair: one end here, up, in a bridge; the other in another namespace, down."""
    other = _ifinfo() + _text(_IFLA_IFNAME, peer) + _attr(_IFLA_NET_NS_FD, struct.pack("i", peer_netns_fd))
    info = _attr(_INFO_KIND, b"veth") + _nest(_INFO_DATA, _attr(_VETH_PEER, other))
    _link(name, _attr(_IFLA_MASTER, struct.pack("I", socket.if_nametoindex(master))) + _nest(_IFLA_LINKINFO, info))


def set_up(name: str) -> None:
    """Bring a link up."""
    _talk(NETLINK_ROUTE, [_message(_NEWLINK, 0, _ifinfo(socket.if_nametoindex(name), up=True))])


def delete_link(index: int) -> None:
    """Delete a link."""
    _talk(NETLINK_ROUTE, [_message(_DELLINK, 0, _ifinfo(index))])


def add_address(name: str, address: ipaddress.IPv4Interface | ipaddress.IPv6Interface) -> None:
    """Give an address with its prefix length to a link."""
    body = struct.pack("BBBBi", _family(address), address.network.prefixlen, 0, 0, socket.if_nametoindex(name))
    body += _attr(2, address.packed) + _attr(1, address.packed)
    _talk(NETLINK_ROUTE, [_message(_NEWADDR, _CREATE | _EXCL, body)])


def add_default_route(gateway: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """Send everything else to a gateway: table main, protocol static, scope universe, unicast."""
    body = struct.pack("BBBBBBBBI", _family(gateway), 0, 0, 0, 254, 4, 0, 1, 0) + _attr(5, gateway.packed)
    _talk(NETLINK_ROUTE, [_message(_NEWROUTE, _CREATE | _EXCL, body)])


def links() -> list[Link]:
    """Return all links."""
    found = []
    for body in _dump(NETLINK_ROUTE, _GETLINK, _ifinfo()):
        attributes = dict(_attributes(body[16:]))
        (index,) = struct.unpack_from("i", body, 4)
        group = struct.unpack("I", attributes[_IFLA_GROUP])[0] if _IFLA_GROUP in attributes else 0
        found.append(Link(index=index, name=attributes[_IFLA_IFNAME].rstrip(b"\0").decode(), group=group))
    return found


def tables() -> list[Table]:
    """Return all nftables tables; none where the kernel has no nftables."""
    try:
        bodies = list(_dump(NETLINK_NETFILTER, _GETTABLE, struct.pack("BBH", 0, 0, 0)))
    except OSError:
        return []
    return [Table(family=body[0], name=dict(_attributes(body[4:]))[1].rstrip(b"\0").decode()) for body in bodies]


def delete_table(table: Table) -> None:
    """Delete a table with all it holds."""
    batch = struct.pack("BBH", 0, 0, socket.htons(10))
    _talk(
        NETLINK_NETFILTER,
        [
            _message(_BATCH_BEGIN, 0, batch, ack=False),
            _message(_DELTABLE, 0, struct.pack("BBH", table.family, 0, 0) + _text(1, table.name)),
            _message(_BATCH_END, 0, batch, ack=False),
        ],
        acks=1,
    )


def _link(name: str, attributes: bytes) -> None:
    _talk(
        NETLINK_ROUTE, [_message(_NEWLINK, _CREATE | _EXCL, _ifinfo(up=True) + _text(_IFLA_IFNAME, name) + attributes)]
    )


def _family(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _ifinfo(index: int = 0, *, up: bool = False) -> bytes:
    return struct.pack("BBHiII", 0, 0, 0, index, _UP if up else 0, _UP if up else 0)


def _attr(kind: int, data: bytes) -> bytes:
    return struct.pack("HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _text(kind: int, text: str) -> bytes:
    return _attr(kind, text.encode() + b"\0")


def _nest(kind: int, data: bytes) -> bytes:
    return _attr(kind | 0x8000, data)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("HH", data)
        if length < 4:
            return
        yield kind & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3 :]


def _message(kind: int, flags: int, body: bytes, *, ack: bool = True) -> bytes:
    return struct.pack("IHHII", 16 + len(body), kind, _REQUEST | flags | (_ACK if ack else 0), 1, 0) + body


def _answers(sock: socket.socket) -> Iterator[tuple[int, bytes]]:
    while True:
        data = sock.recv(1 << 17)
        while len(data) >= 16:
            length, kind = struct.unpack_from("IH", data)
            body = data[16:length]
            if kind == _ERROR:
                number = -struct.unpack_from("i", body)[0]
                if number:
                    raise OSError(number, os.strerror(number))
            yield kind, body
            data = data[(length + 3) & ~3 :]


def _talk(protocol: int, messages: list[bytes], *, acks: int | None = None) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as sock:
        sock.bind((0, 0))
        sock.send(b"".join(messages))
        missing = len(messages) if acks is None else acks
        for kind, _ in _answers(sock):
            missing -= kind == _ERROR
            if not missing:
                return


def _dump(protocol: int, kind: int, body: bytes) -> Iterator[bytes]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as sock:
        sock.bind((0, 0))
        sock.send(_message(kind, _DUMP, body, ack=False))
        for answer, data in _answers(sock):
            if answer == _DONE:
                return
            yield data
