"""How large a packet may be on the way to another tunnel end: asked in namespaces, over a switch that loses some."""

from __future__ import annotations

import contextlib

import pytest
from netweft_agent.kernel import paths

from tests.support.netns import Netns, require_root, require_tool

pytestmark = pytest.mark.netns

HERE4, HERE6 = "192.0.2.1", "2001:db8::1"
WIDE4, WIDE6 = "192.0.2.2", "2001:db8::2"
NARROW4, NARROW6 = "192.0.2.3", "2001:db8::3"
NOBODY4, NOBODY6 = "192.0.2.9", "2001:db8::9"


@pytest.fixture
def here():
    """A host on a switch with two others, to one of which the switch passes on 1,400 bytes and no word of it."""
    require_root()
    require_tool("ip")
    with contextlib.ExitStack() as stack:
        switch, *hosts = (stack.enter_context(Netns()) for _ in range(4))
        switch.exec(["ip", "link", "add", "switch", "type", "bridge"])
        switch.exec(["ip", "link", "set", "switch", "up"])
        for number, host in enumerate(hosts, 1):
            peer = ["type", "veth", "peer", "name", "up0", "netns", host.path]
            switch.exec(["ip", "link", "add", f"port{number}", "master", "switch", *peer])
            switch.exec(["ip", "link", "set", f"port{number}", "up"])
            host.exec(["ip", "link", "set", "up0", "up"])
            host.exec(["ip", "address", "add", f"192.0.2.{number}/24", "dev", "up0"])
            host.exec(["ip", "address", "add", f"2001:db8::{number}/64", "dev", "up0", "nodad"])
        switch.exec(["ip", "link", "set", "port3", "mtu", "1400"])
        yield hosts[0]


@pytest.mark.parametrize(
    ("local", "wide", "narrow", "nobody"),
    [(HERE4, WIDE4, NARROW4, NOBODY4), (HERE6, WIDE6, NARROW6, NOBODY6)],
    ids=["IPv4", "IPv6"],
)
def test_only_the_narrow_way_is_told_with_what_it_carries(here, local, wide, narrow, nobody):
    found = here.run(lambda: paths.measure(local, {wide: 1500, narrow: 1500, nobody: 1500}))

    assert {narrow: 1400} == found


def test_a_way_that_carries_what_is_wanted_is_wide_enough(here):
    assert {} == here.run(lambda: paths.measure(HERE4, {NARROW4: 1400}))


def test_a_link_of_our_own_that_is_too_narrow_is_told_as_well(here):
    here.exec(["ip", "link", "set", "up0", "mtu", "1300"])

    assert {WIDE4: 1300} == here.run(lambda: paths.measure(HERE4, {WIDE4: 1500}))


def test_an_address_that_we_do_not_have_says_nothing(here):
    assert {} == here.run(lambda: paths.measure("192.0.2.77", {NARROW4: 1500}))


def test_the_underlays_mtu_is_that_of_the_interface_that_has_the_address(here):
    underlay = paths.Underlay(HERE6)
    before = here.run(underlay.mtu)
    here.exec(["ip", "link", "set", "up0", "mtu", "1300"])
    narrower = here.run(underlay.mtu)
    here.exec(["ip", "link", "set", "up0", "down"])
    here.exec(["ip", "link", "set", "up0", "name", "other0"])
    here.exec(["ip", "link", "set", "other0", "up"])
    here.exec(["ip", "address", "replace", f"{HERE6}/64", "dev", "other0", "nodad"])
    renamed = here.run(underlay.mtu)
    here.exec(["ip", "address", "del", f"{HERE6}/64", "dev", "other0"])
    here.exec(["ip", "link", "set", "other0", "name", "third0"])

    assert (1500, 1300, 1300) == (before, narrower, renamed)
    assert here.run(underlay.mtu) is None
