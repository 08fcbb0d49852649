"""Changed settings are noticed, though the kernel tells nobody; our own changes, and what has gone, are not told."""

from __future__ import annotations

import contextlib

import pytest
from netweft_agent.domain.plan import plan
from netweft_agent.domain.resources import HOST, Link, Sysctl
from netweft_agent.kernel import settings
from netweft_agent.kernel.settings import Settings

from tests.support.kernel import Host, bridge, new_host, sandbox, state
from tests.support.netns import require_root

pytestmark = [pytest.mark.netns, pytest.mark.anyio]

FORWARDING = Sysctl(ns=HOST, path="net/ipv4/ip_forward", value="1")
OF_LINK = Sysctl(ns=HOST, path="net/ipv4/conf/nwb-1/arp_announce", value="2", link="nwb-1")


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def host(anyio_backend):
    require_root()
    async with new_host() as made:
        yield made


@pytest.fixture
def watching(host):
    with contextlib.closing(Settings(host.kernel._namespaces)) as found:
        yield found


async def look(host: Host, watching: Settings) -> set[str]:
    """Look from the thread that does so in an agent; this one is in no namespace of the test's."""
    return await host.kernel._reader.call(watching.look)


async def test_a_change_is_told_once_and_again_after_it_was_kept_again(host: Host, watching: Settings):
    await host.make(FORWARDING)
    watching.keep(FORWARDING)
    before = await look(host, watching)

    host.exec("sysctl", "-w", "net.ipv4.ip_forward=0")
    told, told_again = await look(host, watching), await look(host, watching)
    host.exec("sysctl", "-w", "net.ipv4.ip_forward=1")
    watching.keep(FORWARDING)
    mended = await look(host, watching)
    host.exec("sysctl", "-w", "net.ipv4.ip_forward=0")

    assert (set(), {HOST}, set(), set()) == (before, told, told_again, mended)
    assert {HOST} == await look(host, watching)


async def test_a_change_before_the_first_look_is_told(host: Host, watching: Settings):
    watching.keep(FORWARDING)  # it is 0 in a new namespace

    assert {HOST} == await look(host, watching)


@pytest.mark.parametrize("held", [0, 1, 100])
async def test_what_is_not_held_open_has_its_turn(host: Host, held):
    paths = [f"net/ipv4/conf/{which}/{name}" for which in ("all", "default") for name in NAMES]
    kept = [Sysctl(ns=HOST, path=path, value="1") for path in paths]
    await host.make(*kept)
    looks = -(-len(kept) // settings.TURNS)
    with contextlib.closing(Settings(host.kernel._namespaces, held=held)) as watching:
        for one in kept:
            watching.keep(one)
        whole = set().union(*[await look(host, watching) for _ in range(looks)])

        host.exec("sysctl", "-w", f"{paths[-1].replace('/', '.')}=0")

        assert set() == whole
        assert {HOST} == set().union(*[await look(host, watching) for _ in range(looks + 1)])


NAMES = ("send_redirects", "arp_announce", "arp_ignore", "log_martians", "accept_local", "arp_accept", "proxy_arp")


async def test_a_setting_goes_with_its_link_and_is_told_of_when_that_is_there_again(host: Host, watching: Settings):
    await host.make(*bridge(), OF_LINK)
    watching.keep(OF_LINK)
    before = await look(host, watching)

    host.exec("ip", "link", "del", "nwb-1")
    gone = await look(host, watching)
    host.exec("ip", "link", "add", "nwb-1", "type", "bridge")

    assert (set(), set()) == (before, gone)
    assert {HOST} == await look(host, watching)
    await host.remove(Link(ns=HOST, name="nwb-1", kind="bridge"))
    host.exec("ip", "link", "del", "nwb-1")


async def test_a_namespace_of_the_same_name_is_another_one(host: Host, watching: Settings):
    await host.make(*sandbox())
    (kept,) = [one for one in sandbox() if isinstance(one, Sysctl)]
    watching.keep(kept)
    before = await look(host, watching)

    await host.remove(*sandbox())
    gone = await look(host, watching)
    await host.make(sandbox()[0])

    assert (set(), set()) == (before, gone)
    assert {kept.ns} == await look(host, watching)


async def test_our_own_changes_are_not_told(host: Host):
    await host.make(FORWARDING)
    before = await look(host, host.kernel._settings)

    await host.make(Sysctl(ns=HOST, path=FORWARDING.path, value="0"))

    assert (set(), set()) == (before, await look(host, host.kernel._settings))


async def test_a_setting_that_the_kernel_lacks_is_as_wanted_if_it_may_be_missing(host: Host):
    missing = [
        Sysctl(ns=HOST, path="net/ipv4/no_such_setting", value="0", optional=True),
        Sysctl(ns=HOST, path="net/ipv4/no_other_setting", value="0"),
    ]
    wanted = state(missing)

    refused = await host.make(*missing)
    left = plan(wanted, await host.observe(wanted), {})

    assert ["KERNEL_ENOENT"] == [one.reason for one in refused]
    assert [missing[1]] == [step.after for step in left]
