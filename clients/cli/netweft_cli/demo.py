"""The demo: two hosts, containers on both, and a measured answer to who reaches whom.

Everything happens in a stack of its own (`stack.py`): hosts are network namespaces, nothing of the machine's own
network is touched. Setting up, measuring and taking down are separate, so that tests may do things in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path

import netweft_client
from netweft_common import errors

from netweft_cli import layout, netns, plans, reach, rtnl, scenario, stack

REACH_TIMEOUT_S = 1.5
SINGLE_ATTACHES = 20
BATCH = 50
TIMED_SUBNET = "10.99.0.0/16"

Step = Callable[[str], contextlib.AbstractContextManager[None]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One pair: from a container to an endpoint of another or to the world, what must be and what was."""

    source: str
    destination: str
    network: str
    address: str
    expected: bool
    rtt_s: float | None

    @property
    def reached(self) -> bool:
        """Whether an answer came."""
        return self.rtt_s is not None

    @property
    def is_wrong(self) -> bool:
        """Whether it is not as it must be."""
        return self.reached is not self.expected


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Milliseconds, through the client and the controller, durable in the store."""

    attach_p50_ms: float
    attach_batch_ms_each: float
    detach_batch_ms_each: float


@dataclasses.dataclass(kw_only=True)
class Report:
    """What a demo found."""

    findings: list[Finding] = field(default_factory=list)
    plan: list[str] = field(default_factory=list)
    timings: Timings | None = None
    left: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything was as it must be."""
        return bool(self.findings) and not self.left and not any(one.is_wrong for one in self.findings)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A container as it came to be: its namespace, and its address in each network by name."""

    container: scenario.Container
    netns: Path
    addresses: Mapping[str, str]


def run(run_dir: Path, plan: scenario.Scenario, step: Step, *, keep: bool = False, timed: bool = True) -> Report:
    """Run the whole demo and return what it found.

    Args:
        run_dir: Where the stack goes; must not hold one.
        plan: What to set up.
        step: Context that shows a step while it is done.
        keep: Leave everything running.
        timed: Whether to take timings.

    Raises:
        NetweftError: A step failed; what was made is removed, unless it is to be kept.
    """
    report = Report()
    running = stack.Stack(layout.plan(run_dir, names=scenario.HOSTS))
    before = set(stack.leftovers(running.layout, running.processes, {}).lines)
    try:
        with step("starting store, IPAM, controller and two agents, each agent in a namespace that plays a host"):
            running.up()
            running.wait_for_hosts()
        asyncio.run(_work(running, plan, step, report, keep=keep, timed=timed))
    finally:
        if not keep:
            with step("stopping all processes and removing namespaces, mounts and files"):
                left = set(running.down().lines) - before
            report.left += sorted(left)
    return report


async def _work(
    running: stack.Stack, plan: scenario.Scenario, step: Step, report: Report, *, keep: bool, timed: bool
) -> None:
    planned = running.layout
    spaces = [space for host in planned.hosts if (space := planned.netns(host))]
    fresh = {space: traces(space) for space in spaces}
    async with netweft_client.AsyncClient(planned.controller, ipam_target=planned.ipam) as client:
        with step(f"creating {len(plan.networks)} networks"):
            await create_networks(client, plan)
        with step(f"attaching {len(plan.containers)} containers"):
            placed = await attach(client, plan)
        with step("asking every pair by ICMP echo, from inside the containers"):
            report.findings += await asyncio.to_thread(measure, plan, placed, planned)
        with step("planning one more attach"):
            report.plan += await example_plan(client, plan)
        if timed:
            with step(f"timing {SINGLE_ATTACHES} attaches one at a time, and {BATCH} in a batch"):
                report.timings = await take_timings(client)
        if keep:
            return
        with step("detaching everything and removing the networks"):
            await remove(client, plan)
            report.left += list(_difference(fresh, {space: traces(space) for space in spaces}))


async def create_networks(client: netweft_client.AsyncClient, plan: scenario.Scenario) -> None:
    """Create the networks of a scenario."""
    for network in plan.networks:
        await client.create_network(
            network.name,
            driver=network.driver,
            host=network.host,
            subnets=[netweft_client.SubnetSpec(subnet=network.subnet)],
            internal=network.internal,
        )


async def attach(client: netweft_client.AsyncClient, plan: scenario.Scenario) -> list[Placed]:
    """Attach all containers in one batch, their namespaces made by the agents.

    Raises:
        NetweftError: The first item that failed.
    """
    wanted = [(container, network) for container in plan.containers for network in container.networks]
    results = await client.attach_endpoints(
        netweft_client.AttachItem(
            endpoint=netweft_client.EndpointSpec(network=network.name, name=container.name),
            sandbox=netweft_client.SandboxSpec(container_id=container.name, host=container.host),
        )
        for container, network in wanted
    )
    spaces: dict[str, Path] = {}
    addresses: dict[str, dict[str, str]] = {container.name: {} for container in plan.containers}
    for (container, network), result in zip(wanted, results, strict=True):
        if isinstance(result, errors.NetweftError):
            raise result
        spaces[container.name] = Path(result.sandbox.netns_path)
        addresses[container.name][network.name] = str(result.endpoint.addresses[0].ip)
    return [
        Placed(container=container, netns=spaces[container.name], addresses=addresses[container.name])
        for container in plan.containers
    ]


def measure(plan: scenario.Scenario, placed: Sequence[Placed], planned: layout.Layout) -> list[Finding]:
    """Ask every pair at once and return what was found, in the order of sources and destinations."""
    by_name = {one.container.name: one for one in placed}
    hosts = {host.name: str(host.address) for host in planned.hosts}
    questions: list[tuple[reach.Pair, str, str, str, bool]] = []
    for source in placed:
        me = source.container
        for container, network in plan.destinations:
            if container == me:
                continue
            address = by_name[container.name].addresses[network.name]
            pair = reach.Pair(source=source.netns, destination=address)
            questions.append((pair, me.name, container.name, network.name, scenario.may_reach(me, network)))
        for world, address in ((scenario.World.HOST, hosts[me.host]), (scenario.World.OUTSIDE, str(layout.OUTSIDE.ip))):
            pair = reach.Pair(source=source.netns, destination=address)
            questions.append((pair, me.name, world, "", scenario.may_reach_world(me, world)))
    answers = reach.reach_all((pair for pair, *_ in questions), timeout_s=REACH_TIMEOUT_S)
    return [
        Finding(
            source=source,
            destination=destination,
            network=network,
            address=pair.destination,
            expected=expected,
            rtt_s=answers[pair],
        )
        for pair, source, destination, network, expected in questions
    ]


async def example_plan(client: netweft_client.AsyncClient, plan: scenario.Scenario) -> list[str]:
    """Return what one more attach to the first network would do, as command lines."""
    network = plan.networks[0]
    found = await client.plan_attach(
        [
            netweft_client.AttachItem(
                endpoint=netweft_client.EndpointSpec(network=network.name, name="one-more"),
                sandbox=netweft_client.SandboxSpec(container_id="one-more", host=network.host),
            )
        ]
    )
    return [line for one in found for line in plans.lines(one.steps)]


async def take_timings(client: netweft_client.AsyncClient) -> Timings:
    """Attach and detach on a network of its own, into namespaces that exist, and remove it again."""
    network, host = "timed", scenario.HOSTS[0]
    await client.create_network(
        network, driver="bridge", host=host, subnets=[netweft_client.SubnetSpec(subnet=TIMED_SUBNET)]
    )
    names = [f"t{number}" for number in range(BATCH)]
    sandboxes = [
        await client.create_sandbox(netweft_client.SandboxSpec(container_id=name, host=host)) for name in names
    ]
    items = [
        netweft_client.AttachItem(endpoint=netweft_client.EndpointSpec(network=network, name=name), sandbox=sandbox.id)
        for name, sandbox in zip(names, sandboxes, strict=True)
    ]
    singles = []
    for item in items[:SINGLE_ATTACHES]:
        before = time.perf_counter()
        await client.attach_endpoint(item.endpoint, item.sandbox)
        singles.append(time.perf_counter() - before)
    await _detach(client, network, names[:SINGLE_ATTACHES])
    before = time.perf_counter()
    for result in await client.attach_endpoints(items):
        if isinstance(result, errors.NetweftError):
            raise result
    attached = time.perf_counter()
    await _detach(client, network, names)
    detached = time.perf_counter()
    for sandbox in sandboxes:
        await client.delete_sandbox(sandbox.id)
    await client.delete_network(network)
    return Timings(
        attach_p50_ms=statistics.median(singles) * 1e3,
        attach_batch_ms_each=(attached - before) / BATCH * 1e3,
        detach_batch_ms_each=(detached - attached) / BATCH * 1e3,
    )


async def remove(client: netweft_client.AsyncClient, plan: scenario.Scenario) -> None:
    """Detach all containers, remove their sandboxes, and delete the networks."""
    items = [
        netweft_client.DetachItem(endpoint=container.name, network=network.name, delete_sandbox=True)
        for container, network in plan.destinations
    ]
    for result in await client.detach_endpoints(items):
        if result is not None:
            raise result
    for network in plan.networks:
        await client.delete_network(network.name)


async def _detach(client: netweft_client.AsyncClient, network: str, names: Sequence[str]) -> None:
    for result in await client.detach_endpoints(
        netweft_client.DetachItem(endpoint=name, network=network) for name in names
    ):
        if result is not None:
            raise result


def traces(space: Path) -> frozenset[str]:
    """Return what can be seen of containers in a host's namespace: links and nftables tables."""
    seen = netns.call(space, lambda: (rtnl.links(), rtnl.tables()))
    return frozenset(
        itertools.chain((f"link {link.name}" for link in seen[0]), (f"nftables table {one.name}" for one in seen[1]))
    )


def _difference(before: Mapping[Path, frozenset[str]], after: Mapping[Path, frozenset[str]]) -> Iterator[str]:
    for space, seen in after.items():
        yield from (f"{one} in {space.name}" for one in sorted(seen - before[space]))
