"""One network of containers that Docker, Podman and containerd run on two hosts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess

import pytest

from tests.e2e import support
from tests.support import docker, engines, images
from tests.support.engines import NETWEFT, address, server, who

pytestmark = [pytest.mark.e2e, pytest.mark.netns]
SUBNET = "10.71.0.0/24"


class Docker:
    """Docker, with the face that `engines` gives the others."""

    def __init__(self, daemon):
        self.daemon = daemon
        named = ("-o", "netweft.network=front", "--ipam-opt", "netweft.network=front")
        daemon("network", "create", "-d", "netweft", "--ipam-driver", "netweft", *named, "--subnet", SUBNET, "front")

    def run(self, name):
        self.daemon("run", "--detach", f"--name={name}", "--network=front", images.NAME, *server(name))

    def exec(self, name, *words, check=True):
        return self.daemon("exec", name, *words) if check else self.daemon.run("exec", name, *words).stdout

    def pid(self, name):
        return int(self.daemon("inspect", "--format={{.State.Pid}}", name))

    def remove(self, name):
        self.daemon("rm", "--force", name)

    def close(self):
        self.daemon("network", "rm", "front")


@pytest.fixture(scope="module")
def places(cluster, tmp_path_factory):
    """An engine for each container, by its name: two on each host."""
    image = images.busybox(tmp_path_factory.mktemp("image"))
    with contextlib.ExitStack() as stack:
        (one, _) = cluster.layout.hosts
        daemon = stack.enter_context(
            docker.daemon(cluster.host(one.name), plugins=cluster.layout.docker_socket(one).parent)
        )
        daemon("load", "--input", str(image))
        kinds = [("h1", engines.Podman), ("h2", engines.Containerd), ("h2", engines.Podman)]
        podman1, containerd2, podman2 = stack.enter_context(engines.running(cluster, kinds))
        docker1 = stack.enter_context(contextlib.closing(Docker(daemon)))
        yield {"docker1": docker1, "podman1": podman1, "containerd2": containerd2, "podman2": podman2}


@pytest.fixture
def running(places, client):
    """All containers, and the address of each."""
    with contextlib.ExitStack() as stack:
        for name, engine in places.items():
            engine.run(name)
            stack.callback(engine.remove, name)
        yield {name: address(engine, name) for name, engine in places.items()}


def reached(places, addresses):
    """Return who answers each at each address: himself and all others, where all is well."""
    return {(one, other): who(places[one], one, at) for one in places for other, at in addresses.items()}


def all_of(addresses):
    return {(one, other): other for one in addresses for other in addresses}


def test_all_reach_each_other_and_one_list_has_the_leases_of_all(places, running, cluster):
    environ = {**os.environ, "NETWEFT_RUN_DIR": str(cluster.layout.run_dir)}
    printed = subprocess.run(
        [NETWEFT, "lease", "ls", "-o", "json"], env=environ, capture_output=True, text=True, check=True
    ).stdout

    assert all_of(running) == reached(places, running)
    leased = [one["address"].partition("/")[0] for one in json.loads(printed)]
    assert sorted(["10.71.0.1", *running.values()]) == sorted(leased)


def test_a_network_is_not_taken_from_under_containers_of_another_engine(places, running, client):
    done = places["docker1"].daemon.run("network", "rm", "front")

    assert done.returncode
    assert client.get_network("front")


def test_a_container_that_is_killed_is_missed_by_nobody_else(places, running, client):
    os.kill(places["podman2"].pid("podman2"), signal.SIGKILL)
    support.wait_until(lambda: len(list(client.list_endpoints())), lambda count: count == len(places) - 1)
    others = {name: at for name, at in running.items() if name != "podman2"}
    left = {name: engine for name, engine in places.items() if name != "podman2"}

    assert all_of(others) == reached(left, others)
    assert [""] * len(left) == [who(engine, name, running["podman2"]) for name, engine in left.items()]


def test_traffic_goes_on_while_agents_are_dead(places, running, cluster):
    with cluster.dead("agent-h1"), cluster.dead("agent-h2"):
        during = reached(places, running)

    assert all_of(running) == during
