from __future__ import annotations

import errno
import itertools
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netweft_agent.kernel import netlink
from netweft_common import errors

RTM_NEWADDR, RTM_GETLINK, RTM_SETLINK, RTM_GETADDR = 20, 18, 19, 22
NOWHERE = 0x7FFF_FFF0
"""An interface index that no machine has."""


@pytest.fixture
def sock():
    sock = netlink.open_socket(netlink.NETLINK_ROUTE)
    yield sock
    sock.close()


def get_link(index: int, *, dump: bool = False) -> bytes:
    flags = netlink.NLM_F_DUMP if dump else 0
    return netlink.message(RTM_GETLINK, flags, struct.pack("=BxHiII", 0, 0, index, 0, 0))


def names(ack: netlink.Ack) -> list[str]:
    return [netlink.attributes(reply.body, 16)[3].rstrip(b"\0").decode() for reply in ack.replies]


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=40))))
def test_attributes_read_back_in_order(given_):
    data = b"".join(netlink.attr(kind, payload) for kind, payload in given_)

    assert 0 == len(data) % 4
    assert given_ == list(netlink.iter_attributes(data))
    assert dict(given_) == netlink.attributes(data)


@pytest.mark.parametrize(
    ("packed", "data"),
    [
        (netlink.attr_u8(1, 2), struct.pack("=HHBxxx", 5, 1, 2)),
        (netlink.attr_u16(1, 2), struct.pack("=HHHxx", 6, 1, 2)),
        (netlink.attr_u32(1, 2), struct.pack("=HHI", 8, 1, 2)),
        (netlink.attr_u64(1, 2), struct.pack("=HHQ", 12, 1, 2)),
        (netlink.attr_string(1, "lo"), struct.pack("=HH4s", 7, 1, b"lo")),
        (netlink.nest(1, netlink.attr_u8(2, 3)), struct.pack("=HHHHBxxx", 12, 0x8001, 5, 2, 3)),
    ],
    ids=["u8", "u16", "u32", "u64", "string", "nest"],
)
def test_attributes_are_packed_as_the_kernel_reads_them(packed, data):
    assert data == packed


def test_a_nest_that_is_too_long_fails_instead_of_being_cut():
    with pytest.raises(struct.error):
        netlink.nest(1, bytes(netlink.NLA_PAYLOAD_LIMIT + 1))


@pytest.mark.parametrize(
    "tail", [b"\x03\0\1\0", b"\xff\xff\1\0ab", b"\x05\0", b"\0\0\0\0"], ids=["short", "long", "half", "zero"]
)
def test_a_malformed_tail_ends_the_walk(tail):
    data = netlink.attr_u8(1, 7) + tail

    assert [(1, b"\7")] == list(netlink.iter_attributes(data))
    assert {1: b"\7"} == netlink.attributes(data)


def test_messages_of_a_datagram_are_walked_to_the_first_that_is_cut():
    data = netlink.message(16, 0, b"abcd") + netlink.message(17, 4, b"") + netlink.message(18, 0, b"efgh")[:-1]

    walked = [(part.kind, part.flags, part.body) for part in netlink.iter_messages(data)]

    assert [(16, 1, b"abcd"), (17, 5, b"")] == walked


def test_the_kernels_words_are_read_after_a_capped_request_and_after_a_whole_one():
    words = netlink.attr_string(1, "no such thing") + netlink.attr_u32(2, 36)
    header = struct.pack("=IHHII", 24, 16, 0, 0, 0)
    code = struct.pack("=i", -errno.ENODEV)
    flags = netlink.NLM_F_ACK_TLVS

    capped = netlink.parse_ack(flags | netlink.NLM_F_CAPPED, code + header + words)
    whole = netlink.parse_ack(flags, code + header + b"8 bytes." + words)

    assert netlink.Ack(errno.ENODEV, "no such thing", 36) == capped == whole


def test_an_error_becomes_ours_and_success_none():
    error = netlink.Ack(errno.ENODEV, "gone").error("ip link show x", "x")

    assert isinstance(error, errors.KernelError)
    assert ("ip link show x", "x", errno.ENODEV, "gone") == (error.op, error.target, error.errno, error.detail)
    assert netlink.OK.error("ip link show x", "x") is None


@pytest.mark.parametrize(
    ("flags", "dump"),
    [
        (netlink.NLM_F_DUMP, True),
        (netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, False),
        (netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE | netlink.NLM_F_EXCL, False),
        (netlink.NLM_F_ROOT, False),
        (0, False),
    ],
)
def test_a_dump_is_told_from_a_replacement(flags, dump):
    assert dump is netlink.is_dump(netlink.message(16, flags))


def test_sequence_numbers_are_never_given_twice():
    taken = [netlink.take_sequence() for _ in range(100)]

    assert 0 not in taken
    assert all(later - earlier >= 4096 for earlier, later in itertools.pairwise(taken))


def test_each_request_has_its_answer_in_order(sock):
    batch = [get_link(1), get_link(NOWHERE), get_link(0, dump=True), get_link(1), get_link(0, dump=True)]

    acks = netlink.talk(sock, batch)

    assert [0, errno.ENODEV, 0, 0, 0] == [ack.errno for ack in acks]
    assert [["lo"], [], ["lo"]] == [names(acks[0]), names(acks[1]), names(acks[3])]
    assert "lo" in names(acks[2])
    assert names(acks[2]) == names(acks[4])


def test_a_refusal_in_the_middle_is_told_though_only_the_last_is_acknowledged(sock, monkeypatch):
    monkeypatch.setattr(netlink, "_chunks", lambda _, batch: [batch])
    silent = netlink.message(RTM_SETLINK, 0, struct.pack("=BxHiII", 0, 0, 1, 0, 0))
    refused = netlink.message(RTM_SETLINK, 0, struct.pack("=BxHiII", 0, 0, NOWHERE, 0, 0))

    acks = [netlink.talk(sock, batch) for batch in ([silent, refused, silent], [silent, silent, refused])]

    assert [[0, errno.ENODEV, 0], [0, 0, errno.ENODEV]] == [[one.errno for one in batch] for batch in acks]


@pytest.mark.parametrize("buffer", [None, 4096], ids=["our buffers", "the smallest receive buffer"])
def test_a_batch_larger_than_the_buffers_has_all_its_answers(sock, buffer):
    if buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    padding = netlink.attr(0x3FF0, bytes(400))
    batch = [
        netlink.message(RTM_GETLINK, 0, struct.pack("=BxHiII", 0, 0, NOWHERE if n % 2 else 1, 0, 0), padding)
        for n in range(3000)
    ]

    acks = netlink.talk(sock, batch)

    assert [0, errno.ENODEV] * 1500 == [ack.errno for ack in acks]
    assert {("lo",), ()} == {tuple(names(ack)) for ack in acks}


def test_lost_answers_are_told_and_the_next_exchange_is_sound(sock, monkeypatch):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    monkeypatch.setattr(netlink, "_ACK_COST", 1)

    acks = netlink.talk(sock, [get_link(NOWHERE)] * 500)
    after = netlink.talk(sock, [get_link(1)])

    assert {errno.ENODEV, errno.ENOBUFS} == {ack.errno for ack in acks}
    assert errno.ENODEV == acks[0].errno
    assert ["lo"] == names(after[0])


def test_an_answer_to_an_exchange_that_was_given_up_is_ignored(sock):
    stale = bytearray(get_link(NOWHERE))
    struct.pack_into("=HI", stale, 6, netlink.NLM_F_REQUEST | netlink.NLM_F_ACK, netlink.take_sequence())
    sock.send(stale)

    acks = netlink.talk(sock, [get_link(1)])

    assert [0] == [ack.errno for ack in acks]


@pytest.mark.parametrize("count", [1, 2])
def test_a_send_that_fails_is_the_answer_of_each_of_its_messages(sock, count):
    sock.close()

    assert [errno.EBADF] * count == [ack.errno for ack in netlink.talk(sock, [get_link(1)] * count)]


def test_a_message_larger_than_the_send_buffer_fails_alone(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    huge = netlink.message(RTM_GETLINK, 0, struct.pack("=BxHiII", 0, 0, 1, 0, 0), netlink.attr(0x3FF0, bytes(60_000)))

    acks = netlink.talk(sock, [get_link(1), huge, get_link(1)])

    assert [0, errno.EMSGSIZE, 0] == [ack.errno for ack in acks]


def test_an_empty_batch_is_nothing(sock):
    assert [] == netlink.talk(sock, [])


def test_a_dump_is_asked_for_again_while_it_is_disturbed(sock, monkeypatch):
    answers = [netlink.Ack(interrupted=True), netlink.Ack(interrupted=True), netlink.OK]
    monkeypatch.setattr(netlink, "talk", lambda sock, batch: [answers.pop(0)])

    assert netlink.OK == netlink.dump(sock, get_link(0, dump=True))
    assert [] == answers


def test_a_protocol_that_is_not_there_is_an_error_of_ours():
    with pytest.raises(errors.KernelError) as caught:
        netlink.open_socket(29)

    assert errno.EPROTONOSUPPORT == caught.value.errno


def test_a_drained_socket_yields_what_waits_and_no_more(sock):
    request = bytearray(get_link(NOWHERE))
    struct.pack_into("=H", request, 6, netlink.NLM_F_REQUEST | netlink.NLM_F_ACK)
    sock.send(request * 3)

    kinds = [part.kind for part in netlink.drain(sock) if part is not None]

    assert [netlink.NLMSG_ERROR] * 3 == kinds
    assert [] == list(netlink.drain(sock))
