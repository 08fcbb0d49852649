"""Root folders of Debian for tests: made once of Debian's packages and kept in `build/`, which `make clean` removes.

`make test-runtimes` has them made before its tests, whose time limits are shorter than what a slow mirror takes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

_KEPT = Path(__file__).parents[2] / "build" / "debian"
_MIRROR = "http://deb.debian.org/debian"
_LIMIT_S = 900.0
PACKAGES = (
    "systemd", "systemd-sysv", "python3", "python3-venv", "redis-server", "iproute2", "iputils-ping", "nftables",
)  # fmt: skip
"""What machines and images of tests have; one set, so one folder serves them all."""

ENGINES = ("netavark", "podman", "docker.io", "runc", "python3-minimal", "iproute2", "nftables", "iptables")
"""Of `trixie`: engines that are newer than those of bookworm, Podman 5 and Docker 26."""

FIREWALLS = ("ufw", "firewalld", "dbus", "libpam-systemd", "systemd-sysv", "iptables", "nftables")
"""Of `trixie`: nobody's machine has them installed for a test, for they start by themselves."""


def root(suite: str = "bookworm", packages: Iterable[str] = PACKAGES) -> Path:
    """Return a folder with a minimal Debian and some packages; whoever uses it writes over it and not into it.

    Skips the test where it cannot be made.

    Args:
        suite: Debian's release, such as `bookworm`.
        packages: What it has besides what every Debian has.
    """
    if os.geteuid():
        pytest.skip("makes a root folder of Debian: needs root")
    if shutil.which("debootstrap") is None:
        pytest.skip("needs debootstrap; on Debian: apt install debootstrap")
    wanted = ",".join(sorted(packages))
    folder = _KEPT / f"{suite}-{hashlib.sha256(wanted.encode()).hexdigest()[:8]}"
    _KEPT.mkdir(parents=True, exist_ok=True)
    with (_KEPT / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _make(suite, wanted, folder)
    return folder


def _make(suite: str, packages: str, folder: Path) -> None:
    unfinished = folder.with_name(f".{folder.name}")
    if (unfinished / "proc").is_mount():  # of one that was killed
        subprocess.run(["umount", "-R", unfinished / "proc"], check=True)
    shutil.rmtree(unfinished, ignore_errors=True)
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={packages}", suite, str(unfinished), _MIRROR],
        capture_output=True, text=True, check=False, timeout=_LIMIT_S,
    )  # fmt: skip
    if made.returncode:
        shutil.rmtree(unfinished, ignore_errors=True)
        pytest.skip(f"no root folder of Debian {suite} can be made: {made.stdout[-300:]}")
    for archive in (unfinished / "var/cache/apt/archives").glob("*.deb"):
        archive.unlink()
    unfinished.rename(folder)


if __name__ == "__main__":
    for suite, packages in (("bookworm", PACKAGES), ("trixie", ENGINES), ("trixie", FIREWALLS)):
        try:
            root(suite, packages)
        except pytest.skip.Exception as why:
            print(f"tests that need Debian's {suite} skip: {why}")
