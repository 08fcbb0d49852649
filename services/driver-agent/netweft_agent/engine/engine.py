"""The engine: takes changes of objects, brings the kernel to them, and keeps it there.

One task owns all state. Callers put jobs into its queue; jobs that wait are merged, so that a burst of single attaches
becomes one plan and a few netlink sends. For each round of changes:

1. objects are put into the store, those that cannot be rendered are refused,
2. the owners concerned are rendered anew and the difference to what the kernel is known to have is planned,
3. the kernel executes the plan; a change whose owner failed is taken back by planning the way back,
4. what is held from now on is written to the journal, then callers are told.

A failed change stays wanted where the controller counts on it (a confirmed endpoint, a peer, a removal); the next
reconcile tries it again. Any other is forgotten.

A reconcile compares the whole desired state, or that of some namespaces, with what is observed in the kernel.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import structlog
from netweft_common import faults
from netweft_common.errors import FailedPrecondition, Internal, NetweftError, NotFound, Unavailable

from netweft_agent.domain import leases
from netweft_agent.domain.objects import (
    HANDOVER,
    LATER,
    Endpoint,
    Facts,
    HostFiles,
    Kind,
    Network,
    Object,
    Peer,
    PublishedPort,
    Ref,
    Sandbox,
)
from netweft_agent.domain.plan import Operation, implied, plan
from netweft_agent.domain.resources import Key, Link, Ns, Resource
from netweft_agent.engine.announcing import TOLD, Announcing
from netweft_agent.engine.desired import Desired, alone
from netweft_agent.engine.journal import Journal, Position
from netweft_agent.engine.render import Renderer, Scope
from netweft_agent.engine.store import Change, ObjectStore, same_but_revision
from netweft_agent.kernel.api import Kernel, Statistics

log = structlog.get_logger(__name__)

MERGE_CHANGES = 4096
"""Changes that one round takes at most."""

REPAIRS_KEPT = 32
"""Repairs that are told of by what they did; the others are counted."""

REPAIR_ROUNDS = 3
"""A repair may uncover more (a link that comes back needs its routes again); what is left waits for the next pass."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """State of one object on this host.

    Attributes:
        error: None: the kernel has it.
        ports: Of an endpoint: its published ports, with what the host has assigned.
        applied: The kernel has had it at some time.
    """

    ref: Ref
    revision: int
    error: NetweftError | None = None
    netns_path: str = ""
    interface_name: str = ""
    ports: tuple[PublishedPort, ...] = ()
    applied: bool = False


_UNANSWERED = Status(ref=Ref(kind=Kind.NETWORK, id=""), revision=0)
"""Stands where a status is to come."""


class Repair(msgspec.Struct, frozen=True, kw_only=True):
    """One operation by which the kernel was brought back to what is wanted.

    Attributes:
        time_ms: Milliseconds since 1970.
    """

    time_ms: int
    owner: str
    ns: Ns
    command: str


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """What had to be repaired since the agent's start: how many operations, and the last of them."""

    operations: int = 0
    repairs: tuple[Repair, ...] = ()


@dataclass(slots=True, kw_only=True)
class _Job:
    """Something for the engine's task: changes, or anything else to run; `answer` is what its caller waits for."""

    changes: Sequence[Change] = ()
    position: Position | None = None
    run: Callable[[], Awaitable[object]] | None = None
    answer: asyncio.Future[object] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(slots=True)
class _Round:
    """One round of changes: what was there before, what is concerned, what became of each."""

    scope: Scope = field(default_factory=Scope)
    before: dict[Ref, tuple[Object | None, int | None]] = field(default_factory=dict)
    """What was held of each object, and since when it was known to be gone."""
    changes: dict[Ref, Change] = field(default_factory=dict)
    silent: list[Change] = field(default_factory=list)
    """Changes that ask nothing new of the kernel."""

    def news(self, *, without: Collection[Ref]) -> Iterator[Change]:
        """Yield what the journal is to be told of; of what was never held it need not say that it is gone."""
        for ref, change in self.changes.items():
            if ref not in without and (change.put is not None or self.before[ref][0] is not None):
                yield change


class Engine:
    """One host's engine.

    Args:
        kernel: The kernel; the engine is its only user.
        renderer: Drivers and facts.
        journal: Where objects are kept across restarts.
        clock: Seconds since 1970.
    """

    def __init__(
        self, *, kernel: Kernel, renderer: Renderer, journal: Journal, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self.store = ObjectStore()
        self.desired = Desired()
        self.known: dict[Key, Resource] = {}
        self.statuses: dict[Ref, Status] = {}
        self.unreported: set[Ref] = set()
        self.position = Position()
        self.drift = Drift()
        self._kernel = kernel
        self._renderer = renderer
        self._journal = journal
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue()
        self._authoritative = False
        self._behind = False
        """The journal misses something that is held: to be written anew before it may say how far we are."""
        self._failing: set[Ref] = set()
        self._untried: set[Ref] = set()
        """Refused before the kernel was asked, for want of something that may come: worth another try as they are."""
        self._unrendered: dict[str, NetweftError] = {}
        self._announcing = Announcing(self.store)
        self._expected: collections.Counter[str] = collections.Counter()
        """Containers whose runtime will say where their interfaces are to be made."""
        self._leftovers: dict[Key, str] = {}
        """What the kernel would not remove, with the owner that let go of it; tried again with each round."""

    # --- what callers may do -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Load the journal and bring the kernel to it. Call once, before `run`.

        Without a journal nothing is removed until the controller has said what there shall be.

        Raises:
            FailedPrecondition: The journal cannot be read.
        """
        objects, self.position = self._journal.load()
        for item in objects.values():
            self.store.put(item)
        self._authoritative = bool(objects) or bool(self.position.store_id)
        self._adopt(self._renderer.everything(self.store))
        await self._reconcile(None)
        for ref in objects:
            self._note(ref, self._failure(ref) or self._ill(ref), applied=True)
        self._announcing.remember(self.desired.by_owner)
        log.info("engine started", objects=len(objects), resources=len(self.desired.resources))

    async def run(self) -> None:
        """Work through jobs until cancelled; the engine's only writer of state. Finishes what it has begun."""
        while True:
            jobs = [await self._jobs.get()]
            count = len(jobs[0].changes)
            while not self._jobs.empty() and count < MERGE_CHANGES:
                jobs.append(self._jobs.get_nowait())
                count += len(jobs[-1].changes)
            work = asyncio.ensure_future(self._work(jobs))
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                await work
                raise

    async def apply(
        self, changes: Sequence[Change], position: Position | None = None, *, store_id: str = ""
    ) -> list[Status]:
        """Bring the kernel to these changes and return a status for each, in their order.

        Idempotent: a change that is not newer than what is held is answered with the state of what is held.
        Cancelling the call does not stop the work.

        Args:
            changes: Networks and sandboxes before the endpoints that name them.
            position: The change log's position that is reached with these changes.
            store_id: Store that the revisions belong to; empty: not known.

        Raises:
            Unavailable: The host follows another store, whose revisions do not compare with these.
        """
        if store_id and self.position.store_id not in {"", store_id}:
            raise Unavailable(
                "OTHER_STORE",
                f"the changes are of store {store_id}, but this host still follows {self.position.store_id}; "
                "it takes them from its stream when that has caught up",
                store_id=store_id,
            )
        job = _Job(changes=changes, position=position)
        self._jobs.put_nowait(job)
        answer = await asyncio.shield(job.answer)
        assert isinstance(answer, list)
        return answer

    async def apply_snapshot(self, changes: Sequence[Change], position: Position) -> None:
        """Bring the kernel to exactly these objects; what is held and not named is gone, unless it is newer."""
        await self._call(lambda: self._take_snapshot(changes, position))

    async def plan(self, changes: Sequence[Change]) -> tuple[Operation, ...]:
        """Return what `apply` would do to the kernel; nothing is done.

        Raises:
            NetweftError: The first change that would be refused.
        """
        answer = await self._call(lambda: self._dry_run(changes))
        assert isinstance(answer, tuple)
        return answer

    async def reconcile(self, namespaces: Collection[Ns] | None = None) -> tuple[Operation, ...]:
        """Compare the kernel with the desired state, repair what differs, and return what had to be done."""
        answer = await self._call(lambda: self._reconcile(namespaces))
        assert isinstance(answer, tuple)
        return answer

    async def observe(self, ref: Ref | None = None) -> tuple[dict[Key, Resource], tuple[Operation, ...]]:
        """Return what is in the kernel, and what would be done to repair it; nothing is done.

        Raises:
            NotFound: The host does not hold the object.
        """
        if ref is not None and ref not in self.store.objects:
            raise NotFound("OBJECT_UNKNOWN", f"this host holds no {ref}", object=str(ref))
        wanted = dict(self.desired.resources if ref is None else self.desired.by_owner.get(str(ref), {}))
        spaces = None if ref is None else {key[1] for key in wanted}
        found = await self._kernel.observe(wanted, spaces, take_over=False)
        present = {key: one for key, one in found.resources.items() if ref is None or key in wanted}
        return present, plan(wanted, present, {key: self.desired.owner(key) for key in wanted})

    def wanted(self, owner: str) -> Mapping[Key, Resource]:
        """Return what an owner, `endpoint/<id>` say, wants of the kernel; not to be changed."""
        return self.desired.by_owner.get(owner, {})

    async def refresh(self, sandbox: str) -> tuple[Operation, ...]:
        """Compare a sandbox and the host's ends of its links with what is wanted, and return what had to be repaired.

        Neighbours are told of its addresses again, when there is time.

        Raises:
            NotFound: The host does not hold the sandbox.
        """
        held = self._sandbox(sandbox)
        spaces = {key[1] for key in self.desired.by_owner.get(str(held.ref), ())} | {held.ns}
        answer = await self._call(lambda: self._refresh(sandbox, spaces))
        assert isinstance(answer, tuple)
        return answer

    @contextlib.contextmanager
    def expecting(self, container_id: str) -> Iterator[None]:
        """Have what comes for a container while the block runs wait for `place`, if its sandbox is a handover."""
        self._expected[container_id] += 1
        try:
            yield
        finally:
            self._expected[container_id] -= 1
            if not self._expected[container_id]:
                del self._expected[container_id]

    async def place(self, sandbox: str, place: str) -> dict[str, str]:
        """Have the interfaces of a handover made where its runtime says, and return their names, by endpoint's id.

        Idempotent. The place is kept in the journal and is nobody else's business; where it is lost, interfaces are
        taken for made and moved.

        Args:
            sandbox: Id.
            place: Path of a namespace, or HERE.

        Raises:
            NotFound: The host does not hold the sandbox.
            NetweftError: An interface could not be made.
        """
        answer = await self._call(lambda: self._place(sandbox, place))
        assert isinstance(answer, dict)
        return answer

    async def follow_host(self, files: HostFiles) -> None:
        """Render the files of all sandboxes anew from the host's as they are now; those that were edited stay.

        What cannot be written is told as the sandbox's status, and tried again by the next reconcile.
        """
        await self._call(lambda: self._follow_host(files))

    async def follow_underlay(self, mtu_bytes: int) -> None:
        """Render everything anew for another MTU of the interface that holds the tunnel address.

        What cannot be brought to the kernel is told as its owner's status, and tried again by the next reconcile.
        """
        await self._call(lambda: self._follow_underlay(mtu_bytes))

    @property
    def facts(self) -> Facts:
        """What drivers know of the host."""
        return self._renderer.facts

    async def statistics(self, sandbox: str) -> list[tuple[str, str, Statistics]]:
        """Return the interfaces of a sandbox by name: each with its endpoint's id, if it is one's, and its counters.

        Raises:
            NotFound: The host does not hold the sandbox.
            FailedPrecondition: Its namespace is known to its runtime alone.
        """
        held = self._sandbox(sandbox)
        if held.leaves:
            raise FailedPrecondition(
                "NAMESPACE_HANDED_OVER",
                f"sandbox {held.container_id} is a namespace that its runtime keeps to itself; ask the runtime for its "
                "counters (docker stats)",
                sandbox=held.id,
            )
        owners = {one.interface_name: one.id for one in self.store.endpoints_of_sandbox(sandbox)}
        counters = await self._kernel.statistics(held.ns)
        return [(name, owners.get(name, ""), found) for name, found in sorted(counters.items())]

    def _sandbox(self, identifier: str) -> Sandbox:
        held = self.store.sandbox(identifier)
        if held is None:
            raise NotFound("OBJECT_UNKNOWN", f"this host holds no sandbox {identifier}", object=f"sandbox/{identifier}")
        return held

    async def repair_loop(self, interval_s: float, debounce_s: float = 0.05) -> None:
        """Reconcile when the kernel tells of foreign changes, and every `interval_s` seconds; until cancelled."""
        told: set[Ns] = set()
        wake = asyncio.Event()

        async def listen() -> None:
            async for ns in self._kernel.changes():
                told.add(ns)
                wake.set()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(listen())
            while True:
                woken = True
                try:
                    async with asyncio.timeout(interval_s):
                        await wake.wait()
                except TimeoutError:
                    woken = False
                await asyncio.sleep(debounce_s)
                spaces = set(told)
                told.clear()
                wake.clear()
                try:
                    if not woken:
                        spaces |= await self._drifted()
                    if spaces:
                        await self.reconcile(spaces)
                except NetweftError as error:
                    log.warning("repair failed", error=str(error), retry_s=interval_s)

    async def _drifted(self) -> set[Ns]:
        """Look at the whole kernel without stopping the engine's work, and name the namespaces worth a closer look.

        Changes under way show as drift here; the reconcile that follows looks again with nothing under way.
        """
        wanted = dict(self.desired.resources)
        found = await self._kernel.observe(wanted, take_over=False)
        present = {key: one for key, one in found.resources.items() if self._authoritative or key in wanted}
        return {step.resource.ns for step in plan(wanted, present, {})} | self._ailing_spaces()

    def _ailing_spaces(self) -> set[Ns]:
        """Return the namespaces of objects whose last try failed: their status may be out of date."""
        owners = [*map(str, self._failing), *self._unrendered]
        return {key[1] for owner in owners for key in self.desired.by_owner.get(owner, ())} | (
            {""} if owners else set()
        )

    async def holdings(self) -> leases.Holdings:
        """Return the leases of the endpoints that the kernel has, after all that was asked for until now."""
        found = await self._call(self._holdings)
        assert isinstance(found, leases.Holdings)
        return found

    def report_again(self, ref: Ref) -> None:
        """Have the next report speak of an object, whose status is to be told anew."""
        if ref in self.statuses:
            self.unreported.add(ref)

    def take_unreported(self) -> list[Status]:
        """Return the statuses that changed since the last call."""
        refs, self.unreported = self.unreported, set()
        return [self.statuses[ref] for ref in refs if ref in self.statuses]

    # --- the engine's task ---------------------------------------------------------------------------------------

    async def _call(self, run: Callable[[], Awaitable[object]]) -> object:
        job = _Job(run=run)
        self._jobs.put_nowait(job)
        return await asyncio.shield(job.answer)

    async def _work(self, jobs: Sequence[_Job]) -> None:
        merged: list[_Job] = []
        for job in jobs:
            if job.run is None:
                merged.append(job)
                continue
            await self._finish_changes(merged)
            merged = []
            try:
                _answer(job, await job.run())
            except NetweftError as error:
                _answer(job, error)
            except Exception as error:  # noqa: BLE001  # the task's outermost frame
                _answer(job, await self._recover(error))
        await self._finish_changes(merged)

    async def _finish_changes(self, jobs: Sequence[_Job]) -> None:
        if not jobs:
            return
        try:
            answers = await self._take_all([job.changes for job in jobs])
            for job in jobs:
                self._reach(job.position)
        except Exception as error:  # noqa: BLE001  # as above
            failure = await self._recover(error)
            for job in jobs:
                _answer(job, failure)
            return
        for job, answer in zip(jobs, answers, strict=True):
            _answer(job, answer)

    async def _recover(self, error: Exception) -> NetweftError:
        """Come back to a known state after a bug: render everything anew, look at the kernel, repair."""
        log.error("bug in the engine", error=str(error), exc_info=error)
        try:
            self._behind = True
            self.desired = Desired()
            self._adopt(self._renderer.everything(self.store))
            await self._reconcile(None)
        except Exception:  # nothing more can be done; the next pass of the repair loop tries again
            log.exception("recovery failed")
        return Internal("ENGINE_BUG", f"the agent failed at this: {type(error).__name__}: {error}; its log has more")

    async def _take_all(self, groups: Sequence[Sequence[Change]]) -> list[list[Status]]:
        """Work through groups of changes and return a status for each."""
        answers: list[list[Status]] = [[_UNANSWERED] * len(group) for group in groups]
        pending = [
            (answer, place, change)
            for answer, group in zip(answers, groups, strict=True)
            for place, change in enumerate(group)
        ]
        while pending:
            # Two changes of one object keep their order: the newer one goes into the next round, and all that follows
            # it goes there too, for it may build on it.
            now: dict[Ref, Change] = {}
            count = 0
            for _, _, change in pending:
                before = now.setdefault(change.ref, change)
                if before is not change and change.revision > before.revision:
                    break
                count += 1
            await self._round(list(now.values()))
            for answer, place, change in pending[:count]:
                answer[place] = self._answer(change)
            pending = pending[count:]
        return answers

    def _reach(self, position: Position | None) -> None:
        """Note a position of the change log; the journal says so only when it holds all up to it."""
        try:
            if self._behind or self._journal.wants_compaction():
                self._journal.compact(self.store.objects.values(), position or self.position)
                self._behind = False
            elif position is not None and position != self.position:
                self._journal.append((), position)
        except NetweftError as error:
            # Nothing is lost: after a restart the host asks for a little more than it needs.
            log.warning("position not kept", error=str(error))
        if position is not None:
            self.position = position

    async def _take_snapshot(self, changes: Sequence[Change], position: Position) -> None:
        same_store = self.position.store_id in {"", position.store_id}
        if not same_store:
            # Revisions of another store say nothing about these.
            self._forget_revisions()
        for change in changes:
            # It is there as of this position, so it was not gone for good, and what refused it may have passed.
            if self.store.gone.get(change.ref, position.revision) <= position.revision:
                self.store.gone.pop(change.ref, None)
            self._untried.add(change.ref)
        named = {change.ref for change in changes}
        missing = [
            Change(ref=ref, revision=position.revision)
            for ref, item in self.store.objects.items()
            if ref not in named and item.revision <= position.revision
        ]
        for ref in [ref for ref in self._failing if ref not in named and ref not in self.store.objects]:
            if self.statuses[ref].revision <= position.revision and not self._lingers(ref):
                self._forget(ref)  # refused once, and nobody wants it any more
        await self._round(missing, sure=True)
        await self._take_all([changes])
        self._untried -= named - self._failing
        self._reach(position)
        self._authoritative = True
        await self._reconcile(None)

    async def _round(self, changes: Sequence[Change], *, sure: bool = False) -> None:
        """Bring the kernel to at most one change of each object.

        Args:
            changes: The changes.
            sure: They are known to be news, whatever their revisions.
        """
        this = _Round()
        for change in changes:
            if sure or self._is_news(change):
                self._stage(change, this)
        concerned, refused = self._adopt(this.scope)
        if refused:
            # What cannot even be rendered is put back before the kernel is touched.
            self._put_back(this, self._dispensable(this, _failed(this, refused)), this.scope)
            concerned = {**concerned, **self._adopt(this.scope)[0]}
        faults.reach(faults.Point.CHANGE_STAGED)
        errors = {**await self._perform(concerned), **refused}
        faults.reach(faults.Point.CHANGE_EXECUTED)
        failed = _failed(this, errors)
        undone = self._dispensable(this, failed)
        kept = list(this.news(without=undone))
        try:
            self._journal.append([*this.silent, *kept])
        except NetweftError as error:
            self._behind = True
            failed |= {change.ref: error for change in kept}
            undone = self._dispensable(this, failed)
        faults.reach(faults.Point.CHANGE_KEPT)
        for ref, refusal in failed.items():
            log.warning("change refused", object=str(ref), revision=this.changes[ref].revision, error=str(refusal))
        if undone:
            await self._take_back(this, undone)
        await self._announce()
        for ref, change in this.changes.items():
            self._settle(change, failed.get(ref))
        for owner, cause in errors.items():
            ref = _ref(owner)
            if ref in self.store.objects and ref not in this.changes and not self._is_whole(owner):
                self._note(ref, cause)  # it could not follow a change of its network or sandbox

    def _is_news(self, change: Change) -> bool:
        """Return whether the change is newer than what is held, or than what was refused."""
        refused = self.statuses.get(change.ref)
        if refused is not None and refused.error is not None and change.ref not in self.store.objects:
            # Of a refused attach the change log's own delivery must not make a second one, which nobody waits for.
            # All else, and an endpoint that the kernel was not even asked for, is worth another try as it is.
            again = not isinstance(change.put, Endpoint) or change.ref in self._untried
            return change.revision > refused.revision or (again and change.revision == refused.revision)
        return self.store.is_news(change)

    def _stage(self, change: Change, this: _Round) -> NetweftError | None:
        """Put one change into the store and widen the round's scope by it; return why it cannot be, if so."""
        held = self.store.objects.get(change.ref)
        item = change.put
        if isinstance(item, Endpoint):
            try:
                item = self._renderer.complete(self.store, item, held if isinstance(held, Endpoint) else None)
                self._renderer.check(self.store, item)
            except NetweftError as error:
                self._note(change.ref, error, revision=change.revision)
                self._untried.add(change.ref)
                return error
        elif isinstance(item, Sandbox) and item.source == HANDOVER and not item.place:
            item = self._with_place(item, held)
        self._untried.discard(change.ref)
        this.before.setdefault(change.ref, (held, self.store.gone.get(change.ref)))
        if item is not None:
            if item is not change.put:
                change = msgspec.structs.replace(change, put=item)
            if same_but_revision(item, held) and self._failure(change.ref) is None:
                self.store.put(item)
                this.silent.append(change)
                self._settle(change, None)
                return None
        this.changes[change.ref] = change
        for concerned in (held, item):
            if concerned is not None:
                self._widen(this.scope, concerned)
        if item is None:
            self._drop(change, held, this)
        else:
            self.store.put(item)
        return None

    def _with_place(self, sandbox: Sandbox, held: Object | None) -> Sandbox:
        """Return a handover with the place that is known of it here: controllers know none."""
        if isinstance(held, Sandbox):
            return msgspec.structs.replace(sandbox, place=held.place)
        return msgspec.structs.replace(sandbox, place=LATER) if sandbox.container_id in self._expected else sandbox

    def _widen(self, scope: Scope, item: Object) -> None:
        match item:
            case Network():
                scope.networks.add(item.id)
                scope.peers.update(self.store.peers.get(item.id, ()))
                for endpoint in self.store.endpoints_of_network(item.id):
                    scope.add_endpoint(endpoint)
            case Sandbox():
                scope.sandboxes.add(item.id)
                for endpoint in self.store.endpoints_of_sandbox(item.id):
                    scope.add_endpoint(endpoint)
            case Endpoint():
                scope.add_endpoint(item)
                # The first endpoint of a network brings the network and all its peers, the last one takes them away.
                if len(self.store.by_network.get(item.network_id, ())) <= 1:
                    scope.networks.add(item.network_id)
                    scope.peers.update(self.store.peers.get(item.network_id, ()))
            case Peer():
                scope.peers.add(item.id)

    def _drop(self, change: Change, held: Object | None, this: _Round) -> None:
        """Take an object away, and with a sandbox or network the endpoints that cannot be without it."""
        orphans: Iterable[Endpoint] = ()
        if isinstance(held, Sandbox):
            orphans = self.store.endpoints_of_sandbox(held.id)
        elif isinstance(held, Network):
            orphans = self.store.endpoints_of_network(held.id)
        for endpoint in list(orphans):
            if endpoint.ref not in this.changes:
                self._widen(this.scope, endpoint)
                this.changes[endpoint.ref] = Change(ref=endpoint.ref, revision=endpoint.revision)
                this.before.setdefault(endpoint.ref, (endpoint, None))
                self.store.remove(endpoint.ref)
                self.store.bury(endpoint.ref, endpoint.revision)
        self.store.remove(change.ref)
        self.store.bury(change.ref, change.revision)

    async def _perform(self, concerned: Mapping[Key, str]) -> dict[str, NetweftError]:
        """Bring these keys to what is desired; return the first error of each owner."""
        return await self._execute(self._difference(concerned), {**self._leftovers, **concerned})

    def _adopt(self, scope: Scope) -> tuple[dict[Key, str], dict[str, NetweftError]]:
        """Make the scope's renders the desired state.

        Returns:
            The keys concerned, each with an owner; and the owners that could not be rendered.
        """
        wishes = self._renderer.render(self.store, scope)
        concerned, refused = self.desired.replace(wishes.by_owner)
        refused |= wishes.refused
        for owner in wishes.by_owner:
            self._unrendered.pop(owner, None)
        self._unrendered |= refused
        return concerned, refused

    def _difference(self, concerned: Mapping[Key, str]) -> tuple[Operation, ...]:
        owners = {**self._leftovers, **concerned} if self._leftovers else concerned
        wanted = {key: self.desired.resources[key] for key in owners if key in self.desired.resources}
        present = {key: self.known[key] for key in owners if key in self.known}
        return plan(wanted, present, owners)

    async def _execute(self, steps: Sequence[Operation], concerned: Iterable[Key]) -> dict[str, NetweftError]:
        """Execute a plan, keep `known` true to what was done, and return the first error of each owner.

        Args:
            steps: The plan.
            concerned: The keys that it was made of; some go with others that are removed.
        """
        if not steps:
            return {}
        results = list(zip(steps, await self._kernel.execute(steps), strict=True))
        gone = {step.resource.key for step, error in results if step.after is None and error is None}
        for key in implied(gone, {key: self.known[key] for key in concerned if key in self.known}) if gone else ():
            self._announcing.lost(key)
            self.known.pop(key)
            self._leftovers.pop(key, None)
        refusals = []
        for step, error in results:
            key = step.resource.key
            if error is not None:
                refusals.append((step, error))
                if step.after is None and key not in self.desired.resources:
                    self._leftovers[key] = step.owner
                continue
            self._leftovers.pop(key, None)
            if step.after is None:
                self._announcing.lost(key, step.before)
                self.known.pop(key, None)
            else:
                if type(step.after) in TOLD:
                    self._announcing.made(step)
                self.known[key] = step.after
        if self._announcing.gone:
            self._kernel.hush(self._announcing.gone)
            self._announcing.gone.clear()
        return self._blame(refusals)

    async def _announce(self) -> None:
        """Tell neighbours of what was made since the last time."""
        told = self._announcing.take(self.desired.by_owner, self.known)
        if told.later:
            self._kernel.announce(told.later)
        if told.now:
            await self._kernel.announce_now(told.now)

    def _blame(self, refusals: Sequence[tuple[Operation, NetweftError]]) -> dict[str, NetweftError]:
        """Return the first error of each owner that has failed, in the order of the steps."""
        errors: dict[str, NetweftError] = {}
        failed: set[Key] = set()
        echoes: set[int] = set()
        for step, error in refusals:
            failed.add(step.resource.key)
            if step.owner.startswith("sandbox/") and step.after is not None:
                needs = step.after.needs()
                if any(need in failed or need not in self.desired.resources for need in needs):
                    # A default route lacks its endpoint's link: that is the endpoint's failure, the sandbox is well.
                    echoes.add(id(error))
            if id(error) not in echoes:
                for owner in (step.owner, *self.desired.wanted_by.get(step.resource.key, ())):
                    errors.setdefault(owner, error)
        return errors

    def _dispensable(self, this: _Round, failed: Mapping[Ref, NetweftError]) -> list[Ref]:
        """Return the failed changes that are taken back: those that nobody counts on."""
        undone = [ref for ref in failed if not _is_needed(this.changes[ref])]
        leaving = {ref.id for ref in undone if ref.kind is Kind.ENDPOINT and this.before[ref][0] is None}

        def is_used(ref: Ref) -> bool:
            users = self.store.by_network if ref.kind is Kind.NETWORK else self.store.by_sandbox
            return this.before[ref][0] is None and not leaving.issuperset(users.get(ref.id, ()))

        return [ref for ref in undone if ref.kind is Kind.ENDPOINT or not is_used(ref)]

    async def _take_back(self, this: _Round, undone: Sequence[Ref]) -> None:
        """Put changes back to what was there before, in store and kernel."""
        scope = Scope()
        self._put_back(this, undone, scope)
        concerned, refused = self._adopt(scope)
        for owner, refusal in {**await self._perform(concerned), **refused}.items():
            log.error("undo refused", owner=owner, error=str(refusal))

    def _put_back(self, this: _Round, undone: Sequence[Ref], scope: Scope) -> None:
        """Put changes back to what was there before, and widen the scope by what that concerns."""
        for ref in undone:
            before, gone = this.before[ref]
            for item in (this.changes[ref].put, before):
                if item is not None:
                    self._widen(scope, item)
            self.store.restore(ref, before, gone)

    def _settle(self, change: Change, error: NetweftError | None) -> None:
        if change.put is None and error is None:
            self._forget(change.ref)
        else:
            self._note(change.ref, error, revision=change.revision, applied=error is None)

    def _forget(self, ref: Ref) -> None:
        self.statuses.pop(ref, None)
        self.unreported.discard(ref)
        self._failing.discard(ref)
        self._untried.discard(ref)

    def _note(
        self, ref: Ref, error: NetweftError | None, *, revision: int | None = None, applied: bool = False
    ) -> None:
        before = self.statuses.get(ref)
        if before is None and error is None and ref.kind is Kind.PEER:
            return  # nobody waits for one, and there may be tens of thousands
        held = self.store.objects.get(ref)
        status = Status(
            ref=ref,
            revision=revision if revision is not None else (held.revision if held is not None else 0),
            error=error,
            netns_path=self._kernel.netns_path(held.ns) if isinstance(held, Sandbox) else "",
            interface_name=held.interface_name if isinstance(held, Endpoint) else "",
            ports=held.ports if isinstance(held, Endpoint) else (),
            applied=applied or (before is not None and before.applied),
        )
        if status != before:
            self.statuses[ref] = status
            self.unreported.add(ref)
        (self._failing.discard if error is None else self._failing.add)(ref)

    def _failure(self, ref: Ref) -> NetweftError | None:
        status = self.statuses.get(ref)
        return None if status is None else status.error

    def _answer(self, change: Change) -> Status:
        """Return the status that answers a change: of what is held, or that it is gone."""
        return self.statuses.get(change.ref) or Status(ref=change.ref, revision=change.revision)

    # --- other jobs ----------------------------------------------------------------------------------------------

    def _forget_revisions(self) -> None:
        for ref, item in list(self.store.objects.items()):
            self.store.objects[ref] = msgspec.structs.replace(item, revision=0)
        self.store.gone.clear()
        for ref in [ref for ref in self.statuses if ref not in self.store.objects]:
            self._forget(ref)

    async def _holdings(self) -> leases.Holdings:
        endpoints = [item for item in self.store.objects.values() if isinstance(item, Endpoint)]
        here = (one for one in endpoints if (status := self.statuses.get(one.ref)) is not None and status.applied)
        networks = {item.id: item for item in self.store.objects.values() if isinstance(item, Network)}
        return leases.holdings(here, networks, whole=self._authoritative)

    async def _dry_run(self, changes: Sequence[Change]) -> tuple[Operation, ...]:
        this = _Round()
        problems: list[NetweftError] = []
        statuses, unreported = dict(self.statuses), set(self.unreported)
        failing, untried, unrendered = set(self._failing), set(self._untried), dict(self._unrendered)
        try:
            for change in changes:
                problem = self._stage(change, this) if self._is_news(change) else None
                if problem is not None:
                    problems.append(problem)
            concerned, refused = self._adopt(this.scope)
            problems += [error for owner, error in refused.items() if owner not in unrendered]
            steps = self._difference(concerned)
        finally:
            for ref, (before, gone) in this.before.items():
                self.store.restore(ref, before, gone)
            self._adopt(this.scope)
            self.statuses, self.unreported = statuses, unreported
            self._failing, self._untried, self._unrendered = failing, untried, unrendered
        if problems:
            raise problems[0]
        return steps

    async def _place(self, sandbox: str, place: str) -> dict[str, str]:
        held = self._sandbox(sandbox)
        endpoints = self.store.endpoints_of_sandbox(sandbox)
        if held.place != place:
            moved: list[Object] = [msgspec.structs.replace(held, place=place), *endpoints]
            await self._round(_as_they_are(moved), sure=True)
        for ref in (held.ref, *(one.ref for one in endpoints)):
            failure = self._failure(ref)
            if failure is not None:
                await self._round(_as_they_are([held, *endpoints]), sure=True)
                raise failure
        return {one.id: one.interface_name for one in self.store.endpoints_of_sandbox(sandbox)}

    async def _follow_underlay(self, mtu_bytes: int) -> None:
        self._renderer.facts = msgspec.structs.replace(self._renderer.facts, underlay_mtu=mtu_bytes)
        await self._render_anew(self._renderer.everything(self.store), "overlays follow the underlay's MTU")

    async def _follow_host(self, files: HostFiles) -> None:
        self._renderer.host = files
        scope = Scope(sandboxes={one.id for one in self.store.of_kind(Kind.SANDBOX)})
        await self._render_anew(scope, "sandboxes follow the host's files")

    async def _render_anew(self, scope: Scope, event: str) -> None:
        concerned, refused = self._adopt(scope)
        steps = self._difference(concerned)
        failed = {**await self._execute(steps, concerned), **refused}
        log.info(event, steps=len(steps), failed=len(failed))
        for owner, error in failed.items():
            ref = _ref(owner)
            if ref in self.store.objects:
                self._note(ref, error)

    async def _reconcile(self, namespaces: Collection[Ns] | None) -> tuple[Operation, ...]:
        done: list[Operation] = []
        errors: dict[str, NetweftError] = {}
        rendered = self._render_again()
        spaces = None if namespaces is None else {*namespaces, *rendered}
        for _ in range(REPAIR_ROUNDS):
            wanted = {key: one for key, one in self.desired.resources.items() if spaces is None or key[1] in spaces}
            present = await self._observe(wanted, spaces)
            self.known = {
                **({} if spaces is None else {k: v for k, v in self.known.items() if k[1] not in spaces}),
                **present,
            }
            self._leftovers = {key: owner for key, owner in self._leftovers.items() if key in self.known}
            owners = {key: self._orphan(key) for key in present if key not in wanted}
            owners.update((key, self.desired.answerable(key)) for key in wanted)
            steps = plan(wanted, present, owners)
            if not steps:
                break
            if spaces is not None and not _other_ends(steps) <= spaces:
                spaces |= _other_ends(steps)
                continue
            done += steps
            errors = await self._execute(steps, {**wanted, **present})
            if errors:
                break
        if done:
            self._note_repairs(done)
            for step in done:
                owner = self.desired.owner(step.resource.key, step.owner)
                log.info("repaired", owner=owner, ns=step.resource.ns or "host", command=step.command())
        self._judge(errors)
        await self._announce()
        if self._behind:
            self._reach(None)
        return tuple(done)

    async def _refresh(self, sandbox: str, spaces: Collection[Ns]) -> tuple[Operation, ...]:
        self._announcing.again(sandbox)
        return await self._reconcile(spaces)

    def _note_repairs(self, done: Sequence[Operation]) -> None:
        now_ms = int(self._clock() * 1000)
        fresh = tuple(
            Repair(
                time_ms=now_ms,
                owner=self.desired.owner(step.resource.key, step.owner),
                ns=step.resource.ns,
                command=step.command(),
            )
            for step in done[-REPAIRS_KEPT:]
        )
        self.drift = Drift(
            operations=self.drift.operations + len(done), repairs=(*self.drift.repairs, *fresh)[-REPAIRS_KEPT:]
        )

    async def _observe(self, wanted: Mapping[Key, Resource], spaces: Collection[Ns] | None) -> dict[Key, Resource]:
        """Return what is wanted or to be removed and is there."""
        lingering = {
            key: self.known[key]
            for key in self._leftovers
            if key in self.known and key not in wanted and (spaces is None or key[1] in spaces)
        }
        # Files and settings carry no mark: a look finds those only that it is asked for.
        found = await self._kernel.observe({**wanted, **lingering}, spaces)
        return {
            key: one
            for key, one in found.resources.items()
            if key in wanted or ((self._authoritative or key in lingering) and key not in found.foreign)
        }

    def _orphan(self, key: Key) -> str:
        """Return the owner of what nobody wants any more: one of its own, so that it fails alone."""
        return self._leftovers.get(key) or alone(key)

    def _render_again(self) -> set[Ns]:
        """Give owners that could not be rendered another chance; return the namespaces that this concerns."""
        scope = Scope()
        for owner in list(self._unrendered):
            item = self.store.objects.get(_ref(owner))
            if item is None:
                del self._unrendered[owner]
            else:
                scope.add(item)
        return {key[1] for key in self._adopt(scope)[0]} if scope.owners() else set()

    def _judge(self, errors: Mapping[str, NetweftError]) -> None:
        """Note the errors of a reconcile, and which of the objects that were failing are well by now."""
        for owner, error in errors.items():
            ref = _ref(owner)
            if ref in self.store.objects:
                log.warning("object is not as it should be", object=owner, error=str(error))
                self._note(ref, error)
        for ref in [ref for ref in self._failing if str(ref) not in errors]:
            if ref in self.store.objects:
                error_now = self._ill(ref)
                self._note(ref, error_now, applied=error_now is None)
            elif self.store.gone.get(ref, -1) >= self.statuses[ref].revision and not self._lingers(ref):
                self._forget(ref)  # a removal that was refused, and is done by now

    def _ill(self, ref: Ref) -> NetweftError | None:
        """Return what is wrong with an object that is held, as far as the kernel is known."""
        item = self.store.objects[ref]
        if isinstance(item, Endpoint):
            try:
                self._renderer.check(self.store, item)
            except NetweftError as error:
                return error
        owner = str(ref)
        if owner in self._unrendered:
            return self._unrendered[owner]
        return None if self._is_whole(owner) else self._failure(ref)

    def _is_whole(self, owner: str) -> bool:
        """Return whether the kernel is known to have all that an owner wants."""
        wanted = self.desired.by_owner.get(owner, {})
        return all(key in self.known and one.matches(self.known[key]) for key, one in wanted.items())

    def _lingers(self, ref: Ref) -> bool:
        return str(ref) in self._leftovers.values()


def _as_they_are(objects: Iterable[Object]) -> list[Change]:
    return [Change(ref=one.ref, revision=one.revision, put=one) for one in objects]


def _is_needed(change: Change) -> bool:
    """Return whether a change stays wanted though it failed."""
    return change.put is None or isinstance(change.put, Peer) or getattr(change.put, "confirmed", False)


def _ref(owner: str) -> Ref:
    """Read an owner as the object that it is; the host is none, and gives a name that nothing has."""
    kind, _, identifier = owner.partition("/")
    return Ref(kind=Kind(kind), id=identifier) if kind in set(Kind) else Ref(kind=Kind.NETWORK, id="")


def _other_ends(steps: Iterable[Operation]) -> set[Ns]:
    """Return the namespaces of the other ends of the links concerned: a pair can only be repaired as a whole."""
    return {
        link.peer.ns
        for step in steps
        for link in (step.before, step.after)
        if isinstance(link, Link) and link.peer is not None and link.kind in {"veth", "peer"}
    }


def _failed(this: _Round, errors: Mapping[str, NetweftError]) -> dict[Ref, NetweftError]:
    """Return the changes that did not get through, by their own owner or one that they depend on.

    The error that came first is the cause, and those after it follow from it.
    """
    if not errors:
        return {}
    order = {owner: place for place, owner in enumerate(errors)}
    failed = {}
    for ref, change in this.changes.items():
        owners = [str(ref)]
        if isinstance(change.put, Endpoint):
            owners += [f"sandbox/{change.put.sandbox_id}", f"network/{change.put.network_id}"]
        found = [owner for owner in owners if owner in order]
        if found:
            failed[ref] = errors[min(found, key=order.__getitem__)]
    return failed


def _answer(job: _Job, result: object) -> None:
    if job.answer.done():
        return
    if isinstance(result, BaseException):
        job.answer.set_exception(result)
    else:
        job.answer.set_result(result)
