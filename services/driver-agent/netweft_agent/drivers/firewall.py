"""Firewall state that drivers share: one table of ours, rules that never grow, sets that each network adds itself to.

| set or map | key | who adds | meaning |
|---|---|---|---|
| `bridges` | interface | each bridge network | these interfaces are ours to judge |
| `same_bridge` | interface . interface | networks with icc on | its endpoints may talk to each other |
| `icc_off` | interface . interface | networks with icc off | they may not, through the host neither |
| `internal` | interface | internal networks | nothing in, nothing out |
| `masquerade4`, `masquerade6` | prefix | networks with masquerade on | leaves with the host's address |
| `snat4`, `snat6` | prefix to address | networks with a SNAT address | leaves with that address |
| `unprotected` | IP version . interface | networks in mode nat-unprotected | anybody may come in |
| `routed` | IP version . interface | networks in mode routed | may be pinged |
| `opened4`, `opened6` | address . protocol . port | their endpoints' published ports | anybody may come in |
| `trusted` | interface . interface | networks with trusted interfaces | who comes from there may come in |
| `shards` | interface | each further bridge of a network | what passes it is tracked at the first one |
| `turned` | no interface . interface | networks with further bridges | what turns round there is masqueraded |
| `trunks` | interface . interface | each trunk of a further bridge | nothing but translated frames turns round |
| `tunnel_ports` | UDP port | each overlay network | VXLAN may come here |
| `tunnels` | VNI | each overlay network | ours; other VXLAN on the port is not judged |
| `vteps4`, `vteps6` | VNI . address | each host with a peer in the network | the only senders of that network's VXLAN |

An accept here ends only our own chain: an administrator's chains (table `inet netweft-admin`, which is his) come first,
and other programs' rules are asked as well. What endpoints may send is judged before all that, see `guard`.

The namespace of an overlay network has a table of its own: see `way_out_inside`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, ip_address

import msgspec

from netweft_agent.domain import names, nft
from netweft_agent.domain.objects import Network, Subnetwork
from netweft_agent.domain.resources import HOST, Ns, Resource, Sysctl
from netweft_agent.drivers import guard, publish

TABLE = publish.TABLE

BRIDGES = nft.Set(name="bridges", key=(nft.IFNAME,))
SAME_BRIDGE = nft.Set(name="same_bridge", key=(nft.IFNAME, nft.IFNAME))
ICC_OFF = nft.Set(name="icc_off", key=(nft.IFNAME, nft.IFNAME))
INTERNAL = nft.Set(name="internal", key=(nft.IFNAME,))
MASQUERADE4 = nft.Set(name="masquerade4", key=(nft.IPV4_ADDR,), interval=True)
MASQUERADE6 = nft.Set(name="masquerade6", key=(nft.IPV6_ADDR,), interval=True)
SNAT4 = nft.Set(name="snat4", key=(nft.IPV4_ADDR,), data=(nft.IPV4_ADDR,), interval=True)
SNAT6 = nft.Set(name="snat6", key=(nft.IPV6_ADDR,), data=(nft.IPV6_ADDR,), interval=True)
UNPROTECTED = nft.Set(name="unprotected", key=(nft.NF_PROTO, nft.IFNAME))
ROUTED = nft.Set(name="routed", key=(nft.NF_PROTO, nft.IFNAME))
OPENED4 = nft.Set(name=names.OPENED[4], key=(nft.IPV4_ADDR, nft.INET_PROTO, nft.INET_SERVICE))
OPENED6 = nft.Set(name=names.OPENED[6], key=(nft.IPV6_ADDR, nft.INET_PROTO, nft.INET_SERVICE))
TRUSTED = nft.Set(name="trusted", key=(nft.IFNAME, nft.IFNAME))
SHARDS = nft.Set(name="shards", key=(nft.IFNAME,))
TURNED = nft.Set(name="turned", key=(nft.IFNAME, nft.IFNAME))
TRUNKS = nft.Set(name="trunks", key=(nft.IFNAME, nft.IFNAME))
TUNNEL_PORTS = nft.Set(name="tunnel_ports", key=(nft.INET_SERVICE,))
TUNNELS = nft.Set(name="tunnels", key=(nft.VXLAN_VNI.type,))
VTEPS4 = nft.Set(name="vteps4", key=(nft.IPV4_ADDR, nft.IPV4_ADDR))
VTEPS6 = nft.Set(name="vteps6", key=(nft.IPV4_ADDR, nft.IPV6_ADDR))

_BOTH_INTERFACES = (nft.META_IIFNAME, nft.META_OIFNAME)
_VERSION_AND_BRIDGE = (nft.META_NFPROTO, nft.META_OIFNAME)

_FORWARD = nft.NftChain(
    ns=HOST,
    table=TABLE,
    name="forward",
    base=nft.Base(type="filter", hook="forward", priority=0),
    rules=(
        nft.rule(nft.Match(nft.CT_STATE_FIELD, "established,related"), nft.ACCEPT),
        nft.rule(
            nft.Match(nft.META_IIFNAME, BRIDGES, op="!="), nft.Match(nft.META_OIFNAME, BRIDGES, op="!="), nft.ACCEPT
        ),
        # Bridged frames are seen here when br_netfilter is on.
        nft.rule(nft.Match(_BOTH_INTERFACES, SAME_BRIDGE), nft.ACCEPT),
        nft.rule(nft.Match(_BOTH_INTERFACES, ICC_OFF), nft.DROP),
        nft.rule(nft.Match(nft.META_IIFNAME, INTERNAL), nft.DROP),
        nft.rule(nft.Match(nft.META_OIFNAME, INTERNAL), nft.DROP),
        nft.rule(nft.Match(nft.META_OIFNAME, BRIDGES, op="!="), nft.ACCEPT),
        nft.rule(nft.Match(nft.CT_STATUS_FIELD, "dnat"), nft.ACCEPT),
        nft.rule(nft.Match(_VERSION_AND_BRIDGE, UNPROTECTED), nft.ACCEPT),
        nft.rule(nft.Match(_BOTH_INTERFACES, TRUSTED), nft.ACCEPT),
        nft.rule(nft.Match((nft.IP_DADDR, nft.META_L4PROTO, nft.TH_DPORT), OPENED4), nft.ACCEPT),
        nft.rule(nft.Match((nft.IP6_DADDR, nft.META_L4PROTO, nft.TH_DPORT), OPENED6), nft.ACCEPT),
        nft.rule(nft.Match(_VERSION_AND_BRIDGE, ROUTED), nft.Match(nft.ICMP, "echo-request"), nft.ACCEPT),
        nft.rule(nft.Match(_VERSION_AND_BRIDGE, ROUTED), nft.Match(nft.ICMPV6, "echo-request"), nft.ACCEPT),
        # From one network to another, or from outside to an address that nobody published.
        nft.rule(nft.DROP),
    ),
)

# Ahead of connection tracking: at this point no answer to a masqueraded connection has its loopback address back.
_RAW = nft.NftChain(
    ns=HOST,
    table=TABLE,
    name="raw",
    base=nft.Base(type="filter", hook="prerouting", priority=-300),
    rules=(nft.rule(nft.Match(nft.META_IIFNAME, BRIDGES), nft.Match(nft.IP_DADDR, "127.0.0.0/8"), nft.DROP),),
)

_POSTROUTING = nft.NftChain(
    ns=HOST,
    table=TABLE,
    name="postrouting",
    base=nft.Base(type="nat", hook="postrouting", priority=100),
    rules=(
        # From an endpoint to its own network by a published port: the answer would go straight to it.
        nft.rule(nft.Match(_BOTH_INTERFACES, SAME_BRIDGE), nft.Match(nft.CT_STATUS_FIELD, "dnat"), nft.Masquerade()),
        *publish.MASQUERADED_SELF,
        # From the host through 127.0.0.1.
        nft.rule(nft.Match(nft.META_OIFNAME, BRIDGES), nft.Match(nft.IP_SADDR, "127.0.0.0/8"), nft.Masquerade()),
        nft.rule(nft.Match(nft.META_OIFNAME, BRIDGES), nft.RETURN),
        nft.rule(nft.Snat("ip", nft.IP_SADDR, SNAT4)),
        nft.rule(nft.Snat("ip6", nft.IP6_SADDR, SNAT6)),
        nft.rule(nft.Match(nft.IP_SADDR, MASQUERADE4), nft.Masquerade()),
        nft.rule(nft.Match(nft.IP6_SADDR, MASQUERADE6), nft.Masquerade()),
    ),
)

_INPUT = nft.NftChain(
    ns=HOST,
    table=TABLE,
    name="input",
    base=nft.Base(type="filter", hook="input", priority=0),
    rules=tuple(
        nft.rule(
            nft.Match(nft.UDP_DPORT, TUNNEL_PORTS),
            nft.Match(nft.VXLAN_VNI, TUNNELS),
            nft.Match((nft.VXLAN_VNI_AS_ADDRESS, source), vteps, op="!="),
            nft.Counter(),
            nft.DROP,
        )
        for source, vteps in ((nft.IP_SADDR, VTEPS4), (nft.IP6_SADDR, VTEPS6))
    ),
)


def _sets(*specs: nft.Set) -> list[Resource]:
    return [nft.NftSet(ns=HOST, table=TABLE, spec=spec) for spec in specs]


def _element(spec: nft.Set, *item: nft.Atom) -> nft.NftElement:
    return nft.NftElement(ns=HOST, table=TABLE, spec=spec, item=item)


ADMIN = nft.NftOffer(
    ns=HOST,
    table=nft.Table("inet", "netweft-admin"),
    chains=(
        ("prerouting", nft.Base(type="filter", hook="prerouting", priority=-110)),
        ("forward", nft.Base(type="filter", hook="forward", priority=-10)),
    ),
)
"""Chains of the administrator, ahead of ours: what is dropped there does not come to us."""

_DOCKER = tuple(nft.Table(family, "filter") for family in ("ip", "ip6"))
_DOCKER_USER = "DOCKER-USER"


def _guests(interface: str) -> list[Resource]:
    """Render that Docker lets through what we judge: its policy of FORWARD is drop, and it has a chain for that."""
    return [
        nft.NftGuest(
            ns=HOST,
            table=table,
            chain=_DOCKER_USER,
            rule=nft.rule(nft.Match(direction, interface), nft.Counter(), nft.ACCEPT),
        )
        for table in _DOCKER
        for direction in (nft.META_IIFNAME, nft.META_OIFNAME)
    ]


_BRIDGE_BASE: tuple[Resource, ...] = (
    ADMIN,
    nft.NftTable(ns=HOST, table=TABLE, owned=True),
    *_sets(BRIDGES, SAME_BRIDGE, ICC_OFF, INTERNAL, MASQUERADE4, MASQUERADE6, SNAT4, SNAT6),
    *_sets(UNPROTECTED, ROUTED, OPENED4, OPENED6, TRUSTED),
    *publish.BASE,
    _RAW,
    _FORWARD,
    _POSTROUTING,
    *(guest for prefix in names.BRIDGES for guest in _guests(f"{prefix}*")),
)

_FURTHER_BASE: tuple[Resource, ...] = (
    *_sets(SHARDS, TURNED),
    # With br_netfilter a bridged frame is tracked and translated in each bridge that it passes, and what one bridge has
    # translated would be a stranger to the next: all of that is done in the first one alone.
    nft.NftChain(
        ns=HOST,
        table=TABLE,
        name="shards",
        base=nft.Base(type="filter", hook="prerouting", priority=-300),
        rules=(nft.rule(nft.Match(nft.META_IIFNAME, SHARDS), nft.Notrack()),),
    ),
    # From one endpoint of a further bridge to another's published port, in a frame that turns round in the first
    # bridge: the answer would go straight to it. There is no incoming interface; the host's own packets have none
    # either, but an address of the host.
    nft.NftChain(
        ns=HOST,
        table=TABLE,
        name="turned",
        base=nft.Base(type="nat", hook="postrouting", priority=90),
        rules=(
            nft.rule(
                nft.Match(_BOTH_INTERFACES, TURNED),
                nft.Match(nft.CT_STATUS_FIELD, "dnat"),
                nft.Match(nft.FIB_SADDR_TYPE, "local", op="!="),
                nft.Masquerade(),
            ),
        ),
    ),
    nft.NftTable(ns=HOST, table=guard.TABLE, owned=True),
    nft.NftSet(ns=HOST, table=guard.TABLE, spec=TRUNKS),
    # Only what was translated may turn round: all else was meant for ports that have it already.
    nft.NftChain(
        ns=HOST,
        table=guard.TABLE,
        name="forward",
        base=nft.Base(type="filter", hook="forward", priority=-200),
        rules=(
            nft.rule(
                nft.Match(_BOTH_INTERFACES, TRUNKS), nft.Match(nft.META_PKTTYPE, ("broadcast", "multicast")), nft.DROP
            ),
        ),
    ),
)

_TUNNEL_BASE: tuple[Resource, ...] = (
    nft.NftTable(ns=HOST, table=TABLE, owned=True),
    *_sets(TUNNEL_PORTS, TUNNELS, VTEPS4, VTEPS6),
    _INPUT,
)


MASQUERADE = "masquerade"
"""As the address that traffic leaves with: that of the interface by which it leaves."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What is let through of a bridge network.

    Attributes:
        icc: Let its endpoints talk to each other.
        leaving: Address that leaving traffic gets, or MASQUERADE, by IP version; without: it keeps its own.
        unprotected: IP versions in which anybody may come in.
        routed: IP versions in which anybody may ping.
        trusted: Interfaces from which anybody may come in.
        guarded: Its endpoints send as themselves only.
    """

    icc: bool
    leaving: Mapping[int, str]
    unprotected: frozenset[int] = frozenset()
    routed: frozenset[int] = frozenset()
    trusted: tuple[str, ...] = ()
    guarded: bool = True


def network(bridge: str, network: Network, policy: Policy) -> list[Resource]:
    """Render what a bridge network needs: to be told apart, to leave, and to be reached as its policy says.

    Args:
        bridge: Name of its bridge.
        network: The network.
        policy: What is let through.
    """
    pairs = SAME_BRIDGE if policy.icc else ICC_OFF
    wanted = [*_BRIDGE_BASE, _element(BRIDGES, bridge), _element(pairs, bridge, bridge)]
    if policy.guarded:
        wanted += guard.BASE
    if not bridge.startswith(names.BRIDGES):
        wanted += _guests(bridge)
    if network.internal:
        return [*wanted, _element(INTERNAL, bridge)]
    versions = {4} if network.enable_ipv4 else set()
    versions |= {6} if network.enable_ipv6 else set()
    wanted += [
        leaving(one.subnet, policy.leaving[one.subnet.version])
        for one in network.subnets
        if one.subnet.version in policy.leaving
    ]
    wanted += [_element(UNPROTECTED, f"ipv{version}", bridge) for version in sorted(policy.unprotected & versions)]
    wanted += [_element(ROUTED, f"ipv{version}", bridge) for version in sorted(policy.routed & versions)]
    wanted += [_element(TRUSTED, interface, bridge) for interface in policy.trusted]
    return wanted


def further(bridge: str, trunk: str, first: str) -> list[Resource]:
    """Render what a further bridge of a network needs: all that passes it is judged and translated at the first one.

    What is bridged inside of it is judged by its ports alone (`isolated`), also where br_netfilter is on.

    Args:
        bridge: Name of the further bridge.
        trunk: Name of its trunk's end at the first bridge.
        first: Name of the first bridge.
    """
    return [
        *_FURTHER_BASE,
        _element(SHARDS, bridge),
        _element(TURNED, "", first),
        nft.NftElement(ns=HOST, table=guard.TABLE, spec=TRUNKS, item=(trunk, trunk)),
    ]


def further_inside(ns: Ns, bridges: str) -> list[Resource]:
    """Render for a network's own namespace that what passes further bridges is tracked at the first one.

    Args:
        ns: The network's namespace.
        bridges: What the names of the further bridges begin with.
    """
    return [
        nft.NftTable(ns=ns, table=TABLE),
        nft.NftChain(
            ns=ns,
            table=TABLE,
            name="shards",
            base=nft.Base(type="filter", hook="prerouting", priority=-300),
            rules=(nft.rule(nft.Match(nft.META_IIFNAME, f"{bridges}*"), nft.Notrack()),),
        ),
    ]


def opened(address: str, protocol: str, port: int) -> nft.NftElement:
    """Render that anybody may come in to a port of an endpoint's own address."""
    return _element(OPENED6 if ":" in address else OPENED4, address, protocol, port)


def leaving(subnet: Subnetwork, address: str = MASQUERADE) -> nft.NftElement:
    """Render that traffic from a subnet leaves with an address of the host."""
    if address == MASQUERADE:
        return _element(MASQUERADE4 if subnet.version == 4 else MASQUERADE6, str(subnet))
    spec = SNAT4 if subnet.version == 4 else SNAT6
    return nft.NftElement(ns=HOST, table=TABLE, spec=spec, item=(str(subnet),), value=(address,))


def way_out(link: str, transit: Sequence[Subnetwork]) -> list[Resource]:
    """Render what the host's end of an overlay's way out needs: judged as a bridge is, and masqueraded.

    An endpoint that calls a published port of its own network comes out of the link and goes back into it.

    Args:
        link: The host's end of the pair that leads into the network's namespace.
        transit: Prefixes of the pair's addresses, one a family.
    """
    return [
        *_BRIDGE_BASE,
        _element(BRIDGES, link),
        _element(SAME_BRIDGE, link, link),
        *(leaving(one) for one in transit),
    ]


def way_out_inside(ns: Ns, link: str, *, direct: bool = False) -> list[Resource]:
    """Render the firewall of the network's own namespace: out with the pair's address, in with replies and to ports.

    Args:
        ns: The network's namespace.
        link: The pair's end in it.
        direct: What is in the sets of `beside` comes in and goes out by the pair as it is.
    """
    let_in = [nft.rule(nft.Match(nft.META_IIFNAME, link), nft.Match(one, spec), nft.ACCEPT) for one, spec in _FROM]
    as_it_is = [nft.rule(nft.Match(nft.META_OIFNAME, link), nft.Match(one, spec), nft.RETURN) for one, spec in _TO]
    return [
        nft.NftTable(ns=ns, table=TABLE),
        *publish.inside(ns, link),
        nft.NftChain(
            ns=ns,
            table=TABLE,
            name="forward",
            base=nft.Base(type="filter", hook="forward", priority=0),
            rules=(
                nft.rule(nft.Match(nft.CT_STATE_FIELD, "established,related"), nft.ACCEPT),
                nft.rule(nft.Match(nft.CT_STATUS_FIELD, "dnat"), nft.ACCEPT),
                *(let_in if direct else ()),
                nft.rule(nft.Match(nft.META_IIFNAME, link), nft.DROP),
            ),
        ),
        nft.NftChain(
            ns=ns,
            table=TABLE,
            name="postrouting",
            base=nft.Base(type="nat", hook="postrouting", priority=100),
            rules=(*(as_it_is if direct else ()), nft.rule(nft.Match(nft.META_OIFNAME, link), nft.Masquerade())),
        ),
    ]


DIRECT4 = nft.Set(name="direct4", key=(nft.IPV4_ADDR,))
DIRECT6 = nft.Set(name="direct6", key=(nft.IPV6_ADDR,))
_FROM = ((nft.IP_SADDR, DIRECT4), (nft.IP6_SADDR, DIRECT6))
_TO = ((nft.IP_DADDR, DIRECT4), (nft.IP6_DADDR, DIRECT6))


def direct(ns: Ns, underlay: str, link: str, inside: str) -> list[Resource]:
    """Render that what is led to a network's namespace from the underlay is let through to it, and judged there.

    Args:
        ns: The network's namespace.
        underlay: Interface of the host that it comes by.
        link: The host's end of the pair that leads into the namespace.
        inside: The pair's other end.
    """
    return [
        _element(TRUSTED, underlay, link),
        *(nft.NftSet(ns=ns, table=TABLE, spec=spec) for spec in (DIRECT4, DIRECT6)),
        # The namespace's own addresses are the host's business.
        nft.NftChain(
            ns=ns,
            table=TABLE,
            name="input",
            base=nft.Base(type="filter", hook="input", priority=0),
            rules=(
                nft.rule(nft.Match(nft.CT_STATE_FIELD, "established,related"), nft.ACCEPT),
                nft.rule(nft.Match(nft.META_IIFNAME, inside), nft.DROP),
            ),
        ),
    ]


def beside(ns: Ns, address: str) -> nft.NftElement:
    """Render that an address is an endpoint of a host on the same link, which is led to without a tunnel."""
    return nft.NftElement(ns=ns, table=TABLE, spec=DIRECT6 if ":" in address else DIRECT4, item=(address,))


def no_redirects(ns: Ns) -> list[Resource]:
    """Render that a network's gateway tells nobody of shorter ways between its subnets.

    Both are on one bridge, so the kernel would; endpoints would keep routes that nobody takes back. For IPv4 there is
    a setting, for IPv6 there is none (`ip6_forward` in net/ipv6/ip6_output.c).
    """
    return [
        nft.NftTable(ns=ns, table=TABLE),
        nft.NftChain(
            ns=ns,
            table=TABLE,
            name="output",
            base=nft.Base(type="filter", hook="output", priority=0),
            rules=(nft.rule(nft.Match(nft.ICMPV6, "nd-redirect"), nft.DROP),),
        ),
        *(Sysctl(ns=ns, path=f"net/ipv4/conf/{which}/send_redirects", value="0") for which in ("all", "default")),
    ]


def tunnel(port: int, vni: int) -> list[Resource]:
    """Render that VXLAN of a VNI is judged: only known tunnel addresses may send it."""
    return [*_TUNNEL_BASE, _element(TUNNEL_PORTS, port), _element(TUNNELS, vni)]


@functools.lru_cache(maxsize=4096)
def remote(vni: int, vtep: str) -> Resource:
    """Render that a tunnel address may send VXLAN of a VNI; asked for with each endpoint behind it."""
    spec = VTEPS4 if ip_address(vtep).version == 4 else VTEPS6
    return _element(spec, str(IPv4Address(vni << 8)), vtep)
