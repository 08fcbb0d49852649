"""Debian 13 as a folder, for engines that are newer than this machine's: made once, below build/, then only read."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "build" / "trixie"
PACKAGES = ("netavark", "podman", "docker.io", "runc", "python3-minimal", "iproute2", "nftables", "iptables")
_MIRROR = "http://deb.debian.org/debian"
_LIMIT_S = 600


def root() -> Path:
    """Return the folder; skip the test where it is not there and cannot be made."""
    if os.geteuid():
        pytest.skip("needs root")
    FOLDER.parent.mkdir(exist_ok=True)
    with FOLDER.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not FOLDER.exists():
            _make()
    return FOLDER


def _make() -> None:
    if shutil.which("debootstrap") is None:
        pytest.skip("needs Debian 13's Podman and Docker; on Debian: apt install debootstrap")
    fresh = FOLDER.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", "trixie", str(fresh), _MIRROR]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LIMIT_S)
    if done.returncode:
        shutil.rmtree(fresh, ignore_errors=True)
        pytest.skip(f"Debian 13 cannot be had here: {done.stdout[-300:]}")
    shutil.rmtree(fresh / "var/cache/apt/archives", ignore_errors=True)
    (fresh / "usr/local/libexec/netavark").mkdir(parents=True)
    fresh.rename(FOLDER)
