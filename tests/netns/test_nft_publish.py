"""Published ports with real packets: from a neighbour, the host, other networks and the endpoint itself."""

from __future__ import annotations

import contextlib
import socket
from ipaddress import ip_interface
from pathlib import Path

import pytest
from netweft_common.errors import Exhausted, FailedPrecondition, NetweftError

from tests.support.agent import endpoint, network, oid, port, sandbox, subnets
from tests.support.lab import HOST4, HOST6, NEIGHBOUR4, NEIGHBOUR6, new_lab
from tests.support.netns import require_root, require_tool
from tests.support.packets import REFUSED, sctp_arrives, tcp, udp

pytestmark = [pytest.mark.netns, pytest.mark.anyio]

A4, A6 = "10.1.0.5", "fd00:1::5"
ADDRESSES = (ip_interface(f"{A4}/24"), ip_interface(f"{A6}/64"))
SEND = {"tcp": tcp, "udp": udp}


@pytest.fixture(autouse=True)
def _needs():
    require_root()
    require_tool("ip")


@pytest.fixture(params=[False, True], ids=["routed", "br_netfilter"])
async def lab(request):
    async with new_lab(bridge_nf=request.param) as lab:
        yield lab


@pytest.fixture
async def plain():
    async with new_lab() as lab:
        yield lab


def dual(number=1, **fields):
    fields.setdefault("subnets", subnets(f"10.{number}.0.0/24", f"fd00:{number}::/64"))
    return network(number, enable_ipv6=True, **fields)


def one(*ports, **fields):
    fields.setdefault("addresses", ADDRESSES)
    return endpoint(ports=ports, **fields)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_a_neighbour_reaches_a_published_port_and_is_seen_with_its_own_address(lab, protocol):
    item = one(port(8080, 80, protocol=protocol))
    await lab.put(dual(), sandbox(), item)
    box, send = lab.box(item), SEND[protocol]

    seen = {
        "IPv4": send(lab.neighbour, (HOST4, 80), box, (A4, 8080)),
        "IPv6": send(lab.neighbour, (HOST6, 80), box, (A6, 8080)),
    }

    assert {"IPv4": NEIGHBOUR4, "IPv6": NEIGHBOUR6} == seen


async def test_an_sctp_port_is_translated_with_a_right_checksum(lab):
    item = one(port(8080, 80, protocol="sctp"))
    await lab.put(dual(), sandbox(), item)

    assert sctp_arrives(lab.neighbour, (HOST4, 80), lab.box(item), (A4, 8080))


async def test_what_is_not_published_is_refused_and_other_protocols_are_untouched(lab):
    item = one(port(8080, 80))
    await lab.put(dual(), sandbox(), item)
    box = lab.box(item)

    assert REFUSED == tcp(lab.neighbour, (HOST4, 81), box, (A4, 8080))
    assert REFUSED == udp(lab.neighbour, (HOST4, 80), box, (A4, 8080))


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_the_host_reaches_a_published_port_by_any_of_its_addresses(lab, protocol):
    item = one(port(8080, 80, protocol=protocol))
    await lab.put(dual(), sandbox(), item)
    box, send = lab.box(item), SEND[protocol]

    seen = {to: send(lab.host, (to, 80), box, (A4, 8080)) for to in (HOST4, "10.1.0.1", "127.0.0.1", "127.0.0.5")}
    seen |= {to: send(lab.host, (to, 80), box, (A6, 8080)) for to in (HOST6, "fd00:1::1")}

    # Through 127.0.0.1 the bridge's address answers for the host.
    assert seen == {
        HOST4: HOST4,
        "10.1.0.1": "10.1.0.1",
        "127.0.0.1": "10.1.0.1",
        "127.0.0.5": "10.1.0.1",
        HOST6: HOST6,
        "fd00:1::1": "fd00:1::1",
    }


async def test_the_ipv6_loopback_address_refuses_at_once(lab):
    item = one(port(8080, 80))
    await lab.put(dual(), sandbox(), item)

    assert REFUSED == tcp(lab.host, ("::1", 80), lab.box(item), (A6, 8080))


async def test_an_endpoint_reaches_its_own_published_port(lab):
    item = one(port(8080, 80))
    await lab.put(dual(), sandbox(), item)
    box = lab.box(item)

    seen = [tcp(box, (HOST4, 80), box, (A4, 8080)), tcp(box, (HOST6, 80), box, (A6, 8080))]

    assert ["10.1.0.1", "fd00:1::1"] == seen


async def test_an_endpoint_of_the_same_network_reaches_a_published_port(lab):
    item = one(port(8080, 80))
    other = endpoint(1002, sandbox=102, addresses=(ip_interface("10.1.0.6/24"), ip_interface("fd00:1::6/64")))
    await lab.put(dual(), sandbox(), sandbox(102), item, other)

    seen = [
        tcp(lab.box(other), (HOST4, 80), lab.box(item), (A4, 8080)),
        tcp(lab.box(other), (HOST6, 80), lab.box(item), (A6, 8080)),
    ]

    # br_netfilter translates in the bridge and keeps the client's address; else the answer has to pass the host.
    assert seen in (["10.1.0.1", "fd00:1::1"], ["10.1.0.6", "fd00:1::6"])


async def test_an_endpoint_of_another_network_reaches_a_published_port_with_its_own_address(lab):
    item = one(port(8080, 80))
    other = endpoint(1002, 2, 102, addresses=(ip_interface("10.2.0.6/24"), ip_interface("fd00:2::6/64")))
    await lab.put(dual(), dual(2), sandbox(), sandbox(102), item, other)

    seen = [
        tcp(lab.box(other), (HOST4, 80), lab.box(item), (A4, 8080)),
        tcp(lab.box(other), (HOST6, 80), lab.box(item), (A6, 8080)),
        tcp(lab.box(other), (A4, 8080), lab.box(item), (A4, 8080)),
    ]

    assert ["10.2.0.6", "fd00:2::6", None] == seen


async def test_with_icc_off_a_port_is_published_to_all_but_its_own_network(lab):
    item = one(port(8080, 80))
    other = endpoint(1002, sandbox=102, addresses=(ip_interface("10.1.0.6/24"), ip_interface("fd00:1::6/64")))
    await lab.put(dual(options={"icc": "false"}), sandbox(), sandbox(102), item, other)

    seen = [tcp(client, (HOST4, 80), lab.box(item), (A4, 8080)) for client in (lab.neighbour, lab.host, lab.box(other))]

    assert [NEIGHBOUR4, HOST4, None] == seen


async def test_a_port_is_published_at_the_named_address_alone(lab):
    lab.host.exec(["ip", "address", "add", "192.0.2.2/24", "dev", "wire0"])
    item = one(port(8080, 80, "192.0.2.2"), port(8443, 443, HOST6))
    await lab.put(dual(), sandbox(), item)
    box = lab.box(item)

    seen = [
        tcp(lab.neighbour, ("192.0.2.2", 80), box, (A4, 8080)),
        tcp(lab.neighbour, (HOST4, 80), box, (A4, 8080)),
        tcp(lab.neighbour, (HOST6, 443), box, (A6, 8443)),
        tcp(lab.neighbour, (HOST4, 443), box, (A4, 8443)),
    ]

    assert [NEIGHBOUR4, REFUSED, NEIGHBOUR6, REFUSED] == seen


async def test_a_port_published_at_127_0_0_1_is_unreachable_from_outside(lab):
    """CVE-2020-8558: even where somebody has allowed packets to loopback addresses on the wire."""
    lab.host.exec(["sysctl", "-qw", "net.ipv4.conf.wire0.route_localnet=1"])
    lab.neighbour.exec(["ip", "link", "set", "lo", "down"])
    lab.neighbour.exec(["ip", "route", "add", "127.0.0.1", "via", HOST4, "dev", "wire0", "table", "7"])
    lab.neighbour.exec(["ip", "rule", "add", "to", "127.0.0.1", "lookup", "7", "pref", "0"])
    lab.neighbour.exec(["ip", "rule", "del", "pref", "0", "lookup", "local"])
    lab.neighbour.exec(["ip", "rule", "add", "pref", "1", "lookup", "local"])
    lab.neighbour.exec(["sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1"])
    item = one(port(8080, 80, "127.0.0.1"))
    await lab.put(dual(), sandbox(), item)
    box = lab.box(item)

    seen = {
        "by its route": tcp(lab.neighbour, ("127.0.0.1", 80), box, (A4, 8080)),
        "by another address": tcp(lab.neighbour, (HOST4, 80), box, (A4, 8080)),
        "from the host": tcp(lab.host, ("127.0.0.1", 80), box, (A4, 8080)),
    }

    assert seen["from the host"] == "10.1.0.1"
    assert {seen["by its route"], seen["by another address"]} <= {None, REFUSED}


async def test_an_endpoint_does_not_reach_what_listens_on_the_hosts_loopback_address(lab):
    """CVE-2020-8558, from inside: a bridge with `route_localnet` is no way to services of the host."""
    item = one(port(8080, 80))
    await lab.put(dual(), sandbox(), item)
    box = lab.box(item)
    box.exec(["sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1"])
    box.exec(["ip", "rule", "add", "pref", "1", "lookup", "local"])
    box.exec(["ip", "rule", "del", "pref", "0", "lookup", "local"])
    box.exec(["ip", "rule", "add", "to", "127.0.0.7", "lookup", "7", "pref", "0"])
    box.exec(["ip", "route", "add", "127.0.0.7", "via", "10.1.0.1", "dev", "eth0", "table", "7"])

    assert udp(box, ("127.0.0.7", 5000), lab.host, ("127.0.0.7", 5000), source=(A4, 0)) is None


async def test_packets_through_the_host_to_others_are_untouched(lab):
    """CVE-2025-67499: only what is for the host itself is translated."""
    server = endpoint(1002, 2, 102, addresses=(ip_interface("10.2.0.6/24"), ip_interface("fd00:2::6/64")))
    client = one(port(8080, 7000))
    await lab.put(dual(), dual(2), sandbox(), sandbox(102), client, server)

    seen = tcp(lab.box(server), (NEIGHBOUR4, 7000), lab.neighbour, (NEIGHBOUR4, 7000))

    assert HOST4 == seen


async def test_a_neighbour_does_not_reach_an_endpoint_directly_published_or_not(lab):
    """moby#45610: in nat mode a route to the subnet is no way in, with or without br_netfilter."""
    item = one(port(8080, 8080))
    await lab.put(dual(), sandbox(), item)
    lab.neighbour.exec(["ip", "route", "add", "10.1.0.0/24", "via", HOST4])
    lab.neighbour.exec(["ip", "route", "add", "fd00:1::/64", "via", HOST6])
    box = lab.box(item)

    seen = [
        tcp(lab.neighbour, (address, number), box, (address, number)) for address in (A4, A6) for number in (8080, 9)
    ]

    assert [None] * 4 == seen


async def test_ports_change_on_a_running_endpoint_and_flows_to_the_old_ones_end(plain):
    first, second = one(port(5300, 53, protocol="udp")), one(port(5301, 53, protocol="udp"), port(8080, 80))
    await plain.put(dual(), sandbox(), first)
    box = plain.box(first)
    source = (NEIGHBOUR4, 40000)
    before = udp(plain.neighbour, (HOST4, 53), box, (A4, 5300), source=source)

    await plain.put(second)

    assert NEIGHBOUR4 == before
    assert NEIGHBOUR4 == udp(plain.neighbour, (HOST4, 53), box, (A4, 5301), source=source)
    assert NEIGHBOUR4 == tcp(plain.neighbour, (HOST4, 80), box, (A4, 8080))


async def test_a_flow_from_before_a_udp_port_was_published_is_led_to_it(plain):
    await plain.put(dual(), sandbox(), one())
    box = plain.box(one())
    source = (NEIGHBOUR4, 40000)
    before = udp(plain.neighbour, (HOST4, 53), plain.host, (HOST4, 53), source=source)

    await plain.put(one(port(5300, 53, protocol="udp")))

    assert NEIGHBOUR4 == before
    assert NEIGHBOUR4 == udp(plain.neighbour, (HOST4, 53), box, (A4, 5300), source=source)


async def test_a_removed_port_leads_nowhere_and_is_free_again(plain):
    await plain.put(dual(), sandbox(), one(port(5300, 53, protocol="udp"), port(8080, 80)))
    box, source = plain.box(one()), (NEIGHBOUR4, 40000)
    udp(plain.neighbour, (HOST4, 53), box, (A4, 5300), source=source)

    await plain.put(one())

    assert REFUSED == tcp(plain.neighbour, (HOST4, 80), box, (A4, 8080))
    assert REFUSED == udp(plain.neighbour, (HOST4, 53), box, (A4, 5300), source=source)
    assert NEIGHBOUR4 == tcp(plain.neighbour, (HOST4, 80), plain.host, (HOST4, 80))


async def test_ports_follow_the_default_route_of_the_sandbox(plain):
    item = one(port(8080, 80))
    other = endpoint(1002, 2, 101, interface_name="eth1", gateway_priority=1)
    await plain.put(dual(), network(2), sandbox(), item)
    box = plain.box(item)
    alone = tcp(plain.neighbour, (HOST4, 80), box, (A4, 8080))

    await plain.put(other)
    without = tcp(plain.neighbour, (HOST4, 80), box, (A4, 8080))
    ipv6 = tcp(plain.neighbour, (HOST6, 80), box, (A6, 8080))
    await plain.gone(other)
    again = tcp(plain.neighbour, (HOST4, 80), box, (A4, 8080))

    assert (NEIGHBOUR4, REFUSED, NEIGHBOUR6, NEIGHBOUR4) == (alone, without, ipv6, again)


async def test_300_ports_are_published_in_one_go_and_each_leads_to_its_own(plain):
    ports = [port(1000 + number, 20000 + number) for number in range(300)]
    await plain.put(dual(), sandbox(), one())
    box = plain.box(one())

    steps = await plain.put(one(*ports))

    assert {"port": 300, "nft-element": 602} == {
        kind: sum(1 for step in steps if step.resource.key[0] == kind) for kind in ("port", "nft-element")
    }
    assert [NEIGHBOUR4] * 4 == [
        tcp(plain.neighbour, (HOST4, 20000 + number), box, (A4, 1000 + number)) for number in (0, 1, 150, 299)
    ]


# --- who has a port --------------------------------------------------------------------------------------------------


def take(ns, address, number, kind=socket.SOCK_STREAM):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = ns.run(lambda: socket.socket(family, kind))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((address, number))
        if kind == socket.SOCK_STREAM:
            sock.listen()
    except OSError:
        sock.close()
        raise
    return contextlib.closing(sock)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
@pytest.mark.parametrize("address", ["0.0.0.0", HOST4, "127.0.0.1", "::", HOST6])
async def test_nobody_can_take_a_published_port(plain, kind, address):
    protocol = "tcp" if kind == socket.SOCK_STREAM else "udp"
    await plain.put(dual(), sandbox(), one(port(8080, 80, protocol=protocol)))

    with pytest.raises(OSError, match="Address already in use"), take(plain.host, address, 80, kind):
        pass


def leave_time_wait(ns, address, number):
    """Have a connection to a port that was closed by its server a moment ago."""
    with take(ns, address, number) as listener:
        loopback = "::1" if ":" in address else "127.0.0.1"
        caller = ns.run(lambda: socket.create_connection((loopback, number), timeout=1))
        accepted, _ = listener.accept()
        accepted.close()  # the server closes first, so TIME_WAIT is on its side
        caller.recv(1)
        caller.close()


def descriptors():
    """Return how many sockets this process has, in which the agent's kernel is."""
    return sum(name.startswith("socket:") for name in map(_target, Path("/proc/self/fd").iterdir()))


def _target(descriptor):
    with contextlib.suppress(OSError):
        return str(descriptor.readlink())
    return ""


@pytest.mark.parametrize("taken", ["", "0.0.0.0", "::"], ids=["free", "IPv4 in TIME_WAIT", "IPv6 in TIME_WAIT"])
async def test_a_port_at_all_addresses_is_one_descriptor_unless_remains_are_in_the_way(plain, taken):
    await plain.put(dual(), sandbox(), one())
    if taken:
        leave_time_wait(plain.host, taken, 80)
    before = descriptors()

    await plain.put(one(port(8080, 80), port(8080, 80, protocol="udp")))
    held = descriptors() - before
    await plain.put(one())

    assert (2 if not taken else 3) == held
    assert before == descriptors()


async def test_a_port_that_a_process_has_is_refused_with_its_name_and_nothing_is_left(plain):
    await plain.put(dual(), sandbox())
    with take(plain.host, "0.0.0.0", 80), pytest.raises(FailedPrecondition) as caught:
        await plain.put(one(port(8081, 81), port(8080, 80)))

    with take(plain.host, "0.0.0.0", 81):
        left = [key for key in plain.known if key[0] in {"port", "link"} and key[1] == ""]

    assert "PORT_IN_USE" == caught.value.reason
    assert "port 80/tcp" in caught.value.message
    assert "(python" in caught.value.message or "(pytest" in caught.value.message
    assert [] == left


async def test_a_port_that_another_endpoint_has_is_refused_with_its_name(plain):
    other = endpoint(1002, sandbox=102, addresses=(ip_interface("10.1.0.6/24"),), ports=(port(80, 80, HOST4),))
    await plain.put(dual(), sandbox(), sandbox(102), one(port(8080, 80)))

    with pytest.raises(FailedPrecondition) as caught:
        await plain.put(other)

    assert "PORT_IN_USE" == caught.value.reason
    assert f"endpoint ep1001 ({oid(1001)})" in caught.value.message


async def test_an_address_that_the_host_has_not_is_refused(plain):
    await plain.put(dual(), sandbox())

    with pytest.raises(FailedPrecondition) as caught:
        await plain.put(one(port(8080, 80, "192.0.2.77")))

    assert "HOST_ADDRESS_UNKNOWN" == caught.value.reason


async def test_remains_of_closed_connections_do_not_keep_a_port(plain):
    leave_time_wait(plain.host, "0.0.0.0", 80)
    item = one(port(8080, 80))
    await plain.put(dual(), sandbox(), item)

    assert NEIGHBOUR4 == tcp(plain.neighbour, (HOST4, 80), plain.box(item), (A4, 8080))
    with pytest.raises(OSError, match="Address already in use"), take(plain.host, "0.0.0.0", 80):
        pass


async def test_automatic_ports_come_out_of_the_hosts_range_without_taken_and_reserved_ones(plain):
    plain.host.exec(["sysctl", "-qw", "net.ipv4.ip_local_port_range=50000 50005"])
    plain.host.exec(["sysctl", "-qw", "net.ipv4.ip_local_reserved_ports=50001-50002"])
    await plain.put(dual(), sandbox())
    with take(plain.host, "0.0.0.0", 50000):
        await plain.put(one(port(80), port(81), port(82)))

    held = plain.endpoint(oid(1001))
    box = plain.box(held)
    seen = [tcp(plain.neighbour, (HOST4, x.assigned_port), box, (A4, x.container_port)) for x in held.ports]

    assert [50003, 50004, 50005] == [x.assigned_port for x in held.ports]
    assert [NEIGHBOUR4] * 3 == seen


async def test_where_the_range_is_used_up_the_endpoint_is_refused_and_what_has_a_port_keeps_it(plain):
    plain.host.exec(["sysctl", "-qw", "net.ipv4.ip_local_port_range=50000 50001"])
    await plain.put(dual(), sandbox(), one(port(80), port(81)))
    other = endpoint(1002, sandbox=102, addresses=(ip_interface("10.1.0.6/24"),), ports=(port(80),))

    with pytest.raises(Exhausted) as caught:
        await plain.put(sandbox(102), other)
    await plain.put(one(port(80), port(81), port(8080, 80)))

    assert "PORTS_EXHAUSTED" == caught.value.reason
    assert [50000, 50001, 80] == [x.assigned_port for x in plain.endpoint(oid(1001)).ports]


async def test_a_range_gives_its_first_free_port_and_a_full_one_is_refused(plain):
    ranged = port(80, 6000).__class__(container_port=80, host_port=6000, host_port_end=6001)
    other = endpoint(1002, sandbox=102, addresses=(ip_interface("10.1.0.6/24"),), ports=(ranged,))
    third = endpoint(1003, sandbox=103, addresses=(ip_interface("10.1.0.7/24"),), ports=(ranged,))
    await plain.put(dual(), sandbox(), sandbox(102), sandbox(103), one(ranged))
    await plain.put(other)

    with pytest.raises(NetweftError) as caught:
        await plain.put(third)

    assert [6000, 6001] == [plain.endpoint(oid(number)).ports[0].assigned_port for number in (1001, 1002)]
    assert "PORTS_IN_USE" == caught.value.reason


async def test_a_restarted_agent_holds_its_ports_again_and_changes_nothing(plain):
    item = one(port(8080, 80), port(53, 53, HOST4, "udp"), port(81))
    await plain.put(dual(), sandbox(), item)
    assigned = plain.endpoint(item.id).ports

    steps = await plain.restart()

    assert () == steps
    assert assigned == plain.endpoint(item.id).ports
    assert NEIGHBOUR4 == tcp(plain.neighbour, (HOST4, 80), plain.box(item), (A4, 8080))
    with pytest.raises(OSError, match="Address already in use"), take(plain.host, "0.0.0.0", 80):
        pass


async def test_connections_go_on_while_the_agent_is_away(plain):
    item = one(port(8080, 80))
    await plain.put(dual(), sandbox(), item)
    box = plain.box(item)

    await plain.kernel.close()
    away = tcp(plain.neighbour, (HOST4, 80), box, (A4, 8080))
    await plain.restart()

    assert NEIGHBOUR4 == away
