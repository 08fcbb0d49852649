"""What the kernel tells of changes to networks, counted: in one namespace and in all that have an id in it.

For tests and benchmarks that claim that nothing is written. Two groups of events come without anybody's asking and are
left out: neighbours that are learned or age (those that are there for good count), and what bridges tell of ports.
"""

from __future__ import annotations

import collections
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from netweft_agent.kernel import dumps, netlink, rtnl
from netweft_cli import netns

_SOL_NETLINK = 270
_LISTEN_ALL_NSID = 8
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 64 << 20
# RTMGRP_* of linux/rtnetlink.h: links, neighbours, traffic control, addresses, routes, rules of both families.
_ROUTE_GROUPS = 0x001 | 0x004 | 0x008 | 0x010 | 0x040 | 0x080 | 0x100 | 0x400
_NFT_GROUPS = 1 << 6  # NFNLGRP_NFTABLES is 7
_LASTING = rtnl.NUD_PERMANENT | rtnl.NUD_NOARP
_NEIGHBOURS = {rtnl.RTM_NEWNEIGH: "new neighbour", rtnl.RTM_DELNEIGH: "neighbour gone"}


class Changes:
    """Counts of changes by what they are, `rtnetlink 16` (RTM_NEWLINK) say, or `nftables 12`."""

    def __init__(self, sockets: dict[str, socket.socket]) -> None:
        self._sockets = sockets

    def take(self) -> dict[str, int]:
        """Return what was told since the last call.

        Raises:
            OSError: ENOBUFS: more than could be kept; nothing can be said.
        """
        found: collections.Counter[str] = collections.Counter()
        for name, sock in self._sockets.items():
            with contextlib.suppress(BlockingIOError):
                while True:
                    for message in netlink.iter_messages(sock.recv(1 << 16)):
                        if not _comes_by_itself(name, message):
                            found[f"{name} {message.kind & 0xFF}"] += 1
        return dict(found)


@contextlib.contextmanager
def told_in(namespace: Path) -> Iterator[Changes]:
    """Listen from inside a namespace while the block runs."""
    sockets = {}
    with contextlib.ExitStack() as stack:
        for name, protocol, groups in (
            ("rtnetlink", netlink.NETLINK_ROUTE, _ROUTE_GROUPS),
            ("nftables", netlink.NETLINK_NETFILTER, _NFT_GROUPS),
        ):
            sock = netns.call(namespace, lambda p=protocol, g=groups: netlink.open_socket(p, groups=g))  # type: ignore[misc]  # mypy#12557
            sockets[name] = stack.enter_context(sock)
            sock.setsockopt(_SOL_NETLINK, _LISTEN_ALL_NSID, 1)
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            sock.setblocking(False)  # noqa: FBT003  # the socket module's signature
        yield Changes(sockets)


def _comes_by_itself(name: str, message: netlink.Message) -> bool:
    if name != "rtnetlink" or message.kind not in _NEIGHBOURS:
        return name == "rtnetlink" and message.kind == rtnl.RTM_NEWLINK and message.body[:1] == bytes([rtnl.AF_BRIDGE])
    if message.body[0] == rtnl.AF_BRIDGE:
        return not dumps.fdb(message.body).state & _LASTING
    return not dumps.neighbour(message.body).state & _LASTING
