"""The overlay driver: one network over many hosts, by VXLAN (RFC 7348) with forwarding state that is never learnt.

On each host that has an endpoint of it, the network has a namespace of its own with a bridge and a VXLAN device, so
that subnets of different networks may overlap. The VXLAN device's socket stays in the host's namespace. For every
endpoint elsewhere there is a permanent neighbour (the device answers ARP and ND itself: proxy), a forwarding entry to
the endpoint's host, and a static entry of the bridge, so nothing is flooded and nothing is guessed.

The gateway is the bridge's address, with the same MAC on every host: a distributed anycast gateway. From there a veth
pair leads to the host, and traffic leaves with the host's address. It is translated twice, first to the pair's own
address, which is unique in the cluster (a claim), so that equal subnets of different networks do not meet in the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import ClassVar

from netweft_common.errors import FailedPrecondition

from netweft_agent.domain import names, ports
from netweft_agent.domain.objects import Endpoint, Facts, Interface, Network, Peer, Scope
from netweft_agent.domain.resources import (
    HOST,
    Address,
    Fdb,
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
from netweft_agent.domain.state import HostState
from netweft_agent.drivers import base, bridge, firewall, limits

BRIDGE = "br0"
TUNNEL = "vxlan0"

UPLINK = "uplink"

TRANSIT = IPv4Network("169.254.0.0/16")
"""Link-local addresses (RFC 3927) are routed nowhere, so these meet nobody's subnets."""

TRANSIT_MAX = 21503
"""Keeps the transit addresses below 169.254.168.0: clouds serve metadata at 169.254.169.254."""

OVERHEAD = {4: 50, 6: 70}
"""Bytes that VXLAN adds over IPv4 and IPv6: outer IP, UDP, VXLAN and inner Ethernet headers (RFC 7348 §5)."""


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
    vxlan_port: int = base.option(4789, "UDP port of the tunnel.", minimum=1024, maximum=49151)


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
        """Refuse a host without a tunnel address, its own namespace, limits that its kernel lacks, and published ports.

        Raises:
            FailedPrecondition: One of them, or the network lacks one of its numbers.
        """
        base.refuse_host_sandbox(self.name, attachment)
        base.refuse_ports(self.name, attachment)
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

    def render(
        self, network: Network, attachments: Sequence[base.Attachment], peers: Sequence[Peer], facts: Facts
    ) -> HostState:
        """Render the namespace with bridge and tunnel, a veth pair for each endpoint, and entries for each peer."""
        options = base.parse(Options, network.options, driver=self.name)
        ns = names.network_ns(network.id)
        mtu = options.mtu or facts.underlay_mtu - OVERHEAD[6 if ":" in facts.vtep else 4]
        state = HostState()
        own = self._own.get(network, facts, lambda: _network(network, options, ns, mtu, facts))
        state.take(f"network/{network.id}", own)
        for attachment in attachments:
            state.add(
                attachment.owner,
                *bridge.veth(attachment, ns=ns, master=BRIDGE, mtu=mtu, port=Port(), ipv6=network.enable_ipv6),
            )
        for peer in (one for one in peers if one.mac):  # one without a link has nothing to be reached at
            state.add(f"peer/{peer.id}", *_peer(peer, ns))
        return state

    def gateway(self, network: Network, endpoint: Endpoint, version: int) -> Interface | None:
        """Offer the bridge's address."""
        return base.subnet_gateway(network, endpoint, version)

    def interface_prefix(self, network: Network) -> str:
        """Return the usual one."""
        del network
        return base.INTERFACE_PREFIX

    def binds(self, network: Network, endpoint: Endpoint) -> ports.Addresses:
        """Hold no ports."""
        del network, endpoint
        return ports.nowhere


def _network(network: Network, options: Options, ns: str, mtu: int, facts: Facts) -> list[Resource]:
    vni = network.claims["vni"]
    wanted: list[Resource] = [
        Namespace(ns=ns),
        Sysctl(ns=ns, path="net/ipv6/conf/default/disable_ipv6", value="1"),
        Link(ns=ns, name="lo", kind="loopback"),
        Link(ns=ns, name=BRIDGE, kind="bridge", mtu=mtu, mac=names.mac(network.id), ipv6=network.enable_ipv6),
        Link(
            ns=ns,
            name=TUNNEL,
            kind="vxlan",
            mtu=mtu,
            master=BRIDGE,
            ipv6=False,
            vxlan=Vxlan(vni=vni, local=facts.vtep, port=options.vxlan_port),
            port=Port(learning=False, flood=False),
            socket_ns=HOST,
        ),
    ]
    if not network.internal:
        wanted += [
            Address(ns=ns, link=BRIDGE, address=str(one.gateway)) for one in network.subnets if one.gateway is not None
        ]
    if _leads_out(network):
        wanted += _way_out(network, ns, mtu)
    wanted += firewall.tunnel(options.vxlan_port, vni)
    return wanted


def _leads_out(network: Network) -> bool:
    return network.enable_ipv4 and not network.internal


def _way_out(network: Network, ns: str, mtu: int) -> list[Resource]:
    """Render the pair that leads from the network's namespace to the host."""
    transit = IPv4Network((int(TRANSIT.network_address) + 2 * network.claims["transit"], 31))
    outside, inside = transit
    link = names.uplink(network.id)
    return [
        Link(ns=HOST, name=link, kind="veth", mtu=mtu, ipv6=False, peer=PeerEnd(ns=ns, name=UPLINK)),
        Link(ns=ns, name=UPLINK, kind="peer", mtu=mtu, ipv6=False, peer=PeerEnd(ns=HOST, name=link)),
        Address(ns=HOST, link=link, address=f"{outside}/31"),
        Address(ns=ns, link=UPLINK, address=f"{inside}/31"),
        Route(ns=ns, destination="0.0.0.0/0", link=UPLINK, via=str(outside)),
        Sysctl(ns=ns, path="net/ipv4/ip_forward", value="1"),
        Sysctl(ns=HOST, path="net/ipv4/ip_forward", value="1"),
        *firewall.way_out(link, transit),
        *firewall.way_out_inside(ns, UPLINK),
    ]


def _peer(peer: Peer, ns: str) -> list[Resource]:
    return [
        Fdb(ns=ns, link=TUNNEL, mac=peer.mac, vtep=peer.vtep),
        Fdb(ns=ns, link=TUNNEL, mac=peer.mac),
        *(Neighbour(ns=ns, link=TUNNEL, ip=str(one.ip), mac=peer.mac) for one in peer.addresses),
        *firewall.remote(peer.vtep),
    ]
