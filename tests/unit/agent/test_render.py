"""From objects to wishes: which part of a store is rendered for which owner."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netweft_agent.domain import shards
from netweft_agent.domain.resources import Route
from netweft_agent.engine.render import Renderer, Scope
from netweft_agent.engine.store import ObjectStore
from netweft_common.errors import Exhausted, FailedPrecondition, InvalidArgument, NetweftError, NotFound

from tests.support.agent import DRIVERS, FACTS, HOST_FILES, endpoint, network, oid, peer, port, sandbox

RENDERER = Renderer(DRIVERS, FACTS, HOST_FILES)


def store_of(*items):
    store = ObjectStore()
    for item in items:
        store.put(item)
    return store


WHOLE = (
    network(driver="overlay"),
    network(2),
    sandbox(101),
    sandbox(102),
    endpoint(1001, 1, 101),
    endpoint(1002, 2, 101, interface_name="eth1"),
    endpoint(1003, 1, 102),
    peer(5001, 1),
)


def test_everything_names_every_object_as_an_owner():
    store = store_of(*WHOLE)

    wishes = RENDERER.render(store, RENDERER.everything(store))

    assert {str(ref) for ref in store.objects} == set(wishes.by_owner)
    assert {} == wishes.refused


@pytest.mark.parametrize("item", WHOLE, ids=[str(one.ref.kind) + str(at) for at, one in enumerate(WHOLE)])
def test_a_part_renders_as_it_does_in_the_whole(item):
    store = store_of(*WHOLE)
    whole = RENDERER.render(store, RENDERER.everything(store)).by_owner
    scope = Scope()
    scope.add(item)

    part = RENDERER.render(store, scope).by_owner

    assert {str(item.ref): whole[str(item.ref)]} == part


def test_a_network_without_an_endpoint_here_wants_nothing_nor_do_its_peers():
    store = store_of(network(driver="overlay"), sandbox(), peer())

    wishes = RENDERER.render(store, RENDERER.everything(store)).by_owner

    assert {} == wishes[f"network/{oid(1)}"]
    assert {} == wishes[f"peer/{oid(5001)}"]


def test_an_endpoint_whose_sandbox_or_network_is_not_known_wants_nothing():
    store = store_of(network(), endpoint(), endpoint(1002, 7, 101))

    wishes = RENDERER.render(store, RENDERER.everything(store)).by_owner

    assert {} == wishes[f"endpoint/{oid(1001)}"]
    assert {} == wishes[f"endpoint/{oid(1002)}"]


def test_what_is_gone_wants_nothing():
    wishes = RENDERER.render(ObjectStore(), Scope(networks={oid(1)}, endpoints={oid(2)}, sandboxes={oid(3)})).by_owner

    assert {f"network/{oid(1)}": {}, f"endpoint/{oid(2)}": {}, f"sandbox/{oid(3)}": {}} == wishes


def test_a_sandbox_takes_its_default_route_from_the_drivers_offer():
    store = store_of(*WHOLE, endpoint(1004, 2, 102, interface_name="eth1", gateway_priority=1))

    wishes = RENDERER.render(store, Scope(sandboxes={oid(102)})).by_owner[f"sandbox/{oid(102)}"]

    assert ["eth1"] == [one.link for one in wishes.values() if isinstance(one, Route)]


def test_a_network_that_cannot_be_rendered_is_refused_to_its_own_owners_alone():
    store = store_of(
        network(driver="overlay", options={"mtu": "many"}), network(2), sandbox(), endpoint(),
        endpoint(1002, 2, 101, interface_name="eth1"), peer(),
    )  # fmt: skip

    wishes = RENDERER.render(store, RENDERER.everything(store))

    assert {f"network/{oid(1)}", f"endpoint/{oid(1001)}", f"peer/{oid(5001)}"} == set(wishes.refused)
    assert {"BAD_OPTION"} == {error.reason for error in wishes.refused.values()}
    assert wishes.by_owner[f"endpoint/{oid(1002)}"]


class Faulty:
    """A driver that fails where it is told to."""

    def __init__(self, where):
        self._where = where

    def __getattr__(self, name):
        found = getattr(DRIVERS["bridge"], name)
        if name != self._where:
            return found

        def fail(*_args):
            raise LookupError("oops")

        return fail


@pytest.mark.parametrize(("where", "owner"), [("render", f"endpoint/{oid(1001)}"), ("gateway", f"sandbox/{oid(101)}")])
def test_a_bug_of_a_driver_is_told_with_driver_and_network(where, owner):
    store = store_of(network(driver="faulty"), sandbox(), endpoint())
    renderer = Renderer({"faulty": Faulty(where)}, FACTS, HOST_FILES)

    refused = renderer.render(store, renderer.everything(store)).refused

    assert "DRIVER_BUG" == refused[owner].reason
    assert "driver faulty failed on network net1: LookupError: oops" in refused[owner].message


CHECKS = {
    "network not known": ((sandbox(),), endpoint(), NotFound, "NETWORK_UNKNOWN"),
    "sandbox not known": ((network(),), endpoint(), NotFound, "SANDBOX_UNKNOWN"),
    "driver not installed": ((network(driver="macvlan"), sandbox()), endpoint(), FailedPrecondition, "DRIVER_UNKNOWN"),
    "option not known": ((network(options={"x": "1"}), sandbox()), endpoint(), InvalidArgument, "UNKNOWN_OPTION"),
    "refused by the driver": ((network(), sandbox(source="host")), endpoint(), FailedPrecondition, "HOST_SANDBOX"),
    "broken driver": ((network(driver="faulty"), sandbox()), endpoint(), NetweftError, "DRIVER_BUG"),
}


@pytest.mark.parametrize(("items", "one", "kind", "reason"), CHECKS.values(), ids=CHECKS)
def test_an_endpoint_that_cannot_be_rendered_is_refused_before_anything_is_done(items, one, kind, reason):
    renderer = Renderer({**DRIVERS, "faulty": Faulty("check")}, FACTS, HOST_FILES)

    with pytest.raises(kind) as caught:
        renderer.check(store_of(*items), one)

    assert reason == caught.value.reason


def test_the_drivers_that_a_host_has_are_told():
    with pytest.raises(FailedPrecondition, match="it has: bridge, host, null, overlay"):
        RENDERER.check(store_of(network(driver="macvlan"), sandbox()), endpoint())


def holds(wishes):
    return {
        owner: sorted(one.text() for key, one in wanted.items() if key[0] == "port")
        for owner, wanted in wishes.by_owner.items()
        if owner.startswith("endpoint/")
    }


def test_an_endpoint_that_takes_the_default_route_takes_the_ports_of_its_sandbox_along():
    first = endpoint(1001, 1, 101, ports=(port(80, 8080),))
    second = endpoint(1002, 2, 101, interface_name="eth1", gateway_priority=1, ports=(port(81, 8081),))
    scope = Scope()
    scope.add_endpoint(second)

    alone = RENDERER.render(store_of(network(), network(2), sandbox(), first), scope)
    both = RENDERER.render(store_of(network(), network(2), sandbox(), first, second), scope)

    assert {f"endpoint/{oid(1001)}": ["0.0.0.0:8080/tcp"], f"endpoint/{oid(1002)}": []} == holds(alone)
    assert {f"endpoint/{oid(1001)}": [], f"endpoint/{oid(1002)}": ["0.0.0.0:8081/tcp"]} == holds(both)


def test_siblings_without_ports_are_not_rendered_again():
    first = endpoint(1001, 1, 101)
    second = endpoint(1002, 2, 101, interface_name="eth1", ports=(port(81, 8081),))
    scope = Scope()
    scope.add_endpoint(second)

    wishes = RENDERER.render(store_of(network(), network(2), sandbox(), first, second), scope)

    assert {f"sandbox/{oid(101)}", f"endpoint/{oid(1002)}"} == set(wishes.by_owner)


class Counting:
    """A reserver that gives one number after the other."""

    def __init__(self):
        self.last = 40000

    def reserve(self, want):
        del want
        self.last += 1
        return self.last


def test_an_endpoint_is_completed_with_the_ports_that_it_has_or_gets():
    renderer = Renderer(DRIVERS, FACTS, HOST_FILES, Counting())
    store = store_of(network(), sandbox())

    fresh = renderer.complete(store, endpoint(ports=(port(80), port(81, 8081))), None)
    again = renderer.complete(store, endpoint(ports=(port(82), port(80))), fresh)

    assert [40001, 8081] == [one.assigned_port for one in fresh.ports]
    assert [40002, 40001] == [one.assigned_port for one in again.ports]


@pytest.mark.parametrize(
    "item",
    [endpoint(), endpoint(ports=(port(80),), network=9), endpoint(ports=(port(80, 8080),))],
    ids=["without ports", "of an unknown network", "with its ports already"],
)
def test_an_endpoint_that_needs_no_port_is_left_as_it_is(item):
    renderer = Renderer(DRIVERS, FACTS, HOST_FILES, Counting())

    assert item is renderer.complete(store_of(network(), sandbox()), item, None)


@pytest.mark.parametrize(("sandbox_number", "expected"), [(101, "eth1"), (999, "eth0")])
def test_an_endpoint_gets_the_lowest_interface_name_that_is_free_in_its_sandbox(sandbox_number, expected):
    store = store_of(network(), sandbox())
    for number, name in enumerate(("eth0", "eth2", "net1")):
        store.put(endpoint(number, interface_name=name))
    store.put(endpoint(9, 1, 102, interface_name="eth1"))
    renderer = Renderer(DRIVERS, FACTS, HOST_FILES)

    item = renderer.complete(store, endpoint(1009, 1, sandbox_number, interface_name=""), None)

    assert expected == item.interface_name


def crowd(*shards, network=1):
    return [endpoint(number, network, shard=shard) for number, shard in enumerate(shards, 1)]


FREE = {
    "nobody is there": ((), None, 0),
    "the first is not full": ((0,), None, 0),
    "the first is full": ((0, 0), None, 1),
    "both are full": ((0, 0, 1, 1), None, 2),
    "the first has a free port again": ((0, 1, 1, 2), None, 0),
    "one in the middle is empty": ((0, 0, 2, 2), None, 1),
    "more than a bridge's share, from before there were shards": ((0, 0, 0, 0), None, 1),
    "it is there already, where others would not go": ((0, 3), endpoint(1009, shard=3), 3),
    "it comes from another network": ((0,), endpoint(1009, 2, shard=3), 0),
}


@pytest.mark.parametrize(("there", "held", "expected"), FREE.values(), ids=FREE)
def test_an_endpoint_gets_the_lowest_shard_that_takes_it_and_keeps_the_one_it_has(there, held, expected):
    renderer = Renderer(DRIVERS, FACTS, HOST_FILES, ports_per_bridge=2)
    store = store_of(network(), network(2), sandbox(), *crowd(*there))

    assert expected == renderer.complete(store, endpoint(1009), held).shard


def test_shards_of_one_network_are_no_matter_to_another():
    renderer = Renderer(DRIVERS, FACTS, HOST_FILES, ports_per_bridge=2)
    store = store_of(network(), network(2), sandbox(), *crowd(0, 0, 1))

    assert 0 == renderer.complete(store, endpoint(1009, 2), None).shard


def test_when_all_bridges_of_a_network_are_full_an_endpoint_is_refused(monkeypatch):
    monkeypatch.setattr(shards, "MOST", 2)
    renderer = Renderer(DRIVERS, FACTS, HOST_FILES, ports_per_bridge=1)
    store = store_of(network(), sandbox(), *crowd(0, 1))

    with pytest.raises(
        Exhausted, match=r"ep1009 cannot be attached: network net1 has 2 endpoints .* 2 bridges"
    ) as error:
        renderer.complete(store, endpoint(1009), None)

    assert "BRIDGES_FULL" == error.value.reason


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 4))
def test_bridges_never_hold_more_than_their_share_and_only_the_last_ones_are_left_empty(moves, ports):
    """An endpoint comes for a number that is not there, and leaves for one that is."""
    renderer = Renderer(DRIVERS, FACTS, HOST_FILES, ports_per_bridge=ports)
    store = store_of(network(), sandbox())
    for number in moves:
        held = store.endpoint(oid(1000 + number))
        if held is not None:
            store.remove(held.ref)
            continue
        before = dict(store.shards.get(oid(1), {}))
        item = renderer.complete(store, endpoint(1000 + number), None)
        store.put(item)
        assert before.get(item.shard, 0) < ports
        assert all(before.get(lower, 0) == ports for lower in range(item.shard))
