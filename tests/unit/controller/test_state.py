"""The indexes of a state say what a walk over its records would say."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netweft_common import errors
from netweft_controller.domain import commits, filters, names
from netweft_controller.domain.objects import EndpointState, NetworkState, SandboxState
from netweft_controller.domain.state import State

_path = Path(__file__).with_name("conftest.py")
_spec = importlib.util.spec_from_file_location("netweft_tests_controller_unit", _path)
shared = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = shared
_spec.loader.exec_module(shared)


def values(table):
    return [record.value for record in table.values()]


def check(state):
    endpoints, sandboxes = values(state.endpoints), values(state.sandboxes)
    for network in values(state.networks):
        own = [e for e in endpoints if e.network_id == network.id]
        assert {e.id for e in own} == {r.value.id for r in state.endpoints_of_network(network.id)}
        assert len(own) == state.endpoint_count(network.id)
        active = Counter(e.host_id for e in own if e.is_active)
        assert active.keys() == state.hosts_with(network.id)
        for host_id, count in active.items():
            assert count == state.presence(host_id, network.id).active
        for endpoint in own:
            assert endpoint.id == state.mac_owner(network.id, endpoint.mac_address)
            assert endpoint.id == state.endpoint_by_name(network.id, endpoint.name).value.id
        for claim, number in network.claims.items():
            assert network.id == state.number_owner(claim, number)
        for subnet in network.subnets:
            leases = [one for e in endpoints for one in e.leases if one.pool_id == subnet.pool_id]
            assert len(leases) == state.lease_count(subnet.pool_id)
    for host in values(state.hosts):
        assert {e.id for e in endpoints if e.host_id == host.id} == {
            r.value.id for r in state.endpoints_of_host(host.id)
        }
        assert {s.id for s in sandboxes if s.host_id == host.id} == {
            r.value.id for r in state.sandboxes_of_host(host.id)
        }
    for sandbox in sandboxes:
        held = {r.value.id for r in state.endpoints_of_sandbox(sandbox.id)}
        assert {e.id for e in endpoints if e.sandbox_id == sandbox.id} == held
        assert sandbox.id == state.sandbox_by_container(sandbox.host_id, sandbox.container_id).value.id
    unsettled = {(type(r.value), r.value.id) for r in state.unsettled()}
    moving = {"joining", "leaving", "creating", "deleting"}
    everything = [*endpoints, *sandboxes, *values(state.networks)]
    assert {(type(v), v.id) for v in everything if v.state in moving} == unsettled


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["endpoint", "sandbox", "network", "delete"]),
            st.integers(0, 5),
            st.integers(0, 2),
            st.integers(0, 2),
            st.sampled_from(list(EndpointState)),
        ),
        max_size=40,
    )
)
def test_indexes_follow_every_change_and_a_load_gives_the_same(steps):
    build = shared.Builder()
    for number in (1, 2, 3):
        build.host(number)
    for what, number, second, third, state in steps:
        if what == "endpoint":
            placed = state is not EndpointState.CREATED
            build.endpoint(1000 + number, 10 + second, 100 + third if placed else 0, 1 + third, state=state)
        elif what == "sandbox":
            build.sandbox(100 + number, 1 + second, state=list(SandboxState)[third])
        elif what == "network":
            build.network(10 + number, claims={"vni": number}, state=list(NetworkState)[third % 2])
        else:
            table = [build.state.endpoints, build.state.sandboxes, build.state.networks][second]
            doomed = [r.value for r in table.values()][number : number + 1]
            if doomed:
                build.write(delete=doomed)
        check(build.state)

    loaded = State(store_id="s", revision=build.state.revision)
    loaded.load(
        r
        for t in (build.state.endpoints, build.state.sandboxes, build.state.networks, build.state.hosts)
        for r in t.values()
    )
    check(loaded)
    assert build.state.endpoints == loaded.endpoints


def test_an_older_version_in_the_log_does_not_replace_a_newer_one_of_the_scan(build):
    host = build.host()
    newer = build.state.hosts[host.id]
    entry = commits.Entry(
        newer.revision, 0, (commits.Write(commits.Action.UPDATED, msgspec.structs.replace(host, name="old")),)
    )

    assert [] == build.state.apply(entry)
    assert newer is build.state.hosts[host.id]


@pytest.mark.parametrize(
    ("word", "network", "found"),
    [
        (shared.oid(1000), "", 1000),
        ("e1001", "", 1001),
        ("e1000", "n10", 1000),
        ("000003e8", "", 1000),
        ("000003e9", "n10", 1001),
        (shared.oid(1000), "n10", 1000),
    ],
)
def test_an_endpoint_is_found_by_id_name_or_prefix(build, word, network, found):
    build.host()
    build.network(10)
    build.network(11)
    build.endpoint(1000, 10)
    build.endpoint(1001, 10)

    assert shared.oid(found) == names.get_endpoint(build.state, word, network).value.id


@pytest.mark.parametrize(
    ("word", "network", "error"),
    [
        ("", "", errors.InvalidArgument),
        ("000003", "", errors.InvalidArgument),
        ("nope", "", errors.NotFound),
        ("e1000", "n11", errors.NotFound),
        (shared.oid(1000), "n11", errors.NotFound),
        ("e1000", "nope", errors.NotFound),
        ("E1000", "", errors.NotFound),
    ],
    ids=["empty", "prefix of two", "unknown", "other network", "id in other network", "unknown network", "case"],
)
def test_a_word_that_means_no_single_endpoint_is_refused(build, word, network, error):
    build.host()
    build.network(10)
    build.network(11)
    build.endpoint(1000, 10)
    build.endpoint(1001, 10)

    with pytest.raises(error):
        names.get_endpoint(build.state, word, network)


def test_a_name_wins_over_an_id_prefix(build):
    build.host()
    build.network(10)
    build.network(11, name="0000000a")

    assert shared.oid(11) == names.get_network(build.state, "0000000a").value.id


def test_a_container_on_two_hosts_must_be_named_by_sandbox(build):
    build.host(1)
    build.host(2)
    build.sandbox(100, 1)
    build.write(
        msgspec.structs.replace(build.state.sandboxes[shared.oid(100)].value, id=shared.oid(101), host_id=shared.oid(2))
    )

    with pytest.raises(errors.InvalidArgument, match="several hosts"):
        names.get_sandbox(build.state, "c100")


def test_pages_give_every_object_once_also_when_objects_come_and_go(build):
    build.host()
    build.network()
    for number in range(1000, 1025):
        build.endpoint(number)
    seen = []
    token = ""
    while True:
        found, token = filters.page(build.state.endpoints.values(), lambda r: (r.value.id,), size=10, token=token)
        seen += [record.value.name for record in found]
        if not token:
            break
        # The object that the token speaks of goes; the next page starts after where it was.
        build.write(delete=[found[-1].value])

    assert [f"e{number}" for number in range(1000, 1025)] == seen


@pytest.mark.parametrize("token", ["x", "!!", "bnVsbA==", "WzFd"])
def test_a_forged_page_token_is_refused(build, token):
    with pytest.raises(errors.InvalidArgument, match="page_token"):
        filters.page([], lambda r: (), size=1, token=token)


@pytest.mark.parametrize(
    ("terms", "found"),
    [
        ([], {1000, 1001, 1002}),
        (["network=n10"], {1000, 1001}),
        (["network=n10", "name=e1001"], {1001}),
        (["host=h1"], {1000, 1001, 1002}),
        (["sandbox=c100", "label=tier"], {1002}),
        (["label=tier=web"], {1002}),
        (["label=tier=db"], set()),
        (["id=000003e8"], {1000}),
        (["address=10.10.0.2"], {1000}),
    ],
)
def test_endpoints_are_filtered_by_all_terms(build, terms, found):
    build.host()
    build.network(10)
    build.network(11)
    build.sandbox()
    build.endpoint(1000, 10)
    build.endpoint(1001, 10)
    build.endpoint(1002, 11, labels={"tier": "web"})

    candidates, test = filters.endpoints(build.state, terms)

    assert {shared.oid(number) for number in found} == {r.value.id for r in candidates if test(r)}


@pytest.mark.parametrize("term", ["colour=red", "name", "", "=x"])
def test_an_unknown_term_is_refused_with_the_known_ones(term):
    with pytest.raises(errors.InvalidArgument, match="driver="):
        filters.networks([term])
