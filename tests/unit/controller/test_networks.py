from __future__ import annotations

import msgspec
import pytest
from netweft_common import errors
from netweft_controller.domain import commits, networks, options
from netweft_controller.domain.objects import Host, HostFacts, NetworkState, Subnet
from netweft_controller.domain.specs import NetworkSpec

ONCE = commits.Request(id="r", fingerprint=b"", outcome=b"")


def subnet(text="", **fields):
    return Subnet(subnet=text, **fields)


GOOD = "10.0.0.0/24"
BAD = {
    "empty name": ({"name": ""}, "name"),
    "long name": ({"name": "a" * 64}, "name"),
    "unknown driver": ({"driver": "nope"}, "driver"),
    "host for a global driver": ({"driver": "overlay", "host": "h1"}, "host"),
    "unknown ipam driver": ({"ipam_driver": "x"}, "ipam_driver"),
    "no addresses for a driver that needs them": ({"ipam_driver": "null"}, "ipam_driver"),
    "subnets for a driver without addresses": ({"driver": "host", "subnets": (subnet(GOOD),)}, "subnets"),
    "no family": ({"enable_ipv4": False}, "disable_ipv4"),
    "malformed space": ({"address_space": "a/b"}, "address_space"),
    "host bits": ({"subnets": (subnet("10.0.0.1/24"),)}, "subnets[0].subnet"),
    "ipv6 while it is off": ({"subnets": (subnet("fd00::/64"),)}, "subnets[0].subnet"),
    "ipv4 while it is off": (
        {"enable_ipv4": False, "enable_ipv6": True, "subnets": (subnet(GOOD),)},
        "subnets[0].subnet",
    ),
    "loopback": ({"subnets": (subnet("127.0.0.0/24"),)}, "subnets[0].subnet"),
    "multicast": ({"subnets": (subnet("224.0.0.0/24"),)}, "subnets[0].subnet"),
    "link-local": ({"enable_ipv6": True, "subnets": (subnet("fe80::/64"),)}, "subnets[0].subnet"),
    "overlap in the request": ({"subnets": (subnet(GOOD), subnet("10.0.0.0/25"))}, "subnets[1].subnet"),
    "gateway outside": ({"subnets": (subnet(GOOD, gateway="10.0.1.1"),)}, "subnets[0].gateway"),
    "gateway is the network address": ({"subnets": (subnet(GOOD, gateway="10.0.0.0"),)}, "subnets[0].gateway"),
    "gateway is the broadcast address": ({"subnets": (subnet(GOOD, gateway="10.0.0.255"),)}, "subnets[0].gateway"),
    "gateway of the other family": ({"subnets": (subnet(GOOD, gateway="fd00::1"),)}, "subnets[0].gateway"),
    "gateway without a subnet": ({"subnets": (subnet(gateway="10.0.0.1"),)}, "subnets[0].gateway"),
    "gateway in a subnet of any place": (
        {"subnets": (subnet("0.0.0.0/24", gateway="10.0.0.1"),)},
        "subnets[0].gateway",
    ),
    "range outside": ({"subnets": (subnet(GOOD, ip_range="10.0.1.0/25"),)}, "subnets[0].ip_range"),
    "range wider": ({"subnets": (subnet(GOOD, ip_range="10.0.0.0/16"),)}, "subnets[0].ip_range"),
    "range with host bits": ({"subnets": (subnet(GOOD, ip_range="10.0.0.1/25"),)}, "subnets[0].ip_range"),
    "range of the other family": ({"subnets": (subnet(GOOD, ip_range="fd00::/80"),)}, "subnets[0].ip_range"),
    "aux outside": ({"subnets": (subnet(GOOD, aux_addresses={"a": "10.0.1.1"}),)}, "subnets[0].aux_addresses['a']"),
    "aux is the gateway": (
        {"subnets": (subnet(GOOD, gateway="10.0.0.1", aux_addresses={"a": "10.0.0.1"}),)},
        "subnets[0].aux_addresses['a']",
    ),
    "aux twice": (
        {"subnets": (subnet(GOOD, aux_addresses={"a": "10.0.0.2", "b": "10.0.0.2"}),)},
        "subnets[0].aux_addresses['b']",
    ),
    "too many subnets": ({"subnets": tuple(subnet(f"10.{n}.0.0/24") for n in range(17))}, "subnets"),
    "unknown option": ({"options": {"speed": "9"}}, "options['speed']"),
    "direct routing inside": (
        {"driver": "overlay", "internal": True, "options": {"direct_routing": "true"}},
        "options['direct_routing']",
    ),
    "direct routing in a space of its own": (
        {"driver": "overlay", "address_space": "mine", "options": {"direct_routing": "true"}},
        "options['direct_routing']",
    ),
    "number out of range": ({"driver": "overlay", "options": {"vni": "9"}}, "options['vni']"),
}


@pytest.mark.parametrize(("spec", "field"), BAD.values(), ids=BAD.keys())
def test_a_bad_request_is_refused_by_its_field(build, spec, field):
    build.host()

    with pytest.raises(errors.InvalidArgument) as caught:
        networks.plan(build.state, NetworkSpec(**{"name": "n", **spec}), "f" * 32)

    assert field == caught.value.field


def test_an_unknown_driver_is_refused_with_the_known_ones(build):
    build.host()

    with pytest.raises(errors.InvalidArgument, match="bridge, host, overlay"):
        networks.plan(build.state, NetworkSpec(name="n", driver="nope"), "f" * 32)


def test_an_unknown_option_is_refused_with_the_known_ones(build):
    build.host()

    with pytest.raises(errors.InvalidArgument, match="mtu, icc, mode"):
        networks.plan(build.state, NetworkSpec(name="n", options={"speed": "9"}), "f" * 32)


def test_without_hosts_nothing_is_known_of_drivers(build):
    with pytest.raises(errors.FailedPrecondition, match="start an agent"):
        networks.plan(build.state, NetworkSpec(name="n"), "f" * 32)


def test_a_name_in_use_is_refused(build):
    build.host()
    build.network()

    with pytest.raises(errors.AlreadyExists, match="n10"):
        networks.plan(build.state, NetworkSpec(name="n10"), "f" * 32)


def test_a_driver_of_one_network_gets_one(build):
    build.host()
    build.network(driver="host", subnets=())

    with pytest.raises(errors.FailedPrecondition, match="n10"):
        networks.plan(build.state, NetworkSpec(name="other", driver="host"), "f" * 32)


@pytest.mark.parametrize(
    ("spec", "space", "exclude"),
    [
        ({}, "LocalDefault", ("192.168.0.0/24", "192.168.9.0/24")),
        ({"host": "h2"}, "LocalDefault:00000002" + "0" * 24, ("192.168.9.0/24",)),
        ({"driver": "overlay"}, "GlobalDefault", ()),
        ({"driver": "overlay", "address_space": "mine"}, "mine", ()),
    ],
    ids=["local", "bound to a host", "global", "chosen"],
)
def test_the_address_space_follows_the_scope(build, drivers, spec, space, exclude):
    build.host(1)
    build.host(2, facts=HostFacts(drivers=tuple(drivers.values()), routes=("192.168.9.0/24",)))

    (pool,) = networks.plan(build.state, NetworkSpec(name="n", **spec), "f" * 32).pools

    assert (space, exclude) == (pool.address_space, pool.exclude)


@pytest.mark.parametrize(
    ("spec", "subnets"),
    [
        ({}, ["0.0.0.0/0"]),
        ({"enable_ipv6": True}, ["0.0.0.0/0", "::/0"]),
        ({"enable_ipv4": False, "enable_ipv6": True}, ["::/0"]),
        ({"subnets": (subnet(GOOD),)}, [GOOD]),
        ({"enable_ipv6": True, "subnets": (subnet(GOOD),)}, [GOOD, "::/0"]),
        ({"subnets": (subnet("0.0.0.0/28"),)}, ["0.0.0.0/28"]),
        ({"subnets": (subnet(GOOD), subnet("10.0.1.0/24"))}, [GOOD, "10.0.1.0/24"]),
    ],
    ids=["automatic", "both families", "ipv6 alone", "given", "one given", "any of a size", "several"],
)
def test_each_enabled_family_gets_a_subnet(build, spec, subnets):
    build.host()

    plan = networks.plan(build.state, NetworkSpec(name="n", **spec), "f" * 32)

    assert subnets == [want.subnet for want in plan.pools] == [one.subnet for one in plan.network.subnets]


def test_named_addresses_are_leased_before_automatic_ones(build):
    build.host()
    spec = NetworkSpec(
        name="n", subnets=(subnet(GOOD, aux_addresses={"a": "10.0.0.1"}), subnet("10.0.1.0/24", gateway="10.0.1.9"))
    )

    wants = networks.addresses(networks.plan(build.state, spec, "f" * 32).network)

    assert [(0, "a", "10.0.0.1"), (1, "", "10.0.1.9"), (0, "", "")] == [
        (w.subnet_index, w.name, w.address) for w in wants
    ]


def test_numbers_start_at_a_place_of_the_networks_own_and_go_round(build, drivers):
    build.host()
    found = []
    for number in range(3):
        network_id = f"{number * 0x01010101 + 2:08x}{number:024x}"
        plan = networks.plan(build.state, NetworkSpec(name=f"o{number}", driver="overlay"), network_id)
        change = networks.create(build.state, plan, plan.network, ONCE)
        (write,) = change.writes
        found.append(write.value.claims["vni"])
        assert (f"number/vni/{found[-1]}", network_id) in change.take
        build.write(write.value)

    assert {10, 11, 12} == set(found)
    with pytest.raises(errors.Exhausted):
        networks.plan(build.state, NetworkSpec(name="x", driver="overlay"), "f" * 32)


def test_a_chosen_number_in_use_is_refused(build):
    build.host()
    build.network(driver="overlay", claims={"vni": 11})

    with pytest.raises(errors.FailedPrecondition, match="n10"):
        networks.plan(build.state, NetworkSpec(name="x", driver="overlay", options={"vni": "11"}), "f" * 32)


def test_a_network_with_endpoints_is_not_deleted_and_says_which(build):
    build.host()
    network = build.network()
    for number in range(1000, 1012):
        build.endpoint(number)

    with pytest.raises(errors.FailedPrecondition, match=r"12 endpoints \(e1000, .* and 2 more"):
        networks.mark_deleting(build.state, build.state.networks[network.id], ONCE)


def test_a_network_that_is_dockers_on_a_host_is_not_deleted_and_says_where(build):
    network = build.network()
    for number in (1, 2, 3):
        bound = (network.id,) if number != 2 else ("f" * 32,)
        build.host(number, facts=HostFacts(bound_networks=bound))

    with pytest.raises(errors.FailedPrecondition, match=r"Docker's on \w+1, \w+3; remove it there"):
        networks.mark_deleting(build.state, build.state.networks[network.id], ONCE)


def test_a_deletion_is_marked_once(build):
    build.host()
    network = build.network()
    change = networks.mark_deleting(build.state, build.state.networks[network.id], ONCE)
    build.write(change.writes[0].value)

    assert NetworkState.DELETING is build.state.networks[network.id].value.state
    assert networks.mark_deleting(build.state, build.state.networks[network.id], ONCE) is None


def test_a_removed_network_drops_all_that_it_claimed(build):
    build.host()
    network = build.network(driver="overlay", claims={"vni": 11})

    change = networks.delete(build.state.networks[network.id])

    assert {"network-name/n10", "number/vni/11", "driver/overlay"} == {claim for claim, _ in change.drop}


OPTIONS_GOOD = [
    ({"mtu": "1400"}, {"mtu": "1400"}),
    ({"com.docker.network.driver.mtu": "+01400"}, {"mtu": "1400"}),
    ({"icc": "T"}, {"icc": "true"}),
    ({"icc": "0"}, {"icc": "false"}),
    ({"mode": "nat"}, {"mode": "nat"}),
    ({"any-number": "-99999999"}, {"any-number": "-99999999"}),
    ({}, {}),
]


@pytest.mark.parametrize(("given", "kept"), OPTIONS_GOOD)
def test_options_are_kept_under_the_drivers_own_names(drivers, given, kept):
    assert kept == options.check(given, drivers["bridge"])


@pytest.mark.parametrize(
    "given",
    [
        {"mtu": "67"},
        {"mtu": "65536"},
        {"mtu": "many"},
        {"mtu": ""},
        {"mtu": "1" * 30},
        {"icc": "maybe"},
        {"mode": "NAT"},
        {"name": "abcde"},
        {"name": "a\n"},
        {"mtu": "1400", "com.docker.network.driver.mtu": "1400"},
        {"name": "a" * 5000},
    ],
    ids=str,
)
def test_a_bad_option_is_refused_by_its_name(drivers, given):
    with pytest.raises(errors.InvalidArgument) as caught:
        options.check(given, drivers["bridge"])

    assert next(reversed(given))[:10] in caught.value.field


def test_a_host_that_lacks_the_driver_is_named(build, drivers):
    build.host(1)
    build.write(Host(id="2" * 32, name="bare", agent_target="unix:/b"))

    with pytest.raises(errors.InvalidArgument, match="host bare"):
        networks.plan(build.state, NetworkSpec(name="n", host="bare"), "f" * 32)


def test_what_ipam_answered_replaces_what_was_asked(build):
    build.host()
    plan = networks.plan(build.state, NetworkSpec(name="n"), "f" * 32)

    made = networks.check_against_pool(plan.network, [("172.20.0.0/16", "L/172.20.0.0/16")])

    assert (
        msgspec.structs.replace(plan.network.subnets[0], subnet="172.20.0.0/16", pool_id="L/172.20.0.0/16"),
    ) == made.subnets
