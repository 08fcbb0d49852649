"""What the kernel layer does when it is refused something, or meets what is not ours."""

from __future__ import annotations

import resource

import pytest
from netweft_agent.domain.plan import Operation, plan
from netweft_agent.domain.resources import HOST, Address, Link, Namespace, PeerEnd, Port, Route, Vxlan
from netweft_common import errors

from tests.support.kernel import Host, bridge, endpoint, new_host, overlay, sandbox, state
from tests.support.netns import Netns, require_root

pytestmark = [pytest.mark.netns, pytest.mark.anyio]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def host(anyio_backend):
    require_root()
    async with new_host() as made:
        yield made


def adding(*resources, owner):
    return plan(state(resources), {}, dict.fromkeys(state(resources), owner))


def reasons(results):
    return [error.reason if error else None for error in results]


async def test_a_link_of_somebody_else_is_left_alone_and_named(host: Host):
    host.exec("ip", "link", "add", "nwb-1", "type", "bridge")
    before = host.exec("ip", "-o", "link", "show", "nwb-1")

    (error, _) = await host.make(*bridge())

    assert isinstance(error, errors.FailedPrecondition)
    assert (error.reason, error.metadata["link"]) == ("FOREIGN_LINK", "nwb-1")
    assert before == host.exec("ip", "-o", "link", "show", "nwb-1")

    host.exec("ip", "link", "del", "nwb-1")


async def test_a_link_of_somebody_else_is_not_deleted(host: Host):
    host.exec("ip", "link", "add", "nwb-1", "type", "bridge")

    errors_ = await host.remove(bridge()[0])

    assert (reasons(errors_), "nwb-1" in host.exec("ip", "link")) == (["FOREIGN_LINK"], True)

    host.exec("ip", "link", "del", "nwb-1")


async def test_an_interface_name_taken_in_the_sandbox_is_told_and_no_half_is_left(host: Host):
    await host.make(*bridge(), *sandbox())
    host.exec("ip", "link", "add", "eth0", "type", "bridge", ns="sandbox/s1")

    results = await host.execute(adding(*endpoint(), owner="endpoint/1"))

    assert {"FOREIGN_LINK"} == set(reasons(results))
    assert "eth0 in sandbox/s1" in str(results[0])
    assert "nwv-1" not in host.exec("ip", "link")


async def test_after_a_refusal_the_owners_other_steps_are_skipped_and_the_others_go_on(host: Host):
    await host.make(*bridge(), *sandbox(1), *sandbox(2))
    host.exec("ip", "link", "add", "nwv-1", "type", "bridge")
    wanted = state([*endpoint(1), *endpoint(2)])
    owners = {
        key: "endpoint/1" if "nwv-1" in str(part) or "s1" in str(part) else "endpoint/2" for key, part in wanted.items()
    }
    steps = plan(wanted, {}, owners)

    results = await host.execute(steps)

    assert {"endpoint/1": {"FOREIGN_LINK"}, "endpoint/2": {None}} == {
        owner: {reason for step, reason in zip(steps, reasons(results), strict=True) if step.owner == owner}
        for owner in ("endpoint/1", "endpoint/2")
    }
    assert "10.1.0.3/16" in host.exec("ip", "address", ns="sandbox/s2")

    host.exec("ip", "link", "del", "nwv-1")


async def test_a_tunnel_whose_vni_somebody_else_has_is_told_by_vni_and_port(host: Host):
    host.exec("ip", "link", "add", "vx9", "type", "vxlan", "id", "4096", "dstport", "4789", "local", "192.0.2.1")
    vxlan = Link(ns=HOST, name="vxlan0", kind="vxlan", vxlan=Vxlan(vni=4096, local="192.0.2.1"))

    (error,) = await host.make(vxlan)

    assert (error.reason, error.metadata["vni"], error.metadata["port"]) == ("VNI_IN_USE", "4096", "4789")
    assert "remove it" in error.message
    assert "vx9" in host.exec("ip", "link")

    host.exec("ip", "link", "del", "vx9")

    assert await host.make(vxlan) == []


async def test_a_missing_bridge_is_told_by_name(host: Host):
    await host.make(*sandbox())

    results = await host.execute(adding(*endpoint(), owner="endpoint/1"))

    assert {"MASTER_NOT_FOUND"} == set(reasons(results))
    assert "nwb-1" in str(results[0])


async def test_a_bridge_that_somebody_made_anew_is_found_again(host: Host):
    await host.make(*bridge(), *sandbox())
    host.exec("ip", "link", "del", "nwb-1")
    host.exec("ip", "link", "add", "nwb-1", "group", "28279", "type", "bridge")

    errors_ = await host.make(*endpoint())

    assert (errors_, "master nwb-1" in host.exec("ip", "link", "show", "nwv-1")) == ([], True)


async def test_a_link_that_somebody_made_anew_is_found_again_for_its_addresses(host: Host):
    await host.make(*bridge())
    host.exec("ip", "link", "del", "nwb-1")
    host.exec("ip", "link", "add", "nwb-1", "group", "28279", "type", "bridge")

    errors_ = await host.make(bridge()[1])

    assert (errors_, "10.1.0.1/16" in host.exec("ip", "address", "show", "nwb-1")) == ([], True)


async def test_a_link_that_fails_after_its_birth_is_taken_away_again(host: Host):
    await host.make(*sandbox())
    vxlan = Link(
        ns="sandbox/s1",
        name="vx",
        kind="vxlan",
        master="missing",
        vxlan=Vxlan(vni=7, local="192.0.2.1"),
        socket_ns=HOST,
    )

    results = await host.execute(adding(vxlan, owner="endpoint/1"))

    assert {"MASTER_NOT_FOUND"} == set(reasons(results))
    await host.kernel.observe({})
    assert [line.split(":")[1].strip() for line in host.exec("ip", "-o", "link", ns="sandbox/s1").splitlines()] == [
        "lo"
    ]


async def test_the_kernels_own_words_are_passed_on(host: Host):
    await host.make(*bridge())

    (error,) = await host.make(Route(ns=HOST, destination="198.51.100.0/24", link="nwb-1", via="203.0.113.1"))

    assert isinstance(error, errors.KernelError)
    assert "ENETUNREACH" in str(error)
    assert "ip route add 198.51.100.0/24 via 203.0.113.1 dev nwb-1" in str(error)
    assert "route 198.51.100.0/24 in the host" in str(error)
    assert error.detail


async def test_a_route_of_somebody_else_is_left_alone_and_named(host: Host):
    await host.make(*bridge())
    host.exec("ip", "route", "add", "198.51.100.0/24", "via", "10.1.0.9")

    (error,) = await host.make(Route(ns=HOST, destination="198.51.100.0/24", link="nwb-1", via="10.1.0.8"))

    assert (error.reason, "via 10.1.0.9" in host.exec("ip", "route")) == ("FOREIGN_ROUTE", True)


async def test_removing_a_route_leaves_somebody_elses_to_the_same_destination(host: Host):
    await host.make(*bridge())
    host.exec("ip", "route", "add", "198.51.100.0/24", "via", "10.1.0.9")

    errors_ = await host.remove(Route(ns=HOST, destination="198.51.100.0/24", link="nwb-1", via="10.1.0.9"))

    assert (errors_, "198.51.100.0/24" in host.exec("ip", "route")) == ([], True)


async def test_a_veth_of_ours_that_leads_elsewhere_is_made_anew(host: Host):
    await host.make(*bridge(), *sandbox(1), *sandbox(2), *endpoint(1))
    near = endpoint(1)[0]
    moved = Link(
        ns=HOST,
        name=near.name,
        kind="veth",
        mtu=1450,
        master="nwb-1",
        ipv6=False,
        peer=PeerEnd(ns="sandbox/s2", name="eth0"),
        port=Port(),
    )

    errors_ = await host.make(moved)

    assert errors_ == []
    assert "eth0" not in host.exec("ip", "link", ns="sandbox/s1")
    assert "eth0" in host.exec("ip", "link", ns="sandbox/s2")


async def test_what_is_in_a_namespace_that_is_not_held_is_refused_by_name_and_its_removal_succeeds(host: Host):
    lost = Address(ns="sandbox/lost", link="eth0", address="10.1.0.2/16")

    (error,) = await host.make(lost)

    assert (error.reason, error.metadata["namespace"]) == ("NETNS_NOT_HELD", "sandbox/lost")
    assert await host.remove(lost) == []


async def test_a_given_namespace_that_vanished_is_named(host: Host):
    (error,) = await host.make(Namespace(ns="sandbox/s1", source="/run/does-not-exist/netns"))

    assert isinstance(error, errors.NotFound)
    assert "/run/does-not-exist/netns" in str(error)


async def test_removing_a_given_namespace_leaves_it_and_what_others_made_in_it(host: Host):
    with Netns("theirs") as theirs:
        theirs.exec(["ip", "link", "add", "own", "type", "bridge"])
        namespace = Namespace(ns="sandbox/s1", source=theirs.path)
        await host.make(*bridge(), namespace, *endpoint())
        everything = state([namespace, *endpoint()])

        errors_ = [error for error in await host.execute(plan({}, everything, {})) if error]
        await host.kernel.observe({})

        assert errors_ == []
        names = [line.split(":")[1].strip() for line in theirs.exec(["ip", "-o", "link"]).stdout.splitlines()]
        assert sorted(names) == ["lo", "own"]


async def test_an_undone_attach_leaves_nothing(host: Host):
    await host.make(*bridge(), *sandbox())
    steps = adding(*endpoint(), owner="endpoint/1")
    await host.execute(steps)

    results = await host.execute([step.inverse() for step in reversed(steps)])

    assert [None] * len(steps) == results
    assert plan(state([*bridge(), *sandbox()]), await host.observe(state([*bridge(), *sandbox()])), {}) == ()


async def test_an_ipv6_neighbour_on_a_link_without_ipv6_is_refused_in_the_kernels_words(host: Host):
    parts = overlay()
    off = [
        Link(ns=p.ns, name=p.name, kind=p.kind, master=p.master, ipv6=False, vxlan=p.vxlan, socket_ns=p.socket_ns)
        if isinstance(p, Link) and p.kind == "vxlan"
        else p
        for p in parts
    ]

    results = await host.execute([Operation(before=None, after=part, owner=str(n)) for n, part in enumerate(off)])

    assert [error.reason for error in results if error] == ["KERNEL_EINVAL"]


async def test_a_process_without_a_descriptor_left_says_so_for_each_step_and_goes_on_later(host: Host):
    await host.make(*bridge(), *sandbox())
    host.kernel._executor.sockets.forget("sandbox/s1")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        results = await host.execute(adding(Address(ns="sandbox/s1", link="lo", address="10.1.9.9/32"), owner="e"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert reasons(results) == ["KERNEL_EMFILE"]
    assert await host.make(*endpoint()) == []


async def test_a_bridge_that_is_full_is_named_and_takes_a_port_when_there_is_room(host: Host):
    await host.make(*bridge(), *sandbox())
    host.exec("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
    others = (f"link add a{n} master nwb-1 type ifb" for n in range(1023))
    host.netns.exec(["ip", "-batch", "-"], stdin="\n".join(others))

    full = await host.make(*endpoint())
    left = host.exec("ip", "-o", "link", "show", "type", "veth")
    host.exec("ip", "link", "del", "a7")
    again = await host.make(*endpoint())

    assert isinstance(full[0], errors.Exhausted)
    assert ("BRIDGE_FULL", "nwb-1") == (full[0].reason, full[0].metadata["master"])
    assert "nwv-" not in left
    assert [] == again
