"""Cuts, kills and standstills at random, under load: when all is healed, every kernel is as the records say.

What is cut off is any host from any service, or one service from another; what dies or stands still is any process.
All the while containers of different hosts talk, and none of their packets may be missing.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import netweft_client
import pytest
from netweft_cli import reach
from netweft_client import EndpointSpec, SandboxSpec, SubnetSpec
from netweft_common import errors

from tests.e2e import support, support_load, support_spread
from tests.support.netns import require_tool

pytestmark = [pytest.mark.e2e, pytest.mark.netns, pytest.mark.slow]

# Fifty, some of which last a minute, take an hour: NETWEFT_LONG=1.
LONG = os.environ.get("NETWEFT_LONG") == "1"
LASTS_S = (1.0, 1.0, 10.0, 10.0, 60.0) if LONG else (1.0,)
SEED = int(os.environ.get("NETWEFT_SEED", "20261128"))
ALWAYS = (
    "cut controller | h2, cut controller2 | h2, restarted agent-h2",
    "dead store, cut ipam | h3, still agent-h1",
    "still controller, cut store | controller2, restarted ipam",
)
"""What the suite goes through each time; the long form takes faults by chance."""
AT_ONCE = 100
REST_S = 3.0
"""Between so many pings, a neighbour learned at either end of each."""
TIMES = 3
PLACES = [
    *(support_load.Place(network="red", host=host) for host in support_spread.HOSTS),
    support_load.Place(network="local", host="h1"),
]


@pytest.fixture(scope="module")
def cluster():
    for tool in ("ip", "bridge", "nft"):
        require_tool(tool)
    with support_spread.running({**support.QUICK, **support.NONE_AHEAD}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def boxes(cluster) -> dict[str, tuple[Path, str]]:
    """Containers that are there all the time, one a host: namespace and address by host."""
    found = {}
    with cluster.client() as client:
        subnets = [SubnetSpec(subnet="10.91.0.0/16"), SubnetSpec(subnet="fd00:91::/64")]
        client.create_network("red", driver="overlay", subnets=subnets, enable_ipv6=True)
        client.create_network("local", driver="bridge", host="h1", subnets=[SubnetSpec(subnet="10.92.0.0/16")])
        for host in support_spread.HOSTS:
            spec = EndpointSpec(network="red", name=f"stays-{host}")
            answer = client.attach_endpoint(spec, SandboxSpec(container_id=f"stays-{host}", host=host))
            found[host] = (Path(answer.sandbox.netns_path), str(answer.endpoint.addresses[0].ip))
        assert () == client.wait_network("red", wait_s=support.SETTLE_S)
    return found


@contextlib.contextmanager
def talking(boxes) -> Iterator[None]:
    """Have containers of different hosts ask each other; not one answer may be missing."""
    with contextlib.ExitStack() as stack:
        pingers = {
            f"{one} to {other}": stack.enter_context(
                reach.Pinger(reach.Pair(source=boxes[one][0], destination=boxes[other][1]), interval_s=0.02)
            )
            for one, other in itertools.permutations(boxes, 2)
        }
        yield
    assert {} == {name: lost for name, one in pingers.items() if (lost := support.unanswered(one))}
    assert min(one.loss.sent for one in pingers.values()) > 20


def wrong(cluster, *, leases: bool = True) -> list[str]:
    return support.problems(cluster, leases=leases) or support_spread.differences(cluster)


def test_the_comparison_sees_what_is_wrong_in_a_kernel_and_the_agent_mends_it(cluster, boxes):
    assert [] == support.wait_until(lambda: wrong(cluster), lambda lines: not lines)
    with cluster.client() as client:
        mac = client.get_endpoint("stays-h2", network="red").mac_address
        space = cluster.agent_dir("h1") / "netns" / f"network-{client.get_network('red').network.id}"

    with cluster.still("agent-h1"):
        support._run(space, "ip", "neigh", "del", boxes["h3"][1], "dev", "vxlan0")
        support._run(space, "bridge", "fdb", "replace", mac, "dev", "vxlan0", "dst", "192.0.2.3", "self")
        support._run(boxes["h1"][0], "ip", "route", "del", "default")
        seen = support_spread.differences(cluster)
    mended = support.wait_until(lambda: wrong(cluster), lambda lines: not lines)

    assert [] == [word for word in (boxes["h3"][1], mac, "default route of IPv4") if word not in str(seen)]
    assert [] == mended


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", range(50 if LONG else len(ALWAYS)))
def test_after_cuts_kills_and_standstills_all_is_as_recorded_and_nothing_is_lost(cluster, boxes, number):
    rng = random.Random(f"{SEED}/{number}")
    faults = support_spread.chosen(rng, rng.choice((1, 2, 3))) if LONG else support_spread.parse(ALWAYS[number])
    lasts_s = rng.choice(LASTS_S)

    with talking(boxes):
        load = support_load.Load(
            cluster, PLACES, seed=SEED + number, name=f"r{number}-", patience_s=lasts_s + support_load.PATIENCE_S
        )
        with load:
            time.sleep(0.5)  # not to wait for something: faults come in the middle of work
            with support_spread.suffering(cluster, faults):
                time.sleep(lasts_s)
            healed_at = time.monotonic()
        worked_s = time.monotonic() - healed_at
        left = support.wait_until(lambda: wrong(cluster, leases=False), lambda lines: not lines)
        converged_s = time.monotonic() - healed_at
        given_back = support.wait_until(lambda: wrong(cluster), lambda lines: not lines)
        all_s = time.monotonic() - healed_at
    what = f"{', '.join(map(str, faults))} for {lasts_s:g} s"
    sys.stdout.write(
        f"{number}: {what}: {load.account.attached} attached, {load.account.retries} retries;"
        f" callers done after {worked_s:.1f} s, kernels as recorded after {converged_s:.1f} s, leases {all_s:.1f} s\n"
    )

    with cluster.client() as client:
        # What a run that failed has left is no fault of this one.
        its = (one for one in client.list_endpoints(page_size=1000) if one.name.startswith(f"r{number}-"))
        there = {one.name: one for one in its}
        try:
            assert [] == left, what
            assert [] == given_back, what
            assert load.account.attached > 0
            expected = {
                name: (one.endpoint.id, one.endpoint.addresses, one.endpoint.mac_address)
                for name, one in load.account.there.items()
            }
            found = {
                name: (one.id, one.addresses, one.mac_address)
                for name, one in there.items()
                if name not in load.account.unknown
            }
            assert expected == found, what
            assert {"red", "local"} == {network.name for network in client.list_networks()}, what
            assert set() == unreached(boxes, there.values(), client), what
        except BaseException:
            with contextlib.suppress(errors.NetweftError):  # what is wrong matters more
                clear(client, there.values())
            raise
        clear(client, there.values())
    assert [] == support.wait_until(lambda: wrong(cluster), lambda lines: not lines), what


def clear(client, endpoints) -> None:
    client.detach_endpoints(netweft_client.DetachItem(endpoint=one.id, delete_sandbox=True) for one in endpoints)


def unreached(boxes, endpoints, client) -> set[str]:
    """Return the overlay's endpoints that the containers of the other hosts do not reach."""
    hosts = {host.id: host.name for host in client.list_hosts()}
    red = client.get_network("red").network.id
    pairs = {
        reach.Pair(source=box, destination=str(one.addresses[0].ip)): f"{one.name} from {host}"
        for one in endpoints
        if one.network_id == red
        for host, (box, _) in boxes.items()
        if host != hosts[one.host_id]
    }
    # The kernel keeps 1,024 learned neighbours for all namespaces together (arp(7), gc_thresh3), each for five seconds
    # at least (neigh_forced_gc). So not all at once, and whoever did not answer for want of room is asked again.
    missing = list(pairs)
    for _ in range(TIMES):
        answers: dict[reach.Pair, float | None] = {}
        for first in range(0, len(missing), AT_ONCE):
            answers |= reach.reach_all(missing[first : first + AT_ONCE], timeout_s=5)
            time.sleep(REST_S if len(missing) > AT_ONCE else 0)
        missing = [pair for pair in missing if answers[pair] is None]
        if missing:
            time.sleep(2 * REST_S)
    return {pairs[pair] for pair in missing}
