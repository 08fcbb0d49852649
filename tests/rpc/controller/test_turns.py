"""More attaches than the cluster can follow: what was begun is finished, and the rest is told to come again."""

from __future__ import annotations

import asyncio

import pytest
from netweft_common import errors
from netweft_controller.domain import endpoints
from netweft_controller.domain.specs import SandboxSpec

pytestmark = pytest.mark.anyio
AT_ONCE = 16
OF_HOST = 2


class Door:
    """An agent's answers, held back until it is opened."""

    def __init__(self, agent):
        self.open = asyncio.Event()
        self.inside = 0
        self.most = 0
        agent.before_answer = self._pass

    async def _pass(self):
        self.inside += 1
        self.most = max(self.most, self.inside)
        await self.open.wait()
        self.inside -= 1

    async def is_full(self):
        async with asyncio.timeout(10):
            while self.inside < OF_HOST:
                await asyncio.sleep(0.001)


@pytest.fixture
async def face(world):
    face = await world.start_controller(attaches_at_once=AT_ONCE)
    await world.add_host(face, "h1", 1)
    await world.add_host(face, "h2", 2)
    await face.network()
    return face


def attaching(face, make_item, *names, host="h1"):
    return [asyncio.create_task(face.attach(make_item(name=one, container=one, host=host))) for one in names]


async def test_a_host_that_stands_still_has_its_part_and_the_others_are_served(world, face, make_item):
    slow = Door(world.agents["h1"])

    waiting = attaching(face, make_item, *(f"s{n}" for n in range(6)))
    await slow.is_full()
    (other,) = await face.attach(make_item(name="other", container="other", host="h2"))
    recorded = len(face.state.endpoints)
    slow.open.set()
    results = [one for call in waiting for one in await call]

    assert 0 == other.status.code
    assert (OF_HOST + 1, OF_HOST) == (recorded, slow.most)
    assert [0] * 6 == [one.status.code for one in results]


async def test_for_one_whose_turn_did_not_come_nothing_was_done(world, face, make_item):
    slow = Door(world.agents["h1"])
    leased = world.ipam.calls["RequestAddresses"]
    first = attaching(face, make_item, "s0", "s1")
    await slow.is_full()

    late = make_item(name="late", container="late", host="h1")
    with pytest.raises(errors.Unavailable) as caught:
        await face.attach(late, request_id="r1", timeout_s=1.5)
    recorded = len(face.state.endpoints)
    slow.open.set()
    await asyncio.gather(*first)
    (again,) = await face.attach(late, request_id="r1")

    assert "CONTROLLER_BUSY" == caught.value.reason
    assert (OF_HOST, 0) == (recorded, again.status.code)
    assert leased + OF_HOST + 1 == world.ipam.calls["RequestAddresses"]


async def test_what_was_done_before_is_answered_without_a_turn(world, face, make_item):
    done = make_item(name="done", container="done", host="h1")
    (first,) = await face.attach(done, request_id="r1")
    await face.controller.settler.flush()
    slow = Door(world.agents["h1"])
    waiting = attaching(face, make_item, "s0", "s1", "s2")
    await slow.is_full()

    (again,) = await face.attach(done, request_id="r1", timeout_s=5)

    assert (0, first.endpoint.id) == (again.status.code, again.endpoint.id)
    assert not any(call.done() for call in waiting)
    slow.open.set()
    await asyncio.gather(*waiting)


async def test_a_controller_that_goes_down_begins_nothing_for_those_who_wait(world, face, make_item):
    slow = Door(world.agents["h1"])
    first = attaching(face, make_item, "s0", "s1")
    await slow.is_full()
    (late,) = attaching(face, make_item, "late")
    async with asyncio.timeout(10):
        while not face.controller.endpoints._turns.waiting:
            await asyncio.sleep(0.001)

    face.controller.endpoints.close()

    with pytest.raises(errors.Unavailable) as caught:
        await late
    slow.open.set()
    assert "SERVER_DRAINING" == caught.value.reason
    assert [0, 0] == [one.status.code for call in first for one in await call]
    assert ["s0", "s1"] == sorted(one.value.name for one in face.state.endpoints.values())


async def test_a_sandbox_is_found_on_its_host_by_whatever_names_it(world, face, make_item):
    (one,) = await face.attach(make_item(name="one", container="one", host="h1"))
    await face.attach(make_item(name="two", container="two", host="h2"))
    host, state = f"{1:032x}", face.state

    for ref in (
        one.endpoint.sandbox_id,
        one.endpoint.sandbox_id[:20],
        "one",
        SandboxSpec(host="h1", container_id="new"),
    ):
        assert host == endpoints.only_host(state, [ref, ref, None])
    assert "" == endpoints.only_host(state, ["one", "two"])
    assert "" == endpoints.only_host(state, ["nothing"])
    assert "" == endpoints.only_host(state, [None])
