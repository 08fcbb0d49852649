"""The service when its store, or it itself, dies."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import grpc
import pytest
from netweft.ipam.v1 import ipam_pb2 as pb
from netweft.ipam.v1 import ipam_pb2_grpc
from netweft_common import client

from tests.support.ipam_process import IpamProcess
from tests.support.store import StoreServer

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]


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
