"""What neighbours hear of addresses that come: frames on the wire, from the engine through the real kernel.

red 10.1.0.5, fd00:1::5 comes to a network where blue 10.1.0.6, fd00:1::6 listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from ipaddress import ip_interface
from pathlib import Path

import pytest
from netweft_agent.domain.announcement import Announcement
from netweft_agent.engine.engine import Engine
from netweft_agent.engine.journal import Journal

from tests.support import frames
from tests.support.agent import endpoint, errors_of, gone, network, oid, peer, put, sandbox, subnets
from tests.support.lab import new_lab
from tests.support.netns import Netns, require_root, require_tool
from tests.support.packets import udp

pytestmark = [pytest.mark.netns, pytest.mark.anyio]

RED, RED2, BLUE, AWAY = "02:42:00:00:00:05", "02:42:00:00:00:15", "02:42:00:00:00:06", "02:42:00:00:00:09"
A4, A6, B4, B6 = "10.1.0.5", "fd00:1::5", "10.1.0.6", "fd00:1::6"
PATIENCE_S = 30
NMSGS, MS = "com.docker.network.advertise_addr_nmsgs", "com.docker.network.advertise_addr_ms"


@pytest.fixture(autouse=True)
def _needs():
    require_root()
    require_tool("ip")


class Stage:
    """A host with an engine, and blue's ear."""

    def __init__(self, lab, engine):
        self.lab = lab
        self.engine = engine
        self.revision = 0
        self._stack = contextlib.ExitStack()

    async def put(self, *items):
        self.revision += 1
        statuses = await self.engine.apply(put(self.revision, *items))
        assert [] == [str(one.error) for one in statuses if one.error]

    async def gone(self, *items):
        self.revision += 1
        assert {""} == set(errors_of(await self.engine.apply(gone(self.revision, *items))))

    def box(self, number):
        return self._stack.enter_context(
            contextlib.closing(Netns.at(self.lab.kernel.netns_path(f"sandbox/{oid(number)}")))
        )

    def ear(self, number=102):
        """Listen at a sandbox's eth0 to ARP and ICMPv6 that others send."""
        return self._stack.enter_context(contextlib.closing(Ear(self.box(number))))

    def is_silent_of_itself(self):
        """Let the background tell nothing from now on, so that what is heard was told by who made the change."""
        self.lab.kernel._announcer._soon_s = 3600.0

    def close(self):
        self._stack.close()


class Ear:
    """Hears announcements: the frames that are, as a whole, one of those that are listened for."""

    def __init__(self, box):
        self._sock = box.run(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
        self._sock.bind(("eth0", 3))
        self._sock.settimeout(PATIENCE_S)
        self.heard = []

    def until(self, frame, count):
        """Listen until a frame has come so often, and return all that came."""
        while self.heard.count(frame) < count:
            self.heard.append(self._sock.recv(2048))
        return self.heard

    def close(self):
        self._sock.close()


def announced(mac, address):
    """Make the frame that tells of an address: by hand, not as the agent makes it."""
    if ":" in address:
        body = frames.advertisement(address, address, mac)
        return frames.ethernet(mac, frames.IPV6, body, destination="33:33:00:00:00:01")
    return frames.ethernet(mac, frames.ARP, frames.arp(1, mac, address, address))


def marker(count=1, interval_ms=100, address=B4):
    """An announcement by green, who is there for that, to know that what was due before has been told."""
    return Announcement(
        ns=f"sandbox/{oid(103)}", link="eth0", addresses=(address,), count=count, interval_ms=interval_ms
    )


GREEN = endpoint(
    1003, sandbox=103, mac="02:42:00:00:00:07", addresses=(ip_interface("10.1.0.7/24"), ip_interface("fd00:1::7/64"))
)
MARK = announced("02:42:00:00:00:07", "10.1.0.7")


def red(number=1001, mac=RED, sandbox=101, **fields):
    fields.setdefault("addresses", (ip_interface(f"{A4}/24"), ip_interface(f"{A6}/64")))
    return endpoint(number, sandbox=sandbox, mac=mac, **fields)


BLUE_ONE = endpoint(1002, sandbox=102, mac=BLUE, addresses=(ip_interface(f"{B4}/24"), ip_interface(f"{B6}/64")))


def dual(driver="bridge", **options):
    return network(
        driver=driver, subnets=subnets("10.1.0.0/24", "fd00:1::/64"), enable_ipv6=True, options={MS: "100", **options}
    )


@pytest.fixture
async def stage(tmp_path):
    async with new_lab() as lab:
        engine = Engine(kernel=lab.kernel, renderer=lab.renderer, journal=Journal(tmp_path / "journal"))
        await engine.start()
        task = asyncio.create_task(engine.run())
        made = Stage(lab, engine)
        try:
            yield made
        finally:
            made.close()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def mark(stage, ear, count=1):
    """Have green tell something so often, and return all that came to the ear until then."""
    stage.lab.kernel.announce([marker(count, address="10.1.0.7")])
    return await asyncio.to_thread(ear.until, MARK, count)


@pytest.mark.parametrize("driver", ["bridge", "overlay"])
@pytest.mark.parametrize("count", [0, 1, 2, 3])
async def test_neighbours_hear_each_address_as_often_as_the_network_says(stage, driver, count):
    options = {NMSGS: str(count)} if count < 3 else {}  # three is the default
    await stage.put(dual(driver, **options), sandbox(), sandbox(102), sandbox(103), BLUE_ONE, GREEN)
    ear = stage.ear()
    own = [announced(RED, A4), announced(RED, A6)]

    await stage.put(red())
    if count:
        await asyncio.to_thread(ear.until, own[1], count)
    # Once more than an announcement is told, at the same interval and later: a fourth would have come by then.
    heard = await mark(stage, ear, 2)

    assert [count, count] == [heard.count(frame) for frame in own]


async def test_the_ethernet_source_is_the_interface_as_it_is_and_nobody_else_is_announced(stage):
    await stage.put(dual(**{NMSGS: "1"}), sandbox(), sandbox(102), sandbox(103), BLUE_ONE, GREEN)
    ear = stage.ear()

    await stage.put(red())
    await asyncio.to_thread(ear.until, announced(RED, A6), 1)

    arp = [frame for frame in ear.heard if frame[12:14] == b"\x08\x06" and frame[28:32] == frame[38:42]]
    assert [announced(RED, A4)] == [frame for frame in arp if frame[6:12] == frames.mac(RED)]


async def test_an_address_with_another_mac_is_told_of_before_the_attach_is_answered(stage):
    await stage.put(dual(), sandbox(), sandbox(102), sandbox(103), BLUE_ONE, red())
    blue = stage.box(102)
    assert [B4, B6] == reach(blue, stage.box(101))
    await stage.gone(red())
    stage.is_silent_of_itself()
    before = neighbours(blue)

    await stage.put(red(1004, mac=RED2, sandbox=103))

    assert {A4: RED, A6: RED} == before
    assert {A4: RED2, A6: RED2} == neighbours(blue)
    assert [B4, B6] == reach(blue, stage.box(103))


def reach(blue, red_box):
    """Send from blue to red's addresses, and return as whom blue was seen."""
    return [udp(blue, (to, 5000), red_box, (to, 5000), source=(mine, 0)) for to, mine in ((A4, B4), (A6, B6))]


def neighbours(box):
    """Return the MACs that a namespace has of red's addresses."""
    lines = box.exec(["ip", "neigh", "show", "dev", "eth0"]).stdout.splitlines()
    words = [line.split() for line in lines]
    return {one[0]: one[2] for one in words if one[0] in {A4, A6} and one[1] == "lladdr"}


async def test_a_refresh_tells_again_and_of_one_sandbox_alone(stage):
    await stage.put(dual(**{NMSGS: "1"}), sandbox(), sandbox(102), sandbox(103), BLUE_ONE, GREEN, red())
    ear = stage.ear()
    first = (await mark(stage, ear)).count(announced(RED, A4))
    before = ear.heard.count(MARK)

    await stage.engine.refresh(oid(101))
    await asyncio.to_thread(ear.until, announced(RED, A6), ear.heard.count(announced(RED, A6)) + 1)

    assert first + 1 == ear.heard.count(announced(RED, A4))
    assert before == ear.heard.count(MARK)


async def test_what_leaves_is_told_of_no_more(stage):
    await stage.put(dual(), sandbox(), sandbox(102), sandbox(103), BLUE_ONE, GREEN)
    ear = stage.ear()
    await stage.put(red())
    await asyncio.to_thread(ear.until, announced(RED, A4), 1)

    await stage.gone(red(), sandbox())
    told = (await mark(stage, ear, 1)).count(announced(RED, A4))
    later = (await mark(stage, ear, 4)).count(announced(RED, A4))

    assert told == later


async def test_of_what_moved_on_another_host_neighbours_here_are_told_though_nothing_is_flooded(stage):
    address = (ip_interface("10.1.0.9/24"), ip_interface("fd00:1::9/64"))
    await stage.put(dual("overlay"), sandbox(102), BLUE_ONE, peer(mac=RED, addresses=address))
    ear = stage.ear()
    stage.is_silent_of_itself()
    own = [announced(AWAY, str(one.ip)) for one in address]

    stage.revision += 1
    await stage.engine.apply(
        [*gone(stage.revision, peer()), *put(stage.revision, peer(5002, mac=AWAY, addresses=address))]
    )
    await asyncio.to_thread(ear.until, own[1], 1)

    assert [1, 1] == [ear.heard.count(frame) for frame in own]


async def test_the_gateway_itself_forgets_where_an_address_was_that_moved_on_another_host(stage):
    address = (ip_interface("10.1.0.9/24"), ip_interface("fd00:1::9/64"))
    await stage.put(dual("overlay"), sandbox(102), BLUE_ONE, peer(mac=RED, addresses=address))
    gateway = Netns.at(stage.lab.kernel.netns_path(f"network/{oid(1)}"))
    with contextlib.closing(gateway):
        for one in ("10.1.0.9", "10.1.0.77", "fd00:1::9"):
            gateway.exec(["ip", "neigh", "replace", one, "lladdr", RED, "dev", "br0", "nud", "stale"])

        stage.revision += 1
        await stage.engine.apply(
            [*gone(stage.revision, peer()), *put(stage.revision, peer(5002, mac=AWAY, addresses=address))]
        )
        learnt = gateway.exec(["ip", "neigh", "show", "dev", "br0"]).stdout

    assert ["10.1.0.77"] == [line.split()[0] for line in learnt.splitlines() if RED in line]


async def test_namespaces_and_interfaces_that_are_gone_are_passed_over(stage):
    await stage.put(dual(), sandbox(), sandbox(102), sandbox(103), BLUE_ONE, GREEN, red())
    ear = stage.ear()
    nowhere = [
        Announcement(ns=ns, link=link, addresses=(A4,), count=3, interval_ms=100)
        for ns, link in ((f"sandbox/{oid(9)}", "eth0"), (f"sandbox/{oid(101)}", "eth7"), ("", "no-such"))
    ]

    stage.lab.kernel.announce(nowhere)
    await stage.lab.kernel.announce_now(nowhere)
    heard = await mark(stage, ear, 3)

    assert 3 == heard.count(MARK)


async def test_when_the_kernel_layer_closes_its_threads_have_ended_and_its_sockets_are_closed(stage):
    await stage.put(dual(), sandbox(), sandbox(102), sandbox(103), BLUE_ONE, GREEN)
    ear = stage.ear()
    await stage.put(red())
    await asyncio.to_thread(ear.until, announced(RED, A6), 1)
    threads = {"netweft-announcer", "netweft-closer"}
    mine = stage.lab.kernel._announcer._threads
    running = {thread.name for thread in mine if thread.is_alive()}

    await asyncio.to_thread(stage.lab.kernel._announcer.close)

    assert threads == running
    assert [] == [thread for thread in mine if thread.is_alive()]
    assert threads.isdisjoint(thread.name for thread in threading.enumerate() if thread in mine)
    assert 1 == packet_sockets()  # the ear


def packet_sockets():
    """Count this process's packet sockets."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError), contextlib.closing(socket.socket(fileno=os.dup(int(entry.name)))) as sock:
            found += sock.family == socket.AF_PACKET
    return found
