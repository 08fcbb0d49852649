"""The connection to the store: pipelined, undisturbed by cancellation, back after a break."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from netweft_common import errors, resp
from netweft_controller.store import redis as redis_store

pytestmark = pytest.mark.anyio


@pytest.fixture
async def connection(anyio_backend, store_server):
    await store_server.ready()
    client = resp.Client(store_server.url, connect_timeout_s=2)
    yield client
    await client.close()


async def test_answers_come_to_whoever_asked(connection):
    answers = await asyncio.gather(*(connection.execute("ECHO", str(n)) for n in range(500)))

    assert [str(n).encode() for n in range(500)] == answers


async def test_a_refusal_is_the_callers_alone(connection):
    good, bad, after = await asyncio.gather(
        connection.execute("ECHO", "a"),
        connection.execute("NOSUCH"),
        connection.execute("ECHO", "b"),
        return_exceptions=True,
    )

    assert (b"a", b"b") == (good, after)
    assert isinstance(bad, resp.ReplyError)


async def test_a_cancelled_caller_leaves_the_answers_in_order(connection):
    waiting = asyncio.create_task(connection.execute("BLPOP", "no-such-list", 0.05))
    await asyncio.sleep(0)
    later = asyncio.create_task(connection.execute("ECHO", "mine"))
    await asyncio.sleep(0)
    waiting.cancel()

    assert b"mine" == await later
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_task_that_is_cancelled_in_a_blocking_read_ends(store_server):
    await store_server.ready()
    store = redis_store.RedisStore(store_server.url, prefix="cancel")
    await store.open()

    for _ in range(50):
        tail = asyncio.create_task(store.tail(lambda: 0, 5.0))
        await asyncio.sleep(0.001)
        tail.cancel()
        done, _ = await asyncio.wait([tail], timeout=1)
        assert {tail} == done
        assert tail.cancelled()
    await store.close()


async def test_a_server_that_dies_fails_who_waits_and_serves_again_when_it_is_back(killable_server):
    await killable_server.ready()
    client = resp.Client(killable_server.url, connect_timeout_s=2)
    waiting = asyncio.create_task(client.execute("BLPOP", "no-such-list", 30))
    await client.execute("SET", "a", "1")
    killable_server.kill()

    with pytest.raises(resp.LostError):
        await waiting
    with pytest.raises(resp.LostError):
        await client.execute("PING")
    killable_server.start()
    await killable_server.ready()

    assert b"1" == await client.execute("GET", "a")
    await client.close()


async def test_a_silent_server_is_given_up_within_the_stores_time(tmp_path):
    stopped = asyncio.Event()

    async def say_nothing(reader, writer):
        await stopped.wait()
        writer.close()

    path = tmp_path / "s"
    async with await asyncio.start_unix_server(say_nothing, path):
        store = redis_store.RedisStore(f"unix://{path}", timeout_s=0.1)
        async with asyncio.timeout(2):
            with pytest.raises(errors.Unavailable, match="no answer"):
                await store.open()
        await store.close()
        stopped.set()
        await asyncio.sleep(0)


async def test_what_is_no_redis_server_is_given_up(tmp_path):
    async def babble(reader, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    path = tmp_path / "s"
    async with await asyncio.start_unix_server(babble, path):
        client = resp.Client(f"unix://{path}", connect_timeout_s=1)
        with pytest.raises(resp.LostError):
            await client.execute("PING")
        await client.close()


async def test_a_closed_client_stays_closed(connection):
    await connection.execute("PING")
    await connection.close()

    with pytest.raises(resp.LostError):
        await connection.execute("PING")


async def test_it_goes_where_the_cluster_says(store_server, tmp_path):
    """A server that only says MOVED, to a TCP server that answers."""

    async def answer(reader, writer):
        with contextlib.suppress(ConnectionError):
            while await reader.read(1000):
                writer.write(b"+HERE\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as there:
        port = there.sockets[0].getsockname()[1]

        async def refer(reader, writer):
            with contextlib.suppress(ConnectionError):
                while await reader.read(1000):
                    writer.write(b"-MOVED 7 127.0.0.1:%d\r\n" % port)
            writer.close()

        async with await asyncio.start_unix_server(refer, tmp_path / "s"):
            client = resp.Client(f"unix://{tmp_path}/s", connect_timeout_s=1)

            assert b"HERE" == await client.execute("PING")
            assert b"HERE" == await client.execute("PING")
            await client.close()
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://store", resp.Address(host="store")),
        ("redis://store:7000/3", resp.Address(host="store", port=7000, database=3)),
        ("rediss://me:p%40ss@store", resp.Address(host="store", tls=True, username="me", password="p@ss")),
        ("redis://:secret@[::1]:7", resp.Address(host="::1", port=7, password="secret")),
        ("unix:///run/redis.sock?db=2", resp.Address(path="/run/redis.sock", database=2)),
    ],
)
def test_a_url_says_where_and_how(url, address):
    assert address == resp.parse_url(url)


@pytest.mark.parametrize("url", ["", "store", "http://store", "redis://store:x", "redis://store/x"])
def test_a_url_that_says_nothing_is_refused(url):
    with pytest.raises(errors.InvalidArgument, match="store_url"):
        resp.parse_url(url)
