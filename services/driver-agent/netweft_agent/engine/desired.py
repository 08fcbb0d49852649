"""What all owners together want of the kernel.

Each owner's wishes are replaced as a whole; a resource lives as long as one owner wants it. `replace` returns the keys
that may now differ from the kernel, so that the planner looks at those only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from netweft_agent.domain.resources import Key, Resource


@dataclass(slots=True)
class Desired:
    """Resources by key, with the owners that want them. Not thread-safe: one task owns it."""

    resources: dict[Key, Resource] = field(default_factory=dict)
    wanted_by: dict[Key, set[str]] = field(default_factory=dict)
    by_owner: dict[str, frozenset[Key]] = field(default_factory=dict)

    def replace(self, owner: str, wanted: Mapping[Key, Resource]) -> set[Key]:
        """Make `wanted` all that the owner wants and return the keys concerned, old and new."""
        before = self.by_owner.get(owner, frozenset())
        after = frozenset(wanted)
        for key in before - after:
            owners = self.wanted_by[key]
            owners.discard(owner)
            if not owners:
                del self.wanted_by[key], self.resources[key]
        for key, resource in wanted.items():
            self.resources[key] = resource
            self.wanted_by.setdefault(key, set()).add(owner)
        if after:
            self.by_owner[owner] = after
        else:
            self.by_owner.pop(owner, None)
        return set(before | after)

    def owner(self, key: Key) -> str:
        """Return one owner of a key; `host` when nobody wants it."""
        return min(self.wanted_by.get(key, ()), default="host")
