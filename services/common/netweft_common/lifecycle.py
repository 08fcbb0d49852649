"""The life of a service process: signals, background tasks, readiness, exit code."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any

from netweft_common import collecting, errors, logs, loops

READY_FD = "NETWEFT_READY_FD"


class Lifecycle:
    """What `run` hands to a service's main.

    Args:
        group: Owner of the background tasks.
        ready_fd: Descriptor that `ready` writes to and closes; None for none.
        environ: Environment, for NOTIFY_SOCKET.
    """

    def __init__(self, group: asyncio.TaskGroup, *, ready_fd: int | None, environ: Mapping[str, str]) -> None:
        self._group = group
        self._ready_fd = ready_fd
        self._environ = environ
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = logs.get()
        self.failed = False

    @property
    def stopping(self) -> bool:
        """Whether the process was asked to end."""
        return self._stopping.is_set()

    async def stopped(self) -> None:
        """Wait until the process is asked to end: by a signal, by `stop`, or by the death of a background task."""
        await self._stopping.wait()

    def stop(self, why: str = "asked to") -> None:
        """Ask the process to end; main's own contexts do the drain. Idempotent."""
        if not self._stopping.is_set():
            self._log.info("stopping", why=why)
            notify("STOPPING=1", self._environ)
            self._stopping.set()

    def spawn(self, coroutine: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """Run a background task until it returns or the process ends.

        One that raises ends the process: half a service is worse than a restart. It is cancelled after main has
        returned, so that it still serves the drain.
        """
        task = self._group.create_task(self._guard(coroutine, name), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def ready(self, targets: Iterable[str] = ()) -> None:
        """Tell whoever started us that we serve: systemd (sd_notify(3)), and the ready descriptor. Once."""
        listed = list(targets)
        notify(f"READY=1\nSTATUS=serving at {', '.join(listed)}", self._environ)
        if self._ready_fd is not None:
            fd, self._ready_fd = self._ready_fd, None
            try:
                os.write(fd, json.dumps({"targets": listed}).encode() + b"\n")
                os.close(fd)
            except OSError as error:
                # Whoever waited is gone, or never was there; serving goes on.
                self._log.warning("ready descriptor unusable", fd=fd, error=str(error))

    def cancel_background(self) -> None:
        """Cancel what `spawn` started; `run` calls it after main."""
        for task in self._tasks:
            task.cancel()

    async def _guard(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        try:
            await coroutine
        except Exception as error:  # noqa: BLE001  # the outermost frame of a task
            self.failed = True
            self._log.error("background task died", task=name, exc_info=error)
            self.stop(f"background task {name} died")


def run(
    main: Callable[[Lifecycle], Awaitable[None]],
    *,
    ready_fd: int | None = None,
    environ: Mapping[str, str] = os.environ,
    loop_factory: loops.LoopFactory | None = None,
) -> int:
    """Run a service until it ends, and return the process's exit code.

    The first SIGTERM or SIGINT asks to end, the second one cancels main. A NetweftError out of main is logged as one
    line, for it is the user's to mend; anything else with its traceback.

    Args:
        main: Sets up, calls `ready`, awaits `stopped`, and cleans up by leaving its contexts.
        ready_fd: Descriptor for one line of JSON when serving; when None the environment's NETWEFT_READY_FD.
        environ: Environment.
        loop_factory: Makes the event loop; None: asyncio's own.

    Returns:
        0 after an orderly end, 1 when main or a background task failed.
    """
    if ready_fd is None and environ.get(READY_FD, "").isdecimal():
        ready_fd = int(environ[READY_FD])
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(_run(main, ready_fd, environ))


async def _run(main: Callable[[Lifecycle], Awaitable[None]], ready_fd: int | None, environ: Mapping[str, str]) -> int:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    log = logs.get()
    try:
        async with asyncio.TaskGroup() as group:
            lifecycle = Lifecycle(group, ready_fd=ready_fd, environ=environ)
            collector = group.create_task(collecting.Collector().run(), name="collector")
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, _on_signal, lifecycle, task, number)
            try:
                await main(lifecycle)
            except errors.NetweftError as error:
                lifecycle.failed = True
                # One line without a traceback: this is for a user to mend.
                log.error("cannot go on", reason=error.reason, error=error.message)  # noqa: TRY400
            except Exception:
                lifecycle.failed = True
                log.exception("unexpected end")
            finally:
                collector.cancel()
                lifecycle.cancel_background()
    except asyncio.CancelledError:
        log.warning("stopped at once")
        return 1
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    return 1 if lifecycle.failed else 0


def _on_signal(lifecycle: Lifecycle, main: asyncio.Task[Any], number: signal.Signals) -> None:
    if lifecycle.stopping:
        main.cancel()
    else:
        lifecycle.stop(number.name)


def notify(state: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send a state to the service manager, sd_notify(3); False when there is none.

    Args:
        state: Lines such as `READY=1`.
        environ: Where NOTIFY_SOCKET is looked up.
    """
    path = environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        try:
            out.sendto(state.encode(), address)
        except OSError:
            return False
    return True
