"""A watchdog for test runs: what hangs beyond the timeout's reach is named, and ended with its children.

The timeout of pytest-timeout raises in the main thread, once; a test that swallows that, or hangs in its teardown after
a failure, would hold the whole run up for ever.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

_PATIENCE_S = 240.0
"""Longer than any test's timeout; the teardown is in it."""
_GRACE_S = 20.0


class _Watchdog:
    """Ends this process when it is not patted in time."""

    def __init__(self) -> None:
        self._terminal = 2
        self._timer: threading.Timer | None = None

    def remember_terminal(self) -> None:
        """Keep a way to the terminal; while tests run, descriptor 2 leads into pytest's capture."""
        self._terminal = os.dup(2)

    def watch(self, what: str) -> None:
        self.rest()
        self._timer = threading.Timer(_PATIENCE_S, self._bite, [what])
        self._timer.daemon = True
        self._timer.start()
        # The timer needs the interpreter lock; this does not.
        faulthandler.dump_traceback_later(_PATIENCE_S + _GRACE_S, file=self._terminal, exit=True)

    def rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        faulthandler.cancel_dump_traceback_later()

    def _bite(self, what: str) -> None:
        children = _descendants(os.getpid())
        told = "\n".join([f"\nHANGS: {what}", *(_line_of(pid) for pid in [os.getpid(), *children])])
        os.write(self._terminal, told.encode() + b"\n")
        faulthandler.dump_traceback(self._terminal, all_threads=True)
        for pid in children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        os._exit(70)


def _descendants(root: int) -> list[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text(errors="replace")
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= more
    return sorted(found - {root})


def _line_of(pid: int) -> str:
    parts = []
    for name in ("wchan", "cmdline"):
        try:
            parts.append(Path(f"/proc/{pid}/{name}").read_text(errors="replace").replace("\0", " "))
        except OSError as error:
            parts.append(str(error))
    return f"  process {pid} waits in {parts[0]}: {parts[1]}"


_watchdog = _Watchdog()


def pytest_configure() -> None:
    """Take note of the terminal; nothing is captured at this point."""
    _watchdog.remember_terminal()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Watch over one test with its fixtures."""
    _watchdog.watch(item.nodeid)
    try:
        return (yield)
    finally:
        _watchdog.rest()


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    """Go on watching after a failure, when pytest takes its own timers away: the teardown comes yet."""
    _watchdog.watch(node.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Watch over the end of the process: a thread that nobody joins would keep it. Workers wait for one another."""
    if not hasattr(session.config, "workerinput"):
        _watchdog.watch("the end of the test run")
