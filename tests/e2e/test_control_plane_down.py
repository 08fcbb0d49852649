"""Without store, IPAM and controllers containers talk on, agents restart from their journals, new work is refused."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from netweft_cli import reach
from netweft_client import EndpointSpec, PublishedPort, SandboxSpec, SubnetSpec
from netweft_common import errors

from tests.e2e import support
from tests.support.netns import require_tool

pytestmark = [pytest.mark.e2e, pytest.mark.netns]

CONTROL = ("controller", "ipam", "store")
AGENTS = ("agent-h1", "agent-h2")
PLACES = {"a": ("far", "h1"), "b": ("far", "h2"), "c": ("near", "h1"), "d": ("near", "h1")}
"""Endpoints: network and host."""


@pytest.fixture(scope="module")
def cluster():
    for tool in ("ip", "bridge", "nft"):
        require_tool(tool)
    with support.running("h1", "h2", environ=support.QUICK) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def pairs(cluster):
    """Pairs of containers that talk, by name: over an overlay, over a bridge."""
    with cluster.client() as client:
        client.create_network("far", driver="overlay", subnets=[SubnetSpec(subnet="10.93.0.0/24")])
        client.create_network("near", driver="bridge", host="h1", subnets=[SubnetSpec(subnet="10.94.0.0/24")])
        ports = {"c": (PublishedPort(container_port=80, host_port=8080),)}
        found = {
            name: client.attach_endpoint(
                EndpointSpec(network=network, name=name, ports=ports.get(name, ())),
                SandboxSpec(container_id=name, host=host),
            )
            for name, (network, host) in PLACES.items()
        }
        assert () == client.wait_network("far", wait_s=support.SETTLE_S)
    return {
        f"{one} to {other}": reach.Pair(
            source=Path(found[one].sandbox.netns_path), destination=str(found[other].endpoint.addresses[0].ip)
        )
        for one, other in (("a", "b"), ("b", "a"), ("c", "d"))
    }


@contextlib.contextmanager
def talking(pairs):
    """Have the pairs ask each other; not one answer may be missing."""
    with contextlib.ExitStack() as stack:
        pingers = {name: stack.enter_context(reach.Pinger(pair, interval_s=0.01)) for name, pair in pairs.items()}
        yield
        support.wait_until(lambda: min(one.sent for one in pingers.values()), lambda sent: sent > 20)
    assert {} == {name: lost for name, one in pingers.items() if (lost := support.unanswered(one))}


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_without_a_control_plane_containers_talk_agents_restart_and_new_work_is_refused(cluster, pairs, how):
    assert [] == support.settled(cluster)
    before = support.kernel(cluster)
    attach = {
        "endpoint": EndpointSpec(network="far", name=f"late-{how}"),
        "sandbox": SandboxSpec(container_id=f"late-{how}", host="h1"),
        "request_id": f"late-{how}",
    }

    with talking(pairs):
        for name in CONTROL:
            cluster.terminate(name) if how == "SIGTERM" else cluster.kill(name)
        with cluster.client(retry_for_s=0) as client:
            with pytest.raises(errors.Unavailable) as refused:
                client.attach_endpoint(**attach, timeout_s=3)
            with pytest.raises(errors.Unavailable):
                client.create_network("late", timeout_s=3)
        for name in AGENTS:
            cluster.terminate(name) if how == "SIGTERM" else cluster.kill(name)
            cluster.start(name)
        alone = support.kernel(cluster)
        with cluster.client(retry_for_s=0) as client:
            drift = [step for host in cluster.layout.hosts for step in client.observe(cluster.layout.agent(host)).drift]
        for name in reversed(CONTROL):
            cluster.start(name)
        cluster.stack.wait_for_hosts()
        left = support.settled(cluster)

    assert refused.value.message
    assert before == alone
    assert [] == drift
    assert [] == left
    assert before == support.kernel(cluster)
    with cluster.client() as client:
        assert set(PLACES) == {one.name for one in client.list_endpoints()}
        made = client.attach_endpoint(**attach)
        client.detach_endpoint(made.endpoint.id, delete_sandbox=True)
        assert "late" not in {one.name for one in client.list_networks()}
    assert [] == support.settled(cluster)
