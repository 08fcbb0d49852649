from __future__ import annotations

import pytest
from netweft_cli import scenario

PLAN = scenario.standard()
CONTAINERS = {container.name: container for container in PLAN.containers}
NETWORKS = {network.name: network for network in PLAN.networks}


@pytest.mark.parametrize(
    ("source", "network", "expected"),
    [
        ("a1", "bridge-a", True),
        ("a1", "bridge-b", False),
        ("a1", "overlay", False),
        ("a1", "internal", False),
        ("x1", "overlay", True),
        ("y1", "overlay", True),
        ("i1", "internal", True),
        ("i1", "bridge-a", False),
        ("ax", "bridge-a", True),
        ("ax", "overlay", True),
        ("ax", "internal", False),
    ],
)
def test_a_container_reaches_its_own_networks_and_no_others(source, network, expected):
    assert expected is scenario.may_reach(CONTAINERS[source], NETWORKS[network])


@pytest.mark.parametrize("world", list(scenario.World))
def test_only_internal_networks_have_no_way_out(world):
    shut_in = {name for name, container in CONTAINERS.items() if not scenario.may_reach_world(container, world)}

    assert {"i1", "i2"} == shut_in


def test_the_overlay_spans_both_hosts():
    on = {container.host for container, network in PLAN.destinations if network.name == "overlay"}

    assert set(scenario.HOSTS) == on


def test_a_container_in_two_networks_is_two_destinations():
    networks = [network.name for container, network in PLAN.destinations if container.name == "ax"]

    assert networks == ["bridge-a", "overlay"]
