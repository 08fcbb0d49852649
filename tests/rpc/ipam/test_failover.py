"""A failover that loses the last writes: no address gets two owners, and no live host loses one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import socket
import time
from pathlib import Path

import grpc
import pytest
import redis
from netweft.ipam.v1 import ipam_pb2 as pb
from netweft.ipam.v1 import ipam_pb2_grpc
from netweft_common import client
from netweft_ipam import app
from netweft_ipam.domain.settling import Patience
from netweft_ipam.engine.gate import Gate
from netweft_ipam.settings import IpamSettings
from netweft_ipam.store.connection import Connection
from netweft_ipam.store.redis_store import RedisStore

from tests.support.ipam_audit import audit
from tests.support.store import StoreServer

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

REPETITIONS = 20 if os.environ.get("NETWEFT_LONG") == "1" else 3
PREFIX = "failover"


class Pair:
    """A primary and its replica behind one path, which leads to whoever is the primary."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "current.sock"
        self.url = f"unix://{self._path}"
        self.primary, self.replica = self._server(), self._server()
        self.primary.start()
        self._lead()

    def join_stranger(self) -> None:
        """Start an empty server as the next primary: everything will be lost."""
        self.replica = self._server().start()

    def join_replica(self) -> None:
        """Start an empty replica, and wait until it has all that the primary has."""
        self.replica = self._server().start()
        with self.client(self.replica) as told, self.client(self.primary) as asked:
            told.execute_command("REPLICAOF", "127.0.0.1", self.primary.port)
            ends_at = time.monotonic() + 20
            while told.info("replication")["master_link_status"] != "up":
                assert time.monotonic() < ends_at, "the replica does not follow"
                time.sleep(0.01)
            asked.set("marker", 1)
            assert 1 == asked.execute_command("WAIT", 1, 20_000)

    def cut_replication(self) -> None:
        """Promote the replica: what the primary acknowledges from now on will be lost."""
        with self.client(self.replica) as told:
            told.execute_command("REPLICAOF", "NO", "ONE")

    def fail_over(self) -> None:
        """Kill the primary, and lead to the replica."""
        self.primary.kill9()
        self.primary.stop()
        self.primary = self.replica
        self._lead()

    def stop(self) -> None:
        self.primary.stop()
        self.replica.stop()

    @staticmethod
    @contextlib.contextmanager
    def client(server: StoreServer):
        made = redis.Redis(unix_socket_path=server.socket_path)
        try:
            yield made
        finally:
            made.close()

    @staticmethod
    def _server() -> StoreServer:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        return StoreServer(port=port, options=("--bind", "127.0.0.1", "--repl-diskless-sync-delay", "0"))

    def _lead(self) -> None:
        fresh = self._path.with_suffix(".new")
        fresh.symlink_to(self.primary.socket_path)
        fresh.replace(self._path)


class Host:
    """A host as the agent will be one: it keeps what it was given, and reports it when the store epoch changes."""

    def __init__(self, name: str, stub: ipam_pb2_grpc.IpamServiceAsyncStub, world: World) -> None:
        self.name = name
        self.held: dict[str, pb.Lease] = {}
        self.reported = ""
        self.reported_at = 0.0
        self._stub = stub
        self._world = world

    async def live(self) -> None:
        while True:
            with contextlib.suppress(grpc.RpcError):
                answer = await self._stub.RenewLeases(pb.RenewLeasesRequest(host_id=self.name), timeout=2)
                if answer.reassert or answer.store_epoch != self.reported:
                    await self.report(answer.store_epoch)
            await asyncio.sleep(0.05)

    async def report(self, epoch: str) -> None:
        # From here on whoever gets a lease that was asked for earlier must report it before using it.
        self.reported = epoch
        leases = list(self.held.values())
        try:
            answer = await self._stub.ReassertLeases(
                pb.ReassertLeasesRequest(host_id=self.name, store_epoch=epoch, leases=leases), timeout=2
            )
        except grpc.RpcError:
            self.reported = ""
            raise
        self.reported_at = time.monotonic()
        for lease, result in zip(leases, answer.results, strict=True):
            if result.status.code and self.held.get(lease.address) is lease:
                self._world.lost.append((self.name, lease, result.status))

    async def attach(self, pool: str, key: str) -> bool:
        before = self.reported
        wish = pb.AddressRequest(pool_id=pool, owner=pb.Owner(key=key, host_id=self.name))
        answer = await self._stub.RequestAddresses(pb.RequestAddressesRequest(items=[wish]), timeout=2)
        if answer.results[0].status.code:
            return False
        lease = answer.results[0].lease
        while self.reported != before:
            before = self.reported
            if not before:
                await asyncio.sleep(0.01)
                continue
            late = pb.ReassertLeasesRequest(host_id=self.name, store_epoch=before, leases=[lease], more=True)
            taken = await self._stub.ReassertLeases(late, timeout=2)
            if taken.results[0].status.code:
                return False
        self._world.take(self, lease)
        return True

    async def detach(self, address: str) -> None:
        lease = self.held.pop(address)
        item = pb.AddressRelease(pool_id=lease.pool_id, address=address.partition("/")[0], owner_key=lease.owner.key)
        await self._stub.ReleaseAddresses(pb.ReleaseAddressesRequest(items=[item]), timeout=2)


class World:
    """All hosts, and what went wrong."""

    def __init__(self, stub: ipam_pb2_grpc.IpamServiceAsyncStub) -> None:
        self.hosts = [Host(f"host-{number}", stub, self) for number in range(4)]
        self.doubled: list[str] = []
        self.lost: list[object] = []
        self.granted_at = 0.0
        self._keys = itertools.count()

    def take(self, host: Host, lease: pb.Lease) -> None:
        if any(lease.address in other.held for other in self.hosts):
            self.doubled.append(lease.address)
        host.held[lease.address] = lease
        self.granted_at = time.monotonic()

    async def load(self, pool: str, chance: random.Random) -> None:
        """Attach and detach for ever, around 200 leases."""
        while True:
            host = chance.choice(self.hosts)
            held = sum(len(each.held) for each in self.hosts)
            try:
                if host.held and chance.random() < held / 400:
                    await host.detach(chance.choice(list(host.held)))
                else:
                    await host.attach(pool, f"endpoint-{next(self._keys)}")
            except grpc.RpcError:
                await asyncio.sleep(0.01)


@pytest.fixture
def pair(tmp_path):
    made = Pair(tmp_path)
    yield made
    made.stop()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("lost", ["the last writes", "everything"])
async def test_a_failover_that_loses_writes_doubles_no_address_and_loses_none_of_a_live_host(pair, tmp_path, lost):
    chance = random.Random(7)
    chosen = IpamSettings(listen=(f"unix:{tmp_path}/ipam.sock",))
    store = RedisStore(
        Connection.open(pair.url),
        prefix=PREFIX,
        quarantine_ms=50,
        patience=Patience(live_ms=5000, least_ms=300, most_ms=4000),
    )
    async with app.build_server(chosen, store) as server, client.open_channel(server.targets[0]) as channel:
        stub = ipam_pb2_grpc.IpamServiceStub(channel)
        pool = (await stub.RequestPool(pb.RequestPoolRequest(address_space="a", subnet="10.1.0.0/23"))).pool.id
        world = World(stub)
        tasks = [asyncio.create_task(host.live()) for host in world.hosts]
        tasks += [asyncio.create_task(app.observe_for_ever(store, Gate(store)))]
        tasks += [asyncio.create_task(world.load(pool, random.Random(worker))) for worker in range(4)]
        try:
            for _ in range(REPETITIONS):
                await asyncio.to_thread(pair.join_replica if lost == "the last writes" else pair.join_stranger)
                while sum(len(host.held) for host in world.hosts) < 200:  # progress, not time
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(pair.cut_replication)
                await asyncio.sleep(chance.uniform(0.01, 0.3))  # the writes of this time are lost
                failed_at = time.monotonic()
                await asyncio.to_thread(pair.fail_over)
                async with asyncio.timeout(20):
                    while world.granted_at < failed_at or any(
                        host.reported_at < failed_at for host in world.hosts
                    ):  # the same
                        await asyncio.sleep(0.01)
                last_report = max(host.reported_at for host in world.hosts)
                assert world.granted_at - last_report < 5
                assert [] == world.doubled
                assert [] == world.lost
        finally:
            for task in tasks:
                task.cancel()
            async with asyncio.timeout(30):
                await asyncio.gather(*tasks, return_exceptions=True)
        listed = await stub.ListLeases(pb.ListLeasesRequest(pool_id=pool, page_size=4096))
    await store.aclose()

    stored = {lease.address: lease.owner.key for lease in listed.leases}
    held = {lease.address: lease.owner.key for host in world.hosts for lease in host.held.values()}
    assert held.items() <= stored.items()
    with pair.client(pair.primary) as raw:
        assert [] == audit(raw, PREFIX)


async def test_a_pool_gives_nothing_out_until_live_hosts_have_reported_or_timed_out(server, tmp_path):
    store_server = StoreServer(appendfsync="always")
    with store_server:
        patience = Patience(live_ms=60_000, least_ms=0, most_ms=60_000)
        store = RedisStore(Connection.open(store_server.url), patience=patience)
        chosen = IpamSettings(listen=(f"unix:{tmp_path}/ipam.sock",))
        async with app.build_server(chosen, store) as running, client.open_channel(running.targets[0]) as channel:
            stub = ipam_pb2_grpc.IpamServiceStub(channel)
            pool = (await stub.RequestPool(pb.RequestPoolRequest(address_space="a", subnet="10.1.0.0/24"))).pool.id
            wish = pb.RequestAddressesRequest(items=[pb.AddressRequest(pool_id=pool, owner=pb.Owner(key="e"))])
            for name in ("h1", "h2"):
                epoch = (await stub.RenewLeases(pb.RenewLeasesRequest(host_id=name))).store_epoch
                await stub.ReassertLeases(pb.ReassertLeasesRequest(host_id=name, store_epoch=epoch))
            store_server.restart()

            outcomes = []
            for name in ("", "h1", "h2"):
                if name:
                    epoch = (await stub.RenewLeases(pb.RenewLeasesRequest(host_id=name))).store_epoch
                    await stub.ReassertLeases(pb.ReassertLeasesRequest(host_id=name, store_epoch=epoch))
                try:
                    outcomes.append((await stub.RequestAddresses(wish)).results[0].lease.address)
                except grpc.RpcError as error:
                    outcomes.append(error.details())
        await store.aclose()

    assert "hosts h1, h2 have still to report" in outcomes[0]
    assert "hosts h2 have still to report" in outcomes[1]
    assert "10.1.0.1/24" == outcomes[2]
