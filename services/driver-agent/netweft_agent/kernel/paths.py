"""How large a packet may be on the way to another tunnel end, by asking: ICMP echoes that nobody may fragment.

The sockets ignore what the kernel believes of the path (IP_PMTUDISC_PROBE, ip(7)), so a switch that drops large frames
without a word is found too. A way is taken for narrow only where the other end answers a small echo and not a large
one: who answers none may just not like echoes (RFC 8899 §4.3 has the idea).
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import select
import socket
import struct
import time
from collections.abc import Iterator, Mapping

from netweft_common import errors

from netweft_agent.kernel import dumps, netlink, rtnl

TRIES = 3
"""Echoes of one size that are lost before it counts as too large."""
PATIENCE_S = 0.3
"""Wait for the answers of each try."""
AT_ONCE = 64
"""Tunnel ends asked side by side."""
LEAST = {4: 576, 6: 1280}
"""Size of packet, in bytes, that every way carries (RFC 791 §3.1 for practical purposes, RFC 8200 §5)."""

_MTU_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
_PMTUDISC_PROBE = 3
_ECHO = {4: (8, 0), 6: (128, 129)}
_HEADERS = {4: 28, 6: 48}
"""Bytes of IP and ICMP headers."""
_SIOCGIFMTU = 0x8921
_ROOM_BYTES = 1 << 20
_idents = itertools.count(os.getpid())


def measure(local: str, wanted: Mapping[str, int]) -> dict[str, int]:
    """Ask tunnel ends for packets of these sizes; blocks for some seconds.

    Args:
        local: Our own tunnel address, in whose namespace the calling thread is.
        wanted: Size in bytes, IP header included, by tunnel address of the same family.

    Returns:
        Of those whose way carries less, the largest size that came through and back. Missing: it is wide enough, or
        nobody answers there.
    """
    found: dict[str, int] = {}
    remotes = sorted(wanted)
    for at in range(0, len(remotes), AT_ONCE):
        part = {one: wanted[one] for one in remotes[at : at + AT_ONCE]}
        with contextlib.suppress(OSError), contextlib.closing(_Asker(local)) as asker:
            found |= _measure(asker, part)
    return found


def _measure(asker: _Asker, wanted: Mapping[str, int]) -> dict[str, int]:
    least = LEAST[asker.version]
    silent = wanted.keys() - asker.ask(wanted)
    low = dict.fromkeys(asker.ask({one: least for one in sorted(silent) if wanted[one] > least}), least)
    high = {one: wanted[one] for one in low}
    while middles := {one: (low[one] + high[one]) // 2 for one in low if high[one] - low[one] > 1}:
        answered = asker.ask(middles)
        low |= {one: middles[one] for one in answered}
        high |= {one: middle for one, middle in middles.items() if one not in answered}
    return low


class _Asker:
    """A raw socket that echoes are sent by."""

    def __init__(self, local: str) -> None:
        self.version = 6 if ":" in local else 4
        family, protocol = (
            (socket.AF_INET, socket.IPPROTO_ICMP) if self.version == 4 else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
        )
        self._ident = next(_idents) & 0xFFFF
        self._numbers = itertools.count(1)
        self._sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
        try:
            self._sock.setsockopt(*_MTU_DISCOVER[self.version], _PMTUDISC_PROBE)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM_BYTES)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM_BYTES)
            self._sock.bind((local, 0))
        except OSError:
            self._sock.close()
            raise

    def ask(self, sizes: Mapping[str, int]) -> set[str]:
        """Return who answered an echo of his size."""
        answered: set[str] = set()
        sent: dict[int, str] = {}
        for _ in range(TRIES):
            for remote in sizes.keys() - answered:
                number = next(self._numbers) & 0xFFFF
                sent[number] = remote
                # Too large for our own link, or no way at all: nothing will come.
                with contextlib.suppress(OSError):
                    self._sock.sendto(self._echo(number, sizes[remote]), (remote, 0))
            for number in self._answers(PATIENCE_S):
                if number in sent:
                    answered.add(sent[number])
                if len(answered) == len(sizes):
                    return answered
        return answered

    def close(self) -> None:
        self._sock.close()

    def _echo(self, number: int, size: int) -> bytes:
        kind, _ = _ECHO[self.version]
        body = bytes(max(0, size - _HEADERS[self.version]))
        head = struct.pack("!BBHHH", kind, 0, 0, self._ident, number)
        # All else is zero, so the sum is of these words; the kernel makes ICMPv6's itself (RFC 3542 §3.1).
        total = (kind << 8) + self._ident + number
        checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF if self.version == 4 else 0
        return head[:2] + checksum.to_bytes(2, "big") + head[4:] + body

    def _answers(self, patience_s: float) -> Iterator[int]:
        """Yield the numbers of the echoes that are answered in the time."""
        ends = time.monotonic() + patience_s
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        while (left_s := ends - time.monotonic()) > 0 and poller.poll(left_s * 1e3):
            try:
                data = self._sock.recv(1 << 16)
            except OSError:  # an error that a router has sent
                continue
            icmp = data[(data[0] & 15) * 4 :] if self.version == 4 and data else data
            if len(icmp) >= 8 and icmp[0] == _ECHO[self.version][1] and int.from_bytes(icmp[4:6], "big") == self._ident:
                yield int.from_bytes(icmp[6:8], "big")


class Underlay:
    """The interface that holds the tunnel address, in the host's namespace.

    Args:
        vtep: Tunnel address.
    """

    def __init__(self, vtep: str) -> None:
        self._address = dumps.text_ip(rtnl.packed_ip(vtep)[1])
        self._name = ""

    def mtu(self) -> int | None:
        """Return its MTU in bytes; None: no interface has the address now."""
        with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            for _ in range(2):
                with contextlib.suppress(OSError):
                    answer = fcntl.ioctl(sock, _SIOCGIFMTU, struct.pack("16si12x", self._name.encode(), 0))
                    return int(struct.unpack_from("16si", answer)[1])
                self._name = self._find()
        return None

    def _find(self) -> str:
        try:
            with contextlib.closing(netlink.open_socket(netlink.NETLINK_ROUTE)) as sock:
                found = [dumps.address(reply.body) for reply in netlink.dump(sock, rtnl.dump_addresses()).replies]
            return next(
                (socket.if_indextoname(one.ifindex) for one in found if one.address.partition("/")[0] == self._address),
                "",
            )
        except (OSError, errors.KernelError):
            return ""
