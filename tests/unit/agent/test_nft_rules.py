from __future__ import annotations

import pytest
from netweft_agent.domain import nft
from netweft_agent.domain.nft import Match, rule
from netweft_agent.kernel import netlink, nft_rules
from netweft_common import errors

EXPRESSIONS, USERDATA = 4, 7
META_KEYS = {1: "protocol", 15: "nfproto", 16: "l4proto", 17: "ibrname", 18: "obrname", 8: "iiftype"}


def names(encoded: nft_rules.EncodedRule) -> list[str]:
    """Return the expressions' names; of meta what it loads."""
    found = []
    for _, expression in netlink.iter_attributes(netlink.attributes(encoded.attributes)[EXPRESSIONS]):
        parts = netlink.attributes(expression)
        name = parts[1].rstrip(b"\0").decode()
        found.append(META_KEYS[int.from_bytes(netlink.attributes(parts[2])[2], "big")] if name == "meta" else name)
    return found


@pytest.mark.parametrize(
    ("family", "matches", "expected"),
    [
        ("inet", [Match(nft.IP_SADDR, "10.0.0.1")], ["nfproto", "cmp", "payload", "cmp"]),
        ("ip", [Match(nft.IP_SADDR, "10.0.0.1")], ["payload", "cmp"]),
        ("bridge", [Match(nft.IP_SADDR, "10.0.0.1")], ["protocol", "cmp", "payload", "cmp"]),
        (
            "inet",
            [Match(nft.IP_SADDR, "10.0.0.1"), Match(nft.IP_DADDR, "10.0.0.2")],
            ["nfproto", "cmp", "payload", "cmp", "payload", "cmp"],
        ),
        (
            "inet",
            [Match(nft.META_NFPROTO, "ipv4"), Match(nft.IP_DADDR, "10.0.0.2")],
            ["nfproto", "cmp", "payload", "cmp"],
        ),
        ("inet", [Match(nft.META_L4PROTO, "tcp"), Match(nft.TCP_DPORT, 80)], ["l4proto", "cmp", "payload", "cmp"]),
        (
            "inet",
            [Match(nft.META_L4PROTO, "tcp", op="!="), Match(nft.TCP_DPORT, 80)],
            ["l4proto", "cmp", "l4proto", "cmp", "payload", "cmp"],
        ),
        ("inet", [Match(nft.TH_DPORT, 80)], ["payload", "cmp"]),
        ("inet", [Match(nft.ETHER_SADDR, "02:42:0a:00:00:02")], ["iiftype", "cmp", "payload", "cmp"]),
        ("bridge", [Match(nft.ETHER_SADDR, "02:42:0a:00:00:02")], ["payload", "cmp"]),
        (
            "bridge",
            [Match(nft.META_IBRNAME, "br0"), Match(nft.META_OBRNAME, "br0")],
            ["ibrname", "cmp", "obrname", "cmp"],
        ),
    ],
    ids=[
        "inet has two families",
        "ip has one",
        "a bridge has many protocols",
        "checked once",
        "checked by the author",
        "protocol by the author",
        "not that protocol",
        "any transport",
        "inet has links of all kinds",
        "a bridge has Ethernet",
        "names of bridges",
    ],
)
def test_a_field_comes_with_a_check_that_the_packet_has_it(family, matches, expected):
    encoded = nft_rules.encode_rule(family, rule(*matches))

    assert expected == names(encoded)


@pytest.mark.parametrize(
    ("family", "matches"),
    [
        ("ip6", [Match(nft.IP_SADDR, "10.0.0.1")]),
        ("inet", [Match(nft.ARP_OPERATION, "request")]),
        ("inet", [Match(nft.IP_SADDR, "10.0.0.1"), Match(nft.IP6_SADDR, "fd00::1")]),
        ("inet", [Match(nft.TCP_DPORT, 80), Match(nft.UDP_DPORT, 80)]),
        ("inet", [Match(nft.IP_SADDR, "fd00::1")]),
    ],
    ids=["ip in ip6", "arp in inet", "both families", "both protocols", "wrong value"],
)
def test_a_rule_that_no_packet_can_match_is_a_bug_of_ours(family, matches):
    with pytest.raises(errors.Internal):
        nft_rules.encode_rule(family, rule(*matches))


def test_a_rule_carries_its_digest_as_comment():
    one = rule(nft.ACCEPT)

    userdata = netlink.attributes(nft_rules.encode_rule("inet", one).attributes)[USERDATA]

    assert one.digest == nft_rules.comment_of(userdata)


def test_anonymous_sets_are_numbered_on():
    encoded = nft_rules.encode_rule(
        "inet", rule(Match(nft.META_L4PROTO, ("tcp", "udp")), Match(nft.TH_DPORT, (53, "80-90"))), first_id=7
    )

    assert [(7, False), (8, True)] == [(literal.id, literal.spec.interval) for literal in encoded.literals]


@pytest.mark.parametrize(
    "verdict", [nft.ACCEPT, nft.DROP, nft.RETURN, nft.CONTINUE, nft.jump("tenant"), nft.goto("tenant")], ids=str
)
def test_verdicts_read_back(verdict):
    packed = nft_rules.encode_verdict(verdict)

    assert verdict == nft_rules.decode_verdict(packed[4:])
