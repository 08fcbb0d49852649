"""Heartbeats of many hosts are written together, and each host is told its own."""

from __future__ import annotations

import asyncio

import pytest
from netweft_common import errors
from netweft_ipam.store.beats import Beats

pytestmark = pytest.mark.anyio


class Book:
    """Keeps what was written, and answers when it is let."""

    def __init__(self):
        self.written = []
        self.go = asyncio.Event()
        self.go.set()
        self.fails = []

    async def write(self, silent_ms):
        self.written.append(dict(silent_ms))
        await self.go.wait()
        if self.fails:
            raise self.fails.pop()
        return {host_id: f"{host_id}:{ms}" for host_id, ms in silent_ms.items()}


@pytest.fixture
async def book(anyio_backend):
    return Book()


async def test_one_alone_is_written_at_once(book):
    beats = Beats(book.write, spacing_s=3600)

    assert "h1:5" == await beats.add("h1", 5)

    assert [{"h1": 5}] == book.written


async def test_those_that_come_at_once_are_one_write(book):
    beats = Beats(book.write, spacing_s=0.01)

    answers = await asyncio.gather(*(beats.add(f"h{number}", number) for number in range(1000)))

    assert [f"h{number}:{number}" for number in range(1000)] == answers
    assert [1000] == [len(one) for one in book.written]


async def test_what_comes_during_a_write_is_the_next_one(book):
    beats = Beats(book.write, spacing_s=0)
    book.go.clear()
    first = asyncio.create_task(beats.add("h1", 1))
    while not book.written:
        await asyncio.sleep(0)
    others = [asyncio.create_task(beats.add(host, 2)) for host in ("h1", "h2")]
    book.go.set()

    assert ["h1:1", "h1:2", "h2:2"] == await asyncio.gather(first, *others)
    assert [{"h1": 1}, {"h1": 2, "h2": 2}] == book.written


async def test_a_host_that_speaks_twice_in_a_write_has_the_longer_time(book):
    beats = Beats(book.write, spacing_s=0.01)

    assert ["h1:9", "h1:9"] == await asyncio.gather(beats.add("h1", 9), beats.add("h1", 4))


async def test_a_write_that_fails_does_so_for_its_own_callers_only(book):
    beats = Beats(book.write, spacing_s=0)
    book.fails.append(errors.Unavailable("STORE_UNAVAILABLE", "away"))

    failed = await asyncio.gather(beats.add("h1", 1), beats.add("h2", 1), return_exceptions=True)

    assert ["STORE_UNAVAILABLE"] * 2 == [one.reason for one in failed]
    assert "h1:1" == await beats.add("h1", 1)


async def test_a_caller_who_gives_up_takes_nothing_from_the_others(book):
    beats = Beats(book.write, spacing_s=0)
    book.go.clear()
    impatient = asyncio.create_task(beats.add("h1", 1))
    patient = asyncio.create_task(beats.add("h2", 1))
    while not book.written:
        await asyncio.sleep(0)
    impatient.cancel()
    book.go.set()

    assert "h2:1" == await patient
    assert [True] == [
        isinstance(one, asyncio.CancelledError) for one in await asyncio.gather(impatient, return_exceptions=True)
    ]
