"""What is in tables that are not ours: rules of ours in chains of others, and empty tables that we offer to others.

A rule is looked for by its digest, and put before a bare `return` at the chain's end. It is encoded as iptables-nft
does it, with a counter, so that iptables can read the chains that it thinks its own.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator, Sequence

import msgspec
from netweft_common import errors

from netweft_agent.domain.nft import NftChain, NftGuest, NftOffer, Table
from netweft_agent.kernel import netlink, nft, nft_rules

_NEWTABLE, _GETTABLE, _DELTABLE = 0, 1, 2
_NEWCHAIN, _GETCHAIN = 3, 4
_NEWRULE, _GETRULE, _DELRULE = 6, 7, 8
_TABLE_USE, _CHAIN_NAME, _CHAIN_POLICY, _CHAIN_USE = 3, 3, 5, 6
_ACCEPT = (1).to_bytes(4, "big")
_TABLE, _CHAIN, _HANDLE, _EXPRESSIONS, _POSITION, _USERDATA = 1, 2, 3, 4, 6, 7
_NAME, _DATA = 1, 2
_VERDICT_RETURN = (-5 & 0xFFFFFFFF).to_bytes(4, "big")


class _Rule(msgspec.Struct, frozen=True):
    """A rule as dumped.

    Attributes:
        is_return: It does nothing but return (and count).
    """

    handle: bytes
    digest: str
    is_return: bool


def observe(sock: socket.socket, wanted: Sequence[NftGuest | NftOffer]) -> Iterator[NftGuest | NftOffer]:
    """Yield the guests that are there, those whose chain is not, and the offers whose table is there."""
    for (table, chain), guests in _by_chain(one for one in wanted if isinstance(one, NftGuest)).items():
        rules = _dump(sock, table, chain)
        digests = None if rules is None else {rule.digest for rule in rules}
        yield from (guest for guest in guests if digests is None or guest.rule.digest in digests)
    for offer in wanted:
        if isinstance(offer, NftOffer) and _table(sock, offer.table) is not None:
            yield offer


def offer(sock: socket.socket, one: NftOffer) -> None:
    """Make a table for others; if there is one of the name it is let alone.

    Raises:
        KernelError: The kernel refuses it.
    """
    family, name = one.table.family, netlink.attr_string(_TABLE, one.table.name)
    messages = [nft.message(_NEWTABLE, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, family, name)]
    for chain, base in one.chains:
        wanted = NftChain(ns=one.ns, table=one.table, name=chain, base=base)
        messages.append(nft.message(_NEWCHAIN, netlink.NLM_F_CREATE, family, nft.chain_attributes(wanted)))
    refused = nft.exchange(sock, messages)
    if refused and (0, errno.EEXIST) not in {(place, ack.errno) for place, ack in refused}:
        raise errors.KernelError(one.add_command(), one.table.text(), refused[0][1].errno, refused[0][1].detail)


def withdraw(sock: socket.socket, one: NftOffer) -> None:
    """Remove a table that was made for others if nobody has put anything into it."""
    generation = nft.generation(sock)
    table = _table(sock, one.table)
    chains = [_get_chain(sock, one.table, name) for name, _ in one.chains]
    as_made = table is not None and table.get(_TABLE_USE) == len(chains).to_bytes(4, "big")
    if as_made and all(chain is not None and _is_as_made(chain) for chain in chains):
        names = netlink.attr_string(_TABLE, one.table.name)
        nft.exchange(sock, [nft.message(_DELTABLE, 0, one.table.family, names)], generation=generation)


def change(sock: socket.socket, added: Iterable[NftGuest], removed: Iterable[NftGuest]) -> None:
    """Put guests into their chains, and take others out, where there are such chains; idempotent.

    What a chain's owner does not allow is left.

    Raises:
        KernelError: The kernel refuses a dump.
    """
    going, coming = _by_chain(removed), _by_chain(added)
    for table, chain in going | coming:
        rules = _dump(sock, table, chain)
        if rules is None:
            continue
        gone = {guest.rule.digest for guest in going.get((table, chain), ())}
        messages = [
            nft.message(_DELRULE, 0, table.family, *_where(table, chain), netlink.attr(_HANDLE, rule.handle))
            for rule in rules
            if rule.digest in gone
        ]
        there = {rule.digest for rule in rules}
        last = rules[-1] if rules and rules[-1].is_return else None
        wanted = coming.get((table, chain), ())
        messages += [_new_rule(guest, last) for guest in wanted if guest.rule.digest not in there]
        nft.exchange(sock, messages)


def _new_rule(guest: NftGuest, before: _Rule | None) -> bytes:
    flags = netlink.NLM_F_CREATE | (0 if before else netlink.NLM_F_APPEND)
    position = [netlink.attr(_POSITION, before.handle)] if before else []
    encoded = nft_rules.encode_rule(guest.table.family, guest.rule)
    assert not encoded.literals, "iptables knows no anonymous sets"
    where = _where(guest.table, guest.chain)
    return nft.message(_NEWRULE, flags, guest.table.family, *where, encoded.attributes, *position)


def _by_chain(guests: Iterable[NftGuest]) -> dict[tuple[Table, str], list[NftGuest]]:
    found: dict[tuple[Table, str], list[NftGuest]] = {}
    for guest in guests:
        found.setdefault((guest.table, guest.chain), []).append(guest)
    return found


def _where(table: Table, chain: str) -> tuple[bytes, bytes]:
    return netlink.attr_string(_TABLE, table.name), netlink.attr_string(_CHAIN, chain)


def _dump(sock: socket.socket, table: Table, chain: str) -> list[_Rule] | None:
    """Return a chain's rules in order; None where there is no such chain, or something else is wrong with it."""
    if _get_chain(sock, table, chain) is None:
        return None
    answer = netlink.dump(sock, nft.message(_GETRULE, netlink.NLM_F_DUMP, table.family, *_where(table, chain)))
    if answer.errno in {errno.ENOENT, errno.EINTR} or answer.interrupted:
        return None
    if error := answer.error("nft list chain", f"{table.text()} {chain}"):
        raise error
    return [_rule(netlink.attributes(reply.body, 4)) for reply in answer.replies]


def _is_as_made(chain: dict[int, bytes]) -> bool:
    return not any(chain.get(_CHAIN_USE, b"")) and chain.get(_CHAIN_POLICY) == _ACCEPT


def _table(sock: socket.socket, table: Table) -> dict[int, bytes] | None:
    return _get(sock, nft.message(_GETTABLE, 0, table.family, netlink.attr_string(_TABLE, table.name)))


def _get_chain(sock: socket.socket, table: Table, chain: str) -> dict[int, bytes] | None:
    names = netlink.attr_string(_TABLE, table.name) + netlink.attr_string(_CHAIN_NAME, chain)
    return _get(sock, nft.message(_GETCHAIN, 0, table.family, names))


def _get(sock: socket.socket, request: bytes) -> dict[int, bytes] | None:
    answer = netlink.talk(sock, [request])[0]
    return None if answer.errno or not answer.replies else netlink.attributes(answer.replies[0].body, 4)


def _rule(given: dict[int, bytes]) -> _Rule:
    verdict = False
    for _, expression in netlink.iter_attributes(given.get(_EXPRESSIONS, b"")):
        parts = netlink.attributes(expression)
        name = parts.get(_NAME, b"").rstrip(b"\0")
        if name == b"counter":
            continue
        data = netlink.attributes(netlink.attributes(parts.get(_DATA, b"")).get(2, b""))  # NFTA_IMMEDIATE_DATA
        code = netlink.attributes(data.get(2, b"")).get(1)  # NFTA_DATA_VERDICT, NFTA_VERDICT_CODE
        if name != b"immediate" or code != _VERDICT_RETURN:
            return _Rule(given[_HANDLE], nft_rules.comment_of(given.get(_USERDATA, b"")), is_return=False)
        verdict = True
    return _Rule(given[_HANDLE], nft_rules.comment_of(given.get(_USERDATA, b"")), is_return=verdict)
