"""The double behaves like the real kernel where the engine would notice."""

from __future__ import annotations

import asyncio

import pytest
from netweft_agent.domain.plan import plan
from netweft_agent.domain.resources import HOST, Address, Link, Namespace, PeerEnd, Route, Sysctl
from netweft_agent.kernel.fake import Crash, FakeKernel
from netweft_common import errors

pytestmark = pytest.mark.anyio

NS = "sandbox/s1"
SPACE = Namespace(ns=NS)
BRIDGE = Link(ns=HOST, name="nwb-1", kind="bridge")
NEAR = Link(ns=HOST, name="nwv-1", kind="veth", master="nwb-1", peer=PeerEnd(ns=NS, name="eth0"))
FAR = Link(ns=NS, name="eth0", kind="peer", peer=PeerEnd(ns=HOST, name="nwv-1"))
ADDRESS = Address(ns=NS, link="eth0", address="10.1.0.2/16")
ROUTE = Route(ns=NS, destination="0.0.0.0/0", link="eth0", via="10.1.0.1")
SETTING = Sysctl(ns=HOST, path="net/ipv4/ip_forward", value="1")
ALL = [SPACE, SETTING, BRIDGE, NEAR, FAR, ADDRESS, ROUTE]


@pytest.fixture
def anyio_backend():
    return "asyncio"


def state(*resources):
    return {resource.key: resource for resource in resources}


def adding(*resources, owner="test"):
    return plan(state(*resources), {}, dict.fromkeys(state(*resources), owner))


async def test_what_was_made_is_observed():
    kernel = FakeKernel()

    results = await kernel.execute(adding(*ALL))

    assert [None] * len(ALL) == results
    assert state(*ALL) == dict((await kernel.observe(state(*ALL))).resources)


async def test_settings_are_only_observed_when_asked_for_and_never_put_back():
    kernel = FakeKernel()
    await kernel.execute(adding(SETTING))
    await kernel.execute(plan({}, state(SETTING), {}))

    assert {} == dict((await kernel.observe({})).resources)
    assert state(SETTING) == dict((await kernel.observe(state(SETTING))).resources)


async def test_a_link_takes_what_is_on_it_along():
    kernel = FakeKernel()
    await kernel.execute(adding(*ALL))

    await kernel.execute(plan({}, state(NEAR, FAR, ADDRESS, ROUTE), {}))

    assert state(SPACE, SETTING, BRIDGE) == kernel.state


async def test_commands_are_recorded_with_their_namespace():
    kernel = FakeKernel()

    await kernel.execute(adding(SPACE, SETTING))

    assert ["sandbox/s1: ip netns add sandbox-s1", "host: sysctl -w net.ipv4.ip_forward=1"] == kernel.commands()


async def test_after_an_injected_failure_the_owners_other_steps_are_skipped_with_its_error():
    error = errors.KernelError("ip", "address", 22)
    kernel = FakeKernel(fail_at=lambda step: error if step.after == ADDRESS else None)

    results = await kernel.execute([*adding(*ALL, owner="endpoint/1"), *adding(SETTING, owner="host")])

    assert [None] * 5 + [error, error, None] == results
    assert state(SPACE, SETTING, BRIDGE, NEAR, FAR) == kernel.state


async def test_a_crash_leaves_what_was_done_until_then():
    kernel = FakeKernel()
    kernel.crash_after(3)

    with pytest.raises(Crash):
        await kernel.execute(adding(*ALL))
    done = dict(kernel.state)
    await kernel.execute(adding(*ALL))

    assert (state(SPACE, SETTING, BRIDGE), state(*ALL)) == (done, kernel.state)


async def test_what_lacks_its_need_is_refused():
    results = await FakeKernel().execute(adding(ADDRESS))

    assert ["MISSING_NEED"] == [error.reason for error in results if error]


async def test_what_is_somebody_elses_is_refused_and_reported():
    kernel = FakeKernel()
    kernel.state = state(BRIDGE)
    kernel.foreign = {BRIDGE.key}

    results = await kernel.execute(adding(BRIDGE))
    observation = await kernel.observe(state(BRIDGE))

    assert ["FOREIGN_LINK"] == [error.reason for error in results if error]
    assert ({BRIDGE.key}, {}) == (observation.foreign, dict((await kernel.observe({})).resources))


async def test_only_the_asked_namespaces_are_observed():
    kernel = FakeKernel()
    await kernel.execute(adding(*ALL))

    observation = await kernel.observe(state(*ALL), [NS])

    assert state(SPACE, FAR, ADDRESS, ROUTE) == dict(observation.resources)


@pytest.mark.parametrize(
    ("namespace", "path"),
    [(SPACE, "/run/netweft/netns/sandbox-s1"), (Namespace(ns=NS, source="/run/netns/x"), "/run/netns/x")],
    ids=["made", "given"],
)
async def test_a_held_namespace_has_a_path(namespace, path):
    kernel = FakeKernel()
    await kernel.execute(adding(namespace))

    assert (path, "") == (kernel.netns_path(NS), kernel.netns_path("sandbox/other"))


async def test_drift_is_told_until_closed():
    kernel = FakeKernel()
    told = asyncio.create_task(_collect(kernel))
    kernel.drift(NS)
    kernel.drift()

    await kernel.close()

    assert [NS, HOST] == await told


async def _collect(kernel):
    return [ns async for ns in kernel.changes()]
