"""Rules for what an endpoint sets in its sandbox besides its addresses: routes, kernel settings, limits."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence

from netweft_common import errors

from netweft_controller.domain import fields
from netweft_controller.domain.objects import Bandwidth, Network, StaticRoute

ROUTES_MAX = 256
SYSCTLS_MAX = 64
LINK_LOCAL_MAX = 16
LEAST_RATE = 8_000
"""Bits per second below which a single packet would take seconds."""
MOST_RATE = 1 << 40
MOST_BURST = 1 << 34
"""Bits: what tc's 32 bits of bytes hold."""

_SYSCTL = re.compile(r"net\.(ipv4|ipv6|mpls)\.[a-z0-9_]{1,32}\.IFNAME\.[a-z0-9_]{1,64}")
_SYSCTL_VALUE = re.compile(r"-?[0-9]{1,19}( -?[0-9]{1,19}){0,3}")
_LINK_LOCAL = {4: ipaddress.ip_network("169.254.0.0/16"), 6: ipaddress.ip_network("fe80::/10")}
_LINK_LOCAL_PREFIX = {4: 16, 6: 64}


def link_local(texts: Sequence[str], network: Network, path: str) -> tuple[str, ...]:
    """Check link-local addresses and return them with their prefix length (libnetwork: /16 and /64).

    Raises:
        InvalidArgument: One is none, or the network makes no link or has not its IP version.
    """
    if not texts:
        return ()
    _needs_link(network, path)
    fields.count(texts, LINK_LOCAL_MAX, path)
    found: dict[str, None] = {}
    for index, text in enumerate(texts):
        field = f"{path}[{index}]"
        address = fields.address(text.partition("/")[0], field)
        if address not in _LINK_LOCAL[address.version]:
            raise fields.invalid(
                field, f"{address} is not link-local, in 169.254.0.0/16 or fe80::/10", "ADDRESS_NOT_LINK_LOCAL"
            )
        if address.version == 6 and not network.enable_ipv6:
            raise fields.invalid(field, f"network {network.name} has no IPv6", "ADDRESS_NOT_ALLOWED")
        found[f"{address}/{_LINK_LOCAL_PREFIX[address.version]}"] = None
    return tuple(found)


def routes(values: Sequence[StaticRoute], network: Network, path: str) -> tuple[StaticRoute, ...]:
    """Check static routes and return them in canonical form.

    Raises:
        InvalidArgument: A destination or next hop is malformed, is a default route, or is out of the network's reach.
    """
    if not values:
        return ()
    _needs_link(network, path)
    fields.count(values, ROUTES_MAX, path)
    subnets = [ipaddress.ip_network(one.subnet) for one in network.subnets]
    found: dict[str, StaticRoute] = {}
    for index, value in enumerate(values):
        field = f"{path}[{index}]"
        destination = fields.network_prefix(value.destination, f"{field}.destination")
        if destination.prefixlen == 0:
            raise fields.invalid(
                f"{field}.destination",
                f"{destination} is a default route, which gateways give; use gateway_priority to choose one",
                "ROUTE_DEFAULT",
            )
        next_hop = ""
        if value.next_hop:
            hop = fields.address(value.next_hop, f"{field}.next_hop")
            if hop.version != destination.version:
                raise fields.invalid(
                    f"{field}.next_hop", f"{hop} is of another IP version than {destination}", "ROUTE_FAMILIES"
                )
            if not hop.is_link_local and not any(hop in subnet for subnet in subnets):
                known = ", ".join(map(str, subnets)) or "none"
                raise fields.invalid(
                    f"{field}.next_hop",
                    f"{hop} is in no subnet of network {network.name} ({known}), so nobody knows the way to it",
                    "ADDRESS_OUTSIDE_SUBNET",
                )
            next_hop = str(hop)
        if str(destination) in found:
            raise fields.invalid(f"{field}.destination", f"{destination} is in the list twice", "ROUTE_TWICE")
        found[str(destination)] = StaticRoute(destination=str(destination), next_hop=next_hop)
    return tuple(found.values())


def sysctls(values: Mapping[str, str], network: Network, path: str) -> dict[str, str]:
    """Check settings of an endpoint's interface (Docker's endpoint.sysctls).

    Raises:
        InvalidArgument: A key is not of one interface, or a value is no number.
    """
    if not values:
        return {}
    _needs_link(network, path)
    fields.count(values, SYSCTLS_MAX, path)
    for key, value in values.items():
        if not _SYSCTL.fullmatch(key):
            raise fields.invalid(
                f"{path}[{key[:128]}]",
                "a key is net.<ipv4|ipv6|mpls>.<section>.IFNAME.<key>, with the word IFNAME for the interface's name",
                "SYSCTL_MALFORMED",
            )
        if not _SYSCTL_VALUE.fullmatch(value):
            raise fields.invalid(f"{path}[{key}]", f"{value[:64]!r} is no number", "SYSCTL_MALFORMED")
    return dict(values)


def bandwidth(value: Bandwidth | None, network: Network, path: str) -> Bandwidth | None:
    """Check limits of traffic; limits that say nothing are None.

    Raises:
        InvalidArgument: A rate or burst is out of range, or there is a burst without its rate.
    """
    if value is None or value == Bandwidth():
        return None
    _needs_link(network, path)
    for way, rate, burst in (
        ("ingress", value.ingress_rate, value.ingress_burst),
        ("egress", value.egress_rate, value.egress_burst),
    ):
        if rate and not LEAST_RATE <= rate <= MOST_RATE:
            raise fields.invalid(
                f"{path}.{way}_bits_per_second",
                f"{rate} is not between {LEAST_RATE} and {MOST_RATE}",
                "RATE_OUT_OF_RANGE",
            )
        if burst and not rate:
            raise fields.invalid(f"{path}.{way}_burst_bits", "a burst needs a rate", "FIELD_MISSING")
        if burst > MOST_BURST:
            raise fields.invalid(f"{path}.{way}_burst_bits", f"{burst} is more than {MOST_BURST}", "RATE_OUT_OF_RANGE")
    return value


def _needs_link(network: Network, path: str) -> None:
    if not network.needs_addresses:
        raise errors.InvalidArgument(
            "NO_LINK",
            f"{path}: networks of driver {network.driver} make no link that this could be set on; leave it out",
            field=path,
        )
