"""A Docker engine for tests: the one that answers, or one of our own in a network namespace that ends with it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.netns import Netns

_START_S = 60.0
_BASE = "netweft-base"
_PACKAGES = "python3,iproute2,nftables,redis-server"
_MIRROR = "http://deb.debian.org/debian"


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
    with _private_engine() as host:
        yield {**environ, "DOCKER_HOST": host}


@contextlib.contextmanager
def _private_engine() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="nw-docker-"))
    space = Netns("docker")
    host = f"unix://{folder}/docker.sock"
    # `ip netns exec` would hide the cgroups' mounts.
    command = (
        "nsenter", f"--net={space.path}", "dockerd", "--bridge=none", "--storage-driver=vfs", f"--host={host}",
        f"--data-root={folder / 'data'}", f"--exec-root={folder / 'exec'}", f"--pidfile={folder / 'pid'}",
    )  # fmt: skip
    log = folder / "log"
    with log.open("wb") as out:
        daemon = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + _START_S
        while not answers({**os.environ, "DOCKER_HOST": host}):
            if daemon.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"dockerd does not start here: {log.read_text()[-500:]}")
            time.sleep(0.2)
        yield host
    finally:
        daemon.terminate()
        daemon.wait(timeout=60)
        space.close()
        subprocess.run(["umount", "--recursive", "--quiet", str(folder / "data")], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def base(environ: Mapping[str, str]) -> str:
    """Return an image with Python 3.11 and a store: BASE, if it is set, or one that is made of Debian's packages.

    Nothing is pulled: an engine of a test may have no way out.
    """
    if "BASE" in environ:
        return environ["BASE"]
    if shutil.which("debootstrap") is None or os.geteuid():
        pytest.skip("needs an image: set BASE, or install debootstrap, and be root")
    with tempfile.TemporaryDirectory(prefix="nw-base-") as folder:
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", folder, _MIRROR],
            capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        if made.returncode:
            pytest.skip(f"no base image can be made: {made.stdout[-300:]}")
        archive = subprocess.Popen(["tar", "-C", folder, "--exclude=./var/cache", "-c", "."], stdout=subprocess.PIPE)
        subprocess.run(
            ["docker", "import", "-", _BASE], stdin=archive.stdout, check=True, env=environ, capture_output=True
        )
        archive.wait()
    return _BASE
