"""Thirty hosts, agents but for the kernel, on a real store, IPAM and controller: they have what is meant, told once."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable

import pytest
from netweft_agent.domain.objects import Kind, Ref
from netweft_client import AsyncClient, model
from netweft_common import logs
from netweft_common.errors import NetweftError

from tests.scale import intent, services
from tests.scale.hosts import SimulatedHost, until

logs.configure(level="error")

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

HOSTS = 30
NETWORKS = 10
WIDTH = 6
"""Hosts of a network: it begins at every third one, so each host has two."""
EACH = 5
"""Endpoints of a network on a host."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


Cluster = tuple[AsyncClient, list[SimulatedHost]]


@pytest.fixture(scope="module")
async def cluster(anyio_backend: str) -> AsyncIterator[Cluster]:
    """Services and hosts, with networks and endpoints on them; all of it is at rest, and each test leaves it so."""
    with services.running() as running:
        hosts = [SimulatedHost(number, running.folder) for number in range(HOSTS)]
        async with contextlib.AsyncExitStack() as stack:
            for host in hosts:
                stack.push_async_callback(host.stop)
                await host.start()
            client = await stack.enter_async_context(AsyncClient(target=running.controller, timeout_s=90))
            for number in range(NETWORKS):
                subnet = model.SubnetSpec(subnet=f"10.{number}.0.0/16")
                await client.create_network(f"n{number}", driver="overlay", subnets=[subnet])
            batches = [
                [item(f"n{number}", host, f"e{one}") for one in range(EACH)]
                for number in range(NETWORKS)
                for host in (hosts[(3 * number + place) % HOSTS] for place in range(WIDTH))
            ]
            for start in range(0, len(batches), WIDTH):
                await asyncio.gather(*(attach(client, batch) for batch in batches[start : start + WIDTH]))
            await at_rest(client, hosts)
            yield client, hosts


def item(network: str, host: SimulatedHost, name: str) -> model.AttachItem:
    """Return what is asked for an endpoint of a container of its own."""
    return model.AttachItem(
        endpoint=model.EndpointSpec(network=network, name=f"{host.name}-{name}"),
        sandbox=model.SandboxSpec(container_id=f"{network}-{name}", host=host.name),
    )


async def attach(client: AsyncClient, items: list[model.AttachItem]) -> list[model.Attached]:
    """Attach, all of it."""
    results = await client.attach_endpoints(items)
    assert [] == [one for one in results if isinstance(one, NetweftError)]
    return [one for one in results if not isinstance(one, NetweftError)]


async def at_rest(client: AsyncClient, hosts: Iterable[SimulatedHost]) -> intent.Intent:
    """Wait until all hosts have what is meant; what they have otherwise fails the test."""
    meant = await intent.read(client)
    with contextlib.suppress(TimeoutError):
        await until(lambda: not differences(meant, hosts), timeout_s=30, look_s=0.2)
    assert [] == differences(meant, hosts)
    return meant


def differences(meant: intent.Intent, hosts: Iterable[SimulatedHost]) -> list[str]:
    """Return what hosts have otherwise than is meant."""
    return [line for host in hosts for line in meant.differences(host)]


def peers(told: Counter[tuple[Ref, int, bool]]) -> Counter[Ref]:
    """Return how often each peer was told of."""
    counts: Counter[Ref] = Counter()
    for (ref, _, _), count in told.items():
        if ref.kind is Kind.PEER:
            counts[ref] += count
    return counts


async def test_every_host_has_what_is_meant_and_hears_of_each_peer_once(cluster: Cluster) -> None:
    """A network that comes to six hosts at once is in their kernels, exactly; no peer is told to any of them twice."""
    client, hosts = cluster
    for host in hosts:
        host.engine.forget_counts()

    await client.create_network("once", driver="overlay", subnets=[model.SubnetSpec(subnet="10.100.0.0/16")])
    chosen = hosts[12 : 12 + WIDTH]
    await asyncio.gather(*(attach(client, [item("once", host, f"e{one}") for one in range(EACH)]) for host in chosen))
    meant = await at_rest(client, hosts)

    (network,) = (one.id for one in meant.networks.values() if one.name == "once")
    for host in hosts:
        wanted = {
            Ref(kind=Kind.PEER, id=one.id)
            for one in meant.peers(host.id)
            if one.network_id == network and host in chosen
        }
        assert (WIDTH - 1) * EACH * (host in chosen) == len(wanted)
        assert dict.fromkeys(wanted, 1) == peers(host.engine.streamed)
        assert not peers(host.engine.applied)


async def test_what_leaves_and_comes_back_elsewhere_is_so_on_every_host(cluster: Cluster) -> None:
    """A host's endpoints of a network go and come on one that had none: everybody forgets and learns."""
    client, hosts = cluster
    old, new = hosts[0], hosts[10]

    gone = [model.DetachItem(endpoint=f"{old.name}-e{one}", network="n0") for one in range(EACH)]
    assert [] == [one for one in await client.detach_endpoints(gone) if isinstance(one, NetweftError)]
    without = await at_rest(client, hosts)
    await attach(client, [item("n0", new, f"e{one}") for one in range(EACH)])
    meant = await at_rest(client, hosts)

    assert "n0" not in {without.networks[one.network_id].name for one in without.own(old.id)}
    assert "n0" in {meant.networks[one.network_id].name for one in meant.own(new.id)}


async def test_a_restarted_agent_ends_with_the_same_and_nobody_else_hears_of_it(cluster: Cluster) -> None:
    """From its journal it changes nothing in the kernel; the others are told of the next change and of nothing else."""
    client, hosts = cluster
    host, others = hosts[3], hosts[:3] + hosts[4:]
    before, steps = set(host.kernel.state), host.kernel.steps
    held = set(host.engine.store.objects)
    for one in others:
        one.engine.forget_counts()

    await host.stop()
    await host.start()

    (made,) = await attach(client, [item("n1", hosts[4], "last")])
    last = Ref(kind=Kind.PEER, id=made.endpoint.id)
    # It comes after all that the host had missed.
    await until(lambda: last in host.engine.store.objects)
    await at_rest(client, hosts)
    assert held | {last} == set(host.engine.store.objects)
    assert 0 == host.engine.snapshots
    assert all(count == 1 for count in host.engine.streamed.values())
    new = host.engine.desired.by_owner[str(last)].keys() - before
    assert steps + len(new) == host.kernel.steps
    told = {one.number: peers(one.engine.streamed) for one in others if one.engine.streamed}
    assert {number: {last: 1} for number in range(5, 9)} == {number: told[number] for number in range(5, 9)}
    assert not set(told) - set(range(4, 9))


async def test_a_host_that_lost_all_is_told_all_once_and_nobody_else_hears_of_it(cluster: Cluster) -> None:
    """A boot takes kernel and journal: one snapshot brings everything back, each object once."""
    client, hosts = cluster
    host, others = hosts[3], hosts[:3] + hosts[4:]
    held = set(host.engine.store.objects)
    for one in others:
        one.engine.forget_counts()

    await host.stop()
    host.lose()
    await host.start()
    await until(lambda: host.engine.position.revision)
    await at_rest(client, hosts)

    assert held == set(host.engine.store.objects)
    assert 1 == host.engine.snapshots
    assert dict.fromkeys(held, 1) == Counter(ref for ref, _, _ in host.engine.streamed.elements())
    assert not any(one.engine.streamed for one in others)
