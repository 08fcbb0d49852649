"""Rules of nftables as the kernel's expressions (`linux/netfilter/nf_tables.h`).

An expression reads and writes registers: sixteen words of 4 bytes. A match loads fields side by side into words from
the first on, and compares them or looks them up. As nft does, a field of a protocol comes with a check, once a rule,
that the packet is of that protocol; nft hides these checks when it lists a rule.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from netweft_common import errors

from netweft_agent.domain import nft
from netweft_agent.domain.nft import Atom, Field, Fields, Set, Verdict
from netweft_agent.kernel import netlink, nft_values

_VERDICTS = {"accept": 1, "drop": 0, "continue": -1, "jump": -3, "goto": -4, "return": -5}
_META = {
    "mark": 3,
    "iif": 4,
    "oif": 5,
    "iifname": 6,
    "oifname": 7,
    "iiftype": 8,
    "protocol": 1,
    "nfproto": 15,
    "pkttype": 19,
    "l4proto": 16,
    "ibrname": 17,
    "obrname": 18,
}
_CT = {"state": 0, "status": 2, "mark": 3}
_LINK, _NETWORK, _TRANSPORT = 0, 1, 2
_BASES = {"ll": _LINK, "nh": _NETWORK, "th": _TRANSPORT}
_EQ, _NEQ, _LTE, _GTE = 0, 1, 3, 5
_NFPROTO = {"ip": 2, "ip6": 10}
_ETHERTYPE = {"ip": 0x0800, "ip6": 0x86DD, "arp": 0x0806}
_ARPHRD_ETHER = 1
_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}
_NAT_FLAGS = {"random": 0x4, "persistent": 0x8, "fully-random": 0x10}
_ICMPX = {"no-route": 0, "port-unreachable": 1, "host-unreachable": 2, "admin-prohibited": 3}
_REJECT_UNREACH, _REJECT_TCP_RESET, _REJECT_ICMPX = 0, 1, 2
_FIB_RESULT_ADDRTYPE = 3
_FIB_FLAGS = {"saddr": 1, "daddr": 2}
_LOOKUP_INVERTED = 1
_LIMIT_OVER = 1
_COMMENT_LIMIT = 254


class _Payload(msgspec.Struct, frozen=True):
    """Where a header field is, and what must be true of the packet for it to be there."""

    base: int
    offset: int
    l3: str = ""
    l4: int = 0


_PAYLOADS = {
    "ip saddr": _Payload(_NETWORK, 12, "ip"),
    "ip daddr": _Payload(_NETWORK, 16, "ip"),
    "ip protocol": _Payload(_NETWORK, 9, "ip"),
    "ip6 saddr": _Payload(_NETWORK, 8, "ip6"),
    "ip6 daddr": _Payload(_NETWORK, 24, "ip6"),
    "tcp sport": _Payload(_TRANSPORT, 0, l4=6),
    "tcp dport": _Payload(_TRANSPORT, 2, l4=6),
    "udp sport": _Payload(_TRANSPORT, 0, l4=17),
    "udp dport": _Payload(_TRANSPORT, 2, l4=17),
    "sctp sport": _Payload(_TRANSPORT, 0, l4=132),
    "sctp dport": _Payload(_TRANSPORT, 2, l4=132),
    "th sport": _Payload(_TRANSPORT, 0),
    "th dport": _Payload(_TRANSPORT, 2),
    "icmp type": _Payload(_TRANSPORT, 0, "ip", 1),
    "icmpv6 type": _Payload(_TRANSPORT, 0, "ip6", 58),
    "ether saddr": _Payload(_LINK, 6),
    "ether daddr": _Payload(_LINK, 0),
    "arp operation": _Payload(_NETWORK, 6, "arp"),
    "arp saddr ether": _Payload(_NETWORK, 8, "arp"),
    "arp saddr ip": _Payload(_NETWORK, 14, "arp"),
    "arp daddr ip": _Payload(_NETWORK, 24, "arp"),
    "icmpv6 taddr": _Payload(_TRANSPORT, 8, "ip6", 58),
}


class Literal(msgspec.Struct, frozen=True):
    """An anonymous set that a rule needs; it lives and dies with the rule.

    Attributes:
        id: Names it within the transaction.
        elements: Keys, with verdicts if it is a map.
    """

    id: int
    spec: Set
    elements: tuple[tuple[tuple[Atom, ...], tuple[Atom, ...] | Verdict], ...]


class EncodedRule(msgspec.Struct, frozen=True):
    """A rule's attributes (NFTA_RULE_EXPRESSIONS and NFTA_RULE_USERDATA), and the sets to make before it."""

    attributes: bytes
    literals: tuple[Literal, ...]


def encode_rule(family: str, rule: nft.Rule, first_id: int = 1) -> EncodedRule:
    """Encode a rule for a table of the family.

    Args:
        family: Of the table.
        rule: Not an observed one.
        first_id: First free id of a set in the transaction.

    Raises:
        Internal: The rule has a value of the wrong type, or makes no sense in the family.
    """
    encoder = _Encoder(family, rule.text(), first_id)
    for statement in rule.statements:
        encoder.add(statement)
    comment = rule.digest.encode() + b"\0"
    assert len(comment) <= _COMMENT_LIMIT
    return EncodedRule(
        netlink.nest(4, *encoder.expressions) + netlink.attr(7, bytes((0, len(comment))) + comment),
        tuple(encoder.literals),
    )


def userdata(data: bytes) -> dict[int, bytes]:
    """Return nft's notes by type: user data is type and length, a byte each, and value (libnftnl's udata.h)."""
    notes, offset = {}, 0
    while offset + 2 <= len(data):
        kind, size = data[offset], data[offset + 1]
        notes[kind] = data[offset + 2 : offset + 2 + size]
        offset += 2 + size
    return notes


def comment_of(data: bytes) -> str:
    """Return the comment in a rule's user data."""
    return userdata(data).get(0, b"").rstrip(b"\0").decode(errors="replace")


def encode_verdict(verdict: Verdict) -> bytes:
    """Encode a verdict as data of an element or an immediate: the attribute NFTA_DATA_VERDICT."""
    parts = [_be32(1, _VERDICTS[verdict.kind])]
    if verdict.chain:
        parts.append(netlink.attr_string(2, verdict.chain))
    return netlink.nest(2, *parts)


def decode_verdict(data: bytes) -> Verdict:
    """Read the payload of NFTA_DATA_VERDICT."""
    given = netlink.attributes(data)
    code = struct.unpack("!i", given[1])[0]
    names = {number: name for name, number in _VERDICTS.items()}
    return Verdict(names.get(code, str(code)), given.get(2, b"").rstrip(b"\0").decode(errors="replace"))


def _be32(kind: int, value: int) -> bytes:
    return netlink.attr(kind, (value & 0xFFFFFFFF).to_bytes(4, "big"))


def _be64(kind: int, value: int) -> bytes:
    return netlink.attr(kind, value.to_bytes(8, "big"))


def _expression(name: str, *attributes: bytes) -> bytes:
    return netlink.nest(1, netlink.attr_string(1, name), netlink.nest(2, *attributes))


def _value(kind: int, data: bytes) -> bytes:
    return netlink.nest(kind, netlink.attr(1, data))


def _register(word: int) -> int:
    assert 0 <= word < 16, "a concatenation has 64 bytes at most"
    return 8 + word


def _cmp(op: int, data: bytes) -> bytes:
    return _expression("cmp", _be32(1, _register(0)), _be32(2, op), _value(3, data))


def _bitwise(mask: bytes) -> bytes:
    word = _be32(1, _register(0)) + _be32(2, _register(0))
    return _expression("bitwise", word, _be32(3, len(mask)), _value(4, mask), _value(5, bytes(len(mask))))


def _meta(name: str, word: int = 0) -> bytes:
    return _expression("meta", _be32(2, _META[name]), _be32(1, _register(word)))


def _load_payload(base: int, offset: int, size: int, word: int) -> bytes:
    return _expression("payload", _be32(1, _register(word)), _be32(2, base), _be32(3, offset), _be32(4, size))


def _immediate(data: bytes, word: int) -> bytes:
    return _expression("immediate", _be32(1, _register(word)), _value(2, data))


@dataclass(slots=True)
class _Encoder:
    """Encodes the statements of one rule, remembering what is known of the packet so far."""

    family: str
    text: str
    next_id: int
    expressions: list[bytes] = field(default_factory=list)
    literals: list[Literal] = field(default_factory=list)
    l3: str = ""
    l4: int = 0
    ether: bool = False

    def __post_init__(self) -> None:
        if self.family in {"ip", "ip6"}:
            self.l3 = self.family
        self.ether = self.family == "bridge"

    def add(self, statement: nft.Statement) -> None:  # noqa: C901, PLR0912 (a table in words)
        match statement:
            case nft.Match():
                self._match(statement)
            case nft.Vmap():
                self._vmap(statement)
            case nft.Verdict():
                self._put("immediate", _be32(1, 0), netlink.nest(2, encode_verdict(statement)))
            case nft.Counter():
                self._put("counter")
            case nft.Log():
                self._log(statement)
            case nft.Limit():
                self._limit(statement)
            case nft.Masquerade():
                flags = sum(_NAT_FLAGS[name] for name in statement.flags)
                self._put("masq", *([_be32(1, flags)] if flags else []))
            case nft.Snat():
                self._nat(0, statement)
            case nft.Dnat():
                self._nat(1, statement)
            case nft.Redirect():
                self.expressions.append(_immediate(statement.port.to_bytes(2, "big"), 0))
                self._put("redir", _be32(1, _register(0)))
            case nft.SetMark():
                self._set_mark(statement)
            case nft.Reject():
                self._reject(statement)
            case nft.Notrack():
                self._put("notrack")
            case _:
                raise self._wrong(f"{type(statement).__name__} is unknown")

    def _put(self, name: str, *attributes: bytes) -> None:
        self.expressions.append(_expression(name, *attributes))

    def _wrong(self, why: str) -> errors.Internal:
        return errors.Internal(
            "NFT_RULE", f"the rule `{self.text}` cannot be encoded for a table of {self.family}: {why}"
        )

    # --- matching ---

    def _match(self, match: nft.Match) -> None:
        fields = nft.as_fields(match.fields)
        self._require(fields)
        if isinstance(match.value, Set):
            self._lookup(fields, match.value.name, inverted=match.op == "!=")
        elif isinstance(match.value, tuple):
            literal = self._literal(match.literal(), [(item, ()) for item in match.items()])
            self._lookup(fields, literal.spec.name, set_id=literal.id, inverted=match.op == "!=")
        else:
            self._compare(fields[0], match.value, match.op, match.mask)

    def _vmap(self, vmap: nft.Vmap) -> None:
        fields = nft.as_fields(vmap.fields)
        self._require(fields)
        if isinstance(vmap.value, Set):
            self._lookup(fields, vmap.value.name, into_verdict=True)
        else:
            literal = self._literal(vmap.literal(), [((atom,), verdict) for atom, verdict in vmap.value])
            self._lookup(fields, literal.spec.name, set_id=literal.id, into_verdict=True)

    def _literal(self, spec: Set, elements: Sequence[tuple[tuple[Atom, ...], tuple[Atom, ...] | Verdict]]) -> Literal:
        literal = Literal(self.next_id, spec, tuple(elements))
        self.next_id += 1
        self.literals.append(literal)
        return literal

    def _lookup(
        self,
        fields: tuple[Field, ...],
        name: str,
        *,
        set_id: int = 0,
        inverted: bool = False,
        into: int | None = None,
        into_verdict: bool = False,
    ) -> None:
        self._load(fields)
        parts = [netlink.attr_string(1, name), _be32(2, _register(0))]
        if into_verdict:
            parts.append(_be32(3, 0))
        elif into is not None:
            parts.append(_be32(3, _register(into)))
        if set_id:
            parts.append(_be32(4, set_id))
        if inverted:
            parts.append(_be32(5, _LOOKUP_INVERTED))
        self._put("lookup", *parts)

    def _compare(self, one: Field, value: Atom, op: str, mask: int | None) -> None:
        kind, sign = one.type, _EQ if op == "==" else _NEQ
        if kind in {nft.CT_STATE, nft.CT_STATUS} and op in {"==", "!"}:
            bits = nft_values.encode(kind, value)
            self._load((one,))
            self.expressions += [_bitwise(bits), _cmp(_NEQ if op == "==" else _EQ, bytes(len(bits)))]
        elif mask is not None:
            self._load((one,))
            self.expressions += [_bitwise(nft_values.encode(kind, mask)), _cmp(sign, nft_values.encode(kind, value))]
        elif kind == nft.IFNAME and str(value).endswith("*"):
            self._load((one,))
            self.expressions.append(_cmp(sign, str(value)[:-1].encode()))
        elif isinstance(value, str) and kind in {nft.IPV4_ADDR, nft.IPV6_ADDR} and "/" in value:
            self._compare_prefix(one, value, sign)
        elif isinstance(value, str) and kind in {nft.IPV4_ADDR, nft.IPV6_ADDR, nft.INET_SERVICE} and "-" in value:
            self._compare_range(one, value, sign)
        else:
            self._load((one,))
            self.expressions.append(_cmp(sign, nft_values.encode(kind, value)))
            self._learn(one, value, sign)

    def _compare_prefix(self, one: Field, value: str, sign: int) -> None:
        low, high = nft_values.encode_range(one.type, value)
        length = int(value.partition("/")[2])
        if length and not length % 8:  # whole bytes: just load less, as nft does
            place = _PAYLOADS[one.text]
            self.expressions.append(_load_payload(place.base, place.offset, length // 8, 0))
            self.expressions.append(_cmp(sign, low[: length // 8]))
            return
        self._load((one,))
        host = int.from_bytes(low, "big") ^ int.from_bytes(high, "big")
        mask = (host ^ ((1 << 8 * len(low)) - 1)).to_bytes(len(low), "big")
        self.expressions += [_bitwise(mask), _cmp(sign, low)]

    def _compare_range(self, one: Field, value: str, sign: int) -> None:
        low, high = nft_values.encode_range(one.type, value)
        self._load((one,))
        if sign == _EQ:
            self.expressions += [_cmp(_GTE, low), _cmp(_LTE, high)]
        else:
            self._put("range", _be32(1, _register(0)), _be32(2, _NEQ), _value(3, low), _value(4, high))

    def _learn(self, one: Field, value: Atom, sign: int) -> None:
        if sign != _EQ:
            return
        if one == nft.META_L4PROTO:
            self.l4 = nft_values.encode(one.type, value)[0]
        elif one == nft.META_NFPROTO:
            self.l3 = "ip" if value in {"ipv4", 2} else "ip6"

    def _require(self, fields: tuple[Field, ...]) -> None:
        """Check that the packet is of the protocols that the fields belong to, unless that is known already."""
        for one in fields:
            if one.text.startswith("ether ") and not self.ether:
                self.expressions += [_meta("iiftype"), _cmp(_EQ, struct.pack("=H", _ARPHRD_ETHER))]
                self.ether = True
            place = _PAYLOADS.get(one.text)
            if place is not None and place.l3:
                self._require_l3(place.l3)
        for one in fields:
            place = _PAYLOADS.get(one.text)
            if place is not None and place.l4:
                self._require_l4(place.l4)

    def _require_l3(self, l3: str) -> None:
        if self.l3 == l3:
            return
        if self.l3 or (self.family == "inet" and l3 not in _NFPROTO):
            raise self._wrong(f"no packet of {self.l3 or self.family} is {l3}")
        if self.family == "inet":
            self.expressions += [_meta("nfproto"), _cmp(_EQ, bytes((_NFPROTO[l3],)))]
        else:
            self.expressions += [_meta("protocol"), _cmp(_EQ, _ETHERTYPE[l3].to_bytes(2, "big"))]
        self.l3 = l3

    def _require_l4(self, l4: int) -> None:
        if self.l4 == l4:
            return
        if self.l4:
            raise self._wrong(f"no packet of protocol {self.l4} is of protocol {l4}")
        self.expressions += [_meta("l4proto"), _cmp(_EQ, bytes((l4,)))]
        self.l4 = l4

    # --- registers ---

    def _load(self, fields: tuple[Field, ...]) -> None:
        word = 0
        for one in fields:
            self.expressions.append(self._load_one(one, word))
            word += nft_values.padded(one.type.size) // 4

    def _load_one(self, one: Field, word: int) -> bytes:
        words = one.text.split()
        if one.text in _PAYLOADS:
            place = _PAYLOADS[one.text]
            return _load_payload(place.base, place.offset, one.type.size, word)
        if one.text.startswith("@"):
            base, offset, length = one.text[1:].split(",")
            return _load_payload(_BASES[base], int(offset) // 8, int(length) // 8, word)
        if words[0] == "ct":
            return _expression("ct", _be32(2, _CT[words[1]]), _be32(1, _register(word)))
        if words[0] == "fib":
            flags = _FIB_FLAGS[words[1]]
            return _expression("fib", _be32(1, _register(word)), _be32(2, _FIB_RESULT_ADDRTYPE), _be32(3, flags))
        if words[-1] in _META:
            return _meta(words[-1], word)
        raise self._wrong(f"`{one.text}` is unknown")

    # --- effects ---

    def _log(self, log: nft.Log) -> None:
        parts = [netlink.attr_string(2, log.prefix)] if log.prefix else []
        if log.group is not None:
            parts.append(netlink.attr(1, log.group.to_bytes(2, "big")))
        self._put("log", *parts)

    def _limit(self, limit: nft.Limit) -> None:
        self._put(
            "limit",
            _be64(1, limit.rate),
            _be64(2, _UNITS[limit.unit]),
            _be32(3, limit.burst),
            _be32(4, 0),
            _be32(5, _LIMIT_OVER if limit.over else 0),
        )

    def _nat(self, direction: int, nat: nft.Snat | nft.Dnat) -> None:
        address = nft.IPV4_ADDR if nat.family == "ip" else nft.IPV6_ADDR
        port_word = None
        if nat.map is not None:
            fields = nft.as_fields(_fields(nat.target))
            self._require(fields)
            self._lookup(fields, nat.map.name, into=0)
            if len(nat.map.data) > 1:
                port_word = address.size // 4
        else:
            self.expressions.append(_immediate(nft_values.encode(address, str(nat.target)), 0))
            if nat.port is not None:
                port_word = 4
                self.expressions.append(_immediate(nat.port.to_bytes(2, "big"), port_word))
        parts = [_be32(1, direction), _be32(2, _NFPROTO[nat.family]), _be32(3, _register(0))]
        if port_word is not None:
            parts.append(_be32(5, _register(port_word)))
        self._put("nat", *parts)

    def _set_mark(self, mark: nft.SetMark) -> None:
        if isinstance(mark.value, Field):
            self._load((mark.value,))
        else:
            self.expressions.append(_immediate(nft_values.encode(nft.MARK, mark.value), 0))
        if mark.target == nft.META_MARK:
            self._put("meta", _be32(2, _META["mark"]), _be32(3, _register(0)))
        else:
            self._put("ct", _be32(2, _CT["mark"]), _be32(4, _register(0)))

    def _reject(self, reject: nft.Reject) -> None:
        if reject.reply == "tcp reset":
            self._require_l4(6)
            kind, code = _REJECT_TCP_RESET, 0
        elif reject.reply:
            kind, code = _REJECT_ICMPX, _ICMPX[reject.reply.removeprefix("icmpx ")]
        elif self.family in {"ip", "ip6"}:
            kind, code = _REJECT_UNREACH, 3 if self.family == "ip" else 4
        else:
            kind, code = _REJECT_ICMPX, _ICMPX["port-unreachable"]
        self._put("reject", _be32(1, kind), netlink.attr_u8(2, code))


def _fields(target: str | Fields) -> Fields:
    assert not isinstance(target, str), "checked when the statement was made"
    return target
