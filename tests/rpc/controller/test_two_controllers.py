"""Two controllers on one store: whoever is asked, the answer is the same, and of two that collide one wins."""

from __future__ import annotations

import asyncio

import pytest
from netweft.common.v1 import network_pb2 as common_network_pb2
from netweft.controller.v1 import endpoint_pb2, host_pb2, network_pb2, sandbox_pb2
from netweft_common import errors

pytestmark = pytest.mark.anyio


@pytest.fixture
async def faces(world, face):
    other = await world.start_controller()
    return face, other


def everything(face):
    state = face.state
    return {
        kind: dict(table)
        for kind, table in (
            ("networks", state.networks),
            ("endpoints", state.endpoints),
            ("sandboxes", state.sandboxes),
            ("hosts", state.hosts),
        )
    }


async def in_step(*faces):
    for face in faces:
        await face.settled()
    # While one catches up, the other may record what a host has confirmed to it.
    while len(revisions := {face.state.revision for face in faces}) > 1:
        for face in faces:
            await face.controller.replica.reached(max(revisions))


async def test_what_one_writes_the_other_reads(faces, make_item):
    one, two = faces
    await one.network()
    await one.controller.replica.reached(one.state.revision)
    await two.controller.replica.reached(one.state.revision)

    await two.attach(make_item(name="web"))
    await in_step(*faces)

    assert everything(one) == everything(two)
    assert ["web"] == [record.value.name for record in one.state.endpoints.values()]


async def test_many_attaches_through_both_all_get_their_own_address(world, faces, make_item):
    one, two = faces
    await one.network()
    await in_step(*faces)

    batches = await asyncio.gather(
        *(
            faces[n % 2].attach(
                *(make_item(name=f"e{n}-{m}", container=f"c{n}-{m}", host=f"h{m % 2 + 1}") for m in range(5))
            )
            for n in range(20)
        )
    )
    await in_step(*faces)

    results = [result for batch in batches for result in batch]
    assert [0] * 100 == [result.status.code for result in results]
    assert 100 == len({address for result in results for address in result.endpoint.addresses})
    assert 100 == len({result.endpoint.mac_address for result in results})
    assert everything(one) == everything(two)
    assert 100 == len(world.ipam.endpoint_leases())


async def test_one_request_through_both_at_once_attaches_once(world, faces, make_item):
    one, two = faces
    await one.network()
    await in_step(*faces)

    for n in range(10):
        item = make_item(name=f"web{n}", container=f"c{n}")
        (a,), (b,) = await asyncio.gather(one.attach(item, request_id=f"r{n}"), two.attach(item, request_id=f"r{n}"))

        assert [0, 0] == [a.status.code, b.status.code], (a.status, b.status)
        assert a.endpoint.id == b.endpoint.id
        assert a.endpoint.addresses == b.endpoint.addresses
    await in_step(*faces)
    recorded = sorted(lease.address for record in one.state.endpoints.values() for lease in record.value.leases)
    assert sorted(world.ipam.endpoint_leases()) == recorded
    assert 10 == len(recorded)


def looks_before(monkeypatch, face, work):
    """Have a controller's next look for a request come before some work that another one does meanwhile."""
    replica = face.controller.replica
    find = replica.find_request

    async def look(key):
        monkeypatch.setattr(replica, "find_request", find)
        await work()

    monkeypatch.setattr(replica, "find_request", look)


@pytest.mark.parametrize("subnet", ["", "10.77.0.0/24"])
@pytest.mark.parametrize("knows", [True, False], ids=["the record is known", "the record is not known"])
async def test_a_try_that_looked_before_another_had_made_the_network_answers_that_one(
    world, faces, monkeypatch, subnet, knows
):
    one, two = faces
    await in_step(*faces)
    wanted = {"subnets": [common_network_pb2.Subnet(subnet=subnet)] if subnet else [], "request_id": "r1"}
    made = []

    async def make():
        made.append(await one.network("back", **wanted))
        if knows:
            await two.controller.replica.reached(one.state.revision)

    looks_before(monkeypatch, two, make)
    late = await two.network("back", **wanted)
    await in_step(*faces)

    assert [late.id] == [one.id for one in made]
    pools = {subnet.pool_id for subnet in late.subnets}
    assert pools == world.ipam.pools.keys()
    assert {str(subnet.gateway) for subnet in late.subnets} == {
        address for pool in pools for address in world.ipam.leases[pool]
    }


ONE_ENDPOINT = {"request_id": "r1", "endpoint": "web", "network": "front"}
LATE = {
    "join": lambda face: face.endpoints.JoinEndpoint(
        endpoint_pb2.JoinEndpointRequest(
            **ONE_ENDPOINT,
            sandbox=endpoint_pb2.SandboxRef(spec=endpoint_pb2.SandboxSpec(host="h1", container_id="c1")),
        )
    ),
    "leave": lambda face: face.endpoints.LeaveEndpoint(endpoint_pb2.LeaveEndpointRequest(**ONE_ENDPOINT)),
    "delete sandbox": lambda face: face.sandboxes.DeleteSandbox(
        sandbox_pb2.DeleteSandboxRequest(request_id="r1", sandbox="c1", force=True)
    ),
    "delete network": lambda face: face.networks.DeleteNetwork(
        network_pb2.DeleteNetworkRequest(request_id="r1", network="front")
    ),
}


@pytest.mark.parametrize("verb", LATE)
async def test_a_try_that_looked_before_another_was_on_record_answers_as_that_did(faces, monkeypatch, make_item, verb):
    one, two = faces
    await one.network()
    if verb == "join":
        spec = endpoint_pb2.EndpointSpec(network="front", name="web")
        await one.endpoints.CreateEndpoint(endpoint_pb2.CreateEndpointRequest(endpoint=spec))
    elif verb != "delete network":
        await one.attach(make_item(name="web", container="c1"))
    await in_step(*faces)
    answers = []

    async def do():
        answers.append(await LATE[verb](one))
        await two.controller.replica.reached(one.state.revision)

    looks_before(monkeypatch, two, do)
    answers.append(await LATE[verb](two))
    await in_step(*faces)

    first, late = (getattr(one, "endpoint", one) for one in answers)
    assert getattr(first, "id", "") == getattr(late, "id", "")
    assert everything(one) == everything(two)


async def test_what_was_detached_at_once_is_not_made_again_by_a_late_try_of_its_attach(faces, make_item):
    one, two = faces
    await one.network()
    await in_step(*faces)
    items = [make_item(name=f"web{n}", container=f"c{n}") for n in range(2)]

    first = await one.attach(*items, request_id="r1")
    await one.detach("web0")
    late = await two.attach(*items, request_id="r1")
    await in_step(*faces)

    assert [one.endpoint.id for one in first] == [one.endpoint.id for one in late]
    assert ["web1"] == [record.value.name for record in two.state.endpoints.values()]


def held_once(agent):
    """Have an agent hold its next answer back; returns events of when it has one, and for letting it go."""
    reached, answered = asyncio.Event(), asyncio.Event()

    async def wait_once():
        agent.before_answer = None
        reached.set()
        await answered.wait()

    agent.before_answer = wait_once
    return reached, answered


async def test_what_one_try_was_told_another_that_its_host_had_refused_does_not_take_away(world, faces, make_item):
    one, two = faces
    await one.network()
    await in_step(*faces)
    agent = world.agents["h1"]
    reached, answered = held_once(agent)

    agent.refuse["web"] = errors.Conflict("LEASE_UNKNOWN", "IPAM does not say whose address it is")
    first = asyncio.ensure_future(one.attach(make_item(name="web"), request_id="r1"))
    await reached.wait()
    agent.refuse.clear()
    (second,) = await two.attach(make_item(name="web"), request_id="r1")
    answered.set()
    (refused,) = await first
    await in_step(*faces)

    assert 0 == second.status.code
    assert refused.status.code
    assert ["joined"] == [record.value.state for record in one.state.endpoints.values()]
    assert {second.endpoint.id} == {id_ for kind, id_ in agent.objects if kind == "endpoint"}


async def test_what_a_try_has_recorded_another_one_does_not_undo(world, faces, make_item):
    one, two = faces
    await one.network()
    await in_step(*faces)
    agent = world.agents["h1"]
    reached, answered = held_once(agent)

    first = asyncio.ensure_future(one.attach(make_item(name="web"), request_id="r1"))
    await reached.wait()
    agent.refuse["web"] = errors.Conflict("LEASE_UNKNOWN", "IPAM does not say whose address it is")
    (refused,) = await two.attach(make_item(name="web"), request_id="r1")
    answered.set()
    (told,) = await first
    await in_step(*faces)

    assert refused.status.code
    assert 0 == told.status.code
    assert ["joined"] == [record.value.state for record in two.state.endpoints.values()]


async def test_of_two_endpoints_with_one_name_exactly_one_is_made(world, faces, make_item):
    one, two = faces
    await one.network()
    await in_step(*faces)

    for n in range(10):
        results = await asyncio.gather(
            one.attach(make_item(name=f"web{n}", container=f"a{n}")),
            two.attach(make_item(name=f"web{n}", container=f"b{n}")),
        )

        reasons = sorted(result.status.reason for (result,) in results)
        assert ["", "ENDPOINT_EXISTS"] == reasons
    await in_step(*faces)
    assert 10 == len(world.ipam.endpoint_leases()) == len(one.state.endpoints)


async def test_of_two_networks_with_one_name_exactly_one_is_made(world, faces):
    one, two = faces

    for n in range(10):
        results = await asyncio.gather(
            one.network(f"n{n}", driver="overlay" if n == 0 else "bridge"), two.network(f"n{n}"), return_exceptions=True
        )

        assert 1 == sum(isinstance(result, errors.AlreadyExists) for result in results), results
    await in_step(*faces)
    assert 10 == len(one.state.networks) == len(world.ipam.pools)


async def test_overlays_made_at_once_get_different_numbers(faces):
    one, _ = faces

    networks = await asyncio.gather(*(faces[n % 2].network(f"o{n}", driver="overlay") for n in range(4)))

    assert {4096, 4097, 4098, 4099} == {network.claims["vni"] for network in networks}
    with pytest.raises(errors.Exhausted):
        await one.network("o5", driver="overlay")


async def test_a_sandbox_described_in_two_attaches_at_once_is_one(world, faces, make_item):
    one, two = faces
    await one.network()
    await in_step(*faces)

    (a,), (b,) = await asyncio.gather(one.attach(make_item(name="a")), two.attach(make_item(name="b")))
    await in_step(*faces)

    assert [0, 0] == [a.status.code, b.status.code], (a.status, b.status)
    assert a.sandbox.id == b.sandbox.id
    assert 1 == len(one.state.sandboxes)


async def test_a_network_that_is_deleted_while_attaches_come_keeps_all_or_none(world, faces, make_item):
    one, two = faces

    for n in range(10):
        network = await one.network(f"n{n}")
        await in_step(*faces)
        attached, deleted = await asyncio.gather(
            two.attach(make_item(f"n{n}", f"e{n}", f"c{n}")),
            one.networks.DeleteNetwork(network_pb2.DeleteNetworkRequest(network=network.id)),
            return_exceptions=True,
        )
        await in_step(*faces)

        there = network.id in one.state.networks
        (result,) = attached
        assert there == isinstance(deleted, errors.FailedPrecondition), deleted
        assert there == (result.status.code == 0), result.status
        if there:
            assert "ready" == one.state.networks[network.id].value.state
            await one.detach(f"e{n}", delete_sandbox=True)
    assert [] == world.ipam.endpoint_leases()


async def test_a_sandbox_that_is_deleted_while_attaches_come_never_keeps_a_lost_endpoint(world, faces, make_item):
    one, two = faces
    await one.network()

    for n in range(10):
        await one.attach(make_item(name=f"first{n}", container=f"c{n}"))
        await in_step(*faces)
        await asyncio.gather(
            two.attach(make_item(name=f"second{n}", container=f"c{n}")), one.detach(f"first{n}", delete_sandbox=True)
        )
        await in_step(*faces)
    await one.reconcile()
    await in_step(*faces)

    for record in one.state.endpoints.values():
        assert record.value.sandbox_id in one.state.sandboxes
        assert "joined" == record.value.state
    assert len(one.state.endpoints) == len(world.ipam.endpoint_leases())
    assert world.agents["h1"].names("endpoint") == sorted(r.value.name for r in one.state.endpoints.values())


async def test_a_watch_resumes_at_the_other_controller(world, faces, make_item):
    one, two = faces
    await one.network("net", driver="overlay")
    await one.attach(make_item("net", "a", "c1", "h1"))
    await in_step(*faces)
    request = host_pb2.WatchHostRequest(host_id=f"{1:032x}")
    stream = one.host_streams.WatchHost(request)
    snapshot = await stream.read()
    stream.cancel()
    await one.attach(make_item("net", "b", "c2", "h2"), make_item("net", "c", "c3", "h1"))
    await one.detach("a")
    await in_step(*faces)

    request.resume_revision, request.store_id = snapshot.revision, snapshot.store_id
    resumed = two.host_streams.WatchHost(request)
    message = await resumed.read()
    resumed.cancel()

    assert not message.snapshot
    assert message.revision == two.state.revision
    puts = {
        c.endpoint.name or c.sandbox.container_id
        for c in message.changes
        if c.WhichOneof("object") in ("endpoint", "sandbox")
    }
    assert {"c", "c3"} <= puts
    assert 1 == sum(c.WhichOneof("object") == "peer" for c in message.changes)
    assert snapshot.changes[-1].endpoint.id in {c.gone.id for c in message.changes}


async def test_an_attach_that_joins_a_sandbox_of_the_other_controllers_attach(faces, make_item):
    one, two = faces
    await one.network()
    await one.network("back")
    await one.attach(make_item(name="a"))

    (result,) = await two.attach(
        endpoint_pb2.AttachItem(
            endpoint=endpoint_pb2.EndpointSpec(network="back", name="b"),
            sandbox=make_item().sandbox,
        )
    )

    assert 0 == result.status.code, result.status


async def test_what_one_has_just_made_the_other_does_not_take_for_gone(world, faces, make_item, monkeypatch):
    one, two = faces
    await one.network()
    await in_step(*faces)
    tail, read_on = two.controller.replica.store.tail, asyncio.Event()

    async def late(*arguments, **options):
        found = await tail(*arguments, **options)
        await read_on.wait()
        return found

    monkeypatch.setattr(two.controller.replica.store, "tail", late)
    await one.attach(make_item(name="web"))
    detaching = asyncio.create_task(two.detach("web", network="front"))
    await asyncio.sleep(0.1)
    waited = not detaching.done()
    read_on.set()

    (answer,) = await detaching

    assert waited
    assert 0 == answer.code
    await in_step(*faces)
    assert {} == one.state.endpoints
