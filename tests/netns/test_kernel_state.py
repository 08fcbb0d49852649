"""What is made is observed as it was wanted, and what is removed leaves nothing: the kernel layer's main promise."""

from __future__ import annotations

import pytest
from netweft_agent.domain import nft
from netweft_agent.domain.plan import plan
from netweft_agent.domain.resources import (
    HOST,
    Address,
    Fdb,
    File,
    Link,
    Namespace,
    PeerEnd,
    Port,
    Route,
    Sysctl,
    TokenBucket,
)

from tests.support.kernel import Host, bridge, endpoint, endpoint6, limits, new_host, overlay, remote, sandbox, state
from tests.support.netns import Netns, require_root

pytestmark = [pytest.mark.netns, pytest.mark.anyio]

TABLE = nft.Table("inet", "netweft")
ADDRESSES = nft.Set(name="addresses", key=(nft.IPV4_ADDR,))


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def host(anyio_backend):
    require_root()
    async with new_host() as made:
        yield made


def on_the_host(number: int):
    """Return an endpoint whose sandbox is the host itself."""
    name = f"nwv-h{number}"
    return [
        Link(ns=HOST, name=name, kind="veth", master="nwb-1", ipv6=False, peer=PeerEnd(ns=HOST, name=f"nw{number}")),
        Link(ns=HOST, name=f"nw{number}", kind="peer", ipv6=False, peer=PeerEnd(ns=HOST, name=name)),
        Address(ns=HOST, link=f"nw{number}", address="10.1.9.9/16"),
    ]


def names(host: Host) -> list[str]:
    """Return index and name of each link."""
    return [line.partition(": <")[0] for line in host.exec("ip", "-o", "link").splitlines()]


STATES = {
    "a sandbox alone": sandbox(),
    "a bridge": bridge(),
    "a bridge without managed attributes": [Link(ns=HOST, name="nwb-9", kind="bridge")],
    "one endpoint": [*bridge(), *sandbox(), *endpoint()],
    "an isolated port": [*bridge(), *sandbox(), *endpoint(isolated=True)],
    "five endpoints": [*bridge(), *(part for n in range(1, 6) for part in (*sandbox(n), *endpoint(n)))],
    "ten endpoints": [*bridge(), *(part for n in range(1, 11) for part in (*sandbox(n), *endpoint(n)))],
    "both address families": [*bridge(), *sandbox(), *endpoint(), *endpoint6()],
    "an endpoint of the host": [*bridge(), *on_the_host(1)],
    "an overlay": overlay(),
    "an overlay with many peers": [*overlay(), *(part for n in range(10, 60) for part in remote(n))],
    "an overlay with an endpoint": [
        *overlay(),
        *sandbox(),
        Link(
            ns="network/n1",
            name="nwv-1",
            kind="veth",
            mtu=1400,
            master="br0",
            ipv6=False,
            peer=PeerEnd(ns="sandbox/s1", name="eth0"),
            port=Port(hairpin=True, flood=False),
        ),
        Link(ns="sandbox/s1", name="eth0", kind="peer", mtu=1400, peer=PeerEnd(ns="network/n1", name="nwv-1")),
    ],
    "an endpoint with limits": [*bridge(), *sandbox(), *endpoint(), *limits()],
    "limits at the edges": [
        Link(ns=HOST, name="nwb-8", kind="bridge"),
        TokenBucket(ns=HOST, link="nwb-8", rate=1 << 37, burst=1 << 31, limit=(1 << 32) - 1),
        Link(ns=HOST, name="nwb-9", kind="bridge"),
        TokenBucket(ns=HOST, link="nwb-9", rate=1000, burst=1 << 31, limit=1 << 31),
    ],
    "limits in an overlay": [
        *overlay(),
        *sandbox(),
        Link(ns="network/n1", name="nwv-1", kind="veth", ipv6=False, peer=PeerEnd(ns="sandbox/s1", name="eth0")),
        Link(ns="sandbox/s1", name="eth0", kind="peer", peer=PeerEnd(ns="network/n1", name="nwv-1")),
        *limits(ns="network/n1"),
    ],
    "a static forwarding entry": [
        *bridge(),
        *sandbox(),
        *endpoint(),
        Fdb(ns=HOST, link="nwv-1", mac="02:42:00:00:00:66"),
    ],
    "routes on a link and through it": [
        *bridge(),
        *sandbox(),
        *endpoint()[:3],
        Route(ns="sandbox/s1", destination="198.51.100.0/24", link="eth0"),
        Route(ns="sandbox/s1", destination="203.0.113.0/24", link="eth0", via="198.51.100.9"),
    ],
    "a down link": [Link(ns=HOST, name="nwb-9", kind="bridge", mtu=1500, up=False)],
    "settings, also of a link made with them": [
        *bridge(),
        *sandbox(),
        *endpoint(),
        Sysctl(ns="sandbox/s1", path="net/ipv4/conf/eth0/log_martians", value="1"),
        Sysctl(ns="sandbox/s1", path="net/ipv4/ip_local_port_range", value="20000 30000"),
    ],
    "firewall state": [
        nft.NftTable(ns=HOST, table=TABLE),
        nft.NftSet(ns=HOST, table=TABLE, spec=ADDRESSES),
        nft.NftElement(ns=HOST, table=TABLE, spec=ADDRESSES, item=("10.1.0.2",)),
        nft.NftChain(ns=HOST, table=TABLE, name="empty"),
    ],
    "firewall state of a sandbox": [*sandbox(), nft.NftTable(ns="sandbox/s1", table=TABLE)],
}


@pytest.mark.parametrize("resources", STATES.values(), ids=STATES.keys())
async def test_what_was_made_is_observed_as_it_was_wanted(host: Host, resources):
    desired = state(resources)

    errors = [error for error in await host.execute(plan(desired, {}, {})) if error]
    observed = await host.observe(desired)

    assert (errors, plan(desired, observed, {})) == ([], ())
    assert observed.keys() == desired.keys()


@pytest.mark.parametrize("resources", STATES.values(), ids=STATES.keys())
async def test_what_an_earlier_run_left_is_found_and_removed_without_a_trace(host: Host, resources):
    desired = state(resources)
    await host.execute(plan(desired, {}, {}))
    left = await host.observe({})

    errors = [error for error in await host.execute(plan({}, left, {})) if error]

    assert (errors, await host.observe({})) == ([], {})
    assert names(host) == ["1: lo"]
    assert list((host.run_dir / "netns").glob("*")) == []


@pytest.mark.parametrize("resources", STATES.values(), ids=STATES.keys())
async def test_making_what_is_there_already_changes_nothing_and_succeeds(host: Host, resources):
    desired = state(resources)
    await host.execute(plan(desired, {}, {}))
    before = names(host)

    errors = [error for error in await host.execute(plan(desired, {}, {})) if error]

    assert ([], before) == (errors, names(host))
    assert plan(desired, await host.observe(desired), {}) == ()


@pytest.mark.parametrize("resources", STATES.values(), ids=STATES.keys())
async def test_removing_what_is_gone_already_succeeds(host: Host, resources):
    desired = state(resources)
    await host.execute(plan(desired, {}, {}))
    await host.execute(plan({}, desired, {}))

    errors = [error for error in await host.execute(plan({}, desired, {})) if error]

    assert errors == []


FAR = Link(ns=HOST, name="w", kind="peer", peer=PeerEnd(ns=HOST, name="v"))
CHANGES = {
    "mtu": (Link(ns=HOST, name="b", kind="bridge", mtu=1500), Link(ns=HOST, name="b", kind="bridge", mtu=1400)),
    "mac": (
        Link(ns=HOST, name="b", kind="bridge", mac="02:00:00:00:00:01"),
        Link(ns=HOST, name="b", kind="bridge", mac="02:00:00:00:00:02"),
    ),
    "down": (Link(ns=HOST, name="b", kind="bridge"), Link(ns=HOST, name="b", kind="bridge", up=False)),
    "ipv6 on": (Link(ns=HOST, name="b", kind="bridge", ipv6=False), Link(ns=HOST, name="b", kind="bridge", ipv6=True)),
    "ipv6 off": (Link(ns=HOST, name="b", kind="bridge", ipv6=True), Link(ns=HOST, name="b", kind="bridge", ipv6=False)),
    "master": (
        Link(ns=HOST, name="v", kind="veth", peer=PeerEnd(ns=HOST, name="w")),
        Link(ns=HOST, name="v", kind="veth", master="nwb-1", port=Port(isolated=True), peer=PeerEnd(ns=HOST, name="w")),
    ),
    "no master": (
        Link(ns=HOST, name="v", kind="veth", master="nwb-1", peer=PeerEnd(ns=HOST, name="w")),
        Link(ns=HOST, name="v", kind="veth", peer=PeerEnd(ns=HOST, name="w")),
    ),
    "port": (
        Link(ns=HOST, name="v", kind="veth", master="nwb-1", port=Port(), peer=PeerEnd(ns=HOST, name="w")),
        Link(ns=HOST, name="v", kind="veth", master="nwb-1", port=Port(hairpin=True), peer=PeerEnd(ns=HOST, name="w")),
    ),
    "gateway": (
        Route(ns=HOST, destination="198.51.100.0/24", link="nwb-1", via="10.1.0.8"),
        Route(ns=HOST, destination="198.51.100.0/24", link="nwb-1", via="10.1.0.9"),
    ),
    "limit": (
        TokenBucket(ns=HOST, link="nwb-1", rate=125_000, burst=65536, limit=80000),
        TokenBucket(ns=HOST, link="nwb-1", rate=250_000, burst=70000, limit=90000),
    ),
    "setting": (
        Sysctl(ns=HOST, path="net/ipv4/ip_forward", value="0"),
        Sysctl(ns=HOST, path="net/ipv4/ip_forward", value="1"),
    ),
}


@pytest.mark.parametrize(("before", "after"), CHANGES.values(), ids=CHANGES.keys())
async def test_a_change_is_made_in_place(host: Host, before, after):
    other_end = [FAR] if isinstance(before, Link) and before.kind == "veth" else []
    desired = state([*bridge(), before, *other_end])
    await host.execute(plan(desired, {}, {}))
    wanted = state([*bridge(), after, *other_end])

    steps = plan(wanted, await host.observe(wanted), {})
    errors = [error for error in await host.execute(steps) if error]

    assert (len(steps), errors) == (1, [])
    assert plan(wanted, await host.observe(wanted), {}) == ()


async def test_a_remote_endpoint_that_moves_is_written_over(host: Host):
    await host.make(*overlay())
    wanted = state([*overlay()[:-3], *remote(9, vtep="192.0.2.77")])

    steps = plan(wanted, await host.observe(wanted), {})
    errors = [error for error in await host.execute(steps) if error]

    assert (len(steps), errors) == (1, [])
    assert "dst 192.0.2.77" in host.exec("bridge", "fdb", "show", "dev", "vxlan0", ns="network/n1")


async def test_a_removed_remote_endpoint_takes_what_the_bridge_learned_of_it_along(host: Host):
    await host.make(*overlay())
    mac = "02:42:0a:09:00:09"
    host.exec("bridge", "fdb", "add", mac, "dev", "vxlan0", "master", "dynamic", ns="network/n1")

    errors = await host.remove(*remote(9))

    assert (errors, host.exec("sh", "-c", f"bridge fdb | grep {mac} || true", ns="network/n1")) == ([], "")


async def test_an_address_of_a_network_namespace_made_by_somebody_else_is_ours_too(host: Host):
    await host.make(*overlay())
    host.exec("ip", "address", "add", "10.8.0.1/24", "dev", "br0", ns="network/n1")

    observed = await host.observe(state(overlay()))

    assert ("address", "network/n1", "br0", "10.8.0.1/24") in observed


async def test_what_others_make_on_the_host_is_not_observed(host: Host):
    host.exec("ip", "link", "add", "theirs", "type", "bridge")
    host.exec("ip", "link", "set", "theirs", "up")
    host.exec("ip", "address", "add", "203.0.113.1/24", "dev", "theirs")
    host.exec("ip", "route", "add", "198.51.100.0/24", "dev", "theirs")
    host.exec("ip", "neighbour", "add", "203.0.113.9", "lladdr", "02:00:00:00:00:09", "dev", "theirs")

    assert await host.observe({}) == {}

    host.exec("ip", "link", "del", "theirs")


async def test_a_wanted_link_that_is_somebody_elses_is_reported_as_foreign(host: Host):
    host.exec("ip", "link", "add", "nwb-1", "type", "bridge")
    wanted = state(bridge())

    observation = await host.kernel.observe(wanted)

    assert {("link", HOST, "nwb-1")} == observation.foreign == observation.resources.keys()

    host.exec("ip", "link", "del", "nwb-1")


async def test_only_the_asked_namespaces_are_looked_at(host: Host):
    resources = [*bridge(), *sandbox(1), *sandbox(2), *endpoint(1)]
    await host.make(*resources)

    observation = await host.kernel.observe(state(resources), ["sandbox/s1"])

    assert {"sandbox/s1"} == {resource.ns for resource in observation.resources.values()}


async def test_a_part_of_a_given_sandbox_is_found_without_asking_for_its_namespace(host: Host):
    with Netns("theirs") as theirs:
        namespace = Namespace(ns="sandbox/s1", source=theirs.path)
        await host.make(*bridge(), namespace, *endpoint())

        observation = await host.kernel.observe(state(endpoint()), ["sandbox/s1"])

        assert state([namespace]).items() <= observation.resources.items()
        assert ("address", "sandbox/s1", "eth0", "10.1.0.2/16") in observation.resources

        await host.remove(*endpoint(), namespace)


async def test_files_are_made_observed_and_removed_with_their_folder(host: Host):
    path = host.run_dir / "sandboxes" / "s1" / "hosts"
    wanted = state([File(ns="sandbox/s1", path=str(path), content="127.0.0.1 localhost\n"), *sandbox()])

    errors = [error for error in await host.execute(plan(wanted, {}, {})) if error]
    observed = await host.observe(wanted)
    text = path.read_text()
    await host.execute(plan({}, wanted, {}))

    assert (errors, plan(wanted, observed, {}), text) == ([], (), "127.0.0.1 localhost\n")
    assert not path.parent.parent.exists()
