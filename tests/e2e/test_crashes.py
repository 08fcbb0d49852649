"""Processes die with SIGKILL, at rest and under load: nobody stops talking, and nothing is lost or half-made."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import netweft_client
import pytest
from netweft_cli import demo, reach, scenario
from netweft_client import EndpointSpec, SandboxSpec
from netweft_common import errors

from tests.e2e import support, support_load
from tests.support.netns import require_tool

pytestmark = [pytest.mark.e2e, pytest.mark.netns]

PLAN = scenario.standard()
AGENTS = ("agent-hostA", "agent-hostB")
PROCESSES = ("store", "ipam", "controller", *AGENTS)
DEADLINE_S = 3.0

EXPECTED = {
    (source.name, container.name, network.name): scenario.may_reach(source, network)
    for source in PLAN.containers
    for container, network in PLAN.destinations
    if container != source
} | {
    (source.name, str(world), ""): scenario.may_reach_world(source, world)
    for source in PLAN.containers
    for world in scenario.World
}


class Workload:
    """The demo's networks and containers on a cluster."""

    def __init__(self, cluster: support.Cluster) -> None:
        self.cluster = cluster
        self.placed = asyncio.run(self._place())

    async def _place(self) -> list[demo.Placed]:
        plan = self.cluster.layout
        async with netweft_client.AsyncClient(plan.controller, ipam_target=plan.ipam) as client:
            await demo.create_networks(client, PLAN)
            return await demo.attach(client, PLAN)

    def table(self) -> dict[tuple[str, str, str], bool]:
        """Return who reaches whom."""
        found = demo.measure(PLAN, self.placed, self.cluster.layout)
        return {(one.source, one.destination, one.network): one.reached for one in found}

    def netns(self, name: str) -> Path:
        return next(one.netns for one in self.placed if one.container.name == name)

    def pair(self, source: str, destination: str, network: str) -> reach.Pair:
        addresses = next(one.addresses for one in self.placed if one.container.name == destination)
        return reach.Pair(source=self.netns(source), destination=addresses[network])

    @contextlib.contextmanager
    def talking(self) -> Iterator[None]:
        """Have containers ask each other every 10 ms, on one host and across; not one answer may be missing."""
        pairs = {
            "bridge": self.pair("a1", "a2", "bridge-a"),
            "bridge, other host": self.pair("b1", "b2", "bridge-b"),
            "overlay, one host": self.pair("x1", "x2", "overlay"),
            "overlay, across": self.pair("x1", "y1", "overlay"),
            "overlay, back": self.pair("y2", "ax", "overlay"),
        }
        with contextlib.ExitStack() as stack:
            pingers = {name: stack.enter_context(reach.Pinger(pair, interval_s=0.01)) for name, pair in pairs.items()}
            yield
            # The block may be over in no time; what is asked right after it counts as well.
            support.wait_until(lambda: min(one.sent for one in pingers.values()), lambda sent: sent > 20)
        assert {} == {name: lost for name, one in pingers.items() if (lost := support.unanswered(one))}
        assert min(one.loss.sent for one in pingers.values()) > 20


@pytest.fixture(scope="module")
def workload():
    with support.running(*scenario.HOSTS, environ=support.QUICK) as cluster:
        made = Workload(cluster)
        # An attach is answered before other hosts have heard of it: what goes there in that moment is lost.
        support.wait_until(made.table, EXPECTED.__eq__)
        yield made


def pids(cluster: support.Cluster) -> dict[str, int]:
    found = {name: cluster.stack.processes.find(name) for name in PROCESSES}
    return {name: process.pid for name, process in found.items() if process is not None}


def test_the_workload_reaches_what_it_must_and_nothing_else(workload):
    assert workload.table() == EXPECTED
    assert [] == support.settled(workload.cluster)


@pytest.mark.parametrize("name", PROCESSES)
def test_while_one_is_dead_containers_talk_on_and_callers_are_told_in_time(workload, name):
    cluster = workload.cluster
    before = pids(cluster)
    ask = {
        "endpoint": EndpointSpec(network="bridge-a", name=f"new-{name}"),
        "sandbox": SandboxSpec(container_id=f"new-{name}", host="hostB" if name == "agent-hostB" else "hostA"),
        "request_id": f"new-{name}",
    }
    if name == "agent-hostB":
        ask["endpoint"] = EndpointSpec(network="overlay", name=f"new-{name}")

    with workload.talking():
        with cluster.dead(name), cluster.client(retry_for_s=0) as client:
            asked_at = time.monotonic()
            with pytest.raises(errors.Unavailable) as told:
                client.attach_endpoint(**ask, timeout_s=DEADLINE_S)
            told_after_s = time.monotonic() - asked_at
        with cluster.client(retry_for_s=0) as client:
            attached = support.wait_until(lambda: attempt(client, ask), lambda one: not isinstance(one, Exception))

    assert told_after_s < DEADLINE_S + 1.0
    assert told.value.message
    assert isinstance(attached, netweft_client.Attached), attached
    assert {one for one in before if before[one] != pids(cluster)[one]} == {name}
    assert reach.reach(attached.sandbox.netns_path and Path(attached.sandbox.netns_path), str(attached.gateways[0]))
    with cluster.client() as client:
        client.detach_endpoint(attached.endpoint.id, delete_sandbox=True)
    assert [] == support.settled(cluster)
    assert workload.table() == EXPECTED


def attempt(client: netweft_client.Client, ask) -> netweft_client.Attached | errors.NetweftError:
    try:
        return client.attach_endpoint(**ask)
    except errors.NetweftError as error:
        return error


@pytest.mark.parametrize("name", ["store", "ipam", "controller"])
def test_every_mutation_is_refused_in_time_while_one_is_dead(workload, name):
    cluster = workload.cluster
    mutations = {
        "create network": lambda client: client.create_network("never", host="hostA", timeout_s=DEADLINE_S),
        "attach": lambda client: client.attach_endpoint(
            EndpointSpec(network="overlay", name="never"),
            SandboxSpec(container_id="never", host="hostA"),
            timeout_s=DEADLINE_S,
        ),
        "create endpoint": lambda client: client.create_endpoint(
            EndpointSpec(network="overlay", name="never"), timeout_s=DEADLINE_S
        ),
    }
    took_s = {}

    with cluster.dead(name), cluster.client(retry_for_s=0) as client:
        for what, mutate in mutations.items():
            began = time.monotonic()
            with pytest.raises(errors.Unavailable):
                mutate(client)
            took_s[what] = time.monotonic() - began

    assert max(took_s.values()) < DEADLINE_S + 1.0, took_s
    assert [] == support.settled(cluster)
    with cluster.client() as client:
        assert "never" not in {one.name for one in client.list_networks()}
        assert "never" not in {one.name for one in client.list_endpoints()}


def test_a_host_whose_agent_is_dead_does_not_hold_up_the_others(workload):
    cluster = workload.cluster
    items = [
        netweft_client.AttachItem(
            endpoint=EndpointSpec(network="overlay", name=f"both-{host}"),
            sandbox=SandboxSpec(container_id=f"both-{host}", host=host),
        )
        for host in scenario.HOSTS
    ]

    with cluster.dead("agent-hostA"), cluster.client(retry_for_s=0) as client:
        here, there = client.attach_endpoints(items, timeout_s=DEADLINE_S)

    assert isinstance(here, errors.Unavailable)
    assert "hostA" in here.message
    assert isinstance(there, netweft_client.Attached)
    with cluster.client() as client:
        client.detach_endpoint(there.endpoint.id, delete_sandbox=True)
    assert [] == support.settled(cluster)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_both_agents_restart_without_a_lost_echo_or_a_change_to_the_kernel(workload, how):
    for tool in ("ip", "bridge", "nft"):
        require_tool(tool)
    cluster = workload.cluster
    before = support.kernel(cluster)
    said = {name: len(cluster.log(name)) for name in AGENTS}

    with workload.talking():
        for name in AGENTS:
            cluster.terminate(name) if how == "SIGTERM" else cluster.kill(name)
            cluster.start(name)
        cluster.stack.wait_for_hosts()
        drift = support.settled(cluster)

    assert [] == drift
    assert before == support.kernel(cluster)
    for name in AGENTS:
        assert "repaired" not in cluster.log(name)[said[name] :]


SEED = 20_240_607
KILLS = 12


def test_kills_at_random_moments_of_a_load_lose_nothing_and_leave_nothing_half_made(workload):
    cluster = workload.cluster
    places = [
        support_load.Place(network="bridge-a", host="hostA"),
        support_load.Place(network="bridge-b", host="hostB"),
        support_load.Place(network="overlay", host="hostA"),
        support_load.Place(network="overlay", host="hostB"),
    ]
    mine = {container.name for container in PLAN.containers}

    with workload.talking(), support_load.Load(cluster, places, seed=SEED) as load:
        for wait_s, name, dead_s in support_load.moments(PROCESSES, seed=SEED, kills=KILLS):
            if load.broken:
                break
            time.sleep(wait_s)  # not to wait for something: the moment is random, that is the point
            cluster.kill(name)
            time.sleep(dead_s)
            cluster.start(name)
        cluster.stack.wait_for_hosts()
    left = support.settled(cluster)

    account = load.account
    assert [] == left
    assert min(account.attached, account.detached) >= 10
    with cluster.client() as client:
        endpoints = {one.name: one for one in client.list_endpoints(page_size=1000) if one.name not in mine}
        names = {one.name for one in client.list_networks()}
        # By id and address: an endpoint of that name that was made anew would be another one than was told of.
        assert {
            name: (one.endpoint.id, one.endpoint.addresses, one.endpoint.mac_address)
            for name, one in account.there.items()
        } == {
            name: (one.id, one.addresses, one.mac_address)
            for name, one in endpoints.items()
            if name not in account.unknown
        }
        assert {network.name for network in PLAN.networks} == names
        assert set() == unreached(workload, endpoints.values(), client)
        client.detach_endpoints(
            netweft_client.DetachItem(endpoint=one.id, delete_sandbox=True) for one in endpoints.values()
        )
    assert [] == support.settled(cluster)
    assert workload.table() == EXPECTED


def unreached(workload: Workload, endpoints, client) -> set[str]:
    """Return the endpoints that a container of the same network does not reach."""
    neighbours = {"bridge-a": "a1", "bridge-b": "b1", "overlay": "x1"}
    names = {network.id: network.name for network in client.list_networks()}
    pairs = {
        reach.Pair(
            source=workload.netns(neighbours[names[one.network_id]]), destination=str(one.addresses[0].ip)
        ): one.name
        for one in endpoints
    }
    answers = reach.reach_all(pairs, timeout_s=10)
    return {name for pair, name in pairs.items() if answers[pair] is None}
