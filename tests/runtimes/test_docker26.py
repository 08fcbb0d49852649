"""Docker 26 of Debian 13, on two hosts of one overlay network: what differs from the older one would show here."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from tests.e2e import support
from tests.support import engines
from tests.support.engines import address, who
from tests.support.netns import Netns

pytestmark = [pytest.mark.e2e, pytest.mark.netns]
H1 = "192.0.2.1"


@pytest.fixture(scope="module")
def hosts(cluster):
    with engines.running(cluster, [("h1", engines.Docker26), ("h2", engines.Docker26)]) as found:
        yield found


@pytest.fixture
def pair(hosts, client):
    """Both hosts, without containers before and after."""
    yield hosts
    for engine in hosts:
        for name in engine.docker("ps", "--all", "--quiet").split():
            engine.remove(name)


def test_containers_on_two_hosts_reach_each_other(pair):
    one, two = pair
    one.run("c1")
    two.run("c2")

    assert one.docker("version", "--format={{.Server.Version}}").startswith("26.")
    assert ["c2", "c1"] == [who(one, "c1", address(two, "c2")), who(two, "c2", address(one, "c1"))]


def test_address_mac_and_port_are_those_that_were_asked_for(pair, cluster, client):
    one, two = pair
    two.run("c2")

    one.run("c1", "--ip=10.71.0.77", "--mac-address=02:00:00:00:00:77", "--publish=8080:80")

    assert "10.71.0.77" == address(one, "c1")
    assert "02:00:00:00:00:77" in one.exec("c1", "ip", "link", "show", "eth0")
    assert "c1" == who(two, "c2", H1, 8080)
    with contextlib.closing(Netns.at(str(cluster.layout.underlay_netns))) as outside:
        assert "c1\n" == outside.exec(["busybox", "wget", "-q", "-O", "-", f"http://{H1}:8080/who"]).stdout


def test_a_container_is_connected_and_disconnected_while_it_runs(pair, client):
    one, two = pair
    two.run("c2")
    one.run("c1", network="none")
    one.docker("network", "disconnect", "none", "c1")

    one.docker("network", "connect", "front", "c1")
    seen = who(one, "c1", address(two, "c2"))
    one.docker("network", "disconnect", "front", "c1")

    assert "c2" == seen
    assert 1 == len(list(client.list_endpoints()))
    assert "eth0" not in one.exec("c1", "ip", "link")


def test_a_container_that_is_killed_leaves_nothing_and_can_be_started_again(pair, client):
    one, two = pair
    two.run("c2")
    one.run("c1")

    os.kill(one.pid("c1"), signal.SIGKILL)
    left = support.wait_until(lambda: list(client.list_endpoints()), lambda found: len(found) == 1)
    one.docker("start", "c1")

    assert 1 == len(left)
    support.wait_until(lambda: who(two, "c2", address(one, "c1")), lambda said: said == "c1")
    assert "c1" == who(two, "c2", address(one, "c1"))


def test_traffic_goes_on_when_dockerd_is_killed_and_it_knows_its_containers_after(pair, client):
    one, two = pair
    two.run("c2")
    one.run("c1")
    to = address(one, "c1")

    one.kill()
    during = who(two, "c2", to)
    one.start()
    after = who(two, "c2", to)
    one.remove("c1")

    assert ["c1", "c1"] == [during, after]
    assert 1 == len(list(client.list_endpoints()))
