"""What hosts are told: objects at revisions, for one host, as a pure function of the state.

The revision of a change is that of the event that makes it so for this host. A network whose first endpoint appears
on a host appears there at the endpoint's revision, not at the network's own: had the host had it before, it would
otherwise hold the network's disappearance for newer. See `Presence`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
from netweft_common import errors

from netweft_controller.domain import commits, seen
from netweft_controller.domain.objects import (
    Endpoint,
    Host,
    Kind,
    Network,
    Peer,
    PublishedPort,
    Record,
    Sandbox,
    SandboxState,
    Scope,
)
from netweft_controller.domain.state import Delta, State


class HostKind(enum.StrEnum):
    """Kind of an object as hosts see them."""

    NETWORK = "network"
    SANDBOX = "sandbox"
    ENDPOINT = "endpoint"
    PEER = "peer"


Key = tuple[HostKind, str]

# Networks and sandboxes before the endpoints that name them; what goes, goes the other way round.
_ORDER = {HostKind.NETWORK: 0, HostKind.SANDBOX: 1, HostKind.ENDPOINT: 2, HostKind.PEER: 3}


class Change(msgspec.Struct, frozen=True):
    """One object for one host.

    Attributes:
        put: The object, or None when it is gone.
    """

    revision: int
    kind: HostKind
    id: str
    put: Record[Network] | Record[Sandbox] | Record[Endpoint] | Peer | None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What a host says of one object.

    Attributes:
        error: What stands in the way; None: the kernel has it.
        ports: Of an endpoint: its published ports, with what the host has assigned.
        was_applied: The kernel has had it at some time.
    """

    kind: HostKind
    id: str
    revision: int
    error: errors.NetweftError | None = None
    netns_path: str = ""
    interface_name: str = ""
    ports: tuple[PublishedPort, ...] = ()
    was_applied: bool = False

    @property
    def is_unreachable(self) -> bool:
        """Whether nobody knows what the host did."""
        return isinstance(self.error, errors.Unavailable)


def view(state: State, host_id: str) -> list[Change]:
    """Return everything that a host is to have."""
    return [change for change in resolve(state, host_id, keys_of(state, host_id)) if change.put is not None]


def keys_of(state: State, host_id: str) -> Iterator[Key]:
    """Yield the keys of everything that a host is to have."""
    for network_id in state.networks_on(host_id):
        yield HostKind.NETWORK, network_id
        yield from peer_keys(state, host_id, network_id)
    for sandbox in state.sandboxes_of_host(host_id):
        yield HostKind.SANDBOX, sandbox.value.id
    for endpoint in state.endpoints_of_host(host_id):
        yield HostKind.ENDPOINT, endpoint.value.id


def peer_keys(state: State, host_id: str, network_id: str) -> Iterator[Key]:
    """Yield the keys of the endpoints of a network that live elsewhere."""
    network = state.networks.get(network_id)
    if network is not None and network.value.scope is Scope.GLOBAL:
        for endpoint in state.endpoints_of_network(network_id):
            if endpoint.value.host_id != host_id:
                yield HostKind.PEER, endpoint.value.id


def resolve(state: State, host_id: str, keys: Iterable[Key]) -> list[Change]:
    """Return what a host is to be told of these objects, in the order in which it can be applied."""
    gone: list[Change] = []
    puts: list[Change] = []
    for kind, id_ in keys:
        change = _RESOLVERS[kind](state, host_id, id_)
        if change is not None:
            puts.append(change)
        else:
            gone.append(Change(state.revision, kind, id_, None))
    gone.sort(key=lambda change: -_ORDER[change.kind])
    puts.sort(key=lambda change: _ORDER[change.kind])
    return gone + puts


def touched(state: State, deltas: Sequence[Delta]) -> dict[str, set[Key]]:
    """Return what hosts must look at again after an entry, by host id. The state is at that entry."""
    found: dict[str, set[Key]] = {}
    for delta in deltas:
        if delta.kind is Kind.ENDPOINT:
            _touch_endpoint(state, delta, found)
        elif delta.kind is Kind.SANDBOX:
            _touch_sandbox(delta, found)
        elif delta.kind is Kind.NETWORK:
            for host_id in state.hosts_with(delta.id):
                found.setdefault(host_id, set()).add((HostKind.NETWORK, delta.id))
        else:
            _touch_host(state, delta, found)
    return found


def catch_up(state: State, host_id: str, revision: int, entries: Iterable[commits.Entry]) -> list[Change]:
    """Return what a host that is at a revision has missed, from the log entries after it.

    Some of it the host may know already or never had: it ignores both.
    """
    keys: set[Key] = set()
    for entry in entries:
        for write in entry.writes:
            value = write.value
            if isinstance(value, Endpoint):
                keys.add((HostKind.PEER if value.host_id != host_id else HostKind.ENDPOINT, value.id))
                keys.add((HostKind.PEER, value.id))
                if value.host_id == host_id:
                    keys.add((HostKind.NETWORK, value.network_id))
                    keys.update(peer_keys(state, host_id, value.network_id))
                elif not value.host_id:
                    # It left; where it was, the entry does not say.
                    keys.add((HostKind.ENDPOINT, value.id))
            elif isinstance(value, Sandbox) and value.host_id == host_id:
                keys.add((HostKind.SANDBOX, value.id))
    known = set(keys)
    # What is to be there and changed since, for whatever reason: also by a change of another host's tunnel address.
    missed = [change for change in view(state, host_id) if change.revision > revision]
    known -= {(change.kind, change.id) for change in missed}
    others = [change for change in resolve(state, host_id, known) if change.put is None]
    return others + missed


def network_change(state: State, host_id: str, network_id: str) -> Change | None:
    """Return a network for a host that has active endpoints of it, else None."""
    presence = state.presence(host_id, network_id)
    record = state.networks.get(network_id)
    if presence is None or record is None:
        return None
    return Change(max(record.revision, presence.since), HostKind.NETWORK, network_id, record)


def sandbox_change(state: State, host_id: str, sandbox_id: str) -> Change | None:
    """Return a sandbox for its host, or None when it is to be gone."""
    record = state.sandboxes.get(sandbox_id)
    if record is None or record.value.host_id != host_id or record.value.state is SandboxState.DELETING:
        return None
    return Change(record.revision, HostKind.SANDBOX, sandbox_id, record)


def endpoint_change(state: State, host_id: str, endpoint_id: str) -> Change | None:
    """Return an endpoint for its host, or None when it is to be gone."""
    record = state.endpoints.get(endpoint_id)
    if record is None or record.value.host_id != host_id or not record.value.is_active:
        return None
    return Change(record.revision, HostKind.ENDPOINT, endpoint_id, record)


def peer_change(state: State, host_id: str, endpoint_id: str) -> Change | None:
    """Return an endpoint of another host, or None when this host is not to know it."""
    record = state.endpoints.get(endpoint_id)
    if record is None or record.value.host_id == host_id or not record.value.is_active:
        return None
    endpoint = record.value
    presence = state.presence(host_id, endpoint.network_id)
    network = state.networks.get(endpoint.network_id)
    home = state.hosts.get(endpoint.host_id)
    if presence is None or network is None or network.value.scope is not Scope.GLOBAL or home is None:
        return None
    peer = Peer(endpoint=endpoint, revision=record.revision, vtep_address=home.value.vtep_address)
    return Change(max(record.revision, presence.since, home.revision), HostKind.PEER, endpoint_id, peer)


_RESOLVERS = {
    HostKind.NETWORK: network_change,
    HostKind.SANDBOX: sandbox_change,
    HostKind.ENDPOINT: endpoint_change,
    HostKind.PEER: peer_change,
}


def _touch_endpoint(state: State, delta: Delta, found: dict[str, set[Key]]) -> None:
    before, after = _endpoint(delta.before), _endpoint(delta.after)
    if not seen.differs(before, after):
        return
    for endpoint in (before, after):
        if endpoint is None or not endpoint.host_id:
            continue
        keys = found.setdefault(endpoint.host_id, set())
        keys.add((HostKind.ENDPOINT, delta.id))
        presence = state.presence(endpoint.host_id, endpoint.network_id)
        if presence is None or presence.since == state.revision:
            # The network came to this host or left it, and its peers with it.
            keys.add((HostKind.NETWORK, endpoint.network_id))
            keys.update(peer_keys(state, endpoint.host_id, endpoint.network_id))
    either = after or before
    assert either is not None, "a delta has one side at least"
    network = state.networks.get(either.network_id)
    if network is None or network.value.scope is not Scope.GLOBAL:
        return
    moved = before is not None and after is not None and before.host_id != after.host_id
    for host_id in state.hosts_with(either.network_id):
        if host_id != either.host_id or moved:
            found.setdefault(host_id, set()).add((HostKind.PEER, delta.id))


def _touch_sandbox(delta: Delta, found: dict[str, set[Key]]) -> None:
    before = delta.before.value if delta.before else None
    after = delta.after.value if delta.after else None
    if isinstance(before, Sandbox) and isinstance(after, Sandbox) and not sandbox_differs(before, after):
        return
    for sandbox in (before, after):
        if isinstance(sandbox, Sandbox):
            found.setdefault(sandbox.host_id, set()).add((HostKind.SANDBOX, delta.id))


def sandbox_differs(before: Sandbox, after: Sandbox) -> bool:
    """Whether the host must be told: not of a confirmation that came from the host itself."""
    confirmed = msgspec.structs.replace(
        before, state=after.state, netns_path=after.netns_path, status_message=after.status_message
    )
    return after != confirmed or SandboxState.DELETING in (before.state, after.state)


def _touch_host(state: State, delta: Delta, found: dict[str, set[Key]]) -> None:
    """A host that got another tunnel address: its endpoints are peers elsewhere."""
    before = delta.before.value if delta.before else None
    after = delta.after.value if delta.after else None
    old = before.vtep_address if isinstance(before, Host) else ""
    new = after.vtep_address if isinstance(after, Host) else ""
    if old == new:
        return
    for endpoint in state.endpoints_of_host(delta.id):
        for host_id in state.hosts_with(endpoint.value.network_id):
            if host_id != delta.id:
                found.setdefault(host_id, set()).add((HostKind.PEER, endpoint.value.id))


def _endpoint(record: commits.AnyRecord | None) -> Endpoint | None:
    value = record.value if record is not None else None
    return value if isinstance(value, Endpoint) else None


def for_apply(state: State, host_id: str, endpoint_ids: Iterable[str], sandbox_ids: Iterable[str]) -> list[Change]:
    """Return what a host needs to be told so that it has these endpoints and sandboxes: their networks too."""
    keys: dict[Key, None] = {}
    records: Mapping[str, Record[Endpoint]] = state.endpoints
    wanted = [records[id_] for id_ in endpoint_ids if id_ in records]
    for record in wanted:
        keys[HostKind.NETWORK, record.value.network_id] = None
        keys[HostKind.SANDBOX, record.value.sandbox_id] = None
    keys.update(((HostKind.SANDBOX, id_), None) for id_ in sandbox_ids)
    keys.update(((HostKind.ENDPOINT, record.value.id), None) for record in wanted)
    changes = resolve(state, host_id, keys)
    # A network or sandbox that is to be gone is told by the watch, not by somebody who wanted to use it.
    return [change for change in changes if change.put is not None]
