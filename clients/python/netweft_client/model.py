"""Values that go in and come out of the client: frozen, typed, free of protobuf.

What comes out has parsed addresses and times; what goes in (`...Spec`, `...Item`) takes addresses as text too, for the
server checks them and names the field. An empty text or mapping means "not given", as the protos say.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import ipaddress
from collections.abc import Mapping
from dataclasses import field
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network
AddressLike = str | Address
PrefixLike = str | Prefix


HOST_GATEWAY = "host-gateway"
"""As an extra host's address (Docker's word): the address by which the sandbox reaches its host, found out there."""


class Scope(enum.StrEnum):
    """How far a network's data plane reaches."""

    UNKNOWN = "unknown"
    LOCAL = "local"
    GLOBAL = "global"


class NetworkState(enum.StrEnum):
    """Lifecycle state of a network."""

    UNKNOWN = "unknown"
    READY = "ready"
    DELETING = "deleting"


class EndpointState(enum.StrEnum):
    """Lifecycle state of an endpoint."""

    UNKNOWN = "unknown"
    CREATED = "created"
    JOINING = "joining"
    JOINED = "joined"
    LEAVING = "leaving"


class SandboxState(enum.StrEnum):
    """Lifecycle state of a sandbox."""

    UNKNOWN = "unknown"
    CREATING = "creating"
    READY = "ready"
    DELETING = "deleting"


class HostState(enum.StrEnum):
    """Liveness of a host."""

    UNKNOWN = "unknown"
    READY = "ready"
    LOST = "lost"
    PENDING = "pending"


class Action(enum.StrEnum):
    """What an event says of its object."""

    UNKNOWN = "unknown"
    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"


class OwnerKind(enum.StrEnum):
    """What a lease is for."""

    UNKNOWN = "unknown"
    ENDPOINT = "endpoint"
    GATEWAY = "gateway"
    AUXILIARY = "auxiliary"
    RESERVATION = "reservation"


class ObjectKind(enum.StrEnum):
    """Kind of an object on a host."""

    UNKNOWN = "unknown"
    NETWORK = "network"
    SANDBOX = "sandbox"
    ENDPOINT = "endpoint"
    PEER = "peer"


# Networks


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SubnetSpec:
    """One IPAM configuration of a network to be made.

    Attributes:
        subnet: Without host bits; empty: IPAM chooses.
        gateway: Without prefix length; empty: the first free address.
        ip_range: Part of the subnet that automatic addresses come from; empty: all of it.
        aux_addresses: Addresses kept out of allocation, by name.
    """

    subnet: PrefixLike = ""
    gateway: AddressLike = ""
    ip_range: PrefixLike = ""
    aux_addresses: Mapping[str, AddressLike] = field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Subnet:
    """One IPAM configuration of a network with what IPAM answered."""

    subnet: Prefix | None
    gateway: Address | None
    ip_range: Prefix | None
    aux_addresses: Mapping[str, Address]
    pool_id: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """An isolated domain of addresses that endpoints join."""

    id: str
    name: str
    driver: str
    scope: Scope
    host_id: str
    subnets: tuple[Subnet, ...]
    options: Mapping[str, str]
    labels: Mapping[str, str]
    internal: bool
    attachable: bool
    enable_ipv4: bool
    enable_ipv6: bool
    ipam_driver: str
    address_space: str
    claims: Mapping[str, int]
    state: NetworkState
    revision: int
    create_time: dt.datetime | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NarrowPath:
    """A way from one host to another that carries smaller packets than overlay networks promise.

    Attributes:
        host_id: Who found it.
        peer_host_id: The other end.
        mtu_bytes: Largest packet of the underlay that came through and back.
        needed_bytes: Size of packet that the tunnel may send.
    """

    host_id: str
    peer_host_id: str
    mtu_bytes: int
    needed_bytes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NetworkDetails:
    """A network and who uses it.

    Attributes:
        behind_host_ids: Those of the hosts whose kernels do not have all of it yet, as far as is known.
        narrow_paths: Ways between its hosts on which its largest packets are lost.
    """

    network: Network
    endpoint_count: int
    host_ids: tuple[str, ...]
    behind_host_ids: tuple[str, ...] = ()
    narrow_paths: tuple[NarrowPath, ...] = ()


# Endpoints


class Protocol(enum.StrEnum):
    """A protocol that has ports."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PublishedPort:
    """A port of an endpoint that is reached through a port of its host.

    Attributes:
        container_port: What the endpoint listens on.
        host_address: 0.0.0.0 and :: are all addresses of the family; empty: the network's option host_binding.
        host_port: Or the first one to choose from; 0: the host chooses from its ephemeral range.
        host_port_end: Last one to choose from; 0: exactly `host_port`.
        assigned_port: What the host has chosen; 0: not yet, or nothing to choose. The host's to set.
    """

    container_port: int
    protocol: Protocol = Protocol.TCP
    host_address: str = ""
    host_port: int = 0
    host_port_end: int = 0
    assigned_port: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StaticRoute:
    """A route of a sandbox that leads out by an endpoint; without a next hop the destination is on its link."""

    destination: Prefix | str
    next_hop: AddressLike = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """Limits of an endpoint's traffic as the container sees it; 0: no limit, or a burst of 100 ms."""

    ingress_bits_per_second: int = 0
    ingress_burst_bits: int = 0
    egress_bits_per_second: int = 0
    egress_burst_bits: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSpec:
    """An endpoint to be made.

    Attributes:
        network: By id, name or unique id prefix.
        name: Unique in the network; empty: made from the id.
        addresses: At most one a family, without prefix length; empty: any.
        mac_address: Empty: made from the id.
        dns_names: Names that resolve to it besides its own.
        interface_name: Inside the sandbox, at most 15 bytes; empty: the next free eth<N>.
        gateway_priority: In the choice of the sandbox's gateway, higher first.
        labels: The user's own.
        options: Driver options.
        ports: To be published on its host.
        bandwidth: None: no limits.
        link_local_addresses: Further addresses, in 169.254.0.0/16 or fe80::/10.
        routes: Static routes of the sandbox that lead out by it.
        sysctls: Of its interface, by net.<ipv4|ipv6|mpls>.<section>.IFNAME.<key>.
    """

    network: str
    name: str = ""
    addresses: tuple[AddressLike, ...] = ()
    mac_address: str = ""
    dns_names: tuple[str, ...] = ()
    interface_name: str = ""
    gateway_priority: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[PublishedPort, ...] = ()
    bandwidth: Bandwidth | None = None
    link_local_addresses: tuple[AddressLike, ...] = ()
    routes: tuple[StaticRoute, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A container's connection to one network."""

    id: str
    name: str
    network_id: str
    sandbox_id: str
    host_id: str
    mac_address: str
    addresses: tuple[Interface, ...]
    dns_names: tuple[str, ...]
    interface_name: str
    gateway_priority: int
    labels: Mapping[str, str]
    options: Mapping[str, str]
    ports: tuple[PublishedPort, ...]
    bandwidth: Bandwidth | None
    link_local_addresses: tuple[Interface, ...]
    routes: tuple[StaticRoute, ...]
    sysctls: Mapping[str, str]
    state: EndpointState
    status_message: str
    revision: int
    create_time: dt.datetime | None


# Sandboxes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceStatistics:
    """Counters of one interface of a sandbox since it was made, as the container sees them.

    Attributes:
        endpoint_id: Empty: none of ours.
    """

    interface_name: str
    endpoint_id: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NewNamespace:
    """The agent creates the namespace, owns it and removes it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NamespacePath:
    """An existing namespace by absolute path on its host, for example /run/netns/c1."""

    path: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NamespacePid:
    """The existing namespace of a process on its host."""

    pid: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HostNamespace:
    """The host's own namespace."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HandoverNamespace:
    """One that only the caller knows: interfaces are left for him in the host's namespace, by their interface_name."""


Namespace = NewNamespace | NamespacePath | NamespacePid | HostNamespace | HandoverNamespace


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Dns:
    """What resolv.conf says in place of the host's own; empty parts are the host's."""

    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExtraHost:
    """One more line of hosts; its address may be `HOST_GATEWAY`."""

    name: str
    address: AddressLike


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """A sandbox to be made, or found by host and container id.

    Attributes:
        container_id: The caller's, unique on the host.
        host: By id or name; empty: the only host of the cluster.
        namespace: Where it comes from.
        hostname: Written to hosts.
        domainname: Written to hosts.
        dns: None: the host's own resolv.conf, filtered.
        extra_hosts: Further lines of hosts.
        hosts_path: Where hosts is written; empty: in the agent's run directory.
        resolv_conf_path: Where resolv.conf is written; empty: in the agent's run directory.
        labels: The user's own.
    """

    container_id: str
    host: str = ""
    namespace: Namespace = field(default_factory=NewNamespace)
    hostname: str = ""
    domainname: str = ""
    dns: Dns | None = None
    extra_hosts: tuple[ExtraHost, ...] = ()
    hosts_path: str = ""
    resolv_conf_path: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


SandboxRef = str | SandboxSpec
"""A sandbox by id, unique id prefix or container id, or the description of one to be made or found."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """A container's network namespace on one host."""

    id: str
    container_id: str
    host_id: str
    namespace: Namespace
    netns_path: str
    hostname: str
    domainname: str
    dns: Dns | None
    extra_hosts: tuple[ExtraHost, ...]
    hosts_path: str
    resolv_conf_path: str
    labels: Mapping[str, str]
    state: SandboxState
    status_message: str
    revision: int
    create_time: dt.datetime | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SandboxDetails:
    """A sandbox and its endpoints."""

    sandbox: Sandbox
    endpoint_ids: tuple[str, ...]


# Attaching


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AttachItem:
    """One endpoint to be made and joined."""

    endpoint: EndpointSpec
    sandbox: SandboxRef


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """An endpoint that is in the kernel, its sandbox, and the gateways of its network, one a family."""

    endpoint: Endpoint
    sandbox: Sandbox
    gateways: tuple[Address, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DetachItem:
    """One endpoint to be taken away.

    Attributes:
        endpoint: Id, unique id prefix, or name (then with network).
        network: By id or name.
        delete_sandbox: Whether its sandbox goes too when this was its last endpoint.
    """

    endpoint: str
    network: str = ""
    delete_sandbox: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlanStep:
    """One operation of a plan, as the command line that would do it."""

    command: str
    namespace: str
    owner: str
    inverse: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HostPlan:
    """What one host would do, in order."""

    host_id: str
    steps: tuple[PlanStep, ...]


# Hosts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DriverOption:
    """An option that a driver takes."""

    name: str
    aliases: tuple[str, ...]
    type: str
    default_value: str
    choices: tuple[str, ...]
    minimum: int
    maximum: int
    pattern: str
    description: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A cluster-wide number that a driver needs for each network."""

    name: str
    minimum: int
    maximum: int
    option: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """What a driver promises and takes."""

    name: str
    scope: Scope
    claims: tuple[Claim, ...]
    options: tuple[DriverOption, ...]
    needs_addresses: bool
    single_network: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What an agent found out of its host."""

    agent_version: str
    kernel_release: str
    boot_id: str
    features: tuple[str, ...]
    drivers: tuple[Driver, ...]
    underlay_mtu_bytes: int
    routes: tuple[str, ...]
    name_servers: tuple[str, ...]
    bound_networks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """One operation by which an agent brought its kernel back to the intent.

    Attributes:
        object: endpoint/<id>, sandbox/<id>, network/<id>, or host for what belongs to none.
        namespace: Empty for the host, else sandbox/<id> or network/<id>.
    """

    time: dt.datetime
    object: str
    namespace: str
    command: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """What an agent had to repair since its start.

    Attributes:
        operations: How many.
        repairs: The last of them, oldest first.
    """

    operations: int
    repairs: tuple[Repair, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A machine with an agent.

    Attributes:
        cordoned: It takes no new endpoints.
        token_expire_time: Of a pending host.
        drift: None: nothing had to be repaired.
        narrow_paths: Ways to other hosts that carry less than its overlays promise.
    """

    id: str
    name: str
    agent_target: str
    vtep_address: Address | None
    facts: HostFacts
    labels: Mapping[str, str]
    state: HostState
    heartbeat_time: dt.datetime | None
    revision: int
    cordoned: bool
    token_expire_time: dt.datetime | None
    drift: Drift | None
    narrow_paths: tuple[NarrowPath, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JoinToken:
    """What lets one machine become a host.

    Attributes:
        token: A secret, good once.
        host: The pending host.
    """

    token: str
    host: Host


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DrainedHost:
    """A host that was drained, and how much was taken away."""

    host: Host
    detached_endpoints: int
    deleted_sandboxes: int


# Events


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One change of one object: after the change, or before it where the object was deleted."""

    revision: int
    time: dt.datetime | None
    action: Action
    object: Network | Endpoint | Sandbox | Host


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EventBatch:
    """Events, and the revision up to which all were sent; none is a bookmark."""

    events: tuple[Event, ...]
    revision: int


# IPAM


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PoolUse:
    """How full a pool is, in addresses."""

    capacity: int
    leased: int
    quarantined: int
    reserved: int
    next_free_time: dt.datetime | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A subnet, or a range of one, that addresses are leased from."""

    id: str
    address_space: str
    subnet: Prefix
    ip_range: Prefix | None
    labels: Mapping[str, str]
    use: PoolUse
    create_time: dt.datetime | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Whom a lease is for."""

    key: str
    host_id: str
    kind: OwnerKind


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One address held by one owner."""

    pool_id: str
    address: Interface
    owner: Owner
    epoch: int
    create_time: dt.datetime | None
    expire_time: dt.datetime | None


class LeaseEventType(enum.StrEnum):
    """What happened to an address."""

    UNKNOWN = "unknown"
    LEASED = "leased"
    RELEASED = "released"
    EXPIRED = "expired"
    REASSERTED = "reasserted"
    TRANSFERRED = "transferred"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LeaseEvent:
    """One thing that happened to an address; `id` grows within a pool's history."""

    id: str
    type: LeaseEventType
    time: dt.datetime | None
    address: Interface
    owner_key: str
    host_id: str
    epoch: int


# One host's kernel


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRef:
    """An object on a host."""

    kind: ObjectKind
    id: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ObjectStatus:
    """State of one object on its host; error is empty when the kernel has it."""

    object: ObjectRef
    revision: int
    error: str
    reason: str
    netns_path: str
    interface_name: str
    was_applied: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a host's kernel has of ours, and what would be done to repair the difference from the intent."""

    resources: tuple[str, ...]
    drift: tuple[PlanStep, ...]
    statuses: tuple[ObjectStatus, ...]


def plain(value: Any) -> Any:
    """Return a value of this module as dicts, lists, texts and numbers, ready for JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {known.name: plain(getattr(value, known.name)) for known in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return str(value)
