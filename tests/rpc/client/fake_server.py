# servicers have the names of their rpcs
"""A server with the real generated servicers: it answers as it is told and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

from netweft.agent.v1 import agent_pb2, agent_pb2_grpc
from netweft.common.v1 import endpoint_pb2, host_pb2, network_pb2, plan_pb2, sandbox_pb2
from netweft.controller.v1 import endpoint_pb2 as endpoints_pb2
from netweft.controller.v1 import (
    endpoint_pb2_grpc,
    event_pb2,
    event_pb2_grpc,
    host_pb2_grpc,
    network_pb2_grpc,
    sandbox_pb2_grpc,
)
from netweft.controller.v1 import host_pb2 as hosts_pb2
from netweft.controller.v1 import network_pb2 as networks_pb2
from netweft.controller.v1 import sandbox_pb2 as sandboxes_pb2
from netweft.ipam.v1 import ipam_pb2, ipam_pb2_grpc
from netweft_common import errors, server, status


class Fake(
    network_pb2_grpc.NetworkServiceServicer,
    endpoint_pb2_grpc.EndpointServiceServicer,
    sandbox_pb2_grpc.SandboxServiceServicer,
    host_pb2_grpc.HostServiceServicer,
    event_pb2_grpc.EventServiceServicer,
    ipam_pb2_grpc.IpamServiceServicer,
    agent_pb2_grpc.AgentServiceServicer,
):
    """All services in one.

    Attributes:
        asked: Requests by rpc, in order.
        failures: Errors to raise by rpc, used up one a call.
        items: Outcomes of batch items, in place of success.
        feeds: What each successive Watch sends: responses, then an error to end with, or None to stay open.
    """

    def __init__(self) -> None:
        self.asked: defaultdict[str, list[Any]] = defaultdict(list)
        self.failures: defaultdict[str, list[errors.NetweftError]] = defaultdict(list)
        self.items: dict[int, errors.NetweftError] = {}
        self.networks = [network_pb2.Network(id=f"{n:032x}", name=f"net-{n}") for n in range(5)]
        self.feeds: list[tuple[list[event_pb2.WatchResponse], errors.NetweftError | None]] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.entered = asyncio.Event()

    def serve(self, *targets: str) -> server.Server:
        made = server.Server(listen_at=targets)
        for add in (
            network_pb2_grpc.add_NetworkServiceServicer_to_server,
            endpoint_pb2_grpc.add_EndpointServiceServicer_to_server,
            sandbox_pb2_grpc.add_SandboxServiceServicer_to_server,
            host_pb2_grpc.add_HostServiceServicer_to_server,
            event_pb2_grpc.add_EventServiceServicer_to_server,
            ipam_pb2_grpc.add_IpamServiceServicer_to_server,
            agent_pb2_grpc.add_AgentServiceServicer_to_server,
        ):
            made.add(add, self)
        return made

    async def take(self, name: str, request: Any) -> None:
        self.asked[name].append(request)
        self.entered.set()
        await self.hold.wait()
        if self.failures[name]:
            raise self.failures[name].pop(0)

    async def CreateNetwork(self, request, context):
        await self.take("CreateNetwork", request)
        subnets = list(request.subnets) or [network_pb2.Subnet(subnet="10.0.0.0/16", gateway="10.0.0.1")]
        return networks_pb2.CreateNetworkResponse(
            network=network_pb2.Network(id="1" * 32, name=request.name, driver="bridge", subnets=subnets)
        )

    async def GetNetwork(self, request, context):
        await self.take("GetNetwork", request)
        return networks_pb2.GetNetworkResponse(
            network=network_pb2.Network(name=request.network), endpoint_count=2, host_ids=["h1"]
        )

    async def ListNetworks(self, request, context):
        await self.take("ListNetworks", request)
        first, size = int(request.page_token or 0), request.page_size or 2
        rest = first + size < len(self.networks)
        return networks_pb2.ListNetworksResponse(
            networks=self.networks[first : first + size], next_page_token=str(first + size) if rest else ""
        )

    async def DeleteNetwork(self, request, context):
        await self.take("DeleteNetwork", request)
        return networks_pb2.DeleteNetworkResponse()

    async def CreateEndpoint(self, request, context):
        await self.take("CreateEndpoint", request)
        return endpoints_pb2.CreateEndpointResponse(endpoint=endpoint_pb2.Endpoint(name=request.endpoint.name))

    async def GetEndpoint(self, request, context):
        await self.take("GetEndpoint", request)
        return endpoints_pb2.GetEndpointResponse(endpoint=endpoint_pb2.Endpoint(name=request.endpoint))

    async def ListEndpoints(self, request, context):
        await self.take("ListEndpoints", request)
        return endpoints_pb2.ListEndpointsResponse(endpoints=[endpoint_pb2.Endpoint(name="a")])

    async def DeleteEndpoint(self, request, context):
        await self.take("DeleteEndpoint", request)
        return endpoints_pb2.DeleteEndpointResponse()

    async def JoinEndpoint(self, request, context):
        await self.take("JoinEndpoint", request)
        return endpoints_pb2.JoinEndpointResponse(
            endpoint=endpoint_pb2.Endpoint(name=request.endpoint, state=endpoint_pb2.ENDPOINT_STATE_JOINED),
            sandbox=sandbox_pb2.Sandbox(id="s"),
        )

    async def LeaveEndpoint(self, request, context):
        await self.take("LeaveEndpoint", request)
        return endpoints_pb2.LeaveEndpointResponse(endpoint=endpoint_pb2.Endpoint(name=request.endpoint))

    async def AttachEndpoints(self, request, context):
        await self.take("AttachEndpoints", request)
        results = []
        for number, item in enumerate(request.items):
            if number in self.items:
                results.append(endpoints_pb2.AttachResult(status=status.to_item_status(self.items[number])))
                continue
            results.append(
                endpoints_pb2.AttachResult(
                    endpoint=endpoint_pb2.Endpoint(name=item.endpoint.name, addresses=["10.0.0.2/16"]),
                    sandbox=sandbox_pb2.Sandbox(id="s"),
                    gateways=["10.0.0.1"],
                )
            )
        return endpoints_pb2.AttachEndpointsResponse(results=results)

    async def DetachEndpoints(self, request, context):
        await self.take("DetachEndpoints", request)
        results = [status.to_item_status(self.items.get(number)) for number in range(len(request.items))]
        return endpoints_pb2.DetachEndpointsResponse(results=results)

    async def PlanAttach(self, request, context):
        await self.take("PlanAttach", request)
        step = plan_pb2.PlanStep(command="ip link add", owner="endpoint/x", inverse="ip link del")
        return endpoints_pb2.PlanAttachResponse(plans=[endpoints_pb2.HostPlan(host_id="h1", steps=[step])])

    async def CreateSandbox(self, request, context):
        await self.take("CreateSandbox", request)
        spec = request.sandbox
        return sandboxes_pb2.CreateSandboxResponse(
            sandbox=sandbox_pb2.Sandbox(
                container_id=spec.container_id,
                namespace=spec.namespace,
                dns=spec.dns if spec.HasField("dns") else None,
                extra_hosts=spec.extra_hosts,
                labels=spec.labels,
            )
        )

    async def GetSandbox(self, request, context):
        await self.take("GetSandbox", request)
        return sandboxes_pb2.GetSandboxResponse(sandbox=sandbox_pb2.Sandbox(id=request.sandbox), endpoint_ids=["e1"])

    async def ListSandboxes(self, request, context):
        await self.take("ListSandboxes", request)
        return sandboxes_pb2.ListSandboxesResponse(sandboxes=[sandbox_pb2.Sandbox(id="s")])

    async def DeleteSandbox(self, request, context):
        await self.take("DeleteSandbox", request)
        return sandboxes_pb2.DeleteSandboxResponse()

    async def GetHost(self, request, context):
        await self.take("GetHost", request)
        return hosts_pb2.GetHostResponse(host=host_pb2.Host(name=request.host, vtep_address="192.0.2.1"))

    async def ListHosts(self, request, context):
        await self.take("ListHosts", request)
        return hosts_pb2.ListHostsResponse(hosts=[host_pb2.Host(name="h1", state=host_pb2.HOST_STATE_READY)])

    async def DeleteHost(self, request, context):
        await self.take("DeleteHost", request)
        return hosts_pb2.DeleteHostResponse()

    async def Watch(self, request, context):
        self.asked["Watch"].append(request)
        responses, end = self.feeds.pop(0) if self.feeds else ([], None)
        for response in responses:
            yield response
        if end is not None:
            raise end
        await asyncio.Event().wait()

    async def GetPool(self, request, context):
        await self.take("GetPool", request)
        return ipam_pb2.GetPoolResponse(pool=ipam_pb2.Pool(id=request.pool_id, subnet="10.0.0.0/16"))

    async def ListPools(self, request, context):
        await self.take("ListPools", request)
        return ipam_pb2.ListPoolsResponse(pools=[ipam_pb2.Pool(id="p", subnet="10.0.0.0/16")])

    async def ListLeases(self, request, context):
        await self.take("ListLeases", request)
        return ipam_pb2.ListLeasesResponse(leases=[ipam_pb2.Lease(pool_id=request.pool_id, address="10.0.0.2/16")])

    async def LookupAddress(self, request, context):
        await self.take("LookupAddress", request)
        lease = ipam_pb2.Lease(pool_id=request.address_space, address=f"{request.address}/16")
        return ipam_pb2.LookupAddressResponse(lease=lease)

    async def ListLeaseEvents(self, request, context):
        await self.take("ListLeaseEvents", request)
        event = ipam_pb2.LeaseEvent(id="1", type=ipam_pb2.LEASE_EVENT_TYPE_EXPIRED, address="10.0.0.2/16")
        return ipam_pb2.ListLeaseEventsResponse(events=[event])

    async def WatchLeases(self, request, context):
        self.asked["WatchLeases"].append(request)
        number = int(request.after_id or 0) + 1
        yield ipam_pb2.WatchLeasesResponse(events=[ipam_pb2.LeaseEvent(id=str(number), address="10.0.0.2/16")])
        raise errors.Unavailable("SERVER_DRAINING", "again", retry_after_s=0)

    async def Observe(self, request, context):
        await self.take("Observe", request)
        return agent_pb2.ObserveResponse(resources=["link nwb-1"])

    async def GetFacts(self, request, context):
        await self.take("GetFacts", request)
        return agent_pb2.GetFactsResponse(host_id="h", facts=host_pb2.HostFacts(kernel_release="6.1"))
