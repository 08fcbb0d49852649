"""Metrics of one process: a registry of our own, handed to whoever counts, shown at `GET /metrics`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import prometheus_client
from prometheus_client import exposition

from netweft_common import errors, listen

_REQUEST_LIMIT_BYTES = 8192
_READ_TIMEOUT_S = 5.0


def new_registry() -> prometheus_client.CollectorRegistry:
    """Return a registry with the process's own figures (memory, CPU, descriptors), and nothing global."""
    registry = prometheus_client.CollectorRegistry(auto_describe=True)
    prometheus_client.ProcessCollector(registry=registry)
    return registry


@contextlib.asynccontextmanager
async def serve(registry: prometheus_client.CollectorRegistry, target: str) -> AsyncIterator[str]:
    """Answer `GET /metrics` at a loopback address or unix socket while the context lasts.

    Args:
        registry: What to show.
        target: `127.0.0.1:port`, port 0 for any, or `unix:/path`.

    Yields:
        The target as bound.

    Raises:
        InvalidArgument: The target is malformed, or not local: the endpoint knows no authentication.
        FailedPrecondition: The address is in use.
    """
    address = listen.parse(target)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(_READ_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
            writer.write(respond(registry, head))
            await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    try:
        if isinstance(address, listen.UnixAddress):
            listen.prepare_socket(address)
            with listen.socket_umask():
                server = await asyncio.start_unix_server(answer, address.path, limit=_REQUEST_LIMIT_BYTES)
            bound = address.target
        else:
            if not address.is_loopback:
                raise errors.InvalidArgument(
                    "METRICS_NOT_LOCAL",
                    f"metrics at {target}: the endpoint has no authentication; listen on loopback or a unix socket",
                    field="metrics_listen",
                )
            server = await asyncio.start_server(answer, address.host, address.port, limit=_REQUEST_LIMIT_BYTES)
            bound = listen.TcpAddress(host=address.host, port=server.sockets[0].getsockname()[1]).target
    except OSError as error:
        raise errors.FailedPrecondition(
            "ADDRESS_UNUSABLE", f"cannot listen for metrics at {target}: {error}; choose another address", target=target
        ) from error
    try:
        async with server:
            yield bound
    finally:
        if isinstance(address, listen.UnixAddress):
            listen.remove_socket(address)


def respond(registry: prometheus_client.CollectorRegistry, head: bytes) -> bytes:
    """Return the whole HTTP/1.1 answer to a request head (RFC 9112)."""
    method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if method not in (b"GET", b"HEAD"):
        return _response("405 Method Not Allowed", "text/plain", b"only GET\n")
    if path != b"/metrics":
        return _response("404 Not Found", "text/plain", b"try /metrics\n")
    body = exposition.generate_latest(registry)
    return _response("200 OK", exposition.CONTENT_TYPE_PLAIN_0_0_4, b"" if method == b"HEAD" else body)


def _response(status: str, content_type: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
