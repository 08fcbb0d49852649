"""One connection to a Redis server, shared by all who call: commands are pipelined, answers come in their order.

Smaller than redis-py where it matters here. A caller that is cancelled leaves its answer to be dropped and disturbs
nobody; nothing is ever sent twice; a call costs a third of the time. Whoever has all keys in one slot of a cluster
needs no more of it than this: the server's MOVED to that slot's owner is followed.

Services that speak to a store use it, in their `store/` alone; they name hiredis among their own dependencies.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import ssl
import typing
import urllib.parse
from typing import Any

import hiredis

from netweft_common import errors

# Far above any answer of ours but the scans, which are read in parts.
_WRITE_LIMIT_BYTES = 1 << 20


class LostError(Exception):
    """There is no connection, or it broke; commands without an answer may or may not have been executed.

    Args:
        text: What happened.
        was_sent: Whether the command may have reached the server.
    """

    def __init__(self, text: str, *, was_sent: bool = True) -> None:
        super().__init__(text)
        self.was_sent = was_sent


class ReplyError(Exception):
    """The server refused a command; the text begins with a code."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a server is, and how to enter.

    Attributes:
        path: Unix socket; empty: TCP.
        database: Number to select.
        ca_file: Who signs the server's certificate; empty: whom the machine trusts.
        cert_file: Our certificate; empty: none.
        key_file: Its key.
    """

    host: str = "127.0.0.1"
    port: int = 6379
    path: str = ""
    tls: bool = False
    username: str = ""
    password: str = ""
    database: int = 0
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""


def parse_url(url: str) -> Address:
    """Return the address of a URL: redis://, rediss://, unix://, each with user:password@ and a database.

    rediss:// takes the names of files as redis-py does: `?ssl_ca_certs=…&ssl_certfile=…&ssl_keyfile=…`.

    Raises:
        InvalidArgument: It is none of these.
    """
    parts = urllib.parse.urlsplit(url)
    scheme = parts.scheme.removesuffix("+cluster")
    if scheme not in ("redis", "rediss", "unix"):
        raise errors.InvalidArgument(
            "STORE_URL_MALFORMED",
            f"store_url: {parts.scheme or '(none)'}:// is no scheme of a store; use redis://, rediss:// or unix://",
            field="store_url",
        )
    user, secret = urllib.parse.unquote(parts.username or ""), urllib.parse.unquote(parts.password or "")
    query = dict(urllib.parse.parse_qsl(parts.query))
    try:
        if scheme == "unix":
            path = urllib.parse.unquote(parts.path)
            return Address(path=path, username=user, password=secret, database=int(query.get("db", "0")))
        database = int(query.get("db") or parts.path.strip("/") or "0")
        return Address(
            host=parts.hostname or "127.0.0.1",
            port=parts.port or 6379,
            tls=scheme == "rediss",
            username=user,
            password=secret,
            database=database,
            ca_file=query.get("ssl_ca_certs", ""),
            cert_file=query.get("ssl_certfile", ""),
            key_file=query.get("ssl_keyfile", ""),
        )
    except ValueError as error:
        raise errors.InvalidArgument(
            "STORE_URL_MALFORMED", f"store_url: {error}; the database and port are numbers", field="store_url"
        ) from error


class Client:
    """A connection that is made when it is needed, and again after it broke.

    Args:
        url: See `parse_url`.
        connect_timeout_s: Longest wait for a connection, in seconds.
    """

    def __init__(self, url: str, *, connect_timeout_s: float) -> None:
        self._address = parse_url(url)
        self._connect_timeout_s = connect_timeout_s
        self._protocol: _Protocol | None = None
        self._connecting: asyncio.Task[_Protocol] | None = None
        self._closed = False

    async def execute(self, *command: Any, timeout_s: float | None = None) -> Any:
        """Send a command and return its answer; arguments are bytes, str, int or float.

        A caller that is cancelled, or that runs out of time, does not stop the command.

        Args:
            command: The command.
            timeout_s: Longest wait for the answer, and for the connection if there is none; None: for ever.

        Raises:
            LostError: No connection, or it broke before the answer.
            ReplyError: The server refused.
            TimeoutError: No answer in time.
        """
        protocol = self._protocol
        if protocol is None or protocol.is_lost:
            async with asyncio.timeout(timeout_s):
                protocol = await self._connect()
        try:
            return await protocol.send(command, timeout_s)
        except ReplyError as error:
            if str(error).startswith("MOVED ") and self._follow(str(error)):
                return await (await self._connect()).send(command, timeout_s)
            raise

    async def execute_all(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Send commands at once, all over the same connection, and return their answers; a refusal stands in its place.

        Raises:
            LostError: No connection, or it broke before the last answer.
        """
        protocol = self._protocol
        if protocol is None or protocol.is_lost:
            protocol = await self._connect()
        return await asyncio.gather(*map(protocol.send, commands), return_exceptions=True)

    def abort(self) -> None:
        """Drop the connection: whoever waits gets LostError, the next command makes a new one."""
        if self._protocol is not None:
            self._protocol.abort()
            self._protocol = None

    def abort_if_silent(self, for_s: float) -> None:
        """Drop the connection if a command waits and nothing has come for so long: the way to the server is dead.

        Not for a connection on which commands block, or a caller's own impatience would end the others' calls.
        """
        if self._protocol is not None and self._protocol.silent_s() >= for_s:
            self.abort()

    async def close(self) -> None:
        """Close for good."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        self.abort()

    async def _connect(self) -> _Protocol:
        if self._closed:
            raise LostError("the connection was closed by this process", was_sent=False)
        if self._protocol is not None and not self._protocol.is_lost:
            return self._protocol
        if self._connecting is None:
            # Its own task: the first caller may be cancelled, the others still wait for it.
            self._connecting = asyncio.get_running_loop().create_task(self._open(), name="store connection")
            self._connecting.add_done_callback(self._connected)
        try:
            return await asyncio.shield(self._connecting)
        except LostError as error:
            # Each caller its own: one exception raised to many would grow a traceback for each.
            raise LostError(str(error), was_sent=False) from error

    def _connected(self, task: asyncio.Task[_Protocol]) -> None:
        self._connecting = None
        if not task.cancelled() and task.exception() is None:
            self._protocol = task.result()

    async def _open(self) -> _Protocol:
        address = self._address
        loop = asyncio.get_running_loop()
        protocol: _Protocol | None = None
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                if address.path:
                    _, protocol = await loop.create_unix_connection(_Protocol, address.path)
                else:
                    context = _tls_context(address) if address.tls else None
                    _, protocol = await loop.create_connection(_Protocol, address.host, address.port, ssl=context)
                if address.password:
                    user = (address.username,) if address.username else ()
                    await protocol.send(("AUTH", *user, address.password))
                if address.database:
                    await protocol.send(("SELECT", address.database))
        except (OSError, TimeoutError, LostError, ReplyError) as error:
            if protocol is not None:
                protocol.abort()
            raise LostError(str(error) or type(error).__name__, was_sent=False) from error
        except asyncio.CancelledError:
            if protocol is not None:
                protocol.abort()
            raise
        return protocol

    def _follow(self, moved: str) -> bool:
        """Go where MOVED says: `MOVED <slot> <host>:<port>`, without a host on the same one."""
        host, _, port = moved.split()[2].rpartition(":")
        if not port.isdecimal():
            return False
        self.abort()
        self._address = dataclasses.replace(self._address, host=host or self._address.host, port=int(port), path="")
        return True


def _tls_context(address: Address) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=address.ca_file or None)
    if address.cert_file:
        context.load_cert_chain(address.cert_file, address.key_file or None)
    return context


class _Protocol(asyncio.Protocol):
    """Answers in the order of commands."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._heard_at = 0.0
        self._unsent: list[bytes] = []
        self._reader = hiredis.Reader(replyError=ReplyError)
        self._waiting: collections.deque[asyncio.Future[Any]] = collections.deque()
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = typing.cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_WRITE_LIMIT_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._writable.set()
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(LostError(str(exc) if exc else "the server closed the connection"))

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        reader = self._reader
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not False:
                future = self._waiting.popleft()
                if future.done():
                    continue
                if isinstance(reply, ReplyError):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)
        except (hiredis.ProtocolError, IndexError):
            # What speaks there is no Redis server, or we have lost count: nothing on this connection can be believed.
            self.abort()

    async def send(self, command: tuple[Any, ...], timeout_s: float | None = None) -> Any:
        if not self._writable.is_set():
            await self._writable.wait()
        if self.is_lost or self._transport is None:
            raise LostError("the connection is lost", was_sent=False)
        packed = hiredis.pack_command(command)
        future: asyncio.Future[Any] = self._loop.create_future()
        if not self._waiting:
            self._heard_at = self._loop.time()
            self._transport.write(packed)
        else:
            # While others wait, what comes in one turn of the loop goes in one write.
            if not self._unsent:
                self._loop.call_soon(self._write)
            self._unsent.append(packed)
        self._waiting.append(future)
        if timeout_s is None:
            return await future
        # Not asyncio.timeout, which costs as much again as all the rest of this call.
        timer = self._loop.call_later(timeout_s, _expire, future)
        try:
            return await future
        finally:
            timer.cancel()

    def _write(self) -> None:
        if self._transport is not None and not self.is_lost:
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def silent_s(self) -> float:
        """Return how long a command waits since anything came; 0 when none waits."""
        return self._loop.time() - self._heard_at if self._waiting else 0.0

    def abort(self) -> None:
        self.is_lost = True
        if self._transport is not None:
            self._transport.abort()


def _expire(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(TimeoutError("no answer in time"))
