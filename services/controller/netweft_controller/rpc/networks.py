"""NetworkService."""

# ruff: noqa: N802  # methods are named by the protocol

from __future__ import annotations

from typing import Any

from netweft.controller.v1 import network_pb2, network_pb2_grpc

from netweft_controller.clients import wire
from netweft_controller.domain import filters, names, overlay
from netweft_controller.engine import progress
from netweft_controller.engine.networks import NetworkEngine
from netweft_controller.rpc import convert
from netweft_controller.sync.replica import Replica


class NetworkService(network_pb2_grpc.NetworkServiceServicer):
    """Networks.

    Args:
        replica: What is read.
        networks: What is done.
        progress_: How far hosts are.
    """

    def __init__(self, replica: Replica, networks: NetworkEngine, progress_: progress.Progress) -> None:
        self._replica = replica
        self._progress = progress_
        self._networks = networks

    async def CreateNetwork(
        self, request: network_pb2.CreateNetworkRequest, context: Any
    ) -> network_pb2.CreateNetworkResponse:
        """Create a network."""
        del context
        identity = convert.request("CreateNetwork", request, request.request_id)
        spec = convert.network_spec(request)
        if request.validate_only:
            record = self._networks.check(identity, spec)
        else:
            record = await self._networks.create(identity, spec)
        return network_pb2.CreateNetworkResponse(network=wire.network(record))

    async def GetNetwork(self, request: network_pb2.GetNetworkRequest, context: Any) -> network_pb2.GetNetworkResponse:
        """Return one network."""
        del context
        state = self._replica.state
        record = names.get_network(state, request.network)
        return network_pb2.GetNetworkResponse(
            network=wire.network(record),
            endpoint_count=state.endpoint_count(record.value.id),
            host_ids=sorted(state.hosts_with(record.value.id)),
            hosts=[
                network_pb2.HostProgress(host_id=one.host_id, applied_revision=one.revision, behind=one.is_behind)
                for one in self._progress.of(record.value.id)
            ],
            revision=state.network_revision(record.value.id),
            narrow_paths=[wire.narrow_path(one) for one in overlay.narrow_paths(state, record.value)],
        )

    async def WaitNetwork(
        self, request: network_pb2.WaitNetworkRequest, context: Any
    ) -> network_pb2.WaitNetworkResponse:
        """Wait until hosts follow a revision of a network."""
        del context
        network_id = names.get_network(self._replica.state, request.network).value.id
        timeout_s = request.timeout_ms / 1e3 if request.timeout_ms else progress.WAIT_S
        revision, behind = await self._progress.wait(network_id, request.revision, timeout_s)
        return network_pb2.WaitNetworkResponse(revision=revision, behind_host_ids=behind)

    async def ListNetworks(
        self, request: network_pb2.ListNetworksRequest, context: Any
    ) -> network_pb2.ListNetworksResponse:
        """List networks by name."""
        del context
        test = filters.networks(request.filters)
        found, token = filters.page(
            filter(test, self._replica.state.networks.values()),
            lambda record: (record.value.name,),
            size=request.page_size,
            token=request.page_token,
        )
        return network_pb2.ListNetworksResponse(
            networks=[wire.network(record) for record in found], next_page_token=token
        )

    async def DeleteNetwork(
        self, request: network_pb2.DeleteNetworkRequest, context: Any
    ) -> network_pb2.DeleteNetworkResponse:
        """Delete a network."""
        del context
        identity = convert.request("DeleteNetwork", request, request.request_id)
        await self._networks.delete(identity, request.network)
        return network_pb2.DeleteNetworkResponse()
