"""Links that wait to be deleted together.

Deleting a link waits for grace periods of the kernel, however many links go at once. Measured (2 cores, Linux 6.18,
veth pairs between namespaces): one RTM_DELLINK 15 to 28 ms; one of a link group 16 to 24 ms, whether it holds 1 link
or 12, and 0.5 to 0.75 ms a link for hundreds. Putting a link into the group costs 0.02 to 0.05 ms, taking it down as
well 0.06 to 0.14 ms (a veth has no queue to drain), taking it off its bridge 0.24 to 0.44 ms. So a doomed link is put
into the group and taken down, which ends its traffic, in one message, and deleted with the others a moment later; where
there are many, all are deleted at once, which takes them down together.
"""

from __future__ import annotations

import time

from netweft_common import errors, faults

from netweft_agent.domain import resources
from netweft_agent.domain.resources import Ns
from netweft_agent.kernel import netlink, rtnl
from netweft_agent.kernel.sockets import Sockets

DELAY_S = 0.05


class Reaper:
    """The doomed links of all namespaces; belongs to the writer thread."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        # Where doomed links are, and where their other ends are; None: nobody knows.
        self._pending: dict[Ns, set[Ns | None]] = {}
        self._due_s = 0.0

    def add(self, ns: Ns, peer_ns: Ns | None) -> None:
        """Note that a link of the namespace is in the group, its other end, if any, in `peer_ns`."""
        if not self._pending:
            self._due_s = time.monotonic() + DELAY_S
        self._pending.setdefault(ns, set()).add(peer_ns)

    def covers(self, ns: Ns) -> bool:
        """Return whether a doomed link still takes a name in the namespace, or may."""
        return ns in self._pending or any(ns in peers or None in peers for peers in self._pending.values())

    def pending(self) -> bool:
        """Return whether any link waits."""
        return bool(self._pending)

    def reap(self) -> None:
        """Delete all that wait, in one grace period a namespace."""
        while self._pending:
            ns, _ = self._pending.popitem()
            self.reap_namespace(ns)

    def reap_namespace(self, ns: Ns) -> None:
        """Delete what is in the group in one namespace, also what an earlier run left there."""
        try:
            sock = self._sockets.get(ns)
        except errors.NetweftError:  # the namespace has gone, and the links with it
            return
        netlink.talk(sock, [rtnl.delete_group(resources.REAP_GROUP)])
        faults.reach(faults.Point.KERNEL_REAPED)

    def reap_if_due(self) -> float | None:
        """Delete what has waited long enough; return the seconds until it is worth calling again, None if never."""
        if not self._pending:
            return None
        wait_s = self._due_s - time.monotonic()
        if wait_s > 0:
            return wait_s
        self.reap()
        return None
