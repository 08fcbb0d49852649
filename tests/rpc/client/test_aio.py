"""The asynchronous client against an in-process server with the real servicers."""

from __future__ import annotations

import asyncio
import errno
import ipaddress

import netweft_client
import pytest
from netweft.common.v1 import network_pb2
from netweft.controller.v1 import event_pb2
from netweft_client import errors
from netweft_common import client as common_client

pytestmark = pytest.mark.anyio

DOWN = errors.Unavailable("STORE_DOWN", "the store is down", retry_after_s=0.0)
EVERY_CLASS = [
    errors.InvalidArgument("NAME_MALFORMED", "bad name", field="name"),
    errors.NotFound("NETWORK_UNKNOWN", "no network", network="x"),
    errors.AlreadyExists("NAME_TAKEN", "taken"),
    errors.FailedPrecondition("POOL_OVERLAP", "overlap"),
    errors.PermissionDenied("ROLE_NOT_ALLOWED", "no"),
    errors.Unauthenticated("IDENTITY_MISSING", "who"),
    errors.Exhausted("POOL_FULL", "full"),
    errors.OutOfRange("REVISION_OLD", "old"),
    errors.Conflict("VERSION_MOVED", "moved"),
    errors.Unavailable("STORE_DOWN", "down", retry_after_s=100),
    errors.KernelError("ip link add x", "x", errno.EBUSY, "busy"),
    errors.Internal("BUG", "bug"),
]


@pytest.fixture
async def client(fake, target):
    async with (
        fake.serve(target),
        netweft_client.AsyncClient(target, ipam_target=target, timeout_s=10) as made,
    ):
        yield made


# Values


async def test_a_network_goes_out_and_comes_back_typed(fake, client):
    spec = netweft_client.SubnetSpec(
        subnet=ipaddress.ip_network("10.1.0.0/24"), gateway="10.1.0.1", aux_addresses={"dns": "10.1.0.5"}
    )

    network = await client.create_network("blue", subnets=[spec], enable_ipv4=False, labels={"team": "a"})

    [request] = fake.asked["CreateNetwork"]
    assert ("blue", True, {"team": "a"}) == (request.name, request.disable_ipv4, dict(request.labels))
    assert [
        netweft_client.Subnet(
            subnet=ipaddress.ip_network("10.1.0.0/24"),
            gateway=ipaddress.ip_address("10.1.0.1"),
            ip_range=None,
            aux_addresses={"dns": ipaddress.ip_address("10.1.0.5")},
            pool_id="",
        )
    ] == list(network.subnets)


async def test_details_say_who_uses_a_network(client):
    found = await client.get_network("blue")

    assert ("blue", 2, ("h1",)) == (found.network.name, found.endpoint_count, found.host_ids)


async def test_a_list_goes_over_all_pages(fake, client):
    found = [network.name async for network in client.list_networks("driver=bridge", page_size=2)]

    assert ["net-0", "net-1", "net-2", "net-3", "net-4"] == found
    assert ["", "2", "4"] == [request.page_token for request in fake.asked["ListNetworks"]]
    assert [["driver=bridge"]] * 3 == [list(request.filters) for request in fake.asked["ListNetworks"]]


@pytest.mark.parametrize(
    "namespace",
    [
        netweft_client.NewNamespace(),
        netweft_client.NamespacePath(path="/run/netns/c1"),
        netweft_client.NamespacePid(pid=42),
        netweft_client.HostNamespace(),
        netweft_client.HandoverNamespace(),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_each_kind_of_namespace_survives(client, namespace):
    spec = netweft_client.SandboxSpec(container_id="c1", namespace=namespace)

    assert namespace == (await client.create_sandbox(spec)).namespace


async def test_the_word_for_the_way_to_the_host_is_no_address_and_survives(client):
    extra = netweft_client.ExtraHost(name="up", address=netweft_client.model.HOST_GATEWAY)

    found = await client.create_sandbox(netweft_client.SandboxSpec(container_id="c1", extra_hosts=(extra,)))

    assert (extra,) == found.extra_hosts


async def test_dns_and_extra_hosts_survive(client):
    dns = netweft_client.Dns(servers=("192.0.2.53",), search=("example.com",), options=("ndots:0",))
    extra = netweft_client.ExtraHost(name="db", address=ipaddress.ip_address("192.0.2.9"))

    found = await client.create_sandbox(netweft_client.SandboxSpec(container_id="c1", dns=dns, extra_hosts=(extra,)))

    assert (dns, (extra,)) == (found.dns, found.extra_hosts)


async def test_a_sandbox_is_named_or_described(fake, client):
    await client.join_endpoint("web", "s1", network="blue")
    await client.join_endpoint("web", netweft_client.SandboxSpec(container_id="c1"), network="blue")

    first, second = fake.asked["JoinEndpoint"]
    assert ("s1", "c1") == (first.sandbox.sandbox, second.sandbox.spec.container_id)


async def test_an_answer_that_does_not_parse_is_the_servers_bug(fake, client):
    fake.networks = [network_pb2.Network(name="x", subnets=[network_pb2.Subnet(subnet="nonsense")])]

    with pytest.raises(errors.Internal) as caught:
        await anext(client.list_networks())

    assert "ANSWER_MALFORMED" == caught.value.reason


async def test_every_other_rpc_is_reached(fake, client, target):
    spec = netweft_client.EndpointSpec(network="blue", name="web")
    assert "web" == (await client.create_endpoint(spec)).name
    assert "web" == (await client.get_endpoint("web", network="blue")).name
    assert ["a"] == [item.name async for item in client.list_endpoints()]
    assert "web" == (await client.leave_endpoint("web")).name
    await client.delete_endpoint("web", force=True)
    assert ("s", ("e1",)) == ((found := await client.get_sandbox("s")).sandbox.id, found.endpoint_ids)
    assert ["s"] == [item.id async for item in client.list_sandboxes()]
    await client.delete_sandbox("s", force=True)
    assert ipaddress.ip_address("192.0.2.1") == (await client.get_host("h1")).vtep_address
    assert [netweft_client.HostState.READY] == [item.state async for item in client.list_hosts()]
    await client.delete_host("h1", force=True)
    await client.delete_network("blue")
    [plan] = await client.plan_attach([netweft_client.AttachItem(endpoint=spec, sandbox="s")])
    assert ("h1", ["ip link add"]) == (plan.host_id, [step.command for step in plan.steps])
    assert "p" == (await client.get_pool("p")).id
    assert ["p"] == [item.id async for item in client.list_pools()]
    assert ["10.0.0.2/16"] == [str(item.address) async for item in client.list_leases("p")]
    assert "10.0.0.9/16" == str((await client.lookup_address("10.0.0.9", address_space="s")).address)
    assert ["expired"] == [item.type.value async for item in client.list_lease_events("p")]
    ref = netweft_client.ObjectRef(kind=netweft_client.ObjectKind.SANDBOX, id="s")
    assert ("link nwb-1",) == (await client.observe(target, ref)).resources
    assert "6.1" == (await client.get_facts(target)).kernel_release

    mutations = ["CreateEndpoint", "LeaveEndpoint", "DeleteEndpoint", "DeleteSandbox", "DeleteHost", "DeleteNetwork"]
    assert [] == [name for name in mutations if not fake.asked[name][0].request_id]


# Errors and batches


@pytest.mark.parametrize("error", EVERY_CLASS, ids=lambda error: type(error).__name__)
async def test_an_error_of_a_call_arrives_as_itself(fake, client, error):
    fake.failures["CreateNetwork"] = [error]

    with pytest.raises(errors.NetweftError) as caught:
        await client.create_network("blue")

    assert (type(error), error.args) == (type(caught.value), caught.value.args)


@pytest.mark.parametrize("error", EVERY_CLASS, ids=lambda error: type(error).__name__)
async def test_an_error_of_an_item_stands_at_its_place(fake, client, error):
    fake.items = {1: error}
    items = [
        netweft_client.AttachItem(endpoint=netweft_client.EndpointSpec(network="blue", name=name), sandbox="s")
        for name in "abc"
    ]

    found = await client.attach_endpoints(items)

    assert ["a", "c"] == [item.endpoint.name for item in (found[0], found[2])]
    assert (type(error), error.args) == (type(found[1]), found[1].args)


async def test_one_attach_raises_what_a_batch_returns(fake, client):
    spec = netweft_client.EndpointSpec(network="blue", name="web")
    attached = await client.attach_endpoint(spec, "s")
    fake.items = {0: errors.Exhausted("POOL_FULL", "full")}

    assert (ipaddress.ip_address("10.0.0.1"),) == attached.gateways
    with pytest.raises(errors.Exhausted):
        await client.attach_endpoint(spec, "s")


async def test_one_detach_raises_what_a_batch_returns(fake, client):
    assert [None] == await client.detach_endpoints([netweft_client.DetachItem(endpoint="e")])
    fake.items = {0: errors.FailedPrecondition("HOST_LOST", "lost")}
    with pytest.raises(errors.FailedPrecondition):
        await client.detach_endpoint("e", network="blue", delete_sandbox=True)


async def test_a_batch_beyond_the_limit_becomes_calls_with_keys_of_their_own(fake, client):
    items = [netweft_client.DetachItem(endpoint=str(number)) for number in range(2050)]

    found = await client.detach_endpoints(items, request_id="mine")

    requests = fake.asked["DetachEndpoints"]
    assert [None] * 2050 == found
    assert [("mine", 1024), ("mine/1", 1024), ("mine/2", 2)] == [
        (request.request_id, len(request.items)) for request in requests
    ]
    assert [str(number) for number in range(2050)] == [item.endpoint for each in requests for item in each.items]


# Retries


async def test_a_retry_keeps_the_request_id(fake, client):
    fake.failures["CreateNetwork"] = [DOWN, DOWN]

    network = await client.create_network("blue")

    ids = [request.request_id for request in fake.asked["CreateNetwork"]]
    assert "blue" == network.name
    assert (3, 1) == (len(ids), len(set(ids)))


async def test_two_calls_have_two_request_ids(fake, client):
    await client.delete_network("blue")
    await client.delete_network("blue")

    assert 2 == len({request.request_id for request in fake.asked["DeleteNetwork"]})


async def test_a_request_id_may_be_given(fake, client):
    await client.delete_network("blue", request_id="mine")

    assert "mine" == fake.asked["DeleteNetwork"][0].request_id


@pytest.mark.parametrize(
    "error",
    [error for error in EVERY_CLASS if not isinstance(error, errors.Unavailable)],
    ids=lambda e: type(e).__name__,
)
async def test_nothing_but_unavailable_is_retried(fake, client, error):
    fake.failures["DeleteNetwork"] = [error]

    with pytest.raises(type(error)):
        await client.delete_network("blue")

    assert 1 == len(fake.asked["DeleteNetwork"])


async def test_a_wait_that_would_pass_the_deadline_is_not_begun(fake, client):
    fake.failures["DeleteNetwork"] = [errors.Unavailable("STORE_DOWN", "down", retry_after_s=60)]

    async with asyncio.timeout(5):
        with pytest.raises(errors.Unavailable, match="STORE_DOWN"):
            await client.delete_network("blue")


async def test_zero_means_no_retry(fake, target):
    fake.failures["DeleteNetwork"] = [DOWN]
    async with fake.serve(target), netweft_client.AsyncClient(target, ipam_target=target, retry_for_s=0) as client:
        with pytest.raises(errors.Unavailable):
            await client.delete_network("blue")

    assert 1 == len(fake.asked["DeleteNetwork"])


async def test_a_controller_that_comes_up_late_is_met(fake, target):
    async with netweft_client.AsyncClient(target, ipam_target=target) as client, asyncio.TaskGroup() as group:
        asked = group.create_task(client.create_network("blue"))
        await asyncio.sleep(0)
        async with fake.serve(target):
            assert "blue" == (await asked).name


async def test_a_controller_that_restarts_is_met_again(fake, target):
    async with netweft_client.AsyncClient(target, ipam_target=target) as client:
        async with fake.serve(target):
            await client.create_network("before")
        async with asyncio.TaskGroup() as group:
            asked = group.create_task(client.create_network("after"))
            async with fake.serve(target):
                assert "after" == (await asked).name


async def test_a_call_that_is_not_answered_ends_at_its_deadline(fake, client):
    fake.hold.clear()

    with pytest.raises(errors.Unavailable) as caught:
        await client.delete_network("blue", timeout_s=0.2)

    assert "DEADLINE_EXCEEDED" == caught.value.reason


async def test_nobody_there_says_where_and_what_to_do(target):
    async with netweft_client.AsyncClient(target, ipam_target=target, retry_for_s=0) as client:
        with pytest.raises(errors.Unavailable, match=r"c\.sock does not answer GetNetwork; check that it runs"):
            await client.get_network("blue")


async def test_a_closed_client_says_so_at_once(fake, target):
    async with fake.serve(target):
        async with netweft_client.AsyncClient(target, ipam_target=target) as client:
            await client.get_network("blue")
        with pytest.raises(errors.Unavailable) as caught:
            await client.get_network("blue")

    assert "CONNECTION_CLOSED" == caught.value.reason


async def test_a_call_inside_an_rpc_keeps_a_cancelled_one_cancelled(fake, client):
    fake.hold.clear()
    asked = asyncio.create_task(client.delete_network("blue"))
    await fake.entered.wait()
    asked.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asked
    assert 1 == len(fake.asked["DeleteNetwork"])


# Watching


def response(revision: int, *names: str) -> event_pb2.WatchResponse:
    events = [
        event_pb2.Event(
            revision=revision, action=event_pb2.EVENT_ACTION_CREATED, network=network_pb2.Network(name=name)
        )
        for name in names
    ]
    return event_pb2.WatchResponse(events=events, revision=revision)


async def test_a_watch_resumes_by_revision_after_a_break(fake, client):
    fake.feeds = [([response(5, "a"), response(7)], DOWN), ([response(9, "b", "c")], None)]

    found = []
    async for event in client.watch("type=network", after_revision=4):
        found.append((event.revision, event.action.value, event.object.name))
        if len(found) == 3:
            break

    assert [(5, "created", "a"), (9, "created", "b"), (9, "created", "c")] == found
    assert [4, 7] == [request.after_revision for request in fake.asked["Watch"]]
    assert [["type=network"]] * 2 == [list(request.filters) for request in fake.asked["Watch"]]


async def test_batches_show_bookmarks(fake, client):
    fake.feeds = [([response(5), response(7, "a")], None)]
    stream = client.watch_batches()

    found = [await anext(stream), await anext(stream)]
    await stream.aclose()

    assert [(5, 0), (7, 1)] == [(batch.revision, len(batch.events)) for batch in found]


async def test_a_watch_survives_the_restart_of_its_controller(fake, target):
    fake.feeds = [([response(5, "a")], None), ([response(6, "b")], None)]
    async with netweft_client.AsyncClient(target, ipam_target=target) as client:
        stream = client.watch()
        async with fake.serve(target):
            first = await anext(stream)
        async with fake.serve(target):
            second = await anext(stream)
        await stream.aclose()

    assert ["a", "b"] == [first.object.name, second.object.name]
    assert [0, 5] == [request.after_revision for request in fake.asked["Watch"]]


async def test_a_watch_of_leases_resumes_by_event_id(fake, client):
    stream = client.watch_leases("p", after_id="4")

    found = [await anext(stream) for _ in range(3)]
    await stream.aclose()

    assert ["5", "6", "7"] == [event.id for event in found]
    assert ["4", "5", "6"] == [request.after_id for request in fake.asked["WatchLeases"]]


async def test_a_revision_older_than_the_log_is_told_and_not_retried(fake, client):
    fake.feeds = [([], errors.OutOfRange("REVISION_OLD", "list again"))]

    with pytest.raises(errors.OutOfRange):
        await anext(client.watch(after_revision=1))

    assert 1 == len(fake.asked["Watch"])


async def test_a_watch_gives_up_where_nobody_answers(target):
    async with netweft_client.AsyncClient(target, ipam_target=target, retry_for_s=0.05) as client:
        with pytest.raises(errors.Unavailable):
            await anext(client.watch())


async def test_an_event_of_an_unknown_kind_is_left_out(fake, client):
    fake.feeds = [([event_pb2.WatchResponse(events=[event_pb2.Event(revision=3)], revision=3)], None)]
    stream = client.watch_batches()

    found = await anext(stream)
    await stream.aclose()

    assert (3, ()) == (found.revision, found.events)


def test_the_library_names_methods_as_the_client_expects():
    class Callable:
        _method = b"/netweft.ipam.v1.IpamService/GetPool"

    assert "/netweft.ipam.v1.IpamService/GetPool" == common_client.method_name(Callable())
