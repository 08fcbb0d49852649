"""What the engine has neighbours told of after its plans, and how soon; what becomes of the plans is in test_engine."""

from __future__ import annotations

from ipaddress import ip_interface

import pytest
from netweft_agent.domain.announcement import Announcement
from netweft_agent.domain.plan import Operation
from netweft_agent.domain.resources import Address, Advertise, Link
from netweft_agent.engine.announcing import Announcing
from netweft_agent.engine.store import ObjectStore

from tests.support.agent import Rig, endpoint, gone, network, oid, peer, put, refused, sandbox, subnets

pytestmark = pytest.mark.anyio

A, B = "02:42:00:00:00:0a", "02:42:00:00:00:0b"
NS = f"sandbox/{oid(101)}"
NMSGS, MS = "com.docker.network.advertise_addr_nmsgs", "com.docker.network.advertise_addr_ms"


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def rig(tmp_path):
    async with Rig(tmp_path) as made:
        yield made


def red(number=1001, network=1, **fields):
    fields.setdefault("mac", A)
    fields.setdefault("addresses", (ip_interface("10.1.0.5/24"),))
    return endpoint(number, network, **fields)


def told(*addresses, link="eth0", ns=NS, count=3, interval_ms=1000, mac=""):
    return Announcement(ns=ns, link=link, addresses=addresses, count=count, interval_ms=interval_ms, mac=mac)


def since(rig):
    """Return what was announced since the last call."""
    found, rig.kernel.announced = rig.kernel.announced, []
    return found


async def test_a_new_endpoints_addresses_are_told_later(rig):
    dual = network(subnets=subnets("10.1.0.0/24", "fd00:1::/64"), enable_ipv6=True)
    both = (ip_interface("10.1.0.5/24"), ip_interface("fd00:1::5/64"))

    await rig.put(1, dual, sandbox(), red(addresses=both, link_local=(ip_interface("169.254.0.7/16"),)))

    assert [(told("10.1.0.5", "fd00:1::5"), False)] == since(rig)


@pytest.mark.parametrize("driver", ["bridge", "overlay"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({NMSGS: "1"}, [told("10.1.0.5", count=1)]),
        ({NMSGS: "2", MS: "100"}, [told("10.1.0.5", count=2, interval_ms=100)]),
        ({"advertise_addr_ms": "2000"}, [told("10.1.0.5", interval_ms=2000)]),
        ({NMSGS: "0"}, []),
    ],
    ids=["once", "twice in 100 ms", "in 2 s", "never"],
)
async def test_the_networks_options_say_how_often(rig, driver, options, expected):
    await rig.put(1, network(driver=driver, options=options), sandbox(), red())

    assert [(one, False) for one in expected] == since(rig)


async def test_of_an_address_that_had_another_mac_neighbours_are_told_at_once(rig):
    await rig.put(1, network(), sandbox(), red())
    await rig.gone(2, red())
    since(rig)

    await rig.put(3, red(1002, mac=B))

    assert [(told("10.1.0.5"), True)] == since(rig)


async def test_of_one_that_comes_back_with_its_mac_they_are_told_later(rig):
    await rig.put(1, network(), sandbox(), red())
    await rig.gone(2, red())
    since(rig)

    await rig.put(3, red(1002))

    assert [(told("10.1.0.5"), False)] == since(rig)


async def test_the_same_address_of_another_network_is_another(rig):
    elsewhere = red(1002, 2, interface_name="eth1", mac=B)

    await rig.put(1, network(), network(2, subnets=network().subnets), sandbox(), red())
    since(rig)
    await rig.put(2, elsewhere)

    assert [(told("10.1.0.5", link="eth1"), False)] == [one for one in since(rig) if one[0].link == "eth1"]


async def test_an_endpoint_that_fails_is_not_announced_and_those_beside_it_are(rig):
    rig.kernel.fail_at = lambda step: refused(step) if step.resource.key[:2] == ("address", NS) else None

    await rig.put(
        1,
        network(),
        sandbox(),
        sandbox(102),
        red(),
        red(1002, sandbox=102, mac=B, addresses=(ip_interface("10.1.0.6/24"),)),
    )

    assert [(told("10.1.0.6", ns=f"sandbox/{oid(102)}"), False)] == since(rig)


async def test_a_restart_announces_nothing_and_knows_the_macs_from_before(rig):
    await rig.put(1, network(), sandbox(), red())
    since(rig)

    await rig.restart()
    silent = since(rig)
    await rig.gone(2, red())
    await rig.put(3, red(1002, mac=B))

    assert [] == silent
    assert [(told("10.1.0.5"), True)] == since(rig)


async def test_after_a_reboot_what_is_made_anew_is_announced(rig):
    await rig.put(1, network(), sandbox(), red())
    since(rig)
    await rig.stop()
    rig.kernel.state.clear()

    await rig.start()

    assert [(told("10.1.0.5"), False)] == since(rig)


async def test_a_refresh_announces_the_sandboxs_addresses_again_and_no_others(rig):
    beside = endpoint(1002, sandbox=102)
    second = endpoint(1003, 2, interface_name="eth1", addresses=(ip_interface("10.2.0.7/24"),))
    await rig.put(1, network(), network(2), sandbox(), sandbox(102), red(), beside, second)
    since(rig)

    repaired = await rig.engine.refresh(oid(101))

    assert () == repaired
    assert {(told("10.1.0.5"), False), (told("10.2.0.7", link="eth1"), False)} == set(since(rig))


async def test_what_a_repair_puts_back_is_announced(rig):
    await rig.put(1, network(), sandbox(), red())
    since(rig)
    del rig.kernel.state["address", NS, "eth0", "10.1.0.5/24"]

    await rig.engine.reconcile()

    assert [(told("10.1.0.5"), False)] == since(rig)


async def test_a_reconcile_that_finds_nothing_announces_nothing(rig):
    await rig.put(1, network(), sandbox(), red())
    since(rig)

    await rig.engine.reconcile()

    assert [] == since(rig)


async def test_the_endpoint_that_the_default_route_moves_to_is_announced(rig):
    other = endpoint(1002, 2, interface_name="eth1", addresses=(ip_interface("10.2.0.7/24"),), gateway_priority=1)
    await rig.put(1, network(), network(2), sandbox(), red())
    since(rig)

    await rig.put(2, other)
    came = since(rig)
    await rig.gone(3, other)
    went = since(rig)

    assert [(told("10.2.0.7", link="eth1"), False)] == came
    assert [(told("10.1.0.5"), False)] == went


async def test_a_change_that_moves_nothing_announces_nothing(rig):
    await rig.put(1, network(), sandbox(), red())
    since(rig)

    await rig.put(2, red(dns_names=("web",)))

    assert [] == since(rig)


async def test_of_an_endpoint_that_leaves_nothing_more_is_told(rig):
    await rig.put(1, network(), sandbox(), sandbox(102), red(), endpoint(1002, sandbox=102))
    hushed = list(rig.kernel.hushed)

    await rig.gone(2, red())

    assert [] == hushed
    assert {(NS, "eth0", "")} == set(rig.kernel.hushed)


async def test_a_dry_run_announces_nothing(rig):
    await rig.put(1, network(), sandbox())

    steps = await rig.engine.plan(put(2, red()))

    assert steps
    assert [] == since(rig)


async def test_of_what_moved_on_another_host_neighbours_here_are_told_at_once(rig):
    away, moved = (
        peer(mac=A, addresses=(ip_interface("10.1.0.9/24"),)),
        peer(5002, mac=B, addresses=(ip_interface("10.1.0.9/24"),)),
    )
    await rig.put(1, network(driver="overlay"), sandbox(), red(mac="02:42:00:00:00:0c"), away)
    since(rig)

    await rig.engine.apply([*gone(2, away), *put(2, moved)])

    ns = f"network/{oid(1)}"
    assert [(told("10.1.0.9", ns=ns, link="br0", mac=B), True)] == since(rig)
    assert (ns, "br0", A) in rig.kernel.hushed


async def test_of_what_came_from_another_host_and_went_there_too(rig):
    away = peer(mac=A, addresses=(ip_interface("10.1.0.9/24"),))
    here = red(mac=B, addresses=(ip_interface("10.1.0.9/24"),))
    await rig.put(1, network(driver="overlay"), sandbox(), sandbox(102), endpoint(1009, sandbox=102), away)
    since(rig)

    await rig.engine.apply([*gone(2, away), *put(2, here)])
    came = since(rig)
    await rig.engine.apply([*gone(3, here), *put(3, away)])
    went = since(rig)

    assert [(told("10.1.0.9"), True)] == came
    assert [(told("10.1.0.9", ns=f"network/{oid(1)}", link="br0", mac=A), True)] == went


async def test_peers_that_come_and_go_with_their_macs_are_not_announced(rig):
    await rig.put(1, network(driver="overlay"), sandbox(), red(), peer(), peer(5002))
    since(rig)

    await rig.gone(2, peer())
    await rig.put(3, peer())

    assert [] == since(rig)


async def test_what_came_while_nobody_remembers_which_mac_its_address_had_is_told_when_there_is_time(rig):
    """The containers may have met the address before the agent was started again, under another MAC."""
    old = peer(mac=A, addresses=(ip_interface("10.1.0.9/24"),))
    new = peer(5002, mac=B, addresses=(ip_interface("10.1.0.9/24"),))
    await rig.put(1, network(driver="overlay"), sandbox(), red(mac="02:42:00:00:00:0c"), old)
    await rig.gone(2, old)

    await rig.restart()
    since(rig)
    await rig.put(3, new)
    found = since(rig)
    await rig.gone(4, new)
    await rig.put(5, new)
    again = since(rig)

    assert [(told("10.1.0.9", ns=f"network/{oid(1)}", link="br0", mac=B), False)] == found
    assert [] == again


async def test_in_a_network_that_came_after_the_start_all_macs_are_remembered(rig):
    await rig.put(1, network(), sandbox(), red())
    await rig.restart()
    since(rig)

    await rig.put(2, network(2, driver="overlay"), sandbox(102), endpoint(1009, 2, sandbox=102), peer(5001, 2))

    assert [] == [one for one, _ in since(rig) if one.mac]


# --- the memory ------------------------------------------------------------------------------------------------------


ONCE = Advertise(network="n", count=1, interval_ms=100)


def wanted(number, mac):
    parts = [
        Link(ns="s", name="eth0", kind="peer", mac=mac),
        Address(
            ns="s",
            link="eth0",
            address=f"10.0.0.{number}/24",
            advertise=Advertise(network="n", count=1, interval_ms=100),
        ),
    ]
    return {one.key: one for one in parts}


def take(announcing, number, mac):
    """Have an address made, and return whether it is to be told at once."""
    parts = wanted(number, mac)
    address = next(one for one in parts.values() if isinstance(one, Address))
    announcing.made(Operation(before=None, after=address, owner="endpoint/e"))
    found = announcing.take({"endpoint/e": parts}, parts)
    return [bool(found.now)] if found.now or found.later else []


def test_the_memory_is_bounded_and_forgets_first_what_was_told_of_longest_ago():
    announcing = Announcing(ObjectStore(), remembered=2)

    first = [take(announcing, number, A) for number in (1, 2, 1, 3)]

    assert [[False]] * 4 == first
    assert [[True], [False]] == [take(announcing, number, B) for number in (1, 2)]


def test_what_is_not_there_or_not_wanted_any_more_is_not_told():
    announcing = Announcing(ObjectStore())
    parts = wanted(1, A)
    address = next(one for one in parts.values() if isinstance(one, Address))
    made = Operation(before=None, after=address, owner="endpoint/e")

    announcing.made(made)
    unwanted = announcing.take({}, parts)
    announcing.made(made)
    missing = announcing.take({"endpoint/e": parts}, {})

    assert ([], []) == (unwanted.now + unwanted.later, missing.now + missing.later)
