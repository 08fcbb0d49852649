"""What attaching and detaching cost the kernel alone: raw netlink, prepared bytes, nothing else.

Run as a script in a process of its own: `python -m tests.bench.floor [COUNT]`. It makes one network namespace that
plays the host, and COUNT that play containers, all its own, and prints one JSON object of milliseconds:

attach   one send in the host (veth pair, far end in place and named, host end a port of the bridge, up), one in the
         container (lo and eth0 up, address, default route), one container after the other
batch    the same for 100 containers: one send in the host, then one in each container
detach   links of 100 containers, moved to a link group and deleted by it
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import sys
import time
from pathlib import Path

CLONE_NEWNET = 0x40000000
NEWLINK, DELLINK, NEWADDR, NEWROUTE = 16, 17, 20, 24
REQUEST, ACK, EXCL, CREATE = 0x1, 0x4, 0x200, 0x400
UP = 1
DOOMED = 4242

LIBC = ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def new_namespace() -> int:
    """Move this process to a fresh namespace with IPv6 off, and return a descriptor of it."""
    checked(LIBC.unshare(CLONE_NEWNET))
    for scope in ("default", "all"):
        with Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6").open("w") as file:
            file.write("1")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", len(data) + 4, kind) + data + bytes(-len(data) % 4)


def message(kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", len(body) + 16, kind, REQUEST | ACK | flags, 1, 0) + body


def link(index: int = 0, *, up: bool = False) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, UP if up else 0, UP if up else 0)


def rtnetlink() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    sock.setsockopt(socket.SOL_SOCKET, 33, 4 << 20)  # SO_RCVBUFFORCE
    return sock


def exchange(sock: socket.socket, *messages: bytes) -> None:
    """Send everything at once and read an acknowledgement for each."""
    sock.send(b"".join(messages))
    left = len(messages)
    while left:
        answer = sock.recv(1 << 20)
        at = 0
        while at < len(answer):
            size, kind = struct.unpack_from("=IH", answer, at)
            if kind == 2:
                (code,) = struct.unpack_from("=i", answer, at + 16)
                if code:
                    raise OSError(-code, os.strerror(-code))
                left -= 1
            at += size + 3 & ~3


class Bridge:
    """A host with a bridge, and containers to attach to it."""

    def __init__(self, containers: int) -> None:
        self.home = new_namespace()
        self.host = rtnetlink()
        kind = attribute(18, attribute(1, b"bridge\0"))
        exchange(self.host, message(NEWLINK, CREATE | EXCL, link(up=True) + attribute(3, b"br0\0") + kind))
        self.bridge = socket.if_nametoindex("br0")
        self.spaces = []
        for _ in range(containers):
            descriptor = new_namespace()
            self.spaces.append((descriptor, rtnetlink()))
        checked(LIBC.setns(self.home, CLONE_NEWNET))

    def outside(self, number: int, descriptor: int) -> bytes:
        far = link() + attribute(3, b"eth0\0") + attribute(28, struct.pack("=I", descriptor))
        pair = attribute(18, attribute(1, b"veth\0") + attribute(2, attribute(1, far)))
        body = link(up=True) + attribute(3, b"c%d\0" % number) + attribute(10, struct.pack("=I", self.bridge)) + pair
        return message(NEWLINK, CREATE | EXCL, body)

    @staticmethod
    def inside(number: int) -> tuple[bytes, ...]:
        address = struct.pack("!I", 0x0A000002 + number)
        return (
            message(NEWLINK, 0, link(1, up=True)),
            message(NEWLINK, 0, link(2, up=True)),
            message(
                NEWADDR,
                CREATE | EXCL,
                struct.pack("=BBBBi", 2, 16, 0, 0, 2) + attribute(2, address) + attribute(1, address),
            ),
            message(
                NEWROUTE,
                CREATE | EXCL,
                struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 3, 0, 1, 0)
                + attribute(5, struct.pack("!I", 0x0A000001))
                + attribute(4, struct.pack("=I", 2)),
            ),
        )


def attach(count: int) -> list[float]:
    bridge = Bridge(count)
    took = []
    for number, (descriptor, sock) in enumerate(bridge.spaces):
        start = time.perf_counter()
        exchange(bridge.host, bridge.outside(number, descriptor))
        exchange(sock, *bridge.inside(number))
        took.append((time.perf_counter() - start) * 1e3)
    return took


def batches(count: int, size: int = 100) -> tuple[list[float], list[float]]:
    bridge = Bridge(count)
    attached, detached = [], []
    for first in range(0, count, size):
        part = list(enumerate(bridge.spaces))[first : first + size]
        start = time.perf_counter()
        exchange(bridge.host, *(bridge.outside(number, descriptor) for number, (descriptor, _) in part))
        for number, (_, sock) in part:
            exchange(sock, *bridge.inside(number))
        attached.append((time.perf_counter() - start) * 1e3 / len(part))
    group = attribute(27, struct.pack("=I", DOOMED))
    for first in range(0, count, size):
        start = time.perf_counter()
        names = [b"c%d\0" % number for number in range(first, min(first + size, count))]
        exchange(bridge.host, *(message(NEWLINK, 0, link() + attribute(3, name) + group) for name in names))
        exchange(bridge.host, message(DELLINK, 0, link() + group))
        detached.append((time.perf_counter() - start) * 1e3 / len(names))
    return attached, detached


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    one = attach(count)
    batch, detached = batches(count)
    print(json.dumps({"attach": one, "attach-batch": batch, "detach-batch": detached}))


if __name__ == "__main__":
    main()
