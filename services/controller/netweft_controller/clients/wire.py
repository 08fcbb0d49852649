"""Objects as messages of netweft.common.v1 and netweft.agent.v1, and back."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from netweft.agent.v1 import agent_pb2
from netweft.common.v1 import endpoint_pb2, host_pb2, network_pb2, sandbox_pb2
from netweft.controller.v1 import host_pb2 as controller_host_pb2
from netweft_common import status

from netweft_controller.domain.changes import Change, HostKind, Status
from netweft_controller.domain.objects import (
    Bandwidth,
    ClaimInfo,
    Dns,
    Drift,
    DriverInfo,
    Endpoint,
    EndpointState,
    ExtraHost,
    Host,
    HostFacts,
    HostState,
    Namespace,
    NamespaceSource,
    NarrowPath,
    Network,
    NetworkState,
    OptionInfo,
    Peer,
    PublishedPort,
    Record,
    Repair,
    Sandbox,
    SandboxState,
    Scope,
    StaticRoute,
    Subnet,
)

_SCOPES = {Scope.LOCAL: network_pb2.SCOPE_LOCAL, Scope.GLOBAL: network_pb2.SCOPE_GLOBAL}
_SCOPE_OF = {number: scope for scope, number in _SCOPES.items()}
_NETWORK_STATES = {
    NetworkState.READY: network_pb2.NETWORK_STATE_READY,
    NetworkState.DELETING: network_pb2.NETWORK_STATE_DELETING,
}
_ENDPOINT_STATES = {
    EndpointState.CREATED: endpoint_pb2.ENDPOINT_STATE_CREATED,
    EndpointState.JOINING: endpoint_pb2.ENDPOINT_STATE_JOINING,
    EndpointState.JOINED: endpoint_pb2.ENDPOINT_STATE_JOINED,
    EndpointState.LEAVING: endpoint_pb2.ENDPOINT_STATE_LEAVING,
}
_SANDBOX_STATES = {
    SandboxState.CREATING: sandbox_pb2.SANDBOX_STATE_CREATING,
    SandboxState.READY: sandbox_pb2.SANDBOX_STATE_READY,
    SandboxState.DELETING: sandbox_pb2.SANDBOX_STATE_DELETING,
}
_PROTOCOLS = {
    "tcp": endpoint_pb2.PORT_PROTOCOL_TCP,
    "udp": endpoint_pb2.PORT_PROTOCOL_UDP,
    "sctp": endpoint_pb2.PORT_PROTOCOL_SCTP,
}
_PROTOCOL_OF = {number: name for name, number in _PROTOCOLS.items()} | {endpoint_pb2.PORT_PROTOCOL_UNSPECIFIED: "tcp"}
_HOST_STATES = {
    HostState.READY: host_pb2.HOST_STATE_READY,
    HostState.LOST: host_pb2.HOST_STATE_LOST,
    HostState.PENDING: host_pb2.HOST_STATE_PENDING,
}
_KINDS = {
    HostKind.NETWORK: agent_pb2.OBJECT_KIND_NETWORK,
    HostKind.SANDBOX: agent_pb2.OBJECT_KIND_SANDBOX,
    HostKind.ENDPOINT: agent_pb2.OBJECT_KIND_ENDPOINT,
    HostKind.PEER: agent_pb2.OBJECT_KIND_PEER,
}
_KIND_OF = {number: kind for kind, number in _KINDS.items()}


def network(record: Record[Network]) -> network_pb2.Network:
    """Return the message of a network."""
    value = record.value
    message = network_pb2.Network(
        id=value.id,
        name=value.name,
        driver=value.driver,
        scope=_SCOPES[value.scope],
        host_id=value.host_id,
        subnets=[subnet(one) for one in value.subnets],
        options=value.options,
        labels=value.labels,
        internal=value.internal,
        enable_ipv4=value.enable_ipv4,
        enable_ipv6=value.enable_ipv6,
        claims=value.claims,
        state=_NETWORK_STATES[value.state],
        revision=record.revision,
        ipam_driver=value.ipam_driver,
        address_space=value.address_space,
        attachable=value.attachable,
    )
    if record.created_ms:
        message.create_time.FromMilliseconds(record.created_ms)
    return message


def subnet(value: Subnet) -> network_pb2.Subnet:
    """Return the message of a subnet."""
    return network_pb2.Subnet(
        subnet=value.subnet,
        gateway=value.gateway,
        ip_range=value.ip_range,
        aux_addresses=value.aux_addresses,
        pool_id=value.pool_id,
    )


def subnet_from(message: network_pb2.Subnet) -> Subnet:
    """Return the subnet of a message; the pool id is the controller's to set."""
    return Subnet(
        subnet=message.subnet,
        gateway=message.gateway,
        ip_range=message.ip_range,
        aux_addresses=dict(message.aux_addresses),
    )


def endpoint(record: Record[Endpoint]) -> endpoint_pb2.Endpoint:
    """Return the message of an endpoint."""
    value = record.value
    message = endpoint_pb2.Endpoint(
        id=value.id,
        name=value.name,
        network_id=value.network_id,
        sandbox_id=value.sandbox_id,
        host_id=value.host_id,
        mac_address=value.mac_address,
        addresses=[lease.address for lease in value.leases],
        dns_names=value.dns_names,
        interface_name=value.interface_name,
        gateway_priority=value.gateway_priority,
        labels=value.labels,
        options=value.options,
        state=_ENDPOINT_STATES[value.state],
        revision=record.revision,
        lease_epochs=[lease.epoch for lease in value.leases],
        status_message=value.status_message,
    )
    if value.ports:
        message.MergeFromString(_published_ports(_Same(value.ports)))
    # Most endpoints have none of these, and an assignment that sets nothing costs as much as one that does.
    if value.link_local:
        message.link_local_addresses.extend(value.link_local)
    if value.routes:
        message.routes.extend(static_route(one) for one in value.routes)
    if value.sysctls:
        message.sysctls.update(value.sysctls)
    if value.bandwidth is not None:
        message.bandwidth.CopyFrom(bandwidth(value.bandwidth))
    if record.created_ms:
        message.create_time.FromMilliseconds(record.created_ms)
    return message


@functools.lru_cache(maxsize=8)
def _published_ports(same: _Same) -> bytes:
    """Write the part of an endpoint that its ports are, once for all who are told of them: host, follower, caller.

    As bytes: to read them takes a tenth of what it takes to copy messages.
    """
    ports = [published_port(one) for one in same.record]  # type: ignore[attr-defined]  # `endpoint` gives ports
    return endpoint_pb2.Endpoint(ports=ports).SerializeToString()


def published_port(value: PublishedPort) -> endpoint_pb2.PublishedPort:
    """Return the message of a published port."""
    if not value.host_address and not value.host_port_end:
        # As nearly all are, of which there may be thousands.
        return endpoint_pb2.PublishedPort(
            protocol=_PROTOCOLS[value.protocol],
            container_port=value.container_port,
            host_port=value.host_port,
            assigned_port=value.assigned_port,
        )
    return endpoint_pb2.PublishedPort(
        protocol=_PROTOCOLS[value.protocol],
        container_port=value.container_port,
        host_address=value.host_address,
        host_port=value.host_port,
        host_port_end=value.host_port_end,
        assigned_port=value.assigned_port,
    )


def published_port_from(message: endpoint_pb2.PublishedPort) -> PublishedPort:
    """Return the published port of a message; a protocol that is not known here is kept as its number."""
    return PublishedPort(
        protocol=_PROTOCOL_OF.get(message.protocol, str(message.protocol)),
        container_port=message.container_port,
        host_address=message.host_address,
        host_port=message.host_port,
        host_port_end=message.host_port_end,
        assigned_port=message.assigned_port,
    )


def static_route(value: StaticRoute) -> endpoint_pb2.StaticRoute:
    """Return the message of a static route."""
    return endpoint_pb2.StaticRoute(destination=value.destination, next_hop=value.next_hop)


def static_route_from(message: endpoint_pb2.StaticRoute) -> StaticRoute:
    """Return the static route of a message."""
    return StaticRoute(destination=message.destination, next_hop=message.next_hop)


def bandwidth(value: Bandwidth) -> endpoint_pb2.Bandwidth:
    """Return the message of limits of traffic."""
    return endpoint_pb2.Bandwidth(
        ingress_bits_per_second=value.ingress_rate,
        ingress_burst_bits=value.ingress_burst,
        egress_bits_per_second=value.egress_rate,
        egress_burst_bits=value.egress_burst,
    )


def bandwidth_from(message: endpoint_pb2.Bandwidth) -> Bandwidth:
    """Return the limits of traffic of a message."""
    return Bandwidth(
        ingress_rate=message.ingress_bits_per_second,
        ingress_burst=message.ingress_burst_bits,
        egress_rate=message.egress_bits_per_second,
        egress_burst=message.egress_burst_bits,
    )


def drift(value: Drift) -> host_pb2.Drift:
    """Return the message of what an agent had to repair."""
    message = host_pb2.Drift(operations=value.operations)
    for one in value.repairs:
        repair = message.repairs.add(object=one.object, namespace=one.namespace, command=one.command)
        repair.time.FromMilliseconds(one.time_ms)
    return message


def drift_from(message: host_pb2.Drift) -> Drift:
    """Return what an agent had to repair."""
    return Drift(
        operations=message.operations,
        repairs=tuple(
            Repair(time_ms=one.time.ToMilliseconds(), object=one.object, namespace=one.namespace, command=one.command)
            for one in message.repairs
        ),
    )


def narrow_path(value: NarrowPath) -> host_pb2.NarrowPath:
    """Return the message of a narrow way."""
    return host_pb2.NarrowPath(
        host_id=value.host_id,
        peer_host_id=value.peer_host_id,
        mtu_bytes=value.mtu_bytes,
        needed_bytes=value.needed_bytes,
    )


def narrow_paths_from(message: host_pb2.NarrowPaths) -> tuple[NarrowPath, ...]:
    """Return the narrow ways that an agent has found."""
    return tuple(
        NarrowPath(
            host_id=one.host_id,
            peer_host_id=one.peer_host_id,
            mtu_bytes=one.mtu_bytes,
            needed_bytes=one.needed_bytes,
        )
        for one in message.paths
    )


def sandbox(record: Record[Sandbox]) -> sandbox_pb2.Sandbox:
    """Return the message of a sandbox."""
    value = record.value
    message = sandbox_pb2.Sandbox(
        id=value.id,
        container_id=value.container_id,
        host_id=value.host_id,
        hostname=value.hostname,
        domainname=value.domainname,
        extra_hosts=[sandbox_pb2.ExtraHost(name=one.name, address=one.address) for one in value.extra_hosts],
        hosts_path=value.hosts_path,
        resolv_conf_path=value.resolv_conf_path,
        labels=value.labels,
        state=_SANDBOX_STATES[value.state],
        revision=record.revision,
        netns_path=value.netns_path,
        status_message=value.status_message,
    )
    source = value.namespace.source
    if source is NamespaceSource.PATH:
        message.namespace.path = value.namespace.path
    elif source is NamespaceSource.PID:
        message.namespace.pid = value.namespace.pid
    elif source is NamespaceSource.HOST:
        message.namespace.host = True
    elif source is NamespaceSource.HANDOVER:
        message.namespace.handover = True
    else:
        message.namespace.create = True
    if value.dns is not None:
        message.dns.CopyFrom(
            sandbox_pb2.DnsConfig(servers=value.dns.servers, search=value.dns.search, options=value.dns.options)
        )
    if record.created_ms:
        message.create_time.FromMilliseconds(record.created_ms)
    return message


def namespace_from(message: sandbox_pb2.Namespace) -> Namespace:
    """Return the namespace of a message; one that says nothing means: create."""
    source = message.WhichOneof("source")
    if source == "path":
        return Namespace(source=NamespaceSource.PATH, path=message.path)
    if source == "pid":
        return Namespace(source=NamespaceSource.PID, pid=message.pid)
    if source == "host" and message.host:
        return Namespace(source=NamespaceSource.HOST)
    if source == "handover" and message.handover:
        return Namespace(source=NamespaceSource.HANDOVER)
    return Namespace()


def dns_from(message: sandbox_pb2.DnsConfig) -> Dns:
    """Return the resolver configuration of a message."""
    return Dns(servers=tuple(message.servers), search=tuple(message.search), options=tuple(message.options))


def extra_hosts_from(messages: Iterable[sandbox_pb2.ExtraHost]) -> tuple[ExtraHost, ...]:
    """Return the further lines of hosts of messages."""
    return tuple(ExtraHost(name=message.name, address=message.address) for message in messages)


def host(record: Record[Host], state: HostState, heartbeat_ms: int) -> host_pb2.Host:
    """Return the message of a host; a heartbeat time of 0 is none."""
    value = record.value
    message = host_pb2.Host(
        id=value.id,
        name=value.name,
        agent_target=value.agent_target,
        vtep_address=value.vtep_address,
        facts=_facts(value.facts),
        labels=value.labels,
        state=_HOST_STATES[state],
        revision=record.revision,
        cordoned=value.cordoned,
        tls_server_name=value.tls_server_name,
    )
    if value.is_pending:
        message.token_expire_time.FromMilliseconds(value.token_expires_ms)
    if value.drift is not None:
        message.drift.CopyFrom(drift(value.drift))
    if value.narrow_paths:
        message.narrow_paths.paths.extend(map(narrow_path, value.narrow_paths))
    if heartbeat_ms:
        message.heartbeat_time.FromMilliseconds(heartbeat_ms)
    return message


def host_from(message: host_pb2.Host) -> Host:
    """Return the host of a message."""
    return Host(
        id=message.id,
        name=message.name,
        agent_target=message.agent_target,
        vtep_address=message.vtep_address,
        facts=_facts_from(message.facts),
        labels=dict(message.labels),
        tls_server_name=message.tls_server_name,
    )


def peer(value: Peer) -> endpoint_pb2.Peer:
    """Return the message of a peer."""
    return endpoint_pb2.Peer(
        endpoint_id=value.endpoint.id,
        network_id=value.endpoint.network_id,
        host_id=value.endpoint.host_id,
        vtep_address=value.vtep_address,
        mac_address=value.endpoint.mac_address,
        addresses=[lease.address for lease in value.endpoint.leases],
        revision=value.revision,
    )


def change(value: Change) -> agent_pb2.Change:
    """Return the message of a change."""
    if value.put is None:
        return agent_pb2.Change(revision=value.revision, gone=agent_pb2.ObjectRef(kind=_KINDS[value.kind], id=value.id))
    if value.kind is HostKind.ENDPOINT:
        return agent_pb2.Change(revision=value.revision, endpoint=endpoint(value.put))  # type: ignore[arg-type]  # by kind
    if value.kind is HostKind.PEER:
        return agent_pb2.Change(revision=value.revision, peer=peer(value.put))  # type: ignore[arg-type]  # by kind
    # One network stands in every attach to it, one sandbox in a few: the message is made once a version.
    if value.kind is HostKind.NETWORK:
        return agent_pb2.Change(revision=value.revision, network=_cached_network(_Same(value.put)))
    return agent_pb2.Change(revision=value.revision, sandbox=sandbox(value.put))  # type: ignore[arg-type]  # by kind


def watch_response(
    values: Sequence[Change],
    *,
    revision: int,
    snapshot: bool,
    snapshot_end: bool,
    store_id: str,
    report_now: bool = False,
) -> bytes:
    """Return the message WatchHostResponse of one batch for a host, as bytes: the server sends them as they are.

    Each of a network's hosts is told the same of an endpoint elsewhere, so what stands for it is made once for all of
    them (docs/decisions/0025-told-once-for-all-hosts.md).
    """
    parts: list[bytes] = []
    for value in values:
        if value.kind is HostKind.PEER and value.put is not None:
            put = value.put
            parts.append(_encoded_peer(_Same(put.endpoint), put.revision, put.vtep_address, value.revision))  # type: ignore[union-attr]  # by kind
        else:
            parts.append(_encoded(change(value)))
    head = controller_host_pb2.WatchHostResponse(
        revision=revision,
        snapshot=snapshot,
        snapshot_end=snapshot_end,
        store_id=store_id,
        report_now=report_now,
    )
    # Parts of a message, one after the other, are the message: repeated fields add up.
    parts.append(head.SerializeToString())
    return b"".join(parts)


def _encoded(message: agent_pb2.Change) -> bytes:
    """Return the part of the message that is this change."""
    return controller_host_pb2.WatchHostResponse(changes=[message]).SerializeToString()


@functools.lru_cache(maxsize=32768)
def _encoded_peer(same: _Same, revision: int, vtep_address: str, told_at: int) -> bytes:
    value = Peer(endpoint=same.record, revision=revision, vtep_address=vtep_address)  # type: ignore[arg-type]  # of a peer
    return _encoded(agent_pb2.Change(revision=told_at, peer=peer(value)))


class _Same:
    """Compares records, or parts of them, by identity: values hold mappings, which have no hash, or are long."""

    __slots__ = ("record",)

    def __init__(self, record: object) -> None:
        self.record = record

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.record is other.record

    def __hash__(self) -> int:
        return id(self.record)


@functools.lru_cache(maxsize=256)
def _cached_network(same: _Same) -> network_pb2.Network:
    return network(same.record)  # type: ignore[arg-type]  # `change` gives records of networks only


def status_from(message: agent_pb2.ObjectStatus) -> Status | None:
    """Return a host's status of an object, or None for a kind that is not known here."""
    kind = _KIND_OF.get(message.object.kind)
    return None if kind is None else _status(kind, message.object.id, message, _ports_of(message))


def status_of(value: Change, message: agent_pb2.ObjectStatus) -> Status:
    """Return a host's status of a change; the order of the answer, not its content, says of which."""
    ports = _ports_of(message)
    if message.assigned_ports and value.kind is HostKind.ENDPOINT and value.put is not None:
        wanted: tuple[PublishedPort, ...] = value.put.value.ports  # type: ignore[union-attr]  # by kind
        if len(wanted) == len(message.assigned_ports):
            ports = tuple(map(PublishedPort.with_assigned, wanted, message.assigned_ports))
    return _status(value.kind, value.id, message, ports)


def _ports_of(message: agent_pb2.ObjectStatus) -> tuple[PublishedPort, ...]:
    return tuple(published_port_from(one) for one in message.ports)


def _status(kind: HostKind, id_: str, message: agent_pb2.ObjectStatus, ports: tuple[PublishedPort, ...]) -> Status:
    return Status(
        kind=kind,
        id=id_,
        revision=message.revision,
        error=status.from_item_status(message.status),
        netns_path=message.netns_path,
        interface_name=message.interface_name,
        ports=ports,
        was_applied=message.was_applied,
    )


def _facts(value: HostFacts) -> host_pb2.HostFacts:
    return host_pb2.HostFacts(
        agent_version=value.agent_version,
        kernel_release=value.kernel_release,
        boot_id=value.boot_id,
        features=value.features,
        drivers=[_driver(one) for one in value.drivers],
        underlay_mtu_bytes=value.underlay_mtu_bytes,
        routes=value.routes,
        name_servers=value.name_servers,
        bound_networks=value.bound_networks,
    )


def _driver(value: DriverInfo) -> host_pb2.DriverInfo:
    return host_pb2.DriverInfo(
        name=value.name,
        scope=_SCOPES[value.scope],
        claims=[
            host_pb2.ClaimInfo(name=one.name, minimum=one.minimum, maximum=one.maximum, option=one.option)
            for one in value.claims
        ],
        options=[
            host_pb2.OptionInfo(
                name=one.name,
                aliases=one.aliases,
                type=one.type,
                default_value=one.default_value,
                choices=one.choices,
                minimum=one.minimum,
                maximum=one.maximum,
                description=one.description,
                pattern=one.pattern,
            )
            for one in value.options
        ],
        needs_addresses=value.needs_addresses,
        single_network=value.single_network,
    )


def _facts_from(message: host_pb2.HostFacts) -> HostFacts:
    return HostFacts(
        agent_version=message.agent_version,
        kernel_release=message.kernel_release,
        boot_id=message.boot_id,
        features=tuple(message.features),
        drivers=tuple(_driver_from(one) for one in message.drivers),
        underlay_mtu_bytes=message.underlay_mtu_bytes,
        routes=tuple(message.routes),
        name_servers=tuple(message.name_servers),
        bound_networks=tuple(message.bound_networks),
    )


def _driver_from(message: host_pb2.DriverInfo) -> DriverInfo:
    return DriverInfo(
        name=message.name,
        scope=_SCOPE_OF.get(message.scope, Scope.LOCAL),
        claims=tuple(
            ClaimInfo(name=one.name, minimum=one.minimum, maximum=one.maximum, option=one.option)
            for one in message.claims
        ),
        options=tuple(
            OptionInfo(
                name=one.name,
                aliases=tuple(one.aliases),
                type=one.type,
                default_value=one.default_value,
                choices=tuple(one.choices),
                minimum=one.minimum,
                maximum=one.maximum,
                description=one.description,
                pattern=one.pattern,
            )
            for one in message.options
        ),
        needs_addresses=message.needs_addresses,
        single_network=message.single_network,
    )
