"""Confirmations of hosts, recorded in the background: JOINING becomes JOINED, CREATING becomes READY.

They are off the caller's path: what was acknowledged is durable as JOINING, and whoever finds it so after a crash asks
the host. Many confirmations share one commit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

import msgspec
from netweft_common import backoff, errors, faults, logs

from netweft_controller.domain import commits
from netweft_controller.domain.objects import Endpoint, EndpointState, PublishedPort, Sandbox, SandboxState
from netweft_controller.domain.state import State
from netweft_controller.sync.replica import Replica

_log = logs.get()
_BATCH = 512
_CATCH_UP_S = 1.0
_COALESCE_S = 0.1
"""Each confirmation is another commit for every replica and another message to the host; together they cost little."""


class Confirmed(msgspec.Struct, frozen=True, kw_only=True):
    """What a host said of an endpoint or sandbox at a revision.

    Attributes:
        ports: Of an endpoint: with what the host has assigned.
        error: Why the host cannot have it; empty: it has it.
    """

    id: str
    revision: int
    interface_name: str = ""
    ports: tuple[PublishedPort, ...] = ()
    netns_path: str = ""
    error: str = ""


class Settler:
    """Records confirmations.

    Args:
        replica: Where to.
    """

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._confirmed: dict[str, Confirmed] = {}
        self._requests: dict[str, commits.Request] = {}
        self._wake = asyncio.Event()

    def confirm(self, confirmed: Iterable[Confirmed], request: commits.Request | None = None) -> None:
        """Record these soon, and what is then remembered of their request."""
        for one in confirmed:
            self._confirmed[one.id] = one
        if request is not None:
            self._requests[request.id] = request
        self._wake.set()

    async def run(self) -> None:
        """Record until cancelled; what is left is recorded then."""
        delays = backoff.delays()
        try:
            while True:
                await self._wake.wait()
                await asyncio.sleep(_COALESCE_S)
                try:
                    await self.flush()
                except errors.NetweftError as error:
                    _log.warning("confirmations wait", count=len(self._confirmed), error=error.message)
                    await asyncio.sleep(next(delays))
                else:
                    delays = backoff.delays()
        finally:
            # A courtesy: the reconciler of another controller would ask the hosts.
            with contextlib.suppress(errors.NetweftError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self.flush()

    async def catch_up(self) -> None:
        """Record what waits before somebody reads, so that he sees what was acknowledged, or takes it away.

        What is taken away before it is remembered that its caller was told of it, a late try of his request on another
        controller would make again. A store that is away keeps nobody from reading: he sees the state before.
        """
        if self._confirmed or self._requests:
            with contextlib.suppress(errors.NetweftError, TimeoutError):
                async with asyncio.timeout(_CATCH_UP_S):
                    await self.flush()

    async def flush(self) -> None:
        """Record what there is.

        Raises:
            NetweftError: It could not be; it is kept for the next time.
        """
        while self._confirmed or self._requests:
            part = dict(list(self._confirmed.items())[:_BATCH])
            # A request is told of when all that it made is confirmed, which came in the same call.
            requests = dict(self._requests) if len(part) == len(self._confirmed) else {}
            await self._replica.decide(lambda state, p=part, r=requests: settle(state, p.values(), r.values()))  # type: ignore[misc]  # mypy infers no types for lambda defaults
            faults.reach(faults.Point.ATTACH_CONFIRMED)
            for id_, one in part.items():
                if self._confirmed.get(id_) is one:
                    del self._confirmed[id_]
            for id_, request in requests.items():
                if self._requests.get(id_) is request:
                    del self._requests[id_]
        self._wake.clear()


def settle(
    state: State, confirmed: Iterable[Confirmed], requests: Iterable[commits.Request] = ()
) -> commits.Commit | None:
    """Return the commit that records confirmations; those of other versions are dropped."""
    builder = commits.Builder()
    for one in confirmed:
        endpoint = state.endpoints.get(one.id)
        if endpoint is not None and endpoint.revision == one.revision:
            settled: Endpoint | Sandbox = settled_endpoint(endpoint.value, one)
            if settled != endpoint.value:
                builder.update(endpoint, settled)
        sandbox = state.sandboxes.get(one.id)
        if sandbox is not None and sandbox.revision == one.revision:
            settled = settled_sandbox(sandbox.value, one)
            if settled != sandbox.value:
                builder.update(sandbox, settled)
    remembered = list(requests)
    for request in remembered:
        builder.remember(request)
    return builder.build() if builder.writes or remembered else None


def settled_endpoint(endpoint: Endpoint, one: Confirmed) -> Endpoint:
    """Return the endpoint as its host has confirmed it, or with what stands in the way."""
    if not endpoint.is_active:
        return endpoint
    if one.error:
        return msgspec.structs.replace(endpoint, status_message=one.error)
    return msgspec.structs.replace(
        endpoint,
        state=EndpointState.JOINED,
        interface_name=one.interface_name or endpoint.interface_name,
        ports=assigned(endpoint.ports, one.ports),
        status_message="",
    )


def assigned(wanted: tuple[PublishedPort, ...], said: tuple[PublishedPort, ...]) -> tuple[PublishedPort, ...]:
    """Return the ports that are wanted with what a host has assigned to them; what it says of others is dropped."""
    if not said:
        return wanted
    found = {one.binding: one.assigned_port for one in said}
    made = tuple([one.with_assigned(found.get(one.binding, one.assigned_port)) for one in wanted])
    # One tuple for what is the same, so that it is written once (wire.endpoint).
    return next((same for same in (said, wanted) if same == made), made)


def settled_sandbox(sandbox: Sandbox, one: Confirmed) -> Sandbox:
    """Return the sandbox as its host has confirmed it, or with what stands in the way."""
    if sandbox.state is SandboxState.DELETING:
        return sandbox
    if one.error:
        return msgspec.structs.replace(sandbox, status_message=one.error)
    return msgspec.structs.replace(
        sandbox,
        state=SandboxState.READY,
        netns_path=one.netns_path or sandbox.netns_path,
        status_message="",
    )
