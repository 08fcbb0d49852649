# the house writes expected == actual
"""The pure rules: addresses, pools, predefined lists, and when pools settle."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netweft_common import errors
from netweft_ipam.domain import predefined, settling
from netweft_ipam.domain.addressing import Subnet, format_address, parse_address, parse_subnet
from netweft_ipam.domain.pools import Choice, PoolId, check_space, is_local, parse_pool_id, quota
from netweft_ipam.domain.settling import Patience, Reports
from netweft_ipam.store import keys


def subnet(text: str) -> Subnet:
    return parse_subnet(text, field="subnet")


@pytest.mark.parametrize("text", ["10.0.0.0/8", "10.1.2.3/32", "fd00::/8", "::/128", "0.0.0.0/0", "fd00:1:2::/48"])
def test_a_subnet_reads_back_as_it_is_written(text):
    assert text == str(subnet(text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0.0",
        "10.0.0.0/",
        "/8",
        "10.0.0/8",
        "10.0.0.0/33",
        "fd00::/129",
        "010.0.0.0/8",
        "fe80::%a/64",
        "10.0.0.0/8 ",
    ],
)
def test_a_malformed_subnet_is_refused_with_its_field(text):
    with pytest.raises(errors.InvalidArgument) as caught:
        parse_subnet(text, field="here")

    assert ("SUBNET_MALFORMED", "here") == (caught.value.reason, caught.value.field)


def test_a_subnet_with_host_bits_is_refused_and_told_the_right_one():
    with pytest.raises(errors.InvalidArgument) as caught:
        parse_subnet("10.1.2.3/16", field="here")

    assert "10.1.0.0/16" == caught.value.metadata["subnet"]


@pytest.mark.parametrize(
    ("version", "text"),
    [(4, "fd00::1"), (6, "10.0.0.1"), (4, "10.0.0.1/32"), (4, "10.0.0.01"), (6, "fe80::1%eth0"), (4, "")],
)
def test_a_malformed_address_is_refused(version, text):
    with pytest.raises(errors.InvalidArgument):
        parse_address(version, text, field="here")


@given(st.sampled_from([4, 6]), st.data())
def test_an_address_reads_back_as_it_is_written(version, data):
    number = data.draw(st.integers(0, 2 ** (32 if version == 4 else 128) - 1))

    assert number == parse_address(version, format_address(version, number), field="")


@pytest.mark.parametrize(
    ("text", "first", "last", "capacity", "reserved"),
    [
        ("g/10.1.0.0/24", "10.1.0.1", "10.1.0.254", 254, 2),
        ("g/10.1.0.0/31", "10.1.0.0", "10.1.0.1", 2, 0),
        ("g/10.1.0.0/32", "10.1.0.0", "10.1.0.0", 1, 0),
        ("g/fd00::/64", "fd00::1", "fd00::ffff:ffff:ffff:ffff", 2**64 - 1, 1),
        ("g/fd00::/127", "fd00::", "fd00::1", 2, 0),
        ("g/10.1.0.0/24/10.1.0.0/25", "10.1.0.1", "10.1.0.127", 127, 1),
        ("g/10.1.0.0/24/10.1.0.128/25", "10.1.0.128", "10.1.0.254", 127, 1),
        ("g/10.1.0.0/24/10.1.0.64/26", "10.1.0.64", "10.1.0.127", 64, 0),
        ("g/10.1.0.0/24/10.1.0.255/32", "10.1.0.255", "10.1.0.254", 0, 1),
    ],
)
def test_what_of_a_pool_can_be_leased(text, first, last, capacity, reserved):
    pool = parse_pool_id(text, field="")

    assert text == str(pool)
    ends = [format_address(pool.subnet.version, address) for address in (pool.first, pool.last)]
    assert [first, last] == ends
    assert (capacity, reserved) == (pool.capacity, pool.reserved)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "g",
        "g/10.1.0.0",
        "g/10.1.0.0/24/",
        "g/10.1.0.0/24/10.2.0.0/25",
        "g/10.1.0.0/24/x",
        "/10.1.0.0/24",
        "g h/1.0.0.0/8",
    ],
)
def test_a_malformed_pool_id_is_refused(text):
    with pytest.raises(errors.InvalidArgument) as caught:
        parse_pool_id(text, field="pool_id")

    assert "pool_id" == caught.value.field


def test_spaces_are_local_by_their_name():
    assert [True, True, False] == [is_local(space) for space in ("LocalDefault", "LocalDefault:h1", "Local")]
    with pytest.raises(errors.InvalidArgument):
        check_space("a{b}", field="space")


@pytest.mark.parametrize(("text", "expected"), [("5", 5), ("0", 0), ("-1", None), ("x", None), ("٣", None)])
def test_a_quota_is_a_number(text, expected):
    assert expected == quota({"netweft.quota.leases": text})


def test_the_default_lists_are_libnetworks():
    lists = predefined.build(local=predefined.DEFAULT_LOCAL, global_=predefined.DEFAULT_GLOBAL, cluster_id="c")

    local = [2 ** (choice.size - choice.base.prefix) for choice in lists.choices("LocalDefault", 4)]
    assert 31 == sum(local)
    assert (Choice(subnet("10.0.0.0/8"), 24),) == lists.choices("GlobalDefault", 4)
    assert 64 == lists.choices("GlobalDefault", 6)[0].size


def test_a_list_is_sorted_and_what_lies_in_a_wider_entry_is_dropped():
    listed = predefined.parse(["10.2.0.0/16,24", "10.0.0.0/8,20", "9.0.0.0/8,16", "fd00::/16,64"], field="")

    assert ["9.0.0.0/8", "10.0.0.0/8", "fd00::/16"] == [str(choice.base) for choice in listed]


@pytest.mark.parametrize(
    "entry",
    ["10.0.0.0/8", "10.0.0.0/8,", "10.0.0.0/8,7", "10.0.0.0/8,33", "10.0.0.0/8,x", "10.0.0.1/8,24", "0.0.0.0/0,0"],
)
def test_a_malformed_entry_of_a_list_is_refused(entry):
    with pytest.raises(errors.InvalidArgument) as caught:
        predefined.parse(["192.168.0.0/16,24", entry], field="local_pools")

    assert "local_pools[1]" == caught.value.field


def test_a_size_request_takes_entries_that_are_wide_enough():
    lists = predefined.build(local=["10.0.0.0/16,24", "192.168.0.0/24,26"], global_=[], cluster_id="c")

    assert ["10.0.0.0/16"] == [str(choice.base) for choice in lists.choices("LocalDefault", 4, 20)]
    assert 2 == len(lists.choices("LocalDefault", 4, 30))
    assert () == lists.choices("LocalDefault", 4, 8)


def test_a_clusters_own_v6_prefix_is_a_ula_48_and_stable():
    first, again, other = (predefined.ula(name).base for name in ("a", "a", "b"))

    assert first == again != other
    assert (0xFD, 48) == (first.base >> 120, first.prefix)


small = st.builds(
    lambda prefix, number: Subnet(4, (10 << 24) + (number << (32 - prefix)), prefix),
    st.integers(24, 28),
    st.integers(0, 15),
)


@settings(max_examples=200)
@given(st.lists(small, max_size=6), st.lists(small, max_size=3), st.integers(24, 28))
def test_first_fit_finds_what_a_plain_search_finds(taken, exclude, size):
    choice = Choice(subnet("10.0.0.0/23"), size)
    step = 1 << (32 - size)
    candidates = (Subnet(4, base, size) for base in range(choice.base.base, choice.base.last, step))
    expected = next(
        (found for found in candidates if not any(found.overlaps(other) for other in [*taken, *exclude])), None
    )

    assert expected == predefined.first_free([choice], taken, exclude)


@pytest.mark.parametrize(
    ("live", "missing", "waited_ms", "expected"),
    [
        (0, (), 0, 0),
        (2, (), 0, 1000),
        (2, (), 1000, 0),
        (2, ("h1",), 1000, 29_000),
        (2, ("h1",), 30_000, 0),
    ],
    ids=["no hosts", "all at once", "all, later", "one is missing", "one is missing for too long"],
)
def test_pools_wait_for_hosts_no_longer_than_they_must(live, missing, waited_ms, expected):
    reports = Reports(now_ms=50_000 + waited_ms, since_ms=50_000, live=live, missing=missing)

    assert expected == settling.wait_ms(reports, Patience())


@pytest.mark.parametrize("text", ["g/10.1.0.0/24", "g/10.1.0.0/24/10.1.0.64/26", "g:1/fd00::/64/fd00::/80"])
def test_a_registry_name_reads_back(text):
    pool = parse_pool_id(text, field="")

    assert pool == keys.parse_pool_name(pool.space, keys.pool_name(pool))


def test_registry_names_sort_as_pools_are_listed():
    pools = [PoolId("g", subnet(text)) for text in ("9.0.0.0/8", "10.0.0.0/24", "10.0.1.0/24", "fd00::/64")]

    assert sorted(map(keys.pool_name, pools)) == [keys.pool_name(pool) for pool in pools]
