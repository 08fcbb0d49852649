"""Doomed links carry nothing from the moment of the answer, and are gone a moment later, many at the price of one."""

from __future__ import annotations

import asyncio

import pytest
from netweft_agent.kernel import netlink, reaper

from tests.support.kernel import Host, bridge, endpoint, new_host, overlay, sandbox
from tests.support.netns import require_root

pytestmark = [pytest.mark.netns, pytest.mark.anyio]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def host(anyio_backend):
    require_root()
    async with new_host() as made:
        yield made


@pytest.fixture
def patient(monkeypatch):
    """Let doomed links wait for as long as the test runs."""
    monkeypatch.setattr(reaper, "DELAY_S", 1000)


@pytest.fixture
def sends(monkeypatch):
    """Count what is exchanged with the kernel: the number of messages of each send."""
    counts: list[int] = []
    original = netlink.talk

    def counted(sock, batch):
        counts.append(len(batch))
        return original(sock, batch)

    monkeypatch.setattr(netlink, "talk", counted)
    return counts


def links(host: Host) -> str:
    return host.exec("ip", "-o", "link")


async def test_a_single_doomed_link_is_down_at_the_answer(host: Host, patient):
    await host.make(*bridge(), *sandbox(), *endpoint())

    errors_ = await host.remove(*endpoint())

    assert errors_ == []
    assert "state DOWN" in host.exec("ip", "link", "show", "nwv-1")
    assert "group 28280" in host.exec("ip", "link", "show", "nwv-1")


async def test_a_single_doomed_link_is_gone_soon_without_another_call(host: Host):
    await host.make(*bridge(), *sandbox(), *endpoint())
    await host.remove(*endpoint())

    async with asyncio.timeout(5):
        while "nwv-1" in links(host):  # the kernel tells of it, but to whom the test does not ask
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    "removed",
    [[part for n in range(8) for part in endpoint(n)], bridge()],
    ids=["eight links", "a bridge"],
)
async def test_many_links_and_bridges_are_gone_at_the_answer(host: Host, patient, removed):
    await host.make(*bridge(), *(part for n in range(8) for part in (*sandbox(n), *endpoint(n))))

    errors_ = await host.remove(*removed)

    assert errors_ == []
    assert not {part.name for part in removed if hasattr(part, "name") and part.ns == ""} & set(links(host).split())


async def test_an_overlay_goes_with_its_namespace_at_the_answer(host: Host, patient):
    await host.make(*overlay())

    assert await host.remove(*overlay()) == []
    # its UDP port is free again only when the tunnel is really gone
    assert "4789" not in host.exec("ss", "-uan")


async def test_a_name_is_free_again_for_the_next_endpoint(host: Host, patient):
    await host.make(*bridge(), *sandbox(), *endpoint())
    await host.remove(*endpoint())

    errors_ = await host.make(*endpoint())

    assert (errors_, "10.1.0.2/16" in host.exec("ip", "address", ns="sandbox/s1")) == ([], True)


async def test_a_namespace_is_removed_after_the_links_that_lead_into_it(host: Host, patient):
    await host.make(*bridge(), *sandbox(), *endpoint())
    await host.remove(*endpoint())

    await host.remove(*sandbox())

    assert "nwv-1" not in links(host)


async def test_a_look_does_not_see_doomed_links(host: Host, patient):
    await host.make(*bridge(), *sandbox(), *endpoint())
    await host.remove(*endpoint())

    observed = await host.observe({})

    assert [key for key in observed if "nwv-1" in key or "eth0" in key] == []


async def test_attaching_one_endpoint_takes_three_sends(host: Host, sends):
    await host.make(*bridge(), *sandbox())
    await host.make()  # until it has given the namespace an id
    sends.clear()

    await host.make(*endpoint())

    # create and ask; up, on the host; up, address, route inside
    assert sends == [2, 1, 3]


async def test_attaching_many_endpoints_takes_two_sends_and_one_for_each_sandbox(host: Host, sends):
    count = 10
    await host.make(*bridge(), *(part for n in range(count) for part in sandbox(n)))
    await host.make()  # as above
    sends.clear()

    await host.make(*(part for n in range(count) for part in endpoint(n)))

    assert [2 * count, count, *([3] * count)] == sends


async def test_detaching_one_endpoint_takes_one_send(host: Host, sends, patient):
    await host.make(*bridge(), *sandbox(), *endpoint())
    sends.clear()

    await host.remove(*endpoint())

    assert sends == [1]
