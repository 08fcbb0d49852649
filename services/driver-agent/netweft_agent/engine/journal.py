"""The journal: what this host is meant to have, on disk, so that an agent starts without any controller.

One JSON object a line, appended when the kernel has followed a change and before anybody is told. It is not synced to
disk at each write: it has to survive the death of the agent, and after the death of the kernel there is nothing left
that it describes. A torn last line is dropped. It is rewritten when it has grown to several times what it says.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from pathlib import Path
from typing import Any, cast

import msgspec
from netweft_common import faults
from netweft_common.errors import Exhausted, FailedPrecondition

from netweft_agent.domain.objects import (
    Bandwidth,
    Endpoint,
    Kind,
    Network,
    Object,
    Peer,
    PublishedPort,
    Ref,
    Sandbox,
    StaticRoute,
    Subnet,
)
from netweft_agent.engine.store import Change

VERSION = 1

KINDS: dict[Kind, type[Object]] = {
    Kind.NETWORK: Network,
    Kind.SANDBOX: Sandbox,
    Kind.ENDPOINT: Endpoint,
    Kind.PEER: Peer,
}

COMPACT_BYTES = 1 << 20
"""A journal smaller than this is left alone however much of it is stale."""


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """How far the host follows which store's change log."""

    store_id: str = ""
    revision: int = 0


class Journal:
    """Append-only file of changes; one task owns it.

    Args:
        path: The file; it and its folder are made when missing (0700: it tells who talks to whom).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._size = 0
        self._compacted_size = 0

    def load(self) -> tuple[dict[Ref, Object], Position]:
        """Read what was kept, and open for appending.

        Raises:
            FailedPrecondition: The file is not a journal of a version that this agent reads.
        """
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        objects: dict[Ref, Object] = {}
        position = Position()
        outdated = False
        data = self._path.read_bytes() if self._path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = msgspec.json.decode(line)
                position = _replay(record, objects, position)
                outdated = outdated or _is_outdated(record)
            except (msgspec.DecodeError, KeyError, ValueError, TypeError, AttributeError) as error:
                raise FailedPrecondition(
                    "JOURNAL_BROKEN",
                    f"journal {self._path} is not readable at line {number}: {error}; move it away, the controller "
                    "will send everything again",
                    path=str(self._path),
                ) from error
        if outdated:
            # Nothing of it would come again by itself; with the first snapshot all of it does, whole.
            objects = {ref: msgspec.structs.replace(item, revision=0) for ref, item in objects.items()}
            position = msgspec.structs.replace(position, revision=0)
        try:
            self.compact(objects.values(), position)
        except Exhausted:
            # A full disk must not keep the agent from its work; a torn end must not meet the next line.
            self._open()
            os.ftruncate(self._fd, len(whole))
            self._size = self._compacted_size = len(whole)
        return objects, position

    def append(self, changes: Sequence[Change], position: Position | None = None) -> None:
        """Add changes and, where given, the new position.

        Raises:
            Exhausted: The disk does not take them; nothing was added.
        """
        lines = [_line(change) for change in changes]
        if position is not None:
            lines.append(_position_line(position))
        if not lines:
            return
        data = b"".join(lines)
        try:
            written = os.write(self._fd, data)
            if written != len(data):
                # The rest did not fit; the kernel would say so if it was asked again.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301  # one answer to both
        except OSError as error:
            with contextlib.suppress(OSError):  # then the next compaction mends it
                os.ftruncate(self._fd, self._size)
            raise self._full(error) from error
        self._size += len(data)

    def wants_compaction(self) -> bool:
        """Return whether most of the file is stale."""
        return self._size > COMPACT_BYTES and self._size > 4 * self._compacted_size

    def compact(self, objects: Iterable[Object], position: Position) -> None:
        """Rewrite the file with just these objects, by rename, so that a crash leaves the old or the new one.

        Raises:
            Exhausted: The disk does not take it; the file is as it was.
        """
        lines = [msgspec.json.encode({"journal": VERSION}) + b"\n", _position_line(position)]
        lines += [_line(Change(ref=item.ref, revision=item.revision, put=item)) for item in objects]
        data = b"".join(lines)
        fresh = self._path.with_suffix(".new")
        try:
            with fresh.open("wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            faults.reach(faults.Point.JOURNAL_REWRITTEN)
            fresh.replace(self._path)
            self._open()
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            self._compacted_size = self._size  # not again until it has grown as much
            raise self._full(error) from error
        self._size = self._compacted_size = len(data)

    def _open(self) -> None:
        self.close()
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _full(self, error: OSError) -> Exhausted:
        return Exhausted(
            "JOURNAL_FULL",
            f"the agent cannot write its journal {self._path}: {error.strerror}; free space on that disk",
            path=str(self._path),
        )

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _replay(record: dict[str, Any], objects: dict[Ref, Object], position: Position) -> Position:
    if "journal" in record:
        if record["journal"] != VERSION:
            raise ValueError(f"version {record['journal']}, this agent writes {VERSION}")
    elif "position" in record:
        return Position(**record["position"])
    elif "gone" in record:
        objects.pop(Ref(kind=Kind(record["kind"]), id=record["gone"]), None)
    else:
        item = _thaw(KINDS[Kind(record["kind"])], record["put"])
        objects[item.ref] = item
    return position


def _is_outdated(record: dict[str, Any]) -> bool:
    """Return whether a line was written by an agent that did not keep of which leases addresses are."""
    put = record.get("put", {})
    return bool(put.get("addresses")) and record["kind"] == Kind.ENDPOINT and "lease_epochs" not in put


def _line(change: Change) -> bytes:
    if change.put is None:
        record: dict[str, object] = {"kind": change.ref.kind, "gone": change.ref.id, "revision": change.revision}
    else:
        record = {"kind": change.ref.kind, "put": change.put}
    return msgspec.json.encode(record, enc_hook=_encode) + b"\n"


def _position_line(position: Position) -> bytes:
    return msgspec.json.encode({"position": position}) + b"\n"


def _encode(value: object) -> object:
    if isinstance(value, IPv4Address | IPv6Address | IPv4Interface | IPv6Interface | IPv4Network | IPv6Network):
        return str(value)
    raise NotImplementedError(f"journal type {type(value)}")


def _thaw(kind: type[Object], raw: dict[str, Any]) -> Object:
    """Build an object from its JSON form; msgspec cannot tell IPv4 from IPv6 types in a union."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}
    if kind is Peer:
        # Agents have kept their prefix lengths too.
        values["addresses"] = tuple(one.partition("/")[0] for one in values.get("addresses", ()))
    else:
        for name in {"addresses", "link_local"} & values.keys():
            values[name] = tuple(ip_interface(one) for one in values[name])
    if "routes" in values:
        values["routes"] = tuple(_thaw_route(one) for one in values["routes"])
    if raw.get("bandwidth") is not None:
        values["bandwidth"] = Bandwidth(**raw["bandwidth"])
    if "ports" in values:
        values["ports"] = tuple(PublishedPort(**one) for one in values["ports"])
    if "extra_hosts" in values:
        values["extra_hosts"] = tuple((name, address) for name, address in values["extra_hosts"])
    if "subnets" in values:
        values["subnets"] = tuple(
            Subnet(
                subnet=ip_network(one["subnet"]),
                gateway=None if one["gateway"] is None else ip_interface(one["gateway"]),
                default_gateway=None if one.get("default_gateway") is None else ip_interface(one["default_gateway"]),
                pool_id=one.get("pool_id", ""),
            )
            for one in values["subnets"]
        )
    return cast("type[Any]", kind)(**values)  # type: ignore[no-any-return]  # checked by whoever wrote it


def _thaw_route(raw: dict[str, Any]) -> StaticRoute:
    next_hop = raw["next_hop"]
    return StaticRoute(
        destination=ip_network(raw["destination"]), next_hop=None if next_hop is None else ip_address(next_hop)
    )
