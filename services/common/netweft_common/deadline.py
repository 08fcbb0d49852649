"""The time that the caller of the RPC being handled still waits, so that calls made for it wait no longer."""

from __future__ import annotations

import contextvars
import time

_ends_at: contextvars.ContextVar[float | None] = contextvars.ContextVar("netweft_deadline", default=None)


def set_remaining(seconds: float | None) -> None:
    """Set the time left for the running task, in seconds; None: no deadline."""
    _ends_at.set(None if seconds is None else time.monotonic() + seconds)


def remaining_s(default_s: float) -> float:
    """Return the seconds left, at least 0 and at most `default_s`."""
    ends_at = _ends_at.get()
    return default_s if ends_at is None else max(0.0, min(default_s, ends_at - time.monotonic()))
