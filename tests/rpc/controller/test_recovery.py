"""A store that was put back to an older copy of itself, or emptied, under controllers that live."""

from __future__ import annotations

import asyncio
import contextlib
import shutil

import pytest
from netweft.controller.v1 import endpoint_pb2, host_pb2, network_pb2
from netweft_controller.domain.objects import EndpointState

pytestmark = pytest.mark.anyio


class Copies:
    """A store's append-only files, kept aside and put back."""

    def __init__(self, server):
        self._server = server
        self._files = server.directory / "appendonlydir"
        self._kept = server.directory / "kept"

    def keep(self):
        shutil.copytree(self._files, self._kept)

    @contextlib.contextmanager
    def put_back(self):
        """Kill the store, do what the block says, and start it over the copy, or over nothing where there is none."""
        self._server.kill()
        shutil.rmtree(self._files)
        if self._kept.exists():
            shutil.copytree(self._kept, self._files)
        yield
        self._server.start()


@pytest.fixture
async def copies(world, killable_server):
    await killable_server.ready()
    world.store_url = killable_server.url
    return Copies(killable_server)


def intent(face):
    """Return all intent by id, as far as a recovery must bring it back."""
    state = face.state
    return {
        id_: record.value
        for table in (state.hosts, state.networks, state.sandboxes, state.endpoints)
        for id_, record in table.items()
    }


async def replaced(*faces, before):
    async with asyncio.timeout(20):
        while any(face.state.store_id == before for face in faces):
            await asyncio.sleep(0.02)
        # They have recovered different parts: what one has written, the others read.
        while len({face.state.revision for face in faces}) > 1:
            await asyncio.sleep(0.02)


@pytest.fixture
async def face(world, copies):
    face = await world.start_controller()
    await world.add_host(face, "h1", 1)
    await world.add_host(face, "h2", 2)
    return face


async def test_what_was_acknowledged_after_the_copy_is_there_again_and_what_was_taken_away_is_not(
    world, face, copies, make_item
):
    await face.network()
    await face.network("gone")
    await face.attach(make_item(name="old"), make_item(name="left", container="c2"))
    await face.settled()
    copies.keep()
    await face.network("back", driver="overlay", labels={"a": "b"})
    await face.networks.DeleteNetwork(network_pb2.DeleteNetworkRequest(network="gone"))
    await face.attach(make_item("back", name="new", container="c3", labels={"c": "d"}), make_item(name="too"))
    await face.detach(*(one.value.id for one in face.state.endpoints.values() if one.value.name == "left"))
    spec = endpoint_pb2.EndpointSpec(network="front", name="bare")
    await face.endpoints.CreateEndpoint(endpoint_pb2.CreateEndpointRequest(endpoint=spec))
    await face.settled()
    before, known = face.state.store_id, intent(face)

    with copies.put_back():
        pass
    await replaced(face, before=before)
    fresh = await world.start_controller()

    assert known == intent(face) == intent(fresh)
    assert {"front", "back"} == {one.value.name for one in fresh.state.networks.values()}
    assert {"old", "too", "new", "bare"} == {one.value.name for one in fresh.state.endpoints.values()}


async def test_names_and_numbers_are_taken_again(world, face, copies, make_item):
    copies.keep()
    await face.network("one", driver="overlay", options={"vni": "4097"})
    await face.attach(make_item("one", name="web"))
    await face.settled()
    before = face.state.store_id

    with copies.put_back():
        pass
    await replaced(face, before=before)
    fresh = await world.start_controller()
    two = await fresh.network("two", driver="overlay")
    [again] = await fresh.attach(make_item("one", name="web", container="c2"))

    assert {"vni": 4097} != dict(two.claims)
    assert "ENDPOINT_EXISTS" == again.status.reason


async def test_a_host_is_told_of_nothing_that_was_not_lost_for_good(world, face, copies, make_item):
    copies.keep()
    await face.network()
    await face.attach(make_item(name="web"))
    await face.settled()
    call = face.host_streams.WatchHost(host_pb2.WatchHostRequest(host_id=f"{1:032x}"))
    told = [await call.read()]
    before = face.state.store_id

    with copies.put_back():
        pass
    async with asyncio.timeout(20):
        while told[-1].store_id == before or not told[-1].snapshot_end:
            told.append(await call.read())
    call.cancel()

    for message in (told[0], told[-1]):
        assert {"network", "sandbox", "endpoint"} == {change.WhichOneof("object") for change in message.changes}
    assert "gone" not in {change.WhichOneof("object") for message in told for change in message.changes}


async def test_controllers_that_have_seen_different_parts_bring_all_of_it_back(world, face, copies, monkeypatch):
    other = await world.start_controller()
    copies.keep()
    await face.network("both")
    await other.controller.replica.reached(face.state.revision)
    gate, tail = asyncio.Event(), face.controller.store.tail

    async def late(after, wait_s):
        await gate.wait()
        return await tail(after, wait_s)

    monkeypatch.setattr(face.controller.store, "tail", late)
    await face.network("later")  # what its tail has asked for before the gate was shut
    await other.controller.replica.reached(face.state.revision)
    await other.network("one", driver="overlay")
    before, known = face.state.store_id, intent(other)

    with copies.put_back():
        gate.set()
    seen = {one.value.name for one in face.state.networks.values()}
    await replaced(face, other, before=before)

    assert {"both", "later"} == seen
    assert known == intent(face) == intent(other)


async def test_a_retry_of_what_was_recovered_is_answered_from_it(world, face, copies, make_item):
    copies.keep()
    await face.network()
    [first] = await face.attach(make_item(name="web"), request_id="r1")
    await face.settled()
    before = face.state.store_id

    with copies.put_back():
        pass
    await replaced(face, before=before)
    [again] = await face.attach(make_item(name="web"), request_id="r1")

    assert first.endpoint.id == again.endpoint.id
    assert first.endpoint.addresses == again.endpoint.addresses
    assert [EndpointState.JOINED] == [one.value.state for one in face.state.endpoints.values()]


async def test_an_emptied_store_gets_all_of_it_back(world, face, copies, make_item):
    await face.network()
    await face.attach(make_item(name="web"))
    await face.settled()
    before, known = face.state.store_id, intent(face)

    with copies.put_back():
        pass
    await replaced(face, before=before)

    assert known == intent(face)
