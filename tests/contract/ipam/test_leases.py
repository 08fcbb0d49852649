"""What every store does with leases."""

from __future__ import annotations

import pytest
from netweft_common import errors
from netweft_ipam.domain.leases import Claim, OwnerKind

from tests.support.ipam import ask, pool_id, text, told

pytestmark = pytest.mark.anyio


async def test_addresses_come_lowest_first_without_the_ends_of_the_subnet(desk):
    pool = await desk.pool("g/10.1.0.0/29")

    given = await desk.lease(pool, *(ask(f"e{number}") for number in range(7)))

    assert [*(f"10.1.0.{last}" for last in range(1, 7)), "ADDRESSES_EXHAUSTED"] == given


@pytest.mark.parametrize(
    ("subnet", "expected"),
    [
        ("10.1.0.8/31", ["10.1.0.8", "10.1.0.9"]),
        ("10.1.0.8/32", ["10.1.0.8"]),
        ("10.1.0.8/30", ["10.1.0.9", "10.1.0.10"]),
        ("fd00::8/127", ["fd00::8", "fd00::9"]),
        ("fd00::8/128", ["fd00::8"]),
        ("fd00::8/126", ["fd00::9", "fd00::a", "fd00::b"]),
    ],
)
async def test_small_subnets_keep_out_what_their_size_allows(desk, subnet, expected):
    pool = await desk.pool(f"g/{subnet}")

    given = await desk.lease(pool, *(ask(f"e{number}") for number in range(len(expected) + 1)))

    assert [*expected, "ADDRESSES_EXHAUSTED"] == given


async def test_a_full_pool_says_how_full_it_is_and_when_the_next_address_is_free(desk, clock):
    pool = await desk.pool("g/10.1.0.0/30")
    await desk.lease(pool, ask("a"), ask("b"))
    await desk.give_back(pool, ("10.1.0.1", "a"))

    [outcome] = await desk.leases(pool, ask("c"))

    assert isinstance(outcome, errors.Exhausted)
    assert {"capacity": "2", "leased": "1", "quarantined": "1"}.items() <= outcome.metadata.items()
    assert "2027-01-15T08:00:05.000Z" == outcome.metadata["next_free"]


async def test_an_address_that_is_asked_for_is_given_or_refused_with_its_holder(desk):
    pool = await desk.pool("g/10.1.0.0/24")

    outcomes = await desk.leases(pool, ask("a", "10.1.0.77"), ask("b", "10.1.0.77"), ask("c"))

    assert ["10.1.0.77", "ADDRESS_IN_USE", "10.1.0.1"] == [told(outcome) for outcome in outcomes]
    assert "a" == outcomes[1].metadata["holder"]


async def test_a_range_gives_its_own_addresses_and_lends_others_when_asked(desk):
    pool = await desk.pool("g/10.1.0.0/16/10.1.255.252/30")

    given = await desk.lease(pool, ask("a"), ask("b", "10.1.7.7"), ask("c"), ask("d"), ask("e"))

    # 10.1.255.255 is the parent's broadcast address.
    assert ["10.1.255.252", "10.1.7.7", "10.1.255.253", "10.1.255.254", "ADDRESSES_EXHAUSTED"] == given


async def test_automatic_items_pass_over_what_an_earlier_item_of_the_batch_has_taken(desk):
    pool = await desk.pool("g/10.1.0.0/24")

    given = await desk.lease(pool, ask("a"), ask("b", "10.1.0.2"), ask("c"), ask("d", "10.1.0.3"), ask("e"))

    assert ["10.1.0.1", "10.1.0.2", "10.1.0.3", "ADDRESS_IN_USE", "10.1.0.4"] == given


async def test_serial_allocation_goes_on_behind_the_last_address_and_wraps(desk, clock):
    pool = await desk.pool("g/10.1.0.0/29")
    first = await desk.lease(pool, *(ask(f"a{number}", serial=True) for number in range(3)))
    await desk.give_back(pool, *((address, "") for address in first))
    clock.advance(60)

    given = await desk.lease(pool, *(ask(f"b{number}", serial=True) for number in range(5)))
    full = await desk.lease(pool, ask("c", serial=True), ask("d", serial=True))

    assert ["10.1.0.4", "10.1.0.5", "10.1.0.6", "10.1.0.1", "10.1.0.2"] == given
    assert ["10.1.0.3", "ADDRESSES_EXHAUSTED"] == full


async def test_an_owner_that_asks_again_gets_its_lease_again(desk):
    pool = await desk.pool("g/10.1.0.0/24")
    [first] = await desk.leases(pool, ask("a", host="h1"))

    again, named = await desk.leases(pool, ask("a", host="h1"), ask("a", "10.1.0.1", host="h1"))

    assert first == again == named


async def test_an_owner_twice_in_one_batch_gets_one_lease(desk):
    pool = await desk.pool("g/10.1.0.0/24")

    given = await desk.lease(pool, ask("a"), ask("a"), ask("b"))

    assert ["10.1.0.1", "10.1.0.1", "10.1.0.2"] == given


async def test_an_endpoint_that_holds_an_address_is_refused_another_one(desk):
    pool = await desk.pool("g/10.1.0.0/24")
    await desk.lease(pool, ask("a"))

    [outcome] = await desk.leases(pool, ask("a", "10.1.0.9"))

    assert isinstance(outcome, errors.AlreadyExists)
    assert ("OWNER_HOLDS_ANOTHER", "10.1.0.1") == (outcome.reason, outcome.metadata["address"])


@pytest.mark.parametrize("kind", [OwnerKind.GATEWAY, OwnerKind.AUXILIARY, OwnerKind.RESERVATION])
async def test_a_network_may_hold_several_addresses_by_name(desk, kind):
    pool = await desk.pool("g/10.1.0.0/24")

    given = await desk.lease(
        pool, ask("n", "10.1.0.8", kind=kind), ask("n", "10.1.0.9", kind=kind), ask("n", kind=kind)
    )

    assert ["10.1.0.8", "10.1.0.9", "10.1.0.8"] == given


async def test_one_key_holds_a_lease_of_each_kind(desk):
    pool = await desk.pool("g/10.1.0.0/24")

    given = await desk.lease(pool, ask("n"), ask("n", kind=OwnerKind.GATEWAY), ask("n"))

    assert ["10.1.0.1", "10.1.0.2", "10.1.0.1"] == given


async def test_one_key_holds_a_lease_in_each_pool_of_a_subnet(desk):
    first = await desk.pool("g/10.1.0.0/16/10.1.4.0/24")
    second = await desk.pool("g/10.1.0.0/16/10.1.5.0/24")

    assert ["10.1.4.0"] == await desk.lease(first, ask("a"))
    assert ["10.1.5.0"] == await desk.lease(second, ask("a"))
    assert {"10.1.4.0": "a"} == await desk.held(first)


async def test_the_old_owner_gets_its_address_back_even_while_it_rests(desk, clock):
    pool = await desk.pool("g/10.1.0.0/24")
    await desk.lease(pool, ask("a"), ask("b"), ask("c"))
    await desk.give_back(pool, ("10.1.0.2", "b"))

    resting = await desk.lease(pool, ask("b"))
    await desk.give_back(pool, ("10.1.0.2", "b"))
    clock.advance(60)
    rested = await desk.lease(pool, ask("b"))

    assert ["10.1.0.2"] == resting == rested


async def test_a_released_address_rests_before_another_owner_gets_it(desk, clock):
    pool = await desk.pool("g/10.1.0.0/24")
    await desk.lease(pool, ask("a"))
    await desk.give_back(pool, ("10.1.0.1", "a"))
    clock.advance(4.999)

    early = await desk.lease(pool, ask("b"), ask("c", "10.1.0.1"))
    clock.advance(0.001)
    late = await desk.lease(pool, ask("d"))

    assert ["10.1.0.2", "ADDRESS_QUARANTINED"] == early
    assert ["10.1.0.1"] == late


async def test_an_address_that_went_to_another_owner_is_not_the_old_ones_any_more(desk, clock):
    pool = await desk.pool("g/10.1.0.0/24")
    await desk.lease(pool, ask("a"))
    await desk.give_back(pool, ("10.1.0.1", "a"))
    clock.advance(60)
    await desk.lease(pool, ask("b"))
    await desk.give_back(pool, ("10.1.0.1", "b"))
    clock.advance(60)

    assert ["10.1.0.1"] == await desk.lease(pool, ask("c"))
    assert ["10.1.0.2", "10.1.0.3"] == await desk.lease(pool, ask("a"), ask("b"))


async def test_release_is_idempotent_and_touches_nobody_elses_lease(desk):
    pool = await desk.pool("g/10.1.0.0/24")
    first, second = await desk.leases(pool, ask("a"), ask("b"))

    outcomes = await desk.give_back(
        pool,
        ("10.1.0.1", "a"),
        ("10.1.0.1", "a"),
        ("10.1.0.2", "a"),
        ("10.1.0.2", "b", first.epoch),
        ("10.1.0.99", "x"),
    )

    assert ["OK", "OK", "NOT_THE_OWNER", "STALE_EPOCH", "OK"] == outcomes
    assert [second] == await desk.listed(pool)


async def test_a_repeated_release_does_not_release_the_lease_that_came_after_it(desk):
    pool = await desk.pool("g/10.1.0.0/24")
    await desk.lease(pool, ask("a"), ask("b"))
    await desk.give_back(pool, ("10.1.0.1", "a"), ("10.1.0.2", "a"), request_id="r1")
    await desk.lease(pool, ask("a"))

    again = await desk.give_back(pool, ("10.1.0.1", "a"), ("10.1.0.2", "a"), request_id="r1")

    assert ["OK", "NOT_THE_OWNER"] == again
    assert {"10.1.0.1": "a", "10.1.0.2": "b"} == await desk.held(pool)


async def test_a_request_id_gives_the_same_leases_while_they_are_held(desk):
    pool = await desk.pool("g/10.1.0.0/24")
    first = await desk.leases(pool, ask("a"), ask("b"), request_id="r1")

    assert first == await desk.leases(pool, ask("a"), ask("b"), request_id="r1")


async def test_a_request_id_with_another_body_is_refused_and_leases_nothing(desk):
    pool = await desk.pool("g/10.1.0.0/24")
    await desk.lease(pool, ask("a"), request_id="r1")

    with pytest.raises(errors.AlreadyExists):
        await desk.lease(pool, ask("b"), request_id="r1")
    with pytest.raises(errors.AlreadyExists):
        await desk.give_back(pool, ("10.1.0.1", "a"), request_id="r1")

    assert {"10.1.0.1": "a"} == await desk.held(pool)


async def test_epochs_grow_with_every_owner(desk, clock):
    pool = await desk.pool("g/10.1.0.0/30")
    [first] = await desk.leases(pool, ask("a"))
    await desk.give_back(pool, ("10.1.0.1", "a"))
    clock.advance(60)

    second, third = await desk.leases(pool, ask("b"), ask("c"))

    assert first.epoch < second.epoch < third.epoch


async def test_a_lease_with_a_ttl_ends_by_the_sweep_after_its_time(desk, clock):
    pool = await desk.pool("g/10.1.0.0/24")
    [lease] = await desk.leases(pool, ask("a", ttl_s=30))
    await desk.lease(pool, ask("b"))
    clock.advance(29.999)
    early = await desk.store.sweep()
    clock.advance(0.001)

    late = await desk.store.sweep()

    assert clock.now_ms == lease.expires_ms
    assert (0, 1) == (early, late)
    assert {"10.1.0.2": "b"} == await desk.held(pool)
    assert ["ADDRESS_QUARANTINED"] == await desk.lease(pool, ask("c", "10.1.0.1"))


async def test_a_hosts_heartbeat_renews_all_its_leases(desk, clock):
    pools = [await desk.pool("g/10.1.0.0/24"), await desk.pool("h/fd00::/64")]
    for pool in pools:
        await desk.lease(pool, ask("a", host="h1", ttl_s=30), ask("b", host="h2", ttl_s=30), ask("c", host="h1"))
    clock.advance(20)

    renewed = await desk.store.renew_host("h1")
    clock.advance(20)
    ended = await desk.store.sweep()

    assert 4 == renewed.renewed
    assert 2 == ended
    assert ["a", "c"] == list((await desk.held(pools[1])).values())
    assert clock.now_ms + 10_000 == (await desk.listed(pools[1]))[0].expires_ms


async def test_leases_of_a_host_that_only_says_that_it_lives_do_not_end(desk, clock):
    pool = await desk.pool("g/10.1.0.0/24")
    await desk.lease(pool, ask("a", host="h1", ttl_s=30), ask("b", host="h2", ttl_s=30))
    clock.advance(20)
    lives = await desk.store.beat_host("h1")
    clock.advance(20)
    ended = await desk.store.sweep()
    assert {"10.1.0.1": "a"} == await desk.held(pool)
    clock.advance(20)

    assert (0, 1, 1) == (lives.renewed, ended, await desk.store.sweep())
    assert {} == await desk.held(pool)


@pytest.mark.parametrize("verb", ["beat_host", "renew_host"])
async def test_the_ttl_of_a_host_that_may_be_silent_runs_from_the_end_of_that_time(desk, clock, verb):
    pool = await desk.pool("g/10.1.0.0/24")
    await desk.lease(pool, ask("a", host="h1", ttl_s=3), ask("b", host="h2", ttl_s=3))
    await getattr(desk.store, verb)("h1", silent_ms=10_000)
    await desk.store.beat_host("h2")
    clock.advance(5)
    early = await desk.store.sweep()
    held = await desk.held(pool)
    await desk.store.beat_host("h1")  # a word that comes sooner takes nothing back
    clock.advance(7)
    later = await desk.store.sweep()
    clock.advance(2)

    assert (1, {"10.1.0.1": "a"}) == (early, held)
    assert (0, 1) == (later, await desk.store.sweep())


async def test_a_host_that_may_be_silent_keeps_what_it_gets_and_what_it_reports_meanwhile(desk, clock):
    old = await desk.pool("g/10.1.0.0/24")
    [kept] = await desk.leases(old, ask("a", host="h1", ttl_s=3))
    lives = await desk.store.beat_host("h1", silent_ms=10_000)
    claim = Claim(address=kept.address, owner=kept.owner, epoch=kept.epoch, ttl_s=3)
    await desk.store.reassert("h1", lives.store_epoch, {pool_id(old): [claim]}, complete=True)
    new = await desk.pool("g/10.2.0.0/24")
    await desk.lease(new, ask("b", host="h1", ttl_s=3))
    clock.advance(5)
    early = await desk.store.sweep()
    held = [*(await desk.held(old)).values(), *(await desk.held(new)).values()]
    clock.advance(9)

    assert (0, ["a", "b"], 2) == (early, held, await desk.store.sweep())


async def test_asking_again_renews_a_lease(desk, clock):
    pool = await desk.pool("g/10.1.0.0/24")
    await desk.lease(pool, ask("a", ttl_s=30))
    clock.advance(20)

    [lease] = await desk.leases(pool, ask("a", ttl_s=30))
    clock.advance(20)

    assert 0 == await desk.store.sweep()
    assert clock.now_ms + 10_000 == lease.expires_ms


async def test_a_host_that_holds_nothing_renews_nothing(desk):
    assert 0 == (await desk.store.renew_host("nobody")).renewed


async def test_leases_are_listed_in_address_order_by_pages_and_by_owner_and_host(desk):
    pool = await desk.pool("g/10.1.0.0/16")
    keys = [f"e{number:03}" for number in range(40)]
    await desk.lease(pool, *(ask(key, host=f"h{index % 2}") for index, key in enumerate(keys)))
    await desk.lease(pool, ask("far", "10.1.200.1"))
    await desk.give_back(pool, ("10.1.0.5", ""))

    held = await desk.held(pool, limit=7)

    assert [*keys[:4], *keys[5:], "far"] == list(held.values())
    assert {"10.1.0.8": "e007"} == await desk.held(pool, key="e007")
    assert 20 == len(await desk.held(pool, host="h1"))
    assert {} == await desk.held(pool, host="h9")


async def test_the_use_of_a_pool_is_counted(desk, clock):
    pool = await desk.pool("g/10.1.0.0/24")
    part = await desk.pool("g/10.1.0.0/24/10.1.0.128/25")
    await desk.lease(pool, ask("a"), ask("b"), ask("c"))
    await desk.lease(part, ask("d"))
    await desk.give_back(pool, ("10.1.0.2", ""))

    whole = (await desk.store.get_pool(pool_id(pool))).use
    half = (await desk.store.get_pool(pool_id(part))).use
    clock.advance(60)
    await desk.store.sweep()
    later = (await desk.store.get_pool(pool_id(pool))).use

    assert (2, 1, 3, 1) == (whole.leased, whole.quarantined, whole.family_leased, whole.family_quarantined)
    assert (1, 0, 3, 1) == (half.leased, half.quarantined, half.family_leased, half.family_quarantined)
    assert 1_800_000_005_000 == whole.next_free_ms
    assert (2, 0, 0) == (later.leased, later.quarantined, later.next_free_ms)


async def test_a_batch_as_large_as_they_get_is_one_call(desk):
    pool = await desk.pool("g/10.1.0.0/20")

    given = await desk.leases(pool, *(ask(f"endpoint-{number}", host="h") for number in range(4095)))

    assert "ADDRESSES_EXHAUSTED" == told(given[-1])
    assert 4094 == len({text(lease) for lease in given[:-1]})
    returned = await desk.give_back(pool, *((text(lease), lease.owner.key) for lease in given[:-1]))
    assert {"OK"} == set(returned)
    assert {} == await desk.held(pool)


async def test_keys_of_all_lengths_and_alphabets_are_kept(desk):
    pool = await desk.pool("g/10.1.0.0/24")
    keys = ["x", "k" * 256, "ключ", "a b\n\0c", "{}", "日本" * 30]

    await desk.lease(pool, *(ask(key) for key in keys))

    assert keys == list((await desk.held(pool)).values())
    assert {"10.1.0.3": "ключ"} == await desk.held(pool, key="ключ")


async def test_v6_addresses_far_apart_are_leased_and_listed(desk):
    pool = await desk.pool("g/fd00:1::/32")
    far = ["fd00:1::ffff", "fd00:1:1::", "fd00:1:ffff:ffff:ffff:ffff:ffff:ffff"]

    given = await desk.lease(pool, *(ask(f"e{address}", address) for address in far), ask("a"))

    assert [*far, "fd00:1::1"] == given
    assert ["fd00:1::1", *far] == list(await desk.held(pool, limit=1))


async def test_a_pools_label_limits_its_leases(desk):
    pool = await desk.pool("g/10.1.0.0/24", labels={"netweft.quota.leases": "3"})

    given = await desk.lease(pool, *(ask(key) for key in "abcd"), ask("e", "10.1.0.9"), ask("a"))
    await desk.give_back(pool, ("10.1.0.2", "b"))
    again = await desk.lease(pool, ask("f", "10.1.0.9"), ask("b"))

    assert ["10.1.0.1", "10.1.0.2", "10.1.0.3", "LEASE_QUOTA", "LEASE_QUOTA", "10.1.0.1"] == given
    assert ["10.1.0.9", "LEASE_QUOTA"] == again


async def test_leases_of_many_hosts_and_kinds_are_listed_by_pages_of_any_size(desk):
    await desk.pool("g/10.1.0.0/22")
    await desk.pool("g/10.1.0.0/22/10.1.2.0/24")
    wishes = [ask(f"key-{number}", host=f"host-{number % 90}", ttl_s=number % 3) for number in range(700)]
    await desk.lease("g/10.1.0.0/22", *wishes[:350])
    for number in range(40):  # one by one, among what the batches take
        await desk.lease("g/10.1.0.0/22/10.1.2.0/24", ask(f"single-{number}", host="host-1"))
    await desk.lease("g/10.1.0.0/22", ask("gateway", "10.1.3.254", kind=OwnerKind.GATEWAY), *wishes[350:])
    await desk.give_back("g/10.1.0.0/22", *[(f"10.1.0.{number}", "") for number in range(5, 200, 3)])
    expected = await desk.listed("g/10.1.0.0/22", limit=4096)
    assert 701 - 65 == len(expected)
    for limit in (1, 7, 64, 181, 1000):
        assert expected == await desk.listed("g/10.1.0.0/22", limit=limit)
    assert [f"single-{number}" for number in range(40)] == [
        lease.owner.key for lease in await desk.listed("g/10.1.0.0/22/10.1.2.0/24", limit=3)
    ]
    assert [lease for lease in expected if lease.owner.host_id == "host-3"] == await desk.listed(
        "g/10.1.0.0/22", limit=2, host="host-3"
    )


async def test_a_page_as_large_as_they_get_has_each_lease_once(desk):
    await desk.pool("g/10.1.0.0/19")
    for start in (0, 2500):
        await desk.lease("g/10.1.0.0/19", *(ask(f"e{number}", host="h") for number in range(start, start + 2500)))
    expected = [f"e{number}" for number in range(5000)]
    for limit in (2048, 2050, 4096, 10_000):
        assert expected == [lease.owner.key for lease in await desk.listed("g/10.1.0.0/19", limit=limit)]
