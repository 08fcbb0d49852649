"""However a host learns of changes, it ends with what a snapshot would tell it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netweft_controller.domain import changes, commits
from netweft_controller.domain.objects import Endpoint, EndpointState, Peer, SandboxState

_path = Path(__file__).with_name("conftest.py")
_spec = importlib.util.spec_from_file_location("netweft_tests_controller_unit", _path)
shared = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = shared
_spec.loader.exec_module(shared)

HOSTS = (1, 2, 3)
NETWORKS = (10, 11, 12)


class HostTwin:
    """An agent's object store: newer changes win, what is gone leaves its revision behind."""

    def __init__(self):
        self.objects = {}
        self.revisions = {}

    def apply(self, told):
        for change in told:
            key = (change.kind, change.id)
            if change.revision <= self.revisions.get(key, 0):
                continue
            self.revisions[key] = change.revision
            if change.put is None:
                self.objects.pop(key, None)
            else:
                self.objects[key] = essence(change.put)

    def copy(self):
        twin = HostTwin()
        twin.objects = dict(self.objects)
        twin.revisions = dict(self.revisions)
        return twin


def essence(put):
    """What of an object matters to a kernel: not the host's own confirmation, and not the version."""
    if isinstance(put, Peer):
        return (put.vtep_address, put.endpoint.mac_address, put.endpoint.leases, put.endpoint.host_id)
    value = put.value
    if isinstance(value, Endpoint):
        return msgspec.structs.replace(value, state=EndpointState.JOINED, interface_name="", status_message="")
    return msgspec.structs.replace(value, state="", **({"netns_path": ""} if hasattr(value, "netns_path") else {}))


def expected(state, host_id):
    return {(change.kind, change.id): essence(change.put) for change in changes.view(state, host_id)}


def start():
    build = shared.Builder()
    for number in HOSTS:
        build.host(number)
        build.sandbox(100 + number, host=number)
    build.network(10, driver="overlay")
    build.network(11, driver="overlay")
    build.network(12)
    return build


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["join", "confirm", "leave", "end", "delete", "vtep", "network", "sandbox"]),
        st.integers(1000, 1005),
        st.sampled_from(NETWORKS),
        st.sampled_from(HOSTS),
        st.booleans(),
    ),
    max_size=40,
)


def step(build, what, number, network, host):
    """Do one step if intent allows it; returns what changed, or None."""
    state = build.state
    record = state.endpoints.get(shared.oid(number))
    endpoint = record.value if record is not None else None
    now = endpoint.state if endpoint is not None else None
    there = {"host_id": shared.oid(host), "sandbox_id": shared.oid(100 + host)}
    nowhere = {"host_id": "", "sandbox_id": ""}
    writes = []
    if what == "join" and endpoint is None:
        writes = [shared.make_endpoint(number, network, 100 + host, host, state=EndpointState.JOINING)]
    elif what == "join" and now is EndpointState.CREATED:
        writes = [msgspec.structs.replace(endpoint, state=EndpointState.JOINING, **there)]
    elif what == "confirm" and now is EndpointState.JOINING:
        writes = [msgspec.structs.replace(endpoint, state=EndpointState.JOINED, interface_name="eth0")]
    elif what == "leave" and endpoint is not None and endpoint.is_active:
        writes = [msgspec.structs.replace(endpoint, state=EndpointState.LEAVING)]
    elif what == "end" and now is EndpointState.LEAVING:
        writes = [msgspec.structs.replace(endpoint, state=EndpointState.CREATED, **nowhere)]
    elif what == "delete" and endpoint is not None and not endpoint.is_active:
        return build.write(delete=[endpoint])
    elif what == "vtep":
        value = state.hosts[shared.oid(host)].value
        writes = [msgspec.structs.replace(value, vtep_address=f"198.51.100.{number - 900}")]
    elif what == "network":
        writes = [msgspec.structs.replace(state.networks[shared.oid(network)].value, labels={"n": str(number)})]
    elif what == "sandbox":
        value = state.sandboxes[shared.oid(100 + host)].value
        writes = [msgspec.structs.replace(value, state=SandboxState.READY, netns_path=f"/{number}")]
    return build.write(*writes) if writes else None


@settings(max_examples=50, deadline=None)
@given(STEPS)
def test_a_host_that_is_told_of_changes_ends_with_what_a_snapshot_says(steps):
    build = start()
    twins = {number: HostTwin() for number in HOSTS}
    notes = {number: set() for number in HOSTS}
    for what, number, network, host, send in steps:
        deltas = step(build, what, number, network, host)
        if deltas is None:
            continue
        for host_id, keys in changes.touched(build.state, deltas).items():
            notes[int(host_id[:8], 16)] |= keys
        if send:
            tell(build, twins, notes)
    tell(build, twins, notes)

    for number, twin in twins.items():
        told = {key: value for key, value in twin.objects.items() if key[0] is not changes.HostKind.SANDBOX}
        wanted = expected(build.state, shared.oid(number))
        assert {key: value for key, value in wanted.items() if key[0] is not changes.HostKind.SANDBOX} == told


def tell(build, twins, notes):
    for number, twin in twins.items():
        twin.apply(changes.resolve(build.state, shared.oid(number), notes[number]))
        notes[number].clear()


@settings(max_examples=50, deadline=None)
@given(STEPS)
def test_a_host_that_resumes_ends_with_what_a_snapshot_says(steps):
    build = start()
    entries = []
    apply = build.state.apply

    def applying(entry):
        entries.append(entry)
        return apply(entry)

    build.state.apply = applying
    saved = {number: (build.state.revision, HostTwin()) for number in HOSTS}
    for what, number, network, host, resume in steps:
        step(build, what, number, network, host)
        if resume:
            saved[host] = resumed(build, entries, host, *saved[host])
    for number in HOSTS:
        revision, twin = resumed(build, entries, number, *saved[number])

        assert build.state.revision == revision
        known = {key: value for key, value in twin.objects.items() if key[0] is not changes.HostKind.SANDBOX}
        wanted = expected(build.state, shared.oid(number))
        assert {key: value for key, value in wanted.items() if key[0] is not changes.HostKind.SANDBOX} == known


def resumed(build, entries, number, revision, twin):
    missed = [entry for entry in entries if entry.revision > revision]
    twin.apply(changes.catch_up(build.state, shared.oid(number), revision, missed))
    return build.state.revision, twin


def test_a_network_that_returns_to_a_host_is_newer_than_its_disappearance(build):
    build.host(1)
    build.network()
    build.sandbox()
    twin = HostTwin()
    endpoint = build.endpoint()
    twin.apply(changes.view(build.state, shared.oid(1)))
    deltas = build.write(msgspec.structs.replace(endpoint, state=EndpointState.LEAVING))
    twin.apply(changes.resolve(build.state, shared.oid(1), changes.touched(build.state, deltas)[shared.oid(1)]))
    assert (changes.HostKind.NETWORK, shared.oid(10)) not in twin.objects

    build.endpoint(1001)
    twin.apply(changes.for_apply(build.state, shared.oid(1), [shared.oid(1001)], []))

    assert (changes.HostKind.NETWORK, shared.oid(10)) in twin.objects


def test_an_apply_carries_network_sandbox_and_endpoint_in_order(build):
    build.host(1)
    build.network()
    build.sandbox()
    build.endpoint()

    told = changes.for_apply(build.state, shared.oid(1), [shared.oid(1000)], [])

    assert ["network", "sandbox", "endpoint"] == [change.kind for change in told]


def test_the_hosts_own_confirmation_is_not_told_back_to_it(build):
    build.host(1)
    build.network(driver="overlay")
    build.sandbox()
    endpoint = build.endpoint(state=EndpointState.JOINING)

    deltas = build.write(msgspec.structs.replace(endpoint, state=EndpointState.JOINED, interface_name="eth0"))

    assert {} == changes.touched(build.state, deltas)


def test_a_local_networks_endpoints_are_nobodys_peers(build):
    build.host(1)
    build.host(2)
    build.network()
    build.sandbox(101, host=1)
    build.sandbox(102, host=2)
    build.endpoint(1000, sandbox=101, host=1)

    deltas = build.write(shared.make_endpoint(1001, 10, 102, 2))

    assert {shared.oid(2)} == changes.touched(build.state, deltas).keys()


@pytest.mark.parametrize("count", [1, 5])
def test_a_deletion_that_is_replayed_changes_nothing(build, count):
    build.host(1)
    network = build.network()
    entry = commits.Entry(build.state.revision + 1, 0, (commits.Write(commits.Action.DELETED, network),))
    build.state.apply(entry)

    for _ in range(count):
        assert [] == build.state.apply(entry)
