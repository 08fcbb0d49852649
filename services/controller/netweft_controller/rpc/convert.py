"""Requests of the controller's API as values of the domain."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from google.protobuf import message as protobuf
from netweft.common.v1 import plan_pb2, sandbox_pb2
from netweft.controller.v1 import endpoint_pb2, network_pb2

from netweft_controller.clients import wire
from netweft_controller.clients.agents import InterfaceStatistics, Step
from netweft_controller.domain import fields
from netweft_controller.domain.specs import AttachItem, EndpointSpec, EndpointWord, NetworkSpec, SandboxRef, SandboxSpec
from netweft_controller.engine import requests


def request(method: str, message: protobuf.Message, request_id: str) -> requests.Request:
    """Return a mutation's identity: its key, and a digest of its body.

    Raises:
        InvalidArgument: The request id is malformed.
    """
    return requests.request(method, fields.request_id(request_id), message.SerializeToString(deterministic=True))


def network_spec(message: network_pb2.CreateNetworkRequest) -> NetworkSpec:
    """Return the network that is asked for."""
    return NetworkSpec(
        name=message.name,
        driver=message.driver,
        host=message.host,
        subnets=tuple(wire.subnet_from(subnet) for subnet in message.subnets),
        options=dict(message.options),
        labels=dict(message.labels),
        internal=message.internal,
        enable_ipv4=not message.disable_ipv4,
        enable_ipv6=message.enable_ipv6,
        ipam_driver=message.ipam_driver,
        address_space=message.address_space,
        attachable=message.attachable,
    )


def endpoint_spec(message: endpoint_pb2.EndpointSpec) -> EndpointSpec:
    """Return the endpoint that is asked for."""
    return EndpointSpec(
        network=message.network,
        name=message.name,
        addresses=tuple(message.addresses),
        mac_address=message.mac_address,
        dns_names=tuple(message.dns_names),
        interface_name=message.interface_name,
        gateway_priority=message.gateway_priority,
        labels=dict(message.labels),
        options=dict(message.options),
        ports=tuple(wire.published_port_from(one) for one in message.ports),
        bandwidth=wire.bandwidth_from(message.bandwidth) if message.HasField("bandwidth") else None,
        link_local=tuple(message.link_local_addresses),
        routes=tuple(wire.static_route_from(one) for one in message.routes),
        sysctls=dict(message.sysctls),
    )


def sandbox_spec(message: endpoint_pb2.SandboxSpec) -> SandboxSpec:
    """Return the sandbox that is described."""
    return SandboxSpec(
        host=message.host,
        container_id=message.container_id,
        namespace=wire.namespace_from(message.namespace),
        hostname=message.hostname,
        domainname=message.domainname,
        dns=wire.dns_from(message.dns) if message.HasField("dns") else None,
        extra_hosts=wire.extra_hosts_from(message.extra_hosts),
        hosts_path=message.hosts_path,
        resolv_conf_path=message.resolv_conf_path,
        labels=dict(message.labels),
    )


def sandbox_ref(message: endpoint_pb2.SandboxRef, path: str) -> SandboxRef:
    """Return the sandbox that is meant.

    Raises:
        InvalidArgument: None is.
    """
    which = message.WhichOneof("ref")
    if which == "sandbox":
        return message.sandbox
    if which == "spec":
        return sandbox_spec(message.spec)
    raise fields.invalid(path, "name a sandbox, or describe one", "FIELD_MISSING")


def attach_items(messages: Sequence[endpoint_pb2.AttachItem]) -> list[AttachItem]:
    """Return the items of a batch.

    Raises:
        InvalidArgument: Too many or none, or one without a sandbox.
    """
    fields.batch(messages)
    return [
        AttachItem(
            endpoint=endpoint_spec(message.endpoint),
            sandbox=sandbox_ref(message.sandbox, f"items[{index}].sandbox"),
        )
        for index, message in enumerate(messages)
    ]


def detach_items(messages: Sequence[endpoint_pb2.DetachItem]) -> list[EndpointWord]:
    """Return the items of a batch.

    Raises:
        InvalidArgument: Too many or none.
    """
    fields.batch(messages)
    return [
        EndpointWord(endpoint=message.endpoint, network=message.network, delete_sandbox=message.delete_sandbox)
        for message in messages
    ]


def plan_step(step: Step) -> plan_pb2.PlanStep:
    """Return the message of a step of a plan."""
    return plan_pb2.PlanStep(command=step.command, namespace=step.namespace, owner=step.owner, inverse=step.inverse)


def statistics(value: InterfaceStatistics) -> sandbox_pb2.InterfaceStatistics:
    """Return the message of an interface's counters."""
    return sandbox_pb2.InterfaceStatistics(**msgspec.structs.asdict(value))
