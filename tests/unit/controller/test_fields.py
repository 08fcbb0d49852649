from __future__ import annotations

import pytest
from netweft_common import errors
from netweft_controller.domain import fields

TABLES = {
    fields.name: (
        ["a", "0", "web-1.front_A", "a" * 63],
        ["", "-a", ".a", "_a", "a" * 64, "a b", "a/b", "a\n", "ä", "a\x00"],
    ),
    fields.container_id: (["a", "-", "A_.-9", "a" * 128], ["", "a" * 129, "a/b", "a b", "é"]),
    fields.object_id: (["0" * 32, "abcdef" * 5 + "00"], ["", "0" * 31, "0" * 33, "A" * 32, "g" * 32]),
    fields.network_prefix: (
        ["10.0.0.0/24", "0.0.0.0/0", "10.0.0.1/32", "fd00::/64", "::/56"],
        [
            "",
            "10.0.0.1/24",
            "10.0.0.0",
            "10.0.0.0/33",
            "fd00::1/64",
            "fe80::%eth0/64",
            "10.0.0/24",
            "x/8",
            "10.0.0.0/-1",
        ],
    ),
    fields.address: (
        ["10.0.0.1", "fd00::1", "255.255.255.255", "169.254.0.1"],
        [
            "",
            "10.0.0.1/24",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "ff02::1",
            "127.0.0.1",
            "::1",
            "fe80::1%eth0",
            "::ffff:10.0.0.1",
            "1.2.3",
            "01.2.3.4",
        ],
    ),
    fields.any_address: (["127.0.0.53", "::1", "fe80::1%eth0"], ["", "x", "1.2.3.4/8"]),
    fields.mac_address: (
        ["02:42:ac:11:00:02", "02-42-AC-11-00-02", "00:00:00:00:00:01"],
        [
            "",
            "02:42:ac:11:00",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
            "0242ac110002",
            "02:42:ac:11:00:0g",
        ],
    ),
    fields.interface_name: (
        ["eth0", "a" * 15, "veth-1_2.3", "é"],
        [
            "",
            ".",
            "..",
            "lo",
            "all",
            "default",
            "a" * 16,
            "é" * 8,
            "a/b",
            "a:b",
            "a%d",
            "a b",
            "a\tb",
            "a\x00",
            "a\x7f",
        ],
    ),
    fields.absolute_path: (["/run/netns/a", "/a..b/c"], ["", "/", "run", "/a/../b", "/..", "/a\x00", "/" + "a" * 4096]),
    fields.host_name: (
        ["a", "a.b.c.", "_srv.x", "a" * 63],
        ["", "-a", "a-", "a..b", "a b", "a" * 64, ".".join(["a" * 60] * 5), "ä"],
    ),
    fields.resolver_option: (["ndots:1", "rotate"], ["", "a b", "x\n", "a" * 65]),
}


@pytest.mark.parametrize(
    ("check", "value"),
    [
        pytest.param(check, value, id=f"{check.__name__}({value[:20]!r})")
        for check, (good, _) in TABLES.items()
        for value in good
    ],
)
def test_what_is_right_passes(check, value):
    check(value, "the.field")


@pytest.mark.parametrize(
    ("check", "value"),
    [
        pytest.param(check, value, id=f"{check.__name__}({value[:20]!r})")
        for check, (_, bad) in TABLES.items()
        for value in bad
    ],
)
def test_what_is_wrong_is_refused_by_the_fields_path(check, value):
    with pytest.raises(errors.InvalidArgument) as caught:
        check(value, "the.field")

    assert "the.field" == caught.value.field
    assert "the.field" in caught.value.message
    assert len(caught.value.message) < 400


def test_a_mac_address_becomes_canonical():
    assert "02:42:ac:11:00:0a" == fields.mac_address("02-42-AC-11-00-0A", "f")


@pytest.mark.parametrize(
    ("address", "subnet", "reason"),
    [
        ("10.0.1.1", "10.0.0.0/24", "ADDRESS_OUTSIDE_SUBNET"),
        ("fd00::1", "10.0.0.0/24", "ADDRESS_OUTSIDE_SUBNET"),
        ("10.0.0.0", "10.0.0.0/24", "ADDRESS_RESERVED"),
        ("10.0.0.255", "10.0.0.0/24", "ADDRESS_RESERVED"),
        ("fd00::", "fd00::/64", "ADDRESS_RESERVED"),
    ],
)
def test_an_address_that_no_host_of_the_subnet_can_have_is_refused(address, subnet, reason):
    with pytest.raises(errors.InvalidArgument) as caught:
        fields.host_address_in(address, fields.network_prefix(subnet, "s"), "f")

    assert reason == caught.value.reason


@pytest.mark.parametrize(
    ("address", "subnet"),
    [
        ("10.0.0.0", "10.0.0.0/31"),
        ("10.0.0.1", "10.0.0.0/31"),
        ("10.0.0.1", "10.0.0.1/32"),
        ("fd00::ffff:ffff:ffff:ffff", "fd00::/64"),
    ],
)
def test_small_subnets_and_ipv6_use_their_edges(address, subnet):
    fields.host_address_in(address, fields.network_prefix(subnet, "s"), "f")


@pytest.mark.parametrize(
    "labels",
    [{"": "x"}, {"k" * 257: "x"}, {"k": "v" * 4097}, {"a\nb": "x"}, {str(n): "" for n in range(129)}],
    ids=["empty key", "long key", "long value", "control character", "too many"],
)
def test_absurd_labels_are_refused(labels):
    with pytest.raises(errors.InvalidArgument):
        fields.labels(labels)


@pytest.mark.parametrize("count", [0, 1025])
def test_a_batch_has_1_to_1024_items(count):
    with pytest.raises(errors.InvalidArgument):
        fields.batch([None] * count)
