"""Every driver as golden text: what it renders, and the plans of attaching and detaching one endpoint."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from netweft_agent.domain import sandbox as sandbox_domain
from netweft_agent.domain.objects import Endpoint, Network, Peer, Sandbox, StaticRoute
from netweft_agent.domain.plan import plan
from netweft_agent.domain.state import HostState
from netweft_agent.drivers.base import Attachment
from netweft_common.errors import FailedPrecondition, NetweftError

from tests.support import golden
from tests.support.agent import (
    DRIVERS,
    FACTS,
    HOST_FILES,
    endpoint,
    limits,
    network,
    oid,
    peer,
    port,
    sandbox,
    subnets,
)

DUAL = {"subnets": subnets("10.1.0.0/24", "fd00:1::/64"), "enable_ipv6": True}
DUAL_ADDRESSES = (ip_interface("10.1.0.5/24"), ip_interface("fd00:1::5/64"))


@dataclass(frozen=True)
class Case:
    network: Network
    endpoints: tuple[Endpoint, ...] = (endpoint(),)
    peers: tuple[Peer, ...] = ()
    box: Sandbox = field(default_factory=lambda: sandbox(hostname="web"))
    vtep: str = FACTS.vtep

    @property
    def facts(self):
        return replace(FACTS, vtep=self.vtep)

    def render(self, endpoints=None, peers=None):
        attachments = [Attachment(endpoint=one, sandbox=self.box) for one in self.endpoints]
        return DRIVERS[self.network.driver].render(
            self.network,
            attachments if endpoints is None else endpoints,
            self.peers if peers is None else peers,
            self.facts,
        )


def bridge(**options):
    return network(options={key.replace("__", "."): value for key, value in options.items()})


SETTINGS = endpoint(
    addresses=DUAL_ADDRESSES,
    link_local=(ip_interface("169.254.7.7/16"), ip_interface("fe80::7/64")),
    routes=(
        StaticRoute(destination=ip_network("198.51.100.0/24"), next_hop=ip_address("10.1.0.9")),
        StaticRoute(destination=ip_network("203.0.113.0/24")),
        StaticRoute(destination=ip_network("2001:db8:7::/48"), next_hop=ip_address("fd00:1::9")),
    ),
    sysctls={"net.ipv4.conf.IFNAME.log_martians": "1", "net.ipv6.neigh.IFNAME.retrans_time_ms": "500"},
)


TWO_SUBNETS = subnets("10.1.0.0/24", "10.9.0.0/24", "fd00:1::/64", "fd00:9::/64")


def overlay(**fields):
    return network(driver="overlay", **fields)


CASES = {
    "bridge": Case(bridge()),
    "bridge-endpoint-settings": Case(network(**DUAL), (SETTINGS,)),
    "bridge-endpoint-without-ipv6": Case(
        network(**DUAL),
        (replace(SETTINGS, sysctls={"net.ipv6.conf.IFNAME.disable_ipv6": "1"}),),
    ),
    "overlay-endpoint-settings": Case(network(driver="overlay", **DUAL), (SETTINGS,)),
    "bridge-internal": Case(network(internal=True)),
    "bridge-icc-off": Case(bridge(com__docker__network__bridge__enable_icc="false")),
    "bridge-masquerade-off": Case(bridge(masquerade="false")),
    "bridge-mtu": Case(bridge(mtu="1400")),
    "bridge-name": Case(bridge(com__docker__network__bridge__name="br-web")),
    "bridge-dual-stack": Case(network(**DUAL), (endpoint(addresses=DUAL_ADDRESSES),)),
    "bridge-ipv6-only": Case(
        network(subnets=subnets("fd00:1::/64"), enable_ipv4=False, enable_ipv6=True),
        (endpoint(addresses=DUAL_ADDRESSES[1:]),),
    ),
    "bridge-no-gateway": Case(network(subnets=subnets("-10.1.0.0/24"))),
    "bridge-two-endpoints": Case(bridge(), (endpoint(mac="02:42:0a:00:00:02"), endpoint(1002, interface_name="eth1"))),
    "bridge-ports": Case(
        bridge(),
        (endpoint(ports=(port(80, 8080), port(53, 53, "192.0.2.1", "udp"), port(5432, 5432, "127.0.0.1"))),),
    ),
    "bridge-ports-dual-stack": Case(
        network(**DUAL),
        (
            endpoint(
                addresses=DUAL_ADDRESSES, ports=(port(80, 8080), port(443, 8443, "2001:db8::1"), port(22, 2222, "::"))
            ),
        ),
    ),
    "bridge-ports-icc-off": Case(bridge(icc="false"), (endpoint(ports=(port(80, 8080),)),)),
    "bridge-no-icc-dual-stack": Case(network(options={"icc": "false"}, **DUAL), (endpoint(addresses=DUAL_ADDRESSES),)),
    "bridge-nat-unprotected": Case(
        network(options={"gateway_mode_ipv4": "nat-unprotected", "gateway_mode_ipv6": "nat-unprotected"}, **DUAL),
        (endpoint(addresses=DUAL_ADDRESSES, ports=(port(80, 8080),)),),
    ),
    "bridge-routed": Case(
        network(options={"gateway_mode_ipv4": "routed", "gateway_mode_ipv6": "routed"}, **DUAL),
        (endpoint(addresses=DUAL_ADDRESSES, ports=(port(80, 8080), port(53, protocol="udp"))),),
    ),
    "bridge-routed-ipv6": Case(
        network(options={"gateway_mode_ipv6": "routed"}, **DUAL),
        (endpoint(addresses=DUAL_ADDRESSES, ports=(port(80, 8080),)),),
    ),
    "bridge-isolated": Case(
        network(options={"gateway_mode_ipv4": "isolated", "gateway_mode_ipv6": "isolated"}, internal=True, **DUAL),
        (endpoint(addresses=DUAL_ADDRESSES),),
    ),
    "bridge-inhibit-ipv4": Case(bridge(inhibit_ipv4="true")),
    "bridge-snat": Case(
        network(options={"snat_ipv4": "192.0.2.7", "snat_ipv6": "2001:db8::7"}, **DUAL),
        (endpoint(addresses=DUAL_ADDRESSES),),
    ),
    "bridge-trusted": Case(bridge(trusted_host_interfaces="eth1:wg0")),
    "bridge-default-gateway": Case(
        network(subnets=(replace(subnets("10.1.0.0/24")[0], default_gateway=ip_interface("10.1.0.254/24")),))
    ),
    "bridge-given-namespace": Case(bridge(), box=sandbox(source="/run/netns/c1", hosts_path="/var/lib/c1/hosts")),
    "bridge-limits": Case(bridge(), (endpoint(bandwidth=limits(10_000_000, 1_000_000)),)),
    "bridge-limits-ingress": Case(bridge(mtu="9000"), (endpoint(bandwidth=limits(8_000, ingress_burst=8)),)),
    "bridge-further": Case(
        network(**DUAL), (endpoint(addresses=DUAL_ADDRESSES, shard=1, ports=(port(80, 8080),)), endpoint(1002, shard=1))
    ),
    "bridge-further-icc-off": Case(bridge(icc="false", bridge_name="br-web"), (endpoint(shard=255),)),
    "bridge-further-internal": Case(network(internal=True, options={"mtu": "1400"}), (endpoint(shard=1),)),
    "bridge-further-limits": Case(bridge(), (endpoint(shard=1, bandwidth=limits(10_000_000, 1_000_000)),)),
    "bridge-further-inhibit-ipv4": Case(bridge(inhibit_ipv4="true"), (endpoint(shard=2),)),
    "overlay-further": Case(overlay(), (endpoint(shard=1),), (peer(),)),
    "overlay-limits": Case(overlay(), (endpoint(bandwidth=limits(egress=1 << 40, egress_burst=1 << 34)),)),
    "overlay": Case(overlay()),
    "overlay-peers": Case(overlay(), peers=(peer(5001), peer(5002), peer(5003, vtep="192.0.2.3"))),
    "overlay-peers-ipv6-underlay": Case(overlay(), peers=(peer(5001, vtep="2001:db8::2"),), vtep="2001:db8::1"),
    "overlay-dual-stack": Case(
        overlay(**DUAL),
        (endpoint(addresses=DUAL_ADDRESSES),),
        (peer(addresses=(ip_interface("10.1.0.9/24"), ip_interface("fd00:1::9/64"))),),
    ),
    "overlay-direct": Case(
        overlay(options={"direct_routing": "true"}, **DUAL),
        (endpoint(addresses=DUAL_ADDRESSES),),
        (
            peer(5001, addresses=(ip_interface("10.1.0.9/24"), ip_interface("fd00:1::9/64"))),
            peer(5002, vtep="198.51.100.2", addresses=(ip_interface("10.1.0.10/24"),)),
        ),
    ),
    "overlay-direct-internal": Case(overlay(options={"direct_routing": "true"}, internal=True), peers=(peer(5001),)),
    "overlay-internal": Case(overlay(internal=True)),
    "overlay-subnets": Case(overlay(subnets=TWO_SUBNETS, enable_ipv6=True), (endpoint(addresses=DUAL_ADDRESSES),)),
    "overlay-internal-subnets": Case(
        overlay(subnets=TWO_SUBNETS, enable_ipv6=True, internal=True), (endpoint(addresses=DUAL_ADDRESSES),)
    ),
    "overlay-ipv6-only": Case(
        overlay(subnets=subnets("fd00:1::/64"), enable_ipv4=False, enable_ipv6=True),
        (endpoint(addresses=DUAL_ADDRESSES[1:]),),
    ),
    "overlay-ports": Case(
        overlay(**DUAL),
        (
            endpoint(
                addresses=DUAL_ADDRESSES,
                ports=(port(80, 8080), port(53, 53, "192.0.2.1", "udp"), port(5432, 5432, "127.0.0.1")),
            ),
        ),
    ),
    "overlay-mtu": Case(overlay(options={"mtu": "1300"})),
    "overlay-port": Case(overlay(options={"vxlan_port": "8472"})),
    "host": Case(network(driver="host", subnets=()), (endpoint(addresses=()),), box=sandbox(source="host")),
    "null": Case(network(driver="null", subnets=()), (endpoint(addresses=()),)),
}


def lines(state: HostState) -> str:
    """Print a render: owner | namespace | command, sorted; those that need no command show their key."""
    found = [
        f"{owner} | {one.ns or 'host'} | {one.add_command() or '(' + ' '.join(one.key) + ')'}"
        for owner, wanted in state.by_owner.items()
        for one in wanted.values()
    ]
    return "\n".join(sorted(_short(line) for line in found)) + "\n"


def _short(line: str) -> str:
    """Write ids as their kinds, so that a golden can be read."""
    numbers = (1, 2, 101, 1001, 1002, 5001, 5002, 5003)
    for number in numbers:
        line = line.replace(oid(number), f"<{number}>")
    for number in numbers:
        line = line.replace(oid(number)[:11], f"<{number}>")
    return re.sub(f"(nw[btf])-{oid(1)[:8]}-", r"\1-<net>-", line)


def whole(case: Case, *, attached: bool):
    """Render network and sandbox, with the case's endpoints or none."""
    endpoints = case.endpoints if attached else ()
    driver = DRIVERS[case.network.driver]
    members = [
        sandbox_domain.Member(
            endpoint=one,
            network_name=case.network.name,
            internal=case.network.internal,
            gateways={
                version: gateway
                for version in (4, 6)
                if (gateway := driver.gateway(case.network, one, version)) is not None
            },
            routes=driver.routes(case.network, one),
        )
        for one in endpoints
    ]
    state = case.render() if attached else HostState()
    state.add(f"sandbox/{case.box.id}", *sandbox_domain.render(case.box, members, case.facts, HOST_FILES))
    return state


def steps(desired: HostState, present: HostState) -> str:
    """Print a plan, a step a line, in order."""
    owners = present.owners() | desired.owners()
    found = [
        f"{step.owner} | {step.resource.ns or 'host'} | {step.command() or '(' + ' '.join(step.resource.key) + ')'}"
        for step in plan(desired.resources(), present.resources(), owners)
    ]
    return "".join(_short(line) + "\n" for line in found)


@pytest.mark.parametrize("name", CASES)
def test_a_driver_renders_what_its_golden_says(name):
    golden.check(f"drivers/{name}", lines(CASES[name].render()))


@pytest.mark.parametrize("name", CASES)
def test_attaching_and_detaching_do_what_the_golden_says_in_that_order(name):
    with_it, without = whole(CASES[name], attached=True), whole(CASES[name], attached=False)

    text = f"# attach\n{steps(with_it, without)}\n# detach\n{steps(without, with_it)}"

    golden.check(f"plans/{name}", text)


CHANGES = {
    "attach": (CASES["bridge"], (endpoint(),), (endpoint(), endpoint(1002, interface_name="eth1"))),
    "detach": (CASES["bridge"], (endpoint(), endpoint(1002, interface_name="eth1")), (endpoint(),)),
    "publish": (CASES["bridge"], (endpoint(),), (endpoint(ports=(port(80, 8080),)),)),
    "publish-more": (
        CASES["bridge"],
        (endpoint(ports=(port(80, 8080), port(81, 8081))),),
        (endpoint(ports=(port(80, 8080), port(81, 8082), port(82, 8083, protocol="udp"))),),
    ),
    "publish-elsewhere": (
        CASES["bridge"],
        (endpoint(ports=(port(80, 8080),)),),
        (endpoint(ports=(port(8000, 8080),)),),
    ),
    "limit": (CASES["bridge"], (endpoint(),), (endpoint(bandwidth=limits(10_000_000, 1_000_000)),)),
    "limit-changes": (
        CASES["bridge"],
        (endpoint(bandwidth=limits(10_000_000, 1_000_000)),),
        (endpoint(bandwidth=limits(20_000_000, 2_000_000, egress_burst=8_000_000)),),
    ),
    "limit-less": (
        CASES["bridge"],
        (endpoint(bandwidth=limits(10_000_000, 1_000_000)),),
        (endpoint(bandwidth=limits(10_000_000)),),
    ),
    "limit-no-more": (CASES["bridge"], (endpoint(bandwidth=limits(10_000_000, 1_000_000)),), (endpoint(),)),
    "publish-on-an-overlay": (CASES["overlay"], (endpoint(),), (endpoint(ports=(port(80, 8080),)),)),
    "unpublish-on-an-overlay": (CASES["overlay"], (endpoint(ports=(port(80, 8080),)),), (endpoint(),)),
    "unpublish": (CASES["bridge"], (endpoint(ports=(port(80, 8080),)),), (endpoint(),)),
    "attach-further": (CASES["bridge"], (endpoint(),), (endpoint(), endpoint(1002, interface_name="eth1", shard=1))),
    "attach-beside": (
        CASES["bridge"],
        (endpoint(shard=1),),
        (endpoint(shard=1), endpoint(1002, interface_name="eth1", shard=1)),
    ),
    "detach-further": (CASES["bridge"], (endpoint(), endpoint(1002, interface_name="eth1", shard=1)), (endpoint(),)),
    "port-moves": (
        CASES["bridge"],
        (endpoint(ports=(port(80, 8080),)), endpoint(1002, interface_name="eth1")),
        (endpoint(), endpoint(1002, interface_name="eth1", ports=(port(80, 8080),))),
    ),
}
"""Changes of a network that is there: case, endpoints before, endpoints after."""


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_does_what_the_golden_says_and_nothing_else(name):
    case, before, after = CHANGES[name]
    present, desired = (
        case.render(endpoints=[Attachment(endpoint=one, sandbox=case.box) for one in endpoints])
        for endpoints in (before, after)
    )

    golden.check(f"changes/{name}", steps(desired, present))


def test_every_golden_change_belongs_to_a_case():
    assert golden.unasked("changes", set(CHANGES)) == set()


@pytest.mark.parametrize("folder", ["drivers", "plans"])
def test_every_golden_belongs_to_a_case(folder):
    assert golden.unasked(folder, set(CASES)) == set()


@pytest.mark.parametrize("name", CASES)
def test_a_render_of_all_is_the_union_of_the_renders_of_each(name):
    case = CASES[name]
    parts = [case.render(endpoints=[], peers=[])]
    parts += [case.render(endpoints=[Attachment(endpoint=one, sandbox=case.box)], peers=[]) for one in case.endpoints]
    parts += [case.render(endpoints=[], peers=[one]) for one in case.peers]

    union = HostState()
    for part in parts:
        for owner, wanted in part.by_owner.items():
            union.add(owner, *wanted.values())

    assert union.by_owner == case.render().by_owner


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["bridge", "overlay"]),
    st.lists(st.integers(1, 240), unique=True, max_size=5),
    st.lists(st.integers(1, 240), unique=True, max_size=5),
)
def test_a_render_is_additive_whatever_the_endpoints_and_peers(driver, endpoints, peers):
    net, box = network(driver=driver), sandbox()
    attachments = [
        Attachment(endpoint=endpoint(1000 + one, interface_name=f"eth{one}"), sandbox=box) for one in endpoints
    ]
    known = [peer(5000 + one) for one in peers]

    parts = [DRIVERS[driver].render(net, [one], [], FACTS) for one in attachments]
    parts += [DRIVERS[driver].render(net, [], [one], FACTS) for one in known]
    parts.append(DRIVERS[driver].render(net, [], [], FACTS))

    merged = {key: one for part in parts for key, one in part.resources().items()}
    assert merged == DRIVERS[driver].render(net, attachments, known, FACTS).resources()


@pytest.mark.parametrize("name", CASES)
def test_every_resource_has_all_it_needs_in_the_render_of_network_and_sandbox(name):
    state = whole(CASES[name], attached=True).resources()

    missing = {need for one in state.values() for need in one.needs() if need not in state}

    assert missing <= {("netns", "")}


@pytest.mark.parametrize("name", CASES)
def test_names_of_links_fit_the_kernel(name):
    links = [one for one in CASES[name].render() if one.key[0] == "link"]

    assert [one.name for one in links if len(one.name.encode()) > 15] == []


PORTS = (port(80, 8080),)
DUAL_NETWORK = network(**DUAL)

PORT_REFUSALS = {
    "on a host network": (network(driver="host", subnets=()), endpoint(ports=PORTS), "PORTS_NOT_PUBLISHED"),
    "on an internal overlay": (overlay(internal=True), endpoint(ports=PORTS), "INTERNAL_NETWORK"),
    "on an overlay without a gateway": (
        overlay(subnets=subnets("-10.1.0.0/24")),
        endpoint(ports=PORTS),
        "NO_GATEWAY",
    ),
    "on an overlay from IPv6 to IPv4": (
        overlay(),
        endpoint(ports=(port(80, 80, "2001:db8::1"),)),
        "NO_ADDRESS_OF_FAMILY",
    ),
    "on an overlay at [::1]": (overlay(), endpoint(ports=(port(80, 80, "::1"),)), "IPV6_LOOPBACK"),
    "on an overlay one number to two ports": (
        overlay(),
        endpoint(ports=(port(80, 80, "127.0.0.1"), port(81, 80, "192.0.2.1"))),
        "PORT_TWICE",
    ),
    "on an internal network": (network(internal=True), endpoint(ports=PORTS), "INTERNAL_NETWORK"),
    "on a network without a gateway": (
        network(subnets=subnets("-10.1.0.0/24")),
        endpoint(ports=PORTS),
        "NO_GATEWAY",
    ),
    "IPv6 to IPv4": (network(), endpoint(ports=(port(80, 80, "2001:db8::1"),)), "NO_ADDRESS_OF_FAMILY"),
    "IPv4 to IPv6": (
        DUAL_NETWORK,
        endpoint(addresses=DUAL_ADDRESSES[1:], ports=(port(80, 80, "192.0.2.1"),)),
        "NO_ADDRESS_OF_FAMILY",
    ),
    "no port chosen": (network(), endpoint(ports=(port(80),)), "PORT_NOT_ASSIGNED"),
    "two container ports as one": (network(), endpoint(ports=(port(80, 80), port(81, 80))), "PORT_TWICE"),
    "all addresses and one of them": (
        network(),
        endpoint(ports=(port(80, 80), port(81, 80, "192.0.2.1"))),
        "PORT_TWICE",
    ),
    "one address and all of them": (
        network(),
        endpoint(ports=(port(81, 80, "192.0.2.1"), port(80, 80, "0.0.0.0"))),
        "PORT_TWICE",
    ),
    "a default gateway mode that translates nothing": (
        network(options={"gateway_mode_ipv4": "isolated"}, internal=True),
        endpoint(ports=PORTS),
        "INTERNAL_NETWORK",
    ),
    "IPv6 loopback": (
        DUAL_NETWORK,
        endpoint(addresses=DUAL_ADDRESSES, ports=(port(80, 80, "::1"),)),
        "IPV6_LOOPBACK",
    ),
    "a default binding of the other family": (
        network(options={"host_binding": "2001:db8::1"}),
        endpoint(ports=PORTS),
        "NO_ADDRESS_OF_FAMILY",
    ),
}


@pytest.mark.parametrize(("net", "one", "reason"), PORT_REFUSALS.values(), ids=PORT_REFUSALS)
def test_ports_that_cannot_be_published_are_refused_with_their_reason(net, one, reason):
    with pytest.raises(NetweftError) as caught:
        DRIVERS[net.driver].check(net, Attachment(endpoint=one, sandbox=sandbox()), FACTS)

    assert reason == caught.value.reason
    assert one.name in caught.value.message


ACCEPTED_PORTS = {
    "one port for each family apart": (port(80, 80, "0.0.0.0"), port(81, 80, "::")),
    "one port at two addresses": (port(80, 80, "192.0.2.1"), port(81, 80, "192.0.2.2")),
    "one port for each protocol": (port(80, 80), port(80, 80, protocol="udp"), port(80, 80, protocol="sctp")),
    "one container port as two": (port(80, 80), port(80, 81)),
}


@pytest.mark.parametrize("ports", ACCEPTED_PORTS.values(), ids=ACCEPTED_PORTS)
def test_ports_that_do_not_meet_are_accepted(ports):
    one = endpoint(addresses=DUAL_ADDRESSES, ports=ports)

    DRIVERS["bridge"].check(DUAL_NETWORK, Attachment(endpoint=one, sandbox=sandbox()), FACTS)


BINDS = {
    "everywhere": (port(80), DUAL_ADDRESSES, {}, ("0.0.0.0", "::")),
    "everywhere, with IPv4 alone": (port(80), DUAL_ADDRESSES[:1], {}, ("0.0.0.0",)),
    "everywhere in IPv4": (port(80, host_address="0.0.0.0"), DUAL_ADDRESSES, {}, ("0.0.0.0",)),
    "everywhere in IPv6": (port(80, host_address="::"), DUAL_ADDRESSES, {}, ("::",)),
    "at one address": (port(80, host_address="192.0.2.1"), DUAL_ADDRESSES, {}, ("192.0.2.1",)),
    "at the network's default": (port(80), DUAL_ADDRESSES, {"host_binding": "192.0.2.9"}, ("192.0.2.9",)),
    "at one address in spite of the default": (
        port(80, host_address="192.0.2.1"),
        DUAL_ADDRESSES,
        {"com.docker.network.bridge.host_binding_ipv4": "192.0.2.9"},
        ("192.0.2.1",),
    ),
    "nowhere, for want of an address of its family": (port(80, host_address="::"), DUAL_ADDRESSES[:1], {}, ()),
}


@pytest.mark.parametrize(("one", "addresses", "options", "expected"), BINDS.values(), ids=BINDS)
def test_where_a_port_is_held(one, addresses, options, expected):
    net = network(options=options, **DUAL)

    assert expected == DRIVERS["bridge"].binds(net, endpoint(addresses=addresses))(one)


def test_ports_are_published_in_the_families_whose_default_route_the_endpoint_gives():
    one = endpoint(addresses=DUAL_ADDRESSES, ports=PORTS)

    held = {
        versions: [
            part.address
            for part in DRIVERS["bridge"].render(
                DUAL_NETWORK,
                [Attachment(endpoint=one, sandbox=sandbox(), gateway_of=frozenset(versions))],
                [],
                FACTS,
            )
            if part.key[0] == "port"
        ]
        for versions in ((4, 6), (4,), (6,), ())
    }

    assert {(4, 6): ["*"], (4,): ["0.0.0.0"], (6,): ["::"], (): []} == held


REFUSALS = {
    "isolated and not internal": (
        network(options={"gateway_mode_ipv4": "isolated"}),
        sandbox(),
        FACTS,
        "ISOLATED_NOT_INTERNAL",
    ),
    "isolated for IPv6 and not internal": (
        network(options={"gateway_mode_ipv6": "isolated"}),
        sandbox(),
        FACTS,
        "ISOLATED_NOT_INTERNAL",
    ),
    "bridge in the host's namespace": (bridge(), sandbox(source="host"), FACTS, "HOST_SANDBOX"),
    "overlay in the host's namespace": (overlay(), sandbox(source="host"), FACTS, "HOST_SANDBOX"),
    "overlay without a tunnel address": (overlay(), sandbox(), replace(FACTS, vtep=""), "NO_VTEP"),
    "overlay without its numbers": (overlay(claims={}), sandbox(), FACTS, "NO_CLAIM"),
    "overlay without a transit number": (overlay(claims={"vni": 5000}), sandbox(), FACTS, "NO_CLAIM"),
    "host in a namespace of its own": (network(driver="host"), sandbox(), FACTS, "NOT_HOST_SANDBOX"),
    "null in the host's namespace": (network(driver="null"), sandbox(source="host"), FACTS, "HOST_SANDBOX"),
}


@pytest.mark.parametrize(("net", "box", "facts", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_a_driver_refuses_what_it_cannot_render_before_anything_is_touched(net, box, facts, reason):
    attachment = Attachment(endpoint=endpoint(), sandbox=box)

    with pytest.raises(NetweftError) as caught:
        DRIVERS[net.driver].check(net, attachment, facts)

    assert reason == caught.value.reason
    assert len(caught.value.message) > 40


LACKING = {
    "no token bucket": (limits(8000), {"ifb", "mirred"}, "tbf"),
    "no ifb": (limits(egress=8000), {"tbf", "mirred"}, "ifb"),
    "neither ifb nor redirection": (limits(8000, 8000), {"tbf"}, "ifb and mirred"),
}


@pytest.mark.parametrize("net", [bridge(), overlay()], ids=["bridge", "overlay"])
@pytest.mark.parametrize(("wanted", "features", "lacking"), LACKING.values(), ids=LACKING)
def test_limits_that_the_kernel_cannot_keep_are_refused_and_the_message_names_what_lacks(
    net, wanted, features, lacking
):
    facts = replace(FACTS, features=frozenset(features))
    attachment = Attachment(endpoint=endpoint(bandwidth=wanted), sandbox=sandbox())

    with pytest.raises(FailedPrecondition, match=f"lacks {lacking};") as caught:
        DRIVERS[net.driver].check(net, attachment, facts)

    assert "FEATURE_MISSING" == caught.value.reason


def test_a_kernel_without_ifb_limits_what_comes_in():
    facts = replace(FACTS, features=frozenset({"tbf"}))
    attachment = Attachment(endpoint=endpoint(bandwidth=limits(8000)), sandbox=sandbox())

    DRIVERS["bridge"].check(bridge(), attachment, facts)


@pytest.mark.parametrize("name", CASES)
def test_what_a_driver_accepts_it_can_render(name):
    case = CASES[name]
    for one in case.endpoints:
        try:
            DRIVERS[case.network.driver].check(case.network, Attachment(endpoint=one, sandbox=case.box), case.facts)
        except NetweftError as error:  # pragma: no cover
            pytest.fail(str(error))

    assert isinstance(case.render(), HostState)


GATEWAYS = {
    "of the subnet that holds the address": (network(), endpoint(), 4, "10.1.0.1/24"),
    "none for a version without an address": (network(**DUAL), endpoint(), 6, None),
    "each version has its own": (network(**DUAL), endpoint(addresses=DUAL_ADDRESSES), 6, "fd00:1::1/64"),
    "none in an internal network": (network(internal=True), endpoint(), 4, None),
    "none where the subnet has none": (network(subnets=subnets("-10.1.0.0/24")), endpoint(), 4, None),
    "the second subnet's": (
        network(subnets=subnets("10.9.0.0/24", "10.1.0.0/24")),
        endpoint(),
        4,
        "10.1.0.1/24",
    ),
    "the one that the network names": (
        network(subnets=(replace(subnets("10.1.0.0/24")[0], default_gateway=ip_interface("10.1.0.254/24")),)),
        endpoint(),
        4,
        "10.1.0.254/24",
    ),
    "none of an internal network that names one": (
        network(
            internal=True,
            subnets=(replace(subnets("10.1.0.0/24")[0], default_gateway=ip_interface("10.1.0.254/24")),),
        ),
        endpoint(),
        4,
        None,
    ),
    "none for an address outside": (network(subnets=subnets("10.9.0.0/24")), endpoint(), 4, None),
}


@pytest.mark.parametrize("driver", ["bridge", "overlay"])
@pytest.mark.parametrize(("net", "one", "version", "expected"), GATEWAYS.values(), ids=GATEWAYS)
def test_gateway_offered(driver, net, one, version, expected):
    offered = DRIVERS[driver].gateway(net, one, version)

    assert expected == (None if offered is None else str(offered))


@pytest.mark.parametrize("driver", ["host", "null"])
def test_host_and_null_offer_no_gateway(driver):
    assert DRIVERS[driver].gateway(network(driver=driver), endpoint(), 4) is None
