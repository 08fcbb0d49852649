"""Protobuf to domain values and back; the only place that knows both, and where requests are checked."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence

from google.protobuf import timestamp_pb2
from netweft.ipam.v1 import ipam_pb2
from netweft_common import errors

from netweft_ipam.domain import nullspace, pools, refusals
from netweft_ipam.domain.addressing import Subnet, Version, format_address, parse_address, parse_subnet
from netweft_ipam.domain.leases import (
    AddressAsk,
    AddressReturn,
    Claim,
    Lease,
    LeaseEvent,
    LeaseEventType,
    LeaseFilter,
    Owner,
    OwnerKind,
)
from netweft_ipam.domain.pools import Pool, PoolAsk, PoolId
from netweft_ipam.domain.predefined import Predefined
from netweft_ipam.domain.roster import Roster
from netweft_ipam.rpc import limits

HOSTS_LIMIT = 100_000
_UINT64_MAX = 2**64 - 1
_POOL_PAGE, _POOL_PAGE_LIMIT = 100, 1000
_LEASE_PAGE, _LEASE_PAGE_LIMIT = 100, 4096

# Epochs are kept in 6 bytes, and are seconds since 1970 times 2^16. What a host reports must leave room above itself,
# or a broken one would leave its pool none for grants: until 2105 no lease comes near.
_EPOCH_LIMIT = (1 << 48) - (1 << 40)
_EVENT_ID = re.compile(r"[0-9]{1,15}-[0-9]{1,9}\.[0-9]{1,9}")

_WIRE_OF_EVENT = {
    LeaseEventType.LEASED: ipam_pb2.LEASE_EVENT_TYPE_LEASED,
    LeaseEventType.RELEASED: ipam_pb2.LEASE_EVENT_TYPE_RELEASED,
    LeaseEventType.EXPIRED: ipam_pb2.LEASE_EVENT_TYPE_EXPIRED,
    LeaseEventType.REASSERTED: ipam_pb2.LEASE_EVENT_TYPE_REASSERTED,
    LeaseEventType.TRANSFERRED: ipam_pb2.LEASE_EVENT_TYPE_TRANSFERRED,
}

_KIND_OF_WIRE = {
    ipam_pb2.OWNER_KIND_UNSPECIFIED: OwnerKind.ENDPOINT,
    ipam_pb2.OWNER_KIND_ENDPOINT: OwnerKind.ENDPOINT,
    ipam_pb2.OWNER_KIND_GATEWAY: OwnerKind.GATEWAY,
    ipam_pb2.OWNER_KIND_AUXILIARY: OwnerKind.AUXILIARY,
    ipam_pb2.OWNER_KIND_RESERVATION: OwnerKind.RESERVATION,
}
_WIRES_OF_KINDS = (  # by OwnerKind
    ipam_pb2.OWNER_KIND_ENDPOINT,
    ipam_pb2.OWNER_KIND_GATEWAY,
    ipam_pb2.OWNER_KIND_AUXILIARY,
    ipam_pb2.OWNER_KIND_RESERVATION,
)


def roster(request: ipam_pb2.SetHostsRequest) -> Roster:
    """Return a checked list of the cluster's hosts.

    Raises:
        InvalidArgument: It is too long, a host has no id or a malformed one, or the list says any and names some.
    """
    if not request.store_id:
        raise errors.InvalidArgument("FIELD_MISSING", "store_id: name the controllers' store", field="store_id")
    if len(request.hosts) > HOSTS_LIMIT:
        raise errors.InvalidArgument(
            "TOO_MANY_HOSTS", f"hosts: {len(request.hosts)}; a list takes up to {HOSTS_LIMIT}", field="hosts"
        )
    if request.any and request.hosts:
        raise errors.InvalidArgument(
            "HOSTS_CONTRADICT", "hosts: leave them out where any host is let in, or unset any", field="hosts"
        )
    names = {
        limits.check_host_id(host.id, field=f"hosts[{index}].id", required=True): limits.check_host_id(
            host.name, field=f"hosts[{index}].name", required=False
        )
        for index, host in enumerate(request.hosts)
    }
    return Roster(store_id=request.store_id, revision=request.revision, names=None if request.any else names)


def pool_ask(request: ipam_pb2.RequestPoolRequest, predefined: Predefined) -> PoolAsk:
    """Return a checked request for a pool.

    Raises:
        InvalidArgument: A field is malformed, or contradicts another.
        Exhausted: No predefined list has a stretch for what is asked.
    """
    space = pools.check_space(request.address_space, field="address_space")
    if space == nullspace.SPACE:
        return nullspace.ask(request.subnet, request.ip_range, ipv6=request.ipv6)
    labels = limits.check_labels(request.labels)
    if pools.QUOTA_LABEL in labels and pools.quota(labels) is None:
        raise errors.InvalidArgument(
            "QUOTA_MALFORMED",
            f"labels[{pools.QUOTA_LABEL}]: {labels[pools.QUOTA_LABEL][:32]!r} is no number of leases",
            field="labels",
        )
    if len(request.exclude) > limits.EXCLUDE_COUNT:
        raise errors.InvalidArgument(
            "EXCLUDE_COUNT",
            f"exclude: {len(request.exclude)} prefixes; a call takes up to {limits.EXCLUDE_COUNT}",
            field="exclude",
        )
    exclude = [parse_subnet(text, field=f"exclude[{index}]") for index, text in enumerate(request.exclude)]
    subnet = _named_subnet(request)
    if subnet is not None and subnet.base:
        part = _range(request.ip_range, subnet) if request.ip_range else None
        return PoolAsk(space=space, subnet=subnet, range=part, labels=labels)
    if request.ip_range:
        raise errors.InvalidArgument(
            "RANGE_WITHOUT_SUBNET",
            f"ip_range: {request.ip_range[:64]} needs the subnet that it is a part of; name it too",
            field="ip_range",
        )
    version: Version = subnet.version if subnet is not None else (6 if request.ipv6 else 4)
    size = subnet.prefix if subnet is not None else None
    choices = predefined.choices(space, version, size)
    if not choices and size is not None:
        raise errors.InvalidArgument(
            "SUBNET_SIZE",
            f"subnet: no predefined stretch of {space} holds an IPv{version} pool of /{size}; "
            "take a longer prefix, or name a subnet",
            field="subnet",
        )
    if not choices:
        raise refusals.pools_exhausted(space, f"of IPv{version}")
    return PoolAsk(space=space, choices=choices, exclude=tuple(sorted(exclude)), labels=labels)


def _named_subnet(request: ipam_pb2.RequestPoolRequest) -> Subnet | None:
    if not request.subnet:
        return None
    subnet = parse_subnet(request.subnet, field="subnet")
    if subnet.prefix == 0:
        raise errors.InvalidArgument(
            "SUBNET_SIZE", f"subnet: {request.subnet} is a whole family, not a pool; name a subnet", field="subnet"
        )
    return subnet


def _range(text: str, subnet: Subnet) -> Subnet:
    part = parse_subnet(text, field="ip_range")
    if part.contains(subnet):
        # libnetwork takes a range that is wider than its pool as the pool.
        return subnet
    if not subnet.contains(part):
        raise errors.InvalidArgument(
            "RANGE_OUTSIDE_SUBNET", f"ip_range: {text} lies outside the subnet {subnet}", field="ip_range"
        )
    return part


def pool_id(text: str, *, field: str = "pool_id") -> PoolId:
    """Return a checked pool id.

    Raises:
        InvalidArgument: It is malformed.
    """
    return pools.parse_pool_id(text, field=field)


def plain_asks(items: Sequence[ipam_pb2.AddressRequest]) -> tuple[PoolId, list[AddressAsk]] | None:
    """Return a batch's pool and requests if they are all well formed, of one pool, and leave the choice to it."""
    pool_text = items[0].pool_id
    pool = pools.find_pool_id(pool_text)
    if pool is None:
        return None
    kinds, hosts, make = _KIND_OF_WIRE, set[str](), tuple.__new__
    asks = []
    for item in items:
        wire = item.owner
        kind, key, host_id, ttl_s = kinds.get(wire.kind), wire.key, wire.host_id, item.ttl_seconds
        if host_id not in hosts:
            if not limits.is_host_id(host_id):
                return None
            hosts.add(host_id)
        if (
            not 0 < len(key) <= limits.SURELY_SHORT
            or kind is None
            or ttl_s > limits.TTL_LIMIT_S
            or item.address
            or item.pool_id != pool_text
        ):
            return None
        # What the named tuples' own constructors do, in half the time.
        asks.append(make(AddressAsk, (make(Owner, (key, host_id, kind)), None, ttl_s, item.serial)))
    return pool, asks


def address_ask(index: int, item: ipam_pb2.AddressRequest) -> tuple[PoolId, AddressAsk]:
    """Return a checked request for an address.

    Raises:
        InvalidArgument: A field is malformed, or the address is not one that its pool can lease.
    """
    pool = pools.find_pool_id(item.pool_id)
    if pool is None:
        raise pools.malformed_pool_id(item.pool_id, field=f"items[{index}].pool_id")
    wire = item.owner
    kind = _KIND_OF_WIRE.get(wire.kind)
    if kind is None:
        raise errors.InvalidArgument(
            "OWNER_KIND_UNKNOWN",
            f"items[{index}].owner.kind: {wire.kind} is no owner kind; known are 1 to 4",
            field=f"items[{index}].owner.kind",
        )
    key, host_id, ttl_s = wire.key, wire.host_id, item.ttl_seconds
    # Names of fields are written only for what looks wrong: a batch has thousands of items that are right.
    if not 0 < len(key) <= limits.SURELY_SHORT:
        limits.check_owner_key(key, field=f"items[{index}].owner.key")
    if host_id and not limits.is_host_id(host_id):
        limits.check_host_id(host_id, field=f"items[{index}].owner.host_id")
    if ttl_s > limits.TTL_LIMIT_S:
        limits.check_ttl(ttl_s, field=f"items[{index}].ttl_seconds")
    address = _leasable(pool, item.address, field=f"items[{index}].address") if item.address else None
    return pool, AddressAsk(Owner(key, host_id, kind), address, ttl_s, item.serial)


def _leasable(pool: PoolId, text: str, *, field: str) -> int:
    address = _address(pool, text, field=field)
    if pool.is_reserved(address):
        raise refusals.address_reserved(pool, address, field=field)
    return address


def address_return(index: int, item: ipam_pb2.AddressRelease) -> tuple[PoolId, AddressReturn]:
    """Return a checked release of an address.

    Raises:
        InvalidArgument: A field is malformed, or the address is outside its pool.
    """
    pool = pools.parse_pool_id(item.pool_id, field=f"items[{index}].pool_id")
    address = _address(pool, item.address, field=f"items[{index}].address")
    key = limits.check_owner_key(item.owner_key, field=f"items[{index}].owner_key", required=False)
    return pool, AddressReturn(address, key, item.epoch)


def _address(pool: PoolId, text: str, *, field: str) -> int:
    subnet = pool.subnet
    address = parse_address(subnet.version, text, field=field)
    if not subnet.has(address):
        raise refusals.address_outside(pool, text, field=field)
    return address


def address_of(pool: PoolId, text: str, *, field: str) -> int:
    """Return an address of a pool's subnet.

    Raises:
        InvalidArgument: It is malformed, or outside the subnet.
    """
    return _address(pool, text, field=field)


def single(text: str, *, field: str) -> Subnet:
    """Return an address of either family, as a subnet of full length.

    Raises:
        InvalidArgument: It is malformed.
    """
    version: Version = 6 if ":" in text else 4
    return Subnet(version, parse_address(version, text, field=field), 128 if version == 6 else 32)


def claim(index: int, lease: ipam_pb2.Lease, host_id: str) -> tuple[PoolId, Claim]:
    """Return a checked lease that a host reports.

    Raises:
        InvalidArgument: A field is malformed.
    """
    pool = pools.parse_pool_id(lease.pool_id, field=f"leases[{index}].pool_id")
    # What is taken back makes its pool again if that was lost: it must be one that could have been requested.
    if pool.space == nullspace.SPACE or pool.subnet.prefix == 0:
        raise errors.InvalidArgument(
            "POOL_NOT_KEPT",
            f"leases[{index}].pool_id: {pool} is no pool whose leases are kept, so there is nothing to take back",
            field=f"leases[{index}].pool_id",
        )
    address = _leasable(pool, lease.address.partition("/")[0], field=f"leases[{index}].address")
    kind = _KIND_OF_WIRE.get(lease.owner.kind, OwnerKind.ENDPOINT)
    key = limits.check_owner_key(lease.owner.key, field=f"leases[{index}].owner.key")
    if not 0 < lease.epoch < _EPOCH_LIMIT:
        raise errors.InvalidArgument(
            "EPOCH_MALFORMED",
            f"leases[{index}].epoch: {lease.epoch} is no epoch that a lease was given",
            field=f"leases[{index}].epoch",
        )
    ttl_s = 0
    if lease.HasField("expire_time"):
        # What was asked for is not kept by the host; the time that was left from the grant on is at least that.
        ttl_s = max(1, lease.expire_time.seconds - lease.create_time.seconds)
    return pool, Claim(Owner(key, host_id, kind), address, lease.epoch, limits.check_ttl(ttl_s, field="leases"))


def event_id(text: str, *, field: str) -> str:
    """Return an event id, or the empty text.

    Raises:
        InvalidArgument: It is malformed.
    """
    if text and not _EVENT_ID.fullmatch(text):
        raise errors.InvalidArgument(
            "EVENT_ID_MALFORMED", f"{field}: {text[:64]!r} is no event id; take one from an event", field=field
        )
    return text


def to_event(pool: PoolId, event: LeaseEvent) -> ipam_pb2.LeaseEvent:
    """Return an event's wire form."""
    return ipam_pb2.LeaseEvent(
        id=event.id,
        type=_WIRE_OF_EVENT[event.type],
        time=_timestamp(event.time_ms),
        address=f"{format_address(pool.subnet.version, event.address)}/{pool.subnet.prefix}",
        owner_key=event.owner.key,
        host_id=event.owner.host_id,
        epoch=event.epoch,
    )


def lease_filter(request: ipam_pb2.ListLeasesRequest) -> LeaseFilter:
    """Return what a listing of leases wants.

    Raises:
        InvalidArgument: A field is malformed.
    """
    return LeaseFilter(
        owner_key=limits.check_owner_key(request.owner_key, field="owner_key", required=False),
        host_id=limits.check_host_id(request.host_id, field="host_id"),
    )


def page_limit(size: int, *, of_leases: bool) -> int:
    """Return how many entries a page has.

    Raises:
        InvalidArgument: The size is negative.
    """
    if size < 0:
        raise errors.InvalidArgument("PAGE_SIZE", f"page_size: {size} is negative", field="page_size")
    default, limit = (_LEASE_PAGE, _LEASE_PAGE_LIMIT) if of_leases else (_POOL_PAGE, _POOL_PAGE_LIMIT)
    return min(size or default, limit)


def to_token(text: str) -> str:
    """Return an opaque page token."""
    return base64.urlsafe_b64encode(text.encode()).decode()


def from_token(token: str) -> str:
    """Return what a page token says.

    Raises:
        InvalidArgument: It is not one of ours.
    """
    try:
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise bad_token() from None


def bad_token() -> errors.InvalidArgument:
    """The page token is not one of ours."""
    return errors.InvalidArgument(
        "PAGE_TOKEN_MALFORMED", "page_token: not a token of an earlier page; start without one", field="page_token"
    )


def pool_start(token: str) -> PoolId | None:
    """Return where a page of pools begins.

    Raises:
        InvalidArgument: The token is malformed.
    """
    if not token:
        return None
    try:
        return pools.parse_pool_id(from_token(token), field="page_token")
    except errors.InvalidArgument:
        raise bad_token() from None


def lease_after(token: str, pool: PoolId) -> int | None:
    """Return the address that a page of leases continues after.

    Raises:
        InvalidArgument: The token is malformed, or of another pool.
    """
    if not token:
        return None
    try:
        address = int(from_token(token), 16)
    except ValueError:
        raise bad_token() from None
    if not pool.subnet.has(address):
        raise bad_token()
    return address


def to_pool(pool: Pool) -> ipam_pb2.Pool:
    """Return a pool's wire form."""
    use = pool.use
    wire = ipam_pb2.PoolUse(
        capacity=min(pool.id.capacity, _UINT64_MAX),
        leased=use.leased,
        quarantined=use.quarantined,
        reserved=min(pool.id.reserved, _UINT64_MAX),
        next_free_time=_timestamp(use.next_free_ms) if use.next_free_ms else None,
    )
    return ipam_pb2.Pool(
        id=str(pool.id),
        address_space=pool.id.space,
        subnet=str(pool.id.subnet),
        ip_range="" if pool.id.range is None else str(pool.id.range),
        labels=pool.labels,
        use=wire,
        create_time=_timestamp(pool.created_ms),
    )


def wire_of_kind(kind: OwnerKind) -> int:
    """Return an owner kind's number in the contract."""
    return _WIRES_OF_KINDS[kind]


class LeaseWriter:
    """Writes leases of one answer of one pool or several; what they share is written once and copied from then on."""

    def __init__(self) -> None:
        self._pool: PoolId | None = None
        self._pool_text = ""
        self._suffix = ""
        # Messages already written, to copy from.
        self._written: dict[tuple[str, OwnerKind, int], ipam_pb2.Lease] = {}

    def write(self, lease: Lease, wire: ipam_pb2.Lease) -> None:
        """Write a lease into an empty message, which is a third of the cost of making one."""
        pool, address, owner, epoch, created_ms, expires_ms = lease
        if pool is not self._pool:
            self._pool, self._pool_text, self._suffix = pool, str(pool), f"/{pool.subnet.prefix}"
            self._written.clear()
        shared = owner.host_id, owner.kind, created_ms
        like = self._written.get(shared)
        if like is None:
            wire.pool_id = self._pool_text
            wire_owner = wire.owner
            wire_owner.host_id = owner.host_id
            wire_owner.kind = _WIRES_OF_KINDS[owner.kind]
            _stamp(wire.create_time, created_ms)
            if not expires_ms:
                self._written[shared] = wire
        else:
            wire.CopyFrom(like)
            wire_owner = wire.owner
        wire_owner.key = owner.key
        if pool.space != nullspace.SPACE:
            wire.address = format_address(pool.subnet.version, address) + self._suffix
        wire.epoch = epoch
        if expires_ms:
            _stamp(wire.expire_time, expires_ms)


def _stamp(wire: timestamp_pb2.Timestamp, ms: int) -> None:
    wire.seconds = ms // 1000
    wire.nanos = ms % 1000 * 1_000_000


def _timestamp(ms: int) -> timestamp_pb2.Timestamp:
    return timestamp_pb2.Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)
