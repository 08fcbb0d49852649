"""What a crash, a refusal or a silence at each step of a saga leaves behind: nothing, after the reconciler."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
from netweft.controller.v1 import endpoint_pb2, network_pb2, sandbox_pb2
from netweft.ipam.v1 import ipam_pb2
from netweft_common import errors

pytestmark = pytest.mark.anyio

KERNEL = errors.KernelError("ip link add", "nwv-1", 17)


class Crash(Exception):
    """Stands for the death of the process at this point: nothing of the saga runs after it."""


def break_call(monkeypatch, owner, method, *, nth=1, after):
    """Have the nth call crash, before it is made or after it was."""
    real = getattr(owner, method)
    count = 0

    async def broken(*args, **fields):
        nonlocal count
        count += 1
        if count == nth and not after:
            raise Crash
        result = await real(*args, **fields)
        if count == nth and after:
            raise Crash
        return result

    monkeypatch.setattr(owner, method, broken)


def crash_points(controller):
    return {
        "before leases": (controller.ipam, "request_addresses", 1, False),
        "after leases": (controller.ipam, "request_addresses", 1, True),
        "before the record": (controller.replica, "commit", 1, False),
        "after the record": (controller.replica, "commit", 1, True),
        "before the kernel": (controller.agents, "apply", 1, False),
        "after the kernel": (controller.agents, "apply", 1, True),
    }


ATTACH_POINTS = [
    "before leases", "after leases", "before the record", "after the record", "before the kernel", "after the kernel",
]  # fmt: skip


def assert_nothing_left(world, face):
    state = face.state
    assert {} == {id_: record.value.name for id_, record in state.endpoints.items()}
    assert {} == {id_: record.value.container_id for id_, record in state.sandboxes.items()}
    assert [] == world.ipam.endpoint_leases()
    for agent in world.agents.values():
        assert [] == agent.names("endpoint")
        assert [] == agent.names("sandbox")


async def crash(face, monkeypatch, point, work):
    """Do some work that crashes at a point; confirmations wait, as they die with the process."""
    with monkeypatch.context() as patch:
        patch.setattr(face.controller.settler, "confirm", lambda *_args: None)
        break_call(patch, *point[:2], nth=point[2], after=point[3])
        with contextlib.suppress(errors.NetweftError, Crash):
            await work


@pytest.mark.parametrize("point", ATTACH_POINTS)
async def test_an_attach_that_crashes_and_that_the_kernel_refuses_leaves_nothing(
    world, face, make_item, monkeypatch, point
):
    await face.network()
    world.agents["h1"].refuse["web"] = KERNEL

    await crash(face, monkeypatch, crash_points(face.controller)[point], face.attach(make_item(name="web")))
    await face.reconcile()

    assert_nothing_left(world, face)
    await face.networks.DeleteNetwork(network_pb2.DeleteNetworkRequest(network="front"))
    assert {} == world.ipam.pools


@pytest.mark.parametrize("point", ATTACH_POINTS)
async def test_an_attach_that_crashes_is_finished_or_gone_and_a_retry_succeeds(
    world, face, make_item, monkeypatch, point
):
    await face.network()
    items = (make_item(name="web"), make_item(name="db", container="c2", host="h2"))

    await crash(face, monkeypatch, crash_points(face.controller)[point], face.attach(*items, request_id="r1"))
    results = await face.attach(*items, request_id="r1")
    await face.settled()

    assert [0, 0] == [result.status.code for result in results], results
    assert 2 == len(world.ipam.endpoint_leases())
    assert ["joined", "joined"] == [record.value.state for record in face.state.endpoints.values()]
    assert ["web"] == world.agents["h1"].names("endpoint")
    again = await face.attach(*items, request_id="r1")
    assert [r.endpoint.id for r in results] == [r.endpoint.id for r in again]
    await face.detach("web", "db", delete_sandbox=True)
    assert_nothing_left(world, face)


@pytest.mark.parametrize("point", ATTACH_POINTS)
async def test_an_attach_that_crashes_and_is_not_retried_is_whole_or_gone(world, face, make_item, monkeypatch, point):
    await face.network()

    await crash(face, monkeypatch, crash_points(face.controller)[point], face.attach(make_item(name="web")))
    await face.reconcile()

    recorded = [lease.address for record in face.state.endpoints.values() for lease in record.value.leases]
    assert recorded == world.ipam.endpoint_leases()
    assert [record.value.name for record in face.state.endpoints.values()] == world.agents["h1"].names("endpoint")
    assert all(record.value.state == "joined" for record in face.state.endpoints.values())
    assert ("record" in point and "after" in point) or "kernel" in point or not recorded


async def test_the_kernels_refusal_is_answered_and_leaves_nothing(world, face, make_item):
    await face.network()
    world.agents["h1"].refuse["web"] = KERNEL

    web, db = await face.attach(make_item(name="web"), make_item(name="db", container="c2"))

    assert "KERNEL_EEXIST" == web.status.reason
    assert 0 == db.status.code
    assert ["db"] == [record.value.name for record in face.state.endpoints.values()]
    assert ["c2"] == [record.value.container_id for record in face.state.sandboxes.values()]
    assert 1 == len(world.ipam.endpoint_leases())


async def test_a_refused_sandbox_takes_its_endpoints_with_it(world, face, make_item):
    await face.network()
    world.agents["h1"].refuse["c1"] = errors.InvalidArgument("NOT_A_NAMESPACE", "that is no namespace", field="path")

    (result,) = await face.attach(make_item(name="web"))

    assert "NOT_A_NAMESPACE" == result.status.reason
    assert_nothing_left(world, face)


async def test_a_retry_after_a_refusal_tries_again(world, face, make_item):
    await face.network()
    world.agents["h1"].refuse["web"] = KERNEL
    await face.attach(make_item(name="web"), request_id="r1")
    world.agents["h1"].refuse.clear()

    (result,) = await face.attach(make_item(name="web"), request_id="r1")

    assert 0 == result.status.code, result.status


@pytest.mark.parametrize("applied", [False, True], ids=["the host did nothing", "the host did it"])
async def test_a_silent_host_answers_unavailable_and_the_attach_is_undone(world, face, make_item, applied):
    await face.network()
    agent = world.agents["h1"]
    silence = errors.Unavailable("GONE", "no answer")
    if applied:

        async def fall_silent():
            agent.before_answer = None
            raise silence

        agent.before_answer = fall_silent
    else:
        agent.fail["Apply"] = silence

    (result,) = await face.attach(make_item(name="web"), request_id="r1")

    assert "HOST_UNREACHABLE" == result.status.reason
    assert "h1" in result.status.message
    await face.reconcile()
    assert_nothing_left(world, face)
    (retried,) = await face.attach(make_item(name="web"), request_id="r1")
    assert 0 == retried.status.code, retried.status


async def test_a_retry_while_the_first_try_is_being_undone_succeeds(world, face, make_item):
    await face.network()
    world.agents["h1"].fail["Apply"] = errors.Unavailable("GONE", "no answer")
    await face.attach(make_item(name="web"), request_id="r1")

    (retried,) = await face.attach(make_item(name="web"), request_id="r1")

    assert 0 == retried.status.code, retried.status
    assert 1 == len(world.ipam.endpoint_leases())


async def test_ipam_that_does_not_answer_fails_the_batch_and_leaves_nothing(world, face, make_item):
    await face.network()
    world.ipam.fail["RequestAddresses"] = errors.Internal("BROKEN", "broken")

    with pytest.raises(errors.Internal):
        await face.attach(make_item(name="web"))

    assert_nothing_left(world, face)


async def test_an_attach_waits_while_the_hosts_report_to_ipam_what_they_hold(world, face, make_item):
    await face.network()
    before = world.ipam.calls["RequestAddresses"]
    world.ipam.fail["RequestAddresses"] = errors.Unavailable("POOL_SETTLING", "hosts report", retry_after_s=0.01)

    [attached] = await face.attach(make_item(name="web"))

    assert 0 == attached.status.code
    assert 2 == world.ipam.calls["RequestAddresses"] - before


async def test_an_attach_waits_no_longer_for_ipams_hosts_than_its_caller(world, face, make_item):
    await face.network()
    world.ipam.fail["RequestAddresses"] = errors.Unavailable("POOL_SETTLING", "hosts report", retry_after_s=60)

    with pytest.raises(errors.Unavailable, match="hosts report") as caught:
        await face.attach(make_item(name="web"))

    assert "POOL_SETTLING" == caught.value.reason
    assert_nothing_left(world, face)


async def test_one_address_in_use_fails_its_item_only(world, face, make_item):
    await face.network()
    await face.attach(make_item(name="web", addresses=["172.17.0.9"]))

    taken, fine = await face.attach(
        make_item(name="a", container="c2", addresses=["172.17.0.9"]), make_item(name="b", container="c3")
    )

    assert "ADDRESS_IN_USE" == taken.status.reason
    assert 0 == fine.status.code
    assert 2 == len(world.ipam.endpoint_leases())


DETACH_POINTS = {
    "before the mark": ("replica", "commit", 1, False),
    "after the mark": ("replica", "commit", 1, True),
    "before the kernel": ("agents", "apply", 1, False),
    "after the kernel": ("agents", "apply", 1, True),
    "before the release": ("ipam", "release_addresses", 1, False),
    "after the release": ("ipam", "release_addresses", 1, True),
    "before the end": ("replica", "commit", 2, False),
    "after the end": ("replica", "commit", 2, True),
}


@pytest.mark.parametrize("point", DETACH_POINTS)
async def test_a_detach_that_crashes_is_finished_by_the_reconciler_or_a_retry(
    world, face, make_item, monkeypatch, point
):
    await face.network()
    await face.attach(make_item(name="web"))
    await face.settled()
    owner, *rest = DETACH_POINTS[point]

    await crash(
        face,
        monkeypatch,
        (getattr(face.controller, owner), *rest),
        face.detach("web", request_id="r1", delete_sandbox=True),
    )
    if point == "before the mark":
        await face.detach("web", request_id="r1", delete_sandbox=True)
    await face.reconcile()

    assert_nothing_left(world, face)
    (status,) = await face.detach("web", request_id="r1", delete_sandbox=True)
    assert 0 == status.code, status


async def test_a_detach_on_a_silent_host_is_recorded_and_done_when_it_returns(world, face, make_item):
    await face.network()
    await face.attach(make_item(name="web"))
    world.agents["h1"].fail["Apply"] = errors.Unavailable("GONE", "no answer")

    (status,) = await face.detach("web", delete_sandbox=True)

    assert "HOST_UNREACHABLE" == status.reason
    assert 1 == len(world.ipam.endpoint_leases())
    await face.reconcile()
    assert_nothing_left(world, face)


NETWORK_POINTS = {
    "before a pool": ("ipam", "request_pool", 1, False),
    "after a pool": ("ipam", "request_pool", 1, True),
    "after the second pool": ("ipam", "request_pool", 2, True),
    "before the gateway": ("ipam", "request_addresses", 1, False),
    "after the gateway": ("ipam", "request_addresses", 1, True),
    "before the record": ("replica", "commit", 1, False),
    "after the record": ("replica", "commit", 1, True),
}


@pytest.mark.parametrize("retried", [False, True], ids=["left alone", "retried"])
@pytest.mark.parametrize("point", NETWORK_POINTS)
async def test_a_network_whose_creation_crashes_is_whole_or_gone(world, face, monkeypatch, point, retried):
    owner, *rest = NETWORK_POINTS[point]
    request = network_pb2.CreateNetworkRequest(request_id="r1", name="front", enable_ipv6=True)
    subnet = request.subnets.add()
    subnet.subnet = "10.9.0.0/24"

    await crash(face, monkeypatch, (getattr(face.controller, owner), *rest), face.networks.CreateNetwork(request))
    if retried:
        created = await face.networks.CreateNetwork(request)
        assert "10.9.0.1" == created.network.subnets[0].gateway
    await face.reconcile()

    recorded = [subnet.pool_id for record in face.state.networks.values() for subnet in record.value.subnets]
    assert sorted(recorded) == sorted(world.ipam.pools)
    assert len(recorded) == (2 if retried or point == "after the record" else 0)


# Where orphans are looked for


def lease_to(world, pool_id, owner):
    """Lease an address behind the controller's back."""
    kind = ipam_pb2.OWNER_KIND_ENDPOINT
    item = ipam_pb2.AddressRequest(pool_id=pool_id, owner=ipam_pb2.Owner(key=owner, kind=kind))
    return world.ipam._lease(item).lease.address


async def later(face):
    """Make one pass of the reconciler after a long time."""
    reconciler = face.controller.reconciler
    now_s = reconciler._monotonic() + 3600
    reconciler._monotonic = lambda: now_s
    return await reconciler.return_orphans()


async def test_pools_with_as_many_leases_as_recorded_are_looked_at_in_turn(world, face, make_item, monkeypatch):
    monkeypatch.setattr("netweft_controller.engine.reconcile._LOOKED_AT", 4)
    for number in range(6):
        await face.network(f"n{number}")
    await face.attach(*(make_item(f"n{number}", name="e", container=f"c{number}") for number in range(6)))
    await face.settled()
    pools = list(world.ipam.pools)
    looked_at = [await looks(face, monkeypatch) for _ in range(6)]

    # Gateway and endpoint are two leases, so it is two pools a pass, and three passes once round.
    assert [2] * 6 == [len(one) for one in looked_at]
    assert sorted(pools) == sorted(one for part in looked_at[:3] for one in part)
    assert sorted(pools) == sorted(one for part in looked_at[3:] for one in part)


async def test_an_orphan_is_found_at_once_in_whichever_pool(world, face, make_item, monkeypatch):
    monkeypatch.setattr("netweft_controller.engine.reconcile._LOOKED_AT", 1)
    for number in range(5):
        await face.network(f"n{number}")
    orphans = [lease_to(world, pool_id, "f" * 32) for pool_id in world.ipam.pools]
    assert sorted(orphans) == sorted(world.ipam.endpoint_leases())

    assert 0 == await face.controller.reconciler.return_orphans()
    assert 5 == await later(face)

    assert [] == world.ipam.endpoint_leases()


async def test_an_orphan_whose_pool_lacks_a_recorded_lease_is_found_in_its_turn(world, face, make_item, monkeypatch):
    monkeypatch.setattr("netweft_controller.engine.reconcile._LOOKED_AT", 1)
    for number in range(3):
        await face.network(f"n{number}")
    await face.attach(make_item("n1", name="web"))
    await face.settled()
    (held,) = world.ipam.endpoint_leases()
    pool_id = next(pool_id for pool_id, leases in world.ipam.leases.items() if held.partition("/")[0] in leases)
    del world.ipam.leases[pool_id][held.partition("/")[0]]
    lease_to(world, pool_id, "a" * 32)

    # One pool a pass: it is seen when the pool has its turn, and is old enough in the pass after that.
    returned = [await later(face) for _ in range(7)]

    assert 1 == sum(returned)
    assert 0 == returned[0]
    assert [] == world.ipam.endpoint_leases()


async def looks(face, monkeypatch):
    """Make one pass; returns the pools whose leases were listed."""
    listed = []
    leases = face.controller.ipam.leases

    def noted(pool_id):
        listed.append(pool_id)
        return leases(pool_id)

    with monkeypatch.context() as patched:
        patched.setattr(face.controller.ipam, "leases", noted)
        await face.controller.reconciler.return_orphans()
    return listed


# Orphans that were returned, or were about to be, when their request is tried again


async def test_an_attach_is_retried_at_once_after_its_orphans_were_returned(world, face, make_item, monkeypatch):
    await face.network()
    items = (make_item(name="web"), make_item(name="db", container="c2"))
    crashed = crash_points(face.controller)["after leases"]
    await crash(face, monkeypatch, crashed, face.attach(*items, request_id="r1"))
    await face.reconcile()
    assert [] == world.ipam.endpoint_leases()

    results = await face.attach(*items, request_id="r1")

    assert [0, 0] == [result.status.code for result in results], results
    assert 2 == len(world.ipam.endpoint_leases())


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_an_attach_is_retried_at_once_after_the_reconciler_died_at_its_orphans_return(
    world, face, make_item, monkeypatch, after
):
    await face.network()
    crashed = crash_points(face.controller)["after leases"]
    await crash(face, monkeypatch, crashed, face.attach(make_item(name="web"), request_id="r1"))
    await crash(face, monkeypatch, (face.controller.ipam, "release_addresses", 1, after), face.reconcile())

    (result,) = await face.attach(make_item(name="web"), request_id="r1")
    await face.reconcile()

    assert 0 == result.status.code, result
    assert list(result.endpoint.addresses) == world.ipam.endpoint_leases()


@pytest.mark.parametrize("subnet", ["", "10.9.0.0/24"], ids=["any subnet", "a subnet"])
async def test_a_network_is_made_by_a_retry_at_once_after_its_orphans_were_returned(world, face, monkeypatch, subnet):
    request = creation(subnet)
    await crash(face, monkeypatch, (face.controller.replica, "commit", 1, False), face.networks.CreateNetwork(request))
    await face.reconcile()
    assert {} == world.ipam.pools

    created = await face.networks.CreateNetwork(request)

    assert [created.network.subnets[0].pool_id] == list(world.ipam.pools)


async def test_a_network_is_not_made_while_its_orphans_are_being_returned(world, face, monkeypatch):
    request = creation("10.9.0.0/24")
    await crash(face, monkeypatch, (face.controller.replica, "commit", 1, False), face.networks.CreateNetwork(request))
    await crash(face, monkeypatch, (face.controller.ipam, "release_pool", 1, False), face.reconcile())

    with pytest.raises(errors.Conflict):
        await face.networks.CreateNetwork(request)

    assert {} == face.state.networks == world.ipam.pools


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_what_a_reconciler_has_left_by_its_death_is_taken_up_by_another(world, face, monkeypatch, after):
    request = creation("10.9.0.0/24")
    await crash(face, monkeypatch, (face.controller.replica, "commit", 1, False), face.networks.CreateNetwork(request))
    await crash(face, monkeypatch, (face.controller.ipam, "release_pool", 1, after), face.reconcile())
    other = await world.start_controller()
    other.controller.reconciler._clock = lambda: time.time() + 16

    await other.controller.reconciler.return_orphans()

    assert {} == world.ipam.pools
    created = await other.networks.CreateNetwork(request)
    assert [created.network.subnets[0].pool_id] == list(world.ipam.pools)


async def test_a_saga_that_held_what_was_returned_does_not_record_it(world, face, make_item, monkeypatch):
    await face.network()
    commit = face.controller.replica.commit
    held = asyncio.Event()
    go = asyncio.Event()

    async def late(change):
        if change.once is not None and not held.is_set():
            held.set()
            await go.wait()
        return await commit(change)

    monkeypatch.setattr(face.controller.replica, "commit", late)
    attaching = asyncio.create_task(face.attach(make_item(name="web")))
    await held.wait()
    await face.reconcile()
    assert [] == world.ipam.endpoint_leases()
    go.set()

    (result,) = await attaching
    assert 0 == result.status.code, result
    assert list(result.endpoint.addresses) == world.ipam.endpoint_leases()


def creation(subnet, name="front"):
    request = network_pb2.CreateNetworkRequest(request_id="r1", name=name)
    if subnet:
        request.subnets.add().subnet = subnet
    return request


async def test_tombs_are_dropped_when_no_saga_can_be_that_old(world, face, make_item, monkeypatch):
    await face.network()
    crashed = crash_points(face.controller)["after leases"]
    await crash(face, monkeypatch, crashed, face.attach(make_item(name="web")))
    create = face.networks.CreateNetwork(creation("", "back"))
    await crash(face, monkeypatch, (face.controller.replica, "commit", 1, False), create)
    await face.reconcile()
    store = face.controller.store
    assert 2 == len(await store.find_claims("tomb/"))
    face.controller.reconciler._clock = lambda: time.time() + 121

    await face.controller.reconciler.return_orphans()

    assert {} == await store.find_claims("tomb/")


DELETE_POINTS = {
    "after the mark": ("replica", "commit", 1, True),
    "before the pool": ("ipam", "release_pool", 1, False),
    "after the pool": ("ipam", "release_pool", 1, True),
    "before the end": ("replica", "commit", 2, False),
}


@pytest.mark.parametrize("point", DELETE_POINTS)
async def test_a_deletion_of_a_network_that_crashes_is_finished(world, face, monkeypatch, point):
    await face.network()
    owner, *rest = DELETE_POINTS[point]
    request = network_pb2.DeleteNetworkRequest(request_id="r1", network="front")

    await crash(face, monkeypatch, (getattr(face.controller, owner), *rest), face.networks.DeleteNetwork(request))
    await face.reconcile()

    assert {} == world.ipam.pools
    assert {} == face.state.networks
    await face.networks.DeleteNetwork(request)
    await face.network()


async def test_a_join_that_the_kernel_refuses_keeps_the_endpoint(world, face):
    await face.network()
    created = await face.endpoints.CreateEndpoint(
        endpoint_pb2.CreateEndpointRequest(endpoint=endpoint_pb2.EndpointSpec(network="front", name="web"))
    )
    world.agents["h1"].refuse["web"] = KERNEL
    request = endpoint_pb2.JoinEndpointRequest(
        request_id="r1",
        endpoint="web",
        sandbox=endpoint_pb2.SandboxRef(spec=endpoint_pb2.SandboxSpec(host="h1", container_id="c1")),
    )

    with pytest.raises(errors.NetweftError, match="refused"):
        await face.endpoints.JoinEndpoint(request)

    (record,) = face.state.endpoints.values()
    assert "created" == record.value.state
    assert list(created.endpoint.addresses) == [lease.address for lease in record.value.leases]
    assert {} == face.state.sandboxes
    world.agents["h1"].refuse.clear()
    joined = await face.endpoints.JoinEndpoint(request)
    assert "eth0" == joined.endpoint.interface_name


async def test_a_sandbox_that_the_kernel_refuses_leaves_nothing(world, face):
    world.agents["h1"].refuse["c1"] = KERNEL

    with pytest.raises(errors.NetweftError, match="refused"):
        await face.sandboxes.CreateSandbox(
            sandbox_pb2.CreateSandboxRequest(sandbox=endpoint_pb2.SandboxSpec(host="h1", container_id="c1"))
        )

    assert_nothing_left(world, face)


async def test_a_caller_that_goes_away_leaves_nothing_half_made(world, face, make_item):
    await face.network()
    agent = world.agents["h1"]
    asked, answer = asyncio.Event(), asyncio.Event()

    async def wait():
        asked.set()
        await answer.wait()

    agent.before_answer = wait
    calling = asyncio.create_task(face.attach(make_item(name="web"), request_id="r1"))
    await asked.wait()
    calling.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await calling
    answer.set()

    (result,) = await face.attach(make_item(name="web"), request_id="r1")

    assert 0 == result.status.code
    assert ["web"] == agent.names("endpoint")
    assert 1 == len(world.ipam.endpoint_leases())


async def test_a_request_id_with_another_body_is_refused(face, make_item):
    await face.network()
    await face.attach(make_item(name="web"), request_id="r1")

    with pytest.raises(errors.AlreadyExists, match="r1"):
        await face.attach(make_item(name="other", container="c2"), request_id="r1")


async def test_a_retry_after_the_endpoint_has_gone_gets_the_first_answer_and_attaches_nothing(world, face, make_item):
    await face.network()
    (first,) = await face.attach(make_item(name="web"), request_id="r1")
    await face.settled()
    await face.detach("web", delete_sandbox=True)

    (second,) = await face.attach(make_item(name="web"), request_id="r1")

    assert first.endpoint == second.endpoint
    assert_nothing_left(world, face)


async def test_a_detach_that_found_nothing_takes_nothing_away_when_it_is_asked_for_again(world, face, make_item):
    await face.network()

    first = await face.detach("web", network="front", request_id="d1")
    await face.attach(make_item(name="web"))
    again = await face.detach("web", network="front", request_id="d1")

    assert [0, 0] == [result.code for result in (*first, *again)]
    assert ["web"] == [record.value.name for record in face.state.endpoints.values()]
    with pytest.raises(errors.AlreadyExists):
        await face.detach("db", network="front", request_id="d1")
