"""Beside ufw and firewalld: what they shut stays shut until they are told, and neither undoes what is ours."""

from __future__ import annotations

import contextlib
import json
import shlex
from pathlib import Path

import pytest
from netweft_client import EndpointSpec, PublishedPort, SandboxSpec, SubnetSpec

from tests.support.firewalls import programs
from tests.support.netns import Netns
from tests.support.packets import at_once, tcp

pytestmark = [pytest.mark.e2e, pytest.mark.netns]
H1, OUTSIDE = "192.0.2.1", "192.0.2.254"
WEB = "10.73.0.2"
OPEN = (OUTSIDE, H1, True)
"""Who is seen at a published port from outside, and outside from the endpoint; whether h2's endpoint reaches h1's."""
DOCUMENTED = Path(__file__).parents[2] / "docs/dataplane/README.md"


class World:
    """An endpoint on h1 with a published port, and an overlay's on both hosts."""

    def __init__(self, cluster, client, stack):
        self.cluster = cluster
        self.client = client
        client.create_network("web", host="h1", subnets=[SubnetSpec(subnet="10.73.0.0/24")])
        port = PublishedPort(container_port=80, host_port=8080)
        web = client.attach_endpoint(
            EndpointSpec(network="web", name="web", ports=(port,)), SandboxSpec(container_id="web", host="h1")
        )
        self.web = self._space(stack, web)
        self.host = stack.enter_context(Netns.at(str(cluster.host("h1"))))
        self.outside = stack.enter_context(Netns.at(str(cluster.layout.underlay_netns)))
        self._boxes = []
        for host in ("h1", "h2"):
            attached = client.attach_endpoint(
                EndpointSpec(network="front", name=host), SandboxSpec(container_id=f"box-{host}", host=host)
            )
            self._boxes.append((self._space(stack, attached), str(attached.endpoint.addresses[0].ip)))

    @staticmethod
    def _space(stack, attached):
        return stack.enter_context(Netns.at(attached.sandbox.netns_path))

    def ways(self):
        (near, address), (far, source) = self._boxes
        inwards, outwards, across = at_once(
            lambda: tcp(self.outside, (H1, 8080), self.web, (WEB, 80)),
            lambda: tcp(self.web, (OUTSIDE, 7000), self.outside, (OUTSIDE, 7000)),
            lambda: tcp(far, (address, 7001), near, (address, 7001)),
        )
        return inwards, outwards, across == source

    def uplink(self):
        """Return the name of h1's interface to the others."""
        (route,) = json.loads(self.host.exec(["ip", "-j", "route", "get", OUTSIDE]).stdout)
        return route["dev"]

    def ours(self):
        """Return our rules on h1, and how many repairs there were."""
        rules = [
            self.host.exec(["nft", "-s", "list", "table", family, "netweft"]).stdout for family in ("inet", "bridge")
        ]
        return rules, self.client.get_host("h1").drift

    def close(self):
        for endpoint, network in (("web", "web"), ("h1", "front"), ("h2", "front")):
            self.client.detach_endpoint(endpoint, network=network, delete_sandbox=True)
        self.client.delete_network("web")


@pytest.fixture
def world(cluster, client):
    with contextlib.ExitStack() as stack:
        made = World(cluster, client, stack)
        stack.callback(made.close)
        yield made


def started(kind, world):
    return contextlib.closing(kind(world.cluster.host("h1")))


def told(program, name):
    """Run the commands that the documentation tells for a program."""
    commands = [
        shlex.split(line, comments=True) for line in DOCUMENTED.read_text().splitlines() if line.startswith(f"{name} ")
    ]
    assert commands
    for command in commands:
        program.run(*command)


def test_what_ufw_shuts_is_opened_by_what_is_documented_and_a_reload_undoes_nothing(world):
    with started(programs.Ufw, world) as ufw:
        before, ours = world.ways(), world.ours()
        ufw.start_up()
        shut = world.ways()
        told(ufw, "ufw")
        opened = world.ways()
        ufw.reload()
        again = world.ways()
        judged = ufw.left()
        ufw.end()

        assert (True, set()) == (bool(judged), ufw.left())
        assert (OPEN, (None, None, False), OPEN, OPEN, OPEN) == (before, shut, opened, again, world.ways())
        assert ours == world.ours()


def test_firewalld_lets_published_ports_in_and_is_told_of_the_rest(world):
    """CVE-2025-54388, CVE-2025-54410: its reload takes nothing away that is ours."""
    with started(programs.Firewalld, world) as firewalld:
        ours = world.ours()
        firewalld.start_up()
        shut = world.ways()
        # As NetworkManager does with each connection; a zone's interfaces forward to each other.
        firewalld.run("firewall-cmd", "--zone=public", f"--add-interface={world.uplink()}")
        managed = world.ways()
        firewalld.run("firewall-cmd", "--zone=public", f"--remove-interface={world.uplink()}")
        told(firewalld, "firewall-cmd")
        opened = world.ways()
        firewalld.reload()
        again = world.ways()
        judged = firewalld.left()
        firewalld.end()

        assert (True, set()) == (bool(judged), firewalld.left())
        assert ((OUTSIDE, None, False), (OUTSIDE, H1, False)) == (shut, managed)
        assert (OPEN, OPEN, OPEN) == (opened, again, world.ways())
        assert ours == world.ours()
