"""What a connection asks of the way to the store's servers; `direct.py` and `discovered.py` are the two there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

Argument = str | bytes | int
Command = tuple[Argument, ...]
Info = Mapping[str, str]

CONNECT_TIMEOUT_S = 1.0


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

    async def call(self, command: Command, timeout_s: float) -> Any:
        """Send a command over one hash tag, once, and return the answer.

        Raises:
            LinkLost: No server answered.
            Refused: The server refused.
            TimeoutError: No answer in time.
        """
        ...

    async def call_durably(self, command: Command, timeout_s: float) -> tuple[Any, int]:
        """Send a command, and return the answer with the number of replicas that have the write.

        Raises:
            LinkLost: No server answered.
            Refused: The server refused.
            TimeoutError: No answer in time.
        """
        ...

    async def info(self, section: str, timeout_s: float) -> Mapping[str, Info]:
        """Return what INFO says of a section (or everything, with an empty one) for each server that is written to.

        Raises:
            LinkLost: No server answered.
            Refused: The server refused.
            TimeoutError: No answer in time.
        """
        ...

    def give_up(self, silent_s: float) -> None:
        """Drop what has said nothing for so long although somebody waits."""
        ...

    async def close(self) -> None:
        """Close for good."""
        ...
