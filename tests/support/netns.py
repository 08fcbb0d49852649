"""Network namespaces for tests: made in this process, removed without a trace.

A namespace lives as long as its descriptor (and its bind mount, if it has a name) and what runs in it. Code is run
inside in a thread of its own, which enters the namespace and ends: sockets that it opened stay there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import pytest

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_MS_BIND = 4096
_MNT_DETACH = 2
_LIMIT_S = 100.0
"""Of anything that is run in a namespace; a test has two minutes."""
_libc = ctypes.CDLL(None, use_errno=True)


def require_root() -> None:
    """Skip the test where namespaces cannot be made."""
    if os.geteuid() != 0:
        pytest.skip("makes network namespaces: needs root")


def require_tool(name: str) -> None:
    """Skip the test where a program is not installed."""
    if shutil.which(name) is None:
        pytest.skip(f"needs `{name}`, which is not installed")


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


class Netns:
    """A new network namespace, with its loopback down.

    Args:
        name: Bind-mount it as a file of this name, as a container runtime does; without, it lives by `fd` alone.
    """

    def __init__(self, name: str | None = None) -> None:
        self._folder: Path | None = None
        self.fd = _in_thread(_unshare)
        self.path = f"/proc/{os.getpid()}/fd/{self.fd}"
        """For `nsenter --net=`, `ip link ... netns`, and whoever takes a namespace by path."""
        if name is not None:
            self._folder = Path(tempfile.mkdtemp(prefix="netns-"))
            file = self._folder / name
            file.touch()
            source = f"/proc/self/fd/{self.fd}".encode()
            _check(_libc.mount(source, os.fsencode(file), b"none", _MS_BIND, None), "mount")
            self.path = str(file)

    @classmethod
    def at(cls, path: str) -> Self:
        """Open a namespace that somebody else has made; `close` lets go of it and no more."""
        found = cls.__new__(cls)
        found._folder = None
        found.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        found.path = f"/proc/{os.getpid()}/fd/{found.fd}"
        return found

    def run(self, function: Callable[[], T]) -> T:
        """Return what the function returns, called inside."""

        def inside() -> T:
            _check(_libc.setns(self.fd, _CLONE_NEWNET), "setns")
            return function()

        return _in_thread(inside)

    def exec(self, command: Sequence[str], *, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command inside, and fail with its output if it fails."""
        argv = ["nsenter", f"--net={self.path}", *command]
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, timeout=_LIMIT_S)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done

    def popen(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """Start a command inside; the caller ends it."""
        argv = ["nsenter", f"--net={self.path}", *command]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def close(self) -> None:
        """Let go of the namespace, which ends with the last socket and process in it."""
        if self._folder is not None:
            _libc.umount2(os.fsencode(self.path), _MNT_DETACH)
            shutil.rmtree(self._folder)
            self._folder = None
        with contextlib.suppress(OSError):
            os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def veth(one: Netns, name: str, other: Netns, other_name: str) -> None:
    """Join two namespaces by a veth pair, both ends up."""
    one.exec(["ip", "link", "add", name, "type", "veth", "peer", "name", other_name, "netns", other.path])
    one.exec(["ip", "link", "set", name, "up"])
    other.exec(["ip", "link", "set", other_name, "up"])


def _unshare() -> int:
    _check(_libc.unshare(_CLONE_NEWNET), "unshare")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _in_thread(function: Callable[[], T]) -> T:
    result: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            result.append(function())
        except BaseException as error:  # noqa: BLE001 (handed to the caller, whatever it is)
            failure.append(error)

    # A daemon: what hangs in it does not keep the process from its end as well.
    thread = threading.Thread(target=body, name="inside-netns", daemon=True)
    thread.start()
    thread.join(_LIMIT_S)
    if thread.is_alive():
        raise TimeoutError(f"{function} has not returned from a namespace in {_LIMIT_S:g} s")
    if failure:
        raise failure[0]
    return result[0]
