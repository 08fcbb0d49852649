"""The overlay driver: one network over many hosts, by VXLAN (RFC 7348) with forwarding state that is never learnt.

On each host that has an endpoint of it, the network has a namespace of its own with a bridge and a VXLAN device, so
that subnets of different networks may overlap. The VXLAN device's socket stays in the host's namespace. For every
endpoint elsewhere there is a permanent neighbour (the device answers ARP and ND itself: proxy), a forwarding entry to
the endpoint's host, and a static entry of the bridge, as for every endpoint here: nothing is flooded or guessed.

The gateway is the bridge's address, with the same MAC on every host: a distributed anycast gateway, which leads between
the network's subnets too. From there a veth pair leads to the host, and traffic leaves with the host's address. It is
translated twice, first to the pair's own address, which is unique in the cluster (a claim), so that equal subnets of
different networks do not meet in the host. Published ports come the same way back: the host leads them to the pair's
address, under their own number, and the namespace from there to the endpoint; the client keeps its address
(docs/decisions/0019-ports-of-overlay-endpoints.md). Hosts on one link may do without the tunnel
(docs/decisions/0022-direct-routing.md).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface
from typing import ClassVar

from netweft_common.errors import FailedPrecondition

from netweft_agent.domain import names, ports
from netweft_agent.domain.objects import Endpoint, Facts, Interface, Network, Peer, Scope, Subnetwork
from netweft_agent.domain.resources import (
    HOST,
    Address,
    Advertise,
    Fdb,
    Key,
    Link,
    Namespace,
    Neighbour,
    PeerEnd,
    Port,
    Resource,
    Route,
    Sysctl,
    Vxlan,
)
from netweft_agent.domain.sandbox import DEFAULT_ROUTE
from netweft_agent.domain.state import HostState
from netweft_agent.drivers import base, bridge, firewall, limits, publish, shards

BRIDGE = "br0"
TUNNEL = "vxlan0"

FURTHER = "shard"
"""What the names of further bridges begin with; the shard's number follows, as it does for the ends of the trunk."""

UPLINK = "uplink"

TRANSIT = IPv4Network("169.254.0.0/16")
"""Link-local addresses (RFC 3927) are routed nowhere, so these meet nobody's subnets."""

TRANSIT_MAX = 21503
"""Keeps the transit addresses below 169.254.168.0: clouds serve metadata at 169.254.169.254."""

TRANSIT6 = IPv6Network("fd6e:7765:6674::/112")
"""Unique local addresses (RFC 4193) between a host and its networks' namespaces; the last 16 bits are those of IPv4."""

OVERHEAD = {4: 50, 6: 70}
"""Bytes that VXLAN adds over IPv4 and IPv6: outer IP, UDP, VXLAN and inner Ethernet headers (RFC 7348 §5)."""


_SHOWN_TO = ("iptables", "ip6tables")
"""By br_netfilter, where it is there. No rule of the namespace is for frames between endpoints: to track each of them
took a twentieth of what a TCP stream through the tunnel costs."""

_PORT = Port(learning=False, flood=False)
"""Of the bridge: who is where is known, so what is for nobody goes to nobody, and nobody is taken for another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of an overlay network; the long names are Docker's."""

    mtu: int = base.option(
        0,
        "MTU of endpoints, in bytes; 0: the underlay's less what VXLAN adds.",
        aliases=("com.docker.network.driver.mtu",),
        minimum=0,
        maximum=65485,
    )
    vni: int = base.option(
        0,
        "VXLAN network identifier; 0: the controller claims a free one.",
        aliases=("com.docker.network.driver.overlay.vxlanid_list",),
        minimum=0,
        maximum=16777215,
    )
    direct_routing: bool = base.option(
        False,  # noqa: FBT003  # as others are declared
        "Lead to hosts on the same link by routes and without a tunnel; whoever is on that link can pretend to be one. "
        "For networks with a way out, in the default address space.",
    )
    vxlan_port: int = base.option(4789, "UDP port of the tunnel.", minimum=1024, maximum=49151)
    advertise_addr_nmsgs: int = base.advertise_count()
    advertise_addr_ms: int = base.advertise_interval()


class OverlayDriver:
    """Networks over many hosts."""

    name: ClassVar[str] = "overlay"
    scope: ClassVar[Scope] = Scope.GLOBAL
    claims: ClassVar[tuple[base.Claim, ...]] = (
        base.Claim(name="vni", minimum=4096, maximum=16777215, option="vni"),
        base.Claim(name="transit", minimum=1, maximum=TRANSIT_MAX),
    )
    options: ClassVar[type[Options]] = Options
    needs_addresses: ClassVar[bool] = True
    single_network: ClassVar[bool] = False

    def __init__(self) -> None:
        self._own = base.OwnParts()

    def check(self, network: Network, attachment: base.Attachment, facts: Facts) -> None:
        """Refuse a host without a tunnel address, its own namespace, limits its kernel lacks, and ports to nowhere.

        Raises:
            FailedPrecondition: One of them, or the network lacks one of its numbers.
            InvalidArgument: No kernel can lead a port of the host into the network, or a port is published twice.
        """
        base.refuse_host_sandbox(self.name, attachment)
        limits.refuse_lacking(attachment.endpoint, facts)
        if not facts.vtep:
            raise FailedPrecondition(
                "NO_VTEP",
                f"network {network.name} is an overlay, and this host has no tunnel address; "
                "start its agent with --vtep-address",
                network=network.name,
                host_id=facts.host_id,
            )
        for claim in self.claims:
            needed = claim.name != "transit" or _leads_out(network)
            if needed and not 0 < network.claims.get(claim.name, 0) <= claim.maximum:
                raise FailedPrecondition(
                    "NO_CLAIM",
                    f"network {network.name} was given no {claim.name} from 1 to {claim.maximum} by the controller; "
                    "create the network again",
                    network=network.name,
                    claim=claim.name,
                )
        if attachment.endpoint.ports:
            of = _ways(network, attachment.endpoint, base.IP_VERSIONS)
            publish.refuse_unreachable(network, attachment.endpoint, attachment.endpoint.ports, of, _ANY_HOST_ADDRESS)
            publish.refuse_twice(attachment.endpoint, of, by_number=True)

    def render(
        self, network: Network, attachments: Sequence[base.Attachment], peers: Sequence[Peer], facts: Facts
    ) -> HostState:
        """Render the namespace with bridge and tunnel, a veth pair for each endpoint, and entries for each peer."""
        options = base.parse(Options, network.options, driver=self.name)
        ns = names.network_ns(network.id)
        mtu = mtu_of(network, facts)
        state = HostState()
        own = self._own.get(network, facts, lambda: _network(network, options, ns, mtu, facts))
        state.take(f"network/{network.id}", own)
        for attachment in attachments:
            shard = attachment.endpoint.shard
            master = f"{FURTHER}{shard}" if shard else BRIDGE
            state.add(
                attachment.owner,
                *bridge.veth(
                    attachment,
                    ns=ns,
                    master=master,
                    mtu=mtu,
                    port=_PORT,
                    ipv6=network.enable_ipv6,
                    advertise=base.advertise(network, options),
                ),
                Fdb(ns=ns, link=names.veth(attachment.endpoint.id), mac=bridge.mac(attachment.endpoint)),
                *(_published(network, attachment, ns) if attachment.endpoint.ports else ()),
                *(_routed_here(network, attachment.endpoint, facts) if options.direct_routing else ()),
            )
            if shard:
                state.add(attachment.owner, Fdb(ns=ns, link=_trunk(shard), mac=bridge.mac(attachment.endpoint)))
                state.join(attachment.owner, self._further(network, ns, mtu, shard, facts))
        elsewhere = base.advertise(network, options, link=BRIDGE)
        for peer in peers:
            if peer.mac:  # one without a link has nothing to be reached at
                direct = _is_beside(network, options, peer, facts)
                wanted = _peer(network, peer, ns, elsewhere, facts if direct else None)
                state.take(f"peer/{peer.id}", {one.key: one for one in wanted})
        return state

    def _further(self, network: Network, ns: str, mtu: int, shard: int, facts: Facts) -> Mapping[Key, Resource]:
        return self._own.get(network, facts, lambda: _further(network, ns, mtu, shard), shard=shard)

    def gateway(self, network: Network, endpoint: Endpoint, version: int) -> Interface | None:
        """Offer the bridge's address."""
        return base.subnet_gateway(network, endpoint, version)

    def routes(self, network: Network, endpoint: Endpoint) -> Mapping[Subnetwork, Interface]:
        """Return the network's other subnets: its gateway on each host leads there, of internal networks too."""
        return base.other_subnets(network, endpoint)

    def interface_prefix(self, network: Network) -> str:
        """Return the usual one."""
        del network
        return base.INTERFACE_PREFIX

    def binds(self, network: Network, endpoint: Endpoint) -> ports.Addresses:
        """Return the host's addresses at which ports are translated."""
        of = _ways(network, endpoint, base.IP_VERSIONS)
        return publish.addresses(of)


_ANY_HOST_ADDRESS = publish.UNSPECIFIED[4]


def _ways(network: Network, endpoint: Endpoint, versions: Collection[int]) -> publish.Ways:
    return publish.ways(endpoint, _ANY_HOST_ADDRESS, () if network.internal else versions)


def _published(network: Network, attachment: base.Attachment, ns: str) -> list[Resource]:
    of = _ways(network, attachment.endpoint, attachment.gateway_of)
    addresses: dict[int, str] = {one.version: str(one[1]) for one in _transit(network)}
    through = publish.Through(ns=ns, addresses=addresses)
    return publish.render(attachment.endpoint, names.uplink(network.id), of, through)


def mtu_of(network: Network, facts: Facts) -> int:
    """Return the MTU of a network's endpoints on this host, in bytes."""
    options = base.parse(Options, network.options, driver=OverlayDriver.name)
    return options.mtu or facts.underlay_mtu - overhead(facts)


def overhead(facts: Facts) -> int:
    """Return what VXLAN adds to a packet, in bytes."""
    return OVERHEAD[6 if ":" in facts.vtep else 4]


def _network(network: Network, options: Options, ns: str, mtu: int, facts: Facts) -> list[Resource]:
    vni = network.claims["vni"]
    wanted: list[Resource] = [
        Namespace(ns=ns),
        Sysctl(ns=ns, path="net/ipv6/conf/default/disable_ipv6", value="1"),
        *(Sysctl(ns=ns, path=f"net/bridge/bridge-nf-call-{one}", value="0", optional=True) for one in _SHOWN_TO),
        Link(ns=ns, name="lo", kind="loopback"),
        Link(ns=ns, name=BRIDGE, kind="bridge", mtu=mtu, mac=names.mac(network.id), ipv6=network.enable_ipv6),
        Link(
            ns=ns,
            name=TUNNEL,
            kind="vxlan",
            mtu=mtu,
            master=BRIDGE,
            ipv6=network.enable_ipv6,  # without it the kernel takes no neighbours of that family
            vxlan=Vxlan(vni=vni, local=facts.vtep, port=options.vxlan_port),
            port=_PORT,
            socket_ns=HOST,
        ),
    ]
    wanted += _gateway(network, ns)
    if _leads_out(network):
        wanted += _way_out(network, ns, mtu, direct=options.direct_routing)
        if options.direct_routing:
            wanted += firewall.direct(ns, facts.underlay_link, names.uplink(network.id), UPLINK)
    wanted += firewall.tunnel(options.vxlan_port, vni)
    return wanted


def _further(network: Network, ns: str, mtu: int, shard: int) -> list[Resource]:
    return [
        *shards.further(
            ns,
            f"{FURTHER}{shard}",
            first=BRIDGE,
            trunk=_trunk(shard),
            far=f"far{shard}",
            mac=names.further_mac(network.id, shard),
            mtu=mtu,
            trunk_port=_PORT,
            # Whoever is not on the further bridge is up there, or nowhere.
            far_port=Port(learning=False),
        ),
        *firewall.further_inside(ns, FURTHER),
    ]


def _trunk(shard: int) -> str:
    return f"trunk{shard}"


def _leads_out(network: Network) -> bool:
    return not network.internal


_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


def _versions(network: Network) -> list[int]:
    return [4] * network.enable_ipv4 + [6] * network.enable_ipv6


def _gateway(network: Network, ns: str) -> list[Resource]:
    """Render the gateway; of an internal network where there are several subnets to lead between, and no way out."""
    wanted: list[Resource] = []
    for version in _versions(network):
        own = [one.gateway for one in network.subnets if one.gateway is not None and one.subnet.version == version]
        if network.internal and len(own) < 2:
            continue
        wanted += [Address(ns=ns, link=BRIDGE, address=str(one)) for one in own]
        wanted.append(Sysctl(ns=ns, path=_FORWARDING[version], value="1"))
        if len(own) > 1:
            wanted += firewall.no_redirects(ns)
    return wanted


def _transit(network: Network) -> list[IPv4Network | IPv6Network]:
    """Return the prefix of the pair that leads out, for each of the network's families: the host's address and ours."""
    offset = 2 * network.claims["transit"]
    four = IPv4Network((int(TRANSIT.network_address) + offset, 31))
    six = IPv6Network((IPv6Address(int(TRANSIT6.network_address) + offset), 127))
    return [four if version == 4 else six for version in _versions(network)]


def _way_out(network: Network, ns: str, mtu: int, *, direct: bool) -> list[Resource]:
    """Render the pair that leads from the network's namespace to the host."""
    link = names.uplink(network.id)
    transit = _transit(network)
    ipv6 = network.enable_ipv6
    wanted: list[Resource] = [
        Link(ns=HOST, name=link, kind="veth", mtu=mtu, ipv6=ipv6, peer=PeerEnd(ns=ns, name=UPLINK)),
        Link(ns=ns, name=UPLINK, kind="peer", mtu=mtu, ipv6=ipv6, peer=PeerEnd(ns=HOST, name=link)),
        *firewall.way_out(link, transit),
        *firewall.way_out_inside(ns, UPLINK, direct=direct),
    ]
    for prefix in transit:
        outside, inside = prefix
        wanted += [
            Address(ns=HOST, link=link, address=f"{outside}/{prefix.prefixlen}"),
            Address(ns=ns, link=UPLINK, address=f"{inside}/{prefix.prefixlen}"),
            Route(ns=ns, destination=DEFAULT_ROUTE[prefix.version], link=UPLINK, via=str(outside)),
            Sysctl(ns=ns, path=_FORWARDING[prefix.version], value="1"),
            Sysctl(ns=HOST, path=_FORWARDING[prefix.version], value="1"),
        ]
    return wanted


def _is_beside(network: Network, options: Options, peer: Peer, facts: Facts) -> bool:
    """Return whether a peer is led to without a tunnel: its host is on our link, and the network has a way to it."""
    if not options.direct_routing or not _leads_out(network) or facts.underlay is None:
        return False
    return ip_address(peer.vtep) in facts.underlay.network


def _routed_here(network: Network, endpoint: Endpoint, facts: Facts) -> list[Resource]:
    """Render the host's routes to an endpoint, for what other hosts send to it without a tunnel."""
    if network.internal or facts.underlay is None:
        return []
    inside = {one.version: str(one[1]) for one in _transit(network)}
    link, version = names.uplink(network.id), facts.underlay.version
    return [
        Route(ns=HOST, destination=_alone(one), link=link, via=inside[version])
        for one in endpoint.addresses
        if one.version == version
    ]


def _alone(address: Interface) -> str:
    return f"{address.ip}/{address.max_prefixlen}"


def _peer(network: Network, peer: Peer, ns: str, advertise: Advertise | None, beside: Facts | None) -> list[Resource]:
    """Render what leads to an endpoint elsewhere.

    Args:
        network: The network.
        peer: The endpoint.
        ns: The network's namespace.
        advertise: How neighbours are told of it.
        beside: Facts of this host where the other one is on its link, so that addresses of that family are routed.
    """
    wanted: list[Resource] = [
        Fdb(ns=ns, link=TUNNEL, mac=peer.mac, vtep=peer.vtep),
        Fdb(ns=ns, link=TUNNEL, mac=peer.mac),
        firewall.remote(network.claims["vni"], peer.vtep),
    ]
    if beside is None or beside.underlay is None:
        wanted += [Neighbour(ns=ns, link=TUNNEL, ip=ip, mac=peer.mac, advertise=advertise) for ip in peer.addresses]
        return wanted
    for one in map(ip_interface, peer.addresses):
        ip, routed = str(one.ip), one.version == beside.underlay.version
        # The device answers for it in either case: with its own MAC, or with the gateway's, which routes.
        mac = names.mac(network.id) if routed else peer.mac
        wanted.append(Neighbour(ns=ns, link=TUNNEL, ip=ip, mac=mac, advertise=advertise))
        if routed:
            outside = next(str(transit[0]) for transit in _transit(network) if transit.version == one.version)
            wanted += [
                Route(ns=ns, destination=_alone(one), link=UPLINK, via=outside),
                Route(ns=HOST, destination=_alone(one), link=beside.underlay_link, via=peer.vtep, foreign=True),
                firewall.beside(ns, ip),
            ]
    return wanted
