"""The socket of CNI's plugin: a frame and a descriptor in, an exit code and a text out (unix(7), SCM_RIGHTS)."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import structlog

from netweft_agent.frontends import cni_result
from netweft_agent.frontends.cni_config import VERSIONS, CniError, Code

log = structlog.get_logger(__name__)

MOST_BYTES = (4 << 20) + (1 << 20)
"""Of a frame: the plugin's limit of a configuration, and what the environment of a process may have."""
REQUEST_S = 10.0
"""How long a request may take to arrive."""
_DESCRIPTORS = 8
_CREDENTIALS = struct.Struct("=iII")


class Answers(Protocol):
    """Who answers."""

    async def answer(self, frame: bytes, netns: int | None) -> tuple[int, bytes]:
        """Return exit code and text."""


@contextlib.asynccontextmanager
async def serve(path: Path, service: Answers) -> AsyncIterator[None]:
    """Serve on a unix socket while the block runs; only root, or who runs the agent, may ask."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
        _bind(listener, path)
        try:
            async with asyncio.TaskGroup() as tasks:
                accepting = tasks.create_task(_accept(listener, service))
                yield
                accepting.cancel()
        finally:
            _remove(path)


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


async def _accept(listener: socket.socket, service: Answers) -> None:
    """Converse with all who come, until cancelled, which ends the conversations too."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:  # no descriptor left, say
                log.warning("cni socket does not accept", error=str(error))
                await asyncio.sleep(0.1)
                continue
            tasks.create_task(_converse(connection, service))


async def _converse(connection: socket.socket, service: Answers) -> None:
    """Answer one plugin; whatever it does, nobody else has to suffer."""
    loop = asyncio.get_running_loop()
    with connection, contextlib.suppress(OSError, TimeoutError):
        connection.setblocking(False)  # noqa: FBT003  # the socket module's signature
        if not _may_ask(connection):
            denied = CniError(Code.DENIED, "only root may ask netweft's agent for networks")
            await loop.sock_sendall(connection, b"1" + cni_result.failure(VERSIONS[-1], denied))
            return
        descriptors: list[int] = []
        try:
            async with asyncio.timeout(REQUEST_S):
                frame = await _receive(connection, descriptors)
            code, text = await service.answer(frame, descriptors[0] if descriptors else None)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        await loop.sock_sendall(connection, b"%d" % code + text)


def _may_ask(connection: socket.socket) -> bool:
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(packed)
    return uid in {0, os.geteuid()}


async def _receive(connection: socket.socket, descriptors: list[int]) -> bytes:
    """Return one frame, whose first twelve bytes say how long it is, or as much as there is of it."""
    frame, expected = b"", 12
    while len(frame) < expected:
        await _readable(connection)
        data, control, _, _ = connection.recvmsg(1 << 16, socket.CMSG_SPACE(4 * _DESCRIPTORS), socket.MSG_CMSG_CLOEXEC)
        for level, kind, payload in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors += array.array("i", payload[: len(payload) // 4 * 4])
        if not data:
            break
        frame += data
        if len(frame) >= 12:
            expected = 12 + int.from_bytes(frame[4:8], "big") + int.from_bytes(frame[8:12], "big")
            if expected > MOST_BYTES:
                break
    return frame


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(connection, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection)
