"""Letting agents in: those of hosts that are recorded, once a controller has said which those are.

The list is in the store, so all replicas have it; each looks for a newer one every half second or so.
"""

from __future__ import annotations

from netweft_common import errors, logs
from netweft_common.identity import Identity, Role

from netweft_ipam.domain.roster import Roster
from netweft_ipam.store.protocol import Store


class Gate:
    """Refuses agents of hosts that are not recorded.

    Args:
        store: Where the list is.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._roster: Roster | None = None
        self._admitted: frozenset[str] | None = None

    def admit(self, caller: Identity) -> None:
        """Refuse an agent whose host was deleted, or never joined; until a list is known, nobody is refused.

        Raises:
            Unauthenticated: It is such a one.
        """
        if caller.role is not Role.AGENT or self._admitted is None or caller.name in self._admitted:
            return
        raise errors.Unauthenticated(
            "HOST_UNKNOWN",
            f"{caller} is no host of this cluster: it was deleted, or has not joined; join it with a token",
        )

    async def set(self, roster: Roster) -> None:
        """Take a controller's word for which hosts there are. Idempotent; an older one than is known is ignored.

        Raises:
            Unavailable: The store does not answer.
        """
        await self._store.set_roster(roster)
        await self.look()

    async def look(self) -> None:
        """Read the list if there is a newer one.

        Raises:
            Unavailable: The store does not answer.
        """
        found = await self._store.read_roster(self._roster)
        if found is self._roster:
            return
        self._roster = found
        admitted = found.admitted() if found is not None else None
        if admitted != self._admitted:
            logs.get().info("other hosts are let in", revision=found.revision if found is not None else 0)
        self._admitted = admitted
