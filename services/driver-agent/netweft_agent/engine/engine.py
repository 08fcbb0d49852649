"""The engine: takes changes of objects, brings the kernel to them, and keeps it there.

One task owns all state. Callers put jobs into its queue; jobs that wait are merged, so that a burst of single attaches
becomes one plan and a few netlink sends. For each round of changes:

1. objects are put into the store, those that cannot be rendered are refused,
2. the owners concerned are rendered anew and the difference to what the kernel is known to have is planned,
3. the kernel executes the plan; a change whose owner failed is taken back by planning the way back,
4. what succeeded is written to the journal, then callers are told.

A reconcile compares the whole desired state, or that of some namespaces, with what is observed in the kernel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import structlog
from netweft_common.errors import NetweftError, NotFound

from netweft_agent.domain.objects import Endpoint, Network, Object, Peer, Ref, Sandbox
from netweft_agent.domain.plan import Operation, plan
from netweft_agent.domain.resources import Key, Ns, Resource
from netweft_agent.engine.desired import Desired
from netweft_agent.engine.journal import Journal, Position
from netweft_agent.engine.render import Renderer, Scope
from netweft_agent.engine.store import Change, ObjectStore, same_but_revision
from netweft_agent.kernel.api import Kernel

log = structlog.get_logger(__name__)

MERGE_CHANGES = 4096
"""Changes that one round takes at most."""

REPAIR_ROUNDS = 3
"""A repair may uncover more (a link that comes back needs its routes again); what is left waits for the next pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """State of one object on this host.

    Attributes:
        error: None: the kernel has it.
        applied: The kernel has had it at some time.
    """

    ref: Ref
    revision: int
    error: NetweftError | None = None
    netns_path: str = ""
    interface_name: str = ""
    applied: bool = False


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
    before: dict[Ref, Object | None] = field(default_factory=dict)
    changes: dict[Ref, Change] = field(default_factory=dict)
    silent: list[Change] = field(default_factory=list)


class Engine:
    """One host's engine.

    Args:
        kernel: The kernel; the engine is its only user.
        renderer: Drivers and facts.
        journal: Where objects are kept across restarts.
    """

    def __init__(self, *, kernel: Kernel, renderer: Renderer, journal: Journal) -> None:
        self.store = ObjectStore()
        self.desired = Desired()
        self.known: dict[Key, Resource] = {}
        self.statuses: dict[Ref, Status] = {}
        self.unreported: set[Ref] = set()
        self.position = Position()
        self.drift_repaired = 0
        self._kernel = kernel
        self._renderer = renderer
        self._journal = journal
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue()
        self._authoritative = False

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
        for owner, wanted in self._renderer.render(self.store, self._renderer.everything(self.store)).items():
            self.desired.replace(owner, wanted)
        await self._reconcile(None)
        for ref in objects:
            self._note(ref, self._failure(ref), applied=True)
        log.info("engine started", objects=len(objects), resources=len(self.desired.resources))

    async def run(self) -> None:
        """Work through jobs until cancelled; the engine's only writer of state."""
        while True:
            jobs = [await self._jobs.get()]
            while not self._jobs.empty() and sum(len(job.changes) for job in jobs) < MERGE_CHANGES:
                jobs.append(self._jobs.get_nowait())
            await asyncio.shield(self._work(jobs))

    async def apply(self, changes: Sequence[Change], position: Position | None = None) -> list[Status]:
        """Bring the kernel to these changes and return a status for each, in their order.

        Idempotent: a change that is not newer than what is held is answered with the state of what is held.
        Cancelling the call does not stop the work.

        Args:
            changes: Networks and sandboxes before the endpoints that name them.
            position: The change log's position that is reached with these changes.
        """
        job = _Job(changes=changes, position=position)
        self._jobs.put_nowait(job)
        await asyncio.shield(job.answer)
        return [self._answer(change) for change in changes]

    async def apply_snapshot(self, changes: Sequence[Change], position: Position) -> None:
        """Bring the kernel to exactly these objects; what is held and not named is gone, unless it is newer."""
        named = {change.ref for change in changes}
        same_store = self.position.store_id in {"", position.store_id}

        def missing() -> list[Change]:
            return [
                Change(ref=ref, revision=position.revision)
                for ref, item in self.store.objects.items()
                if ref not in named and (item.revision <= position.revision or not same_store)
            ]

        if not same_store:
            # Revisions of another store say nothing about these.
            await self._call(self._forget_revisions)
        await self.apply([*missing(), *changes], position)
        self._authoritative = True
        await self.reconcile()

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
        wanted: Mapping[Key, Resource] = dict(self.desired.resources)
        if ref is not None:
            if ref not in self.store.objects:
                raise NotFound("OBJECT_UNKNOWN", f"this host holds no {ref}", object=str(ref))
            wanted = {key: wanted[key] for key in self.desired.by_owner.get(str(ref), ())}
        spaces = None if ref is None else {key[1] for key in wanted}
        found = await self._kernel.observe(wanted, spaces)
        present = {key: one for key, one in found.resources.items() if ref is None or key in wanted}
        return present, plan(wanted, present, {key: self.desired.owner(key) for key in wanted})

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
                try:
                    async with asyncio.timeout(interval_s):
                        await wake.wait()
                    await asyncio.sleep(debounce_s)
                    spaces = set(told)
                except TimeoutError:
                    spaces = await self._drifted()
                told.clear()
                wake.clear()
                if spaces:
                    await self.reconcile(spaces)

    async def _drifted(self) -> set[Ns]:
        """Look at the whole kernel without stopping the engine's work, and name the namespaces worth a closer look.

        Changes under way show as drift here; the reconcile that follows looks again with nothing under way.
        """
        wanted = dict(self.desired.resources)
        found = await self._kernel.observe(wanted)
        return {step.resource.ns for step in plan(wanted, found.resources, {})}

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
        await self._finish_changes(merged)

    async def _finish_changes(self, jobs: Sequence[_Job]) -> None:
        pending = [change for job in jobs for change in job.changes]
        while pending:
            # Two changes of one object keep their order: the second goes into the next round.
            now: dict[Ref, Change] = {}
            later = []
            for change in pending:
                (later.append(change) if change.ref in now else now.__setitem__(change.ref, change))
            await self._round(list(now.values()))
            pending = later
        for job in jobs:
            if job.position is not None and job.position != self.position:
                self.position = job.position
                try:
                    self._journal.append((), self.position)
                except NetweftError as error:
                    # Nothing is lost: after a restart the host asks for a little more than it needs.
                    log.warning("position not kept", error=str(error))
            _answer(job, None)
        if self._journal.wants_compaction():
            self._journal.compact(self.store.objects.values(), self.position)

    async def _round(self, changes: Sequence[Change]) -> None:
        this = _Round()
        for change in changes:
            if self._is_news(change):
                self._stage(change, this)
        failed = _failed(this, await self._converge(this.scope))
        kept = [change for ref, change in this.changes.items() if ref not in failed]
        try:
            self._journal.append([*this.silent, *kept])
        except NetweftError as error:
            failed = dict.fromkeys(this.changes, error)
            kept = []
        if failed:
            await self._take_back(this, failed)
        for change in kept:
            self._settle(change, None)
        for ref, refusal in failed.items():
            self._note(ref, refusal, revision=this.changes[ref].revision)

    def _is_news(self, change: Change) -> bool:
        """Return whether the change is newer than what is held, or than what was refused."""
        refused = self.statuses.get(change.ref)
        if refused is not None and refused.error is not None and change.ref not in self.store.objects:
            return change.revision > refused.revision
        return self.store.is_news(change)

    def _stage(self, change: Change, this: _Round) -> None:
        """Put one change into the store and widen the round's scope by it."""
        held = self.store.objects.get(change.ref)
        item = self._named(change.put, held)
        if item is not None:
            change = replace(change, put=item)
            if same_but_revision(item, held) and self._failure(change.ref) is None:
                self.store.put(item)
                this.silent.append(change)
                self._settle(change, None)
                return
        if isinstance(item, Endpoint):
            try:
                self._renderer.check(self.store, item)
            except NetweftError as error:
                self._note(change.ref, error, revision=change.revision)
                return
        this.changes[change.ref] = change
        this.before[change.ref] = held
        for concerned in (held, item):
            if concerned is not None:
                self._widen(this.scope, concerned)
        if item is None:
            self._drop(change, held, this)
        else:
            self.store.put(item)

    def _named(self, item: Object | None, held: Object | None) -> Object | None:
        """Give an endpoint its interface name: the one it has, else the next free one."""
        if not isinstance(item, Endpoint) or item.interface_name:
            return item
        if isinstance(held, Endpoint) and held.sandbox_id == item.sandbox_id:
            return replace(item, interface_name=held.interface_name)
        return replace(item, interface_name=self.store.free_interface_name(item.sandbox_id))

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
                this.before[endpoint.ref] = endpoint
                self.store.remove(endpoint.ref)
                self.store.bury(endpoint.ref, endpoint.revision)
        self.store.remove(change.ref)
        self.store.bury(change.ref, change.revision)

    async def _converge(self, scope: Scope) -> dict[str, NetweftError]:
        """Render the scope's owners anew, execute the difference, and return the first error of each owner."""
        owners = self._adopt(scope)
        return await self._execute(self._difference(owners), owners)

    def _adopt(self, scope: Scope) -> dict[Key, str]:
        """Make the scope's renders the desired state; return the keys concerned, each with an owner."""
        owners: dict[Key, str] = {}
        for owner, wanted in self._renderer.render(self.store, scope).items():
            owners.update(dict.fromkeys(self.desired.replace(owner, wanted), owner))
        return owners

    def _difference(self, owners: Mapping[Key, str]) -> tuple[Operation, ...]:
        wanted = {key: self.desired.resources[key] for key in owners if key in self.desired.resources}
        present = {key: self.known[key] for key in owners if key in self.known}
        return plan(wanted, present, owners)

    async def _execute(self, steps: Sequence[Operation], concerned: Iterable[Key]) -> dict[str, NetweftError]:
        """Execute a plan and keep `known` true to what was done.

        Args:
            steps: The plan.
            concerned: The keys that it was made of; those that are not wanted any more went with something else.
        """
        if not steps:
            return {}
        errors: dict[str, NetweftError] = {}
        stuck: set[Key] = set()
        for step, error in zip(steps, await self._kernel.execute(steps), strict=True):
            if error is not None:
                errors.setdefault(step.owner, error)
                stuck.add(step.resource.key)
            elif step.after is not None:
                self.known[step.resource.key] = step.after
            else:
                self.known.pop(step.resource.key, None)
        for key in concerned:
            if key not in self.desired.resources and key not in stuck:
                self.known.pop(key, None)
        return errors

    async def _take_back(self, this: _Round, failed: Mapping[Ref, NetweftError]) -> None:
        """Put failed changes back to what was there before, unless somebody counts on them already."""
        scope = Scope()
        for ref, error in failed.items():
            before, change = this.before[ref], this.changes[ref]
            log.warning("change refused", object=str(ref), revision=change.revision, error=str(error))
            if change.put is None or isinstance(change.put, Peer) or getattr(change.put, "confirmed", False):
                continue  # wanted all the same: the next reconcile tries again
            self._widen(scope, change.put)
            if before is None:
                self.store.remove(ref)
            else:
                self._widen(scope, before)
                self.store.put(before)
        if scope.owners():
            for owner, refusal in (await self._converge(scope)).items():
                log.error("undo refused", owner=owner, error=str(refusal))

    def _settle(self, change: Change, error: NetweftError | None) -> None:
        if change.put is None:
            self.statuses.pop(change.ref, None)
            self.unreported.discard(change.ref)
        else:
            self._note(change.ref, error, revision=change.revision, applied=error is None)

    def _note(
        self, ref: Ref, error: NetweftError | None, *, revision: int | None = None, applied: bool = False
    ) -> None:
        held = self.store.objects.get(ref)
        before = self.statuses.get(ref)
        status = Status(
            ref=ref,
            revision=revision if revision is not None else (held.revision if held is not None else 0),
            error=error,
            netns_path=self._kernel.netns_path(held.ns) if isinstance(held, Sandbox) else "",
            interface_name=held.interface_name if isinstance(held, Endpoint) else "",
            applied=applied or (before is not None and before.applied),
        )
        if status != before:
            self.statuses[ref] = status
            self.unreported.add(ref)

    def _failure(self, ref: Ref) -> NetweftError | None:
        status = self.statuses.get(ref)
        return None if status is None else status.error

    def _answer(self, change: Change) -> Status:
        """Return the status that answers a change: of what is held, or that it is gone."""
        return self.statuses.get(change.ref) or Status(ref=change.ref, revision=change.revision)

    # --- other jobs ----------------------------------------------------------------------------------------------

    async def _forget_revisions(self) -> None:
        for ref, item in list(self.store.objects.items()):
            self.store.objects[ref] = replace(item, revision=0)
        self.store.gone.clear()
        self.statuses = {ref: status for ref, status in self.statuses.items() if ref in self.store.objects}

    async def _dry_run(self, changes: Sequence[Change]) -> tuple[Operation, ...]:
        this = _Round()
        problems: list[NetweftError] = []
        statuses, unreported = dict(self.statuses), set(self.unreported)
        try:
            for change in changes:
                if self._is_news(change):
                    self._stage(change, this)
                    failure = self._failure(change.ref)
                    if failure is not None and change.ref not in this.changes:
                        problems.append(failure)
            steps = self._difference(self._adopt(this.scope))
        finally:
            for ref, before in this.before.items():
                self.store.remove(ref)
                self.store.gone.pop(ref, None)
                if before is not None:
                    self.store.put(before)
            self._adopt(this.scope)
            self.statuses, self.unreported = statuses, unreported
        if problems:
            raise problems[0]
        return steps

    async def _reconcile(self, namespaces: Collection[Ns] | None) -> tuple[Operation, ...]:
        done: list[Operation] = []
        errors: dict[str, NetweftError] = {}
        for _ in range(REPAIR_ROUNDS):
            wanted = {
                key: one for key, one in self.desired.resources.items() if namespaces is None or key[1] in namespaces
            }
            found = await self._kernel.observe(wanted, namespaces)
            present = {key: one for key, one in found.resources.items() if self._authoritative or key in wanted}
            self.known = {
                **({} if namespaces is None else {k: v for k, v in self.known.items() if k[1] not in namespaces}),
                **present,
            }
            owners = {key: self.desired.owner(key) for key in wanted}
            steps = plan(wanted, present, owners)
            if not steps:
                break
            done += steps
            errors = await self._execute(steps, ())
            if errors:
                break
        if done:
            self.drift_repaired += len(done)
            for step in done:
                log.info("repaired", owner=step.owner, ns=step.resource.ns or "host", command=step.command())
        self._judge(errors, namespaces)
        return tuple(done)

    def _judge(self, errors: Mapping[str, NetweftError], namespaces: Collection[Ns] | None) -> None:
        """Note the errors of a reconcile, and after a full one that all other objects are well."""
        for ref in list(self.store.objects):
            error = errors.get(str(ref))
            if error is not None:
                log.warning("object is not as it should be", object=str(ref), error=str(error))
                self._note(ref, error)
            elif namespaces is None and self._failure(ref) is not None:
                self._note(ref, None, applied=True)


def _failed(this: _Round, errors: Mapping[str, NetweftError]) -> dict[Ref, NetweftError]:
    """Return the changes that did not get through, by their own owner or one that they depend on."""
    failed = {}
    for ref, change in this.changes.items():
        names = [str(ref)]
        if isinstance(change.put, Endpoint):
            names += [f"sandbox/{change.put.sandbox_id}", f"network/{change.put.network_id}"]
        for name in names:
            if name in errors:
                failed[ref] = errors[name]
                break
    return failed


def _answer(job: _Job, result: object) -> None:
    if job.answer.done():
        return
    if isinstance(result, BaseException):
        job.answer.set_exception(result)
    else:
        job.answer.set_result(result)
