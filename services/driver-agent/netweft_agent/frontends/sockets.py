"""Unix sockets of front-ends: who may ask, and that nobody suffers from another (unix(7), SO_PEERCRED)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

Converse = Callable[[socket.socket], Awaitable[None]]
_CREDENTIALS = struct.Struct("=iII")


@contextlib.asynccontextmanager
async def serve(path: Path, converse: Converse) -> AsyncIterator[None]:
    """Serve on a socket of mode 0660 while the block runs, and remove it; each caller has a task of his own.

    Args:
        path: Of the socket; an old one is replaced.
        converse: Speaks with one caller; must not fail, and does not close the connection.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
        _bind(listener, path)
        try:
            async with asyncio.TaskGroup() as tasks:
                accepting = tasks.create_task(_accept(listener, converse))
                yield
                accepting.cancel()
        finally:
            _remove(path)


def may_ask(connection: socket.socket) -> bool:
    """Return whether the other side is root, or who runs the agent."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(packed)
    return uid in {0, os.geteuid()}


def _bind(listener: socket.socket, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Under another name until its mode is right, so that nobody gets in between; an old one is replaced.
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    listener.bind(str(fresh))
    fresh.chmod(0o660)
    listener.listen(128)
    fresh.rename(path)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


async def _accept(listener: socket.socket, converse: Converse) -> None:
    """Converse with all who come, until cancelled, which ends the conversations too."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:  # no descriptor left, say
                log.warning("a front-end's socket does not accept", error=str(error))
                await asyncio.sleep(0.1)
                continue
            tasks.create_task(_with(connection, converse))


async def _with(connection: socket.socket, converse: Converse) -> None:
    with connection:
        connection.setblocking(False)  # noqa: FBT003  # the socket module's signature
        await converse(connection)
