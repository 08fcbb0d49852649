"""What all owners together want: shared resources, contradictions, what to look at again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from netweft_agent.domain.resources import HOST, Address, Link
from netweft_agent.engine.desired import Desired

from tests.support.agent import by_key

BRIDGE = Link(ns=HOST, name="br0", kind="bridge", mtu=1500)
OTHER = Link(ns=HOST, name="br0", kind="bridge", mtu=1400)
ADDRESS = Address(ns=HOST, link="br0", address="10.0.0.1/24")


def test_a_shared_resource_lives_as_long_as_one_owner_wants_it():
    desired = Desired()
    desired.replace({"network/a": by_key([BRIDGE]), "network/b": by_key([BRIDGE, ADDRESS])})

    desired.replace({"network/a": {}})
    with_one = dict(desired.resources)
    concerned, _ = desired.replace({"network/b": {}})

    assert by_key([BRIDGE, ADDRESS]) == with_one
    assert ({}, {}, {}) == (desired.resources, desired.wanted_by, desired.by_owner)
    assert {BRIDGE.key: "network/b", ADDRESS.key: "network/b"} == concerned


def test_the_keys_concerned_are_those_before_and_after():
    desired = Desired()
    desired.replace({"network/a": by_key([BRIDGE])})

    concerned, refused = desired.replace({"network/a": by_key([ADDRESS])})

    assert {BRIDGE.key, ADDRESS.key} == set(concerned)
    assert {} == refused


def test_a_key_names_an_owner_that_wants_it_before_one_that_lets_go():
    desired = Desired()
    desired.replace({"network/a": by_key([BRIDGE]), "network/b": by_key([BRIDGE])})

    concerned, _ = desired.replace({"network/a": {}})

    assert {BRIDGE.key: "network/b"} == concerned


def test_nobody_answers_for_what_several_want_so_that_no_one_keeps_it_from_the_others():
    desired = Desired()
    desired.replace({"network/a": {BRIDGE.key: BRIDGE}})
    before = desired.answerable(BRIDGE.key)

    concerned, _ = desired.replace({"network/b": {BRIDGE.key: BRIDGE}})

    assert ("network/a", {BRIDGE.key: "host/" + "/".join(part for part in BRIDGE.key if part)}) == (before, concerned)
    assert ("network/a", "host") == (desired.owner(BRIDGE.key), desired.answerable(("link", "", "nobody's")))


def test_an_owner_that_contradicts_another_gets_nothing_of_its_wishes():
    desired = Desired()
    desired.replace({"network/a": by_key([BRIDGE])})

    concerned, refused = desired.replace({"network/b": by_key([ADDRESS, OTHER])})

    assert by_key([BRIDGE]) == desired.resources
    assert {} == concerned
    assert "RESOURCE_TAKEN" == refused["network/b"].reason
    assert "network/b needs link br0 in the host, which network/a has in another form" in str(refused["network/b"])


def test_owners_that_change_together_do_not_contradict_their_past():
    desired = Desired()
    desired.replace({"network/a": by_key([BRIDGE]), "network/b": by_key([BRIDGE])})

    _, refused = desired.replace({"network/a": by_key([OTHER]), "network/b": by_key([OTHER])})

    assert {} == refused
    assert by_key([OTHER]) == desired.resources


def test_what_nobody_wants_belongs_to_the_host():
    assert "host" == Desired().owner(BRIDGE.key)


owners = st.sampled_from(["network/a", "network/b", "endpoint/c"])
wishes = st.lists(st.sampled_from([BRIDGE, OTHER, ADDRESS]), max_size=3).map(by_key)


@given(st.lists(st.dictionaries(owners, wishes, min_size=1), max_size=8))
def test_desired_is_always_the_union_of_what_its_owners_were_granted(rounds):
    desired = Desired()

    for one in rounds:
        before = dict(desired.resources)
        concerned, refused = desired.replace(one)
        changed = {key for key in before | desired.resources if before.get(key) != desired.resources.get(key)}

        assert {k: v for wanted in desired.by_owner.values() for k, v in wanted.items()} == desired.resources
        assert {key: set(who) for key, who in desired.wanted_by.items()} == {
            key: {owner for owner, wanted in desired.by_owner.items() if key in wanted} for key in desired.resources
        }
        assert changed <= concerned.keys()
        assert not refused.keys() & desired.by_owner.keys()
