"""Two controllers on one store: one dies under load, and nobody who asks again notices."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import signal
import time
from collections.abc import Iterator

import netweft_client
import pytest
from netweft_cli import processes
from netweft_client import EndpointSpec, SandboxSpec

from tests.e2e import support

pytestmark = [pytest.mark.e2e, pytest.mark.netns]

WORKERS = 4
ROUNDS = 2
"""How often a controller dies under one load."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """A stack with a second controller; its agent and its clients know both."""

    cluster: support.Cluster
    specs: dict[str, processes.Spec]

    @property
    def target(self) -> str:
        return f"{self.cluster.layout.controller},{self.cluster.layout.controller}2"

    def start(self, name: str) -> None:
        self.cluster.stack.processes.start([self.specs[name]], timeout_s=30)

    def pid(self, name: str) -> int:
        found = self.cluster.stack.processes.find(name)
        assert found is not None
        return found.pid

    def client(self) -> netweft_client.AsyncClient:
        return netweft_client.AsyncClient(self.target, ipam_target=self.cluster.layout.ipam, timeout_s=60)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with support.running("h1", environ={**support.QUICK, **support.NONE_AHEAD}) as cluster:
        known = {spec.name: spec for group in cluster.stack._groups() for spec in group}
        socket = cluster.layout.controller

        def changed(name: str, new: str, before: str, after: str) -> processes.Spec:
            command = tuple(after if word == before else word for word in known[name].command)
            assert command != known[name].command
            return dataclasses.replace(known[name], name=new, command=command)

        made = Pair(
            cluster,
            {
                "controller": known["controller"],
                "controller2": changed("controller", "controller2", socket, f"{socket}2"),
                "agent-h1": changed("agent-h1", "agent-h1", socket, f"{socket},{socket}2"),
            },
        )
        with cluster._settings():
            cluster.kill("agent-h1")
            made.start("controller2")
            made.start("agent-h1")
            yield made
            # The stack knows nothing of it.
            assert cluster.stack.processes.stop("controller2", grace_s=20)


async def _churn(pair: Pair, worker: int, until: asyncio.Event) -> tuple[int, set[str]]:
    """Attach and detach, each call acknowledged; returns how many, and what is attached at the end."""
    count = 0
    async with pair.client() as client:
        while not until.is_set():
            name = f"w{worker}-{count}"
            await client.attach_endpoint(EndpointSpec(network="front", name=name), SandboxSpec(container_id=name))
            if count % 2:
                await client.detach_endpoint(name, network="front", delete_sandbox=True)
            count += 1
    return count, {f"w{worker}-{number}" for number in range(0, count, 2)}


async def _make_networks(pair: Pair, until: asyncio.Event) -> set[str]:
    """Make networks with a container each, change its endpoint, and delete every other one; returns those left."""
    left: set[str] = set()
    count = 0
    async with pair.client() as client:
        while not until.is_set():
            name = f"n{count}"
            await client.create_network(name)
            await client.attach_endpoint(EndpointSpec(network=name, name=name), SandboxSpec(container_id=name))
            await client.update_endpoint(name, network=name, gateway_priority=count)
            if count % 2:
                await client.detach_endpoint(name, network=name, delete_sandbox=True)
                await client.delete_network(name)
            else:
                left.add(name)
            count += 1
    return left


@dataclasses.dataclass(frozen=True)
class Done:
    """What callers were told: how many pairs of calls were answered, and what there must be."""

    count: int
    endpoints: set[str]
    networks: set[str]


async def _under_load(pair: Pair, harm) -> Done:
    until = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        workers = [tasks.create_task(_churn(pair, number, until)) for number in range(WORKERS)]
        maker = tasks.create_task(_make_networks(pair, until))
        await asyncio.sleep(1)
        await harm()
        await asyncio.sleep(2)
        until.set()
    done = [worker.result() for worker in workers]
    return Done(
        count=sum(count for count, _ in done),
        endpoints=set().union(*(names for _, names in done)),
        networks=maker.result(),
    )


async def _names(pair: Pair, *filters: str) -> dict[str, str]:
    async with pair.client() as client:
        return {one.name: str(one.state) async for one in client.list_endpoints(*filters)}


async def _clear(pair: Pair) -> None:
    async with pair.client() as client:
        async for sandbox in client.list_sandboxes():
            await client.delete_sandbox(sandbox.id, force=True)
        for network in [one async for one in client.list_networks()]:
            await client.delete_network(network.id)


@pytest.fixture(autouse=True)
def cleared(pair: Pair) -> Iterator[None]:
    """Leave nothing for the next test, also where one has failed."""
    yield
    asyncio.run(_clear(pair))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("victim", ["controller", "controller2", "one after the other"])
def test_a_controller_that_is_killed_under_load_costs_no_call_and_no_change(pair, victim):
    async def run() -> None:
        async with pair.client() as client:
            await client.create_network("front", subnets=[netweft_client.SubnetSpec(subnet="10.72.0.0/16")])

        async def harm() -> None:
            both = itertools.cycle(["controller", "controller2"])
            for _ in range(ROUNDS):
                dies = next(both) if victim not in pair.specs else victim
                await asyncio.to_thread(processes.end, pair.pid(dies), grace_s=0, kill=True)
                await asyncio.sleep(0.5)
                await asyncio.to_thread(pair.start, dies)

        done = await _under_load(pair, harm)
        found = await _joined(pair, "network=front")
        others = {name for name in await _names(pair) if name not in found}

        assert done.count > WORKERS
        assert done.endpoints == set(found)
        assert {"joined"} == set(found.values())
        assert done.networks == others
        async with pair.client() as client:
            assert done.networks | {"front"} == {one.name async for one in client.list_networks()}
            changed = {one.name: one.gateway_priority async for one in client.list_endpoints() if one.name in others}
            assert {name: int(name[1:]) for name in others} == changed
            assert () == await client.wait_network("front", wait_s=9)

    asyncio.run(run())
    assert [] == support.settled(pair.cluster)
    assert [] == support.settled(pair.cluster)


def test_a_controller_that_stands_still_is_left_for_the_other_one(pair):
    pid = pair.pid("controller")

    async def run() -> None:
        async with pair.client() as client:
            await client.create_network("front", subnets=[netweft_client.SubnetSpec(subnet="10.72.0.0/16")])
        os.kill(pid, signal.SIGSTOP)
        try:
            async with pair.client() as client:
                await client.attach_endpoint(EndpointSpec(network="front", name="e"), SandboxSpec(container_id="c"))
            assert {"e": "joined"} == await _joined(pair)
        finally:
            os.kill(pid, signal.SIGCONT)
        # What it slept through it has yet to read, and so do those who ask it.
        assert {"e": "joined"} == await _joined(pair)

    asyncio.run(run())


async def _joined(pair: Pair, *filters: str) -> dict[str, str]:
    """Return endpoints when all have joined on record; one that dies behind its answer leaves that to the other."""
    ends_s = time.monotonic() + 20
    while set((found := await _names(pair, *filters)).values()) != {"joined"} and time.monotonic() < ends_s:
        await asyncio.sleep(0.1)
    return found
