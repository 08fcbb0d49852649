"""Netlink framing: pack requests, walk answers, and one blocking exchange of many messages over one socket.

Every attach goes through here, so encoding is `struct` and `bytes` only. Nothing in this module knows what a message
is about: `kernel/rtnl*.py` and `kernel/nft.py` do.

The wire (`linux/netlink.h`, `net/netlink/af_netlink.c`) in short: a datagram holds any number of messages, each with a
16 byte header and a body, which is a family header and attributes; everything is in host byte order and aligned to 4.
The kernel works through a datagram inside `sendmsg`, one message after the other, a failed one not stopping the next,
and queues one acknowledgement each, so all of them are there when `send` returns. A dump is different: the
kernel makes it piece by piece while it is read, and a socket has one dump at a time.
"""

from __future__ import annotations

import errno
import itertools
import socket
import struct
from collections.abc import Container, Iterator, Sequence
from typing import NamedTuple

from netweft_common import errors

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

NLMSG_NOOP = 1
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSG_OVERRUN = 4

NLM_F_REQUEST = 0x001
NLM_F_MULTI = 0x002
NLM_F_ACK = 0x004
NLM_F_ECHO = 0x008
NLM_F_DUMP_INTR = 0x010
NLM_F_ROOT = 0x100
NLM_F_MATCH = 0x200
NLM_F_DUMP = NLM_F_ROOT | NLM_F_MATCH
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLM_F_NONREC = 0x100
NLM_F_BULK = 0x200
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200

NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF
NLA_PAYLOAD_LIMIT = 0xFFFF - 4
"""Bytes that fit in one attribute, nested ones included: its length field has 16 bits."""

HEADER_SIZE = 16

_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33

_NLMSGERR_ATTR_MSG = 1
_NLMSGERR_ATTR_OFFS = 2

_BUFFER_SIZE = 0x10000
"""Bytes read at once; the kernel makes dump parts of at most 32 KiB (`netlink_dump`)."""
_SEND_BUFFER = 4 << 20
_RECEIVE_BUFFER = 8 << 20
_ACK_COST = 8192
"""Bytes of receive buffer set aside a message: an acknowledgement is booked with 0.75 to 4 KiB, an object with more."""
_SMALL_COUNT, _SMALL_SIZE = 16, 0x4000
"""A batch up to this fits the smallest buffers that a socket of ours can have, so they are not asked for."""
_BLOCK = 4096
"""Sequence numbers taken at once; so no part of a batch may have more messages."""
_RECEIVE_TIMEOUT_S = 10

_HEADER = struct.Struct("=IHHII")
_ACK = struct.Struct("=IHHIIi")
_ATTR = struct.Struct("=HH")
_ATTR_U8 = struct.Struct("=HHB3x")
_ATTR_U16 = struct.Struct("=HHH2x")
_ATTR_U32 = struct.Struct("=HHI")
_ATTR_U64 = struct.Struct("=HHQ")
_S32 = struct.Struct("=i")
_U16 = struct.Struct("=H")
_U32 = struct.Struct("=I")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")

# The bound methods are looked up once: these run for every attribute of every attach.
_pack_header = _HEADER.pack
_pack_attr = _ATTR.pack
_unpack_header = _HEADER.unpack_from
_unpack_attr = _ATTR.unpack_from

_blocks = itertools.count(1)


class Message(NamedTuple):
    """One message of an answer or an event."""

    kind: int
    """Message type, for example RTM_NEWLINK."""
    flags: int
    sequence: int
    port_id: int
    body: bytes
    """What follows the netlink header: the family header and attributes."""


class Ack(NamedTuple):
    """What the kernel said to one message."""

    errno: int = 0
    """0 for done, else a positive errno; ENOBUFS, EMSGSIZE or ETIMEDOUT if the answer was lost, the outcome unknown."""
    detail: str = ""
    """The kernel's own words (NLMSGERR_ATTR_MSG), often empty."""
    offset: int = 0
    """Byte in the request at which the offending attribute starts (NLMSGERR_ATTR_OFFS), 0 if not told."""
    replies: Sequence[Message] = ()
    """Objects that were asked for, or echoed."""
    interrupted: bool = False
    """The dump is not of one moment: objects changed while it was made (NLM_F_DUMP_INTR). Ask again."""

    def error(self, op: str, target: str) -> errors.KernelError | None:
        """Return what to raise, or None when the message succeeded.

        Args:
            op: What was asked, as a command line.
            target: Object that it was asked for.
        """
        return errors.KernelError(op, target, self.errno, self.detail) if self.errno else None


OK = Ack()


def attr(kind: int, payload: bytes) -> bytes:
    """Pack one attribute, padded to 4 bytes."""
    size = len(payload)
    return _pack_attr(size + 4, kind) + payload + _PADDING[size & 3]


def attr_u8(kind: int, value: int) -> bytes:
    """Pack an 8 bit number."""
    return _ATTR_U8.pack(5, kind, value)


def attr_u16(kind: int, value: int) -> bytes:
    """Pack a 16 bit number in host byte order."""
    return _ATTR_U16.pack(6, kind, value)


def attr_u32(kind: int, value: int) -> bytes:
    """Pack a 32 bit number in host byte order."""
    return _ATTR_U32.pack(8, kind, value)


def attr_u64(kind: int, value: int) -> bytes:
    """Pack a 64 bit number in host byte order."""
    return _ATTR_U64.pack(12, kind, value)


def attr_string(kind: int, value: str) -> bytes:
    """Pack a string with its closing NUL."""
    return attr(kind, value.encode() + b"\0")


def nest(kind: int, *children: bytes) -> bytes:
    """Pack attributes into one, marked NLA_F_NESTED.

    Raises:
        struct.error: The children are longer than NLA_PAYLOAD_LIMIT; splitting them is the caller's knowledge.
    """
    body = b"".join(children)
    # Children are aligned, so their sum is.
    return _pack_attr(len(body) + 4, kind | NLA_F_NESTED) + body


def message(kind: int, flags: int, *parts: bytes) -> bytes:
    """Pack a request; `talk` fills in the sequence number and asks for the acknowledgement.

    Args:
        kind: Message type, for example RTM_NEWLINK.
        flags: NLM_F_CREATE and the like; NLM_F_REQUEST is added.
        parts: Family header and attributes, each aligned to 4 bytes.
    """
    body = b"".join(parts)
    return _pack_header(len(body) + 16, kind, flags | NLM_F_REQUEST, 0, 0) + body


def iter_attributes(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield type and payload of each attribute from `offset` on, in order, type without flags.

    A malformed tail ends the walk, as in the kernel's `nla_for_each_attr`.
    """
    end = len(data)
    while offset + 4 <= end:
        size, kind = _unpack_attr(data, offset)
        if size < 4 or offset + size > end:
            return
        yield kind & NLA_TYPE_MASK, data[offset + 4 : offset + size]
        offset += (size + 3) & ~3


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Return the payload of each attribute from `offset` on by type; of several of one type, the last."""
    found: dict[int, bytes] = {}
    end = len(data)
    while offset + 4 <= end:
        size, kind = _unpack_attr(data, offset)
        if size < 4 or offset + size > end:
            break
        found[kind & NLA_TYPE_MASK] = data[offset + 4 : offset + size]
        offset += (size + 3) & ~3
    return found


def selected(data: bytes, kinds: Container[int], offset: int = 0) -> dict[int, bytes]:
    """Return what `attributes` does of these types alone: of a link, most are none of ours."""
    found: dict[int, bytes] = {}
    end = len(data)
    while offset + 4 <= end:
        size, kind = _unpack_attr(data, offset)
        if size < 4 or offset + size > end:
            break
        kind &= NLA_TYPE_MASK
        if kind in kinds:
            found[kind] = data[offset + 4 : offset + size]
        offset += (size + 3) & ~3
    return found


def first(data: bytes, kind: int) -> bytes:
    """Return the payload of the first attribute of a type; empty where there is none."""
    return next((payload for found, payload in iter_attributes(data) if found == kind), b"")


def iter_messages(data: bytes) -> Iterator[Message]:
    """Yield the messages of one received datagram; a truncated one ends the walk."""
    offset, end = 0, len(data)
    while offset + HEADER_SIZE <= end:
        size, kind, flags, sequence, port_id = _unpack_header(data, offset)
        if size < HEADER_SIZE or offset + size > end:
            return
        yield Message(kind, flags, sequence, port_id, data[offset + HEADER_SIZE : offset + size])
        offset += (size + 3) & ~3


def parse_ack(flags: int, body: bytes) -> Ack:
    """Read the body of an NLMSG_ERROR, of which errno 0 is the acknowledgement.

    Args:
        flags: Of the NLMSG_ERROR's own header: they say whether extended attributes follow, and where.
        body: Error number, header of the request, perhaps the request, perhaps attributes.
    """
    code = -_S32.unpack_from(body)[0]
    if not flags & NLM_F_ACK_TLVS:
        return Ack(code) if code else OK
    start = 4 + HEADER_SIZE
    if not flags & NLM_F_CAPPED:
        start = 4 + ((_U32.unpack_from(body, 4)[0] + 3) & ~3)
    return _with_extended(code, body, start)


def parse_done(flags: int, body: bytes) -> Ack:
    """Read the body of an NLMSG_DONE: the errno that a dump ended with, 0 as a rule."""
    if len(body) < 4:
        return OK
    code = -_S32.unpack_from(body)[0]
    if code <= 0:  # some dumpers put their last positive return value there
        return OK
    return _with_extended(code, body, 4) if flags & NLM_F_ACK_TLVS else Ack(code)


def _with_extended(code: int, body: bytes, start: int) -> Ack:
    extended = attributes(body, start)
    detail = extended.get(_NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode(errors="replace")
    offset = extended.get(_NLMSGERR_ATTR_OFFS)
    return Ack(code, detail, _U32.unpack(offset)[0] if offset else 0)


def is_dump(request: bytes) -> bool:
    """Tell whether a request is answered by a dump.

    NLM_F_DUMP shares its bits with REPLACE and EXCL, which only make sense with CREATE.
    """
    flags = _U16.unpack_from(request, 6)[0]
    return bool(flags & (NLM_F_DUMP | NLM_F_CREATE) == NLM_F_DUMP)


def open_socket(protocol: int, *, groups: int = 0, strict: bool = False) -> socket.socket:
    """Open a netlink socket in the calling thread's network namespace, where it then stays.

    The caller closes it. Its buffers are large: acknowledgements of a big batch wait in the receive buffer until they
    are read, and an nf_tables transaction is one datagram. Buffers cost nothing while they are empty.

    Args:
        protocol: NETLINK_ROUTE or NETLINK_NETFILTER.
        groups: Bit mask of the multicast groups to join. A socket for events should not be used for `talk`.
        strict: Let the kernel check dump requests strictly, and so filter dumps (NETLINK_GET_STRICT_CHK).

    Raises:
        KernelError: The kernel does not have the protocol, or the process has no descriptor left.
    """
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    except OSError as error:
        raise errors.KernelError("socket", f"netlink protocol {protocol}", error.errno or 0) from error
    try:
        sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        sock.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        if strict:
            sock.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        # A time-out in the kernel; Python's would add a poll to every read. It never strikes, since answers are
        # queued before send returns; but should one be lost, a writer that hangs for ever is the worse failure.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", _RECEIVE_TIMEOUT_S, 0))
        _set_buffer(sock, _SO_SNDBUFFORCE, socket.SO_SNDBUF, _SEND_BUFFER)
        _set_buffer(sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        sock.bind((0, groups))
    except OSError as error:
        sock.close()
        raise errors.KernelError("bind", f"netlink protocol {protocol}", error.errno or 0) from error
    return sock


def _set_buffer(sock: socket.socket, force: int, plain: int, size: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, force, size)
    except PermissionError:  # in a user namespace before Linux 5.16; then as far as net.core.[rw]mem_max lets us
        sock.setsockopt(socket.SOL_SOCKET, plain, size)


def ensure_send_buffer(sock: socket.socket, size: int) -> None:
    """Make room to send one datagram of `size` bytes, as far as we are allowed to."""
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < size + 64:
        _set_buffer(sock, _SO_SNDBUFFORCE, socket.SO_SNDBUF, size + 64)


def drain(sock: socket.socket) -> Iterator[Message | None]:
    """Yield what waits on a socket, without waiting for more; None where something is lost.

    For answers that are not one a message; those of `talk` are its own.
    """
    buffer = bytearray(_BUFFER_SIZE)
    view = memoryview(buffer)
    while True:
        try:
            size = sock.recv_into(buffer, 0, socket.MSG_TRUNC | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise errors.KernelError("recv", "netlink socket", error.errno or errno.EIO) from error
            yield None
            continue
        if size > _BUFFER_SIZE:
            yield None
        else:
            yield from iter_messages(bytes(view[:size]))


def take_sequence() -> int:
    """Return the first of 4,096 sequence numbers that no other exchange of this process uses for long; never 0."""
    return (next(_blocks) * _BLOCK) & 0xFFFFFFFF or take_sequence()


def talk(sock: socket.socket, batch: Sequence[bytes]) -> list[Ack]:
    """Send requests and return what the kernel said to each, in their order.

    Requests go in as few sends as the socket's buffers allow; a dump goes alone, since a socket has one dump at a time.
    A failed message does not stop those after it. Never raises for what the kernel says: a send that fails altogether
    (the socket is closed, one message is larger than the send buffer) is the errno of each of its messages.

    Blocks while the kernel works. One thread at a time may use a socket.

    Args:
        sock: From `open_socket`.
        batch: From `message`. The acknowledgement is asked for here.
    """
    acks: list[Ack] = []
    try:
        for chunk in _chunks(sock, batch):
            acks += _exchange(sock, chunk)
    except OSError as error:  # the socket tells nothing about itself: it is closed
        acks += [Ack(error.errno or errno.EIO)] * (len(batch) - len(acks))
    return acks


def dump(sock: socket.socket, request: bytes, *, attempts: int = 5) -> Ack:
    """Return a dump that is of one moment, asking again while others change what is dumped.

    After `attempts` the last one is returned as it is, `interrupted`; on a busy host that may be better than nothing.
    """
    ack = talk(sock, [request])[0]
    while ack.interrupted and attempts > 1:
        attempts -= 1
        ack = talk(sock, [request])[0]
    return ack


def _chunks(sock: socket.socket, batch: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Split a batch so that each part fits the send buffer, and its answers the receive buffer."""
    if not batch:
        return
    small = len(batch) <= _SMALL_COUNT and sum(map(len, batch)) <= _SMALL_SIZE and not any(map(is_dump, batch))
    if small or len(batch) == 1:
        yield batch
        return
    # getsockopt tells twice what was asked for, which is what the kernel compares with.
    count_limit = min(_BLOCK, max(1, sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // _ACK_COST))
    size_limit = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2
    start = size = 0
    for index, request in enumerate(batch):
        alone = is_dump(request)
        if index > start and (alone or index - start >= count_limit or size + len(request) > size_limit):
            yield batch[start:index]
            start, size = index, 0
        size += len(request)
        if alone:
            yield batch[index : index + 1]
            start, size = index + 1, 0
    if start < len(batch):
        yield batch[start:]


def _exchange(sock: socket.socket, chunk: Sequence[bytes]) -> list[Ack]:
    """Send in one datagram, with an acknowledgement asked of the last request only.

    Requests are worked off in their order, inside the send (`netlink_rcv_skb`), and failures are always told: once the
    last one is acknowledged, those before it that nothing was heard of have succeeded. A dump is alone.
    """
    first = take_sequence()
    datagram = bytearray().join(chunk)
    offset = 0
    for sequence, request in enumerate(chunk, first):
        _U32.pack_into(datagram, offset + 8, sequence)
        offset += len(request)
    last = len(datagram) - len(chunk[-1])
    flags = _U16.unpack_from(datagram, last + 6)[0]
    if flags & (NLM_F_DUMP | NLM_F_CREATE) != NLM_F_DUMP:
        _U16.pack_into(datagram, last + 6, flags | NLM_F_ACK)
    try:
        sock.send(datagram)
    except OSError as error:
        return [Ack(error.errno or errno.EIO)] * len(chunk)
    answers = _Answers(first, len(chunk))
    answers.read(sock)
    return answers.acks()


class _Answers:
    """The answers to one send, put in the order of the requests."""

    def __init__(self, first: int, count: int) -> None:
        self._first = first
        self._count = count
        self._acks: dict[int, Ack] = {}
        self._replies: dict[int, list[Message]] = {}
        self._ended = False
        self._interrupted = False
        self._lost = 0
        """Errno that says why answers are missing."""

    def read(self, sock: socket.socket) -> None:
        """Read until the last message has its answer, or until it is certain that some are lost."""
        buffer = bytearray(_BUFFER_SIZE)
        view = memoryview(buffer)
        flags = socket.MSG_TRUNC
        while not self._ended:
            try:
                size = sock.recv_into(buffer, 0, flags)
            except OSError as error:
                code = error.errno or errno.EIO
                if code != errno.ENOBUFS:
                    self._lost = self._lost or (errno.ETIMEDOUT if code == errno.EAGAIN else code)
                    return
                size = 0
                self._lost = code
            if size > _BUFFER_SIZE:
                self._lost = errno.EMSGSIZE
            elif not self._take_last_ack(buffer, size):
                self._take(bytes(view[:size]))
            if self._lost:  # whatever else has come is here already, so do not wait for what has not
                flags = socket.MSG_TRUNC | socket.MSG_DONTWAIT

    def acks(self) -> list[Ack]:
        """Return one answer a message."""
        silent = Ack(self._lost, "the answer was lost") if self._lost else OK
        if not self._acks and not self._replies:
            return [silent] * self._count
        return [self._ack(index, silent) for index in range(self._count)]

    def _ack(self, index: int, silent: Ack) -> Ack:
        ack = self._acks.get(index, silent)
        replies = self._replies.get(index, ())
        if replies or (self._interrupted and ack is not silent):
            # A part that was lost may have been of this answer, so it does not count as whole.
            ack = ack._replace(errno=ack.errno or self._lost, replies=replies, interrupted=self._interrupted)
        return ack

    def _take_last_ack(self, buffer: bytearray, size: int) -> bool:
        """Take the last message's acknowledgement without any more to it, which most answers are."""
        if size != 36:
            return False
        _, kind, _, sequence, _, code = _ACK.unpack_from(buffer)
        if kind != NLMSG_ERROR or code or (sequence - self._first) & 0xFFFFFFFF != self._count - 1:
            return False
        self._acks[self._count - 1] = OK
        self._ended = True
        return True

    def _take(self, datagram: bytes) -> None:
        for part in iter_messages(datagram):
            index = (part.sequence - self._first) & 0xFFFFFFFF
            if index >= self._count or index in self._acks:
                continue  # left over from an exchange that was given up
            if part.flags & NLM_F_DUMP_INTR and part.flags & NLM_F_MULTI:
                self._interrupted = True
            if part.kind == NLMSG_ERROR:
                self._acks[index] = parse_ack(part.flags, part.body)
            elif part.kind == NLMSG_DONE:
                self._acks[index] = parse_done(part.flags, part.body)
            else:
                self._replies.setdefault(index, []).append(part)
                continue
            self._ended = self._ended or index == self._count - 1
