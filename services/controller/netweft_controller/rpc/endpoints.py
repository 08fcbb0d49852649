"""EndpointService."""

# ruff: noqa: N802  # methods are named by the protocol

from __future__ import annotations

from typing import Any

from netweft.controller.v1 import endpoint_pb2, endpoint_pb2_grpc
from netweft_common import errors, exchange, status

from netweft_controller.clients import wire
from netweft_controller.domain import filters, names
from netweft_controller.domain.specs import EndpointWord
from netweft_controller.engine.endpoints import EndpointEngine
from netweft_controller.engine.joining import Result
from netweft_controller.engine.settle import Settler
from netweft_controller.engine.updates import Updater
from netweft_controller.rpc import convert
from netweft_controller.rpc.own import OwnHost
from netweft_controller.sync.replica import Replica


class EndpointService(endpoint_pb2_grpc.EndpointServiceServicer):
    """Endpoints.

    Args:
        replica: What is read.
        endpoints: What is done.
        updater: Changes what exists.
        settler: Caught up with before a read, so that who was told reads it, and before a removal.
    """

    def __init__(self, replica: Replica, endpoints: EndpointEngine, updater: Updater, settler: Settler) -> None:
        self._replica = replica
        self._updater = updater
        self._endpoints = endpoints
        self._settler = settler
        self._own = OwnHost(replica, settler)

    async def CreateEndpoint(
        self, request: endpoint_pb2.CreateEndpointRequest, context: Any
    ) -> endpoint_pb2.CreateEndpointResponse:
        """Create an endpoint."""
        del context
        identity = convert.request("CreateEndpoint", request, request.request_id)
        record = await self._endpoints.create(identity, convert.endpoint_spec(request.endpoint))
        return endpoint_pb2.CreateEndpointResponse(endpoint=wire.endpoint(record))

    async def GetEndpoint(
        self, request: endpoint_pb2.GetEndpointRequest, context: Any
    ) -> endpoint_pb2.GetEndpointResponse:
        """Return one endpoint."""
        del context
        await self._settler.catch_up()
        record = names.get_endpoint(self._replica.state, request.endpoint, request.network)
        return endpoint_pb2.GetEndpointResponse(endpoint=wire.endpoint(record))

    async def ListEndpoints(
        self, request: endpoint_pb2.ListEndpointsRequest, context: Any
    ) -> endpoint_pb2.ListEndpointsResponse:
        """List endpoints by id."""
        del context
        await self._settler.catch_up()
        candidates, test = filters.endpoints(self._replica.state, request.filters)
        found, token = filters.page(
            filter(test, candidates),
            lambda record: (record.value.id,),
            size=request.page_size,
            token=request.page_token,
        )
        return endpoint_pb2.ListEndpointsResponse(
            endpoints=[wire.endpoint(record) for record in found], next_page_token=token
        )

    async def UpdateEndpoint(
        self, request: endpoint_pb2.UpdateEndpointRequest, context: Any
    ) -> endpoint_pb2.UpdateEndpointResponse:
        """Change an endpoint."""
        del context
        identity = convert.request("UpdateEndpoint", request, request.request_id)
        word = EndpointWord(endpoint=request.endpoint, network=request.network)
        await self._own.endpoints([word])
        record = await self._updater.endpoint(
            identity, word, convert.endpoint_spec(request.spec), list(request.update_mask.paths)
        )
        return endpoint_pb2.UpdateEndpointResponse(endpoint=wire.endpoint(record))

    async def DeleteEndpoint(
        self, request: endpoint_pb2.DeleteEndpointRequest, context: Any
    ) -> endpoint_pb2.DeleteEndpointResponse:
        """Delete an endpoint."""
        del context
        identity = convert.request("DeleteEndpoint", request, request.request_id)
        word = EndpointWord(endpoint=request.endpoint, network=request.network)
        await self._own.endpoints([word])
        await self._settler.catch_up()
        await self._endpoints.delete(identity, word, force=request.force)
        return endpoint_pb2.DeleteEndpointResponse()

    async def JoinEndpoint(
        self, request: endpoint_pb2.JoinEndpointRequest, context: Any
    ) -> endpoint_pb2.JoinEndpointResponse:
        """Join an endpoint to a sandbox."""
        del context
        identity = convert.request("JoinEndpoint", request, request.request_id)
        word = EndpointWord(endpoint=request.endpoint, network=request.network)
        ref = convert.sandbox_ref(request.sandbox, "sandbox")
        await self._own.endpoints([word])
        await self._own.sandboxes([ref])
        attached = await self._endpoints.join(identity, word, ref)
        response = endpoint_pb2.JoinEndpointResponse(endpoint=wire.endpoint(attached.endpoint))
        if attached.sandbox is not None:
            response.sandbox.CopyFrom(wire.sandbox(attached.sandbox))
        return response

    async def LeaveEndpoint(
        self, request: endpoint_pb2.LeaveEndpointRequest, context: Any
    ) -> endpoint_pb2.LeaveEndpointResponse:
        """Take an endpoint out of its sandbox."""
        del context
        identity = convert.request("LeaveEndpoint", request, request.request_id)
        word = EndpointWord(endpoint=request.endpoint, network=request.network)
        await self._own.endpoints([word])
        record = await self._endpoints.leave(identity, word)
        return endpoint_pb2.LeaveEndpointResponse(endpoint=wire.endpoint(record))

    async def AttachEndpoints(
        self, request: endpoint_pb2.AttachEndpointsRequest, context: Any
    ) -> endpoint_pb2.AttachEndpointsResponse:
        """Create and join endpoints."""
        del context
        items = convert.attach_items(request.items)
        identity = convert.request("AttachEndpoints", request, request.request_id)
        await self._own.items(items)
        results = await self._endpoints.attach(identity, items)
        return endpoint_pb2.AttachEndpointsResponse(results=[_attach_result(result) for result in results])

    async def DetachEndpoints(
        self, request: endpoint_pb2.DetachEndpointsRequest, context: Any
    ) -> endpoint_pb2.DetachEndpointsResponse:
        """Leave and delete endpoints."""
        del context
        words = convert.detach_items(request.items)
        identity = convert.request("DetachEndpoints", request, request.request_id)
        await self._own.endpoints(words)
        await self._settler.catch_up()
        results = await self._endpoints.detach(identity, words)
        return endpoint_pb2.DetachEndpointsResponse(results=[status.to_item_status(error) for error in results])

    def EndpointStream(self, requests: Any, context: Any) -> Any:
        """Attach and detach, over a stream."""
        methods: exchange.Methods = {"attach": self.AttachEndpoints, "detach": self.DetachEndpoints}
        return exchange.serve(requests, context, endpoint_pb2.EndpointStreamResponse, methods)

    async def PlanAttach(
        self, request: endpoint_pb2.PlanAttachRequest, context: Any
    ) -> endpoint_pb2.PlanAttachResponse:
        """Say what an attach would do."""
        del context
        items = convert.attach_items(request.items)
        await self._own.items(items)
        plans = await self._endpoints.plan_attach(items)
        return endpoint_pb2.PlanAttachResponse(
            plans=[
                endpoint_pb2.HostPlan(
                    host_id=plan.host_id,
                    steps=[convert.plan_step(step) for step in plan.steps],
                )
                for plan in plans
            ]
        )


def _attach_result(result: Result) -> endpoint_pb2.AttachResult:
    if isinstance(result, errors.NetweftError):
        return endpoint_pb2.AttachResult(status=status.to_item_status(result))
    return endpoint_pb2.AttachResult(
        status=status.to_item_status(None),
        endpoint=wire.endpoint(result.endpoint),
        sandbox=wire.sandbox(result.sandbox) if result.sandbox is not None else None,
        gateways=result.gateways,
    )
