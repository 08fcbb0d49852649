"""What a connection asks of the way to the store's servers; `direct.py` and `discovered.py` are the two there are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

Argument = str | bytes | int
Command = tuple[Argument, ...]
Info = Mapping[str, str]
Answer = TypeVar("Answer")

CONNECT_TIMEOUT_S = 1.0
# Enough to replace a connection that died with its server; the caller's own retries do the rest.
_PAUSES_S = (0.04, 0.08)


class LinkLost(Exception):  # a signal inside the store, translated before a caller sees it
    """No server answered.

    Args:
        text: What happened.
        was_sent: Whether the command may have been executed.
    """

    def __init__(self, text: str, *, was_sent: bool = True) -> None:
        super().__init__(text)
        self.was_sent = was_sent


class Refused(Exception):  # as above
    """The server refused a command; the text begins with a code."""


class Link(Protocol):
    """A way to the servers. Nothing is sent before the first call."""

    async def call(self, command: Command) -> Any:
        """Send a command over one hash tag, once, and return the answer.

        Raises:
            LinkLost: No answer.
            Refused: The server refused.
        """
        ...

    async def call_durably(self, command: Command) -> tuple[Any, int]:
        """Send a command, and return the answer with the number of replicas that have the write.

        Raises:
            LinkLost: No answer.
            Refused: The server refused.
        """
        ...

    async def info(self, section: str) -> Mapping[str, Info]:
        """Return what INFO says of a section (or everything, with an empty one) for each server that is written to.

        Raises:
            LinkLost: No answer.
            Refused: The server refused.
        """
        ...

    def give_up(self, silent_s: float) -> None:
        """Drop what has said nothing for so long although somebody waits."""
        ...

    async def close(self) -> None:
        """Close for good."""
        ...


async def again(step: Callable[[], Awaitable[Answer]], *, repeatable: bool) -> Answer:
    """Take a step, and take it again after a short while when no server answered.

    Args:
        step: What is done.
        repeatable: Whether it may be done twice. If not, it is done again only where it surely never reached a server.

    Raises:
        LinkLost: No server answered in the end.
        Refused: The server refused.
    """
    for pause_s in _PAUSES_S:
        try:
            return await step()
        except LinkLost as lost:
            if lost.was_sent and not repeatable:
                raise
            await asyncio.sleep(pause_s)
    return await step()
