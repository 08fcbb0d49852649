"""The leases of a listing in protobuf's writing, put together here: the library's objects cost three times as much.

A message is its fields one after the other, in any order: a byte that names the field, then a number, or a length and
so many bytes. Numbers are written 7 bits a byte, the lowest first, all but the last with the highest bit set. Three
liberties are taken, which every reader of the format must know, so that lengths are known beforehand and each part of a
lease can be taken from a table: numbers are filled up with zero bits to a fixed size; a number that comes twice has its
last value; a message that comes twice is one. The library reads what is written here, and writes it in the usual way
when it sends.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import operator
from collections.abc import Iterable, Sequence

from netweft.ipam.v1 import ipam_pb2

from netweft_ipam.domain.addressing import Version, format_address
from netweft_ipam.domain.leases import LeaseColumns, LeaseHolder, OwnerKind
from netweft_ipam.domain.pools import PoolId
from netweft_ipam.rpc import convert

# What names a field: its number * 8, + 2 if a length follows.
_LEASES = b"\x0a"  # ListLeasesResponse.leases
_POOL_ID, _ADDRESS, _OWNER, _EPOCH, _CREATE_TIME, _EXPIRE_TIME = b"\x0a", b"\x12", b"\x1a", b"\x20", b"\x2a", b"\x32"
_KEY, _HOST_ID, _KIND = b"\x0a", b"\x12", b"\x18"  # Owner
_SECONDS, _NANOS = b"\x08", b"\x10"  # Timestamp

_STAMP_BYTES = 17
_EPOCH_BYTES = 8
_FILLING_BYTES = 11  # a number has 10 bytes at most
_LOW_BITS = 14
_LOW_MASK = (1 << _LOW_BITS) - 1


def _number(value: int, size: int) -> bytes:
    """Return a number in so many bytes."""
    parts = [value >> 7 * at & 127 | 128 for at in range(size)]
    parts[-1] &= 127
    return bytes(parts)


def _bytes(name: bytes, value: bytes) -> bytes:
    return name + _number(len(value), 2) + value


# An epoch has 48 bits, of which leases that were granted together share the high ones.
_EPOCH_STARTS = [_EPOCH + _number(low | 1 << _LOW_BITS, 3)[:2] for low in range(1 << _LOW_BITS)]


# The longest text of an address with its prefix length, and the bytes of a field that holds it, filled up.
_LONGEST = {4: len("255.255.255.255/32"), 6: len("ffff:" * 7 + "ffff/128")}
_BOTH = (False, True)
_LASTS = [b"%d" % last for last in range(256)]
_ONES, _TENS, _HUNDREDS = 10, 90, 156  # how many of them have one digit, two, three


def write(pool: PoolId, leases: LeaseColumns) -> ipam_pb2.ListLeasesResponse:
    """Return a page with these leases."""
    subnet = pool.subnet
    texts = (
        _texts_of_ipv4(leases.addresses, subnet.prefix)
        if subnet.version == 4
        else _texts_of_ipv6(leases.addresses, subnet.prefix)
    )
    stamps, ends = _Stamps(_CREATE_TIME), _EpochEnds()
    columns: list[Iterable[bytes]] = [
        _heads(pool, leases),
        leases.keys,
        texts,
        map(stamps.__getitem__, leases.created_ms),
        [_EPOCH_STARTS[epoch & _LOW_MASK] for epoch in leases.epochs],
        [ends[epoch >> _LOW_BITS] for epoch in leases.epochs],
    ]
    if any(leases.expires_ms):
        columns.append(map(_Stamps(_EXPIRE_TIME).__getitem__, leases.expires_ms))
    parts = itertools.chain.from_iterable(zip(*columns, strict=True))
    return ipam_pb2.ListLeasesResponse.FromString(b"".join(parts))


def _heads(pool: PoolId, leases: LeaseColumns) -> Iterable[bytes]:
    """Return what stands before the owners' keys."""
    pool_id, version = str(pool), pool.subnet.version
    sizes = set(map(len, leases.keys))
    if len(sizes) == 1 and not any(leases.expires_ms):
        heads = _Heads(pool_id, version, sizes.pop(), expires=False)
        return map(heads.__getitem__, leases.holders)
    tables = {(size, expires): _Heads(pool_id, version, size, expires=expires) for size in sizes for expires in _BOTH}
    return [
        tables[len(key), expires > 0][holder]
        for key, expires, holder in zip(leases.keys, leases.expires_ms, leases.holders, strict=True)
    ]


class _Heads(dict[LeaseHolder, bytes]):
    """What stands before an owner's key, by holder, for keys of one size."""

    def __init__(self, pool_id: str, version: Version, key_bytes: int, *, expires: bool) -> None:
        super().__init__()
        self._make = functools.partial(_head, pool_id, _address_bytes(version), key_bytes, expires=expires)

    def __missing__(self, holder: LeaseHolder) -> bytes:
        head = self[holder] = self._make(holder.host_id, holder.kind)
        return head


@functools.lru_cache(maxsize=16_384)
def _head(pool_id: str, address_bytes: int, key_bytes: int, host_id: str, kind: OwnerKind, *, expires: bool) -> bytes:
    owner = _bytes(_HOST_ID, host_id.encode()) + _KIND + _number(convert.wire_of_kind(kind), 1)
    fields = _bytes(_POOL_ID, pool_id.encode()) + _bytes(_OWNER, owner)
    fields += _OWNER + _number(3 + key_bytes, 2) + _KEY + _number(key_bytes, 2)
    size = len(fields) + key_bytes + address_bytes + _STAMP_BYTES * (1 + expires) + _EPOCH_BYTES
    return _LEASES + _number(size, 2) + fields


class _Stamps(dict[int, bytes]):
    """A field with a time, by the time in ms; nothing for 0."""

    def __init__(self, name: bytes) -> None:
        super().__init__({0: b""})
        self._name = name

    def __missing__(self, ms: int) -> bytes:
        seconds, nanos = _number(ms // 1000, 7), _number(ms % 1000 * 1_000_000, 5)
        stamp = self[ms] = _bytes(self._name, _SECONDS + seconds + _NANOS + nanos)
        return stamp


class _EpochEnds(dict[int, bytes]):
    """The high bits of an epoch."""

    def __missing__(self, high: int) -> bytes:
        end = self[high] = _number(high, 5)
        return end


def _texts_of_ipv4(addresses: Sequence[int], prefix: int) -> list[bytes]:
    length = b"/%d" % prefix
    lasts = [last + length for last in _LASTS]
    texts: list[bytes] = []
    at = 0
    while at < len(addresses):
        net = addresses[at] >> 8
        stop = bisect.bisect_left(addresses, (net + 1) << 8, at)
        dotted = b"%d.%d.%d." % (net >> 16, net >> 8 & 255, net & 255)
        one, two, three = (_before_address(4, dotted, len(dotted) + digits + len(length)) for digits in (1, 2, 3))
        starts = [one] * _ONES + [two] * _TENS + [three] * _HUNDREDS
        part = [address & 255 for address in addresses[at:stop]]
        texts += map(operator.add, map(starts.__getitem__, part), map(lasts.__getitem__, part))
        at = stop
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
