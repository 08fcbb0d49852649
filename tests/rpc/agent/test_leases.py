"""A host's word to IPAM: real IPAM over a real store that forgets."""

from __future__ import annotations

import asyncio
import contextlib
from ipaddress import ip_interface, ip_network

import msgspec
import pytest
import redis
from netweft.agent.v1 import agent_pb2, agent_pb2_grpc
from netweft.common.v1 import endpoint_pb2, host_pb2, sandbox_pb2
from netweft.ipam.v1 import ipam_pb2 as pb
from netweft.ipam.v1 import ipam_pb2_grpc
from netweft_agent.domain.objects import Subnet
from netweft_agent.engine.journal import Position
from netweft_agent.rpc import servicer
from netweft_agent.rpc.leases import LeaseKeeper
from netweft_common import client, pace, server, status
from netweft_common.errors import Unavailable
from netweft_ipam import app
from netweft_ipam.domain.settling import Patience
from netweft_ipam.settings import IpamSettings
from netweft_ipam.store.connection import Connection
from netweft_ipam.store.redis_store import RedisStore

from tests.support.agent import endpoint, network, oid, refused, sandbox
from tests.support.store import StoreServer

pytestmark = pytest.mark.anyio

HOST = "a" * 32
POOL = "GlobalDefault/10.1.0.0/24"
LONG = 1 << 22
"""More grants than a pool that is made anew within the same second is behind."""
NETWORK = network(subnets=(Subnet(subnet=ip_network("10.1.0.0/24"), gateway=None, pool_id=POOL),))


@pytest.fixture(scope="module")
def store_server():
    with StoreServer() as started:
        yield started


class World:
    """IPAM, and a keeper for the rig's host, whose clock stands still until it is moved."""

    def __init__(self, rig, store_server, target, connection):
        self.rig = rig
        self.now_s = 100.0
        self.target = target
        self.connection = connection
        self.stub = ipam_pb2_grpc.IpamServiceStub(connection.channel)
        self._server = store_server
        self.keeper = self.keep(connection)

    def keep(self, *connections):
        return LeaseKeeper(connections, self.rig.engine, HOST, interval_s=1, monotonic=lambda: self.now_s)

    async def lease(self, number, host_id=HOST, address="", *, age=0):
        """Lease an address for an endpoint and return that; its epoch is that of a lease `age` grants ago."""
        owner = pb.Owner(key=oid(number), host_id=host_id)
        item = pb.AddressRequest(pool_id=POOL, address=address, owner=owner)
        [result] = (await self.stub.RequestAddresses(pb.RequestAddressesRequest(items=[item]))).results
        assert not result.status.code, result.status
        return endpoint(
            number,
            addresses=(ip_interface(result.lease.address),),
            lease_epochs=(result.lease.epoch - age,),
            interface_name=f"eth{number - 1001}",
        )

    async def claim(self, epoch, key):
        """Have another host report the first address as its own."""
        told = await self.stub.RenewLeases(pb.RenewLeasesRequest(host_id="b" * 32))
        lease = pb.Lease(pool_id=POOL, address="10.1.0.1/24", epoch=epoch, owner=pb.Owner(key=key))
        request = pb.ReassertLeasesRequest(host_id="b" * 32, store_epoch=told.store_epoch, leases=[lease])
        assert [0] == [one.status.code for one in (await self.stub.ReassertLeases(request)).results]

    async def hear(self, hosts):
        """Have so many other hosts speak, all at once: what they say is written together."""
        said = [self.stub.RenewLeases(pb.RenewLeasesRequest(host_id=oid(number))) for number in range(hosts)]
        await asyncio.gather(*said)

    async def make_pool(self):
        await self.stub.RequestPool(pb.RequestPoolRequest(address_space="GlobalDefault", subnet="10.1.0.0/24"))

    async def holders(self):
        """Return address to owner and host of all leases."""
        answer = await self.stub.ListLeases(pb.ListLeasesRequest(pool_id=POOL))
        return {one.address: (one.owner.key, one.owner.host_id) for one in answer.leases}

    async def is_asked(self):
        """Whether IPAM still waits for this host's report."""
        return (await self.stub.RenewLeases(pb.RenewLeasesRequest(host_id=HOST))).reassert

    def forget(self):
        """Have the store come back with nothing, as another server."""
        with contextlib.closing(redis.Redis(unix_socket_path=self._server.socket_path)) as raw:
            raw.flushall()
        self._server.restart()


@pytest.fixture
async def world(rig, tmp_path, store_server, monkeypatch):
    with contextlib.closing(redis.Redis(unix_socket_path=store_server.socket_path)) as raw:
        raw.flushall()
    monkeypatch.setattr(pace, "HEARD_S", 3600.0)  # no turn of the count amid a test of hundreds of hosts
    target = f"unix:{tmp_path}/ipam.sock"
    store = RedisStore(Connection.open(store_server.url), patience=Patience(least_ms=0), quarantine_ms=0)
    async with (
        app.build_server(IpamSettings(listen=(target,)), store),
        client.Connection(target) as connection,
    ):
        made = World(rig, store_server, target, connection)
        await made.make_pool()
        await rig.engine.apply_snapshot([], Position(store_id="s", revision=1))
        yield made
    await store.aclose()


async def test_one_host_of_many_speaks_more_seldom_and_as_before_when_ipam_does_not_answer(world):
    await world.hear(300)
    before = world.keeper.silent_s
    await world.keeper.beat()
    among_many = world.keeper.silent_s
    async with client.Connection(f"{world.target}.none") as nobody:
        keeper = world.keep(nobody)
        keeper.silent_s = among_many
        with pytest.raises(Unavailable):
            await keeper.beat()

    assert (1, 3.01, 1) == (before, among_many, keeper.silent_s)


@pytest.mark.parametrize(("others", "beats", "renewing"), [(0, 11, [0, 5, 10]), (300, 32, [0, 30])])
async def test_now_and_then_a_heartbeat_renews_leases_and_of_many_hosts_more_seldom(world, others, beats, renewing):
    said = []
    call = world.keeper._call

    async def listen(method, request):
        said.append(request)
        return await call(method, request)

    world.keeper._call = listen
    await world.hear(others)
    for _ in range(beats):
        await world.keeper.beat()

    heartbeats = [one for one in said if isinstance(one, pb.RenewLeasesRequest)]
    assert renewing == [place for place, one in enumerate(heartbeats) if not one.alive_only]


async def test_a_host_that_has_still_to_tell_what_it_holds_is_not_silent_for_longer(world, monkeypatch):
    await world.hear(300)
    with monkeypatch.context() as patch:

        async def fails(*args):
            raise Unavailable("STORE_UNAVAILABLE", "the store is away")

        patch.setattr(world.keeper, "_report", fails)
        with pytest.raises(Unavailable):
            await world.keeper.beat()
        untold = world.keeper.silent_s
    await world.keeper.beat()

    assert (1, 3.01) == (untold, world.keeper.silent_s)


async def test_a_host_reports_what_it_holds_and_what_was_lost_is_its_own_again(world):
    await world.keeper.beat()
    one, two = await world.lease(1001), await world.lease(1002)
    await world.rig.put(2, NETWORK, sandbox(), one, two)
    before = await world.holders()

    world.forget()
    await world.keeper.beat()

    assert {"10.1.0.1/24": (one.id, HOST), "10.1.0.2/24": (two.id, HOST)} == before
    assert before == await world.holders()
    assert not await world.is_asked()
    assert {} == world.keeper.lost()


async def test_a_host_that_does_not_know_what_it_is_to_have_has_not_reported(world, tmp_path):
    await world.keeper.beat()
    one = await world.lease(1001)
    old = msgspec.structs.replace(one, lease_epochs=())
    await world.rig.put(2, NETWORK, sandbox(), old)
    world.forget()

    await world.keeper.beat()
    unsure = await world.is_asked()
    await world.rig.put(3, one)
    await world.keeper.beat()

    assert unsure
    assert not await world.is_asked()
    assert {"10.1.0.1/24": (one.id, HOST)} == await world.holders()


async def test_what_the_kernel_never_had_is_not_reported(world):
    await world.keeper.beat()
    one, two = await world.lease(1001), await world.lease(1002)
    await world.rig.put(2, NETWORK, sandbox(), one)
    world.rig.kernel.fail_at = lambda step: refused(step) if step.owner == f"endpoint/{two.id}" else None
    await world.rig.put(3, msgspec.structs.replace(two, confirmed=True))
    world.forget()

    await world.keeper.beat()

    assert two.ref in world.rig.engine.store.objects
    assert {"10.1.0.1/24": (one.id, HOST)} == await world.holders()


async def test_an_address_that_went_to_another_is_told_until_one_of_them_has_let_it_go(world):
    await world.keeper.beat()
    mine, other = await world.lease(1001), endpoint(1009)
    await world.rig.put(2, NETWORK, sandbox(), mine)
    world.forget()
    await world.claim(mine.lease_epochs[0] + 1, other.id)

    await world.keeper.beat()
    lost = dict(world.keeper.lost())
    world.rig.engine.take_unreported()
    item = pb.AddressRelease(pool_id=POOL, address="10.1.0.1", owner_key=other.id)
    await world.stub.ReleaseAddresses(pb.ReleaseAddressesRequest(items=[item]))
    await world.keeper.beat()

    assert [mine.ref] == list(lost)
    assert "LEASE_LOST" == lost[mine.ref].reason
    assert mine.id in lost[mine.ref].message
    assert other.id in lost[mine.ref].message
    assert other.id == lost[mine.ref].metadata["holder"]
    assert {} == world.keeper.lost()
    assert [mine.ref] == [one.ref for one in world.rig.engine.take_unreported()]
    assert {"10.1.0.1/24": (mine.id, HOST)} == await world.holders()


async def test_of_two_hosts_with_one_address_the_one_who_was_first_is_told_too(world):
    await world.keeper.beat()
    mine = await world.lease(1001)
    await world.rig.put(2, NETWORK, sandbox(), mine)
    world.forget()
    await world.keeper.beat()
    await world.claim(mine.lease_epochs[0] + 1, "later")

    await world.keeper.beat()
    at_once = dict(world.keeper.lost())
    world.now_s += 10
    await world.keeper.beat()

    assert {} == at_once
    assert [mine.ref] == list(world.keeper.lost())


@pytest.fixture
async def agent(world, tmp_path):
    """Yield what calls Apply on an agent that asks the keeper."""
    target = f"unix:{tmp_path}/agent.sock"
    made = server.Server(listen_at=[target])
    serves = servicer.AgentServicer(world.rig.engine, HOST, host_pb2.HostFacts(), world.keeper)
    made.add(agent_pb2_grpc.add_AgentServiceServicer_to_server, serves)
    async with made, client.Connection(target) as connection:
        stub = agent_pb2_grpc.AgentServiceStub(connection.channel)

        async def apply(*changes):
            answer = await connection.call(stub.Apply, agent_pb2.ApplyRequest(changes=changes, store_id="s"))
            return [status.from_item_status(one.status) for one in answer.statuses]

        yield apply


def change(revision, made):
    message = endpoint_pb2.Endpoint(
        id=made.id,
        name=made.name,
        network_id=made.network_id,
        sandbox_id=made.sandbox_id,
        addresses=[str(one) for one in made.addresses],
        lease_epochs=made.lease_epochs,
        revision=revision,
    )
    return agent_pb2.Change(revision=revision, endpoint=message)


async def test_after_a_loss_an_endpoint_that_comes_with_an_address_of_anothers_is_refused_and_the_others_are_not(
    world, agent
):
    await world.keeper.beat()
    await world.rig.put(2, NETWORK, sandbox())
    late, fine = await world.lease(1001, age=LONG), await world.lease(1002)
    world.forget()
    await world.keeper.beat()
    await world.make_pool()
    other = await world.lease(1009, "b" * 32, "10.1.0.1")

    box = agent_pb2.Change(revision=4, sandbox=sandbox_pb2.Sandbox(id=oid(102)))
    outcomes = await agent(box, change(4, late), change(4, fine))

    assert ["", "LEASE_LOST", ""] == [getattr(one, "reason", "") for one in outcomes]
    assert "CONFLICT" == type(outcomes[1]).__name__.upper()
    assert {fine.id} == {one.id for one in world.rig.engine.store.endpoints_of_network(NETWORK.id)}
    assert {"10.1.0.1/24": (other.id, "b" * 32), "10.1.0.2/24": (fine.id, HOST)} == await world.holders()


async def test_after_a_loss_no_new_endpoint_comes_while_ipam_is_away_and_as_ever_when_the_watch_is_over(world, agent):
    await world.keeper.beat()
    await world.rig.put(2, NETWORK, sandbox())
    one, two = await world.lease(1001), await world.lease(1002)
    world.forget()
    await world.keeper.beat()
    world._server.kill9()

    watched = await agent(change(4, one))
    world.now_s += 120
    later = await agent(change(5, one), change(5, two))
    world._server.restart()

    assert ["LEASE_UNCHECKED"] == [one.reason for one in watched]
    assert [None, None] == later


async def test_a_replica_of_ipam_that_does_not_answer_is_passed_over(world, tmp_path):
    async with client.Connection(f"unix:{tmp_path}/nobody.sock") as nobody:
        keeper = world.keep(nobody, world.connection)

        await keeper.beat()

    assert not await world.is_asked()
