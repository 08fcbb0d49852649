"""Bridge networks as they are asked for: every combination that no host could make is refused at creation."""

from __future__ import annotations

import msgspec
import pytest
from netweft_common import errors
from netweft_controller.domain import endpoints, networks
from netweft_controller.domain.objects import DriverInfo, HostFacts, OptionInfo, Scope, Subnet
from netweft_controller.domain.specs import NetworkSpec

NAMES = (
    "bridge_name",
    "gateway_mode_ipv4",
    "gateway_mode_ipv6",
    "host_binding",
    "snat_ipv4",
    "snat_ipv6",
)
BRIDGE = DriverInfo(
    name="bridge",
    scope=Scope.LOCAL,
    options=(
        *(OptionInfo(name=name) for name in NAMES),
        OptionInfo(name="inhibit_ipv4", type="bool"),
        OptionInfo(name="mtu", type="int", minimum=0, maximum=65535),
    ),
)


@pytest.fixture
def state(build):
    build.host(facts=HostFacts(drivers=(BRIDGE,)))
    build.host(2, facts=HostFacts(drivers=(BRIDGE,)))
    return build.state


def plan(state, **fields):
    return networks.plan(state, NetworkSpec(name="new", **fields), "f" * 32)


REFUSED = {
    "isolated and not internal": (
        {"options": {"gateway_mode_ipv4": "isolated"}},
        "options['gateway_mode_ipv4']",
        "ISOLATED_NOT_INTERNAL",
    ),
    "isolated for IPv6 and not internal": (
        {"options": {"gateway_mode_ipv6": "isolated"}},
        "options['gateway_mode_ipv6']",
        "ISOLATED_NOT_INTERNAL",
    ),
    "an MTU that IP does not allow": ({"options": {"mtu": "67"}}, "options['mtu']", "OPTION_OUT_OF_RANGE"),
    "a negative MTU": ({"options": {"mtu": "-1"}}, "options['mtu']", "OPTION_OUT_OF_RANGE"),
    "a name of the kernel's": ({"options": {"bridge_name": "all"}}, "options['bridge_name']", "OPTION_MALFORMED"),
    "a binding that is no address": (
        {"options": {"host_binding": "1.2.3.400"}},
        "options['host_binding']",
        "OPTION_MALFORMED",
    ),
    "SNAT to an address of the other family": (
        {"options": {"snat_ipv4": "fd00::1"}},
        "options['snat_ipv4']",
        "OPTION_MALFORMED",
    ),
    "SNAT to a multicast address": ({"options": {"snat_ipv6": "ff02::1"}}, "options['snat_ipv6']", "OPTION_MALFORMED"),
    "a default gateway outside": (
        {"subnets": (Subnet(subnet="10.0.0.0/24", aux_addresses={"DefaultGatewayIPv4": "10.0.1.1"}),)},
        "subnets[0].aux_addresses['DefaultGatewayIPv4']",
        "ADDRESS_OUTSIDE_SUBNET",
    ),
    "neither family": ({"enable_ipv4": False}, "disable_ipv4", "NO_FAMILY"),
}


@pytest.mark.parametrize(("fields", "where", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_no_host_could_make_is_refused_by_its_field(state, fields, where, reason):
    with pytest.raises(errors.InvalidArgument) as caught:
        plan(state, **fields)

    assert (where, reason) == (caught.value.metadata["field"], caught.value.reason)


ACCEPTED = {
    "isolated and internal": {"internal": True, "options": {"gateway_mode_ipv4": "isolated"}},
    "several subnets of a family, which Docker refuses": {
        "enable_ipv6": True,
        "subnets": tuple(Subnet(subnet=text) for text in ("10.0.0.0/24", "10.0.1.0/24", "fd00::/64")),
    },
    "the kernel's MTU": {"options": {"mtu": "0"}},
    "the least MTU": {"options": {"mtu": "68"}},
    "a binding to an IPv6 address": {"options": {"host_binding": "2001:db8::1"}},
    "SNAT in both families": {"options": {"snat_ipv4": "192.0.2.1", "snat_ipv6": "2001:db8::1"}},
}


@pytest.mark.parametrize("fields", ACCEPTED.values(), ids=ACCEPTED)
def test_what_a_host_can_make_is_accepted(state, fields):
    assert "bridge" == plan(state, **fields).network.driver


def test_a_bridge_belongs_to_one_network_of_a_host(build, state, id_of):
    build.network(20, host_id=id_of(1), options={"bridge_name": "br-web"})

    with pytest.raises(errors.FailedPrecondition) as same:
        plan(state, host="h1", options={"bridge_name": "br-web"})
    with pytest.raises(errors.FailedPrecondition) as everywhere:
        plan(state, options={"bridge_name": "br-web"})
    elsewhere = plan(state, host="h2", options={"bridge_name": "br-web"})

    assert ["BRIDGE_NAME_IN_USE"] * 2 == [caught.value.reason for caught in (same, everywhere)]
    assert id_of(2) == elsewhere.network.host_id


GATEWAYS = {
    "as a rule": ({}, {}, ["", ""]),
    "isolated": ({"gateway_mode_ipv4": "isolated", "gateway_mode_ipv6": "isolated"}, {"internal": True}, []),
    "isolated in IPv6": ({"gateway_mode_ipv6": "isolated"}, {"internal": True}, [""]),
    "inhibited": ({"inhibit_ipv4": "true"}, {}, ["", ""]),
    "inhibited and internal": ({"inhibit_ipv4": "true"}, {"internal": True}, [""]),
}


@pytest.mark.parametrize(("options", "fields", "expected"), GATEWAYS.values(), ids=GATEWAYS)
def test_no_address_is_leased_for_a_bridge_that_has_none(state, options, fields, expected):
    made = plan(state, options=options, enable_ipv6=True, **fields)

    assert expected == [want.address for want in networks.addresses(made.network)]


def test_an_address_that_is_asked_for_is_leased_all_the_same(state):
    subnet = Subnet(subnet="10.0.0.0/24", gateway="10.0.0.1", aux_addresses={"router": "10.0.0.2"})
    made = plan(state, options={"gateway_mode_ipv4": "isolated"}, internal=True, subnets=(subnet,))

    assert [("", "10.0.0.1"), ("router", "10.0.0.2")] == [
        (want.name, want.address) for want in networks.addresses(made.network)
    ]


def test_endpoints_are_told_the_gateway_that_the_network_names(build, endpoint_of, id_of):
    build.host()
    network = build.network(10)
    subnet = msgspec.structs.replace(network.subnets[0], aux_addresses={"DefaultGatewayIPv4": "10.10.0.254"})

    named = endpoints.gateways(msgspec.structs.replace(network, subnets=(subnet,)), endpoint_of(1000, 10))

    assert (("10.10.0.1",), ("10.10.0.254",)) == (endpoints.gateways(network, endpoint_of(1000, 10)), named)
