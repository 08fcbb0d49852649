"""What a sandbox as a whole needs: namespace, loopback, default routes, hosts and resolv.conf.

These depend on all its endpoints together, so they are rendered together whenever one of them comes or goes.
The rules are libnetwork's: which endpoint gives the default route, for IPv4 and IPv6 apart; what `hosts` holds; how
`resolv.conf` is made from the host's.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from netweft_agent.domain.objects import Endpoint, Facts, Interface, Sandbox
from netweft_agent.domain.resources import File, Link, Namespace, Resource, Route, Sysctl

DEFAULT_ROUTE = {4: "0.0.0.0/0", 6: "::/0"}

FALLBACK_SERVERS = {4: ("8.8.8.8", "8.8.4.4"), 6: ("2001:4860:4860::8888", "2001:4860:4860::8844")}
"""Name servers where the host has none but its own loopback (libnetwork's choice)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An endpoint of the sandbox with what its driver says of it.

    Attributes:
        gateways: Gateway offered, by IP version.
    """

    endpoint: Endpoint
    network_name: str
    internal: bool
    gateways: dict[int, Interface]


def render(sandbox: Sandbox, members: Sequence[Member], facts: Facts, resolv_conf: str) -> tuple[Resource, ...]:
    """Return the sandbox's own resources.

    Args:
        sandbox: The sandbox.
        members: All its endpoints.
        facts: Of the host.
        resolv_conf: Text of the host's resolv.conf.
    """
    if sandbox.source == "host":
        return ()
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
    directory = f"{facts.run_dir}/sandboxes/{sandbox.id}"
    has_ipv6 = any(address.version == 6 for member in members for address in member.endpoint.addresses)
    wanted.append(
        File(
            ns=ns,
            path=sandbox.hosts_path or f"{directory}/hosts",
            content=hosts(sandbox, members, ipv6=has_ipv6),
            in_place=bool(sandbox.hosts_path),
        )
    )
    wanted.append(
        File(
            ns=ns,
            path=sandbox.resolv_conf_path or f"{directory}/resolv.conf",
            content=resolv(sandbox, resolv_conf, ipv6=has_ipv6),
            in_place=bool(sandbox.resolv_conf_path),
        )
    )
    return tuple(wanted)


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


def hosts(sandbox: Sandbox, members: Sequence[Member], *, ipv6: bool) -> str:
    """Write the hosts file: localhost, extra hosts, then its own addresses."""
    lines = ["127.0.0.1\tlocalhost"]
    if ipv6:
        lines += [
            "::1\tlocalhost ip6-localhost ip6-loopback",
            "fe00::\tip6-localnet",
            "ff00::\tip6-mcastprefix",
            "ff02::1\tip6-allnodes",
            "ff02::2\tip6-allrouters",
        ]
    lines += [f"{address}\t{name}" for name, address in sandbox.extra_hosts]
    if sandbox.hostname:
        short = sandbox.hostname.split(".", 1)[0]
        full = f"{sandbox.hostname}.{sandbox.domainname}" if sandbox.domainname else sandbox.hostname
        names = full if full == short else f"{full} {short}"
        ordered = sorted(members, key=lambda member: (member.network_name, member.endpoint.id))
        lines += [f"{address.ip}\t{names}" for member in ordered for address in member.endpoint.addresses]
    return "\n".join(lines) + "\n"


def resolv(sandbox: Sandbox, base: str, *, ipv6: bool) -> str:
    """Return the text of resolv.conf(5): the host's, filtered, with the sandbox's own settings in place of it."""
    return _resolv(base, sandbox.dns_servers, sandbox.dns_search, sandbox.dns_options, ipv6)


@functools.lru_cache(maxsize=256)  # most sandboxes of a host have the same, and it is written at each attach
def _resolv(
    base: str, own_servers: tuple[str, ...], own_search: tuple[str, ...], own_options: tuple[str, ...], ipv6: bool
) -> str:
    servers, search, options = _parse_resolv(base)
    if own_servers:
        servers = own_servers
    else:
        # A loopback server of the host is another one inside the sandbox, or none.
        usable = [one for one in servers if not _is_loopback(one) and (ipv6 or ":" not in one)]
        servers = tuple(usable) or (FALLBACK_SERVERS[4] + (FALLBACK_SERVERS[6] if ipv6 else ()))
    search = own_search or search
    options = own_options or options
    lines = [f"nameserver {one}" for one in servers]
    if search and search != (".",):
        lines.append("search " + " ".join(search))
    if options:
        lines.append("options " + " ".join(options))
    return "\n".join(lines) + "\n"


def _parse_resolv(text: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    servers: list[str] = []
    search: tuple[str, ...] = ()
    options: list[str] = []
    for line in text.splitlines():
        words = line.split("#", 1)[0].split(";", 1)[0].split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver":
            servers.append(words[1])
        elif words[0] in {"search", "domain"}:
            search = tuple(words[1:])
        elif words[0] == "options":
            options += words[1:]
    return tuple(servers), search, tuple(options)


def _is_loopback(server: str) -> bool:
    try:
        return ip_address(server.split("%", 1)[0]).is_loopback
    except ValueError:
        return False
