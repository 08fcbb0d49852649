"""Killed at any step of attach, publish and detach, a full disk, a namespace that vanishes: all is there or nothing.

The steps are `netweft_common.faults.Point`. A case arms one of them, asks, finds the process dead, starts it again, and
looks at the cluster: records, leases, kernels and rules have to say the same. Then the caller asks again with the same
request id, and takes away what he got: what is there then has to be what was there before.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import netweft_client
import pytest
from netweft_cli import reach
from netweft_client import EndpointSpec, PublishedPort, SandboxSpec
from netweft_common import errors, faults
from netweft_common.faults import Point

from tests.e2e import support
from tests.support.netns import Netns, require_tool

pytestmark = [pytest.mark.e2e, pytest.mark.netns]

TIMEOUT_S = 3.0
PORT = PublishedPort(container_port=80, host_port=8080)
LIMITS = netweft_client.Bandwidth(ingress_bits_per_second=10_000_000, egress_bits_per_second=10_000_000)


@dataclasses.dataclass(frozen=True)
class Faulty:
    """A cluster of one host whose controller and agent look for faults in a file."""

    cluster: support.Cluster
    file: Path

    def arm(self, point: Point, action: str = "kill") -> None:
        fresh = self.file.with_suffix(".new")
        fresh.write_text(f"{point} {action}\n")
        fresh.replace(self.file)

    @staticmethod
    def owner(point: Point) -> str:
        """Return the process that a point is in."""
        return "agent-h1" if point.value.startswith(("kernel.", "change.", "journal.")) else "controller"

    def revive(self) -> list[str]:
        """Start what has died, and return its names."""
        names = [name for name in ("controller", "agent-h1") if self.cluster.stack.processes.find(name) is None]
        for name in names:
            self.cluster.start(name)
        return names

    def state(self) -> dict[str, object]:
        """Everything that an attach might leave, as it is now."""
        with self.cluster.client() as client:
            leases = [lease for pool in client.list_pools() for lease in client.list_leases(pool.id)]
            return {
                "endpoints": {one.name for one in client.list_endpoints()},
                "sandboxes": {one.container_id for one in client.list_sandboxes()},
                "leases": {(str(one.address), one.owner.key) for one in leases},
                "kernel": support.kernel(self.cluster, handles=False),
                "files": sorted(path.name for path in self.cluster.agent_dir("h1").rglob("*")),
            }


@pytest.fixture(scope="module")
def one_host(tmp_path_factory):
    for tool in ("ip", "bridge", "nft"):
        require_tool(tool)
    file = tmp_path_factory.mktemp("faults") / "fault"
    quick = {
        "NETWEFT_CONTROLLER_ORPHAN_GRACE": "4s",
        "NETWEFT_CONTROLLER_SETTLE_AFTER": "300ms",
        faults.VARIABLE: str(file),
    }
    with support.running("h1", environ={**support.QUICK, **support.NONE_AHEAD, **quick}) as cluster:
        with cluster.client() as client:
            client.create_network("front", host="h1")
            client.create_network("cross", driver="overlay")
            attach(client, "front", "keeper")
        assert [] == support.settled(cluster)
        yield Faulty(cluster, file)


@pytest.fixture
def faulty(one_host):
    yield one_host
    # What a failed test has left must not fail the others.
    one_host.file.unlink(missing_ok=True)
    one_host.revive()
    with one_host.cluster.client() as client:
        for endpoint in [one for one in client.list_endpoints() if one.name == "web"]:
            with contextlib.suppress(errors.Unavailable):  # then it is recorded
                client.detach_endpoint(endpoint.id, delete_sandbox=True)
    support.settled(one_host.cluster)


def attach(client, network, name, **fields):
    spec = EndpointSpec(network=network, name=name)
    if network == "front" and name == "web":
        spec = dataclasses.replace(spec, bandwidth=LIMITS, ports=[PORT])
    return client.attach_endpoint(spec, SandboxSpec(container_id=name, host="h1"), **fields)


Ask = Callable[[netweft_client.Client, str, str], object]


@dataclasses.dataclass(frozen=True, slots=True)
class Deed:
    """What a caller asks: of which network, of what is there or not, with a name and a request id."""

    network: str
    ask: Ask
    before: bool = True


def _attach(network: str) -> Deed:
    def ask(client: netweft_client.Client, name: str, key: str) -> object:
        return attach(client, network, name, request_id=key, timeout_s=TIMEOUT_S)

    return Deed(network, ask, before=False)


def _detach(network: str) -> Deed:
    def ask(client: netweft_client.Client, name: str, key: str) -> object:
        return client.detach_endpoint(name, network=network, delete_sandbox=True, request_id=key, timeout_s=TIMEOUT_S)

    return Deed(network, ask)


def _publish(*host_ports: int) -> Deed:
    ports = [dataclasses.replace(PORT, host_port=number) for number in host_ports]

    def ask(client: netweft_client.Client, name: str, key: str) -> object:
        return client.update_endpoint(name, network="front", ports=ports, request_id=key, timeout_s=TIMEOUT_S)

    return Deed("front", ask)


DEEDS = {
    "attach": _attach("front"),
    "first attach": _attach("cross"),
    "publish": _publish(8080, 8081),
    "unpublish": _publish(),
    "detach": _detach("front"),
    "last detach": _detach("cross"),
}

# Where a deed comes by. What several deeds share is killed in each, for what is half-made is another thing each time.
ROUND = (Point.CHANGE_STAGED, Point.CHANGE_EXECUTED, Point.CHANGE_KEPT)
JOINED = (Point.KERNEL_FIREWALL, Point.KERNEL_VETHS, Point.KERNEL_LINKS, Point.KERNEL_INSIDE, *ROUND)
MADE = (Point.KERNEL_PIN, Point.KERNEL_NAMESPACES, Point.KERNEL_SETTINGS, Point.KERNEL_FILES, *JOINED)
CHANGED = (Point.PUBLISH_RECORDED, Point.PUBLISH_JOINED, Point.KERNEL_PORTS, Point.KERNEL_FIREWALL, *ROUND)
UNMADE = (Point.KERNEL_DOOMED, Point.KERNEL_REAPED, Point.KERNEL_FILES, Point.KERNEL_FIREWALL, Point.KERNEL_UNPINNED)
CASES: dict[str, tuple[Point, ...]] = {
    "attach": (
        Point.ATTACH_LEASED,
        Point.ATTACH_RECORDED,
        Point.ATTACH_JOINED,
        Point.ATTACH_CONFIRMED,
        Point.KERNEL_PORTS,
        *MADE,
    ),
    "first attach": (Point.KERNEL_BRIDGES, *MADE),
    "publish": (Point.ATTACH_CONFIRMED, *CHANGED),
    "unpublish": CHANGED,
    "detach": (
        Point.DETACH_MARKED,
        Point.DETACH_LEFT,
        Point.DETACH_RELEASED,
        Point.DETACH_ENDED,
        Point.KERNEL_PORTS,
        *UNMADE,
        *ROUND,
    ),
    "last detach": (*UNMADE, *ROUND),
}
AT_START = {Point.JOURNAL_REWRITTEN}
# What others go through as well takes minutes: NETWEFT_LONG=1.
LONG = os.environ.get("NETWEFT_LONG") == "1"
LONG_ONLY = ("first attach", "unpublish", "last detach")


def _cases():
    """Yield each deed with each of its points; the first of a kind goes through all of them always."""
    for name, points in CASES.items():
        for point in points:
            if LONG or name not in LONG_ONLY or point is Point.KERNEL_BRIDGES:
                yield pytest.param(name, point, id=f"{name} {point}")


def test_no_point_is_left_out():
    assert set(Point) == {case.values[1] for case in _cases()} | AT_START


@pytest.mark.parametrize(("name", "point"), list(_cases()))
def test_a_kill_at_each_step_leaves_all_or_nothing(faulty: Faulty, name, point):
    deed, key = DEEDS[name], f"{name}/{point}"
    bare = faulty.state()
    with faulty.cluster.client() as client, faulty.cluster.client(retry_for_s=0) as impatient:
        if deed.before:
            attach(client, deed.network, "web")
            assert [] == support.settled(faulty.cluster)
        faulty.arm(point)

        with contextlib.suppress(errors.Unavailable):
            deed.ask(impatient, "web", key)
        died = support.wait_until(faulty.revive, bool)
        left = support.settled(faulty.cluster)
        there = {one.name: one for one in client.list_endpoints(f"network={deed.network}")}.get("web")
        deed.ask(client, "web", key)
        left_by_retry = support.settled(faulty.cluster)

        assert not faulty.file.exists(), f"{point} was not reached"
        assert [faulty.owner(point)] == died
        assert ([], []) == (left, left_by_retry)
        if "detach" not in name:
            made = client.get_endpoint("web", network=deed.network)
            assert there is None or there.id == made.id
            if "publish" in name:
                assert {one.host_port for one in made.ports} == ({8080, 8081} if name == "publish" else set())
            if deed.network == "front":
                box = client.get_sandbox(made.sandbox_id).sandbox
                keeper = client.get_endpoint("keeper", network="front")
                assert reach.reach(Path(box.netns_path), str(keeper.addresses[0].ip))
            client.detach_endpoint(made.id, delete_sandbox=True)
            assert [] == support.settled(faulty.cluster)
    assert bare == faulty.state()


@pytest.mark.parametrize("point", sorted(AT_START))
def test_a_kill_while_the_agent_starts_is_made_good_by_the_next_start(faulty: Faulty, point):
    bare = faulty.state()
    faulty.cluster.kill("agent-h1")
    faulty.arm(point)

    with pytest.raises(errors.Unavailable, match="ended while it started"):
        faulty.cluster.start("agent-h1")
    faulty.cluster.start("agent-h1")

    assert not faulty.file.exists()
    assert [] == support.settled(faulty.cluster)
    assert bare == faulty.state()


PAGE = 4096


class Disk:
    """The disk of the agent's state, of 256 KiB."""

    def __init__(self, state: Path) -> None:
        self._filler = state / "filler"
        self._journal = state / "journal"

    def fill(self) -> None:
        """Take all pages that are free; the journal still has what is left of its last one."""
        with self._filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"x" * PAGE):
                pass

    def fill_last_page(self) -> None:
        """Take what is left of the journal's last page, with blanks between its lines; nobody may be writing."""
        with self._journal.open("ab", buffering=0) as file:
            file.write(b'{"journal":1}'.ljust(PAGE - 1 - file.tell() % PAGE) + b"\n")

    def clear(self) -> None:
        """Make room."""
        self._filler.unlink(missing_ok=True)


@pytest.fixture
def disk(faulty):
    state = faulty.cluster.layout.host_dir(faulty.cluster.layout.hosts[0]) / "state"
    kept = state.with_name("kept")
    faulty.cluster.kill("agent-h1")
    shutil.copytree(state, kept)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "netweft-test", state], check=True)
    small = Disk(state)
    try:
        shutil.copytree(kept, state, dirs_exist_ok=True)
        faulty.cluster.start("agent-h1")
        yield small
        faulty.cluster.kill("agent-h1")
        small.clear()
        shutil.rmtree(kept)
        shutil.copytree(state, kept)
    finally:
        subprocess.run(["umount", "--lazy", state], check=True)
        shutil.copytree(kept, state, dirs_exist_ok=True)
        shutil.rmtree(kept)
        faulty.revive()


def test_a_full_disk_refuses_changes_by_name_and_lets_forwarding_go_on(faulty: Faulty, disk: Disk):
    bare = faulty.state()
    made = []
    with faulty.cluster.client() as client:
        made.append(attach(client, "front", "other-0"))
        keeper = client.get_endpoint("keeper", network="front")
        pair = reach.Pair(source=Path(made[0].sandbox.netns_path), destination=str(keeper.addresses[0].ip))
        assert [] == support.settled(faulty.cluster)

        with reach.Pinger(pair) as pinger:
            disk.fill()
            with pytest.raises(errors.Exhausted, match=r"cannot write its journal .*/journal: No space left on device"):
                made += [attach(client, "front", f"other-{number}") for number in range(1, PAGE // 100)]
            while_full = support.settled(faulty.cluster)
            faulty.cluster.kill("agent-h1")
            faulty.revive()
            after_restart = support.settled(faulty.cluster)
            disk.clear()
            web = attach(client, "front", "web")
            faulty.cluster.kill("agent-h1")
            faulty.revive()
            with_room = support.settled(faulty.cluster)
            support.wait_until(lambda: pinger.sent, lambda sent: sent > 20)

        assert [] == support.unanswered(pinger)
        assert ([], [], []) == (while_full, after_restart, with_room)
        assert reach.reach(Path(web.sandbox.netns_path), pair.destination)
        there = [one.id for one in client.list_endpoints() if one.name.startswith(("web", "other"))]
        client.detach_endpoints(netweft_client.DetachItem(endpoint=id_, delete_sandbox=True) for id_ in there)
        assert [] == support.settled(faulty.cluster)
    assert bare == faulty.state()


def test_a_removal_that_a_full_disk_refuses_is_done_when_there_is_room(faulty: Faulty, disk: Disk):
    bare = faulty.state()
    with faulty.cluster.client() as client:
        attach(client, "front", "web")
        assert [] == support.settled(faulty.cluster)

        faulty.cluster.kill("agent-h1")
        disk.fill()
        disk.fill_last_page()
        faulty.revive()
        after_restart = support.settled(faulty.cluster)
        with pytest.raises(errors.Exhausted, match="free space on that disk"):
            client.detach_endpoint("web", network="front", delete_sandbox=True)
        disk.clear()

        assert [] == after_restart
        assert [] == support.settled(faulty.cluster)
    assert bare == faulty.state()


# Before the agent has opened it, and after.
VANISHES_AFTER = (Point.CHANGE_STAGED, Point.KERNEL_NAMESPACES, Point.KERNEL_VETHS, Point.KERNEL_LINKS)


@pytest.mark.parametrize("point", VANISHES_AFTER)
def test_a_namespace_that_vanishes_in_the_middle_of_an_attach_leaves_nothing(faulty: Faulty, point):
    bare = faulty.state()
    box = Netns("vanishing")
    spec = EndpointSpec(network="front", name="web", bandwidth=LIMITS)
    sandbox = SandboxSpec(container_id="web", host="h1", namespace=netweft_client.NamespacePath(path=str(box.path)))
    agent = faulty.cluster.stack.processes.find("agent-h1")
    with faulty.cluster.client(retry_for_s=0) as client, concurrent.futures.ThreadPoolExecutor() as pool:
        faulty.arm(point, "stop")
        answer = pool.submit(client.attach_endpoint, spec, sandbox)
        support.wait_until(faulty.file.exists, lambda there: not there)
        box.close()
        os.kill(agent.pid, signal.SIGCONT)

        if point is Point.CHANGE_STAGED:
            assert isinstance(answer.exception(), errors.NotFound)
            assert f"{box.path} does not exist (any more)" in str(answer.exception())
        else:
            # It lives as long as the agent has it open; whoever looks is told what is missing.
            assert answer.exception() is None
            assert [line for line in support.problems(faulty.cluster) if f"{box.path} is no network namespace" in line]
            client.detach_endpoint("web", network="front", delete_sandbox=True)
        assert [] == support.settled(faulty.cluster)
    assert bare == faulty.state()
