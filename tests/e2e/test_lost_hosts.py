"""Hosts that are silent: what flaps loses nothing, what stays away loses its endpoints by policy only."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import netweft_client
import pytest
from netweft_cli import reach
from netweft_client import EndpointSpec, SandboxSpec, SubnetSpec

from tests.e2e import support
from tests.support.netns import require_tool

pytestmark = [pytest.mark.e2e, pytest.mark.netns]

# Thirty seconds of flapping against a grace of fifteen and a policy of minutes, made shorter.
SETTINGS = {
    **support.QUICK,
    **support.NONE_AHEAD,
    "NETWEFT_CONTROLLER_HOST_GRACE": "1s",
    "NETWEFT_CONTROLLER_FORSAKE_AFTER": "6s",
    "NETWEFT_IPAM_QUARANTINE": "0s",
}
FLAPS = 4


@pytest.fixture(scope="module")
def cluster():
    for tool in ("ip", "bridge", "nft"):
        require_tool(tool)
    with support.running("h1", "h2", environ=SETTINGS) as cluster:
        with cluster.client() as client:
            client.create_network("front", driver="overlay", subnets=[SubnetSpec(subnet="10.95.0.0/24")])
        yield cluster


@pytest.fixture
def boxes(client):
    """Containers of both hosts: what was answered when they were attached, by name."""
    found = {
        name: client.attach_endpoint(
            EndpointSpec(network="front", name=name), SandboxSpec(container_id=name, host=host)
        )
        for name, host in (("a", "h1"), ("b", "h2"))
    }
    assert () == client.wait_network("front", wait_s=support.SETTLE_S)
    return found


def state_of(client, name):
    return next(host.state for host in client.list_hosts() if host.name == name)


def until(client, name, state):
    seen = support.wait_until(lambda: state_of(client, name), lambda found: found is state)
    assert state is seen


def names(client):
    return {one.name: one.id for one in client.list_endpoints()}


def test_a_host_that_comes_and_goes_loses_nothing(cluster, client, boxes):
    lost, ready = netweft_client.HostState.LOST, netweft_client.HostState.READY
    assert [] == support.settled(cluster)
    before, recorded = support.kernel(cluster), names(client)
    agent = cluster.stack.processes.find("agent-h2")
    pair = reach.Pair(source=Path(boxes["a"].sandbox.netns_path), destination=str(boxes["b"].endpoint.addresses[0].ip))

    with reach.Pinger(pair, interval_s=0.02) as pinger:
        for _ in range(FLAPS):
            os.kill(agent.pid, signal.SIGSTOP)
            try:
                until(client, "h2", lost)
                time.sleep(1.0)  # the flaps together last longer than the policy waits for one of them
            finally:
                os.kill(agent.pid, signal.SIGCONT)
            until(client, "h2", ready)
    left = support.settled(cluster)

    assert [] == support.unanswered(pinger)
    assert [] == left
    assert recorded == names(client)
    assert before == support.kernel(cluster)


def test_a_host_that_stays_away_keeps_its_endpoints_for_a_time_and_then_loses_them(cluster, client, boxes):
    lost, ready = netweft_client.HostState.LOST, netweft_client.HostState.READY
    address = boxes["b"].endpoint.addresses[0]
    wants = EndpointSpec(network="front", name="next", addresses=(str(address.ip),))
    box = SandboxSpec(container_id="next", host="h1")

    with cluster.dead("agent-h2"):
        until(client, "h2", lost)
        kept = names(client)
        with pytest.raises(netweft_client.errors.NetweftError) as held:
            client.attach_endpoint(wants, box)
        gone = support.wait_until(lambda: names(client), lambda found: "b" not in found)
        taken = client.attach_endpoint(wants, box)
    until(client, "h2", ready)
    left = support.settled(cluster)

    assert {"a", "b"} == set(kept)
    assert str(address.ip) in held.value.message
    assert {"a"} == set(gone)
    assert address == taken.endpoint.addresses[0]
    # Its agent has found that it has nothing any more, and cleared its kernel.
    assert [] == left
    assert {"a": "h1", "next": "h1"} == {
        one.name: host.name for one in client.list_endpoints() for host in client.list_hosts() if host.id == one.host_id
    }
