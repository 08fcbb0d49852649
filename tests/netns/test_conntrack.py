"""Flows of published ports end with the ports: real flows, the kernel's table, and what it was asked for."""

from __future__ import annotations

import errno
from ipaddress import ip_interface

import pytest
from netweft_agent.kernel import conntrack, netlink

from tests.support.agent import endpoint, network, port, sandbox, subnets
from tests.support.lab import HOST4, HOST6, NEIGHBOUR4, NEIGHBOUR6, new_lab
from tests.support.netns import require_root, require_tool
from tests.support.packets import at_once, tcp, udp
from tests.support.tracked import Asked, Flow, flows

pytestmark = [pytest.mark.netns, pytest.mark.anyio]

A4, A6, B4, B6 = "10.1.0.5", "fd00:1::5", "10.1.0.6", "fd00:1::6"
SEND = {"tcp": tcp, "udp": udp}


@pytest.fixture(autouse=True)
def _needs():
    require_root()
    require_tool("ip")


@pytest.fixture
async def lab():
    async with new_lab() as lab:
        await lab.put(
            network(1, enable_ipv6=True, subnets=subnets("10.1.0.0/24", "fd00:1::/64")), sandbox(), sandbox(102)
        )
        yield lab


def one(*ports):
    return endpoint(ports=ports, addresses=(ip_interface(f"{A4}/24"), ip_interface(f"{A6}/64")))


def other(*ports):
    addresses = (ip_interface(f"{B4}/24"), ip_interface(f"{B6}/64"))
    return endpoint(1002, sandbox=102, ports=ports, addresses=addresses)


def use(lab, item, *ports):
    """Make a flow by each port and family, and return them as the kernel has them."""
    box = lab.box(item)
    inside = {4: str(item.addresses[0].ip), 6: str(item.addresses[1].ip)}
    ways = [(binding, host, inside[version]) for binding in ports for version, host in ((4, HOST4), (6, HOST6))]
    seen = at_once(
        *(
            lambda binding=binding, host=host, server=server: SEND[binding.protocol](
                lab.neighbour, (host, binding.host_port), box, (server, binding.container_port)
            )
            for binding, host, server in ways
        )
    )
    assert [NEIGHBOUR4, NEIGHBOUR6] * len(ports) == seen
    return {Flow(binding.protocol, host, binding.host_port, server) for binding, host, server in ways}


PORTS = (port(8080, 80), port(8081, 81), port(5300, 53, protocol="udp"), port(5301, 54, protocol="udp"))


async def test_a_port_that_is_taken_away_takes_its_flows_along_and_no_others(lab, monkeypatch):
    item, beside = one(*PORTS), other(port(8080, 180), port(5300, 153, protocol="udp"))
    await lab.put(item, beside)
    made = use(lab, item, *PORTS) | use(lab, beside, *beside.ports)
    before = flows(lab.host)

    asked = Asked(monkeypatch)
    await lab.put(one(PORTS[1], PORTS[3]))

    assert made == before
    assert {flow for flow in made if flow.port not in {80, 53}} == flows(lab.host)
    # Two ports, held at the addresses of both families.
    assert (4, 1, 0) == asked.counts


async def test_an_endpoint_that_leaves_takes_its_flows_along_and_no_others(lab, monkeypatch):
    item, beside = one(*PORTS), other(port(8080, 180), port(5300, 153, protocol="udp"))
    await lab.put(item, beside)
    use(lab, item, *PORTS)
    made = use(lab, beside, *beside.ports)

    asked = Asked(monkeypatch)
    await lab.gone(item)

    assert made == flows(lab.host)
    assert (8, 1, 0) == asked.counts


async def test_of_an_endpoint_with_hundreds_of_ports_all_flows_end_at_once(lab, monkeypatch):
    ports = [port(1000 + number, 20000 + number) for number in range(300)]
    ports += [port(1000 + number, 20000 + number, protocol="udp") for number in range(5)]
    item, beside = one(*ports), other(port(8080, 180), port(5300, 153, protocol="udp"))
    await lab.put(item, beside)
    made = use(lab, item, ports[0], ports[299], ports[300])
    left = use(lab, beside, *beside.ports)
    before = flows(lab.host)

    asked = Asked(monkeypatch)
    await lab.gone(item)

    assert made | left == before
    assert left == flows(lab.host)
    # By IPv4 in one deletion; by IPv6 three entries, after a look.
    assert (1 + 3, 2, 1) == asked.counts


async def test_of_hundreds_of_ports_among_others_the_flows_end_in_a_dump_for_each_family(lab, monkeypatch):
    kept = port(8080, 80)
    ports = [port(1000 + number, 20000 + number) for number in range(100)]
    await lab.put(one(kept, *ports))
    made = use(lab, one(), kept)
    use(lab, one(), ports[7], ports[99])

    asked = Asked(monkeypatch)
    await lab.put(one(kept))

    assert made == flows(lab.host)
    # Two ports were used, over both families.
    assert (4, 1, 2) == asked.counts


async def test_a_port_that_moves_to_another_endpoint_takes_no_flow_along(lab, monkeypatch):
    binding = port(5300, 53, protocol="udp")
    source = (NEIGHBOUR4, 40000)
    await lab.put(one(binding), other())
    udp(lab.neighbour, (HOST4, 53), lab.box(one()), (A4, 5300), source=source)
    before = flows(lab.host)

    asked = Asked(monkeypatch)
    await lab.put(one(), other(binding))
    after = flows(lab.host)
    seen = udp(lab.neighbour, (HOST4, 53), lab.box(other()), (B4, 5300), source=source)

    assert {Flow("udp", HOST4, 53, A4)} == before
    assert set() == after
    assert NEIGHBOUR4 == seen
    assert (2, 1, 0) == asked.counts


@pytest.mark.parametrize(
    ("hosts", "server", "asks"),
    [((HOST4, "192.0.2.2"), A4, (1, 1, 0)), ((HOST6, "2001:db8::2"), A6, (1, 1, 1))],
    ids=["IPv4", "IPv6"],
)
async def test_a_port_at_one_address_leaves_flows_to_the_same_port_of_another(lab, monkeypatch, hosts, server, asks):
    lab.host.exec(["ip", "address", "add", f"{hosts[1]}/64" if ":" in hosts[1] else f"{hosts[1]}/24", "dev", "wire0"])
    first, second = (port(5300 + place, 53, host, protocol="udp") for place, host in enumerate(hosts))
    await lab.put(one(first, second))
    for place, host in enumerate(hosts):
        udp(lab.neighbour, (host, 53), lab.box(one()), (server, 5300 + place))
    before = flows(lab.host)

    asked = Asked(monkeypatch)
    await lab.put(one(second))

    assert {Flow("udp", host, 53, server) for host in hosts} == before
    assert {Flow("udp", hosts[1], 53, server)} == flows(lab.host)
    assert asks == asked.counts


ROUTED = {"gateway_mode_ipv4": "routed", "gateway_mode_ipv6": "routed"}


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("restarted", [False, True], ids=["", "after a restart"])
async def test_what_came_in_by_a_routed_networks_port_ends_when_it_is_shut(protocol, restarted):
    shut, kept = port(8080, 0, protocol=protocol), port(8081, 0, protocol=protocol)
    async with new_lab() as lab:
        subnets_ = subnets("10.1.0.0/24", "fd00:1::/64")
        await lab.put(network(1, enable_ipv6=True, subnets=subnets_, options=ROUTED), sandbox(), one(shut, kept))
        for prefix, host in (("10.1.0.0/24", HOST4), ("fd00:1::/64", HOST6)):
            lab.neighbour.exec(["ip", "route", "add", prefix, "via", host])
        box, send = lab.box(one()), SEND[protocol]
        ways = [(NEIGHBOUR4, A4), (NEIGHBOUR6, A6)]
        before = [
            send(lab.neighbour, (to, number), box, (to, number), source=(mine, 40000 + number))
            for mine, to in ways
            for number in (8080, 8081)
        ]
        made = flows(lab.host)
        if restarted:
            await lab.restart()

        await lab.put(one(kept))

        assert [NEIGHBOUR4, NEIGHBOUR4, NEIGHBOUR6, NEIGHBOUR6] == before
        assert {Flow(protocol, to, number, to) for _, to in ways for number in (8080, 8081)} == made
        assert {Flow(protocol, to, 8081, to) for _, to in ways} == flows(lab.host)
        if protocol == "udp":  # the same sender goes on
            assert [None, None] == at_once(
                *(
                    lambda mine=mine, to=to: send(lab.neighbour, (to, 8080), box, (to, 8080), source=(mine, 48080))
                    for mine, to in ways
                )
            )


async def test_changes_without_ports_ask_nothing(lab, monkeypatch):
    asked = Asked(monkeypatch)

    await lab.put(one(port(8080, 80)), other())
    await lab.gone(other())

    assert (0, 0, 0) == asked.counts


@pytest.mark.parametrize("count", [2, 12], ids=["by port", "by address"])
async def test_a_kernel_that_deletes_single_entries_alone_is_asked_for_them_first(lab, monkeypatch, count):
    ports = [port(1000 + number, 20000 + number, HOST4) for number in range(count)]
    item, beside = one(*ports), other(port(8080, 180))
    await lab.put(item, beside)
    box = lab.box(item)
    left = use(lab, beside, *beside.ports)
    for binding in ports[:2]:
        tcp(lab.neighbour, (HOST4, binding.host_port), box, (A4, binding.container_port))
    before = flows(lab.host)

    # CTA_FILTER among the attributes: what Linux before 6.12 says of a tuple that is not whole.
    asked = Asked(monkeypatch, lambda request: errno.EINVAL if 25 in netlink.attributes(request, 20) else 0)
    await lab.gone(item)

    assert {Flow("tcp", HOST4, 20000, A4), Flow("tcp", HOST4, 20001, A4)} | left == before
    assert left == flows(lab.host)
    filters = {2: 2, 12: 1}[count]
    assert (filters + 2, 2, filters) == asked.counts


async def test_a_namespace_without_flows_is_no_error(lab):
    sock = lab.host.run(lambda: netlink.open_socket(netlink.NETLINK_NETFILTER))
    try:
        conntrack.end(sock, [conntrack.Flows("sctp", "*", 9), conntrack.Translated(A6)])
    finally:
        sock.close()

    assert set() == flows(lab.host)
