"""What a namespace's connection tracking knows, and what it is asked over netlink."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any, NamedTuple

import pytest
from netweft_agent.kernel import netlink

from tests.support.netns import Netns

_SUBSYSTEM = 1  # NFNL_SUBSYS_CTNETLINK


class Flow(NamedTuple):
    """An entry: where its first packet went, and whence the answers come."""

    protocol: str
    to: str
    port: int
    server: str


def flows(ns: Netns) -> set[Flow]:
    """Return the entries of TCP and UDP flows, from /proc/net/nf_conntrack."""
    found = set()
    for line in ns.exec(["cat", "/proc/net/nf_conntrack"]).stdout.splitlines():
        words = line.split()
        given = [word.partition("=")[::2] for word in words if "=" in word]
        first = dict(reversed(given))  # each name comes twice, the first time as sent
        if words[2] in {"tcp", "udp"}:
            server = [value for name, value in given if name == "src"][1]
            found.add(Flow(words[2], _short(first["dst"]), int(first["dport"]), _short(server)))
    return found


def _short(address: str) -> str:
    return str(ip_address(address))


class Asked:
    """Counts what connection tracking is asked for: deletions that filter or name an entry, dumps, and sends.

    Args:
        monkeypatch: Puts the real functions back.
        refuse: Returns the errno with which a request is refused before the kernel is asked, or 0.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refuse: Callable[[bytes], int] | None = None) -> None:
        self.deletions = 0
        self.dumps = 0
        self.sends = 0
        talk, dump = netlink.talk, netlink.dump

        def counted(sock: Any, batch: Sequence[bytes]) -> list[netlink.Ack]:
            batch = list(batch)
            mine = sum(_is_tracking(one) and not netlink.is_dump(one) for one in batch)  # a dump talks too
            self.deletions += mine
            self.sends += bool(mine)
            if refuse is None or not mine:
                return talk(sock, batch)
            codes = [refuse(one) for one in batch]
            acks = iter(talk(sock, [one for one, code in zip(batch, codes, strict=True) if not code]))
            return [netlink.Ack(errno=code) if code else next(acks) for code in codes]

        def counted_dump(sock: Any, request: bytes, **more: Any) -> netlink.Ack:
            self.dumps += _is_tracking(request)
            return dump(sock, request, **more)

        monkeypatch.setattr(netlink, "talk", counted)
        monkeypatch.setattr(netlink, "dump", counted_dump)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Deletions, the sends that they went in, dumps."""
        return self.deletions, self.sends, self.dumps


def _is_tracking(request: bytes) -> bool:
    kind: int = struct.unpack_from("=H", request, 4)[0]
    return kind >> 8 == _SUBSYSTEM
