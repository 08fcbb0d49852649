"""From any state to any other in one pass, also when somebody has broken things in between: seeded random walks."""

from __future__ import annotations

import random

import pytest
from netweft_agent.domain.plan import plan
from netweft_agent.domain.resources import HOST, Key, Namespace, Resource

from tests.support.kernel import Host, State, bridge, endpoint, endpoint6, new_host, overlay, remote, sandbox, state
from tests.support.netns import require_root

pytestmark = [pytest.mark.netns, pytest.mark.anyio]

UNIVERSE = state(
    [
        *bridge(),
        *overlay(),
        *(part for n in (10, 11, 12) for part in remote(n)),
        *(part for n in (1, 2, 3) for part in (*sandbox(n), *endpoint(n), *endpoint6(n))),
    ]
)
VANDALISM = [
    (HOST, "ip link del nwv-{n}"),
    (HOST, "ip link set nwv-{n} down"),
    (HOST, "ip link set nwv-{n} nomaster"),
    (HOST, "ip link set nwv-6-{n} down name torn-{n}"),
    (HOST, "ip link del nwb-1"),
    (HOST, "ip address flush dev nwb-1"),
    ("sandbox/s{n}", "ip link del eth0"),
    ("sandbox/s{n}", "ip link set eth0 down name eth9"),
    ("sandbox/s{n}", "ip link set eth0 mtu 1300 address 02:00:00:00:00:99"),
    ("sandbox/s{n}", "ip address flush dev eth0"),
    ("sandbox/s{n}", "ip -6 route flush default"),
    ("sandbox/s{n}", "sysctl -qw net.ipv6.conf.eth6.disable_ipv6=1"),
    ("sandbox/s{n}", "sysctl -qw net.ipv6.conf.eth6.accept_ra=1"),
    ("network/n1", "ip link del vxlan0"),
    ("network/n1", "ip link del br0"),
    ("network/n1", "ip neighbour flush nud permanent dev vxlan0"),
    ("network/n1", "bridge fdb add 02:00:00:00:00:77 dev vxlan0 dst 192.0.2.66"),
    ("network/n1", "bridge link set dev vxlan0 learning on"),
]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def host(anyio_backend):
    require_root()
    async with new_host() as made:
        yield made


def closed(keys: set[Key]) -> State:
    """Return the resources that have all they need, a veth's far end and its bridge included."""
    chosen = {key: UNIVERSE[key] for key in keys}
    while True:
        kept = {key: part for key, part in chosen.items() if all(need in chosen for need in needs(part))}
        if len(kept) == len(chosen):
            return chosen
        chosen = kept


def needs(part: Resource) -> list[Key]:
    found = [need for need in part.needs() if need != ("netns", HOST)]
    if isinstance(part, Namespace):
        return found
    master = getattr(part, "master", None)
    if master is not None:
        found.append(("link", part.ns, master))
    peer = getattr(part, "peer", None)
    if peer is not None:
        found.append(("link", peer.ns, peer.name))
    if "eth" in part.key[-1] or part.key[0] in {"route", "neighbour"}:
        found += [key for key in UNIVERSE if key[:2] == ("address", part.ns) and key[2] == getattr(part, "link", "")]
    return found


async def pass_over(host: Host, desired: State) -> list[str]:
    """Do what the engine does to repair a host once, and return what is still to be done."""
    seen = await host.observe(desired)
    errors = [
        str(error) for error in await host.execute(plan(desired, seen, {key: str(key) for key in desired})) if error
    ]
    left = plan(desired, await host.observe(desired), {})
    return errors + [f"{step.resource.ns}: {step.command()}" for step in left]


@pytest.mark.parametrize("seed", range(6))
async def test_any_state_follows_any_other_in_one_pass(host: Host, seed):
    chance = random.Random(seed)
    for _ in range(8):
        share = chance.random()
        desired = closed({key for key in UNIVERSE if chance.random() < 0.4 + share})

        assert [] == await pass_over(host, desired)


@pytest.mark.parametrize("seed", range(6))
async def test_what_others_broke_is_repaired_in_one_pass(host: Host, seed):
    chance = random.Random(seed)
    await pass_over(host, UNIVERSE)
    for _ in range(8):
        deeds = []
        for ns, command in chance.sample(VANDALISM, chance.randint(1, 3)):
            n = str(chance.randint(1, 3))
            where, what = ns.format(n=n), command.format(n=n)
            inside = ["nsenter", f"--net={host.kernel.netns_path(where)}"] if where else []
            host.netns.exec([*inside, *what.split()], check=False)
            deeds.append(f"{where}: {what}")

        assert [] == await pass_over(host, UNIVERSE), deeds


@pytest.mark.parametrize("seed", range(3))
async def test_a_restarted_agent_goes_on_where_the_other_stopped(host: Host, seed):
    chance = random.Random(seed)
    for _ in range(4):
        desired = closed({key for key in UNIVERSE if chance.random() < 0.9})
        steps = plan(desired, await host.observe(desired), {})
        await host.execute(steps[: chance.randint(0, len(steps))])
        await host.kernel.close()
        host.kernel = host.new_kernel()

        assert [] == await pass_over(host, desired)
