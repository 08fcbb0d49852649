"""Published ports: which addresses of the host a binding means, and the map elements that lead it to its endpoint.

| map or set | key | value | meaning |
|---|---|---|---|
| `ports4`, `ports6` | protocol . address . port | address . port | bindings to one address of the host |
| `any_ports4`, `any_ports6` | protocol . port | address . port | bindings to any address of the family |
| `self4`, `self6` | address . address | | endpoints with ports, each twice: its packets to itself are masqueraded |

The rules that look into them never change, so a port costs its elements whatever else is published
(docs/decisions/0007-published-ports.md).

Where a network has a namespace of its own, addresses of which may be another network's too, a port is led there first,
under its own number, and by `any_ports4` and `any_ports6` of that namespace to its endpoint: see `Through`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec
from netweft_common.errors import FailedPrecondition, InvalidArgument

from netweft_agent.domain import nft, ports
from netweft_agent.domain.objects import Endpoint, Network, PublishedPort
from netweft_agent.domain.resources import ANY_ADDRESS, HOST, Ns, PortHold, Resource, Sysctl
from netweft_agent.drivers import base

TABLE = nft.Table("inet", "netweft")

UNSPECIFIED = {4: "0.0.0.0", 6: "::"}  # noqa: S104  # what a binding says, nothing is bound here

_ADDRESS = {4: nft.IPV4_ADDR, 6: nft.IPV6_ADDR}
_FAMILY = {4: "ip", 6: "ip6"}
_DADDR = {4: nft.IP_DADDR, 6: nft.IP6_DADDR}

PORTS = {
    version: nft.Set(
        name=f"ports{version}",
        key=(nft.INET_PROTO, address, nft.INET_SERVICE),
        data=(address, nft.INET_SERVICE),
    )
    for version, address in _ADDRESS.items()
}
ANY_PORTS = {
    version: nft.Set(
        name=f"any_ports{version}", key=(nft.INET_PROTO, nft.INET_SERVICE), data=(address, nft.INET_SERVICE)
    )
    for version, address in _ADDRESS.items()
}
SELF = {version: nft.Set(name=f"self{version}", key=(address, address)) for version, address in _ADDRESS.items()}


def _chain(name: str, base: nft.Base | None, *rules: nft.Rule) -> nft.NftChain:
    return nft.NftChain(ns=HOST, table=TABLE, name=name, base=base, rules=rules)


_IS_LOCAL = nft.Match(nft.FIB_DADDR_TYPE, "local")

BASE: tuple[Resource, ...] = (
    *(
        nft.NftSet(ns=HOST, table=TABLE, spec=spec)
        for version in (4, 6)
        for spec in (PORTS[version], ANY_PORTS[version], SELF[version])
    ),
    _chain(
        "publish",
        None,
        # An answer to a link-local address would not find its way back.
        nft.rule(nft.Match(nft.IP6_SADDR, "fe80::/10"), nft.RETURN),
        *(
            rule
            for version in (4, 6)
            for rule in (
                nft.rule(nft.Dnat(_FAMILY[version], (nft.META_L4PROTO, _DADDR[version], nft.TH_DPORT), PORTS[version])),
                nft.rule(nft.Dnat(_FAMILY[version], (nft.META_L4PROTO, nft.TH_DPORT), ANY_PORTS[version])),
            )
        ),
    ),
    _chain(
        "prerouting",
        nft.Base(type="nat", hook="prerouting", priority=-100),
        # What came over a wire has no business with a loopback address.
        nft.rule(nft.Match(nft.IP_DADDR, "127.0.0.0/8"), nft.RETURN),
        nft.rule(_IS_LOCAL, nft.jump("publish")),
    ),
    _chain(
        "output",
        nft.Base(type="nat", hook="output", priority=-100),
        # There is no route back to it from a bridge; the socket that holds the port refuses at once.
        nft.rule(nft.Match(nft.IP6_DADDR, "::1"), nft.RETURN),
        nft.rule(_IS_LOCAL, nft.jump("publish")),
    ),
)
"""What there is as soon as there is a bridge network, published ports or not."""


def inside(ns: Ns, link: str) -> list[Resource]:
    """Render what leads published ports on inside a network's own namespace.

    Args:
        ns: The namespace.
        link: By which packets come in from the host.
    """
    return [
        *(nft.NftSet(ns=ns, table=TABLE, spec=ANY_PORTS[version]) for version in (4, 6)),
        nft.NftChain(
            ns=ns,
            table=TABLE,
            name="prerouting",
            base=nft.Base(type="nat", hook="prerouting", priority=-100),
            rules=(
                nft.rule(nft.Match(nft.META_IIFNAME, link, op="!="), nft.RETURN),
                *(
                    nft.rule(nft.Dnat(_FAMILY[version], (nft.META_L4PROTO, nft.TH_DPORT), ANY_PORTS[version]))
                    for version in (4, 6)
                ),
            ),
        ),
    ]


MASQUERADED_SELF = tuple(
    nft.rule(nft.Match(fields, SELF[version]), nft.Match(nft.CT_STATUS_FIELD, "dnat"), nft.Masquerade())
    for version, fields in ((4, (nft.IP_SADDR, nft.IP_DADDR)), (6, (nft.IP6_SADDR, nft.IP6_DADDR)))
)
"""Rules of postrouting for bridged frames, which br_netfilter shows there without an incoming interface."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a binding leads in one family.

    Attributes:
        text: The address as it is written before a port.
        is_any: It is reached at all addresses of the host.
    """

    version: int
    host_address: str
    address: str
    text: str = ""
    is_any: bool = False

    def __post_init__(self) -> None:
        """Work out what thousands of bindings ask."""
        msgspec.structs.force_setattr(self, "text", f"[{self.address}]" if self.version == 6 else self.address)
        msgspec.structs.force_setattr(self, "is_any", self.host_address == UNSPECIFIED[self.version])


class Through(msgspec.Struct, frozen=True, kw_only=True):
    """A network's own namespace, which ports are led through.

    Attributes:
        ns: The namespace.
        addresses: Its own ones, at which the host reaches it, by IP version.
    """

    ns: Ns
    addresses: Mapping[int, str]


Ways = Callable[[PublishedPort], tuple[Target, ...]]
"""Returns where a binding leads: at most one target a family, IPv4 first."""


def ways(endpoint: Endpoint, default_address: str, versions: Collection[int]) -> Ways:
    """Return where the endpoint's bindings lead.

    Args:
        endpoint: The endpoint.
        default_address: Host address of bindings that name none; an unspecified one means both families.
        versions: IP versions in which the network translates.
    """
    own = {one.version: str(one.ip) for one in endpoint.addresses if one.version in versions}
    known: dict[str, tuple[Target, ...]] = {}  # there are thousands of bindings, and few host addresses

    def of(port: PublishedPort) -> tuple[Target, ...]:
        asked = port.host_address
        found = known.get(asked)
        if found is None:
            host = asked or default_address
            both = not asked and host in UNSPECIFIED.values()
            named = 6 if ":" in host else 4
            found = known[asked] = tuple(
                Target(version=version, host_address=UNSPECIFIED[version] if both else host, address=own[version])
                for version in sorted(own)
                if both or version == named
            )
        return found

    return of


def addresses(of: Ways) -> ports.Addresses:
    """Return what tells the host's addresses that bindings are held at.

    Args:
        of: Where they lead, which their host address alone decides.
    """
    known: dict[str, tuple[str, ...]] = {}

    def at(port: PublishedPort) -> tuple[str, ...]:
        found = known.get(port.host_address)
        if found is None:
            found = known[port.host_address] = tuple(way.host_address for way in of(port))
        return found

    return at


def refuse_twice(endpoint: Endpoint, of: Ways, *, by_number: bool = False) -> None:
    """Refuse two bindings of one endpoint that want the same port of the host.

    Args:
        endpoint: The endpoint.
        of: Where each binding leads.
        by_number: Ports of one number lead to one port of the container, whichever address of the host they are at.

    Raises:
        InvalidArgument: There are such; names both.
    """
    if len({(port.protocol, port.number) for port in endpoint.ports}) == len(endpoint.ports):
        return
    seen: dict[tuple[str, int, int], list[tuple[str, PublishedPort]]] = {}
    for port in endpoint.ports:
        for way in of(port):
            others = seen.setdefault((port.protocol, way.version, port.number), [])
            for host_address, other in others:
                if (
                    way.is_any
                    or host_address in {way.host_address, UNSPECIFIED[way.version]}
                    or (by_number and other.container_port != port.container_port)
                ):
                    raise InvalidArgument(
                        "PORT_TWICE",
                        f"endpoint {endpoint.name} publishes its ports {other.container_port} and "
                        f"{port.container_port} both as {port.number}/{port.protocol} of host address "
                        f"{way.host_address if way.is_any else host_address}; give one of them another port or address",
                        field="ports",
                    )
            others.append((way.host_address, port))


def refuse_unreachable(
    network: Network, endpoint: Endpoint, bindings: Iterable[PublishedPort], of: Ways, default_address: str
) -> None:
    """Refuse bindings that no kernel can lead into the endpoint.

    Args:
        network: Of the endpoint.
        endpoint: Whose they are.
        bindings: Of it, those that lead somewhere with assigned ports.
        of: Where each binding leads.
        default_address: Host address of bindings that name none.

    Raises:
        FailedPrecondition: The network is internal, lacks the family or a gateway; or a port is not assigned.
        InvalidArgument: A binding to the IPv6 loopback address, or two want the same port of the host.
    """
    fit: set[str] = set()  # there are thousands of bindings, and few host addresses
    for port in bindings:
        if port.host_address not in fit:
            _refuse_address(network, endpoint, port, of(port), default_address)
            fit.add(port.host_address)
        if not port.number:
            raise FailedPrecondition(
                "PORT_NOT_ASSIGNED",
                f"{_what(endpoint, port)} has no port of the host yet; name one with host_port",
                field="ports",
            )


def _what(endpoint: Endpoint, port: PublishedPort) -> str:
    return f"endpoint {endpoint.name}: port {port.container_port}/{port.protocol}"


def _refuse_address(
    network: Network, endpoint: Endpoint, port: PublishedPort, ways: tuple[Target, ...], default_address: str
) -> None:
    """Refuse a binding for its host address, whatever its ports."""
    what = _what(endpoint, port)
    if network.internal:
        raise FailedPrecondition(
            "INTERNAL_NETWORK",
            f"{what} cannot be published: network {network.name} is internal, so nothing outside reaches it; "
            "publish it on another network of the sandbox",
            network=network.name,
        )
    if port.host_address == "::1":
        raise InvalidArgument(
            "IPV6_LOOPBACK",
            f"{what} cannot be published at [::1]: IPv6 has no way from the loopback address into a network; use "
            "127.0.0.1, or an address of the host",
            field="ports.host_address",
        )
    if not ways:
        versions = " and ".join(f"IPv{one.version}" for one in endpoint.addresses) or "no"
        raise FailedPrecondition(
            "NO_ADDRESS_OF_FAMILY",
            f"{what} cannot be published at {port.host_address or default_address}: the endpoint has "
            f"{versions} addresses only, and nothing translates between families; publish it at an address of its "
            "own family, or give the network the other one",
            network=network.name,
        )
    if all(base.subnet_gateway(network, endpoint, one.version) is None for one in ways):
        raise FailedPrecondition(
            "NO_GATEWAY",
            f"{what} cannot be published: network {network.name} has no gateway, so no answer would leave it; "
            "make the network with one, or publish the port on another network of the sandbox",
            network=network.name,
        )


def render(endpoint: Endpoint, link: str, of: Ways, through: Through | None = None) -> list[Resource]:
    """Render an endpoint's bindings: held ports, map elements, and the way through 127.0.0.1.

    Args:
        endpoint: The endpoint, its bindings with assigned ports.
        link: Name of the host's link that leads to it, its bridge for instance.
        of: Where each binding leads; one that leads nowhere is left out.
        through: Namespace that leads them on; None: the host reaches the endpoint's address itself.
    """
    wanted: list[Resource] = []
    holder = f"endpoint {endpoint.name} ({endpoint.id})"
    used: dict[int, tuple[Target, ...]] = {}  # a few: `of` answers alike bindings with one and the same tuple
    for port in endpoint.ports:  # thousands, perhaps
        found = of(port)
        if not found:
            continue
        number, inside = port.number, port.container_port
        wanted.append(
            PortHold(
                ns=HOST,
                protocol=port.protocol,
                address=ANY_ADDRESS if len(found) > 1 else found[0].host_address,
                port=number,
                targets=tuple([f"{way.text}:{inside}" for way in found]),
                holder=holder,
                through="" if through is None else through.ns,
            )
        )
        for way in found:
            if through is None:
                wanted.append(_element(port.protocol, number, way, (way.address, inside)))
            else:
                wanted.append(_element(port.protocol, number, way, (through.addresses[way.version], number)))
                wanted.append(_onward(port.protocol, number, way.version, through.ns, (way.address, inside)))
        used[id(found)] = found
    ways = [way for found in used.values() for way in found]
    versions = {way.version: way.address for way in ways}
    through_loopback = any(way.is_any or way.host_address.startswith("127.") for way in ways)
    if through is None:
        wanted += [
            nft.NftElement(ns=HOST, table=TABLE, spec=SELF[version], item=(address, address))
            for version, address in versions.items()
        ]
    if through_loopback and 4 in versions:
        wanted.append(Sysctl(ns=HOST, path=f"net/ipv4/conf/{link}/route_localnet", value="1"))
    return wanted


def _onward(protocol: str, number: int, version: int, ns: Ns, value: tuple[str, int]) -> nft.NftElement:
    return nft.NftElement(ns=ns, table=TABLE, spec=ANY_PORTS[version], item=(protocol, number), value=value)


def _element(protocol: str, number: int, way: Target, value: tuple[str, int]) -> nft.NftElement:
    if way.is_any:
        spec = ANY_PORTS[way.version]
        return nft.NftElement(ns=HOST, table=TABLE, spec=spec, item=(protocol, number), value=value)
    full = (protocol, way.host_address, number)
    return nft.NftElement(ns=HOST, table=TABLE, spec=PORTS[way.version], item=full, value=value)
