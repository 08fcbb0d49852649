"""Connection tracking over netlink: end the flows of published ports, so that none goes on to where a port led before.

A deletion may carry a filter over parts of an entry's tuples (CTA_FILTER, Linux 6.12); then the kernel goes through its
table once and deletes what matches, and nothing is read. Measured (2 cores, Linux 6.18, 262144 buckets): 0.2 to 0.4 ms
a deletion, 13 to 29 ms a dump of the same table, filtered or not, since that locks bucket by bucket. The deletions of a
batch are one send. Where a deletion cannot say it, entries are dumped, looked at here, and deleted one by one, in one
send: hundreds of ports; IPv6 addresses, which the kernel's filter takes for all others (`ctnetlink_filter_match_tuple`
in net/netfilter/nf_conntrack_netlink.c negates ipv6_addr_cmp, 5.8 to 6.18 at least); and what older kernels refuse.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from netweft_agent.domain.resources import ANY_ADDRESS, HOST, Ns, PortHold
from netweft_agent.kernel import netlink

_SUBSYSTEM = 1 << 8
_GET, _DELETE = 1, 2
_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _ID, _ZONE, _FILTER, _STATUS_MASK = 1, 2, 3, 12, 18, 25, 26
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_PROTO_NUMBER, _PROTO_DESTINATION = 1, 3
_IP_SOURCE: dict[int, int] = {socket.AF_INET: 1, socket.AF_INET6: 3}
_IP_DESTINATION: dict[int, int] = {socket.AF_INET: 2, socket.AF_INET6: 4}
_FILTER_ORIG_FLAGS, _FILTER_REPLY_FLAGS = 1, 2
# CTA_FILTER_F_* of net/netfilter/nf_internals.h
_BY_SOURCE, _BY_DESTINATION, _BY_NUMBER, _BY_DESTINATION_PORT = 1 << 0, 1 << 1, 1 << 3, 1 << 5
_DST_NAT = 1 << 5
"""IPS_DST_NAT: the entry leads elsewhere than its first packet said (linux/netfilter/nf_conntrack_common.h)."""
_NUMBERS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}
_ANY = frozenset({"0.0.0.0", "::", ANY_ADDRESS})  # noqa: S104  # compared, not bound

FEW = 8
"""Ports of one endpoint up to which each is named; with more, all that leads to the endpoint ends at once."""
MANY = 64
"""Deletions from which on one dump a protocol is cheaper."""


class Flows(msgspec.Struct, frozen=True):
    """The flows to one port of the host.

    Attributes:
        address: Of the host; an unspecified one or `*`: any.
    """

    protocol: str
    address: str
    port: int

    def families(self) -> tuple[int, ...]:
        """Return the address families that they may have."""
        if self.address == ANY_ADDRESS:
            return (socket.AF_INET, socket.AF_INET6)
        return (_family(self.address),)


class Translated(msgspec.Struct, frozen=True):
    """All flows that were led to an endpoint's address, by whatever port of the host."""

    address: str


class _Filter(msgspec.Struct, frozen=True):
    """What the kernel compares entries with: attributes that a deletion and a dump have in common.

    Attributes:
        exact: What matches it is meant, and nothing else, so that it may be deleted unseen.
    """

    family: int
    attributes: bytes
    exact: bool = True


def of_ports(ended: Iterable[PortHold], held: Callable[[], Iterable[PortHold]]) -> dict[Ns, list[Flows | Translated]]:
    """Say which flows end with these ports, by the namespace that tracks them.

    Args:
        ended: They lead nowhere now, or elsewhere.
        held: Returns the ports that are held from now on; asked only where many ended.
    """
    ports: dict[Ns, list[PortHold]] = {}
    for one in dict.fromkeys(ended):
        ports.setdefault(one.through, []).append(one)
    found: dict[Ns, list[Flows | Translated]] = {HOST: []}
    for ns, group in ports.items():
        if ns != HOST:
            # Seen from the host they all lead to the namespace; seen from there, to any address of the host.
            found[HOST] += [Flows(one.protocol, one.address, one.port) for one in group]
            group = [msgspec.structs.replace(one, address=ANY_ADDRESS) for one in group]  # noqa: PLW2901
        found.setdefault(ns, []).extend(_of_group(group, lambda: [one for one in held() if one.through == ns]))  # noqa: B023  # called at once
    return found


def _of_group(ports: Sequence[PortHold], held: Callable[[], Iterable[PortHold]]) -> list[Flows | Translated]:
    by_target: dict[str, int] = {}
    for one in ports:
        for target in one.targets:
            address = _host(target)
            by_target[address] = by_target.get(address, 0) + 1
    left = {address for address, count in by_target.items() if count > FEW}
    if left:
        left -= {_host(target) for one in held() for target in one.targets}
    named = [
        Flows(one.protocol, one.address, one.port)
        for one in ports
        if not one.targets or not left.issuperset(map(_host, one.targets))
    ]
    return [*map(Translated, sorted(left)), *named]


def end(sock: socket.socket, ended: Iterable[Flows | Translated]) -> None:
    """Delete the entries of these flows.

    A kernel without connection tracking has none. What it refuses is left: an entry that cannot be deleted times out.

    Args:
        sock: A netfilter socket of the namespace.
        ended: Which.
    """
    exact: list[tuple[_Filter, Flows | Translated]] = []
    vague: dict[_Filter, list[Flows | Translated]] = {}
    for found, one in _questions(list(dict.fromkeys(ended))):
        if found.exact:
            exact.append((found, one))
        else:
            vague.setdefault(found, []).append(one)
    if exact:
        acks = netlink.talk(sock, [_message(_DELETE, 0, found.family, found.attributes) for found, _ in exact])
        for (found, one), ack in zip(exact, acks, strict=True):
            if ack.errno:  # before Linux 6.12 a deletion has to name one entry in full
                vague.setdefault(found, []).append(one)
    doomed = [deletion for found, meant in vague.items() for deletion in _found(sock, found, meant)]
    if doomed:
        netlink.talk(sock, doomed)


def _questions(wanted: Sequence[Flows | Translated]) -> Iterator[tuple[_Filter, Flows | Translated]]:
    """Yield what names flows to the kernel, for each of them and each family that they may have."""
    many = sum(isinstance(one, Flows) for one in wanted) > MANY
    for one in wanted:
        if isinstance(one, Translated):
            yield _translated(one.address), one
        else:
            for family in one.families():
                yield _of_protocol(family, one.protocol) if many else _to_port(one, family), one


def _found(sock: socket.socket, wanted: _Filter, meant: Iterable[Flows | Translated]) -> Iterator[bytes]:
    """Yield a deletion for each entry that a dump gives and that is meant."""
    by_port: dict[int, list[Flows]] = {}
    addresses: list[Translated] = []
    for one in meant:
        if isinstance(one, Flows):
            by_port.setdefault(one.port, []).append(one)
        else:
            addresses.append(one)
    for entry in _dump(sock, wanted):
        if any(map(entry.is_of, (*by_port.get(entry.port, ()), *addresses))):
            yield entry.deletion()


def _host(target: str) -> str:
    """Return the address of `10.0.0.2:80` or `[fd00::2]:80`."""
    return target.rpartition(":")[0].strip("[]")


def _packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def _family(address: str) -> int:
    return socket.AF_INET if ipaddress.ip_address(address).version == 4 else socket.AF_INET6


# --- filters ---


def _to_port(one: Flows, family: int) -> _Filter:
    flags = _BY_NUMBER | _BY_DESTINATION_PORT
    addresses = b""
    exact = True
    if one.address not in _ANY:
        exact = family == socket.AF_INET
        if exact:
            flags |= _BY_DESTINATION
            addresses = netlink.attr(_IP_DESTINATION[family], _packed(one.address))
    ports = _protocol(one.protocol) + netlink.attr(_PROTO_DESTINATION, one.port.to_bytes(2, "big"))
    return _Filter(family, _tuple(_TUPLE_ORIG, addresses, ports) + _flags(_FILTER_ORIG_FLAGS, flags), exact)


def _of_protocol(family: int, protocol: str) -> _Filter:
    ports = _protocol(protocol)
    return _Filter(family, _tuple(_TUPLE_ORIG, b"", ports) + _flags(_FILTER_ORIG_FLAGS, _BY_NUMBER), exact=False)


def _translated(address: str) -> _Filter:
    """Match what answers from the address, though it was asked for by another."""
    family, state = _family(address), _DST_NAT.to_bytes(4, "big")
    elsewhere = netlink.attr(_STATUS, state) + netlink.attr(_STATUS_MASK, state)
    if family == socket.AF_INET6:
        return _Filter(family, elsewhere, exact=False)
    source = netlink.attr(_IP_SOURCE[family], _packed(address))
    return _Filter(family, _tuple(_TUPLE_REPLY, source, b"") + elsewhere + _flags(_FILTER_REPLY_FLAGS, _BY_SOURCE))


def _protocol(name: str) -> bytes:
    return netlink.attr(_PROTO_NUMBER, bytes((_NUMBERS[name],)))


def _tuple(kind: int, addresses: bytes, ports: bytes) -> bytes:
    parts = [netlink.nest(_TUPLE_IP, addresses)] if addresses else []
    parts += [netlink.nest(_TUPLE_PROTO, ports)] if ports else []
    return netlink.nest(kind, *parts)


def _flags(which: int, flags: int) -> bytes:
    return netlink.nest(_FILTER, netlink.attr_u32(which, flags))


# --- entries ---


class _Entry(msgspec.Struct, frozen=True):
    """An entry as dumped.

    Attributes:
        address: Where its first packet went, packed; with `port`.
        source: Whence the answers come, packed.
        translated: The first packet was led elsewhere.
        identity: Attributes that name it.
    """

    family: int
    protocol: int
    address: bytes
    port: int
    source: bytes
    translated: bool
    identity: bytes

    def is_of(self, one: Flows | Translated) -> bool:
        """Return whether it is one of these flows; older kernels do not know all parts of a filter, and dump more."""
        if isinstance(one, Translated):
            return self.translated and self.source == _packed(one.address)
        return (
            self.port == one.port
            and self.protocol == _NUMBERS[one.protocol]
            and self.family in one.families()
            and (one.address in _ANY or self.address == _packed(one.address))
        )

    def deletion(self) -> bytes:
        """Return the message that deletes it."""
        return _message(_DELETE, 0, self.family, self.identity)


def _message(kind: int, flags: int, family: int, *parts: bytes) -> bytes:
    return netlink.message(_SUBSYSTEM | kind, flags, bytes((family, 0, 0, 0)), *parts)


def _dump(sock: socket.socket, wanted: _Filter) -> Iterator[_Entry]:
    """Yield the entries that the kernel finds for a filter."""
    family = wanted.family
    answer = netlink.dump(sock, _message(_GET, netlink.NLM_F_DUMP, family, wanted.attributes))
    for reply in answer.replies:
        given = netlink.attributes(reply.body, 4)
        original = netlink.attributes(given.get(_TUPLE_ORIG, b""))
        answering = netlink.attributes(given.get(_TUPLE_REPLY, b""))
        parts = netlink.attributes(original.get(_TUPLE_PROTO, b""))
        identity = netlink.nest(_TUPLE_ORIG, given[_TUPLE_ORIG]) + b"".join(
            netlink.attr(kind, given[kind]) for kind in (_ID, _ZONE) if kind in given
        )
        yield _Entry(
            family,
            int.from_bytes(parts.get(_PROTO_NUMBER, b""), "big"),
            netlink.attributes(original.get(_TUPLE_IP, b"")).get(_IP_DESTINATION[family], b""),
            int.from_bytes(parts.get(_PROTO_DESTINATION, b""), "big"),
            netlink.attributes(answering.get(_TUPLE_IP, b"")).get(_IP_SOURCE[family], b""),
            bool(int.from_bytes(given.get(_STATUS, b""), "big") & _DST_NAT),
            identity,
        )
