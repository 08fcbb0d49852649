"""SandboxService."""

# ruff: noqa: N802  # methods are named by the protocol

from __future__ import annotations

from typing import Any

from netweft.controller.v1 import sandbox_pb2, sandbox_pb2_grpc

from netweft_controller.clients import wire
from netweft_controller.domain import filters, names
from netweft_controller.engine.sandboxes import SandboxEngine
from netweft_controller.engine.settle import Settler
from netweft_controller.engine.updates import Updater
from netweft_controller.rpc import convert
from netweft_controller.rpc.own import OwnHost
from netweft_controller.sync.replica import Replica


class SandboxService(sandbox_pb2_grpc.SandboxServiceServicer):
    """Sandboxes.

    Args:
        replica: What is read.
        sandboxes: What is done.
        updater: Changes what exists.
        settler: Caught up with before a read, so that who was told reads it, and before a removal.
    """

    def __init__(self, replica: Replica, sandboxes: SandboxEngine, updater: Updater, settler: Settler) -> None:
        self._replica = replica
        self._updater = updater
        self._sandboxes = sandboxes
        self._settler = settler
        self._own = OwnHost(replica, settler)

    async def CreateSandbox(
        self, request: sandbox_pb2.CreateSandboxRequest, context: Any
    ) -> sandbox_pb2.CreateSandboxResponse:
        """Make a sandbox."""
        del context
        identity = convert.request("CreateSandbox", request, request.request_id)
        spec = convert.sandbox_spec(request.sandbox)
        await self._own.sandboxes([spec])
        record = await self._sandboxes.create(identity, spec)
        return sandbox_pb2.CreateSandboxResponse(sandbox=wire.sandbox(record))

    async def GetSandbox(self, request: sandbox_pb2.GetSandboxRequest, context: Any) -> sandbox_pb2.GetSandboxResponse:
        """Return one sandbox."""
        del context
        await self._settler.catch_up()
        state = self._replica.state
        record = names.get_sandbox(state, request.sandbox)
        return sandbox_pb2.GetSandboxResponse(
            sandbox=wire.sandbox(record),
            endpoint_ids=sorted(endpoint.value.id for endpoint in state.endpoints_of_sandbox(record.value.id)),
        )

    async def ListSandboxes(
        self, request: sandbox_pb2.ListSandboxesRequest, context: Any
    ) -> sandbox_pb2.ListSandboxesResponse:
        """List sandboxes by host and container id."""
        del context
        await self._settler.catch_up()
        state = self._replica.state
        found, token = filters.page(
            filter(filters.sandboxes(state, request.filters), state.sandboxes.values()),
            lambda record: (record.value.host_id, record.value.container_id),
            size=request.page_size,
            token=request.page_token,
        )
        return sandbox_pb2.ListSandboxesResponse(
            sandboxes=[wire.sandbox(record) for record in found], next_page_token=token
        )

    async def UpdateSandbox(
        self, request: sandbox_pb2.UpdateSandboxRequest, context: Any
    ) -> sandbox_pb2.UpdateSandboxResponse:
        """Change a sandbox."""
        del context
        identity = convert.request("UpdateSandbox", request, request.request_id)
        await self._own.sandboxes([request.sandbox])
        record = await self._updater.sandbox(
            identity, request.sandbox, convert.sandbox_spec(request.spec), list(request.update_mask.paths)
        )
        return sandbox_pb2.UpdateSandboxResponse(sandbox=wire.sandbox(record))

    async def RefreshSandbox(
        self, request: sandbox_pb2.RefreshSandboxRequest, context: Any
    ) -> sandbox_pb2.RefreshSandboxResponse:
        """Repair a sandbox and announce its addresses again."""
        del context
        await self._own.sandboxes([request.sandbox])
        steps = await self._sandboxes.refresh(request.sandbox)
        return sandbox_pb2.RefreshSandboxResponse(repaired=[convert.plan_step(step) for step in steps])

    async def GetSandboxStatistics(
        self, request: sandbox_pb2.GetSandboxStatisticsRequest, context: Any
    ) -> sandbox_pb2.GetSandboxStatisticsResponse:
        """Return the counters of a sandbox's interfaces."""
        del context
        found = await self._sandboxes.statistics(request.sandbox)
        return sandbox_pb2.GetSandboxStatisticsResponse(interfaces=[convert.statistics(one) for one in found])

    async def DeleteSandbox(
        self, request: sandbox_pb2.DeleteSandboxRequest, context: Any
    ) -> sandbox_pb2.DeleteSandboxResponse:
        """Delete a sandbox."""
        del context
        identity = convert.request("DeleteSandbox", request, request.request_id)
        await self._own.sandbox_that_goes(request.sandbox)
        await self._settler.catch_up()
        await self._sandboxes.delete(identity, request.sandbox, force=request.force)
        return sandbox_pb2.DeleteSandboxResponse()
