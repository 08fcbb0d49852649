"""A netweft-ipam process that a test may kill and start again."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path


class IpamProcess:
    """One process, given a store and nothing else that it needs.

    Args:
        store_url: Its store.
        directory: Where its socket and its log are.
        options: Further options.
    """

    def __init__(self, store_url: str, directory: Path, *options: str) -> None:
        self.target = f"unix:{directory}/ipam.sock"
        self.log = directory / "ipam.log"
        self._command = [sys.executable, "-m", "netweft_ipam.app", "--store-url", store_url, "--listen", self.target]
        self._command += options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; returns when it serves."""
        ready, write = os.pipe()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([*self._command, "--ready-fd", str(write)], pass_fds=[write], stderr=log)
        os.close(write)
        try:
            assert select.select([ready], [], [], 30)[0], "netweft-ipam did not become ready"
            assert os.read(ready, 4096), f"netweft-ipam ended before it was ready: {self.log.read_text()}"
        finally:
            os.close(ready)

    def kill9(self) -> None:
        """Kill it with SIGKILL."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(timeout=15)

    def stop(self) -> int:
        """End it in order; returns its exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(timeout=15)
