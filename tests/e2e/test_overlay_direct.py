"""Overlay networks that lead to hosts on the same link without a tunnel: who reaches whom, and in what packets."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from netweft_cli import reach
from netweft_client import EndpointSpec, SandboxSpec, SubnetSpec

from tests.e2e import support, test_overlay
from tests.e2e.test_overlay import OUTSIDE, VTEPS
from tests.support import vxlan
from tests.support.netns import Netns, require_tool
from tests.support.packets import tcp

pytestmark = [pytest.mark.e2e, pytest.mark.netns]

PLACES = {"a1": ("h1", 84, 11), "a2": ("h2", 84, 12), "b3": ("h3", 85, 13), "b1": ("h1", 85, 14)}


@pytest.fixture(scope="module")
def cluster():
    require_tool("ip")
    with support.running(*test_overlay.HOSTS, environ=test_overlay.SETTINGS) as cluster:
        with cluster.client() as client:
            subnets = [
                SubnetSpec(subnet=one) for one in ("10.84.0.0/24", "10.85.0.0/24", "fd00:84::/64", "fd00:85::/64")
            ]
            client.create_network(
                "front", driver="overlay", subnets=subnets, enable_ipv6=True, options={"direct_routing": "true"}
            )
        yield cluster


@pytest.fixture
def open_ns():
    """Opens namespaces, and closes them when the test is over."""
    with contextlib.ExitStack() as opened:
        yield lambda path: opened.enter_context(contextlib.closing(Netns.at(str(path))))


@pytest.fixture
def boxes(client):
    """Namespaces of attached endpoints, by place."""
    made = {}
    for place, (host, _, _) in PLACES.items():
        spec = EndpointSpec(network="front", name=place, addresses=(four(place), six(place)))
        made[place] = client.attach_endpoint(spec, SandboxSpec(container_id=place, host=host))
    revision = max(one.endpoint.revision for one in made.values())
    assert () == client.wait_network("front", revision=revision, wait_s=support.SETTLE_S)
    return {place: Path(one.sandbox.netns_path) for place, one in made.items()}


def four(place):
    return f"10.{PLACES[place][1]}.0.{PLACES[place][2]}"


def six(place):
    return f"fd00:{PLACES[place][1]}::{PLACES[place][2]}"


def answered(boxes):
    pairs = {
        f"{one} to {address}": reach.Pair(source=box, destination=address)
        for one, box in boxes.items()
        for other in boxes
        if other != one
        for address in (four(other), six(other))
    }
    found = reach.reach_all(pairs.values(), timeout_s=5.0)
    return {name: found[pair] is not None for name, pair in pairs.items()}


def test_all_reach_all_and_only_what_is_not_of_the_tunnel_addresss_family_is_tunnelled(cluster, boxes, open_ns):
    with vxlan.Capture(open_ns(cluster.layout.underlay_netns)) as capture:
        found = answered(boxes)

    assert dict.fromkeys(found, True) == found
    assert {vxlan.IPV6} == {one.ethertype for one in capture.carried()}


def test_callers_keep_their_addresses_and_strangers_are_let_in_nowhere(cluster, boxes, open_ns):
    spaces = {place: open_ns(path) for place, path in boxes.items()}
    outside = open_ns(cluster.layout.underlay_netns)

    seen = {
        f"{one} to {other}": tcp(spaces[one], (four(other), 80), spaces[other], (four(other), 80))
        for one, other in (("a1", "a2"), ("a1", "b3"), ("b3", "a1"), ("a2", "b1"))
    }
    leaving = tcp(spaces["a1"], (OUTSIDE, 80), outside, (OUTSIDE, 80))
    outside.exec(["ip", "route", "add", "10.84.0.0/15", "via", VTEPS["h1"]])
    try:
        stranger = tcp(outside, (four("a1"), 80), spaces["a1"], (four("a1"), 80))
    finally:
        outside.exec(["ip", "route", "del", "10.84.0.0/15"])
    host = tcp(open_ns(cluster.host("h2")), (four("a1"), 80), spaces["a1"], (four("a1"), 80))

    assert {"a1 to a2": four("a1"), "a1 to b3": four("a1"), "b3 to a1": four("b3"), "a2 to b1": four("a2")} == seen
    assert VTEPS["h1"] == leaving
    assert (None, None) == (stranger, host)


def test_routes_go_with_their_endpoints_and_come_where_an_address_is_next(cluster, client, boxes, open_ns):
    client.detach_endpoint("a2", network="front", delete_sandbox=True)
    spec = EndpointSpec(network="front", name="moved", addresses=(four("a2"), six("a2")))
    made = client.attach_endpoint(spec, SandboxSpec(container_id="moved", host="h3"))
    client.wait_network("front", revision=made.endpoint.revision, wait_s=support.SETTLE_S)

    moved = {place: path for place, path in boxes.items() if place != "a2"} | {"a2": Path(made.sandbox.netns_path)}
    found = answered(moved)
    routes = {
        name: open_ns(cluster.host(name)).exec(["ip", "route", "show", four("a2")]).stdout.split()[1:3]
        for name in test_overlay.HOSTS
    }

    assert dict.fromkeys(found, True) == found
    assert {"h1": ["via", VTEPS["h3"]], "h2": [], "h3": ["via", routes["h3"][1]]} == routes
    assert routes["h3"][1].startswith("169.254.")
    assert [] == support.settled(cluster)
