"""Ask by real packets who reaches whom, and as whom."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

from tests.support.netns import Netns

TIMEOUT_S = 1.5
"""More than the second after which a lost first packet is sent again, and enough on a busy machine."""
REFUSED = "refused"
Place = tuple[str, int]


T = TypeVar("T")


def at_once(*questions: Callable[[], T]) -> list[T]:
    """Ask several questions together, since each that is not answered takes its time, and return what came of each."""
    with ThreadPoolExecutor(len(questions)) as pool:
        return list(pool.map(lambda question: question(), questions))


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _socket(ns: Netns, address: str, kind: socket.SocketKind) -> socket.socket:
    sock = ns.run(lambda: socket.socket(_family(address), kind))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.settimeout(TIMEOUT_S)
    return sock


def tcp(client: Netns, to: Place, server: Netns, at: Place, *, source: Place | None = None) -> str | None:
    """Connect from one namespace to a place, while a server listens in another.

    Returns:
        The source that the server saw; REFUSED; or None if nothing came back.
    """
    with closing(_socket(server, at[0], socket.SOCK_STREAM)) as listener:
        listener.bind(at)
        listener.listen()
        with closing(_socket(client, to[0], socket.SOCK_STREAM)) as caller:
            if source is not None:
                caller.bind(source)
            try:
                caller.connect(to)
                connection, seen = listener.accept()
            except ConnectionRefusedError:
                return REFUSED
            except OSError:
                return None
            with connection:
                connection.settimeout(TIMEOUT_S)
                caller.sendall(b"ping")
                return str(seen[0]) if connection.recv(16) == b"ping" else None


def udp(client: Netns, to: Place, server: Netns, at: Place, *, source: Place | None = None) -> str | None:
    """Send a datagram and answer it; as `tcp`."""
    with closing(_socket(server, at[0], socket.SOCK_DGRAM)) as listener:
        listener.bind(at)
        with closing(_socket(client, to[0], socket.SOCK_DGRAM)) as caller:
            if source is not None:
                caller.bind(source)
            try:
                caller.connect(to)
                caller.send(b"ping")
                _, seen = listener.recvfrom(16)
                listener.sendto(b"pong", seen)
                caller.recv(16)
            except OSError as error:
                told = caller.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                return REFUSED if errno.ECONNREFUSED in {error.errno, told} else None
            return str(seen[0])


def sctp_arrives(client: Netns, to: Place, server: Netns, at: Place) -> bool:
    """Send the first packet of an SCTP association (INIT, RFC 9260 §3.3.2) and tell whether it arrives at a port.

    By raw sockets, since not every kernel has SCTP ones; IPv4 only.
    """
    with (
        closing(server.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP))) as listener,
        closing(client.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP))) as caller,
    ):
        listener.settimeout(TIMEOUT_S)
        chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 0x1234, 65536, 1, 1, 0x5678)
        head = struct.pack("!HHI", 40000, to[1], 0)
        checksum = struct.pack("<I", crc32c(head + b"\0\0\0\0" + chunk))
        caller.sendto(head + checksum + chunk, (to[0], 0))
        with contextlib.suppress(TimeoutError):
            while True:
                packet = listener.recv(256)
                sctp = packet[(packet[0] & 15) * 4 :]
                if packet[16:20] == socket.inet_aton(at[0]) and struct.unpack_from("!H", sctp, 2)[0] == at[1]:
                    given, zeroed = sctp[8:12], sctp[:8] + b"\0\0\0\0" + sctp[12:]
                    return given == struct.pack("<I", crc32c(zeroed))
    return False


def crc32c(data: bytes) -> int:
    """Return the checksum of SCTP (RFC 9260, appendix A)."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF
