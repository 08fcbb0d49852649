"""More attaches than the cluster can follow: what was begun is finished, and the rest is told to come again."""

from __future__ import annotations

import asyncio

import pytest
from netweft_common import errors

pytestmark = pytest.mark.anyio
AT_ONCE = 8
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


@pytest.fixture
async def face(world):
    return await world.start_controller(attaches_at_once=AT_ONCE)


async def test_a_host_that_stands_still_has_its_part_and_the_others_are_served(world, face, make_item):
    await world.add_host(face, "h1", 1)
    slow = Door(world.agents["h1"])
    await world.add_host(face, "h2", 2)
    await face.network()

    waiting = [
        asyncio.create_task(face.attach(make_item(name=f"s{n}", container=f"s{n}", host="h1"))) for n in range(6)
    ]
    async with asyncio.timeout(10):
        while slow.inside < OF_HOST:
            await asyncio.sleep(0.001)
    (other,) = await face.attach(make_item(name="other", container="other", host="h2"))
    recorded = len(face.state.endpoints)
    slow.open.set()
    results = [one for call in waiting for one in await call]

    assert 0 == other.status.code
    assert (OF_HOST + 1, OF_HOST) == (recorded, slow.most)
    assert [0] * 6 == [one.status.code for one in results]


async def test_for_one_whose_turn_did_not_come_nothing_was_done(world, face, make_item):
    await world.add_host(face, "h1", 1)
    slow = Door(world.agents["h1"])
    await face.network()
    leased = world.ipam.calls["RequestAddresses"]
    first = [asyncio.create_task(face.attach(make_item(name=f"s{n}", container=f"s{n}", host="h1"))) for n in range(2)]
    async with asyncio.timeout(10):
        while slow.inside < OF_HOST:
            await asyncio.sleep(0.001)

    late = make_item(name="late", container="late", host="h1")
    with pytest.raises(errors.Unavailable) as caught:
        await face.attach(late, request_id="r1", timeout_s=0.4)
    recorded = len(face.state.endpoints)
    slow.open.set()
    await asyncio.gather(*first)
    (again,) = await face.attach(late, request_id="r1")

    assert caught.value.reason in {"CONTROLLER_BUSY", "DEADLINE_EXCEEDED"}
    assert (OF_HOST, 0) == (recorded, again.status.code)
    assert leased + OF_HOST + 1 == world.ipam.calls["RequestAddresses"]
