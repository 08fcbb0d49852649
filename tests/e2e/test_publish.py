"""Published ports from the caller to the packet: assigned, changed live, refused with who is in the way, given back."""

from __future__ import annotations

import contextlib
import os
import socket

import netweft_client
import pytest
from netweft_cli import netns
from netweft_client import EndpointSpec, Protocol, PublishedPort, SandboxSpec
from netweft_common import errors

from tests.e2e import support
from tests.support.netns import Netns
from tests.support.packets import REFUSED, tcp, udp

pytestmark = [pytest.mark.e2e, pytest.mark.netns]

H1 = "192.0.2.1"


def port(container, host=0, end=0, **fields):
    return PublishedPort(container_port=container, host_port=host, host_port_end=end, **fields)


@pytest.fixture(scope="module")
def cluster():
    with support.running("h1", "h2", environ={**support.QUICK, **support.NONE_AHEAD}) as cluster:
        with cluster.client() as client:
            client.create_network("front", host="h1", subnets=[netweft_client.SubnetSpec(subnet="10.73.0.0/24")])
            client.create_network("back", host="h1", internal=True)
        yield cluster


@pytest.fixture
def outside(cluster):
    with contextlib.closing(Netns.at(str(cluster.layout.underlay_netns))) as found:
        yield found


@pytest.fixture
def inside(cluster):
    """Namespaces of attached endpoints, closed when the test is over."""
    with contextlib.ExitStack() as stack:
        yield lambda made: stack.enter_context(contextlib.closing(Netns.at(made.sandbox.netns_path)))


def own(made):
    return str(made.endpoint.addresses[0].ip)


def attach(client, name, *ports, network="front", **fields):
    spec = EndpointSpec(network=network, name=name, ports=ports)
    return client.attach_endpoint(spec, SandboxSpec(container_id=name, host="h1"), **fields)


def numbers(endpoint):
    return [one.assigned_port for one in endpoint.ports]


def test_ports_are_answered_with_their_numbers_and_lead_in(client, outside, inside):
    made = attach(client, "web", port(80, 8080), port(81), port(82, 9000, 9010), port(53, 5353, protocol=Protocol.UDP))
    box = inside(made)
    exact, automatic, ranged, datagrams = numbers(made.endpoint)

    assert (8080, 5353) == (exact, datagrams)
    assert 9000 <= ranged <= 9010
    assert automatic > 1024
    for number, leads_to in ((8080, 80), (automatic, 81), (ranged, 82)):
        assert "192.0.2.254" == tcp(outside, (H1, number), box, (own(made), leads_to))
    assert "192.0.2.254" == udp(outside, (H1, 5353), box, (own(made), 53))
    assert numbers(made.endpoint) == numbers(client.get_endpoint("web", network="front"))


def test_ports_are_changed_while_another_connection_goes_on(client, outside, inside):
    made = attach(client, "web", port(80, 8080), port(81, 8081))
    box = inside(made)
    with contextlib.ExitStack() as stack:
        listener = box.run(lambda: socket.create_server((own(made), 80)))
        stack.enter_context(listener)
        caller = stack.enter_context(outside.run(lambda: socket.create_connection((H1, 8080), timeout=5)))
        served = stack.enter_context(listener.accept()[0])

        changed = client.update_endpoint("web", network="front", ports=[port(80, 8080), port(81, 8082), port(82)])

        caller.sendall(b"still here")
        assert b"still here" == served.recv(64)
    assert [8080, 8082] == numbers(changed)[:2]
    assert "192.0.2.254" == tcp(outside, (H1, 8082), box, (own(made), 81))
    assert REFUSED == tcp(outside, (H1, 8081), box, (own(made), 81))


def test_a_port_that_somebody_has_is_refused_with_who_and_leaves_nothing(cluster, client):
    attach(client, "web", port(80, 8080))
    before = _leases(client)

    with pytest.raises(errors.FailedPrecondition, match=r"8080/tcp cannot be published.*has it"):
        attach(client, "other", port(80, 8080))

    assert ["web"] == [one.name for one in client.list_endpoints("network=front")]
    assert ["web"] == [one.container_id for one in client.list_sandboxes()]
    assert before == _leases(client)


def test_a_port_that_a_process_of_the_host_has_is_refused_with_its_name(cluster, client):
    with (
        netns.call(cluster.host("h1"), lambda: socket.create_server(("0.0.0.0", 8085))),
        pytest.raises(errors.FailedPrecondition, match=rf"process {os.getpid()} "),
    ):
        attach(client, "web", port(80, 8085), request_id="again")

    made = attach(client, "web", port(80, 8085), request_id="again")

    assert [8085] == numbers(made.endpoint)


def test_a_change_that_is_refused_leaves_the_ports_as_they_were(client, outside, inside):
    attach(client, "web", port(80, 8080))
    made = attach(client, "other", port(81, 8081))
    box = inside(made)

    with pytest.raises(errors.FailedPrecondition, match="8080/tcp"):
        client.update_endpoint("other", network="front", ports=[port(81, 8080), port(82, 8082)])

    assert [8081] == numbers(client.get_endpoint("other", network="front"))
    assert "192.0.2.254" == tcp(outside, (H1, 8081), box, (own(made), 81))
    assert REFUSED == tcp(outside, (H1, 8082), box, (own(made), 82))


def test_an_internal_network_publishes_nothing(client):
    with pytest.raises(errors.FailedPrecondition, match="internal"):
        attach(client, "web", port(80, 8080), network="back")


def test_a_detached_endpoint_gives_its_ports_back(client):
    attach(client, "web", port(80, 8080))
    client.detach_endpoint("web", network="front")

    assert [8080] == numbers(attach(client, "other", port(80, 8080)).endpoint)


def test_a_killed_agent_comes_back_with_the_same_ports_and_keeps_them_from_others(cluster, client, outside, inside):
    made = attach(client, "web", port(80), port(81))
    box = inside(made)

    with cluster.dead("agent-h1"):
        assert "192.0.2.254" == tcp(outside, (H1, numbers(made.endpoint)[0]), box, (own(made), 80))

    support.wait_until(lambda: client.get_host("h1").state, lambda state: state == "ready")
    assert numbers(made.endpoint) == numbers(client.get_endpoint("web", network="front"))
    with pytest.raises(OSError, match="in use"):
        netns.call(cluster.host("h1"), lambda: socket.create_server(("0.0.0.0", numbers(made.endpoint)[0])))


def test_the_command_line_publishes_shows_and_changes(client, run):
    attached = run("attach", "front", "web", "--host", "h1", "-p", "8080:80", "-p", "127.0.0.1:8081-8082:81-82/udp")
    changed = run("endpoint", "update", client_name(client), "--publish-add", "8090:90", "--publish-rm", "80")
    refused = run("attach", "front", "other", "--host", "h1", "-p", "8090:90")
    cleared = run("endpoint", "update", client_name(client), "--clear", "ports")

    assert "0.0.0.0:8080->80/tcp,127.0.0.1:8081->81/udp,127.0.0.1:8082->82/udp" in attached.replace(", ", ",")
    assert "0.0.0.0:8090->90/tcp" in changed
    assert "8080" not in changed
    assert "8090/tcp cannot be published" in refused
    assert "8090" not in cleared


def client_name(client):
    (found,) = client.list_endpoints("network=front")
    return found.name


def _leases(client):
    return len([one for pool in client.list_pools() for one in client.list_leases(pool.id)])
