"""What the controller needs of a store: a small etcd with claims and remembered requests.

Implementations: `store.redis`, and `store.memory` for tests; one contract suite runs on both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec
from netweft_common import errors

from netweft_controller.domain import commits


class StoreReplacedError(errors.Unavailable):
    """The store is another one, or was restored to an earlier state; load everything again."""

    def __init__(self, message: str) -> None:
        super().__init__("STORE_REPLACED", message, retry_after_s=0.1)


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Which store this is.

    Attributes:
        store_id: Made at random when the store was first used; a restored store gets another one.
        revision: Revision of the last commit.
        cut: Where it is not the store that the caller knows, and continues that one's history: revision up to which it
            has that. None: it is that store, or a stranger.
    """

    store_id: str
    revision: int
    cut: int | None = None


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """All objects of the store.

    Attributes:
        revision: The records hold every change up to here, and may hold later ones: apply the log after it, skipping
            what a record already has.
    """

    store_id: str
    revision: int
    records: Sequence[commits.AnyRecord]


class Heartbeats(msgspec.Struct, frozen=True, kw_only=True):
    """When hosts last reported.

    Attributes:
        now_ms: The store's clock, in milliseconds since 1970.
        last_ms: Time of each host's last heartbeat, by host id, by the same clock.
        revisions: Revision that each host's kernel followed then, by host id.
    """

    now_ms: int
    last_ms: Mapping[str, int]
    revisions: Mapping[str, int]


class Store(Protocol):
    """Durable intent. Every method raises Unavailable when the store does not answer in the caller's time."""

    async def open(self, *, store_id: str = "", seen_revision: int = 0) -> Identity:
        """Say which store this is, giving it an id if it has none.

        Args:
            store_id: Store that the caller knows.
            seen_revision: Revision that the caller has seen of it; when the store is behind that, it was restored and
                gets a new id and a revision no lower. So does one that is empty. Where it was cut is remembered.
        """
        ...

    async def commit(self, change: commits.Commit, *, seen_revision: int = 0) -> commits.Outcome:
        """Execute a commit atomically; it is durable when this returns Committed.

        Raises:
            StoreReplacedError: This is not the store that was opened, or it is behind `seen_revision`.
            Unavailable: No answer; the commit may or may not have been done.
        """
        ...

    async def load(self) -> Loaded:
        """Read all objects."""
        ...

    async def read_log(self, after: int, limit: int) -> Sequence[commits.Entry]:
        """Read up to `limit` entries after a revision; none when there is nothing newer.

        Raises:
            OutOfRange: The log no longer reaches back to that revision.
        """
        ...

    async def tail(self, after: Callable[[], int], wait_s: float) -> Sequence[commits.Entry]:
        """Wait for entries after a revision, up to `wait_s` seconds; none when there were none.

        Args:
            after: Says what has been seen; asked before waiting and again before decoding, since the caller may have
                learnt of its own commits meanwhile.
            wait_s: Longest wait, in seconds.

        Raises:
            OutOfRange: The log no longer reaches back to that revision.
            StoreReplacedError: This is not the store that was opened, or it is behind that revision.
        """
        ...

    async def revision(self) -> int:
        """Return the revision of the last commit of anybody.

        Raises:
            StoreReplacedError: This is not the store that was opened.
        """
        ...

    async def find_request(self, request_id: str) -> commits.Request | None:
        """Return what is remembered of a request, or None."""
        ...

    async def find_claims(self, prefix: str) -> Mapping[str, str]:
        """Return the claims whose name starts so, with their owners; reads all claims, so not for busy paths."""
        ...

    async def beat(self, revisions: Mapping[str, int]) -> Heartbeats:
        """Record heartbeats of hosts at the store's present time, and return those of all hosts.

        Args:
            revisions: Revision that each host's kernel follows, by host id.
        """
        ...

    async def forget_heartbeat(self, host_id: str) -> None:
        """Drop a host's heartbeat."""
        ...

    async def close(self) -> None:
        """Close connections."""
        ...
