"""Rulesets as values: what tables, chains, sets and rules are made of, each printing as nft(8) would have it.

Rules are few and fixed; what changes with every endpoint is elements of sets and maps. So the unit of change is a whole
chain (its rules are replaced together), a set, or one element:

    PORTS = Set(name="p", key=(IPV4_ADDR, INET_PROTO, INET_SERVICE), data=(IPV4_ADDR, INET_SERVICE))
    rule(Match(FIB_DADDR_TYPE, "local"), Dnat("ip", (IP_DADDR, META_L4PROTO, TH_DPORT), PORTS))
    NftElement(ns="", table=T, spec=PORTS, item=("192.0.2.1", "tcp", 80), value=("10.0.0.2", 8080))

Values of elements and matches are numbers, or text in the kernel's canonical form, since what is read back is compared
with what was written: addresses as `ipaddress` prints them, prefixes with no host bits set and never /32 or /128,
ranges `first-last` only where no prefix says the same.

A rule in the kernel is not decoded. It carries a digest of its text as its comment, and two rules are equal when their
digests are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import ClassVar, Protocol, Self

import msgspec

from netweft_agent.domain.resources import Key, Ns, Rank

ENCODING = "1"
"""Goes into each digest. To be raised when a rule of the same text is encoded differently, so that hosts rewrite it."""

Atom = str | int
"""One value: an address, a prefix, a range or a name as text; a port or a mark as number."""


# --- types -----------------------------------------------------------------------------------------------------------


class Type(msgspec.Struct, frozen=True):
    """A data type of nftables.

    Attributes:
        name: As nft prints it.
        number: In `enum datatypes` of nftables' include/datatype.h; sets carry it so that nft prints their elements.
        size: In bytes.
        order: Byte order as nftables notes it in a set's user data: 0 none (so big endian), 1 the host's, 2 big endian.
        typeof: Of an integer: the field whose type it is; nft can only name it by that.
    """

    name: str
    number: int
    size: int
    order: int = 2
    typeof: str = ""

    def print(self, value: Atom) -> str:
        """Print a value of this type as nft does."""
        if self.name == "ifname":
            return f'"{value}"'
        if self.name == "mark":
            return f"0x{value:08x}" if isinstance(value, int) else value
        if self.name == "integer":
            return f"{value:#x}" if isinstance(value, int) else value
        return str(value)


VERDICT = Type("verdict", 1, 16, 0)
NF_PROTO = Type("nf_proto", 2, 1, 1)
INTEGER = Type("integer", 4, 0, 0)
IPV4_ADDR = Type("ipv4_addr", 7, 4)
IPV6_ADDR = Type("ipv6_addr", 8, 16)
ETHER_ADDR = Type("ether_addr", 9, 6)
ARP_OP = Type("arp_op", 11, 2)
INET_PROTO = Type("inet_proto", 12, 1)
INET_SERVICE = Type("inet_service", 13, 2)
ICMP_TYPE = Type("icmp_type", 14, 1)
MARK = Type("mark", 19, 4, 1)
IFACE_INDEX = Type("iface_index", 20, 4, 1)
CT_STATE = Type("ct_state", 26, 4, 1)
CT_STATUS = Type("ct_status", 28, 4, 1)
ICMPV6_TYPE = Type("icmpv6_type", 29, 1)
PKT_TYPE = Type("pkt_type", 31, 1, 1)
FIB_ADDRTYPE = Type("fib_addrtype", 38, 4, 1)
IFNAME = Type("ifname", 41, 16, 1)


# --- sets and maps ---------------------------------------------------------------------------------------------------


class Set(msgspec.Struct, frozen=True, kw_only=True):
    """A named set, or a map if it has data.

    Attributes:
        key: Types of the key's fields; several make a concatenation.
        data: Types of what the key maps to; `(VERDICT,)` makes a verdict map; none: a set.
        interval: Keys are prefixes and ranges. Overlapping elements are refused by the kernel.
        dynamic: Rules may add elements.
        constant: Elements never change after the transaction that makes the set.
        has_timeout: Elements may say when they vanish.
        timeout_s: Elements vanish after so many seconds, which implies that they may say so.
        size: Most elements; 0: no limit.
    """

    name: str
    key: tuple[Type, ...]
    data: tuple[Type, ...] = ()
    interval: bool = False
    dynamic: bool = False
    constant: bool = False
    has_timeout: bool = False
    timeout_s: int = 0
    size: int = 0

    def __post_init__(self) -> None:
        assert not (self.has_timeout and self.timeout_s), "timeout_s says it all"
        assert len(self.key) == 1 or not any(part.typeof for part in self.key), "bytes by place are a key of their own"

    @property
    def kind(self) -> str:
        """`map` or `set`."""
        return "map" if self.data else "set"

    def clauses(self) -> list[str]:
        """Print what goes between the braces, a line each, in nft's order."""
        types = f"{_names(self.key)} : {_names(self.data)}" if self.data else _names(self.key)
        lines = [f"typeof {self.key[0].typeof}" if self.key[0].typeof else f"type {types}"]
        if self.size:
            lines.append(f"size {self.size}")
        flags = [
            name
            for name, given in (
                ("constant", self.constant),
                ("dynamic", self.dynamic),
                ("interval", self.interval),
                ("timeout", self.has_timeout),
            )
            if given
        ]
        if flags:
            lines.append("flags " + ",".join(flags))
        if self.timeout_s:
            lines.append("timeout " + _duration(self.timeout_s))
        return lines

    def print_item(self, item: tuple[Atom, ...], value: tuple[Atom, ...] | Verdict = ()) -> str:
        """Print an element: `key`, or `key : value`."""
        text = " . ".join(part.print(atom) for part, atom in zip(self.key, item, strict=True))
        if isinstance(value, Verdict):
            return f"{text} : {value.text()}"
        if value:
            text += " : " + " . ".join(part.print(atom) for part, atom in zip(self.data, value, strict=True))
        return text


def _duration(seconds: int) -> str:
    words = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, length)
        if count:
            words.append(f"{count}{unit}")
    return "".join(words)


# --- what rules look at ----------------------------------------------------------------------------------------------


class Field(msgspec.Struct, frozen=True):
    """Something of a packet that a rule can look at.

    Attributes:
        text: As nft spells it.
    """

    text: str
    type: Type


META_IIFNAME = Field("iifname", IFNAME)
META_OIFNAME = Field("oifname", IFNAME)
META_IIF = Field("iif", IFACE_INDEX)
META_OIF = Field("oif", IFACE_INDEX)
META_MARK = Field("meta mark", MARK)
META_L4PROTO = Field("meta l4proto", INET_PROTO)
META_NFPROTO = Field("meta nfproto", NF_PROTO)
META_PKTTYPE = Field("meta pkttype", PKT_TYPE)
META_IBRNAME = Field("ibrname", IFNAME)
META_OBRNAME = Field("obrname", IFNAME)
CT_STATE_FIELD = Field("ct state", CT_STATE)
CT_STATUS_FIELD = Field("ct status", CT_STATUS)
CT_MARK = Field("ct mark", MARK)
IP_SADDR = Field("ip saddr", IPV4_ADDR)
IP_DADDR = Field("ip daddr", IPV4_ADDR)
IP_PROTOCOL = Field("ip protocol", INET_PROTO)
IP6_SADDR = Field("ip6 saddr", IPV6_ADDR)
IP6_DADDR = Field("ip6 daddr", IPV6_ADDR)
TCP_SPORT = Field("tcp sport", INET_SERVICE)
TCP_DPORT = Field("tcp dport", INET_SERVICE)
UDP_SPORT = Field("udp sport", INET_SERVICE)
UDP_DPORT = Field("udp dport", INET_SERVICE)
SCTP_SPORT = Field("sctp sport", INET_SERVICE)
SCTP_DPORT = Field("sctp dport", INET_SERVICE)
TH_SPORT = Field("th sport", INET_SERVICE)
TH_DPORT = Field("th dport", INET_SERVICE)
ICMP = Field("icmp type", ICMP_TYPE)
ICMPV6 = Field("icmpv6 type", ICMPV6_TYPE)
ETHER_SADDR = Field("ether saddr", ETHER_ADDR)
ETHER_DADDR = Field("ether daddr", ETHER_ADDR)
ARP_OPERATION = Field("arp operation", ARP_OP)
ARP_SADDR_IP = Field("arp saddr ip", IPV4_ADDR)
ARP_SADDR_ETHER = Field("arp saddr ether", ETHER_ADDR)
ARP_DADDR_IP = Field("arp daddr ip", IPV4_ADDR)
ICMPV6_TADDR = Field("icmpv6 taddr", IPV6_ADDR)
FIB_SADDR_TYPE = Field("fib saddr type", FIB_ADDRTYPE)
FIB_DADDR_TYPE = Field("fib daddr type", FIB_ADDRTYPE)


def payload(base: str, offset_bits: int, length_bits: int) -> Field:
    """Return bits of a packet by place, for example a VXLAN's VNI, `payload("th", 96, 24)`.

    Args:
        base: `ll`, `nh` or `th`: the header that the offset counts from. `th` does not match on a protocol by itself.
        offset_bits: A multiple of 8.
        length_bits: A multiple of 8.
    """
    assert offset_bits % 8 == length_bits % 8 == 0, "whole bytes only"
    text = f"@{base},{offset_bits},{length_bits}"
    return Field(text, Type("integer", 4, length_bits // 8, 0, text))


VXLAN_VNI = payload("th", 96, 24)
VXLAN_VNI_AS_ADDRESS = Field("@th,96,32", IPV4_ADDR)
"""A VXLAN's VNI with the reserved byte behind it, for concatenations, where nft can print no integers: 4096 (0x001000)
is 0.16.0.0."""


# --- statements ------------------------------------------------------------------------------------------------------


class Statement(Protocol):
    """A part of a rule."""

    def text(self) -> str:
        """Print it as nft does."""


class Verdict(msgspec.Struct, frozen=True):
    """Where the packet goes: accept, drop, return, continue, jump, goto.

    Attributes:
        chain: Of `jump` and `goto`.
    """

    kind: str
    chain: str = ""

    def text(self) -> str:
        return f"{self.kind} {self.chain}" if self.chain else self.kind


ACCEPT = Verdict("accept")
DROP = Verdict("drop")
RETURN = Verdict("return")
CONTINUE = Verdict("continue")


def jump(chain: str) -> Verdict:
    """Return a jump to a chain."""
    return Verdict("jump", chain)


def goto(chain: str) -> Verdict:
    """Return a jump to a chain that does not come back."""
    return Verdict("goto", chain)


Fields = Field | tuple[Field, ...]
"""One field, or several that make a concatenation."""


def as_fields(fields: Fields) -> tuple[Field, ...]:
    """Return one field as a concatenation of one."""
    return (fields,) if isinstance(fields, Field) else fields


def _join(fields: Fields) -> str:
    return " . ".join(part.text for part in as_fields(fields))


def _check(fields: Fields, wanted: tuple[Type, ...], name: str) -> None:
    given = tuple(part.type for part in as_fields(fields))
    assert given == wanted, f"`{_join(fields)}` is {_names(given)}, but {name} is of {_names(wanted)}"


def _names(types: tuple[Type, ...]) -> str:
    return " . ".join(part.name for part in types)


class Match(msgspec.Struct, frozen=True):
    """Go on with the rule only if a field has a value.

    Attributes:
        fields: Several make a concatenation, which needs a set.
        value: One value; several values (an anonymous set); or a named set. `ct state` and `ct status` take names
            joined by commas, of which one suffices. A name of an interface may end in `*`.
        op: `==`, `!=`, or for `ct status` also `!`: none of the bits is set.
        mask: Bits of a mark that count.
    """

    fields: Fields
    value: Atom | tuple[Atom, ...] | tuple[tuple[Atom, ...], ...] | Set
    op: str = "=="
    mask: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.value, Set):
            _check(self.fields, self.value.key, f"@{self.value.name}")
        elif not isinstance(self.value, tuple):
            assert isinstance(self.fields, Field), "a concatenation is compared with a set"
        # nft would compare the whole bit mask, so the rule would mean `none but this bit`, which nobody wants.
        assert not (self.op == "!=" and self.fields == CT_STATUS_FIELD), "say `!` instead of `!=` of ct status"

    def text(self) -> str:
        left = _join(self.fields)
        sign = "" if self.op == "==" else f"{self.op} "
        if self.mask is not None:
            left, sign = f"{left} & {as_fields(self.fields)[0].type.print(self.mask)}", f"{self.op} "
        if isinstance(self.value, Set):
            return f"{left} {sign}@{self.value.name}"
        if isinstance(self.value, tuple):
            literal = self.literal()
            return f"{left} {sign}{{ {', '.join(literal.print_item(item) for item in self.items())} }}"
        return f"{left} {sign}{as_fields(self.fields)[0].type.print(self.value)}"

    def literal(self) -> Set:
        """Return the anonymous set that several values make."""
        return Set(
            name="__set%d",
            key=tuple(part.type for part in as_fields(self.fields)),
            constant=True,
            interval=any(_is_interval(part.type, atom) for item in self.items() for part, atom in self._pairs(item)),
        )

    def items(self) -> tuple[tuple[Atom, ...], ...]:
        """Return the keys of the anonymous set."""
        assert isinstance(self.value, tuple)
        return tuple(item if isinstance(item, tuple) else (item,) for item in self.value)

    def _pairs(self, item: tuple[Atom, ...]) -> Iterable[tuple[Field, Atom]]:
        return zip(as_fields(self.fields), item, strict=True)


def _is_interval(kind: Type, atom: Atom) -> bool:
    if not isinstance(atom, str):
        return False
    if kind in {IPV4_ADDR, IPV6_ADDR}:
        return "/" in atom or "-" in atom
    return kind in {INET_SERVICE, MARK} and "-" in atom


class Vmap(msgspec.Struct, frozen=True):
    """Look a verdict up; the rule goes on if there is none.

    Attributes:
        value: A named verdict map, or pairs of value and verdict.
    """

    fields: Fields
    value: Set | tuple[tuple[Atom, Verdict], ...]

    def __post_init__(self) -> None:
        if isinstance(self.value, Set):
            _check(self.fields, self.value.key, f"@{self.value.name}")
            assert self.value.data == (VERDICT,), f"@{self.value.name} is no verdict map"

    def text(self) -> str:
        if isinstance(self.value, Set):
            return f"{_join(self.fields)} vmap @{self.value.name}"
        literal = self.literal()
        pairs = ", ".join(literal.print_item((atom,), verdict) for atom, verdict in self.value)
        return f"{_join(self.fields)} vmap {{ {pairs} }}"

    def literal(self) -> Set:
        """Return the anonymous map that pairs make."""
        key = tuple(part.type for part in as_fields(self.fields))
        assert len(key) == 1, "a concatenation needs a named map"
        assert isinstance(self.value, tuple)
        return Set(
            name="__map%d",
            key=key,
            data=(VERDICT,),
            constant=True,
            interval=any(_is_interval(key[0], atom) for atom, _ in self.value),
        )


class Counter(msgspec.Struct, frozen=True):
    """Count packets and bytes. Replacing the chain's rules starts from zero."""

    def text(self) -> str:
        return "counter"


class Log(msgspec.Struct, frozen=True):
    """Log the packet: to the kernel log, or to the nflog group."""

    prefix: str = ""
    group: int | None = None

    def text(self) -> str:
        words = ["log"]
        words += [f'prefix "{self.prefix}"'] if self.prefix else []
        words += [f"group {self.group}"] if self.group is not None else []
        return " ".join(words)


class Limit(msgspec.Struct, frozen=True):
    """Go on with the rule for so many packets only; with `over`, for those beyond.

    Attributes:
        unit: second, minute, hour, day or week.
        burst: Packets that may come at once.
    """

    rate: int
    unit: str = "second"
    burst: int = 5
    over: bool = False

    def text(self) -> str:
        return f"limit rate {'over ' if self.over else ''}{self.rate}/{self.unit} burst {self.burst} packets"


class Masquerade(msgspec.Struct, frozen=True):
    """Rewrite the source to the address of the outgoing interface.

    Attributes:
        flags: Of `random`, `fully-random`, `persistent`.
    """

    flags: tuple[str, ...] = ()

    def text(self) -> str:
        return " ".join(["masquerade", ",".join(self.flags)]).strip()


class _Nat(msgspec.Struct, frozen=True):
    """Rewrite an address, and a port perhaps.

    Attributes:
        family: `ip` or `ip6`.
        target: An address, or the fields to look up in `map`.
        map: Maps the fields to an address, or to address . port. Where it has no entry the rule ends.
        port: With a literal address; the rule must match on a protocol with ports before.
    """

    family: str
    target: str | Fields
    map: Set | None = None
    port: int | None = None

    def __post_init__(self) -> None:
        if self.map is None:
            assert isinstance(self.target, str), "fields are looked up in a map"
            return
        assert not isinstance(self.target, str), "an address is not looked up"
        _check(self.target, self.map.key, f"@{self.map.name}")
        address = IPV4_ADDR if self.family == "ip" else IPV6_ADDR
        assert self.map.data in {(address,), (address, INET_SERVICE)}, f"@{self.map.name} gives no {address.name}"

    def _text(self, verb: str) -> str:
        if self.map is not None and not isinstance(self.target, str):
            return f"{verb} {self.family} to {_join(self.target)} map @{self.map.name}"
        address = f"[{self.target}]" if self.family == "ip6" and self.port is not None else self.target
        return f"{verb} {self.family} to {address}" + (f":{self.port}" if self.port is not None else "")


class Snat(_Nat, msgspec.Struct, frozen=True):
    """Rewrite the source."""

    def text(self) -> str:
        return self._text("snat")


class Dnat(_Nat, msgspec.Struct, frozen=True):
    """Rewrite the destination."""

    def text(self) -> str:
        return self._text("dnat")


class Redirect(msgspec.Struct, frozen=True):
    """Rewrite the destination to this host; the rule must match on a protocol with ports before."""

    port: int

    def text(self) -> str:
        return f"redirect to :{self.port}"


class SetMark(msgspec.Struct, frozen=True):
    """Set the packet's mark (`meta mark`) or the connection's (`ct mark`) to a number or to the other mark."""

    target: Field
    value: int | Field

    def __post_init__(self) -> None:
        assert self.target in {META_MARK, CT_MARK}, f"`{self.target.text}` cannot be set"
        assert isinstance(self.value, int) or self.value in {META_MARK, CT_MARK}

    def text(self) -> str:
        value = self.value.text if isinstance(self.value, Field) else MARK.print(self.value)
        return f"{self.target.text} set {value}"


class Reject(msgspec.Struct, frozen=True):
    """Refuse the packet and tell the sender.

    Attributes:
        reply: Empty: port unreachable. `tcp reset`: the rule must match on TCP before. Else `icmpx no-route`,
            `icmpx host-unreachable` or `icmpx admin-prohibited`, which fit both families.
    """

    reply: str = ""

    def text(self) -> str:
        return f"reject with {self.reply}" if self.reply else "reject"


class Notrack(msgspec.Struct, frozen=True):
    """Do not track the connection."""

    def text(self) -> str:
        return "notrack"


class Rule(msgspec.Struct, frozen=True, eq=False):
    """A rule; equal to any of the same digest.

    Attributes:
        statements: Empty when it was observed: the kernel's form is not decoded.
        digest: Of the text; made when not given. An observed rule without one is not ours, and equal to none of ours.
    """

    statements: tuple[Statement, ...]
    digest: str = ""

    def __post_init__(self) -> None:
        if self.statements:
            data = f"{ENCODING} {' '.join(part.text() for part in self.statements)} {self._sets()}"
            msgspec.structs.force_setattr(self, "digest", hashlib.blake2b(data.encode(), digest_size=8).hexdigest())

    def text(self) -> str:
        """Print it without the comment that carries the digest."""
        return " ".join(part.text() for part in self.statements) or f"# {self.digest or 'not ours'}"

    def _sets(self) -> str:
        # A set of another type is another set, even by the same name: the rule has to be written again.
        named = (getattr(part, name, None) for part in self.statements for name in ("value", "map"))
        return " ".join(clause for part in named if isinstance(part, Set) for clause in part.clauses())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rule) and self.digest == other.digest

    def __ne__(self, other: object) -> bool:
        # Else it would be that of Struct, which knows nothing of the above.
        return not self == other

    def __hash__(self) -> int:
        return hash(self.digest)


def rule(*statements: Statement) -> Rule:
    """Return a rule of these statements."""
    return Rule(statements)


# --- tables and chains -----------------------------------------------------------------------------------------------


class Table(msgspec.Struct, frozen=True):
    """A table: family (inet, bridge, netdev, ip, ip6) and name."""

    family: str
    name: str

    def text(self) -> str:
        """Print it as commands name it."""
        return f"{self.family} {self.name}"


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """Where a base chain hooks into the packet path.

    Attributes:
        type: filter or nat.
        hook: prerouting, input, forward, output, postrouting, ingress.
        priority: Lower runs first; filter is 0, dstnat -100, srcnat 100 (in a bridge table -200, -300, 300).
        policy: accept or drop, for packets that no rule decided on.
        device: Of ingress.
    """

    type: str
    hook: str
    priority: int
    policy: str = "accept"
    device: str = ""

    def text(self, family: str) -> str:
        """Print it as nft does: with the name of the nearest standard priority."""
        device = f' device "{self.device}"' if self.device else ""
        return f"type {self.type} hook {self.hook}{device} priority {self._priority(family)}; policy {self.policy};"

    def _priority(self, family: str) -> str:
        bridge = {"dstnat": -300, "filter": -200, "out": 100, "srcnat": 300}
        other = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100}
        names = bridge if family == "bridge" else {"filter": 0} if family == "netdev" else other
        hooks = {"dstnat": "prerouting", "srcnat": "postrouting", "out": "output"}
        for name, standard in names.items():
            if abs(self.priority - standard) <= 10 and hooks.get(name, self.hook) == self.hook:
                offset = self.priority - standard
                return name if not offset else f"{name} {'+' if offset > 0 else '-'} {abs(offset)}"
        return str(self.priority)


# --- resources -------------------------------------------------------------------------------------------------------


class NftTable(msgspec.Struct, frozen=True, kw_only=True):
    """A table of ours. All in it goes with it.

    Attributes:
        dormant: Switched off as a whole; never wanted, but others can do it.
        owned: Nobody but the agent's process can change or flush it while that lives, and it outlives the process
            (flags owner and persist, Linux 6.9). In older kernels it is like any other.
    """

    ns: Ns
    table: Table
    dormant: bool = False
    owned: bool = False

    @property
    def key(self) -> Key:
        return ("nft-table", self.ns, self.table.family, self.table.name)

    @property
    def rank(self) -> int:
        return Rank.NFT

    def needs(self) -> Iterable[Key]:
        return (("netns", self.ns),)

    def matches(self, observed: Self) -> bool:
        return self.dormant == observed.dormant and (observed.owned or not self.owned)

    def convertible(self, observed: Self) -> bool:
        # A table that does not persist cannot be made to.
        return observed.owned or not self.owned

    def add_command(self) -> str:
        flags = " '{ flags owner,persist; }'" if self.owned else ""
        return f"nft add table {self.table.text()}{flags}"

    def delete_command(self) -> str:
        return f"nft delete table {self.table.text()}"

    def change_command(self, observed: Self) -> str:
        return self.add_command()


class NftSet(msgspec.Struct, frozen=True, kw_only=True):
    """A set or map, without its elements."""

    ns: Ns
    table: Table
    spec: Set

    @property
    def key(self) -> Key:
        return ("nft-set", self.ns, self.table.family, self.table.name, self.spec.name)

    @property
    def rank(self) -> int:
        return Rank.NFT + 1

    def needs(self) -> Iterable[Key]:
        return (("nft-table", self.ns, self.table.family, self.table.name),)

    def matches(self, observed: Self) -> bool:
        return self == observed

    def convertible(self, observed: Self) -> bool:
        # The kernel changes nothing of a set. Rules that look into it differ too (Rule.digest), so they are written
        # again in the same transaction and do not hold the old one.
        return False

    def add_command(self) -> str:
        clauses = "; ".join(self.spec.clauses())
        return f"nft 'add {self.spec.kind} {self.table.text()} {self.spec.name} {{ {clauses}; }}'"

    def delete_command(self) -> str:
        return f"nft delete {self.spec.kind} {self.table.text()} {self.spec.name}"

    def change_command(self, observed: Self) -> str:
        return f"{observed.delete_command()} && {self.add_command()}"


class NftElement(msgspec.Struct, frozen=True, kw_only=True):
    """An element of a set or map.

    Attributes:
        spec: The set.
        item: The key, a value a field. Canonical, see the module.
        value: What a map gives for it: values a field, or a verdict.
    """

    ns: Ns
    table: Table
    spec: Set
    item: tuple[Atom, ...]
    value: tuple[Atom, ...] | Verdict = ()
    key: Key = ()

    rank: ClassVar[int] = Rank.NFT + 3

    def __post_init__(self) -> None:
        """Work out what is asked for several times of each of thousands."""
        item = self.item
        text = str(item[0]) if len(item) == 1 else " . ".join(map(str, item))
        key = ("nft-element", self.ns, self.table.family, self.table.name, self.spec.name, text)
        msgspec.structs.force_setattr(self, "key", key)

    def needs(self) -> Iterable[Key]:
        return (("nft-set", self.ns, self.table.family, self.table.name, self.spec.name),)

    def matches(self, observed: Self) -> bool:
        return self.item == observed.item and self.value == observed.value

    def convertible(self, observed: Self) -> bool:
        return True

    def add_command(self) -> str:
        return f"nft 'add element {self._where()} {{ {self.text()} }}'"

    def delete_command(self) -> str:
        return f"nft 'delete element {self._where()} {{ {self.spec.print_item(self.item)} }}'"

    def change_command(self, observed: Self) -> str:
        return (
            f"nft 'delete element {self._where()} {{ {self.spec.print_item(self.item)} }}; "
            f"add element {self._where()} {{ {self.text()} }}'"
        )

    def text(self) -> str:
        """Print what goes between the braces."""
        return self.spec.print_item(self.item, self.value)

    def _where(self) -> str:
        return f"{self.table.text()} {self.spec.name}"


class NftChain(msgspec.Struct, frozen=True, kw_only=True):
    """A chain with all its rules, which are replaced together.

    Attributes:
        base: Where it hooks in; None: it is only jumped to.
    """

    ns: Ns
    table: Table
    name: str
    base: Base | None = None
    rules: tuple[Rule, ...] = ()

    @property
    def key(self) -> Key:
        return ("nft-chain", self.ns, self.table.family, self.table.name, self.name)

    @property
    def rank(self) -> int:
        return Rank.NFT + 2

    def needs(self) -> Iterable[Key]:
        return (("nft-table", self.ns, self.table.family, self.table.name),)

    def matches(self, observed: Self) -> bool:
        return self == observed

    def convertible(self, observed: Self) -> bool:
        return True

    def add_command(self) -> str:
        return f"nft '{'; '.join(self._add())}'"

    def delete_command(self) -> str:
        return f"nft delete chain {self._where()}"

    def change_command(self, observed: Self) -> str:
        if self.same_hook(observed):
            return f"nft '{'; '.join([f'flush chain {self._where()}', *self._add()])}'"
        return f"nft '{'; '.join([f'delete chain {self._where()}', *self._add()])}'"

    def same_hook(self, observed: Self) -> bool:
        """Return whether the other chain hooks in at the same place, so that it needs not be made anew."""
        if self.base is None or observed.base is None:
            return self.base is observed.base
        mine, theirs = self.base, observed.base
        return (mine.type, mine.hook, mine.priority, mine.device) == (
            theirs.type,
            theirs.hook,
            theirs.priority,
            theirs.device,
        )

    def _add(self) -> list[str]:
        base = f" {{ {self.base.text(self.table.family)} }}" if self.base else ""
        return [
            f"add chain {self._where()}{base}",
            *(f'add rule {self._where()} {part.text()} comment "{part.digest}"' for part in self.rules),
        ]

    def _where(self) -> str:
        return f"{self.table.text()} {self.name}"


class NftGuest(msgspec.Struct, frozen=True, kw_only=True):
    """A rule of ours in a chain of somebody else's that is meant for others' rules, such as Docker's DOCKER-USER.

    Where there is no such chain there is nothing to do. It goes to the chain's end, but before a bare `return`, so that
    what an administrator has put there comes first.

    Attributes:
        table: Somebody else's.
        chain: Of that table.
    """

    ns: Ns
    table: Table
    chain: str
    rule: Rule

    @property
    def key(self) -> Key:
        return ("nft-guest", self.ns, self.table.family, self.table.name, self.chain, self.rule.digest)

    @property
    def rank(self) -> int:
        return Rank.NFT + 4

    def needs(self) -> Iterable[Key]:
        return (("netns", self.ns),)

    def matches(self, observed: Self) -> bool:
        return self.rule == observed.rule

    def convertible(self, observed: Self) -> bool:
        return True

    def add_command(self) -> str:
        return f"nft 'add rule {self._where()} {self.rule.text()} comment \"{self.rule.digest}\"'"

    def delete_command(self) -> str:
        return f"nft delete rule {self._where()} handle ... # {self.rule.digest}"

    def change_command(self, observed: Self) -> str:
        return self.add_command()

    def _where(self) -> str:
        return f"{self.table.text()} {self.chain}"


class NftOffer(msgspec.Struct, frozen=True, kw_only=True):
    """A table with empty chains for an administrator's rules: made where there is none, from then on his.

    It is never changed, and removed only while it is as it was made.

    Attributes:
        chains: Names and places of its chains.
    """

    ns: Ns
    table: Table
    chains: tuple[tuple[str, Base], ...]

    @property
    def key(self) -> Key:
        return ("nft-offer", self.ns, self.table.family, self.table.name)

    @property
    def rank(self) -> int:
        return Rank.NFT

    def needs(self) -> Iterable[Key]:
        return (("netns", self.ns),)

    def matches(self, observed: Self) -> bool:
        return self.key == observed.key

    def convertible(self, observed: Self) -> bool:
        return True

    def add_command(self) -> str:
        chains = [
            f"add chain {self.table.text()} {name} {{ {base.text(self.table.family)} }}" for name, base in self.chains
        ]
        return f"nft '{'; '.join([f'add table {self.table.text()}', *chains])}'"

    def delete_command(self) -> str:
        return f"nft delete table {self.table.text()} # while it is empty"

    def change_command(self, observed: Self) -> str:
        return ""


NftResource = NftTable | NftSet | NftElement | NftChain


def listing(resources: Iterable[NftResource]) -> str:
    """Print resources of one namespace as `nft -s list ruleset` does; `nft -f` takes it.

    Tables come in the order given, sets before chains, elements sorted by their text (nft shows the kernel's order).
    """
    given = list(resources)
    blocks = []
    for table in (part for part in given if isinstance(part, NftTable)):
        lines = [f"table {table.table.text()} {{"]
        if table.dormant:
            lines.append("\tflags dormant")
        inside = [part for part in given if not isinstance(part, NftTable) and part.table == table.table]
        bodies = [_set_lines(part, inside) for part in inside if isinstance(part, NftSet)]
        bodies += [_chain_lines(part) for part in inside if isinstance(part, NftChain)]
        for index, body in enumerate(bodies):
            lines += ([""] if index else []) + [f"\t{line}" for line in body]
        blocks.append("\n".join([*lines, "}"]))
    return "\n".join(blocks) + "\n"


def _set_lines(one: NftSet, inside: list[NftSet | NftElement | NftChain]) -> list[str]:
    elements = sorted(
        part.text() for part in inside if isinstance(part, NftElement) and part.spec.name == one.spec.name
    )
    lines = [f"{one.spec.kind} {one.spec.name} {{", *(f"\t{clause}" for clause in one.spec.clauses())]
    if elements:
        lines.append(f"\telements = {{ {', '.join(elements)} }}")
    return [*lines, "}"]


def _chain_lines(one: NftChain) -> list[str]:
    lines = [f"chain {one.name} {{"]
    if one.base is not None:
        lines.append(f"\t{one.base.text(one.table.family)}")
    lines += [f'\t{part.text()} comment "{part.digest}"' for part in one.rules]
    return [*lines, "}"]
