"""The real store, IPAM and controller under simulated hosts, as processes of their own."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from netweft_cli import stack as stack_command

from tests.support.store import StoreServer

IN_MEMORY = Path("/dev/shm")  # journals of a thousand hosts are not what is looked at


class Services:
    """Running services.

    Attributes:
        folder: Run directory; short, for sockets are in it.
        pids: Of the processes, by name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pids: dict[str, int] = {}

    @property
    def controller(self) -> str:
        """Target of the controller."""
        return f"unix:{self.folder}/controller.sock"


@contextlib.contextmanager
def running(*, appendfsync: str = "everysec", environ: Mapping[str, str] | None = None) -> Iterator[Services]:
    """Run them, and see to it that they end in order."""
    with (
        tempfile.TemporaryDirectory(prefix="nw-scale-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder,
        StoreServer(appendfsync=appendfsync) as store,
        contextlib.ExitStack() as stack,
    ):
        made = Services(Path(folder))
        made.pids["store"] = store.pid
        ipam = f"unix:{folder}/ipam.sock"
        for name, options in (("ipam", []), ("controller", ["--ipam-target", ipam])):
            command = [*stack_command.service(name), "--store-url", store.url, *options]
            process = spawn([*command, "--listen", f"unix:{folder}/{name}.sock"], made.folder / f"{name}.log", environ)
            stack.callback(end, process, name)
            made.pids[name] = process.pid
        yield made


def spawn(command: list[str], log: Path, environ: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a process that takes `--ready-fd`; returns when it serves."""
    ready, write = os.pipe()
    with log.open("ab") as file:
        process = subprocess.Popen(
            [*command, "--ready-fd", str(write)],
            pass_fds=[write],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env={**os.environ, **(environ or {})},
        )
    os.close(write)
    try:
        assert select.select([ready], [], [], 60)[0], f"{command} did not become ready: {log.read_text()[-2000:]}"
        assert os.read(ready, 4096), f"{command} ended before it was ready: {log.read_text()[-2000:]}"
    except BaseException:
        process.kill()
        process.wait(timeout=15)
        raise
    finally:
        os.close(ready)
    return process


def end(process: subprocess.Popen[bytes], name: str) -> None:
    """End a process in order."""
    process.terminate()
    try:
        code = process.wait(timeout=90)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout=15)
        raise
    finally:
        if process.stdin is not None:
            process.stdin.close()
    assert code == 0, f"{name} ended with {code}"
