"""Values of nftables: between the text and numbers of `domain/nft.py` and the kernel's bytes."""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Literal

import msgspec
from netweft_common import errors

from netweft_agent.domain import nft
from netweft_agent.domain.nft import Atom, Set, Type

Encode = Callable[[Atom], bytes]

_NAMES: dict[str, dict[str, int]] = {
    "inet_proto": {
        "icmp": 1,
        "igmp": 2,
        "tcp": 6,
        "udp": 17,
        "gre": 47,
        "esp": 50,
        "ah": 51,
        "ipv6-icmp": 58,
        "sctp": 132,
        "udplite": 136,
    },
    "nf_proto": {"ipv4": 2, "ipv6": 10},
    "arp_op": {"request": 1, "reply": 2},
    "ct_state": {"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64},
    "ct_status": {"expected": 1, "seen-reply": 2, "assured": 4, "confirmed": 8, "snat": 16, "dnat": 32, "dying": 512},
    "fib_addrtype": {"unspec": 0, "unicast": 1, "local": 2, "broadcast": 3, "anycast": 4, "multicast": 5},
    "icmp_type": {
        "echo-reply": 0,
        "destination-unreachable": 3,
        "redirect": 5,
        "echo-request": 8,
        "router-advertisement": 9,
        "router-solicitation": 10,
        "time-exceeded": 11,
        "parameter-problem": 12,
    },
    "pkt_type": {"host": 0, "broadcast": 1, "multicast": 2, "other": 3},
    "icmpv6_type": {
        "destination-unreachable": 1,
        "packet-too-big": 2,
        "time-exceeded": 3,
        "parameter-problem": 4,
        "echo-request": 128,
        "echo-reply": 129,
        "nd-router-solicit": 133,
        "nd-router-advert": 134,
        "nd-neighbor-solicit": 135,
        "nd-neighbor-advert": 136,
        "nd-redirect": 137,
    },
}
_WORDS = {kind: {number: name for name, number in names.items()} for kind, names in _NAMES.items()}
_TYPES = {
    kind.number: kind
    for kind in (
        nft.NF_PROTO,
        nft.IPV4_ADDR,
        nft.IPV6_ADDR,
        nft.ETHER_ADDR,
        nft.ARP_OP,
        nft.INET_PROTO,
        nft.INET_SERVICE,
        nft.ICMP_TYPE,
        nft.MARK,
        nft.IFACE_INDEX,
        nft.CT_STATE,
        nft.CT_STATUS,
        nft.ICMPV6_TYPE,
        nft.PKT_TYPE,
        nft.FIB_ADDRTYPE,
        nft.IFNAME,
    )
}
_TYPE_BITS = 6
_RANGES = frozenset({"ipv4_addr", "ipv6_addr", "inet_service"})
"""Types that may be given as ranges: big endian, so that the kernel's order of bytes is the order of values."""


def padded(size: int) -> int:
    """Return the size that a field takes in a concatenation or an attribute: whole registers of 4 bytes."""
    return (size + 3) & ~3


def encode(kind: Type, value: Atom) -> bytes:
    """Return one value's bytes, `kind.size` of them.

    Raises:
        Internal: The value does not fit the type; nothing that a user says should get so far.
    """
    try:
        return encoder(kind)(value)
    except (KeyError, OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise errors.Internal(
            "NFT_VALUE", f"`{value}` is no value of nftables type {kind.name}; the rule or element that has it is wrong"
        ) from error


def encode_range(kind: Type, value: Atom) -> tuple[bytes, bytes]:
    """Return the first and the last value of a prefix or range, or one value twice."""
    if not isinstance(value, str) or kind.name not in _RANGES:
        one = encode(kind, value)
        return one, one
    if "/" in value:
        address, _, length = value.partition("/")
        low = encode(kind, address)
        number, host_bits = int.from_bytes(low, "big"), kind.size * 8 - int(length)
        host = (1 << max(host_bits, 0)) - 1
        if number & host or host_bits < 0:
            raise errors.Internal("NFT_VALUE", f"`{value}` is no prefix without host bits; what has it is wrong")
        return low, (number | host).to_bytes(kind.size, "big")
    first, dash, last = value.partition("-")
    low = encode(kind, first)
    return low, encode(kind, last) if dash else low


@lru_cache(maxsize=64)
def encoder(kind: Type) -> Encode:
    """Return the function that makes bytes of this type's values; it raises what its parts raise."""
    special: dict[str, Encode] = {
        "ipv4_addr": partial(socket.inet_pton, socket.AF_INET),
        "ipv6_addr": partial(socket.inet_pton, socket.AF_INET6),
        "ether_addr": lambda value: _exactly(6, bytes.fromhex(str(value).replace(":", ""))),
        "ifname": lambda value: _exactly(16, str(value).encode().ljust(16, b"\0")),
        "inet_service": lambda value: int(value).to_bytes(2, "big"),
    }
    if kind.name in special:
        return special[kind.name]
    names, order = _NAMES.get(kind.name, {}), _order(kind)
    if kind in {nft.CT_STATE, nft.CT_STATUS}:
        return lambda value: sum(names[word] for word in str(value).split(",")).to_bytes(kind.size, order)

    def number(value: Atom) -> bytes:
        if isinstance(value, str):
            value = names[value] if value in names else int(value, 0)
        return value.to_bytes(kind.size, order)

    return number


def _order(kind: Type) -> Literal["big", "little"]:
    return sys.byteorder if kind.order == 1 else "big"


def _exactly(size: int, data: bytes) -> bytes:
    if len(data) != size:
        raise ValueError(f"{len(data)} bytes instead of {size}")
    return data


def decode(kind: Type, data: bytes) -> Atom:
    """Return the value that bytes stand for, in canonical form."""
    match kind.name:
        case "ipv4_addr":
            return socket.inet_ntop(socket.AF_INET, data)
        case "ipv6_addr":
            return str(ipaddress.IPv6Address(data))  # inet_ntop writes mapped addresses in another way
        case "ether_addr":
            return data.hex(":")
        case "ifname":
            return data.rstrip(b"\0").decode(errors="replace")
    value = int.from_bytes(data, _order(kind))
    if kind in {nft.CT_STATE, nft.CT_STATUS}:
        return ",".join(name for name, bit in _NAMES[kind.name].items() if value & bit)
    return _WORDS.get(kind.name, {}).get(value, value)


def decode_range(kind: Type, low: bytes, high: bytes) -> Atom:
    """Return a range as one value, as a prefix, or else as `first-last`."""
    if low == high:
        return decode(kind, low)
    if kind.name in {"ipv4_addr", "ipv6_addr"}:
        first, last = int.from_bytes(low, "big"), int.from_bytes(high, "big")
        host = first ^ last
        if not host & (host + 1) and not first & host:
            return f"{decode(kind, low)}/{kind.size * 8 - host.bit_length()}"
    return f"{decode(kind, low)}-{decode(kind, high)}"


def type_number(kinds: Iterable[Type]) -> int:
    """Return the number that stands for a concatenation of types (TYPE_BITS in nftables' include/datatype.h)."""
    number = 0
    for kind in kinds:
        number = number << _TYPE_BITS | kind.number
    return number


def types_of(number: int, size: int, typeof: str = "") -> tuple[Type, ...]:
    """Return the types that a set's type number names; one we do not know is an integer of the right size."""
    numbers = []
    while number:
        numbers.append(number & (1 << _TYPE_BITS) - 1)
        number >>= _TYPE_BITS
    known = tuple(_TYPES[one] for one in reversed(numbers) if one in _TYPES)
    whole = known[0].size if len(known) == 1 else sum(padded(kind.size) for kind in known)
    if len(known) == len(numbers) and whole == size:
        return known
    return (nft.Type("integer", nft.INTEGER.number, size, 0, typeof),)


class Codec(msgspec.Struct, frozen=True):
    """How the fields of a key, or of a map's data, lie in the kernel.

    Attributes:
        size: In bytes; fields of a concatenation are padded to 4 each.
        parts: Type, offset and padded size of each field.
        encoders: Of each field.
        pack: Puts the fields' bytes side by side.
    """

    size: int
    parts: tuple[tuple[Type, int, int], ...]
    encoders: tuple[Encode, ...]
    pack: Callable[..., bytes]

    def encode(self, item: tuple[Atom, ...]) -> bytes:
        """Return a key's bytes.

        Raises:
            Internal: A value does not fit, or there are too many or too few.
        """
        try:
            if len(item) == len(self.encoders) == 1:
                return self.encoders[0](item[0])
            return self.pack(*[into(value) for into, value in zip(self.encoders, item, strict=True)])
        except (KeyError, OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
            names = " . ".join(kind.name for kind, _, _ in self.parts)
            raise errors.Internal("NFT_VALUE", f"{item} is no value of nftables type {names}") from error

    def encode_range(self, item: tuple[Atom, ...]) -> tuple[bytes, bytes]:
        """Return a key's first and last bytes, each field's own."""
        if len(self.parts) == 1:
            return encode_range(self.parts[0][0], item[0])
        low = high = b""
        for (kind, _, size), value in zip(self.parts, item, strict=True):
            first, last = encode_range(kind, value)
            low += first.ljust(size, b"\0")
            high += last.ljust(size, b"\0")
        return low, high

    def decode(self, data: bytes) -> tuple[Atom, ...]:
        """Return a key's values."""
        return tuple([decode(kind, data[offset : offset + kind.size]) for kind, offset, _ in self.parts])

    def decode_range(self, low: bytes, high: bytes) -> tuple[Atom, ...]:
        """Return the values of a key with first and last bytes."""
        return tuple(
            decode_range(kind, low[offset : offset + kind.size], high[offset : offset + kind.size])
            for kind, offset, _ in self.parts
        )


@lru_cache(maxsize=256)
def codec(kinds: tuple[Type, ...]) -> Codec:
    """Return the codec of a key or of a map's data."""
    parts, offset = [], 0
    for kind in kinds:
        parts.append((kind, offset, padded(kind.size)))
        offset += padded(kind.size)
    size = kinds[0].size if len(kinds) == 1 else offset
    # `s` pads with zeros; encoders never give more than a field's size.
    layout = struct.Struct("=" + "".join(f"{room}s" for _, _, room in parts))
    return Codec(size, tuple(parts), tuple(encoder(kind) for kind in kinds), layout.pack)


def is_concat_interval(spec: Set) -> bool:
    """Tell whether a set is of the kind whose elements carry first and last key (NFT_SET_CONCAT, Linux 5.6)."""
    return spec.interval and len(spec.key) > 1
