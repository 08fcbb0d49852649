"""Works `ipam-fill16`, `ipam-one`, `ipam-concurrent`, `ipam-churn`: the address service alone, over gRPC, durably.

Store, service and client are three processes. The store syncs each write to disk (`appendfsync always`); a row of
`ipam-fill16` says what `everysec` gives, and others how the last tenth compares with the first, what the store keeps
for a lease, and what it takes to read all leases of a full /16.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import redis
from netweft.ipam.v1 import ipam_pb2 as pb
from netweft.ipam.v1 import ipam_pb2_grpc
from netweft_common import client

from tests.bench import figures
from tests.support.store import StoreServer

WORKS = ("ipam-fill16", "ipam-one", "ipam-concurrent", "ipam-churn")
BATCH = 256
IN_FLIGHT = 4
FILLS = 3
ADDRESSES = 65_533  # a /16 less its ends and a gateway
ONES = 1000
CLIENTS = 32
ONES_A_CLIENT = 60
CHURN_POOL = 1022
CHURN_ROUNDS = 1000
PEER_CALLS = 40
HOST_LOCAL = Path("/usr/lib/cni/host-local")

Table = dict[str, dict[str, dict[str, float]]]
if TYPE_CHECKING:  # known to the stubs' types alone
    Stub = ipam_pb2_grpc.IpamServiceAsyncStub


def run(works: set[str]) -> Table:
    """Time the works asked for, with floor and peer in the same run."""
    table: Table = {}
    if "ipam-fill16" in works:
        table["ipam-fill16"] = {}
        for fsync, who in (("always", "ours"), ("everysec", "ours, everysec")):
            with _service(fsync) as (target, server):
                table["ipam-fill16"] |= asyncio.run(_wait(_fill(target, server, who)))
    measured: dict[str, Callable[[str, StoreServer], Awaitable[dict[str, dict[str, float]]]]] = {
        "ipam-one": _one,
        "ipam-concurrent": _concurrent,
        "ipam-churn": _churn,
    }
    for work, measure in measured.items():
        if work in works:
            with _service("always") as (target, server):
                table[work] = asyncio.run(_wait(measure(target, server)))
    if "ipam-one" in works and HOST_LOCAL.exists():
        table["ipam-one"]["cni host-local"] = figures.of(_host_local(PEER_CALLS)).as_json()
    return table


async def _wait(measured: Awaitable[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    rows = await measured
    # grpc's poller has something to say after the last channel was closed, and says it to this loop.
    await asyncio.sleep(0.1)
    return rows


async def _fill(target: str, server: StoreServer, who: str) -> dict[str, dict[str, float]]:
    """Fill some /16 one after the other; each figure is the median of the fills."""
    async with client.Connection(target) as connection:
        stub = _over_stream(connection)
        with redis.Redis(unix_socket_path=server.socket_path) as raw:
            before = raw.info("memory")["used_memory"]
            fills = [await _fill_one(connection, stub, f"10.{number}.0.0/16") for number in range(FILLS)]
            kept = (raw.info("memory")["used_memory"] - before) / FILLS
        rows = {
            who: figures.of([took for fill in fills for took in fill.took_ms]).as_json()
            | {"per_second": round(statistics.median(ADDRESSES / fill.spent_s for fill in fills))},
            f"{who}: last tenth": {"times_the_first": round(statistics.median(fill.slowdown for fill in fills), 2)},
        }
        if who == "ours":
            rows["store"] = {"bytes_a_lease": round(kept / ADDRESSES, 1)}
            pool = fills[0].pool
            rows["list all, by pages"] = figures.of([await _list(stub, pool) for _ in range(5)]).as_json()
            rows["sum up the pool"] = figures.of([await _sum(stub, pool) for _ in range(20)]).as_json()
    return rows


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Fill:
    """One /16 filled: milliseconds a lease of each batch, and how much slower the last tenth was than the first."""

    pool: str
    took_ms: list[float]
    spent_s: float
    slowdown: float


async def _fill_one(connection: client.Connection, stub: Stub, subnet: str) -> _Fill:
    pool = await _pool(stub, subnet)
    await stub.RequestAddresses(_asks(pool, ["gateway"]))
    keys = [f"endpoint/{number:032x}" for number in range(ADDRESSES)]
    # Made beforehand: it is the service that is timed, and its callers have their own processors.
    requests = iter([_asks(pool, keys[at : at + BATCH]) for at in range(0, ADDRESSES, BATCH)])
    ends: list[float] = []
    took: list[float] = []

    async def work() -> None:
        for request in requests:
            start = time.perf_counter()
            answer = await connection.call(stub.RequestAddresses, request)
            ends.append(time.perf_counter())
            took.append((ends[-1] - start) * 1e3 / len(request.items))
            answers.append(answer)

    answers: list[pb.RequestAddressesResponse] = []
    start = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
    spent = ends[-1] - start
    given = {result.lease.address for answer in answers for result in answer.results}
    assert len(given) == ADDRESSES, len(given)
    tenth = len(ends) // 10
    slowdown = (ends[-1] - ends[-1 - tenth]) / (ends[tenth] - ends[0])
    return _Fill(pool=pool, took_ms=took, spent_s=spent, slowdown=slowdown)


async def _list(stub: Stub, pool: str) -> float:
    start = time.perf_counter()
    seen, token = 0, ""
    while True:
        page = await stub.ListLeases(pb.ListLeasesRequest(pool_id=pool, page_size=4096, page_token=token))
        seen += len(page.leases)
        token = page.next_page_token
        if not token:
            assert seen == ADDRESSES + 1, seen
            return (time.perf_counter() - start) * 1e3


async def _sum(stub: Stub, pool: str) -> float:
    start = time.perf_counter()
    use = (await stub.GetPool(pb.GetPoolRequest(pool_id=pool))).pool.use
    assert use.leased == ADDRESSES + 1, use
    return (time.perf_counter() - start) * 1e3


async def _one(target: str, server: StoreServer) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    nothing = pb.GetDefaultAddressSpacesRequest()
    async with client.Connection(target) as streamed, client.Connection(target) as plain:
        stub = _over_stream(streamed)
        pool = await _pool(stub, "10.1.0.0/16")
        with redis.Redis(unix_socket_path=server.socket_path) as raw:
            for who, connection in (("ours", streamed), ("ours, without the stream", plain)):
                method = ipam_pb2_grpc.IpamServiceStub(connection.channel).RequestAddresses
                took = []
                for number in range(ONES):
                    request = _asks(pool, [f"{who}/{number:032x}"], request_id=f"r{len(rows)}-{number}")
                    start = time.perf_counter()
                    answer = await connection.call(method, request)
                    took.append((time.perf_counter() - start) * 1e3)
                    assert answer.results[0].lease.address, answer
                rows[who] = figures.of(took).as_json()
            floor = []
            for number in range(200):
                start = time.perf_counter()
                await stub.GetDefaultAddressSpaces(nothing)
                raw.set("floor", number)
                floor.append((time.perf_counter() - start) * 1e3)
    # A unary call that does nothing, and one write synced to disk.
    return rows | {"floor": figures.of(floor).as_json()}


def _over_stream(connection: client.Connection) -> Stub:
    """Have leases requested and released as our own clients do it; other calls are as ever."""
    stub = ipam_pb2_grpc.IpamServiceStub(connection.channel)
    connection.over_stream(
        stub.AddressStream, pb.AddressStreamRequest, request=stub.RequestAddresses, release=stub.ReleaseAddresses
    )
    return stub


async def _concurrent(target: str, server: StoreServer) -> dict[str, dict[str, float]]:
    took: list[float] = []
    async with contextlib.AsyncExitStack() as stack:
        stubs = [await stack.enter_async_context(_connected(target)) for _ in range(CLIENTS)]
        pool = await _pool(stubs[0], "10.1.0.0/16")

        async def work(number: int, stub: Stub) -> None:
            for count in range(ONES_A_CLIENT):
                request = _asks(pool, [f"endpoint/{number}-{count:032x}"], request_id=f"r{number}-{count}")
                start = time.perf_counter()
                answer = await stub.RequestAddresses(request)
                took.append((time.perf_counter() - start) * 1e3)
                assert answer.results[0].lease.address, answer

        start = time.perf_counter()
        await asyncio.gather(*itertools.starmap(work, enumerate(stubs)))
        spent = time.perf_counter() - start
    return {"ours": figures.of(took).as_json() | {"per_second": round(len(took) / spent)}}


async def _churn(target: str, server: StoreServer) -> dict[str, dict[str, float]]:
    """Give one of 920 of 1,022 addresses back, and take another; the quarantine is the default's."""
    chance = random.Random(5)
    async with _connected(target) as stub:
        pool = await _pool(stub, "10.1.0.0/22")
        keys = [f"endpoint/{number:032x}" for number in range(CHURN_POOL * 9 // 10)]
        answer = await stub.RequestAddresses(_asks(pool, keys))
        held = {result.lease.owner.key: result.lease.address for result in answer.results}
        requests, releases = [], []
        for number in range(CHURN_ROUNDS):
            key = chance.choice(list(held))
            back = pb.AddressRelease(pool_id=pool, address=held.pop(key).partition("/")[0], owner_key=key)
            start = time.perf_counter()
            await stub.ReleaseAddresses(pb.ReleaseAddressesRequest(items=[back]))
            releases.append((time.perf_counter() - start) * 1e3)
            start = time.perf_counter()
            answer = await stub.RequestAddresses(_asks(pool, [f"churn/{number:032x}"]))
            requests.append((time.perf_counter() - start) * 1e3)
            lease = answer.results[0].lease
            if lease.address:
                held[lease.owner.key] = lease.address
            elif not held:
                break
    return {"ours": figures.of(requests).as_json(), "ours, release": figures.of(releases).as_json()}


def _asks(pool: str, keys: Sequence[str], *, request_id: str = "") -> pb.RequestAddressesRequest:
    return pb.RequestAddressesRequest(
        request_id=request_id,
        items=[
            pb.AddressRequest(pool_id=pool, owner=pb.Owner(key=key, host_id=f"host-{number % 50}"))
            for number, key in enumerate(keys)
        ],
    )


async def _pool(stub: Stub, subnet: str) -> str:
    return (await stub.RequestPool(pb.RequestPoolRequest(address_space="bench", subnet=subnet))).pool.id


@contextlib.asynccontextmanager
async def _connected(target: str) -> AsyncIterator[Stub]:
    async with client.open_channel(target) as channel:
        yield ipam_pb2_grpc.IpamServiceStub(channel)


@contextlib.contextmanager
def _service(fsync: str, *options: str) -> Iterator[tuple[str, StoreServer]]:
    """Start a store and the service over it."""
    with StoreServer(appendfsync=fsync) as server, tempfile.TemporaryDirectory(prefix="netweft-bench-") as folder:
        target = f"unix:{folder}/ipam.sock"
        ready, write = os.pipe()
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "netweft_ipam.app", "--store-url", server.url, "--listen", target),
                *("--ready-fd", str(write), "--log-level", "warning", *options),
            ],
            pass_fds=[write],
        )
        os.close(write)
        try:
            assert os.read(ready, 4096), "netweft-ipam ended before it was ready"
            yield target, server
        finally:
            os.close(ready)
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=15)


def _host_local(count: int) -> list[float]:
    """Time ADD of CNI's host-local, run as a runtime does; milliseconds."""
    took = []
    with tempfile.TemporaryDirectory() as data:
        ranges = [[{"subnet": "10.88.0.0/16"}]]
        config = {
            "cniVersion": "1.0.0",
            "name": "bench",
            "ipam": {"type": "host-local", "dataDir": data, "ranges": ranges},
        }
        for number in range(count):
            environment = {
                "CNI_COMMAND": "ADD",
                "CNI_CONTAINERID": f"c{number}",
                "CNI_NETNS": "/proc/self/ns/net",
                "CNI_IFNAME": "eth0",
                "CNI_PATH": str(HOST_LOCAL.parent),
            }
            start = time.perf_counter()
            subprocess.run(
                [HOST_LOCAL], input=json.dumps(config), env=environment, text=True, check=True, capture_output=True
            )
            took.append((time.perf_counter() - start) * 1e3)
    return took
