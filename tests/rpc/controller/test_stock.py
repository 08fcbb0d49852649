"""Addresses leased ahead: who attaches one by one does not wait for IPAM, and nothing of it stays behind."""

from __future__ import annotations

import asyncio

import pytest
from netweft.common.v1 import network_pb2 as common_network_pb2
from netweft.controller.v1 import network_pb2
from netweft.ipam.v1 import ipam_pb2
from netweft_common import errors
from netweft_controller.domain import commits, tombs
from netweft_controller.domain import stock as rules
from netweft_controller.domain.objects import Network, Scope, Subnet

pytestmark = pytest.mark.anyio
LEVEL = 8


@pytest.fixture
async def face(world):
    face = await world.start_controller(lease_ahead=LEVEL)
    await world.add_host(face, "h1", 1)
    return face


async def one_by_one(face, make_item, names, *, network="front", host="h1"):
    """Attach one after the other, each when what is to be leased ahead for it has been."""
    results = []
    for name in names:
        results += await face.attach(make_item(network=network, name=name, container=name, host=host))
        await filled(face)
    return results


async def filled(face):
    """Wait until the stock has done what it was woken for."""
    stock = face.controller.stock
    async with asyncio.timeout(10):
        while stock._wake.is_set() or stock.busy:
            await asyncio.sleep(0.001)


async def grow_old(face):
    """Let what is held be older than it may be."""
    stock = face.controller.stock
    now_s = stock._monotonic() + rules.MAX_AGE_S
    stock._monotonic = lambda: now_s
    stock._wake.set()
    await filled(face)


def owners(world):
    """Return the owner of each lease of an endpoint."""
    held = [lease for leases in world.ipam.leases.values() for lease in leases.values()]
    return sorted(lease.owner.key for lease in held if lease.owner.kind == ipam_pb2.OWNER_KIND_ENDPOINT)


def owners_ahead(world, face):
    """Return the owners of leases that have no endpoint."""
    return set(owners(world)) - set(face.state.endpoints)


def assert_leases_are_those_of_the_records(world, *faces):
    for face in faces:
        assert sorted(face.state.endpoints) == owners(world)


async def test_who_attaches_one_by_one_asks_ipam_less_than_once_an_endpoint(world, face, make_item):
    await face.network()

    results = await one_by_one(face, make_item, [f"e{n}" for n in range(30)])

    assert [0] * 30 == [result.status.code for result in results]
    assert 30 == len({address for result in results for address in result.endpoint.addresses})
    # One for the gateway, some until it is known to be worth it, then one for several.
    assert world.ipam.calls["RequestAddresses"] < 15
    await grow_old(face)
    assert_leases_are_those_of_the_records(world, face)


async def test_addresses_are_given_in_the_pools_order(world, face, make_item):
    await face.network(subnets=[common_network_pb2.Subnet(subnet="10.9.0.0/16")])

    results = await one_by_one(face, make_item, [f"e{n}" for n in range(30)])

    assert [f"10.9.0.{n}/16" for n in range(2, 32)] == [result.endpoint.addresses[0] for result in results]


async def test_what_is_not_used_goes_back_soon(world, face, make_item):
    await face.network()
    await one_by_one(face, make_item, [f"e{n}" for n in range(6)])
    assert face.controller.stock.held > 0

    await grow_old(face)

    assert 0 == face.controller.stock.held
    assert_leases_are_those_of_the_records(world, face)


async def test_what_is_old_is_not_used(world, face, make_item):
    await face.network()
    await one_by_one(face, make_item, [f"e{n}" for n in range(6)])
    ahead = owners_ahead(world, face)
    stock = face.controller.stock
    now_s = stock._monotonic() + rules.MAX_AGE_S
    stock._monotonic = lambda: now_s

    (result,) = await face.attach(make_item(name="late", container="late"))

    assert ahead
    assert result.endpoint.id not in ahead
    await grow_old(face)
    assert_leases_are_those_of_the_records(world, face)


async def test_a_controller_that_ends_gives_back_what_it_holds(world, face, make_item):
    other = await world.start_controller(lease_ahead=LEVEL)
    await face.network()
    await other.controller.replica.reached(face.state.revision)
    await one_by_one(other, make_item, [f"e{n}" for n in range(6)])
    assert other.controller.stock.held > 0
    await other.settled()
    highest = other.state.revision

    await other.stop()

    await face.controller.replica.reached(highest)
    assert_leases_are_those_of_the_records(world, face)


async def test_what_a_killed_controller_held_is_returned_by_another_one(world, face, make_item):
    await face.network()
    await one_by_one(face, make_item, [f"e{n}" for n in range(6)])
    face.controller.stock._shelves.clear()  # it is killed: nobody knows of them any more
    assert len(face.state.endpoints) < len(owners(world))

    other = await world.start_controller(lease_ahead=LEVEL)
    await other.controller.replica.reached(face.state.revision)
    await other.reconcile()

    assert_leases_are_those_of_the_records(world, other)


async def test_an_address_whose_owner_is_buried_is_never_used(world, face, make_item):
    await face.network()
    await one_by_one(face, make_item, [f"e{n}" for n in range(6)])
    ahead = owners_ahead(world, face)
    held = [one for shelf in face.controller.stock._shelves.values() for one in shelf.held]
    tomb = tombs.made(tombs.Stage.GONE, 0, "")
    taken = tuple((tombs.of_lease(one.endpoint_id, lease), tomb) for one in held for lease in one.leases)
    await face.controller.replica.commit(commits.Commit(take=taken))

    results = await one_by_one(face, make_item, [f"f{n}" for n in range(3)])

    assert len(ahead) > 3
    assert [0] * 3 == [result.status.code for result in results]
    assert ahead.isdisjoint(face.state.endpoints)


@pytest.mark.parametrize("retried_by", ["same", "other"])
async def test_a_retry_of_an_attach_with_an_address_leased_ahead_gets_the_first_answer(
    world, face, make_item, retried_by
):
    await face.network()
    await one_by_one(face, make_item, [f"e{n}" for n in range(6)])
    ahead = owners_ahead(world, face)
    (first,) = await face.attach(make_item(container="web"), request_id="r1")
    asked = face if retried_by == "same" else await world.start_controller(lease_ahead=LEVEL)
    await asked.controller.replica.reached(face.state.revision)

    (second,) = await asked.attach(make_item(container="web"), request_id="r1")

    assert first.endpoint.id in ahead
    assert (first.endpoint.id, first.endpoint.addresses) == (second.endpoint.id, second.endpoint.addresses)
    assert 7 == len(face.state.endpoints)
    await grow_old(face)
    assert_leases_are_those_of_the_records(world, face)


async def test_one_request_through_two_controllers_that_both_hold_addresses_attaches_once(world, face, make_item):
    other = await world.start_controller(lease_ahead=LEVEL)
    await face.network()
    await other.controller.replica.reached(face.state.revision)
    await one_by_one(face, make_item, [f"e{n}" for n in range(6)])
    await one_by_one(other, make_item, [f"f{n}" for n in range(6)])

    answers = await asyncio.gather(
        *(one.attach(make_item(container=f"w{n}"), request_id=f"r{n}") for n in range(8) for one in (face, other))
    )

    ids = [answer[0].endpoint.id for answer in answers]
    assert ids[::2] == ids[1::2]
    for one in (face, other):
        await one.settled()
        await grow_old(one)
    highest = max(face.state.revision, other.state.revision)
    for one in (face, other):
        await one.controller.replica.reached(highest)
    assert 20 == len(face.state.endpoints)
    assert_leases_are_those_of_the_records(world, face, other)


async def test_an_attach_that_its_host_refuses_leaves_nothing_of_it(world, face, make_item):
    await face.network()
    await one_by_one(face, make_item, [f"e{n}" for n in range(6)])
    world.agents["h1"].refuse["bad"] = errors.KernelError("ip link add", "nwv-1", 17)

    (result,) = await face.attach(make_item(name="bad", container="bad"))

    assert "bad" not in {record.value.name for record in face.state.endpoints.values()}
    assert 0 != result.status.code
    await grow_old(face)
    assert_leases_are_those_of_the_records(world, face)


async def test_an_attach_that_is_refused_at_the_commit_leaves_nothing_of_it(world, face, make_item):
    await face.network()
    await one_by_one(face, make_item, [f"e{n}" for n in range(6)])

    answers = await asyncio.gather(
        *(face.attach(make_item(name="same", container=f"c{n}"), request_id=f"r{n}") for n in range(2))
    )

    assert [0, 6] == sorted(answer[0].status.code for answer in answers)
    await grow_old(face)
    assert_leases_are_those_of_the_records(world, face)


async def test_a_network_with_addresses_leased_ahead_can_be_removed(world, face, make_item):
    await face.network()
    await one_by_one(face, make_item, [f"e{n}" for n in range(6)])
    await face.detach(*(f"e{n}" for n in range(6)), network="front")
    assert face.controller.stock.held > 0

    await face.networks.DeleteNetwork(network_pb2.DeleteNetworkRequest(network="front"))

    assert {} == face.state.networks
    assert [] == owners(world)


@pytest.mark.parametrize(
    ("subnet", "item"),
    [("10.1.0.0/28", {}), ("10.1.0.0/16", {"addresses": ["10.1.7.{n}"]})],
    ids=["of a small pool", "when one is asked for"],
)
async def test_nothing_is_leased_ahead(world, face, make_item, subnet, item):
    await face.network(subnets=[common_network_pb2.Subnet(subnet=subnet)])

    for n in range(2, 10):
        fields = {key: [value.format(n=n) for value in values] for key, values in item.items()}
        await face.attach(make_item(name=f"e{n}", container=f"c{n}", **fields))
        await filled(face)

    assert 0 == face.controller.stock.held
    assert_leases_are_those_of_the_records(world, face)


async def test_nothing_is_leased_ahead_where_the_settings_say_so(world, make_item):
    face = await world.start_controller(lease_ahead=0)
    await world.add_host(face, "h1", 1)
    await face.network()

    await one_by_one(face, make_item, [f"e{n}" for n in range(8)])

    assert 9 == world.ipam.calls["RequestAddresses"]


async def test_an_endpoint_with_two_families_takes_both_ahead(world, face, make_item):
    await face.network(enable_ipv6=True)

    results = await one_by_one(face, make_item, [f"e{n}" for n in range(12)])

    assert [2] * 12 == [len(result.endpoint.addresses) for result in results]
    assert world.ipam.calls["RequestAddresses"] < 9
    await grow_old(face)
    assert sorted([*face.state.endpoints] * 2) == owners(world)


async def test_attaches_go_on_when_ipam_refuses_to_lease_ahead(world, face, make_item, monkeypatch):
    await face.network()
    await one_by_one(face, make_item, [f"e{n}" for n in range(rules.HOT_USES - 1)])
    real = face.controller.ipam.request_addresses

    async def only_single(asks, *, request_id):
        if len(asks) > 1:
            raise errors.Unavailable("STORE_UNAVAILABLE", "not now")
        return await real(asks, request_id=request_id)

    monkeypatch.setattr(face.controller.ipam, "request_addresses", only_single)

    results = await one_by_one(face, make_item, [f"f{n}" for n in range(10)])

    assert [0] * 10 == [result.status.code for result in results]
    assert_leases_are_those_of_the_records(world, face)


@pytest.mark.parametrize(
    ("subnet", "ip_range", "endpoints", "expected"),
    [
        ("10.0.0.0/16", "", 0, 2048),
        ("10.0.0.0/24", "", 0, 8),
        ("10.0.0.0/24", "", 250, 0),
        ("10.0.0.0/16", "10.0.5.0/26", 0, 2),
        ("10.0.0.0/29", "", 0, 0),
        ("10.0.0.0/29", "", 100, 0),
    ],
)
def test_what_is_held_ahead_is_a_small_part_of_what_is_free(subnet, ip_range, endpoints, expected):
    network = Network(
        id="n", name="n", driver="bridge", scope=Scope.LOCAL,
        subnets=(Subnet(subnet=subnet, ip_range=ip_range, pool_id="p"),),
    )  # fmt: skip

    assert expected == rules.room(network, endpoints, ["p"])
