"""HTTP/1.1 as Docker speaks it to its plugins: POSTs with JSON, over a unix socket. h11 has the grammar (RFC 9112)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import h11
import structlog

from netweft_agent.frontends import sockets

log = structlog.get_logger(__name__)

MOST_BYTES = 1 << 20
"""Of a body: a container with all 65,535 ports published takes half of it."""
REQUEST_S = 10.0
"""How long a request may take to arrive, once it has begun."""
IDLE_S = 600.0
"""How long a connection may wait for its next request; Docker keeps one open."""
VANISHED_S = 2.0
"""How often it is looked whether the socket's file is still there."""
NO_PLACE_S = 30.0
"""How often it is tried to make it where that failed."""
DRAIN_S = 1.0
"""How long somebody whose request was refused may go on sending it."""
CONTENT_TYPE = b"application/vnd.docker.plugins.v1.2+json"
_CHUNK = 1 << 16
_MOST_DRAINED = 8 << 20


class Answers(Protocol):
    """Who answers."""

    async def answer(self, target: str, body: bytes) -> tuple[int, bytes]:
        """Return the status and the body that answer a POST; never raises."""

    def refuse(self, message: str) -> bytes:
        """Return the body that says why a request is answered by nobody."""


async def serve_always(path: Path, service: Answers) -> None:
    """Serve until cancelled; a socket whose file somebody has removed is made again, for Docker to find the plugin.

    A host without a place for it has no Docker, and its agent goes on.
    """
    while True:
        try:
            async with serve(path, service):
                while path.is_socket():  # noqa: ASYNC110, ASYNC240  # one stat(2); an event of it would need a library
                    await asyncio.sleep(VANISHED_S)
            log.warning("the socket of the Docker plugin has vanished and is made again", path=str(path))
        except OSError as error:
            log.warning("no socket for Docker", path=str(path), error=str(error))
            await asyncio.sleep(NO_PLACE_S)


@contextlib.asynccontextmanager
async def serve(path: Path, service: Answers) -> AsyncIterator[None]:
    """Serve on a unix socket while the block runs; only root, or who runs the agent, may ask."""
    async with sockets.serve(path, lambda connection: _converse(connection, service)):
        yield


async def _converse(connection: socket.socket, service: Answers) -> None:
    """Answer one caller's requests, one after the other; whatever he does, nobody else has to suffer."""
    loop = asyncio.get_running_loop()
    http = h11.Connection(h11.SERVER)
    with contextlib.suppress(OSError, TimeoutError):
        allowed = sockets.may_ask(connection)
        while True:
            try:
                asked = await _request(connection, http)
                if asked is None:
                    return
                if allowed:
                    status, body = await service.answer(*asked)
                else:
                    status, body = 403, service.refuse("only root may ask netweft's agent for networks")
            except _Refused as error:
                status, body = error.status, service.refuse(str(error))
            except h11.RemoteProtocolError as error:
                status, body = error.error_status_hint, service.refuse(f"this is no HTTP: {error}")
            if http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
                return
            await loop.sock_sendall(connection, _answer(http, status, body))
            if http.states != {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
                await _drain(connection)
                return
            http.start_next_cycle()


async def _drain(connection: socket.socket) -> None:
    """Say that this was all, and read a little of what is still coming: a reset would take the answer away."""
    loop = asyncio.get_running_loop()
    connection.shutdown(socket.SHUT_WR)
    async with asyncio.timeout(DRAIN_S):
        for _ in range(_MOST_DRAINED // _CHUNK):
            if not await loop.sock_recv(connection, _CHUNK):
                return


class _Refused(Exception):
    """A request that is answered without being understood."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def _request(connection: socket.socket, http: h11.Connection) -> tuple[str, bytes] | None:
    """Return target and body of the next request; None: there is none."""
    async with asyncio.timeout(IDLE_S) as limit:
        request = await _event(connection, http, limit)
        if not isinstance(request, h11.Request):
            return None
        parts: list[bytes] = []
        size = 0
        while isinstance(event := await _event(connection, http, limit), h11.Data):
            parts.append(bytes(event.data))
            size += len(event.data)
            if size > MOST_BYTES:
                raise _Refused(413, f"a request has at most {MOST_BYTES} bytes")
        if not isinstance(event, h11.EndOfMessage):
            return None
    if request.method != b"POST":
        raise _Refused(405, f"{request.method.decode('ascii')} is not what Docker asks plugins with: it POSTs")
    return request.target.decode("ascii"), b"".join(parts)


async def _event(connection: socket.socket, http: h11.Connection, limit: asyncio.Timeout) -> object:
    """Return the next event; once a request has begun, it has to come to its end."""
    loop = asyncio.get_running_loop()
    while (event := http.next_event()) is h11.NEED_DATA:
        if http.they_are_waiting_for_100_continue:
            go_on = http.send(h11.InformationalResponse(status_code=100, headers=[]))
            await loop.sock_sendall(connection, go_on or b"")
        data = await loop.sock_recv(connection, _CHUNK)
        if data and http.their_state is h11.IDLE and not http.trailing_data[0]:
            limit.reschedule(loop.time() + REQUEST_S)
        http.receive_data(data)
    return event


def _answer(http: h11.Connection, status: int, body: bytes) -> bytes:
    headers = [(b"Content-Type", CONTENT_TYPE), (b"Content-Length", b"%d" % len(body))]
    return b"".join(
        http.send(event) or b""
        for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage())
    )
