"""Registering, hearing and forgetting hosts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from netweft_common import errors, identity, listen
from netweft_common.identity import Role

from netweft_controller.clients.agents import Agents
from netweft_controller.domain import commits, fields, hosts, names
from netweft_controller.domain.changes import HostKind, Status
from netweft_controller.domain.objects import Drift, EndpointState, Host, HostState, NarrowPath, Record
from netweft_controller.domain.state import State
from netweft_controller.engine.liveness import Liveness
from netweft_controller.engine.networks import NetworkEngine
from netweft_controller.engine.removal import Remover
from netweft_controller.engine.requests import Done, Outcome, Request
from netweft_controller.engine.settle import Confirmed, Settler
from netweft_controller.engine.work import Work
from netweft_controller.sync.held import Held
from netweft_controller.sync.replica import Replica

_CHUNK = 1000


class Drained(msgspec.Struct, frozen=True):
    """A host that was drained, and how much was taken away."""

    host: Record[Host]
    endpoints: int
    sandboxes: int


class HostEngine:
    """What the controller does for hosts.

    Args:
        replica: Intent.
        liveness: Heartbeats.
        settler: Records what hosts report.
        remover: Takes endpoints of forgotten hosts away.
        networks: Takes networks bound to forgotten hosts away.
        agents: Channels to hosts.
        work: Owner of the sagas.
        held: What hosts need not be told again.
    """

    def __init__(
        self,
        *,
        replica: Replica,
        liveness: Liveness,
        settler: Settler,
        remover: Remover,
        networks: NetworkEngine,
        agents: Agents,
        work: Work,
        held: Held,
    ) -> None:
        self._held = held
        self._replica = replica
        self._liveness = liveness
        self._settler = settler
        self._remover = remover
        self._networks = networks
        self._agents = agents
        self._work = work
        # Hosts that have told us everything once, and of which store's objects.
        self._heard_in_full: dict[str, str] = {}

    async def register(self, host: Host, *, authorise: Callable[[Host], None] = lambda _: None) -> Record[Host]:
        """Record a host. Idempotent.

        Args:
            host: As its agent describes it.
            authorise: Raises where the caller may not change the host that is recorded under this id.

        Raises:
            InvalidArgument: A field is wrong.
            FailedPrecondition: Another host has the name, or another agent speaks for the host.
            PermissionDenied: Not authorised.
        """
        hosts.check(host)
        try:
            listen.parse(host.agent_target)
        except errors.InvalidArgument as error:
            raise fields.invalid("host.agent_target", error.message, "TARGET_MALFORMED") from error

        def decision(state: State) -> commits.Commit | None:
            held = state.hosts.get(host.id)
            if held is not None:
                authorise(held.value)
                is_asked = identity.current().role is not Role.ADMIN
                if is_asked and self._liveness.state(host.id) is HostState.READY:
                    hosts.refuse_twin(held.value, host)
            return hosts.register(state, host)

        await self._replica.decide(decision)
        # Its agent has been started, or has found its way back: what it has is not known.
        self._held.forget_host(host.id)
        self._liveness.beat(host.id)
        state = self._replica.state
        await self._agents.retain(record.value for record in state.hosts.values())
        return state.hosts[host.id]

    def report(self, host_id: str, statuses: Sequence[Status], *, full: bool, revision: int = 0) -> bool:
        """Take note of a heartbeat; returns whether the next one should say everything.

        Args:
            host_id: The host.
            statuses: Objects whose state has changed.
            full: They are all.
            revision: Up to which the host's kernel follows the intent.

        Raises:
            NotFound: The host is not registered.
        """
        state = self._replica.state
        if host_id not in state.hosts:
            raise errors.NotFound("HOST_NOT_FOUND", f"host {host_id} is not registered; register it", host=host_id)
        self._liveness.beat(host_id, revision)
        self._settler.confirm(confirmations(state, host_id, statuses))
        self._held.forget(host_id, ((one.kind, one.id) for one in statuses if one.error is not None))
        if full:
            self._heard_in_full[host_id] = state.store_id
        return self._heard_in_full.get(host_id) != state.store_id

    async def note_drift(self, host_id: str, drift: Drift) -> None:
        """Record what a host had to repair, so that it is told as an event and shown. Idempotent.

        Raises:
            NetweftError: The store did not take it; the host tells it again.
        """
        await self._replica.decide(lambda state: hosts.drifted(state, host_id, drift))

    async def note_narrow_paths(self, host_id: str, paths: Sequence[NarrowPath]) -> None:
        """Record which ways of a host are narrow, so that it is told as an event and shown. Idempotent.

        Raises:
            InvalidArgument: They are too many, or another host's.
            NetweftError: The store did not take it; the host tells it again.
        """
        await self._replica.decide(lambda state: hosts.narrowed(state, host_id, paths))

    async def cordon(self, word: str, *, cordoned: bool) -> Record[Host]:
        """Let a host take new endpoints, or no longer. Idempotent.

        Raises:
            NotFound: There is none.
        """
        host_id = names.get_host(self._replica.state, word).value.id
        await self._replica.decide(lambda state: hosts.cordon(names.get_host(state, host_id), cordoned=cordoned))
        return names.get_host(self._replica.state, host_id)

    async def drain(self, word: str) -> Drained:
        """Cordon a host, detach its endpoints and delete its sandboxes. Idempotent.

        Raises:
            NotFound: There is none.
            NetweftError: Something could not be taken away; the host stays cordoned, and another try or the reconciler
                does the rest.
        """
        host_id = (await self.cordon(word, cordoned=True)).value.id
        endpoints, sandboxes = await self._take_away(host_id)
        return Drained(names.get_host(self._replica.state, host_id), endpoints, sandboxes)

    async def forsake(self, host_id: str) -> None:
        """Take away what is recorded on a host that is lost, without asking it. Idempotent.

        When it comes back, its agent finds nothing in its snapshot, and takes the rest out of its kernel.

        Raises:
            NetweftError: A step failed; the reconciler goes on.
        """
        await self._take_away(host_id, unasked=True)

    async def drop_pending(self, host_id: str) -> None:
        """Forget a pending host whose token has expired. Idempotent.

        Raises:
            NetweftError: The store did not take it; the reconciler goes on.
        """

        def decision(state: State) -> commits.Commit | None:
            record = state.hosts.get(host_id)
            return hosts.delete(record) if record is not None and record.value.is_pending else None

        await self._replica.decide(decision)

    async def delete(self, request: Request, word: str, *, force: bool) -> None:
        """Forget a host, with `force` all that is on it. Idempotent by request.

        Raises:
            NotFound: There is none.
            FailedPrecondition: It is in use, or ready and not the caller's own, and `force` is not set.
        """
        await self._work.once(
            request.key, request.fingerprint, lambda: self._delete(request, word, force=force), name="delete host"
        )

    async def _delete(self, request: Request, word: str, *, force: bool) -> None:
        known = await self._replica.find_request(request.key)
        if known is not None:
            (done,) = request.recall(known).items
            host_id = done.id if done is not None else ""
        else:
            record = names.get_host(self._replica.state, word)
            host_id = record.value.id
            if not force:
                if self._liveness.state(host_id) is HostState.READY and identity.current().role is not Role.AGENT:
                    raise errors.FailedPrecondition(
                        "HOST_READY",
                        f"host {record.value.name} is ready; stop its agent first, or use force",
                        host=host_id,
                    )
                hosts.refuse_use(self._replica.state, record)

            def decision(state: State) -> commits.Commit | None:
                now = state.hosts.get(host_id)
                if now is None:
                    return None
                if not force:
                    hosts.refuse_use(state, now)
                return hosts.delete(now, request.remember(Outcome(items=(Done(id=host_id, told=True),))))

            await self._replica.decide(decision)
            await self._liveness.forget(host_id)
            self._heard_in_full.pop(host_id, None)
        await self.clear(host_id)

    async def clear(self, host_id: str) -> None:
        """Take away what is recorded on a host that was forgotten; nobody is left to ask. Idempotent.

        Raises:
            NetweftError: A step failed; the reconciler goes on.
        """
        if host_id in self._replica.state.hosts:
            return
        await self._take_away(host_id, unasked=True)
        for network in list(self._replica.state.networks_bound_to(host_id)):
            await self._networks.delete_bound(network.value.id)

    async def _take_away(self, host_id: str, *, unasked: bool = False) -> tuple[int, int]:
        """Take away all endpoints and sandboxes of a host; returns how many of each."""
        counts = [0, 0]
        while True:
            state = self._replica.state
            endpoints = [endpoint.value.id for endpoint in state.endpoints_of_host(host_id)][:_CHUNK]
            sandboxes = [] if endpoints else [sandbox.value.id for sandbox in state.sandboxes_of_host(host_id)]
            if not endpoints and not sandboxes:
                return counts[0], counts[1]
            chosen = sandboxes[:_CHUNK]
            failures = await self._remover.remove(endpoints, chosen, unasked=unasked)
            if failures:
                raise next(iter(failures.values()))
            counts[0] += len(endpoints)
            counts[1] += len(chosen)


def confirmations(state: State, host_id: str, statuses: Sequence[Status]) -> list[Confirmed]:
    """Return what a host's report says of objects that are recorded on it.

    A confirmation that the host itself gave makes a version that it is not told of, so a report on an object that was
    confirmed before may speak of an earlier version.
    """
    found: list[Confirmed] = []
    for status in statuses:
        error = status.error.message if status.error is not None else ""
        if status.kind is HostKind.ENDPOINT:
            endpoint = state.endpoints.get(status.id)
            if endpoint is None or endpoint.value.host_id != host_id or not endpoint.value.is_active:
                continue
            if endpoint.value.state is EndpointState.JOINING and (status.revision < endpoint.revision or error):
                # An error while joining is for whoever waits for the join, or for the reconciler.
                continue
            found.append(
                Confirmed(
                    id=status.id,
                    revision=endpoint.revision,
                    interface_name=status.interface_name,
                    ports=status.ports,
                    error=error,
                )
            )
        elif status.kind is HostKind.SANDBOX:
            sandbox = state.sandboxes.get(status.id)
            if sandbox is None or sandbox.value.host_id != host_id:
                continue
            found.append(Confirmed(id=status.id, revision=sandbox.revision, netns_path=status.netns_path, error=error))
    return found
