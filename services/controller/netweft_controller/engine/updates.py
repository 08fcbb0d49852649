"""The saga of a change: of an endpoint or sandbox that exists, and that its host may have.

A change is: decide and commit, apply on the host, answer; the confirmation is recorded afterwards (`settle`). What the
host refuses is put back: the object is written as it was, unless somebody else has changed it since. No answer: the
change stays recorded and reaches the host by its stream; the caller is told so, and asks again with the same request
id. What an object was before is remembered with the request until the host has confirmed it, so that a retry can still
put it back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from netweft_common import deadline, errors, faults

from netweft_controller.domain import commits, names, updates
from netweft_controller.domain.changes import HostKind
from netweft_controller.domain.objects import Endpoint, Record, Sandbox
from netweft_controller.domain.specs import EndpointSpec, EndpointWord, SandboxSpec
from netweft_controller.domain.state import State
from netweft_controller.engine.joining import Joiner, joined, with_netns
from netweft_controller.engine.requests import Done, Outcome, Request
from netweft_controller.engine.settle import Confirmed, Settler
from netweft_controller.engine.work import Work
from netweft_controller.sync.replica import Replica

_UNDO_S = 10.0


class Updater:
    """Changes endpoints and sandboxes.

    Args:
        replica: Intent.
        joiner: Asks hosts.
        settler: Records confirmations.
        work: Owner of the sagas.
    """

    def __init__(self, *, replica: Replica, joiner: Joiner, settler: Settler, work: Work) -> None:
        self._replica = replica
        self._joiner = joiner
        self._settler = settler
        self._work = work

    async def endpoint(
        self, request: Request, word: EndpointWord, spec: EndpointSpec, mask: Sequence[str]
    ) -> Record[Endpoint]:
        """Change an endpoint and wait until its host has the change. Idempotent by request.

        Raises:
            InvalidArgument: The mask or a new value is wrong.
            NetweftError: The host refused it and the endpoint is as it was, or did not answer (Unavailable).
        """
        return await self._work.once(
            request.key, request.fingerprint, lambda: self._endpoint(request, word, spec, mask), name="update endpoint"
        )

    async def sandbox(self, request: Request, word: str, spec: SandboxSpec, mask: Sequence[str]) -> Record[Sandbox]:
        """Change a sandbox and wait until its host has the change. Idempotent by request.

        Raises:
            InvalidArgument: The mask or a new value is wrong.
            AlreadyExists: Its host has another sandbox of the new container id.
            NetweftError: The host refused it and the sandbox is as it was, or did not answer (Unavailable).
        """
        return await self._work.once(
            request.key, request.fingerprint, lambda: self._sandbox(request, word, spec, mask), name="update sandbox"
        )

    # Endpoints

    async def _endpoint(
        self, request: Request, word: EndpointWord, spec: EndpointSpec, mask: Sequence[str]
    ) -> Record[Endpoint]:
        done = await self._done(request)
        if done is not None and done.told and done.endpoint is not None:
            return Record(done.endpoint, done.revision, done.created_ms)
        if done is None:
            done = Done(id="")

            def decision(state: State) -> commits.Commit:
                nonlocal done
                record = names.get_endpoint(state, word.endpoint, word.network)
                done = Done(id=record.value.id, endpoint=record.value)
                value = updates.endpoint(state, record, spec, mask)
                return updates.record_endpoint(record, value, request.remember(Outcome(items=(done,))))

            outcome = await self._replica.decide(decision)
            if isinstance(outcome, commits.Replayed):
                return await self._endpoint(request, word, spec, mask)
        record = _endpoint_of(self._replica.state, done.id)
        if not record.value.is_active:
            self._settler.confirm((), request.remember(Outcome(items=(_told(record),))))
            return record
        faults.reach(faults.Point.PUBLISH_RECORDED)
        statuses = await self._joiner.ask_hosts([done.id], [])
        faults.reach(faults.Point.PUBLISH_JOINED)
        result = joined(self._replica.state, done.id, statuses)
        if isinstance(result, errors.NetweftError):
            if not isinstance(result, errors.Unavailable) and done.endpoint is not None:
                await self._put_endpoint_back(request, record, done.endpoint)
            raise result
        told = _told(result.endpoint)
        self._joiner.confirm([result], request.remember(Outcome(items=(told,))))
        return result.endpoint

    async def _put_endpoint_back(self, request: Request, refused: Record[Endpoint], before: Endpoint) -> None:
        def decision(state: State) -> commits.Commit:
            record = state.endpoints.get(refused.value.id)
            builder = commits.Builder()
            builder.forget(request.key)
            if record is not None and record.revision == refused.revision:
                builder.update(record, msgspec.structs.replace(before, state=record.value.state))
            return builder.build()

        await self._put_back(decision)
        statuses = await self._joiner.ask_hosts([refused.value.id], [])
        restored = joined(self._replica.state, refused.value.id, statuses)
        if not isinstance(restored, errors.NetweftError):
            self._joiner.confirm([restored])

    # Sandboxes

    async def _sandbox(self, request: Request, word: str, spec: SandboxSpec, mask: Sequence[str]) -> Record[Sandbox]:
        done = await self._done(request)
        if done is not None and done.told and done.sandbox is not None:
            return Record(done.sandbox, done.revision, done.created_ms)
        if done is None:
            done = Done(id="")

            def decision(state: State) -> commits.Commit:
                nonlocal done
                record = names.get_sandbox(state, word)
                done = Done(id=record.value.id, sandbox=record.value)
                value = updates.sandbox(state, record, spec, mask)
                return updates.record_sandbox(record, value, request.remember(Outcome(items=(done,))))

            outcome = await self._replica.decide(decision)
            if isinstance(outcome, commits.Replayed):
                return await self._sandbox(request, word, spec, mask)
        record = self._replica.state.sandboxes.get(done.id)
        if record is None:
            raise errors.NotFound("SANDBOX_NOT_FOUND", f"sandbox {done.id} was deleted meanwhile")
        statuses = await self._joiner.ask_hosts([], [done.id])
        status = statuses.get((HostKind.SANDBOX, done.id))
        if status is None:
            raise errors.Conflict("SANDBOX_GONE", f"sandbox {done.id} was deleted while it was being changed")
        if status.error is not None:
            if not isinstance(status.error, errors.Unavailable) and done.sandbox is not None:
                await self._put_sandbox_back(request, record, done.sandbox)
            raise status.error
        made = with_netns(record, status)
        told = Done(id=done.id, told=True, sandbox=made.value, revision=made.revision, created_ms=made.created_ms)
        self._settler.confirm(
            [Confirmed(id=done.id, revision=made.revision, netns_path=made.value.netns_path)],
            request.remember(Outcome(items=(told,))),
        )
        return made

    async def _put_sandbox_back(self, request: Request, refused: Record[Sandbox], before: Sandbox) -> None:
        def decision(state: State) -> commits.Commit:
            record = state.sandboxes.get(refused.value.id)
            builder = commits.Builder()
            builder.forget(request.key)
            if record is None or record.revision != refused.revision:
                return builder.build()
            return msgspec.structs.replace(
                updates.record_sandbox(record, msgspec.structs.replace(before, state=record.value.state)),
                forget=(request.key,),
            )

        await self._put_back(decision)
        await self._joiner.ask_hosts([], [refused.value.id])

    # Both

    async def _done(self, request: Request) -> Done | None:
        known = await self._replica.find_request(request.key)
        if known is None:
            return None
        (done,) = request.recall(known).items
        return done

    async def _put_back(self, decision: Callable[[State], commits.Commit]) -> None:
        # The caller's time may be over; putting back has its own.
        deadline.set_remaining(_UNDO_S)
        await self._replica.decide(decision)


def _endpoint_of(state: State, endpoint_id: str) -> Record[Endpoint]:
    record = state.endpoints.get(endpoint_id)
    if record is None:
        raise errors.NotFound("ENDPOINT_NOT_FOUND", f"endpoint {endpoint_id} was deleted meanwhile")
    return record


def _told(record: Record[Endpoint]) -> Done:
    return Done(
        id=record.value.id, told=True, endpoint=record.value, revision=record.revision, created_ms=record.created_ms
    )
