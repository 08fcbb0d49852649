"""Container engines on the hosts of a cluster: containerd, by `ctr`, Podman 4, and of Debian 13 Podman 5 and Docker 26.

Each host has a mount namespace with folders of its own where engines keep what they know (/run, /var/lib, /etc/cni,
/opt, /dev/shm), and its agent's where an agent has them, so what is written there is seen by nobody else and is gone
when the host is closed. A container runs a web server that says who it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from tests.support import debian, images

NETWEFT = Path(sys.executable).parent / "netweft"
T = TypeVar("T", "Containerd", "Podman", "Podman5", "Docker26")
TIMEOUT_S = 60.0
_CGROUPS = Path("/sys/fs/cgroup")
_OWN = {"run": "/run", "lib": "/var/lib", "cni": "/etc/cni", "opt": "/opt"}
"""Folders of a host, and where its processes find them."""


class Cluster(Protocol):
    """The cluster whose hosts have engines."""

    def host(self, name: str) -> Path:
        """Return the namespace that plays a host."""

    def agent_dir(self, name: str) -> Path:
        """Return the run directory of a host's agent."""


class EngineHost:
    """A host of a cluster, as an engine sees it.

    Args:
        cluster: That the host is of.
        name: Its name.
        root: Folder with another system, which its processes see in place of this machine's.
    """

    def __init__(self, cluster: Cluster, name: str, root: Path | None = None) -> None:
        self.name = name
        self.netns = cluster.host(name)
        self.folder = Path(tempfile.mkdtemp(prefix="nw-engine-"))
        # Held while there may be containers: whoever is last takes the groups away that Podman leaves.
        self._cgroups = os.open(_CGROUPS, os.O_RDONLY)
        fcntl.flock(self._cgroups, fcntl.LOCK_SH)
        agent = cluster.agent_dir(name)
        mounts = [(self.folder / one, at) for one, at in _OWN.items()]
        mounts += [(agent, "/run/netweft"), (agent.parent / "state", "/var/lib/netweft")]
        mounts.append((agent.parent / "docker", "/run/docker/plugins"))
        for one in ("run/netweft", "run/docker/plugins", "lib/netweft", "cni/net.d", "opt", "libexec"):
            (self.folder / one).mkdir(parents=True)
        script = "\n".join([*self._mount(mounts, root), "echo mounted", "exec sleep 100000"])
        self._keeper = subprocess.Popen(
            ["nsenter", f"--net={self.netns}", "unshare", "--mount", "--propagation=private", "sh", "-c", script],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert self._keeper.stdout is not None
        with self._keeper.stdout as out:
            said = out.readline()
        assert said == "mounted\n", said
        self._mounts = Path(f"/proc/{self._keeper.pid}/ns/mnt").readlink()

    def _mount(self, mounts: Sequence[tuple[Path, str]], root: Path | None) -> Iterator[str]:
        """Yield the commands of a shell that has the host's folders mounted, and another root."""
        top = root or Path("/")
        if root is not None:
            yield f"mount --bind {root} {root} && mount -o remount,bind,ro {root} || exit"
            yield f"mount -t proc proc {root}/proc && mount -t tmpfs none {root}/tmp || exit"
            yield f"mount -t tmpfs none {root}/var/tmp || exit"
            yield f"mkdir {root}{self.folder} && mount --rbind /sys {root}/sys && mount --rbind /dev {root}/dev || exit"
            yield f"mount -t tmpfs none {root}/usr/local && mkdir -p {root}/usr/local/libexec/netavark || exit"
            plugins = (self.folder / "libexec", "/usr/local/libexec/netavark")
            mounts = [*mounts, (self.folder, str(self.folder)), plugins]
        for source, at in mounts:
            yield f"mount --bind {source} {top}{at} || exit"
        yield f"mount -t tmpfs none {top}/dev/shm || exit"
        if root is not None:
            yield f"cd {root} && pivot_root . . && umount -l . && cd / || exit"

    def command(self, *words: str | Path) -> list[str]:
        """Return what runs a command on the host."""
        return ["nsenter", f"--target={self._keeper.pid}", "--mount", "--net", *map(str, words)]

    def run(self, *words: str | Path, check: bool = True) -> str:
        """Run a command on the host, and return what it prints."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
        assert not check or done.returncode == 0, (
            f"{self.name}: {' '.join(map(str, words))}: {done.stdout}{done.stderr}"
        )
        return done.stdout

    def start(self, *words: str | Path) -> subprocess.Popen[bytes]:
        """Start a command on the host; what it says is in the file `log` of its folder."""
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(self.command(*words), stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def install(self, network: str) -> None:
        """Have the CNI plugin on the host, with a network."""
        self.run(NETWEFT, "cni", "install", network)

    def attachments(self) -> list[str]:
        """Return what CNI's library still holds for attached."""
        return [one.name for one in (self.folder / "lib/cni/results").glob("*")]

    def close(self) -> list[str]:
        """Take the host's folders away; return what was left of its engines."""
        left = [line for pid, line in self._processes() if pid != self._keeper.pid]
        for pid, _ in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        self._keeper.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(self._cgroups, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_empty_cgroups()
        os.close(self._cgroups)
        return left

    def _processes(self) -> Iterator[tuple[int, str]]:
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and (entry / "ns/mnt").readlink() == self._mounts:
                    yield int(entry.name), (entry / "cmdline").read_text().replace("\0", " ")


def _remove_empty_cgroups() -> None:
    """Remove the groups in which Podman has its own; it makes them when it needs them."""
    for top in (one for name in ("libpod_parent", "conmon") for one in _CGROUPS.glob(f"*/{name}")):
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()


class Engine(Protocol):
    """What tests ask of any engine. Containers run in the network `front`, which was installed on the host."""

    host: EngineHost

    def run(self, name: str) -> None:
        """Run a container; it serves when this returns."""

    def exec(self, name: str, *words: str, check: bool = True) -> str:
        """Run a command in a container, and return what it prints."""

    def pid(self, name: str) -> int:
        """Return the process of a container."""

    def remove(self, name: str) -> None:
        """Take a container away, whatever it does."""


def server(name: str) -> list[str]:
    """Return the command of a container that tells its name to whoever asks at port 80."""
    return ["sh", "-c", f"mkdir -p /tmp/www && echo {name} >/tmp/www/who && exec httpd -f -p 80 -h /tmp/www"]


def who(engine: Engine, name: str, address: str, port: int = 80) -> str:
    """Return who answers a container that asks at an address; empty: nobody."""
    # The time limit of busybox's wget itself ends it by a segmentation fault where it is linked with glibc.
    ask = ("timeout", "5", "wget", "-q", "-O", "-", f"http://{address}:{port}/who")
    return engine.exec(name, *ask, check=False).strip()


def address(engine: Engine, name: str) -> str:
    """Return the address that a container has on eth0."""
    return engine.exec(name, "ip", "-4", "-o", "address", "show", "dev", "eth0").split()[3].partition("/")[0]


class Containerd:
    """containerd, which is started, and `ctr`, which runs CNI's plugins: it has attached when a task runs.

    It lets go when it is told of the end of the container that it has run, so it has to stay.
    """

    def __init__(self, host: EngineHost) -> None:
        self.host = host
        self._runs: dict[str, subprocess.Popen[bytes]] = {}
        host.install("front")
        (host.folder / "containerd.toml").write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
        self._daemon = host.start("containerd", "--config", host.folder / "containerd.toml")
        _wait(lambda: self._daemon.poll() is not None or (host.folder / "run/containerd/containerd.sock").exists())
        assert self._daemon.poll() is None, host.log()
        _wait(lambda: "RUNTIME" in self._ctr("container", "ls", check=False))
        self._ctr("image", "import", "--snapshotter", "native", str(images.busybox(host.folder)))

    @staticmethod
    def root() -> Path | None:
        """Return the system that it is of: this machine's."""
        for program in ("containerd", "ctr", "runc"):
            _require(program)
        return None

    def _ctr(self, *words: str, check: bool = True) -> str:
        return self.host.run("ctr", *words, check=check)

    def run(self, name: str) -> None:
        self._runs[name] = self.host.start(
            "ctr", "run", "--rm", "--cni", "--snapshotter", "native", images.NAME, name, *server(name)
        )
        _wait(lambda: self._runs[name].poll() is not None or "RUNNING" in self._task(name))
        if self._runs[name].poll() is not None:
            del self._runs[name]
            # `ctr` leaves what it has made.
            self._ctr("task", "rm", "--force", name, check=False)
            self._ctr("container", "rm", name, check=False)
            raise AssertionError(self.host.log())
        _wait(lambda: who(self, name, "127.0.0.1") == name)

    def _task(self, name: str) -> list[str]:
        rows = [line.split() for line in self._ctr("task", "ls").splitlines()]
        return next((row for row in rows if row[0] == name), [])

    def exec(self, name: str, *words: str, check: bool = True) -> str:
        return self._ctr("task", "exec", "--exec-id", f"e{time.monotonic_ns()}", name, *words, check=check)

    def pid(self, name: str) -> int:
        return int(self._task(name)[1])

    def ended(self, name: str) -> None:
        """Wait until a container that was killed is let go of."""
        self._runs.pop(name).wait(timeout=TIMEOUT_S)

    def remove(self, name: str) -> None:
        self._ctr("task", "kill", "--signal", "KILL", name)
        self.ended(name)

    def close(self) -> None:
        for name in list(self._runs):
            self.remove(name)
        self._daemon.terminate()
        self._daemon.wait(timeout=TIMEOUT_S)


class Podman:
    """Podman 4 with CNI for its networks. There is no daemon: `conmon` stays with a container, and lets go of it."""

    conf = 'network_backend = "cni"\ncni_plugin_dirs = ["/opt/cni/bin", "/usr/lib/cni"]\n'
    """Section [network] of containers.conf."""

    def __init__(self, host: EngineHost) -> None:
        self.host = host
        conf = host.folder / "containers.conf"
        # What Podman asks for by default may be more than this machine's processes can have.
        conf.write_text(
            "[containers]\n"
            'default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]\n'
            "[engine]\n"
            'runtime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            # The agent holds published ports itself, and would be in the way of Podman's own socket.
            "enable_port_reservation = false\n"
            f"[network]\n{self.conf}"
        )
        environ = (f"CONTAINERS_CONF={conf}", "PODMAN_IGNORE_CGROUPSV1_WARNING=1")
        self._prefix = ("env", *environ, "podman", "--storage-driver=vfs")
        self.podman("load", "--quiet", "--input", str(images.busybox(host.folder)))
        self.install()

    @staticmethod
    def root() -> Path | None:
        """Return the system that it is of; None: this machine's."""
        for program in ("podman", "conmon", "runc"):
            _require(program)
        return None

    def install(self) -> None:
        """Have the plugin, and the network."""
        self.host.install("front")

    def podman(self, *words: str, check: bool = True) -> str:
        """Run podman, and return what it prints."""
        return self.host.run(*self._prefix, *words, check=check)

    def run(self, name: str, *options: str, network: str = "front") -> None:
        self.podman(
            "run",
            "--detach",
            f"--name={name}",
            *([f"--network={network}"] if network else []),
            *options,
            images.NAME,
            *server(name),
        )
        _wait(lambda: who(self, name, "127.0.0.1") == name)

    def exec(self, name: str, *words: str, check: bool = True) -> str:
        return self.podman("exec", name, *words, check=check)

    def pid(self, name: str) -> int:
        return int(self.podman("inspect", "--format={{.State.Pid}}", name))

    def remove(self, name: str) -> None:
        self.podman("rm", "--force", "--time=0", name)

    def close(self) -> None:
        self.podman("rm", "--all", "--force", "--time=0")


class Podman5(Podman):
    """Podman 5 of Debian 13 with netavark, our plugin as a driver of its networks."""

    conf = 'network_config_dir = "/var/lib/networks"\n'

    @staticmethod
    def root() -> Path | None:
        """Return Debian 13."""
        return debian.root("trixie", debian.ENGINES)

    def install(self) -> None:
        """Have the plugin where netavark looks for drivers, and a network of Podman's for ours."""
        subprocess.run(
            [NETWEFT, "netavark", "install", "--plugin-dir", self.host.folder / "libexec"],
            check=True, capture_output=True,
        )  # fmt: skip
        self.podman("network", "create", "--driver=netweft", "front")


class Docker26:
    """Docker 26 of Debian 13, with our plugin where it looks for one."""

    def __init__(self, host: EngineHost) -> None:
        self.host = host
        self._at = f"unix://{host.folder}/docker.sock"
        self._daemon: subprocess.Popen[bytes] | None = None
        self.start()
        self.docker("load", "--input", str(images.busybox(host.folder)))
        named = ("--opt=netweft.network=front", "--ipam-opt=netweft.network=front")
        # Docker takes --ip only where a subnet was given.
        subnet = ("--subnet=10.71.0.0/24",)
        self.docker("network", "create", "--driver=netweft", "--ipam-driver=netweft", *named, *subnet, "front")

    @staticmethod
    def root() -> Path | None:
        """Return Debian 13."""
        _require("docker")
        return debian.root("trixie", debian.ENGINES)

    def start(self) -> None:
        """Start dockerd; it answers when this returns."""
        daemon = self.host.start("dockerd", "--storage-driver=vfs", "--live-restore", f"--host={self._at}")
        _wait(lambda: daemon.poll() is not None or bool(self.docker("version", check=False)))
        assert daemon.poll() is None, self.host.log()
        self._daemon = daemon

    def kill(self) -> None:
        """End dockerd by SIGKILL; its containers go on."""
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait(timeout=TIMEOUT_S)
        for name in ("docker.pid", "docker/containerd/containerd.pid"):
            (self.host.folder / "run" / name).unlink(missing_ok=True)

    def docker(self, *words: str, check: bool = True) -> str:
        """Run docker, and return what it prints."""
        done = subprocess.run(
            ["docker", "--host", self._at, *words], capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
        assert not check or done.returncode == 0, f"docker {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout if done.returncode == 0 else ""

    def run(self, name: str, *options: str, network: str = "front") -> None:
        at = f"--network={network}"
        self.docker("run", "--detach", f"--name={name}", at, *options, images.NAME, *server(name))
        _wait(lambda: who(self, name, "127.0.0.1") == name)

    def exec(self, name: str, *words: str, check: bool = True) -> str:
        return self.docker("exec", name, *words, check=check)

    def pid(self, name: str) -> int:
        return int(self.docker("inspect", "--format={{.State.Pid}}", name))

    def remove(self, name: str) -> None:
        self.docker("rm", "--force", name)

    def close(self) -> None:
        for name in self.docker("ps", "--all", "--quiet").split():
            self.remove(name)
        self.docker("network", "rm", "front")
        assert self._daemon is not None
        self._daemon.terminate()
        self._daemon.wait(timeout=TIMEOUT_S)


def _require(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"needs `{program}`; on Debian: apt install containerd podman runc")
    if not Path("/etc/cni").is_dir():
        pytest.skip("needs /etc/cni, over which a folder is mounted; on Debian it comes with podman")


def _wait(done: Callable[[], bool], seconds: float = TIMEOUT_S) -> None:
    ends = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.05)


def _close(host: EngineHost, left: list[str]) -> None:
    left += host.close()


@contextlib.contextmanager
def running(cluster: Cluster, places: Sequence[tuple[str, type[T]]]) -> Iterator[list[T]]:
    """Run engines on hosts of a cluster, one each, and see to it that they leave nothing."""
    left: list[str] = []
    with contextlib.ExitStack() as stack:
        engines = []
        for name, kind in places:
            host = EngineHost(cluster, name, kind.root())
            stack.callback(_close, host, left)
            engines.append(stack.enter_context(contextlib.closing(kind(host))))
        yield engines
    assert [] == left
