"""What every store does with pools."""

from __future__ import annotations

import pytest
from netweft_common import errors
from netweft_ipam.domain.leases import OwnerKind

from tests.support.ipam import ask, pool_id, tag

pytestmark = pytest.mark.anyio


async def test_predefined_pools_come_first_fit_in_the_order_of_the_list(desk):
    pools = [await desk.any_pool("LocalDefault") for _ in range(3)]

    assert ["LocalDefault/172.17.0.0/16", "LocalDefault/172.18.0.0/16", "LocalDefault/172.19.0.0/16"] == pools


async def test_the_local_list_holds_31_networks_and_then_says_that_it_is_used_up(desk):
    pools = {await desk.any_pool("LocalDefault") for _ in range(31)}

    with pytest.raises(errors.Exhausted) as caught:
        await desk.any_pool("LocalDefault")

    assert 31 == len(pools)
    assert "POOLS_EXHAUSTED" == caught.value.reason


async def test_a_released_pool_is_the_first_to_be_chosen_again(desk):
    pools = [await desk.any_pool("GlobalDefault") for _ in range(5)]
    await desk.drop(pools[3])
    await desk.drop(pools[1])

    again = [await desk.any_pool("GlobalDefault") for _ in range(3)]

    assert ["GlobalDefault/10.0.1.0/24", "GlobalDefault/10.0.3.0/24", "GlobalDefault/10.0.5.0/24"] == again


async def test_a_size_request_gives_the_first_free_subnet_of_that_size(desk):
    await desk.pool("LocalDefault/172.17.64.0/24")

    pools = [await desk.any_pool("LocalDefault", size=size) for size in (18, 18, 26, 14)]

    assert [
        "LocalDefault/172.17.0.0/18",
        "LocalDefault/172.17.128.0/18",
        "LocalDefault/172.17.65.0/26",
        "LocalDefault/172.20.0.0/14",
    ] == pools


async def test_automatic_pools_walk_round_what_is_allocated_and_what_is_excluded(desk):
    await desk.pool("LocalDefault/172.18.5.0/24")

    first = await desk.any_pool("LocalDefault", exclude=["172.17.0.2/32", "172.16.0.0/15"])
    second = await desk.any_pool("LocalDefault")

    assert "LocalDefault/172.19.0.0/16" == first
    assert "LocalDefault/172.17.0.0/16" == second


async def test_exclusions_that_cover_everything_leave_no_pool(desk):
    with pytest.raises(errors.Exhausted):
        await desk.any_pool("GlobalDefault", exclude=["10.0.0.0/8"])


async def test_v6_pools_come_from_the_clusters_own_prefix_and_differ_between_local_spaces(desk):
    cluster = [await desk.any_pool("GlobalDefault", version=6) for _ in range(2)]
    host = await desk.any_pool("LocalDefault:host-a", version=6)
    other = await desk.any_pool("LocalDefault:host-b", version=6)

    first, second = (pool_id(pool).subnet for pool in cluster)
    assert (0xFD, 64, first.last + 1) == (first.base >> 120, first.prefix, second.base)
    assert 3 == len({pool_id(pool).subnet.base >> 80 for pool in (cluster[0], host, other)})


@pytest.mark.parametrize(
    "wanted",
    ["g/10.1.0.0/16", "g/10.0.0.0/8", "g/10.1.2.0/24", "g/10.1.0.0/17/10.1.0.0/24"],
    ids=["the same", "wider", "narrower", "a range of another parent"],
)
async def test_a_pool_that_overlaps_another_one_is_refused(desk, wanted):
    await desk.pool("g/10.1.0.0/16")

    with pytest.raises(errors.FailedPrecondition) as caught:
        await desk.pool(wanted)

    assert "POOL_OVERLAP" == caught.value.reason
    assert "10.1.0.0/16" == caught.value.metadata["other"]


async def test_a_subnet_whose_range_is_a_pool_is_not_given_out_whole(desk):
    await desk.pool("g/10.1.0.0/16/10.1.4.0/24")

    with pytest.raises(errors.FailedPrecondition, match=r"overlaps 10\.1\.0\.0/16"):
        await desk.pool("g/10.1.0.0/16")


async def test_neighbours_do_not_overlap(desk):
    pools = [await desk.pool(f"g/10.{second}.0.0/16") for second in (1, 0, 2)]

    assert ["g/10.1.0.0/16", "g/10.0.0.0/16", "g/10.2.0.0/16"] == pools


async def test_the_same_subnet_may_exist_in_two_spaces(desk):
    assert "a/10.1.0.0/16" == await desk.pool("a/10.1.0.0/16")
    assert "b/10.1.0.0/16" == await desk.pool("b/10.1.0.0/16")


async def test_ranges_of_one_parent_share_its_addresses(desk):
    first = await desk.pool("g/10.1.0.0/16/10.1.4.0/24")
    second = await desk.pool("g/10.1.0.0/16/10.1.4.0/25")

    taken = await desk.lease(first, ask("a"), ask("b"))
    others = await desk.lease(second, ask("c"), ask("d"))

    assert ["10.1.4.0", "10.1.4.1"] == taken
    assert ["10.1.4.2", "10.1.4.3"] == others


async def test_the_same_range_twice_is_refused(desk):
    await desk.pool("g/10.1.0.0/16/10.1.4.0/24")

    with pytest.raises(errors.FailedPrecondition, match="overlaps"):
        await desk.pool("g/10.1.0.0/16/10.1.4.0/24")


async def test_a_subnet_is_free_again_after_its_last_range(desk):
    first = await desk.pool("g/10.1.0.0/16/10.1.4.0/24")
    second = await desk.pool("g/10.1.0.0/16/10.1.5.0/24")
    await desk.lease(second, ask("b"))
    await desk.drop(first)

    with pytest.raises(errors.FailedPrecondition, match="overlaps"):
        await desk.pool("g/10.1.0.0/17")

    await desk.give_back(second, ("10.1.5.0", "b"))
    await desk.drop(second)
    assert "g/10.1.0.0/17" == await desk.pool("g/10.1.0.0/17")


async def test_releasing_a_pool_that_does_not_exist_is_an_error_each_time(desk):
    pool = await desk.pool("g/10.1.0.0/16")
    await desk.drop(pool)

    for _ in range(2):
        with pytest.raises(errors.NotFound) as caught:
            await desk.drop(pool)
        assert "POOL_UNKNOWN" == caught.value.reason


async def test_a_pool_with_leases_is_kept_and_its_infrastructure_goes_when_asked(desk):
    pool = await desk.pool("g/10.1.0.0/16")
    await desk.lease(pool, ask("e"), ask("n", "10.1.255.254", kind=OwnerKind.GATEWAY))

    with pytest.raises(errors.FailedPrecondition) as caught:
        await desk.drop(pool, infrastructure=True)
    assert ("POOL_IN_USE", "1") == (caught.value.reason, caught.value.metadata["leases"])

    await desk.give_back(pool, ("10.1.0.1", "e"))
    with pytest.raises(errors.FailedPrecondition):
        await desk.drop(pool)
    await desk.drop(pool, infrastructure=True)
    with pytest.raises(errors.NotFound):
        await desk.store.get_pool(pool_id(pool))


async def test_infrastructure_of_one_range_goes_and_that_of_its_sibling_stays(desk):
    first = await desk.pool("g/10.1.0.0/16/10.1.4.0/24")
    second = await desk.pool("g/10.1.0.0/16/10.1.5.0/24")
    await desk.lease(first, ask("n1", "10.1.0.1", kind=OwnerKind.GATEWAY))
    await desk.lease(second, ask("n2", "10.1.0.2", kind=OwnerKind.GATEWAY))

    await desk.drop(first, infrastructure=True)

    assert {"10.1.0.2": "n2"} == await desk.held(second)
    use = (await desk.store.get_pool(pool_id(second))).use
    assert (1, 1) == (use.leased, use.family_leased)


async def test_a_pool_made_anew_knows_nothing_of_its_earlier_life(desk):
    pool = await desk.pool("g/10.1.0.0/16")
    await desk.lease(pool, ask("a", "10.1.0.9"))
    [lease] = await desk.listed(pool)
    await desk.give_back(pool, ("10.1.0.9", "a"))
    await desk.drop(pool)
    await desk.pool("g/10.1.0.0/16")

    [again] = await desk.leases(pool, ask("b", "10.1.0.9"))

    assert again.epoch >= lease.epoch


async def test_a_request_id_gives_the_first_answer_again(desk):
    first = await desk.any_pool("GlobalDefault", request_id="r1")
    again = await desk.any_pool("GlobalDefault", request_id="r1")
    other = await desk.any_pool("GlobalDefault", request_id="r2")

    assert first == again
    assert "GlobalDefault/10.0.1.0/24" == other


async def test_a_request_id_with_another_body_is_refused_and_changes_nothing(desk):
    await desk.pool("g/10.1.0.0/16", "r1")

    with pytest.raises(errors.AlreadyExists) as caught:
        await desk.pool("g/10.2.0.0/16", "r1")

    assert "REQUEST_ID_REUSED" == caught.value.reason
    page = await desk.store.list_pools(space="", start=None, limit=10)
    assert ["g/10.1.0.0/16"] == [str(pool.id) for pool in page.pools]


async def test_a_request_id_whose_pool_was_released_since_takes_one_anew(desk):
    pool = await desk.pool("g/10.1.0.0/16", "r1")
    await desk.drop(pool)

    assert pool == await desk.pool("g/10.1.0.0/16", "r1")
    assert pool == str((await desk.store.get_pool(pool_id(pool))).id)


async def test_the_release_of_a_pool_may_be_repeated_with_its_request_id(desk):
    pool = await desk.pool("g/10.1.0.0/16")
    await desk.drop(pool, "r1")
    await desk.pool("g/10.1.0.0/16")

    await desk.drop(pool, "r1")

    assert pool == str((await desk.store.get_pool(pool_id(pool))).id)


async def test_pools_are_listed_by_space_and_subnet_in_pages(desk):
    for pool in ("b/10.0.0.0/24", "a/fd00::/64", "a/10.9.0.0/16", "a/9.0.0.0/16/9.0.1.0/24", "a/9.0.0.0/16/9.0.0.0/24"):
        await desk.pool(pool)

    found, start = [], None
    while True:
        page = await desk.store.list_pools(space="", start=start, limit=2)
        found += [str(pool.id) for pool in page.pools]
        start = page.next
        if start is None:
            break

    assert [
        "a/9.0.0.0/16/9.0.0.0/24",
        "a/9.0.0.0/16/9.0.1.0/24",
        "a/10.9.0.0/16",
        "a/fd00::/64",
        "b/10.0.0.0/24",
    ] == found


async def test_a_pool_is_returned_with_its_labels_and_its_time(desk, clock):
    pool = await desk.pool("g/10.1.0.0/24", labels={"team": "ä", "x": ""})

    found = await desk.store.get_pool(pool_id(pool))

    assert {"team": "ä", "x": ""} == found.labels
    assert clock.now_ms == found.created_ms


async def test_one_space_is_listed_alone(desk):
    await desk.pool("a/10.1.0.0/24")
    await desk.pool("b/10.1.0.0/24")

    page = await desk.store.list_pools(space="b", start=None, limit=10)

    assert ["b/10.1.0.0/24"] == [str(pool.id) for pool in page.pools]
    assert page.next is None


async def test_addresses_of_an_unknown_pool_are_not_found(desk):
    with pytest.raises(errors.NotFound):
        await desk.lease("g/10.1.0.0/16", ask("a"))
    with pytest.raises(errors.NotFound):
        await desk.give_back("g/10.1.0.0/16", ("10.1.0.1", "a"))
    with pytest.raises(errors.NotFound):
        await desk.listed("g/10.1.0.0/16")
    await desk.store.check_tag(pool_id("g/10.1.0.0/16"), tag("r"))
