"""Work that outlives its caller: a saga that has begun is finished or undone, also when nobody waits any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from netweft_common import deadline, errors, logs

R = TypeVar("R")
_log = logs.get()


class Work:
    """Owner of sagas. Leaving the context waits for those that run."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._flights: dict[str, tuple[bytes, asyncio.Future[Any]]] = {}

    async def __aenter__(self) -> Self:
        """Begin."""
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what runs; a failure of the block stays what it is."""
        try:
            await self._group.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            # The group wraps the block's own failure, which is the user's to read where a setting is wrong.
            if error is None or group.exceptions != (error,):
                raise

    async def finish(self, coroutine: Coroutine[Any, Any, R], *, name: str) -> R:
        """Run to the end, even when the caller is cancelled; a failure is the caller's, if he still waits."""
        return await asyncio.shield(self._start(coroutine, name))

    def spawn(self, coroutine: Coroutine[Any, Any, None], *, name: str) -> None:
        """Run in the background with time of its own; a failure is logged."""

        async def guarded() -> None:
            deadline.set_remaining(None)
            try:
                await coroutine
            except errors.NetweftError as error:
                _log.warning("background work failed", work=name, reason=error.reason, error=error.message)
            except Exception:  # noqa: BLE001  # the outermost frame of a task
                _log.exception("background work broke", work=name)

        self._group.create_task(guarded(), name=name)

    async def once(self, key: str, fingerprint: bytes, start: Callable[[], Coroutine[Any, Any, R]], *, name: str) -> R:
        """Run once at a time for a request: a second call with the same key and body joins the first.

        Raises:
            AlreadyExists: The key is in use with another body.
        """
        running = self._flights.get(key)
        if running is None:
            future: asyncio.Future[R] = self._start(start(), name)
            self._flights[key] = (fingerprint, future)
            future.add_done_callback(lambda _: self._flights.pop(key, None))
            return await asyncio.shield(future)
        known, future = running
        if known != fingerprint:
            raise reused(key)
        return await asyncio.shield(future)

    def _start(self, coroutine: Coroutine[Any, Any, R], name: str) -> asyncio.Future[R]:
        # The group would end everything for one failure; the failure goes to whoever waits instead.
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            try:
                result = await coroutine
            except asyncio.CancelledError:
                future.cancel()
                raise
            except Exception as error:  # noqa: BLE001  # the outermost frame of a task: it is the waiter's
                if not future.cancelled():
                    future.set_exception(error)
                    # Nobody may be waiting any more; then it must not be reported as never retrieved.
                    future.exception()
            else:
                if not future.cancelled():
                    future.set_result(result)

        self._group.create_task(run(), name=name)
        return future


def reused(key: str) -> errors.AlreadyExists:
    """Return the error of an idempotency key that was used with another body."""
    return errors.AlreadyExists(
        "REQUEST_ID_REUSED",
        f"request id {key.partition('/')[2]} was used with another request; take a new one",
        request_id=key.partition("/")[2],
    )
