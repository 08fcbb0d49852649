"""The plugin under netavark 1.14, run as Podman runs it."""

from __future__ import annotations

import contextlib
import json
import subprocess

import netweft_client
import pytest

from tests.e2e import support
from tests.support import engines
from tests.support.netns import Netns
from tests.support.packets import tcp

pytestmark = [pytest.mark.e2e, pytest.mark.netns]
H1, OUTSIDE = "192.0.2.1", "192.0.2.254"


class Refused(Exception):
    """What netavark says when it fails."""


class Netavark:
    def __init__(self, engine):
        self.host = engine.host

    def __call__(self, verb, box, networks, *, container="c" * 64, **more):
        """Run netavark; networks are interface names and options by name, in the order that Podman has them in."""
        options = {
            "container_id": container,
            "container_name": "web",
            "networks": networks,
            "network_info": {
                name: {
                    "name": name,
                    "id": f"{number:064x}",
                    "driver": "netweft",
                    "ipv6_enabled": False,
                    "internal": False,
                    "dns_enabled": False,
                    "ipam_options": {"driver": "none"},
                }
                for number, name in enumerate(networks)
            },
            **more,
        }
        command = ["/usr/lib/podman/netavark", "--config", "/run", "--plugin-directory", "/usr/local/libexec/netavark"]
        done = subprocess.run(
            self.host.command(*command, verb, box.path),
            input=json.dumps(options), capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        if done.returncode:
            raise Refused(done.stdout + done.stderr)
        return json.loads(done.stdout) if done.stdout.strip() else None


@pytest.fixture(scope="module")
def netavark(cluster):
    with cluster.client() as client:
        subnets = [netweft_client.SubnetSpec(subnet=one) for one in ("10.72.0.0/24", "fd00:72::/64")]
        client.create_network("dual", enable_ipv6=True, host="h1", subnets=subnets)
    with engines.running(cluster, [("h1", engines.Podman5)]) as (engine,):
        yield Netavark(engine)


@pytest.fixture
def box(client, netavark):
    with Netns() as made:
        yield made
        for sandbox in list(client.list_sandboxes()):
            client.delete_sandbox(sandbox.id, force=True)


def addresses(box, link):
    (found,) = json.loads(box.exec(["ip", "-j", "address", "show", "dev", link]).stdout)
    return {f"{one['local']}/{one['prefixlen']}" for one in found["addr_info"] if one["scope"] == "global"}


def links(box):
    return {one["ifname"] for one in json.loads(box.exec(["ip", "-j", "link"]).stdout)} - {"lo"}


def test_setup_makes_what_it_tells_and_teardown_leaves_nothing(netavark, box, client):
    networks = {"dual": {"interface_name": "eth0", "static_ips": ["10.72.0.9", "fd00:72::9"]}}

    told = netavark("setup", box, networks)
    held, link = addresses(box, "eth0"), box.exec(["ip", "link", "show", "eth0"]).stdout
    netavark("teardown", box, networks)
    netavark("teardown", box, networks)

    (interface,) = told["dual"]["interfaces"].values()
    assert {"10.72.0.9/24", "fd00:72::9/64"} == held == {one["ipnet"] for one in interface["subnets"]}
    assert ["10.72.0.1", "fd00:72::1"] == [one["gateway"] for one in interface["subnets"]]
    assert interface["mac_address"] in link
    assert (set(), []) == (links(box), list(client.list_endpoints()))


def test_a_container_in_two_networks_has_its_ports_where_its_default_route_is(netavark, box, client, cluster):
    # netavark takes networks in no order.
    networks = {"dual": {"interface_name": "eth0"}, "front": {"interface_name": "eth1"}}
    ports = [{"container_port": 80, "host_ip": "", "host_port": 8080, "protocol": "tcp", "range": 2}]

    netavark("setup", box, networks, port_mappings=ports)

    with contextlib.closing(Netns.at(str(cluster.layout.underlay_netns))) as outside:
        assert OUTSIDE == tcp(outside, (H1, 8081), box, ("0.0.0.0", 81))
    netavark("teardown", box, networks, port_mappings=ports)


def test_what_the_plugin_refuses_is_netavarks_error_and_nothing_is_left(netavark, box, client):
    with pytest.raises(Refused, match=r"192\.0\.2\.9"):
        netavark("setup", box, {"front": {"interface_name": "eth0", "static_ips": ["192.0.2.9"]}})

    assert (set(), []) == (links(box), list(client.list_endpoints()))


def test_when_the_second_network_fails_the_first_is_taken_back_by_teardown(netavark, box, client):
    networks = {"dual": {"interface_name": "eth0"}, "gone": {"interface_name": "eth1"}}

    with pytest.raises(Refused, match="gone"):
        netavark("setup", box, networks)
    netavark("teardown", box, networks)

    assert (set(), []) == (links(box), list(client.list_endpoints()))


def test_a_teardown_without_an_agent_is_done_when_it_is_back(netavark, box, client, cluster):
    networks = {"front": {"interface_name": "eth0"}}
    netavark("setup", box, networks)

    with cluster.dead("agent-h1"):
        assert netavark("teardown", box, networks) is None
        with pytest.raises(Refused, match="is netweft-agent running"):
            netavark("setup", box, networks, container="d" * 64)

    assert [] == support.wait_until(lambda: list(client.list_endpoints()), lambda found: not found)
    assert set() == links(box)
