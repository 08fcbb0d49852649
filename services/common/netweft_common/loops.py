"""Which event loop a service runs on."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from typing import Any, cast

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def fastest() -> LoopFactory | None:
    """Return the maker of uvloop's event loops if it is installed, else None: asyncio's own does as well.

    For services that do little between waits: a turn of asyncio's loop is Python, and an attach takes the controller
    some twenty of them. Not for the agent, which listens to the kernel's sockets.
    """
    try:
        uvloop: Any = importlib.import_module("uvloop")
    except ImportError:
        return None
    return cast("LoopFactory", uvloop.new_event_loop)
