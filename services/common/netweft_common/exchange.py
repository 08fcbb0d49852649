"""Many calls over one bidirectional stream, each with its own answer, in any order.

A unary gRPC call of Python costs twice to three times as much as a message on a stream that is open already: no new
HTTP/2 stream, no headers, no status. So services offer their hot methods on a stream too. Its messages have

    request   uint64 id, uint32 timeout_ms (0: none), oneof call {...}
    response  uint64 id, netweft.common.v1.Status status, and the answer in the field that is named as the request's

Every call that can be made this way can be made alone as well: that is how it is made when the stream breaks, or when a
server does not know it, so only what may be done twice belongs here.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol

import grpc
from grpc import aio

from netweft_common import deadline, errors, status

IN_FLIGHT = 1024
"""Requests of one stream that are worked on at a time; further ones wait in the transport."""

_TIMEOUT_MS_MAX = 2**32 - 1
_REFUSED_REST_S = 60.0
# With any other code a server has said that it does not offer the stream, or not to this caller.
_BREAKS = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


class Requests(Protocol):
    """The requests of a stream, as the server's interceptor hands them over."""

    def __aiter__(self) -> AsyncIterator[Any]:
        """Return an iterator over the requests; it raises what the whole stream is refused with."""
        ...

    def is_draining(self) -> bool:
        """Return whether the server goes down, and ends its streams."""
        ...

    def answered(self, code: grpc.StatusCode, started: float) -> None:
        """Take note of one that ended, for the metrics; `started` is of time.perf_counter."""
        ...

    def translate(self, error: Exception) -> errors.NetweftError:
        """Return what the caller is told of an exception."""
        ...


Methods = Mapping[str, Callable[[Any, Any], Awaitable[Any]]]
"""Unary methods of a servicer, by the name of their field in the oneof `call`."""


async def serve(
    requests: Requests,
    context: aio.ServicerContext[Any, Any],
    response_type: Callable[..., Any],
    methods: Methods,
) -> None:
    """Answer the requests of a stream until it ends.

    A stream that its client gives up takes its calls with it, as a unary call would. In a drain no further request is
    read, and those taken are answered.

    Args:
        requests: Of the interceptor.
        context: Of the stream.
        response_type: The stream's response.
        methods: What is offered.
    """
    answers = _Answers(requests, context, response_type, methods)
    calls: set[asyncio.Task[None]] = set()

    def forget(task: asyncio.Task[None]) -> None:
        calls.discard(task)
        if not task.cancelled():
            task.exception()  # a client that has gone takes no answer

    try:
        async for request in requests:
            task = asyncio.create_task(answers.give(request))
            calls.add(task)
            task.add_done_callback(forget)
            if len(calls) >= IN_FLIGHT:
                await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        if calls:
            await asyncio.wait(calls)
    except asyncio.CancelledError:
        if calls and requests.is_draining():
            await asyncio.wait(calls)
        raise
    finally:
        for task in calls:
            task.cancel()


class _Answers:
    """Gives the answers of one stream."""

    def __init__(
        self,
        requests: Requests,
        context: aio.ServicerContext[Any, Any],
        response_type: Callable[..., Any],
        methods: Methods,
    ) -> None:
        self._requests = requests
        self._context = context
        self._response_type = response_type
        self._methods = methods
        self._writing = asyncio.Lock()  # the library takes one write at a time

    async def give(self, request: Any) -> None:
        """Do what a request asks, and answer it."""
        started = time.perf_counter()
        deadline.set_remaining(request.timeout_ms / 1e3 if request.timeout_ms else None)
        response = self._response_type(id=request.id)
        code = grpc.StatusCode.OK
        try:
            await self._do(request, response)
        except Exception as error:  # noqa: BLE001  # the outermost frame of a call
            known = self._requests.translate(error)
            response.status.CopyFrom(status.to_item_status(known))
            code = status.code_of(known)
        self._requests.answered(code, started)
        async with self._writing:
            await self._context.write(response)

    async def _do(self, request: Any, response: Any) -> None:
        name = request.WhichOneof("call")
        if name is None:
            raise errors.InvalidArgument(
                "CALL_MISSING",
                f"call: request {request.id} of the stream names none that this server knows; known are "
                + ", ".join(self._methods),
                field="call",
            )
        getattr(response, name).MergeFrom(await self._methods[name](getattr(request, name), self._context))


class Exchange:
    """The client's end: one stream, opened at the first call and again after each break.

    Args:
        method: The stub's stream method.
        request_type: The stream's request.
        wait_for_ready: Whether the stream waits for the server to come up instead of breaking at once.
        generation: Of the channel: with another one the next call opens another stream, and those in flight end on
            theirs.
    """

    def __init__(
        self,
        method: Callable[..., Any],
        request_type: Callable[..., Any],
        *,
        wait_for_ready: bool,
        generation: Callable[[], int] = lambda: 0,
    ) -> None:
        self._method = method
        self._request_type = request_type
        self._wait_for_ready = wait_for_ready
        self._ids = itertools.count(1)
        self._generation = generation
        self._stream: _Stream | None = None
        self._stream_of = 0
        self._rests_until = 0.0

    async def call(self, name: str, request: Any, timeout_s: float) -> Any:
        """Make one call.

        Args:
            name: Field of the oneof `call`.
            request: Its message.
            timeout_s: Seconds to wait.

        Returns:
            The answer; None when the stream broke, or cannot be had, and nobody knows whether the call was made.

        Raises:
            NetweftError: What the server said.
            TimeoutError: It said nothing in time.
        """
        generation = self._generation()
        stream = self._stream
        if stream is not None and generation != self._stream_of:
            # A server that stands still breaks no stream: who has turned from it must not go on with it.
            stream.retire()
            self._rests_until, stream = 0.0, None
        if time.monotonic() < self._rests_until:
            return None
        if stream is None or stream.is_broken:
            stream = self._stream = _Stream(self._method(wait_for_ready=self._wait_for_ready))
            self._stream_of = generation
        id_ = next(self._ids)
        timeout_ms = min(max(1, round(timeout_s * 1e3)), _TIMEOUT_MS_MAX)
        response = await stream.call(
            id_, self._request_type(id=id_, timeout_ms=timeout_ms, **{name: request}), timeout_s
        )
        if response is None:
            if stream.is_refused:
                self._rests_until = time.monotonic() + _REFUSED_REST_S
            return None
        error = status.from_item_status(response.status)
        if error is not None:
            raise error
        return getattr(response, name)

    def close(self) -> None:
        """End the stream; the next call opens another."""
        if self._stream is not None:
            self._stream.close()


class _Stream:
    """One stream, until it breaks."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._writing = asyncio.Lock()  # the library takes one write at a time
        self._written_for: asyncio.Future[Any] | None = None
        self._is_retired = False
        self.is_broken = False
        self.is_refused = False
        self._reader = asyncio.create_task(self._read(), name="exchange")
        self._reader.add_done_callback(self._break)

    async def call(self, id_: int, message: Any, timeout_s: float) -> Any:
        """Return the response to a request; None: the stream is broken.

        Raises:
            TimeoutError: There is none in time.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting[id_] = future
        # Not asyncio.timeout, which costs several times as much, unless there is a queue.
        timer = loop.call_later(timeout_s, self._expire, future)
        try:
            if self._writing.locked():
                async with asyncio.timeout(timeout_s):
                    await self._writing.acquire()
            else:
                await self._writing.acquire()
            try:
                if not self.is_broken and not future.done():
                    self._written_for = future
                    await self._write(message)
            finally:
                self._written_for = None
                self._writing.release()
            return await future
        finally:
            timer.cancel()
            self._waiting.pop(id_, None)
            if future.done() and not future.cancelled():
                future.exception()  # who has given up does not hear it
            if self._is_retired and not self._waiting:
                self.close()

    def _expire(self, future: asyncio.Future[Any]) -> None:
        if not future.done():
            future.set_exception(TimeoutError("no answer in time"))
        if self._written_for is future:
            self.close()  # the transport takes no more

    async def _write(self, message: Any) -> None:
        try:
            await self._call.write(message)
        except (aio.AioRpcError, aio.UsageError, asyncio.InvalidStateError):
            self.close()  # the reader hears why
        except asyncio.CancelledError:
            # The library's own cancellation is its way to say that the call has ended.
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise

    def close(self) -> None:
        self._call.cancel()

    def retire(self) -> None:
        """Take no further calls, and end with the last of those in flight."""
        self._is_retired = True
        if not self._waiting:
            self.close()

    async def _read(self) -> None:
        while (response := await self._call.read()) is not aio.EOF:
            future = self._waiting.get(response.id)
            if future is not None and not future.done():
                future.set_result(response)

    def _break(self, reader: asyncio.Task[None]) -> None:
        self.is_broken = True
        error = None if reader.cancelled() else reader.exception()
        if isinstance(error, aio.AioRpcError):
            self.is_refused = error.code() not in _BREAKS
        for future in self._waiting.values():
            if not future.done():
                future.set_result(None)
