"""Overlay networks over three hosts, by their packets: who reaches whom, and what passes on the underlay."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest
from netweft_cli import reach
from netweft_client import EndpointSpec, SandboxSpec, SubnetSpec

from tests.e2e import support
from tests.support import frames, vxlan
from tests.support.netns import Netns, require_tool
from tests.support.packets import tcp

pytestmark = [pytest.mark.e2e, pytest.mark.netns]

SETTINGS = {
    **support.QUICK,
    **support.NONE_AHEAD,
    "NETWEFT_IPAM_QUARANTINE": "0s",
    "NETWEFT_AGENT_PATH_INTERVAL": "500ms",
}
HOSTS = ("h1", "h2", "h3")
VTEPS = {"h1": "192.0.2.1", "h2": "192.0.2.2", "h3": "192.0.2.3"}
SIXES = {"h1": "2001:db8::1", "h2": "2001:db8::2", "h3": "2001:db8::3"}
ROUTER6, OUTSIDE6 = "2001:db8::fe", "2001:db8:ffff::1"
ROUTER, OUTSIDE = "192.0.2.254", "203.0.113.1"
SUBNETS = ("10.81.0.0/24", "10.82.0.0/24", "fd00:81::/64", "fd00:82::/64")
PLACES = {"a1": ("h1", 81, 11), "a2": ("h2", 81, 12), "b3": ("h3", 82, 13), "b1": ("h1", 82, 14)}
"""Endpoints of a network of two subnets: host, subnet, number in it."""


@pytest.fixture(scope="module")
def cluster():
    require_tool("ip")
    require_tool("nft")
    with support.running(*HOSTS, environ=SETTINGS) as cluster:
        give_ipv6(cluster, *HOSTS)
        with cluster.client() as client:
            subnets = [SubnetSpec(subnet=one) for one in SUBNETS]
            for name in ("red", "blue", "shut"):
                client.create_network(
                    name, driver="overlay", address_space=name, subnets=subnets, enable_ipv6=True,
                    internal=name == "shut",
                )  # fmt: skip
        yield cluster


def give_ipv6(cluster, *hosts):
    """Give hosts and underlay IPv6 addresses, and the world outside one."""
    for name in hosts:
        with contextlib.closing(Netns.at(str(cluster.host(name)))) as host:
            host.exec(["ip", "address", "add", f"{SIXES[name]}/64", "dev", "uplink", "nodad"])
            host.exec(["ip", "route", "add", "default", "via", ROUTER6])
    with contextlib.closing(Netns.at(str(cluster.layout.underlay_netns))) as underlay:
        underlay.exec(["ip", "address", "add", f"{ROUTER6}/64", "dev", "underlay", "nodad"])
        underlay.exec(["ip", "address", "add", f"{OUTSIDE6}/128", "dev", "lo", "nodad"])


@pytest.fixture
def open_ns():
    """Opens namespaces, and closes them when the test is over."""
    with contextlib.ExitStack() as stack:
        yield lambda path: stack.enter_context(contextlib.closing(Netns.at(str(path))))


def four(place):
    _, subnet, number = PLACES[place]
    return f"10.{subnet}.0.{number}"


def six(place):
    _, subnet, number = PLACES[place]
    return f"fd00:{subnet}::{number}"


def attach(client, network, *places):
    """Attach endpoints at their places; returns the namespace of each."""
    made = {}
    for place in places:
        spec = EndpointSpec(network=network, name=place, addresses=(four(place), six(place)))
        answer = client.attach_endpoint(spec, SandboxSpec(container_id=f"{network}-{place}", host=PLACES[place][0]))
        made[place] = answer
    revision = max(one.endpoint.revision for one in made.values())
    assert () == client.wait_network(network, revision=revision, wait_s=support.SETTLE_S)
    return {place: Path(one.sandbox.netns_path) for place, one in made.items()}


def answered(questions, timeout_s=5.0):
    """Ask all; returns what each came to by its name."""
    pairs = {name: reach.Pair(source=source, destination=address) for name, source, address in questions}
    found = reach.reach_all(pairs.values(), timeout_s=timeout_s)
    return {name: found[pair] is not None for name, pair in pairs.items()}


def each_to_each(boxes):
    for one, box in boxes.items():
        for other in boxes:
            if other != one:
                yield f"{one} to {other}, IPv4", box, four(other)
                yield f"{one} to {other}, IPv6", box, six(other)


def test_all_reach_all_on_three_hosts_in_both_families_and_across_subnets(client):
    boxes = attach(client, "red", *PLACES)

    found = answered(each_to_each(boxes))

    assert dict.fromkeys(found, True) == found


def test_what_endpoints_send_each_other_is_tracked_in_no_network_namespace(client, cluster, open_ns):
    boxes = attach(client, "blue", "a1", "a2")
    network_id = client.get_network("blue").network.id
    space = open_ns(cluster.layout.host_dir(cluster.layout.hosts[0]) / "run" / "netns" / f"network-{network_id}")

    found = answered(each_to_each(boxes))

    assert dict.fromkeys(found, True) == found
    # What the bridge itself says may be; four flows between the two would be four more.
    assert int(space.exec(["sysctl", "-n", "net.netfilter.nf_conntrack_count"]).stdout) < len(found)


def test_the_gateway_of_an_internal_network_leads_between_its_subnets_and_nowhere_else(client):
    boxes = attach(client, "shut", *PLACES)
    world = [OUTSIDE, OUTSIDE6, ROUTER, ROUTER6, *VTEPS.values(), *SIXES.values()]

    inside = answered(each_to_each(boxes))
    outside = answered(((f"{one} to {to}", box, to) for one, box in boxes.items() for to in world), timeout_s=1.5)

    assert dict.fromkeys(inside, True) == inside
    assert dict.fromkeys(outside, False) == outside


def test_networks_with_the_same_addresses_stay_apart(client, open_ns):
    red, blue = attach(client, "red", "a1", "a2"), attach(client, "blue", "a1", "a2", "b3")
    boxes = {("red", place): open_ns(path) for place, path in red.items()}
    boxes |= {("blue", place): open_ns(path) for place, path in blue.items()}

    with contextlib.ExitStack() as stack:
        listeners = {}
        for name in ("red", "blue"):
            listener = boxes[name, "a2"].run(lambda: socket.create_server((four("a2"), 80)))
            listener.settimeout(5)
            listeners[name] = stack.enter_context(listener)
        heard = {}
        for name, listener in listeners.items():
            caller = boxes[name, "a1"].run(lambda: socket.create_connection((four("a2"), 80), timeout=5))
            with caller:
                caller.sendall(name.encode())
                with listener.accept()[0] as served:
                    heard[name] = served.recv(16).decode()

    assert {"red": "red", "blue": "blue"} == heard
    assert {"blue": True, "red": False} == answered(
        [("blue", blue["a1"], four("b3")), ("red", red["a1"], four("b3"))], timeout_s=1.5
    )


def test_what_leaves_has_the_address_of_its_host(cluster, client, open_ns):
    boxes = attach(client, "red", *PLACES)
    outside = open_ns(cluster.layout.underlay_netns)

    seen = {}
    for place, path in boxes.items():
        box = open_ns(path)
        seen[place] = (
            tcp(box, (OUTSIDE, 80), outside, (OUTSIDE, 80)),
            tcp(box, (OUTSIDE6, 80), outside, (OUTSIDE6, 80)),
        )

    assert {place: (VTEPS[PLACES[place][0]], SIXES[PLACES[place][0]]) for place in PLACES} == seen


def test_an_endpoint_whose_default_route_is_elsewhere_reaches_the_other_subnets(client):
    boxes = attach(client, "red", *PLACES)
    client.create_network("other", driver="bridge", host="h1", subnets=[SubnetSpec(subnet="10.83.0.0/24")])
    try:
        sandbox = client.get_endpoint("a1", network="red").sandbox_id
        client.attach_endpoint(EndpointSpec(network="other", name="other", gateway_priority=9), sandbox)

        found = answered([("IPv4", boxes["a1"], four("b3")), ("IPv6", boxes["a1"], six("b3"))])
    finally:
        for item in client.list_sandboxes():
            client.delete_sandbox(item.id, force=True)
        client.delete_network("other")

    assert {"IPv4": True, "IPv6": True} == found


def test_nobody_is_asked_for_over_the_underlay(cluster, client, open_ns):
    boxes = attach(client, "red", *PLACES)
    vni = client.get_network("red").network.claims["vni"]

    with vxlan.Capture(open_ns(cluster.layout.underlay_netns)) as capture:
        found = answered(each_to_each(boxes))
        nobody = answered([("IPv4", boxes["a1"], "10.81.0.99"), ("IPv6", boxes["a1"], "fd00:81::99")], timeout_s=1.5)

    carried = list(capture.carried())
    assert dict.fromkeys(found, True) == found
    assert {"IPv4": False, "IPv6": False} == nobody
    assert {vni} == {one.vni for one in carried}
    assert {vxlan.IPV4, vxlan.IPV6} == {one.ethertype for one in carried}
    assert [] == [one for one in carried if one.asks_for_a_neighbour or one.is_for_many]


def test_frames_of_an_unknown_tunnel_end_are_dropped_and_counted(cluster, client, open_ns):
    boxes = attach(client, "red", "a1", "a2")
    attach(client, "blue", "b3", "b1")
    vni = client.get_network("red").network.claims["vni"]
    mac = client.get_endpoint("a1", network="red").mac_address
    senders = {
        "an unknown host": open_ns(cluster.layout.underlay_netns),
        "a host of another network": open_ns(cluster.host("h3")),
    }
    h1 = open_ns(cluster.host("h1"))
    box = open_ns(boxes["a1"])

    def arrives(sender, data):
        body = frames.udp4(four("a2"), four("a1"), dport=9, data=data)
        frame = frames.ethernet("02:00:00:00:00:99", frames.IPV4, body, destination=mac)
        before = vxlan.dropped_by_rule(h1)
        listener = box.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with contextlib.closing(listener):
            listener.bind((four("a1"), 9))
            listener.settimeout(1.5)
            vxlan.send(sender, VTEPS["h1"], vni, frame)
            try:
                heard = listener.recv(64) == data
            except TimeoutError:
                heard = False
        return heard, vxlan.dropped_by_rule(h1) - before

    unknown = {name: arrives(sender, name.encode()) for name, sender in senders.items()}
    attach(client, "red", "b3")
    known = arrives(senders["a host of another network"], b"now it is one of this network")

    assert dict.fromkeys(senders, (False, 1)) == unknown
    assert (True, 0) == known


def test_a_way_that_is_narrower_than_promised_is_found_and_told(cluster, client, run, open_ns):
    """A switch that drops large frames without a word: connections would open, and hang."""
    attach(client, "red", "a1", "a2", "b3")
    hosts = {host.id: host.name for host in client.list_hosts()}
    underlay = open_ns(cluster.layout.underlay_netns)

    def narrow():
        found = client.get_network("red").narrow_paths
        # A veth takes four bytes more than it says, for a VLAN's tag.
        return {
            (hosts[one.host_id], hosts[one.peer_host_id], 1400 <= one.mtu_bytes <= 1404, one.needed_bytes)
            for one in found
        }

    underlay.exec(["ip", "link", "set", "port2", "mtu", "1400"])
    try:
        expected = {(one, other, True, 1500) for one, other in (("h1", "h2"), ("h3", "h2"), ("h2", "h1"), ("h2", "h3"))}
        found = support.wait_until(narrow, lambda ways: ways == expected)
        shown = run("network", "inspect", "red")
    finally:
        underlay.exec(["ip", "link", "set", "port2", "mtu", "1500"])

    assert expected == found
    assert "packets of 1500 bytes do not get from host h1 to h2, only those of 140" in shown
    assert set() == support.wait_until(narrow, lambda ways: not ways)


def test_endpoints_follow_the_mtu_of_their_hosts_underlay(cluster, client, open_ns):
    boxes = attach(client, "red", "a1", "a2")
    h1, h2 = open_ns(cluster.host("h1")), open_ns(cluster.host("h2"))
    inside = {name: open_ns(path) for name, path in boxes.items()}

    def mtus():
        return [host.facts.underlay_mtu_bytes for host in sorted(client.list_hosts(), key=lambda one: one.name)][:2]

    def large(size):
        command = ["ping", "-c1", "-W2", "-M", "do", "-s", str(size - 28), four("a2")]
        return inside["a1"].exec(command, check=False).returncode == 0

    before = large(1450)
    for host in (h1, h2):
        host.exec(["ip", "link", "set", "uplink", "mtu", "1400"])
    try:
        told = support.wait_until(mtus, lambda found: found == [1400, 1400])
        while_narrow = [large(1450), large(1350)]
    finally:
        for host in (h1, h2):
            host.exec(["ip", "link", "set", "uplink", "mtu", "1500"])
    again = support.wait_until(mtus, lambda found: found == [1500, 1500])

    assert before
    assert [1400, 1400] == told
    assert [False, True] == while_narrow
    assert [1500, 1500] == again
    assert large(1450)
