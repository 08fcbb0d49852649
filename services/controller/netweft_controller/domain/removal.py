"""Rules for taking endpoints and sandboxes away: first marked, then gone from their hosts, then removed.

    JOINED, JOINING, CREATED --mark--> LEAVING --host confirms--> gone (deleting), or CREATED (not deleting)
    READY, CREATING          --mark--> DELETING --host confirms--> gone

Whoever finds an object in a marked state can go on from there, so a crash between the steps costs nothing but time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from netweft_controller.domain import commits
from netweft_controller.domain.endpoints import container_claim, name_claim
from netweft_controller.domain.objects import Endpoint, EndpointState, Record, Sandbox, SandboxState
from netweft_controller.domain.state import State


def mark(
    state: State,
    endpoint_ids: Iterable[str],
    sandbox_ids: Iterable[str] = (),
    *,
    delete: bool | None = True,
    once: commits.Request | None = None,
    after: commits.Request | None = None,
) -> commits.Commit | None:
    """Return the commit that records what is to go; None when there is nothing to record.

    Args:
        state: Intent as it is.
        endpoint_ids: Endpoints to take away; those that are gone are skipped.
        sandbox_ids: Sandboxes to delete; one that keeps an endpoint is skipped.
        delete: False: the endpoints only leave their sandboxes; None: those that are kept (`Endpoint.kept`) do.
        once: The request, if it is to be remembered.
        after: What is remembered of that request until now.
    """
    builder = commits.Builder()
    leaving: set[str] = set()
    for endpoint_id in dict.fromkeys(endpoint_ids):
        record = state.endpoints.get(endpoint_id)
        if record is None:
            continue
        leaving.add(endpoint_id)
        endpoint = record.value
        deleting = not endpoint.kept if delete is None else delete
        if endpoint.state is EndpointState.LEAVING and (endpoint.deleting or not deleting):
            continue
        if endpoint.state is EndpointState.CREATED and not deleting:
            continue
        builder.update(record, msgspec.structs.replace(endpoint, state=EndpointState.LEAVING, deleting=deleting))
    for sandbox_id in dict.fromkeys(sandbox_ids):
        sandbox = state.sandboxes.get(sandbox_id)
        if sandbox is None or sandbox.value.state is SandboxState.DELETING:
            continue
        if keeps_endpoints(state, sandbox_id, leaving):
            continue
        builder.update(sandbox, msgspec.structs.replace(sandbox.value, state=SandboxState.DELETING))
    if not builder.writes and once is None:
        return None
    return builder.build(once, after if once is not None else None)


def keeps_endpoints(state: State, sandbox_id: str, leaving: Collection[str] = ()) -> bool:
    """Whether a sandbox has endpoints besides those that leave."""
    return any(
        endpoint.value.id not in leaving and endpoint.value.state is not EndpointState.LEAVING
        for endpoint in state.endpoints_of_sandbox(sandbox_id)
    )


def finish(
    state: State, endpoint_ids: Iterable[str], sandbox_ids: Iterable[str] = (), *, released: Collection[str] = ()
) -> commits.Commit | None:
    """Return the commit that ends what has left its host; None when nothing is left to end.

    An endpoint that is to be deleted and is not among `released` still has its addresses, and stays: somebody asked
    for its deletion after the addresses were given back for others. A sandbox that got an endpoint again goes back to
    what it was: that endpoint's attach was committed before the mark.
    """
    builder = commits.Builder()
    ending: set[str] = set()
    for endpoint_id in dict.fromkeys(endpoint_ids):
        record = state.endpoints.get(endpoint_id)
        if record is None or record.value.state is not EndpointState.LEAVING:
            continue
        if record.value.deleting and record.value.leases and endpoint_id not in released:
            continue
        ending.add(endpoint_id)
        if record.value.deleting:
            _delete_endpoint(builder, record)
        else:
            builder.update(record, detached(record.value))
    for sandbox_id in dict.fromkeys(sandbox_ids):
        sandbox = state.sandboxes.get(sandbox_id)
        if sandbox is None or sandbox.value.state is not SandboxState.DELETING:
            continue
        left = [e for e in state.endpoints_of_sandbox(sandbox_id) if e.value.id not in ending]
        if any(e.value.is_active for e in left):
            builder.update(sandbox, msgspec.structs.replace(sandbox.value, state=SandboxState.CREATING))
        elif not left:
            _delete_sandbox(builder, sandbox)
    return builder.build() if builder.writes else None


def detached(endpoint: Endpoint) -> Endpoint:
    """Return the endpoint in no sandbox; it keeps addresses and MAC, and an interface name that only the agent chose
    goes with the sandbox.
    """  # noqa: D205  # one sentence
    return msgspec.structs.replace(
        endpoint,
        sandbox_id="",
        host_id="",
        interface_name="",
        state=EndpointState.CREATED,
        deleting=False,
        status_message="",
    )


def _delete_endpoint(builder: commits.Builder, record: Record[Endpoint]) -> None:
    builder.delete(record)
    builder.drop(name_claim(record.value), record.value.id)


def _delete_sandbox(builder: commits.Builder, record: Record[Sandbox]) -> None:
    builder.delete(record)
    builder.drop(container_claim(record.value), record.value.id)
