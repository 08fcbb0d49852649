"""Frames by hand, for endpoints that say what is not true of them, and who sees them."""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack, closing
from ipaddress import IPv6Address

from tests.support.netns import Netns

IPV4, ARP, IPV6, VLAN, LLDP = 0x0800, 0x0806, 0x86DD, 0x8100, 0x88CC
BROADCAST = "ff:ff:ff:ff:ff:ff"
_ETH_P_ALL = 3
_MARK = b"the last one"
_PATIENCE_S = 10


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ethernet(source: str, kind: int, payload: bytes, destination: str = BROADCAST) -> bytes:
    """Make a frame."""
    return mac(destination) + mac(source) + struct.pack("!H", kind) + payload


def arp(operation: int, sender_mac: str, sender: str, target: str, target_mac: str = "00:00:00:00:00:00") -> bytes:
    """Make the body of an ARP packet: operation 1 asks, 2 answers (RFC 826)."""
    head = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation)
    return head + mac(sender_mac) + socket.inet_aton(sender) + mac(target_mac) + socket.inet_aton(target)


def udp4(source: str, destination: str, sport: int = 5000, dport: int = 5001, data: bytes = b"") -> bytes:
    """Make an IPv4 packet with a datagram."""
    body = struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, socket.IPPROTO_UDP, 0)
    head += socket.inet_aton(source) + socket.inet_aton(destination)
    return head[:10] + struct.pack("!H", _checksum(head)) + head[12:] + body


def ipv6(source: str, destination: str, protocol: int, body: bytes, hops: int = 255) -> bytes:
    """Make an IPv6 packet; the checksum of UDP or ICMPv6 at its usual place is filled in."""
    addresses = IPv6Address(source).packed + IPv6Address(destination).packed
    place = 6 if protocol == socket.IPPROTO_UDP else 2
    pseudo = addresses + struct.pack("!II", len(body), protocol)
    body = body[:place] + struct.pack("!H", _checksum(pseudo + body)) + body[place + 2 :]
    return struct.pack("!IHBB", 6 << 28, len(body), protocol, hops) + addresses + body


def udp6(source: str, destination: str, sport: int = 5000, dport: int = 5001) -> bytes:
    """Make an IPv6 packet with an empty datagram."""
    return ipv6(source, destination, socket.IPPROTO_UDP, struct.pack("!HHHH", sport, dport, 8, 0))


def icmp6(source: str, destination: str, kind: int, body: bytes) -> bytes:
    """Make an ICMPv6 packet."""
    return ipv6(source, destination, socket.IPPROTO_ICMPV6, struct.pack("!BBH", kind, 0, 0) + body)


def advertisement(source: str, target: str, sender_mac: str) -> bytes:
    """Make a neighbour advertisement that says: the target is at this MAC (RFC 4861 §4.4)."""
    return icmp6(
        source, "ff02::1", 136, struct.pack("!I", 0x20000000) + IPv6Address(target).packed + b"\2\1" + mac(sender_mac)
    )


def solicitation(source: str, target: str) -> bytes:
    """Make a neighbour solicitation (RFC 4861 §4.3)."""
    node = IPv6Address(int(IPv6Address("ff02::1:ff00:0")) | int(IPv6Address(target)) & 0xFFFFFF)
    return icmp6(source, str(node), 135, bytes(4) + IPv6Address(target).packed)


def router_advertisement(source: str) -> bytes:
    """Make a router advertisement of half an hour (RFC 4861 §4.2)."""
    return icmp6(source, "ff02::1", 134, struct.pack("!BBHII", 64, 0, 1800, 0, 0))


def _checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def seen(sender: Netns, frames: list[bytes], mark: bytes, receiver: Netns, link: str = "eth0") -> list[bytes]:
    """Send frames by one namespace's link, and return those that come in by another's, in order.

    Args:
        sender: Sends by its eth0.
        frames: What to send.
        mark: A frame that gets through for sure; sent last, so that nobody waits for what does not come.
        receiver: Who listens.
        link: By which link.
    """
    with ExitStack() as stack:
        ears = receiver.run(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)))
        stack.enter_context(closing(ears))
        ears.bind((link, _ETH_P_ALL))
        ears.settimeout(_PATIENCE_S)
        mouth = sender.run(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        stack.enter_context(closing(mouth))
        mouth.bind(("eth0", 0))
        last = mark + _MARK
        for frame in (*frames, last):
            mouth.send(frame)
        found: list[bytes] = []
        while True:
            frame = ears.recv(2048)
            if frame == last:
                return found
            found += [one for one in frames if frame == one]
