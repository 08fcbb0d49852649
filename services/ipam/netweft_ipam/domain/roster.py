"""Which hosts there are, as controllers say: agents of others are refused, whatever certificates they have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    """The hosts of the cluster.

    Attributes:
        store_id: Identity of the controllers' store.
        revision: Of that store, up to which the list is known to be so.
        names: Name of each host by its id; None: agents of any host are let in.
    """

    store_id: str
    revision: int
    names: Mapping[str, str] | None

    def admitted(self) -> frozenset[str] | None:
        """Return by which words certificates may name their host, ids and names; None: by any."""
        return None if self.names is None else frozenset(self.names) | frozenset(self.names.values())

    def follows(self, known: Roster | None) -> bool:
        """Return whether this one is to take the place of the one that is known."""
        return known is None or known.store_id != self.store_id or known.revision <= self.revision
