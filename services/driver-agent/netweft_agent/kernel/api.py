"""What the engine asks of a kernel.

`LinuxKernel` (kernel/linux.py) is the real one, `FakeKernel` (kernel/fake.py) its double.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Protocol

import msgspec
from netweft_common.errors import NetweftError

from netweft_agent.domain.announcement import Announcement, Place
from netweft_agent.domain.plan import Operation
from netweft_agent.domain.resources import Key, Ns, Resource


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a kernel.

    Attributes:
        resources: Everything of ours, and everything that was asked for by key, whoever made it.
        foreign: Keys that were asked for and exist, but are somebody else's: they are never changed.
        indexes: Interface index of each link of ours, by its key; a double of the kernel has none.
        doomed: Namespaces in which links wait to be deleted.
    """

    resources: Mapping[Key, Resource]
    foreign: frozenset[Key] = msgspec.field(default_factory=frozenset)
    indexes: Mapping[Key, int] = msgspec.field(default_factory=dict)
    doomed: frozenset[Ns] = msgspec.field(default_factory=frozenset)


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of one link since it was made (ip-link(8), -s)."""

    rx_bytes: int = 0
    rx_packets: int = 0
    rx_errors: int = 0
    rx_dropped: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_errors: int = 0
    tx_dropped: int = 0


class Kernel(Protocol):
    """One host's kernel, with exactly one writer."""

    async def execute(self, steps: Sequence[Operation]) -> list[NetweftError | None]:
        """Carry out the steps in order, in as few sends as possible, and return each one's error.

        A refused step does not stop the others; a step of an owner that failed before is skipped with that owner's
        error. Adding what is there already in the wanted form, and removing what is gone, is success.
        Cancellation does not interrupt steps that were begun.
        """

    async def observe(
        self, wanted: Mapping[Key, Resource], namespaces: Collection[Ns] | None = None, *, take_over: bool = True
    ) -> Observation:
        """Look at the kernel.

        Args:
            wanted: Desired state: says which namespaces to look into, and which settings and files to read.
            namespaces: Only these; None: all of `wanted`, the host, and what earlier runs left behind.
            take_over: Go on where an earlier run has stopped: open the namespaces that are there, hold the ports, own
                the tables. False while somebody may be writing: what was seen may be gone by then, and would be made
                or held again.
        """

    async def statistics(self, ns: Ns) -> dict[str, Statistics]:
        """Return the counters of a namespace's links but lo, by name.

        Raises:
            NotFound: The namespace is not held.
        """

    def announce(self, announcements: Collection[Announcement]) -> None:
        """Have neighbours told, in the background; what cannot be told is left out without a word."""

    async def announce_now(self, announcements: Collection[Announcement]) -> None:
        """Tell neighbours once, and have the rest told in the background."""

    def hush(self, places: Collection[Place]) -> None:
        """Leave out what is still to be told of these places; idempotent."""

    def netns_path(self, ns: Ns) -> str:
        """Return the path by which other processes can open the namespace; empty when it is not held."""

    def changes(self) -> AsyncIterator[Ns]:
        """Yield the name of a namespace whenever the kernel tells of a change in it that we did not make."""

    async def close(self) -> None:
        """Give up sockets and threads; the kernel keeps what was made."""
