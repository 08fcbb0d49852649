"""Back-off, deadlines and clocks."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools

import pytest
from netweft_common import backoff, clock, deadline


def test_delays_double_up_to_the_limit():
    found = list(itertools.islice(backoff.delays(first_s=1, limit_s=5, jitter=0), 5))

    assert [1, 2, 4, 5, 5] == found


def test_jitter_takes_away_at_most_its_share():
    found = list(itertools.islice(backoff.delays(first_s=1, limit_s=1, jitter=0.5), 1000))

    assert 0.5 <= min(found) < max(found) <= 1


@pytest.mark.anyio
async def test_without_a_deadline_the_default_holds():
    deadline.set_remaining(None)  # a loop that tests share is one task, and keeps what it was told

    assert 7 == deadline.remaining_s(7)


@pytest.mark.anyio
@pytest.mark.parametrize(("left_s", "low", "high"), [(3, 2, 3), (100, 7, 7), (-1, 0, 0)], ids=["less", "more", "past"])
async def test_a_call_waits_no_longer_than_its_caller(left_s, low, high):
    deadline.set_remaining(left_s)

    left = deadline.remaining_s(7)
    deadline.set_remaining(None)

    assert low <= left <= high


@pytest.mark.anyio
async def test_a_task_that_may_outlive_its_maker_has_no_deadline():
    async def child() -> float:
        return deadline.remaining_s(7)

    deadline.set_remaining(1)

    left = await asyncio.create_task(child())
    deadline.set_remaining(None)

    assert 7 == left


@pytest.mark.anyio
async def test_a_manual_clock_wakes_sleepers_in_the_order_of_their_times():
    manual = clock.ManualClock()
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, *seconds: float) -> None:
        for each in seconds:
            await manual.sleep(each)
            woken.append((name, manual.monotonic()))

    async with asyncio.TaskGroup() as group:
        group.create_task(sleeper("a", 3, 1))
        group.create_task(sleeper("b", 2, 2.5))
        group.create_task(sleeper("c", 0))
        await manual.wait_sleepers(2)
        await manual.advance(4.5)

    assert [("c", 0), ("b", 2), ("a", 3), ("a", 4), ("b", 4.5)] == woken
    assert dt.datetime(2026, 1, 1, 0, 0, 4, 500_000, tzinfo=dt.UTC) == manual.now()


@pytest.mark.anyio
async def test_a_cancelled_sleeper_does_not_stop_the_others():
    manual = clock.ManualClock()
    async with asyncio.TaskGroup() as group:
        gone = group.create_task(manual.sleep(1))
        stays = group.create_task(manual.sleep(2))
        await manual.wait_sleepers(2)
        gone.cancel()
        await clock.settle()

        assert 1 == manual.sleepers
        await manual.advance(2)
        await stays
