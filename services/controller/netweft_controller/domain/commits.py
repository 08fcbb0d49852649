"""A commit: everything that one mutation reads, writes and claims, as a value that the store executes atomically."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec

from netweft_controller.domain.objects import Endpoint, Host, Kind, Network, Object, Record, Sandbox, kind_of

AnyRecord = Record[Network] | Record[Endpoint] | Record[Sandbox] | Record[Host]


class Action(enum.StrEnum):
    """What happened to an object."""

    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"


class Guard(msgspec.Struct, frozen=True, kw_only=True):
    """The version that a decision was based on; `revision` 0 means that the object must not exist."""

    kind: Kind
    id: str
    revision: int


class Write(msgspec.Struct, frozen=True):
    """One object written or deleted.

    Attributes:
        action: What happens; its guard makes it true.
        value: The object after it; before it, for DELETED.
    """

    action: Action
    value: Object

    @property
    def kind(self) -> Kind:
        """Kind of the object."""
        return kind_of(self.value)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of a request.

    Attributes:
        id: Idempotency key, made unique by the method's name.
        fingerprint: Digest of the request's body: the same key with another body is refused.
        outcome: What a retry is answered from; the engine's own encoding.
    """

    id: str
    fingerprint: bytes
    outcome: bytes


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """One atomic change.

    Attributes:
        once: Request that this commit does, and remembers.
        after: What must be remembered of that request until now; None: nothing. Anything else refuses the commit:
            somebody did the request, or some of it, at the same time or before.
        guards: Versions that must still hold.
        writes: Objects written and deleted; each needs a guard.
        take: Claims to take, name to owner; one that another owner holds refuses the commit.
        drop: Claims to drop, name to owner; one that another owner holds stays.
        free: Claims that nobody may hold.
        remember: Further requests to remember, or to overwrite.
        forget: Ids of requests to forget.
    """

    once: Request | None = None
    after: Request | None = None
    guards: tuple[Guard, ...] = ()
    writes: tuple[Write, ...] = ()
    take: tuple[tuple[str, str], ...] = ()
    drop: tuple[tuple[str, str], ...] = ()
    free: tuple[str, ...] = ()
    remember: tuple[Request, ...] = ()
    forget: tuple[str, ...] = ()


class Entry(msgspec.Struct, frozen=True):
    """One entry of the change log: what a commit wrote.

    Attributes:
        revision: Its place in the order of the whole cluster.
        time_ms: Time of the commit, by the store's clock, in milliseconds since 1970.
    """

    revision: int
    time_ms: int
    writes: tuple[Write, ...]


class Committed(msgspec.Struct, frozen=True):
    """The commit was done, and is durable.

    Attributes:
        entry: What the log says of it; without writes there is no entry, and its revision is the store's.
    """

    entry: Entry


class Replayed(msgspec.Struct, frozen=True):
    """Something else is remembered of the request of `Commit.once` than was thought; nothing was changed.

    Attributes:
        request: What is remembered; None: nothing any more.
        revision: Revision of the store at that moment.
    """

    request: Request | None
    revision: int


class Refused(msgspec.Struct, frozen=True):
    """A guard or claim did not hold; nothing was changed.

    Attributes:
        revision: Revision of the store at that moment: whoever has read up to it can decide again.
        guard: Guard that did not hold.
        claim: Claim that another owner holds.
        owner: Who holds that claim.
    """

    revision: int
    guard: Guard | None = None
    claim: str = ""
    owner: str = ""


Outcome = Committed | Replayed | Refused


class Builder:
    """Collects the parts of a commit, keeping each write beside its guard."""

    def __init__(self) -> None:
        self._guards: dict[tuple[Kind, str], int] = {}
        self._writes: list[Write] = []
        self._take: dict[str, str] = {}
        self._drop: dict[str, str] = {}
        self._free: dict[str, None] = {}
        self._remember: list[Request] = []
        self._forget: list[str] = []

    def guard(self, record: AnyRecord) -> None:
        """Require that an object is still at this version."""
        self._guards[kind_of(record.value), record.value.id] = record.revision

    def create(self, value: Object) -> None:
        """Write an object that must not exist."""
        self._guards[kind_of(value), value.id] = 0
        self._writes.append(Write(Action.CREATED, value))

    def update(self, record: AnyRecord, value: Object) -> None:
        """Write a new version of an object that must still be at the old one."""
        self.guard(record)
        self._writes.append(Write(Action.UPDATED, value))

    def delete(self, record: AnyRecord) -> None:
        """Delete an object that must still be at this version."""
        self.guard(record)
        self._writes.append(Write(Action.DELETED, record.value))

    def take(self, claim: str, owner: str) -> None:
        """Take a claim."""
        self._take[claim] = owner

    def drop(self, claim: str, owner: str) -> None:
        """Drop a claim."""
        self._drop[claim] = owner

    def free(self, claim: str) -> None:
        """Require that nobody holds a claim."""
        self._free[claim] = None

    def remember(self, request: Request) -> None:
        """Remember a request, or overwrite what is remembered of it."""
        self._remember.append(request)

    def forget(self, request_id: str) -> None:
        """Forget a request."""
        self._forget.append(request_id)

    @property
    def writes(self) -> Sequence[Write]:
        """What has been collected."""
        return self._writes

    def build(self, once: Request | None = None, after: Request | None = None) -> Commit:
        """Return the commit."""
        return Commit(
            once=once,
            after=after,
            guards=tuple(Guard(kind=kind, id=id_, revision=rev) for (kind, id_), rev in self._guards.items()),
            writes=tuple(self._writes),
            take=tuple(self._take.items()),
            drop=tuple(self._drop.items()),
            free=tuple(self._free),
            remember=tuple(self._remember),
            forget=tuple(self._forget),
        )
