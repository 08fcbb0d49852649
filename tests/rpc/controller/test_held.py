"""What a host is known to have is not told again with each endpoint."""

from __future__ import annotations

import pytest
from netweft.agent.v1 import agent_pb2
from netweft.common.v1 import host_pb2 as common_host_pb2
from netweft.controller.v1 import host_pb2
from netweft_common import errors, status

pytestmark = pytest.mark.anyio

HOST = f"{1:032x}"


def told(agent):
    """Return the kinds that the last call told an agent of."""
    return [change.WhichOneof("object") for change in agent.applies[-1].changes]


async def attach(face, *items):
    """Attach, and have the confirmations recorded."""
    results = await face.attach(*items)
    await face.controller.settler.flush()
    return results


async def test_an_endpoint_is_told_alone_where_its_network_and_sandbox_are_known(world, face, make_item):
    await face.network("a")
    await face.network("b")
    agent = world.agents["h1"]

    await attach(face, make_item("a", "one", "c1"))
    first = told(agent)
    await attach(face, make_item("a", "two", "c2"))
    second = told(agent)
    await attach(face, make_item("b", "three", "c1"))
    third = told(agent)
    (result,) = await attach(face, make_item("b", "four", "c2"))

    assert ["network", "sandbox", "endpoint"] == first
    assert ["sandbox", "endpoint"] == second
    assert ["network", "endpoint"] == third
    assert ["endpoint"] == told(agent)
    assert 0 == result.status.code, result.status
    assert "/run/netns/c2" == result.sandbox.netns_path


async def test_a_sandbox_that_is_not_confirmed_yet_is_told_again_so_that_its_path_is_known(world, face, make_item):
    await face.network("a")
    await face.network("b")

    await face.attach(make_item("a", "one", "c1"))
    (result,) = await face.attach(make_item("b", "two", "c1"))

    assert ["network", "sandbox", "endpoint"] == told(world.agents["h1"])
    assert "/run/netns/c1" == result.sandbox.netns_path


async def test_a_host_that_has_lost_what_it_had_is_told_everything_in_the_same_call(world, face, make_item):
    await face.network("a")
    await face.network("b")
    agent = world.agents["h1"]
    await attach(face, make_item("a", "one", "c1"))
    await attach(face, make_item("b", "two", "c1"))
    agent.objects.clear()
    agent.revisions.clear()

    (result,) = await attach(face, make_item("b", "three", "c1"))

    assert 0 == result.status.code, result.status
    assert ["network", "sandbox", "endpoint"] == told(agent)
    assert ["three"] == agent.names("endpoint")


async def test_a_network_that_left_a_host_is_told_again_when_it_comes_back(world, face, make_item):
    await face.network("a")
    agent = world.agents["h1"]
    await attach(face, make_item("a", "one", "c1"))
    await face.detach("one")

    await attach(face, make_item("a", "two", "c1"))

    assert ["network", "endpoint"] == told(agent)


async def test_a_host_that_registers_again_is_told_everything(world, face, make_item):
    await face.network("a")
    agent = world.agents["h1"]
    await attach(face, make_item("a", "one", "c1"))
    record = face.controller.replica.state.hosts[HOST]
    host = common_host_pb2.Host(id=HOST, name="h1", agent_target=record.value.agent_target)

    await face.hosts.RegisterHost(host_pb2.RegisterHostRequest(host=host))
    await attach(face, make_item("a", "two", "c2"))

    assert ["network", "sandbox", "endpoint"] == told(agent)


async def test_a_network_that_is_not_well_on_a_host_is_told_again_so_that_the_host_says_so(world, face, make_item):
    await face.network("a")
    agent = world.agents["h1"]
    (result,) = await attach(face, make_item("a", "one", "c1"))
    ill = agent_pb2.ObjectStatus(
        object=agent_pb2.ObjectRef(kind=agent_pb2.OBJECT_KIND_NETWORK, id=result.endpoint.network_id),
        revision=1,
        status=status.to_item_status(errors.Internal("BROKEN", "the bridge is broken")),
    )

    await face.hosts.ReportHost(host_pb2.ReportHostRequest(host_id=HOST, statuses=[ill]))
    await attach(face, make_item("a", "two", "c1"))

    assert ["network", "endpoint"] == told(agent)
