"""Overlay networks whose tunnels go over IPv6, and whose tunnels have another port."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from netweft_cli import stack
from netweft_client import SubnetSpec

from tests.e2e import support, test_overlay
from tests.e2e.test_overlay import SIXES, answered, attach, each_to_each, four
from tests.support import frames, vxlan
from tests.support.netns import Netns, require_tool

pytestmark = [pytest.mark.e2e, pytest.mark.netns]

PORTS = {"red": vxlan.PORT, "blue": 8472}


class SixStack(stack.Stack):
    """A stack whose hosts have IPv6 addresses too, and tunnels at them."""

    def _make_underlay(self, progress):
        super()._make_underlay(progress)
        test_overlay.give_ipv6(support.Cluster(self, {}), *(host.name for host in self.layout.hosts))

    def _agent(self, host):
        spec = super()._agent(host)
        words = list(spec.command)
        words[words.index("--vtep-address") + 1] = SIXES[host.name]
        return dataclasses.replace(spec, command=tuple(words))


@pytest.fixture(scope="module")
def cluster():
    require_tool("ip")
    require_tool("nft")
    with support.running("h1", "h2", "h3", environ=test_overlay.SETTINGS, kind=SixStack) as cluster:
        with cluster.client() as client:
            subnets = [SubnetSpec(subnet=one) for one in test_overlay.SUBNETS]
            for name, options in (("red", {}), ("blue", {"vxlan_port": str(PORTS["blue"])})):
                client.create_network(
                    name, driver="overlay", address_space=name, subnets=subnets, enable_ipv6=True, options=options
                )
        yield cluster


@pytest.fixture
def open_ns():
    """Opens namespaces, and closes them when the test is over."""
    with contextlib.ExitStack() as opened:
        yield lambda path: opened.enter_context(contextlib.closing(Netns.at(str(path))))


@pytest.mark.parametrize(("name", "port"), PORTS.items())
def test_all_reach_all_over_ipv6_by_the_networks_port(cluster, client, open_ns, name, port):
    boxes = attach(client, name, *test_overlay.PLACES)

    with vxlan.Capture(open_ns(cluster.layout.underlay_netns)) as capture:
        found = answered(each_to_each(boxes))

    carried = list(capture.carried(port))
    assert dict.fromkeys(found, True) == found
    assert set(SIXES.values()) == {one.source for one in carried}
    assert [] == [one for one in carried if one.asks_for_a_neighbour or one.is_for_many]
    assert [] == [one for other in PORTS.values() if other != port for one in capture.carried(other)]


def test_endpoints_have_the_mtu_that_ipv6_leaves(client, open_ns):
    boxes = attach(client, "red", "a1", "a2")
    box = open_ns(boxes["a1"])

    def passes(size):
        return 0 == box.exec(["ping", "-c1", "-W2", "-Mdo", f"-s{size - 28}", four("a2")], check=False).returncode

    assert (True, False) == (passes(1430), passes(1431))


def test_frames_of_an_unknown_tunnel_end_are_dropped_and_counted(cluster, client, open_ns):
    attach(client, "red", "a1", "a2")
    details = client.get_network("red")
    mac = client.get_endpoint("a1", network="red").mac_address
    h1, h3 = open_ns(cluster.host("h1")), open_ns(cluster.host("h3"))
    body = frames.udp4(four("a2"), four("a1"), dport=9)
    before = vxlan.dropped_by_rule(h1)

    frame = frames.ethernet("02:00:00:00:00:99", frames.IPV4, body, destination=mac)
    vxlan.send(h3, SIXES["h1"], details.network.claims["vni"], frame)

    assert 1 == support.wait_until(lambda: vxlan.dropped_by_rule(h1) - before, bool)
