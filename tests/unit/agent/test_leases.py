"""What a host holds, and what it tells IPAM of it when."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network

import msgspec
import pytest
from netweft_agent.domain import leases
from netweft_agent.domain.leases import Book, Held, Holdings
from netweft_agent.domain.objects import Subnet
from netweft_common.errors import Conflict, FailedPrecondition, Unavailable

from tests.support.agent import endpoint, network, oid

POOL, POOL6 = "GlobalDefault/10.1.0.0/24", "GlobalDefault/fd00::/64"
NETWORK = network(
    subnets=(
        Subnet(subnet=ip_network("10.1.0.0/24"), gateway=None, pool_id=POOL),
        Subnet(subnet=ip_network("fd00::/64"), gateway=None, pool_id=POOL6),
    )
)
BOTH = (ip_interface("10.1.0.5/24"), ip_interface("fd00::5/64"))
IN_USE = FailedPrecondition("ADDRESS_IN_USE", "in use", holder="somebody")


def held(number=1):
    return Held(owner=oid(1000 + number), pool_id=POOL, address=ip_interface(f"10.1.0.{number}/24"), epoch=number)


@pytest.mark.parametrize(
    ("made", "of", "expected"),
    [
        (endpoint(addresses=BOTH, lease_epochs=(7, 8)), NETWORK, ((POOL, 7), (POOL6, 8))),
        (endpoint(addresses=()), None, ()),
        (endpoint(addresses=BOTH, lease_epochs=(7, 8)), None, None),
        (endpoint(addresses=BOTH, lease_epochs=()), NETWORK, None),
        (endpoint(addresses=BOTH, lease_epochs=(7,)), NETWORK, None),
        (endpoint(addresses=BOTH, lease_epochs=(7, 8)), network(subnets=NETWORK.subnets[:1]), None),
        (endpoint(addresses=BOTH[:1], lease_epochs=(7,)), network(), None),
    ],
    ids=["both families", "no addresses", "no network", "no epochs", "an epoch too few", "no subnet", "no pool id"],
)
def test_an_endpoints_leases_are_known_whole_or_not_at_all(made, of, expected):
    found = leases.of_endpoint(made, of)

    assert expected == (found if found is None else tuple((one.pool_id, one.epoch) for one in found))
    assert {made.id} >= {one.owner for one in found or ()}
    assert tuple(one.address for one in found or ()) in (made.addresses, ())


def test_what_is_not_known_of_one_endpoint_makes_the_holdings_no_whole():
    known = endpoint(1001, addresses=BOTH, lease_epochs=(7, 8))
    unknown = endpoint(1002, addresses=BOTH)

    sure = leases.holdings([known], {NETWORK.id: NETWORK}, whole=True)
    unsure = leases.holdings([known, unknown], {NETWORK.id: NETWORK}, whole=True)

    assert Holdings(leases=list(leases.of_endpoint(known, NETWORK)), whole=True) == sure
    assert msgspec.structs.replace(sure, whole=False) == unsure


def heard(*answers, holds=True):
    """Return a book that has heard these answers, each a time, an epoch and whether IPAM asks for a report."""
    book = Book()
    for now_s, epoch, reassert in answers:
        book.hear(epoch, reassert=reassert, holds=holds, now_s=now_s)
    return book


@pytest.mark.parametrize(
    ("answers", "holds", "due", "watching"),
    [
        ([(0, "a", False)], True, False, False),
        ([(0, "a", True)], False, True, False),
        ([(0, "a", True)], True, True, True),
        ([(0, "a", False), (5, "b", True)], False, True, True),
        ([(0, "a", False), (5, "b", False)], False, True, True),
        ([(0, "a", False), (5, "a", True)], True, True, True),
        ([(0, "a", False), (5, "a", False)], True, False, False),
    ],
    ids=[
        "reported in an earlier life",
        "a new host",
        "asked for, after a restart",
        "another epoch",
        "another epoch, and not asked for",
        "IPAM forgot the report",
        "nothing new",
    ],
)
def test_a_host_looks_what_to_tell_when_the_epoch_is_new_or_ipam_asks(answers, holds, due, watching):
    book = heard(*answers, holds=holds)

    assert (due, watching) == (book.is_due(5), book.is_watching(5))


def test_all_is_told_once_and_then_what_is_new():
    book = heard((0, "a", False), (5, "b", True))
    told = sorted(book.untold([held(1), held(2)], 5), key=lambda one: one.epoch)
    book.told("b", told, [None, None])
    book.reported = True
    book.hear("b", reassert=False, holds=True, now_s=7)

    later = book.untold([held(2), held(3)], 7)

    assert [held(1), held(2)] == told
    assert [held(3)] == later


def test_all_is_told_again_a_few_times_and_then_no_more():
    book = heard((0, "a", False), (5, "b", True))
    book.reported = True
    counts = {}
    for now_s in (5, 6, 14, 15, 16, 64, 65, 66, 124, 125, 126):
        counts[now_s] = len(book.untold([held()], now_s)) if book.is_due(now_s) else -1
        book.told("b", [held()], [None])

    assert {5: 1, 6: 0, 14: 0, 15: 1, 16: 0, 64: 0, 65: 1, 66: 0, 124: 0, 125: 1, 126: -1} == counts


def test_what_is_refused_is_told_again_until_it_is_taken_or_gone():
    book = heard((0, "a", True), holds=False)
    book.told("a", [held(1), held(2), held(3), held(4)], [IN_USE, IN_USE, Unavailable("X", "x"), Conflict("X", "x")])
    book.reported = True
    refused = set(book.refused)

    again = book.untold([held(1), held(3), held(4)], 1)
    book.told("a", [held(1), held(3), held(4)], [None, None, None])

    assert {held(1), held(2)} == refused
    assert {held(1), held(3), held(4)} == set(again)
    assert ({}, False) == (book.refused, book.is_due(2))


def test_an_answer_of_an_epoch_that_is_over_counts_for_nothing():
    book = heard((0, "a", True), (1, "b", True))

    book.told("a", [held(1), held(2)], [None, IN_USE])

    assert {} == book.refused
    assert {held(1), held(2)} == set(book.untold([held(1), held(2)], 1))


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (IN_USE, "somebody has it too"),
        (FailedPrecondition("STALE_EPOCH", "it went to another host"), "went to another"),
    ],
    ids=["doubled", "moved"],
)
def test_a_lost_lease_names_the_endpoint_the_address_and_who_has_it(error, word):
    made = endpoint(addresses=BOTH, lease_epochs=(7, 8))
    claim = leases.of_endpoint(made, NETWORK)[0]

    found = leases.lost(made, claim, error)

    assert "LEASE_LOST" == found.reason
    assert [] == [part for part in ("10.1.0.5", made.name, made.id, word) if part not in found.message]
    assert (made.id, "10.1.0.5", POOL) == tuple(found.metadata[name] for name in ("endpoint", "address", "pool_id"))
