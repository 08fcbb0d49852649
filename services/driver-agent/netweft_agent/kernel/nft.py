"""nftables over netlink: transactions of operations, and reading back what is there.

The kernel takes a batch of messages as one transaction: all or nothing, and packets see the old ruleset or the new one
(`nfnetlink_rcv_batch` in net/netfilter/nfnetlink.c). Within a batch every message sees what those before did, so
`encode` sorts operations by what they need: rules that hold sets and chains go first, and come back last.

    tables made again are deleted · tables · rules of removed and changed chains are flushed · elements removed ·
    sets removed · chains removed · chains · sets · elements · rules · tables removed
"""

from __future__ import annotations

import contextlib
import errno
import functools
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from netweft_common import errors

from netweft_agent.domain import nft
from netweft_agent.domain.nft import Atom, NftChain, NftElement, NftResource, NftSet, NftTable, Set, Table, Verdict
from netweft_agent.domain.resources import Key, Ns
from netweft_agent.kernel import netlink, nft_rules, nft_values

_SUBSYSTEM = 10 << 8
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEWTABLE, _GETTABLE, _DELTABLE = 0, 1, 2
_NEWCHAIN, _GETCHAIN, _DELCHAIN = 3, 4, 5
_NEWRULE, _GETRULE, _DELRULE = 6, 7, 8
_NEWSET, _GETSET, _DELSET = 9, 10, 11
_NEWSETELEM, _GETSETELEM, _DELSETELEM = 12, 13, 14
_GETGEN = 16
_DESTROY = {_DELTABLE: 26, _DELCHAIN: 27, _DELRULE: 28, _DELSET: 29, _DELSETELEM: 30}
"""Deletions that are content if there is nothing to delete (Linux 6.3)."""

_FAMILIES = {"inet": 1, "ip": 2, "netdev": 5, "bridge": 7, "ip6": 10}
_HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}
_INET_INGRESS = 5
_POLICIES = {"drop": 0, "accept": 1}
_TABLE_DORMANT, _TABLE_OWNER, _TABLE_PERSIST = 1, 2, 4
_ANONYMOUS, _CONSTANT, _INTERVAL, _MAP, _TIMEOUT, _DYNAMIC, _CONCAT = 0x1, 0x2, 0x4, 0x8, 0x10, 0x20, 0x80
_DATA_VERDICT = 0xFFFFFF00
_INTERVAL_END = 1
_DIGEST_LENGTH = 16

_ELEMENTS_LIMIT = 60_000
"""Bytes of elements in one message; NFTA_SET_ELEM_LIST_ELEMENTS ends at 64 KiB."""
_OBSERVE_ATTEMPTS = 10

_U16 = struct.Struct("=H")
_NESTED = netlink.NLA_F_NESTED


class Op(Protocol):
    """A step: a resource before and after, either of which may be missing. The planner's Operation is one."""

    @property
    def before(self) -> object | None:
        """What there is."""

    @property
    def after(self) -> object | None:
        """What there shall be."""


class Change(NamedTuple):
    """The plainest Op."""

    before: NftResource | None
    after: NftResource | None


def encode(ops: Sequence[Op], *, destroy: bool | None = None) -> list[bytes]:
    """Encode operations as one transaction, from batch begin to batch end.

    Args:
        ops: Of one namespace.
        destroy: Whether the kernel knows the DESTROY messages; None: find out.

    Raises:
        Internal: A rule or an element has a value of the wrong type.
    """
    known = has_destroy() if destroy is None else destroy
    return [_batch_edge(_BATCH_BEGIN), *(part.data for part in _parts(_changes(ops), known)), _batch_edge(_BATCH_END)]


def apply(sock: socket.socket, ops: Sequence[Op], *, destroy: bool | None = None) -> dict[int, errors.KernelError]:
    """Apply operations in one transaction, and return which of them the kernel refused.

    Empty: all is done. Else nothing is, and each refused operation is told by its place in `ops`; the caller may try
    again without them. Operations that need a refused one are refused too. Removing what is gone already is success.

    Args:
        sock: A netfilter socket of the namespace, from `netlink.open_socket`.
        ops: All in that namespace.
        destroy: Whether the kernel knows the DESTROY messages; None: find out.

    Raises:
        Internal: A rule or an element has a value of the wrong type.
        KernelError: The kernel's answer was lost; the outcome is unknown, so observe.
    """
    changes = _changes(ops)
    known = has_destroy() if destroy is None else destroy
    refused = _commit(sock, changes, known)
    if not any(error.errno == errno.ENOENT and changes[index].before is not None for index, error in refused.items()):
        return refused
    # Something to remove is gone. A kernel without DESTROY refuses that, and any does when its table or set is gone as
    # well. Nothing is done yet, so do it without what is not there.
    there = observe(sock, changes[0].resource.ns, {change.resource.table for change in changes})
    kept = [
        (index, _Step(change.before if change.resource.key in there else None, change.after))
        for index, change in enumerate(changes)
        if change.after is not None or change.resource.key in there
    ]
    again = _commit(sock, [change for _, change in kept], known)
    return {kept[place][0]: error for place, error in again.items()}


def claim(sock: socket.socket, tables: Iterable[Table]) -> None:
    """Make this socket the owner of tables that an earlier process has left; those of another's are left to it.

    Args:
        sock: The socket that all changes of these tables are sent by from now on.
        tables: Of the socket's namespace.
    """
    if has_owner():
        for table in tables:
            exchange(sock, [message(_NEWTABLE, 0, table.family, _names(1, table.name), _be32(2, _OWNED))])


def observe(sock: socket.socket, ns: Ns, tables: Iterable[Table]) -> dict[Key, NftResource]:
    """Return what there is in these tables, all of one moment.

    Rules come as their digests, see `domain/nft.py`; anonymous sets are part of rules and left out.

    Args:
        sock: A netfilter socket of the namespace.
        ns: Name of the namespace, for the resources' keys.
        tables: One that does not exist yields nothing.

    Raises:
        KernelError: The kernel refused a dump.
        Unavailable: The ruleset changed each time while it was read.
    """
    wanted = list(tables)
    for _ in range(_OBSERVE_ATTEMPTS):
        before = generation(sock)
        if before == _NEVER_CHANGED:
            return {}
        try:
            found = {resource.key: resource for resource in _observe_once(sock, ns, wanted)}
        except _Changed:
            continue
        if generation(sock) == before:
            return found
    raise errors.Unavailable(
        "RULESET_BUSY",
        f"the ruleset of namespace `{ns or 'host'}` changed {_OBSERVE_ATTEMPTS} times while it was read; try again",
        retry_after_s=0.1,
    )


_NEVER_CHANGED = struct.pack(">I", 1)
"""Generation of a namespace in which no transaction was ever made (nf_tables_init_net in nf_tables_api.c)."""


@functools.cache
def has_destroy() -> bool:
    """Return whether this kernel knows the DESTROY messages, asking it once a process.

    Asked by removing a table that cannot exist: where that is known it is an empty transaction, which changes nothing.
    """
    with contextlib.closing(netlink.open_socket(netlink.NETLINK_NETFILTER)) as sock:
        probe = message(_DESTROY[_DELTABLE], 0, "inet", netlink.attr_string(1, "netweft-does-not-exist"))
        return not exchange(sock, [probe])


@functools.cache
def has_owner() -> bool:
    """Return whether this kernel knows tables that are owned and persist, asking it once a process.

    Asked by a transaction that cannot succeed, for it makes one table twice.
    """
    with contextlib.closing(netlink.open_socket(netlink.NETLINK_NETFILTER)) as sock:
        name, flags = netlink.attr_string(1, "netweft-probe"), netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
        probe = message(_NEWTABLE, flags, "inet", name, _be32(2, _OWNED))
        return [place for place, _ in exchange(sock, [probe, probe])] == [1]


# --- what is sent ----------------------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """One message of a transaction, and what of it is for which change.

    Attributes:
        data: The message.
        owners: Places of changes; several only of elements.
    """

    data: bytes
    owners: tuple[int, ...]


class _Step(NamedTuple):
    """A change of a known kind."""

    before: NftResource | None
    after: NftResource | None

    @property
    def resource(self) -> NftResource:
        resource = self.after if self.after is not None else self.before
        assert resource is not None, "a change of nothing"
        return resource


_KINDS = frozenset({NftTable, NftChain, NftSet, NftElement})

_OWNED = _TABLE_OWNER | _TABLE_PERSIST


def _changes(ops: Sequence[Op]) -> list[_Step]:
    steps = []
    for op in ops:
        before, after = op.before, op.after
        if (before is not None and type(before) not in _KINDS) or (after is not None and type(after) not in _KINDS):
            raise errors.Internal("NFT_OPERATION", f"{before} to {after} is no change of nftables")
        steps.append(_Step(before, after))  # type: ignore[arg-type] # checked above
    return steps


def _parts(steps: Sequence[_Step], destroy: bool, *, split: bool = False) -> list[_Part]:
    """Return the messages of a transaction without its edges, in order.

    Args:
        steps: Changes.
        destroy: Use DESTROY messages.
        split: One element a message, to learn which one is refused.
    """
    if all(type(step.resource) is NftElement for step in steps):
        return _only_elements(steps, destroy, split=split)
    writer = _Writer(destroy=destroy, split=split)
    added = {step.after.table for step in steps if type(step.after) is NftTable}
    for index, step in enumerate(steps):
        before, after = step
        kind = type(after or before)
        if kind is NftElement:  # first, because there are thousands
            writer.element(index, step)
        elif kind is NftTable:
            writer.table(index, step, again=after is None and step.resource.table in added)
        elif kind is NftChain:
            writer.chain(index, step)
        else:
            writer.set(index, step)
    return writer.parts()


def _only_elements(steps: Sequence[_Step], destroy: bool, *, split: bool) -> list[_Part]:
    """Return the messages of a transaction of elements, which is what an endpoint's coming and going is."""
    removed: dict[tuple[int, int], list[tuple[int, NftElement]]] = {}
    added: dict[tuple[int, int], list[tuple[int, NftElement]]] = {}
    for index, (before, after) in enumerate(steps):
        for groups, one in ((removed, before), (added, after)):
            if one is not None:
                groups.setdefault((id(one.table), id(one.spec)), []).append((index, one))  # type: ignore[union-attr,arg-type] # elements
    parts: list[_Part] = []
    removal = _DESTROY[_DELSETELEM] if destroy else _DELSETELEM
    for kind, groups in ((removal, removed), (_NEWSETELEM, added)):
        for elements in groups.values():
            parts += _element_parts(kind, elements[0][1].table, elements[0][1].spec, elements, split=split)
    return parts


_PHASES = (
    "old tables",
    "tables",
    "kept chains",
    "flush",
    "old elements",
    "old sets",
    "old chains",
    "chains",
    "new flush",
    "sets",
    "elements",
    "rules",
    "gone tables",
)


class _Writer:
    """Sorts messages by phase, and packs elements of one set together."""

    def __init__(self, *, destroy: bool, split: bool) -> None:
        self._destroy = destroy
        self._split = split
        self._phases: dict[str, list[_Part]] = {phase: [] for phase in _PHASES}
        self._elements: dict[tuple[str, int, int], list[tuple[int, NftElement]]] = {}
        """By phase and the identities of table and set: to hash a set for each of its elements takes longer."""
        self._next_set_id = 1

    def parts(self) -> list[_Part]:
        """Return all messages in the order of phases."""
        for (phase, _, _), elements in self._elements.items():
            kind = self._removal(_DELSETELEM) if phase == "old elements" else _NEWSETELEM
            table, spec = elements[0][1].table, elements[0][1].spec
            self._phases[phase] += _element_parts(kind, table, spec, elements, split=self._split)
        self._elements = {}
        return [part for phase in _PHASES for part in self._phases[phase]]

    def table(self, index: int, step: _Step, *, again: bool) -> None:
        table = step.resource.table
        if step.after is None:
            self._put(
                "old tables" if again else "gone tables",
                index,
                self._removal(_DELTABLE),
                0,
                table,
                _names(1, table.name),
            )
        else:
            owned = isinstance(step.after, NftTable) and step.after.owned and has_owner()
            flags = _be32(2, _OWNED if owned else 0)  # wakes a table that somebody made dormant
            self._put("tables", index, _NEWTABLE, netlink.NLM_F_CREATE, table, _names(1, table.name), flags)

    def chain(self, index: int, step: _Step) -> None:
        before, after = step.before, step.after
        assert before is None or isinstance(before, NftChain)
        assert after is None or isinstance(after, NftChain)
        kept = before is not None and after is not None and after.same_hook(before)
        if after is not None:
            phase = "kept chains" if kept else "chains"
            self._put(phase, index, _NEWCHAIN, netlink.NLM_F_CREATE, after.table, chain_attributes(after))
        if before is not None:
            # The kept one is there by now, even if somebody had removed it.
            flush = _DELRULE if kept else self._removal(_DELRULE)
            self._put("flush", index, flush, 0, before.table, _names(1, before.table.name, before.name))
            if not kept:
                name = netlink.attr_string(1, before.table.name) + netlink.attr_string(3, before.name)
                self._put("old chains", index, self._removal(_DELCHAIN), 0, before.table, name)
        elif after is not None:  # there may be one that we did not know of
            self._put("new flush", index, _DELRULE, 0, after.table, _names(1, after.table.name, after.name))
        if after is not None:
            for rule in after.rules:
                self._rule(index, after, rule)

    def _rule(self, index: int, chain: NftChain, rule: nft.Rule) -> None:
        encoded = nft_rules.encode_rule(chain.table.family, rule, self._next_set_id)
        for literal in encoded.literals:
            self._next_set_id = literal.id + 1
            self._put_set("rules", index, chain.table, literal.spec, literal.id)
            body = _names(1, chain.table.name, literal.spec.name) + _be32(4, literal.id)
            elements = _pack_elements(literal.spec, literal.elements)
            data = message(_NEWSETELEM, netlink.NLM_F_CREATE, chain.table.family, body, netlink.nest(3, *elements))
            self._phases["rules"].append(_Part(data, (index,)))
        flags = netlink.NLM_F_CREATE | netlink.NLM_F_APPEND
        self._put(
            "rules", index, _NEWRULE, flags, chain.table, _names(1, chain.table.name, chain.name), encoded.attributes
        )

    def set(self, index: int, step: _Step) -> None:
        before, after = step.before, step.after
        assert before is None or isinstance(before, NftSet)
        assert after is None or isinstance(after, NftSet)
        if before is not None:
            name = _names(1, before.table.name, before.spec.name)
            self._put("old sets", index, self._removal(_DELSET), 0, before.table, name)
        if after is not None:
            self._put_set("sets", index, after.table, after.spec, self._next_set_id)
            self._next_set_id += 1

    def element(self, index: int, step: _Step) -> None:
        for phase, one in (("old elements", step.before), ("elements", step.after)):
            if one is not None:
                assert isinstance(one, NftElement)
                self._elements.setdefault((phase, id(one.table), id(one.spec)), []).append((index, one))

    def _put_set(self, phase: str, index: int, table: Table, spec: Set, set_id: int) -> None:
        self._put(phase, index, _NEWSET, netlink.NLM_F_CREATE, table, _set_attributes(table, spec, set_id))

    def _put(self, phase: str, index: int, kind: int, flags: int, table: Table, *parts: bytes) -> None:
        self._phases[phase].append(_Part(message(kind, flags, table.family, *parts), (index,)))

    def _removal(self, kind: int) -> int:
        return _DESTROY[kind] if self._destroy else kind


def _be32(kind: int, value: int) -> bytes:
    return netlink.attr(kind, value.to_bytes(4, "big"))


def _names(first: int, *names: str) -> bytes:
    """Pack names into attributes of rising type: nearly every message starts with table and chain or set."""
    return b"".join(netlink.attr_string(kind, name) for kind, name in enumerate(names, first))


def message(kind: int, flags: int, family: str, *parts: bytes) -> bytes:
    """Pack a message of nf_tables; the family is a table's, or empty for any."""
    return netlink.message(_SUBSYSTEM | kind, flags, bytes((_FAMILIES.get(family, 0), 0, 0, 0)), *parts)


def _batch_edge(kind: int, generation: bytes = b"") -> bytes:
    condition = netlink.attr(1, generation) if generation else b""  # NFNL_BATCH_GENID
    return netlink.message(kind, 0, bytes((0, 0, 0, _SUBSYSTEM >> 8)), condition)


def chain_attributes(chain: NftChain) -> bytes:
    """Pack what names a chain, and where it hooks in."""
    data = netlink.attr_string(1, chain.table.name) + netlink.attr_string(3, chain.name)
    if chain.base is None:
        return data
    base = chain.base
    ingress = 0 if chain.table.family == "netdev" else _INET_INGRESS
    number = ingress if base.hook == "ingress" else _HOOKS[base.hook]
    hook = [_be32(1, number), netlink.attr(2, base.priority.to_bytes(4, "big", signed=True))]
    if base.device:
        hook.append(netlink.attr_string(3, base.device))
    policy = _be32(5, _POLICIES[base.policy])
    return data + netlink.nest(4, *hook) + policy + netlink.attr_string(7, base.type)


def _set_attributes(table: Table, spec: Set, set_id: int) -> bytes:
    concat_interval = nft_values.is_concat_interval(spec)
    flags = (
        (_ANONYMOUS if spec.name.startswith("__") else 0)
        | (_CONSTANT if spec.constant else 0)
        | (_INTERVAL if spec.interval else 0)
        | (_MAP if spec.data else 0)
        | (_TIMEOUT if spec.has_timeout or spec.timeout_s else 0)
        | (_DYNAMIC if spec.dynamic else 0)
        | (_CONCAT if concat_interval else 0)
    )
    key = nft_values.codec(spec.key)
    parts = [
        _names(1, table.name, spec.name),
        _be32(3, flags),
        _be32(4, nft_values.type_number(spec.key)),
        _be32(5, key.size),
    ]
    if spec.data == (nft.VERDICT,):
        parts += [_be32(6, _DATA_VERDICT), _be32(7, nft.VERDICT.size)]
    elif spec.data:
        parts += [_be32(6, nft_values.type_number(spec.data)), _be32(7, nft_values.codec(spec.data).size)]
    description = [_be32(1, spec.size)] if spec.size else []
    if concat_interval:
        lengths = (netlink.nest(1, _be32(1, kind.size)) for kind, _, _ in key.parts)
        description.append(netlink.nest(2, *lengths))
    if description:
        parts.append(netlink.nest(9, *description))
    parts.append(_be32(10, set_id))
    if spec.timeout_s:
        parts.append(netlink.attr(11, (spec.timeout_s * 1000).to_bytes(8, "big")))
    parts.append(netlink.attr(13, _set_userdata(spec)))
    return b"".join(parts)


_USERDATA_KEY_TYPEOF = 3
_TYPEOF_PAYLOAD = 7
_TYPEOF_BASES = {"ll": 1, "nh": 2, "th": 3}


def _set_userdata(spec: Set) -> bytes:
    """Return what nft notes in a set to print it by: byte orders of key and data (libnftnl's udata.h)."""
    data = _note(0, spec.key[0].order if len(spec.key) == 1 else 0)
    if spec.data:
        data += _note(1, spec.data[0].order if len(spec.data) == 1 else 0) + _note(6, 0)
    if spec.key[0].typeof:
        base, offset, length = spec.key[0].typeof[1:].split(",")
        place = (0, 0, _TYPEOF_BASES[base], int(offset), int(length))  # protocol and field unknown, then where it is
        where = b"".join(_note(kind, value) for kind, value in enumerate(place))
        typeof = _note(0, _TYPEOF_PAYLOAD) + bytes((1, len(where))) + where
        data += bytes((_USERDATA_KEY_TYPEOF, len(typeof))) + typeof
    return data


def _note(kind: int, value: int) -> bytes:
    return bytes((kind, 4)) + struct.pack("=I", value)


def _typeof(userdata: bytes) -> str:
    """Return the bytes by place that a set's user data says its key is, or nothing."""
    typeof = nft_rules.userdata(nft_rules.userdata(userdata).get(_USERDATA_KEY_TYPEOF, b""))
    if typeof.get(0) != struct.pack("=I", _TYPEOF_PAYLOAD):
        return ""
    place = {kind: struct.unpack("=I", value)[0] for kind, value in nft_rules.userdata(typeof.get(1, b"")).items()}
    base = {number: name for name, number in _TYPEOF_BASES.items()}.get(place.get(2, 0), "")
    return f"@{base},{place.get(3, 0)},{place.get(4, 0)}" if base and not place.get(0) else ""


# --- elements --------------------------------------------------------------------------------------------------------


def _element_parts(
    kind: int, table: Table, spec: Set, elements: list[tuple[int, NftElement]], *, split: bool
) -> Iterator[_Part]:
    removal = kind != _NEWSETELEM
    if spec.interval and len(spec.key) == 1:
        # The kernel finds overlaps by what is beside an element in its tree; in falling order an end may be taken for
        # another's. nft sends them rising too.
        low = {index: nft_values.encode_range(spec.key[0], one.item[0])[0] for index, one in elements}
        elements = sorted(elements, key=lambda pair: low[pair[0]])
    packed = _pack_elements(spec, [(one.item, () if removal else one.value) for _, one in elements])
    head = _element_head(table.name, spec.name)
    flags = 0 if removal else netlink.NLM_F_CREATE
    start, size, count = 0, 0, len(packed)
    for end in range(1, count + 1):
        size += len(packed[end - 1])
        if end == count or split or size + len(packed[end]) > _ELEMENTS_LIMIT:
            data = message(kind, flags, table.family, head, netlink.nest(3, *packed[start:end]))
            yield _Part(data, tuple([index for index, _ in elements[start:end]]))
            start, size = end, 0


@functools.lru_cache(maxsize=256)
def _element_head(table: str, spec: str) -> bytes:
    return _names(1, table, spec)


def _pack_elements(spec: Set, elements: Sequence[tuple[tuple[Atom, ...], tuple[Atom, ...] | Verdict]]) -> list[bytes]:
    """Pack elements, each as the NFTA_LIST_ELEM that stands for it; a range in a set of one field is two."""
    key = nft_values.codec(spec.key)
    if not spec.interval:
        encode_item, pack_key = key.encode, _key_packer(key.size)
        if not spec.data or not elements or not elements[0][1]:
            return [pack_key(encode_item(item)) for item, _ in elements]
        if spec.data != (nft.VERDICT,):
            data = nft_values.codec(spec.data)
            pack, encode_value = _pair_packer(key.size, data.size), data.encode
            return [pack(encode_item(item), encode_value(value)) for item, value in elements]  # type: ignore[arg-type] # not a verdict map
        return [_element(_key(encode_item(item)), _value(spec, value)) for item, value in elements]
    if len(spec.key) > 1:
        packed = []
        for item, value in elements:
            low, high = key.encode_range(item)
            packed.append(_element(_key(low), _key(high, 10), _value(spec, value)))
        return packed
    return [_interval(spec, item[0], value) for item, value in elements]


@functools.lru_cache(maxsize=64)
def _key_packer(size: int) -> Callable[[bytes], bytes]:
    """Return a function that packs an element of a plain set in one go: sets have thousands."""
    room = nft_values.padded(size)
    layout = struct.Struct(f"=HHHHHH{room}s").pack
    return functools.partial(layout, room + 12, 1 | _NESTED, room + 8, 1 | _NESTED, size + 4, 1)


@functools.lru_cache(maxsize=64)
def _pair_packer(size: int, data_size: int) -> Callable[[bytes, bytes], bytes]:
    """Return a function that packs an element of a plain map in one go."""
    room, data_room = nft_values.padded(size), nft_values.padded(data_size)
    pack = struct.Struct(f"=HHHHHH{room}sHHHH{data_room}s").pack
    total = room + data_room + 20

    def pair(key: bytes, data: bytes) -> bytes:
        return pack(
            *(total, 1 | _NESTED, room + 8, 1 | _NESTED, size + 4, 1, key),
            *(data_room + 8, 2 | _NESTED, data_size + 4, 1, data),
        )

    return pair


def _element(*parts: bytes) -> bytes:
    return netlink.nest(1, *parts)


def _key(data: bytes, kind: int = 1) -> bytes:
    return netlink.nest(kind, netlink.attr(1, data))


def _value(spec: Set, value: tuple[Atom, ...] | Verdict) -> bytes:
    if isinstance(value, Verdict):
        return netlink.nest(2, nft_rules.encode_verdict(value))
    return netlink.nest(2, netlink.attr(1, nft_values.codec(spec.data).encode(value))) if value else b""


def _interval(spec: Set, atom: Atom, value: tuple[Atom, ...] | Verdict) -> bytes:
    """Pack a range of one field: the kernel's tree has its first value, and the value after its last as an end."""
    low, high = nft_values.encode_range(spec.key[0], atom)
    start = _element(_key(low), _value(spec, value))
    if high == b"\xff" * len(high):  # open: nothing comes after
        return start
    after = (int.from_bytes(high, "big") + 1).to_bytes(len(high), "big")
    return start + _element(_key(after), _be32(3, _INTERVAL_END))


# --- how it is sent --------------------------------------------------------------------------------------------------


def _commit(sock: socket.socket, steps: Sequence[_Step], destroy: bool) -> dict[int, errors.KernelError]:
    parts = _parts(steps, destroy)
    refusals = exchange(sock, [part.data for part in parts])
    if any(place >= 0 and len(parts[place].owners) > 1 for place, _ in refusals):
        # Of a message with many elements the kernel tells the first bad one at best (NLMSGERR_ATTR_OFFS, Linux 5.19).
        # Nothing is done yet, so ask again, one element a message, and learn of all.
        parts = _parts(steps, destroy, split=True)
        refusals = exchange(sock, [part.data for part in parts])
    blame: dict[int, netlink.Ack] = {}
    for place, ack in refusals:
        # Before the first message is the transaction as a whole: no permission, no memory.
        for index in parts[place].owners if place >= 0 else range(len(steps)):
            blame.setdefault(index, ack)
    return {index: _refusal(steps[index], ack) for index, ack in sorted(blame.items())}


def _refusal(step: _Step, ack: netlink.Ack) -> errors.KernelError:
    if step.after is None:
        command = step.resource.delete_command()
    elif step.before is None:
        command = step.after.add_command()
    else:
        command = step.after.change_command(step.before)  # type: ignore[arg-type] # of the same kind, having one key
    return errors.KernelError(command, " ".join(step.resource.key[2:]), ack.errno, ack.detail)


def exchange(
    sock: socket.socket, messages: Sequence[bytes], *, generation: bytes = b""
) -> list[tuple[int, netlink.Ack]]:
    """Send one transaction; return the refused messages' places, -1 for the transaction as a whole.

    Unlike other netlink messages these are not all acknowledged: the kernel says what failed, and we ask for an
    acknowledgement of the last, to be sure that silence is success. All is there when `send` returns.

    Args:
        sock: Of the namespace.
        messages: From `message`.
        generation: Refuse if the ruleset has changed since it had this number; empty: whatever it is.
    """
    if not messages:
        return []
    first = netlink.take_sequence()
    datagram = bytearray().join((_batch_edge(_BATCH_BEGIN, generation), *messages, _batch_edge(_BATCH_END)))
    offset, last = 0, 0
    for sequence in range(first, first + len(messages) + 2):
        last = offset if sequence == first + len(messages) else last
        struct.pack_into("=I", datagram, offset + 8, sequence & 0xFFFFFFFF)
        offset += struct.unpack_from("=I", datagram, offset)[0]
    flags = _U16.unpack_from(datagram, last + 6)[0]
    _U16.pack_into(datagram, last + 6, flags | netlink.NLM_F_ACK)

    netlink.ensure_send_buffer(sock, len(datagram))
    try:
        sock.send(datagram)
    except OSError as error:
        return [(-1, netlink.Ack(error.errno or errno.EIO))]
    refused = []
    confirmed = lost = False
    for answer in netlink.drain(sock):
        if answer is None:
            lost = True
        elif answer.kind == netlink.NLMSG_ERROR:
            place = ((answer.sequence - first) & 0xFFFFFFFF) - 1
            ack = netlink.parse_ack(answer.flags, answer.body)
            confirmed = confirmed or place == len(messages) - 1
            if ack.errno and -1 <= place <= len(messages):
                refused.append((place if place < len(messages) else -1, ack))
    if not refused and (lost or not confirmed):
        raise errors.KernelError("nft -f", f"{len(messages)} messages", errno.ENOBUFS, "the kernel's answer was lost")
    return refused


# --- what is read ----------------------------------------------------------------------------------------------------


class _Changed(Exception):
    """The ruleset changed while it was read."""


def generation(sock: socket.socket) -> bytes:
    """Return the number of the last transaction, opaque.

    Raises:
        KernelError: The kernel does not tell it.
    """
    ack = netlink.talk(sock, [message(_GETGEN, 0, "")])[0]
    if error := ack.error("nft list ruleset", "the generation"):
        raise error
    return netlink.attributes(ack.replies[0].body, 4)[1] if ack.replies else b""


def _dump(sock: socket.socket, kind: int, family: str, *parts: bytes) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Yield family and attributes of each object."""
    ack = netlink.talk(sock, [message(kind, netlink.NLM_F_DUMP, family, *parts)])[0]
    if ack.interrupted or ack.errno in {errno.ENOENT, errno.EINTR}:
        raise _Changed
    if error := ack.error("nft list ruleset", family or "all tables"):
        raise error
    for reply in ack.replies:
        yield reply.body[0], netlink.attributes(reply.body, 4)


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")


def _number(data: bytes | None) -> int:
    return int.from_bytes(data or b"", "big")


def _observe_once(sock: socket.socket, ns: Ns, wanted: Sequence[Table]) -> Iterator[NftResource]:
    present = {}
    for family, given in _dump(sock, _GETTABLE, ""):
        present[family, _text(given[1])] = _number(given.get(2))
    there = [table for table in wanted if (_FAMILIES[table.family], table.name) in present]
    bases = {family: list(_dump(sock, _GETCHAIN, family)) for family in {table.family for table in there}}
    for table in there:
        flags = present[_FAMILIES[table.family], table.name]
        owned = bool(flags & _TABLE_PERSIST) or not has_owner()
        yield NftTable(ns=ns, table=table, dormant=bool(flags & _TABLE_DORMANT), owned=owned)
        rules: dict[str, list[nft.Rule]] = {}
        for _, given in _dump(sock, _GETRULE, table.family, _names(1, table.name)):
            rules.setdefault(_text(given[2]), []).append(_rule(given))
        for _, given in bases[table.family]:
            if _text(given[1]) == table.name:
                yield _chain(ns, table, given, rules)
        for _, given in _dump(sock, _GETSET, table.family, _names(1, table.name)):
            if not _number(given.get(3)) & _ANONYMOUS:
                found = NftSet(ns=ns, table=table, spec=_spec(given))
                yield found
                yield from _elements(sock, found)


def _rule(given: dict[int, bytes]) -> nft.Rule:
    comment = nft_rules.comment_of(given.get(7, b""))
    ours = len(comment) == _DIGEST_LENGTH and not set(comment) - set("0123456789abcdef")
    return nft.Rule((), comment if ours else "")


def _chain(ns: Ns, table: Table, given: dict[int, bytes], rules: dict[str, list[nft.Rule]]) -> NftChain:
    name = _text(given[3])
    base = None
    if 4 in given:
        hook = netlink.attributes(given[4])
        number = _number(hook[1])
        ingress = 0 if table.family == "netdev" else _INET_INGRESS
        names = {} if table.family == "netdev" else {value: word for word, value in _HOOKS.items()}
        base = nft.Base(
            type=_text(given[7]),
            hook="ingress" if number == ingress and number not in names else names.get(number, str(number)),
            priority=int.from_bytes(hook[2], "big", signed=True),
            policy="accept" if _number(given.get(5)) else "drop",
            device=_device(hook),
        )
    return NftChain(ns=ns, table=table, name=name, base=base, rules=tuple(rules.get(name, ())))


def _device(hook: dict[int, bytes]) -> str:
    if 3 in hook:
        return _text(hook[3])
    return ",".join(_text(name) for _, name in netlink.iter_attributes(hook.get(4, b"")))


def _spec(given: dict[int, bytes]) -> Set:
    flags = _number(given.get(3))
    data: tuple[nft.Type, ...] = ()
    if flags & _MAP:
        number = _number(given.get(6))
        data = (nft.VERDICT,) if number == _DATA_VERDICT else nft_values.types_of(number, _number(given.get(7)))
    timeout_s = _number(given.get(11)) // 1000
    return Set(
        name=_text(given[2]),
        key=nft_values.types_of(_number(given.get(4)), _number(given.get(5)), _typeof(given.get(13, b""))),
        data=data,
        interval=bool(flags & _INTERVAL),
        dynamic=bool(flags & _DYNAMIC),
        constant=bool(flags & _CONSTANT),
        has_timeout=bool(flags & _TIMEOUT) and not timeout_s,
        timeout_s=timeout_s,
        size=_number(netlink.attributes(given.get(9, b"")).get(1)),
    )


class _Raw(NamedTuple):
    """An element as dumped: key, last key of a concatenated range, data attributes, flags."""

    key: bytes
    last: bytes
    data: bytes
    flags: int


def _elements(sock: socket.socket, found: NftSet) -> Iterator[NftElement]:
    raw = list(_raw_elements(sock, found))
    spec = found.spec
    key = nft_values.codec(spec.key)
    # One spec object for all elements, so comparing two of them is quick.
    make = functools.partial(NftElement, ns=found.ns, table=found.table, spec=spec)
    if not spec.interval:
        for one in raw:
            yield make(item=key.decode(one.key), value=_decode_value(spec, one.data))
    elif len(spec.key) > 1:
        for one in raw:
            yield make(item=key.decode_range(one.key, one.last or one.key), value=_decode_value(spec, one.data))
    else:
        for low, high, data in _ranges(raw, spec.key[0].size):
            yield make(item=(nft_values.decode_range(spec.key[0], low, high),), value=_decode_value(spec, data))


def _raw_elements(sock: socket.socket, found: NftSet) -> Iterator[_Raw]:
    names = _names(1, found.table.name, found.spec.name)
    for _, given in _dump(sock, _GETSETELEM, found.table.family, names):
        for _, element in netlink.iter_attributes(given.get(3, b"")):
            parts = netlink.attributes(element)
            if 1 in parts:  # else it is the catch-all, which we never make
                last = netlink.attributes(parts[10])[1] if 10 in parts else b""
                yield _Raw(netlink.attributes(parts[1])[1], last, parts.get(2, b""), _number(parts.get(3)))


def _ranges(raw: Iterable[_Raw], size: int) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield first, last and data of each range of a tree of starts and ends; an end may be the next one's start."""
    start: _Raw | None = None
    for one in sorted(raw, key=lambda one: (one.key, not one.flags & _INTERVAL_END)):
        if start is not None:
            yield start.key, (int.from_bytes(one.key, "big") - 1).to_bytes(size, "big"), start.data
        start = None if one.flags & _INTERVAL_END else one
    if start is not None:
        yield start.key, b"\xff" * size, start.data


def _decode_value(spec: Set, data: bytes) -> tuple[Atom, ...] | Verdict:
    if not spec.data:
        return ()
    given = netlink.attributes(data)
    if spec.data == (nft.VERDICT,):
        return nft_rules.decode_verdict(given[2])
    return nft_values.codec(spec.data).decode(given[1])
