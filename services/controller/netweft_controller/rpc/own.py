"""What an agent may have done: to its own host, and to what is on no host. Every other role is not asked.

Agents call for their front-ends (CNI, Docker). Who has taken over one host, and so has its certificate, must not be
able to take endpoints of other hosts away, nor to make any there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from netweft_common import errors, identity
from netweft_common.identity import Role

from netweft_controller.domain import names
from netweft_controller.domain.specs import AttachItem, EndpointWord, SandboxRef
from netweft_controller.engine.settle import Settler
from netweft_controller.sync.replica import Replica


class OwnHost:
    """Refuses agents that reach for other hosts.

    Args:
        replica: What is where.
        settler: Caught up with, so that nothing is judged by what was there before.
    """

    def __init__(self, replica: Replica, settler: Settler) -> None:
        self._replica = replica
        self._settler = settler

    async def sandboxes(self, refs: Iterable[SandboxRef | None]) -> None:
        """Refuse sandboxes of other hosts, to be made or there.

        Raises:
            PermissionDenied: The caller is an agent, and one of them is not its host's.
            NotFound: The caller is an agent, and one of them is not known.
        """
        if not await self._is_asked():
            return
        for ref in refs:
            if isinstance(ref, str):
                self._require(names.get_sandbox(self._replica.state, ref).value.host_id)
            elif ref is not None and (ref.host or len(self._replica.state.hosts) > 1):
                self._require(names.get_host(self._replica.state, ref.host).value.id)

    async def sandbox_that_goes(self, word: str) -> None:
        """Refuse to have a sandbox of another host deleted; one that has gone is nobody's.

        Raises:
            PermissionDenied: The caller is an agent, and the sandbox is not its host's.
        """
        with contextlib.suppress(errors.NotFound):
            await self.sandboxes([word])

    async def items(self, items: Iterable[AttachItem]) -> None:
        """Refuse attachments to sandboxes of other hosts; as `sandboxes`."""
        await self.sandboxes(item.sandbox for item in items)

    async def endpoints(self, words: Iterable[EndpointWord]) -> None:
        """Refuse endpoints that are joined on other hosts; what is not there has nobody to lose it.

        Raises:
            PermissionDenied: The caller is an agent, and one of them is not on its host.
        """
        if not await self._is_asked():
            return
        for word in words:
            try:
                found = names.get_endpoint(self._replica.state, word.endpoint, word.network).value
            except errors.NotFound:
                continue
            if found.host_id:
                self._require(found.host_id)

    async def _is_asked(self) -> bool:
        if identity.current().role is not Role.AGENT:
            return False
        await self._settler.catch_up()
        return True

    def _require(self, host_id: str) -> None:
        record = self._replica.state.hosts.get(host_id)
        identity.require_self(host_id, *((record.value.name,) if record is not None else ()))
