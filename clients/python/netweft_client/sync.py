"""The synchronous client: the code of the asynchronous one over channels that block.

Every method is that of `AsyncClient`, with its arguments and errors; lists and watches are plain iterators. It may be
used from several threads. There is no event loop in it: its connection and its clock block instead of suspending, so
that each coroutine of `AsyncClient` runs to its end in one step. (An AsyncClient in a thread of its own was tried; two
event loops in one process lose wake-ups in grpc.aio, grpc/grpc#25364.)
"""

from __future__ import annotations

import datetime as dt
import functools
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc
from netweft_common import client, status, switching, tls

from netweft_client.aio import DEFAULT_TIMEOUT_S, AsyncClient

P = ParamSpec("P")
R = TypeVar("R")


def _run(work: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine that never suspends and return its result."""
    try:
        work.send(None)
    except StopIteration as done:
        result: R = done.value
        return result
    work.close()
    raise AssertionError("a coroutine of the synchronous client suspended")


def _call(method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Client, P], R]:
    @functools.wraps(method)
    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return _run(method(self._client, *args, **kwargs))

    return call


def _iterate(
    method: Callable[Concatenate[AsyncClient, P], AsyncGenerator[R, None]],
) -> Callable[Concatenate[Client, P], Iterator[R]]:
    @functools.wraps(method)
    def iterate(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        items = method(self._client, *args, **kwargs)
        try:
            while True:
                try:
                    item = _run(anext(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            _run(items.aclose())

    return iterate


class Client:
    """A client of one cluster for plain scripts; use it as a context, or close it.

    Args:
        target: Controller: `unix:/path` or `host:port`; None: `discovery.targets()`.
        ipam_target: IPAM, for pools and leases; None: `discovery.targets()`.
        tls_files: For TCP beyond loopback; None: `discovery.tls_files()`.
        timeout_s: For calls that name none, retries included.
        retry_for_s: How long UNAVAILABLE is retried; None: until the call's deadline. Zero: not at all.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        ipam_target: str | None = None,
        tls_files: tls.TlsFiles | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry_for_s: float | None = None,
    ) -> None:
        self._client = AsyncClient(
            target,
            ipam_target=ipam_target,
            tls_files=tls_files,
            timeout_s=timeout_s,
            retry_for_s=retry_for_s,
            system_clock=_BlockingClock(),
            connect=_BlockingConnection,
        )

    @property
    def target(self) -> str:
        """Target of the controller."""
        return self._client.target

    @property
    def ipam_target(self) -> str:
        """Target of IPAM."""
        return self._client.ipam_target

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    close = _call(AsyncClient.close)
    create_network = _call(AsyncClient.create_network)
    get_network = _call(AsyncClient.get_network)
    list_networks = _iterate(AsyncClient.list_networks)
    wait_network = _call(AsyncClient.wait_network)
    delete_network = _call(AsyncClient.delete_network)
    create_endpoint = _call(AsyncClient.create_endpoint)
    get_endpoint = _call(AsyncClient.get_endpoint)
    list_endpoints = _iterate(AsyncClient.list_endpoints)
    delete_endpoint = _call(AsyncClient.delete_endpoint)
    join_endpoint = _call(AsyncClient.join_endpoint)
    leave_endpoint = _call(AsyncClient.leave_endpoint)
    attach_endpoints = _call(AsyncClient.attach_endpoints)
    attach_endpoint = _call(AsyncClient.attach_endpoint)
    detach_endpoints = _call(AsyncClient.detach_endpoints)
    detach_endpoint = _call(AsyncClient.detach_endpoint)
    update_endpoint = _call(AsyncClient.update_endpoint)
    plan_attach = _call(AsyncClient.plan_attach)
    create_sandbox = _call(AsyncClient.create_sandbox)
    get_sandbox = _call(AsyncClient.get_sandbox)
    list_sandboxes = _iterate(AsyncClient.list_sandboxes)
    delete_sandbox = _call(AsyncClient.delete_sandbox)
    update_sandbox = _call(AsyncClient.update_sandbox)
    refresh_sandbox = _call(AsyncClient.refresh_sandbox)
    get_sandbox_statistics = _call(AsyncClient.get_sandbox_statistics)
    get_host = _call(AsyncClient.get_host)
    list_hosts = _iterate(AsyncClient.list_hosts)
    delete_host = _call(AsyncClient.delete_host)
    cordon_host = _call(AsyncClient.cordon_host)
    drain_host = _call(AsyncClient.drain_host)
    create_join_token = _call(AsyncClient.create_join_token)
    watch = _iterate(AsyncClient.watch)
    watch_batches = _iterate(AsyncClient.watch_batches)
    get_pool = _call(AsyncClient.get_pool)
    list_pools = _iterate(AsyncClient.list_pools)
    list_leases = _iterate(AsyncClient.list_leases)
    lookup_address = _call(AsyncClient.lookup_address)
    reserve_address = _call(AsyncClient.reserve_address)
    release_address = _call(AsyncClient.release_address)
    list_lease_events = _iterate(AsyncClient.list_lease_events)
    watch_leases = _iterate(AsyncClient.watch_leases)
    observe = _call(AsyncClient.observe)
    get_facts = _call(AsyncClient.get_facts)


class _BlockingClock:
    """The machine's clocks; sleeping blocks the thread."""

    def monotonic(self) -> float:
        return time.monotonic()

    def now(self) -> dt.datetime:
        return dt.datetime.now(tz=dt.UTC)

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  # to block is its purpose


class _BlockingConnection:
    """`netweft_common.client.Connection` over a channel that blocks."""

    def __init__(self, target: str, tls_files: tls.TlsFiles | None) -> None:
        self._target = target
        self.channel = switching.SwitchingChannel(
            client.split(target),
            tls_files,
            make=lambda one: client.open_blocking_channel(one, tls_files=tls_files),
            discard=lambda old: old.close(),
        )

    @property
    def has_others(self) -> bool:
        return self.channel.has_others

    async def call(self, method: Callable[..., Any], request: Any, *, timeout_s: float | None = None) -> Any:
        generation = self.channel.generation
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise self._translate(error, method, generation) from error
        except ValueError as error:  # "Cannot invoke RPC on closed channel!"
            raise client.closed(self._target, method) from error

    async def stream(self, method: Callable[..., Any], request: Any) -> AsyncGenerator[Any, None]:
        generation = self.channel.generation
        try:
            responses = method(request)
        except ValueError as error:
            raise client.closed(self._target, method) from error
        try:
            for response in responses:
                yield response
        except grpc.RpcError as error:
            raise self._translate(error, method, generation) from error
        finally:
            responses.cancel()

    async def close(self) -> None:
        self.channel.current.close()

    def _translate(self, error: grpc.RpcError, method: object, generation: int) -> Exception:
        known = status.from_rpc_error(error, target=self._target, method=client.method_name(method))
        if known.reason in client.ELSEWHERE:
            self.channel.turn(generation)
        return known
