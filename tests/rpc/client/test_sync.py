"""The synchronous client, used from threads and from plain scripts."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import netweft_client
import pytest
from netweft.common.v1 import network_pb2
from netweft.controller.v1 import event_pb2
from netweft_client import errors

pytestmark = pytest.mark.anyio


@pytest.fixture
async def served(fake, target):
    async with fake.serve(target):
        yield target


def opened(target: str, **options) -> netweft_client.Client:
    return netweft_client.Client(target, ipam_target=target, **options)


async def test_calls_and_lists_work_from_a_thread(served):
    def work() -> tuple[str, list[str]]:
        with opened(served) as client:
            return client.create_network("blue").name, [item.name for item in client.list_networks(page_size=2)]

    assert ("blue", [f"net-{n}" for n in range(5)]) == await asyncio.to_thread(work)


async def test_one_client_serves_several_threads(served):
    with opened(served) as client:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(asyncio.to_thread(client.get_network, f"n{n}")) for n in range(20)]

    assert [f"n{n}" for n in range(20)] == [task.result().network.name for task in tasks]


async def test_errors_arrive_as_themselves_and_a_retry_keeps_its_id(fake, served):
    fake.failures["DeleteNetwork"] = [
        errors.Unavailable("STORE_DOWN", "down", retry_after_s=0),
        errors.NotFound("NETWORK_UNKNOWN", "none"),
    ]

    def work() -> str:
        with opened(served) as client, pytest.raises(errors.NotFound) as caught:
            client.delete_network("blue")
        return caught.value.reason

    assert "NETWORK_UNKNOWN" == await asyncio.to_thread(work)
    assert 1 == len({request.request_id for request in fake.asked["DeleteNetwork"]})


async def test_a_watch_is_an_iterator_that_can_be_left(fake, served):
    event = event_pb2.Event(revision=1, network=network_pb2.Network(name="a"))
    fake.feeds = [([event_pb2.WatchResponse(events=[event], revision=1)], None)]

    def work() -> list[str]:
        with opened(served) as client:
            for found in client.watch():
                return [found.object.name]
        return []

    assert ["a"] == await asyncio.to_thread(work)


async def test_close_ends_a_watch_that_waits_in_another_thread(fake, served):
    client = opened(served)
    watching = asyncio.Event()
    loop = asyncio.get_running_loop()
    event = event_pb2.Event(revision=1, network=network_pb2.Network(name="a"))
    fake.feeds = [([event_pb2.WatchResponse(events=[event], revision=1)], None)]

    def wait() -> errors.NetweftError | None:
        try:
            for _ in client.watch():
                loop.call_soon_threadsafe(watching.set)
        except errors.NetweftError as error:
            return error
        return None

    waiter = asyncio.create_task(asyncio.to_thread(wait))
    await watching.wait()
    await asyncio.to_thread(client.close)
    async with asyncio.timeout(10):
        error = await waiter

    assert isinstance(error, errors.Unavailable)
    assert "CONNECTION_CLOSED" == error.reason


async def test_a_closed_client_says_so_and_closes_again(served):
    def work() -> str:
        client = opened(served)
        client.close()
        client.close()
        with pytest.raises(errors.Unavailable) as caught:
            client.get_network("blue")
        return caught.value.reason

    assert "CONNECTION_CLOSED" == await asyncio.to_thread(work)


async def test_methods_keep_their_names_and_texts():
    assert "create_network" == netweft_client.Client.create_network.__name__
    assert netweft_client.AsyncClient.watch.__doc__ == netweft_client.Client.watch.__doc__


async def test_a_plain_script_finds_the_controller_by_the_environment_and_ends_without_close(served):
    script = "import netweft_client\nprint(netweft_client.Client().create_network('blue').name)"
    environ = os.environ | {"NETWEFT_TARGET": served}

    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script],
        env=environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert ("blue\n", "") == (done.stdout, done.stderr)


async def test_every_rpc_of_the_async_client_has_a_sync_face():
    public = {name for name in vars(netweft_client.AsyncClient) if not name.startswith("_")}

    assert set() == public - set(vars(netweft_client.Client))
