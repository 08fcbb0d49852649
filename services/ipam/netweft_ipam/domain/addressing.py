"""Subnets and addresses as numbers, with one strict reading of their texts.

Addresses are plain ints on purpose: a batch of leases makes thousands of them, and an `ipaddress` object costs more
than all the rest of a lease.
"""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import re
from typing import Literal

from netweft_common import errors

Version = Literal[4, 6]

_BITS: dict[int, int] = {4: 32, 6: 128}
# What `ipaddress` also reads and no user means: masks as addresses, bare addresses, scope ids.
_CIDR = re.compile(r"[0-9A-Fa-f:.]{2,45}/[0-9]{1,3}")


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Subnet:
    """A prefix of one family; ordered by family, address, length.

    Attributes:
        version: 4 or 6.
        base: First address as a number.
        prefix: Prefix length in bits.
    """

    version: Version
    base: int
    prefix: int

    @property
    def bits(self) -> int:
        """Bits of an address of the family."""
        return _BITS[self.version]

    @property
    def host_bits(self) -> int:
        """Bits below the prefix."""
        return self.bits - self.prefix

    @property
    def size(self) -> int:
        """How many addresses it has, all counted."""
        return 1 << self.host_bits

    @property
    def last(self) -> int:
        """Last address as a number."""
        return self.base + self.size - 1

    def has(self, address: int) -> bool:
        """Return whether an address of the same family lies inside."""
        return self.base <= address <= self.last

    def contains(self, other: Subnet) -> bool:
        """Return whether the other subnet lies wholly inside."""
        return self.version == other.version and self.has(other.base) and self.has(other.last)

    def overlaps(self, other: Subnet) -> bool:
        """Return whether the two share an address."""
        return self.version == other.version and self.base <= other.last and other.base <= self.last

    def __str__(self) -> str:
        return f"{format_address(self.version, self.base)}/{self.prefix}"


def format_address(version: int, address: int) -> str:
    """Return the canonical text of an address (RFC 5952 for IPv6)."""
    if version == 4:
        return f"{address >> 24}.{address >> 16 & 255}.{address >> 8 & 255}.{address & 255}"
    return str(ipaddress.IPv6Address(address))


def parse_address(version: Version, text: str, *, field: str) -> int:
    """Return an address of a known family as a number.

    Args:
        version: The family that is wanted.
        text: Address without prefix length.
        field: Path of the field, for the error.

    Raises:
        InvalidArgument: Not an address, or one of the other family.
    """
    try:
        # A scope id (RFC 4007 §11) is of one host, so never part of a lease.
        return int(ipaddress.IPv4Address(text) if version == 4 else ipaddress.IPv6Address(text.replace("%", "?")))
    except ValueError:
        raise errors.InvalidArgument(
            "ADDRESS_MALFORMED",
            f"{field}: {text[:64]!r} is not an IPv{version} address; write it without a prefix length",
            field=field,
        ) from None


@functools.lru_cache(maxsize=65_536)
def _read_cidr(text: str) -> Subnet | None:
    if not _CIDR.fullmatch(text):
        return None
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
    return Subnet(network.version, int(network.network_address), network.prefixlen)


def parse_subnet(text: str, *, field: str) -> Subnet:
    """Return a subnet written as address/length.

    Args:
        text: CIDR without host bits.
        field: Path of the field, for the error.

    Raises:
        InvalidArgument: Malformed, or bits are set below the prefix.
    """
    subnet = _read_cidr(text)
    if subnet is None:
        raise errors.InvalidArgument(
            "SUBNET_MALFORMED",
            f"{field}: {text[:64]!r} is not a subnet; write it as address/length, for example 10.1.0.0/16",
            field=field,
        )
    written = parse_address(subnet.version, text.rpartition("/")[0], field=field)
    if written != subnet.base:
        raise errors.InvalidArgument(
            "SUBNET_HOST_BITS",
            f"{field}: {text} has bits set below its prefix; the subnet is {subnet}",
            field=field,
            subnet=str(subnet),
        )
    return subnet
