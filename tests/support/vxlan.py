"""VXLAN by hand (RFC 7348): frames as a foreign tunnel end would send them, and what passes on an underlay."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from tests.support.netns import Netns

PORT = 4789
ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD
_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_STATISTICS, _SO_RCVBUFFORCE = 263, 6, 33
_ROOM_BYTES = 32 << 20
_ND = range(133, 138)


def packet(vni: int, frame: bytes) -> bytes:
    """Return what is sent over UDP: the header with its VNI, and a frame."""
    return b"\x08\0\0\0" + vni.to_bytes(3, "big") + b"\0" + frame


def send(ns: Netns, to: str, vni: int, *frames: bytes, port: int = PORT) -> None:
    """Send frames from a namespace, as if it were a tunnel end."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    with contextlib.closing(ns.run(lambda: socket.socket(family, socket.SOCK_DGRAM))) as sock:
        for frame in frames:
            sock.sendto(packet(vni, frame), (to, port))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """A frame that was carried over the underlay.

    Attributes:
        source: Tunnel end that sent it.
    """

    source: str
    destination: str
    vni: int
    frame: bytes

    @property
    def ethertype(self) -> int:
        return int.from_bytes(self.frame[12:14], "big")

    @property
    def is_for_many(self) -> bool:
        """Whether it is for a group or everybody."""
        return bool(self.frame[0] & 1)

    @property
    def asks_for_a_neighbour(self) -> bool:
        """Whether it is ARP or neighbour discovery (RFC 4861)."""
        is_icmp6 = self.ethertype == IPV6 and self.frame[20] == socket.IPPROTO_ICMPV6
        return self.ethertype == ARP or (is_icmp6 and self.frame[54] in _ND)


class Capture:
    """All that passes any link of a namespace while the context is entered.

    Raises:
        AssertionError: The kernel had to drop some of it, so that nothing can be said.
    """

    def __init__(self, ns: Netns) -> None:
        self._ns = ns
        self.frames: list[bytes] = []

    def __enter__(self) -> Self:
        kind = socket.htons(_ETH_P_ALL)
        self._sock = self._ns.run(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, kind))
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM_BYTES)
        self._sock.setblocking(False)  # noqa: FBT003  # the standard library's
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.closing(self._sock):
            with contextlib.suppress(BlockingIOError):
                while True:
                    self.frames.append(self._sock.recv(65536))
            _, dropped = struct.unpack("=II", self._sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        assert not dropped, f"{dropped} frames were dropped before they were looked at"

    def carried(self, port: int = PORT) -> Iterator[Carried]:
        """Yield the frames that VXLAN carried."""
        for frame in self.frames:
            ethertype = int.from_bytes(frame[12:14], "big")
            if ethertype == IPV4 and frame[23] == socket.IPPROTO_UDP:
                udp, addresses, family = 14 + (frame[14] & 15) * 4, frame[26:34], socket.AF_INET
            elif ethertype == IPV6 and frame[20] == socket.IPPROTO_UDP:
                udp, addresses, family = 54, frame[22:54], socket.AF_INET6
            else:
                continue
            if int.from_bytes(frame[udp + 2 : udp + 4], "big") != port:
                continue
            half = len(addresses) // 2
            yield Carried(
                source=socket.inet_ntop(family, addresses[:half]),
                destination=socket.inet_ntop(family, addresses[half:]),
                vni=int.from_bytes(frame[udp + 12 : udp + 15], "big"),
                frame=frame[udp + 16 :],
            )


def dropped_by_rule(ns: Netns) -> int:
    """Return how many packets the host's rules have dropped because their tunnel end is not known."""
    listed = ns.exec(["nft", "list", "chain", "inet", "netweft", "input"]).stdout
    return sum(
        int(words[words.index("packets") + 1]) for words in map(str.split, listed.splitlines()) if "vteps" in str(words)
    )
