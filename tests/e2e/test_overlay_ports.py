"""Published ports on overlay endpoints: reached through the endpoint's host, from everywhere, in both families."""

from __future__ import annotations

import contextlib
import socket

import pytest
from netweft_client import EndpointSpec, Protocol, PublishedPort, SandboxSpec, SubnetSpec
from netweft_common import errors

from tests.e2e import support, test_overlay
from tests.support.netns import Netns, require_tool
from tests.support.packets import REFUSED, tcp, udp

pytestmark = [pytest.mark.e2e, pytest.mark.netns]

H1, H1_6 = "192.0.2.1", "2001:db8::1"
OUTSIDE, OUTSIDE6 = "192.0.2.254", "2001:db8::fe"
WEB4, WEB6 = "10.81.0.11", "fd00:81::11"
HOST_SIDE4, HOST_SIDE6 = "169.254.", "fd6e:7765:6674:"
"""What an address begins with that a network's namespace sees its host under."""


@pytest.fixture(scope="module")
def cluster():
    require_tool("ip")
    with support.running("h1", "h2", environ=test_overlay.SETTINGS) as cluster:
        test_overlay.give_ipv6(cluster, "h1", "h2")
        subnets = [SubnetSpec(subnet="10.81.0.0/24"), SubnetSpec(subnet="fd00:81::/64")]
        with cluster.client() as client:
            for name in ("red", "blue"):
                client.create_network(name, driver="overlay", address_space=name, subnets=subnets, enable_ipv6=True)
        yield cluster


@pytest.fixture
def open_ns():
    """Opens namespaces, and closes them when the test is over."""
    with contextlib.ExitStack() as stack:
        yield lambda path: stack.enter_context(contextlib.closing(Netns.at(str(path))))


@pytest.fixture
def outside(cluster, open_ns):
    return open_ns(cluster.layout.underlay_netns)


def port(container, host=0, **fields):
    return PublishedPort(container_port=container, host_port=host, **fields)


def attach(client, name, *ports, network="red", host="h1", number=11):
    addresses = (f"10.81.0.{number}", f"fd00:81::{number}")
    spec = EndpointSpec(network=network, name=name, ports=ports, addresses=addresses)
    return client.attach_endpoint(spec, SandboxSpec(container_id=f"{network}-{name}", host=host))


@pytest.mark.parametrize("send", [tcp, udp])
def test_a_port_is_reached_from_outside_with_the_callers_own_address(client, open_ns, outside, send):
    made = attach(client, "web", port(80, 8080, protocol=Protocol(send.__name__)))
    box = open_ns(made.sandbox.netns_path)

    seen = [send(outside, (host, 8080), box, (own, 80)) for host, own in ((H1, WEB4), (H1_6, WEB6))]

    assert [OUTSIDE, OUTSIDE6] == seen


def test_a_port_is_reached_from_its_host_by_every_address_of_it_and_by_127_0_0_1(cluster, client, open_ns):
    made = attach(client, "web", port(80, 8080))
    box, host = open_ns(made.sandbox.netns_path), open_ns(cluster.host("h1"))

    seen = [tcp(host, (to, 8080), box, (own, 80)) for to, own in ((H1, WEB4), (H1_6, WEB6), ("127.0.0.1", WEB4))]

    assert [H1, H1_6] == seen[:2]
    assert seen[2].startswith(HOST_SIDE4)
    assert REFUSED == tcp(host, ("::1", 8080), box, (WEB6, 80))


def test_a_port_is_reached_from_endpoints_of_its_network_of_others_and_from_itself(client, open_ns):
    made = attach(client, "web", port(80, 8080))
    box = open_ns(made.sandbox.netns_path)
    callers = {"itself": box}
    # The other network has the same subnets, and even an endpoint with the same addresses.
    for name, network, host, number in (
        ("same network, same host", "red", "h1", 12),
        ("same network, other host", "red", "h2", 13),
        ("other network, same host", "blue", "h1", 11),
        ("other network, other host", "blue", "h2", 12),
    ):
        other = attach(client, name.replace(", ", "-").replace(" ", "-"), network=network, host=host, number=number)
        callers[name] = open_ns(other.sandbox.netns_path)

    seen = {
        name: [tcp(caller, (host, 8080), box, (own, 80)) for host, own in ((H1, WEB4), (H1_6, WEB6))]
        for name, caller in callers.items()
    }

    for name in ("itself", "same network, same host", "other network, same host"):
        four, six = seen.pop(name)
        assert four is not None, name
        assert six is not None, name
        assert (True, True) == (four.startswith(HOST_SIDE4), six.startswith(HOST_SIDE6)), name
    h2 = ["192.0.2.2", "2001:db8::2"]
    assert {"same network, other host": h2, "other network, other host": h2} == seen


def test_a_port_leads_into_its_own_network_where_another_has_the_same_addresses(client, open_ns, outside):
    red = attach(client, "web", port(80, 8080))
    blue = attach(client, "web", port(80, 8081), network="blue")
    boxes = {8080: open_ns(red.sandbox.netns_path), 8081: open_ns(blue.sandbox.netns_path)}

    seen = {number: tcp(outside, (H1, number), box, (WEB4, 80)) for number, box in boxes.items()}
    crossed = tcp(outside, (H1, 8080), boxes[8081], (WEB4, 80))

    assert {8080: OUTSIDE, 8081: OUTSIDE} == seen
    assert REFUSED == crossed


def test_nothing_but_the_port_is_open(client, open_ns, outside):
    made = attach(client, "web", port(80, 8080, host_address="127.0.0.1"))
    box = open_ns(made.sandbox.netns_path)
    outside.exec(["ip", "route", "add", "10.81.0.0/24", "via", H1])
    outside.exec(["ip", "route", "add", "169.254.0.0/16", "via", H1])
    try:
        directly = tcp(outside, (WEB4, 80), box, (WEB4, 80))
        by_transit = [tcp(outside, (f"{HOST_SIDE4}{number}", 8080), box, (WEB4, 80)) for number in transit(client)]
    finally:
        outside.exec(["ip", "route", "del", "10.81.0.0/24"])
        outside.exec(["ip", "route", "del", "169.254.0.0/16"])

    assert REFUSED == tcp(outside, (H1, 8080), box, (WEB4, 80))
    assert directly in {None, REFUSED}
    assert all(one in {None, REFUSED} for one in by_transit), by_transit


def transit(client):
    """Return the last halves of the pair's addresses: the host's, and the namespace's own."""
    number = client.get_network("red").network.claims["transit"] * 2
    return [f"{one >> 8}.{one & 255}" for one in (number, number + 1)]


def test_ports_come_and_go_while_another_connection_goes_on(client, open_ns, outside):
    made = attach(client, "web", port(80, 8080), port(81, 8081))
    box = open_ns(made.sandbox.netns_path)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(box.run(lambda: socket.create_server((WEB4, 80))))
        caller = stack.enter_context(outside.run(lambda: socket.create_connection((H1, 8080), timeout=5)))
        served = stack.enter_context(listener.accept()[0])

        client.update_endpoint("web", network="red", ports=[port(80, 8080), port(81, 8082)])

        caller.sendall(b"still here")
        assert b"still here" == served.recv(64)
    assert OUTSIDE == tcp(outside, (H1, 8082), box, (WEB4, 81))
    assert REFUSED == tcp(outside, (H1, 8081), box, (WEB4, 81))


def test_a_flow_to_a_port_follows_it_to_another_endpoint(client, open_ns, outside):
    one = attach(client, "one", port(53, 5353, protocol=Protocol.UDP))
    other = attach(client, "other", number=12)
    boxes = [open_ns(made.sandbox.netns_path) for made in (one, other)]
    source = (OUTSIDE, 40053)

    before = udp(outside, (H1, 5353), boxes[0], (WEB4, 53), source=source)
    client.update_endpoint("one", network="red", ports=[])
    client.update_endpoint("other", network="red", ports=[port(53, 5353, protocol=Protocol.UDP)])
    after = udp(outside, (H1, 5353), boxes[1], ("10.81.0.12", 53), source=source)

    assert (OUTSIDE, OUTSIDE) == (before, after)


def test_a_number_leads_to_one_endpoint_of_a_network_and_the_refusal_says_so(client):
    attach(client, "web", port(80, 8080, host_address="127.0.0.1"))

    with pytest.raises(errors.FailedPrecondition, match=r"8080/tcp of this host leads to endpoint/.* publish another"):
        attach(client, "other", port(80, 8080, host_address=H1), number=12)

    assert ["web"] == [one.name for one in client.list_endpoints("network=red")]


def test_an_agent_that_was_killed_goes_on_with_the_same_ports(cluster, client, open_ns, outside):
    made = attach(client, "web", port(80))
    box, number = open_ns(made.sandbox.netns_path), made.endpoint.ports[0].assigned_port

    with cluster.dead("agent-h1"):
        meanwhile = tcp(outside, (H1, number), box, (WEB4, 80))

    assert (OUTSIDE, OUTSIDE) == (meanwhile, tcp(outside, (H1, number), box, (WEB4, 80)))
    assert [] == support.settled(cluster)
