"""Reads a store's raw keys and says where bitmap, records and indexes disagree; shares no code with the service."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections import Counter
from typing import Any


def audit(client: Any, prefix: str) -> list[str]:
    """Return what is wrong with all families under a key prefix; an empty list is good.

    Args:
        client: Synchronous client that does not decode.
        prefix: Key prefix of the service.
    """
    problems: list[str] = []
    families = [key[:-2] for key in client.scan_iter(f"{{{prefix}:*/*}}:m".encode())]
    registered = set()
    for key in client.scan_iter(f"{{{prefix}:*}}:p".encode()):
        space = key[len(prefix) + 2 : -3].decode()
        registered |= {(space, name.decode()) for name in client.hkeys(key)}
        listed = {name.decode() for name in client.zrange(key[:-1] + b"l", 0, -1)}
        if listed != {name for space_, name in registered if space_ == space}:
            problems.append(f"{key!r}: the list of pools differs from the pools")
    for tag in families:
        problems += [f"{tag.decode()}: {problem}" for problem in _audit_family(client, tag)]
    return problems


def audit_at_rest(client: Any, prefix: str) -> list[str]:
    """Audit while nobody writes: scripts are held up for the time, as a replica's takeover does it."""
    client.execute_command("CLIENT", "PAUSE", 10_000, "WRITE")
    try:
        return audit(client, prefix)
    finally:
        client.execute_command("CLIENT", "UNPAUSE")


def _audit_family(client: Any, tag: bytes) -> list[str]:
    meta = {key.decode(): value for key, value in client.hgetall(tag + b":m").items()}
    cells = _read_cells(client, tag)
    return [
        *_audit_epochs(meta, cells),
        *_audit_bitmap(client, tag, cells),
        *_audit_owners(client, tag, cells),
        *_audit_counters(meta, cells),
        *_audit_hosts(client, tag, cells),
        *_audit_timers(client, tag, cells),
    ]


@dataclasses.dataclass(frozen=True)
class _Cell:
    """A record, read by hand."""

    block: bytes
    address: int
    held: bool
    has_ttl: bool
    kind: int
    pool: int
    host: int
    epoch: int
    time_ms: int
    key: str

    @property
    def rests(self) -> bool:
        return not self.held and self.time_ms > 0


def _read_cells(client: Any, tag: bytes) -> list[_Cell]:
    cells = []
    for block, text in client.hgetall(tag + b":r").items():
        at = 0
        while at < len(text):
            first, key_len, pool, host = struct.unpack_from(">BBHI", text, at)
            epoch, time_ms = (int.from_bytes(text[at + skip : at + skip + 6], "big") for skip in (8, 14))
            at += 30 if first & 128 else 20
            cells.append(
                _Cell(
                    block=block,
                    address=int(block, 16) * 16 + first % 16,
                    held=bool(first & 64),
                    has_ttl=bool(first & 128),
                    kind=first >> 4 & 3,
                    pool=pool,
                    host=host,
                    epoch=epoch,
                    time_ms=time_ms,
                    key=text[at : at + key_len + 1].decode(),
                )
            )
            at += key_len + 1
    return cells


def _audit_epochs(meta: dict[str, bytes], cells: list[_Cell]) -> list[str]:
    last = int(meta["ep"])
    return [f"epoch {cell.epoch} of {cell.address:#x} is beyond {last}" for cell in cells if cell.epoch > last]


def _audit_bitmap(client: Any, tag: bytes, cells: list[_Cell]) -> list[str]:
    bits: set[int] = set()
    chunks = {key.rpartition(b":")[2] for key in client.scan_iter(tag + b":b:*")}
    for chunk in chunks:
        base = int(chunk, 16) << 16 if chunk else 0
        for index, byte in enumerate(client.get(tag + b":b:" + chunk)):
            bits |= {base + index * 8 + bit for bit in range(8) if byte & (128 >> bit)}
    taken = {cell.address for cell in cells if cell.held or cell.rests}
    problems = [f"bitmap and records differ at {sorted(bits ^ taken)[:10]}"] if bits != taken else []
    listed = set(client.zrange(tag + b":c", 0, -1))
    return [*problems, *([f"bitmaps {chunks} but listed {listed}"] if chunks != listed else [])]


def _audit_owners(client: Any, tag: bytes, cells: list[_Cell]) -> list[str]:
    width = max((len(cell.block) + 1 for cell in cells), default=4)
    indexed: Counter[tuple[int, str]] = Counter()
    buckets = client.hgetall(tag + b":o")
    for bucket, text in buckets.items():
        for at in range(0, len(text), 8 + width):
            address = int(text[at + 8 : at + 8 + width], 16)
            indexed[address, (bucket + text[at : at + 8]).decode()] += 1
    digits = max(map(len, buckets), default=1) + 8
    expected = Counter((cell.address, hashlib.sha1(cell.key.encode()).hexdigest()[:digits]) for cell in cells)
    return [f"owner index {indexed - expected} too much, {expected - indexed} missing"] if indexed != expected else []


def _audit_counters(meta: dict[str, bytes], cells: list[_Cell]) -> list[str]:
    held = [cell for cell in cells if cell.held]
    pools = [int(field[2:]) for field in meta if field.startswith("i:")]
    expected = {"n": len(held), "q": sum(cell.rests for cell in cells), "pc": len(pools)}
    for pool in pools:
        expected[f"n{pool}"] = sum(cell.pool == pool for cell in held)
        expected[f"g{pool}"] = sum(cell.pool == pool and cell.kind in (1, 2) for cell in held)
        expected[f"q{pool}"] = sum(cell.pool == pool and cell.rests for cell in cells)
    found = {field: int(meta.get(field, 0)) for field in expected}
    return [f"counters {found}, counted {expected}"] if found != expected else []


def _audit_hosts(client: Any, tag: bytes, cells: list[_Cell]) -> list[str]:
    fields = client.hgetall(tag + b":h")
    known = {int(index): text for index, text in fields.items() if not index.startswith(b"n:")}
    names = {name[2:]: int(index) for name, index in fields.items() if name.startswith(b"n:")}
    counted = Counter(cell.host for cell in cells if cell.held and cell.host)
    found = {index: count for index, text in known.items() if (count := struct.unpack_from(">I", text)[0])}
    problems = [f"hosts hold {found}, counted {dict(counted)}"] if found != dict(counted) else []
    wrong = names != {text[10:]: index for index, text in known.items()}
    return [*problems, *([f"host names {names} for {known}"] if wrong else [])]


def _audit_timers(client: Any, tag: bytes, cells: list[_Cell]) -> list[str]:
    ends: dict[bytes, int] = {}
    for cell in cells:
        if cell.rests:
            ends[cell.block] = min(cell.time_ms, ends.get(cell.block, cell.time_ms))
    timers = {block: int(score) for block, score in client.zrange(tag + b":q", 0, -1, withscores=True)}
    problems = [f"rest timers {timers}, should be {ends}"] if timers != ends else []
    blocks = {cell.block for cell in cells if cell.held and cell.has_ttl}
    untimed = blocks - set(client.zrange(tag + b":x", 0, -1))
    return [*problems, *([f"leases of {untimed} have a TTL and no timer"] if untimed else [])]
