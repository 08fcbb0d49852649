"""Work `scale-1000`: a controller with 1,000 hosts and 100,000 endpoints, the hosts simulated (tests/scale).

Each host is in ten overlay networks of four hosts each, chosen by lot, with ten endpoints in each; and one network is
on two hundred hosts. Hosts have their turns by lot too, so that no process that simulates some of them has more to
do than the others. Most endpoints are attached a host at a time, several hosts side by side: that gives the rate, and
how long the hosts take from then until all have heard of all. The rest comes at 200 a second, in small batches, while
single attaches to the wide network show how long it takes until the entry is in the kernel of each other host, from the
moment the call is made: propagation.

All runs on this machine, hosts included, so a busy one shows less: each process's share of a processor is told too, and
where they add up to all there are, what waits is the machine. The hosts, which would be other machines, give way to the
services: they run at a lower priority (nice 10). NETWEFT_BENCH_HOSTS, NETWEFT_BENCH_ENDPOINTS and
NETWEFT_BENCH_RATE give another size and another pace.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import random
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from netweft_client import AsyncClient, model
from netweft_common.errors import Unavailable

from tests.bench import attaching, figures
from tests.scale import services

WORKS = ("scale-1000",)
NETWORKS_OF_HOST = 10
HOSTS_OF_NETWORK = 4
WIDE_HOSTS = 200
HOSTS_OF_WORKER = 250
NICE = 10
AT_ONCE = 4
RATE = int(os.environ.get("NETWEFT_BENCH_RATE", "200"))
PACED_S = 20.0
PROBES = 60
RESYNCS = 5
ASKED_AGAIN = 5
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large a cluster is."""

    hosts: int
    endpoints: int

    @property
    def each(self) -> int:
        """Endpoints of a network on a host."""
        return max(1, self.endpoints // (self.hosts * NETWORKS_OF_HOST))

    @property
    def wide(self) -> int:
        """Hosts of the wide network."""
        return min(WIDE_HOSTS, self.hosts)


def run(works: set[str]) -> attaching.Table:
    """Time the work asked for."""
    del works
    size = Size(
        hosts=int(os.environ.get("NETWEFT_BENCH_HOSTS", "1000")),
        endpoints=int(os.environ.get("NETWEFT_BENCH_ENDPOINTS", "100000")),
    )
    with services.running(appendfsync="always") as running, contextlib.ExitStack() as stack:
        workers = range(0, size.hosts, HOSTS_OF_WORKER)
        for first in workers:
            count = min(HOSTS_OF_WORKER, size.hosts - first)
            command = [sys.executable, "-m", "tests.scale.worker", "--folder", str(running.folder)]
            command += ["--first", str(first), "--count", str(count), "--nice", str(NICE)]
            process = services.spawn(command, running.folder / f"worker{first}.log")
            stack.callback(services.end, process, f"worker {first}")
            running.pids[f"worker{first}"] = process.pid
        return {"scale-1000": asyncio.run(_Run(running, size, list(workers)).all())}


class _Run:
    """One run over a cluster that is up."""

    def __init__(self, running: services.Services, size: Size, workers: list[int]) -> None:
        self._running = running
        self._size = size
        self._firsts = workers
        self._workers: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._networks: list[list[int]] = []
        """Networks of each host, by number."""
        self._order = random.Random(4).sample(range(size.hosts), size.hosts)
        """Hosts in the order in which they get their endpoints; the first ones are those of the wide network."""
        self._made = 0
        self._asked_again = 0
        self._shares: dict[str, float] = {}
        """Of a processor, while propagation was looked at."""

    async def all(self) -> dict[str, dict[str, float]]:
        """Return the table's columns."""
        async with contextlib.AsyncExitStack() as stack:
            for first in self._firsts:
                path = self._running.folder / f"worker{first}.sock"
                self._workers.append(await asyncio.open_unix_connection(path, limit=1 << 28))
                stack.push_async_callback(_close, self._workers[-1][1])
            client = await stack.enter_async_context(AsyncClient(target=self._running.controller, timeout_s=60))
            empty_mib = rss_mib(self._running.pids["controller"])
            await self._make_networks(client)
            batches = list(self._batches())
            first_paced = len(batches) - min(int(RATE * PACED_S / self._size.each), len(batches) // 5)
            filled = await self._fill(client, batches[:first_paced])
            filled["hosts behind s"] = await self._catch_up(client)
            told, missing = await self._propagation(client, batches[first_paced:])
            resyncs = [
                await self._resync(number) for number in random.Random(1).sample(range(self._size.hosts), RESYNCS)
            ]
            sizes = [await self._ask(worker, {"do": "size"}) for worker in self._workers]
            full_mib = rss_mib(self._running.pids["controller"])
        return {
            "cluster": {
                "hosts": self._size.hosts,
                "endpoints": self._made,
                "calls asked again": self._asked_again,
                "objects on hosts": sum(one["objects"] for one in sizes),
                "resources": sum(one["resources"] for one in sizes),
            },
            "attach": filled,
            f"propagation at {RATE}/s": figures.of(told).as_json(),
            "propagation": {
                "entries": len(told),
                "missing": missing,
                **{name: round(one, 2) for name, one in self._shares.items()},
            },
            "controller": {
                "rss_mib": full_mib,
                "rss_mib before": empty_mib,
                "kib an endpoint": round((full_mib - empty_mib) * 1024 / self._made, 2),
            },
            "resync of a host": figures.of([1e3 * one for one in resyncs]).as_json(),
        }

    async def _make_networks(self, client: AsyncClient) -> None:
        """Make all networks, and choose their hosts."""
        self._networks = [[] for _ in range(self._size.hosts)]
        count = 0
        for slot in range(NETWORKS_OF_HOST):
            order = random.Random(slot).sample(range(self._size.hosts), self._size.hosts)
            for start in range(0, len(order), HOSTS_OF_NETWORK):
                for host in order[start : start + HOSTS_OF_NETWORK]:
                    self._networks[host].append(count)
                count += 1
        for start in range(0, count, 16):
            await asyncio.gather(
                *(
                    client.create_network(
                        f"n{number}",
                        driver="overlay",
                        subnets=[model.SubnetSpec(subnet=f"10.{number // 256}.{number % 256}.0/24")],
                    )
                    for number in range(start, min(start + 16, count))
                )
            )
        await client.create_network("wide", driver="overlay", subnets=[model.SubnetSpec(subnet="172.16.0.0/16")])

    def _batches(self) -> Iterator[list[model.AttachItem]]:
        """Yield what is to be attached: one network on one host a batch, hosts one after the other."""
        for place, host in enumerate(self._order):
            if place < self._size.wide:
                yield [item("wide", host, f"w{host}")]
            for network in self._networks[host]:
                yield [item(f"n{network}", host, f"h{host}-{number}") for number in range(self._size.each)]

    async def _fill(self, client: AsyncClient, batches: list[list[model.AttachItem]]) -> dict[str, float]:
        """Attach in calls of a hundred or so, some at once; returns the rate and what it cost the controller."""
        calls: list[list[model.AttachItem]] = [[]]
        for batch in batches:
            if len(calls[-1]) + len(batch) > attaching.BATCH:
                calls.append([])
            calls[-1] += batch
        waiting = iter(calls)
        started_s, cpu_s = time.monotonic(), self._cpu_s()
        progress = _Progress(len(calls))

        async def attach() -> None:
            for call in waiting:
                await self._attach(client, call)
                progress.done(self._made)

        await asyncio.gather(*(attach() for _ in range(AT_ONCE)))
        took_s = time.monotonic() - started_s
        spent = {name: after - cpu_s[name] for name, after in self._cpu_s().items()}
        return {
            "per second": round(self._made / took_s, 1),
            **{f"{name} cpu ms each": round(1e3 * one / self._made, 3) for name, one in spent.items()},
            **{f"{name} cpu share": round(one / took_s, 3) for name, one in spent.items()},
        }

    async def _catch_up(self, client: AsyncClient) -> float:
        """Wait until all hosts have all that was attached as fast as it would go; returns seconds."""
        started_s = time.monotonic()
        names = iter(["wide", *(f"n{number}" for number in range(1 + max(max(one) for one in self._networks)))])

        async def wait() -> None:
            for name in names:
                behind = await client.wait_network(name, wait_s=60)
                assert not behind, f"network {name}: {len(behind)} hosts are behind after a minute"

        await asyncio.gather(*(wait() for _ in range(16)))
        return round(time.monotonic() - started_s, 1)

    async def _propagation(self, client: AsyncClient, paced: list[list[model.AttachItem]]) -> tuple[list[float], int]:
        """Attach at a steady rate, and single ones to the wide network; returns milliseconds to others, and misses."""
        for worker in self._workers:
            await self._ask(worker, {"do": "watch"})
        called_s: dict[str, float] = {}
        homes = random.Random(2).sample(self._order[: self._size.wide], min(PROBES, self._size.wide))

        async def probes() -> None:
            for place, host in enumerate(homes):
                start_s = time.monotonic()
                probe = item("wide", host, f"p{place}")
                attached = await client.attach_endpoint(probe.endpoint, probe.sandbox)
                called_s[str(attached.endpoint.mac_address)] = start_s
                await asyncio.sleep(max(0.0, start_s + PACED_S / PROBES - time.monotonic()))

        async def load() -> None:
            next_s = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                for batch in paced:
                    tasks.create_task(self._attach(client, batch))
                    next_s += len(batch) / RATE
                    await asyncio.sleep(max(0.0, next_s - time.monotonic()))

        started_s, spent_s = time.monotonic(), self._cpu_s()
        await asyncio.gather(probes(), load())
        took_s = time.monotonic() - started_s
        self._shares = {f"{name} cpu share": (one - spent_s[name]) / took_s for name, one in self._cpu_s().items()}
        self._made += len(homes)
        await asyncio.sleep(2.0)  # what has not come by then counts as missing
        told: list[float] = []
        for worker in self._workers:
            for _, mac, at_s in await self._ask(worker, {"do": "written"}):
                if mac in called_s:
                    told.append(1e3 * (at_s - called_s[mac]))
        return told, len(homes) * (self._size.wide - 1) - len(told)

    async def _attach(self, client: AsyncClient, batch: list[model.AttachItem]) -> None:
        """Attach, asking again as callers do where a host was too busy to answer in time."""
        request_id = uuid.uuid4().hex
        for _ in range(ASKED_AGAIN):
            results = await client.attach_endpoints(batch, request_id=request_id)
            if not any(isinstance(one, Unavailable) for one in results):
                break
            self._asked_again += 1
        attaching.all_well(results)
        self._made += len(batch)

    async def _resync(self, host: int) -> float:
        place = max(index for index, first in enumerate(self._firsts) if first <= host)
        return float(await self._ask(self._workers[place], {"do": "resync", "host": host}))

    async def _ask(self, worker: tuple[asyncio.StreamReader, asyncio.StreamWriter], order: dict[str, Any]) -> Any:
        reader, writer = worker
        writer.write(json.dumps(order).encode() + b"\n")
        return json.loads(await reader.readline())

    def _cpu_s(self) -> dict[str, float]:
        """Return what each service has worked, and all simulated hosts together."""
        spent = {name: cpu_s(pid) for name, pid in self._running.pids.items()}
        hosts = sum(spent.pop(name) for name in [*spent] if name.startswith("worker"))
        return {**spent, "simulated hosts": hosts}


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


class _Progress:
    """Says on stderr how far the work is, every so often: it takes minutes."""

    def __init__(self, calls: int) -> None:
        self._calls = calls
        self._done = 0
        self._started_s = time.monotonic()

    def done(self, endpoints: int) -> None:
        """Take note of one call more."""
        self._done += 1
        if self._done % max(1, self._calls // 20) == 0:
            took_s = time.monotonic() - self._started_s
            sys.stderr.write(f"scale-1000: {endpoints} attached in {took_s:.0f} s\n")


def item(network: str, host: int, name: str) -> model.AttachItem:
    """Return what is asked for an endpoint of a container of its own."""
    return model.AttachItem(
        endpoint=model.EndpointSpec(network=network, name=name),
        sandbox=model.SandboxSpec(container_id=f"{network}-{name}", host=f"h{host}"),
    )


def cpu_s(pid: int) -> float:
    """Return the seconds that a process has worked (proc(5), stat)."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) * _TICK_S


def rss_mib(pid: int) -> float:
    """Return the resident memory of a process (proc(5), VmRSS)."""
    status = Path(f"/proc/{pid}/status").read_text()
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    return round(int(kib) / 1024, 1)
