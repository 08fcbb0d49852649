"""Limits for test runs, so that what hangs is named and does not hold the whole run up for ever.

1. An async test, and each step of an async fixture, is cancelled from inside its loop, and what each task of the loop
   waited for is shown. pytest-timeout cannot do that: it raises where the main thread happens to be. In a callback that
   is swallowed; while the loop waits it ends the loop, but anyio's runner goes on with the test when the loop runs
   again, so the teardown of the test's async fixtures waits behind it without end.
2. Everything else has pytest-timeout.
3. What is beyond the reach of both a watchdog ends, with its children.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import functools
import inspect
import os
import signal
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from netweft_common import deadline

# gRPC's core tells of every server that goes away, past pytest's capture; to be set before it is loaded.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

_LIMIT_S = 110.0
"""Of an async test, and of an async fixture's setup or teardown; shorter than the timeout in pyproject.toml."""
_HEAD_START_S = 10.0
"""How much sooner than a timeout of its own an async test ends."""
_PATIENCE_S = 240.0
"""Longer than the timeout in pyproject.toml, with the teardown."""
_GRACE_S = 20.0


class _Watchdog:
    """Ends this process when it is not patted in time."""

    def __init__(self) -> None:
        self._terminal = 2
        self._timer: threading.Timer | None = None

    def remember_terminal(self) -> None:
        """Keep a way to the terminal; while tests run, descriptor 2 leads into pytest's capture."""
        self._terminal = os.dup(2)

    def watch(self, what: str, patience_s: float = _PATIENCE_S) -> None:
        self.rest()
        self._timer = threading.Timer(patience_s, self._bite, [what])
        self._timer.daemon = True
        self._timer.start()
        # The timer needs the interpreter lock; this does not.
        faulthandler.dump_traceback_later(patience_s + _GRACE_S, file=self._terminal, exit=True)

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
    _watchdog.watch(item.nodeid, _PATIENCE_S + (_own_timeout_s(item) or 0.0))
    try:
        return (yield)
    finally:
        _watchdog.rest()


def _own_timeout_s(item: pytest.Item) -> float | None:
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0]) if marker is not None else None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Limit an async test; a synchronous one has pytest-timeout."""
    own_s = _own_timeout_s(pyfuncitem)
    limit_s = _LIMIT_S if own_s is None else own_s - _HEAD_START_S
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        pyfuncitem.obj = _limited(pyfuncitem.obj, limit_s)
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
    """Limit an async fixture; anyio, whose hook comes after this one, runs it."""
    function = fixturedef.func
    if inspect.isasyncgenfunction(function):
        fixturedef.func = _limited_steps(function, _LIMIT_S)
    elif inspect.iscoroutinefunction(function):
        fixturedef.func = _limited(function, _LIMIT_S)
    try:
        return (yield)
    finally:
        fixturedef.func = function


def _limited(function: Callable[..., Awaitable[object]], limit_s: float) -> Callable[..., Awaitable[object]]:
    @functools.wraps(function)
    async def run(*args: object, **kwargs: object) -> object:
        async with _in_time(limit_s):
            return await function(*args, **kwargs)

    return run


def _limited_steps(
    function: Callable[..., AsyncGenerator[object, None]], limit_s: float
) -> Callable[..., AsyncGenerator[object, None]]:
    @functools.wraps(function)
    async def run(*args: object, **kwargs: object) -> AsyncGenerator[object, None]:
        steps = function(*args, **kwargs)
        while True:
            try:
                async with _in_time(limit_s):
                    value = await anext(steps)
            except StopAsyncIteration:
                return
            yield value

    return run


@contextlib.asynccontextmanager
async def _in_time(limit_s: float) -> AsyncIterator[None]:
    """Cancel the block at its limit, and show a moment before what each task of the loop waits for."""
    # Tests share one task, and a deadline is a task's: what an earlier test had left to wait is over by now.
    deadline.set_remaining(None)
    shown = asyncio.get_running_loop().call_later(limit_s - 1.0, _show_tasks)
    try:
        async with asyncio.timeout(limit_s):
            yield
    finally:
        shown.cancel()


def _show_tasks() -> None:
    for task in asyncio.all_tasks():
        sys.stderr.write("\n".join([f"task {task.get_name()}:", *_frames(task.get_coro())]) + "\n")


def _frames(waiting: object) -> Iterator[str]:
    """Yield where a coroutine is, and where those are that it waits for; a task's own stack ends at the first."""
    while waiting is not None:
        for prefix, inner in (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await")):
            if (frame := getattr(waiting, f"{prefix}_frame", None)) is not None:
                yield f"  {frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_qualname}"
                waiting = getattr(waiting, inner)
                break
        else:
            yield f"  {waiting!r:.200}"
            return


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    """Go on watching after a failure, when pytest takes its own timers away: the teardown comes yet."""
    _watchdog.watch(node.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Watch over the end of the process: a thread that nobody joins would keep it. Workers wait for one another."""
    if not hasattr(session.config, "workerinput"):
        _watchdog.watch("the end of the test run")
