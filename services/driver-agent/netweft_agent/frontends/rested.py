"""Addresses that were given back just now rest for a while before anybody has them, and runtimes want theirs again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from netweft_common import errors

from netweft_agent.domain.cluster import Found

REST_S = 10.0
"""How long it is waited for an address that rests: a container that starts again wants its own."""
REST_OF_SEVERAL_S = 6.0
"""How long before several are asked for again. What was free of them has been taken and given back, and rests too, 5 s
by default: asked for again and again, they would rest by turns."""


async def once_rested(ask: Callable[[], Awaitable[Found]], *, several: bool = False) -> Found:
    """Return what is asked for, as soon as no address rests that it needs.

    Args:
        ask: Asks for it; nothing is left of what was refused.
        several: Whether it is more than one address.

    Raises:
        NetweftError: It is refused, or the address rests for longer than `REST_S`.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + REST_S
    while True:
        try:
            return await ask()
        except errors.FailedPrecondition as error:
            if error.reason != "ADDRESS_QUARANTINED" or loop.time() > end:
                raise
        await asyncio.sleep(REST_OF_SEVERAL_S if several else REST_S / 50)
