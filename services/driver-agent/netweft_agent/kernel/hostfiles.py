"""The host's own hosts and resolv.conf, and when they change.

inotify(7) tells of changes: of the files themselves, which may be written in place or be mounts, and of the folders
that they and the targets of their links are in, where a new one comes by rename. What it cannot tell, for want of
watches say, a look now and then finds.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec

from netweft_agent.domain import sandbox
from netweft_agent.domain.objects import HostFiles

# linux/inotify.h
_IN_CLOSE_WRITE = 0x008
_IN_MOVED_FROM, _IN_MOVED_TO = 0x040, 0x080
_IN_CREATE, _IN_DELETE, _IN_DELETE_SELF, _IN_MOVE_SELF = 0x100, 0x200, 0x400, 0x800
_OF_A_FOLDER = _IN_CLOSE_WRITE | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE
_OF_A_FILE = _IN_CLOSE_WRITE | _IN_DELETE_SELF | _IN_MOVE_SELF
_EVENTS_BYTES = 1 << 16

_libc = ctypes.CDLL(None, use_errno=True)


class Paths(msgspec.Struct, frozen=True, kw_only=True):
    """Where the host has what.

    Attributes:
        resolved: Where systemd-resolved(8) lists the servers behind its stub.
    """

    resolv_conf: Path = Path("/etc/resolv.conf")
    resolved: Path = Path("/run/systemd/resolve/resolv.conf")
    hosts: Path = Path("/etc/hosts")

    def all(self) -> tuple[Path, ...]:
        """Return all of them."""
        return (self.resolv_conf, self.resolved, self.hosts)


def read(paths: Paths) -> HostFiles:
    """Return the files as they are; one that is not there, or cannot be read, is empty.

    Where the only name server is systemd-resolved's stub, which no sandbox reaches, the servers behind it are returned
    (libnetwork's `resolvconf.Path`).
    """
    text, origin = _text(paths.resolv_conf), paths.resolv_conf
    if sandbox.is_stub(text) and paths.resolved.exists():
        text, origin = _text(paths.resolved), paths.resolved
    return HostFiles(resolv_conf=text, resolv_conf_path=str(origin), hosts=_text(paths.hosts))


async def changes(
    paths: Paths, known: HostFiles, *, interval_s: float, debounce_s: float = 0.1
) -> AsyncIterator[HostFiles]:
    """Yield the files whenever they are other than before, until cancelled.

    Args:
        paths: Where they are.
        known: What was read before.
        interval_s: A look every so many seconds whatever inotify says.
        debounce_s: Rest after an event: an editor makes several.
    """
    wake = asyncio.Event()
    with _inotify() as fd:
        loop = asyncio.get_running_loop()
        loop.add_reader(fd, _drain, fd, wake)
        try:
            while True:
                # Before the look: what changes after it wakes us. A link may lead elsewhere now.
                _watch(fd, paths)
                found = read(paths)
                if found != known:
                    known = found
                    yield found
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(interval_s):
                        await wake.wait()
                await asyncio.sleep(debounce_s)
                wake.clear()
        finally:
            loop.remove_reader(fd)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


@contextlib.contextmanager
def _inotify() -> Iterator[int]:
    fd = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:  # the user's limit of instances is reached: an end of a pipe tells of nothing
        fd, other = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    else:
        other = -1
    try:
        yield fd
    finally:
        os.close(fd)
        if other >= 0:
            os.close(other)


def _watch(fd: int, paths: Paths) -> None:
    """Watch everything that is there; what is watched already stays so."""
    for path in paths.all():
        target = Path(os.path.realpath(path))
        for folder in {path.parent, target.parent}:
            _libc.inotify_add_watch(fd, os.fsencode(folder), _OF_A_FOLDER)
        _libc.inotify_add_watch(fd, os.fsencode(target), _OF_A_FILE)


def _drain(fd: int, wake: asyncio.Event) -> None:
    with contextlib.suppress(BlockingIOError):
        while os.read(fd, _EVENTS_BYTES):
            pass
    wake.set()
