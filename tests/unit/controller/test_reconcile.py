"""What is overdue, what is undone and what is an orphan, as tables."""

from __future__ import annotations

import pytest
from netweft_common import errors
from netweft_controller.domain import reconcile, removal
from netweft_controller.domain.changes import HostKind, Status
from netweft_controller.domain.objects import (
    EndpointState,
    HostState,
    Kind,
    Lease,
    NetworkState,
    SandboxState,
    Subnet,
)

KERNEL = errors.KernelError("ip link add", "x", 17)
SILENT = errors.Unavailable("X", "x")


def overdue(state, seen, now_s, lost=()):
    return reconcile.overdue(
        state,
        seen,
        now_s=now_s,
        after_s=5.0,
        host_state=lambda host_id: HostState.LOST if host_id in lost else HostState.READY,
    )


@pytest.fixture
def busy(build):
    build.host(1)
    build.host(2)
    build.network(10)
    build.network(11, state=NetworkState.DELETING)
    build.sandbox(100, 1)
    build.sandbox(101, 1, state=SandboxState.CREATING)
    build.sandbox(102, 2, state=SandboxState.DELETING)
    build.endpoint(1000, state=EndpointState.JOINED)
    build.endpoint(1001, state=EndpointState.JOINING)
    build.endpoint(1002, sandbox=102, host=2, state=EndpointState.LEAVING)
    return build


def test_nothing_is_overdue_at_first_sight(busy):
    todo = overdue(busy.state, {}, now_s=1000.0)

    assert todo.is_empty
    assert 5 == len(todo.seen)


def test_what_stays_unfinished_is_taken_up_after_a_while(busy, id_of):
    first = overdue(busy.state, {}, now_s=0.0)

    todo = overdue(busy.state, first.seen, now_s=5.0)

    assert (id_of(1001),) == todo.ask_endpoints
    assert (id_of(101),) == todo.ask_sandboxes
    assert (id_of(1002),) == todo.finish_endpoints
    assert (id_of(102),) == todo.finish_sandboxes
    assert (id_of(11),) == todo.delete_networks


def test_a_lost_host_is_waited_for_and_a_forgotten_one_is_not(busy, id_of):
    first = overdue(busy.state, {}, now_s=0.0)

    lost = overdue(busy.state, first.seen, now_s=5.0, lost={id_of(2)})
    busy.write(delete=[busy.state.hosts[id_of(2)].value])
    forgotten = overdue(busy.state, first.seen, now_s=5.0, lost={id_of(2)})

    assert ((), ()) == (lost.finish_endpoints, lost.finish_sandboxes)
    assert (id_of(1002),) == forgotten.finish_endpoints
    assert (id_of(2),) == forgotten.clear_hosts


def test_a_new_version_starts_its_age_anew(busy, id_of):
    first = overdue(busy.state, {}, now_s=0.0)
    busy.endpoint(1001, state=EndpointState.JOINING, gateway_priority=1)

    todo = overdue(busy.state, first.seen, now_s=5.0)

    assert () == todo.ask_endpoints
    assert (Kind.ENDPOINT, id_of(1001), busy.state.revision) in todo.seen


@pytest.mark.parametrize(
    ("state", "error", "was_applied", "undone"),
    [
        (EndpointState.JOINING, KERNEL, False, True),
        (EndpointState.JOINING, KERNEL, True, False),
        (EndpointState.JOINING, SILENT, False, False),
        (EndpointState.JOINING, None, False, False),
        (EndpointState.JOINED, KERNEL, False, False),
    ],
    ids=["refused", "refused, but had it once", "silent", "fine", "acknowledged"],
)
def test_only_what_nobody_was_told_of_is_undone(  # noqa: PLR0917  # asked for by name
    build, id_of, state, error, was_applied, undone
):
    build.host()
    build.network()
    build.sandbox(state=SandboxState.CREATING)
    build.endpoint(state=state)
    status = Status(kind=HostKind.ENDPOINT, id=id_of(1000), revision=1, error=error, was_applied=was_applied)

    endpoints, sandboxes = reconcile.refused(build.state, {(status.kind, status.id): status})

    assert ([id_of(1000)] if undone else []) == endpoints
    assert ([id_of(100)] if undone else []) == sandboxes


@pytest.mark.parametrize(
    ("fields", "others"),
    [({"state": SandboxState.READY}, False), ({"kept": True}, False), ({}, True)],
    ids=["confirmed", "made on its own", "with another endpoint"],
)
def test_a_sandbox_that_is_not_for_the_undone_alone_stays(build, id_of, fields, others):
    build.host()
    build.network()
    build.sandbox(**{"state": SandboxState.CREATING, **fields})
    build.endpoint(1000, state=EndpointState.JOINING)
    if others:
        build.endpoint(1001, state=EndpointState.JOINED)
    status = Status(kind=HostKind.ENDPOINT, id=id_of(1000), revision=1, error=KERNEL)

    _, sandboxes = reconcile.refused(build.state, {(status.kind, status.id): status})

    assert [] == sandboxes


def test_orphans_are_pools_and_leases_that_no_record_speaks_of(build, id_of):
    build.host()
    build.network(10)
    endpoint = build.endpoint(1000)
    (lease,) = endpoint.leases
    other = Lease(address="10.10.0.99/24", pool_id="p10", epoch=3)
    held = [
        reconcile.Held(lease, endpoint.id, is_endpoint=True),
        reconcile.Held(other, endpoint.id, is_endpoint=True),
        reconcile.Held(other, "f" * 32, is_endpoint=True),
        reconcile.Held(other, "gateway/x", is_endpoint=False),
    ]

    assert held[1:3] == reconcile.orphan_leases(build.state, held)
    pools = [("p10", id_of(10)), ("p10b", id_of(10)), ("p11", id_of(11))]
    assert pools[1:] == reconcile.orphan_pools(build.state, pools)


@pytest.mark.parametrize(
    ("leased", "is_balanced"), [(4, False), (5, True), (6, False)], ids=["one lacks", "as recorded", "one too many"]
)
def test_a_pool_has_leases_for_endpoints_gateway_and_auxiliary_addresses(build, id_of, leased, is_balanced):
    build.host()
    aux = {"router": "10.10.0.250", "printer": "10.10.0.251"}
    subnet = Subnet(subnet="10.10.0.0/24", gateway="10.10.0.1", pool_id="p10", aux_addresses=aux)
    other = Subnet(subnet="10.11.0.0/24", gateway="10.11.0.1", pool_id="p11")
    build.network(10, subnets=(subnet, other))
    for number in (1000, 1001):
        build.endpoint(number)
    build.endpoint(1002, leases=(Lease(address="10.11.0.2/24", pool_id="p11", epoch=1),))

    assert is_balanced == reconcile.is_balanced(build.state, "p10", id_of(10), leased)


# Marks and ends


@pytest.mark.parametrize(
    ("state", "delete", "after"),
    [
        (EndpointState.JOINED, True, (EndpointState.LEAVING, True)),
        (EndpointState.JOINED, False, (EndpointState.LEAVING, False)),
        (EndpointState.JOINED, None, (EndpointState.LEAVING, True)),
        (EndpointState.CREATED, True, (EndpointState.LEAVING, True)),
        (EndpointState.CREATED, False, None),
        (EndpointState.LEAVING, False, None),
        (EndpointState.LEAVING, True, (EndpointState.LEAVING, True)),
    ],
    ids=str,
)
def test_a_mark_says_what_is_to_become_of_an_endpoint(build, id_of, state, delete, after):
    build.host()
    build.network()
    build.sandbox()
    build.endpoint(state=state)

    change = removal.mark(build.state, [id_of(1000), "f" * 32], delete=delete)

    written = None if change is None else (change.writes[0].value.state, change.writes[0].value.deleting)
    assert after == written


def test_a_sandbox_is_marked_with_its_last_endpoints_only(build, id_of):
    build.host()
    build.network()
    build.sandbox()
    build.endpoint(1000)
    build.endpoint(1001)

    some = removal.mark(build.state, [id_of(1000)], [id_of(100)])
    every = removal.mark(build.state, [id_of(1000), id_of(1001)], [id_of(100)])

    assert [Kind.ENDPOINT] == [write.kind for write in some.writes]
    assert [Kind.ENDPOINT, Kind.ENDPOINT, Kind.SANDBOX] == [write.kind for write in every.writes]


def test_an_endpoint_whose_addresses_are_still_held_does_not_end(build, id_of):
    build.host()
    build.network()
    build.sandbox()
    build.endpoint(state=EndpointState.LEAVING, deleting=True)

    assert removal.finish(build.state, [id_of(1000)]) is None
    change = removal.finish(build.state, [id_of(1000)], released={id_of(1000)})
    assert ((f"endpoint-name/{id_of(10)}/e1000", id_of(1000)),) == change.drop


def test_a_sandbox_that_got_an_endpoint_meanwhile_comes_back(build, id_of):
    build.host()
    build.network()
    build.sandbox(state=SandboxState.DELETING)
    build.endpoint(state=EndpointState.JOINED)

    change = removal.finish(build.state, [], [id_of(100)])

    assert SandboxState.CREATING is change.writes[0].value.state


def test_a_sandbox_waits_for_endpoints_that_are_still_leaving(build, id_of):
    build.host()
    build.network()
    build.sandbox(state=SandboxState.DELETING)
    build.endpoint(state=EndpointState.LEAVING, deleting=True)

    assert removal.finish(build.state, [], [id_of(100)]) is None


LOST = {
    "kept for ever": (0.0, 1e9, ()),
    "not lost for long enough": (60.0, 59.9, ()),
    "lost for too long": (60.0, 60.0, (1,)),
}


@pytest.mark.parametrize(("after_s", "lost_s", "expected"), LOST.values(), ids=LOST)
def test_a_host_is_forsaken_when_it_was_lost_for_as_long_as_was_said(busy, id_of, after_s, lost_s, expected):
    todo = reconcile.overdue(
        busy.state,
        {},
        now_s=0.0,
        after_s=5.0,
        host_state=lambda _: HostState.LOST,
        lost_for_s=lambda host_id: lost_s if host_id == id_of(1) else 0.0,
        forsake_after_s=after_s,
    )

    assert tuple(map(id_of, expected)) == todo.forsake_hosts


def test_a_lost_host_that_has_nothing_is_left_alone(build, id_of):
    build.host(1)

    todo = reconcile.overdue(
        build.state,
        {},
        now_s=0.0,
        after_s=5.0,
        host_state=lambda _: HostState.LOST,
        lost_for_s=lambda _: 1e9,
        forsake_after_s=1.0,
    )

    assert todo.is_empty


def test_a_pending_host_goes_when_its_token_has_expired(build, id_of):
    build.host(1, token_digest="d", token_expires_ms=1000)
    build.host(2, token_digest="d", token_expires_ms=3000)

    todo = reconcile.overdue(build.state, {}, now_s=0.0, after_s=5.0, host_state=lambda _: HostState.LOST, now_ms=2000)

    assert (id_of(1),) == todo.drop_hosts
