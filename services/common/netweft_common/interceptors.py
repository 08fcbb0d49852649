"""What surrounds each RPC on a server: identity, access, deadline, error mapping, one log line, metrics.

It is one interceptor, and it builds the wrapped handler of a method once: an attach may cost no more than a few
microseconds here. It is the only place that calls `context.abort`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, Never

import grpc
import prometheus_client
from google.protobuf import message as protobuf
from grpc import aio

from netweft_common import deadline, errors, identity, logs, status

_SAN_KEY = "x509_subject_alternative_name"
_DURATION_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_PROBE_WRITE_S = 0.05
_END: Any = object()

# A caller's own mistakes are his to see; these say that something of ours needs a look.
_SERVER_SIDE = frozenset(
    {
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)

Context = aio.ServicerContext[Any, Any]
_Handler = Any  # grpc.RpcMethodHandler: its stub says nothing of the attributes that it has


class RpcMetrics:
    """Counts and times RPCs by service, method and code."""

    def __init__(self, registry: prometheus_client.CollectorRegistry) -> None:
        self._handled = prometheus_client.Counter(
            "netweft_grpc_handled_total",
            "RPCs that ended, by how.",
            ("service", "method", "code"),
            registry=registry,
        )
        self._seconds = prometheus_client.Histogram(
            "netweft_grpc_handling_seconds",
            "Time from the request's arrival at the handler to its end.",
            ("service", "method"),
            registry=registry,
            buckets=_DURATION_BUCKETS_S,
        )

    def of_method(self, method: str) -> Callable[[grpc.StatusCode, float], None]:
        """Return the function that records one RPC of a method: its code and its seconds."""
        service, _, name = method[1:].rpartition("/")
        observe = self._seconds.labels(service, name).observe
        # Children by code are looked up once: labels() takes a lock and builds a key each time.
        counters: dict[grpc.StatusCode, Callable[[], None]] = {}

        def record(code: grpc.StatusCode, seconds: float) -> None:
            increment = counters.get(code)
            if increment is None:
                increment = counters[code] = self._handled.labels(service, name, code.name).inc
            increment()
            observe(seconds)

        return record


class ServerInterceptor(aio.ServerInterceptor):
    """Wraps the handlers of a server.

    Args:
        tls: Whether TCP listeners have TLS; without it each caller is `local`.
        client_certificates: False: who comes by TLS is a guest.
        admit: Asked of each caller with a certificate; raises for one that is not let in.
        access: Roles by method; None lets every identity call everything.
        metrics: Where RPCs are counted; None counts nothing.
        log: Logger; a default one when None.
    """

    def __init__(
        self,
        *,
        tls: bool = False,
        client_certificates: bool = True,
        admit: Callable[[identity.Identity], None] | None = None,
        access: identity.Access | None = None,
        metrics: RpcMetrics | None = None,
        log: logs.Logger | None = None,
    ) -> None:
        self._tls = tls
        self._client_certificates = client_certificates
        self._admit = admit
        self._access = access
        self._metrics = metrics
        self._log: logs.Logger = log if log is not None else logs.get()
        self._wrapped: dict[str, _Handler] = {}
        # Tasks of server streams that wait for their handler's next response; see `_next`.
        self._streams: set[asyncio.Task[Any]] = set()
        self._probes: set[asyncio.Task[Any]] = set()
        self._active = 0  # calls in flight, probes not counted
        self._idle: asyncio.Event | None = None
        self._draining = False

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """Return the wrapped handler of the method; unknown methods stay with the library (UNIMPLEMENTED)."""
        method: str = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None or (handler.request_streaming and identity.is_open(method)):
                return handler  # unknown, or the library's own reflection
            wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    async def drain(self) -> None:
        """End server streams, now and later, with UNAVAILABLE: a watcher resumes elsewhere. Wait for the other calls.

        When none is in flight, the streams of health probes end too; they were told NOT_SERVING meanwhile.
        Cancelling it leaves the calls alone.
        """
        self._draining = True
        self._idle = asyncio.Event()
        for task in self._streams:
            task.cancel()
        if self._active:
            await self._idle.wait()
        if self._probes:
            # A watcher of health was woken by the change that came just before; its write needs some turns.
            await asyncio.sleep(_PROBE_WRITE_S)
        for task in self._probes:
            task.cancel()

    def _refuse_while_draining(self) -> None:
        if self._draining:
            raise _drained()

    def _leave(self, weight: int) -> None:
        self._active -= weight
        if self._idle is not None and not self._active:
            self._idle.set()

    def _wrap(self, method: str, handler: _Handler) -> _Handler:
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._wrap_exchange(method, handler.stream_stream),
                request_deserializer=_reader(method, handler.request_deserializer),
                response_serializer=handler.response_serializer,
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._wrap_stream(method, handler.unary_stream),
                request_deserializer=_reader(method, handler.request_deserializer),
                response_serializer=_writer(handler.response_serializer),
            )
        return grpc.unary_unary_rpc_method_handler(
            self._wrap_unary(method, handler.unary_unary),
            request_deserializer=_reader(method, handler.request_deserializer),
            response_serializer=_writer(handler.response_serializer),
        )

    def _wrap_unary(self, method: str, behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Callable[..., Any]:
        enter, finish = self._bind(method)
        weight = 0 if identity.is_open(method) else 1

        async def handle(request: Any, context: Context) -> Any:
            started = time.perf_counter()
            self._active += weight
            try:
                enter(request, context)
                response = await behaviour(request, context)
            except asyncio.CancelledError:
                finish(grpc.StatusCode.CANCELLED, started)
                raise
            except Exception as error:  # noqa: BLE001  # the outermost frame of an RPC
                await self._fail(method, context, error, started, finish)
            finally:
                self._leave(weight)
            finish(grpc.StatusCode.OK, started)
            return response

        return handle

    def _wrap_stream(self, method: str, behaviour: Callable[[Any, Any], Any]) -> Callable[..., Any]:
        enter, finish = self._bind(method)
        is_probe = identity.is_open(method)
        weight = 0 if is_probe else 1
        waiting = self._probes if is_probe else self._streams

        async def handle(request: Any, context: Context) -> AsyncIterator[Any]:
            started = time.perf_counter()
            task = asyncio.current_task()
            assert task is not None
            iterator: AsyncIterator[Any] | None = None
            self._active += weight
            try:
                enter(request, context)
                if weight:
                    self._refuse_while_draining()
                iterator = _iterate(behaviour(request, context))
                while (response := await _next(iterator, task, waiting)) is not _END:
                    yield response
                    if weight:
                        self._refuse_while_draining()
            except GeneratorExit:  # the library gave up while it wrote: the client is gone
                finish(grpc.StatusCode.CANCELLED, started)
                raise
            except asyncio.CancelledError:
                if not self._draining or context.cancelled():
                    finish(grpc.StatusCode.CANCELLED, started)
                    raise
                task.uncancel()
                await self._fail(method, context, _drained(), started, finish)
            except Exception as error:  # noqa: BLE001  # the outermost frame of an RPC
                await self._fail(method, context, error, started, finish)
            else:
                finish(grpc.StatusCode.OK, started)
            finally:
                await _close(iterator)
                self._leave(weight)

        return handle

    def _wrap_exchange(self, method: str, behaviour: Callable[[Any, Any], Awaitable[None]]) -> Callable[..., Any]:
        """Wrap a bidirectional stream whose handler answers each message as a call (`exchange.serve`).

        Whether the caller is still let in is asked at each message: a stream lives as long as its two ends.
        """
        enter, finish = self._bind(method)
        admit = self._admit if self._tls else None

        def check() -> None:
            caller = identity.current()
            if admit is not None and caller.role is not identity.Role.LOCAL:
                admit(caller)

        async def handle(requests: Any, context: Context) -> None:
            del requests  # the library's iterator costs more than its `read`
            started = time.perf_counter()
            task = asyncio.current_task()
            assert task is not None
            self._active += 1
            try:
                enter(None, context)
                self._refuse_while_draining()
                requests_of = _Requests(
                    context=context,
                    task=task,
                    waiting=self._streams,
                    is_draining=lambda: self._draining,
                    check=check,
                    answered=finish,
                    translate=functools.partial(self._translate, method),
                )
                await behaviour(requests_of, context)
            except asyncio.CancelledError:
                if not self._draining or context.cancelled():
                    raise
                task.uncancel()
                await self._fail(method, context, _drained(), started, _unrecorded)
            except Exception as error:  # noqa: BLE001  # the outermost frame of an RPC
                await self._fail(method, context, error, time.perf_counter(), finish)  # of the message, not the stream
            finally:
                self._leave(1)

        return handle

    def _bind(self, method: str) -> tuple[Callable[[Any, Context], None], Callable[[grpc.StatusCode, float], None]]:
        """Return what is done before and after each RPC of a method, with all that is constant looked up."""
        roles = identity.roles_of(self._access, method)
        admit, open_to_all = self._admit, identity.is_open(method)
        record = self._metrics.of_method(method) if self._metrics is not None else None
        log = self._log.bind()  # resolved now: a lazy logger is assembled anew at each call

        def enter(request: Any, context: Context) -> None:
            remaining_s = context.time_remaining()
            deadline.set_remaining(remaining_s)
            if self._tls:
                caller = caller_of(context, client_certificates=self._client_certificates)
                identity.set_current(caller)
                if admit is not None and caller.role is not identity.Role.LOCAL and not open_to_all:
                    admit(caller)
                identity.authorise(caller, method, roles)
            if isinstance(request, errors.InvalidArgument):  # `_reader` could not read it
                raise request

        def finish(code: grpc.StatusCode, started: float) -> None:
            seconds = time.perf_counter() - started
            if record is not None:
                record(code, seconds)
            if log.is_enabled_for(logging.DEBUG):
                log.debug(
                    "rpc handled",
                    method=method,
                    code=code.name,
                    ms=round(seconds * 1e3, 3),
                    caller=str(identity.current()),
                )

        return enter, finish

    async def _fail(
        self,
        method: str,
        context: Context,
        error: Exception,
        started: float,
        finish: Callable[[grpc.StatusCode, float], None],
    ) -> Never:
        if isinstance(error, aio.AbortError):  # a library's servicer (health) has aborted already
            finish(_code_set(context), started)
            raise error
        known = self._translate(method, error)
        wire = status.to_rpc_status(known)
        if wire.code in _SERVER_SIDE and known is error:
            self._log.warning(
                "rpc failed", method=method, code=wire.code.name, reason=known.reason, error=known.message,
                caller=str(identity.current()),
            )  # fmt: skip
        finish(wire.code, started)
        await context.abort(wire.code, wire.details, wire.trailers)

    def _translate(self, method: str, error: Exception) -> errors.NetweftError:
        if isinstance(error, errors.NetweftError):
            return error
        if isinstance(error, NotImplementedError):
            return errors.FailedPrecondition("NOT_IMPLEMENTED", f"{method} is not implemented; upgrade the server")
        # The text of an unexpected exception may hold anything, so the caller gets an id to find it by.
        incident = secrets.token_hex(6)
        self._log.error("unexpected exception in rpc", method=method, incident=incident, exc_info=error)
        return errors.Internal(
            "UNEXPECTED",
            f"{method} failed by a bug of ours; incident {incident} is in the server's log",
            incident=incident,
        )


def _writer(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Return a serializer that leaves bytes alone: a handler of large answers may have written them itself."""

    def write(response: Any) -> bytes:
        return response if isinstance(response, bytes) else serialize(response)

    return write


def _reader(method: str, deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Return a deserializer that returns what is wrong with a request: what it raised would be answered UNKNOWN."""

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except protobuf.DecodeError as error:
            return errors.InvalidArgument(
                "REQUEST_MALFORMED",
                f"{method}: {len(data)} bytes came that cannot be read as its request ({error}); texts must be UTF-8",
            )

    return read


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Requests:
    """The requests of an exchange; while the next one is awaited, its task is among those that a drain may cancel."""

    context: Context
    task: asyncio.Task[Any]
    waiting: set[asyncio.Task[Any]]
    is_draining: Callable[[], bool]
    check: Callable[[], None]
    answered: Callable[[grpc.StatusCode, float], None]
    translate: Callable[[Exception], errors.NetweftError]

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        self.waiting.add(self.task)
        try:
            request = await self.context.read()
        finally:
            self.waiting.discard(self.task)
        if request is aio.EOF:
            raise StopAsyncIteration
        if isinstance(request, errors.InvalidArgument):  # `_reader` could not read it
            raise request
        self.check()
        return request


def _unrecorded(code: grpc.StatusCode, started: float) -> None:
    """Record nothing: of an exchange each call counts, not how long it was open."""


async def _next(iterator: AsyncIterator[Any], task: asyncio.Task[Any], waiting: set[asyncio.Task[Any]]) -> Any:
    """Return the handler's next response, or _END; meanwhile the task is among those that a drain may cancel.

    Not elsewhere: a cancellation inside the library's own write passes our handler by, and the call would end without
    a status, when the grace is over.
    """
    waiting.add(task)
    try:
        return await anext(iterator, _END)
    finally:
        waiting.discard(task)


async def _close(iterator: AsyncIterator[Any] | None) -> None:
    """Run the handler's own cleanup now, and not at some collection of garbage."""
    if isinstance(iterator, AsyncGenerator):
        await iterator.aclose()


def _iterate(responses: Any) -> AsyncIterator[Any]:
    """Return the responses of a handler: a generator's, or none of a coroutine that calls context.write itself."""
    if hasattr(responses, "__aiter__"):
        return aiter(responses)

    async def run() -> AsyncIterator[Any]:
        await responses
        return
        yield  # makes it a generator

    return run()


def caller_of(context: Context, *, client_certificates: bool = True) -> identity.Identity:
    """Return the caller on a server with TLS: the certificate's identity, or `local` on a unix socket.

    Where clients show no certificates, whoever comes by TLS is a guest.

    Raises:
        Unauthenticated: There is no certificate, or it names no identity of ours.
    """
    if context.peer().startswith("unix:"):
        return identity.LOCAL
    if not client_certificates:
        return identity.GUEST
    names = context.auth_context().get(_SAN_KEY, ())
    return identity.from_uris(name.decode("utf-8", "replace") for name in names)


def _drained() -> errors.Unavailable:
    return errors.Unavailable(
        "SERVER_DRAINING", "the server is going down and ends its streams; connect again and resume", retry_after_s=0.5
    )


def _code_set(context: Context) -> grpc.StatusCode:
    code: Any = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    return next((known for known in grpc.StatusCode if known.value[0] == code), grpc.StatusCode.UNKNOWN)
