"""Published ports: which addresses of the host a binding means, and the map elements that lead it to its endpoint.

| map or set | key | value | meaning |
|---|---|---|---|
| `ports4`, `ports6` | protocol . address . port | address . port | bindings to one address of the host |
| `any_ports4`, `any_ports6` | protocol . port | address . port | bindings to any address of the family |
| `self4`, `self6` | address . address | | endpoints with ports, each twice: its packets to itself are masqueraded |

The rules that look into them never change, so a port costs its elements whatever else is published
(docs/decisions/0007-published-ports.md).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from netweft_common.errors import InvalidArgument

from netweft_agent.domain import nft
from netweft_agent.domain.objects import Endpoint, PublishedPort
from netweft_agent.domain.resources import ANY_ADDRESS, HOST, PortHold, Resource, Sysctl

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

MASQUERADED_SELF = tuple(
    nft.rule(nft.Match(fields, SELF[version]), nft.Match(nft.CT_STATUS_FIELD, "dnat"), nft.Masquerade())
    for version, fields in ((4, (nft.IP_SADDR, nft.IP_DADDR)), (6, (nft.IP6_SADDR, nft.IP6_DADDR)))
)
"""Rules of postrouting for bridged frames, which br_netfilter shows there without an incoming interface."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a binding leads in one family."""

    version: int
    host_address: str
    address: str

    @property
    def is_any(self) -> bool:
        """Whether it is reached at all addresses of the host."""
        return self.host_address == UNSPECIFIED[self.version]


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


def refuse_twice(endpoint: Endpoint, of: Ways) -> None:
    """Refuse two bindings of one endpoint that want the same port of the host.

    Raises:
        InvalidArgument: There are such; names both.
    """
    seen: dict[tuple[str, int, int], list[tuple[str, PublishedPort]]] = {}
    for port in endpoint.ports:
        for way in of(port):
            others = seen.setdefault((port.protocol, way.version, port.number), [])
            for host_address, other in others:
                if way.is_any or host_address in {way.host_address, UNSPECIFIED[way.version]}:
                    raise InvalidArgument(
                        "PORT_TWICE",
                        f"endpoint {endpoint.name} publishes its ports {other.container_port} and "
                        f"{port.container_port} both as {port.number}/{port.protocol} of host address "
                        f"{way.host_address if way.is_any else host_address}; give one of them another port or address",
                        field="ports",
                    )
            others.append((way.host_address, port))


def render(endpoint: Endpoint, bridge: str, of: Ways) -> list[Resource]:
    """Render an endpoint's bindings: held ports, map elements, and the way through 127.0.0.1.

    Args:
        endpoint: The endpoint, its bindings with assigned ports.
        bridge: Name of its bridge.
        of: Where each binding leads; one that leads nowhere is left out.
    """
    wanted: list[Resource] = []
    holder = f"endpoint {endpoint.name} ({endpoint.id})"
    through_loopback = False
    versions: dict[int, str] = {}
    for port in endpoint.ports:
        found = of(port)
        if not found:
            continue
        wanted.append(
            PortHold(
                ns=HOST,
                protocol=port.protocol,
                address=ANY_ADDRESS if len(found) > 1 else found[0].host_address,
                port=port.number,
                targets=tuple([_text(way.address, port.container_port) for way in found]),
                holder=holder,
            )
        )
        for way in found:
            wanted.append(_element(port, way))
            versions[way.version] = way.address
            through_loopback = through_loopback or way.is_any or way.host_address.startswith("127.")
    wanted += [
        nft.NftElement(ns=HOST, table=TABLE, spec=SELF[version], item=(address, address))
        for version, address in versions.items()
    ]
    if through_loopback and 4 in versions:
        wanted.append(Sysctl(ns=HOST, path=f"net/ipv4/conf/{bridge}/route_localnet", value="1"))
    return wanted


def _element(port: PublishedPort, way: Target) -> nft.NftElement:
    value = (way.address, port.container_port)
    if way.is_any:
        spec, item = ANY_PORTS[way.version], (port.protocol, port.number)
        return nft.NftElement(ns=HOST, table=TABLE, spec=spec, item=item, value=value)
    spec = PORTS[way.version]
    full = (port.protocol, way.host_address, port.number)
    return nft.NftElement(ns=HOST, table=TABLE, spec=spec, item=full, value=value)


def _text(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
