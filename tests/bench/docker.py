"""Works `docker-connect`, `docker-disconnect` and `docker-run-32`: ours as Docker's plugin against Docker's own bridge.

One dockerd, in the namespace that plays the host of a stack whose store syncs every write to disk. Docker is asked over
its API, whose client's program would add the same to both; of 32 containers at once, all are run by that program.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench import figures
from tests.bench.attaching import Table, running_stack
from tests.support import docker, images

WORKS = ("docker-connect", "docker-disconnect", "docker-run-32")
CONTAINERS = 8
ROUNDS = 8
WARM = 1
AT_ONCE = 32
RUNS = 10


def run(works: set[str]) -> Table:
    """Time the works asked for, with Docker's bridge in the same run, in turn; nothing where there is no dockerd."""
    table: Table = {name: {} for name in WORKS if name in works}
    if shutil.which("dockerd") is None:
        return table
    with running_stack() as running, tempfile.TemporaryDirectory() as folder:
        plan = running.layout
        space, plugin = plan.netns(plan.hosts[0]), plan.docker_socket(plan.hosts[0])
        assert space is not None
        assert plugin is not None
        with docker.daemon(space, plugins=plugin.parent) as daemon:
            daemon("load", "-i", str(images.busybox(Path(folder))))
            daemon("network", "create", "-d", "netweft", "--ipam-driver", "netweft", "ours")
            daemon("network", "create", "--subnet", "10.98.0.0/16", "theirs")
            for network in NETWORKS.values():
                # In use: else the first and the last endpoint of ours make and remove what Docker keeps.
                daemon("run", "-d", "--name", f"in-{network}", "--network", network, images.NAME)
            took: dict[tuple[str, str], list[float]] = {}
            if works & {"docker-connect", "docker-disconnect"}:
                _connect(daemon, took)
            if "docker-run-32" in works:
                _run(daemon, took)
            daemon("rm", "-f", *(f"in-{network}" for network in NETWORKS.values()))
    for (work, who), times in took.items():
        if work in table:
            table[work][who] = figures.of(times).as_json()
    if "docker-run-32" in table:
        # Of rounds that differ by a fifth the sums tell more than the medians.
        ours, theirs = (sum(took["docker-run-32", who]) for who in NETWORKS)
        table["docker-run-32"]["ours, part of docker's"] = {"times": round(ours / theirs, 3)}
    return table


NETWORKS = {"ours": "ours", "docker's bridge": "theirs"}


def _connect(daemon: docker.Daemon, took: dict[tuple[str, str], list[float]]) -> None:
    names = [f"c{number}" for number in range(CONTAINERS)]
    for name in names:
        daemon("run", "-d", "--name", name, images.NAME)
    with contextlib.closing(_Api(daemon.host.removeprefix("unix://"))) as api:
        for number in range(ROUNDS + WARM):
            for who, network in NETWORKS.items():
                for verb in ("connect", "disconnect"):
                    for name in names:
                        spent = api.timed(f"/networks/{network}/{verb}", {"Container": name})
                        if number >= WARM:
                            took.setdefault((f"docker-{verb}", who), []).append(spent)
    daemon("rm", "-f", *names)


def _run(daemon: docker.Daemon, took: dict[tuple[str, str], list[float]]) -> None:
    for number in range(RUNS + WARM):
        # Whoever comes second has more of the machine's memory in use: each comes first as often.
        for who, network in list(NETWORKS.items())[:: 1 if number % 2 else -1]:
            spent = _timed(lambda network=network: _run_at_once(daemon, network))  # type: ignore[misc]  # mypy#12557
            if number >= WARM:
                took.setdefault(("docker-run-32", who), []).append(spent)
            daemon("rm", "-f", *(f"r{one}" for one in range(AT_ONCE)))


def _run_at_once(daemon: docker.Daemon, network: str) -> None:
    def one(number: int) -> str:
        return daemon("run", "-d", "--name", f"r{number}", "--network", network, images.NAME)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, range(AT_ONCE)))


def _timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


class _Api(http.client.HTTPConnection):
    """Docker's API over its socket."""

    def __init__(self, path: str) -> None:
        super().__init__("docker", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)

    def timed(self, target: str, said: object) -> float:
        """Return how many milliseconds a call took that has gone well."""
        body = json.dumps(said)
        start = time.perf_counter()
        self.request("POST", target, body=body, headers={"Content-Type": "application/json"})
        answer = self.getresponse()
        text = answer.read()
        spent = (time.perf_counter() - start) * 1e3
        if answer.status != 200:
            raise SystemExit(f"{target}: {text.decode()}")
        return spent
