"""Rules for hosts: registration, deletion, and what their reports mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from netweft_common import errors

from netweft_controller.domain import commits, fields
from netweft_controller.domain.objects import Drift, Host, NarrowPath, Record
from netweft_controller.domain.state import State

_DRIVERS_MAX = 64
_FACTS_MAX = 4096
_PATHS_MAX = 256


def check(host: Host) -> None:
    """Check what an agent says of its host.

    Raises:
        InvalidArgument: A field is wrong; names it.
    """
    fields.object_id(host.id, "host.id")
    fields.host_name(host.name, "host.name")
    fields.labels(host.labels, "host.labels")
    if not host.agent_target:
        raise fields.invalid("host.agent_target", "give the target that the agent listens at", "FIELD_MISSING")
    if host.vtep_address:
        fields.address(host.vtep_address, "host.vtep_address")
    facts = host.facts
    fields.count(facts.drivers, _DRIVERS_MAX, "host.facts.drivers")
    fields.count(facts.routes, _FACTS_MAX, "host.facts.routes")
    fields.count(facts.name_servers, _FACTS_MAX, "host.facts.name_servers")
    fields.count(facts.bound_networks, _FACTS_MAX, "host.facts.bound_networks")
    for index, route in enumerate(facts.routes):
        fields.network_prefix(route, f"host.facts.routes[{index}]")
    for index, driver in enumerate(facts.drivers):
        for claim in driver.claims:
            if claim.minimum > claim.maximum:
                raise fields.invalid(f"host.facts.drivers[{index}].claims", f"{claim.name} has no numbers")


def register(state: State, host: Host) -> commits.Commit | None:
    """Return the commit that records a host; None when nothing has changed.

    Raises:
        FailedPrecondition: Another host has the name.
    """
    holder = state.host_ids_by_name.get(host.name)
    if holder is not None and holder != host.id:
        raise errors.FailedPrecondition(
            "HOST_NAME_IN_USE",
            f"the name {host.name} belongs to host {holder}; give this agent another name, or delete that host if it"
            " is gone for good",
            name=host.name,
            host=holder,
        )
    record = state.hosts.get(host.id)
    if record is not None:
        # What is not the agent's to say.
        host = msgspec.structs.replace(host, cordoned=record.value.cordoned, narrow_paths=record.value.narrow_paths)
        if record.value == host:
            return None
    builder = commits.Builder()
    if record is None:
        builder.create(host)
    else:
        builder.update(record, host)
        if record.value.name != host.name:
            builder.drop(name_claim(record.value.name), host.id)
    builder.take(name_claim(host.name), host.id)
    return builder.build()


def refuse_twin(held: Host, host: Host) -> None:
    """Refuse an agent that comes with the id of a host which is ready and answers elsewhere: a copied machine.

    The two would take the host's endpoints from each other. One whose target has changed waits until the agent that it
    was itself has been silent for the grace time.

    Args:
        held: The host as it is recorded.
        host: As the agent describes it.

    Raises:
        FailedPrecondition: It is such a one.
    """
    if held.is_pending or held.agent_target == host.agent_target:
        return
    raise errors.FailedPrecondition(
        "HOST_ID_IN_USE",
        f"host {host.id} is {held.name} and ready at {held.agent_target}; an agent with the same id comes from"
        f" {host.agent_target}. If this machine is a copy, empty its agent's state_dir, or join it anew; if it is the"
        " same one at another target, it is taken when the old one has been silent for host_grace",
        host=host.id,
    )


def drifted(state: State, host_id: str, drift: Drift) -> commits.Commit | None:
    """Return the commit that records what a host had to repair; None when that is known."""
    record = state.hosts.get(host_id)
    if record is None or record.value.drift == drift:
        return None
    builder = commits.Builder()
    builder.update(record, msgspec.structs.replace(record.value, drift=drift))
    return builder.build()


def narrowed(state: State, host_id: str, paths: Sequence[NarrowPath]) -> commits.Commit | None:
    """Return the commit that records which ways of a host are narrow; None when that is known.

    Raises:
        InvalidArgument: They are too many, or another host's.
    """
    fields.count(paths, _PATHS_MAX, "narrow_paths.paths")
    for index, one in enumerate(paths):
        fields.object_id(one.peer_host_id, f"narrow_paths.paths[{index}].peer_host_id")
        if one.host_id != host_id:
            raise fields.invalid(f"narrow_paths.paths[{index}].host_id", f"it must be the reporting host's, {host_id}")
    record = state.hosts.get(host_id)
    if record is None or record.value.narrow_paths == tuple(paths):
        return None
    builder = commits.Builder()
    builder.update(record, msgspec.structs.replace(record.value, narrow_paths=tuple(paths)))
    return builder.build()


def pending(state: State, host: Host, once: commits.Request, after: commits.Request | None = None) -> commits.Commit:
    """Return the commit that records a host that may be joined by a token; an earlier token of it is good no more.

    Args:
        state: Intent as it is.
        host: The pending host.
        once: The request.
        after: What is remembered of that request until now.

    Raises:
        FailedPrecondition: Another host has the name.
    """
    fields.host_name(host.name, "host_name")
    holder = state.host_ids_by_name.get(host.name)
    if holder is not None and holder != host.id:
        raise errors.FailedPrecondition(
            "HOST_NAME_IN_USE", f"the name {host.name} belongs to host {holder}; choose another", host=holder
        )
    builder = commits.Builder()
    known = state.hosts.get(host.id)
    if known is None:
        builder.create(host)
        builder.take(name_claim(host.name), host.id)
    elif known.value.is_pending:
        builder.update(known, host)
    else:
        raise errors.FailedPrecondition("HOST_JOINED", f"host {known.value.name} has joined by that token already")
    return builder.build(once, after)


def join(state: State, host_id: str, *, is_secret: Callable[[str], bool], name: str, now_ms: int) -> commits.Commit:
    """Return the commit by which a machine becomes a pending host: its token is used up.

    Args:
        state: Intent as it is.
        host_id: The host.
        is_secret: Whether what the machine shows belongs to a digest.
        name: What the machine calls itself.
        now_ms: The time, in milliseconds since 1970.

    Raises:
        Unauthenticated: There is no such token, it is used up, or it has expired; one answer to all.
        FailedPrecondition: Another host has the name.
    """
    record = state.hosts.get(host_id)
    host = record.value if record is not None else None
    is_good = host is not None and host.is_pending and now_ms <= host.token_expires_ms and is_secret(host.token_digest)
    if record is None or host is None or not is_good:
        raise errors.Unauthenticated(
            "TOKEN_REFUSED",
            "this token is unknown, used up or expired; make another one with 'netweft host token'",
        )
    joined = msgspec.structs.replace(host, token_digest="", token_expires_ms=0, wants_name=False)
    builder = commits.Builder()
    if host.wants_name and name:
        fields.host_name(name, "host_name")
        holder = state.host_ids_by_name.get(name)
        if holder not in (None, host.id):
            raise errors.FailedPrecondition(
                "HOST_NAME_IN_USE",
                f"the name {name} belongs to host {holder}; join with another --name, or delete that host first",
                name=name,
            )
        joined = msgspec.structs.replace(joined, name=name)
        builder.drop(name_claim(host.name), host.id)
        builder.take(name_claim(name), host.id)
    builder.update(record, joined)
    return builder.build()


def cordon(record: Record[Host], *, cordoned: bool) -> commits.Commit | None:
    """Return the commit that lets a host take new endpoints, or no longer; None when it is so."""
    if record.value.cordoned == cordoned:
        return None
    builder = commits.Builder()
    builder.update(record, msgspec.structs.replace(record.value, cordoned=cordoned))
    return builder.build()


def delete(record: Record[Host], once: commits.Request | None = None) -> commits.Commit:
    """Return the commit that forgets a host."""
    builder = commits.Builder()
    builder.delete(record)
    builder.drop(name_claim(record.value.name), record.value.id)
    return builder.build(once)


def refuse_use(state: State, record: Record[Host]) -> None:
    """Refuse to forget a host that has sandboxes, or networks bound to it.

    Raises:
        FailedPrecondition: Names some of them.
    """
    host = record.value
    held = sorted(sandbox.value.container_id for sandbox in state.sandboxes_of_host(host.id))
    what = "sandboxes"
    if not held:
        held = sorted(network.value.name for network in state.networks_bound_to(host.id))
        what = "networks"
    if held:
        raise errors.FailedPrecondition(
            "HOST_IN_USE",
            f"host {host.name} has {len(held)} {what} ({', '.join(held[:10])}); delete them first, or use force",
            host=host.id,
        )


def name_claim(name: str) -> str:
    """Return the claim of a host's name."""
    return f"host-name/{name}"
