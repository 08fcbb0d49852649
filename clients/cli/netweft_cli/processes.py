"""Processes that outlive the command that started them: spawn until ready, recognise, stop.

A process is known by its pid file, which holds the pid, the start time and the boot id: a pid that the kernel gave
to somebody else meanwhile is never signalled. What the death of a starter left without a pid file is found by the
mark in its environment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from netweft_common import errors

from netweft_cli import netns

MARK = "NETWEFT_STACK"
_LOG_TAIL_LINES = 12


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A process to be run.

    Args:
        name: Unique in the stack; the stem of its pid and log file.
        command: Program and arguments.
        netns: Namespace to run in; None for the caller's.
        probe: Tells whether it serves, for programs of others; None where it takes `--ready-fd`.
    """

    name: str
    command: tuple[str, ...]
    netns: Path | None = None
    probe: Callable[[], bool] | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process that was started, recognisable for ever."""

    name: str
    pid: int
    start_ticks: int
    boot_id: str

    @property
    def alive(self) -> bool:
        """Whether it runs; one that only waits to be reaped does not."""
        found = _stat(self.pid)
        return found is not None and found == self.start_ticks and self.boot_id == boot_id()


class Table:
    """The processes of one stack, as files below its run directory."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._children: set[int] = set()
        self._log_starts: dict[str, int] = {}

    def log_path(self, name: str) -> Path:
        """Return where a process's output goes."""
        return self._run_dir / "log" / f"{name}.log"

    def find(self, name: str) -> Process | None:
        """Return the process of a name that lives, or None."""
        try:
            process = Process(**json.loads(self._pid_path(name).read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return process if process.alive else None

    def start(self, specs: Sequence[Spec], *, timeout_s: float) -> list[Process]:
        """Start processes that do not run yet, side by side, and wait until each says that it serves. Idempotent.

        Raises:
            Unavailable: One died, or was not ready in time; with the end of its log. Those started stay.
        """
        deadline = time.monotonic() + timeout_s
        self._reap()
        started = [(spec, *self._spawn(spec)) for spec in specs if self.find(spec.name) is None]
        try:
            for spec, process, ready in started:
                self._wait(spec, process, ready, deadline)
        finally:
            for _, _, ready in started:
                os.close(ready)
        return [process for _, process, _ in started]

    def stop(self, name: str, *, grace_s: float, kill: bool = False) -> bool:
        """End a process: SIGTERM, and SIGKILL after the grace. Idempotent.

        Returns:
            Whether it ended by itself; False where it had to be killed.
        """
        process = self.find(name)
        ended = process is None or end(process.pid, grace_s=grace_s, kill=kill)
        self._reap()
        self._pid_path(name).unlink(missing_ok=True)
        return ended

    def strays(self) -> list[int]:
        """Return pids of living processes that carry this stack's mark, with or without a pid file."""
        mark = f"{MARK}={self._run_dir}".encode()
        return [pid for pid in _pids() if pid != os.getpid() and mark in _environ(pid) and _stat(pid) is not None]

    def tail(self, name: str) -> str:
        """Return the last lines of a process's output."""
        try:
            data = self.log_path(name).read_bytes()
        except OSError:
            return ""
        # What it said before it was started again explains nothing.
        lines = data[self._log_starts.get(name, 0) :].decode(errors="replace").splitlines()
        return "\n".join(lines[-_LOG_TAIL_LINES:])

    def _pid_path(self, name: str) -> Path:
        return self._run_dir / "pid" / f"{name}.json"

    def _spawn(self, spec: Spec) -> tuple[Process, int]:
        for folder in ("pid", "log"):
            (self._run_dir / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        ready, write = os.pipe()
        command = spec.command if spec.probe else (*spec.command, "--ready-fd", str(write))
        try:
            with self.log_path(spec.name).open("ab") as log:
                self._log_starts[spec.name] = log.tell()
                # A child is born in the namespace of the thread that makes it, so no launcher stands in between.
                child = netns.call(
                    spec.netns,
                    lambda: subprocess.Popen(  # noqa: S603  # our own programs
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        pass_fds=() if spec.probe else (write,),
                        env=_environment(os.environ, self._run_dir),
                        cwd="/",
                        start_new_session=True,
                    ),
                )
        except BaseException:
            os.close(ready)
            raise
        finally:
            os.close(write)
        self._children.add(child.pid)
        # It outlives this object, and this process, on purpose: Popen would warn of that. `_reap` waits in its place.
        child.returncode = 0
        process = Process(name=spec.name, pid=child.pid, start_ticks=_stat(child.pid) or 0, boot_id=boot_id())
        temporary = self._pid_path(spec.name).with_suffix(".new")
        temporary.write_text(json.dumps(dataclasses.asdict(process)))
        temporary.replace(self._pid_path(spec.name))
        return process, ready

    def _reap(self) -> None:
        """Let the kernel forget children that have ended; those of others are init's."""
        for pid in tuple(self._children):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    continue
            self._children.discard(pid)

    def _wait(self, spec: Spec, process: Process, ready: int, deadline: float) -> None:
        with contextlib.ExitStack() as stack:
            death = os.pidfd_open(process.pid)
            stack.callback(os.close, death)
            watched = [death] if spec.probe else [death, ready]
            while (left_s := deadline - time.monotonic()) > 0:
                if spec.probe is not None and spec.probe():
                    return
                # A foreign program tells nobody that it serves; its death is still noticed at once.
                readable = _readable(watched, min(left_s, 0.005) if spec.probe else left_s)
                if ready in readable and os.read(ready, 1):
                    return
                if readable:
                    # The descriptor closes a moment before its process is gone.
                    _readable([death], 1.0)
                    raise self._failed(spec.name, "ended while it started")
        raise self._failed(spec.name, "did not become ready in time")

    def _failed(self, name: str, how: str) -> errors.Unavailable:
        tail = self.tail(name)
        return errors.Unavailable(
            "PROCESS_NOT_READY",
            f"{name} {how}; " + (f"its last words were:\n{tail}" if tail else "it said nothing"),
            process=name,
            log=str(self.log_path(name)),
        )


def end(pid: int, *, grace_s: float, kill: bool = False) -> bool:
    """End a process and wait until it is gone; True where SIGTERM was enough."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        with contextlib.suppress(ProcessLookupError):
            if not kill:
                signal.pidfd_send_signal(fd, signal.SIGTERM)
                if _readable([fd], grace_s):
                    return True
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            _readable([fd], 10)
            return False
        return True
    finally:
        os.close(fd)


def _readable(fds: Sequence[int], timeout_s: float) -> list[int]:
    """Wait until a descriptor can be read, whatever its number (select(2) takes none above 1,023), and return those."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(timeout_s * 1e3)]


def boot_id() -> str:
    """Return the kernel's boot id: pids of another boot mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _environment(environ: Mapping[str, str], run_dir: Path) -> dict[str, str]:
    # The descriptor of whoever starts us is none of our children's.
    return {key: value for key, value in environ.items() if key not in ("NETWEFT_READY_FD", "NOTIFY_SOCKET")} | {
        MARK: str(run_dir),
        "PYTHONUNBUFFERED": "1",
    }


def _pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdecimal())  # noqa: PTH208  # names are enough


def _environ(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _stat(pid: int) -> int | None:
    """Return the start time in ticks since boot, proc(5) stat field 22; None for a process that is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *rest = text[text.rindex(")") + 2 :].split()
    return None if state in "ZX" else int(rest[18])
