"""Turns: so many at a time, a part of them on one host, in the order of their coming, and nobody lost in between."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netweft_common import errors
from netweft_controller.engine.turns import PART_OF_HOST, WAITING_EACH, Turns

pytestmark = pytest.mark.anyio
LONG_S = 60.0


class Work:
    """Callers whose work ends when they are told."""

    def __init__(self, turns):
        self.turns = turns
        self.begun = []
        self.tasks = {}
        self._ends = {}

    async def come(self, name, *hosts, patience_s=LONG_S):
        self._ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._work(name, hosts, patience_s))
        await rest()

    async def _work(self, name, hosts, patience_s):
        async with self.turns.turn(hosts, patience_s):
            self.begun.append(name)
            await self._ends[name].wait()

    async def end(self, *names):
        for name in names:
            self._ends[name].set()
        await rest()

    async def close(self):
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


async def rest():
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
async def work():
    made = Work(Turns(8))
    yield made
    await made.close()
    assert (0, 0) == (made.turns.running, made.turns.waiting)


async def test_more_than_there_are_turns_wait_and_come_in_their_order(work):
    for number in range(11):
        await work.come(number, f"h{number}")
    full = list(work.begun)

    await work.end(3, 1)

    assert (list(range(8)), [*range(8), 8, 9]) == (full, work.begun)
    assert (8, 1) == (work.turns.running, work.turns.waiting)


async def test_one_host_has_a_part_of_all_turns_and_the_others_go_on(work):
    for number in range(4):
        await work.come(f"slow{number}", "h1")
    await work.come("both", "h1", "h2")
    await work.come("other", "h3")

    assert 8 // PART_OF_HOST == 2
    assert ["slow0", "slow1", "other"] == work.begun


async def test_who_waits_for_a_host_is_not_overtaken_there(work):
    await work.come("a", "h1")
    await work.come("b", "h1")
    await work.come("both", "h1", "h2")
    await work.come("later", "h2")
    begun = list(work.begun)

    await work.end("a")

    assert (["a", "b"], ["a", "b", "both", "later"]) == (begun, work.begun)


async def test_who_has_no_patience_left_is_told_that_nothing_was_done(work):
    await work.come("a", "h1")
    await work.come("b", "h1")
    await work.come("c", "h1", patience_s=0.01)

    with pytest.raises(errors.Unavailable, match="2 attaches that came before are under way") as caught:
        await work.tasks["c"]

    assert ("CONTROLLER_BUSY", 1.0) == (caught.value.reason, caught.value.retry_after_s)
    await work.end("a")
    await work.come("d", "h1")
    assert ["a", "b", "d"] == work.begun


async def test_when_too_many_wait_the_next_one_is_told_at_once(work):
    for number in range(8 + 8 * WAITING_EACH):
        await work.come(number, f"h{number}")

    await work.come("more", "h")

    with pytest.raises(errors.Unavailable, match="8 attaches are under way and 128 wait"):
        await work.tasks["more"]


async def test_who_goes_away_while_he_waits_is_in_nobodys_way(work):
    for name in ("a", "b", "c", "d"):
        await work.come(name, "h1")
    work.tasks["c"].cancel()
    await work.end("a")

    assert ["a", "b", "d"] == work.begun


async def test_who_goes_away_in_the_moment_of_his_turn_gives_it_back(work):
    for name in ("a", "b", "c", "d"):
        await work.come(name, "h1")

    work._ends["a"].set()
    await asyncio.sleep(0)  # a's turn has ended, and c's has begun without him knowing
    work.tasks["c"].cancel()
    await rest()

    assert ["a", "b", "d"] == work.begun


async def test_without_a_limit_nobody_waits():
    work = Work(Turns(0))
    for number in range(200):
        await work.come(number, "h1")

    assert list(range(200)) == work.begun
    await work.close()


@given(
    st.lists(st.tuples(st.sets(st.sampled_from("abc"), max_size=3), st.sampled_from(["end", "cancel"])), max_size=30)
)
def test_everybody_has_his_turn_and_no_turn_is_lost(callers):
    async def run():
        turns = Turns(4)
        most = 0
        begun = []

        async def caller(number, hosts):
            nonlocal most
            async with turns.turn(hosts, LONG_S):
                most = max(most, turns.running)
                begun.append(number)
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(caller(number, hosts)) for number, (hosts, _) in enumerate(callers)]
        await asyncio.sleep(0)
        cancelled = {number for number, (_, how) in enumerate(callers) if how == "cancel" and tasks[number].cancel()}
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
        return turns, most, set(begun), cancelled

    turns, most, begun, cancelled = asyncio.run(run())

    assert (0, 0) == (turns.running, turns.waiting)
    assert set(range(len(callers))) == begun | cancelled
    assert most <= 4
    assert not turns._on_host
    assert not turns._wanted
