"""Works `attach`, `attach-batch` and `detach-batch`: through controller, IPAM, store and agent, as a client sees it.

A stack of one host, in namespaces of its own, the store syncing every write to disk. Containers are namespaces that
exist, given by path, and their sandboxes are made before, so that the same kernel work is timed as for the floor, which
has its namespaces open too. A row of its own says what it takes when the sandbox (its record, its namespace's
descriptor, its hosts and resolv.conf) is made in the same call, another what a published port adds.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from netweft_cli import layout, stack
from netweft_client import AsyncClient, model
from netweft_common.errors import NetweftError

from tests.bench import figures, peers
from tests.support.netns import Netns

ONE_BY_ONE = 100
BATCH = 100
BATCHES = 3
RSS_AT = 500
WORKS = ("attach", "attach-batch", "detach-batch")
WITH_SANDBOX = {"attach": "attach, with its sandbox", "attach-batch": "attach-batch, with its sandbox"}
WITH_PORT = "attach, with a published port"
FIRST_PORT = 20_000
PEERS = 40
IN_MEMORY = Path("/dev/shm")  # a folder is made in it

Table = dict[str, dict[str, dict[str, float]]]


def run(works: set[str]) -> Table:
    """Time the works asked for, with floor and peers in the same run."""
    containers = [Netns(f"c{number}") for number in range(3 * ONE_BY_ONE + 2 * BATCH * BATCHES)]
    try:
        with running_stack() as running:
            mine = asyncio.run(_ours(running, containers))
    finally:
        for space in containers:
            space.close()
    table: Table = {name: {"ours": figures.of(mine[name]).as_json()} for name in WORKS if name in works}
    for name, with_sandbox in WITH_SANDBOX.items():
        if name in table:
            table[name]["ours, with its sandbox"] = figures.of(mine[with_sandbox]).as_json()
    if "attach" in table:
        table["attach"]["ours, with a published port"] = figures.of(mine[WITH_PORT]).as_json()
    floor = subprocess.run(
        [sys.executable, "-m", "tests.bench.floor", "200"], check=True, capture_output=True, text=True
    )
    for name, took in json.loads(floor.stdout).items():
        if name in table:
            table[name]["floor"] = figures.of(took).as_json()
    for peer, took in (("cni bridge + host-local", peers.cni(PEERS)), ("netavark", peers.netavark(PEERS))):
        if took and "attach" in table:
            table["attach"][peer] = figures.of(took["attach"]).as_json()
        if took and "detach-batch" in table:
            table["detach-batch"][f"{peer}, one by one"] = figures.of(took["detach"]).as_json()
    if "attach" in table:
        table["attach"]["agent"] = {"rss_mib": _rss_mib_seen}
    return table


_rss_mib_seen = 0.0


async def _ours(running: stack.Stack, containers: list[Netns]) -> dict[str, list[float]]:
    global _rss_mib_seen  # noqa: PLW0603  # one figure out of the middle of the run
    took: dict[str, list[float]] = {name: [] for name in (*WORKS, *WITH_SANDBOX.values(), WITH_PORT)}
    specs = [
        model.SandboxSpec(container_id=f"c{number}", namespace=model.NamespacePath(path=str(container.path)))
        for number, container in enumerate(containers)
    ]
    items = [
        model.AttachItem(endpoint=model.EndpointSpec(network="bench", name=f"e{number}"), sandbox=spec)
        for number, spec in enumerate(specs)
    ]
    async with AsyncClient(target=running.layout.controller) as client:
        await client.create_network("bench", driver="bridge", subnets=[model.SubnetSpec(subnet="10.99.0.0/16")])
        for first, name in ((0, "attach"), (ONE_BY_ONE, WITH_SANDBOX["attach"])):
            chosen = items[first : first + ONE_BY_ONE]
            if name == "attach":
                await make_sandboxes(client, specs[first : first + ONE_BY_ONE])
            for item in chosen:
                took[name].append(await attach_one(client, item.endpoint, item))
        first = 2 * ONE_BY_ONE
        await make_sandboxes(client, specs[first : first + ONE_BY_ONE])
        for number, item in enumerate(items[first : first + ONE_BY_ONE], FIRST_PORT):
            port = model.PublishedPort(container_port=80, host_port=number)
            took[WITH_PORT].append(await attach_one(client, dataclasses.replace(item.endpoint, ports=(port,)), item))
        for batch in range(2 * BATCHES):
            first = 3 * ONE_BY_ONE + batch * BATCH
            name = "attach-batch" if batch < BATCHES else WITH_SANDBOX["attach-batch"]
            if name == "attach-batch":
                await make_sandboxes(client, specs[first : first + BATCH])
            start = time.perf_counter()
            results = await client.attach_endpoints(items[first : first + BATCH])
            took[name].append((time.perf_counter() - start) * 1e3 / BATCH)
            all_well(results)
            if first + BATCH >= RSS_AT and not _rss_mib_seen:
                _rss_mib_seen = _rss_mib(running)
        for first in range(0, len(items), BATCH):
            gone = [model.DetachItem(endpoint=f"e{n}", network="bench") for n in range(first, first + BATCH)]
            start = time.perf_counter()
            answers = await client.detach_endpoints(gone)
            took["detach-batch"].append((time.perf_counter() - start) * 1e3 / BATCH)
            all_well(answers)
    return took


async def attach_one(client: AsyncClient, endpoint: model.EndpointSpec, item: model.AttachItem) -> float:
    """Attach an endpoint to the item's sandbox, and return how long it took, in milliseconds."""
    start = time.perf_counter()
    await client.attach_endpoint(endpoint, item.sandbox)
    return (time.perf_counter() - start) * 1e3


async def make_sandboxes(client: AsyncClient, specs: list[model.SandboxSpec]) -> None:
    """Make sandboxes, one after the other."""
    for spec in specs:
        await client.create_sandbox(spec)


@contextlib.contextmanager
def folders() -> Iterator[Path]:
    """Make a run directory in memory, as /run is on a host, with the store's files on disk, where they are synced."""
    with (
        tempfile.TemporaryDirectory(prefix="netweft-bench-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder,
        tempfile.TemporaryDirectory(prefix="netweft-bench-store-") as disk,
    ):
        run_dir = Path(folder) / "run"
        run_dir.mkdir()
        (run_dir / "store").symlink_to(disk)
        yield run_dir


@contextlib.contextmanager
def running_stack(*hosts: str) -> Iterator[stack.Stack]:
    """Run a stack of some hosts, by default of one; what it leaves behind is an error."""
    with folders() as run_dir:
        running = stack.Stack(layout.plan(run_dir, names=hosts or ("host1",)))
        try:
            running.up()
            running.wait_for_hosts()
            yield running
        finally:
            left = running.down()
        if left:
            raise SystemExit(f"the stack left behind: {left.lines}")


def all_well(results: object) -> None:
    """Raise the first failure of a batch."""
    assert isinstance(results, list)
    for result in results:
        if isinstance(result, NetweftError):
            raise result


def _rss_mib(running: stack.Stack) -> float:
    """Resident memory of the agent, in MiB (proc(5), VmRSS)."""
    agent = running.processes.find(running.layout.names[-1])
    assert agent is not None, "the agent runs"
    status = Path(f"/proc/{agent.pid}/status").read_text()
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    return round(int(kib) / 1024, 1)
