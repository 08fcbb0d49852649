"""The time that the caller of the RPC being handled still waits, so that calls made for it wait no longer.

It holds in the task that handles the RPC and not in tasks made there: one of those may live on and serve others (a
batch writer started by the first call). Child tasks of a TaskGroup are cancelled with the RPC anyway.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
import weakref

_Mark = tuple[weakref.ref["asyncio.Task[object]"], float]
_current: contextvars.ContextVar[_Mark | None] = contextvars.ContextVar("netweft_deadline", default=None)


def set_remaining(seconds: float | None) -> None:
    """Set the time left for the running task, in seconds; None: no deadline."""
    task = asyncio.current_task()
    _current.set(None if seconds is None or task is None else (weakref.ref(task), time.monotonic() + seconds))


def remaining_s(default_s: float) -> float:
    """Return the seconds left, at least 0 and at most `default_s`; needs a running event loop."""
    mark = _current.get()
    if mark is None or mark[0]() is not asyncio.current_task():
        return default_s
    return max(0.0, min(default_s, mark[1] - time.monotonic()))
