"""The synchronous client: the asynchronous one on an event loop in a thread of its own.

Every method is that of `AsyncClient`, with its arguments and errors; lists and watches are plain iterators. It may be
used from several threads.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from netweft_common import errors, tls

from netweft_client.aio import DEFAULT_TIMEOUT_S, AsyncClient

P = ParamSpec("P")
R = TypeVar("R")


def _call(method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Client, P], R]:
    @functools.wraps(method)
    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._run(method(self._client, *args, **kwargs))

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
                    item = self._run(anext(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            if not self._loop.is_closed():
                self._run(items.aclose())

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
            target, ipam_target=ipam_target, tls_files=tls_files, timeout_s=timeout_s, retry_for_s=retry_for_s
        )
        self._loop = asyncio.new_event_loop()
        # A daemon: a script that forgets to close still ends.
        self._thread = threading.Thread(target=self._loop.run_forever, name="netweft-client", daemon=True)
        self._thread.start()

    @property
    def target(self) -> str:
        """Target of the controller."""
        return self._client.target

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread. Idempotent."""
        if self._loop.is_closed():
            return
        self._run(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    create_network = _call(AsyncClient.create_network)
    get_network = _call(AsyncClient.get_network)
    list_networks = _iterate(AsyncClient.list_networks)
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
    plan_attach = _call(AsyncClient.plan_attach)
    create_sandbox = _call(AsyncClient.create_sandbox)
    get_sandbox = _call(AsyncClient.get_sandbox)
    list_sandboxes = _iterate(AsyncClient.list_sandboxes)
    delete_sandbox = _call(AsyncClient.delete_sandbox)
    get_host = _call(AsyncClient.get_host)
    list_hosts = _iterate(AsyncClient.list_hosts)
    delete_host = _call(AsyncClient.delete_host)
    watch = _iterate(AsyncClient.watch)
    watch_batches = _iterate(AsyncClient.watch_batches)
    get_pool = _call(AsyncClient.get_pool)
    list_pools = _iterate(AsyncClient.list_pools)
    list_leases = _iterate(AsyncClient.list_leases)
    observe = _call(AsyncClient.observe)
    get_facts = _call(AsyncClient.get_facts)

    def _run(self, work: Coroutine[Any, Any, R]) -> R:
        """Run on the client's loop and wait; an interrupt of the waiting thread cancels the work."""
        if threading.current_thread() is self._thread:
            work.close()
            raise errors.FailedPrecondition("WRONG_THREAD", "Client was called from its own thread; use AsyncClient")
        if self._loop.is_closed():
            work.close()
            raise errors.Unavailable("CONNECTION_CLOSED", f"the client of {self.target} is closed; make a new one")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def _shut(self) -> None:
        await self._client.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
