"""Leases of large answers in protobuf's writing, put together here: the library's objects cost three times as much.

A message is its fields one after the other, in any order: a byte that names the field, then a number, or a length and
so many bytes. Numbers are written 7 bits a byte, the lowest first, all but the last with the highest bit set. Three
liberties are taken, which every reader of the format must know, so that lengths are known beforehand and each part of a
lease can be taken from a table: numbers are filled up with zero bits to a fixed size; a number that comes twice has its
last value; a message that comes twice is one.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Sequence

from netweft.ipam.v1 import ipam_pb2
from netweft_common import errors

from netweft_ipam.domain import nullspace
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
_FEW = 8
_ONES, _TENS, _HUNDREDS = 10, 90, 156  # how many of them have one digit, two, three


def listed(pool: PoolId, leases: LeaseColumns, *, next_page_token: str) -> bytes:
    """Return a ListLeasesResponse with these leases."""
    return _write(pool, leases, in_results=False) + _bytes(_NEXT_PAGE_TOKEN, next_page_token.encode())


def granted(outcomes: Sequence[Lease | errors.NetweftError]) -> ipam_pb2.RequestAddressesResponse | None:
    """Return the answer to a request; None if it is not all leases of one pool, or too few to be worth it."""
    if len(outcomes) < _FEW or set(map(type, outcomes)) != {Lease}:
        return None
    pools, addresses, owners, epochs, created_ms, expires_ms = zip(*outcomes, strict=True)
    pool = pools[0]
    if pools.count(pool) != len(pools) or pool.space == nullspace.SPACE:
        return None
    names, host_ids, kinds = zip(*owners, strict=True)
    leases = LeaseColumns(
        addresses=addresses,
        keys=[name.encode() for name in names],
        epochs=epochs,
        created_ms=created_ms,
        expires_ms=expires_ms,
        holders=list(zip(host_ids, kinds, strict=True)),  # type: ignore[arg-type]  # equal to holders
    )
    return ipam_pb2.RequestAddressesResponse.FromString(_write(pool, leases, in_results=True))


def _write(pool: PoolId, leases: LeaseColumns, *, in_results: bool) -> bytes:
    subnet = pool.subnet
    fields = _Texts(subnet.prefix)
    texts = (
        [fields[address >> 8][address & 255] for address in leases.addresses]
        if subnet.version == 4
        else _texts_of_ipv6(leases.addresses, subnet.prefix)
    )
    stamps, ends = _Stamps(_CREATE_TIME), _EpochEnds()
    columns: list[Iterable[bytes]] = [
        _heads(pool, leases, in_results=in_results),
        leases.keys,
        texts,
        map(stamps.__getitem__, leases.created_ms),
        [_EPOCH_STARTS[epoch & _LOW_MASK] for epoch in leases.epochs],
        [ends[epoch >> _LOW_BITS] for epoch in leases.epochs],
    ]
    if any(leases.expires_ms):
        columns.append(map(_Stamps(_EXPIRE_TIME).__getitem__, leases.expires_ms))
    return b"".join(itertools.chain.from_iterable(zip(*columns, strict=True)))


def _heads(pool: PoolId, leases: LeaseColumns, *, in_results: bool) -> Iterable[bytes]:
    """Return what stands before the owners' keys."""
    make = functools.partial(_head, (str(pool), pool.subnet.version, in_results))
    sizes = set(map(len, leases.keys))
    if len(sizes) == 1 and not any(leases.expires_ms):
        heads = _Heads(make, sizes.pop(), expires=False)
        return map(heads.__getitem__, leases.holders)
    tables = {(size, expires): _Heads(make, size, expires=expires) for size in sizes for expires in _BOTH}
    return [
        tables[len(key), expires > 0][holder]
        for key, expires, holder in zip(leases.keys, leases.expires_ms, leases.holders, strict=True)
    ]


class _Heads(dict[LeaseHolder, bytes]):
    """What stands before an owner's key, by holder, for keys of one size."""

    def __init__(self, make: Callable[..., bytes], key_bytes: int, *, expires: bool) -> None:
        super().__init__()
        self._make = make
        self._shape = (key_bytes, expires)

    def __missing__(self, holder: LeaseHolder) -> bytes:
        head = self[holder] = self._make(self._shape, *holder)
        return head


@functools.lru_cache(maxsize=16_384)
def _head(answer: tuple[str, Version, bool], shape: tuple[int, bool], host_id: str, kind: OwnerKind) -> bytes:
    (pool_id, version, in_results), (key_bytes, expires) = answer, shape
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

    def __missing__(self, ms: int) -> bytes:
        seconds, nanos = _number(ms // 1000, 7), _number(ms % 1000 * 1_000_000, 5)
        stamp = self[ms] = _bytes(self._name, _SECONDS + seconds + _NANOS + nanos)
        return stamp


class _EpochEnds(dict[int, bytes]):
    """The high bits of an epoch."""

    def __missing__(self, high: int) -> bytes:
        end = self[high] = _number(high, 5)
        return end


class _Texts(dict[int, Sequence[bytes]]):
    """An IPv4 address's field for each last byte of it, by the bytes before."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self._lasts = _lasts(prefix)

    def __missing__(self, net: int) -> Sequence[bytes]:
        dotted = b"%d.%d.%d." % (net >> 16, net >> 8 & 255, net & 255)
        size = len(dotted) + len(self._lasts[0])
        one, two, three = (_before_address(4, dotted, size + more) for more in range(3))
        before = [one] * _ONES + [two] * _TENS + [three] * _HUNDREDS
        fields = self[net] = list(map(operator.add, before, self._lasts))
        return fields


@functools.cache
def _lasts(prefix: int) -> Sequence[bytes]:
    return [b"%d/%d" % (last, prefix) for last in range(256)]


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
