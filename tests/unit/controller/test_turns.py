"""Turns: so many at a time, a part of them on one host, in the order of their coming, and nobody lost in between."""

from __future__ import annotations

import asyncio
import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netweft_common import errors
from netweft_controller.engine.turns import PART_OF_HOST, WAITING_EACH, Turns

pytestmark = pytest.mark.anyio
LONG_S = 60.0
AT_ONCE = 16
OF_HOST = AT_ONCE // PART_OF_HOST


class Work:
    """Callers whose work ends when they are told."""

    def __init__(self, turns):
        self.turns = turns
        self.begun = []
        self.tasks = {}
        self._ends = {}

    async def come(self, name, host="", patience_s=LONG_S):
        self._ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._work(name, host, patience_s))
        await rest()

    async def _work(self, name, host, patience_s):
        async with self.turns.turn(host, patience_s):
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
    made = Work(Turns(AT_ONCE))
    yield made
    await made.close()
    assert 0 == made.turns.waiting
    assert not made.turns._hosts
    assert AT_ONCE == made.turns._all._value


async def test_more_than_there_are_turns_wait_and_come_in_their_order(work):
    for number in range(AT_ONCE + 3):
        await work.come(number, f"h{number}")
    full, waiting = list(work.begun), work.turns.waiting

    await work.end(3, 1)

    assert (list(range(AT_ONCE)), 3) == (full, waiting)
    assert [*full, AT_ONCE, AT_ONCE + 1] == work.begun


async def test_one_host_has_a_part_of_all_turns_and_the_others_go_on(work):
    for number in range(5):
        await work.come(f"slow{number}", "h1")
    await work.come("several")
    await work.come("other", "h2")

    assert 2 == OF_HOST
    assert ["slow0", "slow1", "several", "other"] == work.begun


async def test_who_waits_for_a_host_that_stands_still_takes_nobodys_turn(work):
    for number in range(OF_HOST * (1 + WAITING_EACH)):
        await work.come(f"slow{number}", "h1")
    for number in range(AT_ONCE - OF_HOST):
        await work.come(number)

    assert ["slow0", "slow1", *range(AT_ONCE - OF_HOST)] == work.begun


async def test_who_has_no_patience_left_is_told_that_nothing_was_done(work):
    await work.come("a", "h1")
    await work.come("b", "h1")
    await work.come("c", "h1", patience_s=0.01)

    with pytest.raises(errors.Unavailable, match="those that came before are still under way") as caught:
        await work.tasks["c"]

    assert ("CONTROLLER_BUSY", 1.0) == (caught.value.reason, caught.value.retry_after_s)
    await work.end("a")
    await work.come("d", "h1")
    assert ["a", "b", "d"] == work.begun


async def test_when_too_many_wait_for_a_host_the_next_one_is_told_at_once_and_others_are_not(work):
    for number in range(OF_HOST * (1 + WAITING_EACH)):
        await work.come(number, "h1")

    await work.come("more", "h1")
    await work.come("other", "h2")

    with pytest.raises(errors.Unavailable, match="18 for this host are under way or wait"):
        await work.tasks["more"]
    assert "other" in work.begun


async def test_when_too_many_wait_for_no_host_the_next_one_is_told_at_once(work):
    for number in range(AT_ONCE * (1 + WAITING_EACH)):
        await work.come(number)

    await work.come("more")

    with pytest.raises(errors.Unavailable, match="16 are under way and 128 wait"):
        await work.tasks["more"]


async def test_who_goes_away_while_he_waits_is_in_nobodys_way(work):
    for name in ("a", "b", "c", "d"):
        await work.come(name, "h1")
    work.tasks["c"].cancel()
    await work.end("a")

    assert ["a", "b", "d"] == work.begun


async def test_when_the_controller_goes_down_who_waits_is_told_and_who_works_is_left(work):
    for name in ("a", "b", "c"):
        await work.come(name, "h1")

    work.turns.close()
    await work.come("late", "h1")
    await work.come("free", "h2")

    for name in ("c", "late"):
        with pytest.raises(errors.Unavailable) as caught:
            await work.tasks[name]
        assert "SERVER_DRAINING" == caught.value.reason
    assert (["a", "b", "free"], False) == (work.begun, work.tasks["a"].done())


@pytest.mark.parametrize("at_once", [0, -1])
async def test_without_a_limit_nobody_waits(at_once):
    work = Work(Turns(at_once))
    for number in range(200):
        await work.come(number, "h1")

    assert list(range(200)) == work.begun
    await work.close()


@given(st.lists(st.tuples(st.sampled_from(["", "a", "b"]), st.sampled_from(["end", "cancel", "hurry"])), max_size=40))
def test_everybody_has_his_turn_or_is_told_and_no_turn_is_lost(callers):
    async def run():
        turns = Turns(AT_ONCE)
        now = collections.Counter()
        most = collections.Counter()
        order = {"": [], "a": [], "b": []}

        async def caller(number, host, patience_s):
            async with turns.turn(host, patience_s):
                order[host].append(number)
                now.update((host, "all"))
                for one in (host, "all"):
                    most[one] = max(most[one], now[one])
                try:
                    await asyncio.sleep(0)
                finally:
                    now.subtract((host, "all"))

        tasks = [
            asyncio.create_task(caller(number, host, 0 if how == "hurry" else LONG_S))
            for number, (host, how) in enumerate(callers)
        ]
        await asyncio.sleep(0)
        for task, (_, how) in zip(tasks, callers, strict=True):
            if how == "cancel":
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        return turns, most, order, results

    turns, most, order, results = asyncio.run(run())

    assert (0, AT_ONCE, {}) == (turns.waiting, turns._all._value, turns._hosts)
    assert most["all"] <= AT_ONCE
    assert max(most["a"], most["b"]) <= OF_HOST
    for (_, how), result in zip(callers, results, strict=True):
        allowed = {"end": (), "cancel": asyncio.CancelledError, "hurry": errors.Unavailable}[how]
        assert result is None or isinstance(result, allowed)
    assert all(numbers == sorted(numbers) for numbers in order.values())
