"""The sentences in which the store's refusals are told; both stores use the same ones."""

from __future__ import annotations

import datetime as dt

from netweft_common import errors

from netweft_ipam.domain.addressing import Subnet, format_address
from netweft_ipam.domain.pools import QUOTA_LABEL, PoolId, PoolUse


def pool_unknown(pool: PoolId) -> errors.NotFound:
    """The pool does not exist."""
    return errors.NotFound("POOL_UNKNOWN", f"pool {pool} does not exist; request it first", pool_id=str(pool))


def pool_overlap(asked: PoolId, other: Subnet) -> errors.FailedPrecondition:
    """The subnet asked for shares addresses with a pool of the same space."""
    return errors.FailedPrecondition(
        "POOL_OVERLAP",
        f"pool {asked} overlaps {other}, which is allocated in address space {asked.space}; "
        "choose another subnet or another address space, or release that pool",
        pool_id=str(asked),
        other=str(other),
    )


def pools_exhausted(space: str, what: str) -> errors.Exhausted:
    """No predefined pool is free."""
    return errors.Exhausted(
        "POOLS_EXHAUSTED",
        f"address space {space} has no free predefined pool {what}; name a subnet, release pools, "
        "or widen the predefined lists",
        address_space=space,
    )


def pool_in_use(pool: PoolId, held: int) -> errors.FailedPrecondition:
    """Leases stand in the way of a release."""
    return errors.FailedPrecondition(
        "POOL_IN_USE",
        f"pool {pool} cannot be released: {held} of its addresses are leased; release them first",
        pool_id=str(pool),
        leases=str(held),
    )


def pool_crowded(pool: PoolId, limit: int) -> errors.Exhausted:
    """The family has as many pools as it can have."""
    return errors.Exhausted(
        "SUB_POOLS_EXHAUSTED",
        f"subnet {pool.subnet} in {pool.space} has had {limit} pools; release them all before more are made",
        pool_id=str(pool),
    )


def request_id_reused(request_id: str) -> errors.AlreadyExists:
    """The request id came with another body before."""
    return errors.AlreadyExists(
        "REQUEST_ID_REUSED",
        f"request id {request_id!r} was used for another request within the last 24 hours; take a fresh one",
        request_id=request_id,
    )


def address_in_use(pool: PoolId, address: int, holder: str) -> errors.FailedPrecondition:
    """Another owner holds the address."""
    text = format_address(pool.subnet.version, address)
    return errors.FailedPrecondition(
        "ADDRESS_IN_USE",
        f"address {text} of pool {pool} is leased to {holder}; ask for another, or release it there",
        pool_id=str(pool),
        address=text,
        holder=holder,
    )


def address_resting(pool: PoolId, address: int, until_ms: int) -> errors.FailedPrecondition:
    """The address was released a moment ago by another owner."""
    text = format_address(pool.subnet.version, address)
    until = format_time(until_ms)
    return errors.FailedPrecondition(
        "ADDRESS_QUARANTINED",
        f"address {text} of pool {pool} rests until {until}, so that neighbours forget its last owner; "
        "ask again then, or for another",
        pool_id=str(pool),
        address=text,
        until=until,
    )


def address_outside(pool: PoolId, address: str, *, field: str) -> errors.InvalidArgument:
    """The address is not of the pool's subnet."""
    return errors.InvalidArgument(
        "ADDRESS_OUTSIDE_POOL",
        f"{field}: address {address} lies outside {pool.subnet} of pool {pool}",
        field=field,
        pool_id=str(pool),
        address=address,
    )


def address_reserved(pool: PoolId, address: int, *, field: str) -> errors.InvalidArgument:
    """The address is the subnet's first or its broadcast address."""
    text = format_address(pool.subnet.version, address)
    what = "network" if address == pool.subnet.base else "broadcast"
    return errors.InvalidArgument(
        "ADDRESS_RESERVED",
        f"{field}: address {text} is the {what} address of {pool.subnet} and is never leased",
        field=field,
        pool_id=str(pool),
        address=text,
    )


def owner_holds_another(pool: PoolId, key: str, asked: int, held: int) -> errors.AlreadyExists:
    """The owner has a lease in the pool and asks for a second address."""
    version = pool.subnet.version
    held_text = format_address(version, held)
    return errors.AlreadyExists(
        "OWNER_HOLDS_ANOTHER",
        f"owner {key} holds {held_text} in pool {pool} and asked for {format_address(version, asked)}; "
        "release the first one before",
        pool_id=str(pool),
        address=held_text,
        owner_key=key,
    )


def exhausted(pool: PoolId, use: PoolUse) -> errors.Exhausted:
    """No address is left."""
    rests = (
        f"; {use.family_quarantined} rest, the first until {format_time(use.next_free_ms)}" if use.next_free_ms else ""
    )
    return errors.Exhausted(
        "ADDRESSES_EXHAUSTED",
        f"pool {pool} is full: {use.family_leased} addresses of {pool.subnet} are leased, "
        f"{pool.capacity} can be given out{rests}; release some, or take a wider pool",
        pool_id=str(pool),
        capacity=str(pool.capacity),
        leased=str(use.family_leased),
        quarantined=str(use.family_quarantined),
        **({"next_free": format_time(use.next_free_ms)} if use.next_free_ms else {}),
    )


def quota_reached(pool: PoolId, quota: int) -> errors.Exhausted:
    """The pool's label allows no more leases."""
    return errors.Exhausted(
        "LEASE_QUOTA",
        f"pool {pool} may hold {quota} leases by its label {QUOTA_LABEL}, and does; release some",
        pool_id=str(pool),
        quota=str(quota),
    )


def not_the_owner(pool: PoolId, address: int, holder: str, key: str) -> errors.FailedPrecondition:
    """Another owner holds what is given back."""
    text = format_address(pool.subnet.version, address)
    return errors.FailedPrecondition(
        "NOT_THE_OWNER",
        f"address {text} of pool {pool} is leased to {holder}, not to {key}; nothing was released",
        pool_id=str(pool),
        address=text,
        holder=holder,
    )


def stale_epoch(pool: PoolId, address: int, held: int, named: int) -> errors.FailedPrecondition:
    """The lease that is given back is not the one that stands."""
    text = format_address(pool.subnet.version, address)
    return errors.FailedPrecondition(
        "STALE_EPOCH",
        f"address {text} of pool {pool} is leased with epoch {held}, not {named}; the named lease is over",
        pool_id=str(pool),
        address=text,
        epoch=str(held),
    )


def not_leased(pool: PoolId, address: int) -> errors.NotFound:
    """Nobody holds the address."""
    text = format_address(pool.subnet.version, address)
    return errors.NotFound(
        "LEASE_UNKNOWN", f"address {text} of pool {pool} is not leased", pool_id=str(pool), address=text
    )


def address_unknown(space: str, address: str) -> errors.NotFound:
    """No pool of the space has the address."""
    return errors.NotFound(
        "ADDRESS_UNKNOWN",
        f"no pool of address space {space} has the address {address}",
        address_space=space,
        address=address,
    )


def lease_moved(pool: PoolId, address: int, epoch: int) -> errors.FailedPrecondition:
    """The reporter's lease is over: the owner has the address elsewhere."""
    text = format_address(pool.subnet.version, address)
    return errors.FailedPrecondition(
        "STALE_EPOCH",
        f"address {text} of pool {pool} went to another host with epoch {epoch}; let it go here",
        pool_id=str(pool),
        address=text,
        epoch=str(epoch),
    )


def events_lost(pool: PoolId, event_id: str) -> errors.OutOfRange:
    """The event to continue behind is not in the history, so nobody knows what came after it."""
    return errors.OutOfRange(
        "EVENT_UNKNOWN",
        f"the history of {pool.subnet} in {pool.space} has no event {event_id} any more; list the leases, and watch "
        "from now on, or from an event that ListLeaseEvents still shows",
        pool_id=str(pool),
        event_id=event_id,
    )


def no_history(pool: PoolId) -> errors.FailedPrecondition:
    """There is nothing to watch."""
    return errors.FailedPrecondition(
        "NO_HISTORY",
        f"pool {pool} cannot be watched: this service keeps no history; start it with --events-kept above 0",
        pool_id=str(pool),
    )


def settling(pool: PoolId, missing: tuple[str, ...], wait_ms: int) -> errors.Unavailable:
    """Hosts have still to report what they hold."""
    whom = f"hosts {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}" if missing else "hosts"
    return errors.Unavailable(
        "POOL_SETTLING",
        f"pool {pool} gives nothing out yet: the store was restarted or failed over, and {whom} "
        f"have still to report what they hold; for {wait_ms / 1000:.1f} s at most",
        # The reports come at any moment; a long wait here would only add to the outage.
        retry_after_s=min(wait_ms / 1000, 0.25),
        pool_id=str(pool),
        missing=",".join(missing[:10]),
    )


def store_epoch_stale(named: str, current: str) -> errors.FailedPrecondition:
    """The report is for another history of the store."""
    return errors.FailedPrecondition(
        "STORE_EPOCH_STALE",
        f"the store's epoch is {current}, not {named}; report all leases under the current one",
        store_epoch=current,
    )


def format_time(ms: int) -> str:
    """Return RFC 3339 text, in UTC, to the millisecond."""
    return dt.datetime.fromtimestamp(ms / 1000, tz=dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
