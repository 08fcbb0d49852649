"""What a store has lost, and what is written of it again."""

from __future__ import annotations

import msgspec
import pytest
from netweft_controller.domain import commits, recovery
from netweft_controller.domain.objects import Kind
from netweft_controller.domain.state import State

from .conftest import Builder, oid


def written(change):
    """Return what a commit writes, in short."""
    if change is None:
        return []
    return [(str(write.action), str(write.kind), write.value.id[:8].lstrip("0")) for write in change.writes]


def copy_of(build):
    """Return the state as the store has it now."""
    copy = State(store_id="s", revision=build.state.revision)
    copy.load(record for kind in Kind for record in build.state.records(kind))
    copy.loaded()
    return copy


@pytest.fixture
def build():
    made = Builder()
    made.host()
    made.network()
    made.sandbox()
    made.endpoint()
    return made


def test_nothing_is_lost_where_nothing_was_written_after_the_cut(build):
    assert recovery.next_commit(build.state, copy_of(build), build.state.revision) is None


def test_what_was_made_after_the_cut_is_made_again_with_its_claims_and_what_it_names_before_it(build):
    found = copy_of(build)
    build.endpoint(1001, network=11, sandbox=101)
    build.sandbox(101)
    network = build.network(11, driver="overlay", claims={"vni": 10})
    single = build.network(12, driver="host", subnets=())
    build.host(2)

    change = recovery.next_commit(build.state, found, found.revision)

    made = [("host", "2"), ("network", "b"), ("network", "c"), ("sandbox", "65"), ("endpoint", "3e9")]
    assert [("created", *one) for one in made] == written(change)
    assert {0} == {guard.revision for guard in change.guards}
    assert {
        "host-name/h2": oid(2),
        "network-name/n11": network.id,
        "number/vni/10": network.id,
        "network-name/n12": single.id,
        "driver/host": single.id,
        f"container/{oid(1)}/c101": oid(101),
        f"endpoint-name/{network.id}/e1001": oid(1001),
    } == dict(change.take)
    assert () == change.drop


def test_what_was_changed_after_the_cut_is_changed_again_from_what_the_store_has(build):
    found = copy_of(build)
    endpoint = build.state.endpoints[oid(1000)].value
    build.write(msgspec.structs.replace(endpoint, name="renamed"))

    change = recovery.next_commit(build.state, found, found.revision)

    assert [("updated", "endpoint", "3e8")] == written(change)
    assert [4] == [guard.revision for guard in change.guards]
    assert ((f"endpoint-name/{oid(10)}/renamed", oid(1000)),) == change.take
    assert ((f"endpoint-name/{oid(10)}/e1000", oid(1000)),) == change.drop


def test_what_was_deleted_after_the_cut_is_deleted_again_and_its_name_is_free_for_its_heir(build):
    found = copy_of(build)
    endpoint = build.state.endpoints[oid(1000)].value
    sandbox = build.state.sandboxes[oid(100)].value
    build.write(delete=[endpoint])
    build.write(delete=[sandbox])
    build.write(msgspec.structs.replace(endpoint, id=oid(2000), sandbox_id="", host_id=""))

    change = recovery.next_commit(build.state, found, found.revision)

    assert [
        ("deleted", "endpoint", "3e8"), ("deleted", "sandbox", "64"), ("created", "endpoint", "7d0")
    ] == written(change)  # fmt: skip
    name = f"endpoint-name/{oid(10)}/e1000"
    assert ((name, oid(2000)),) == change.take
    assert {(name, oid(1000)), (f"container/{oid(1)}/c100", oid(100))} == set(change.drop)


def test_what_the_store_was_told_after_the_cut_stays(build):
    found = copy_of(build)
    cut = found.revision
    endpoint = build.state.endpoints[oid(1000)].value
    build.write(msgspec.structs.replace(endpoint, labels={"from": "memory"}))
    # Another controller: it has recovered one object, has made one, and has seen more.
    later = msgspec.structs.replace(endpoint, labels={"from": "another"})
    stranger = msgspec.structs.replace(endpoint, id=oid(3000), name="stranger")
    writes = (commits.Write(commits.Action.UPDATED, later), commits.Write(commits.Action.CREATED, stranger))
    found.apply(commits.Entry(cut + 10, 0, writes))

    assert recovery.next_commit(build.state, found, cut) is None


def test_a_controller_that_was_behind_deletes_nothing_that_it_never_saw(build):
    behind = copy_of(build)
    build.endpoint(1001)

    assert recovery.next_commit(behind, copy_of(build), build.state.revision) is None


def test_it_comes_in_parts_until_all_is_there_or_given_up(build):
    found = copy_of(build)
    cut = found.revision
    for number in range(1001, 2100):
        build.endpoint(number)
    sizes = []
    given_up = {(Kind.ENDPOINT, oid(1500))}
    while (change := recovery.next_commit(build.state, found, cut, given_up)) is not None:
        sizes.append(len(change.writes))
        found.apply(commits.Entry(found.revision + 1, 0, change.writes))

    assert [500, 500, 98] == sizes
    assert build.state.endpoints.keys() - found.endpoints.keys() == {oid(1500)}


@pytest.mark.parametrize("by", ["guard", "claim"])
def test_a_refused_object_is_known_by_its_guard_or_its_claim(build, by):
    found = copy_of(build)
    build.sandbox(101)
    build.endpoint(1001, sandbox=101)
    change = recovery.next_commit(build.state, found, found.revision)
    outcome = (
        commits.Refused(9, guard=change.guards[1])
        if by == "guard"
        else commits.Refused(9, claim=f"endpoint-name/{oid(10)}/e1001", owner="somebody")
    )

    assert (Kind.ENDPOINT, oid(1001)) == recovery.refused(change, outcome)
