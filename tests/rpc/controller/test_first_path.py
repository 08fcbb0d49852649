from __future__ import annotations

import asyncio

import pytest
from netweft.common.v1 import endpoint_pb2 as common_endpoint_pb2
from netweft.common.v1 import network_pb2 as common_network_pb2
from netweft.controller.v1 import endpoint_pb2, host_pb2, network_pb2

pytestmark = pytest.mark.anyio


async def test_an_endpoint_is_attached_confirmed_and_detached(world, face, make_item):
    network = await face.network(subnets=[common_network_pb2.Subnet(subnet="10.1.0.0/24")])

    (result,) = await face.attach(make_item(name="web"))

    assert 0 == result.status.code, result.status
    assert ["10.1.0.2/24"] == list(result.endpoint.addresses)
    assert ["10.1.0.1"] == list(result.gateways)
    assert result.endpoint.mac_address.startswith("02:42:")
    assert common_endpoint_pb2.ENDPOINT_STATE_JOINED == result.endpoint.state
    assert "eth0" == result.endpoint.interface_name
    assert "/run/netns/c1" == result.sandbox.netns_path
    assert ["web"] == world.agents["h1"].names("endpoint")
    assert network.id == result.endpoint.network_id

    (status,) = await face.detach("web", delete_sandbox=True)

    assert 0 == status.code, status
    assert [] == world.ipam.endpoint_leases()
    assert [] == world.agents["h1"].names("endpoint")
    assert [] == world.agents["h1"].names("sandbox")
    assert 0 == len(face.controller.replica.state.endpoints)
    assert 0 == len(face.controller.replica.state.sandboxes)


async def test_a_host_is_told_everything_first_and_then_each_change(world, face, make_item):
    await face.network("net", driver="overlay")
    await face.attach(make_item("net", "one", "c1", "h1"))
    stream = face.host_streams.WatchHost(host_pb2.WatchHostRequest(host_id=f"{1:032x}"))
    snapshot = await stream.read()

    await face.attach(make_item("net", "two", "c2", "h2"))
    put = await stream.read()
    await face.detach("two")
    gone = await stream.read()
    stream.cancel()

    assert snapshot.snapshot
    assert snapshot.snapshot_end
    assert ["network", "sandbox", "endpoint"] == [change.WhichOneof("object") for change in snapshot.changes]
    assert ["peer"] == [change.WhichOneof("object") for change in put.changes]
    assert "192.0.2.2" == put.changes[0].peer.vtep_address
    assert ["gone"] == [change.WhichOneof("object") for change in gone.changes]
    assert put.revision < gone.revision


async def test_a_batch_is_one_call_to_each_part(world, face, make_item):
    await face.network()
    world.ipam.calls.clear()
    world.agents["h1"].calls.clear()

    results = await face.attach(*(make_item(name=f"e{n}", container=f"c{n}") for n in range(50)))

    assert [0] * 50 == [result.status.code for result in results]
    assert 1 == world.ipam.calls["RequestAddresses"]
    assert 1 == world.agents["h1"].calls["Apply"]
    assert 50 == len({address for result in results for address in result.endpoint.addresses})


async def test_confirmations_are_recorded_in_the_background(world, face, make_item):
    await face.network()

    await face.attach(make_item(name="web"))

    async with asyncio.timeout(5):
        while face.controller.replica.state.endpoint_by_name is None or any(
            True for _ in face.controller.replica.state.unsettled()
        ):
            await asyncio.sleep(0.005)
    (record,) = face.controller.replica.state.endpoints.values()
    assert "joined" == record.value.state
    assert "eth0" == record.value.interface_name


async def test_a_network_is_created_once_a_request(world, face):
    request = network_pb2.CreateNetworkRequest(request_id="r1", name="n")

    first = await face.networks.CreateNetwork(request)
    second = await face.networks.CreateNetwork(request)

    assert first == second
    assert 1 == len(world.ipam.pools)


async def test_a_deleted_network_gives_its_pools_back(world, face):
    await face.network()

    await face.networks.DeleteNetwork(network_pb2.DeleteNetworkRequest(network="front"))

    assert {} == world.ipam.pools
    assert 0 == len(face.controller.replica.state.networks)


async def test_a_plan_shows_the_address_and_leases_none(world, face, make_item):
    await face.network(subnets=[common_network_pb2.Subnet(subnet="10.1.0.0/24")])

    response = await face.endpoints.PlanAttach(endpoint_pb2.PlanAttachRequest(items=[make_item(name="web")]))

    assert ["ip addr add 10.1.0.2/24 dev web"] == [step.command for step in response.plans[0].steps]
    assert [] == world.ipam.endpoint_leases()
    assert 0 == len(face.controller.replica.state.endpoints)
