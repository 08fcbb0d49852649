"""The planner against a dumb interpreter, over states that hypothesis makes up."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netweft_agent.domain import nft
from netweft_agent.domain.plan import implied, plan
from netweft_agent.domain.resources import (
    HOST,
    Address,
    Fdb,
    File,
    Key,
    Link,
    Namespace,
    Neighbour,
    PeerEnd,
    Rank,
    Resource,
    Route,
    Sysctl,
    Vxlan,
)

OVERLAY = "network/1"
SANDBOXES = ("sandbox/1", "sandbox/2")
TABLE = nft.Table("inet", "netweft")
SETS = (
    nft.Set(name="bridges", key=(nft.IFNAME,)),
    nft.Set(name="masquerade", key=(nft.IPV4_ADDR,), interval=True),
)


def closed(state: Mapping[Key, Resource]) -> dict[Key, Resource]:
    """Drop what lacks something it needs, and links and their other ends that lack each other."""
    kept = dict(state)
    while True:
        bad = {
            key
            for key, one in kept.items()
            if any(need not in kept and need != ("netns", HOST) for need in one.needs())
            or (
                isinstance(one, Link)
                and one.kind == "veth"
                and one.peer is not None
                and not _is_end_of(kept.get(("link", one.peer.ns, one.peer.name)), one)
            )
            or (
                isinstance(one, Link)
                and one.kind == "peer"
                and one.peer is not None
                and not _points_at(kept.get(("link", one.peer.ns, one.peer.name)), one)
            )
        }
        if not bad:
            return kept
        for key in bad:
            del kept[key]


def _is_end_of(peer, veth):
    return isinstance(peer, Link) and peer.kind == "peer" and (peer.peer.ns, peer.peer.name) == (veth.ns, veth.name)


def _points_at(veth, peer):
    return isinstance(veth, Link) and veth.kind == "veth" and (veth.peer.ns, veth.peer.name) == (peer.ns, peer.name)


def some_of(draw, *resources: Resource) -> list[Resource]:
    """Draw a part of these."""
    return [one for one in resources if draw(st.booleans())]


def bridges(draw) -> list[Resource]:
    return [
        one
        for ns in (HOST, OVERLAY)
        for one in some_of(
            draw,
            Link(ns=ns, name="br0", kind="bridge", mtu=draw(st.sampled_from([1400, 1500]))),
            Address(ns=ns, link="br0", address=draw(st.sampled_from(["10.0.0.1/24", "10.0.1.1/24"]))),
        )
    ]


def tunnel(draw) -> list[Resource]:
    vxlan = Vxlan(vni=draw(st.sampled_from([1, 2])), local="192.0.2.1")
    vtep, mac = draw(st.sampled_from(["192.0.2.2", "192.0.2.3"])), "02:00:00:00:00:01"
    return some_of(
        draw,
        Link(ns=OVERLAY, name="vxlan0", kind="vxlan", master="br0", vxlan=vxlan, socket_ns=HOST),
        Fdb(ns=OVERLAY, link="vxlan0", mac=mac, vtep=vtep),
        Fdb(ns=OVERLAY, link="vxlan0", mac=mac),
        Neighbour(ns=OVERLAY, link="vxlan0", ip="10.0.0.9", mac=mac),
    )


def veth(draw, number: int) -> list[Resource]:
    outside, inside = draw(st.sampled_from([HOST, OVERLAY])), draw(st.sampled_from(SANDBOXES))
    near, name = f"nwv-{number}", draw(st.sampled_from(["eth0", "eth1"]))
    mtu, master = draw(st.sampled_from([1400, 1500])), draw(st.sampled_from([None, "br0"]))
    return [
        Link(ns=outside, name=near, kind="veth", mtu=mtu, master=master, peer=PeerEnd(ns=inside, name=name)),
        Link(ns=inside, name=name, kind="peer", mtu=mtu, peer=PeerEnd(ns=outside, name=near)),
        *some_of(draw, *(Address(ns=inside, link=name, address=one) for one in ("10.0.0.5/24", "10.0.0.6/24"))),
    ]


def inside_of_sandbox(draw, ns: str) -> list[Resource]:
    link, via = draw(st.sampled_from(["eth0", "eth1"])), draw(st.sampled_from(["10.0.0.1", "10.0.0.2"]))
    return some_of(
        draw,
        Link(ns=ns, name="lo", kind="loopback"),
        Route(ns=ns, destination="0.0.0.0/0", link=link, via=via),
        Sysctl(ns=ns, path="net/ipv4/ip_forward", value=draw(st.sampled_from(["0", "1"]))),
        Sysctl(ns=ns, path=f"net/ipv4/conf/{link}/x", value=draw(st.sampled_from(["0", "1"])), link=link),
        File(ns=ns, path=f"/run/{ns}/hosts", content=draw(st.sampled_from(["a", "b"]))),
    )


def firewall(draw, ns: str) -> list[Resource]:
    found: list[Resource] = some_of(draw, nft.NftTable(ns=ns, table=TABLE))
    for plain in SETS:
        spec = draw(st.sampled_from([plain, nft.Set(name=plain.name, key=plain.key, interval=plain.interval, size=9)]))
        item = ("br0",) if spec.name == "bridges" else ("10.0.0.0/24",)
        found += some_of(
            draw,
            nft.NftSet(ns=ns, table=TABLE, spec=spec),
            nft.NftElement(ns=ns, table=TABLE, spec=spec, item=item),
        )
    rules = (nft.rule(draw(st.sampled_from([nft.ACCEPT, nft.DROP]))),)
    return [*found, *some_of(draw, nft.NftChain(ns=ns, table=TABLE, name="forward", rules=rules))]


@st.composite
def states(draw):
    """Draw a state that a kernel can be in: all that a resource needs is there."""
    found = some_of(draw, Namespace(ns=OVERLAY))
    for ns in SANDBOXES:
        source = draw(st.sampled_from(["", "/run/netns/a", "/run/netns/b"]))
        found += some_of(draw, Namespace(ns=ns, source=source))
        found += inside_of_sandbox(draw, ns)
    found += bridges(draw) + tunnel(draw)
    for number in range(3):
        found += veth(draw, number) if draw(st.booleans()) else []
    for ns in (HOST, OVERLAY, *SANDBOXES):
        found += firewall(draw, ns) if draw(st.booleans()) else []
    return closed({one.key: one for one in found})


class Interpreter:
    """Does what a plan says to a dictionary, as a kernel would, and complains about what a kernel refuses."""

    def __init__(self, state: Mapping[Key, Resource]) -> None:
        self.state = dict(state)

    def run(self, steps) -> dict[Key, Resource]:
        for step in steps:
            self.do(step)
        return self.state

    def do(self, step) -> None:
        key, what = step.resource.key, step.command() or str(step.resource.key)
        if step.after is None:
            assert key in self.state, f"removes what is not there: {what}"
            del self.state[key]
            for gone in implied([key], {**self.state, key: step.before}):
                del self.state[gone]
            return
        for need in step.after.needs():
            assert need in self.state or need == ("netns", HOST), f"{what} needs {need}"
        if step.before is None:
            there = self.state.get(key)
            assert there is None or there == step.after, f"adds over another: {what}"
            if isinstance(step.after, Link) and step.after.kind == "peer":
                veth = self.state["link", step.after.peer.ns, step.after.peer.name]
                assert (veth.peer.ns, veth.peer.name) == (step.after.ns, step.after.name), f"of another veth: {what}"
        else:
            assert self.state[key] == step.before, f"changes something else: {what}"
            assert step.after.convertible(step.before), f"cannot be changed in place: {what}"
        self.state[key] = step.after


@settings(max_examples=150, deadline=None)
@given(states(), states())
def test_a_plan_applied_to_what_is_there_gives_what_is_wanted(present, desired):
    steps = plan(desired, present, {})

    assert desired == Interpreter(present).run(steps)


@settings(max_examples=50, deadline=None)
@given(states())
def test_a_state_needs_no_plan_to_become_itself(state):
    assert plan(state, state, {}) == ()


@settings(max_examples=60, deadline=None)
@given(states(), states())
def test_the_outcome_of_a_plan_needs_no_second_one(present, desired):
    outcome = Interpreter(present).run(plan(desired, present, {}))

    assert plan(desired, outcome, {}) == ()


@settings(max_examples=60, deadline=None)
@given(states(), states())
def test_the_way_back_is_a_plan_too(present, desired):
    outcome = Interpreter(present).run(plan(desired, present, {}))

    assert present == Interpreter(outcome).run(plan(present, outcome, {}))


@settings(max_examples=60, deadline=None)
@given(states(), states())
def test_the_inverses_in_reverse_undo_a_plan_up_to_what_was_implied(present, desired):
    steps = plan(desired, present, {})
    lost = _lost_on_the_way(present, steps)

    state = dict(desired)
    for step in reversed([one.inverse() for one in steps]):
        if step.after is None:
            state.pop(step.resource.key, None)
        else:
            state[step.resource.key] = step.after

    untouched = {key: one for key, one in present.items() if key not in lost}
    assert untouched == {key: one for key, one in state.items() if key not in lost}


def _lost_on_the_way(present, steps):
    """Return the keys that a plan removes or overwrites without an operation that says what they were."""
    told = {step.resource.key for step in steps if step.before is not None}
    silent = {step.resource.key for step in steps if step.before is None and step.resource.key in present} - told
    removed = [step.resource.key for step in steps if step.after is None]
    return silent | (implied(removed, present) - told)


@settings(max_examples=40, deadline=None)
@given(states(), states())
def test_an_operation_turned_round_twice_is_itself(present, desired):
    for step in plan(desired, present, {}):
        assert step == step.inverse().inverse()


@settings(max_examples=60, deadline=None)
@given(states(), states())
def test_the_firewall_of_removed_things_goes_after_the_links_it_guards(present, desired):
    steps = plan(desired, present, {})
    swapped = {step.resource.ns for step in steps if isinstance(step.after, Namespace)}

    firewall = [
        place
        for place, step in enumerate(steps)
        if step.after is None
        and Rank.NFT <= step.resource.rank < Rank.BRIDGE
        and step.resource.key not in desired
        and step.resource.ns not in swapped
    ]
    links = [place for place, step in enumerate(steps) if isinstance(step.resource, Link)]

    assert not firewall or not links or max(links) < min(firewall)


@settings(max_examples=40, deadline=None)
@given(states(), states())
def test_policy_is_in_force_before_a_link_comes_up(present, desired):
    steps = plan(desired, present, {})
    policy = [
        place
        for place, step in enumerate(steps)
        if step.after is not None and Rank.NFT <= step.resource.rank < Rank.BRIDGE
    ]
    links = [place for place, step in enumerate(steps) if step.before is None and isinstance(step.after, Link)]

    assert not policy or not links or max(policy) < min(links)


@settings(max_examples=40, deadline=None)
@given(states(), states(), st.randoms(use_true_random=False))
def test_the_order_of_the_mappings_changes_the_plan_only_among_equals(present, desired, random):
    def shuffled(state):
        keys = list(state)
        random.shuffle(keys)
        return {key: state[key] for key in keys}

    one, other = plan(desired, present, {}), plan(shuffled(desired), shuffled(present), {})

    def place(step):
        return (step.after is None, step.resource.rank, step.resource.ns)

    assert [place(step) for step in one] == [place(step) for step in other]
    assert sorted(map(repr, one)) == sorted(map(repr, other))


@pytest.mark.parametrize("count", [2_000])
def test_a_large_plan_takes_no_more_than_linear_work(count):
    """2,000 veths with addresses: a quadratic planner would need minutes."""
    state: dict[Key, Resource] = {}
    for number in range(count):
        ns = f"sandbox/{number}"
        for one in (
            Namespace(ns=ns),
            Link(ns=HOST, name=f"nwv-{number}", kind="veth", peer=PeerEnd(ns=ns, name="eth0")),
            Link(ns=ns, name="eth0", kind="peer", peer=PeerEnd(ns=HOST, name=f"nwv-{number}")),
            Address(ns=ns, link="eth0", address="10.0.0.2/16"),
        ):
            state[one.key] = one

    assert len(plan(state, {}, {})) == 4 * count
    assert len(plan({}, state, {})) == 2 * count
