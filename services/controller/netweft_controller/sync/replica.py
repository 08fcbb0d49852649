"""The controller's copy of all intent, kept by the store's change log.

Entries are applied in the order of their revisions, whoever brings them: this process's own commits as soon as the
store has answered, everything else by the tail of the log. So a commit is visible here when `commit` returns, and
every listener sees one order.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Protocol

from netweft_common import backoff, deadline, errors, logs

from netweft_controller.domain import commits, recovery
from netweft_controller.domain.state import Delta, State
from netweft_controller.store.protocol import Store, StoreReplacedError

_log = logs.get()
_TAIL_WAIT_S = 1.0
_TAIL_REST_S = 0.005
_TAIL_IDLE_REST_S = 0.05
_RETRY_LIMIT_S = 1.0
"""Longest wait for a store that is away: all that others commit once it is back waits as long here."""
_LOG_PAGE = 1000
_RECENT_WRITES = 16_384
_DECISIONS = 10


class Listener(Protocol):
    """Who is told of changes, in order, on the event loop; must neither wait nor raise."""

    def changed(self, state: State, deltas: Sequence[Delta]) -> None:
        """Take note of what one entry changed; the state is at that entry."""
        ...

    def reloaded(self, state: State) -> None:
        """Take note that everything may have changed."""
        ...


class Replica:
    """All intent in memory, readable at once and committed to through here.

    Args:
        store: Where intent is kept.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._state: State | None = None
        self._listeners: list[Listener] = []
        # Entries that arrived before their predecessors, by revision.
        self._early: dict[int, commits.Entry] = {}
        # The last entries, so that watchers need not ask the store; bounded by what they hold, not by their number.
        self._recent: collections.deque[commits.Entry] = collections.deque()
        self._recent_writes = 0
        self._moved = asyncio.Event()
        # Who waits for a revision that the tail is to bring, and how the tail's rest is ended for him.
        self._waiting = 0
        self._hurry = asyncio.Event()
        self._stale = False
        self._delays = _delays()

    @property
    def state(self) -> State:
        """Intent at the latest revision that is known here; do not keep it across an await.

        Raises:
            Unavailable: The first load is not done yet.
        """
        if self._state is None:
            raise errors.Unavailable("STARTING", "the controller has not loaded its state yet; ask again in a moment")
        return self._state

    @property
    def is_loaded(self) -> bool:
        """Whether `state` can be read."""
        return self._state is not None

    def subscribe(self, listener: Listener) -> None:
        """Tell a listener of every change from now on."""
        self._listeners.append(listener)

    def unsubscribe(self, listener: Listener) -> None:
        """Tell it no more."""
        self._listeners.remove(listener)

    async def commit(self, change: commits.Commit) -> commits.Outcome:
        """Commit, and return once the change is visible in `state`.

        Raises:
            Unavailable: The store does not answer; the change may or may not have been made.
        """
        try:
            outcome = await self.store.commit(change, seen_revision=self.state.revision)
        except StoreReplacedError:
            self._stale = True
            raise
        if isinstance(outcome, commits.Committed):
            if outcome.entry.writes:
                self.offer(outcome.entry)
            # Else its revision is that of somebody's entry, which may be unread: this must not take that one's place.
            await self.reached(outcome.entry.revision)
        else:
            # The reason for the refusal must be visible to whoever decides again.
            await self.reached(outcome.revision)
        return outcome

    async def decide(
        self, decision: Callable[[State], commits.Commit | None]
    ) -> commits.Committed | commits.Replayed | None:
        """Commit what a decision says, deciding again on newer state when somebody else was faster.

        Args:
            decision: Pure function of the state; None: there is nothing to do.

        Returns:
            The outcome, or None when there was nothing to do.

        Raises:
            Conflict: Others were faster too many times in a row.
            NetweftError: What the decision raised.
        """
        refused: commits.Refused | None = None
        for _ in range(_DECISIONS):
            change = decision(self.state)
            if change is None:
                return None
            outcome = await self.commit(change)
            if not isinstance(outcome, commits.Refused):
                return outcome
            refused = outcome
        assert refused is not None, "the loop runs at least once"
        raise conflict(refused)

    async def find_after(self, request_id: str, error: errors.NetweftError) -> commits.Request:
        """Return what is remembered of a request that was not when it was looked for, or raise what was in its way.

        Another try of it, through another controller, may have been recorded in between: what it did is then what
        cannot be done any more.

        Raises:
            NetweftError: The error, if nothing is remembered.
        """
        known = None
        if not isinstance(error, errors.Unavailable):
            with contextlib.suppress(errors.Unavailable):
                known = await self.find_request(request_id)
        if known is None:
            raise error
        return known

    async def find_request(self, request_id: str) -> commits.Request | None:
        """Return what is remembered of a request, or None, once the state holds all that anybody has committed by now.

        So what was acknowledged, by whatever controller, or done by a try whose answer was lost, is not overlooked by
        whoever decides next.

        Raises:
            Unavailable: The store does not answer, or its log did not come in the caller's time.
        """
        try:
            known = await self.store.find_request(request_id)
            # In this order: the revision is not older than what is remembered.
            revision = await self.store.revision()
        except StoreReplacedError:
            self._stale = True
            raise
        await self.reached(revision)
        return known

    def offer(self, entry: commits.Entry) -> None:
        """Apply an entry, or keep it until its predecessors have come."""
        state = self.state
        if entry.revision <= state.revision:
            return
        if entry.revision > state.revision + 1:
            self._early[entry.revision] = entry
            return
        pending: commits.Entry | None = entry
        while pending is not None:
            deltas = state.apply(pending)
            self._keep(pending)
            for listener in self._listeners:
                listener.changed(state, deltas)
            pending = self._early.pop(state.revision + 1, None)
        self._move()

    async def reached(self, revision: int) -> None:
        """Wait until the state is at a revision.

        Raises:
            Unavailable: It did not come in the caller's time.
        """
        if self.state.revision >= revision:
            return
        self._waiting += 1
        self._hurry.set()
        try:
            async with asyncio.timeout(deadline.remaining_s(5.0)):
                while self.state.revision < revision:
                    await self._moved.wait()
        except TimeoutError as error:
            raise errors.Unavailable(
                "REPLICA_BEHIND", f"the controller has not yet read the store's log up to revision {revision}"
            ) from error
        finally:
            self._waiting -= 1

    async def wait_past(self, revision: int, wait_s: float) -> bool:
        """Wait until the state is past a revision, or was reloaded; False when it did not come in time."""
        state = self.state
        if state.revision > revision:
            return True
        try:
            async with asyncio.timeout(wait_s):
                await self._moved.wait()
        except TimeoutError:
            return False
        return True

    async def read_log(self, after: int) -> Sequence[commits.Entry]:
        """Return some entries after a revision, from memory if they are there; none: there is nothing newer.

        Raises:
            OutOfRange: The log no longer reaches back to that revision.
        """
        if after >= self.state.revision:
            return []
        if self._recent and self._recent[0].revision <= after + 1:
            return [entry for entry in self._recent if entry.revision > after][:_LOG_PAGE]
        return await self.store.read_log(after, _LOG_PAGE)

    async def load(self) -> None:
        """Read everything anew.

        Raises:
            Unavailable: The store does not answer.
        """
        known = self._state
        found = await self.store.open(
            store_id=known.store_id if known else "", seen_revision=known.revision if known else 0
        )
        loaded = await self.store.load()
        state = State(store_id=loaded.store_id, revision=loaded.revision)
        state.load(loaded.records)
        # The scan was not atomic: what was written while it ran is in the log.
        entries = await self._read_on(state)
        if known is not None and found.cut is not None:
            # Before anybody is told of this state: hosts would take down what it lacks.
            entries += await self._recover(known, state, found.cut)
        state.loaded()
        self._state = state
        self._stale = False
        self._early.clear()
        self._recent.clear()
        self._recent_writes = 0
        for entry in entries:
            self._keep(entry)
        for listener in self._listeners:
            listener.reloaded(state)
        self._move()
        _log.info("state loaded", revision=state.revision, store_id=state.store_id, endpoints=len(state.endpoints))

    async def _read_on(self, state: State) -> list[commits.Entry]:
        """Bring a state up to the log's end, and return what came."""
        entries: list[commits.Entry] = []
        while page := await self.store.read_log(state.revision, _LOG_PAGE):
            for entry in page:
                state.apply(entry)
            entries += page
        return entries

    async def _recover(self, known: State, state: State, cut: int) -> list[commits.Entry]:
        """Write into the store what it has lost and this controller knows; returns what came into the log meanwhile."""
        entries: list[commits.Entry] = []
        given_up: set[recovery.Name] = set()
        count = 0
        while (change := recovery.next_commit(known, state, cut, given_up)) is not None:
            outcome = await self.store.commit(change, seen_revision=state.revision)
            news = await self._read_on(state)
            entries += news
            if isinstance(outcome, commits.Committed):
                count += len(change.writes)
            elif isinstance(outcome, commits.Refused) and (outcome.claim or not news):
                # Somebody has its name by now. Where the log tells who was faster it is decided again.
                kind, id_ = recovery.refused(change, outcome)
                given_up.add((kind, id_))
                _log.error(
                    "lost by the store and not to be recovered",
                    kind=kind, object_id=id_, claim=outcome.claim, owner=outcome.owner,
                )  # fmt: skip
        if count:
            _log.warning("the store had lost writes, which are recovered", count=count, cut=cut)
        return entries

    async def run(self) -> None:
        """Follow the store until cancelled; every fault is waited out."""
        while True:
            try:
                if self._state is None or self._stale:
                    await self.load()
                await self._follow()
            except (errors.OutOfRange, StoreReplacedError) as error:
                _log.warning("state to be loaded again", reason=error.reason, error=error.message)
                self._stale = True
            except errors.Unavailable as error:
                _log.warning("store unreachable", error=error.message)
                # Whoever waits for an entry was answered by the store just now.
                await self._rest(next(self._delays))
                await self._check_identity()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the store while the block runs."""
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self.run(), name="replica")
            try:
                yield
            finally:
                task.cancel()

    async def _follow(self) -> None:
        while not self._stale:
            entries = await self.store.tail(lambda: self.state.revision, _TAIL_WAIT_S)
            self._delays = _delays()
            for entry in entries:
                self.offer(entry)
            # What this replica commits is in its state already: rest, rather than read back each of its own commits.
            # Where others commit too, rest little; and not at all while somebody waits for what they have committed.
            if self._waiting:
                continue
            await self._rest(_TAIL_REST_S if entries else _TAIL_IDLE_REST_S)

    async def _rest(self, rest_s: float) -> None:
        """Rest, but no longer than until somebody waits for what the tail is to bring."""
        self._hurry.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(rest_s):
                await self._hurry.wait()

    async def _check_identity(self) -> None:
        """After an outage: the server that answers now may be another one, with a log that looks continuous."""
        known = self._state
        if known is None:
            return
        with contextlib.suppress(errors.Unavailable):
            identity = await self.store.open(store_id=known.store_id, seen_revision=known.revision)
            self._stale = self._stale or identity.store_id != known.store_id

    def _keep(self, entry: commits.Entry) -> None:
        self._recent.append(entry)
        self._recent_writes += len(entry.writes)
        while self._recent_writes > _RECENT_WRITES and len(self._recent) > 1:
            self._recent_writes -= len(self._recent.popleft().writes)

    def _move(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()


def _delays() -> Iterator[float]:
    return backoff.delays(limit_s=_RETRY_LIMIT_S)


def conflict(refused: commits.Refused) -> errors.Conflict:
    """Return the error of a commit that was refused for good."""
    if refused.guard is not None:
        what, where = f"{refused.guard.kind} {refused.guard.id}", {}
    else:
        what, where = f"{refused.claim} (of {refused.owner})", {"claim": refused.claim, "owner": refused.owner}
    return errors.Conflict(
        "CHANGED_MEANWHILE", f"{what} was changed by somebody else at the same time; try again", **where
    )
