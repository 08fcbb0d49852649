"""Put the wheels that images install into a folder: ours, built here, and the pinned ones that they need.

Usage: python deploy/wheels.py FOLDER    with the Python of .venv, from the top of the clone; `make wheels` does.

What is needed is read off what is installed in .venv; which version, and its hash, off requirements.lock. The wheels
are for CPython 3.11 on this machine's architecture, whatever Python runs this.
"""

from __future__ import annotations

import ensurepip
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

PYTHON = "3.11"
PATCHES = ("3.11.0", "3.11.99")
"""Some things are needed by early patch releases only, and Debian 12 has one of those."""
GLIBC = ("2_17", "2_28", "2_31", "2_34")  # Debian 12 has 2.36
PROJECTS = {  # as paths: a plain word would be a name to pip
    "netweft-protos": "./protos",
    "netweft-common": "./services/common",
    "netweft-ipam": "./services/ipam",
    "netweft-controller": "./services/controller",
    "netweft-agent": "./services/driver-agent",
    "netweft-client": "./clients/python",
    "netweft-cli": "./clients/cli",
    "netweft-cni": "./clients/cni-plugin",
}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _needed() -> set[str]:
    """Return the names of all that ours need, directly or not."""
    found: set[str] = set()
    waiting = [(name, "fast") for name in PROJECTS]
    while waiting:
        name, extra = waiting.pop()
        for one in _requirements(name):
            if _is_wanted(one, extra) and _normal(one.name) not in found | PROJECTS.keys():
                found.add(_normal(one.name))
                waiting.append((one.name, ""))
    return found


def _requirements(name: str) -> list[Requirement]:
    try:
        return [Requirement(text) for text in metadata.requires(name) or ()]
    except metadata.PackageNotFoundError:  # something that this Python does not need
        return []


def _is_wanted(one: Requirement, extra: str) -> bool:
    known = {"extra": extra, "python_version": PYTHON}
    return one.marker is None or any(one.marker.evaluate({**known, "python_full_version": full}) for full in PATCHES)


def _pinned(lock: str, names: set[str]) -> Iterator[str]:
    """Yield the lock's entries of these names, each with its hashes, whatever Python this is."""
    for entry in re.split(r"\n(?=\S)", lock.strip()):
        if _normal(re.split(r"[=<>\[ ]", entry, maxsplit=1)[0]) in names:
            yield re.sub(r" ;[^\\]*", " ", entry, count=1)


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments], check=True)  # noqa: S603


def _main() -> None:
    folder = Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    machine = platform.machine()
    tags = [f"--platform=manylinux_{version}_{machine}" for version in GLIBC]
    with tempfile.TemporaryDirectory() as scratch:
        chosen = Path(scratch) / "requirements.txt"
        chosen.write_text("\n".join(_pinned(Path("requirements.lock").read_text(), _needed())) + "\n")
        _pip(
            "download", "--require-hashes", "--no-deps", "--only-binary=:all:", "--implementation=cp",
            f"--python-version={PYTHON}", *tags, f"--platform=manylinux2014_{machine}", f"--requirement={chosen}",
            f"--dest={folder}",
        )  # fmt: skip
    _pip("wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", *PROJECTS.values())
    # Python brings a wheel of pip along; Debian keeps it elsewhere.
    bundled = [sysconfig.get_config_var("WHEEL_PKG_DIR"), str(Path(ensurepip.__file__).parent / "_bundled")]
    wheels = [one for place in bundled if place for one in Path(place).glob("pip-*.whl")]
    if not wheels:
        raise SystemExit("netweft: this Python brings no wheel of pip along; on Debian: apt install python3-venv")
    shutil.copy(wheels[0], folder)


if __name__ == "__main__":
    _main()
