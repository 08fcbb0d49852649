"""What an endpoint sets in its sandbox: what is made canonical, what is refused and by which field."""

from __future__ import annotations

import msgspec
import pytest
from netweft_common import errors
from netweft_controller.domain import settings
from netweft_controller.domain.objects import Bandwidth, Network, Scope, StaticRoute, Subnet

NETWORK = Network(
    id="1" * 32,
    name="web",
    driver="bridge",
    scope=Scope.LOCAL,
    enable_ipv6=True,
    subnets=(Subnet(subnet="10.1.0.0/16"), Subnet(subnet="fd00::/64")),
)
IPV4_ONLY = msgspec.structs.replace(NETWORK, enable_ipv6=False, subnets=NETWORK.subnets[:1])
NO_LINK = msgspec.structs.replace(NETWORK, driver="null", needs_addresses=False, subnets=())
MARTIANS = "net.ipv4.conf.IFNAME.log_martians"


def route(destination, next_hop=""):
    return StaticRoute(destination=destination, next_hop=next_hop)


GOOD = {
    "link-local IPv4": (settings.link_local, ("169.254.7.1",), ("169.254.7.1/16",)),
    "link-local IPv6, twice": (settings.link_local, ("FE80::0:1", "fe80::1/64"), ("fe80::1/64",)),
    "a route": (settings.routes, (route("192.0.2.0/24", "10.1.0.9"),), (route("192.0.2.0/24", "10.1.0.9"),)),
    "a route on the link": (settings.routes, (route("192.0.2.0/24"),), (route("192.0.2.0/24"),)),
    "a route by a link-local hop": (
        settings.routes,
        (route("2001:DB8::/32", "FE80::1"),),
        (route("2001:db8::/32", "fe80::1"),),
    ),
    "settings": (settings.sysctls, {MARTIANS: "1"}, {MARTIANS: "1"}),
    "no limits": (settings.bandwidth, Bandwidth(), None),
    "limits": (settings.bandwidth, Bandwidth(ingress_rate=8000), Bandwidth(ingress_rate=8000)),
}


@pytest.mark.parametrize(("rule", "given", "expected"), GOOD.values(), ids=GOOD)
def test_what_is_right_is_taken_in_canonical_form(rule, given, expected):
    assert expected == rule(given, NETWORK, "f")


BAD = {
    "no address": (settings.link_local, ("web",), "f[0]", "ADDRESS_MALFORMED"),
    "not link-local": (settings.link_local, ("10.1.0.9",), "f[0]", "ADDRESS_NOT_LINK_LOCAL"),
    "too many addresses": (settings.link_local, tuple(f"169.254.0.{n}" for n in range(1, 18)), "f", "TOO_MANY"),
    "a destination with host bits": (settings.routes, (route("192.0.2.1/24"),), "f[0].destination", "SUBNET_HOST_BITS"),
    "a default route": (settings.routes, (route("0.0.0.0/0"),), "f[0].destination", "ROUTE_DEFAULT"),
    "a hop that nobody knows": (
        settings.routes,
        (route("192.0.2.0/24", "10.9.0.1"),),
        "f[0].next_hop",
        "ADDRESS_OUTSIDE_SUBNET",
    ),
    "a hop of the other family": (
        settings.routes,
        (route("192.0.2.0/24", "fd00::9"),),
        "f[0].next_hop",
        "ROUTE_FAMILIES",
    ),
    "a destination twice": (
        settings.routes,
        (route("192.0.2.0/24"), route("192.0.2.0/24", "10.1.0.9")),
        "f[1].destination",
        "ROUTE_TWICE",
    ),
    "a setting of the host": (
        settings.sysctls,
        {"net.ipv4.ip_forward": "1"},
        "f[net.ipv4.ip_forward]",
        "SYSCTL_MALFORMED",
    ),
    "a setting of all": (
        settings.sysctls,
        {"net.ipv4.conf.all.forwarding": "1"},
        "f[net.ipv4.conf.all.forwarding]",
        "SYSCTL_MALFORMED",
    ),
    "a way out of the folder": (
        settings.sysctls,
        {"net.ipv4.conf.IFNAME./../x": "1"},
        "f[net.ipv4.conf.IFNAME./../x]",
        "SYSCTL_MALFORMED",
    ),
    "a value that is no number": (settings.sysctls, {MARTIANS: "1\n2"}, f"f[{MARTIANS}]", "SYSCTL_MALFORMED"),
    "a rate below one packet": (
        settings.bandwidth,
        Bandwidth(egress_rate=7999),
        "f.egress_bits_per_second",
        "RATE_OUT_OF_RANGE",
    ),
    "a rate beyond all": (
        settings.bandwidth,
        Bandwidth(ingress_rate=2**63),
        "f.ingress_bits_per_second",
        "RATE_OUT_OF_RANGE",
    ),
    "a burst without a rate": (settings.bandwidth, Bandwidth(ingress_burst=1), "f.ingress_burst_bits", "FIELD_MISSING"),
    "a burst beyond all": (
        settings.bandwidth,
        Bandwidth(ingress_rate=8000, ingress_burst=2**35),
        "f.ingress_burst_bits",
        "RATE_OUT_OF_RANGE",
    ),
}


@pytest.mark.parametrize(("rule", "given", "field", "reason"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_refused_by_its_field(rule, given, field, reason):
    with pytest.raises(errors.InvalidArgument) as caught:
        rule(given, NETWORK, "f")

    assert (field, reason) == (caught.value.metadata["field"], caught.value.reason)


def test_a_network_without_ipv6_takes_no_link_local_address_of_it():
    with pytest.raises(errors.InvalidArgument, match="has no IPv6"):
        settings.link_local(("fe80::1",), IPV4_ONLY, "f")


LINKLESS = {
    "addresses": (settings.link_local, ("169.254.0.1",)),
    "routes": (settings.routes, (route("192.0.2.0/24"),)),
    "settings": (settings.sysctls, {MARTIANS: "1"}),
    "limits": (settings.bandwidth, Bandwidth(ingress_rate=8000)),
}


@pytest.mark.parametrize(("rule", "given"), LINKLESS.values(), ids=LINKLESS)
def test_a_network_that_makes_no_link_takes_nothing(rule, given):
    with pytest.raises(errors.InvalidArgument, match="make no link"):
        rule(given, NO_LINK, "f")


EMPTY = {"addresses": settings.link_local, "routes": settings.routes, "settings": settings.sysctls}


@pytest.mark.parametrize("rule", EMPTY.values(), ids=EMPTY)
def test_nothing_is_fine_anywhere(rule):
    assert not rule({} if rule is settings.sysctls else (), NO_LINK, "f")
