"""AgentService: what controllers ask of this host."""

from __future__ import annotations

from typing import Any

from grpc import aio
from netweft.agent.v1 import agent_pb2, agent_pb2_grpc
from netweft.common.v1 import host_pb2
from netweft_common import exchange
from netweft_common.identity import Access, Role

from netweft_agent.domain.objects import Kind, Ref
from netweft_agent.engine.engine import Engine, Status
from netweft_agent.engine.store import Change
from netweft_agent.rpc import convert
from netweft_agent.rpc.leases import LeaseKeeper

SERVICE = "/netweft.agent.v1.AgentService"

_CONTROLLERS = frozenset({Role.CONTROLLER, Role.ADMIN})

ACCESS: Access = {
    f"{SERVICE}/Apply": _CONTROLLERS,
    f"{SERVICE}/ApplyStream": _CONTROLLERS,
    f"{SERVICE}/CreateSandbox": _CONTROLLERS,
    f"{SERVICE}/DeleteSandbox": _CONTROLLERS,
    f"{SERVICE}/Plan": _CONTROLLERS,
    f"{SERVICE}/RefreshSandbox": _CONTROLLERS,
    f"{SERVICE}/GetStatistics": _CONTROLLERS | {Role.CLIENT},
    f"{SERVICE}/Observe": _CONTROLLERS | {Role.CLIENT},
    f"{SERVICE}/GetFacts": _CONTROLLERS | {Role.CLIENT},
}

Context = aio.ServicerContext[Any, Any]


class AgentServicer(agent_pb2_grpc.AgentServiceServicer):
    """Converts, calls the engine, converts back.

    Args:
        engine: The host's engine.
        host_id: Id of this host.
        facts: What the agent reports of its host.
        leases: Who asks IPAM of new endpoints when it may have forgotten their leases; None: nobody does.
    """

    def __init__(
        self, engine: Engine, host_id: str, facts: host_pb2.HostFacts, leases: LeaseKeeper | None = None
    ) -> None:
        self._engine = engine
        self._leases = leases
        self._host_id = host_id
        self._facts = facts

    async def Apply(self, request: agent_pb2.ApplyRequest, context: Context) -> agent_pb2.ApplyResponse:  # noqa: N802
        """Bring the kernel to the changes; one status each."""
        del context
        same_store = bool(request.store_id) and request.store_id == self._engine.position.store_id
        held = self._engine.store.objects.get if same_store else convert.nothing_held
        changes = convert.changes(request.changes, held)
        refused = await self._leases.check(changes) if self._leases is not None and self._leases.is_watching else {}
        if not refused:
            statuses = await self._engine.apply(changes, store_id=request.store_id)
        else:
            rest = [change for change in changes if change.ref not in refused]
            taken = iter(await self._engine.apply(rest, store_id=request.store_id) if rest else ())
            statuses = [
                Status(ref=change.ref, revision=change.revision, error=refused[change.ref])
                if change.ref in refused
                else next(taken)
                for change in changes
            ]
        return agent_pb2.ApplyResponse(
            statuses=[
                convert.status_message(one, of_revision=change.revision)
                for change, one in zip(changes, statuses, strict=True)
            ]
        )

    def ApplyStream(self, requests: Any, context: Any) -> Any:  # noqa: N802
        """Apply, over a stream."""
        return exchange.serve(requests, context, agent_pb2.ApplyStreamResponse, {"apply": self.Apply})

    async def Plan(self, request: agent_pb2.PlanRequest, context: Context) -> agent_pb2.PlanResponse:  # noqa: N802
        """Say what Apply would do."""
        del context
        return agent_pb2.PlanResponse(steps=convert.steps(await self._engine.plan(convert.changes(request.changes))))

    async def Observe(  # noqa: N802
        self, request: agent_pb2.ObserveRequest, context: Context
    ) -> agent_pb2.ObserveResponse:
        """Compare kernel and intent."""
        del context
        ref = convert.ref(request.object) if request.HasField("object") else None
        present, drift = await self._engine.observe(ref)
        lines = sorted(
            f"{resource.ns or 'host'}: {command}"
            for resource in present.values()
            if (command := resource.add_command())
        )
        statuses = [one for one in self._engine.statuses.values() if ref is None or one.ref == ref]
        return agent_pb2.ObserveResponse(
            resources=lines,
            drift=convert.steps(drift),
            statuses=[convert.status_message(one) for one in statuses],
        )

    async def CreateSandbox(  # noqa: N802
        self, request: agent_pb2.CreateSandboxRequest, context: Context
    ) -> agent_pb2.CreateSandboxResponse:
        """Make one sandbox."""
        del context
        message = agent_pb2.Change(revision=request.sandbox.revision, sandbox=request.sandbox)
        (status,) = await self._engine.apply([convert.change(message)])
        return agent_pb2.CreateSandboxResponse(status=convert.status_message(status))

    async def DeleteSandbox(  # noqa: N802
        self, request: agent_pb2.DeleteSandboxRequest, context: Context
    ) -> agent_pb2.DeleteSandboxResponse:
        """Remove one sandbox."""
        del context
        message = agent_pb2.ObjectRef(kind=agent_pb2.OBJECT_KIND_SANDBOX, id=request.sandbox_id)
        ref = convert.ref(message, "sandbox_id")
        held = self._engine.store.objects.get(Ref(kind=Kind.SANDBOX, id=ref.id))
        revision = request.revision or (held.revision + 1 if held is not None else 1)
        (status,) = await self._engine.apply([Change(ref=ref, revision=revision)])
        if status.error is not None:
            raise status.error
        return agent_pb2.DeleteSandboxResponse()

    async def RefreshSandbox(  # noqa: N802
        self, request: agent_pb2.RefreshSandboxRequest, context: Context
    ) -> agent_pb2.RefreshSandboxResponse:
        """Repair one sandbox and announce its addresses again."""
        del context
        done = await self._engine.refresh(convert.identifier(request.sandbox_id, "sandbox_id"))
        return agent_pb2.RefreshSandboxResponse(repaired=convert.steps(done))

    async def GetStatistics(  # noqa: N802
        self, request: agent_pb2.GetStatisticsRequest, context: Context
    ) -> agent_pb2.GetStatisticsResponse:
        """Return the counters of one sandbox's interfaces."""
        del context
        found = await self._engine.statistics(convert.identifier(request.sandbox_id, "sandbox_id"))
        return agent_pb2.GetStatisticsResponse(interfaces=[convert.interface_statistics(*one) for one in found])

    async def GetFacts(self, request: agent_pb2.GetFactsRequest, context: Context) -> agent_pb2.GetFactsResponse:  # noqa: N802
        """Report what this host is."""
        del request, context
        return agent_pb2.GetFactsResponse(host_id=self._host_id, facts=self._facts)
