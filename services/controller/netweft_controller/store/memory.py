"""The store's twin in memory, for tests: the same promises, no durability."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping, Sequence

import msgspec
from netweft_common import errors

from netweft_controller.domain import commits
from netweft_controller.domain.objects import Kind
from netweft_controller.store import codec, protocol


class MemoryStore:
    """A store in memory.

    Args:
        log_length: Entries that the change log keeps.
        now_ms: The store's clock, in milliseconds since 1970.
    """

    def __init__(self, *, log_length: int = 100_000, now_ms: Callable[[], int] | None = None) -> None:
        self._log_length = log_length
        self._now_ms = now_ms or (lambda: time.time_ns() // 1_000_000)
        self._identity: protocol.Identity | None = None
        self._opened = ""
        self._cuts: dict[str, int] = {}
        self._objects: dict[tuple[Kind, str], bytes] = {}
        self._claims: dict[str, str] = {}
        self._requests: dict[str, bytes] = {}
        self._log: list[tuple[int, int, bytes]] = []
        self._heartbeats: dict[str, tuple[int, int]] = {}
        self._changed = asyncio.Event()

    async def open(self, *, store_id: str = "", seen_revision: int = 0) -> protocol.Identity:
        """Say which store this is."""
        known = self._identity
        if known is None or (known.store_id == store_id and known.revision < seen_revision):
            found = known.revision if known else 0
            if store_id:
                self._cuts[store_id] = found
            known = protocol.Identity(store_id=uuid.uuid4().hex, revision=max(found, seen_revision))
            self._identity = known
        self._opened = known.store_id
        return msgspec.structs.replace(known, cut=self._cuts.get(store_id))

    async def commit(self, change: commits.Commit, *, seen_revision: int = 0) -> commits.Outcome:
        """Execute a commit atomically."""
        identity = self._checked(seen_revision)
        if change.once is not None:
            known = self._requests.get(change.once.id)
            if known != (None if change.after is None else codec.encode_request(change.after)):
                return commits.Replayed(
                    None if known is None else codec.decode_request(change.once.id, known), identity.revision
                )
        refused = self._check(change, identity.revision)
        if refused is not None:
            return refused
        return self._write(change, identity)

    async def load(self) -> protocol.Loaded:
        """Read all objects."""
        identity = self._checked(0)
        return protocol.Loaded(
            store_id=identity.store_id,
            revision=identity.revision,
            records=[codec.decode_stored(kind, data) for (kind, _), data in self._objects.items()],
        )

    async def read_log(self, after: int, limit: int) -> Sequence[commits.Entry]:
        """Read entries after a revision."""
        identity = self._checked(0)
        if after < identity.revision and (not self._log or self._log[0][0] > after + 1):
            raise errors.OutOfRange("REVISION_COMPACTED", f"the change log no longer reaches back to revision {after}")
        newer = [entry for entry in self._log if entry[0] > after][:limit]
        return [commits.Entry(revision, time_ms, codec.decode_log(data)) for revision, time_ms, data in newer]

    async def tail(self, after: Callable[[], int], wait_s: float) -> Sequence[commits.Entry]:
        """Wait for entries after a revision."""
        identity = self._checked(after())
        if identity.revision == after():
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                return []
        return await self.read_log(after(), 1000)

    async def revision(self) -> int:
        """Return the revision of the last commit."""
        return self._checked(0).revision

    async def find_request(self, request_id: str) -> commits.Request | None:
        """Return what is remembered of a request, or None."""
        data = self._requests.get(request_id)
        return None if data is None else codec.decode_request(request_id, data)

    async def find_claims(self, prefix: str) -> Mapping[str, str]:
        """Return the claims whose name starts so, with their owners."""
        return {claim: owner for claim, owner in self._claims.items() if claim.startswith(prefix)}

    async def beat(self, revisions: Mapping[str, int]) -> protocol.Heartbeats:
        """Record heartbeats of hosts, and return those of all hosts."""
        now_ms = self._now_ms()
        self._heartbeats.update({host_id: (now_ms, revision) for host_id, revision in revisions.items()})
        return protocol.Heartbeats(
            now_ms=now_ms,
            last_ms={host_id: last_ms for host_id, (last_ms, _) in self._heartbeats.items()},
            revisions={host_id: revision for host_id, (_, revision) in self._heartbeats.items()},
        )

    async def forget_heartbeat(self, host_id: str) -> None:
        """Drop a host's heartbeat."""
        self._heartbeats.pop(host_id, None)

    async def close(self) -> None:
        """Do nothing."""

    def _checked(self, seen_revision: int) -> protocol.Identity:
        identity = self._identity
        if identity is None or identity.store_id != self._opened or identity.revision < seen_revision:
            raise protocol.StoreReplacedError("the store is not the one that was opened; it is being loaded again")
        return identity

    def _check(self, change: commits.Commit, revision: int) -> commits.Refused | None:
        for guard in change.guards:
            stored = self._objects.get((guard.kind, guard.id))
            held = 0 if stored is None else codec.decode_stored(guard.kind, stored).revision
            if held != guard.revision:
                return commits.Refused(revision, guard=guard)
        for claim in change.free:
            if claim in self._claims:
                return commits.Refused(revision, claim=claim, owner=self._claims[claim])
        dropping = dict(change.drop)
        for claim, owner in change.take:
            held_by = self._claims.get(claim)
            if held_by is not None and held_by != owner and dropping.get(claim) != held_by:
                return commits.Refused(revision, claim=claim, owner=held_by)
        return None

    def _write(self, change: commits.Commit, identity: protocol.Identity) -> commits.Committed:
        now_ms = self._now_ms()
        revision = identity.revision + (1 if change.writes else 0)
        values = [codec.encode(write.value) for write in change.writes]
        for claim, owner in change.drop:
            if self._claims.get(claim) == owner:
                del self._claims[claim]
        self._claims.update(change.take)
        for write, data in zip(change.writes, values, strict=True):
            key = (write.kind, write.value.id)
            before = self._objects.pop(key, None)
            if write.action is not commits.Action.DELETED:
                created_ms = now_ms if before is None else codec.decode_stored(write.kind, before).created_ms
                self._objects[key] = codec.encode_stored(revision, created_ms, data)
        for request in (*((change.once,) if change.once else ()), *change.remember):
            self._requests[request.id] = codec.encode_request(request)
        for request_id in change.forget:
            self._requests.pop(request_id, None)
        if change.writes:
            self._log.append((revision, now_ms, codec.encode_log(change.writes, values)))
            del self._log[: -self._log_length]
            self._identity = msgspec.structs.replace(identity, revision=revision)
            self._changed.set()
            self._changed = asyncio.Event()
        return commits.Committed(commits.Entry(revision, now_ms, change.writes))
