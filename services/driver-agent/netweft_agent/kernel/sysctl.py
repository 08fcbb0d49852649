"""Kernel settings below /proc/sys/net, in the namespace that the calling thread is in.

A write costs 5 to 10 µs and takes the RTNL lock where IPv6 is concerned, so what has its value already is only read.

To open one costs more with each namespace that was looked at before: proc keeps the entries of all of them under the
same names, and compares one after the other (`proc_sys_compare` in fs/proc/proc_sysctl.c): 0.25 ms for the 400th,
0.45 ms for the 1000th. They are kept by mount, so each thread uses a mount of its own, which only its descriptor shows
(fsmount(2)), and takes a fresh one now and then: 0.03 ms, and 0.02 ms for letting go of the old one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading

from netweft_common import errors

IPV6_CONF = "net/ipv6/conf"

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
"""Numbers of the calls, which glibc has names for since 2.36 only; the same on every architecture but alpha."""
_CLOEXEC = 1
_CMD_CREATE = 6
_ATTR_NOSUID_NODEV_NOEXEC = 0xE
_OPENS = 128
"""Settings opened through one mount."""

_libc = ctypes.CDLL(None, use_errno=True)
_own = threading.local()


class _Proc:
    """A mount of proc, seen by its descriptor only; where none may be made, the one that everybody sees."""

    def __init__(self) -> None:
        fd = _mount()
        self.left = _OPENS
        self.fd = fd if fd is not None else os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def __del__(self) -> None:
        os.close(self.fd)


def _mount() -> int | None:
    """Return a new mount of proc, or None where that is not allowed: in a user namespace, before Linux 5.2."""
    context = _libc.syscall(_FSOPEN, b"proc", _CLOEXEC)
    if context < 0:
        return None
    try:
        if _libc.syscall(_FSCONFIG, context, _CMD_CREATE, None, None, 0):
            return None
        fd: int = _libc.syscall(_FSMOUNT, context, _CLOEXEC, _ATTR_NOSUID_NODEV_NOEXEC)
        return fd if fd >= 0 else None
    finally:
        os.close(context)


def _open(path: str, flags: int) -> int:
    proc: _Proc | None = getattr(_own, "proc", None)
    if proc is None or not proc.left:
        proc = _own.proc = _Proc()
    proc.left -= 1
    return os.open(path, flags | os.O_CLOEXEC, dir_fd=proc.fd)


def _check(path: str) -> str:
    if not path.startswith("net/") or ".." in path.split("/") or "\0" in path:
        raise errors.InvalidArgument(
            "INVALID_SYSCTL", f"kernel setting {path!r} is not below net/; only the network's are ours", path=path
        )
    return "sys/" + path


def read(path: str) -> str | None:
    """Return the setting with its white space folded, or None when there is none of that name.

    Raises:
        InvalidArgument: The path is not below net/.
        KernelError: It cannot be read.
    """
    try:
        fd = open_to_read(path)
        try:
            return " ".join(os.read(fd, 4096).decode().split())
        finally:
            os.close(fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise errors.KernelError("sysctl -n " + path.replace("/", "."), path, error.errno or errno.EIO) from error


def open_to_read(path: str) -> int:
    """Open a setting of the thread's namespace, where the descriptor then stays; the caller closes it.

    Raises:
        InvalidArgument: The path is not below net/.
        OSError: It cannot be opened.
    """
    return _open(_check(path), os.O_RDONLY)


def write(path: str, value: str, *, missing_ok: bool = False) -> None:
    """Make the setting so; idempotent.

    Args:
        path: Below /proc/sys.
        value: As the kernel takes it.
        missing_ok: Without such a setting there is nothing to do.

    Raises:
        InvalidArgument: The path is not below net/.
        KernelError: There is no such setting, or the kernel refuses the value.
    """
    if read(path) != " ".join(value.split()):
        _write(path, value, missing_ok=missing_ok)


def _write(path: str, value: str, *, missing_ok: bool = False) -> None:
    try:
        fd = _open(_check(path), os.O_WRONLY)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except FileNotFoundError as error:
        if not missing_ok:
            raise errors.KernelError(f"sysctl -w {path.replace('/', '.')}={value}", path, errno.ENOENT) from error
    except OSError as error:
        op = f"sysctl -w {path.replace('/', '.')}={value}"
        raise errors.KernelError(op, path, error.errno or errno.EIO) from error


def switch_ipv6(link: str, *, on: bool, look: bool = True) -> None:
    """Switch IPv6 of a link on, without router advertisements and usable at once, or off; idempotent.

    Args:
        link: Name.
        on: Off is as good as done in a kernel without IPv6.
        look: Look first whether it is off already: right where it mostly is, a waste where it mostly is not.

    Raises:
        KernelError: The kernel has no IPv6 on the link and it shall be on, or refuses.
    """
    base = f"{IPV6_CONF}/{link}"
    if on:
        # In this order: never is IPv6 on while advertisements are taken.
        write(f"{base}/accept_ra", "0")
        # While its link-local address is in doubt a bridge asks for no neighbour: a second in which nobody is reached.
        write(f"{base}/accept_dad", "0")
        # The link-local address that anti-spoofing lets through is the one made of the MAC.
        write(f"{base}/addr_gen_mode", "0")
        write(f"{base}/disable_ipv6", "0")
    elif not look or read(f"{base}/disable_ipv6") != "1":
        _write(f"{base}/disable_ipv6", "1", missing_ok=True)
