from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from netweft_agent.domain import nft
from netweft_agent.domain.nft import Match, NftChain, NftElement, NftSet, NftTable, Set, rule

from tests.support import nft_ruleset

GOLDEN = Path(__file__).parents[2] / "golden" / "nft" / "ruleset.nft"
OURS = nft.Table("inet", "netweft")
VTEPS = Set(name="vteps", key=(nft.IPV4_ADDR,))
PORTS = Set(name="ports", key=(nft.IPV4_ADDR, nft.INET_SERVICE), data=(nft.IPV4_ADDR, nft.INET_SERVICE))
VERDICTS = Set(name="verdicts", key=(nft.IFNAME,), data=(nft.VERDICT,))
FORWARD = nft.Base(type="filter", hook="forward", priority=0)


def chain(*rules, base=None):
    return NftChain(ns="", table=OURS, name="forward", base=base, rules=rules)


def test_the_whole_language_prints_as_in_the_golden_file():
    """NETWEFT_GOLDEN=write writes it again; read the difference before it is committed."""
    printed = nft.listing(nft_ruleset.full())
    if os.environ.get("NETWEFT_GOLDEN") == "write":
        GOLDEN.write_text(printed)

    assert GOLDEN.read_text() == printed


@pytest.mark.parametrize(
    ("family", "hook", "priority", "printed"),
    [
        ("inet", "forward", 0, "filter"),
        ("inet", "forward", 3, "filter + 3"),
        ("inet", "forward", -10, "filter - 10"),
        ("inet", "forward", 11, "11"),
        ("inet", "prerouting", -100, "dstnat"),
        ("inet", "forward", -100, "-100"),
        ("ip", "postrouting", 100, "srcnat"),
        ("ip", "prerouting", -300, "raw"),
        ("bridge", "forward", -200, "filter"),
        ("bridge", "prerouting", -300, "dstnat"),
        ("bridge", "forward", 0, "0"),
        ("netdev", "ingress", 0, "filter"),
        ("netdev", "ingress", -100, "-100"),
    ],
)
def test_a_priority_has_its_name_where_the_hook_has_it(family, hook, priority, printed):
    base = nft.Base(type="filter", hook=hook, priority=priority)

    assert f"type filter hook {hook} priority {printed}; policy accept;" == base.text(family)


@pytest.mark.parametrize(
    ("resource", "add", "delete"),
    [
        (NftTable(ns="", table=OURS), "nft add table inet netweft", "nft delete table inet netweft"),
        (
            NftSet(ns="", table=OURS, spec=VTEPS),
            "nft 'add set inet netweft vteps { type ipv4_addr; }'",
            "nft delete set inet netweft vteps",
        ),
        (
            NftSet(ns="", table=OURS, spec=msgspec.structs.replace(PORTS, interval=True, size=9)),
            (
                "nft 'add map inet netweft ports { type ipv4_addr . inet_service : ipv4_addr . inet_service; size 9; "
                "flags interval; }'"
            ),
            "nft delete map inet netweft ports",
        ),
        (
            NftElement(ns="", table=OURS, spec=PORTS, item=("192.0.2.1", 80), value=("10.0.0.2", 8080)),
            "nft 'add element inet netweft ports { 192.0.2.1 . 80 : 10.0.0.2 . 8080 }'",
            "nft 'delete element inet netweft ports { 192.0.2.1 . 80 }'",
        ),
        (
            NftElement(ns="", table=OURS, spec=VERDICTS, item=("eth0",), value=nft.jump("tenant")),
            "nft 'add element inet netweft verdicts { \"eth0\" : jump tenant }'",
            "nft 'delete element inet netweft verdicts { \"eth0\" }'",
        ),
        (
            chain(nft.Rule((nft.DROP,)), base=FORWARD),
            (
                "nft 'add chain inet netweft forward { type filter hook forward priority filter; policy accept; }; "
                f'add rule inet netweft forward drop comment "{rule(nft.DROP).digest}"\''
            ),
            "nft delete chain inet netweft forward",
        ),
    ],
    ids=["table", "set", "map", "element", "verdict", "chain"],
)
def test_a_resource_prints_its_commands(resource, add, delete):
    assert (add, delete) == (resource.add_command(), resource.delete_command())


def test_a_changed_chain_is_flushed_and_filled_but_a_moved_one_is_made_again():
    before = chain(rule(nft.ACCEPT), base=FORWARD)
    same_hook = msgspec.structs.replace(before, base=msgspec.structs.replace(FORWARD, policy="drop"))
    moved = msgspec.structs.replace(before, base=msgspec.structs.replace(FORWARD, hook="input"))

    commands = same_hook.change_command(before), moved.change_command(before)

    assert commands[0].startswith("nft 'flush chain inet netweft forward; add chain")
    assert commands[1].startswith("nft 'delete chain inet netweft forward; add chain")


def test_a_changed_element_is_removed_and_added_at_once():
    before = NftElement(ns="", table=OURS, spec=PORTS, item=("192.0.2.1", 80), value=("10.0.0.2", 80))
    after = msgspec.structs.replace(before, value=("10.0.0.3", 80))

    assert (
        "nft 'delete element inet netweft ports { 192.0.2.1 . 80 }; "
        "add element inet netweft ports { 192.0.2.1 . 80 : 10.0.0.3 . 80 }'"
    ) == after.change_command(before)


def test_rules_of_the_same_text_are_equal_to_each_other_and_to_what_is_observed():
    one, other = rule(Match(nft.IP_SADDR, VTEPS), nft.ACCEPT), rule(Match(nft.IP_SADDR, VTEPS), nft.ACCEPT)
    observed = nft.Rule((), one.digest)

    assert one == other == observed
    assert {one} == {other, observed}
    assert one != rule(Match(nft.IP_SADDR, VTEPS), nft.DROP)
    assert one != nft.Rule(())


def test_a_rule_differs_when_the_set_it_looks_into_is_of_another_kind():
    wider = msgspec.structs.replace(VTEPS, interval=True)

    assert rule(Match(nft.IP_SADDR, VTEPS), nft.ACCEPT) != rule(Match(nft.IP_SADDR, wider), nft.ACCEPT)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Match(nft.IP6_SADDR, VTEPS),
        lambda: Match((nft.IP_SADDR, nft.TCP_DPORT), VTEPS),
        lambda: Match((nft.IP_SADDR, nft.TCP_DPORT), "10.0.0.1"),
        lambda: Match(nft.CT_STATUS_FIELD, "dnat", op="!="),
        lambda: nft.Vmap(nft.IP_SADDR, VTEPS),
        lambda: nft.Dnat("ip6", (nft.IP_DADDR, nft.TH_DPORT), PORTS),
        lambda: nft.Dnat("ip", (nft.IP_DADDR, nft.TH_DPORT)),
        lambda: nft.SetMark(nft.IP_SADDR, 1),
        lambda: nft.payload("th", 7, 8),
        lambda: Set(name="x", key=(nft.VXLAN_VNI.type, nft.IPV4_ADDR)),
        lambda: Set(name="x", key=(nft.IPV4_ADDR,), has_timeout=True, timeout_s=5),
    ],
    ids=[
        "wrong type",
        "too many fields",
        "concatenation without a set",
        "ct status !=",
        "verdicts of a plain set",
        "map of the other family",
        "fields without a map",
        "a field that cannot be set",
        "half a byte",
        "bytes by place in a concatenation",
        "two ways to say timeout",
    ],
)
def test_what_makes_no_sense_cannot_be_said(make):
    with pytest.raises(AssertionError):
        make()


def test_resources_are_made_tables_first_and_need_their_holders():
    table = NftTable(ns="x", table=OURS)
    spec = NftSet(ns="x", table=OURS, spec=VTEPS)
    element = NftElement(ns="x", table=OURS, spec=VTEPS, item=("192.0.2.1",))
    one = NftChain(ns="x", table=OURS, name="forward")

    assert [table, spec, one, element] == sorted([one, element, spec, table], key=lambda resource: resource.rank)
    assert [[("netns", "x")], [table.key], [spec.key], [table.key]] == [
        list(resource.needs()) for resource in (table, spec, element, one)
    ]
