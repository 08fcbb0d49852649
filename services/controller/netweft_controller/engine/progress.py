"""How far the hosts of a network follow what was changed of it, and waiting for them."""

from __future__ import annotations

import asyncio

import msgspec
from netweft_common import deadline

from netweft_controller.domain.objects import HostState
from netweft_controller.engine.liveness import Liveness
from netweft_controller.sync.hostwatch import HostWatches
from netweft_controller.sync.replica import Replica

WAIT_S = 30.0
LOOK_S = 0.05
ASK_S = 1.0


class HostProgress(msgspec.Struct, frozen=True):
    """How far one host is; one that is lost is behind, whatever it said last."""

    host_id: str
    revision: int
    is_behind: bool


class Progress:
    """What hosts have said of how far they are.

    Args:
        replica: Intent.
        liveness: What hosts report, to whichever controller.
        watches: Streams of the hosts that can be asked to report; the others do so in their time.
    """

    def __init__(self, replica: Replica, liveness: Liveness, watches: HostWatches) -> None:
        self._replica = replica
        self._liveness = liveness
        self._watches = watches

    def of(self, network_id: str, revision: int = 0) -> list[HostProgress]:
        """Return how far the hosts of a network are, by id.

        Args:
            network_id: The network.
            revision: What they are to have followed; 0: the network's last change.
        """
        state = self._replica.state
        wanted = revision or state.network_revision(network_id)
        return [
            HostProgress(
                host_id,
                reached := self._liveness.revision(host_id),
                is_behind=reached < wanted or self._liveness.state(host_id) is HostState.LOST,
            )
            for host_id in sorted(state.hosts_with(network_id))
        ]

    async def wait(self, network_id: str, revision: int, timeout_s: float) -> tuple[int, list[str]]:
        """Wait until no host of a network is behind; returns the revision, and the hosts that are, by id.

        Args:
            network_id: The network.
            revision: What the hosts are to have followed; 0: the network's last change.
            timeout_s: Longest wait; it ends a little before the caller's own time does.
        """
        if revision:
            await self._replica.reached(revision)
        last = self._replica.state.network_revision(network_id)
        # Of a later one hosts need not hear: a confirmation of their own, or what is not this network's.
        wanted = min(revision or last, last)
        now = asyncio.get_running_loop().time
        ends_s = now() + min(timeout_s, WAIT_S, max(0.0, deadline.remaining_s(WAIT_S) - 2 * LOOK_S))
        ask_s = now()
        while True:
            behind = [one.host_id for one in self.of(network_id, wanted) if one.is_behind]
            if not behind or now() >= ends_s:
                return wanted, behind
            if now() >= ask_s:
                # Once more after a while, for a host may have come to this controller meanwhile.
                ask_s = now() + ASK_S
                for host_id in behind:
                    self._watches.ask(host_id)
            await asyncio.sleep(LOOK_S)
