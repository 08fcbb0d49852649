"""Streams of what hosts must have: a snapshot or what was missed, then each change.

A watch does not queue values. It notes which objects have changed and reads them when the host is ready for more, so
a slow host gets each object once, at its latest version, and a watch costs at most one note an object.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterable, Sequence

from netweft_common import errors

from netweft_controller.domain import changes, commits
from netweft_controller.domain.state import Delta, State
from netweft_controller.sync.replica import Replica

CHUNK = 1000
NOTES_MAX = 262_144
BOOKMARK_S = 15.0
COALESCE_S = 0.01
"""How long changes gather before they are sent: what a call applies directly does not wait for this."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One message to a host; fields as in WatchHostResponse."""

    changes: Sequence[changes.Change]
    revision: int
    snapshot: bool = False
    snapshot_end: bool = False
    store_id: str


class _Watch:
    """What one stream still has to look at."""

    def __init__(self) -> None:
        self.notes: dict[changes.Key, None] = {}
        self.wake = asyncio.Event()
        self.restart = False
        self.overrun = False

    def note(self, keys: Iterable[changes.Key]) -> None:
        self.notes.update(dict.fromkeys(keys))
        if len(self.notes) > NOTES_MAX:
            self.overrun = True
        self.wake.set()


class HostWatches:
    """All streams to hosts of this controller.

    Args:
        replica: Intent.
    """

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._watches: dict[str, set[_Watch]] = {}
        replica.subscribe(self)

    def changed(self, state: State, deltas: Sequence[Delta]) -> None:
        """Note what hosts must look at again."""
        if not self._watches:
            return
        for host_id, keys in changes.touched(state, deltas).items():
            for watch in self._watches.get(host_id, ()):
                watch.note(keys)

    def reloaded(self, state: State) -> None:
        """Have every stream start anew."""
        del state
        for watches in self._watches.values():
            for watch in watches:
                watch.restart = True
                watch.wake.set()

    @property
    def host_ids(self) -> frozenset[str]:
        """Hosts that watch here."""
        return frozenset(self._watches)

    async def stream(self, host_id: str, *, resume_revision: int, store_id: str) -> AsyncIterator[Batch]:
        """Yield what a host must have, without end.

        Raises:
            NotFound: The host is not registered, or not any more.
            Conflict: The host fell too far behind; it resumes by revision.
        """
        watch = _Watch()
        self._watches.setdefault(host_id, set()).add(watch)
        try:
            self._require(host_id)
            missed = await self._missed(host_id, resume_revision, store_id)
            state = self._replica.state
            sent = state.revision
            batches = (
                self._snapshot(host_id, watch) if missed is None else self._batches(missed, state, resume_revision)
            )
            for batch in batches:
                yield batch
            while True:
                for batch in await self._next(host_id, watch, sent):
                    yield batch
                    sent = max(sent, batch.revision)
        finally:
            watches = self._watches[host_id]
            watches.discard(watch)
            if not watches:
                del self._watches[host_id]

    async def _next(self, host_id: str, watch: _Watch, sent: int) -> Iterable[Batch]:
        try:
            async with asyncio.timeout(BOOKMARK_S):
                await watch.wake.wait()
            await asyncio.sleep(COALESCE_S)
        except TimeoutError:
            state = self._replica.state
            self._require(host_id)
            # So that a resume after a long silence is not older than the log.
            return (
                [Batch(changes=(), revision=state.revision, store_id=state.store_id)] if state.revision > sent else []
            )
        watch.wake.clear()
        self._require(host_id)
        if watch.overrun:
            raise errors.Conflict(
                "WATCH_TOO_SLOW", f"host {host_id} fell more than {NOTES_MAX} objects behind; resume by revision"
            )
        if watch.restart:
            watch.restart = False
            return self._snapshot(host_id, watch)
        keys = list(watch.notes)
        watch.notes.clear()
        state = self._replica.state
        return self._batches(changes.resolve(state, host_id, keys), state, sent)

    async def _missed(self, host_id: str, revision: int, store_id: str) -> list[changes.Change] | None:
        """Return what a host has missed since a revision, or None when it needs a snapshot."""
        state = self._replica.state
        if not revision or store_id != state.store_id:
            return None
        # The host may have it from a controller that is ahead of this one.
        try:
            await self._replica.reached(revision)
        except errors.Unavailable:
            return None
        entries: list[commits.Entry] = []
        after = revision
        try:
            while page := await self._replica.read_log(after):
                entries += page
                after = page[-1].revision
        except errors.OutOfRange:
            return None
        state = self._replica.state
        if state.store_id != store_id:
            return None
        return changes.catch_up(state, host_id, revision, entries)

    def _snapshot(self, host_id: str, watch: _Watch) -> list[Batch]:
        state = self._replica.state
        watch.notes.clear()
        everything = changes.view(state, host_id)
        chunks = [everything[start : start + CHUNK] for start in range(0, len(everything), CHUNK)] or [[]]
        return [
            Batch(
                changes=chunk,
                revision=state.revision if index == len(chunks) - 1 else 0,
                snapshot=True,
                snapshot_end=index == len(chunks) - 1,
                store_id=state.store_id,
            )
            for index, chunk in enumerate(chunks)
        ]

    def _batches(self, told: Sequence[changes.Change], state: State, sent: int) -> list[Batch]:
        chunks = [told[start : start + CHUNK] for start in range(0, len(told), CHUNK)]
        return [
            Batch(
                changes=chunk,
                # Until the last chunk has come, the host is where it was.
                revision=state.revision if index == len(chunks) - 1 else sent,
                store_id=state.store_id,
            )
            for index, chunk in enumerate(chunks)
        ]

    def _require(self, host_id: str) -> None:
        if host_id not in self._replica.state.hosts:
            raise errors.NotFound("HOST_NOT_FOUND", f"host {host_id} is not registered; register it", host=host_id)
