"""What the service asks of a store; Redis and its twin in memory both answer it, proven by one contract suite."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

from netweft_common import errors

from netweft_ipam.domain.addressing import Subnet
from netweft_ipam.domain.leases import (
    AddressAsk,
    AddressReturn,
    Claim,
    Lease,
    LeaseColumns,
    LeaseEvent,
    LeaseFilter,
    Renewal,
    RequestTag,
)
from netweft_ipam.domain.pools import Pool, PoolAsk, PoolId
from netweft_ipam.domain.roster import Roster

NO_TAG = RequestTag()
BEFORE_ALL = "0-0.0"
"""An event id before all others: what follows it is all that is kept."""


@dataclasses.dataclass(frozen=True, slots=True)
class PoolPage:
    """Some pools in the order of space and subnet.

    Attributes:
        pools: The pools.
        next: Where the next page begins; None: this was the last.
    """

    pools: tuple[Pool, ...]
    next: PoolId | None


@dataclasses.dataclass(frozen=True, slots=True)
class LeasePage:
    """Some leases in the order of addresses.

    Attributes:
        leases: The leases; may be fewer than asked for, even none, on a page that is not the last.
        next: Address that the next page continues after; None: this was the last.
    """

    leases: LeaseColumns
    next: int | None


class Store(Protocol):
    """Pools and leases. Each call is atomic for its pool, and safe to repeat when its outcome is unknown."""

    async def request_pool(self, ask: PoolAsk, tag: RequestTag) -> Pool:
        """Reserve a pool.

        Raises:
            FailedPrecondition: It overlaps another one of its space.
            Exhausted: No predefined pool is free.
            AlreadyExists: The request id came with another body.
        """
        ...

    async def release_pool(self, pool: PoolId, *, infrastructure: bool, tag: RequestTag) -> None:
        """End a pool; its address set ends with the last pool of its subnet.

        Args:
            pool: The pool.
            infrastructure: Whether leases of gateways and auxiliary addresses go with it.
            tag: Identity of the request.

        Raises:
            NotFound: It does not exist.
            FailedPrecondition: Leases are held through it.
            AlreadyExists: The request id came with another body.
        """
        ...

    async def get_pool(self, pool: PoolId) -> Pool:
        """Return a pool with its use.

        Raises:
            NotFound: It does not exist.
        """
        ...

    async def list_pools(self, *, space: str, start: PoolId | None, limit: int) -> PoolPage:
        """Return pools of a space, or of all spaces when it is empty, from `start` on."""
        ...

    async def request_addresses(
        self, pool: PoolId, asks: Sequence[AddressAsk], tag: RequestTag
    ) -> list[Lease | errors.NetweftError]:
        """Lease addresses of one pool; each ask has its own outcome, in order.

        An owner that holds a lease of the kind through this pool gets that one again, renewed.

        Raises:
            NotFound: The pool does not exist.
            AlreadyExists: The request id came with another body.
        """
        ...

    async def release_addresses(
        self, pool: PoolId, returns: Sequence[AddressReturn], tag: RequestTag
    ) -> list[errors.NetweftError | None]:
        """Give addresses back; each has its own outcome, in order; one that nobody holds is fine.

        Raises:
            NotFound: The pool does not exist.
            AlreadyExists: The request id came with another body.
        """
        ...

    async def check_tag(self, pool: PoolId, tag: RequestTag) -> None:
        """Refuse a request id that this pool has seen with another body.

        Raises:
            AlreadyExists: It has.
        """
        ...

    async def beat_host(self, host_id: str, *, silent_ms: int = 0) -> Renewal:
        """Note that a host lives, so that none of its leases ends; renews none, and says of none until when it is.

        Args:
            host_id: The host.
            silent_ms: How long it may be silent from now on: TTLs of its leases run from the end of that time.
        """
        ...

    async def renew_host(self, host_id: str, *, silent_ms: int = 0) -> Renewal:
        """Note that a host lives, which renews all its leases; arguments as those of `beat_host`."""
        ...

    async def bind_agent(self, host_id: str, name: str) -> str:
        """Return by which name a host's agent goes: this one, if none was bound before."""
        ...

    async def set_roster(self, roster: Roster) -> None:
        """Keep which hosts there are, unless a newer list of the same controllers is kept. Idempotent."""
        ...

    async def read_roster(self, known: Roster | None) -> Roster | None:
        """Return which hosts there are; None: nobody has said. Cheap where the list that is known is the newest."""
        ...

    async def reassert(
        self, host_id: str, store_epoch: str, claims: Mapping[PoolId, Sequence[Claim]], *, complete: bool
    ) -> dict[PoolId, list[Lease | errors.NetweftError]]:
        """Take back what a host holds; pools that were lost are made again.

        Args:
            host_id: Host that reports.
            store_epoch: Epoch of the store that the report is for.
            claims: What it holds, by pool.
            complete: Whether this was all.

        Raises:
            FailedPrecondition: The store has another epoch.
        """
        ...

    async def transfer(
        self, pool: PoolId, returns: Sequence[AddressReturn], host_id: str, tag: RequestTag
    ) -> list[Lease | errors.NetweftError]:
        """Move leases to another host, with new epochs; each has its own outcome, in order.

        Raises:
            NotFound: The pool does not exist.
            AlreadyExists: The request id came with another body.
        """
        ...

    async def lookup(self, space: str, subnet: Subnet) -> Lease:
        """Return who holds an address, given as a subnet of full length.

        Raises:
            NotFound: Nobody does, or no pool of the space has it.
        """
        ...

    async def list_events(
        self, pool: PoolId, *, address: int | None, before: str, limit: int
    ) -> tuple[list[LeaseEvent], str]:
        """Return what happened in a pool's subnet, newest first, before an event id (empty: from the newest on).

        Returns:
            The events, and the id that the next page continues before; empty: this was the last.

        Raises:
            NotFound: The pool does not exist.
        """
        ...

    async def read_events(self, pool: PoolId, *, after: str, limit: int) -> list[LeaseEvent]:
        """Return what happened after an event id, oldest first; with an empty id the newest event alone, if any.

        Raises:
            NotFound: The pool does not exist.
            OutOfRange: The history has no such event any more, or never had; what came after it is not known.
            FailedPrecondition: With an empty id: no history is kept.
        """
        ...

    async def observe(self) -> None:
        """Notice a change of the store's history, and end what waits for it; call it every half second or so."""
        ...

    async def list_leases(self, pool: PoolId, *, wanted: LeaseFilter, after: int | None, limit: int) -> LeasePage:
        """Return leases held through a pool, behind the address `after`.

        Raises:
            NotFound: The pool does not exist.
        """
        ...

    async def sweep(self) -> int:
        """End all leases whose time is over, and free what has rested long enough; returns how many ended."""
        ...

    async def weaknesses(self) -> list[str]:
        """Return in sentences what the store lacks; an empty list is good.

        Raises:
            Unavailable: It does not answer.
        """
        ...

    async def check(self) -> None:
        """Raise Unavailable unless the store answers."""
        ...

    async def aclose(self) -> None:
        """Close connections."""
        ...
