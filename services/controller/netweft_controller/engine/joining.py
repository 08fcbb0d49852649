"""Having hosts take endpoints up, and undoing what they refuse."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec
from netweft_common import deadline, errors, logs

from netweft_controller.clients.agents import Agents
from netweft_controller.domain import changes, commits, endpoints, removal
from netweft_controller.domain.changes import HostKind, Status
from netweft_controller.domain.objects import Endpoint, EndpointState, Record, Sandbox, SandboxState
from netweft_controller.domain.state import State
from netweft_controller.engine.removal import Remover
from netweft_controller.engine.settle import Confirmed, Settler, settled_endpoint, settled_sandbox
from netweft_controller.sync.held import LOST, Held
from netweft_controller.sync.hostwatch import HostWatches
from netweft_controller.sync.replica import Replica

_log = logs.get()
_UNDO_S = 10.0


class Attached(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint in its sandbox, as it is answered."""

    endpoint: Record[Endpoint]
    sandbox: Record[Sandbox] | None
    gateways: tuple[str, ...] = ()


Result = Attached | errors.NetweftError


class Joiner:
    """Has hosts take endpoints up.

    Args:
        replica: Intent.
        agents: Kernels.
        remover: Takes away what did not work.
        settler: Records confirmations.
        watches: Streams that need not say again what a host has taken up.
        held: What need not be said again with each endpoint.
    """

    def __init__(
        self, *, replica: Replica, agents: Agents, remover: Remover, settler: Settler, watches: HostWatches, held: Held
    ) -> None:
        self._held = held
        self._replica = replica
        self._watches = watches
        self._agents = agents
        self._remover = remover
        self._settler = settler

    async def apply(
        self, endpoint_ids: Sequence[str], new_sandbox_ids: Collection[str], *, others: Collection[str] = ()
    ) -> list[Result]:
        """Have hosts take endpoints up; what fails is undone. One result each, in their order.

        What another try has recorded is not undone: the host may have told that one otherwise, and it may have answered
        before that is on record. Where it has died, the reconciler asks the host again. Likewise what is answered of it
        is on record before, for the other try may be about to undo it.

        Args:
            endpoint_ids: Endpoints in JOINING or JOINED.
            new_sandbox_ids: Sandboxes to take away again when none of their endpoints works.
            others: Those of the endpoints that another try has recorded, which may be at work.
        """
        statuses = await self.ask_hosts(endpoint_ids, new_sandbox_ids)
        state = self._replica.state
        results: list[Result] = []
        failed: list[str] = []
        for id_ in endpoint_ids:
            result = joined(state, id_, statuses)
            results.append(result)
            if isinstance(result, errors.NetweftError) and id_ not in others:
                failed.append(id_)
        if others:
            results = await self._on_record(results, others)
        if failed:
            unused = [id_ for id_ in new_sandbox_ids if not removal.keeps_endpoints(state, id_, leaving=set(failed))]
            await self.undo(failed, unused, statuses)
        return results

    async def _on_record(self, results: Sequence[Result], others: Collection[str]) -> list[Result]:
        """Record what was confirmed of some endpoints, and answer only that."""
        found = {one.endpoint.value.id: one for one in results if isinstance(one, Attached)}
        self.confirm(found[id_] for id_ in others if id_ in found)
        await self._settler.flush()
        recorded = self._replica.state.endpoints
        gone = {id_ for id_ in others if (one := recorded.get(id_)) is None or not one.value.is_active}
        return [
            _gone(one.endpoint.value.id) if isinstance(one, Attached) and one.endpoint.value.id in gone else one
            for one in results
        ]

    async def finish_undo(
        self, endpoint_ids: Collection[str], sandbox_ids: Collection[str]
    ) -> dict[str, errors.NetweftError]:
        """Try to finish what is being undone, if it is; returns what stands in the way."""
        return await self._remover.finish(endpoint_ids, sandbox_ids)

    async def ask_hosts(self, endpoint_ids: Iterable[str], sandbox_ids: Iterable[str]) -> Mapping[changes.Key, Status]:
        """Apply endpoints and sandboxes on their hosts; a host that does not answer answers so for each."""
        state = self._replica.state
        on_host: dict[str, tuple[list[str], list[str]]] = {}
        for id_ in endpoint_ids:
            endpoint = state.endpoints.get(id_)
            if endpoint is not None:
                on_host.setdefault(endpoint.value.host_id, ([], []))[0].append(id_)
        for id_ in sandbox_ids:
            sandbox = state.sandboxes.get(id_)
            if sandbox is not None:
                on_host.setdefault(sandbox.value.host_id, ([], []))[1].append(id_)
        if len(on_host) == 1:
            # The common case without the tasks of a gather.
            ((host_id, ids),) = on_host.items()
            answers = [await self._ask(host_id, *ids)]
        else:
            answers = await asyncio.gather(*(self._ask(host_id, *ids) for host_id, ids in on_host.items()))
        return {(status.kind, status.id): status for answer in answers for status in answer}

    async def _ask(self, host_id: str, endpoint_ids: list[str], sandbox_ids: list[str]) -> list[Status]:
        state = self._replica.state
        everything = changes.for_apply(state, host_id, endpoint_ids, sandbox_ids)
        told = self._unknown(state, host_id, everything, sandbox_ids)
        host = state.hosts.get(host_id)
        if host is None:
            gone = errors.FailedPrecondition("HOST_GONE", f"host {host_id} was deleted meanwhile", host=host_id)
            return _all_failed(told, gone)
        try:
            statuses = await self._agents.apply(host.value, told, state.store_id)
            if len(told) < len(everything) and any(_lacks(one) for one in statuses):
                self._held.forget(host_id, ((one.kind, one.id) for one in everything))
                told = everything
                statuses = await self._agents.apply(host.value, told, state.store_id)
        except errors.NetweftError as error:
            how = "does not answer" if isinstance(error, errors.Unavailable) else "could not take it"
            silent = errors.Unavailable(
                "HOST_UNREACHABLE",
                f"host {host.value.name} {how} ({error.message}); check its agent, and ask again with"
                " the same request id",
                host=host_id,
            )
            return _all_failed(told, silent)
        taken = [one for one, of in zip(told, statuses, strict=True) if of.error is None]
        self._watches.told(host_id, taken)
        self._held.acknowledged(host_id, taken)
        return statuses

    def _unknown(
        self, state: State, host_id: str, told: Sequence[changes.Change], sandbox_ids: Collection[str]
    ) -> Sequence[changes.Change]:
        """Return what a host is to be told, without the networks and sandboxes that it is known to have."""
        return [
            one
            for one in told
            if one.kind is HostKind.ENDPOINT
            or not self._held.has(host_id, one)
            or (one.kind is HostKind.SANDBOX and (one.id in sandbox_ids or _is_unconfirmed(state, one.id)))
        ]

    async def undo(
        self,
        endpoint_ids: Collection[str],
        sandbox_ids: Collection[str],
        statuses: Mapping[changes.Key, Status] | None = None,
    ) -> None:
        """Take away what a host has refused; what a host has not answered for is only marked.

        Raises:
            NetweftError: The mark could not be made; the reconciler finds the objects as they are.
        """
        # The caller's time may be over; undoing has its own.
        deadline.set_remaining(_UNDO_S)
        known = statuses or {}
        silent = {id_ for (_, id_), status in known.items() if status.is_unreachable}
        await self._replica.decide(
            lambda state: removal.mark(state, _unsettled(state, endpoint_ids), sandbox_ids, delete=None)
        )
        failures = await self._remover.finish(
            [id_ for id_ in endpoint_ids if id_ not in silent], [id_ for id_ in sandbox_ids if id_ not in silent]
        )
        for id_, error in failures.items():
            _log.warning("undo waits", object_id=id_, error=error.message)

    def confirm_sandboxes(self, sandbox_ids: Iterable[str], statuses: Mapping[changes.Key, Status]) -> None:
        """Have confirmations of sandboxes recorded in the background."""
        state = self._replica.state
        confirmed: list[Confirmed] = []
        for id_ in sandbox_ids:
            record, status = state.sandboxes.get(id_), statuses.get((HostKind.SANDBOX, id_))
            if record is not None and status is not None and status.error is None:
                confirmed.append(Confirmed(id=id_, revision=record.revision, netns_path=status.netns_path))
        self._settler.confirm(confirmed)

    def confirm(self, results: Iterable[Attached], request: commits.Request | None = None) -> None:
        """Have confirmations recorded in the background."""
        confirmed: dict[str, Confirmed] = {}
        for result in results:
            endpoint = result.endpoint
            confirmed[endpoint.value.id] = Confirmed(
                id=endpoint.value.id,
                revision=endpoint.revision,
                interface_name=endpoint.value.interface_name,
                ports=endpoint.value.ports,
            )
            if result.sandbox is not None:
                sandbox = result.sandbox
                confirmed[sandbox.value.id] = Confirmed(
                    id=sandbox.value.id, revision=sandbox.revision, netns_path=sandbox.value.netns_path
                )
        self._settler.confirm(confirmed.values(), request)


def joined(state: State, endpoint_id: str, statuses: Mapping[changes.Key, Status]) -> Result:
    """Return an endpoint as its host has it, or why not."""
    record = state.endpoints.get(endpoint_id)
    status = statuses.get((HostKind.ENDPOINT, endpoint_id))
    if record is None or not record.value.is_active or status is None:
        return _gone(endpoint_id)
    endpoint = record.value
    below = [(HostKind.NETWORK, endpoint.network_id), (HostKind.SANDBOX, endpoint.sandbox_id)]
    for key in (*below, (HostKind.ENDPOINT, endpoint_id)):
        known = statuses.get(key)
        if known is not None and known.error is not None:
            return known.error
    made = Confirmed(id=endpoint_id, revision=record.revision, interface_name=status.interface_name, ports=status.ports)
    sandbox = state.sandboxes.get(endpoint.sandbox_id)
    if sandbox is not None:
        sandbox = with_netns(sandbox, statuses.get((HostKind.SANDBOX, endpoint.sandbox_id)))
    network = state.networks.get(endpoint.network_id)
    return Attached(
        endpoint=msgspec.structs.replace(record, value=settled_endpoint(endpoint, made)),
        sandbox=sandbox,
        gateways=endpoints.gateways(network.value, endpoint) if network is not None else (),
    )


def _gone(endpoint_id: str) -> errors.Conflict:
    return errors.Conflict(
        "ENDPOINT_GONE", f"endpoint {endpoint_id} was taken away by somebody else while it was being joined"
    )


def _unsettled(state: State, endpoint_ids: Iterable[str]) -> list[str]:
    """Return the endpoints of which nobody has recorded that their host has them."""
    known = ((id_, state.endpoints.get(id_)) for id_ in endpoint_ids)
    return [id_ for id_, record in known if record is not None and record.value.state is not EndpointState.JOINED]


def with_netns(sandbox: Record[Sandbox], status: Status | None) -> Record[Sandbox]:
    """Return a sandbox as its host has it."""
    if status is None:
        return sandbox
    made = Confirmed(id=sandbox.value.id, revision=sandbox.revision, netns_path=status.netns_path)
    return msgspec.structs.replace(sandbox, value=settled_sandbox(sandbox.value, made))


def _is_unconfirmed(state: State, sandbox_id: str) -> bool:
    """Return whether the host's status of a sandbox is still to be recorded."""
    record = state.sandboxes.get(sandbox_id)
    return record is None or record.value.state is not SandboxState.READY


def _lacks(status: Status) -> bool:
    """Return whether a host does not hold what an endpoint builds on."""
    return status.error is not None and status.error.reason in LOST


def _all_failed(told: Iterable[changes.Change], error: errors.NetweftError) -> list[Status]:
    return [Status(kind=one.kind, id=one.id, revision=one.revision, error=error) for one in told]
