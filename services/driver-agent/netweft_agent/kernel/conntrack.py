"""Connection tracking over netlink: end the flows of a host's port, so that none goes on to where the port led before.

The kernel deletes one entry by its tuple, or all; it can filter a dump by parts of the tuple (CTA_FILTER, Linux 5.8).
So flows are looked for by protocol and destination port, and deleted one by one
(`ctnetlink_alloc_filter`, `ctnetlink_del_conntrack` in net/netfilter/nf_conntrack_netlink.c).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from netweft_agent.kernel import netlink

_SUBSYSTEM = 1 << 8
_GET, _DELETE = 1, 2
_TUPLE_ORIG, _ID, _ZONE, _FILTER = 1, 12, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_PROTO_NUMBER, _PROTO_SOURCE, _PROTO_DESTINATION = 1, 2, 3
_IP4_DESTINATION, _IP6_DESTINATION = 2, 4
_FILTER_ORIG_FLAGS = 1
_FILTER_PROTO_NUMBER, _FILTER_PROTO_DESTINATION = 1 << 3, 1 << 5  # CTA_FILTER_F_* of net/netfilter/nf_internals.h
_NUMBERS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}
_ANY = frozenset({"0.0.0.0", "::", "*"})  # noqa: S104  # compared, not bound

_ONE_BY_ONE = 16
"""Ports up to which each is asked for by itself; the kernel walks its whole table for each question."""


@dataclass(frozen=True, slots=True)
class Flows:
    """The flows to one port of the host.

    Attributes:
        address: Of the host; an unspecified one or `*`: any.
    """

    protocol: str
    address: str
    port: int


def end(sock: socket.socket, ended: Iterable[Flows]) -> int:
    """Delete the entries of these flows, and return how many there were.

    A kernel without connection tracking has none. What it refuses is left: an entry that cannot be deleted times out.

    Args:
        sock: A netfilter socket of the namespace.
        ended: Which.
    """
    wanted = set(ended)
    ports: dict[tuple[int, int], dict[int, set[str]]] = {}
    for one in wanted:
        for family in _families(one.address):
            ports.setdefault((family, _NUMBERS[one.protocol]), {}).setdefault(one.port, set()).add(one.address)
    count = 0
    for (family, protocol), by_port in ports.items():
        questions = by_port if len(by_port) <= _ONE_BY_ONE else [0]
        found = [entry for port in questions for entry in _dump(sock, family, protocol, port)]
        doomed = [
            _delete(family, entry)
            for entry in found
            if _is_meant(by_port.get(entry.port, frozenset()), family, entry.address)
        ]
        if doomed:
            count += sum(1 for ack in netlink.talk(sock, doomed) if not ack.errno)
    return count


def _is_meant(addresses: Iterable[str], family: int, address: bytes) -> bool:
    packed = {socket.inet_pton(family, one) for one in addresses if one not in _ANY and (":" in one) == (family == 10)}
    return address in packed or any(one in _ANY for one in addresses)


def _families(address: str) -> tuple[int, ...]:
    if address == "*":
        return (socket.AF_INET, socket.AF_INET6)
    return (socket.AF_INET if ipaddress.ip_address(address).version == 4 else socket.AF_INET6,)


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry as dumped: where its first packet went, and what names it."""

    address: bytes
    port: int
    identity: bytes


def _message(kind: int, flags: int, family: int, *parts: bytes) -> bytes:
    return netlink.message(_SUBSYSTEM | kind, flags, bytes((family, 0, 0, 0)), *parts)


def _dump(sock: socket.socket, family: int, protocol: int, port: int) -> Iterator[_Entry]:
    """Yield the entries of a protocol, to one port or, if it is 0, to any."""
    flags = _FILTER_PROTO_NUMBER | (_FILTER_PROTO_DESTINATION if port else 0)
    proto = netlink.attr(_PROTO_NUMBER, bytes((protocol,)))
    if port:
        proto += netlink.attr(_PROTO_DESTINATION, port.to_bytes(2, "big"))
    request = _message(
        _GET,
        netlink.NLM_F_DUMP,
        family,
        netlink.nest(_TUPLE_ORIG, netlink.nest(_TUPLE_PROTO, proto)),
        netlink.nest(_FILTER, netlink.attr_u32(_FILTER_ORIG_FLAGS, flags)),
    )
    answer = netlink.dump(sock, request)
    for reply in answer.replies:
        given = netlink.attributes(reply.body, 4)
        original = netlink.attributes(given.get(_TUPLE_ORIG, b""))
        parts = netlink.attributes(original.get(_TUPLE_PROTO, b""))
        if parts.get(_PROTO_NUMBER) != bytes((protocol,)) or _PROTO_DESTINATION not in parts:
            continue  # before Linux 5.8 there is no filter
        addresses = netlink.attributes(original.get(_TUPLE_IP, b""))
        destination = addresses.get(_IP4_DESTINATION) or addresses.get(_IP6_DESTINATION, b"")
        identity = netlink.nest(_TUPLE_ORIG, given[_TUPLE_ORIG]) + b"".join(
            netlink.attr(kind, given[kind]) for kind in (_ID, _ZONE) if kind in given
        )
        yield _Entry(destination, int.from_bytes(parts[_PROTO_DESTINATION], "big"), identity)


def _delete(family: int, entry: _Entry) -> bytes:
    return _message(_DELETE, 0, family, entry.identity)
