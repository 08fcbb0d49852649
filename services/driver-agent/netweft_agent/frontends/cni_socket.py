"""The socket of CNI's plugin: a frame and a descriptor in, an exit code and a text out (unix(7), SCM_RIGHTS)."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from netweft_agent.frontends import cni_result, sockets
from netweft_agent.frontends.cni_config import VERSIONS, CniError, Code

MOST_BYTES = (4 << 20) + (1 << 20)
"""Of a frame: the plugin's limit of a configuration, and what the environment of a process may have."""
REQUEST_S = 10.0
"""How long a request may take to arrive."""
_DESCRIPTORS = 8


class Answers(Protocol):
    """Who answers."""

    async def answer(self, frame: bytes, netns: int | None) -> tuple[int, bytes]:
        """Return exit code and text."""


@contextlib.asynccontextmanager
async def serve(path: Path, service: Answers) -> AsyncIterator[None]:
    """Serve on a unix socket while the block runs; only root, or who runs the agent, may ask."""
    async with sockets.serve(path, lambda connection: _converse(connection, service)):
        yield


async def _converse(connection: socket.socket, service: Answers) -> None:
    """Answer one plugin; whatever it does, nobody else has to suffer."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError, TimeoutError):
        if not sockets.may_ask(connection):
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
