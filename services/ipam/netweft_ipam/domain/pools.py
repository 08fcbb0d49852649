"""Pools: their ids, what of them can be leased, and the values that the store keeps of them."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping

from netweft_common import errors

from netweft_ipam.domain.addressing import Subnet, parse_subnet

LOCAL_DEFAULT = "LocalDefault"
GLOBAL_DEFAULT = "GlobalDefault"

# A pool with this label holds at most so many leases, whatever its size.
QUOTA_LABEL = "netweft.quota.leases"

_SPACE = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class PoolId:
    """Identity of a pool; ordered as pools are listed.

    Pools of one subnet are a *family*: they share one set of addresses, so no two of them ever lease the same one.

    Attributes:
        space: Address space.
        subnet: The subnet.
        range: Part of the subnet that automatic addresses come from; None: all of it.
    """

    space: str
    subnet: Subnet
    range: Subnet | None = None
    # Ids are keys everywhere, and made once.
    _hash: int = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.space, self.subnet, self.range)))

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        return _text(self)

    @property
    def family(self) -> PoolId:
        """The pool of the whole subnet."""
        return self if self.range is None else PoolId(self.space, self.subnet)

    @property
    def reserves_ends(self) -> bool:
        """Whether the first address (and the last one of IPv4) is kept out: not in subnets of one or two addresses."""
        return self.subnet.host_bits > 1

    @property
    def first(self) -> int:
        """Lowest address that is given out automatically."""
        low = self.subnet.base + 1 if self.reserves_ends else self.subnet.base
        return low if self.range is None else max(low, self.range.base)

    @property
    def last(self) -> int:
        """Highest address that is given out automatically."""
        high = self.subnet.last - 1 if self.reserves_ends and self.subnet.version == 4 else self.subnet.last
        return high if self.range is None else min(high, self.range.last)

    @property
    def capacity(self) -> int:
        """How many addresses can be given out automatically."""
        return max(0, self.last - self.first + 1)

    @property
    def reserved(self) -> int:
        """How many addresses of the subnet or range are kept out of allocation."""
        return (self.range or self.subnet).size - self.capacity

    def is_reserved(self, address: int) -> bool:
        """Return whether an address of the subnet is its network or broadcast address, never leased at all."""
        if not self.reserves_ends:
            return False
        return address == self.subnet.base or (self.subnet.version == 4 and address == self.subnet.last)


@functools.lru_cache(maxsize=65_536)
def _text(pool: PoolId) -> str:
    return f"{pool.space}/{pool.subnet}" + (f"/{pool.range}" if pool.range is not None else "")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PoolUse:
    """How full a pool is.

    Attributes:
        leased: Leases held through this pool.
        quarantined: Addresses released through this pool that still rest.
        next_free_ms: When the next quarantined address of the family becomes free, ms since the epoch; 0: none rests.
        family_leased: Leases held through any pool of the subnet.
        family_quarantined: Addresses of the subnet that still rest.
    """

    leased: int = 0
    quarantined: int = 0
    next_free_ms: int = 0
    family_leased: int = 0
    family_quarantined: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A pool as it stands.

    Attributes:
        id: Its identity.
        labels: The user's labels.
        created_ms: Time of creation by the store's clock, ms since the epoch.
        use: How full it is.
    """

    id: PoolId
    labels: Mapping[str, str]
    created_ms: int
    use: PoolUse = PoolUse()


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """A stretch of address space that automatic pools are cut from.

    Attributes:
        base: The stretch.
        size: Prefix length of each pool cut from it, at least the stretch's own.
    """

    base: Subnet
    size: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PoolAsk:
    """A request for a pool, checked.

    Attributes:
        space: Address space.
        subnet: The subnet asked for; None: the first free of `choices`.
        range: Range inside `subnet`, or None.
        choices: Where an automatic subnet comes from, in order.
        exclude: What an automatic subnet must not overlap, sorted.
        labels: The user's labels.
    """

    space: str
    subnet: Subnet | None = None
    range: Subnet | None = None
    choices: tuple[Choice, ...] = ()
    exclude: tuple[Subnet, ...] = ()
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)


def quota(labels: Mapping[str, str]) -> int | None:
    """Return how many leases a pool of such labels may hold; None: as many as it has addresses."""
    text = labels.get(QUOTA_LABEL)
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def is_local(space: str) -> bool:
    """Return whether a space is of one host: `LocalDefault`, or `LocalDefault:<host id>` and the like."""
    return space.startswith(LOCAL_DEFAULT)


def check_space(space: str, *, field: str) -> str:
    """Return an address space's name.

    Raises:
        InvalidArgument: Empty, too long, or of other characters than letters, digits and _.:-
    """
    if not _SPACE.fullmatch(space):
        raise errors.InvalidArgument(
            "ADDRESS_SPACE_MALFORMED",
            f"{field}: {space[:80]!r} is not an address space; use 1 to 64 letters, digits or _.:-, "
            f"for example {LOCAL_DEFAULT} or {GLOBAL_DEFAULT}",
            field=field,
        )
    return space


@functools.lru_cache(maxsize=65_536)
def find_pool_id(text: str) -> PoolId | None:
    """Return a pool id, the same object for the same text while it is remembered; None when it is malformed."""
    space, *rest = text.split("/")
    if not _SPACE.fullmatch(space) or len(rest) not in (2, 4):
        return None
    try:
        subnet = parse_subnet("/".join(rest[:2]), field="")
        part = parse_subnet("/".join(rest[2:]), field="") if rest[2:] else None
    except errors.InvalidArgument:
        return None
    if part is not None and not subnet.contains(part):
        return None
    return PoolId(space, subnet, part)


def malformed_pool_id(text: str, *, field: str) -> errors.InvalidArgument:
    """The text is no pool id."""
    return errors.InvalidArgument(
        "POOL_ID_MALFORMED",
        f"{field}: {text[:160]!r} is not a pool id; it reads <address space>/<subnet> or "
        "<address space>/<subnet>/<ip range>, for example LocalDefault/10.1.0.0/16",
        field=field,
    )


def parse_pool_id(text: str, *, field: str) -> PoolId:
    """Return a pool id written `<space>/<subnet>` or `<space>/<subnet>/<range>`.

    Raises:
        InvalidArgument: Any other form.
    """
    pool = find_pool_id(text)
    if pool is None:
        raise malformed_pool_id(text, field=field)
    return pool
