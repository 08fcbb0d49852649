"""Which ways to other hosts are asked, when, for what size, and what is told of them."""

from __future__ import annotations

from ipaddress import ip_interface

import msgspec
import pytest
from netweft_agent.domain.resources import Link
from netweft_agent.engine.journal import Position
from netweft_agent.engine.paths import NarrowPath, PathWatch

from tests.support.agent import FACTS, Rig, endpoint, network, peer, put, sandbox

pytestmark = pytest.mark.anyio

H2, H3 = "2" * 32, "3" * 32


class World:
    """An underlay: what ways carry, its own MTU, the time, and what was asked."""

    def __init__(self, engine):
        self.carries = {}
        self.asked = []
        self.mtu = 1500
        self.now = 0.0
        self.watch = PathWatch(engine, self.measure, lambda: self.mtu, interval_s=600, clock=lambda: self.now)

    def measure(self, local, sizes):
        assert local == FACTS.vtep
        self.asked.append(dict(sizes))
        return {one: size for one, size in self.carries.items() if one in sizes and size < sizes[one]}


@pytest.fixture
async def rig(tmp_path):
    async with Rig(tmp_path) as rig:
        yield rig


def overlay(number=1, **options):
    return network(number, driver="overlay", options=options)


def box(number, vtep, host, net=1):
    return msgspec.structs.replace(peer(number, net, vtep=vtep), host_id=host)


async def bring(rig, revision, *items):
    await rig.engine.apply(put(revision, *items), Position(store_id="s", revision=revision))


async def test_each_host_of_a_network_is_asked_once_and_again_after_the_interval(rig):
    world = World(rig.engine)
    peers = [box(5001, "192.0.2.2", H2), box(5002, "192.0.2.2", H2), box(5003, "192.0.2.3", H3)]
    await bring(rig, 1, overlay(), sandbox(), endpoint(), *peers)

    for world.now in (0, 10, 599, 601):
        await world.watch.look()

    assert [{"192.0.2.2": 1500, "192.0.2.3": 1500}] * 2 == world.asked
    assert () == world.watch.narrow


async def test_a_new_host_is_asked_alone_and_one_that_has_gone_no_more(rig):
    world = World(rig.engine)
    await bring(rig, 1, overlay(), sandbox(), endpoint(), box(5001, "192.0.2.2", H2))
    await world.watch.look()
    await bring(rig, 2, box(5003, "192.0.2.3", H3))
    await world.watch.look()
    await rig.gone(3, box(5001, "192.0.2.2", H2))
    await bring(rig, 4, sandbox(102))
    world.now = 600

    await world.watch.look()

    assert [{"192.0.2.2": 1500}, {"192.0.2.3": 1500}, {"192.0.2.3": 1500}] == world.asked


async def test_a_way_is_narrow_until_it_carries_enough(rig):
    world = World(rig.engine)
    world.carries = {"192.0.2.2": 1400}
    await bring(rig, 1, overlay(), sandbox(), endpoint(), box(5001, "192.0.2.2", H2), box(5003, "192.0.2.3", H3))

    await world.watch.look()
    narrow = world.watch.narrow
    world.carries, world.now = {}, 60
    await world.watch.look()

    assert [{"192.0.2.2": 1500, "192.0.2.3": 1500}, {"192.0.2.2": 1500}] == world.asked
    assert (NarrowPath(host_id=H2, vtep="192.0.2.2", mtu_bytes=1400, needed_bytes=1500),) == narrow
    assert () == world.watch.narrow


async def test_what_is_needed_is_what_the_widest_network_with_the_host_promises(rig):
    world = World(rig.engine)
    world.carries = {"192.0.2.2": 1400}
    small, large = overlay(1, mtu="1300"), overlay(2, mtu="1350")
    other = endpoint(1002, 2, 102, addresses=(ip_interface("10.2.0.9/24"),))
    await bring(rig, 1, small, large, sandbox(), sandbox(102), endpoint(), other)
    await bring(rig, 2, box(5001, "192.0.2.2", H2), box(5002, "192.0.2.2", H2, 2), box(5003, "192.0.2.3", H3))

    await world.watch.look()

    assert [{"192.0.2.2": 1400, "192.0.2.3": 1350}] == world.asked
    assert () == world.watch.narrow


async def test_overlays_follow_the_mtu_of_the_underlay_and_ways_are_asked_for_it(rig):
    world = World(rig.engine)
    told = []
    world.watch.on_mtu = told.append
    await bring(rig, 1, overlay(), sandbox(), endpoint(), box(5001, "192.0.2.2", H2))
    await world.watch.look()

    world.mtu = 1400
    await world.watch.look()

    links = [one for one in rig.kernel.state.values() if isinstance(one, Link) and one.mtu is not None]
    assert {"br0", "vxlan0", "eth0"} <= {one.name for one in links}
    assert {1350} == {one.mtu for one in links}
    assert [1400] == told
    assert [{"192.0.2.2": 1500}, {"192.0.2.2": 1400}] == world.asked


async def test_an_underlay_that_is_away_changes_nothing(rig):
    world = World(rig.engine)
    await bring(rig, 1, overlay(), sandbox(), endpoint())
    count = rig.count()

    world.mtu = None
    await world.watch.look()

    assert (count, 1500) == (rig.count(), rig.engine.facts.underlay_mtu)
