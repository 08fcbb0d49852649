"""`netweft up`, the command line against a real stack, and `netweft down`."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from netweft_agent.kernel import hostfiles
from netweft_cli import layout, main, netns, reach, rtnl, sandboxflags, stack

from tests.support import logs

pytestmark = [pytest.mark.e2e, pytest.mark.netns]

NETWEFT = Path(sys.executable).parent / "netweft"
TOP = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Shell:
    """The command line against one run directory; in this process, for a new one takes half a second to load grpc."""

    run_dir: Path

    def __call__(self, *arguments: str, code: int = 0) -> str:
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NETWEFT_RUN_DIR", str(self.run_dir))
            patch.delenv("NETWEFT_TARGET", raising=False)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                ended = main.main(list(arguments))
        assert (code, ended) == (code, code), err.getvalue()
        return out.getvalue() if code == 0 else err.getvalue()

    def process(self, *arguments: str) -> subprocess.Popen[bytes]:
        """The same as a process of its own."""
        environ = os.environ | {"NETWEFT_RUN_DIR": str(self.run_dir)}
        return subprocess.Popen(
            [NETWEFT, *arguments], env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def data(self, *arguments: str):
        return json.loads(self(*arguments, "-o", "json"))

    def held(self) -> list[tuple[str, ...]]:
        """What clients were told of endpoints; the record of a join's confirmation may come a moment later."""
        return [
            (one["id"], one["sandbox_id"], one["mac_address"], *one["addresses"]) for one in self.data("endpoint", "ls")
        ]

    def pids(self) -> dict[str, int]:
        return {one["name"]: one["pid"] for one in self.data("status")}


@contextlib.contextmanager
def running() -> Iterator[Shell]:
    # A unix socket's path is short: pytest's own directories may be too long.
    shell = Shell(Path(tempfile.mkdtemp(prefix="nw-")) / "run")
    try:
        with logs.kept(shell.run_dir):
            assert shell.process("up").wait(60) == 0
            yield shell
    finally:
        shell("down")
        shutil.rmtree(shell.run_dir.parent)


@pytest.fixture(scope="module")
def netweft() -> Iterator[Shell]:
    with running() as shell:
        yield shell


@pytest.fixture
def network(netweft) -> Iterator[str]:
    netweft("network", "create", "blue", "--subnet", "10.7.0.0/24", "--host", "host1")
    yield "blue"
    for endpoint in netweft("endpoint", "ls", "-q", "-f", "network=blue").split():
        netweft("endpoint", "rm", "--force", endpoint)
    netweft("network", "rm", "blue")


def test_everything_that_runs_serves(netweft):
    rows = netweft.data("status")

    assert [one["name"] for one in rows] == ["store", "ipam", "controller", "agent-host1"]
    assert {one["health"] for one in rows} == {"serving"}


def test_up_again_starts_nothing(netweft):
    before = netweft.pids()

    netweft("up")

    assert before == netweft.pids()


@pytest.mark.parametrize("name", ["agent-host1", "controller", "ipam", "store"])
def test_up_starts_what_has_died_and_nothing_acknowledged_is_lost(netweft, network, name):
    netweft("attach", network, "c1")
    held = netweft.held()
    before = netweft.pids()
    os.kill(before[name], signal.SIGKILL)

    netweft("up")

    after = netweft.pids()
    assert {one for one in before if before[one] != after[one]} == {name}
    assert held == netweft.held()
    netweft("detach", network, "c1", "--delete-sandbox")


def test_a_container_is_attached_reached_and_detached(netweft, network):
    netweft("attach", network, "c1", "c2", "--host", "host1")
    spaces = {one["container_id"]: Path(one["netns_path"]) for one in netweft.data("sandbox", "ls")}
    endpoints = netweft.data("endpoint", "ls", "-f", f"network={network}")
    addresses = sorted(one["addresses"][0] for one in endpoints)

    assert addresses == ["10.7.0.2/24", "10.7.0.3/24"]
    assert reach.reach(spaces["c1"], "10.7.0.3")
    assert reach.reach(spaces["c2"], "10.7.0.1")

    netweft("detach", network, "c1", "c2", "--delete-sandbox")

    assert netweft.data("endpoint", "ls") == []
    assert netweft.data("sandbox", "ls") == []
    assert not any(netns.is_bound(path) for path in spaces.values())


def test_the_single_verbs_of_the_model_work_one_after_the_other(netweft, network):
    netweft("endpoint", "create", network, "e1", "--ip", "10.7.0.77", "--mac-address", "02:00:00:00:00:77")
    netweft("sandbox", "create", "c3", "--hostname", "web", "--add-host", "db:10.7.0.5")

    endpoint = netweft.data("endpoint", "join", "e1", "c3", "--network", network)["endpoint"]
    [sandbox] = netweft.data("sandbox", "inspect", "c3")

    assert endpoint["state"] == "joined"
    assert endpoint["mac_address"] == "02:00:00:00:00:77"
    assert sandbox["endpoint_ids"] == [endpoint["id"]]
    assert reach.reach(Path(sandbox["netns_path"]), "10.7.0.77")

    netweft("endpoint", "leave", "e1", "--network", network)
    assert netweft.data("endpoint", "inspect", "e1", "--network", network)[0]["addresses"] == ["10.7.0.77/24"]
    netweft("endpoint", "rm", "e1", "--network", network)
    netweft("sandbox", "rm", "c3")


def test_a_sandbox_is_changed_while_it_is_in_use_and_what_no_flag_names_stays(netweft, network):
    netweft("attach", network, "c6", "--hostname", "web", "--dns", "192.0.2.1", "--dns-search", "a.example")
    [box] = netweft.data("sandbox", "inspect", "c6")
    files = netweft.run_dir / "hosts/host1/run/sandboxes" / box["id"]

    netweft("sandbox", "update", "c6", "--hostname", "db", "--add-host", "peer=192.0.2.7", "--label", "a=b")
    netweft("sandbox", "update", "c6", "--dns", "192.0.2.2", "--dns-option", "ndots:3", "--rename", "c7")
    hosts, resolv = (files / "hosts").read_text(), (files / "resolv.conf").read_text()
    [changed] = netweft.data("sandbox", "inspect", "c7")

    assert hosts.splitlines()[-2:] == ["192.0.2.7\tpeer", "10.7.0.2\tdb"]
    assert resolv.startswith("nameserver 192.0.2.2\nsearch a.example\noptions ndots:3\n\n#")
    assert (changed["id"], changed["labels"]) == (box["id"], {"a": "b"})
    assert "c6" in netweft("sandbox", "inspect", "c6", code=3)

    [cleared] = netweft.data("sandbox", "update", "c7", *(f"--clear={one}" for one in sandboxflags.Clear))
    assert [cleared[one] for one in ("hostname", "extra_hosts", "labels")] == ["", [], {}]
    assert "peer" not in (files / "hosts").read_text()
    netweft("sandbox", "rm", "--force", "c7")


def test_what_a_container_edits_stays_and_lines_of_its_endpoints_come_and_go(netweft, network):
    netweft("attach", network, "c6", "--hostname", "web", "--add-host", "up:host-gateway", "--name", "e6")
    [box] = netweft.data("sandbox", "inspect", "c6")
    files = netweft.run_dir / "hosts/host1/run/sandboxes" / box["id"]
    hosts, resolv = files / "hosts", files / "resolv.conf"
    before = hosts.read_text()
    hosts.write_text(before.replace("localhost", "localhost me"))
    resolv.write_text("nameserver 192.0.2.99\n")

    netweft("sandbox", "update", "c6", "--dns", "192.0.2.1", "--hostname", "db")
    renamed = hosts.read_text()
    netweft("endpoint", "leave", "e6", "--network", network)

    assert before == "127.0.0.1\tlocalhost\n10.7.0.1\tup\n10.7.0.2\tweb\n"
    assert renamed == "127.0.0.1\tlocalhost me\n10.7.0.1\tup\n10.7.0.2\tdb\n"
    assert hosts.read_text() == "127.0.0.1\tlocalhost me\n"
    assert resolv.read_text() == "nameserver 192.0.2.99\n"
    netweft("sandbox", "rm", "--force", "c6")


def test_a_sandbox_in_the_hosts_namespace_has_files_of_its_own_and_takes_them_along(netweft):
    netweft("sandbox", "create", "c9", "--host-network", "--add-host", "db=192.0.2.7")
    [box] = netweft.data("sandbox", "inspect", "c9")
    files = netweft.run_dir / "hosts/host1/run/sandboxes" / box["id"]

    hosts, resolv = (files / "hosts").read_text(), (files / "resolv.conf").read_text()
    repaired = netweft("sandbox", "refresh", "c9")
    netweft("sandbox", "rm", "c9")

    assert hosts.endswith("192.0.2.7\tdb\n")
    assert resolv == hostfiles.read(hostfiles.Paths()).resolv_conf
    assert repaired == "# nothing to repair\n"
    assert not files.exists()


@pytest.mark.parametrize("driver", ["bridge", "overlay"])
def test_a_container_reaches_its_host_by_the_word_for_it(netweft, driver):
    netweft("network", "create", "way", "--driver", driver)
    netweft("attach", "way", "c6", "--add-host", "up:host-gateway")
    [box] = netweft.data("sandbox", "inspect", "c6")
    hosts = netweft.run_dir / "hosts/host1/run/sandboxes" / box["id"] / "hosts"

    [address] = [line.split()[0] for line in hosts.read_text().splitlines() if line.endswith("\tup")]

    assert reach.reach(Path(box["netns_path"]), address)
    netweft("sandbox", "rm", "--force", "c6")
    netweft("network", "rm", "way")


def test_a_change_that_names_nothing_is_refused(netweft, network):
    netweft("sandbox", "create", "c8")

    said = netweft("sandbox", "update", "c8", code=2)

    assert "extra_hosts" in said
    netweft("sandbox", "rm", "c8")


def test_a_sandbox_without_drift_has_nothing_to_repair(netweft, network):
    netweft("attach", network, "c1")

    assert netweft("sandbox", "refresh", "c1") == "# nothing to repair\n"
    assert netweft.data("sandbox", "refresh", "c1") == []
    assert "none" in netweft("sandbox", "refresh", "none", code=3)
    netweft("sandbox", "rm", "--force", "c1")


def test_counters_of_a_sandbox_are_those_of_its_interfaces(netweft, network):
    netweft("attach", network, "c1", "--interface", "web0", "--name", "e1")
    [box] = netweft.data("sandbox", "inspect", "c1")
    assert reach.reach(Path(box["netns_path"]), "10.7.0.1")

    [counted] = netweft.data("sandbox", "stats", "c1")
    titles, row = (line.split("   ") for line in netweft("sandbox", "stats", "c1").splitlines())

    assert (counted["interface_name"], counted["endpoint_id"]) == ("web0", box["endpoint_ids"][0])
    assert counted["rx_packets"] > 0
    assert counted["tx_bytes"] > 0
    assert [one.strip() for one in titles if one.strip()] == [
        "INTERFACE", "ENDPOINT", "RX BYTES", "RX PACKETS", "RX DROPPED", "TX BYTES", "TX PACKETS", "TX DROPPED",
    ]  # fmt: skip
    assert [one.strip() for one in row if one.strip()][:2] == ["web0", "e1"]
    assert "interface_name: web0" in netweft("sandbox", "stats", "c1", "-o", "yaml")
    assert "none" in netweft("sandbox", "stats", "none", code=3)
    netweft("sandbox", "rm", "--force", "c1")


def test_a_namespace_of_others_is_used_and_left_alone(netweft, network, space):
    netweft("attach", network, "c4", "--netns", str(space))
    inside = {link.name for link in netns.call(space, rtnl.links)}
    netweft("detach", network, "c4", "--delete-sandbox")

    assert inside == {"lo", "eth0"}
    assert {link.name for link in netns.call(space, rtnl.links)} == {"lo"}


def test_a_plan_says_what_an_attach_would_do_and_does_nothing(netweft, network):
    lines = netweft("plan", network, "c5")

    assert re.search(r"^  ip link add nwv-\w+ .* type veth peer name eth0", lines, re.MULTILINE)
    assert re.search(r"^  ip address add 10\.7\.0\.2/24 dev eth0$", lines, re.MULTILINE)
    assert netweft.data("endpoint", "ls") == []


def test_the_same_request_id_returns_the_first_answer(netweft, network):
    key = ("--request-id", "once")

    first = netweft.data("endpoint", "create", network, "e2", *key)
    again = netweft.data("endpoint", "create", network, "e2", *key)

    assert first == again


def test_every_output_says_the_same(netweft, network):
    [one] = netweft.data("network", "ls")

    assert one["name"] == network
    assert netweft("network", "ls", "-o", "name") == f"{network}\n"
    assert netweft("network", "ls", "-q") == f"{one['id']}\n"
    assert "name: blue" in netweft("network", "ls", "-o", "yaml")
    assert netweft("network", "ls").splitlines()[1].split()[:4] == [one["id"][:12], "blue", "bridge", "local"]
    assert "10.7.0.1" in netweft("network", "ls", "-o", "wide")


def test_pools_and_leases_say_who_holds_what(netweft, network):
    netweft("endpoint", "create", network, "e3")

    leases = netweft.data("lease", "ls", "--network", network)
    [pool] = [one for one in netweft.data("pool", "ls") if one["subnet"] == "10.7.0.0/24"]

    assert [(one["address"], one["owner"]["kind"]) for one in leases] == [
        ("10.7.0.1/24", "gateway"),
        ("10.7.0.2/24", "endpoint"),
    ]
    assert pool["use"]["leased"] == 2


def test_a_hosts_leases_are_listed_by_its_name(netweft, network):
    netweft("sandbox", "create", "c30")
    netweft("endpoint", "create", network, "e30")
    netweft("endpoint", "join", "e30", "c30", "--network", network)
    [host] = netweft.data("host", "inspect", "host1")

    leases = netweft.data("lease", "ls", "--network", network)
    of_host = netweft.data("lease", "ls", "--network", network, "--host", "host1")
    unknown = netweft("lease", "ls", "--network", network, "--host", "nowhere", code=3)
    netweft("sandbox", "rm", "--force", "c30")

    assert of_host
    assert [lease for lease in leases if lease["owner"]["host_id"] == host["id"]] == of_host
    assert "HOST_UNKNOWN" in unknown


def test_events_resume_by_revision(netweft, network):
    [made] = netweft.data("network", "inspect", network)
    netweft("endpoint", "create", network, "e4")

    line = netweft("events", "--since", str(made["revision"]), "--limit", "1", "-f", "type=endpoint", "-o", "json")
    event = json.loads(line)

    assert (event["action"], event["object"]["name"]) == ("created", "e4")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("network", "inspect", "none"), 3, "none"),
        (("network", "create", "blue"), 4, "blue"),
        (("network", "create", "red", "--subnet", "10.7.0.0/25", "--host", "host1"), 5, "10.7.0.0"),
        (("network", "create", "red", "-d", "nonsense"), 2, "bridge"),
        (("network", "create", "red", "--opt", "nonsense=1"), 2, "nonsense"),
        (("network", "create", "red", "--subnet", "10.8.0.0/24", "--gateway", "10.8.0.0"), 2, "gateway"),
        (("network", "create", "red name"), 2, "name"),
        (("attach", "blue", "c9", "--netns", "/etc/passwd"), 2, "/etc/passwd"),
        (("attach", "blue", "c9", "--ip", "10.9.0.1"), 2, "10.9.0.1"),
        (("attach", "blue", "c9", "--host", "nowhere"), 3, "nowhere"),
        (("attach", "blue", "c9", "--interface", "a-name-of-16-byte"), 2, "15"),
        (("endpoint", "rm", "none", "--network", "blue"), 3, "none"),
        (("host", "inspect", "nowhere"), 3, "nowhere"),
        (("host", "rm", "host1"), 5, "host1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_failure_names_what_is_wrong_and_changes_nothing(netweft, network, arguments, code, words):
    before = netweft.data("network", "ls"), netweft.data("endpoint", "ls"), netweft.data("sandbox", "ls")

    said = netweft(*arguments, code=code)

    assert said.startswith("netweft: ")
    assert words in said
    assert "Traceback" not in said
    assert before == (netweft.data("network", "ls"), netweft.data("endpoint", "ls"), netweft.data("sandbox", "ls"))


def test_removing_several_goes_on_after_a_failure(netweft):
    netweft("network", "create", "red", "--host", "host1")

    assert "none" in netweft("network", "rm", "none", "red", code=3)
    assert "red" not in netweft("network", "ls", "-o", "name").split()


def test_the_example_says_what_libnetworks_does(netweft):
    done = subprocess.run(
        [sys.executable, TOP / "examples" / "first_network.py"],
        env=os.environ | {"NETWEFT_RUN_DIR": str(netweft.run_dir)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.stderr == ""
    assert re.fullmatch(
        r"Joined endpoint Endpoint1 \(MAC ([0-9a-f]{2}:){5}[0-9a-f]{2}\) to sandbox container1 \(namespace /\S+\)\n",
        done.stdout,
    )
    netweft("sandbox", "rm", "--force", "container1")
    netweft("network", "rm", "network1")


def test_sandboxes_follow_the_hosts_resolv_conf(tmp_path):
    shell = Shell(Path(tempfile.mkdtemp(prefix="nw-")) / "run")
    own = tmp_path / "resolv.conf"
    own.write_text("nameserver 192.0.2.1\n")
    # In a mount namespace of its own the stack's host has a resolv.conf that nobody else has.
    started = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", f"mount --bind {own} /etc/resolv.conf && exec {NETWEFT} up"],
        env=os.environ | {"NETWEFT_RUN_DIR": str(shell.run_dir)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert started.wait(60) == 0
        shell("network", "create", "blue")
        shell("attach", "blue", "c1")
        shell("attach", "blue", "c2")
        ids = [shell.data("sandbox", "inspect", name)[0]["id"] for name in ("c1", "c2")]
        mine, edited = (shell.run_dir / "hosts/host1/run/sandboxes" / one / "resolv.conf" for one in ids)
        before = mine.read_text()
        edited.write_text("nameserver 192.0.2.99\n")

        own.write_text("nameserver 192.0.2.2\nsearch example.net\n")
        while (after := mine.read_text()) == before:  # a file that is written has no event here; the run has a limit
            time.sleep(0.05)

        assert before.startswith("nameserver 192.0.2.1\n\n")
        assert after.startswith("nameserver 192.0.2.2\nsearch example.net\n\n")
        assert edited.read_text() == "nameserver 192.0.2.99\n"
        assert shell("sandbox", "refresh", "c1") == "# nothing to repair\n"
    finally:
        shell("down")
        shutil.rmtree(shell.run_dir.parent)


def test_down_leaves_nothing_even_of_a_stack_in_use():
    with running() as netweft:
        netweft("network", "create", "blue")
        netweft("attach", "blue", "c1", "c2")
        found = stack.Stack.load(netweft.run_dir)
        spaces = {netns.inode(path): path for path in stack.mounts_below(netweft.run_dir)}
        os.kill(netweft.pids()["controller"], signal.SIGKILL)

        netweft("down")

        assert len(spaces) == 4
        assert stack.leftovers(found.layout, found.processes, spaces).lines == ()
        netweft("status", code=3)


def test_on_the_machines_own_network_down_removes_what_is_ours_and_nothing_else(space):
    netns.call(space, lambda: rtnl.add_bridge("theirs"))
    shell = Shell(Path(tempfile.mkdtemp(prefix="nw-")) / "run")

    def run(*arguments: str) -> int:
        return netns.call(space, lambda: shell.process(*arguments)).wait(60)

    def links() -> set[str]:
        return {link.name for link in netns.call(space, rtnl.links)}

    try:
        assert run("up", "--host-network") == 0
        shell("network", "create", "blue")
        shell("attach", "blue", "c1")
        during = links()
    finally:
        assert run("down") == 0
        shutil.rmtree(shell.run_dir.parent)

    assert {name[:4] for name in during} == {"lo", "thei", "nwb-", "nwv-"}
    assert links() == {"lo", "theirs"}
    assert netns.call(space, rtnl.tables) == []


def test_a_stack_of_another_shape_in_the_same_place_is_refused(netweft):
    assert "netweft down" in netweft("up", "--hosts", "2", code=5)


def test_a_service_that_cannot_start_is_shown_with_its_last_words(tmp_path):
    shell = Shell(Path(tempfile.mkdtemp(prefix="nw-")) / "run")
    try:
        said = shell("up", "--store-url", "nonsense://x", code=7)
    finally:
        shell("down")
        shutil.rmtree(shell.run_dir.parent)

    assert "ipam ended while it started" in said
    assert "nonsense" in said


def test_two_ups_at_once_start_one_stack():
    shell = Shell(Path(tempfile.mkdtemp(prefix="nw-")) / "run")
    try:
        both = [shell.process("up") for _ in range(2)]

        assert [one.wait(timeout=60) for one in both] == [0, 0]
        assert len(stack.Stack(layout.plan(shell.run_dir)).processes.strays()) == 4
    finally:
        shell("down")
        shutil.rmtree(shell.run_dir.parent)
