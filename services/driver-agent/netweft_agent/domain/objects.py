"""Objects: the intent that the controller sends, as the agent keeps it.

They mirror `netweft.common.v1` one to one; `rpc/convert.py` translates. Every object has the revision of its last
change, and an agent never goes back to a lower one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import NamedTuple

import msgspec

Interface = IPv4Interface | IPv6Interface
Subnetwork = IPv4Network | IPv6Network


HANDOVER = "handover"
"""Source of a sandbox into which the caller moves interfaces himself: they are left for him in the host's namespace."""
HERE = "here"
"""Place of a handover: the host's namespace, from which the runtime takes interfaces away."""
LATER = "later"
"""Place of a handover: its runtime is about to say."""


class Scope(StrEnum):
    """How far a network's data plane reaches."""

    LOCAL = "local"
    GLOBAL = "global"


class Kind(StrEnum):
    """Kind of an object."""

    NETWORK = "network"
    SANDBOX = "sandbox"
    ENDPOINT = "endpoint"
    PEER = "peer"


class Ref(NamedTuple):
    """Name of an object; a peer goes by its endpoint's id."""

    kind: Kind
    id: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.id}"


class Subnet(msgspec.Struct, frozen=True, kw_only=True):
    """A subnet of a network.

    Attributes:
        gateway: Address of the network itself; None: it has none.
        default_gateway: Whom endpoints get as their gateway instead; None: `gateway`.
        pool_id: IPAM's id of the pool that its addresses are leased from; empty: not known.
    """

    subnet: Subnetwork
    gateway: Interface | None
    default_gateway: Interface | None = None
    pool_id: str = ""


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """A network as one host needs it."""

    id: str
    name: str
    driver: str
    subnets: tuple[Subnet, ...] = ()
    options: Mapping[str, str] = msgspec.field(default_factory=dict)
    claims: Mapping[str, int] = msgspec.field(default_factory=dict)
    internal: bool = False
    enable_ipv4: bool = True
    enable_ipv6: bool = False
    revision: int = 0

    @property
    def ref(self) -> Ref:
        """Name of this object."""
        return Ref(kind=Kind.NETWORK, id=self.id)


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """A network namespace on this host.

    Attributes:
        source: Empty: the agent makes it. Else an absolute path, `pid:<n>`, `host` for the host's own, or `HANDOVER`.
        place: Of `HANDOVER`, and known on this host alone: where interfaces are made. `LATER`, `HERE`, or the absolute
            path of the runtime's namespace; empty: nobody has said, which is as `HERE`.
    """

    id: str
    container_id: str = ""
    source: str = ""
    hostname: str = ""
    domainname: str = ""
    dns_servers: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    extra_hosts: tuple[tuple[str, str], ...] = ()
    hosts_path: str = ""
    resolv_conf_path: str = ""
    revision: int = 0
    place: str = ""

    @property
    def ref(self) -> Ref:
        """Name of this object."""
        return Ref(kind=Kind.SANDBOX, id=self.id)

    @property
    def ns(self) -> str:
        """Name of the namespace in resources: of what is ours in it, which may be the host's.

        Handovers to one place share one name.
        """
        if self.source == HANDOVER and self.is_placed:
            return f"sandbox/at-{hashlib.blake2s(self.place.encode(), digest_size=8).hexdigest()}"
        return "" if self.source in {"host", HANDOVER} else f"sandbox/{self.id}"

    @property
    def is_placed(self) -> bool:
        """Whether it is a handover into a namespace that its runtime has named."""
        return self.place.startswith("/")

    @property
    def leaves(self) -> bool:
        """Whether interfaces are left in the host's namespace for the runtime to take."""
        return self.source == HANDOVER and not self.is_placed


class PublishedPort(msgspec.Struct, frozen=True, kw_only=True):
    """A port of the endpoint that is reached through a port of its host.

    Attributes:
        protocol: tcp, udp or sctp.
        host_address: Canonical text; 0.0.0.0 and :: are all of the family; empty: the network's default.
        host_port: Or the first one to choose from; 0: the agent chooses from the host's ephemeral range.
        host_port_end: Last one to choose from; 0: exactly `host_port`.
        assigned_port: What was chosen; 0: not yet, or there is none to choose.
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

    @property
    def is_exact(self) -> bool:
        """Whether there is nothing to choose."""
        return self.host_port > 0 and (self.host_port_end == 0 or self.host_port_end == self.host_port)  # noqa: PLR1714

    @property
    def number(self) -> int:
        """Port of the host that it has; 0: none yet."""
        return self.host_port if self.is_exact else self.assigned_port


class StaticRoute(msgspec.Struct, frozen=True, kw_only=True):
    """A route of a sandbox that leads out by an endpoint.

    Attributes:
        next_hop: None: the destination is on the endpoint's link.
    """

    destination: Subnetwork
    next_hop: IPv4Address | IPv6Address | None = None


class Bandwidth(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of an endpoint's traffic as the container sees it; bits per second, bursts in bits; 0: none said."""

    ingress_rate: int = 0
    ingress_burst: int = 0
    egress_rate: int = 0
    egress_burst: int = 0


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint that is joined to a sandbox of this host.

    Attributes:
        interface_name: Never empty once the engine has taken the endpoint in: it gives the next free eth<N>.
        ports: With their assigned ports once the engine has taken the endpoint in.
        link_local: Further addresses, in 169.254.0.0/16 or fe80::/10.
        routes: Static routes of the sandbox that lead out by it.
        sysctls: Settings of its interface, by net.<section>.<part>.IFNAME.<key>.
        bandwidth: None: no limits.
        confirmed: The controller has told its caller that this endpoint exists; it is kept through failures.
        lease_epochs: Fencing epoch of each address's lease, in the order of `addresses`; empty: not known.
        shard: Which of its network's bridges on this host it is on, see `shards`; the engine chooses when it takes the
            endpoint in.
    """

    id: str
    name: str
    network_id: str
    sandbox_id: str
    mac: str = ""
    addresses: tuple[Interface, ...] = ()
    dns_names: tuple[str, ...] = ()
    interface_name: str = ""
    gateway_priority: int = 0
    options: Mapping[str, str] = msgspec.field(default_factory=dict)
    ports: tuple[PublishedPort, ...] = ()
    link_local: tuple[Interface, ...] = ()
    routes: tuple[StaticRoute, ...] = ()
    sysctls: Mapping[str, str] = msgspec.field(default_factory=dict)
    bandwidth: Bandwidth | None = None
    confirmed: bool = False
    lease_epochs: tuple[int, ...] = ()
    shard: int = 0
    revision: int = 0

    @property
    def ref(self) -> Ref:
        """Name of this object."""
        return Ref(kind=Kind.ENDPOINT, id=self.id)


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint of another host, as far as this host must know it. There may be tens of thousands.

    Attributes:
        addresses: Canonical text, without a prefix length.
    """

    endpoint_id: str
    network_id: str
    host_id: str
    vtep: str
    mac: str
    addresses: tuple[str, ...] = ()
    revision: int = 0

    @property
    def id(self) -> str:
        """The endpoint's id."""
        return self.endpoint_id

    @property
    def ref(self) -> Ref:
        """Name of this object."""
        return Ref(kind=Kind.PEER, id=self.endpoint_id)


Object = Network | Sandbox | Endpoint | Peer


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What drivers may know of the host.

    Attributes:
        vtep: Tunnel address; empty: the host takes part in no overlay.
        underlay_mtu: Of the interface that holds the tunnel address, in bytes.
        underlay: The tunnel address with its prefix on that interface; None: there is none.
        underlay_link: Name of that interface.
        run_dir: Absolute path of the agent's run directory.
        features: What its kernel can do, by the names of `kernel/facts.py`.
        host_gateways: What extra hosts at `host-gateway` get, as its settings say; empty: it is found out.
    """

    host_id: str = ""
    vtep: str = ""
    underlay_mtu: int = 1500
    underlay: Interface | None = None
    underlay_link: str = ""
    run_dir: str = "/run/netweft"
    features: frozenset[str] = frozenset()
    host_gateways: tuple[str, ...] = ()


class HostFiles(msgspec.Struct, frozen=True, kw_only=True):
    """The host's own files that those of sandboxes are made from.

    Attributes:
        resolv_conf: Text of its resolv.conf(5), or where that leads to systemd-resolved alone, of the file with the
            servers behind it; empty: there is none.
        resolv_conf_path: Which file that was.
        hosts: Text of its hosts(5); empty: there is none.
    """

    resolv_conf: str = ""
    resolv_conf_path: str = "/etc/resolv.conf"
    hosts: str = ""
