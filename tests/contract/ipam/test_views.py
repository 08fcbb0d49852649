"""What every store tells of leases, and how they move between hosts."""

from __future__ import annotations

import pytest
from netweft_common import errors
from netweft_ipam.domain.leases import AddressReturn, Claim, LeaseEventType, Owner, OwnerKind, RequestTag
from netweft_ipam.store.connection import Connection
from netweft_ipam.store.redis_store import RedisStore

from tests.support.ipam import Desk, ask, pool_id, subnet, tag, told

pytestmark = pytest.mark.anyio

LEASED, RELEASED, EXPIRED, REASSERTED, TRANSFERRED = LeaseEventType


async def events_of(desk, pool, *, address=None, limit=3):
    """Return (type, address, owner's key) of all events, oldest first, read page by page."""
    found, before = [], ""
    while True:
        page, before = await desk.store.list_events(pool_id(pool), address=address, before=before, limit=limit)
        assert len(page) <= limit
        found += page
        if not before:
            return [(event.type, event.address & 0xFF, event.owner.key) for event in reversed(found)]


def address(last: int) -> int:
    return subnet("10.1.0.0/24").base + last


async def test_an_address_is_looked_up_across_the_pools_of_a_space(desk):
    await desk.pool("g/10.0.0.0/24")
    pool = await desk.pool("g/10.1.0.0/16/10.1.4.0/24")
    [lease] = await desk.leases(pool, ask("a", "10.1.9.9", host="h1", ttl_s=30))

    assert lease == await desk.store.lookup("g", subnet("10.1.9.9/32"))


@pytest.mark.parametrize(
    ("space", "wanted", "reason"),
    [
        ("g", "10.1.0.2/32", "LEASE_UNKNOWN"),
        ("g", "10.2.0.1/32", "ADDRESS_UNKNOWN"),
        ("g", "9.255.255.255/32", "ADDRESS_UNKNOWN"),
        ("g", "fd00::1/128", "ADDRESS_UNKNOWN"),
        ("x", "10.1.0.1/32", "ADDRESS_UNKNOWN"),
    ],
)
async def test_an_address_that_nobody_has_is_not_found(desk, space, wanted, reason):
    pool = await desk.pool("g/10.1.0.0/24")
    await desk.lease(pool, ask("a"))

    with pytest.raises(errors.NotFound) as caught:
        await desk.store.lookup(space, subnet(wanted))

    assert reason == caught.value.reason


async def test_the_history_tells_what_happened_to_addresses(desk, clock):
    pool = await desk.pool("g/10.1.0.0/24")
    await desk.lease(pool, ask("a"), ask("b", ttl_s=10))
    clock.advance(20)
    await desk.store.sweep()
    await desk.give_back(pool, ("10.1.0.1", "a"))
    clock.advance(20)
    await desk.lease(pool, ask("c"))

    whole = await events_of(desk, pool)
    one = await events_of(desk, pool, address=address(1), limit=1)

    assert [(LEASED, 1, "a"), (LEASED, 2, "b"), (EXPIRED, 2, "b"), (RELEASED, 1, "a"), (LEASED, 1, "c")] == whole
    assert [(LEASED, 1, "a"), (RELEASED, 1, "a"), (LEASED, 1, "c")] == one


async def test_the_history_is_followed_from_an_event_on(desk):
    pool = await desk.pool("g/10.1.0.0/24")
    wanted = pool_id(pool)
    assert [] == await desk.store.read_events(wanted, after="", limit=10)
    await desk.lease(pool, ask("a"), ask("b"), ask("c"))

    [newest] = await desk.store.read_events(wanted, after="", limit=10)
    await desk.lease(pool, ask("d"), ask("e"))
    first = await desk.store.read_events(wanted, after=newest.id, limit=1)
    rest = await desk.store.read_events(wanted, after=first[0].id, limit=10)

    assert ["c", "d", "e"] == [event.owner.key for event in (newest, *first, *rest)]
    assert [] == await desk.store.read_events(wanted, after=rest[-1].id, limit=10)


async def test_an_event_that_the_history_does_not_have_is_no_place_to_go_on_from(desk):
    pool = await desk.pool("g/10.1.0.0/24")
    await desk.lease(pool, ask("a"))
    [newest] = await desk.store.read_events(pool_id(pool), after="", limit=10)
    await desk.give_back(pool, ("10.1.0.1", "a"))
    entry, _, number = newest.id.rpartition(".")

    for lost in (f"{entry}.{int(number) + 7}", "1-0.0", "99999999999999-0.99"):
        with pytest.raises(errors.OutOfRange, match=lost):
            await desk.store.read_events(pool_id(pool), after=lost, limit=10)
    assert 1 == len(await desk.store.read_events(pool_id(pool), after=newest.id, limit=10))


async def test_a_watcher_that_stayed_away_too_long_is_told_so(server, clock):
    store = RedisStore(Connection.open(server.url), prefix="trimmed", now_ms=clock, events_kept=1)
    desk = Desk(store)
    pool = await desk.pool("g/10.1.0.0/23")
    await desk.lease(pool, ask("first"))
    [seen] = await store.read_events(pool_id(pool), after="", limit=1)

    # The store drops entries by whole nodes, of 100 each.
    for number in range(250):
        clock.advance(1)
        await desk.lease(pool, ask(f"k{number}"))

    with pytest.raises(errors.OutOfRange, match="no event"):
        await store.read_events(pool_id(pool), after=seen.id, limit=10)
    await store.aclose()


async def test_a_history_that_is_not_kept_cannot_be_watched(server, clock):
    store = RedisStore(Connection.open(server.url), prefix="unkept", now_ms=clock, events_kept=0)
    pool = await Desk(store).pool("g/10.1.0.0/23")

    with pytest.raises(errors.FailedPrecondition, match="no history"):
        await store.read_events(pool_id(pool), after="", limit=1)
    assert ([], "") == await store.list_events(pool_id(pool), address=None, before="", limit=1)
    await store.aclose()


async def test_the_history_of_an_unknown_pool_is_not_found(desk):
    with pytest.raises(errors.NotFound):
        await desk.store.list_events(pool_id("g/10.1.0.0/24"), address=None, before="", limit=10)
    with pytest.raises(errors.NotFound):
        await desk.store.read_events(pool_id("g/10.1.0.0/24"), after="", limit=10)


async def test_a_lease_moves_to_another_host_and_its_old_epoch_is_stale(desk, clock):
    pool = await desk.pool("g/10.1.0.0/24")
    [lease] = await desk.leases(pool, ask("a", host="h1", ttl_s=30))
    clock.advance(20)

    [moved] = await desk.store.transfer(
        pool_id(pool), [AddressReturn(address(1), "a", lease.epoch)], "h2", RequestTag()
    )
    stale = await desk.give_back(pool, ("10.1.0.1", "a", lease.epoch))

    assert lease.epoch < moved.epoch
    assert ("h2", lease.created_ms, clock.now_ms + 30_000) == (moved.owner.host_id, moved.created_ms, moved.expires_ms)
    assert ["STALE_EPOCH"] == stale
    assert 0 == (await desk.store.renew_host("h1")).renewed
    assert 1 == (await desk.store.renew_host("h2")).renewed


async def test_a_transfer_is_refused_item_by_item_and_repeated_by_its_request_id(desk):
    pool = await desk.pool("g/10.1.0.0/24")
    [lease] = await desk.leases(pool, ask("a", host="h1"))
    items = [
        AddressReturn(address(1), "a", lease.epoch),
        AddressReturn(address(1), "b"),
        AddressReturn(address(1), "a", lease.epoch + 7),
        AddressReturn(address(9), "a"),
    ]

    first = await desk.store.transfer(pool_id(pool), items, "h2", tag("r1"))
    again = await desk.store.transfer(pool_id(pool), items, "h2", tag("r1"))

    assert ["10.1.0.1", "NOT_THE_OWNER", "STALE_EPOCH", "LEASE_UNKNOWN"] == [told(outcome) for outcome in first]
    assert first[0] == again[0]
    with pytest.raises(errors.AlreadyExists):
        await desk.store.transfer(pool_id(pool), items, "h3", tag("r1", "another"))


async def claimed(desk, pool, *claims, host="h1", complete=True):
    """Report claims given as (key, last byte of the address, epoch), and return each outcome as text."""
    epoch = (await desk.store.renew_host(host)).store_epoch
    made = [Claim(Owner(key, host), address(last), number) for key, last, number in claims]
    outcomes = await desk.store.reassert(host, epoch, {pool_id(pool): made}, complete=complete)
    return [told(outcome) for outcome in outcomes[pool_id(pool)]]


async def test_a_host_is_asked_to_report_until_it_has(desk):
    pool = await desk.pool("g/10.1.0.0/24")
    before = (await desk.store.renew_host("h1")).reassert

    await claimed(desk, pool, complete=False)
    between = (await desk.store.renew_host("h1")).reassert
    await claimed(desk, pool)

    assert (True, True, False) == (before, between, (await desk.store.renew_host("h1")).reassert)


async def test_a_report_under_another_epoch_is_refused(desk):
    with pytest.raises(errors.FailedPrecondition) as caught:
        await desk.store.reassert("h1", "of yesterday", {}, complete=True)

    assert "STORE_EPOCH_STALE" == caught.value.reason


async def test_a_lease_that_the_store_has_lost_is_taken_back_with_its_epoch(desk):
    pool = await desk.pool("g/10.1.0.0/24")
    [other] = await desk.leases(pool, ask("x"))
    epoch = other.epoch + 500

    assert ["10.1.0.7"] == await claimed(desk, pool, ("a", 7, epoch))

    [found] = await desk.listed(pool, key="a")
    assert (Owner("a", "h1", OwnerKind.ENDPOINT), epoch) == (found.owner, found.epoch)
    [later] = await desk.leases(pool, ask("y"))
    assert epoch < later.epoch
    assert ["ADDRESS_IN_USE"] == await desk.lease(pool, ask("z", "10.1.0.7"))


async def test_above_the_highest_epoch_that_a_host_may_report_there_is_room(desk, clock):
    pool = await desk.pool("g/10.1.0.0/24")
    highest = 2**48 - 2**40 - 1

    assert ["10.1.0.7"] == await claimed(desk, pool, ("a", 7, highest))
    [other] = await desk.leases(pool, ask("b"))
    await desk.give_back(pool, ("10.1.0.7", "a"))
    clock.advance(10)
    [again] = await desk.leases(pool, ask("c", "10.1.0.7"))

    assert highest < other.epoch < again.epoch
    assert [other, again] == await desk.listed(pool)


async def test_a_lease_that_the_store_still_has_stands(desk):
    pool = await desk.pool("g/10.1.0.0/24")
    [lease] = await desk.leases(pool, ask("a", host="h1"))

    assert ["10.1.0.1"] == await claimed(desk, pool, ("a", 1, lease.epoch))
    assert [lease] == await desk.listed(pool)


async def test_of_two_owners_of_an_address_the_later_one_keeps_it(desk):
    pool = await desk.pool("g/10.1.0.0/24")
    first, second = await desk.leases(pool, ask("a", host="h1"), ask("b", host="h1"))

    outcomes = await claimed(
        desk, pool, ("newer", 1, second.epoch + 5), ("older", 2, first.epoch), ("a", 1, first.epoch), host="h2"
    )

    assert ["10.1.0.1", "ADDRESS_IN_USE", "ADDRESS_IN_USE"] == outcomes
    assert {"10.1.0.1": "newer", "10.1.0.2": "b"} == await desk.held(pool)


async def test_the_host_that_a_lease_has_left_must_let_it_go(desk):
    pool = await desk.pool("g/10.1.0.0/24")
    [lease] = await desk.leases(pool, ask("a", host="h1"))
    await desk.store.transfer(pool_id(pool), [AddressReturn(address(1))], "h2", RequestTag())

    assert ["STALE_EPOCH"] == await claimed(desk, pool, ("a", 1, lease.epoch))


async def test_a_resting_address_is_taken_back_and_a_freed_one_too(desk, clock):
    pool = await desk.pool("g/10.1.0.0/24")
    _, second = await desk.leases(pool, ask("a"), ask("b"))
    await desk.give_back(pool, ("10.1.0.1", "a"))
    clock.advance(10)
    await desk.give_back(pool, ("10.1.0.2", "b"))
    await desk.store.sweep()

    assert ["10.1.0.1", "10.1.0.2"] == await claimed(desk, pool, ("c", 1, second.epoch + 1), ("b", 2, second.epoch))
    use = (await desk.store.get_pool(pool_id(pool))).use
    assert (2, 0, 0) == (use.leased, use.quarantined, use.next_free_ms)


async def test_a_pool_that_the_store_has_lost_is_made_again_for_its_leases(desk):
    assert ["10.1.0.3"] == await claimed(desk, "g/10.1.0.0/24", ("a", 3, 77))

    assert {"10.1.0.3": "a"} == await desk.held("g/10.1.0.0/24")


async def test_a_lost_pool_whose_addresses_went_to_another_one_is_refused(desk):
    await desk.pool("g/10.1.0.0/16")

    assert ["POOL_OVERLAP"] == await claimed(desk, "g/10.1.0.0/24", ("a", 3, 77))
