"""Lease records as Redis holds them; their layout is told in `lua/pool.lua`."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

from netweft_ipam.domain.leases import (
    Lease,
    LeaseColumns,
    LeaseEvent,
    LeaseEventType,
    LeaseHolder,
    Owner,
    OwnerKind,
)
from netweft_ipam.domain.pools import PoolId
from netweft_ipam.store.keys import Layout

_HEAD = struct.Struct(">BBHI6s6s")
_TTL = struct.Struct(">I6s")
_KINDS = tuple(OwnerKind(number) for number in range(4))
_HAS_TTL = 128
_IS_HELD = 64
_NO_SLOT = 0xF0
_SLOTS_OFF = bytes(first & _NO_SLOT for first in range(256))
_ROW = struct.Struct(">B7s6s6s")
_SHARED = struct.Struct(">BHI")
_HOST = struct.Struct(">I6s")
# For columns of 6 bytes.
_to_number: Callable[[bytes, Literal["big"]], int] = int.from_bytes
_BIG: Iterable[Literal["big"]] = itertools.repeat("big")

Hosts = dict[int, tuple[int, str]]


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One record.

    Attributes:
        address: The address.
        held: Whether it is leased.
        kind: What for.
        pool: Index of the pool in its family.
        host: Index of the host; 0: none.
        epoch: Fencing epoch.
        time_ms: Time of the grant, or when the address stops resting.
        ttl_s: TTL; 0: none.
        renewed_ms: Last renewal by its owner.
        key: Owner's key.
    """

    address: int
    held: bool
    kind: OwnerKind
    pool: int
    host: int
    epoch: int
    time_ms: int
    ttl_s: int
    renewed_ms: int
    key: str

    def lease(self, pool: PoolId, hosts: Hosts) -> Lease:
        """Return the lease, with what is known of its host: index to (last heartbeat in ms, name)."""
        beat_ms, host_id = hosts.get(self.host, (0, ""))
        expires_ms = max(self.renewed_ms, beat_ms) + self.ttl_s * 1000 if self.ttl_s else 0
        owner = Owner(self.key, host_id, self.kind)
        return Lease(pool, self.address, owner, self.epoch, self.time_ms, expires_ms)


def read(packed: bytes, at: int, address: int) -> tuple[Record, int]:
    """Return the record at a position, and the position behind it."""
    first, key_len, pool, host, epoch, time_ms = _HEAD.unpack_from(packed, at)
    at += _HEAD.size
    ttl_s, renewed = 0, b""
    if first >= _HAS_TTL:
        ttl_s, renewed = _TTL.unpack_from(packed, at)
        at += _TTL.size
    end = at + key_len + 1
    record = Record(
        address,
        bool(first & _IS_HELD),
        _KINDS[first >> 4 & 3],
        pool,
        host,
        int.from_bytes(epoch, "big"),
        int.from_bytes(time_ms, "big"),
        ttl_s,
        int.from_bytes(renewed, "big"),
        packed[at:end].decode(),
    )
    return record, end


class _Columns:
    """Leases as they are found in blocks, and what is not wanted among them.

    Args:
        layout: Of the pool's family.
        pool: Index of the pool in its family.
        hosts: What is known of hosts.
    """

    def __init__(self, layout: Layout, pool: int, hosts: Hosts) -> None:
        self._base = layout.base
        self._hosts = hosts
        self._holders = {first: _Holders(first, pool, hosts) for first in range(0, 256, 16)}
        self._times = _Times()
        self.addresses: list[int] = []
        self.keys: list[bytes] = []
        self.epochs: list[int] = []
        self.created_ms: list[int] = []
        self.expires_ms: list[int] = []
        self.holders: list[LeaseHolder | None] = []
        # Blocks of records that all have one size and no TTL, to be read at once.
        self._alike: list[bytes] = []
        self._size = 0

    def read(self, name: bytes, packed: bytes) -> None:
        """Read a block."""
        base = self._base + (int(name, 16) << 4)
        size = _HEAD.size + packed[1] + 1
        firsts = packed[::size]
        if len(packed) == size * len(firsts) and packed[1::size].count(packed[1]) == len(firsts):
            slots = _plain_slots(firsts)
            if slots:
                if size != self._size:
                    self.read_alike()
                    self._size = size
                self._alike.append(packed)
                self.addresses += range(base, base + 16) if len(slots) == 16 else [base + slot for slot in slots]
                return
        self.read_alike()
        for first, shared, epoch, time, own, key in _split(packed):
            holder = self._holders[first & _NO_SLOT][shared]
            self.addresses.append(base + (first & 15))
            self.keys.append(key)
            self.epochs.append(epoch)
            self.created_ms.append(self._times[time])
            self.holders.append(holder)
            expires_ms = 0
            if own:
                ttl_s, renewed = _TTL.unpack(own)
                beat_ms, _ = self._hosts.get(_SHARED.unpack(shared)[2], (0, ""))
                expires_ms = max(int.from_bytes(renewed, "big"), beat_ms) + ttl_s * 1000
            self.expires_ms.append(expires_ms)

    def read_alike(self) -> None:
        """Read the blocks that were put by."""
        if not self._alike:
            return
        packed = b"".join(self._alike)
        self._alike.clear()
        shared, epochs, times, keys = zip(*_cut(self._size - _HEAD.size)(packed), strict=True)
        self.keys += keys
        self.epochs += map(_to_number, epochs, _BIG)
        self.created_ms += map(self._times.__getitem__, times)
        self.expires_ms += [0] * len(keys)
        firsts = packed[:: self._size].translate(_SLOTS_OFF)
        if firsts.count(firsts[0]) == len(firsts):
            self.holders += map(self._holders[firsts[0]].__getitem__, shared)
        else:
            self.holders += [self._holders[first][which] for first, which in zip(firsts, shared, strict=True)]

    def wanted(self) -> LeaseColumns:
        """Return the leases of the pool."""
        self.read_alike()
        columns: list[Sequence[Any]] = [
            *(self.addresses, self.keys, self.epochs, self.created_ms, self.expires_ms, self.holders)
        ]
        if None in self.holders:
            columns = [list(itertools.compress(column, map(bool, self.holders))) for column in columns]
        return LeaseColumns(*columns)


class _Holders(dict[bytes, "LeaseHolder | None"]):
    """Who holds leases whose records begin with one byte, by key length, pool, host; None: not a lease of the pool."""

    def __init__(self, first: int, pool: int, hosts: Hosts) -> None:
        super().__init__()
        self._kind = _KINDS[first >> 4 & 3] if first & _IS_HELD else None
        self._pool = pool
        self._hosts = hosts

    def __missing__(self, shared: bytes) -> LeaseHolder | None:
        _, pool, host = _SHARED.unpack(shared)
        holder = None
        if self._kind is not None and pool == self._pool:
            _, host_id = self._hosts.get(host, (0, ""))
            holder = LeaseHolder(host_id, self._kind)
        self[shared] = holder
        return holder


class _Times(dict[bytes, int]):
    """Times as numbers: what was leased by one batch has one time."""

    def __missing__(self, time: bytes) -> int:
        number = self[time] = int.from_bytes(time, "big")
        return number


def read_leases(layout: Layout, pool: int, blocks: Iterable[tuple[bytes, bytes]], hosts: Hosts) -> LeaseColumns:
    """Return the leases of one pool in blocks of 16 addresses.

    Args:
        layout: Of the pool's family.
        pool: Index of the pool in its family.
        blocks: Name and records of each block, in order.
        hosts: What is known of hosts.
    """
    columns = _Columns(layout, pool, hosts)
    for name, packed in blocks:
        columns.read(name, packed)
    return columns.wanted()


def _split(packed: bytes) -> list[tuple[int, bytes, int, bytes, bytes, bytes]]:
    """Return a block's records by slot: first byte; key length, pool, host; epoch; time; TTL with renewal; key."""
    records = []
    at = 0
    while at < len(packed):
        first, shared, epoch, time = _ROW.unpack_from(packed, at)
        at += _ROW.size
        behind = at + _TTL.size if first >= _HAS_TTL else at
        own, at = packed[at:behind], behind
        end = at + shared[0] + 1
        records.append((first, shared, int.from_bytes(epoch, "big"), time, own, packed[at:end]))
        at = end
    return sorted(records, key=lambda record: record[0] & 15)


@functools.lru_cache(maxsize=256)
def _cut(key_size: int) -> Callable[[bytes], Iterator[tuple[Any, ...]]]:
    """Return what cuts records without TTL and with keys of one size, as `_split` does without the first byte."""
    return struct.Struct(f">x7s6s6s{key_size}s").iter_unpack


@functools.lru_cache(maxsize=4096)
def _plain_slots(firsts: bytes) -> tuple[int, ...]:
    """Return the slots of records that begin so; none if they are out of order or one has a TTL."""
    slots = tuple(first & 15 for first in firsts)
    return slots if max(firsts) < _HAS_TTL and list(slots) == sorted(slots) else ()


def read_events(layout: Layout, entry: str, packed: bytes, hosts: Hosts) -> list[LeaseEvent]:
    """Return the events of one entry of the stream, in order."""
    events: list[LeaseEvent] = []
    at, width = 0, layout.width
    time_ms = int(entry.partition("-")[0])
    while at < len(packed):
        kind = LeaseEventType(packed[at])
        record, end = read(packed, at + 1 + width, layout.base + int(packed[at + 1 : at + 1 + width], 16))
        _, host_id = hosts.get(record.host, (0, ""))
        owner = Owner(record.key, host_id, record.kind)
        number = len(events)
        events.append(
            LeaseEvent(
                id=f"{entry}.{number}",
                type=kind,
                time_ms=time_ms,
                address=record.address,
                owner=owner,
                epoch=record.epoch,
            )
        )
        at = end
    return events


def read_hosts(flat: list[bytes | int]) -> Hosts:
    """Return hosts written as index, last heartbeat, name, one after the other."""
    hosts: Hosts = {}
    for index, beat_ms, name in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
        assert isinstance(name, bytes)
        hosts[int(index)] = (int(beat_ms), name.decode())
    return hosts


def read_host_fields(flat: list[bytes]) -> Hosts:
    """Return hosts as the store keeps them: index, then leases held, last heartbeat and name in one."""
    hosts: Hosts = {}
    for index, packed in zip(flat[::2], flat[1::2], strict=True):
        _, beat_ms = _HOST.unpack_from(packed)
        hosts[int(index)] = (int.from_bytes(beat_ms, "big"), packed[_HOST.size :].decode())
    return hosts
