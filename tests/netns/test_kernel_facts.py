"""Facts of a host, found in a host of the test's own."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from netweft_agent.kernel import facts
from netweft_common import errors

from tests.support.netns import Netns, require_root

pytestmark = pytest.mark.netns


@pytest.fixture
def host():
    require_root()
    with Netns() as made:
        made.exec(["ip", "link", "add", "up0", "mtu", "9000", "type", "veth", "peer", "name", "far0"])
        for link in ("up0", "far0"):
            made.exec(["ip", "link", "set", link, "up"])
        made.exec(["ip", "address", "add", "192.0.2.1/24", "dev", "up0"])
        made.exec(["ip", "address", "add", "2001:db8::1/64", "dev", "up0", "nodad"])
        made.exec(["ip", "route", "add", "default", "via", "192.0.2.254"])
        made.exec(["ip", "link", "add", "nwb-1", "group", "28279", "type", "bridge"])
        made.exec(["ip", "link", "set", "nwb-1", "up"])
        made.exec(["ip", "address", "add", "10.1.0.1/16", "dev", "nwb-1"])
        yield made


@pytest.fixture
def resolv_conf(tmp_path):
    path = tmp_path / "resolv.conf"
    path.write_text("# nameserver 1.1.1.1\nsearch example.org\nnameserver 192.0.2.53\nnameserver 2001:db8::53 \n")
    return path


def test_routes_on_links_are_told_without_those_of_ours(host):
    assert ("192.0.2.0/24", "2001:db8::/64") == host.run(facts.probe).routes


@pytest.mark.parametrize("vtep", ["192.0.2.1", "2001:db8::1", "2001:0db8:0:0::1", ""])
def test_the_mtu_is_that_of_the_tunnel_address_or_the_default_route(host, vtep):
    assert 9000 == host.run(lambda: facts.probe(vtep)).underlay_mtu


@pytest.mark.parametrize("vtep", ["192.0.2.1/24", "2001:db8::1/64"])
def test_the_tunnel_address_is_told_with_its_prefix_and_interface(host, vtep):
    found = host.run(lambda: facts.probe(vtep.partition("/")[0]))

    assert (vtep, "up0") == (found.underlay, found.underlay_link)


def test_a_tunnel_address_that_is_not_here_is_refused(host):
    with pytest.raises(errors.FailedPrecondition, match=r"198\.51\.100\.1 is on no interface"):
        host.run(lambda: facts.probe("198.51.100.1"))


def test_name_servers_are_read(host, resolv_conf):
    found = host.run(lambda: facts.probe(resolv_conf=resolv_conf))

    assert ("192.0.2.53", "2001:db8::53") == found.name_servers


def test_a_host_without_resolv_conf_has_no_name_servers(host, tmp_path):
    assert () == host.run(lambda: facts.probe(resolv_conf=tmp_path / "missing")).name_servers


def test_features_are_found_by_trying_and_nothing_is_left(host):
    before = host.exec(["ip", "-o", "link"]).stdout

    found = host.run(facts.probe)

    assert {"bridge", "veth", "nftables"} <= found.features
    assert before == host.exec(["ip", "-o", "link"]).stdout
    assert (platform.release(), 36) == (found.kernel_release, len(found.boot_id))


def test_a_feature_is_what_the_kernel_can_make(host):
    found = host.run(facts.probe).features

    for kind in ("dummy", "ipvlan", "macvlan", "vxlan"):
        words = {"vxlan": ["id", "1"], "macvlan": [], "ipvlan": [], "dummy": []}[kind]
        parent = ["link", "up0"] if kind.endswith("vlan") else []
        done = host.exec(["ip", "link", "add", *parent, "name", "try0", "type", kind, *words], check=False)
        host.exec(["ip", "link", "del", "try0"], check=False)
        assert (kind in found) == (done.returncode == 0), (kind, done.stderr)


LIMITS = {
    "tbf": ["qdisc add dev up0 root tbf rate 1mbit burst 64kb limit 128kb"],
    "mirred": [
        "qdisc add dev up0 clsact",
        "filter add dev up0 ingress protocol all u32 match u32 0 0 action mirred egress redirect dev lo",
    ],
}


@pytest.mark.parametrize("feature", LIMITS)
def test_what_limits_need_is_found_where_tc_can_make_it(host, feature):
    found = host.run(facts.probe).features

    done = [host.exec(["tc", *command.split()], check=False).returncode for command in LIMITS[feature]]

    assert (feature in found) == (not any(done))


def test_the_callers_thread_stays_where_it_is():
    require_root()
    before = Path("/proc/thread-self/ns/net").stat().st_ino

    facts.probe()

    assert before == Path("/proc/thread-self/ns/net").stat().st_ino
