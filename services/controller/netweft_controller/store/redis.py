"""Intent in Redis or Valkey: one script a commit, one capped stream as the change log.

Keys, all under one hash tag so that a cluster keeps them on one shard:

    {prefix}:meta         hash: store_id, revision, how much of the log is written and marked, and for each store whose
                          history this one continues `cut/<store_id>`, the revision up to which it has that
    {prefix}:network, :sandbox, :endpoint, :host
                          hash, id -> "<revision>:<created ms>:<MessagePack>"
    {prefix}:claims       hash, claim -> owner
    {prefix}:log          stream, id <revision>-0: t time in ms, w the writes as MessagePack
    {prefix}:log-marks    list of revisions at which the log may be cut
    {prefix}:request:<id> what is remembered of a request, with a time to live
    {prefix}:heartbeats   hash, host id -> time in ms and revision

Durability is the server's append-only file: `appendfsync always` loses nothing at a power cut, `everysec` nothing when
the process dies. Reads that build state (`load`) are not atomic; the log makes them so, see `protocol.Loaded`.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import importlib.resources
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from netweft_common import deadline, errors, resp

from netweft_controller.domain import commits
from netweft_controller.domain.objects import Kind
from netweft_controller.store import codec, protocol

_KINDS = tuple(Kind)
_KIND_NUMBER = {kind: number for number, kind in enumerate(_KINDS, start=1)}
# What a server says while it cannot serve, and will serve later or elsewhere.
_NOT_NOW = ("LOADING", "READONLY", "MISCONF", "CLUSTERDOWN", "MASTERDOWN", "OOM", "BUSY", "TRYAGAIN", "NOREPLICAS")


class _NoScriptError(Exception):
    """The server does not have the script."""


class _Script:
    def __init__(self, name: str) -> None:
        self.text = importlib.resources.files(__package__).joinpath(name).read_text("utf-8")
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


_COMMIT = _Script("commit.lua")
_OPEN = _Script("open.lua")
_BEAT = _Script("beat.lua")


class RedisStore:
    """A store on a Redis or Valkey server, 7.0 or later.

    Args:
        url: redis://, rediss:// or unix://; of a cluster any node.
        prefix: Hash tag of all keys; controllers with the same prefix are one cluster.
        log_writes: Writes of objects that the change log keeps, about.
        request_ttl: How long requests are remembered.
        timeout_s: Longest wait for an answer, in seconds; the caller's deadline may be shorter.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "netweft",
        log_writes: int = 200_000,
        request_ttl: dt.timedelta = dt.timedelta(hours=24),
        timeout_s: float = 5.0,
    ) -> None:
        self._client = resp.Client(url, connect_timeout_s=timeout_s)
        # Its own connection: the tail blocks in XREAD.
        self._waiter = resp.Client(url, connect_timeout_s=timeout_s)
        self._log_writes = log_writes
        self._request_ttl_ms = round(request_ttl.total_seconds() * 1000)
        self._timeout_s = timeout_s
        self._store_id = ""
        self._committing = 0
        self._answered = asyncio.Event()
        """A commit of this process has its answer."""
        tag = "{" + prefix + "}:"
        self._meta = tag + "meta"
        self._log = tag + "log"
        self._request = tag + "request:"
        self._heartbeats = tag + "heartbeats"
        self._hashes = {kind: tag + kind.value for kind in _KINDS}
        self._claims = tag + "claims"
        self._commit_keys = (self._meta, self._log, tag + "log-marks", self._claims, *self._hashes.values())

    async def open(self, *, store_id: str = "", seen_revision: int = 0) -> protocol.Identity:
        """Say which store this is, giving it an id if it has none."""
        found, revision, cut = await self._run(_OPEN, (self._meta,), (store_id, seen_revision, uuid.uuid4().hex))
        self._store_id = found.decode()
        return protocol.Identity(store_id=self._store_id, revision=revision, cut=int(cut) if cut else None)

    async def commit(self, change: commits.Commit, *, seen_revision: int = 0) -> commits.Outcome:
        """Execute a commit atomically."""
        values = [codec.encode(write.value) for write in change.writes]
        puts: list[tuple[int, str]] = []
        deletes: list[tuple[int, str]] = []
        arguments: list[bytes] = [b"", codec.encode_log(change.writes, values) if values else b""]
        for write, data in zip(change.writes, values, strict=True):
            place = (_KIND_NUMBER[write.kind], write.value.id)
            if write.action is commits.Action.DELETED:
                deletes.append(place)
            else:
                puts.append(place)
                arguments.append(data)
        remembered = (*((change.once,) if change.once else ()), *change.remember)
        if change.once is not None:
            arguments.append(codec.encode_request(change.after) if change.after is not None else b"")
        arguments += [codec.encode_request(request) for request in remembered]
        keys = [*self._commit_keys]
        keys += [self._request + request.id for request in remembered]
        keys += [self._request + request_id for request_id in change.forget]
        arguments[0] = msgspec.msgpack.encode(
            {
                "store_id": self._store_id,
                "seen": seen_revision,
                "kinds": len(_KINDS),
                "once": change.once is not None,
                "guards": [(_KIND_NUMBER[guard.kind], guard.id, guard.revision) for guard in change.guards],
                "free": change.free,
                "take": change.take,
                "drop": change.drop,
                "dropping": dict(change.drop),
                "puts": puts,
                "deletes": deletes,
                "remember": len(change.remember),
                "forget": len(change.forget),
                "request_ttl_ms": self._request_ttl_ms,
                "log_writes": self._log_writes,
            }
        )
        self._committing += 1
        try:
            answer = await self._run(_COMMIT, keys, arguments)
        finally:
            self._committing -= 1
            self._answered.set()
        return self._outcome(change, answer)

    async def load(self) -> protocol.Loaded:
        """Read all objects."""
        identity = await self._identity(self._client)
        records: list[commits.AnyRecord] = []
        for kind, key in self._hashes.items():
            # A scan may give an object twice, in two versions: the later one counts.
            found: dict[bytes, commits.AnyRecord] = {}
            cursor: bytes = b"0"
            while True:
                cursor, part = await self._call("HSCAN", key, cursor, "COUNT", 1000)
                for id_, data in zip(part[::2], part[1::2], strict=True):
                    record = codec.decode_stored(kind, data)
                    if id_ not in found or found[id_].revision < record.revision:
                        found[id_] = record
                if cursor == b"0":
                    break
            records += found.values()
        return protocol.Loaded(store_id=identity.store_id, revision=identity.revision, records=records)

    async def read_log(self, after: int, limit: int) -> Sequence[commits.Entry]:
        """Read up to `limit` entries after a revision."""
        command = ("XRANGE", self._log, f"{after + 1}-0", "+", "COUNT", limit)
        raw = await self._call(*command)
        if not raw and (await self._identity(self._client)).revision > after:
            # Trimmed away, or written since we looked: look once more before saying so.
            raw = await self._call(*command)
            if not raw:
                raise _compacted(after)
        return _entries(raw, after, after)

    async def tail(self, after: Callable[[], int], wait_s: float) -> Sequence[commits.Entry]:
        """Wait for entries after a revision."""
        start = after()
        wait_ms = max(1, round(wait_s * 1000))
        # The server answers within wait_s; the margin is for a server that does not answer at all.
        raw = await self._call(
            *("XREAD", "COUNT", 1000, "BLOCK", wait_ms, "STREAMS", self._log, f"{start}-0"),
            client=self._waiter,
            timeout_s=wait_s + self._timeout_s,
        )
        if not raw:
            identity = await self._identity(self._waiter)
            if identity.revision < start:
                raise protocol.StoreReplacedError(
                    f"the store is at revision {identity.revision}, and was at {start}: it was restored from a copy"
                )
            return []
        if self._committing:
            # The server tells of a commit here and there at the same time. What comes of it there is known without
            # reading it once more, and whoever waits for it is waiting now.
            self._answered.clear()
            await self._answered.wait()
        return _entries(raw[0][1], start, after())

    async def revision(self) -> int:
        """Return the revision of the last commit."""
        return (await self._identity(self._client)).revision

    async def find_request(self, request_id: str) -> commits.Request | None:
        """Return what is remembered of a request, or None."""
        data = await self._call("GET", self._request + request_id)
        return None if data is None else codec.decode_request(request_id, data)

    async def find_claims(self, prefix: str) -> Mapping[str, str]:
        """Return the claims whose name starts so, with their owners."""
        found: dict[str, str] = {}
        cursor: bytes = b"0"
        while True:
            cursor, part = await self._call("HSCAN", self._claims, cursor, "MATCH", f"{prefix}*", "COUNT", 10_000)
            pairs = zip(part[::2], part[1::2], strict=True)
            found.update((claim.decode(), owner.decode()) for claim, owner in pairs)
            if cursor == b"0":
                return found

    async def beat(self, revisions: Mapping[str, int]) -> protocol.Heartbeats:
        """Record heartbeats of hosts, and return those of all hosts."""
        arguments = tuple(word for pair in revisions.items() for word in pair)
        now_ms, pairs = await self._run(_BEAT, (self._heartbeats,), arguments)
        found = {pairs[i].decode(): pairs[i + 1].partition(b" ") for i in range(0, len(pairs), 2)}
        return protocol.Heartbeats(
            now_ms=int(now_ms),
            last_ms={host_id: int(time_ms) for host_id, (time_ms, _, _) in found.items()},
            # Controllers before 0.2 wrote the time alone.
            revisions={host_id: int(revision or 0) for host_id, (_, _, revision) in found.items()},
        )

    async def forget_heartbeat(self, host_id: str) -> None:
        """Drop a host's heartbeat."""
        await self._call("HDEL", self._heartbeats, host_id)

    async def close(self) -> None:
        """Close connections."""
        await self._client.close()
        await self._waiter.close()

    async def _identity(self, client: resp.Client) -> protocol.Identity:
        store_id, revision = await self._call("HMGET", self._meta, "store_id", "revision", client=client)
        if store_id is None or store_id.decode() != self._store_id:
            raise protocol.StoreReplacedError(
                f"the store {store_id.decode() if store_id else '(empty)'} is not {self._store_id} that was opened"
            )
        return protocol.Identity(store_id=self._store_id, revision=int(revision or 0))

    async def _run(self, script: _Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        try:
            return await self._call("EVALSHA", script.sha, len(keys), *keys, *arguments)
        except _NoScriptError:
            # The server was restarted, or is another one: a script is not data, it is not kept.
            return await self._call("EVAL", script.text, len(keys), *keys, *arguments)

    async def _call(self, *command: Any, client: resp.Client | None = None, timeout_s: float | None = None) -> Any:
        used = client or self._client
        limit_s = deadline.remaining_s(self._timeout_s) if timeout_s is None else timeout_s
        try:
            return await used.execute(*command, timeout_s=limit_s)
        except TimeoutError as error:
            if limit_s >= self._timeout_s:
                # Not the caller's impatience: the server, or the way to it, is dead.
                used.abort()
            raise _unreachable(command[0], f"no answer in {limit_s:.1f} s") from error
        except resp.LostError as error:
            raise _unreachable(command[0], str(error)) from error
        except resp.ReplyError as error:
            text = str(error)
            if text.startswith("NOSCRIPT"):
                raise _NoScriptError from error
            if text.startswith(_NOT_NOW) or any(f" {word}" in text for word in _NOT_NOW):
                raise errors.Unavailable("STORE_NOT_READY", f"the store cannot serve now: {text}") from error
            raise errors.Internal("STORE_REFUSED", f"the store refused {command[0]}: {text}") from error

    def _outcome(self, change: commits.Commit, answer: Any) -> commits.Outcome:
        word = answer[0]
        if word == b"ok":
            return commits.Committed(commits.Entry(answer[1], int(answer[2]), change.writes))
        if word == b"again":
            assert change.once is not None, "only a commit with a request is answered so"
            known = codec.decode_request(change.once.id, answer[2]) if answer[2] else None
            return commits.Replayed(known, answer[1])
        if word == b"guard":
            return commits.Refused(answer[1], guard=change.guards[answer[2]])
        if word == b"claim":
            return commits.Refused(answer[1], claim=answer[2].decode(), owner=answer[3].decode())
        raise protocol.StoreReplacedError(
            f"the store is {answer[1].decode() or '(empty)'} at revision {answer[2]}, not {self._store_id} as opened"
        )


def _unreachable(command: str, why: str) -> errors.Unavailable:
    return errors.Unavailable(
        "STORE_UNREACHABLE",
        f"the store does not answer {command} ({why}); check the Redis server, and ask again with the same request id",
    )


def _entries(raw: Sequence[Any], start: int, seen: int) -> list[commits.Entry]:
    entries: list[commits.Entry] = []
    expected = start + 1
    for id_, flat in raw:
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        revision = int(id_.partition(b"-")[0])
        if revision != expected:
            raise _compacted(start)
        expected += 1
        if revision > seen:
            entries.append(commits.Entry(revision, int(fields[b"t"]), codec.decode_log(fields[b"w"])))
    return entries


def _compacted(after: int) -> errors.OutOfRange:
    return errors.OutOfRange(
        "REVISION_COMPACTED",
        f"the change log no longer reaches back to revision {after}; list again and watch from now",
        revision=str(after),
    )
