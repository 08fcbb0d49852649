"""Where pools come from when nobody names a subnet: libnetwork's predefined lists, or the operator's own."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

from netweft_common import errors

from netweft_ipam.domain import pools
from netweft_ipam.domain.addressing import Subnet, Version, parse_subnet
from netweft_ipam.domain.pools import Choice

# moby ipamutils: 15 networks of /16 and 16 of /20 for one host, 65,536 of /24 for the cluster.
DEFAULT_LOCAL = (
    "172.17.0.0/16,16",
    "172.18.0.0/16,16",
    "172.19.0.0/16,16",
    "172.20.0.0/14,16",
    "172.24.0.0/14,16",
    "172.28.0.0/14,16",
    "192.168.0.0/16,20",
)
DEFAULT_GLOBAL = ("10.0.0.0/8,24",)

_ULA_PREFIX = 0xFD << 120
_ULA_SIZE = 64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Predefined:
    """The predefined lists of a cluster.

    Attributes:
        local: For spaces of one host.
        global_: For spaces of many hosts.
        cluster_id: What the IPv6 /48 is derived from where a list has no IPv6 entry.
    """

    local: tuple[Choice, ...]
    global_: tuple[Choice, ...]
    cluster_id: str

    def choices(self, space: str, version: Version, size: int | None = None) -> tuple[Choice, ...]:
        """Return where a pool of a space may come from, in order; empty when no entry is wide enough.

        Args:
            space: Address space; says whether the local or the global list is used.
            version: Family.
            size: Prefix length asked for; None: each entry's own.
        """
        local = pools.is_local(space)
        listed = [choice for choice in (self.local if local else self.global_) if choice.base.version == version]
        if not listed and version == 6:
            # A space of one host has a prefix of its own, so that routed hosts never share one.
            listed = [ula(f"{self.cluster_id}/{space}" if local else self.cluster_id)]
        if size is None:
            return tuple(listed)
        return tuple(Choice(choice.base, size) for choice in listed if choice.base.prefix <= size <= choice.base.bits)


def parse(entries: Sequence[str], *, field: str) -> tuple[Choice, ...]:
    """Return a predefined list written as `base/length,size` entries; sorted, the wider of two overlapping kept.

    Raises:
        InvalidArgument: An entry is malformed, or its size is 0 or wider than its base.
    """
    return settle(_parse_entry(entry, field=f"{field}[{index}]") for index, entry in enumerate(entries))


def _parse_entry(entry: str, *, field: str) -> Choice:
    base_text, separator, size_text = entry.replace(" ", "").partition(",")
    base = parse_subnet(base_text, field=field)
    if not separator or not size_text.isascii() or not size_text.isdigit():
        raise errors.InvalidArgument(
            "PREDEFINED_MALFORMED",
            f"{field}: {entry[:80]!r} names no size; write base/length,size, for example 10.0.0.0/8,24",
            field=field,
        )
    size = int(size_text)
    if not max(1, base.prefix) <= size <= base.bits:
        raise errors.InvalidArgument(
            "PREDEFINED_SIZE",
            f"{field}: pools of /{size} cannot be cut from {base}; "
            f"the size is from {max(1, base.prefix)} to {base.bits}",
            field=field,
        )
    return Choice(base, size)


def settle(choices: Iterable[Choice]) -> tuple[Choice, ...]:
    """Return the choices sorted, dropping what lies inside a wider one (libnetwork's rule)."""
    kept: list[Choice] = []
    # Wider first at equal base, so the one that stays is seen before what it covers.
    for choice in sorted(choices, key=lambda choice: (choice.base.version, choice.base.base, choice.base.prefix)):
        if not kept or not kept[-1].base.contains(choice.base):
            kept.append(choice)
    return tuple(kept)


def ula(cluster_id: str) -> Choice:
    """Return the cluster's own IPv6 /48 (RFC 4193), cut into /64; the same id gives the same prefix for ever."""
    digest = hashlib.sha256(cluster_id.encode()).digest()
    global_id = int.from_bytes(digest[:5], "big")
    return Choice(Subnet(6, _ULA_PREFIX | (global_id << 80), 48), _ULA_SIZE)


def build(*, local: Sequence[str], global_: Sequence[str], cluster_id: str) -> Predefined:
    """Return the lists of a cluster.

    Raises:
        InvalidArgument: An entry is malformed.
    """
    return Predefined(
        local=parse(local, field="local_pools"),
        global_=parse(global_, field="global_pools"),
        cluster_id=cluster_id,
    )


def first_free(choices: Iterable[Choice], taken: Iterable[Subnet], exclude: Iterable[Subnet]) -> Subnet | None:
    """Return the first subnet of the choices that overlaps nothing taken and nothing excluded; None: all are used up.

    The store's script does the same with a cursor; this is the plain statement of the rule.
    """
    obstacles = sorted([*taken, *exclude], key=lambda subnet: subnet.base)
    for choice in choices:
        step = 1 << (choice.base.bits - choice.size)
        at = choice.base.base
        for obstacle in obstacles:
            if obstacle.version != choice.base.version or obstacle.last < at:
                continue
            if obstacle.base >= at + step or at + step - 1 > choice.base.last:
                break
            at = (obstacle.last // step + 1) * step
        if at + step - 1 <= choice.base.last:
            return Subnet(choice.base.version, at, choice.size)
    return None
