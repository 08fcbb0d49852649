"""Tell of changes that others make to what is ours, in any namespace that the agent holds, from two event sockets.

The kernel sends events of all namespaces that have an id in the host's to one socket (NETLINK_LISTEN_ALL_NSID,
netlink(7)); the executor gives each namespace an id when it opens it. Own changes must not wake anybody:

| event | known as our own by |
|---|---|
| addresses, routes, neighbours, limits, firewall | the port id of the socket that asked, which is one of the writer's |
| forwarding entries, consequences | the kernel tells no port id; our own are read after the writer's turn |
| links | the state told last is as the writer left it, so nothing has to be done, whoever did it |

The kernel queues events inside the call that causes them. So what `_settle` finds after the writer has answered
contains all of the writer's own, and a link that is not then as it should be was changed by somebody else. A foreign
change of the few kinds without a port id that falls into those 65 ms passes for ours; the periodic pass finds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Iterator

from netweft_common import errors

from netweft_agent.domain import resources
from netweft_agent.domain.resources import HOST, Ns
from netweft_agent.kernel import dumps, filters, netlink, rtnl, tc
from netweft_agent.kernel.executor import Executor
from netweft_agent.kernel.netns import Namespaces
from netweft_agent.kernel.thread import Worker

_SOL_NETLINK = 270
_LISTEN_ALL_NSID = 8
_NSID = struct.Struct("=i")

# RTMGRP_* of linux/rtnetlink.h: links, neighbours, traffic control, IPv4 and IPv6 addresses and routes.
_ROUTE_GROUPS = 0x001 | 0x004 | 0x008 | 0x010 | 0x040 | 0x100 | 0x400
_NFT_GROUPS = 1 << 6  # NFNLGRP_NFTABLES is 7
_NFT_SUBSYSTEM = 10
_NFGEN_SIZE = 4
_DELTABLE, _NEWCHAIN, _DELRULE = 2, 3, 8
_TABLE_NAME, _ADMIN_TABLE_NAME, _DOCKER_CHAIN = b"netweft\0", b"netweft-admin\0", b"DOCKER-USER\0"
_IFINDEX = struct.Struct("=i")
_HEADER = struct.Struct("=IHHIIB")  # of a message, and the family, which is the first byte of its body
_INDEX_AT = netlink.HEADER_SIZE + 4
_BRIDGE_FAMILY = bytes([rtnl.AF_BRIDGE])
_SO_RCVBUFFORCE = 33
_REST_S = 0.02
_REST_LIMIT_S = 0.06
"""Own events are read when the writer has rested for so long; while it writes on and on, after so long at last."""
_ANSWER_S = 0.005
"""But not at once: whoever waits for what the writer has done is answered first, and a large batch has many events."""
_BUFFER_BYTES = 64 << 20
"""A veth makes a dozen events of 4 KiB; this is for a thousand at once, and costs nothing while it is empty."""


class Monitor:
    """The events of a kernel; belongs to the event loop.

    Args:
        namespaces: Registry.
        executor: Knows its own sockets, the ids of namespaces, and how links shall be.
        opener: Thread in the host's namespace that opens the sockets.
    """

    def __init__(self, namespaces: Namespaces, executor: Executor, opener: Worker) -> None:
        self._opener = opener
        self._namespaces = namespaces
        self._executor = executor
        self._sockets: list[socket.socket] = []
        self._writing = 0
        self._deaf = False
        """Whether own events may wait in the sockets."""
        self._due: asyncio.TimerHandle | None = None
        self._latest = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._links: dict[tuple[Ns, int], bytes] = {}
        """What was told last of links, until the writer is at rest."""
        self._changed: dict[Ns, None] = {}
        self._wake = asyncio.Event()
        self._closed = False

    async def changes(self) -> AsyncIterator[Ns]:
        """Yield the name of a namespace after somebody else changed something of ours in it; once for many changes.

        When events were lost, that is each namespace. One caller at a time; what happens before the first call is not
        told. Ends when the kernel is closed.

        Raises:
            KernelError: No event socket can be opened.
        """
        if self._closed:
            return
        self._loop = asyncio.get_running_loop()
        self._sockets = await self._opener.call(_open_sockets)
        try:
            self._listen()
            while not self._closed:
                while self._changed:
                    ns = next(iter(self._changed))
                    del self._changed[ns]
                    yield ns
                self._wake.clear()
                await self._wake.wait()
        finally:
            if self._due is not None:
                self._due.cancel()
            for sock in self._sockets:
                self._loop.remove_reader(sock)
                sock.close()
            self._sockets = []

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Say that the writer is at it; a moment after its end, take in what it caused.

        Meanwhile events wait in the sockets: reading them one by one would take turns from the writer, and from the
        answer to whoever waits for it.
        """
        loop = self._loop
        if loop is None:
            yield
            return
        self._writing += 1
        if not self._deaf:
            self._deaf = True
            self._latest = loop.time() + _REST_LIMIT_S
            for sock in self._sockets:
                loop.remove_reader(sock)
        try:
            yield
        finally:
            self._writing -= 1
            self._rest(loop)

    def _rest(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take in what the writer has caused, when it has been at rest for a moment."""
        now = loop.time()
        if self._due is not None:
            if now >= self._latest:
                return  # it has been put off for long enough
            self._due.cancel()
        self._due = loop.call_at(max(min(now + _REST_S, self._latest), now + _ANSWER_S), self._settle)

    def _settle(self) -> None:
        assert self._loop is not None, "set before the first write that is listened to"
        self._due = None
        self._read()
        self._latest = self._loop.time() + _REST_LIMIT_S
        if self._writing:
            return  # its end comes here again
        self._deaf = False
        self._judge_links()
        self._listen()

    def close(self) -> None:
        """End `changes`; idempotent."""
        self._closed = True
        self._wake.set()

    def _listen(self) -> None:
        if self._loop is not None and not self._deaf:
            for sock in self._sockets:
                self._loop.add_reader(sock, self._on_readable)

    def _on_readable(self) -> None:
        self._read()
        if not self._writing:
            self._judge_links()

    def _read(self) -> None:
        for sock in self._sockets:
            while True:
                try:
                    data, control, _, _ = sock.recvmsg(1 << 16, socket.CMSG_SPACE(_NSID.size))
                except BlockingIOError:
                    break
                except OSError:  # ENOBUFS: we were too slow, and events are lost
                    for ns in self._namespaces.held():
                        self.tell(ns)
                    continue
                source = self._namespace(control)
                if source is None:
                    continue
                if _is_new_link(data):  # nearly all are, when it is us who writes
                    self._links[source, _IFINDEX.unpack_from(data, _INDEX_AT)[0]] = data[netlink.HEADER_SIZE :]
                    continue
                if self._is_own_transaction(data):
                    continue
                for message in netlink.iter_messages(data):
                    self._take(source, message)

    def _is_own_transaction(self, data: bytes) -> bool:
        """Return whether these are events of a transaction of ours; of one transaction are all in a datagram."""
        _, kind, _, _, port_id, _ = _HEADER.unpack_from(data)
        return kind >> 8 == _NFT_SUBSYSTEM and port_id in self._executor.sockets.ports

    def _namespace(self, control: list[tuple[int, int, bytes]]) -> Ns | None:
        for level, kind, data in control:
            if level == _SOL_NETLINK and kind == _LISTEN_ALL_NSID:
                nsid: int = _NSID.unpack_from(data)[0]
                return HOST if nsid < 0 else self._executor.nsids.find(nsid)
        return HOST

    def tell(self, ns: Ns) -> None:
        """Have `changes` yield a namespace."""
        self._changed[ns] = None
        self._wake.set()

    def _take(self, ns: Ns, message: netlink.Message) -> None:
        if message.kind >> 8 == _NFT_SUBSYSTEM:
            if message.port_id not in self._executor.sockets.ports and _is_firewall_loss(message):
                self.tell(ns)
        elif message.kind in {rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK}:
            self._take_link(ns, message)
        elif not self._is_own(message) and self._is_loss(ns, message):
            self.tell(ns)

    def _is_own(self, message: netlink.Message) -> bool:
        if message.port_id:
            return message.port_id in self._executor.sockets.ports
        return self._deaf

    def _take_link(self, ns: Ns, message: netlink.Message) -> None:
        if message.body[:1] == _BRIDGE_FAMILY:
            return  # a port's state; what matters of it is told of the link as well
        index: int = _IFINDEX.unpack_from(message.body, 4)[0]
        if message.kind == rtnl.RTM_NEWLINK:
            self._links[ns, index] = message.body
            return
        self._links.pop((ns, index), None)
        if self._executor.indexes.is_ours(ns, index):
            self.tell(ns)

    def _judge_links(self) -> None:
        for (ns, index), body in self._links.items():
            known = self._executor.indexes.is_ours(ns, index)
            if known and not self._executor.indexes.is_as_wanted(ns, dumps.link_state(body)):
                self.tell(ns)
        self._links.clear()

    def _is_loss(self, ns: Ns, message: netlink.Message) -> bool:
        """Return whether an event says that something of ours has gone, or been replaced."""
        if message.kind == rtnl.RTM_DELADDR:
            return dumps.address(message.body).protocol == resources.PROTOCOL
        if message.kind == rtnl.RTM_DELROUTE:
            return self._is_lost_route(ns, dumps.route(message.body))
        if message.kind == rtnl.RTM_NEWROUTE and message.flags & netlink.NLM_F_REPLACE:
            return self._executor.indexes.is_ours(ns, dumps.route(message.body).ifindex)
        if message.kind in {rtnl.RTM_NEWNEIGH, rtnl.RTM_DELNEIGH} and message.body:
            return self._is_lost_neighbour(ns, message)
        return self._is_lost_limit(ns, message)

    def _is_lost_route(self, ns: Ns, route: dumps.RouteInfo) -> bool:
        """Return whether a route of ours has gone, or one that the kernel has made with an address of ours."""
        connected = (route.protocol, route.kind, route.via) == (rtnl.RTPROT_KERNEL, rtnl.RTN_UNICAST, None)
        return route.protocol == resources.PROTOCOL or (connected and self._executor.indexes.is_ours(ns, route.ifindex))

    def _is_lost_limit(self, ns: Ns, message: netlink.Message) -> bool:
        """Return whether a bucket or filter of ours was changed, replaced (the old one is told too) or removed."""
        if message.kind in {tc.RTM_NEWQDISC, tc.RTM_DELQDISC}:
            told = tc.qdisc(message.body)
            ours = told.handle == tc.OUR_QDISC or (message.kind == tc.RTM_DELQDISC and told.handle == tc.CLSACT)
            return ours and self._executor.indexes.is_ours(ns, told.ifindex)
        if message.kind in {tc.RTM_NEWTFILTER, tc.RTM_DELTFILTER}:
            return tc.is_our_filter(message.body) and self._executor.indexes.is_ours(ns, tc.ifindex(message.body))
        return False

    def _is_lost_neighbour(self, ns: Ns, message: netlink.Message) -> bool:
        if message.body[0] != rtnl.AF_BRIDGE:
            neighbour = dumps.neighbour(message.body)
            return neighbour.protocol == resources.PROTOCOL and not neighbour.state & rtnl.NUD_PERMANENT
        if message.kind == rtnl.RTM_NEWNEIGH:
            return False  # learning, mostly
        entry = dumps.fdb(message.body)
        static = entry.vtep is not None or (
            bool(entry.master_index) and entry.state & (rtnl.NUD_NOARP | rtnl.NUD_PERMANENT) == rtnl.NUD_NOARP
        )
        return static and self._executor.indexes.is_ours(ns, entry.ifindex)


def _is_new_link(data: bytes) -> bool:
    """Return whether a datagram is one message, and that tells how a link is; of a bridge's port it is another's."""
    size: int
    kind: int
    family: int
    size, kind, _, _, _, family = _HEADER.unpack_from(data)
    return kind == rtnl.RTM_NEWLINK and family != rtnl.AF_BRIDGE and size == len(data) > _INDEX_AT + _IFINDEX.size


def _is_firewall_loss(message: netlink.Message) -> bool:
    """Return whether an event is of our tables, or of what we have in those of others."""
    given = netlink.attributes(message.body, _NFGEN_SIZE)
    kind = message.kind & 0xFF
    if given.get(1) == _TABLE_NAME:
        return True
    if given.get(1) == _ADMIN_TABLE_NAME:
        return kind == _DELTABLE
    # Docker makes its chain when it starts, and its rules are flushed by whoever reloads a firewall.
    return (kind == _NEWCHAIN and given.get(3) == _DOCKER_CHAIN) or (kind == _DELRULE and given.get(2) == _DOCKER_CHAIN)


def _open_sockets() -> list[socket.socket]:
    opened: list[socket.socket] = []
    try:
        for protocol, groups in ((netlink.NETLINK_ROUTE, _ROUTE_GROUPS), (netlink.NETLINK_NETFILTER, _NFT_GROUPS)):
            sock = netlink.open_socket(protocol, groups=groups)
            opened.append(sock)
            sock.setsockopt(_SOL_NETLINK, _LISTEN_ALL_NSID, 1)
            with contextlib.suppress(PermissionError):  # in a user namespace; then events are lost sooner
                sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            sock.setblocking(False)  # noqa: FBT003  # the socket module's signature
        with contextlib.suppress(OSError):  # without, they are thrown away here
            filters.attach_to_route_events(opened[0])
    except OSError as error:
        for sock in opened:
            sock.close()
        raise errors.KernelError("setsockopt", "the event socket", error.errno or 0) from error
    return opened
