"""Calls to our services: a channel to one target whose failures come as NetweftError."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from grpc import aio

from netweft_common import deadline, errors, exchange, listen, status, switching, tls

Request = TypeVar("Request")
Response = TypeVar("Response")

MESSAGE_LIMIT_BYTES = 16 << 20
DEFAULT_TIMEOUT = dt.timedelta(seconds=30)

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
    # An http_proxy of the environment is for the web, not for our own hosts.
    ("grpc.enable_http_proxy", 0),
    # Servers allow a ping every 5 s (server.py). Idle channels ping too: a half-dead path shows before the next call.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A restarted server is met again within a second, not after gRPC's default of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Also how long a server may take until a connection stands (gRPC's subchannel.cc): a busy one needs some of it.
    # Longer, and one that stands still, or a path that was cut, is left, or tried again, too late.
    ("grpc.min_reconnect_backoff_ms", 2_000),
)


ELSEWHERE = frozenset({"UNREACHABLE", "DEADLINE_EXCEEDED", "SERVER_DRAINING", "CONTROLLER_BUSY"})
"""Reasons why another target is worth a try: this one said nothing, is going down, or has no time."""


def split(target: str) -> list[str]:
    """Return the targets of a text: one, or several by comma."""
    return [one for part in target.split(",") if (one := part.strip())] or [target]


def open_channel(target: str, *, tls_files: tls.TlsFiles | None = None, retry: Iterable[str] = ()) -> aio.Channel:
    """Return a channel; it connects at the first call. The caller closes it.

    Args:
        target: `unix:/path` or `host:port`.
        tls_files: For TCP; a unix socket has no TLS.
        retry: Methods `/package.Service/Method` that gRPC itself calls again on UNAVAILABLE: only those that may be
            done twice.

    Raises:
        InvalidArgument: The target is malformed, or TCP beyond loopback without TLS.
        FailedPrecondition: A TLS file is unusable.
    """
    plan = _plan_channel(target, tls_files, retry)
    if plan.credentials is None:
        return aio.insecure_channel(plan.target, options=plan.options)
    return aio.secure_channel(plan.target, plan.credentials, options=plan.options)


def open_guest_channel(target: str, ca_pem: bytes) -> aio.Channel:
    """Return a channel that shows no certificate and trusts one authority; else as `open_channel`."""
    options = [*OPTIONS, ("grpc.service_config", service_config(()))]
    return aio.secure_channel(listen.parse(target).target, tls.anonymous_credentials(ca_pem), options=options)


def open_blocking_channel(
    target: str, *, tls_files: tls.TlsFiles | None = None, retry: Iterable[str] = ()
) -> grpc.Channel:
    """Return a channel for use without an event loop; as `open_channel` else."""
    plan = _plan_channel(target, tls_files, retry)
    if plan.credentials is None:
        return grpc.insecure_channel(plan.target, options=plan.options)
    return grpc.secure_channel(plan.target, plan.credentials, options=plan.options)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _ChannelPlan:
    target: str
    options: list[tuple[str, Any]]
    credentials: grpc.ChannelCredentials | None = None


def _plan_channel(target: str, tls_files: tls.TlsFiles | None, retry: Iterable[str]) -> _ChannelPlan:
    address = listen.parse(target)
    options: list[tuple[str, Any]] = [*OPTIONS, ("grpc.service_config", service_config(retry))]
    if isinstance(address, listen.UnixAddress):
        # Without it grpc sends the escaped path as authority, which other stacks refuse (RFC 9110 §7.2).
        return _ChannelPlan(target=address.target, options=[*options, ("grpc.default_authority", "localhost")])
    if tls_files is not None:
        if tls_files.server_name:
            options.append(("grpc.ssl_target_name_override", tls_files.server_name))
        return _ChannelPlan(target=address.target, options=options, credentials=tls.channel_credentials(tls_files))
    if not address.is_loopback:
        raise errors.InvalidArgument(
            "INSECURE_TARGET",
            f"refusing to call {target} without TLS; set tls_ca, tls_cert and tls_key",
            target=target,
        )
    return _ChannelPlan(target=address.target, options=options)


def service_config(retry: Iterable[str]) -> str:
    """Return gRPC's service config: retries on UNAVAILABLE for these methods and no others (gRFC A6)."""
    names = [
        {"service": service, "method": method}
        for service, _, method in (name.removeprefix("/").rpartition("/") for name in sorted(retry))
    ]
    if not names:
        return json.dumps({"methodConfig": []})
    policy = {
        "maxAttempts": 5,
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": policy}]})


class Connection:
    """A channel and the translation of its errors.

    Args:
        target: `unix:/path` or `host:port`; several by comma: when one does not answer the next one is called.
        tls_files: For TCP.
        retry: Methods that gRPC calls again on UNAVAILABLE, see `open_channel`.
        timeout: For calls that name none; a call made while an RPC is handled waits no longer than that RPC's caller.
        wait_for_ready: Whether calls wait for the server to come up instead of failing at once.
    """

    def __init__(
        self,
        target: str,
        *,
        tls_files: tls.TlsFiles | None = None,
        retry: Iterable[str] = (),
        timeout: dt.timedelta = DEFAULT_TIMEOUT,
        wait_for_ready: bool = False,
    ) -> None:
        self.target = target
        targets = split(target)
        methods = tuple(retry)

        def make(one: str) -> aio.Channel:
            return open_channel(one, tls_files=tls_files, retry=methods)

        over_tls = any(not one.startswith("unix:") for one in targets)
        files = tls_files if over_tls else None
        self._closing: set[asyncio.Task[None]] = set()
        self._switching: switching.SwitchingChannel | None = None
        if len(targets) > 1 or files is not None:
            self._switching = switching.SwitchingChannel(targets, files, make=make, discard=self._discard)
        self.channel: Any = self._switching if self._switching is not None else make(target)
        self._timeout_s = timeout.total_seconds()
        self._wait_for_ready = wait_for_ready
        self._exchanges: list[exchange.Exchange] = []
        self._over_stream: dict[str, tuple[exchange.Exchange, str]] = {}

    def over_stream(self, method: Callable[..., Any], request_type: Callable[..., Any], **calls: object) -> None:
        """Make some unary calls over one bidirectional stream from now on (see `exchange`).

        Only for methods that may be done twice: when the stream breaks, a call on it is made again by itself.

        Args:
            method: The stream's method, of a stub made on `channel`.
            request_type: Its request.
            **calls: The unary methods, by the name of their field in the oneof `call`.
        """
        made = exchange.Exchange(method, request_type, wait_for_ready=self._wait_for_ready, generation=self._generation)
        self._exchanges.append(made)
        self._over_stream.update((method_name(unary), (made, name)) for name, unary in calls.items())

    def _generation(self) -> int:
        """Return which of its channels the connection has now, after a look at the certificates."""
        if self._switching is None:
            return 0
        self._switching.look()
        return self._switching.generation

    async def __aenter__(self) -> Self:
        """Return the connection itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()

    async def close(self, grace: dt.timedelta | None = None) -> None:
        """Close the channel; calls in flight get the grace, or end at once."""
        for made in self._exchanges:
            made.close()
        for task in self._closing:
            task.cancel()
        current = self.channel if self._switching is None else self._switching.current
        await current.close(None if grace is None else grace.total_seconds())

    @property
    def has_others(self) -> bool:
        """Whether there are several targets, so that another one may answer what this one does not."""
        return self._switching is not None and self._switching.has_others

    def _discard(self, channel: aio.Channel) -> None:
        task = asyncio.get_running_loop().create_task(channel.close(switching.GRACE_S), name="close old channel")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def call(
        self,
        method: Callable[..., Awaitable[Response]],
        request: Any,
        *,
        timeout_s: float | None = None,
        wait_for_ready: bool | None = None,
    ) -> Response:
        """Call a unary method of a stub made on `channel`.

        Args:
            method: For example `stub.GetPool`.
            request: Its request.
            timeout_s: Seconds to wait; the connection's own when None.
            wait_for_ready: The connection's own when None.

        Raises:
            NetweftError: What the server said; Unavailable when it said nothing or not in time.
        """
        if self._switching is None or not self._switching.has_others:
            return await self._call(method, request, timeout_s, wait_for_ready)
        generation = self._switching.generation
        try:
            return await self._call(method, request, timeout_s, wait_for_ready)
        except errors.Unavailable as error:
            if error.reason in ELSEWHERE:
                self._switching.turn(generation)
            raise

    async def _call(
        self,
        method: Callable[..., Awaitable[Response]],
        request: Any,
        timeout_s: float | None,
        wait_for_ready: bool | None,
    ) -> Response:
        remaining_s = deadline.remaining_s(self._timeout_s if timeout_s is None else timeout_s)
        if self._over_stream:
            name = method_name(method)
            if (found := self._over_stream.get(name)) is not None:
                ends_at = time.monotonic() + remaining_s
                try:
                    response: Response | None = await found[0].call(found[1], request, remaining_s)
                except TimeoutError:
                    raise status.late(target=self.target, method=name) from None
                except aio.UsageError as error:
                    raise closed(self.target, method) from error
                if response is not None:
                    return response
                remaining_s = max(0.0, ends_at - time.monotonic())
        try:
            return await method(
                request,
                timeout=remaining_s,
                wait_for_ready=self._wait_for_ready if wait_for_ready is None else wait_for_ready,
            )
        except aio.AioRpcError as error:
            raise status.from_rpc_error(error, target=self.target, method=method_name(method)) from error
        except aio.UsageError as error:
            raise closed(self.target, method) from error

    async def stream(
        self,
        method: Callable[..., Any],
        request: Any,
        *,
        timeout_s: float | None = None,
        wait_for_ready: bool | None = None,
    ) -> AsyncGenerator[Any, None]:
        """Yield the answers of a method with a server stream; closing the iterator ends the stream.

        Args:
            method: For example `stub.Watch`.
            request: Its request.
            timeout_s: Seconds for the whole stream; no limit when None.
            wait_for_ready: The connection's own when None.

        Raises:
            NetweftError: As `call`, also in the middle of the stream.
        """
        generation = self._switching.generation if self._switching is not None else 0
        try:
            call = method(
                request,
                timeout=timeout_s,
                wait_for_ready=self._wait_for_ready if wait_for_ready is None else wait_for_ready,
            )
            try:
                async for response in call:
                    yield response
            finally:
                call.cancel()
        except aio.AioRpcError as error:
            known = status.from_rpc_error(error, target=self.target, method=method_name(method))
            if self._switching is not None and known.reason in ELSEWHERE:
                self._switching.turn(generation)
            raise known from error
        except aio.UsageError as error:
            raise closed(self.target, method) from error


def closed(target: str, method: object) -> errors.Unavailable:
    """Return the error of a call on a connection that this process has closed."""
    return errors.Unavailable(
        "CONNECTION_CLOSED",
        f"{method_name(method)}: the connection to {target} was closed by this process; open a new one",
        target=target,
    )


def method_name(method: object) -> str:
    """Return `/package.Service/Method` of a stub's method; grpc keeps it in a private attribute."""
    name = getattr(method, "_method", b"")
    return name.decode() if isinstance(name, bytes) else str(name)
