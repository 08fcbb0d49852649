"""Protobuf to model and back: the only module of the client that knows both."""

from __future__ import annotations

import dataclasses
import datetime as dt
import ipaddress
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from google.protobuf import message, timestamp_pb2
from netweft.agent.v1 import agent_pb2
from netweft.common.v1 import endpoint_pb2, host_pb2, network_pb2, plan_pb2, sandbox_pb2
from netweft.controller.v1 import endpoint_pb2 as endpoint_service_pb2
from netweft.controller.v1 import event_pb2
from netweft.ipam.v1 import ipam_pb2
from netweft_common import errors, status

from netweft_client import model

T = TypeVar("T")

_SCOPES = {network_pb2.SCOPE_LOCAL: model.Scope.LOCAL, network_pb2.SCOPE_GLOBAL: model.Scope.GLOBAL}
_NETWORK_STATES = {
    network_pb2.NETWORK_STATE_READY: model.NetworkState.READY,
    network_pb2.NETWORK_STATE_DELETING: model.NetworkState.DELETING,
}
_ENDPOINT_STATES = {
    endpoint_pb2.ENDPOINT_STATE_CREATED: model.EndpointState.CREATED,
    endpoint_pb2.ENDPOINT_STATE_JOINING: model.EndpointState.JOINING,
    endpoint_pb2.ENDPOINT_STATE_JOINED: model.EndpointState.JOINED,
    endpoint_pb2.ENDPOINT_STATE_LEAVING: model.EndpointState.LEAVING,
}
_PROTOCOLS = {
    endpoint_pb2.PORT_PROTOCOL_TCP: model.Protocol.TCP,
    endpoint_pb2.PORT_PROTOCOL_UDP: model.Protocol.UDP,
    endpoint_pb2.PORT_PROTOCOL_SCTP: model.Protocol.SCTP,
}
_PROTOCOL_NUMBERS = {protocol: number for number, protocol in _PROTOCOLS.items()}
_SANDBOX_STATES = {
    sandbox_pb2.SANDBOX_STATE_CREATING: model.SandboxState.CREATING,
    sandbox_pb2.SANDBOX_STATE_READY: model.SandboxState.READY,
    sandbox_pb2.SANDBOX_STATE_DELETING: model.SandboxState.DELETING,
}
_HOST_STATES = {
    host_pb2.HOST_STATE_READY: model.HostState.READY,
    host_pb2.HOST_STATE_LOST: model.HostState.LOST,
    host_pb2.HOST_STATE_PENDING: model.HostState.PENDING,
}
_ACTIONS = {
    event_pb2.EVENT_ACTION_CREATED: model.Action.CREATED,
    event_pb2.EVENT_ACTION_UPDATED: model.Action.UPDATED,
    event_pb2.EVENT_ACTION_DELETED: model.Action.DELETED,
}
_OWNER_KINDS = {
    ipam_pb2.OWNER_KIND_UNSPECIFIED: model.OwnerKind.ENDPOINT,
    ipam_pb2.OWNER_KIND_ENDPOINT: model.OwnerKind.ENDPOINT,
    ipam_pb2.OWNER_KIND_GATEWAY: model.OwnerKind.GATEWAY,
    ipam_pb2.OWNER_KIND_AUXILIARY: model.OwnerKind.AUXILIARY,
    ipam_pb2.OWNER_KIND_RESERVATION: model.OwnerKind.RESERVATION,
}
_LEASE_EVENT_TYPES = {
    ipam_pb2.LEASE_EVENT_TYPE_LEASED: model.LeaseEventType.LEASED,
    ipam_pb2.LEASE_EVENT_TYPE_RELEASED: model.LeaseEventType.RELEASED,
    ipam_pb2.LEASE_EVENT_TYPE_EXPIRED: model.LeaseEventType.EXPIRED,
    ipam_pb2.LEASE_EVENT_TYPE_REASSERTED: model.LeaseEventType.REASSERTED,
    ipam_pb2.LEASE_EVENT_TYPE_TRANSFERRED: model.LeaseEventType.TRANSFERRED,
}
_OBJECT_KINDS = {
    agent_pb2.OBJECT_KIND_NETWORK: model.ObjectKind.NETWORK,
    agent_pb2.OBJECT_KIND_SANDBOX: model.ObjectKind.SANDBOX,
    agent_pb2.OBJECT_KIND_ENDPOINT: model.ObjectKind.ENDPOINT,
    agent_pb2.OBJECT_KIND_PEER: model.ObjectKind.PEER,
}
_KIND_NUMBERS = {kind: number for number, kind in _OBJECT_KINDS.items()}


def answer(read: Callable[[Any], T], wire: message.Message) -> T:
    """Return what a reader of this module makes of a server's answer.

    Raises:
        Internal: An address or the like in the answer does not parse: a bug of the server's.
    """
    try:
        return read(wire)
    except ValueError as error:
        raise errors.Internal(
            "ANSWER_MALFORMED",
            f"the server's {wire.DESCRIPTOR.full_name} does not parse: {error}; upgrade the older side",
        ) from error


# Networks


def network(wire: network_pb2.Network) -> model.Network:
    """Read a network."""
    return model.Network(
        id=wire.id,
        name=wire.name,
        driver=wire.driver,
        scope=_SCOPES.get(wire.scope, model.Scope.UNKNOWN),
        host_id=wire.host_id,
        subnets=tuple(subnet(item) for item in wire.subnets),
        options=dict(wire.options),
        labels=dict(wire.labels),
        internal=wire.internal,
        attachable=wire.attachable,
        enable_ipv4=wire.enable_ipv4,
        enable_ipv6=wire.enable_ipv6,
        ipam_driver=wire.ipam_driver,
        address_space=wire.address_space,
        claims=dict(wire.claims),
        state=_NETWORK_STATES.get(wire.state, model.NetworkState.UNKNOWN),
        revision=wire.revision,
        create_time=_time(wire, "create_time"),
    )


def subnet(wire: network_pb2.Subnet) -> model.Subnet:
    """Read a subnet."""
    return model.Subnet(
        subnet=_prefix(wire.subnet),
        gateway=_address(wire.gateway),
        ip_range=_prefix(wire.ip_range),
        aux_addresses={name: ipaddress.ip_address(text) for name, text in wire.aux_addresses.items()},
        pool_id=wire.pool_id,
    )


def subnet_spec(spec: model.SubnetSpec) -> network_pb2.Subnet:
    """Write a subnet that is asked for."""
    return network_pb2.Subnet(
        subnet=str(spec.subnet),
        gateway=str(spec.gateway),
        ip_range=str(spec.ip_range),
        aux_addresses={name: str(address) for name, address in spec.aux_addresses.items()},
    )


# Endpoints


def endpoint(wire: endpoint_pb2.Endpoint) -> model.Endpoint:
    """Read an endpoint."""
    return model.Endpoint(
        id=wire.id,
        name=wire.name,
        network_id=wire.network_id,
        sandbox_id=wire.sandbox_id,
        host_id=wire.host_id,
        mac_address=wire.mac_address,
        addresses=tuple(ipaddress.ip_interface(text) for text in wire.addresses),
        dns_names=tuple(wire.dns_names),
        interface_name=wire.interface_name,
        gateway_priority=wire.gateway_priority,
        labels=dict(wire.labels),
        options=dict(wire.options),
        ports=tuple(published_port(item) for item in wire.ports),
        bandwidth=bandwidth(wire.bandwidth) if wire.HasField("bandwidth") else None,
        link_local_addresses=tuple(ipaddress.ip_interface(text) for text in wire.link_local_addresses),
        routes=tuple(
            model.StaticRoute(
                destination=ipaddress.ip_network(item.destination), next_hop=_address(item.next_hop) or ""
            )
            for item in wire.routes
        ),
        sysctls=dict(wire.sysctls),
        state=_ENDPOINT_STATES.get(wire.state, model.EndpointState.UNKNOWN),
        status_message=wire.status_message,
        revision=wire.revision,
        create_time=_time(wire, "create_time"),
    )


def endpoint_spec(spec: model.EndpointSpec) -> endpoint_service_pb2.EndpointSpec:
    """Write an endpoint that is asked for."""
    return endpoint_service_pb2.EndpointSpec(
        network=spec.network,
        name=spec.name,
        addresses=[str(address) for address in spec.addresses],
        mac_address=spec.mac_address,
        dns_names=spec.dns_names,
        interface_name=spec.interface_name,
        gateway_priority=spec.gateway_priority,
        labels=spec.labels,
        options=spec.options,
        ports=[_published_port(item) for item in spec.ports],
        bandwidth=None if spec.bandwidth is None else _bandwidth(spec.bandwidth),
        link_local_addresses=[str(address) for address in spec.link_local_addresses],
        routes=[
            endpoint_pb2.StaticRoute(destination=str(item.destination), next_hop=str(item.next_hop))
            for item in spec.routes
        ],
        sysctls=spec.sysctls,
    )


def published_port(wire: endpoint_pb2.PublishedPort) -> model.PublishedPort:
    """Read a published port."""
    return model.PublishedPort(
        container_port=wire.container_port,
        protocol=_PROTOCOLS.get(wire.protocol, model.Protocol.TCP),
        host_address=wire.host_address,
        host_port=wire.host_port,
        host_port_end=wire.host_port_end,
        assigned_port=wire.assigned_port,
    )


def bandwidth(wire: endpoint_pb2.Bandwidth) -> model.Bandwidth:
    """Read limits of traffic."""
    return model.Bandwidth(
        ingress_bits_per_second=wire.ingress_bits_per_second,
        ingress_burst_bits=wire.ingress_burst_bits,
        egress_bits_per_second=wire.egress_bits_per_second,
        egress_burst_bits=wire.egress_burst_bits,
    )


def _published_port(port: model.PublishedPort) -> endpoint_pb2.PublishedPort:
    return endpoint_pb2.PublishedPort(
        protocol=_PROTOCOL_NUMBERS[port.protocol],
        container_port=port.container_port,
        host_address=port.host_address,
        host_port=port.host_port,
        host_port_end=port.host_port_end,
    )


def _bandwidth(value: model.Bandwidth) -> endpoint_pb2.Bandwidth:
    return endpoint_pb2.Bandwidth(**dataclasses.asdict(value))


def attach_item(item: model.AttachItem) -> endpoint_service_pb2.AttachItem:
    """Write one item of a batch to attach."""
    return endpoint_service_pb2.AttachItem(endpoint=endpoint_spec(item.endpoint), sandbox=sandbox_ref(item.sandbox))


def attach_result(wire: endpoint_service_pb2.AttachResult) -> model.Attached | errors.NetweftError:
    """Read one outcome of a batch to attach."""
    error = status.from_item_status(wire.status)
    if error is not None:
        return error
    return model.Attached(
        endpoint=endpoint(wire.endpoint),
        sandbox=sandbox(wire.sandbox),
        gateways=tuple(ipaddress.ip_address(text) for text in wire.gateways),
    )


def detach_item(item: model.DetachItem) -> endpoint_service_pb2.DetachItem:
    """Write one item of a batch to detach."""
    return endpoint_service_pb2.DetachItem(
        endpoint=item.endpoint, network=item.network, delete_sandbox=item.delete_sandbox
    )


def plan_step(wire: plan_pb2.PlanStep) -> model.PlanStep:
    """Read a step of a plan."""
    return model.PlanStep(command=wire.command, namespace=wire.namespace, owner=wire.owner, inverse=wire.inverse)


def host_plan(wire: endpoint_service_pb2.HostPlan) -> model.HostPlan:
    """Read the plan of one host."""
    return model.HostPlan(host_id=wire.host_id, steps=tuple(plan_step(step) for step in wire.steps))


# Sandboxes


def sandbox(wire: sandbox_pb2.Sandbox) -> model.Sandbox:
    """Read a sandbox."""
    dns = wire.dns
    return model.Sandbox(
        id=wire.id,
        container_id=wire.container_id,
        host_id=wire.host_id,
        namespace=_namespace(wire.namespace),
        netns_path=wire.netns_path,
        hostname=wire.hostname,
        domainname=wire.domainname,
        dns=model.Dns(servers=tuple(dns.servers), search=tuple(dns.search), options=tuple(dns.options))
        if wire.HasField("dns")
        else None,
        extra_hosts=tuple(
            model.ExtraHost(
                name=item.name,
                address=item.address if item.address == model.HOST_GATEWAY else ipaddress.ip_address(item.address),
            )
            for item in wire.extra_hosts
        ),
        hosts_path=wire.hosts_path,
        resolv_conf_path=wire.resolv_conf_path,
        labels=dict(wire.labels),
        state=_SANDBOX_STATES.get(wire.state, model.SandboxState.UNKNOWN),
        status_message=wire.status_message,
        revision=wire.revision,
        create_time=_time(wire, "create_time"),
    )


def sandbox_spec(spec: model.SandboxSpec) -> endpoint_service_pb2.SandboxSpec:
    """Write a sandbox that is asked for."""
    dns = spec.dns
    return endpoint_service_pb2.SandboxSpec(
        host=spec.host,
        container_id=spec.container_id,
        namespace=_namespace_spec(spec.namespace),
        hostname=spec.hostname,
        domainname=spec.domainname,
        dns=None if dns is None else sandbox_pb2.DnsConfig(servers=dns.servers, search=dns.search, options=dns.options),
        extra_hosts=[sandbox_pb2.ExtraHost(name=item.name, address=str(item.address)) for item in spec.extra_hosts],
        hosts_path=spec.hosts_path,
        resolv_conf_path=spec.resolv_conf_path,
        labels=spec.labels,
    )


def sandbox_ref(ref: model.SandboxRef) -> endpoint_service_pb2.SandboxRef:
    """Write the sandbox that an endpoint joins."""
    if isinstance(ref, str):
        return endpoint_service_pb2.SandboxRef(sandbox=ref)
    return endpoint_service_pb2.SandboxRef(spec=sandbox_spec(ref))


def _namespace(wire: sandbox_pb2.Namespace) -> model.Namespace:
    match wire.WhichOneof("source"):
        case "path":
            return model.NamespacePath(path=wire.path)
        case "pid":
            return model.NamespacePid(pid=wire.pid)
        case "host":
            return model.HostNamespace()
        case "handover":
            return model.HandoverNamespace()
        case _:
            return model.NewNamespace()


def _namespace_spec(namespace: model.Namespace) -> sandbox_pb2.Namespace:
    match namespace:
        case model.NamespacePath(path=path):
            return sandbox_pb2.Namespace(path=path)
        case model.NamespacePid(pid=pid):
            return sandbox_pb2.Namespace(pid=pid)
        case model.HostNamespace():
            return sandbox_pb2.Namespace(host=True)
        case model.HandoverNamespace():
            return sandbox_pb2.Namespace(handover=True)
        case _:
            return sandbox_pb2.Namespace(create=True)


def interface_statistics(wire: sandbox_pb2.InterfaceStatistics) -> model.InterfaceStatistics:
    """Read an interface's counters."""
    names = [item.name for item in dataclasses.fields(model.InterfaceStatistics)]
    return model.InterfaceStatistics(**{name: getattr(wire, name) for name in names})


# Hosts


def host(wire: host_pb2.Host) -> model.Host:
    """Read a host."""
    return model.Host(
        id=wire.id,
        name=wire.name,
        agent_target=wire.agent_target,
        vtep_address=_address(wire.vtep_address),
        facts=host_facts(wire.facts),
        labels=dict(wire.labels),
        state=_HOST_STATES.get(wire.state, model.HostState.UNKNOWN),
        heartbeat_time=_time(wire, "heartbeat_time"),
        revision=wire.revision,
        cordoned=wire.cordoned,
        token_expire_time=_time(wire, "token_expire_time"),
        drift=drift(wire.drift) if wire.HasField("drift") else None,
        narrow_paths=narrow_paths(wire.narrow_paths.paths),
    )


def narrow_paths(wire: Iterable[host_pb2.NarrowPath]) -> tuple[model.NarrowPath, ...]:
    """Read the narrow ways of a host or a network."""
    return tuple(
        model.NarrowPath(
            host_id=one.host_id,
            peer_host_id=one.peer_host_id,
            mtu_bytes=one.mtu_bytes,
            needed_bytes=one.needed_bytes,
        )
        for one in wire
    )


def drift(wire: host_pb2.Drift) -> model.Drift:
    """Read what an agent had to repair."""
    return model.Drift(
        operations=wire.operations,
        repairs=tuple(
            model.Repair(
                time=item.time.ToDatetime(tzinfo=dt.UTC),
                object=item.object,
                namespace=item.namespace,
                command=item.command,
            )
            for item in wire.repairs
        ),
    )


def host_facts(wire: host_pb2.HostFacts) -> model.HostFacts:
    """Read what an agent found out of its host."""
    return model.HostFacts(
        agent_version=wire.agent_version,
        kernel_release=wire.kernel_release,
        boot_id=wire.boot_id,
        features=tuple(wire.features),
        drivers=tuple(driver(item) for item in wire.drivers),
        underlay_mtu_bytes=wire.underlay_mtu_bytes,
        routes=tuple(wire.routes),
        name_servers=tuple(wire.name_servers),
        bound_networks=tuple(wire.bound_networks),
    )


def driver(wire: host_pb2.DriverInfo) -> model.Driver:
    """Read what a driver promises."""
    return model.Driver(
        name=wire.name,
        scope=_SCOPES.get(wire.scope, model.Scope.UNKNOWN),
        claims=tuple(
            model.Claim(name=item.name, minimum=item.minimum, maximum=item.maximum, option=item.option)
            for item in wire.claims
        ),
        options=tuple(
            model.DriverOption(
                name=item.name,
                aliases=tuple(item.aliases),
                type=item.type,
                default_value=item.default_value,
                choices=tuple(item.choices),
                minimum=item.minimum,
                maximum=item.maximum,
                pattern=item.pattern,
                description=item.description,
            )
            for item in wire.options
        ),
        needs_addresses=wire.needs_addresses,
        single_network=wire.single_network,
    )


# Events


def event_batch(wire: event_pb2.WatchResponse) -> model.EventBatch:
    """Read a message of a watch; events of kinds that this client does not know are left out."""
    events = tuple(event(item) for item in wire.events if item.WhichOneof("object") in _EVENT_OBJECTS)
    return model.EventBatch(events=events, revision=wire.revision)


def event(wire: event_pb2.Event) -> model.Event:
    """Read an event."""
    name = wire.WhichOneof("object") or ""
    return model.Event(
        revision=wire.revision,
        time=_time(wire, "time"),
        action=_ACTIONS.get(wire.action, model.Action.UNKNOWN),
        object=_EVENT_OBJECTS[name](getattr(wire, name)),
    )


_EVENT_OBJECTS: dict[str | None, Callable[[Any], model.Network | model.Endpoint | model.Sandbox | model.Host]] = {
    "network": network,
    "endpoint": endpoint,
    "sandbox": sandbox,
    "host": host,
}


# IPAM


def pool(wire: ipam_pb2.Pool) -> model.Pool:
    """Read a pool."""
    use = wire.use
    return model.Pool(
        id=wire.id,
        address_space=wire.address_space,
        subnet=ipaddress.ip_network(wire.subnet),
        ip_range=_prefix(wire.ip_range),
        labels=dict(wire.labels),
        use=model.PoolUse(
            capacity=use.capacity,
            leased=use.leased,
            quarantined=use.quarantined,
            reserved=use.reserved,
            next_free_time=_time(use, "next_free_time"),
        ),
        create_time=_time(wire, "create_time"),
    )


def lease(wire: ipam_pb2.Lease) -> model.Lease:
    """Read a lease."""
    return model.Lease(
        pool_id=wire.pool_id,
        address=ipaddress.ip_interface(wire.address),
        owner=model.Owner(
            key=wire.owner.key,
            host_id=wire.owner.host_id,
            kind=_OWNER_KINDS.get(wire.owner.kind, model.OwnerKind.UNKNOWN),
        ),
        epoch=wire.epoch,
        create_time=_time(wire, "create_time"),
        expire_time=_time(wire, "expire_time"),
    )


def lease_event(wire: ipam_pb2.LeaseEvent) -> model.LeaseEvent:
    """Read what happened to an address."""
    return model.LeaseEvent(
        id=wire.id,
        type=_LEASE_EVENT_TYPES.get(wire.type, model.LeaseEventType.UNKNOWN),
        time=_time(wire, "time"),
        address=ipaddress.ip_interface(wire.address),
        owner_key=wire.owner_key,
        host_id=wire.host_id,
        epoch=wire.epoch,
    )


# One host's kernel


def object_ref(ref: model.ObjectRef | None) -> agent_pb2.ObjectRef | None:
    """Write the object that an agent is asked about; None: all of them."""
    return None if ref is None else agent_pb2.ObjectRef(kind=_KIND_NUMBERS[ref.kind], id=ref.id)


def observation(wire: agent_pb2.ObserveResponse) -> model.Observation:
    """Read what an agent found in its kernel."""
    return model.Observation(
        resources=tuple(wire.resources),
        drift=tuple(plan_step(step) for step in wire.drift),
        statuses=tuple(object_status(item) for item in wire.statuses),
    )


def object_status(wire: agent_pb2.ObjectStatus) -> model.ObjectStatus:
    """Read the state of one object on its host."""
    return model.ObjectStatus(
        object=model.ObjectRef(kind=_OBJECT_KINDS.get(wire.object.kind, model.ObjectKind.UNKNOWN), id=wire.object.id),
        revision=wire.revision,
        error=wire.status.message,
        reason=wire.status.reason,
        netns_path=wire.netns_path,
        interface_name=wire.interface_name,
        was_applied=wire.was_applied,
    )


def _address(text: str) -> model.Address | None:
    return ipaddress.ip_address(text) if text else None


def _prefix(text: str) -> model.Prefix | None:
    return ipaddress.ip_network(text) if text else None


def _time(wire: message.Message, name: str) -> dt.datetime | None:
    if not wire.HasField(name):
        return None
    stamp: timestamp_pb2.Timestamp = getattr(wire, name)
    return stamp.ToDatetime(tzinfo=dt.UTC)
