"""What a sandbox as a whole needs: namespace, loopback, default routes, hosts and resolv.conf.

These depend on all its endpoints together, so they are rendered together whenever one of them comes or goes.
The rules are libnetwork's: which endpoint gives the default route, for IPv4 and IPv6 apart; what `hosts` holds; how
`resolv.conf` is made from the host's. Where they are not, docs/decisions/0018-hosts-and-resolv-conf.md says why.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from ipaddress import ip_address

import msgspec

from netweft_agent.domain.objects import HANDOVER, Endpoint, Facts, HostFiles, Interface, Sandbox, Subnetwork
from netweft_agent.domain.resources import File, Link, Namespace, Ns, Resource, Route, Sysctl

DEFAULT_ROUTE = {4: "0.0.0.0/0", 6: "::/0"}

FALLBACK_SERVERS = {4: ("8.8.8.8", "8.8.4.4"), 6: ("2001:4860:4860::8888", "2001:4860:4860::8844")}
"""Name servers where the host has none but its own loopback (libnetwork's choice)."""

RESOLVED_STUB = "127.0.0.53"
"""Where systemd-resolved(8) answers on the host; it writes the servers behind it into a file of its own."""

HOST_GATEWAY = "host-gateway"
"""Docker's word, in place of an extra host's address, for the address by which the sandbox reaches its host."""

LOCALHOST = {
    4: ("127.0.0.1\tlocalhost",),
    6: (
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "fe00::\tip6-localnet",
        "ff00::\tip6-mcastprefix",
        "ff02::1\tip6-allnodes",
        "ff02::2\tip6-allrouters",
    ),
}
"""What every `hosts` begins with, by IP version."""


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint of the sandbox with what its driver says of it.

    Attributes:
        gateways: Gateway offered, by IP version.
        routes: Further subnets of its network, with the gateway that leads there.
        host: Addresses of its host that it reaches, by IP version; empty: its network does not say.
        ipv6: Whether its interface has IPv6.
    """

    endpoint: Endpoint
    network_name: str
    internal: bool
    gateways: dict[int, Interface]
    routes: Mapping[Subnetwork, Interface] = msgspec.field(default_factory=dict)
    host: Mapping[int, Interface] = msgspec.field(default_factory=dict)
    ipv6: bool = True

    @property
    def addresses(self) -> tuple[Interface, ...]:
        """Addresses that its interface has."""
        return tuple(one for one in self.endpoint.addresses if self.ipv6 or one.version == 4)


def render(sandbox: Sandbox, members: Sequence[Member], facts: Facts, host: HostFiles) -> tuple[Resource, ...]:
    """Return the sandbox's own resources.

    Args:
        sandbox: The sandbox.
        members: All its endpoints.
        facts: Of the host.
        host: The host's own files.
    """
    if sandbox.source == HANDOVER:
        return (Namespace(ns=sandbox.ns, source=sandbox.place),) if sandbox.is_placed else ()
    if sandbox.source == "host":
        return _files(
            sandbox, facts, hosts_of_host_network(sandbox, host, facts), resolv_of_host_network(sandbox, host)
        )
    ns = sandbox.ns
    wanted: list[Resource] = [Namespace(ns=ns, source=sandbox.source)]
    if not sandbox.source:
        # Links are then born with IPv6 off, which spares a write for each; those of IPv6 networks switch it on.
        wanted.append(Sysctl(ns=ns, path="net/ipv6/conf/default/disable_ipv6", value="1"))
    wanted.append(Link(ns=ns, name="lo", kind="loopback"))
    for version, destination in DEFAULT_ROUTE.items():
        chosen = gateway_member(members, version)
        if chosen is not None:
            via = str(chosen.gateways[version].ip)
            wanted.append(Route(ns=ns, destination=destination, link=chosen.endpoint.interface_name, via=via))
    wanted += _further_routes(ns, members)
    has_ipv6 = any(address.version == 6 for member in members for address in member.addresses)
    reached = host_gateways(members, facts) if asks_for_host(sandbox) else ()
    wanted += _files(
        sandbox, facts, hosts(sandbox, members, ipv6=has_ipv6, gateways=reached), resolv(sandbox, host, ipv6=has_ipv6)
    )
    return tuple(wanted)


def _files(sandbox: Sandbox, facts: Facts, hosts_file: Hosts, resolv_conf: str) -> tuple[File, File]:
    # A host-network sandbox has no namespace of its own, but its files are no less its own.
    ns = f"sandbox/{sandbox.id}"
    directory = f"{facts.run_dir}/sandboxes/{sandbox.id}"
    return (
        File(
            ns=ns,
            path=sandbox.hosts_path or f"{directory}/hosts",
            content=hosts_file.content,
            lines=hosts_file.lines,
            in_place=bool(sandbox.hosts_path),
        ),
        File(
            ns=ns,
            path=sandbox.resolv_conf_path or f"{directory}/resolv.conf",
            content=resolv_conf,
            in_place=bool(sandbox.resolv_conf_path),
        ),
    )


def _further_routes(ns: Ns, members: Sequence[Member]) -> list[Resource]:
    """Return the routes to other subnets of networks whose endpoint does not give the default route, which leads there.

    What an endpoint is in, or routes itself, it reaches without; of two networks with one subnet, the first by name has
    the route.
    """
    wanted: dict[str, Resource] = {}
    taken = [one.network for member in members for one in member.endpoint.addresses]
    taken += [one.destination for member in members for one in member.endpoint.routes]
    for member in sorted(members, key=lambda one: (one.network_name, one.endpoint.id)):
        for subnet, gateway in member.routes.items():
            if member.gateways.get(subnet.version) == gateway and gateway_member(members, subnet.version) is member:
                continue
            if str(subnet) in wanted or any(one.version == subnet.version and one.overlaps(subnet) for one in taken):
                continue
            link = member.endpoint.interface_name
            wanted[str(subnet)] = Route(ns=ns, destination=str(subnet), link=link, via=str(gateway.ip))
    return list(wanted.values())


def gateway_member(members: Sequence[Member], version: int) -> Member | None:
    """Choose the endpoint that gives the default route of an IP version.

    Order (libnetwork, `sandbox.go`): higher priority; not internal; more gateway families; network name ascending;
    endpoint id, so that the choice never depends on the order of arrival.
    """
    offering = [member for member in members if version in member.gateways]
    return min(offering, key=_gateway_order, default=None)


def _gateway_order(member: Member) -> tuple[int, bool, int, str, str]:
    endpoint = member.endpoint
    return (-endpoint.gateway_priority, member.internal, -len(member.gateways), member.network_name, endpoint.id)


def asks_for_host(sandbox: Sandbox) -> bool:
    """Return whether an extra host is at `host-gateway`: few are, and it takes a look at all endpoints."""
    return any(address == HOST_GATEWAY for _, address in sandbox.extra_hosts)


def host_gateways(members: Sequence[Member], facts: Facts) -> tuple[str, ...]:
    """Return the addresses by which a sandbox reaches its host, at most one a family: what `host-gateway` stands for.

    What the agent's settings say; else the host's own address on the network that gives the default route; where
    that network has none, as an overlay has not, the host's tunnel address.
    """
    if facts.host_gateways:
        return facts.host_gateways
    found = []
    for version in DEFAULT_ROUTE:
        chosen = gateway_member(members, version)
        if chosen is None:
            continue
        if version in chosen.host:
            found.append(str(chosen.host[version].ip))
        elif not chosen.host and facts.vtep and ip_address(facts.vtep).version == version:
            found.append(facts.vtep)
    return tuple(found)


class Hosts(msgspec.Struct, frozen=True, kw_only=True):
    """A hosts(5) file.

    Attributes:
        lines: Those of it that come and go; in a file that somebody edited they still do.
    """

    content: str
    lines: tuple[str, ...] = ()


def hosts(sandbox: Sandbox, members: Sequence[Member], *, ipv6: bool, gateways: Sequence[str] = ()) -> Hosts:
    """Write the hosts file: localhost, extra hosts, then its own addresses; no line of a family that it has not.

    Args:
        sandbox: The sandbox.
        members: All its endpoints.
        ipv6: Whether one of them has IPv6.
        gateways: What `host-gateway` stands for.
    """
    lines = _extra_lines(sandbox, gateways)
    if sandbox.hostname:
        short = sandbox.hostname.split(".", 1)[0]
        full = f"{sandbox.hostname}.{sandbox.domainname}" if sandbox.domainname else sandbox.hostname
        names = full if full == short else f"{full} {short}"
        ordered = sorted(members, key=lambda member: (member.network_name, member.endpoint.id))
        lines += [f"{address.ip}\t{names}" for member in ordered for address in member.addresses]
    return _hosts(lines, ipv6=ipv6)


def hosts_of_host_network(sandbox: Sandbox, host: HostFiles, facts: Facts) -> Hosts:
    """Return the hosts file of a sandbox in the host's namespace: the host's, unless it has extra hosts."""
    if not sandbox.extra_hosts:
        return Hosts(content=host.hosts or _text(LOCALHOST[4]))
    return _hosts(_extra_lines(sandbox, facts.host_gateways or ("127.0.0.1",)), ipv6=True)


def _hosts(lines: Sequence[str], *, ipv6: bool) -> Hosts:
    kept = tuple(line for line in lines if ipv6 or ":" not in line.split("\t", 1)[0])
    return Hosts(content=_text([*LOCALHOST[4], *(LOCALHOST[6] if ipv6 else ()), *kept]), lines=kept)


def _extra_lines(sandbox: Sandbox, gateways: Sequence[str]) -> list[str]:
    return [
        f"{one}\t{name}"
        for name, address in sandbox.extra_hosts
        for one in (gateways if address == HOST_GATEWAY else (address,))
    ]


def _text(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"


def is_stub(resolv_conf: str) -> bool:
    """Return whether a resolv.conf leads to nothing but systemd-resolved on its own host."""
    return _parse(resolv_conf).servers == (RESOLVED_STUB,)


def resolv(sandbox: Sandbox, host: HostFiles, *, ipv6: bool) -> str:
    """Return the text of resolv.conf(5): the host's, filtered, with the sandbox's own settings in place of it."""
    return _resolv(host, sandbox.dns_servers, sandbox.dns_search, sandbox.dns_options, 6 if ipv6 else 4)


def resolv_of_host_network(sandbox: Sandbox, host: HostFiles) -> str:
    """Return resolv.conf(5) of a sandbox in the host's namespace: the host's as it is, unless it has settings."""
    if not (sandbox.dns_servers or sandbox.dns_search or sandbox.dns_options):
        return host.resolv_conf
    return _resolv(host, sandbox.dns_servers, sandbox.dns_search, sandbox.dns_options, None)


@functools.lru_cache(maxsize=256)  # most sandboxes of a host have the same, and it is written at each attach
def _resolv(
    host: HostFiles,
    own_servers: tuple[str, ...],
    own_search: tuple[str, ...],
    own_options: tuple[str, ...],
    version: int | None,
) -> str:
    """As `resolv`; `version` is the highest that the sandbox has, or None where all the host's servers are reached."""
    base = _parse(host.resolv_conf)
    notes = [f"# From {host.resolv_conf_path} of the host. Once it is edited, netweft leaves this file alone."]
    given = [name for name, own in (("servers", own_servers), ("search", own_search), ("options", own_options)) if own]
    if given:
        notes.append(f"# The sandbox's own: {', '.join(given)}.")
    servers = own_servers or base.servers
    if not own_servers and version is not None:
        # A loopback server of the host is another one inside the sandbox, or none.
        servers = tuple(one for one in servers if not _is_loopback(one) and (version == 6 or ":" not in one))
        if not servers:
            servers = FALLBACK_SERVERS[4] + (FALLBACK_SERVERS[6] if version == 6 else ())
            notes.append("# The host names no server that the sandbox could reach: these are public ones.")
    if base.no_addresses and not own_servers:
        notes.append(f"# Left out, being no addresses: {', '.join(base.no_addresses)}.")
    search = tuple(one for one in own_search if one != ".") if own_search else base.search
    options = own_options or base.options
    lines = [f"nameserver {one}" for one in servers]
    if search:
        lines.append("search " + " ".join(search))
    if options:
        lines.append("options " + " ".join(options))
    return _text([*lines, *base.others, "", *notes])


class _Resolv(msgspec.Struct, frozen=True, kw_only=True):
    servers: tuple[str, ...]
    search: tuple[str, ...]
    options: tuple[str, ...]
    no_addresses: tuple[str, ...]
    others: tuple[str, ...]


def _parse(text: str) -> _Resolv:
    servers: list[str] = []
    no_addresses: list[str] = []
    search: tuple[str, ...] = ()
    options: list[str] = []
    others: list[str] = []
    for line in text.splitlines():
        words = line.split("#", 1)[0].split(";", 1)[0].split()
        if not words:
            continue
        if words[0] not in {"nameserver", "search", "domain", "options"}:
            others.append(" ".join(words))
        elif len(words) < 2:
            continue
        elif words[0] == "nameserver":
            (servers if _is_address(words[1]) else no_addresses).append(words[1])
        elif words[0] == "options":
            options += words[1:]
        else:
            search = tuple(words[1:])
    return _Resolv(
        servers=tuple(servers),
        search=search,
        options=tuple(options),
        no_addresses=tuple(no_addresses),
        others=tuple(others),
    )


def _is_address(server: str) -> bool:
    try:
        ip_address(server)
    except ValueError:
        return False
    return True


def _is_loopback(server: str) -> bool:
    return ip_address(server.split("%", 1)[0]).is_loopback
