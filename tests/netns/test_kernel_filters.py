"""The kernel keeps from us what says nothing to us, and nothing else."""

from __future__ import annotations

import pytest
from netweft_agent.kernel import filters, netlink, rtnl

from tests.support.netns import Netns, require_root

pytestmark = [pytest.mark.netns]

OF_BRIDGES = {(rtnl.RTM_NEWLINK, rtnl.AF_BRIDGE), (rtnl.RTM_NEWNEIGH, rtnl.AF_BRIDGE)}
GROUPS = 0x001 | 0x004 | 0x010 | 0x040


@pytest.fixture
def space():
    require_root()
    with Netns("filters") as made:
        made.exec(["ip", "link", "add", "br0", "type", "bridge"])
        made.exec(["ip", "link", "add", "name", "v0", "type", "veth", "peer", "name", "v1"])
        made.exec(["ip", "link", "set", "v0", "up"])
        made.exec(["ip", "link", "set", "v1", "up"])
        yield made


def heard(space, command):
    """Return the kinds of what is told of a command, without and with the filter: each of a socket of its own."""
    plain, filtered = space.run(lambda: [netlink.open_socket(netlink.NETLINK_ROUTE, groups=GROUPS) for _ in range(2)])
    with plain, filtered:
        filters.attach_to_route_events(filtered)
        space.exec(command.split())
        return [
            [(message.kind, message.body[0]) for message in netlink.drain(sock) if message is not None]
            for sock in (plain, filtered)
        ]


def test_what_is_added_is_not_told_and_what_is_removed_is(space):
    added, added_to_us = heard(space, "ip address add 10.0.0.1/24 dev v0")
    removed, removed_to_us = heard(space, "ip address del 10.0.0.1/24 dev v0")

    assert {rtnl.RTM_NEWADDR, rtnl.RTM_NEWROUTE} == {kind for kind, _ in added}
    assert [] == added_to_us
    assert {rtnl.RTM_DELADDR, rtnl.RTM_DELROUTE} == {kind for kind, _ in removed}
    assert removed == removed_to_us


def test_a_route_that_takes_the_place_of_another_is_told(space):
    _, added_to_us = heard(space, "ip route add 10.9.0.0/16 dev v0")
    replaced, replaced_to_us = heard(space, "ip route replace 10.9.0.0/16 dev v0 mtu 1400")

    assert [] == added_to_us
    assert [(rtnl.RTM_NEWROUTE, 2)] == replaced == replaced_to_us


def test_of_links_all_is_told_but_what_bridges_say_of_their_ports(space):
    joined, joined_to_us = heard(space, "ip link set v0 master br0")
    gone, gone_to_us = heard(space, "ip link del v0")

    assert (rtnl.RTM_NEWLINK, rtnl.AF_BRIDGE) in joined
    assert [one for one in joined if one not in OF_BRIDGES] == joined_to_us
    assert (rtnl.RTM_NEWLINK, 0) in joined_to_us
    assert (rtnl.RTM_DELLINK, rtnl.AF_BRIDGE) in gone
    assert [one for one in gone if one not in OF_BRIDGES] == gone_to_us


def test_neighbours_are_told_but_not_permanent_ones_that_come_nor_what_bridges_learn(space):
    space.exec(["ip", "link", "set", "v0", "master", "br0"])
    entry, entry_to_us = heard(space, "bridge fdb add 02:00:00:00:00:09 dev v0 master static")
    near, near_to_us = heard(space, "ip neighbour add 10.0.0.9 lladdr 02:00:00:00:00:09 dev v1 nud permanent")
    ages, ages_to_us = heard(space, "ip neighbour replace 10.0.0.9 lladdr 02:00:00:00:00:09 dev v1 nud reachable")
    _, gone_to_us = heard(space, "ip neighbour del 10.0.0.9 dev v1")

    assert [(rtnl.RTM_NEWNEIGH, rtnl.AF_BRIDGE)] == entry
    assert [] == entry_to_us
    assert [(rtnl.RTM_NEWNEIGH, 2)] == near
    assert [] == near_to_us
    assert [(rtnl.RTM_NEWNEIGH, 2)] == ages == ages_to_us
    assert (rtnl.RTM_DELNEIGH, 2) in gone_to_us
