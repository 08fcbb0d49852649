"""Attach and detach for a long time, the agent dying now and then: nothing is left, and nothing grows.

A few hundred by default. Ten thousand take twenty minutes on two busy processors: NETWEFT_LONG=1.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
import os
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import netweft_client
import pytest
from netweft_client import AttachItem, DetachItem, EndpointSpec, PublishedPort, SandboxSpec
from netweft_common import errors

from tests.e2e import support
from tests.support.netns import require_tool

pytestmark = [pytest.mark.e2e, pytest.mark.netns]

LONG = os.environ.get("NETWEFT_LONG") == "1"
CYCLES = 10_000 if LONG else 300
KILLS = 40 if LONG else 4
CYCLES_ALIVE = 5_000 if LONG else 300
WARM_UP = 0.5
"""Part of the cycles after which sizes are taken for those that shall stay.

A controller remembers its last 16,384 writes, eight a cycle: until then it grows, and the short run ends before.
"""
MOST_GROWTH = 1.05 if LONG else 1.10
SIZES_OF = ("store", "ipam", "controller", "agent-h1")
SEED = 20_261_128
PATIENCE_S = 60.0
AT_ONCE = (1, 1, 2, 5, 20)
AT_A_TIME = 4
"""Calls of a caller whose endpoints are there at a time."""


@dataclasses.dataclass(frozen=True, slots=True)
class Size:
    """What a process has: resident memory in KiB (proc(5), VmRSS), descriptors and threads."""

    rss_kib: int
    descriptors: int
    threads: int


def sizes(cluster: support.Cluster) -> dict[str, Size]:
    return {name: _size(cluster.pid(name)) for name in SIZES_OF}


def _size(pid: int) -> Size:
    status = dict(re.findall(r"(\w+):\s+(\d+)", Path(f"/proc/{pid}/status").read_text()))
    return Size(int(status["VmRSS"]), len(os.listdir(f"/proc/{pid}/fd")), int(status["Threads"]))  # noqa: PTH208


MOST_THREADS = 3


def _grown(warm: dict[str, Size], now: dict[str, Size]) -> dict[str, int]:
    """Return who has more descriptors than before, and how many."""
    return {name: n for name in SIZES_OF if (n := now[name].descriptors - warm[name].descriptors) > 0}


class Churn:
    """Callers who attach and detach, and ask again until they are told that it is done.

    Args:
        cluster: Whom to ask.
        name: In the names of all they make.
        workers: How many there are.
    """

    def __init__(self, cluster: support.Cluster, name: str, *, workers: int = 3) -> None:
        self._cluster = cluster
        self._name = name
        self._workers = workers
        self._numbers = itertools.count()
        self._done: collections.deque[str] = collections.deque()
        self.retries = 0

    @property
    def done(self) -> int:
        """How many were attached so far."""
        return len(self._done)

    def run(self, cycles: int) -> None:
        """Attach so often, and detach all of it."""
        share = [cycles // self._workers + (one < cycles % self._workers) for one in range(self._workers)]
        with concurrent.futures.ThreadPoolExecutor(self._workers) as pool:
            for work in [pool.submit(self._work, one, count) for one, count in enumerate(share)]:
                work.result()

    def _work(self, worker: int, cycles: int) -> None:
        rng = random.Random(f"{SEED}/{self._name}/{worker}")
        there: list[list[DetachItem]] = []
        with self._cluster.client(timeout_s=10.0) as client:
            while cycles > 0:
                size = min(rng.choice(AT_ONCE), cycles)
                cycles -= size
                there.append(self._attach(client, [self._item(rng) for _ in range(size)]))
                if len(there) > AT_A_TIME:
                    self._detach(client, there.pop(rng.randrange(len(there))))
            for gone in there:
                self._detach(client, gone)

    def _item(self, rng: random.Random) -> AttachItem:
        network, name = rng.choice(("front", "cross")), f"{self._name}-{next(self._numbers)}"
        ports = [PublishedPort(container_port=80)] if network == "front" and rng.random() < 0.3 else []
        return AttachItem(
            endpoint=EndpointSpec(network=network, name=name, ports=ports),
            sandbox=SandboxSpec(container_id=name, host="h1"),
        )

    def _attach(self, client: netweft_client.Client, items: list[AttachItem]) -> list[DetachItem]:
        key = f"attach/{items[0].endpoint.name}"
        self._insist(lambda: client.attach_endpoints(items, request_id=key))
        self._done.extend(item.endpoint.name for item in items)
        return [
            DetachItem(endpoint=item.endpoint.name, network=item.endpoint.network, delete_sandbox=True)
            for item in items
        ]

    def _detach(self, client: netweft_client.Client, items: list[DetachItem]) -> None:
        self._insist(lambda: client.detach_endpoints(items, request_id=f"detach/{items[0].endpoint}"))

    def _insist(self, ask: Callable[[], Sequence[object]]) -> None:
        """Ask until nothing of the answer is a failure that passes.

        Raises:
            NetweftError: A failure that does not pass, or one that did not.
        """
        ends_at = time.monotonic() + PATIENCE_S
        while True:
            try:
                failures = [one for one in ask() if isinstance(one, errors.NetweftError)]
            except errors.NetweftError as error:
                failures = [error]
            for failure in failures:
                if not isinstance(failure, errors.Unavailable | errors.Conflict) or time.monotonic() > ends_at:
                    raise failure
            if not failures:
                return
            self.retries += 1
            time.sleep(0.02)  # the next try is another moment of the outage


class Killer:
    """Kills the agent at random moments until it has done so often enough, or is told to stop."""

    def __init__(self, cluster: support.Cluster, churn: Churn, at: list[int]) -> None:
        self._cluster = cluster
        self._churn = churn
        self._at = at
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="killer")
        self.kills = 0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        rng = random.Random(SEED)
        for cycle in self._at:
            while self._churn.done < cycle and not self._stop.wait(0.005):
                pass
            if self._stop.wait(rng.uniform(0, 0.05)):
                return
            self._cluster.kill("agent-h1")
            self._cluster.start("agent-h1")
            self.kills += 1


@pytest.fixture(scope="module")
def cluster():
    for tool in ("ip", "bridge", "nft"):
        require_tool(tool)
    with support.running("h1", environ={**support.QUICK, **support.NONE_AHEAD}) as cluster:
        with cluster.client() as client:
            client.create_network("front", host="h1")
            client.create_network("cross", driver="overlay")
            for network in ("front", "cross"):
                box = SandboxSpec(container_id=f"keeper-{network}", host="h1")
                client.attach_endpoint(EndpointSpec(network=network, name="keeper"), box)
        assert [] == support.settled(cluster)
        yield cluster


def leases(client) -> set[tuple[str, str]]:
    return {(str(one.address), one.owner.key) for pool in client.list_pools() for one in client.list_leases(pool.id)}


def files(cluster: support.Cluster) -> list[str]:
    return sorted(str(path) for path in cluster.agent_dir("h1").rglob("*"))


@pytest.mark.timeout(7200 if LONG else 120)
def test_ten_thousand_attaches_and_detaches_with_a_dying_agent_leave_nothing(cluster):
    with cluster.client() as client:
        bare = support.kernel(cluster, handles=False), files(cluster), leases(client)
    churn = Churn(cluster, "killed")
    kills = sorted(random.Random(SEED).sample(range(CYCLES), KILLS))

    with Killer(cluster, churn, kills) as killer:
        churn.run(CYCLES)
    left = support.settled(cluster)

    assert [] == left
    print(f"{churn.done} cycles, {killer.kills} kills, {churn.retries} retries")
    assert (CYCLES, KILLS) == (churn.done, killer.kills)
    with cluster.client() as client:
        assert bare == (support.kernel(cluster, handles=False), files(cluster), leases(client))
        assert {"keeper"} == {one.name for one in client.list_endpoints()}
        assert {"keeper-front", "keeper-cross"} == {one.container_id for one in client.list_sandboxes()}


@pytest.mark.timeout(7200 if LONG else 120)
def test_attaching_and_detaching_makes_no_process_grow(cluster):
    churn = Churn(cluster, "grown")
    churn.run(int(CYCLES_ALIVE * WARM_UP))
    warm = sizes(cluster)

    churn.run(CYCLES_ALIVE - int(CYCLES_ALIVE * WARM_UP))
    left = support.settled(cluster)
    # What a caller of a moment ago had open takes a moment to be closed.
    after = support.wait_until(lambda: sizes(cluster), lambda now: not _grown(warm, now))

    print({name: (warm[name], after[name]) for name in SIZES_OF})
    assert [] == left
    # gRPC's own come and go by ones.
    assert {} == {name: n for name in SIZES_OF if (n := after[name].threads - warm[name].threads) > MOST_THREADS}
    assert {} == _grown(warm, after)
    grown = {name: after[name].rss_kib / warm[name].rss_kib for name in SIZES_OF if name != "store"}
    assert {} == {name: times for name, times in grown.items() if times > MOST_GROWTH}
