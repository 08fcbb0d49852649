"""What hosts are known to hold, so that it is not told again with each endpoint that builds on it.

Of networks and sandboxes only: every attach names one of each. What a host has acknowledged at a revision it has at
that or a newer one for as long as it lives, and usually longer; where it has lost it, it says so of the endpoint
(`NETWORK_UNKNOWN`, `SANDBOX_UNKNOWN`), and is told everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from netweft_controller.domain import changes, commits
from netweft_controller.domain.changes import Change, HostKind
from netweft_controller.domain.objects import Kind, Sandbox
from netweft_controller.domain.state import Delta, State
from netweft_controller.sync.replica import Replica

_KINDS = frozenset({HostKind.NETWORK, HostKind.SANDBOX})
LOST = frozenset({"NETWORK_UNKNOWN", "SANDBOX_UNKNOWN"})
"""Reasons by which an agent says that it does not hold what an endpoint builds on."""


class Held:
    """Revisions that hosts have acknowledged, of objects that exist.

    Args:
        replica: Intent.
    """

    def __init__(self, replica: Replica) -> None:
        self._revisions: dict[str, dict[changes.Key, int]] = {}
        """By host, then by object."""
        replica.subscribe(self)

    def acknowledged(self, host_id: str, known: Iterable[Change]) -> None:
        """Take note that a host has these."""
        for change in known:
            if change.kind in _KINDS and change.put is not None:
                self._revisions.setdefault(host_id, {})[change.kind, change.id] = change.revision

    def has(self, host_id: str, change: Change) -> bool:
        """Return whether a host is known to have this."""
        known = self._revisions.get(host_id)
        return known is not None and known.get((change.kind, change.id)) == change.revision

    def forget(self, host_id: str, keys: Iterable[changes.Key]) -> None:
        """Have a host told of these again."""
        known = self._revisions.get(host_id, {})
        for key in keys:
            known.pop(key, None)

    def forget_host(self, host_id: str) -> None:
        """Have a host told of everything again."""
        self._revisions.pop(host_id, None)

    def changed(self, state: State, deltas: Sequence[Delta]) -> None:
        """Forget what is gone, and follow the revision of what is new for others than its host."""
        del state
        for delta in deltas:
            if delta.kind is Kind.SANDBOX and delta.before is not None:
                self._follow_sandbox(delta.before, delta.after)
            elif delta.kind is Kind.NETWORK and delta.after is None:
                for known in self._revisions.values():
                    known.pop((HostKind.NETWORK, delta.id), None)
            elif delta.kind is Kind.HOST and delta.after is None:
                self.forget_host(delta.id)

    def _follow_sandbox(self, before: commits.AnyRecord, after: commits.AnyRecord | None) -> None:
        old = before.value
        assert isinstance(old, Sandbox), "the delta says so"
        known = self._revisions.get(old.host_id)
        key = (HostKind.SANDBOX, old.id)
        if known is None or key not in known:
            return
        if after is None:
            del known[key]
        elif (
            known[key] == before.revision
            and isinstance(after.value, Sandbox)
            and not changes.sandbox_differs(old, after.value)
        ):
            known[key] = after.revision

    def reloaded(self, state: State) -> None:
        """Forget everything: of another store, revisions say nothing."""
        del state
        self._revisions.clear()
