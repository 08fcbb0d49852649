"""Bridge networks with real packets: who is let in, who gets out and as whom, in every mode and with every option."""

from __future__ import annotations

import json
from ipaddress import ip_interface

import pytest
from netweft_agent.domain.resources import HOST
from netweft_common.errors import FailedPrecondition

from tests.support.agent import endpoint, network, port, sandbox, subnets
from tests.support.lab import HOST4, HOST6, NEIGHBOUR4, NEIGHBOUR6, new_lab
from tests.support.netns import require_root, require_tool, veth
from tests.support.packets import REFUSED, tcp, udp

pytestmark = [pytest.mark.netns, pytest.mark.anyio]

OWN = {4: "10.1.0.5", 6: "fd00:1::5"}
HOSTS = {4: HOST4, 6: HOST6}
NEIGHBOURS = {4: NEIGHBOUR4, 6: NEIGHBOUR6}


@pytest.fixture(autouse=True)
def _needs():
    require_root()
    require_tool("ip")
    require_tool("ping")


@pytest.fixture
async def lab():
    async with new_lab() as lab:
        lab.neighbour.exec(["ip", "route", "add", "10.0.0.0/8", "via", HOST4])
        lab.neighbour.exec(["ip", "route", "add", "fd00::/16", "via", HOST6])
        yield lab


def dual(number=1, **fields):
    fields.setdefault("subnets", subnets(f"10.{number}.0.0/24", f"fd00:{number}::/64"))
    return network(number, enable_ipv6=True, **fields)


def both(number=1001, net=1, box=101, last=5, **fields):
    addresses = (ip_interface(f"10.{net}.0.{last}/24"), ip_interface(f"fd00:{net}::{last}/64"))
    return endpoint(number, net, box, addresses=addresses, **fields)


def pings(client, address) -> bool:
    return client.exec(["ping", "-c", "1", "-W", "1", address], check=False).returncode == 0


def modes(mode):
    return {"gateway_mode_ipv4": mode, "gateway_mode_ipv6": mode}


INWARDS = {
    # its own address: a published port, another one, ping; the host's address; as whom it leaves
    "nat": (None, None, False, "client", "host"),
    "nat-unprotected": ("client", "client", True, "client", "host"),
    "routed": ("client", None, True, REFUSED, "own"),
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mode", INWARDS)
async def test_each_gateway_mode_lets_in_and_out_what_it_says(lab, mode, version):
    """moby#45610: direct access from a neighbour, and published ports, by gateway mode."""
    item = both(ports=(port(8080, 80),))
    await lab.put(dual(options=modes(mode)), sandbox(), item)
    box, own, outside = lab.box(item), OWN[version], NEIGHBOURS[version]
    names = {outside: "client", HOSTS[version]: "host", own: "own", None: None, REFUSED: REFUSED}

    seen = (
        names[tcp(lab.neighbour, (own, 8080), box, (own, 8080))],
        names[tcp(lab.neighbour, (own, 9), box, (own, 9))],
        pings(lab.neighbour, own),
        names[tcp(lab.neighbour, (HOSTS[version], 80), box, (own, 8080))],
        names[tcp(box, (outside, 7000), lab.neighbour, (outside, 7000))],
    )

    assert INWARDS[mode] == seen


async def test_each_family_has_its_own_mode(lab):
    item = both(ports=(port(8080, 80),))
    await lab.put(dual(options={"gateway_mode_ipv6": "routed"}), sandbox(), item)
    box = lab.box(item)

    seen = [
        tcp(lab.neighbour, (HOST4, 80), box, (OWN[4], 8080)),
        tcp(lab.neighbour, (OWN[4], 8080), box, (OWN[4], 8080)),
        tcp(lab.neighbour, (HOST6, 80), box, (OWN[6], 8080)),
        tcp(lab.neighbour, (OWN[6], 8080), box, (OWN[6], 8080)),
    ]

    assert [NEIGHBOUR4, None, REFUSED, NEIGHBOUR6] == seen


ACROSS = {"nat": [None, None], "routed": [None, None], "nat-unprotected": ["10.2.0.5", "fd00:2::5"]}


@pytest.mark.parametrize("mode", ACROSS)
async def test_networks_reach_each_other_only_where_the_mode_opens_all(lab, mode):
    """CVE-2025-54410, by gateway mode."""
    item, other = both(), both(1002, 2, 102)
    await lab.put(dual(options=modes(mode)), dual(2), sandbox(), sandbox(102), item, other)

    seen = [tcp(lab.box(other), (OWN[v], 9), lab.box(item), (OWN[v], 9)) for v in (4, 6)]

    assert ACROSS[mode] == seen


@pytest.mark.parametrize(
    "options", [{}, modes("isolated"), {"inhibit_ipv4": "true"}], ids=["nat", "isolated", "inhibit"]
)
async def test_an_internal_network_has_no_way_in_or_out_but_its_endpoints_meet(lab, options):
    item, other = both(), both(1002, 1, 102, 6)
    stranger = both(1003, 2, 103)
    await lab.put(dual(internal=True, options=options), dual(2), *map(sandbox, (101, 102, 103)), item, other, stranger)
    box = lab.box(item)
    for version, route in ((4, "10.1.0.1"), (6, "fd00:1::1")):
        # Somebody in the sandbox makes himself a way out.
        box.exec(["ip", f"-{version}", "route", "add", "default", "via", route, "dev", "eth0"], check=False)

    seen = {
        "each other": [udp(lab.box(other), (OWN[v], 9), box, (OWN[v], 9)) for v in (4, 6)],
        "in": [udp(lab.neighbour, (OWN[v], 9), box, (OWN[v], 9)) for v in (4, 6)],
        "out": [udp(box, (NEIGHBOURS[v], 9), lab.neighbour, (NEIGHBOURS[v], 9)) for v in (4, 6)],
        "to another network": udp(box, ("10.2.0.5", 9), lab.box(stranger), ("10.2.0.5", 9)),
        "from another network": udp(lab.box(stranger), (OWN[4], 9), box, (OWN[4], 9)),
    }

    assert seen == {
        "each other": ["10.1.0.6", "fd00:1::6"],
        "in": [None, None],
        "out": [None, None],
        "to another network": None,
        "from another network": None,
    }


@pytest.mark.parametrize(
    ("options", "internal", "expected"),
    [
        ({}, False, ["10.1.0.1/24", "fd00:1::1/64"]),
        ({}, True, ["10.1.0.1/24", "fd00:1::1/64"]),
        ({"inhibit_ipv4": "true"}, False, ["fd00:1::1/64"]),
        ({"gateway_mode_ipv4": "isolated"}, True, ["fd00:1::1/64"]),
        (modes("isolated"), True, []),
    ],
    ids=["nat", "internal", "inhibit-ipv4", "isolated-ipv4", "isolated"],
)
async def test_the_bridge_has_the_addresses_that_mode_and_options_leave_it(lab, options, internal, expected):
    await lab.put(dual(options={**options, "bridge_name": "br-test"}, internal=internal), sandbox(), both())

    listed = json.loads(lab.host.exec(["ip", "-j", "address", "show", "br-test"]).stdout)[0]["addr_info"]

    assert expected == [f"{one['local']}/{one['prefixlen']}" for one in listed if not one["local"].startswith("fe80")]


async def test_where_the_bridge_has_no_ipv4_address_somebody_else_on_it_is_the_gateway(lab):
    # The router is on the bridge itself, with the gateway's address.
    item = both()
    await lab.put(dual(options={"inhibit_ipv4": "true", "bridge_name": "br-test"}), sandbox(), item)
    veth(lab.host, "uplink", lab.neighbour, "uplink")
    lab.host.exec(["ip", "link", "set", "uplink", "master", "br-test"])
    lab.neighbour.exec(["ip", "route", "del", "10.0.0.0/8"])
    lab.neighbour.exec(["ip", "address", "add", "10.1.0.1/24", "dev", "uplink"])

    assert "10.1.0.5" == udp(lab.box(item), (NEIGHBOUR4, 9), lab.neighbour, (NEIGHBOUR4, 9))


async def test_leaving_traffic_gets_the_address_that_the_network_names(lab):
    for address in ("192.0.2.7/24", "2001:db8::7/64"):
        lab.host.exec(["ip", "address", "add", address, "dev", "wire0", *(["nodad"] if ":" in address else [])])
    item = both()
    await lab.put(dual(options={"snat_ipv4": "192.0.2.7", "snat_ipv6": "2001:DB8:0::7"}), sandbox(), item)

    seen = [tcp(lab.box(item), (NEIGHBOURS[v], 7000), lab.neighbour, (NEIGHBOURS[v], 7000)) for v in (4, 6)]

    assert ["192.0.2.7", "2001:db8::7"] == seen


async def test_without_masquerade_traffic_leaves_as_it_is(lab):
    item = both()
    await lab.put(dual(options={"masquerade": "false"}), sandbox(), item)

    seen = [tcp(lab.box(item), (NEIGHBOURS[v], 7000), lab.neighbour, (NEIGHBOURS[v], 7000)) for v in (4, 6)]

    assert [OWN[4], OWN[6]] == seen


async def test_a_trusted_interface_leads_to_the_endpoints_own_addresses_and_others_do_not(lab):
    item = both()
    await lab.put(dual(options={"trusted_host_interfaces": "other0:wire0"}), sandbox(), item)
    box = lab.box(item)
    trusted = [tcp(lab.neighbour, (OWN[v], 9), box, (OWN[v], 9)) for v in (4, 6)]

    await lab.put(dual(options={"trusted_host_interfaces": "other0"}))
    others = [tcp(lab.neighbour, (OWN[v], 9), box, (OWN[v], 9)) for v in (4, 6)]

    assert ([NEIGHBOUR4, NEIGHBOUR6], [None, None]) == (trusted, others)


@pytest.mark.parametrize("bridge_nf", [False, True], ids=["routed", "br_netfilter"])
async def test_with_icc_off_endpoints_of_a_network_do_not_meet_not_even_through_the_host(bridge_nf):
    async with new_lab(bridge_nf=bridge_nf) as lab:
        item, other = both(), both(1002, 1, 102, 6)
        await lab.put(dual(options={"icc": "false"}), sandbox(), sandbox(102), item, other)
        box, client = lab.box(item), lab.box(other)
        directly = [udp(client, (OWN[v], 9), box, (OWN[v], 9)) for v in (4, 6)]
        for route in (["10.1.0.5/32", "via", "10.1.0.1"], ["fd00:1::5/128", "via", "fd00:1::1"]):
            client.exec(["ip", "route", "add", *route])
            box.exec(["ip", "route", "add", *[part.replace("::5", "::6").replace("0.5", "0.6") for part in route]])

        through_host = [udp(client, (OWN[v], 9), box, (OWN[v], 9)) for v in (4, 6)]
        outside = udp(client, (NEIGHBOUR4, 9), lab.neighbour, (NEIGHBOUR4, 9))

        assert ([None, None], [None, None], HOST4) == (directly, through_host, outside)


# --- IPv6 ------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def doubtful():
    """Make a lab whose host looks for duplicate addresses, as hosts do."""
    async with new_lab() as lab:
        lab.host.exec(["sysctl", "-qw", "net.ipv6.conf.default.accept_dad=1"])
        yield lab


@pytest.mark.parametrize("families", [(4, 6), (6,)], ids=["dual stack", "IPv6 only"])
async def test_ipv6_is_usable_at_once_and_takes_no_advertisements(doubtful, families):
    """CVE-2020-10749, CVE-2020-13401: `accept_ra` is 0 at both ends."""
    lab = doubtful
    nets = subnets(*(("10.1.0.0/24",) if 4 in families else ()), "fd00:1::/64")
    addresses = tuple(ip_interface(f"{OWN[v]}/{24 if v == 4 else 64}") for v in families)
    item = endpoint(addresses=addresses, ports=(port(8080, 80),))
    await lab.put(network(subnets=nets, enable_ipv4=4 in families, enable_ipv6=True), sandbox(), item)
    box = lab.box(item)

    first_try = tcp(lab.neighbour, (HOST6, 80), box, (OWN[6], 8080))

    bridge = "nwb-" + network().id[:11]
    tentative = lab.host.exec(["ip", "-6", "address", "show", bridge, "tentative"]).stdout
    settings = [
        lab.host.exec(["sysctl", "-n", f"net.ipv6.conf.{bridge}.accept_ra"]).stdout.strip(),
        box.exec(["sysctl", "-n", "net.ipv6.conf.eth0.accept_ra"]).stdout.strip(),
    ]
    assert (NEIGHBOUR6, "", ["0", "0"]) == (first_try, tentative, settings)


async def test_an_ipv4_network_has_no_ipv6_at_all(lab):
    """CVE-2024-32473: a link-local address would be a way past all rules."""
    await lab.put(network(), sandbox(), endpoint())

    box = lab.box(endpoint())
    listed = box.exec(["ip", "-6", "address", "show", "eth0"]).stdout
    bridge = lab.host.exec(["ip", "-6", "address", "show", "nwb-" + network().id[:11]]).stdout

    assert ("", "", "1") == (
        listed,
        bridge,
        box.exec(["sysctl", "-n", "net.ipv6.conf.eth0.disable_ipv6"]).stdout.strip(),
    )


# --- names and bridges of others -------------------------------------------------------------------------------------


async def test_a_bridge_of_somebody_else_is_used_as_it_is_and_left_behind(lab):
    lab.host.exec(["ip", "link", "add", "br-lan", "type", "bridge"])
    lab.host.exec(["ip", "link", "set", "br-lan", "mtu", "1400"])
    lab.host.exec(["ip", "address", "add", "10.1.0.1/24", "dev", "br-lan"])
    before = json.loads(lab.host.exec(["ip", "-j", "-d", "link", "show", "br-lan"]).stdout)[0]
    net, item = network(options={"bridge_name": "br-lan"}), endpoint(ports=(port(8080, 80),))

    await lab.put(net, sandbox(), item)
    seen = tcp(lab.neighbour, (HOST4, 80), lab.box(item), ("10.1.0.3", 8080))
    again = await lab.restart()
    await lab.gone(item, sandbox(), net)

    after = json.loads(lab.host.exec(["ip", "-j", "-d", "link", "show", "br-lan"]).stdout)[0]
    addresses = lab.host.exec(["ip", "-4", "-o", "address", "show", "br-lan"]).stdout
    assert (NEIGHBOUR4, ()) == (seen, again)
    assert [before[key] for key in ("mtu", "group", "ifindex")] == [after[key] for key in ("mtu", "group", "ifindex")]
    assert "10.1.0.1/24" in addresses
    assert [] == [key for key in lab.known if key[1] == HOST and key[0] in {"link", "address"}]


async def test_what_we_add_to_a_bridge_of_somebody_else_we_take_away(lab):
    lab.host.exec(["ip", "link", "add", "br-lan", "type", "bridge"])
    net, item = network(options={"bridge_name": "br-lan"}), endpoint()

    await lab.put(net, sandbox(), item)
    with_it = lab.host.exec(["ip", "-4", "-o", "address", "show", "br-lan"]).stdout
    await lab.gone(item, sandbox(), net)
    without = lab.host.exec(["ip", "-4", "-o", "address", "show", "br-lan"]).stdout

    assert "10.1.0.1/24" in with_it
    assert "" == without


async def test_a_link_of_that_name_that_is_no_bridge_is_refused(lab):
    with pytest.raises(FailedPrecondition) as caught:
        await lab.put(network(options={"bridge_name": "wire0"}), sandbox(), endpoint())

    assert "FOREIGN_LINK" == caught.value.reason


async def test_two_networks_cannot_have_one_bridge(lab):
    await lab.put(network(options={"bridge_name": "br-test"}), sandbox(), endpoint())

    with pytest.raises(FailedPrecondition) as caught:
        await lab.put(network(2, options={"bridge_name": "br-test"}), sandbox(102), endpoint(1002, 2, 102))

    assert "RESOURCE_TAKEN" == caught.value.reason


async def test_interfaces_are_named_with_the_networks_prefix(lab):
    nets = [
        network(1, options={"interface_prefix": "lan"}),
        network(2, options={"interface_prefix": "lan"}),
        network(3),
    ]
    items = [endpoint(1000 + number, number, 101, interface_name="") for number in (1, 2, 3)]
    await lab.put(*nets, sandbox(), *items)

    links = json.loads(lab.box(items[0]).exec(["ip", "-j", "link", "show"]).stdout)

    assert ["eth0", "lan0", "lan1", "lo"] == sorted(link["ifname"] for link in links)


@pytest.mark.parametrize(("mtu", "expected"), [("1400", 1400), ("0", 1500), ("9000", 9000)])
async def test_bridge_and_endpoints_have_the_networks_mtu(lab, mtu, expected):
    await lab.put(network(options={"mtu": mtu, "bridge_name": "br-test"}), sandbox(), endpoint())

    found = [
        json.loads(ns.exec(["ip", "-j", "link", "show", name]).stdout)[0]["mtu"]
        for ns, name in ((lab.host, "br-test"), (lab.box(endpoint()), "eth0"))
    ]

    assert [expected, expected] == found
