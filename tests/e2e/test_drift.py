"""Whatever others do to a host's network is mended, and told."""

from __future__ import annotations

import asyncio

import netweft_client
import pytest

from tests.e2e import support
from tests.support import tampering
from tests.support.netns import require_tool

pytestmark = [pytest.mark.e2e, pytest.mark.netns]


@pytest.fixture(scope="module")
def cluster():
    for tool in ("ip", "bridge", "nft", "tc", "sysctl"):
        require_tool(tool)
    with support.running("h1", "h2", environ=support.QUICK) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def place(cluster):
    async def fill():
        plan = cluster.layout
        async with netweft_client.AsyncClient(plan.controller, ipam_target=plan.ipam) as client:
            return await tampering.place(client, plan)

    found = asyncio.run(fill())
    assert [] == support.settled(cluster)
    return found


def told(client) -> int:
    """Return how many repairs the host has told of."""
    host = next(host for host in client.list_hosts() if host.name == "h1")
    return host.drift.operations if host.drift is not None else 0


@pytest.mark.parametrize("kind", tampering.TAMPERINGS)
def test_each_kind_of_drift_is_mended_and_told(cluster, place, kind):
    one = tampering.TAMPERINGS[kind]
    with cluster.client() as client:
        whole, told_before = one.seen(place), support.wait_until(lambda: told(client), lambda _: True)
        place.run("host", "ip link show")  # whatever came before is over

        place.run(one.where, one.command)
        mended = support.wait_until(lambda: one.seen(place), lambda seen: seen == whole, timeout_s=10)
        told_after = support.wait_until(lambda: told(client), lambda count: count > told_before)

        assert whole == mended
        assert told_after > told_before
        assert [] == support.settled(cluster)


def test_nobody_else_can_change_the_tables_of_the_host(place):
    before = place.run("host", "nft list tables")

    refused = place.run("host", "nft flush table inet netweft")

    assert "Operation not permitted" in refused
    assert before == place.run("host", "nft list tables")
