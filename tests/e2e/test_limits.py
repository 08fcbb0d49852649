"""Limits of bandwidth from the command line to the kernel: set, shown, changed live, found again after a crash."""

from __future__ import annotations

import json

import netweft_client
import pytest
from netweft_client import Bandwidth, EndpointSpec, SandboxSpec
from netweft_common import errors

from tests.e2e import support
from tests.support.netns import Netns

pytestmark = [pytest.mark.e2e, pytest.mark.netns]


@pytest.fixture(scope="module")
def cluster():
    with support.running("h1", "h2", environ={**support.QUICK, **support.NONE_AHEAD}) as cluster:
        with cluster.client() as client:
            client.create_network("front", host="h1", subnets=[netweft_client.SubnetSpec(subnet="10.74.0.0/24")])
        yield cluster


def buckets(cluster):
    """Return the rates of the host's token buckets in bits a second, by what their links' names begin with."""
    with Netns.at(str(cluster.host("h1"))) as host:
        found = json.loads(host.exec(["tc", "-j", "qdisc", "show"]).stdout)
    return {one["dev"][:3]: one["options"]["rate"] * 8 for one in found if one["kind"] == "tbf"}


def test_the_command_line_limits_shows_and_changes(cluster, client, run):
    planned = run("plan", "front", "web", "--host", "h1", "--ingress-rate", "10mbit")
    run("attach", "front", "web", "--host", "h1", "--ingress-rate", "10mbit", "--egress-rate", "2mbit")
    attached = buckets(cluster)
    (endpoint,) = client.list_endpoints("network=front")
    changed = run("endpoint", "update", endpoint.name, "--egress-rate", "3mbit", "--egress-burst", "1mb", "-o", "wide")
    live = buckets(cluster)
    cleared = run("endpoint", "update", endpoint.name, "--clear", "bandwidth", "-o", "wide")

    assert "tc qdisc replace dev nwv-" in planned
    assert {"nwv": 10_000_000, "nws": 2_000_000} == attached
    assert "in 10mbit, out 3mbit" in changed
    assert {"nwv": 10_000_000, "nws": 3_000_000} == live
    assert "mbit" not in cleared
    assert {} == buckets(cluster)


def test_a_killed_agent_leaves_limits_in_force_and_takes_their_changes_when_it_is_back(cluster, client):
    client.attach_endpoint(
        EndpointSpec(network="front", name="web", bandwidth=Bandwidth(ingress_bits_per_second=1_000_000)),
        SandboxSpec(container_id="web", host="h1"),
    )

    with cluster.dead("agent-h1"):
        meanwhile = buckets(cluster)
    support.wait_until(lambda: client.get_host("h1").state, lambda state: state == "ready")
    client.update_endpoint("web", network="front", bandwidth=Bandwidth(ingress_bits_per_second=2_000_000))

    assert {"nwv": 1_000_000} == meanwhile
    assert {"nwv": 2_000_000} == buckets(cluster)


TAMPERING = {
    "the way in": "tc qdisc del dev nwv-{} root",
    "the way out": "tc qdisc del dev nws-{} root",
    "a rate": "tc qdisc change dev nwv-{} root handle 6e77: tbf rate 1gbit burst 1mb limit 2mb",
}


@pytest.mark.parametrize("command", TAMPERING.values(), ids=TAMPERING)
def test_what_others_do_to_limits_is_noticed_and_repaired(cluster, client, command):
    limits = Bandwidth(ingress_bits_per_second=1_000_000, egress_bits_per_second=2_000_000)
    client.attach_endpoint(
        EndpointSpec(network="front", name="web", bandwidth=limits), SandboxSpec(container_id="web", host="h1")
    )
    before = buckets(cluster)
    (endpoint,) = client.list_endpoints("network=front")

    with Netns.at(str(cluster.host("h1"))) as host:
        host.exec(command.format(endpoint.id[:11]).split())
    repaired = support.wait_until(lambda: buckets(cluster), lambda found: found == before)

    assert {"nwv": 1_000_000, "nws": 2_000_000} == before == repaired


def test_a_rate_that_no_queue_can_keep_is_refused(client):
    spec = EndpointSpec(network="front", name="web", bandwidth=Bandwidth(egress_bits_per_second=100))

    with pytest.raises(errors.InvalidArgument, match="egress_bits_per_second"):
        client.attach_endpoint(spec, SandboxSpec(container_id="web", host="h1"))
