"""Lease records as Redis holds them; their layout is told in `lua/pool.lua`."""

from __future__ import annotations

import array
import dataclasses
import functools
import itertools
import struct
from collections.abc import Iterable, Sequence
from typing import Any

from netweft_ipam.domain import rows
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
_EPOCH_AT = struct.calcsize(">BBHI")

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
        self.epochs = array.array("Q")
        self.created_ms: list[int] = []
        self.expires_ms: list[int] = []
        self.holders: list[LeaseHolder | None] = []

    def read(self, blocks: Iterable[tuple[bytes, bytes]]) -> None:
        """Read blocks: those in a row whose records have one size all at once."""
        for size, group in itertools.groupby(blocks, _record_size):
            alike = list(group)
            if size and self._read_alike(alike, size):
                continue
            for block in alike:
                if not (size and len(alike) > 1 and self._read_alike([block], size)):
                    self._read_each(*block)

    def _read_alike(self, blocks: list[tuple[bytes, bytes]], size: int) -> bool:
        """Read blocks whose records all have one size and no TTL; returns False, and reads none, if they have not."""
        packed = b"".join([text for _, text in blocks])
        firsts, key_lens = packed[::size], packed[1::size]
        if key_lens.count(key_lens[0]) != len(key_lens):
            return False
        addresses: list[int] = []
        at = 0
        for name, text in blocks:
            end = at + len(text) // size
            slots = _plain_slots(firsts[at:end])
            if not slots:
                return False
            base = self._base + (int(name, 16) << 4)
            addresses += range(base, base + 16) if len(slots) == 16 else [base + slot for slot in slots]
            at = end
        fields = rows.cut(packed, f"x7s6x6s{size - _HEAD.size}s")
        shared, times = fields[0::3], fields[1::3]
        self.addresses += addresses
        self.keys += fields[2::3]
        self.epochs += rows.numbers(packed, size=size, at=_EPOCH_AT, width=6)
        self.created_ms += map(self._times.__getitem__, times)
        self.expires_ms += [0] * len(times)
        kinds = firsts.translate(_SLOTS_OFF)
        if kinds.count(kinds[0]) == len(kinds):
            self.holders += map(self._holders[kinds[0]].__getitem__, shared)
        else:
            self.holders += [self._holders[kind][which] for kind, which in zip(kinds, shared, strict=True)]
        return True

    def _read_each(self, name: bytes, packed: bytes) -> None:
        base = self._base + (int(name, 16) << 4)
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

    def wanted(self) -> LeaseColumns:
        """Return the leases of the pool."""
        columns: list[Sequence[Any]] = [
            *(self.addresses, self.keys, self.epochs, self.created_ms, self.expires_ms, self.holders)
        ]
        if any(None in holders.values() for holders in self._holders.values()):
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
        key_len, pool, host = _SHARED.unpack(shared)
        holder = None
        if self._kind is not None and pool == self._pool:
            _, host_id = self._hosts.get(host, (0, ""))
            holder = LeaseHolder(host_id, self._kind, key_len + 1)
        self[shared] = holder
        return holder


class _Times(dict[bytes, int]):
    """Times as numbers: what was leased by one batch has one time."""

    def __missing__(self, time: bytes) -> int:
        number = self[time] = int.from_bytes(time, "big")
        return number


def read_leases(layout: Layout, pool: int, blocks: Iterable[tuple[bytes, bytes | None]], hosts: Hosts) -> LeaseColumns:
    """Return the leases of one pool in blocks of 16 addresses.

    Args:
        layout: Of the pool's family.
        pool: Index of the pool in its family.
        blocks: Name and records of each block, in order; a block may have none.
        hosts: What is known of hosts.
    """
    columns = _Columns(layout, pool, hosts)
    columns.read([(name, packed) for name, packed in blocks if packed])
    return columns.wanted()


def _record_size(block: tuple[bytes, bytes]) -> int:
    """Return the size of a block's records if all can have that of the first one, without a TTL; 0: they cannot."""
    _, packed = block
    size = _HEAD.size + packed[1] + 1
    return 0 if len(packed) % size else size


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
