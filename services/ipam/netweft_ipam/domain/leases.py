"""Leases: who asks, what is granted, and what is given back.

What a batch has thousands of are named tuples: a frozen dataclass takes three times as long to make.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import NamedTuple

from netweft_ipam.domain.pools import PoolId


class OwnerKind(enum.IntEnum):
    """What a lease is for; the numbers are stored."""

    ENDPOINT = 0
    GATEWAY = 1
    AUXILIARY = 2
    RESERVATION = 3

    # An enum's own hash is that of the name, found in Python: kinds are parts of keys in every lease.
    __hash__ = int.__hash__

    @property
    def is_infrastructure(self) -> bool:
        """Whether it belongs to the network itself and may go with its pool."""
        return self in (OwnerKind.GATEWAY, OwnerKind.AUXILIARY)

    @property
    def is_single(self) -> bool:
        """Whether a key can hold only one lease of it in a pool; the others may ask for several addresses by name."""
        return self is OwnerKind.ENDPOINT


class Owner(NamedTuple):
    """For whom an address is leased.

    Attributes:
        key: Stable key, 1 to 256 bytes: the same key gets the same address back while it is free.
        host_id: Host that uses the address; empty: none.
        kind: What it is for; a key holds one automatic lease of each kind in a pool.
    """

    key: str
    host_id: str = ""
    kind: OwnerKind = OwnerKind.ENDPOINT


class Lease(NamedTuple):
    """One address held by one owner.

    Attributes:
        pool: Pool that it was asked from.
        address: The address as a number.
        owner: Who holds it.
        epoch: Fencing epoch: grows with every new owner of the address.
        created_ms: Time of the grant by the store's clock, ms since the epoch.
        expires_ms: When it runs out unless renewed; 0: never.
    """

    pool: PoolId
    address: int
    owner: Owner
    epoch: int
    created_ms: int
    expires_ms: int = 0


class LeaseHolder(NamedTuple):
    """What the owners of many leases have in common.

    Attributes:
        host_id: Host that uses the address; empty: none.
        kind: What it is for.
        key_bytes: Length of the owner's key.
    """

    host_id: str
    kind: OwnerKind
    key_bytes: int


class LeaseColumns(NamedTuple):
    """Leases of one pool, one property beside the other: a full subnet has 65,000, and objects of them take seconds.

    Attributes:
        addresses: The addresses, growing.
        keys: Owners' keys, in UTF-8.
        epochs: Fencing epochs.
        created_ms: Times of the grants.
        expires_ms: When they run out unless renewed; 0: never.
        holders: What their owners share with others.
    """

    addresses: Sequence[int] = ()
    keys: Sequence[bytes] = ()
    epochs: Sequence[int] = ()
    created_ms: Sequence[int] = ()
    expires_ms: Sequence[int] = ()
    holders: Sequence[LeaseHolder] = ()

    def part(self, start: int, stop: int) -> LeaseColumns:
        """Return the leases from one position to another."""
        if start == 0 and stop >= len(self.addresses):
            return self
        return LeaseColumns(*(column[start:stop] for column in self))  # type: ignore[arg-type]  # each stays what it is

    def leases(self, pool: PoolId) -> list[Lease]:
        """Return them as leases of their pool."""
        return [
            Lease(pool, address, Owner(key.decode(), holder.host_id, holder.kind), epoch, created_ms, expires_ms)
            for address, key, epoch, created_ms, expires_ms, holder in zip(*self, strict=True)
        ]


class AddressAsk(NamedTuple):
    """A request for one address, checked against its pool.

    Attributes:
        owner: Who will hold it.
        address: The address wanted; None: any.
        ttl_s: Seconds until it runs out unless renewed; 0: never.
        serial: Whether an automatic address continues after the last one given out.
    """

    owner: Owner
    address: int | None = None
    ttl_s: int = 0
    serial: bool = False


class AddressReturn(NamedTuple):
    """One address given back, checked against its pool.

    Attributes:
        address: The address.
        owner_key: Key of the owner that gives it back; empty: whoever holds it.
        epoch: Epoch of the lease; 0: any.
    """

    address: int
    owner_key: str = ""
    epoch: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class RequestTag:
    """Identity of a mutation, so that a retry is told from a new wish (AIP-155).

    Attributes:
        id: The caller's request id; empty: none.
        fingerprint: Digest of the whole request; another one under the same id is refused.
    """

    id: str = ""
    fingerprint: bytes = b""


class Claim(NamedTuple):
    """A lease that a host says it holds.

    Attributes:
        owner: Who holds it; the host is the one that reports.
        address: The address.
        epoch: Fencing epoch of the lease as the host got it.
        ttl_s: Seconds until it runs out unless renewed; 0: never.
    """

    owner: Owner
    address: int
    epoch: int
    ttl_s: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """What a heartbeat brings.

    Attributes:
        renewed: Leases that the host holds.
        store_epoch: Identity of the store's history of writes.
        reassert: Whether the host has still to report under this epoch.
    """

    renewed: int
    store_epoch: str
    reassert: bool


class LeaseEventType(enum.IntEnum):
    """What happened to an address; the numbers are stored."""

    LEASED = 1
    RELEASED = 2
    EXPIRED = 3
    REASSERTED = 4
    TRANSFERRED = 5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LeaseEvent:
    """One thing that happened to an address.

    Attributes:
        id: Position in the history of the pool's subnet, `<ms>-<n>.<m>`.
        type: What happened.
        time_ms: When, by the store's clock.
        address: The address.
        owner: Who held it, or got it.
        epoch: Fencing epoch of the lease.
    """

    id: str
    type: LeaseEventType
    time_ms: int
    address: int
    owner: Owner
    epoch: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LeaseFilter:
    """Which leases of a pool are wanted.

    Attributes:
        owner_key: Only of this owner; empty: all.
        host_id: Only of this host; empty: all.
    """

    owner_key: str = ""
    host_id: str = ""
