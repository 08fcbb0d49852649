"""Ids that namespaces have in the host's, by which the kernel tells where an event is from (netlink(7))."""

from __future__ import annotations

from netweft_agent.domain.resources import Ns


class Nsids:
    """Namespaces by id, and ids by namespace. Written by the writer thread, read by any."""

    def __init__(self) -> None:
        self._spaces: dict[int, Ns] = {}
        self._ids: dict[Ns, int] = {}

    def put(self, nsid: int, ns: Ns) -> None:
        """Note the id of a namespace. What the kernel calls unassigned (below 0) is none."""
        if nsid < 0:
            return
        self._spaces[nsid] = ns
        self._ids[ns] = nsid

    def find(self, nsid: int) -> Ns | None:
        """Return the namespace of that id."""
        return self._spaces.get(nsid)

    def has(self, ns: Ns) -> bool:
        """Return whether the namespace is known to have an id."""
        return ns in self._ids

    def forget(self, ns: Ns) -> None:
        """Let go of a namespace."""
        nsid = self._ids.pop(ns, None)
        if nsid is not None and self._spaces.get(nsid) == ns:
            del self._spaces[nsid]
