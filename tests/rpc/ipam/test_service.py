"""The service over gRPC: what a client sends and gets."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from netweft.ipam.v1 import ipam_pb2 as pb

pytestmark = pytest.mark.anyio

CODE = {code.value[0]: code.name for code in grpc.StatusCode}


def item(pool: str, key: str = "e", address: str = "", **owner: object) -> pb.AddressRequest:
    return pb.AddressRequest(pool_id=pool, address=address, owner=pb.Owner(key=key, **owner))


async def make_pool(stub, subnet: str = "10.1.0.0/24", space: str = "GlobalDefault") -> str:
    return (await stub.RequestPool(pb.RequestPoolRequest(address_space=space, subnet=subnet))).pool.id


def told(error: grpc.RpcError) -> tuple[str, str, str]:
    """Return code, reason and field of a failed call."""
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return error.code().name, info.reason, info.metadata.get("field", "")


async def test_the_default_spaces_are_libnetworks(stub):
    answer = await stub.GetDefaultAddressSpaces(pb.GetDefaultAddressSpacesRequest())

    assert ("LocalDefault", "GlobalDefault") == (answer.local, getattr(answer, "global"))


async def test_a_network_is_numbered_from_pool_to_release(stub):
    request = pb.RequestPoolRequest(address_space="LocalDefault", labels={"net": "web"}, exclude=["172.17.0.0/16"])
    pool = (await stub.RequestPool(request)).pool

    leased = await stub.RequestAddresses(
        pb.RequestAddressesRequest(
            items=[
                item(pool.id, "net", kind=pb.OWNER_KIND_GATEWAY),
                item(pool.id, "e1", "172.18.0.9", host_id="h1"),
                item(pool.id, "e2", "172.18.0.9"),
            ]
        )
    )
    listed = await stub.ListLeases(pb.ListLeasesRequest(pool_id=pool.id))
    full = (await stub.GetPool(pb.GetPoolRequest(pool_id=pool.id))).pool
    released = await stub.ReleaseAddresses(
        pb.ReleaseAddressesRequest(
            items=[
                pb.AddressRelease(pool_id=pool.id, address="172.18.0.9", owner_key=key) for key in ("e2", "e1", "e1")
            ]
        )
    )
    await stub.ReleasePool(pb.ReleasePoolRequest(pool_id=pool.id, release_infrastructure=True))

    assert ("LocalDefault/172.18.0.0/16", "172.18.0.0/16", {"net": "web"}) == (pool.id, pool.subnet, dict(pool.labels))
    assert [0, 0, 9] == [result.status.code for result in leased.results]
    assert ["172.18.0.1/16", "172.18.0.9/16"] == [lease.address for lease in listed.leases]
    assert [result.lease for result in leased.results[:2]] == list(listed.leases)
    assert pb.Owner(key="e1", host_id="h1", kind=pb.OWNER_KIND_ENDPOINT) == listed.leases[1].owner
    assert (65534, 2, 2) == (full.use.capacity, full.use.leased, full.use.reserved)
    assert ["NOT_THE_OWNER", "", ""] == [result.reason for result in released.results]
    assert 0 == len((await stub.ListPools(pb.ListPoolsRequest())).pools)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"address_space": ""}, ("ADDRESS_SPACE_MALFORMED", "address_space")),
        ({"address_space": "a/b"}, ("ADDRESS_SPACE_MALFORMED", "address_space")),
        ({"address_space": "x" * 65}, ("ADDRESS_SPACE_MALFORMED", "address_space")),
        ({"subnet": "10.1.0.0"}, ("SUBNET_MALFORMED", "subnet")),
        ({"subnet": "/24"}, ("SUBNET_MALFORMED", "subnet")),
        ({"subnet": "10.1.0.0/33"}, ("SUBNET_MALFORMED", "subnet")),
        ({"subnet": "10.1.0.0/255.255.0.0"}, ("SUBNET_MALFORMED", "subnet")),
        ({"subnet": "fe80::%eth0/64"}, ("SUBNET_MALFORMED", "subnet")),
        ({"subnet": "10.1.0.1/24"}, ("SUBNET_HOST_BITS", "subnet")),
        ({"subnet": "0.0.0.0/0"}, ("SUBNET_SIZE", "subnet")),
        ({"subnet": "0.0.0.0/7"}, ("SUBNET_SIZE", "subnet")),
        ({"ip_range": "10.1.0.0/25"}, ("RANGE_WITHOUT_SUBNET", "ip_range")),
        ({"subnet": "10.1.0.0/24", "ip_range": "10.2.0.0/25"}, ("RANGE_OUTSIDE_SUBNET", "ip_range")),
        ({"subnet": "10.1.0.0/24", "ip_range": "fd00::/64"}, ("RANGE_OUTSIDE_SUBNET", "ip_range")),
        ({"exclude": ["10.0.0.0/8", "x"]}, ("SUBNET_MALFORMED", "exclude[1]")),
        ({"request_id": "x" * 129}, ("REQUEST_ID_MALFORMED", "request_id")),
        ({"request_id": "a b"}, ("REQUEST_ID_MALFORMED", "request_id")),
        ({"labels": {"x": "y" * 1_000_000}}, ("LABELS_SIZE", "labels")),
        ({"labels": {"": "y"}}, ("LABELS_SIZE", "labels")),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_a_malformed_request_for_a_pool_names_the_field_and_changes_nothing(stub, request_, expected):
    with pytest.raises(grpc.RpcError) as caught:
        await stub.RequestPool(pb.RequestPoolRequest(**{"address_space": "GlobalDefault", **request_}))

    assert ("INVALID_ARGUMENT", *expected) == told(caught.value)
    assert 0 == len((await stub.ListPools(pb.ListPoolsRequest())).pools)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"pool_id": ""}, ("POOL_ID_MALFORMED", "items[1].pool_id")),
        ({"pool_id": "GlobalDefault/10.1.0.0/24/x"}, ("POOL_ID_MALFORMED", "items[1].pool_id")),
        ({"pool_id": "GlobalDefault/10.9.0.0/24"}, ("POOL_UNKNOWN", "")),
        ({"address": "10.1.0"}, ("ADDRESS_MALFORMED", "items[1].address")),
        ({"address": "10.1.0.5/24"}, ("ADDRESS_MALFORMED", "items[1].address")),
        ({"address": "fd00::1"}, ("ADDRESS_MALFORMED", "items[1].address")),
        ({"address": "10.1.1.1"}, ("ADDRESS_OUTSIDE_POOL", "items[1].address")),
        ({"address": "10.1.0.0"}, ("ADDRESS_RESERVED", "items[1].address")),
        ({"address": "10.1.0.255"}, ("ADDRESS_RESERVED", "items[1].address")),
        ({"owner": pb.Owner()}, ("OWNER_KEY_MALFORMED", "items[1].owner.key")),
        ({"owner": pb.Owner(key="é" * 129)}, ("OWNER_KEY_MALFORMED", "items[1].owner.key")),
        ({"owner": pb.Owner(key="e", host_id="a b")}, ("HOST_ID_MALFORMED", "items[1].owner.host_id")),
        ({"owner": pb.Owner(key="e", kind=9)}, ("OWNER_KIND_UNKNOWN", "items[1].owner.kind")),
        ({"ttl_seconds": 2**32 - 1}, ("TTL_TOO_LONG", "items[1].ttl_seconds")),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_a_bad_item_has_its_own_status_and_the_others_are_leased(stub, wrong, expected):
    pool = await make_pool(stub)
    bad = pb.AddressRequest(**{"pool_id": pool, "owner": pb.Owner(key="bad"), **wrong})

    answer = await stub.RequestAddresses(pb.RequestAddressesRequest(items=[item(pool, "a"), bad, item(pool, "b")]))

    first, second, third = answer.results
    assert expected == (second.status.reason, second.status.metadata["field"])
    assert not second.HasField("lease")
    assert ["10.1.0.1/24", "10.1.0.2/24"] == [first.lease.address, third.lease.address]


@pytest.mark.parametrize("count", [0, 4097])
async def test_a_batch_is_of_1_to_4096_items(stub, count):
    pool = await make_pool(stub)

    with pytest.raises(grpc.RpcError) as caught:
        await stub.RequestAddresses(pb.RequestAddressesRequest(items=[item(pool)] * count))
    with pytest.raises(grpc.RpcError) as returned:
        await stub.ReleaseAddresses(pb.ReleaseAddressesRequest(items=[pb.AddressRelease(pool_id=pool)] * count))

    assert ("INVALID_ARGUMENT", "BATCH_SIZE", "items") == told(caught.value) == told(returned.value)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"address": ""}, "ADDRESS_MALFORMED"),
        ({"address": "10.2.0.1"}, "ADDRESS_OUTSIDE_POOL"),
        ({"pool_id": "x"}, "POOL_ID_MALFORMED"),
        ({"pool_id": "GlobalDefault/10.1.0.0/25"}, "POOL_UNKNOWN"),
    ],
    ids=str,
)
async def test_a_bad_release_has_its_own_status(stub, wrong, expected):
    pool = await make_pool(stub)
    await stub.RequestAddresses(pb.RequestAddressesRequest(items=[item(pool)]))

    answer = await stub.ReleaseAddresses(
        pb.ReleaseAddressesRequest(
            items=[
                pb.AddressRelease(**{"pool_id": pool, "address": "10.1.0.2", **wrong}),
                pb.AddressRelease(pool_id=pool, address="10.1.0.1"),
            ]
        )
    )

    assert [expected, ""] == [result.reason for result in answer.results]


async def test_one_call_leases_from_several_pools_and_tells_each_items_fate(stub):
    first, second = await make_pool(stub), await make_pool(stub, "fd00::/64")

    answer = await stub.RequestAddresses(
        pb.RequestAddressesRequest(
            request_id="r1",
            items=[item(first, "a"), item(second, "a"), item("GlobalDefault/10.3.0.0/24", "a"), item(first, "b")],
        )
    )

    assert ["10.1.0.1/24", "fd00::1/64", "", "10.1.0.2/24"] == [result.lease.address for result in answer.results]
    assert ["OK", "OK", "NOT_FOUND", "OK"] == [CODE[result.status.code] for result in answer.results]


async def test_a_reused_request_id_is_refused_before_any_pool_is_touched(stub):
    first, second = await make_pool(stub), await make_pool(stub, "fd00::/64")
    await stub.RequestAddresses(pb.RequestAddressesRequest(request_id="r1", items=[item(second, "a")]))

    with pytest.raises(grpc.RpcError) as caught:
        await stub.RequestAddresses(
            pb.RequestAddressesRequest(request_id="r1", items=[item(first, "b"), item(second, "b")])
        )

    assert ("ALREADY_EXISTS", "REQUEST_ID_REUSED") == told(caught.value)[:2]
    assert 0 == len((await stub.ListLeases(pb.ListLeasesRequest(pool_id=first))).leases)


async def test_a_full_pool_is_resource_exhausted_with_its_figures(stub):
    pool = await make_pool(stub, "10.1.0.0/30")

    answer = await stub.RequestAddresses(pb.RequestAddressesRequest(items=[item(pool, key) for key in ("a", "b", "c")]))

    status = answer.results[2].status
    assert ("RESOURCE_EXHAUSTED", "ADDRESSES_EXHAUSTED") == (CODE[status.code], status.reason)
    assert (pool, "2", "2") == (status.metadata["pool_id"], status.metadata["capacity"], status.metadata["leased"])


@pytest.mark.parametrize("token", ["x", "eA==", "!!!"])
async def test_a_foreign_page_token_is_refused(stub, token):
    pool = await make_pool(stub)

    with pytest.raises(grpc.RpcError) as pools:
        await stub.ListPools(pb.ListPoolsRequest(page_token=token))
    with pytest.raises(grpc.RpcError) as leases:
        await stub.ListLeases(pb.ListLeasesRequest(pool_id=pool, page_token=token))

    assert ("INVALID_ARGUMENT", "PAGE_TOKEN_MALFORMED", "page_token") == told(pools.value) == told(leases.value)


async def test_pools_and_leases_are_read_page_by_page(stub):
    made = [await make_pool(stub, f"10.{second}.0.0/24") for second in range(5)]
    await stub.RequestAddresses(pb.RequestAddressesRequest(items=[item(made[0], f"e{number}") for number in range(5)]))

    pools, token = [], ""
    while token or not pools:
        page = await stub.ListPools(pb.ListPoolsRequest(page_size=2, page_token=token))
        pools += [pool.id for pool in page.pools]
        token = page.next_page_token
    leases, token = [], ""
    while token or not leases:
        page = await stub.ListLeases(pb.ListLeasesRequest(pool_id=made[0], page_size=2, page_token=token))
        leases += [lease.owner.key for lease in page.leases]
        token = page.next_page_token

    assert made == pools
    assert ["e0", "e1", "e2", "e3", "e4"] == leases


async def test_a_heartbeat_needs_a_host(stub):
    with pytest.raises(grpc.RpcError) as caught:
        await stub.RenewLeases(pb.RenewLeasesRequest())

    assert ("INVALID_ARGUMENT", "HOST_ID_MALFORMED", "host_id") == told(caught.value)
    assert 0 == (await stub.RenewLeases(pb.RenewLeasesRequest(host_id="h"))).renewed


async def test_heartbeats_come_over_a_stream_and_most_of_them_renew_nothing(stub):
    pool = (await stub.RequestPool(pb.RequestPoolRequest(address_space="GlobalDefault"))).pool.id
    asked = pb.AddressRequest(pool_id=pool, owner=pb.Owner(key="e", host_id="h"))
    await stub.RequestAddresses(pb.RequestAddressesRequest(items=[asked]))
    stream = stub.RenewStream()

    for id_, host, alive_only in ((1, "h", False), (2, "h", True), (3, "", True)):
        renew = pb.RenewLeasesRequest(host_id=host, alive_only=alive_only)
        await stream.write(pb.RenewStreamRequest(id=id_, renew=renew))
    answers = {one.id: one for one in [await stream.read() for _ in range(3)]}
    stream.cancel()

    assert (1, 0) == (answers[1].renew.renewed, answers[2].renew.renewed)
    assert answers[1].renew.store_epoch == answers[2].renew.store_epoch
    assert grpc.StatusCode.INVALID_ARGUMENT.value[0] == answers[3].status.code


async def test_the_null_space_gives_pools_without_addresses_to_any_number_of_networks(stub):
    pools = [
        (await stub.RequestPool(pb.RequestPoolRequest(address_space="null", ipv6=ipv6))).pool.id
        for ipv6 in (False, False, True)
    ]
    answer = await stub.RequestAddresses(pb.RequestAddressesRequest(items=[item(pools[0], "a"), item(pools[2], "b")]))
    await stub.ReleasePool(pb.ReleasePoolRequest(pool_id=pools[0]))

    assert ["null/0.0.0.0/0", "null/0.0.0.0/0", "null/::/0"] == pools
    assert [("", 0), ("", 0)] == [(result.lease.address, result.status.code) for result in answer.results]
    with pytest.raises(grpc.RpcError) as caught:
        await stub.RequestPool(pb.RequestPoolRequest(address_space="null", subnet="10.0.0.0/8"))
    assert ("INVALID_ARGUMENT", "NULL_SPACE_SUBNET", "subnet") == told(caught.value)
    with pytest.raises(grpc.RpcError) as unknown:
        await stub.ReleasePool(pb.ReleasePoolRequest(pool_id="null/10.0.0.0/8"))
    assert grpc.StatusCode.NOT_FOUND is unknown.value.code()


async def test_a_null_pool_has_no_leases_and_no_history(stub):
    pool = (await stub.RequestPool(pb.RequestPoolRequest(address_space="null"))).pool.id
    back = pb.AddressRelease(pool_id=pool, address="10.0.0.1")

    leases = await stub.ListLeases(pb.ListLeasesRequest(pool_id=pool))
    events = await stub.ListLeaseEvents(pb.ListLeaseEventsRequest(pool_id=pool))
    moved = await stub.TransferLeases(pb.TransferLeasesRequest(host_id="h", items=[back]))

    assert ([], []) == (list(leases.leases), list(events.events))
    assert ["LEASE_UNKNOWN"] == [result.status.reason for result in moved.results]
    with pytest.raises(grpc.RpcError) as unknown:
        await stub.ListLeases(pb.ListLeasesRequest(pool_id="null/10.0.0.0/8"))
    assert ("NOT_FOUND", "POOL_UNKNOWN", "") == told(unknown.value)


@pytest.mark.parametrize("pool", ["null/0.0.0.0/0", "null/10.0.0.0/8", "g/0.0.0.0/0", "g/::/0"])
async def test_a_report_makes_no_pool_that_nobody_could_have_requested(stub, pool):
    before = await stub.ListPools(pb.ListPoolsRequest())
    epoch = (await stub.RenewLeases(pb.RenewLeasesRequest(host_id="h"))).store_epoch
    address = "fd00::1" if "::" in pool else "10.0.0.1"
    held = pb.Lease(pool_id=pool, address=address, owner=pb.Owner(key="k", host_id="h"), epoch=5)

    answer = await stub.ReassertLeases(pb.ReassertLeasesRequest(host_id="h", store_epoch=epoch, leases=[held]))

    [result] = answer.results
    assert ("POOL_NOT_KEPT", "leases[0].pool_id") == (result.status.reason, result.status.metadata["field"])
    assert before == await stub.ListPools(pb.ListPoolsRequest())


async def test_leases_move_are_looked_up_and_their_history_is_followed(stub):
    pool = await make_pool(stub)
    await stub.RequestAddresses(pb.RequestAddressesRequest(items=[item(pool, "a", host_id="h1")]))
    watch = stub.WatchLeases(pb.WatchLeasesRequest(pool_id=pool, after_id="0-0.0"))
    first = await watch.read()

    moved = await stub.TransferLeases(
        pb.TransferLeasesRequest(
            host_id="h2", items=[pb.AddressRelease(pool_id=pool, address="10.1.0.1", owner_key="a")]
        )
    )
    second = await watch.read()
    watch.cancel()
    found = await stub.LookupAddress(pb.LookupAddressRequest(address_space="GlobalDefault", address="10.1.0.1"))
    events = await stub.ListLeaseEvents(pb.ListLeaseEventsRequest(pool_id=pool, address="10.1.0.1"))

    assert moved.results[0].lease == found.lease
    assert "h2" == found.lease.owner.host_id
    assert ["LEASE_EVENT_TYPE_LEASED", "LEASE_EVENT_TYPE_TRANSFERRED"] == [
        pb.LeaseEventType.Name(event.type) for event in (*first.events, *second.events)
    ]
    assert [*second.events, *first.events] == list(events.events)


@pytest.mark.parametrize(
    ("method", "request_", "expected"),
    [
        ("TransferLeases", pb.TransferLeasesRequest(host_id="h"), ("BATCH_SIZE", "items")),
        ("TransferLeases", pb.TransferLeasesRequest(items=[pb.AddressRelease()]), ("HOST_ID_MALFORMED", "host_id")),
        ("LookupAddress", pb.LookupAddressRequest(address_space="g", address="10.1"), ("ADDRESS_MALFORMED", "address")),
        ("ReassertLeases", pb.ReassertLeasesRequest(), ("HOST_ID_MALFORMED", "host_id")),
        (
            "ListLeaseEvents",
            pb.ListLeaseEventsRequest(pool_id="g/10.1.0.0/24", page_token="eA=="),
            ("EVENT_ID_MALFORMED", "page_token"),
        ),
        (
            "RequestPool",
            pb.RequestPoolRequest(address_space="g", labels={"netweft.quota.leases": "many"}),
            ("QUOTA_MALFORMED", "labels"),
        ),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_other_calls_name_the_field_too(stub, method, request_, expected):
    with pytest.raises(grpc.RpcError) as caught:
        await getattr(stub, method)(request_)

    assert ("INVALID_ARGUMENT", *expected) == told(caught.value)


async def test_a_watch_behind_an_event_that_is_gone_ends_and_says_so(stub):
    pool = await make_pool(stub)

    with pytest.raises(grpc.RpcError) as caught:
        await stub.WatchLeases(pb.WatchLeasesRequest(pool_id=pool, after_id="1-0.3")).read()

    assert ("OUT_OF_RANGE", "EVENT_UNKNOWN", "") == told(caught.value)


async def test_a_claim_that_cannot_have_been_granted_has_its_own_status(stub):
    epoch = (await stub.RenewLeases(pb.RenewLeasesRequest(host_id="h"))).store_epoch
    pool = await make_pool(stub)
    claims = [
        pb.Lease(pool_id=pool, address="10.1.0.7/24", owner=pb.Owner(key="e"), epoch=number)
        for number in (0, 2**48, 2**48 - 1, 2**48 - 2**40 - 1)
    ]
    claims.append(pb.Lease(pool_id=pool, address="10.1.0.255/24", owner=pb.Owner(key="f"), epoch=5))

    answer = await stub.ReassertLeases(pb.ReassertLeasesRequest(host_id="h", store_epoch=epoch, leases=claims))

    assert [*["EPOCH_MALFORMED"] * 3, "", "ADDRESS_RESERVED"] == [result.status.reason for result in answer.results]
    assert "10.1.0.7/24" == answer.results[3].lease.address
