"""AgentService over a real gRPC server on a unix socket, with the engine on the kernel's double."""

from __future__ import annotations

import asyncio

import pytest
from netweft.agent.v1 import agent_pb2
from netweft.common.v1 import endpoint_pb2, network_pb2, sandbox_pb2
from netweft_agent.engine.journal import Position
from netweft_agent.kernel.api import Statistics
from netweft_common.errors import InvalidArgument, KernelError, NotFound, Unavailable
from netweft_common.status import from_item_status

from tests.support.agent import lasting, oid, put, refused, sandbox

pytestmark = pytest.mark.anyio


def network_message(number=1, **fields):
    return network_pb2.Network(
        id=oid(number),
        name=f"net{number}",
        driver="bridge",
        subnets=[network_pb2.Subnet(subnet=f"10.{number}.0.0/24", gateway=f"10.{number}.0.1")],
        enable_ipv4=True,
        **fields,
    )


def endpoint_message(number=1001, sandbox=101, **fields):
    return endpoint_pb2.Endpoint(
        id=oid(number),
        name=f"ep{number}",
        network_id=oid(1),
        sandbox_id=oid(sandbox),
        addresses=[f"10.1.0.{number % 250 + 2}/24"],
        **fields,
    )


def attach(revision=1, number=1001, **fields):
    return [
        agent_pb2.Change(revision=revision, network=network_message()),
        agent_pb2.Change(revision=revision, sandbox=sandbox_pb2.Sandbox(id=oid(101))),
        agent_pb2.Change(revision=revision, endpoint=endpoint_message(number, **fields)),
    ]


def removal(revision, kind, identifier):
    return agent_pb2.Change(revision=revision, gone=agent_pb2.ObjectRef(kind=kind, id=identifier))


async def test_apply_attaches_and_answers_each_change(agent):
    answer = await agent.call("Apply", agent_pb2.ApplyRequest(changes=attach()))

    assert [0, 0, 0] == [one.status.code for one in answer.statuses]
    assert "eth0" == answer.statuses[2].interface_name
    assert f"/run/netweft/netns/sandbox-{oid(101)}" == answer.statuses[1].netns_path
    assert all(one.was_applied for one in answer.statuses)
    assert agent.rig.rendered() == agent.rig.kernel.state


async def test_apply_again_does_nothing_and_answers_the_same(agent):
    first = await agent.call("Apply", agent_pb2.ApplyRequest(changes=attach()))
    before = agent.rig.count()

    second = await agent.call("Apply", agent_pb2.ApplyRequest(changes=attach()))

    assert first == second
    assert before == agent.rig.count()


async def test_many_callers_at_once_are_answered_each_with_its_own(agent):
    await agent.call("Apply", agent_pb2.ApplyRequest(changes=attach()[:2]))

    answers = await asyncio.gather(
        *(
            agent.call("Apply", agent_pb2.ApplyRequest(changes=[attach(2, 2000 + at, interface_name=f"if{at}")[2]]))
            for at in range(40)
        )
    )

    assert [f"if{at}" for at in range(40)] == [one.statuses[0].interface_name for one in answers]
    assert agent.rig.rendered() == agent.rig.kernel.state


async def test_the_kernels_error_comes_back_in_the_status_and_the_others_are_well(agent):
    agent.rig.kernel.fail_at = lambda step: refused(step, 17) if step.owner == f"endpoint/{oid(1001)}" else None
    changes = [*attach(), agent_pb2.Change(revision=1, endpoint=endpoint_message(1002))]

    answer = await agent.call("Apply", agent_pb2.ApplyRequest(changes=changes))

    error = from_item_status(answer.statuses[2].status)
    assert isinstance(error, KernelError)
    assert ("KERNEL_EEXIST", 17) == (error.reason, error.errno)
    assert not answer.statuses[2].was_applied
    assert [0, 0, 0] == [answer.statuses[at].status.code for at in (0, 1, 3)]


async def test_apply_of_another_store_is_unavailable(agent):
    await agent.rig.engine.apply(put(1, sandbox()), Position(store_id="old", revision=1))

    with pytest.raises(Unavailable, match="still follows old"):
        await agent.call("Apply", agent_pb2.ApplyRequest(changes=attach(), store_id="new"))

    assert agent.rig.engine.store.network(oid(1)) is None


async def test_apply_takes_what_is_gone(agent):
    await agent.call("Apply", agent_pb2.ApplyRequest(changes=attach()))

    gone = [
        removal(2, agent_pb2.OBJECT_KIND_ENDPOINT, oid(1001)),
        removal(2, agent_pb2.OBJECT_KIND_SANDBOX, oid(101)),
        removal(2, agent_pb2.OBJECT_KIND_NETWORK, oid(1)),
    ]
    answer = await agent.call("Apply", agent_pb2.ApplyRequest(changes=gone))

    assert [0, 0, 0] == [one.status.code for one in answer.statuses]
    assert {} == lasting(agent.rig.kernel.state)


WRONG = {
    "no changes": ([], "changes"),
    "too many": ([agent_pb2.Change(revision=1, network=network_message())] * 4097, "changes"),
    "nothing in it": ([agent_pb2.Change(revision=1)], "changes[0]"),
    "the third is malformed": (
        [*attach()[:2], attach(2, mac_address="nonsense")[2]],
        "changes[2].endpoint.mac_address",
    ),
    "a path that leads up": (
        [agent_pb2.Change(revision=1, sandbox=sandbox_pb2.Sandbox(id=oid(1), hosts_path="/a/../etc/shadow"))],
        "changes[0].sandbox.hosts_path",
    ),
    "a huge name": (
        [*attach()[:2], attach(2, interface_name="x" * 1_000_000)[2]],
        "changes[2].endpoint.interface_name",
    ),
}


@pytest.mark.parametrize("method", ["Apply", "Plan"])
@pytest.mark.parametrize(("changes", "field"), WRONG.values(), ids=WRONG)
async def test_a_malformed_call_names_the_field_and_changes_nothing(agent, method, changes, field):
    before = agent.rig.path.read_bytes()

    with pytest.raises(InvalidArgument) as caught:
        await agent.call(method, getattr(agent_pb2, f"{method}Request")(changes=changes))

    assert field == caught.value.field
    assert {} == agent.rig.engine.store.objects
    assert {} == agent.rig.kernel.state
    assert before == agent.rig.path.read_bytes()


async def test_plan_says_what_apply_would_do_and_does_nothing(agent):
    await agent.call("Apply", agent_pb2.ApplyRequest(changes=attach()[:2]))
    before = agent.rig.count()

    answer = await agent.call("Plan", agent_pb2.PlanRequest(changes=attach(2)))

    assert before == agent.rig.count()
    assert "ip address add 10.1.0.3/24 dev eth0" in [one.command for one in answer.steps]
    (veth,) = [one for one in answer.steps if "type veth" in one.command]
    assert f"endpoint/{oid(1001)}" == veth.owner
    assert f"ip link del nwv-{oid(1001)[:11]}" == veth.inverse
    await agent.call("Apply", agent_pb2.ApplyRequest(changes=attach(2)))
    assert [one.command for one in answer.steps] == [
        command for step in agent.rig.kernel.executed[before:] if (command := step.command())
    ]


async def test_plan_raises_what_apply_would_refuse(agent):
    with pytest.raises(NotFound, match="was not told of network"):
        await agent.call("Plan", agent_pb2.PlanRequest(changes=[attach()[2]]))


async def test_observe_shows_what_is_there_and_what_is_missing(agent):
    await agent.call("Apply", agent_pb2.ApplyRequest(changes=attach()))
    del agent.rig.kernel.state["route", f"sandbox/{oid(101)}", "0.0.0.0/0"]

    answer = await agent.call("Observe", agent_pb2.ObserveRequest())

    assert sorted(answer.resources) == list(answer.resources)
    assert f"sandbox/{oid(101)}: ip address add 10.1.0.3/24 dev eth0" in answer.resources
    assert ["ip route add 0.0.0.0/0 via 10.1.0.1 dev eth0 proto 110"] == [one.command for one in answer.drift]
    assert [0, 0, 0] == [one.status.code for one in answer.statuses]


async def test_observe_of_one_object_shows_its_part(agent):
    await agent.call("Apply", agent_pb2.ApplyRequest(changes=attach()))
    ref = agent_pb2.ObjectRef(kind=agent_pb2.OBJECT_KIND_ENDPOINT, id=oid(1001))

    answer = await agent.call("Observe", agent_pb2.ObserveRequest(object=ref))

    heads = (
        "host: ip link add nwv-",
        "host: nft 'add element bridge netweft own4 ",
        f"sandbox/{oid(101)}: ip address add 10.1.0.3/24 ",
        f"sandbox/{oid(101)}: ip link set eth0 ",
    )
    assert len(heads) == len(answer.resources)
    assert all(one.startswith(head) for head, one in zip(heads, answer.resources, strict=True))
    assert [] == list(answer.drift)
    assert [oid(1001)] == [one.object.id for one in answer.statuses]


async def test_observe_of_what_is_not_held_is_not_found(agent):
    ref = agent_pb2.ObjectRef(kind=agent_pb2.OBJECT_KIND_ENDPOINT, id=oid(9))

    with pytest.raises(NotFound):
        await agent.call("Observe", agent_pb2.ObserveRequest(object=ref))


async def test_a_sandbox_is_made_once_and_removed_with_what_is_in_it(agent):
    request = agent_pb2.CreateSandboxRequest(sandbox=sandbox_pb2.Sandbox(id=oid(101), hostname="web"))

    first = await agent.call("CreateSandbox", request)
    count = agent.rig.count()
    second = await agent.call("CreateSandbox", request)
    again = agent.rig.count()
    await agent.call("Apply", agent_pb2.ApplyRequest(changes=[attach(2)[0], attach(2)[2]]))
    for _ in range(2):
        await agent.call("DeleteSandbox", agent_pb2.DeleteSandboxRequest(sandbox_id=oid(101)))

    assert first == second
    assert count == again
    assert f"/run/netweft/netns/sandbox-{oid(101)}" == first.status.netns_path
    assert {} == lasting(agent.rig.kernel.state)


async def test_a_sandbox_that_cannot_be_made_says_why_and_leaves_nothing(agent):
    agent.rig.kernel.fail_at = lambda step: refused(step, 2) if step.resource.key[0] == "netns" else None
    box = sandbox_pb2.Sandbox(id=oid(101), namespace=sandbox_pb2.Namespace(path="/run/netns/gone"))

    answer = await agent.call("CreateSandbox", agent_pb2.CreateSandboxRequest(sandbox=box))

    assert "KERNEL_ENOENT" == answer.status.status.reason
    assert {} == lasting(agent.rig.kernel.state)
    assert {} == agent.rig.engine.store.objects


async def test_a_sandbox_that_cannot_be_removed_is_told_and_the_call_can_be_repeated(agent):
    await agent.call("CreateSandbox", agent_pb2.CreateSandboxRequest(sandbox=sandbox_pb2.Sandbox(id=oid(101))))
    agent.rig.kernel.fail_at = lambda step: refused(step) if step.after is None else None

    with pytest.raises(KernelError):
        await agent.call("DeleteSandbox", agent_pb2.DeleteSandboxRequest(sandbox_id=oid(101), revision=4))
    agent.rig.kernel.fail_at = None
    await agent.call("DeleteSandbox", agent_pb2.DeleteSandboxRequest(sandbox_id=oid(101), revision=4))

    assert {} == lasting(agent.rig.kernel.state)


@pytest.mark.parametrize("identifier", ["", "x", "../../etc", oid(1) + "0"])
async def test_a_sandbox_id_that_is_none_is_refused(agent, identifier):
    with pytest.raises(InvalidArgument) as caught:
        await agent.call("DeleteSandbox", agent_pb2.DeleteSandboxRequest(sandbox_id=identifier))

    assert caught.value.field.startswith("sandbox_id")


async def test_facts_name_the_host_and_its_drivers(agent):
    answer = await agent.call("GetFacts", agent_pb2.GetFactsRequest())

    assert ("h" * 32, "6.1") == (answer.host_id, answer.facts.kernel_release)
    assert {"bridge", "overlay", "host", "null"} == {one.name for one in answer.facts.drivers}


async def test_a_refresh_repairs_one_sandbox_says_what_and_announces_its_addresses(agent):
    await agent.call("Apply", agent_pb2.ApplyRequest(changes=attach()))
    agent.rig.kernel.announced.clear()
    del agent.rig.kernel.state["route", f"sandbox/{oid(101)}", "0.0.0.0/0"]
    request = agent_pb2.RefreshSandboxRequest(sandbox_id=oid(101))

    first = await agent.call("RefreshSandbox", request)
    second = await agent.call("RefreshSandbox", request)

    assert ["ip route add 0.0.0.0/0 via 10.1.0.1 dev eth0 proto 110"] == [one.command for one in first.repaired]
    assert [] == list(second.repaired)
    assert [(f"sandbox/{oid(101)}", "eth0")] * 2 == [(one.ns, one.link) for one, _ in agent.rig.kernel.announced]


async def test_counters_are_told_with_the_endpoint_that_has_the_interface(agent):
    await agent.call("Apply", agent_pb2.ApplyRequest(changes=attach()))
    agent.rig.kernel.counters[f"sandbox/{oid(101)}", "eth0"] = Statistics(rx_bytes=7, tx_dropped=2**40)

    answer = await agent.call("GetStatistics", agent_pb2.GetStatisticsRequest(sandbox_id=oid(101)))

    assert [("eth0", oid(1001), 7, 2**40)] == [
        (one.interface_name, one.endpoint_id, one.rx_bytes, one.tx_dropped) for one in answer.interfaces
    ]


@pytest.mark.parametrize("method", ["RefreshSandbox", "GetStatistics"])
async def test_a_sandbox_that_is_not_held_is_not_found(agent, method):
    with pytest.raises(NotFound):
        await agent.call(method, getattr(agent_pb2, f"{method}Request")(sandbox_id=oid(9)))
