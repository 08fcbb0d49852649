"""The agent's object store: revisions, tombstones, indexes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netweft_agent.domain.objects import Endpoint, Kind, Peer
from netweft_agent.engine import store as module
from netweft_agent.engine.store import ObjectStore, same_but_revision

from tests.support.agent import endpoint, gone, network, oid, peer, put, sandbox


def at(revision, item):
    (change,) = put(revision, item)
    return change


@pytest.mark.parametrize(("held", "came", "news"), [(5, 6, True), (5, 5, False), (5, 4, False), (0, 0, False)])
def test_only_a_higher_revision_is_news(held, came, news):
    store = ObjectStore()
    store.put(at(held, sandbox()).put)

    assert news == store.is_news(at(came, sandbox()))


def test_an_object_that_nobody_knew_is_news_even_at_revision_zero():
    assert ObjectStore().is_news(at(0, sandbox()))


@pytest.mark.parametrize(("came", "news"), [(4, False), (5, False), (6, True)])
def test_what_is_gone_stays_gone_for_older_messages(came, news):
    store = ObjectStore()
    store.put(at(3, sandbox()).put)
    store.remove(sandbox().ref)
    store.bury(sandbox().ref, 5)

    assert news == store.is_news(at(came, sandbox()))
    assert news == store.is_news(gone(came, sandbox())[0])


def test_a_tombstone_does_not_go_back():
    store = ObjectStore()

    store.bury(sandbox().ref, 9)
    store.bury(sandbox().ref, 5)

    assert 9 == store.gone[sandbox().ref]


def test_the_oldest_tombstones_are_forgotten(monkeypatch):
    monkeypatch.setattr(module, "MAX_TOMBSTONES", 3)
    store = ObjectStore()

    for number in range(5):
        store.bury(sandbox(number).ref, number)

    assert [oid(2), oid(3), oid(4)] == [ref.id for ref in store.gone]


def test_putting_an_object_ends_its_tombstone_and_returns_what_it_replaces():
    store = ObjectStore()
    store.bury(sandbox().ref, 5)

    assert store.put(sandbox()) is None
    assert {} == store.gone
    assert sandbox() == store.put(sandbox(hostname="web"))


def test_an_endpoint_that_moves_is_found_where_it_is_now_only():
    store = ObjectStore()
    store.put(endpoint(1001, 1, 101))

    store.put(endpoint(1001, 2, 102))

    assert [] == store.endpoints_of_sandbox(oid(101))
    assert [] == store.endpoints_of_network(oid(1))
    assert [oid(1001)] == [one.id for one in store.endpoints_of_sandbox(oid(102))]
    assert {oid(2)} == set(store.by_network)


def test_the_endpoints_of_each_shard_are_counted():
    store = ObjectStore()
    for number, shard in ((1, 0), (2, 0), (3, 1)):
        store.put(endpoint(number, shard=shard))
    store.put(endpoint(4, 2, shard=1))
    before = {net: dict(of) for net, of in store.shards.items()}

    store.put(endpoint(2, shard=2))
    store.remove(endpoint(4).ref)
    store.restore(endpoint(1).ref, None, None)

    assert ({oid(1): {0: 2, 1: 1}, oid(2): {1: 1}}, {oid(1): {1: 1, 2: 1}}) == (before, store.shards)


def test_lookups_tell_kinds_apart():
    store = ObjectStore()
    for item in (network(7), sandbox(8), endpoint(9), peer(10)):
        store.put(item)

    assert store.network(oid(7)) == network(7)
    assert store.network(oid(8)) is None
    assert store.sandbox(oid(9)) is None
    assert store.endpoint(oid(10)) is None
    assert [oid(10)] == [one.id for one in store.peers_of_network(oid(1))]
    assert [oid(9)] == [one.id for one in store.of_kind(Kind.ENDPOINT)]


def test_restore_brings_back_object_and_tombstone():
    store = ObjectStore()
    store.bury(endpoint().ref, 4)
    store.put(endpoint())

    store.restore(endpoint().ref, None, 4)

    assert ({}, {endpoint().ref: 4}, {}) == (store.objects, store.gone, dict(store.by_sandbox))


SAME = {
    "revision": (endpoint(), endpoint(revision=9), True),
    "confirmed": (endpoint(), endpoint(confirmed=True), True),
    "address": (endpoint(), endpoint(addresses=()), False),
    "a network's revision": (network(), network(revision=4), True),
    "a network's options": (network(), network(options={"mtu": "1"}), False),
    "nothing before": (endpoint(), None, False),
}


@pytest.mark.parametrize(("one", "other", "same"), SAME.values(), ids=SAME)
def test_same_but_revision(one, other, same):
    assert same == same_but_revision(one, other)


items = st.one_of(
    st.builds(endpoint, st.integers(1, 4), st.integers(1, 2), st.integers(101, 102)),
    st.builds(peer, st.integers(1, 4), st.integers(1, 2)),
    st.builds(network, st.integers(1, 2)),
)


@given(st.lists(st.tuples(items, st.integers(0, 9), st.booleans())))
def test_indexes_and_revisions_agree_with_a_dumb_twin_that_takes_the_news_only(messages):
    store, revisions, twin = ObjectStore(), {}, {}
    for item, revision, stays in messages:
        change = put(revision, item)[0] if stays else gone(revision, item)[0]
        assert store.is_news(change) == (revision > revisions.get(item.ref, -1))
        if not store.is_news(change):
            continue
        revisions[item.ref] = revision
        twin.pop(item.ref, None)
        if stays:
            store.put(change.put)
            twin[item.ref] = change.put
        else:
            store.remove(item.ref)
            store.bury(item.ref, revision)

    assert twin == store.objects
    for network_id in (oid(1), oid(2)):
        mine = [one for one in twin.values() if isinstance(one, Endpoint | Peer) and one.network_id == network_id]
        found = [*store.endpoints_of_network(network_id), *store.peers_of_network(network_id)]
        assert sorted(str(one.ref) for one in mine) == sorted(str(one.ref) for one in found)
