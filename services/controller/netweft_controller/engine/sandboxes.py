"""Creating and deleting sandboxes."""

from __future__ import annotations

import msgspec
from netweft_common import errors

from netweft_controller.clients.agents import Agents, InterfaceStatistics, Step
from netweft_controller.domain import commits, endpoints, names, removal
from netweft_controller.domain.changes import HostKind
from netweft_controller.domain.objects import Record, Sandbox
from netweft_controller.domain.specs import SandboxSpec
from netweft_controller.domain.state import State
from netweft_controller.engine.joining import Joiner, with_netns
from netweft_controller.engine.removal import Remover
from netweft_controller.engine.requests import Done, Outcome, Request
from netweft_controller.engine.settle import Confirmed, Settler
from netweft_controller.engine.work import Work
from netweft_controller.sync.replica import Replica


class SandboxEngine:
    """What the controller does for sandboxes.

    Args:
        replica: Intent.
        agents: Kernels.
        joiner: Asks hosts.
        remover: Takes sandboxes away.
        settler: Records confirmations.
        work: Owner of the sagas.
    """

    def __init__(
        self, *, replica: Replica, agents: Agents, joiner: Joiner, remover: Remover, settler: Settler, work: Work
    ) -> None:
        self._replica = replica
        self._agents = agents
        self._joiner = joiner
        self._remover = remover
        self._settler = settler
        self._work = work

    async def create(self, request: Request, spec: SandboxSpec) -> Record[Sandbox]:
        """Make a sandbox and wait until its host has it. Idempotent by request.

        Raises:
            AlreadyExists: The container id is in use on the host.
            NetweftError: It could not be made; nothing stays, or its host does not answer (Unavailable).
        """
        return await self._work.once(
            request.key, request.fingerprint, lambda: self._create(request, spec), name="create sandbox"
        )

    async def delete(self, request: Request, word: str, *, force: bool) -> None:
        """Delete a sandbox, with `force` its endpoints too. Idempotent by request.

        Raises:
            NotFound: There is none.
            FailedPrecondition: It has endpoints, and `force` is not set.
            Unavailable: The deletion is recorded and will be finished.
        """
        await self._work.once(
            request.key, request.fingerprint, lambda: self._delete(request, word, force=force), name="delete sandbox"
        )

    async def refresh(self, word: str) -> list[Step]:
        """Have a sandbox's host repair it and announce its addresses again; returns what was repaired. Idempotent.

        Raises:
            NotFound: There is none.
            FailedPrecondition: Its host is not registered.
            NetweftError: As the host says.
        """
        target = endpoints.existing_target(self._replica.state, names.get_sandbox(self._replica.state, word))
        return await self._agents.refresh_sandbox(target.host.value, target.sandbox.id)

    async def statistics(self, word: str) -> list[InterfaceStatistics]:
        """Return the counters of a sandbox's interfaces, by name.

        Raises:
            NotFound: There is none.
            FailedPrecondition: Its host is not registered.
            NetweftError: As the host says.
        """
        target = endpoints.existing_target(self._replica.state, names.get_sandbox(self._replica.state, word))
        return await self._agents.statistics(target.host.value, target.sandbox.id)

    async def _create(self, request: Request, spec: SandboxSpec) -> Record[Sandbox]:
        sandbox_id = request.id_for("sandbox")
        known = await self._replica.find_request(request.key)
        if known is not None:
            (done,) = request.recall(known).items
            if sandbox_id not in self._replica.state.sandboxes and done is not None and done.sandbox is not None:
                return Record(done.sandbox, done.revision, done.created_ms)
        once = request.remember(Outcome(items=(Done(id=sandbox_id),)))

        def decision(state: State) -> commits.Commit | None:
            if sandbox_id in state.sandboxes:
                return None
            sandbox, host = endpoints.check_sandbox(state, spec, sandbox_id, "sandbox")
            sandbox = msgspec.structs.replace(sandbox, kept=True)
            holder = state.sandbox_by_container(sandbox.host_id, sandbox.container_id)
            if holder is not None:
                raise errors.AlreadyExists(
                    "SANDBOX_EXISTS",
                    f"host {host.value.name} has a sandbox of container {sandbox.container_id} already"
                    f" ({holder.value.id}, {holder.value.state}); use it or delete it",
                    sandbox=holder.value.id,
                )
            builder = commits.Builder()
            endpoints.record_target(builder, endpoints.Target(sandbox=sandbox, record=None, host=host))
            return builder.build(once, known)

        await self._replica.decide(decision)
        statuses = await self._joiner.ask_hosts([], [sandbox_id])
        record = self._replica.state.sandboxes.get(sandbox_id)
        status = statuses.get((HostKind.SANDBOX, sandbox_id))
        if record is None or status is None:
            raise errors.Conflict("SANDBOX_GONE", f"sandbox {sandbox_id} was deleted while it was being made")
        if status.error is not None:
            await self._joiner.undo((), (sandbox_id,), statuses)
            raise status.error
        made = with_netns(record, status)
        told = Done(id=sandbox_id, told=True, sandbox=made.value, revision=made.revision, created_ms=made.created_ms)
        self._settler.confirm(
            [Confirmed(id=sandbox_id, revision=made.revision, netns_path=made.value.netns_path)],
            request.remember(Outcome(items=(told,))),
        )
        return made

    async def _delete(self, request: Request, word: str, *, force: bool) -> None:
        known = await self._replica.find_request(request.key)
        sandbox_id = ""
        endpoint_ids: list[str] = []

        def decision(state: State) -> commits.Commit | None:
            nonlocal sandbox_id
            record = names.get_sandbox(state, word)
            sandbox_id = record.value.id
            endpoint_ids[:] = [endpoint.value.id for endpoint in state.endpoints_of_sandbox(sandbox_id)]
            if removal.keeps_endpoints(state, sandbox_id) and not force:
                held = ", ".join(sorted(state.endpoints[id_].value.name for id_ in endpoint_ids)[:10])
                raise errors.FailedPrecondition(
                    "SANDBOX_HAS_ENDPOINTS",
                    f"sandbox {record.value.container_id} has {len(endpoint_ids)} endpoints ({held}); detach them"
                    " first, or use force",
                    sandbox=sandbox_id,
                )
            once = request.remember(Outcome(items=(Done(id=sandbox_id, told=True),)))
            return removal.mark(state, endpoint_ids, [sandbox_id], once=once)

        if known is None:
            try:
                await self._replica.decide(decision)
            except errors.NetweftError as error:
                known = await self._replica.find_after(request.key, error)
        if known is not None:
            (done,) = request.recall(known).items
            sandbox_id = done.id if done is not None else ""
            endpoint_ids[:] = [e.value.id for e in self._replica.state.endpoints_of_sandbox(sandbox_id)]
        failures = await self._remover.finish(endpoint_ids, [sandbox_id])
        if failures:
            raise next(iter(failures.values()))
