"""Debian 13 as a folder, for engines that are newer than this machine's: made once, below build/, then only read.

`make test-runtimes` makes it before the tests, whose time limits are shorter than a slow mirror takes.
"""

from __future__ import annotations

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
    """Return the folder; skip the test where it is not there."""
    if not FOLDER.exists():
        pytest.skip(f"needs Debian 13 in {FOLDER}; `make test-runtimes` makes it, by root and with debootstrap")
    return FOLDER


def make() -> str:
    """Make the folder where there is none; return why it cannot be had, or nothing."""
    if FOLDER.exists():
        return ""
    if os.geteuid() or shutil.which("debootstrap") is None:
        return "only root can make it, with debootstrap; on Debian: apt install debootstrap"
    fresh = FOLDER.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", "trixie", str(fresh), _MIRROR]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=_LIMIT_S)
        shutil.rmtree(fresh / "var/cache/apt/archives", ignore_errors=True)
        (fresh / "usr/local/libexec/netavark").mkdir(parents=True)
        fresh.rename(FOLDER)
    except subprocess.CalledProcessError as error:
        return f"debootstrap fails: {error.stdout[-300:]}{error.stderr[-300:]}"
    except subprocess.TimeoutExpired:
        return f"debootstrap takes more than {_LIMIT_S} s"
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return ""


if __name__ == "__main__":
    if why := make():
        print(f"no Debian 13 for the tests of Podman 5 and Docker 26, which skip: {why}")
