"""Telling IPAM which hosts there are, so that the certificate of a host that was deleted is worth nothing there either.

Every controller tells it, each time that a host comes, goes or gets another name, and again after a while: what IPAM's
store has lost comes back so. IPAM keeps the newest by the intent's revision
(`docs/decisions/0023-ipam-knows-the-hosts.md`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

from netweft_common import errors, logs

from netweft_controller.clients.ipam import Ipam
from netweft_controller.domain.objects import Host, Kind
from netweft_controller.domain.state import Delta, State
from netweft_controller.sync.replica import Replica

_log = logs.get()
AGAIN_S = 60.0
RETRY_S = 2.0


class Roster:
    """Keeps IPAM told.

    Args:
        replica: Which hosts there are.
        ipam: Who is told.
        is_closed: Whether hosts have their certificates from this cluster; else agents of any host are let in.
    """

    def __init__(self, replica: Replica, ipam: Ipam, *, is_closed: bool) -> None:
        self._replica = replica
        self._ipam = ipam
        self._is_closed = is_closed
        self._wake = asyncio.Event()
        replica.subscribe(self)

    def changed(self, state: State, deltas: Sequence[Delta]) -> None:
        """Take note of hosts that come, go or get another name."""
        del state
        if self._is_closed and any(one.kind is Kind.HOST and _name(one.before) != _name(one.after) for one in deltas):
            self._wake.set()

    def reloaded(self, state: State) -> None:
        """Tell all again."""
        del state
        self._wake.set()

    async def tell(self) -> None:
        """Tell IPAM which hosts there are; of those that have yet to join too, so that they are known when they come.

        Raises:
            NetweftError: IPAM did not take it.
        """
        state = self._replica.state
        names: Mapping[str, str] | None = None
        if self._is_closed:
            names = {id_: record.value.name for id_, record in state.hosts.items()}
        await self._ipam.set_hosts(state.store_id, state.revision, names)

    async def run(self) -> None:
        """Tell until cancelled."""
        failed = False
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S if failed else AGAIN_S):
                    await self._wake.wait()
            self._wake.clear()
            if not self._replica.is_loaded:
                continue
            try:
                await self.tell()
            except errors.NetweftError as error:
                if not failed:
                    _log.warning("IPAM does not know which hosts there are", error=error.message)
                failed = True
            else:
                failed = False


def _name(record: object) -> str | None:
    value = getattr(record, "value", None)
    return value.name if isinstance(value, Host) else None
