"""The cluster as front-ends see it, by calls to the controllers; implements domain/cluster.py."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable
from ipaddress import ip_interface

from google.protobuf import field_mask_pb2
from netweft.common.v1 import endpoint_pb2 as common_pb2
from netweft.common.v1 import network_pb2 as common_network_pb2
from netweft.common.v1 import sandbox_pb2
from netweft.controller.v1 import endpoint_pb2, endpoint_pb2_grpc, network_pb2, network_pb2_grpc
from netweft_common import client, errors, status

from netweft_agent.domain.cluster import Container, Found, FoundNetwork, NetworkWish, Wish
from netweft_agent.domain.objects import PublishedPort, Subnet
from netweft_agent.rpc import convert

_PAGE = 1000


class ControllerCluster:
    """Asks the controllers for endpoints on this host.

    Args:
        connection: To the controllers; owned by the caller.
        host_id: Of this host.
    """

    def __init__(self, connection: client.Connection, host_id: str) -> None:
        self._connection = connection
        self._host_id = host_id
        self._networks = network_pb2_grpc.NetworkServiceStub(connection.channel)
        self._endpoints = endpoint_pb2_grpc.EndpointServiceStub(connection.channel)
        connection.over_stream(
            self._endpoints.EndpointStream,
            endpoint_pb2.EndpointStreamRequest,
            attach=self._endpoints.AttachEndpoints,
            detach=self._endpoints.DetachEndpoints,
        )

    async def subnets(self, network: str) -> tuple[Subnet, ...]:
        """Return the subnets of a network; NotFound where there is none."""
        return (await self.network(network)).subnets

    async def network(self, network: str) -> FoundNetwork:
        """Return one network by id or name; NotFound where there is none."""
        answer = await self._connection.call(
            self._networks.GetNetwork, network_pb2.GetNetworkRequest(network=network), timeout_s=10
        )
        return _found_network(answer.network)

    async def networks(self, label: str) -> list[FoundNetwork]:
        """Return the networks that have a label, `key=value`."""
        found: list[FoundNetwork] = []
        request = network_pb2.ListNetworksRequest(page_size=_PAGE, filters=[f"label={label}"])
        while True:
            answer = await self._connection.call(self._networks.ListNetworks, request)
            found += [_found_network(one) for one in answer.networks]
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    async def create_network(self, wish: NetworkWish) -> FoundNetwork:
        """Make a network."""
        request = network_pb2.CreateNetworkRequest(
            request_id=uuid.uuid4().hex,
            name=wish.name,
            driver=wish.driver,
            host=self._host_id if wish.here else "",
            subnets=[
                common_network_pb2.Subnet(
                    subnet=one.subnet, gateway=one.gateway, ip_range=one.ip_range, aux_addresses=dict(one.aux_addresses)
                )
                for one in wish.subnets
            ],
            options=dict(wish.options),
            labels=dict(wish.labels),
            internal=wish.internal,
            disable_ipv4=not wish.enable_ipv4,
            enable_ipv6=wish.enable_ipv6,
            address_space=wish.address_space,
        )
        answer = await self._connection.call(self._networks.CreateNetwork, request)
        return _found_network(answer.network)

    async def delete_network(self, network: str) -> None:
        """Take a network away; one that is gone is gone. FailedPrecondition while it has endpoints."""
        request = network_pb2.DeleteNetworkRequest(request_id=uuid.uuid4().hex, network=network)
        with contextlib.suppress(errors.NotFound):
            await self._connection.call(self._networks.DeleteNetwork, request)

    async def attach(self, wish: Wish, container: Container) -> Found:
        """Make an endpoint and join it to a container of this host."""
        spec = endpoint_pb2.SandboxSpec(
            host=self._host_id,
            container_id=container.container_id,
            namespace=sandbox_pb2.Namespace(path=container.netns_path)
            if container.netns_path
            else sandbox_pb2.Namespace(handover=True),
            dns=sandbox_pb2.DnsConfig(
                servers=container.dns_servers, search=container.dns_search, options=container.dns_options
            ),
        )
        item = endpoint_pb2.AttachItem(endpoint=_spec(wish), sandbox=endpoint_pb2.SandboxRef(spec=spec))
        answer = await self._connection.call(
            self._endpoints.AttachEndpoints,
            endpoint_pb2.AttachEndpointsRequest(request_id=uuid.uuid4().hex, items=[item]),
        )
        [result] = answer.results
        error = status.from_item_status(result.status)
        if error is not None:
            raise error
        return _found(result.endpoint, result.gateways)

    async def create(self, wish: Wish) -> Found:
        """Make an endpoint that is in no sandbox: a lease with a name."""
        answer = await self._connection.call(
            self._endpoints.CreateEndpoint,
            endpoint_pb2.CreateEndpointRequest(request_id=uuid.uuid4().hex, endpoint=_spec(wish)),
        )
        return _found(answer.endpoint)

    async def update(
        self,
        endpoint_id: str,
        *,
        dns_names: tuple[str, ...] | None = None,
        ports: tuple[PublishedPort, ...] | None = None,
    ) -> Found:
        """Change what is given of an endpoint, and wait for its host."""
        given = {"dns_names": dns_names, "ports": ports}
        spec = endpoint_pb2.EndpointSpec(dns_names=dns_names or (), ports=convert.published_ports(ports or ()))
        answer = await self._connection.call(
            self._endpoints.UpdateEndpoint,
            endpoint_pb2.UpdateEndpointRequest(
                request_id=uuid.uuid4().hex,
                endpoint=endpoint_id,
                spec=spec,
                update_mask=field_mask_pb2.FieldMask(paths=[key for key, one in given.items() if one is not None]),
            ),
        )
        return _found(answer.endpoint)

    async def detach(self, network: str, name: str) -> None:
        """Take an endpoint away, and its sandbox when it was the last one; one that is gone is gone."""
        item = endpoint_pb2.DetachItem(endpoint=name, network=network, delete_sandbox=True)
        answer = await self._connection.call(
            self._endpoints.DetachEndpoints,
            endpoint_pb2.DetachEndpointsRequest(request_id=uuid.uuid4().hex, items=[item]),
        )
        error = status.from_item_status(answer.results[0])
        if error is not None:
            raise error

    async def endpoint(self, network: str, name: str) -> Found:
        """Return one endpoint; NotFound where there is none."""
        answer = await self._connection.call(
            self._endpoints.GetEndpoint, endpoint_pb2.GetEndpointRequest(endpoint=name, network=network)
        )
        return _found(answer.endpoint)

    async def endpoints(self, network: str, label: str) -> list[Found]:
        """Return the endpoints of a network that have a label, `key=value`; of all networks where it is empty."""
        found: list[Found] = []
        filters = [f"network={network}"] if network else []
        request = endpoint_pb2.ListEndpointsRequest(page_size=_PAGE, filters=[*filters, f"label={label}"])
        while True:
            answer = await self._connection.call(self._endpoints.ListEndpoints, request)
            found += [_found(one) for one in answer.endpoints]
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token


def _spec(wish: Wish) -> endpoint_pb2.EndpointSpec:
    limits = wish.bandwidth
    return endpoint_pb2.EndpointSpec(
        network=wish.network,
        name=wish.name,
        addresses=wish.addresses,
        mac_address=wish.mac,
        dns_names=wish.dns_names,
        interface_name=wish.interface_name,
        gateway_priority=wish.gateway_priority,
        labels=dict(wish.labels),
        options=dict(wish.options),
        ports=convert.published_ports(wish.ports),
        bandwidth=None
        if limits is None
        else common_pb2.Bandwidth(
            ingress_bits_per_second=limits.ingress_rate,
            ingress_burst_bits=limits.ingress_burst,
            egress_bits_per_second=limits.egress_rate,
            egress_burst_bits=limits.egress_burst,
        ),
    )


def _found(message: common_pb2.Endpoint, gateways: Iterable[str] = ()) -> Found:
    return Found(
        id=message.id,
        name=message.name,
        sandbox_id=message.sandbox_id,
        addresses=tuple(ip_interface(text) for text in message.addresses),
        gateways=tuple(gateways),
        labels=dict(message.labels),
        network_id=message.network_id,
        mac=message.mac_address,
        interface_name=message.interface_name,
        ports=convert.ports(message.ports, "ports"),
        created_s=message.create_time.ToMilliseconds() / 1000,
    )


def _found_network(message: common_network_pb2.Network) -> FoundNetwork:
    read = convert.network(message, "network")
    return FoundNetwork(
        id=read.id,
        name=read.name,
        driver=read.driver,
        host_id=message.host_id,
        subnets=read.subnets,
        ip_ranges={one.subnet: one.ip_range for one in message.subnets if one.ip_range},
        options=read.options,
        labels=dict(message.labels),
        internal=read.internal,
        enable_ipv4=read.enable_ipv4,
        enable_ipv6=read.enable_ipv6,
        created_s=message.create_time.ToMilliseconds() / 1000,
    )
