"""The objects of intent as values; the store keeps them, the wire shows them.

Addresses, subnets and MAC addresses are kept as canonical text: a controller holds every endpoint of the cluster in
memory, where an `ipaddress` object costs ten times its text. Rules parse them where they compute.
"""

from __future__ import annotations

import enum
import typing

import msgspec


class Kind(enum.StrEnum):
    """Kind of an object."""

    NETWORK = "network"
    SANDBOX = "sandbox"
    ENDPOINT = "endpoint"
    HOST = "host"


class Scope(enum.StrEnum):
    """How far a network's data plane reaches."""

    LOCAL = "local"
    GLOBAL = "global"


class NetworkState(enum.StrEnum):
    """Lifecycle of a network."""

    READY = "ready"
    DELETING = "deleting"


class EndpointState(enum.StrEnum):
    """Lifecycle of an endpoint.

    CREATED -> JOINING -> JOINED -> LEAVING -> CREATED, or gone when `Endpoint.deleting` is set.
    """

    CREATED = "created"
    JOINING = "joining"
    JOINED = "joined"
    LEAVING = "leaving"


class SandboxState(enum.StrEnum):
    """Lifecycle of a sandbox."""

    CREATING = "creating"
    READY = "ready"
    DELETING = "deleting"


class HostState(enum.StrEnum):
    """Liveness of a host; derived from heartbeats, never stored."""

    READY = "ready"
    LOST = "lost"
    PENDING = "pending"


class Subnet(msgspec.Struct, frozen=True, kw_only=True):
    """One subnet of a network.

    Attributes:
        subnet: CIDR without host bits.
        gateway: Address of the gateway, no prefix length; empty: none.
        ip_range: CIDR that automatic addresses come from; empty: all of the subnet.
        aux_addresses: Addresses kept out of allocation, by name.
        pool_id: IPAM's id of the pool.
    """

    subnet: str = ""
    gateway: str = ""
    ip_range: str = ""
    aux_addresses: dict[str, str] = msgspec.field(default_factory=dict)
    pool_id: str = ""


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """One isolated domain of addresses.

    Attributes:
        needs_addresses: What its driver said at creation; False: its endpoints have neither addresses nor a MAC.
        claims: Cluster-wide numbers, by claim name.
    """

    id: str
    name: str
    driver: str
    scope: Scope
    host_id: str = ""
    subnets: tuple[Subnet, ...] = ()
    options: dict[str, str] = msgspec.field(default_factory=dict)
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    internal: bool = False
    enable_ipv4: bool = True
    enable_ipv6: bool = False
    claims: dict[str, int] = msgspec.field(default_factory=dict)
    state: NetworkState = NetworkState.READY
    ipam_driver: str = "default"
    address_space: str = ""
    attachable: bool = False
    needs_addresses: bool = True


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """One address that an endpoint holds.

    Attributes:
        address: With the subnet's prefix length.
        pool_id: IPAM's id of the pool.
        epoch: Fencing epoch of the lease.
    """

    address: str
    pool_id: str
    epoch: int

    @property
    def ip(self) -> str:
        """The address without prefix length."""
        return self.address.partition("/")[0]


class PublishedPort(msgspec.Struct, frozen=True, kw_only=True):
    """One port of an endpoint that is reached through a port of its host.

    Attributes:
        protocol: tcp, udp or sctp.
        host_address: Canonical text; empty: the network's default.
        host_port: Or the first one to choose from; 0: the host chooses from its ephemeral range.
        host_port_end: Last one to choose from; 0: exactly `host_port`.
        assigned_port: What the host has chosen; 0: not yet.
    """

    protocol: str = "tcp"
    container_port: int
    host_address: str = ""
    host_port: int = 0
    host_port_end: int = 0
    assigned_port: int = 0

    @property
    def binding(self) -> tuple[str, int, str, int, int]:
        """What was asked for, whatever was assigned: by it a binding is known again."""
        return (self.protocol, self.container_port, self.host_address, self.host_port, self.host_port_end)

    def with_assigned(self, port: int) -> PublishedPort:
        """Return the binding with a port of the host; itself where it has that one."""
        if port == self.assigned_port:
            return self
        return msgspec.structs.replace(self, assigned_port=port)


class StaticRoute(msgspec.Struct, frozen=True, kw_only=True):
    """A route of a sandbox that leads out by an endpoint; without a next hop the destination is on its link."""

    destination: str
    next_hop: str = ""


class Bandwidth(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of an endpoint's traffic as the container sees it; bits per second, bursts in bits; 0: none said."""

    ingress_rate: int = 0
    ingress_burst: int = 0
    egress_rate: int = 0
    egress_burst: int = 0


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One attachment to a network.

    Attributes:
        leases: At most one a family.
        link_local: Further addresses with prefix length, in 169.254.0.0/16 or fe80::/10.
        sysctls: Settings of its interface, by net.<section>.<part>.IFNAME.<key>.
        bandwidth: None: no limits.
        deleting: In state LEAVING: True removes the endpoint once it has left, False keeps it.
        kept: It was made, or joined, on its own: a join that fails leaves it in no sandbox. False: it goes with its
            failed attach.
    """

    id: str
    name: str
    network_id: str
    sandbox_id: str = ""
    host_id: str = ""
    mac_address: str = ""
    leases: tuple[Lease, ...] = ()
    dns_names: tuple[str, ...] = ()
    interface_name: str = ""
    gateway_priority: int = 0
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    options: dict[str, str] = msgspec.field(default_factory=dict)
    ports: tuple[PublishedPort, ...] = ()
    link_local: tuple[str, ...] = ()
    routes: tuple[StaticRoute, ...] = ()
    sysctls: dict[str, str] = msgspec.field(default_factory=dict)
    bandwidth: Bandwidth | None = None
    state: EndpointState = EndpointState.CREATED
    deleting: bool = False
    kept: bool = False
    status_message: str = ""

    @property
    def is_active(self) -> bool:
        """Whether its host is to have it."""
        return self.state is EndpointState.JOINED or self.state is EndpointState.JOINING


class NamespaceSource(enum.StrEnum):
    """Where a sandbox's namespace comes from."""

    CREATE = "create"
    PATH = "path"
    PID = "pid"
    HOST = "host"
    HANDOVER = "handover"


class Namespace(msgspec.Struct, frozen=True, kw_only=True):
    """Source of a network namespace; `path` and `pid` are set for their source only."""

    source: NamespaceSource = NamespaceSource.CREATE
    path: str = ""
    pid: int = 0


class Dns(msgspec.Struct, frozen=True, kw_only=True):
    """What resolv.conf says."""

    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class ExtraHost(msgspec.Struct, frozen=True, kw_only=True):
    """One more line of hosts."""

    name: str
    address: str


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """One network namespace on one host.

    Attributes:
        kept: It was made on its own. False: an attach made it, and while it is CREATING it goes with that attach.
    """

    id: str
    container_id: str
    host_id: str
    namespace: Namespace = Namespace()
    hostname: str = ""
    domainname: str = ""
    dns: Dns | None = None
    extra_hosts: tuple[ExtraHost, ...] = ()
    hosts_path: str = ""
    resolv_conf_path: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    state: SandboxState = SandboxState.CREATING
    kept: bool = False
    netns_path: str = ""
    status_message: str = ""


class ClaimInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A cluster-wide number that a driver needs for each network; `option` lets the user choose it."""

    name: str
    minimum: int
    maximum: int
    option: str = ""


class OptionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One option of a driver; `maximum` equal to `minimum` means unbounded."""

    name: str
    aliases: tuple[str, ...] = ()
    type: str = "string"
    default_value: str = ""
    choices: tuple[str, ...] = ()
    minimum: int = 0
    maximum: int = 0
    description: str = ""
    pattern: str = ""


class DriverInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver promises and takes."""

    name: str
    scope: Scope
    claims: tuple[ClaimInfo, ...] = ()
    options: tuple[OptionInfo, ...] = ()
    needs_addresses: bool = True
    single_network: bool = False


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent found out of its host."""

    agent_version: str = ""
    kernel_release: str = ""
    boot_id: str = ""
    features: tuple[str, ...] = ()
    drivers: tuple[DriverInfo, ...] = ()
    underlay_mtu_bytes: int = 0
    routes: tuple[str, ...] = ()
    name_servers: tuple[str, ...] = ()
    bound_networks: tuple[str, ...] = ()


class Repair(msgspec.Struct, frozen=True, kw_only=True):
    """One operation by which an agent brought its kernel back to the intent; fields as in the message Repair."""

    time_ms: int
    object: str
    namespace: str
    command: str


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent had to repair since its start; fields as in the message Drift."""

    operations: int = 0
    repairs: tuple[Repair, ...] = ()


class NarrowPath(msgspec.Struct, frozen=True, kw_only=True):
    """A way from a host to another that carries less than its overlays promise; fields as in the message NarrowPath."""

    host_id: str
    peer_host_id: str
    mtu_bytes: int
    needed_bytes: int


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """One machine with an agent.

    Attributes:
        tls_server_name: Name that the agent's certificate carries; empty: the host of its target.
        drift: None: nothing had to be repaired since the agent's start.
        cordoned: It takes no new endpoints.
        token_digest: Of the secret by which a machine may become this host; empty: none may, or one has.
        token_expires_ms: Until when, in milliseconds since 1970 by the controllers' clocks.
        wants_name: Whoever joins may name it.
        narrow_paths: Ways to other hosts that carry less than its overlays promise.
    """

    id: str
    name: str
    agent_target: str
    vtep_address: str = ""
    facts: HostFacts = HostFacts()
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    drift: Drift | None = None
    tls_server_name: str = ""
    cordoned: bool = False
    token_digest: str = ""
    token_expires_ms: int = 0
    wants_name: bool = False
    narrow_paths: tuple[NarrowPath, ...] = ()

    @property
    def is_pending(self) -> bool:
        """Whether no machine has become it yet."""
        return bool(self.token_digest)


Object = Network | Endpoint | Sandbox | Host
T = typing.TypeVar("T", Network, Endpoint, Sandbox, Host)

CLASSES: dict[Kind, type[Network | Endpoint | Sandbox | Host]] = {
    Kind.NETWORK: Network,
    Kind.SANDBOX: Sandbox,
    Kind.ENDPOINT: Endpoint,
    Kind.HOST: Host,
}


def kind_of(value: Object) -> Kind:
    """Return the kind of an object."""
    return _KIND_OF_CLASS[type(value)]


_KIND_OF_CLASS: dict[type[object], Kind] = {cls: kind for kind, cls in CLASSES.items()}


class Record(msgspec.Struct, typing.Generic[T], frozen=True):
    """One version of an object.

    Attributes:
        value: The object.
        revision: Revision of the commit that wrote this version.
        created_ms: Time of the object's first version, by the store's clock, in milliseconds since 1970.
    """

    value: T
    revision: int
    created_ms: int


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """What a host must know of an endpoint on another host."""

    endpoint: Endpoint
    revision: int
    vtep_address: str
