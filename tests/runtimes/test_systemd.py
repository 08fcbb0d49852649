"""docs/operations.md as it is followed on three machines, each a Debian with systemd in a container."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import debian
from tests.support.netns import Netns, require_tool

TOP = Path(__file__).parents[2]
PAGE = (TOP / "docs/operations.md").read_text()
HOSTS = ("host1", "host2", "host3")
_START_S = 60.0

pytestmark = pytest.mark.timeout(900)


class Machine:
    """A Debian that systemd has booted, in a container that forgets everything at its end.

    Args:
        name: Of the machine.
        root: What it boots from, unchanged.
        network: Where its processes are.
        wheels: What `make wheels` has made.
    """

    def __init__(self, name: str, root: Path, network: Netns, wheels: Path) -> None:
        self.name = name
        self._kept = Path("/run/systemd/nspawn/propagate", f"netweft-{name}")
        self._nspawn = subprocess.Popen(
            ["systemd-nspawn", "--quiet", f"--directory={root}", "--volatile=overlay", f"--machine=netweft-{name}",
             f"--network-namespace-path={network.path}", "--capability=all", "--register=no", "--keep-unit",
             f"--bind-ro={wheels}:/opt/netweft/wheels", "--console=read-only", "--boot"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._leader = 0

    def wait(self) -> None:
        """Wait until it is up."""
        ends = time.monotonic() + _START_S
        while time.monotonic() < ends:
            children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children")
            if children.exists() and (found := children.read_text().split()):
                self._leader = int(found[0])
                if self.says("systemctl is-system-running --wait", check=False) == "running":
                    return
            time.sleep(0.2)
        pytest.fail(f"{self.name} does not come up: {self.says('systemctl --failed', check=False)}")

    def says(self, script: str, *, check: bool = True) -> str:
        """Run a script as root, and return what it prints."""
        done = subprocess.run(
            ["nsenter", f"--target={self._leader}", "--all", "bash", "-euo", "pipefail", "-c", script],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{self.name}: {script}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout.strip()

    def put(self, path: str, content: str) -> None:
        """Write a file."""
        subprocess.run(
            ["nsenter", f"--target={self._leader}", "--all", "tee", path],
            input=content, text=True, check=True, stdout=subprocess.DEVNULL, timeout=60,
        )  # fmt: skip

    def stop(self) -> None:
        """Shut it down."""
        self._nspawn.terminate()
        try:
            self._nspawn.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait()
        if self._kept.exists():
            self._kept.rmdir()


def commands(where: str) -> list[str]:
    """Return the blocks of commands that the page has for a machine, in order."""
    return re.findall(rf"<!-- run: {where} -->\n```sh\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def wheels() -> Path:
    subprocess.run(["make", "wheels"], cwd=TOP, check=True, capture_output=True, timeout=600)
    return TOP / "build/wheels"


@pytest.fixture(scope="module")
def machines(wheels: Path) -> Iterator[dict[str, Machine]]:
    """The three machines, as the page says they are set up."""
    for tool in ("systemd-nspawn", "ip"):
        require_tool(tool)
    root = debian.root()
    switch = Netns("switch")
    spaces = {name: Netns(name) for name in HOSTS}
    started: dict[str, Machine] = {}
    try:
        switch.exec(["ip", "link", "add", "br0", "up", "type", "bridge"])
        for number, (name, space) in enumerate(spaces.items(), 1):
            switch.exec(f"ip link add {name} up master br0 type veth peer name ens3 netns {space.path}".split())
            for words in ("link set lo up", f"address add 192.0.2.{number}/24 dev ens3", "link set ens3 up"):
                space.exec(["ip", *words.split()])
            started[name] = Machine(name, root, space, wheels)
        for machine in started.values():
            machine.wait()
        _install(started)
        yield started
    finally:
        for machine in started.values():
            machine.stop()
        for space in (*spaces.values(), switch):
            space.close()


def _install(machines: dict[str, Machine]) -> None:
    everywhere, joining = commands("all")
    for machine in machines.values():
        for unit in sorted((TOP / "deploy/systemd").glob("*.service")):
            machine.put(f"/etc/systemd/system/{unit.name}", unit.read_text())
        machine.says(everywhere)
    first = machines["host1"]
    services, tokens, _ = commands("first")
    first.says(services)
    first.says(tokens)
    for number, machine in enumerate(machines.values(), 1):
        machine.put("/root/token", first.says(f"cat /root/token-{machine.name}"))
        machine.says(f"host={machine.name} address=192.0.2.{number}\n{joining}")


@pytest.fixture(scope="module")
def listed(machines: dict[str, Machine]) -> str:
    """What the page's look at the cluster prints; it attaches c1 and c2, 10.0.0.2 and 10.0.0.3, on two hosts."""
    return machines["host1"].says(f". /etc/netweft/env\n{commands('first')[2]}")


def _ping(machine: Machine, address: str) -> bool:
    script = f"nsenter --net=$(ls -d /run/netweft/netns/sandbox-*) ping -c 1 -W 2 {address} && echo reached"
    return machine.says(script, check=False).endswith("reached")


def test_hosts_join_and_containers_on_two_of_them_reach_each_other(machines, listed):
    for name in HOSTS:
        assert re.search(rf"{name} +ready", listed)
    assert _ping(machines["host1"], "10.0.0.3")
    assert _ping(machines["host2"], "10.0.0.2")


def test_services_have_no_rights_and_no_files(machines):
    first = machines["host1"]

    for unit in ("netweft-ipam", "netweft-controller"):
        status = first.says(f"cat /proc/$(systemctl show -P MainPID {unit})/status")
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
        assert not re.search(r"^Uid:\t0\t", status, re.MULTILINE)
    assert first.says("find /etc/netweft -not -user root") == ""
    assert first.says("find /etc/netweft -type f -perm /077 -name '*key*'") == ""


@pytest.mark.parametrize("how", ["systemctl restart {}", "kill -KILL $(systemctl show -P MainPID {})"])
@pytest.mark.parametrize("unit", ["netweft-agent", "netweft-controller", "netweft-ipam"])
def test_a_unit_that_ends_comes_back_and_no_packet_is_lost(machines, listed, unit, how):
    first = machines["host1"]
    space = "$(ls -d /run/netweft/netns/sandbox-*)"
    before = first.says(f"systemctl show -P MainPID {unit}")

    said = first.says(
        f"nsenter --net={space} ping -i 0.05 -c 60 10.0.0.3 > /tmp/ping & {how.format(unit)}; wait; cat /tmp/ping"
    )
    after = first.says(
        f"until systemctl is-active --quiet {unit}; do sleep 0.1; done; systemctl show -P MainPID {unit}"
    )

    assert " 60 received" in said
    assert after not in {before, "0"}
    first.says(". /etc/netweft/env; until netweft attach front again --host host1; do sleep 0.5; done")
    first.says(". /etc/netweft/env; netweft detach front again; netweft sandbox rm again")


def test_a_stopped_agent_leaves_containers_as_they_are(machines, listed):
    first = machines["host1"]
    first.says("systemctl stop netweft-agent")
    try:
        assert _ping(first, "10.0.0.3")
        assert _ping(machines["host2"], "10.0.0.2")
    finally:
        first.says("systemctl start netweft-agent")


def test_the_agent_starts_before_engines(machines):
    order = machines["host1"].says("systemctl show -P Before netweft-agent").split()

    assert {"docker.service", "containerd.service", "podman.service"} <= set(order)


def test_a_host_leaves_as_the_page_says(machines):
    third = machines["host3"]
    third.says("netweft host leave && systemctl disable --now netweft-agent && rm -r /var/lib/netweft")

    hosts = machines["host1"].says(". /etc/netweft/env; netweft host ls -o name").split()

    assert ["host1", "host2"] == sorted(hosts)
    assert third.says("find /run/netweft/netns -type f 2>/dev/null || true") == ""


def test_units_are_such_as_systemd_takes(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    for unit in sorted((TOP / "deploy/systemd").glob("*.service")):
        # What it starts is not installed here.
        (tmp_path / unit.name).write_text(re.sub(r"/opt/netweft/bin/\S+", "/bin/true", unit.read_text()))

    said = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (0, "") == (said.returncode, said.stderr)
