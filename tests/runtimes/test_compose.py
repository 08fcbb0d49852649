"""docker-compose.yml as it is started by hand: three hosts that talk, whatever is killed; by `make compose-test`."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support import docker

TOP = Path(__file__).parents[2]
PROJECT = "netweft-test"
HOSTS = ("host1", "host2", "host3")
_WAIT_S = 90.0

pytestmark = [
    pytest.mark.timeout(1500),
    pytest.mark.skipif("NETWEFT_COMPOSE" not in os.environ, reason="builds images: run it by `make compose-test`"),
]


class Compose:
    """The cluster of docker-compose.yml."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
        self._command = ["docker", "compose"] if plugin else ["docker-compose"]

    def __call__(self, *words: str, check: bool = True, timeout_s: float = 600) -> str:
        """Run docker-compose, and return what it prints."""
        done = subprocess.run(
            [*self._command, "-p", PROJECT, *words],
            cwd=TOP, env=self.environ, capture_output=True, text=True, check=False, timeout=timeout_s,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def docker(self, *words: str) -> str:
        return subprocess.run(
            ["docker", *words], env=self.environ, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    def netweft(self, *words: str, check: bool = True) -> str:
        return self("exec", "-T", "client", "netweft", *words, check=check, timeout_s=60)

    def listed(self, kind: str) -> list[dict[str, Any]]:
        return json.loads(self.netweft(kind, "ls", "-o", "json") or "[]")

    def reaches(self, host: str, netns_path: str, address: str) -> bool:
        """Return whether a container on a host reaches an address."""
        ask = "import sys, pathlib, netweft_cli.reach as r; print(r.reach(pathlib.Path(sys.argv[1]), sys.argv[2]))"
        agent = host.replace("host", "agent")
        said = self("exec", "-T", agent, "python3", "-c", ask, netns_path, address, check=False, timeout_s=60)
        return said.strip() == "True"


def wait_until(what: Callable[[], bool], why: str) -> None:
    ends = time.monotonic() + _WAIT_S
    while not what():
        assert time.monotonic() < ends, why
        time.sleep(0.5)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Compose]:
    with docker.engine() as environ:
        image = docker.base(environ)
        found = {"BASE": image, "REDIS_IMAGE": image, **environ}
        compose = Compose(found)
        try:
            compose("build", timeout_s=1200)
            compose("up", "-d")
            yield compose
        finally:
            print(compose("logs", "--no-color", "--tail=30", check=False))  # shown when something failed
            compose("down", "--volumes", "--remove-orphans", "--timeout", "5", check=False)
        mine = f"label=com.docker.compose.project={PROJECT}"
        kinds = (["container", "ls", "-a"], ["volume", "ls"], ["network", "ls"])
        left = [compose.docker(*kind, "-q", "--filter", mine) for kind in kinds]
        assert ["", "", ""] == left


@pytest.fixture(scope="module")
def containers(cluster: Compose) -> dict[str, tuple[str, str, str]]:
    """Host, namespace and address of a container on each host, by name."""

    def hosts() -> str:
        return cluster.netweft("host", "ls", "--filter", "state=ready", "-o", "name", check=False)

    wait_until(lambda: len(hosts().split()) == len(HOSTS), "not all hosts are ready")
    cluster.netweft("network", "create", "front", "-d", "overlay", "--subnet", "10.70.0.0/16")
    for number, host in enumerate(HOSTS, 1):
        cluster.netweft("attach", "front", f"c{number}", "--host", host)
    return _containers(cluster)


def _containers(cluster: Compose) -> dict[str, tuple[str, str, str]]:
    hosts = {one["id"]: one["name"] for one in cluster.listed("host")}
    addresses = {one["sandbox_id"]: one["addresses"][0].partition("/")[0] for one in cluster.listed("endpoint")}
    return {
        one["container_id"]: (hosts[one["host_id"]], one["netns_path"], addresses[one["id"]])
        for one in cluster.listed("sandbox")
        if one["id"] in addresses  # the sandbox of a detached endpoint stays
    }


def _all_talk(cluster: Compose, containers: dict[str, tuple[str, str, str]]) -> bool:
    return all(
        cluster.reaches(host, path, address)
        for host, path, _ in containers.values()
        for _, _, address in containers.values()
    )


def test_containers_on_three_hosts_reach_each_other(cluster, containers):
    assert list(HOSTS) == sorted(host for host, _, _ in containers.values())
    wait_until(lambda: _all_talk(cluster, containers), "some containers do not reach others")


@pytest.mark.parametrize("service", ["redis", "ipam", "controller1", "controller2"])
def test_what_coordinates_may_be_killed(cluster, containers, service):
    cluster("kill", "-s", "KILL", service)
    during = _all_talk(cluster, containers)
    cluster("up", "-d", "--no-deps", service)

    assert during, "traffic goes on"
    wait_until(
        lambda: "new-" in cluster.netweft("attach", "front", f"new-{service}", "--host", "host1", check=False),
        f"no attach after {service} was killed",
    )
    cluster.netweft("detach", "front", f"new-{service}")
    assert _all_talk(cluster, containers)


def test_a_host_that_dies_comes_back_with_its_containers(cluster, containers):
    cluster("kill", "-s", "KILL", "agent2")
    cluster("up", "-d", "--no-deps", "agent2")

    wait_until(lambda: _all_talk(cluster, _containers(cluster)), "host2's container is not back")
    assert _containers(cluster).keys() == containers.keys()


def test_services_run_as_nobody_and_agents_with_few_capabilities(cluster, containers):
    def status(service: str) -> dict[str, str]:
        text = cluster("exec", "-T", service, "cat", "/proc/1/status")
        return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)

    for service in ("ipam", "controller1"):
        found = status(service)
        assert ["10001"] * 4 == found["Uid"].split()
        assert 0 == int(found["CapEff"], 16)
    # CAP_DAC_OVERRIDE, CAP_NET_BROADCAST, CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN: capabilities(7)
    assert {1, 11, 12, 13, 21} == {bit for bit in range(64) if int(status("agent1")["CapEff"], 16) >> bit & 1}


@pytest.mark.parametrize("service", ["ipam", "controller1", "agent1", "client"])
def test_an_image_adds_no_more_than_200_mb_to_its_base(cluster, service):
    def size(image: str) -> int:
        return int(cluster.docker("image", "inspect", "--format", "{{.Size}}", image))

    image = cluster.docker("inspect", "--format", "{{.Image}}", cluster("ps", "-q", service).strip())
    assert 0 < size(image.strip()) - size(cluster.environ["BASE"]) <= 200_000_000
