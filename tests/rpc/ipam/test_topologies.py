"""The service over a Cluster, over a pair that sentinels watch, and over replicas that it waits for."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
import redis
from netweft.ipam.v1 import ipam_pb2 as pb
from netweft.ipam.v1 import ipam_pb2_grpc
from netweft_common import client, errors
from netweft_ipam import app
from netweft_ipam.domain.settling import Patience
from netweft_ipam.store import keys
from netweft_ipam.store.connection import Connection
from netweft_ipam.store.redis_store import RedisStore

from tests.support.ipam import Desk, ask, pool_id
from tests.support.ipam_process import IpamProcess
from tests.support.store import StoreServer
from tests.support.topologies import Cluster, Watched

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

POOLS = [f"space{number}/10.{number}.0.0/24" for number in range(8)]


@contextlib.asynccontextmanager
async def opened(url, **options):
    store = RedisStore(Connection.open(url, **options), patience=Patience(least_ms=0))
    try:
        yield store
    finally:
        await store.aclose()


async def patiently(step):
    """Take a step again until the store is there, as a client does."""
    for _ in range(60):
        with contextlib.suppress(errors.Unavailable):
            return await step()
    raise AssertionError("the store does not come back")


async def test_pools_spread_over_a_cluster_and_survive_the_death_of_a_primary():
    with Cluster() as cluster:
        async with opened(cluster.url) as store:
            desk = Desk(store)
            held = {}
            for pool in POOLS:
                await desk.pool(pool)
                await desk.lease(pool, *(ask(f"e{number}", host="h1") for number in range(20)))
                held[pool] = await desk.held(pool)
            before = (await store.renew_host("h1")).store_epoch
            victim = cluster.owner_of(keys.layout("netweft", pool_id(POOLS[0])).key)
            owners = {cluster.owner_of(keys.layout("netweft", pool_id(pool)).key).port for pool in POOLS}
            victim.kill9()

            given = await patiently(lambda: desk.lease(POOLS[0], ask("new")))

            after = (await patiently(lambda: store.renew_host("h1"))).store_epoch
            found = {pool: await desk.held(pool) for pool in POOLS}
            listed = [str(pool.id) for pool in (await store.list_pools(space="", start=None, limit=100)).pools]

    assert 1 < len(owners)
    assert ["10.0.0.21"] == given
    assert before != after
    assert held | {POOLS[0]: held[POOLS[0]] | {"10.0.0.21": "new"}} == found
    assert POOLS == listed


async def test_a_replica_that_a_sentinel_promotes_has_the_leases_and_another_epoch():
    with Watched() as watched:
        async with opened(watched.url) as store:
            desk = Desk(store)
            await desk.pool(POOLS[1])
            await desk.lease(POOLS[1], *(ask(f"e{number}", host="h1") for number in range(20)))
            held = await desk.held(POOLS[1])
            before = (await store.renew_host("h1")).store_epoch
            watched.primary.kill9()

            given = await patiently(lambda: desk.lease(POOLS[1], ask("new")))

            after = (await store.renew_host("h1")).store_epoch
            found = await desk.held(POOLS[1])

    assert ["10.1.0.21"] == given
    assert before != after
    assert held | {"10.1.0.21": "new"} == found


@pytest.mark.parametrize("way", ["sentinel", "direct"])
async def test_a_write_that_too_few_replicas_have_is_not_acknowledged(way):
    with Watched() as watched:
        url = watched.url if way == "sentinel" else watched.primary.url
        async with opened(url, replicas=1, replicas_timeout_s=0.3) as store:
            desk = Desk(store)
            await desk.pool(POOLS[1])
            given = await desk.lease(POOLS[1], ask("a"))
            watched.replica.kill9()

            with pytest.raises(errors.Unavailable, match="0 of 1 replicas"):
                await desk.lease(POOLS[1], ask("b"))

            watched.replica.start()
            again = await patiently(lambda: desk.lease(POOLS[1], ask("b")))

    assert (["10.1.0.1"], ["10.1.0.2"]) == (given, again)


async def test_a_primary_that_wants_more_replicas_than_it_has_leases_nothing():
    with StoreServer(options=("--min-replicas-to-write", "1")) as server:
        async with opened(server.url) as store:
            with pytest.raises(errors.Unavailable, match="NOREPLICAS"):
                await Desk(store).pool(POOLS[1])
            with redis.Redis(unix_socket_path=server.socket_path) as told:
                assert [] == told.keys("*")


def test_waiting_for_replicas_of_a_cluster_is_refused_at_start():
    with pytest.raises(errors.InvalidArgument, match="min-replicas-to-write"):
        Connection.open("redis+cluster://127.0.0.1:1", replicas=1)


async def test_what_the_store_lacks_is_named_at_start(tmp_path):
    with StoreServer(options=("--appendonly", "no", "--maxmemory-policy", "allkeys-lru")) as server:
        process = IpamProcess(server.url, tmp_path)
        process.start()
        async with opened(server.url) as store:
            found = await store.weaknesses()
        assert 0 == process.stop()
        log = process.log.read_text()

    assert ["append-only file", "may evict"] == [
        part for part in ("version", "append-only file", "may evict") if any(part in text for text in found)
    ]
    assert 2 == log.count("store weakness")


async def test_an_old_server_is_named(monkeypatch):
    with StoreServer() as server:
        async with opened(server.url) as store:
            link = store._connection._link
            told = link.info

            async def older(section, timeout_s):
                return {
                    name: {**info, "redis_version": "6.2.14"} for name, info in (await told(section, timeout_s)).items()
                }

            monkeypatch.setattr(link, "info", older)
            [found] = await store.weaknesses()

    assert "6.2.14; leases need 7.0" in found


async def test_a_user_of_the_store_needs_what_the_readme_says_and_no_more(tmp_path):
    readme = Path(app.__file__).parents[1].joinpath("README.md").read_text()
    [rights] = re.findall(r"this one needs\n`(~[^`]*)`", readme)
    with StoreServer() as server:
        with redis.Redis(unix_socket_path=server.socket_path) as raw:
            raw.execute_command("ACL", "SETUSER", "ours", "reset", "on", ">secret", *rights.split())
        process = IpamProcess(
            server.url.replace("unix://", "unix://ours:secret@"), tmp_path, "--sweep-interval", "100ms"
        )
        process.start()
        async with client.open_channel(process.target) as channel:
            stub = ipam_pb2_grpc.IpamServiceStub(channel)
            pool = (await stub.RequestPool(pb.RequestPoolRequest(address_space="g", subnet="10.1.0.0/24"))).pool.id
            items = [pb.AddressRequest(pool_id=pool, owner=pb.Owner(key=key, host_id="h")) for key in ("a", "b")]
            leased = await stub.RequestAddresses(pb.RequestAddressesRequest(items=items))
            one = await stub.RequestAddresses(pb.RequestAddressesRequest(items=items[:1]))
            renewed = await stub.RenewLeases(pb.RenewLeasesRequest(host_id="h"))
            listed = await stub.ListLeases(pb.ListLeasesRequest(pool_id=pool))
            events = await stub.ListLeaseEvents(pb.ListLeaseEventsRequest(pool_id=pool))
            backs = [pb.AddressRelease(pool_id=pool, address=f"10.1.0.{last}") for last in (1, 2)]
            await stub.ReleaseAddresses(pb.ReleaseAddressesRequest(items=backs))
            await stub.ReleasePool(pb.ReleasePoolRequest(pool_id=pool))
        assert 0 == process.stop()

    assert [result.lease for result in leased.results] == list(listed.leases)
    assert list(leased.results)[:1] == list(one.results)
    assert (2, 2) == (renewed.renewed, len(events.events))
    assert "warning" not in process.log.read_text()
