"""Sandboxes into which the caller moves interfaces himself, as Docker does with those of a remote driver."""

from __future__ import annotations

from contextlib import closing
from ipaddress import ip_interface

import msgspec
import pytest
from netweft_agent.domain import names
from netweft_agent.domain.objects import HANDOVER, LATER

from tests.support import agent
from tests.support.lab import HOST4, NEIGHBOUR4, new_lab
from tests.support.netns import Netns, require_root, require_tool
from tests.support.packets import REFUSED, tcp

pytestmark = [pytest.mark.netns, pytest.mark.anyio]

NETWORKS = [agent.network(), agent.network(driver="overlay")]
OWN = (ip_interface("10.1.0.9/24"),)
SANDBOX = agent.sandbox(source=HANDOVER)


@pytest.fixture(autouse=True)
def _needs():
    require_root()
    require_tool("ip")


@pytest.fixture
async def lab():
    async with new_lab() as lab:
        yield lab


@pytest.fixture
def box():
    with closing(Netns("box")) as box:
        yield box


def there(ns, name):
    return ns.exec(["ip", "link", "show", name], check=False).returncode == 0


def take(lab, box, name):
    """Do what Docker does: move the interface, rename it, and set it up."""
    lab.host.exec(["ip", "link", "set", name, "netns", box.path])
    box.exec(["ip", "link", "set", name, "name", "eth5"])
    box.exec(["ip", "address", "add", "10.1.0.9/24", "dev", "eth5"])
    box.exec(["ip", "link", "set", "eth5", "up"])
    box.exec(["ip", "route", "add", "default", "via", "10.1.0.1"])


@pytest.mark.parametrize("network", NETWORKS, ids=lambda one: one.driver)
async def test_an_interface_waits_in_the_host_and_works_where_it_is_taken_to(lab, box, network):
    await lab.put(network, SANDBOX, agent.endpoint(addresses=OWN))
    name = names.handed_over(agent.oid(1001))
    assert there(lab.host, name)

    take(lab, box, name)

    assert HOST4 == tcp(box, (NEIGHBOUR4, 80), lab.neighbour, (NEIGHBOUR4, 80))


@pytest.mark.parametrize("network", NETWORKS, ids=lambda one: one.driver)
async def test_a_later_look_finds_nothing_amiss_before_and_after_it_was_taken(lab, box, network):
    await lab.put(network, SANDBOX, agent.endpoint(addresses=OWN))

    before = await lab.restart()
    take(lab, box, names.handed_over(agent.oid(1001)))
    after = await lab.restart()

    assert ((), ()) == (before, after)
    assert there(box, "eth5")


async def test_it_goes_with_its_endpoint_wherever_it_is(lab, box):
    one, other = agent.endpoint(addresses=OWN), agent.endpoint(1002)
    await lab.put(NETWORKS[0], SANDBOX, one, other)
    take(lab, box, names.handed_over(one.id))

    await lab.gone(one, other)
    await lab.restart()

    assert not there(box, "eth5")
    assert not there(lab.host, names.handed_over(other.id))


async def test_one_whose_namespace_has_ended_is_made_again_and_waits_again(lab):
    with closing(Netns()) as box:
        await lab.put(NETWORKS[0], SANDBOX, agent.endpoint(addresses=OWN))
        take(lab, box, names.handed_over(agent.oid(1001)))
    while there(lab.host, names.veth(agent.oid(1001))):  # the kernel ends a namespace in its own time
        pass

    await lab.restart()

    assert there(lab.host, names.handed_over(agent.oid(1001)))


async def test_ports_are_published_to_it(lab, box):
    published = agent.endpoint(addresses=OWN, ports=(agent.port(80, 8080),))
    await lab.put(NETWORKS[0], SANDBOX, published)
    take(lab, box, names.handed_over(published.id))

    asked = lab.neighbour, (HOST4, 8080), box, ("10.1.0.9", 80)
    assert NEIGHBOUR4 == tcp(*asked)

    await lab.put(msgspec.structs.replace(published, ports=()))

    assert REFUSED == tcp(*asked)


async def place(lab, box, endpoint, network):
    """Have an interface made in a namespace that its runtime names."""
    await lab.put(network, msgspec.structs.replace(SANDBOX, place=LATER), endpoint)
    there_before = there(lab.host, names.veth(endpoint.id)) or there(lab.host, names.handed_over(endpoint.id))
    await lab.put(msgspec.structs.replace(SANDBOX, place=box.path), endpoint)
    return there_before


@pytest.mark.parametrize("network", NETWORKS, ids=lambda one: one.driver)
async def test_in_a_namespace_that_is_there_it_is_made_as_it_shall_be_but_for_routes(lab, box, network):
    box.exec(["ip", "link", "set", "lo", "up"])
    was_early = await place(lab, box, agent.endpoint(addresses=OWN), network)

    assert not was_early
    assert there(box, "eth100")
    assert not box.exec(["ip", "route", "show", "default"]).stdout
    box.exec(["ip", "route", "add", "default", "via", "10.1.0.1"])
    assert HOST4 == tcp(box, (NEIGHBOUR4, 80), lab.neighbour, (NEIGHBOUR4, 80))
    assert () == await lab.restart()


async def test_several_in_one_namespace_go_one_by_one_and_leave_what_is_the_runtimes(lab, box):
    box.exec(["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "theirs"])
    other_sandbox = agent.sandbox(102, source=HANDOVER, place=box.path)
    other = agent.endpoint(1002, sandbox=102)
    one = agent.endpoint(addresses=OWN)
    await place(lab, box, one, NETWORKS[0])
    await lab.put(other_sandbox, other)
    assert there(box, "eth100")
    assert there(box, "eth101")

    await lab.gone(one, SANDBOX)
    assert () == await lab.restart()
    assert not there(box, "eth100")
    assert there(box, "eth101")

    await lab.gone(other, other_sandbox)
    await lab.restart()
    assert not there(box, "eth101")
    assert there(box, "eth0")


async def test_what_was_in_a_namespace_that_has_ended_can_be_taken_away(lab):
    one = agent.endpoint(addresses=OWN)
    with closing(Netns("box")) as box:
        await place(lab, box, one, NETWORKS[0])

    await lab.gone(one, SANDBOX)
    await lab.restart()

    assert not there(lab.host, names.veth(one.id))
