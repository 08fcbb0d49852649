"""What the controller does for endpoints: attach, create, join, leave, detach, plan.

The sagas of attach and detach are in `engine.attach` and `engine.detach`. Once begun, a saga runs to its end, also
when its caller has gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec
from netweft_common import deadline, errors, logs

from netweft_controller.clients.agents import Agents, Step
from netweft_controller.clients.ipam import Ipam
from netweft_controller.domain import commits, endpoints, fields, names, prediction
from netweft_controller.domain.endpoints import Placer
from netweft_controller.domain.objects import Endpoint, EndpointState, Record
from netweft_controller.domain.specs import AttachItem, EndpointSpec, EndpointWord, SandboxRef
from netweft_controller.domain.state import State
from netweft_controller.engine.attach import Attach
from netweft_controller.engine.detach import Detach
from netweft_controller.engine.joining import Attached, Joiner, Result
from netweft_controller.engine.removal import Remover
from netweft_controller.engine.requests import Done, Outcome, Request
from netweft_controller.engine.stock import Stock
from netweft_controller.engine.turns import Turns
from netweft_controller.engine.work import Work
from netweft_controller.sync.replica import Replica

R = TypeVar("R")

PATIENCE_S = 30.0
"""Of a caller without a deadline, for its turn and all that comes after: half for the one, half for the other."""
PATIENCE_MOST_S = 10.0
"""So long, and no longer, does anybody wait for a turn."""

_log = logs.get()


class HostPlan(msgspec.Struct, frozen=True):
    """What one host would do."""

    host_id: str
    steps: Sequence[Step]


class EndpointEngine:
    """What the controller does for endpoints.

    Args:
        replica: Intent.
        ipam: Addresses.
        agents: Kernels.
        remover: Takes endpoints away.
        joiner: Has hosts take endpoints up.
        work: Owner of the sagas.
        stock: Addresses leased ahead.
        turns: How many may be under way.
    """

    def __init__(
        self,
        *,
        replica: Replica,
        ipam: Ipam,
        agents: Agents,
        remover: Remover,
        joiner: Joiner,
        work: Work,
        stock: Stock,
        turns: Turns,
    ) -> None:
        self._turns = turns
        self._stock = stock
        self._replica = replica
        self._ipam = ipam
        self._agents = agents
        self._remover = remover
        self._joiner = joiner
        self._work = work

    def close(self) -> None:
        """Begin nothing for callers who wait for their turn; they are told so."""
        self._turns.close()

    # Attach

    async def attach(self, request: Request, items: Sequence[AttachItem]) -> list[Result]:
        """Create and join endpoints; one result each, in their order. Idempotent by request.

        Raises:
            NetweftError: The whole batch failed; nothing stays, or the outcome is not known (Unavailable).
        """
        fields.batch(items)
        return await self._in_turn(
            request, [item.sandbox for item in items], lambda: self._attach(request, items).run(), name="attach"
        )

    async def _in_turn(
        self, request: Request, refs: Sequence[SandboxRef | None], run: Callable[[], Awaitable[R]], *, name: str
    ) -> R:
        """Do a request once, when its turn has come; what was done before is answered without one.

        Raises:
            Unavailable: The turn did not come; nothing was done.
        """
        patience_s = min(deadline.remaining_s(PATIENCE_S) / 2, PATIENCE_MOST_S)

        async def turn() -> R:
            host = endpoints.only_host(self._replica.state, refs)
            if not self._turns.has_room(host) and await self._replica.find_request(request.key) is not None:
                return await run()
            async with self._turns.turn(host, patience_s):
                return await run()

        return await self._work.once(request.key, request.fingerprint, turn, name=name)

    async def plan_attach(self, items: Sequence[AttachItem]) -> list[HostPlan]:
        """Return what an attach would do on each host; nothing is done.

        Raises:
            NetweftError: Of the first item that cannot be, or of a host that does not answer.
        """
        fields.batch(items)
        per_host = prediction.attach(self._replica.state, items)
        hosts = [self._replica.state.hosts[host_id].value for host_id in per_host]
        plans = await asyncio.gather(
            *(self._agents.plan(host, told) for host, told in zip(hosts, per_host.values(), strict=True))
        )
        return [HostPlan(host.id, steps) for host, steps in zip(hosts, plans, strict=True)]

    async def create(self, request: Request, spec: EndpointSpec) -> Record[Endpoint]:
        """Create an endpoint in no sandbox. Idempotent by request.

        Raises:
            NetweftError: It could not be made; nothing stays, or the outcome is not known (Unavailable).
        """
        (result,) = await self._in_turn(
            request, (), lambda: self._attach(request, [AttachItem(endpoint=spec)]).run(), name="create endpoint"
        )
        if isinstance(result, errors.NetweftError):
            raise result
        return result.endpoint

    def _attach(self, request: Request, items: Sequence[AttachItem]) -> Attach:
        return Attach(request, items, replica=self._replica, ipam=self._ipam, joiner=self._joiner, stock=self._stock)

    # Single verbs

    async def join(self, request: Request, word: EndpointWord, ref: SandboxRef) -> Attached:
        """Send an endpoint into a sandbox. Idempotent by request.

        Raises:
            FailedPrecondition: It is in another sandbox.
            NetweftError: It could not join, and is in no sandbox.
        """
        return await self._in_turn(request, [ref], lambda: self._join(request, word, ref), name="join")

    async def leave(self, request: Request, word: EndpointWord) -> Record[Endpoint]:
        """Take an endpoint out of its sandbox. Idempotent by request.

        Raises:
            FailedPrecondition: It is in no sandbox.
            NetweftError: Its host does not answer; the leave is recorded and will be done.
        """
        return await self._work.once(request.key, request.fingerprint, lambda: self._leave(request, word), name="leave")

    async def delete(self, request: Request, word: EndpointWord, *, force: bool) -> None:
        """Delete an endpoint. Idempotent by request.

        Raises:
            FailedPrecondition: It is joined, and `force` is not set.
            NotFound: There is none.
        """
        (error,) = await self._work.once(
            request.key,
            request.fingerprint,
            lambda: self._detach(request, [word], refuse_joined=not force, missing_is_ok=False).run(),
            name="delete endpoint",
        )
        if error is not None:
            raise error

    async def detach(self, request: Request, words: Sequence[EndpointWord]) -> list[errors.NetweftError | None]:
        """Leave and delete endpoints; one outcome each, in their order; one that is gone is fine.

        Raises:
            NetweftError: The whole batch failed; nothing was done, or the outcome is not known (Unavailable).
        """
        fields.batch(words)
        return await self._work.once(
            request.key,
            request.fingerprint,
            lambda: self._detach(request, words, refuse_joined=False, missing_is_ok=True).run(),
            name="detach",
        )

    async def _join(self, request: Request, word: EndpointWord, ref: SandboxRef) -> Attached:
        joined_id = ""
        new_sandbox_id = request.id_for("sandbox")
        path = "sandbox"

        def decision(state: State) -> commits.Commit:
            nonlocal joined_id
            record = names.get_endpoint(state, word.endpoint, word.network)
            joined_id = record.value.id
            network = state.networks[record.value.network_id]
            target = Placer(state).target(ref, sandbox_id=new_sandbox_id, path=path)
            if record.value.state is not EndpointState.CREATED:
                raise errors.FailedPrecondition(
                    "ENDPOINT_IN_SANDBOX",
                    f"endpoint {record.value.name} is {record.value.state}"
                    + (f" in sandbox {record.value.sandbox_id}" if record.value.sandbox_id else "")
                    + "; let it leave first",
                    endpoint=joined_id,
                )
            endpoints.check_join(state, record.value, network, target, "endpoint")
            return endpoints.join(record, network, target, request.remember(Outcome(items=(Done(id=joined_id),))))

        known = await self._replica.find_request(request.key)
        if known is None:
            try:
                outcome = await self._replica.decide(decision)
            except errors.NetweftError as error:
                known = await self._replica.find_after(request.key, error)
            else:
                known = outcome.request if isinstance(outcome, commits.Replayed) else None
        if known is not None:
            (done,) = request.recall(known).items
            record = self._replica.state.endpoints.get(done.id) if done is not None else None
            if record is None or not record.value.is_active:
                raise errors.FailedPrecondition(
                    "JOIN_UNDONE", "the endpoint was joined by this request and has left since; use a new request id"
                )
            joined_id = record.value.id
        made = [new_sandbox_id] if new_sandbox_id in self._replica.state.sandboxes else []
        (result,) = await self._joiner.apply([joined_id], made, others=[joined_id] if known is not None else [])
        if isinstance(result, errors.NetweftError):
            if known is None:
                await self._forget(request)
            raise result
        self._joiner.confirm([result])
        return result

    async def _leave(self, request: Request, word: EndpointWord) -> Record[Endpoint]:
        known = await self._replica.find_request(request.key)
        endpoint_id = ""
        if known is None:
            try:
                endpoint_id = self._joined(word)
            except errors.NetweftError as error:
                known = await self._replica.find_after(request.key, error)
        if known is not None:
            (done,) = request.recall(known).items
            endpoint_id = done.id if done is not None else ""
        once = request.remember(Outcome(items=(Done(id=endpoint_id, told=True),))) if known is None else None
        if known is None:
            failures = await self._remover.remove([endpoint_id], delete=False, once=once)
        else:
            failures = await self._remover.finish([endpoint_id])
        if endpoint_id in failures:
            raise failures[endpoint_id]
        left = self._replica.state.endpoints.get(endpoint_id)
        if left is None:
            raise errors.NotFound("ENDPOINT_NOT_FOUND", f"endpoint {endpoint_id} was deleted meanwhile")
        return left

    def _joined(self, word: EndpointWord) -> str:
        """Return the id of an endpoint that is in a sandbox, or about to leave one."""
        record = names.get_endpoint(self._replica.state, word.endpoint, word.network)
        if record.value.state is EndpointState.CREATED:
            raise errors.FailedPrecondition(
                "ENDPOINT_NOT_JOINED", f"endpoint {record.value.name} is in no sandbox", endpoint=record.value.id
            )
        return record.value.id

    def _detach(
        self, request: Request, words: Sequence[EndpointWord], *, refuse_joined: bool, missing_is_ok: bool
    ) -> Detach:
        return Detach(
            request,
            words,
            refuse_joined=refuse_joined,
            missing_is_ok=missing_is_ok,
            replica=self._replica,
            remover=self._remover,
        )

    async def _forget(self, request: Request) -> None:
        """What failed leaves nothing behind: a retry tries again."""
        try:
            await self._replica.commit(commits.Commit(forget=(request.key,)))
        except errors.NetweftError as error:
            _log.warning("request not forgotten", request=request.key, error=error.message)
