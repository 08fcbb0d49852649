"""The same request id again: the first answer, whatever has happened since, and nothing is done twice."""

from __future__ import annotations

import concurrent.futures
import dataclasses

import netweft_client
import pytest
from netweft_client import AttachItem, DetachItem, EndpointSpec, SandboxSpec, SubnetSpec
from netweft_common import errors

from tests.e2e import support

pytestmark = [pytest.mark.e2e, pytest.mark.netns]

NETWORK = "once"


@pytest.fixture(scope="module")
def cluster():
    with support.running("hostA", environ=support.NONE_AHEAD) as cluster:
        with cluster.client() as client:
            client.create_network(NETWORK, host="hostA", subnets=[SubnetSpec(subnet="10.31.0.0/24")])
        yield cluster


@pytest.fixture
def client(cluster):
    """A client of a cluster in which no endpoint is left afterwards, and nothing is wrong."""
    with cluster.client() as client:
        yield client
        for sandbox in client.list_sandboxes():
            client.delete_sandbox(sandbox.id, force=True)
        for endpoint in client.list_endpoints():
            client.delete_endpoint(endpoint.id)
    assert [] == support.settled(cluster)


def item(name: str, **fields) -> AttachItem:
    endpoint = EndpointSpec(network=NETWORK, name=name, **fields)
    return AttachItem(endpoint=endpoint, sandbox=SandboxSpec(container_id=name))


def attach_and_detach(client, request_id: str) -> None:
    client.attach_endpoints([item("c1"), item("c2")])
    client.detach_endpoints([DetachItem(endpoint="c1", network=NETWORK)], request_id=request_id)


def same(answer):
    """Return what stays the same of an endpoint: a confirmation that comes later makes a new revision."""
    return dataclasses.replace(answer, revision=0)


def counts(client) -> tuple[int, int, int]:
    """Return how many endpoints, sandboxes and leases there are."""
    leases = sum(1 for pool in client.list_pools() for _ in client.list_leases(pool.id))
    return sum(1 for _ in client.list_endpoints()), sum(1 for _ in client.list_sandboxes()), leases


def test_a_second_attach_returns_the_first_answer(client):
    items = [item("c1"), item("c2")]

    first = client.attach_endpoints(items, request_id="a")
    again = client.attach_endpoints(items, request_id="a")

    assert [same(one.endpoint) for one in first] == [same(one.endpoint) for one in again]
    assert [same(one.sandbox) for one in first] == [same(one.sandbox) for one in again]
    assert [one.gateways for one in first] == [one.gateways for one in again]
    assert (2, 2, 3) == counts(client)


def test_a_second_attach_after_the_endpoint_has_gone_returns_the_first_answer_and_makes_nothing(client):
    [first] = client.attach_endpoints([item("c1")], request_id="b")
    # The first answer is remembered with the host's confirmation, which is recorded behind the caller's back.
    support.wait_until(
        lambda: client.get_endpoint(first.endpoint.id).state, lambda state: state is netweft_client.EndpointState.JOINED
    )
    client.detach_endpoint("c1", network=NETWORK, delete_sandbox=True)

    [again] = client.attach_endpoints([item("c1")], request_id="b")

    assert same(first.endpoint) == same(again.endpoint)
    assert (0, 0, 1) == counts(client)


def test_a_restarted_controller_and_ipam_remember(cluster, client):
    first = client.attach_endpoints([item("c1"), item("c2")], request_id="c")
    for name in ("controller", "ipam"):
        cluster.kill(name)
        cluster.start(name)

    again = client.attach_endpoints([item("c1"), item("c2")], request_id="c")

    assert [same(one.endpoint) for one in first] == [same(one.endpoint) for one in again]
    assert (2, 2, 3) == counts(client)


def test_the_same_attach_many_times_at_once_makes_one_endpoint(cluster, client):
    def attach(_: int) -> netweft_client.Attached:
        with cluster.client() as mine:
            return mine.attach_endpoint(item("c1").endpoint, item("c1").sandbox, request_id="d")

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(attach, range(8)))

    assert {answers[0].endpoint.id} == {one.endpoint.id for one in answers}
    assert {answers[0].endpoint.addresses} == {one.endpoint.addresses for one in answers}
    assert (1, 1, 2) == counts(client)


def test_the_same_attach_at_two_times_without_a_request_id_is_refused_the_second_time(client):
    client.attach_endpoints([item("c1")])

    [refused] = client.attach_endpoints([item("c1")])

    assert isinstance(refused, errors.AlreadyExists)
    assert "c1" in refused.message
    assert (1, 1, 2) == counts(client)


def test_a_second_detach_is_done_once(client):
    client.attach_endpoints([item("c1")])

    first = client.detach_endpoints([DetachItem(endpoint="c1", network=NETWORK, delete_sandbox=True)], request_id="e")
    [fresh] = client.attach_endpoints([item("c1")])
    again = client.detach_endpoints([DetachItem(endpoint="c1", network=NETWORK, delete_sandbox=True)], request_id="e")

    assert ([None], [None]) == (first, again)
    # It was another endpoint that the first call was about.
    assert fresh.endpoint.id == client.get_endpoint("c1", network=NETWORK).id


def test_a_network_is_created_and_deleted_once_a_request(client):
    spec = {"host": "hostA", "subnets": [SubnetSpec(subnet="10.32.0.0/24")]}

    first = client.create_network("fresh", request_id="f", **spec)
    again = client.create_network("fresh", request_id="f", **spec)
    client.delete_network("fresh", request_id="g")
    client.create_network("fresh", **spec)
    client.delete_network("fresh", request_id="g")

    assert first == again
    assert "fresh" in {one.name for one in client.list_networks()}
    client.delete_network("fresh")


def test_a_sandbox_is_created_and_deleted_once_a_request(client):
    first = client.create_sandbox(SandboxSpec(container_id="box"), request_id="h")
    again = client.create_sandbox(SandboxSpec(container_id="box"), request_id="h")
    client.delete_sandbox("box", request_id="i")
    client.create_sandbox(SandboxSpec(container_id="box"))
    client.delete_sandbox("box", request_id="i")

    assert same(first) == same(again)
    assert ["box"] == [one.container_id for one in client.list_sandboxes()]


def test_single_verbs_are_done_once_a_request(client):
    first = client.create_endpoint(EndpointSpec(network=NETWORK, name="e1"), request_id="j")
    assert first == client.create_endpoint(EndpointSpec(network=NETWORK, name="e1"), request_id="j")

    spec = SandboxSpec(container_id="box")
    joined = client.join_endpoint("e1", spec, network=NETWORK, request_id="k")
    assert same(joined.endpoint) == same(client.join_endpoint("e1", spec, network=NETWORK, request_id="k").endpoint)

    left = client.leave_endpoint("e1", network=NETWORK, request_id="l")
    assert same(left) == same(client.leave_endpoint("e1", network=NETWORK, request_id="l"))

    client.delete_endpoint("e1", network=NETWORK, request_id="m")
    client.delete_endpoint("e1", network=NETWORK, request_id="m")
    assert (0, 1, 1) == counts(client)


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (
            lambda client: client.attach_endpoints([item("c1")], request_id="n"),
            lambda client: client.attach_endpoints([item("c1", labels={"a": "b"})], request_id="n"),
        ),
        (
            lambda client: client.create_network("n1", host="hostA", request_id="o"),
            lambda client: client.create_network("n1", host="hostA", internal=True, request_id="o"),
        ),
        (
            lambda client: client.create_sandbox(SandboxSpec(container_id="s1"), request_id="p"),
            lambda client: client.create_sandbox(SandboxSpec(container_id="s2"), request_id="p"),
        ),
        (
            lambda client: attach_and_detach(client, "q"),
            lambda client: client.detach_endpoints([DetachItem(endpoint="c2", network=NETWORK)], request_id="q"),
        ),
        (
            lambda client: client.create_endpoint(EndpointSpec(network=NETWORK, name="e1"), request_id="r"),
            lambda client: client.create_endpoint(EndpointSpec(network=NETWORK, name="e2"), request_id="r"),
        ),
    ],
    ids=["attach", "create network", "create sandbox", "detach", "create endpoint"],
)
def test_a_request_id_with_another_body_is_refused_and_does_nothing(client, first, other):
    first(client)
    before = counts(client), {one.name for one in client.list_networks()}

    with pytest.raises(errors.AlreadyExists) as refused:
        other(client)

    assert "REQUEST_ID_REUSED" == refused.value.reason
    assert before == (counts(client), {one.name for one in client.list_networks()})
    for network in [one for one in client.list_networks() if one.name != NETWORK]:
        client.delete_network(network.id)


def test_one_request_id_may_be_used_with_different_methods(client):
    client.create_sandbox(SandboxSpec(container_id="box"), request_id="s")
    client.attach_endpoints([item("c1")], request_id="s")

    assert (1, 2, 2) == counts(client)
