"""Streams of what hosts must have: a snapshot or what was missed, then each change.

A watch does not queue values. It notes which objects have changed and reads them when the host is ready for more, so
a slow host gets each object once, at its latest version, and a watch costs at most one note an object.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

import msgspec
from netweft_common import errors

from netweft_controller.domain import changes, commits
from netweft_controller.domain.state import Delta, State
from netweft_controller.sync.replica import Replica

CHUNK = 1000
NOTES_MAX = 262_144
BOOKMARK_S = 15.0
COALESCE_S = 0.01
"""How long changes gather after some were sent: one that comes alone goes at once, the rest of a burst together."""
ACK_S = 1.0
"""How soon after a change that concerns a host its stream says how far it has come, so that the host can say so."""
ASK_S = 1.0
"""A host is asked to report once in so long a time, however many wait for it."""
HOLD_S = 0.05
"""How long a change of the host's own sandboxes waits for the call that applies it directly."""


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """One message to a host; fields as in WatchHostResponse."""

    changes: Sequence[changes.Change]
    revision: int
    snapshot: bool = False
    snapshot_end: bool = False
    store_id: str
    report_now: bool = False


class _Watch:
    """What one stream still has to look at, with the revision at which it was noted.

    What concerns the host's own sandboxes is held back a moment: a controller that makes it so applies it on the host
    directly, and then there is nothing to tell.
    """

    def __init__(self) -> None:
        self.own: dict[changes.Key, int] = {}
        self.peers: dict[changes.Key, int] = {}
        self.wake = asyncio.Event()
        self.restart = False
        self.is_asked = False
        """Whether the host is to report as soon as it has what is noted by now."""
        self._ask_from_s = 0.0
        self._due_s = 0.0
        self._ack_due_s: float | None = None
        self.gather_until_s = 0.0
        """What comes before this time of the loop waits for it."""
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def is_overrun(self) -> bool:
        """Whether the host is too far behind to be waited for."""
        return len(self.own) + len(self.peers) > NOTES_MAX

    def note(self, keys: Iterable[changes.Key], revision: int, now_s: float, ack_s: float = ACK_S) -> bool:
        """Take note that objects have changed at a revision; returns whether it is to be told at once.

        Args:
            keys: The objects.
            revision: At which.
            now_s: Time of the loop, in seconds.
            ack_s: How soon the host is to be told how far it has come.
        """
        if not self.own:
            self._due_s = now_s + HOLD_S
        if self._ack_due_s is None:
            self._ack_due_s = now_s + ack_s
        at_once = self.is_overrun
        for key in keys:
            if key[0] is changes.HostKind.PEER:
                self.peers[key] = revision
                at_once = True
                continue
            self.own[key] = revision
            if key[0] is changes.HostKind.NETWORK:
                # Its peers are noted with it, and are of no use before it.
                self._due_s = now_s
                at_once = True
        return at_once

    def wake_when_due(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake the stream when what is held back is due: once for all that is noted until then."""
        if self._alarm is None:
            self._alarm = loop.call_at(self._due_s, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self.wake.set()

    def close(self) -> None:
        """Wake nobody any more."""
        if self._alarm is not None:
            self._alarm.cancel()

    def told(self, known: Iterable[changes.Change]) -> None:
        """Take note that the host has these from elsewhere."""
        for change in known:
            if self.own.get((change.kind, change.id), change.revision + 1) <= change.revision:
                del self.own[change.kind, change.id]

    def take(self, now_s: float) -> list[changes.Key]:
        """Return what is to be told now."""
        keys = [*self.peers]
        self.peers.clear()
        if self.own and now_s >= self._due_s:
            keys += self.own
            self.own.clear()
        return keys

    def ask(self) -> None:
        """Have the host report."""
        self.is_asked = True
        self.wake.set()

    def wait_s(self, now_s: float) -> float:
        """Return how long to wait for news, in seconds: until what is held back is due, if anything is."""
        if self.is_asked and not self.own:
            return max(0.0, self._ask_from_s - now_s)
        ack_s = BOOKMARK_S if self._ack_due_s is None else max(0.0, self._ack_due_s - now_s)
        return max(0.0, self._due_s - now_s) if self.own else ack_s

    def owes_position(self, now_s: float) -> bool:
        """Return whether the host is to be told how far it has come, though there is nothing else to tell."""
        return self._ack_due_s is not None and now_s >= self._ack_due_s and not self.own and not self.peers

    def asks(self, now_s: float) -> bool:
        """Return whether the host is to be asked to report now: not while it lacks something, and once in a while."""
        return self.is_asked and not self.own and now_s >= self._ask_from_s

    def asked(self, now_s: float) -> None:
        """Take note that the host was asked to report, and told how far it has come."""
        self.is_asked = False
        self._ask_from_s = now_s + ASK_S
        self.positioned()

    def positioned(self) -> None:
        """Take note that the host was told how far it has come."""
        self._ack_due_s = None

    def clear(self) -> None:
        """Forget all notes: everything is being told."""
        self._ack_due_s = None
        self.own.clear()
        self.peers.clear()


class HostWatches:
    """All streams to hosts of this controller.

    Args:
        replica: Intent.
        silent_s: Tells for how long hosts may be silent at the moment: they are told how far they have come after half
            of it, since they say so no sooner.
    """

    def __init__(self, replica: Replica, *, silent_s: Callable[[], float] = lambda: 0.0) -> None:
        self._replica = replica
        self._silent_s = silent_s
        self._watches: dict[str, set[_Watch]] = {}
        replica.subscribe(self)

    def changed(self, state: State, deltas: Sequence[Delta]) -> None:
        """Note what hosts must look at again."""
        if not self._watches:
            return
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        ack_s = max(ACK_S, self._silent_s() / 2)
        for host_id, keys in changes.touched(state, deltas).items():
            for watch in self._watches.get(host_id, ()):
                if watch.note(keys, state.revision, now_s, ack_s):
                    watch.wake.set()
                else:
                    watch.wake_when_due(loop)

    def ask(self, host_id: str) -> None:
        """Have a host report as soon as it has what is recorded now, if it watches here."""
        for watch in self._watches.get(host_id, ()):
            watch.ask()

    def told(self, host_id: str, known: Iterable[changes.Change]) -> None:
        """Take note that a host has taken up or dropped these: its stream need not say so again."""
        for watch in self._watches.get(host_id, ()):
            watch.told(known)

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
                self._snapshot(host_id, watch)
                if missed is None
                else self._batches(missed, state.store_id, resume_revision, state.revision)
            )
            for batch in batches:
                yield batch
            while True:
                for batch in await self._next(host_id, watch, sent):
                    yield batch
                    sent = max(sent, batch.revision)
        finally:
            watch.close()
            watches = self._watches[host_id]
            watches.discard(watch)
            if not watches:
                del self._watches[host_id]

    async def _next(self, host_id: str, watch: _Watch, sent: int) -> Iterable[Batch]:
        """Wait for what is to be told next; nothing may come of it."""
        now_s = asyncio.get_running_loop().time
        silent_until_s = now_s() + BOOKMARK_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(watch.wait_s(now_s()), silent_until_s - now_s())):
                    await watch.wake.wait()
                await asyncio.sleep(max(0.0, watch.gather_until_s - now_s()))
            watch.wake.clear()
            self._require(host_id)
            if watch.is_overrun:
                raise errors.Conflict(
                    "WATCH_TOO_SLOW", f"host {host_id} fell more than {NOTES_MAX} objects behind; resume by revision"
                )
            if watch.restart:
                watch.restart = False
                return self._snapshot(host_id, watch)
            state = self._replica.state
            if keys := watch.take(now_s()):
                watch.gather_until_s = now_s() + COALESCE_S
                if not watch.own:
                    watch.positioned()
                # What is held back has not been sent: the host is not past it.
                reached = min(watch.own.values(), default=state.revision + 1) - 1
                return self._batches(changes.resolve(state, host_id, keys), state.store_id, sent, max(sent, reached))
            if watch.asks(now_s()):
                watch.asked(now_s())
                return [Batch(changes=(), revision=max(sent, state.revision), store_id=state.store_id, report_now=True)]
            if watch.owes_position(now_s()):
                watch.positioned()
                if state.revision > sent:
                    return [Batch(changes=(), revision=state.revision, store_id=state.store_id)]
            if now_s() >= silent_until_s:
                # So that a resume after a long silence is not older than the log.
                moved = state.revision > sent and not watch.own
                return [Batch(changes=(), revision=state.revision, store_id=state.store_id)] if moved else []

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
        watch.clear()
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

    def _batches(self, told: Sequence[changes.Change], store_id: str, sent: int, reached: int) -> list[Batch]:
        chunks = [told[start : start + CHUNK] for start in range(0, len(told), CHUNK)]
        return [
            Batch(
                changes=chunk,
                # Until the last chunk has come, the host is where it was.
                revision=reached if index == len(chunks) - 1 else sent,
                store_id=store_id,
            )
            for index, chunk in enumerate(chunks)
        ]

    def _require(self, host_id: str) -> None:
        if host_id not in self._replica.state.hosts:
            raise errors.NotFound("HOST_NOT_FOUND", f"host {host_id} is not registered; register it", host=host_id)
