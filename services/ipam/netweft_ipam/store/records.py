"""Lease records as Redis holds them; their layout is told in `lua/pool.lua`."""

from __future__ import annotations

import dataclasses
import struct

from netweft_ipam.domain.leases import Lease, LeaseEvent, LeaseEventType, Owner, OwnerKind
from netweft_ipam.domain.pools import PoolId
from netweft_ipam.store.keys import Layout

_HEAD = struct.Struct(">BBHI6s6s")
_TTL = struct.Struct(">I6s")
_KINDS = tuple(OwnerKind(number) for number in range(4))
_HAS_TTL = 128

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
        bool(first & 64),
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


def read_leases(pool: PoolId, layout: Layout, packed: bytes, hosts: Hosts) -> tuple[Lease, ...]:
    """Return leases written as ref and record, one after the other."""
    # `read` and `Record.lease` in one: this is the whole cost of a listing.
    leases = []
    at, width, base = 0, layout.width, layout.base
    owners: dict[tuple[int, int], tuple[int, str, OwnerKind]] = {}
    while at < len(packed):
        address = base + int(packed[at : at + width], 16)
        at += width
        first, key_len, _, host, epoch, time_ms = _HEAD.unpack_from(packed, at)
        at += _HEAD.size
        shared = owners.get((host, first))
        if shared is None:
            shared = owners[host, first] = (*hosts.get(host, (0, "")), _KINDS[first >> 4 & 3])
        beat_ms, host_id, kind = shared
        expires_ms = 0
        if first >= _HAS_TTL:
            ttl_s, renewed = _TTL.unpack_from(packed, at)
            at += _TTL.size
            expires_ms = max(int.from_bytes(renewed, "big"), beat_ms) + ttl_s * 1000
        end = at + key_len + 1
        owner = Owner(packed[at:end].decode(), host_id, kind)
        leases.append(
            Lease(pool, address, owner, int.from_bytes(epoch, "big"), int.from_bytes(time_ms, "big"), expires_ms)
        )
        at = end
    return tuple(leases)


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
