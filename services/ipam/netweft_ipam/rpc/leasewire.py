"""Leases of large answers in protobuf's writing, put together here: the library's objects cost three times as much.

A message is its fields one after the other, in any order: a byte that names the field, then a number, or a length and
so many bytes. Numbers are written 7 bits a byte, the lowest first, all but the last with the highest bit set. Three
liberties are taken, which every reader of the format must know, so that lengths are known beforehand and each part of a
lease can be taken from a table: numbers are filled up with zero bits to a fixed size; a number that comes twice has its
last value; a message that comes twice is one.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence

from netweft.ipam.v1 import ipam_pb2
from netweft_common import errors

from netweft_ipam.domain import nullspace, rows
from netweft_ipam.domain.addressing import Version, format_address
from netweft_ipam.domain.leases import Lease, LeaseColumns, LeaseHolder, OwnerKind
from netweft_ipam.domain.pools import PoolId
from netweft_ipam.rpc import convert

# What names a field: its number * 8, + 2 if a length follows.
_LEASES, _NEXT_PAGE_TOKEN = b"\x0a", b"\x12"  # ListLeasesResponse
_RESULTS, _LEASE = b"\x0a", b"\x12"  # RequestAddressesResponse, AddressResult
_POOL_ID, _ADDRESS, _OWNER, _EPOCH, _CREATE_TIME, _EXPIRE_TIME = b"\x0a", b"\x12", b"\x1a", b"\x20", b"\x2a", b"\x32"
_KEY, _HOST_ID, _KIND = b"\x0a", b"\x12", b"\x18"  # Owner
_SECONDS, _NANOS = b"\x08", b"\x10"  # Timestamp

_STAMP_BYTES = 17
_EPOCH_BYTES = 8
_FILLING_BYTES = 11  # a number has 10 bytes at most


def _number(value: int, size: int) -> bytes:
    """Return a number in so many bytes."""
    parts = [value >> 7 * at & 127 | 128 for at in range(size)]
    parts[-1] &= 127
    return bytes(parts)


def _bytes(name: bytes, value: bytes) -> bytes:
    return name + _number(len(value), 2) + value


# An epoch has 48 bits: 7 bytes of 7 bits each, every one of two neighbouring bytes of 8. What byte x gives to the first
# one of its own, and to the one before that, is found in tables; the last byte alone has no highest bit.
_EPOCH_GROUPS = 7
_EPOCH_PLANES = 6
_RIGHT = [bytes(x >> by & 127 | 128 for x in range(256)) for by in range(8)]
_LEFT = [bytes(x << by & 127 for x in range(256)) for by in range(8)]
_LAST = bytes(x >> 2 for x in range(256))


# The longest text of an address with its prefix length, and the bytes of a field that holds it, filled up.
_LONGEST = {4: len("255.255.255.255/32"), 6: len("ffff:" * 7 + "ffff/128")}
_BOTH = (False, True)
_FEW = 8
_DIGITS = (0, 10, 100, 256)  # where one digit begins, two, three


def listed(pool: PoolId, leases: LeaseColumns, *, next_page_token: str) -> bytes:
    """Return a ListLeasesResponse with these leases."""
    texts = (
        _texts_of_growing(leases.addresses, pool.subnet.prefix)
        if pool.subnet.version == 4
        else _texts_of_ipv6(leases.addresses, pool.subnet.prefix)
    )
    parts = _write(pool, leases, texts, in_results=False)
    parts.append(_bytes(_NEXT_PAGE_TOKEN, next_page_token.encode()))
    return b"".join(parts)


def granted(outcomes: Sequence[Lease | errors.NetweftError]) -> ipam_pb2.RequestAddressesResponse | None:
    """Return the answer to a request; None if it is not all leases of one pool, or too few to be worth it."""
    if len(outcomes) < _FEW or set(map(type, outcomes)) != {Lease}:
        return None
    pools, addresses, owners, epochs, created_ms, expires_ms = zip(*outcomes, strict=True)
    pool = pools[0]
    if pools.count(pool) != len(pools) or pool.space == nullspace.SPACE:
        return None
    names, host_ids, kinds = zip(*owners, strict=True)
    keys = [name.encode() for name in names]
    leases = LeaseColumns(
        addresses=addresses,
        keys=keys,
        epochs=epochs,
        created_ms=created_ms,
        expires_ms=expires_ms,
        holders=list(zip(host_ids, kinds, map(len, keys), strict=True)),  # type: ignore[arg-type]  # equal to holders
    )
    if pool.subnet.version == 4:
        prefix = pool.subnet.prefix
        texts = [_texts_of_net(address >> 8, prefix)[address & 255] for address in addresses]
    else:
        texts = _texts_of_ipv6(addresses, pool.subnet.prefix)
    return ipam_pb2.RequestAddressesResponse.FromString(b"".join(_write(pool, leases, texts, in_results=True)))


def _write(pool: PoolId, leases: LeaseColumns, texts: Iterable[bytes], *, in_results: bool) -> list[bytes]:
    columns = [
        _heads(pool, leases, in_results=in_results),
        leases.keys,
        texts,
        map(_Stamps(_CREATE_TIME).__getitem__, leases.created_ms),
        _epochs(leases.epochs),
    ]
    if any(leases.expires_ms):
        columns.append(map(_Stamps(_EXPIRE_TIME).__getitem__, leases.expires_ms))
    return rows.interleave(columns, len(leases.keys))


def _epochs(epochs: Sequence[int]) -> list[bytes]:
    """Return the fields of epochs, all of one size: put together byte by byte, each of all epochs at once."""
    count = len(epochs)
    planes = rows.planes(epochs)[:_EPOCH_PLANES]
    fields = bytearray(_EPOCH * (count * _EPOCH_BYTES))
    for group in range(_EPOCH_GROUPS):
        place, bit = divmod(group * 7, 8)
        column = planes[place].translate(_RIGHT[bit] if group < _EPOCH_GROUPS - 1 else _LAST)
        if bit > 1 and place + 1 < _EPOCH_PLANES:
            column = rows.either(column, planes[place + 1].translate(_LEFT[8 - bit]))
        fields[1 + group :: _EPOCH_BYTES] = column
    return rows.cut(bytes(fields), f"{_EPOCH_BYTES}s")


def _heads(pool: PoolId, leases: LeaseColumns, *, in_results: bool) -> Iterable[bytes]:
    """Return what stands before the owners' keys."""
    make = functools.partial(_head, (str(pool), pool.subnet.version, in_results))
    plain, expiring = _Heads(make, expires=False), _Heads(make, expires=True)
    if not any(leases.expires_ms):
        return map(plain.__getitem__, leases.holders)
    return [
        (expiring if expires_ms else plain)[holder]
        for expires_ms, holder in zip(leases.expires_ms, leases.holders, strict=True)
    ]


class _Heads(dict[LeaseHolder, bytes]):
    """What stands before an owner's key, by holder."""

    def __init__(self, make: Callable[..., bytes], *, expires: bool) -> None:
        super().__init__()
        self._make = make
        self._expires = expires

    def __missing__(self, holder: LeaseHolder) -> bytes:
        head = self[holder] = self._make(self._expires, *holder)
        return head


@functools.lru_cache(maxsize=16_384)
def _head(answer: tuple[str, Version, bool], expires: bool, host_id: str, kind: OwnerKind, key_bytes: int) -> bytes:
    pool_id, version, in_results = answer
    owner = _bytes(_HOST_ID, host_id.encode()) + _KIND + _number(convert.wire_of_kind(kind), 1)
    fields = _bytes(_POOL_ID, pool_id.encode()) + _bytes(_OWNER, owner)
    fields += _OWNER + _number(3 + key_bytes, 2) + _KEY + _number(key_bytes, 2)
    size = len(fields) + key_bytes + _address_bytes(version) + _STAMP_BYTES * (1 + expires) + _EPOCH_BYTES
    if in_results:
        return _RESULTS + _number(3 + size, 2) + _LEASE + _number(size, 2) + fields
    return _LEASES + _number(size, 2) + fields


class _Stamps(dict[int, bytes]):
    """A field with a time, by the time in ms; nothing for 0."""

    def __init__(self, name: bytes) -> None:
        super().__init__({0: b""})
        self._name = name
        self._seconds: dict[int, bytes] = {}

    def __missing__(self, ms: int) -> bytes:
        whole, rest = divmod(ms, 1000)
        start = self._seconds.get(whole)
        if start is None:
            size = _number(_STAMP_BYTES - 3, 2)
            start = self._seconds[whole] = self._name + size + _SECONDS + _number(whole, 7)
        stamp = self[ms] = start + _nanos()[rest]
        return stamp


@functools.cache
def _nanos() -> Sequence[bytes]:
    return [_NANOS + _number(ms * 1_000_000, 5) for ms in range(1000)]


# As many as a /16 has: those of a larger subnet are made again for each list of it.
@functools.lru_cache(maxsize=256)
def _texts_of_net(net: int, prefix: int) -> Sequence[bytes]:
    """Return the field of each IPv4 address that begins with these three bytes."""
    dotted = b"%d.%d.%d." % (net >> 16, net >> 8 & 255, net & 255)
    packed = bytearray()
    for lasts in _lasts(prefix):
        before = _before_address(4, dotted, len(dotted) + len(lasts[-1]))
        packed += before.join(lasts)
    return rows.cut(bytes(packed), f"{_address_bytes(4)}s")


@functools.cache
def _lasts(prefix: int) -> Sequence[Sequence[bytes]]:
    """Return what follows an address's last dot, by its digits; the first is nothing, so a join puts a start to all."""
    texts = [b"%d/%d" % (last, prefix) for last in range(256)]
    return [[b"", *texts[start:stop]] for start, stop in itertools.pairwise(_DIGITS)]


def _texts_of_growing(addresses: Sequence[int], prefix: int) -> list[bytes]:
    """Return the fields of IPv4 addresses in order, which are mostly neighbours: the table's own order is theirs."""
    texts: list[bytes] = []
    at = 0
    while at < len(addresses):
        net, last = divmod(addresses[at], 256)
        end = bisect.bisect_left(addresses, net + 1 << 8, at, min(len(addresses), at + 256 - last))
        fields = _texts_of_net(net, prefix)
        if addresses[end - 1] - addresses[at] == end - 1 - at:
            texts += fields[last : last + end - at]
        else:
            texts += [fields[address & 255] for address in addresses[at:end]]
        at = end
    return texts


def _texts_of_ipv6(addresses: Sequence[int], prefix: int) -> list[bytes]:
    texts = [f"{format_address(6, address)}/{prefix}".encode() for address in addresses]
    return [_before_address(6, text, len(text)) for text in texts]


def _address_bytes(version: Version) -> int:
    return 2 + _LONGEST[version] + 2


def _before_address(version: Version, start: bytes, size: int) -> bytes:
    """Return an address's field up to the start of its text, filled up so that all such fields have one size."""
    return _filling(_address_bytes(version) - 2 - size) + _ADDRESS + _number(size, 1) + start


@functools.cache
def _filling(size: int) -> bytes:
    """Return so many bytes, at least 2, that say epoch 0; the lease's own epoch comes later and so counts."""
    if size <= _FILLING_BYTES:
        return _EPOCH + _number(0, size - 1)
    # Not all that fits, since what is left must be 2 bytes or more.
    return _filling(_FILLING_BYTES - 2) + _filling(size - _FILLING_BYTES + 2)
