"""Docker as it comes, without Swarm: two engines on two hosts whose networks are ours."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import netweft_client
import pytest
from netweft_cli import netns, reach, rtnl

from tests.e2e import support
from tests.support import docker, engines, images
from tests.support.netns import Netns

pytestmark = [pytest.mark.e2e, pytest.mark.netns, pytest.mark.timeout(300)]

H1, OUTSIDE = "192.0.2.1", "203.0.113.1"
NAMED = ("-o", "netweft.network={0}", "--ipam-opt", "netweft.network={0}")
SERVE = "mkdir -p /www; echo {0} >/www/who; exec httpd -f -p 80 -h /www"
RESTART_S = 60.0


class Host:
    """A host with Docker and an agent."""

    def __init__(self, cluster, name, daemon):
        self.cluster = cluster
        self.name = name
        self.daemon = daemon
        self.netns = cluster.host(name)

    def __call__(self, *words):
        return self.daemon(*words)

    def refused(self, *words):
        """Run `docker`, which refuses, and return what it says."""
        done = self.daemon.run(*words)
        assert done.returncode, done.stdout
        return done.stderr

    def make(self, *flags, name="net", shared="shared"):
        """Make a network; with `shared`, one of that name for all hosts."""
        told = [word.format(shared) for word in NAMED] if shared else []
        self("network", "create", "-d", "netweft", "--ipam-driver", "netweft", *told, *flags, name)

    def run(self, name, *flags, network="net"):
        """Run a container that says its name at port 80."""
        self("run", "-d", "--name", name, "--network", network, *flags, images.NAME, "sh", "-c", SERVE.format(name))

    def who(self, name, address, port=80):
        """Return who answers a container that asks at an address; empty: nobody."""
        at = f"[{address}]" if ":" in address else address
        ask = ("timeout", "5", "wget", "-q", "-O", "-", f"http://{at}:{port}/who")
        return self.daemon.run("exec", name, *ask).stdout.strip()

    def pings(self, name, address):
        done = self.daemon.run("exec", name, "timeout", "5", "ping", "-c", "1", "-W", "2", address)
        return not done.returncode

    def show(self, name, field, network="net"):
        """Return a field of a container in a network, as Docker has it."""
        (found,) = json.loads(self("inspect", name))
        return found["NetworkSettings"]["Networks"][network][field]

    def address(self, name, network="net"):
        return self.show(name, "IPAddress", network)

    def space(self, name):
        """Return the path of a container's namespace."""
        return Path(self("inspect", "-f", "{{.NetworkSettings.SandboxKey}}", name))

    def pid(self, name):
        return int(self("inspect", "-f", "{{.State.Pid}}", name))

    def memory(self):
        """Return what the agent remembers of Docker."""
        path = self.cluster.agent_dir(self.name).parent / "state/docker.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def endpoints(self):
        """Return Docker's ids of the endpoints that the agent remembers."""
        return [one.name for one in (self.cluster.agent_dir(self.name).parent / "state/docker-endpoints").glob("*")]

    def clean(self):
        """Remove all containers and networks that a test has made."""
        containers = self("ps", "-aq").split()
        if containers:
            self("rm", "-f", *containers)
        for one in self("network", "ls", "-q", "--filter", "driver=netweft").split():
            self("network", "rm", one)


@pytest.fixture(scope="module")
def hosts(cluster, tmp_path_factory):
    image = images.busybox(tmp_path_factory.mktemp("image"))
    with contextlib.ExitStack() as stack:
        made = []
        for one in cluster.layout.hosts:
            plugins = cluster.layout.docker_socket(one).parent
            daemon = stack.enter_context(docker.daemon(cluster.host(one.name), "--live-restore", plugins=plugins))
            daemon("load", "-i", str(image))
            made.append(Host(cluster, one.name, daemon))
        yield made


@pytest.fixture
def pair(hosts, client):
    """Both hosts, without containers and networks of ours before and after; and of ours nothing is left."""
    before = {one.id for one in client.list_networks()}
    yield hosts
    for host in hosts:
        host.clean()
    assert before == {one.id for one in client.list_networks()}
    assert [({}, [])] * 2 == [(host.memory(), host.endpoints()) for host in hosts]
    assert [] == support.settled(hosts[0].cluster)


@pytest.fixture
def outside(cluster):
    with contextlib.closing(Netns.at(str(cluster.layout.underlay_netns))) as found:
        yield found


def fetch(ns, address, port):
    done = ns.exec(["timeout", "5", "busybox", "wget", "-q", "-O", "-", f"http://{address}:{port}/who"], check=False)
    return done.stdout.strip()


def both(pair, *flags):
    for host in pair:
        host.make(*flags)


def flow(*ends):
    """Watch whether the first of some (host, container) reaches the second, as long as the block runs."""
    (one, from_), (other, to) = ends
    return reach.Pinger(reach.Pair(source=one.space(from_), destination=other.address(to)), interval_s=0.02)


# --- containers and networks ---


def test_containers_of_one_network_reach_each_other_across_hosts(pair, client):
    one, two = pair
    both(pair)
    one.run("c1")
    two.run("c2")

    assert ["c2", "c1"] == [one.who("c1", two.address("c2")), two.who("c2", one.address("c1"))]
    leases = {str(own.ip) for found in client.list_endpoints() for own in found.addresses}
    assert {one.address("c1"), two.address("c2")} == leases


def test_a_network_that_is_there_is_docker_s_too_and_stays(pair, client):
    one, two = pair
    for host in pair:
        host.make("--subnet", "10.71.0.0/24", shared="front")
    one.run("c1")
    two.run("c2")

    assert "c2" == one.who("c1", two.address("c2"))
    assert one.address("c1").startswith("10.71.0.")
    for host in pair:
        host.clean()
    assert client.get_network("front")


def test_a_network_without_a_name_is_this_host_s_alone(pair, client):
    one, two = pair
    for host in pair:
        host.make("--subnet", "10.99.0.0/24", shared="")
    one.run("c1")
    one.run("c2")
    two.run("c3")

    assert "c2" == one.who("c1", one.address("c2"))
    assert one.pings("c1", OUTSIDE)
    assert two.address("c3") == one.address("c1")
    found = [one for one in client.list_networks("driver=bridge") if one.name.startswith("docker-")]
    assert 2 == len({one.host_id for one in found})


def test_addresses_and_mac_are_those_that_were_asked_for(pair):
    one, two = pair
    both(pair, "--subnet", "10.99.0.0/24", "--subnet", "fd00:99::/64", "--ipv6")
    one.run("c1", "--ip", "10.99.0.77", "--ip6", "fd00:99::77", "--mac-address", "02:00:00:00:00:77")
    two.run("c2")

    assert ("10.99.0.77", "fd00:99::77") == (one.address("c1"), one.show("c1", "GlobalIPv6Address"))
    assert "02:00:00:00:00:77" in one("exec", "c1", "ip", "link", "show", "eth0")
    assert ["c1", "c1"] == [two.who("c2", "10.99.0.77"), two.who("c2", "fd00:99::77")]
    assert two.pings("c2", one.show("c1", "IPv6Gateway"))


def test_an_address_that_another_host_has_is_refused(pair):
    one, two = pair
    both(pair, "--subnet", "10.99.0.0/24")
    one.run("c1", "--ip", "10.99.0.77")

    error = two.refused("run", "-d", "--name", "c2", "--network", "net", "--ip", "10.99.0.77", images.NAME)

    assert "10.99.0.77" in error
    assert "created" in two("ps", "-a", "--format", "{{.Status}}").lower()


def test_a_container_that_is_started_again_gets_the_address_that_it_was_promised(pair):
    one, _ = pair
    one.make("--subnet", "10.99.0.0/24")
    one.run("c1", "--ip", "10.99.0.77")

    one("restart", "-t", "0", "c1")

    assert "10.99.0.77" == one.address("c1")
    assert "10.99.0.77/24" in one("exec", "c1", "ip", "address", "show", "eth0")


@pytest.mark.parametrize("shared", ["shared", ""], ids=["overlay", "bridge"])
def test_published_ports_are_reached_from_outside_and_given_back(pair, outside, shared):
    one, _ = pair
    one.make(shared=shared)
    one.run("c1", "-p", "8080:80")

    assert "c1" == fetch(outside, H1, 8080)
    assert "8080" in one.refused("run", "--name", "c2", "--network", "net", "-p", "8080:80", images.NAME)
    one("rm", "-f", "c2")
    one("rm", "-f", "c1")
    assert "" == fetch(outside, H1, 8080)
    one.run("c3", "-p", "8080:80")
    assert "c3" == fetch(outside, H1, 8080)


def test_an_internal_network_has_no_way_out_and_no_way_in(pair, outside):
    one, two = pair
    both(pair, "--internal")
    one.run("c1", "-p", "8080:80")
    two.run("c2")

    assert "c2" == one.who("c1", two.address("c2"))
    assert not one.pings("c1", OUTSIDE)
    assert "" == fetch(outside, H1, 8080)
    assert "default" not in one("exec", "c1", "ip", "route")


def test_a_container_is_connected_and_disconnected_while_it_runs(pair, client):
    one, two = pair
    both(pair)
    one("run", "-d", "--name", "c1", "--network", "none", images.NAME)
    one("network", "disconnect", "none", "c1")
    two.run("c2")

    one("network", "connect", "net", "c1")
    assert "c2" == one.who("c1", two.address("c2"))
    one("network", "disconnect", "net", "c1")
    assert "eth" not in one("exec", "c1", "ip", "link")
    one("network", "connect", "net", "c1")
    assert "c2" == one.who("c1", two.address("c2"))
    assert 2 == len(list(client.list_endpoints()))


def test_what_a_running_container_is_connected_to_is_counted_beside_docker_s_own(pair):
    one, two = pair
    both(pair, "--ipv6", "--subnet", "fd00:71::/64")
    one.make(name="other", shared="other")
    two.run("c2")
    one.run("c1", network="bridge")

    one("network", "connect", "net", "c1")
    one("network", "connect", "other", "c1")
    one("network", "create", "theirs")
    one("network", "connect", "theirs", "c1")

    links = one("exec", "c1", "ip", "-o", "link")
    assert all(f" {name}@" in links for name in ("eth0", "eth1", "eth100", "eth101")), links
    assert "c2" == one.who("c1", two.address("c2"))
    assert "c2" == one.who("c1", two.show("c2", "GlobalIPv6Address"))
    assert 1 == one("exec", "c1", "ip", "route").count("default")
    for network in ("net", "other", "theirs"):
        one("network", "disconnect", network, "c1")
    assert "eth1" not in one("exec", "c1", "ip", "-o", "link")
    one("network", "rm", "theirs")


@pytest.mark.parametrize("first", ["bridge", "net"])
def test_a_container_may_be_in_docker_s_bridge_too_in_any_order(pair, first):
    one, two = pair
    both(pair)
    two.run("c2")
    one.run("c1", network=first)
    one("network", "connect", "net" if first == "bridge" else "bridge", "c1")

    assert "c2" == one.who("c1", two.address("c2"))
    assert one.pings("c1", OUTSIDE)
    assert 1 == one("exec", "c1", "ip", "route").count("default")


def test_ports_follow_the_network_that_a_container_leaves_by(pair, outside):
    one, _ = pair
    one.make()
    one.make(name="other", shared="other")
    one.run("c1", "-p", "8080:80")
    one("network", "connect", "other", "c1")
    assert "c1" == fetch(outside, H1, 8080)

    one("network", "disconnect", "net", "c1")

    assert one.pings("c1", OUTSIDE)
    assert "c1" == fetch(outside, H1, 8080)


def test_further_names_are_an_option_of_the_endpoint(pair, client):
    one, _ = pair
    one.make()
    one("run", "-d", "--name", "c1", "--network", "none", images.NAME)
    one("network", "disconnect", "none", "c1")
    one("network", "connect", "--driver-opt", "netweft.dns-names=web:db.example", "net", "c1")

    (found,) = client.list_endpoints()
    assert {"web", "db.example"} <= set(found.dns_names)


def test_a_network_with_containers_is_not_removed(pair):
    one, _ = pair
    one.make()
    one.run("c1")

    assert "active endpoints" in one.refused("network", "rm", "net")
    assert one.pings("c1", OUTSIDE)


def test_a_network_stays_for_the_host_that_still_has_it(pair):
    one, two = pair
    both(pair)
    one("network", "rm", "net")

    two.run("c2")

    assert two.pings("c2", OUTSIDE)


def test_another_network_s_driver_can_have_our_addresses(pair, client):
    one, _ = pair
    one("network", "create", "-d", "bridge", "--ipam-driver", "netweft", "--subnet", "10.98.0.0/24", "theirs")
    one.run("c1", network="theirs")

    (found,) = client.list_endpoints()
    assert one.address("c1", "theirs") == str(found.addresses[0].ip)
    assert one.pings("c1", "10.98.0.1")
    one("rm", "-f", "c1")
    assert [] == list(client.list_endpoints())
    one("network", "rm", "theirs")


def test_a_network_can_have_docker_s_own_addresses(pair):
    one, _ = pair
    one("network", "create", "-d", "netweft", "net")
    one.run("c1")
    one.run("c2")

    assert "c2" == one.who("c1", one.address("c2"))
    assert one.pings("c1", OUTSIDE)


def test_many_containers_at_once_all_have_addresses_of_their_own(pair, client):
    one, two = pair
    both(pair)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: pair[number % 2].run(f"c{number}"), range(16)))

    found = {host.address(name) for host in pair for name in host("ps", "--format", "{{.Names}}").split()}
    assert 16 == len(found) == len(list(client.list_endpoints()))
    assert "c1" == one.who("c0", two.address("c1"))


WRONG = {
    "name in one place": (("-o", "netweft.network=x"), "say the same name in both"),
    "unknown option": (("-o", "netweft.network=x", "--ipam-opt", "netweft.network=x", "-o", "nonsense=1"), "nonsense"),
    "another subnet": (("--subnet", "10.71.0.0/25", *(one.format("front") for one in NAMED)), "10.71.0.0/24"),
    "unknown driver": (("-o", "netweft.driver=nonsense"), "nonsense"),
    "overlay without a name": (("-o", "netweft.driver=overlay"), "netweft.network=NAME"),
}


@pytest.mark.parametrize(("flags", "said"), WRONG.values(), ids=WRONG)
def test_a_network_that_cannot_be_is_refused_with_what_to_do(pair, flags, said):
    one, _ = pair

    assert said in one.refused("network", "create", "-d", "netweft", "--ipam-driver", "netweft", *flags, "net")


# --- restarts and faults ---


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_traffic_flows_on_while_docker_is_away_and_all_can_be_done_after(pair, outside, how):
    one, two = pair
    both(pair)
    one.run("c1", "-p", "8080:80")
    two.run("c2")

    with flow((two, "c2"), (one, "c1")) as pinger:
        if how == "restart":
            one.daemon.stop()
        else:
            one.daemon.kill()
        assert "c1" == fetch(outside, H1, 8080)
        one.daemon.start()
        assert "c1" == two.who("c2", one.address("c1"))

    assert [] == support.unanswered(pinger)
    one("network", "disconnect", "net", "c1")
    one("network", "connect", "net", "c1")
    assert "c1" == two.who("c2", one.address("c1"))
    one.run("c3")
    assert "c3" == two.who("c2", one.address("c3"))


def test_what_was_connected_live_outlives_docker_and_the_agent(pair, cluster):
    one, two = pair
    both(pair)
    one.run("c1", network="bridge")
    one("network", "connect", "net", "c1")
    two.run("c2")

    with flow((two, "c2"), (one, "c1")) as pinger:
        one.daemon.kill()
        cluster.kill("agent-h1")
        cluster.start("agent-h1")
        one.daemon.start()
        assert "c1" == two.who("c2", one.address("c1"))

    assert [] == support.unanswered(pinger)
    one("network", "disconnect", "net", "c1")
    assert "eth100" not in one("exec", "c1", "ip", "-o", "link")
    one("network", "connect", "net", "c1")
    assert "c1" == two.who("c2", one.address("c1"))
    one("restart", "-t", "0", "c1")
    assert "c1" == two.who("c2", one.address("c1"))


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_traffic_flows_on_while_the_agent_is_away_and_all_can_be_done_after(pair, cluster, how):
    one, two = pair
    both(pair)
    one.run("c1")
    two.run("c2")

    with flow((two, "c2"), (one, "c1")) as pinger:
        getattr(cluster, how)("agent-h1")
        cluster.start("agent-h1")
        one.run("c3")
        assert "c3" == two.who("c2", one.address("c3"))

    assert [] == support.unanswered(pinger)
    one("network", "disconnect", "net", "c1")
    one("network", "connect", "net", "c1")
    assert "c1" == two.who("c2", one.address("c1"))


def test_docker_waits_for_an_agent_that_is_away(pair, cluster):
    one, _ = pair
    one.make()
    cluster.kill("agent-h1")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(one.run, "c1")
        cluster.start("agent-h1")
        running.result()

    assert one.pings("c1", OUTSIDE)


def test_docker_starts_without_an_agent_and_its_containers_come_when_there_is_one(pair, cluster):
    one, two = pair
    both(pair)
    one.run("c1")
    two.run("c2")
    cluster.kill("agent-h1")
    one.daemon.stop()

    one.daemon.start()  # answers, or this fails
    assert "c1" == two.who("c2", one.address("c1"))
    assert "c1" in one("ps", "--format", "{{.Names}}")
    cluster.start("agent-h1")

    one.run("c3")
    assert "c3" == two.who("c2", one.address("c3"))


def test_a_container_whose_process_is_killed_leaves_nothing(pair, client):
    one, _ = pair
    one.make()
    one.run("c1")

    os.kill(one.pid("c1"), signal.SIGKILL)

    assert [] == support.wait_until(lambda: list(client.list_endpoints()), lambda found: not found)
    assert [] == support.wait_until(lambda: list(client.list_sandboxes()), lambda found: not found)
    one("start", "c1")
    assert one.pings("c1", OUTSIDE)


def test_a_container_that_dies_while_the_agent_is_away_leaves_nothing_when_it_is_back(pair, cluster, client):
    one, _ = pair
    one.make()
    one.run("c1")

    with cluster.dead("agent-h1"):
        os.kill(one.pid("c1"), signal.SIGKILL)

    assert [] == support.wait_until(lambda: list(client.list_endpoints()), lambda found: not found)


@pytest.mark.parametrize("service", ["controller", "ipam", "store"])
def test_what_is_removed_while_the_cluster_is_away_is_gone_when_it_is_back(pair, cluster, client, service):
    one, two = pair
    both(pair)
    one.run("c1")
    one.run("c2")
    two.run("c3")

    with cluster.dead(service):
        assert "c3" == one.who("c1", two.address("c3"))
        one("rm", "-f", "c1")

    assert 2 == len(support.wait_until(lambda: list(client.list_endpoints()), lambda found: len(found) == 2))
    one.run("c4")
    assert "c4" == two.who("c3", one.address("c4"))


def test_without_a_controller_a_container_is_refused_with_what_stands_in_the_way(pair, cluster):
    one, _ = pair
    one.make()
    with cluster.dead("controller"):
        error = one.refused("run", "-d", "--name", "c1", "--network", "net", images.NAME)
    started = support.wait_until(lambda: one.daemon.run("start", "c1").returncode, lambda code: not code)

    assert "controller" in error
    assert 0 == started
    assert one.pings("c1", OUTSIDE)


def test_docker_without_live_restore_cleans_up_after_it_was_killed(cluster, client, tmp_path_factory):
    image = images.busybox(tmp_path_factory.mktemp("image"))
    (first, _) = cluster.layout.hosts
    plugins = cluster.layout.docker_socket(first).parent
    with docker.daemon(cluster.host("h1"), "--bridge=none", "--iptables=false", plugins=plugins) as daemon:
        daemon("load", "-i", str(image))
        host = Host(cluster, "h1", daemon)
        host.make()
        host.run("c1")
        host.run("c2", "--restart", "always")

        daemon.kill()
        daemon.start()
        running = support.wait_until(
            lambda: host("ps", "--format", "{{.Names}}").split(), lambda found: found == ["c2"], timeout_s=RESTART_S
        )

        assert ["c2"] == running
        assert 1 == len(support.wait_until(lambda: list(client.list_endpoints()), lambda found: len(found) == 1))
        assert host.pings("c2", host.show("c2", "Gateway"))
        host.clean()
    assert [] == support.settled(cluster)


@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["spec", "json"])
def test_docker_finds_the_plugin_by_a_file(cluster, client, tmp_path_factory, flags):
    image = images.busybox(tmp_path_factory.mktemp("image"))
    (first, _) = cluster.layout.hosts
    with docker.daemon(cluster.host("h1"), "--bridge=none", "--iptables=false") as daemon:
        daemon("load", "-i", str(image))
        host = Host(cluster, "h1", daemon)
        socket = cluster.layout.docker_socket(first)
        install = (engines.NETWEFT, "docker", "install", "--socket", socket, "--spec-dir", daemon.specs, *flags)
        subprocess.run(install, check=True, timeout=60)
        host.make()
        host.run("c1")

        assert host.pings("c1", host.show("c1", "Gateway"))
        host.clean()


def test_endpoints_are_seen_with_what_they_are_docker_s(pair, client):
    one, _ = pair
    one.make()
    one.run("c1")

    (found,) = client.list_endpoints()
    (sandbox,) = client.list_sandboxes()
    assert (one.show("c1", "MacAddress"), sandbox.id) == (found.mac_address, found.sandbox_id)
    assert [one.show("c1", "EndpointID")] == one.endpoints()
    assert isinstance(sandbox.namespace, netweft_client.HandoverNamespace)
    assert "nwh-" not in "".join(link.name for link in netns.call(one.netns, rtnl.links))
