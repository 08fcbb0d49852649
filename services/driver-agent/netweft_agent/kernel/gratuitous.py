"""Say on a wire who has an address, unasked: gratuitous ARP for IPv4, unsolicited neighbour advertisements for IPv6.

Both are broadcast by the interface itself, from within its namespace: so bridges learn where the MAC is, and the guard
against spoofing sees what it lets pass. A packet socket that receives nothing (protocol 0) is opened, bound and written
to in 15 µs; closing it waits for a grace period of the kernel, 10 to 20 ms (`packet_release`), so that is left to who
opened it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterator

from netweft_common import errors

from netweft_agent.domain.announcement import Announcement
from netweft_agent.domain.resources import Ns
from netweft_agent.kernel import netlink, rtnl
from netweft_agent.kernel.netns import Namespaces

_BROADCAST = b"\xff" * 6
_ETH_P_ARP, _ETH_P_IPV6 = 0x0806, 0x86DD
_ARP = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
"""Ethernet, IPv4, lengths of both addresses, and that it is a request, which an announcement is (RFC 5227 §3)."""
_ALL_NODES = ipaddress.IPv6Address("ff02::1").packed
_ALL_NODES_MAC = bytes.fromhex("333300000001")
_NA = struct.pack("!BBHI", 136, 0, 0, 0x20000000)
"""A neighbour advertisement, not solicited, that overrides what is known (RFC 4861 §4.4)."""
_IPV6 = struct.pack("!IHBB", 6 << 28, 32, socket.IPPROTO_ICMPV6, 255)
_TARGET_MAC = b"\x02\x01"


def frames(mac: bytes, addresses: tuple[str, ...]) -> list[bytes]:
    """Return the frames that tell everybody on a link that addresses are at a MAC."""
    return [_advertisement(mac, one) if ":" in one else _announcement(mac, one) for one in addresses]


def _announcement(mac: bytes, address: str) -> bytes:
    """Make an ARP announcement: a request whose sender and target are the address (RFC 5227 §3)."""
    packed = socket.inet_aton(address)
    return b"".join((_BROADCAST, mac, _ETH_P_ARP.to_bytes(2, "big"), _ARP, mac, packed, bytes(6), packed))


def _advertisement(mac: bytes, address: str) -> bytes:
    """Make an unsolicited neighbour advertisement to all nodes (RFC 4861 §7.2.6)."""
    packed = socket.inet_pton(socket.AF_INET6, address)
    body = _NA + packed + _TARGET_MAC + mac
    checksum = _checksum(packed + _ALL_NODES + struct.pack("!II", len(body), socket.IPPROTO_ICMPV6) + body)
    head = (_ALL_NODES_MAC, mac, _ETH_P_IPV6.to_bytes(2, "big"), _IPV6, packed, _ALL_NODES)
    return b"".join((*head, body[:2], checksum, body[4:]))


def _checksum(data: bytes) -> bytes:
    """Return the Internet checksum (RFC 1071): modulo 65535 a sum of words is the sum with its carries added."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    return (-total % 0xFFFF).to_bytes(2, "big")


def tell(namespaces: Namespaces, announcement: Announcement, dispose: Callable[[socket.socket], None]) -> bool:
    """Tell an announcement once, and return whether it was told.

    It is not where the namespace or the interface has gone or is down, or the kernel has no room: nobody waits for it.

    Args:
        namespaces: Registry.
        announcement: What to tell.
        dispose: Closes the socket, which takes its time.
    """
    try:
        sock = _open(namespaces, announcement.ns)
    except (errors.NetweftError, OSError):
        return False
    try:
        sock.bind((announcement.link, 0))
        mac = bytes.fromhex(announcement.mac.replace(":", "")) or sock.getsockname()[4]
        for frame in frames(mac, announcement.addresses):
            sock.send(frame, socket.MSG_DONTWAIT)
        if announcement.mac:
            _forget(namespaces, announcement)
    except (errors.NetweftError, OSError):
        return False
    finally:
        dispose(sock)
    return True


def _open(namespaces: Namespaces, ns: Ns) -> socket.socket:
    with _inside(namespaces, ns):
        return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)


def _forget(namespaces: Namespaces, announcement: Announcement) -> None:
    """Remove what the interface's own neighbour table has learnt of addresses: it hears nothing of what it sends.

    An overlay's gateway leads by it from other subnets and from outside; what it needs it asks for again.
    """
    with _inside(namespaces, announcement.ns):
        index = socket.if_nametoindex(announcement.link)
        sock = netlink.open_socket(netlink.NETLINK_ROUTE)
    with contextlib.closing(sock):
        netlink.talk(sock, [rtnl.delete_neighbour(index, one) for one in announcement.addresses])


@contextlib.contextmanager
def _inside(namespaces: Namespaces, ns: Ns) -> Iterator[None]:
    fd = namespaces.peek(ns, None)
    if fd is None:
        raise errors.NotFound("NETNS_NOT_HELD", f"network namespace {ns} is not open", namespace=ns)
    try:
        with namespaces.entered_fd(fd):
            yield
    finally:
        os.close(fd)
