"""Docker engines for tests: the one that answers, or engines of our own, each in a network namespace."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support import debian
from tests.support.netns import Netns

_START_S = 60.0
_PLUGINS, _SPECS = Path("/run/docker/plugins"), Path("/etc/docker/plugins")
_BASE = "netweft-base"


def answers(environ: Mapping[str, str]) -> bool:
    """Return whether an engine answers."""
    done = subprocess.run(["docker", "info"], capture_output=True, check=False, env=environ, timeout=60)
    return done.returncode == 0


@contextlib.contextmanager
def engine() -> Iterator[dict[str, str]]:
    """Yield the environment by which `docker` finds an engine; skip the test where there is none."""
    if shutil.which("docker") is None:
        pytest.skip("needs Docker; on Debian: apt install docker.io docker-compose debootstrap")
    environ = dict(os.environ)
    if answers(environ):
        yield environ
        return
    if os.geteuid() or shutil.which("dockerd") is None:
        pytest.skip("no Docker engine answers, and only root can start one")
    with contextlib.closing(Netns("docker")) as space, daemon(space.path, "--bridge=none") as found:
        yield dict(found.environ)


class Daemon:
    """A dockerd in a network namespace, with its own plugins; it shares nothing with another one but the kernel.

    Docker looks for plugins in one place. Each daemon has a mount namespace in which that is its own folder; what it
    mounts in its state folder (containers' namespaces) is seen outside too, as by an agent of its host.

    Args:
        netns: Path of the network namespace that is its host.
        flags: Further ones of dockerd.
        plugins: Folder of its plugins' sockets; None: an empty one of its own.
    """

    def __init__(self, netns: str | Path, *flags: str, plugins: Path | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="nw-docker-"))
        self.plugins = plugins or self.folder / "plugins"
        """What this daemon sees as /run/docker/plugins: sockets of plugins."""
        self.specs = self.folder / "specs"
        """What it sees as /etc/docker/plugins: .spec and .json files."""
        self.host = f"unix://{self.folder}/docker.sock"
        self.environ: Mapping[str, str] = {**os.environ, "DOCKER_HOST": self.host}
        self.log = self.folder / "log"
        self._netns = str(netns)
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None
        for one in (self.plugins, self.specs, self.folder / "exec", self.folder / "data"):
            one.mkdir(exist_ok=True)
        mounted_on = (_PLUGINS, _PLUGINS.parent, _SPECS, _SPECS.parent)
        self._missing = [one for one in mounted_on if not one.exists()]
        mount = ("mount", "--bind", str(self.folder), str(self.folder))
        subprocess.run(mount, check=True)
        subprocess.run(["mount", "--make-private", str(self.folder)], check=True)
        subprocess.run(["mount", "--make-shared", str(self.folder)], check=True)

    @property
    def pid(self) -> int:
        """Process id of dockerd."""
        assert self._process is not None, "it does not run"
        return self._process.pid

    def start(self, *, wait: bool = True) -> None:
        """Start it, or start it again with the state that it has.

        Args:
            wait: Until it answers.

        Raises:
            RuntimeError: It ends, or does not answer.
        """
        # `ip netns exec` would hide the cgroups' mounts. Only the state folder may share its mounts with others.
        private = "; ".join(f"mount --make-private {one} 2>/dev/null" for one in ("/", "/run", "/etc"))
        binds = "; ".join(
            f"mkdir -p {there} && mount --bind {one} {there} && mount --make-private {there}"
            for one, there in ((self.plugins, _PLUGINS), (self.specs, _SPECS))
        )
        dockerd = " ".join((
            "exec dockerd --storage-driver=vfs", f"--host={self.host}", f"--data-root={self.folder}/data",
            f"--exec-root={self.folder}/exec", f"--pidfile={self.folder}/pid", *self._flags,
        ))  # fmt: skip
        command = ("nsenter", f"--net={self._netns}", "unshare", "--mount", "--propagation=unchanged", "sh", "-c")
        (self.folder / "pid").unlink(missing_ok=True)
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                (*command, f"{private}; {binds} && {dockerd}"), stdout=out, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + _START_S
        while wait and not answers(self.environ):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"dockerd does not start here: {self.log.read_text()[-800:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Let it end as at a shutdown of its host: with its containers, unless it runs with --live-restore."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=60)
            self._process = None

    def kill(self) -> None:
        """End it with SIGKILL; its containers go on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=60)
            self._process = None
            # Its containerd dies with it. Where nobody takes notice of that (an init that reaps nothing), the next
            # dockerd would take it for alive.
            (self.folder / "exec/containerd/containerd.pid").unlink(missing_ok=True)

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def run(self, *words: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run `docker`, whatever comes of it."""
        return subprocess.run(
            [_client(), *words], capture_output=True, text=True, check=False, env=self.environ, timeout=timeout_s
        )

    def __call__(self, *words: str, timeout_s: float = 120) -> str:
        """Run `docker`, and return what it prints, without the end of the last line.

        Raises:
            AssertionError: It fails; has what it says.
        """
        done = self.run(*words, timeout_s=timeout_s)
        assert not done.returncode, f"docker {' '.join(words)}: {done.stderr}"
        return done.stdout.strip()

    def close(self) -> None:
        """End it and all that it has started, and remove its files. Idempotent."""
        self.stop()
        for pid in self._left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        ends = time.monotonic() + 10
        while self._left() and time.monotonic() < ends:
            time.sleep(0.05)
        subprocess.run(["umount", "--recursive", "--lazy", "--quiet", str(self.folder)], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
        for one in self._missing:
            with contextlib.suppress(OSError):  # somebody else's by now
                one.rmdir()

    def _left(self) -> list[int]:
        """Return the processes that belong to it: containerd, shims, and what runs in containers."""
        found, parents = set[int](), dict[int, int]()
        for one in Path("/proc").iterdir():
            if not one.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                parents[int(one.name)] = int((one / "stat").read_text().rpartition(")")[2].split()[1])
                if f"{self.folder}/".encode() in (one / "cmdline").read_bytes():
                    found.add(int(one.name))
        below = found
        while below:
            below = {pid for pid, parent in parents.items() if parent in below} - found
            found |= below
        return sorted(found - {os.getpid()})


def _client() -> str:
    """Return the `docker` that came with dockerd: a newer one on PATH may ask for what that has not."""
    beside = Path(shutil.which("dockerd") or "/").resolve().parents[1] / "bin/docker"
    return str(beside) if beside.exists() else "docker"


@contextlib.contextmanager
def daemon(netns: str | Path, *flags: str, plugins: Path | None = None) -> Iterator[Daemon]:
    """Yield a dockerd that runs in a network namespace, and end it; skip the test where it does not start."""
    found = Daemon(netns, *flags, plugins=plugins)
    try:
        try:
            found.start()
        except RuntimeError as error:
            pytest.skip(str(error))
        yield found
    finally:
        found.close()


def base(environ: Mapping[str, str]) -> str:
    """Return an image with Python 3.11 and a store: BASE, if it is set, or one that is made of Debian's packages.

    Nothing is pulled: an engine of a test may have no way out.
    """
    if "BASE" in environ:
        return environ["BASE"]
    folder = debian.root()
    packed = ["tar", "-C", str(folder), "--exclude=./var/cache", "-c", "."]
    with subprocess.Popen(packed, stdout=subprocess.PIPE) as archive:
        subprocess.run(
            ["docker", "import", "-", _BASE], stdin=archive.stdout, check=True, env=environ, capture_output=True
        )
    return _BASE
