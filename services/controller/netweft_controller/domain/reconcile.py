"""What crashes and silent hosts have left to do: a decision over the state and what was seen of it before.

Ages are measured by how long this process has seen something as it is, not by clocks of others: a restart makes the
reconciler wait once more, never act too early.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from netweft_controller.domain.changes import HostKind, Status
from netweft_controller.domain.objects import (
    Endpoint,
    EndpointState,
    HostState,
    Kind,
    Lease,
    Network,
    Sandbox,
    SandboxState,
    kind_of,
)
from netweft_controller.domain.removal import keeps_endpoints
from netweft_controller.domain.state import State

# Kind, id and revision: a new version of an object starts its age anew.
Sight = tuple[Kind, str, int]


class Todo(msgspec.Struct, frozen=True, kw_only=True):
    """What is overdue.

    Attributes:
        seen: Since when each unfinished object was seen as it is; for the next decision.
        ask: Endpoints that join, and sandboxes that are being created: their hosts say how they stand.
        finish: Endpoints that leave, and sandboxes that are being deleted.
        delete_networks: Networks whose deletion was accepted.
        clear_hosts: Hosts that were forgotten while objects of theirs are still recorded.
        forsake_hosts: Hosts that have been lost for longer than their objects are kept.
        drop_hosts: Pending hosts whose token has expired.
    """

    seen: Mapping[Sight, float]
    ask_endpoints: tuple[str, ...] = ()
    ask_sandboxes: tuple[str, ...] = ()
    finish_endpoints: tuple[str, ...] = ()
    finish_sandboxes: tuple[str, ...] = ()
    delete_networks: tuple[str, ...] = ()
    clear_hosts: tuple[str, ...] = ()
    forsake_hosts: tuple[str, ...] = ()
    drop_hosts: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is overdue."""
        return not (
            self.ask_endpoints
            or self.ask_sandboxes
            or self.finish_endpoints
            or self.finish_sandboxes
            or self.delete_networks
            or self.clear_hosts
            or self.forsake_hosts
            or self.drop_hosts
        )


def overdue(
    state: State,
    seen: Mapping[Sight, float],
    *,
    now_s: float,
    after_s: float,
    host_state: Callable[[str], HostState],
    lost_for_s: Callable[[str], float] = lambda _: 0.0,
    forsake_after_s: float = 0.0,
    now_ms: int = 0,
) -> Todo:
    """Return what has been unfinished for too long and can be worked on: a lost host's objects wait for it.

    Args:
        state: Intent as it is.
        seen: `Todo.seen` of the last time.
        now_s: Monotonic clock, in seconds.
        after_s: Age that is too long, in seconds.
        host_state: Liveness of hosts.
        lost_for_s: How long a host has been silent, as far as that is sure.
        forsake_after_s: How long a lost host's objects are kept, in seconds; 0: for ever.
        now_ms: Time of day, in milliseconds since 1970, against which tokens expire.
    """
    sights: dict[Sight, float] = {}
    ask_endpoints: list[str] = []
    ask_sandboxes: list[str] = []
    finish_endpoints: list[str] = []
    finish_sandboxes: list[str] = []
    delete_networks: list[str] = []
    for record in state.unsettled():
        value = record.value
        sight = (kind_of(value), value.id, record.revision)
        since_s = seen.get(sight, now_s)
        sights[sight] = since_s
        if now_s - since_s < after_s:
            continue
        if isinstance(value, Network):
            delete_networks.append(value.id)
            continue
        if not isinstance(value, Endpoint | Sandbox):
            continue
        if value.host_id in state.hosts and host_state(value.host_id) is HostState.LOST:
            continue
        if isinstance(value, Endpoint):
            (finish_endpoints if value.state is EndpointState.LEAVING else ask_endpoints).append(value.id)
        else:
            (finish_sandboxes if value.state is SandboxState.DELETING else ask_sandboxes).append(value.id)
    return Todo(
        seen=sights,
        ask_endpoints=tuple(ask_endpoints),
        ask_sandboxes=tuple(ask_sandboxes),
        finish_endpoints=tuple(finish_endpoints),
        finish_sandboxes=tuple(finish_sandboxes),
        delete_networks=tuple(delete_networks),
        clear_hosts=tuple(sorted(state.hosts_named() - state.hosts.keys())),
        forsake_hosts=tuple(
            host_id
            for host_id in sorted(state.hosts_named() & state.hosts.keys())
            if forsake_after_s and lost_for_s(host_id) >= forsake_after_s and _holds_anything(state, host_id)
        ),
        drop_hosts=tuple(
            host_id
            for host_id, record in state.hosts.items()
            if record.value.is_pending and now_ms > record.value.token_expires_ms
        ),
    )


def _holds_anything(state: State, host_id: str) -> bool:
    return any(True for _ in state.endpoints_of_host(host_id)) or any(True for _ in state.sandboxes_of_host(host_id))


def refused(state: State, statuses: Mapping[tuple[HostKind, str], Status]) -> tuple[list[str], list[str]]:
    """Return the endpoints and sandboxes to undo: their host has refused them and never had them.

    What a host has had at some time may have been acknowledged, and stays. A sandbox that was made for endpoints of
    which none stays goes with them.
    """
    endpoints = [
        id_
        for (kind, id_), status in statuses.items()
        if kind is HostKind.ENDPOINT and _is_undone(status) and _is_joining(state, id_)
    ]
    sandboxes = [
        id_
        for (kind, id_), status in statuses.items()
        if kind is HostKind.SANDBOX and _is_undone(status) and _is_creating(state, id_)
    ]
    leaving = set(endpoints)
    made_for_them = {state.endpoints[id_].value.sandbox_id for id_ in endpoints}
    sandboxes += [
        id_
        for id_ in sorted(made_for_them.difference(sandboxes))
        if _is_creating(state, id_) and not state.sandboxes[id_].value.kept and not keeps_endpoints(state, id_, leaving)
    ]
    return endpoints, sandboxes


def _is_undone(status: Status) -> bool:
    return status.error is not None and not status.was_applied and not status.is_unreachable


def _is_joining(state: State, endpoint_id: str) -> bool:
    record = state.endpoints.get(endpoint_id)
    return record is not None and record.value.state is EndpointState.JOINING


def _is_creating(state: State, sandbox_id: str) -> bool:
    record = state.sandboxes.get(sandbox_id)
    return record is not None and record.value.state is SandboxState.CREATING


class Held(msgspec.Struct, frozen=True):
    """A lease as IPAM has it.

    Attributes:
        owner_key: Endpoint id, gateway/<network id> or aux/<network id>/<name>.
        is_endpoint: What IPAM says that it is for.
    """

    lease: Lease
    owner_key: str
    is_endpoint: bool


def orphan_pools(state: State, pools: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the pools, as (id, network id), that no network's record speaks of."""
    return [
        (pool_id, network_id)
        for pool_id, network_id in pools
        if (record := state.networks.get(network_id)) is None
        or all(subnet.pool_id != pool_id for subnet in record.value.subnets)
    ]


def is_balanced(state: State, pool_id: str, network_id: str, leased: int) -> bool:
    """Return whether a pool has as many leases as the records of its network and of endpoints say.

    Where it has, it holds an orphan only if a recorded lease is missing. Of a network that is not recorded (any more)
    there is nothing to compare: all of its pool is an orphan, the next time.
    """
    record = state.networks.get(network_id)
    if record is None:
        return True
    subnets = [one for one in record.value.subnets if one.pool_id == pool_id]
    infrastructure = sum(bool(one.gateway) + len(one.aux_addresses) for one in subnets)
    return leased == state.lease_count(pool_id) + infrastructure


def orphan_leases(state: State, held: Iterable[Held]) -> list[Held]:
    """Return the endpoint leases that no endpoint's record speaks of."""
    return [one for one in held if one.is_endpoint and not _is_recorded(state, one)]


def _is_recorded(state: State, held: Held) -> bool:
    record = state.endpoints.get(held.owner_key)
    return record is not None and any(
        lease.pool_id == held.lease.pool_id and lease.ip == held.lease.ip for lease in record.value.leases
    )
