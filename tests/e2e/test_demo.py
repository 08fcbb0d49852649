"""The demo, and its containers' connections while processes die and come back."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import netweft_client
import pytest
from netweft_cli import demo, layout, processes, reach, scenario, stack

from tests.e2e import support
from tests.support import logs

pytestmark = [pytest.mark.e2e, pytest.mark.netns]

NETWEFT = Path(sys.executable).parent / "netweft"
PLAN = scenario.standard()


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Two hosts with the demo's containers on them."""

    stack: stack.Stack
    placed: list[demo.Placed]

    def table(self) -> dict[tuple[str, str, str], bool]:
        found = demo.measure(PLAN, self.placed, self.stack.layout)
        return {(one.source, one.destination, one.network): one.reached for one in found}

    def kill(self, name: str) -> None:
        process = self.stack.processes.find(name)
        assert process is not None
        processes.end(process.pid, grace_s=0, kill=True)

    def address(self, name: str, network: str) -> str:
        return next(one.addresses[network] for one in self.placed if one.container.name == name)

    def netns(self, name: str) -> Path:
        return next(one.netns for one in self.placed if one.container.name == name)


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


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # A unix socket's path is short: pytest's own directories may be too long.
    folder = Path(tempfile.mkdtemp(prefix="nw-"))
    running = stack.Stack(layout.plan(folder / "run", names=scenario.HOSTS))
    try:
        with logs.kept(running.layout.run_dir):
            running.up()
            running.wait_for_hosts()
            made = Cluster(running, asyncio.run(set_up(running.layout)))
            # An attach is answered before other hosts have heard of it; whoever is killed then has not either.
            support.wait_until(made.table, EXPECTED.__eq__)
            yield made
    finally:
        left = running.down()
        shutil.rmtree(folder)
    assert left.lines == ()


async def set_up(planned: layout.Layout) -> list[demo.Placed]:
    async with netweft_client.AsyncClient(planned.controller, ipam_target=planned.ipam) as client:
        await demo.create_networks(client, PLAN)
        return await demo.attach(client, PLAN)


def test_who_must_talk_talks_and_nobody_else(cluster):
    assert cluster.table() == EXPECTED


@pytest.mark.parametrize("name", ["agent-hostA", "agent-hostB", "controller", "ipam", "store"])
def test_a_killed_process_takes_nobody_down_and_comes_back(cluster, name):
    cluster.kill(name)
    without = cluster.table()
    cluster.stack.start(name)
    cluster.stack.wait_for_hosts()

    assert without == EXPECTED
    assert cluster.table() == EXPECTED


def test_two_agents_restart_without_a_lost_ping(cluster):
    across = reach.Pair(source=cluster.netns("x1"), destination=cluster.address("y1", "overlay"))
    beside = reach.Pair(source=cluster.netns("a1"), destination=cluster.address("a2", "bridge-a"))

    with reach.Pinger(across, interval_s=0.01) as over_hosts, reach.Pinger(beside, interval_s=0.01) as over_bridge:
        for host in cluster.stack.layout.hosts:
            cluster.stack.processes.stop(f"agent-{host.name}", grace_s=10)
        for host in cluster.stack.layout.hosts:
            cluster.stack.start(f"agent-{host.name}")
        cluster.stack.wait_for_hosts()

    assert min(over_hosts.loss.sent, over_bridge.loss.sent) > 50
    assert (support.unanswered(over_hosts), support.unanswered(over_bridge)) == ([], [])


def test_all_processes_killed_at_once_come_back_to_the_same(cluster):
    for name in cluster.stack.layout.names:
        cluster.kill(name)

    cluster.stack.up()
    cluster.stack.wait_for_hosts()

    assert cluster.table() == EXPECTED


def test_a_container_attached_after_a_restart_is_reached_from_the_other_host(cluster):
    cluster.kill("controller")
    cluster.stack.start("controller")

    async def attach_and_ask() -> bool:
        planned = cluster.stack.layout
        async with netweft_client.AsyncClient(planned.controller, ipam_target=planned.ipam) as client:
            added = await client.attach_endpoint(
                netweft_client.EndpointSpec(network="overlay", name="late"),
                netweft_client.SandboxSpec(container_id="late", host="hostB"),
            )
            address = str(added.endpoint.addresses[0].ip)
            reached = await asyncio.to_thread(reach.reach, cluster.netns("x1"), address, timeout_s=10)
            await client.detach_endpoint("late", network="overlay", delete_sandbox=True)
            return reached

    assert asyncio.run(attach_and_ask())


def test_the_demo_ends_well_and_leaves_nothing():
    # Another one may be running on this machine; this one's folder is made beside what is named here.
    folder = Path(tempfile.mkdtemp(prefix="nw-"))
    environ = os.environ | {"NETWEFT_RUN_DIR": str(folder / "run")}

    done = subprocess.run(
        [NETWEFT, "demo", "--json"], env=environ, capture_output=True, text=True, timeout=100, check=False
    )

    report = json.loads(done.stdout)
    wrong = [pair for pair in report["pairs"] if pair["expected"] != pair["reached"]]
    assert (wrong, report["left"], done.returncode) == ([], [], 0), done.stderr
    assert len(report["pairs"]) == len(EXPECTED)
    assert any("type veth" in line for line in report["plan"])
    assert all(value > 0 for value in report["timings"].values())
    assert list(folder.iterdir()) == []
    folder.rmdir()


def test_an_interrupted_demo_leaves_nothing():
    folder = Path(tempfile.mkdtemp(prefix="nw-"))
    run_dir = folder / "run"
    child = subprocess.Popen([NETWEFT, "demo", "--run-dir", run_dir], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert child.stdout is not None
    assert select.select([child.stdout], [], [], 60)[0], "the demo says nothing"
    assert b"starting" in child.stdout.readline()

    child.send_signal(signal.SIGINT)
    said, _ = child.communicate(timeout=60)

    planned = layout.plan(run_dir, names=scenario.HOSTS)
    assert stack.leftovers(planned, processes.Table(run_dir), {}).lines == ()
    assert child.returncode == 130, said.decode()
    shutil.rmtree(folder)


WITHOUT_RIGHTS = ["setpriv", "--bounding-set", "-sys_admin,-net_admin,-sys_chroot"] if os.geteuid() == 0 else []


@pytest.mark.skipif(bool(WITHOUT_RIGHTS) and shutil.which("setpriv") is None, reason="needs setpriv of util-linux")
def test_a_user_without_rights_gets_a_namespace_or_is_told_what_is_needed():
    folder = Path(tempfile.mkdtemp(prefix="nw-"))
    command = [NETWEFT, "demo", "--json", "--no-timings", "--containers", "1", "--run-dir", folder / "run"]

    done = subprocess.run([*WITHOUT_RIGHTS, *command], capture_output=True, text=True, timeout=100, check=False)

    if done.returncode == 8:
        assert "run as root" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["ok"]
    assert not (folder / "run").exists()
    folder.rmdir()
