"""The writer thread: in order, never half done, and with time for what is due."""

from __future__ import annotations

import asyncio
import threading

import pytest
from netweft_agent.kernel.thread import Worker

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def worker(anyio_backend):
    made = Worker("test")
    yield made
    await made.close()


async def test_jobs_run_in_order_in_one_thread(worker):
    done: list[tuple[int, int]] = []

    await asyncio.gather(*(worker.call(lambda n=n: done.append((n, threading.get_ident()))) for n in range(100)))

    assert list(range(100)) == [number for number, _ in done]
    assert 1 == len({thread for _, thread in done} - {threading.get_ident()})


async def test_what_a_job_returns_or_raises_reaches_its_caller(worker):
    def fail():
        raise ValueError("no")

    assert 42 == await worker.call(lambda: 42)
    with pytest.raises(ValueError, match="no"):
        await worker.call(fail)
    assert 43 == await worker.call(lambda: 43)


async def test_a_cancelled_caller_does_not_stop_the_job(worker):
    begun, go, done = threading.Event(), threading.Event(), threading.Event()

    def job():
        begun.set()
        go.wait(5)
        done.set()

    task = asyncio.create_task(worker.call(job))
    await asyncio.to_thread(begun.wait, 5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    go.set()

    await worker.call(lambda: None)
    assert done.is_set()


async def test_closing_finishes_what_was_ordered():
    worker, done = Worker("test"), []
    calls = [asyncio.create_task(worker.call(lambda n=n: done.append(n))) for n in range(10)]
    await asyncio.sleep(0)

    await worker.close()
    await asyncio.gather(*calls)
    await worker.close()

    assert list(range(10)) == done
    with pytest.raises(RuntimeError, match="closed"):
        await worker.call(lambda: None)


async def test_idle_is_called_after_each_job_and_again_when_it_is_due():
    calls = threading.Semaphore(0)
    waits = iter([0.001, 0.001, None])

    def idle():
        calls.release()
        return next(waits)

    worker = Worker("test", idle)
    await worker.call(lambda: None)

    for _ in range(3):
        assert await asyncio.to_thread(calls.acquire, timeout=5)
    assert not calls.acquire(blocking=False)
    await worker.close()
