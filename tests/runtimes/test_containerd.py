"""containerd as it comes, by `ctr run --cni`, on two hosts of one overlay network."""

from __future__ import annotations

import contextlib
import os
import signal

import netweft_client
import pytest

from tests.e2e import support
from tests.support import engines
from tests.support.engines import address, who
from tests.support.netns import Netns

pytestmark = [pytest.mark.e2e, pytest.mark.netns]
H1 = "192.0.2.1"


@pytest.fixture(scope="module")
def hosts(cluster):
    with engines.running(cluster, [("h1", engines.Containerd), ("h2", engines.Containerd)]) as found:
        yield found


@pytest.fixture
def pair(hosts, client):
    """A container on each host."""
    one, two = hosts
    one.run("c1")
    two.run("c2")
    yield one, two
    one.remove("c1")
    two.remove("c2")
    assert [[], []] == [engine.host.attachments() for engine in hosts]


def test_containers_on_two_hosts_reach_each_other(pair):
    one, two = pair

    assert ["c2", "c1"] == [who(one, "c1", address(two, "c2")), who(two, "c2", address(one, "c1"))]


def test_the_agent_knows_the_namespace_by_the_path_of_the_containers_process(pair, client):
    one, _ = pair

    (sandbox,) = [item for item in client.list_sandboxes() if item.container_id == "default-c1"]

    assert f"/proc/{one.pid('c1')}/ns/net" == sandbox.netns_path


def test_a_port_is_published_live(pair, cluster, client):
    (endpoint,) = client.list_endpoints("label=netweft.cni.container=default-c1")
    with contextlib.closing(Netns.at(str(cluster.layout.underlay_netns))) as outside:
        ask = ["timeout", "5", "busybox", "wget", "-q", "-O", "-", f"http://{H1}:8080/who"]
        before = outside.exec(ask, check=False).stdout

        client.update_endpoint(endpoint.id, ports=[netweft_client.PublishedPort(container_port=80, host_port=8080)])

        assert ("", "c1\n") == (before, outside.exec(ask).stdout)


@pytest.mark.parametrize("agent", ["there", "dead"])
def test_a_container_that_is_killed_leaves_nothing(hosts, cluster, client, agent):
    one, two = hosts
    two.run("c2")
    one.run("c1")

    with cluster.dead("agent-h1") if agent == "dead" else contextlib.nullcontext():
        os.kill(one.pid("c1"), signal.SIGKILL)
        one.ended("c1")

    left = support.wait_until(lambda: list(client.list_endpoints()), lambda found: len(found) == 1)
    assert ["default-c2"] == [endpoint.labels["netweft.cni.container"] for endpoint in left]
    assert [] == one.host.attachments()
    one.run("c3")
    assert "c2" == who(one, "c3", address(two, "c2"))
    one.remove("c3")
    two.remove("c2")


def test_a_container_is_not_started_when_nothing_can_be_attached(hosts, cluster, client):
    one, _ = hosts

    with cluster.dead("agent-h1"), pytest.raises(AssertionError, match="is netweft-agent running"):
        one.run("c1")
