"""What a store has lost that a controller still knows: a decision over the two states.

A store that was restored, emptied, or failed over to a replica that was behind has the history of the one before up to
a revision, where it was cut. What the controller has seen after the cut was acknowledged to somebody, so it is written
anew. Whatever the store has been told after the cut is newer than that.

    after the cut, as the controller has seen it    in the store                      is
    written                                         missing, or as before the cut     written again
    written                                         written after the cut             left as it is
    deleted                                         as before the cut                 deleted again
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from netweft_controller.domain import commits, endpoints, hosts, networks
from netweft_controller.domain.objects import DriverInfo, Endpoint, Host, Kind, Network, Object, Sandbox, kind_of
from netweft_controller.domain.state import State

_BATCH = 500
# What is named before what names it, so that each commit leaves a state that makes sense.
_ORDER = (Kind.HOST, Kind.NETWORK, Kind.SANDBOX, Kind.ENDPOINT)

Name = tuple[Kind, str]


def next_commit(known: State, found: State, cut: int, given_up: Collection[Name] = ()) -> commits.Commit | None:
    """Return a commit that brings some of what was lost back into the store; None when all of it is there.

    Args:
        known: What the controller has seen of the store before.
        found: What the store has, with all commits since.
        cut: Revision up to which the store has what it had before.
        given_up: What cannot be brought back.
    """
    builder = commits.Builder()
    drivers = known.drivers()
    for before, value in (*_deleted(known, found, cut), *_written(known, found, cut)):
        if (kind_of(value), value.id) in given_up:
            continue
        held = claims_of(before.value, drivers) if before is not None else ()
        if before is not None and before.value is value:
            builder.delete(before)
            wanted: tuple[str, ...] = ()
        elif before is None:
            builder.create(value)
            wanted = claims_of(value, drivers)
        else:
            builder.update(before, value)
            wanted = claims_of(value, drivers)
        for claim in held:
            if claim not in wanted:
                builder.drop(claim, value.id)
        for claim in wanted:
            builder.take(claim, value.id)
        if len(builder.writes) == _BATCH:
            break
    return builder.build() if builder.writes else None


def refused(change: commits.Commit, outcome: commits.Refused) -> Name:
    """Return which object of a commit was refused."""
    if outcome.guard is not None:
        return outcome.guard.kind, outcome.guard.id
    owner = dict(change.take)[outcome.claim]
    return next((write.kind, owner) for write in change.writes if write.value.id == owner)


def claims_of(value: Object, drivers: Mapping[str, DriverInfo]) -> tuple[str, ...]:
    """Return what an object claims for itself."""
    if isinstance(value, Network):
        driver = drivers.get(value.driver)
        single = driver is not None and driver.single_network
        return (networks.name_claim(value.name), *networks.claim_names(value, value.claims, single=single))
    if isinstance(value, Endpoint):
        return (endpoints.name_claim(value),)
    if isinstance(value, Sandbox):
        return (endpoints.container_claim(value),)
    assert isinstance(value, Host), "there is no other kind"
    return (hosts.name_claim(value.name),)


def _deleted(known: State, found: State, cut: int) -> Iterator[tuple[commits.AnyRecord, Object]]:
    """Yield what is to be deleted again; what names before what it names."""
    for kind in reversed(_ORDER):
        for record in found.records(kind):
            if record.revision <= min(cut, known.revision) and known.record(kind, record.value.id) is None:
                yield record, record.value


def _written(known: State, found: State, cut: int) -> Iterator[tuple[commits.AnyRecord | None, Object]]:
    """Yield what is to be written again, with what the store has of it."""
    for kind in _ORDER:
        for record in known.records(kind):
            there = found.record(kind, record.value.id)
            if record.revision > cut and (there is None or there.revision <= cut):
                yield there, record.value
