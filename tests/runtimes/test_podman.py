"""Podman as it comes, on two hosts of one overlay network: Podman 4 with CNI, Podman 5 with netavark."""

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


@pytest.fixture(scope="module", params=[engines.Podman, engines.Podman5], ids=["podman4", "podman5"])
def hosts(cluster, request):
    with engines.running(cluster, [("h1", request.param), ("h2", request.param)]) as found:
        yield found


@pytest.fixture
def empty(hosts, client):
    """Both hosts, without containers, before and after."""
    yield hosts
    for engine in hosts:
        engine.podman("rm", "--all", "--force", "--time=0")
    assert [[], []] == [engine.host.attachments() for engine in hosts]


def endpoint(client, name):
    (found,) = named(client, name)
    return found


def named(client, name):
    """Return the endpoints of a container: Podman 4 tells its name as Kubernetes does."""
    labels = (f"K8S_POD_NAME={name}", f"netweft.container.name={name}")
    return [found for label in labels for found in client.list_endpoints(f"label={label}")]


def test_containers_on_two_hosts_reach_each_other(empty):
    one, two = empty
    one.run("p1")
    two.run("p2")

    assert ["p2", "p1"] == [who(one, "p1", address(two, "p2")), who(two, "p2", address(one, "p1"))]


def test_address_mac_alias_and_port_are_those_that_were_asked_for(empty, cluster, client):
    one, two = empty
    two.run("p2")

    one.run("p1", "--ip=10.71.0.77", "--mac-address=02:00:00:00:00:77", "--network-alias=web", "--publish=8080:80")

    found = endpoint(client, "p1")
    assert ("10.71.0.77", "02:00:00:00:00:77") == (address(one, "p1"), found.mac_address)
    assert "02:00:00:00:00:77" in one.exec("p1", "ip", "link", "show", "eth0")
    assert "web" in found.dns_names
    assert "p1" == who(two, "p2", H1, 8080)
    with contextlib.closing(Netns.at(str(cluster.layout.underlay_netns))) as outside:
        assert "p1\n" == outside.exec(["busybox", "wget", "-q", "-O", "-", f"http://{H1}:8080/who"]).stdout


def test_an_address_of_elsewhere_is_refused_and_nothing_is_left(empty, client):
    one, _ = empty

    with pytest.raises(AssertionError, match=r"192\.0\.2\.9"):
        one.run("p1", "--ip=192.0.2.9")

    assert [] == list(client.list_endpoints())


@pytest.mark.parametrize("agent", ["there", "dead"])
def test_a_container_that_is_killed_leaves_nothing_and_can_be_started_again(empty, cluster, client, agent):
    one, _ = empty
    one.run("p1", "--ip=10.71.0.77")

    with cluster.dead("agent-h1") if agent == "dead" else contextlib.nullcontext():
        os.kill(one.pid("p1"), signal.SIGKILL)
        exited = ("ps", "--all", "--quiet", "--filter=status=exited")
        assert support.wait_until(lambda: one.podman(*exited), bool)
        support.wait_until(one.host.attachments, lambda found: not found)
    left = support.wait_until(lambda: list(client.list_endpoints()), lambda found: not found)
    one.podman("start", "p1")

    assert [] == left
    assert "10.71.0.77" == address(one, "p1")


def test_podman_restart_keeps_nothing_of_before(empty, client):
    one, two = empty
    one.run("p1", "--publish=8080:80")
    two.run("p2")
    before = endpoint(client, "p1").id

    one.podman("restart", "--time=0", "p1")

    assert [1, 1] == [len(named(client, name)) for name in ("p1", "p2")]
    assert before != endpoint(client, "p1").id
    support.wait_until(lambda: who(two, "p2", address(one, "p1")), lambda said: said == "p1")
    assert "p1" == who(two, "p2", H1, 8080)


def test_a_port_that_is_taken_is_refused_with_the_name_of_who_has_it(empty, client):
    one, _ = empty
    one.run("p1", "--publish=8080:80")

    with pytest.raises(AssertionError, match="8080"):
        one.run("p2", "--publish=8080:80")

    one.run("p3", "--publish=8081:80")
    assert [1, 0, 1] == [len(named(client, name)) for name in ("p1", "p2", "p3")]


def test_a_pod_is_one_sandbox_of_which_both_containers_are(empty, client):
    one, two = empty
    two.run("p2")
    one.podman("pod", "create", "--name=pod", "--network=front", "--infra=true", f"--infra-image={engines.images.NAME}")
    one.run("q1", "--pod=pod", network="")

    assert "q1" == who(two, "p2", address(one, "q1"))
    one.podman("pod", "rm", "--force", "--time=0", "pod")
    assert named(client, "p2") == list(client.list_endpoints())
