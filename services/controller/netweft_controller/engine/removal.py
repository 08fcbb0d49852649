"""Taking endpoints and sandboxes away: the shell around `domain.removal`."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator, Sequence

from netweft_common import errors, faults

from netweft_controller.clients.agents import Agents
from netweft_controller.clients.ipam import Ipam, releases_of
from netweft_controller.domain import commits, removal
from netweft_controller.domain.changes import Change, HostKind
from netweft_controller.domain.objects import EndpointState, SandboxState
from netweft_controller.domain.state import State
from netweft_controller.sync.hostwatch import HostWatches
from netweft_controller.sync.replica import Replica

Failures = dict[str, errors.NetweftError]


class Remover:
    """Takes endpoints and sandboxes away.

    Args:
        replica: Intent.
        ipam: Where addresses go back to.
        agents: Who takes it out of kernels.
        watches: Streams that need not say again what a host has dropped.
    """

    def __init__(self, *, replica: Replica, ipam: Ipam, agents: Agents, watches: HostWatches) -> None:
        self._replica = replica
        self._watches = watches
        self._ipam = ipam
        self._agents = agents

    async def remove(
        self,
        endpoint_ids: Collection[str],
        sandbox_ids: Collection[str] = (),
        *,
        delete: bool = True,
        once: commits.Request | None = None,
        unasked: bool = False,
    ) -> Failures:
        """Mark, take out of the hosts, and end; see `finish` for the answer.

        Args:
            endpoint_ids: Endpoints.
            sandbox_ids: Sandboxes.
            delete: False: the endpoints only leave their sandboxes.
            once: The request, if it is to be remembered.
            unasked: Hosts are not asked: they are gone, or lost for good.

        Raises:
            NetweftError: The mark could not be made, so nothing was done, or may not have been.
        """
        await self._replica.decide(
            lambda state: removal.mark(state, endpoint_ids, sandbox_ids, delete=delete, once=once)
        )
        return await self.finish(endpoint_ids, sandbox_ids, unasked=unasked)

    async def finish(
        self, endpoint_ids: Collection[str], sandbox_ids: Collection[str] = (), *, unasked: bool = False
    ) -> Failures:
        """Take what is marked out of its hosts, give addresses back, and end it. Idempotent.

        Returns:
            What stands in the way, by id of endpoint or sandbox; those stay marked for the reconciler.
        """
        failures: Failures = {}
        faults.reach(faults.Point.DETACH_MARKED)
        endpoints_here, sandboxes_here = await self._leave_hosts(endpoint_ids, sandbox_ids, failures, unasked=unasked)
        faults.reach(faults.Point.DETACH_LEFT)
        released = await self._give_back(endpoints_here, failures)
        faults.reach(faults.Point.DETACH_RELEASED)
        confirmed = [id_ for id_ in endpoints_here if id_ not in failures]
        if confirmed or sandboxes_here:
            try:
                await self._replica.decide(
                    lambda state: removal.finish(state, confirmed, sandboxes_here, released=released)
                )
            except errors.NetweftError as error:
                failures.update(dict.fromkeys((*confirmed, *sandboxes_here), error))
        faults.reach(faults.Point.DETACH_ENDED)
        return failures

    async def _leave_hosts(
        self, endpoint_ids: Iterable[str], sandbox_ids: Iterable[str], failures: Failures, *, unasked: bool
    ) -> tuple[list[str], list[str]]:
        """Return the endpoints and sandboxes that no host has any more."""
        left: dict[HostKind, list[str]] = {HostKind.ENDPOINT: [], HostKind.SANDBOX: []}
        by_host: dict[str, list[Change]] = {}
        hosts = self._replica.state.hosts
        for host_id, change in _marked(self._replica.state, endpoint_ids, sandbox_ids):
            if host_id in hosts and not unasked:
                by_host.setdefault(host_id, []).append(change)
            else:
                # In no sandbox, or on a host that was forgotten: nobody is left to ask.
                left[change.kind].append(change.id)
        answers = await asyncio.gather(*(self._leave(host_id, changes) for host_id, changes in by_host.items()))
        for changes, answer in zip(by_host.values(), answers, strict=True):
            for change, error in zip(changes, answer, strict=True):
                if error is None:
                    left[change.kind].append(change.id)
                else:
                    failures[change.id] = error
        return left[HostKind.ENDPOINT], left[HostKind.SANDBOX]

    async def _leave(self, host_id: str, changes: Sequence[Change]) -> list[errors.NetweftError | None]:
        state = self._replica.state
        record = state.hosts.get(host_id)
        if record is None:
            return [None] * len(changes)
        try:
            statuses = await self._agents.apply(record.value, changes, state.store_id)
        except errors.NetweftError as error:
            failure = errors.Unavailable(
                "HOST_UNREACHABLE",
                f"host {record.value.name} does not answer ({error.message}); what was asked is recorded and will be"
                " done when it returns",
                host=host_id,
            )
            return [failure] * len(changes)
        gone = (one for one, status in zip(changes, statuses, strict=True) if status.error is None)
        self._watches.told(host_id, gone)
        return [status.error for status in statuses]

    async def _give_back(self, endpoint_ids: Sequence[str], failures: Failures) -> set[str]:
        """Return the endpoints whose addresses are given back."""
        state = self._replica.state
        records = [
            record for id_ in endpoint_ids if (record := state.endpoints.get(id_)) is not None and record.value.deleting
        ]
        releases = [one for record in records for one in releases_of(record.value.id, record.value.leases)]
        ids = {record.value.id for record in records}
        if not releases:
            return ids
        try:
            await self._ipam.release_addresses(releases)
        except errors.NetweftError as error:
            failure = errors.Unavailable(
                "IPAM_UNREACHABLE",
                f"addresses could not be given back ({error.message}); the deletion is recorded and will be finished",
            )
            failures.update(dict.fromkeys(ids, failure))
            return set()
        return ids


def _marked(state: State, endpoint_ids: Iterable[str], sandbox_ids: Iterable[str]) -> Iterator[tuple[str, Change]]:
    """Yield what hosts are to be told of the marked ones, with the host; endpoints before their sandboxes."""
    for id_ in dict.fromkeys(endpoint_ids):
        endpoint = state.endpoints.get(id_)
        if endpoint is not None and endpoint.value.state is EndpointState.LEAVING:
            yield endpoint.value.host_id, Change(endpoint.revision, HostKind.ENDPOINT, id_, None)
    for id_ in dict.fromkeys(sandbox_ids):
        sandbox = state.sandboxes.get(id_)
        if sandbox is not None and sandbox.value.state is SandboxState.DELETING:
            yield sandbox.value.host_id, Change(sandbox.revision, HostKind.SANDBOX, id_, None)
