"""The service when its store, or it itself, dies."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import time

import grpc
import pytest
import redis
from netweft.ipam.v1 import ipam_pb2 as pb
from netweft.ipam.v1 import ipam_pb2_grpc
from netweft_common import client

from tests.support.ipam_audit import audit_at_rest
from tests.support.ipam_process import IpamProcess
from tests.support.store import StoreServer

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

# A thousand take twenty minutes: NETWEFT_LONG=1.
CRASHES = 1000 if os.environ.get("NETWEFT_LONG") == "1" else 6


@pytest.fixture
def store_server():
    with StoreServer(appendfsync="always") as started:
        yield started


@pytest.fixture
def process(store_server, tmp_path):
    made = IpamProcess(store_server.url, tmp_path)
    made.start()
    yield made
    if made.runs:
        assert 0 == made.stop()


@pytest.fixture
async def stub(process):
    async with client.open_channel(process.target) as channel:
        yield ipam_pb2_grpc.IpamServiceStub(channel)


def wish(pool: str, key: str) -> pb.RequestAddressesRequest:
    return pb.RequestAddressesRequest(items=[pb.AddressRequest(pool_id=pool, owner=pb.Owner(key=key))])


async def test_without_the_store_it_says_unavailable_in_time_and_recovers_by_itself(stub, store_server):
    pool = (await stub.RequestPool(pb.RequestPoolRequest(address_space="a", subnet="10.1.0.0/24"))).pool.id
    before = await stub.RequestAddresses(wish(pool, "a"))
    store_server.kill9()

    started = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        await stub.RequestAddresses(wish(pool, "b"), timeout=3)
    took_s = time.monotonic() - started
    store_server.restart()
    after = await stub.RequestAddresses(wish(pool, "a"))

    assert grpc.StatusCode.UNAVAILABLE is caught.value.code()
    assert took_s < 3
    assert before == after


async def test_a_store_that_hangs_is_unavailable_within_the_deadline(stub, store_server):
    pool = (await stub.RequestPool(pb.RequestPoolRequest(address_space="a", subnet="10.1.0.0/24"))).pool.id
    os.kill(store_server.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            await stub.RequestAddresses(wish(pool, "b"), timeout=1)
        took_s = time.monotonic() - started
    finally:
        os.kill(store_server.pid, signal.SIGCONT)

    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert took_s < 1.5
    assert 0 == (await stub.RequestAddresses(wish(pool, "b"))).results[0].status.code


async def test_what_was_acknowledged_outlives_kill_9_of_service_and_store(process, store_server):
    leased: dict[str, str] = {}
    pool = ""
    for round_ in range(3):
        async with client.open_channel(process.target) as channel:
            stub = ipam_pb2_grpc.IpamServiceStub(channel)
            if not pool:
                pool = (await stub.RequestPool(pb.RequestPoolRequest(address_space="a", subnet="10.1.0.0/20"))).pool.id

            async def keep_leasing(worker: int, stub=stub, round_=round_, pool=pool) -> None:
                for number in range(10_000):
                    key = f"{round_}-{worker}-{number}"
                    try:
                        answer = await stub.RequestAddresses(wish(pool, key), timeout=2)
                    except grpc.RpcError:
                        return
                    assert key not in leased
                    leased[key] = answer.results[0].lease.address

            async with asyncio.TaskGroup() as group:
                for worker in range(4):
                    group.create_task(keep_leasing(worker))
                while len(leased) < 50 * (round_ + 1):  # progress, not time
                    await asyncio.sleep(0.001)
                (process.kill9 if round_ == 1 else store_server.kill9)()
        if round_ == 1:
            process.start()
        else:
            store_server.restart()

    async with client.open_channel(process.target) as channel:
        listed = await ipam_pb2_grpc.IpamServiceStub(channel).ListLeases(
            pb.ListLeasesRequest(pool_id=pool, page_size=4096)
        )
    held = {lease.owner.key: lease.address for lease in listed.leases}
    assert len(leased) == len(set(leased.values()))
    assert leased.items() <= held.items()
    # What was leased and not acknowledged: at most what was under way, one call a worker and kill.
    assert len(held) - len(leased) <= 12


@pytest.mark.timeout(3000)
async def test_a_kill_of_service_or_store_at_any_moment_leaves_pools_and_leases_whole(process, store_server):
    """Pools come and go while leases do: what takes several steps is finished by whoever comes next."""
    chance = random.Random(11)
    over = asyncio.Event()
    held: dict[str, str] = {}
    steps = 0

    async def churn(worker: int) -> None:
        nonlocal steps
        space, pool = f"space-{worker}", ""
        async with client.open_channel(process.target) as channel:
            stub = ipam_pb2_grpc.IpamServiceStub(channel)
            for number in itertools.count():
                if over.is_set():
                    return
                try:
                    if not pool:
                        wanted = pb.RequestPoolRequest(address_space=space, subnet="10.1.0.0/20")
                        pool = (await stub.RequestPool(wanted, timeout=2)).pool.id
                    items = [
                        pb.AddressRequest(pool_id=pool, owner=pb.Owner(key=f"{worker}-{number}-{item}", host_id="h"))
                        for item in range(20)
                    ]
                    answer = await stub.RequestAddresses(pb.RequestAddressesRequest(items=items), timeout=2)
                    refusals = {result.status.message for result in answer.results if result.status.code}
                    if refusals == {f"pool {pool} does not exist; request it first"}:
                        pool = ""  # its release was done, and the answer lost
                        continue
                    assert set() == refusals
                    addresses = [result.lease.address.partition("/")[0] for result in answer.results]
                    assert len(set(addresses)) == len(items), addresses
                    returns = [pb.AddressRelease(pool_id=pool, address=address) for address in addresses]
                    await stub.ReleaseAddresses(pb.ReleaseAddressesRequest(items=returns), timeout=2)
                    await stub.ReleasePool(pb.ReleasePoolRequest(pool_id=pool), timeout=2)
                    pool = ""
                    steps += 1
                except grpc.RpcError as error:
                    pool = await settle(stub, space) if error.code() is not grpc.StatusCode.UNAVAILABLE else pool
                    await asyncio.sleep(0.01)

    async def settle(stub, space: str) -> str:
        """Learn what a lost answer has left: the pool with its leases, which go, or nothing."""
        with contextlib.suppress(grpc.RpcError):
            for pool in (await stub.ListPools(pb.ListPoolsRequest(address_space=space), timeout=2)).pools:
                leases = (await stub.ListLeases(pb.ListLeasesRequest(pool_id=pool.id, page_size=4096))).leases
                items = [
                    pb.AddressRelease(pool_id=pool.id, address=lease.address.partition("/")[0]) for lease in leases
                ]
                if items:
                    await stub.ReleaseAddresses(pb.ReleaseAddressesRequest(items=items), timeout=2)
                return pool.id
        return ""

    async with client.open_channel(process.target) as channel:
        stub = ipam_pb2_grpc.IpamServiceStub(channel)
        kept = (await stub.RequestPool(pb.RequestPoolRequest(address_space="kept", subnet="10.1.0.0/24"))).pool.id
        for number in range(50):
            held[f"kept-{number}"] = (
                (await stub.RequestAddresses(wish(kept, f"kept-{number}"))).results[0].lease.address
            )
    tasks = [asyncio.create_task(churn(worker)) for worker in range(4)]
    try:
        for _ in range(CRASHES):
            await asyncio.sleep(chance.uniform(0.005, 0.05))
            if chance.random() < 0.5:
                await asyncio.to_thread(process.kill9)
                await asyncio.to_thread(process.start)
            else:
                await asyncio.to_thread(store_server.kill9)
                await asyncio.to_thread(store_server.restart)
            with redis.Redis(unix_socket_path=store_server.socket_path) as raw:
                assert [] == await asyncio.to_thread(audit_at_rest, raw, "netweft")
            assert [] == [task.exception() for task in tasks if task.done()]
            before = steps
            while steps == before and not [task for task in tasks if task.done()]:  # it goes on
                await asyncio.sleep(0.005)
    finally:
        over.set()
        async with asyncio.timeout(60):
            ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [None] * 4 == ended

    async with client.open_channel(process.target) as channel:
        stub = ipam_pb2_grpc.IpamServiceStub(channel)
        listed = await stub.ListLeases(pb.ListLeasesRequest(pool_id=kept, page_size=4096))
        left = (await stub.ListPools(pb.ListPoolsRequest(page_size=100))).pools
    assert held == {lease.owner.key: lease.address for lease in listed.leases}
    assert {"kept", *(f"space-{worker}" for worker in range(4))} >= {pool.address_space for pool in left}
