"""Network namespaces by path: make one, remove one, do something inside one.

`os.setns` is Python 3.12's, so the C library is called. setns(2) and unshare(2) act on the calling thread; every
function here uses a thread of its own, so the caller's namespace never changes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from netweft_common import errors

T = TypeVar("T")

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def create(path: Path) -> None:
    """Make a namespace and bind it to a path, as `ip netns add` does; its loopback is down.

    Raises:
        FailedPrecondition: The kernel refuses; the caller lacks CAP_SYS_ADMIN.
        AlreadyExists: Something is at the path.
    """

    def make() -> None:
        unshare(CLONE_NEWNET)
        mount("/proc/thread-self/ns/net", path, MS_BIND)

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        path.touch(mode=0o400, exist_ok=False)
    except FileExistsError as error:
        raise errors.AlreadyExists("NAMESPACE_EXISTS", f"{path} exists; remove it first", path=str(path)) from error
    try:
        in_thread(make)
    except OSError as error:
        path.unlink()
        raise errors.FailedPrecondition(
            "NAMESPACE_REFUSED",
            f"cannot make a network namespace at {path}: {error.strerror}; run as root (CAP_SYS_ADMIN)",
            path=str(path),
        ) from error


def remove(path: Path) -> None:
    """Unbind and remove the path; the namespace goes with its last user. Idempotent, and never fails: look after it."""
    _libc.umount2(os.fsencode(path), MNT_DETACH)
    with contextlib.suppress(OSError):
        path.unlink()


def inode(path: Path) -> int:
    """Return the number that tells namespaces apart: the inode in nsfs."""
    return path.stat().st_ino


def is_bound(path: Path) -> bool:
    """Whether a namespace is bound to the path: nsfs files are on a device of their own."""
    try:
        return path.stat().st_dev == Path("/proc/self/ns/net").stat().st_dev
    except OSError:
        return False


def call(path: Path | None, function: Callable[[], T]) -> T:
    """Return what a function returns inside a namespace; where it is None, inside the caller's.

    Sockets and processes that it makes stay in that namespace.

    Raises:
        NotFound: No namespace is at the path.
        Exception: What the function raises.
    """
    if path is None:
        return function()

    def inside() -> T:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _check(_libc.setns(fd, CLONE_NEWNET))
            finally:
                os.close(fd)
        except OSError as error:
            raise errors.NotFound(
                "NAMESPACE_NOT_FOUND", f"{path} is no network namespace: {error.strerror}", path=str(path)
            ) from error
        return function()

    return in_thread(inside)


def in_thread(function: Callable[[], T]) -> T:
    """Return what a function returns in a new thread, or raise what it raises."""
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001  # handed to the caller below
            failures.append(error)

    thread = threading.Thread(target=run, name="netns")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def unshare(flags: int) -> None:
    """Give the calling thread new namespaces.

    Raises:
        OSError: The kernel refuses.
    """
    _check(_libc.unshare(flags))


def mount(source: str, target: Path, flags: int) -> None:
    """Mount with neither type nor data.

    Raises:
        OSError: The kernel refuses.
    """
    _check(_libc.mount(source.encode(), os.fsencode(target), None, ctypes.c_ulong(flags), None))


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
