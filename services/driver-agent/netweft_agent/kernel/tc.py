"""Encode and decode traffic control (`linux/pkt_sched.h`, `linux/pkt_cls.h`): token buckets and redirecting filters.

A bucket is tbf at the root of a link. A redirect is a u32 filter that matches everything, at the ingress of a link's
clsact, with the action mirred: of the classifiers, u32 is the one that kernels with few of them have.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from netweft_agent.domain.resources import FILTER_PREFERENCE, QDISC_MAJOR, TICK_NS
from netweft_agent.kernel import netlink

RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46

OUR_QDISC = QDISC_MAJOR << 16
CLSACT = 0xFFFF0000
"""Handle of a link's clsact, or of its ingress."""

_ROOT = 0xFFFFFFFF
_CLSACT_PARENT = 0xFFFFFFF1
_INGRESS_FILTERS = 0xFFFFFFF2
_ALL_PROTOCOLS = socket.htons(3)  # ETH_P_ALL

_KIND, _OPTIONS = 1, 2  # TCA_KIND, TCA_OPTIONS
_TBF_PARMS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
_U32_SEL, _U32_ACT = 5, 7
_ACT_KIND, _ACT_OPTIONS = 1, 2
_MIRRED_PARMS = 2
_U32_TERMINAL = 1
_ACT_STOLEN = 4
_EGRESS_REDIRECT = 1
_LINKLAYER_ETHERNET = 1
_U32_MAX = (1 << 32) - 1

_TCMSG = struct.Struct("=BBHiIII")
_RATESPEC = struct.Struct("=BBHhHI")
_TBF_QOPT = struct.Struct("=12s12sIII")
_MIRRED = struct.Struct("=IIiiiiI")
_U64 = struct.Struct("=Q")

# One key that compares no bits: mask, value, offset, offset mask.
_EVERYTHING = struct.pack("=BBBBHHhhI", _U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0, 0) + bytes(16)
_NO_PEAK = bytes(_RATESPEC.size)


class Qdisc(NamedTuple):
    """One queueing discipline; of those that are not tbf, the numbers are 0. In bytes, and bytes a second."""

    ifindex: int
    handle: int
    rate: int
    burst: int
    limit: int


def set_bucket(index: int, *, rate: int, burst: int, limit: int) -> bytes:
    """Encode a token bucket as a link's root: made, or changed in place, with what waits in it kept.

    Args:
        index: Of the link.
        rate: In bytes a second.
        burst: In bytes.
        limit: In bytes.
    """
    spec = _RATESPEC.pack(0, _LINKLAYER_ETHERNET, 0, 0, 0, min(rate, _U32_MAX))
    words = netlink.attr(_TBF_PARMS, _TBF_QOPT.pack(spec, _NO_PEAK, limit, 0, 0)) + netlink.attr_u32(_TBF_BURST, burst)
    if rate > _U32_MAX:
        words += netlink.attr_u64(_TBF_RATE64, rate)
    return netlink.message(
        RTM_NEWQDISC,
        netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE,
        _TCMSG.pack(0, 0, 0, index, OUR_QDISC, _ROOT, 0),
        netlink.attr_string(_KIND, "tbf"),
        netlink.nest(_OPTIONS, words),
    )


def delete_bucket(index: int) -> bytes:
    """Encode the removal of a link's root if it is ours; EINVAL or ENOENT: it is not."""
    return netlink.message(RTM_DELQDISC, 0, _TCMSG.pack(0, 0, 0, index, OUR_QDISC, _ROOT, 0))


def add_clsact(index: int) -> bytes:
    """Encode the making of the place where a link's filters are; EEXIST: it is there, or the older ingress is."""
    return netlink.message(
        RTM_NEWQDISC,
        netlink.NLM_F_CREATE | netlink.NLM_F_EXCL,
        _TCMSG.pack(0, 0, 0, index, CLSACT, _CLSACT_PARENT, 0),
        netlink.attr_string(_KIND, "clsact"),
    )


def add_redirect(index: int, to_index: int) -> bytes:
    """Encode the filter that sends all that comes in by a link through another one."""
    mirred = _MIRRED.pack(0, 0, _ACT_STOLEN, 0, 0, _EGRESS_REDIRECT, to_index)
    action = netlink.attr_string(_ACT_KIND, "mirred") + netlink.nest(_ACT_OPTIONS, netlink.attr(_MIRRED_PARMS, mirred))
    return netlink.message(
        RTM_NEWTFILTER,
        netlink.NLM_F_CREATE | netlink.NLM_F_EXCL,
        _TCMSG.pack(0, 0, 0, index, 0, _INGRESS_FILTERS, FILTER_PREFERENCE << 16 | _ALL_PROTOCOLS),
        netlink.attr_string(_KIND, "u32"),
        netlink.nest(_OPTIONS, netlink.attr(_U32_SEL, _EVERYTHING), netlink.nest(_U32_ACT, netlink.nest(1, action))),
    )


def delete_redirect(index: int) -> bytes:
    """Encode the removal of our filter of a link."""
    return netlink.message(
        RTM_DELTFILTER,
        0,
        _TCMSG.pack(0, 0, 0, index, 0, _INGRESS_FILTERS, FILTER_PREFERENCE << 16 | _ALL_PROTOCOLS),
    )


def dump_qdiscs() -> bytes:
    """Encode the question for the queueing disciplines of all links."""
    return netlink.message(RTM_GETQDISC, netlink.NLM_F_DUMP, _TCMSG.pack(0, 0, 0, 0, 0, 0, 0))


def dump_redirects(index: int) -> bytes:
    """Encode the question for our filters of a link."""
    return netlink.message(
        RTM_GETTFILTER,
        netlink.NLM_F_DUMP,
        _TCMSG.pack(0, 0, 0, index, 0, _INGRESS_FILTERS, FILTER_PREFERENCE << 16 | _ALL_PROTOCOLS),
    )


def qdisc(body: bytes) -> Qdisc:
    """Decode the body of an RTM_NEWQDISC or RTM_DELQDISC; only of ours more than where it is."""
    _, _, _, index, handle, _, _ = _TCMSG.unpack_from(body)
    if handle == OUR_QDISC:
        found = netlink.attributes(body, _TCMSG.size)
        options = netlink.attributes(found.get(_OPTIONS, b""))
        if found.get(_KIND, b"").rstrip(b"\0") == b"tbf" and _TBF_PARMS in options:
            spec, _, limit, ticks, _ = _TBF_QOPT.unpack_from(options[_TBF_PARMS])
            rate = _RATESPEC.unpack(spec)[5]
            if _TBF_RATE64 in options:
                rate = _U64.unpack_from(options[_TBF_RATE64])[0]
            return Qdisc(index, handle, rate, ticks * TICK_NS * rate // 1_000_000_000, limit)
    return Qdisc(index, handle, 0, 0, 0)


def is_our_filter(body: bytes) -> bool:
    """Return whether the body of an RTM_NEWTFILTER or RTM_DELTFILTER is about a filter of ours."""
    _, _, _, _, _, _, info = _TCMSG.unpack_from(body)
    return bool(info >> 16 == FILTER_PREFERENCE)


def ifindex(body: bytes) -> int:
    """Return the index of the link that a message of traffic control is about."""
    return int(_TCMSG.unpack_from(body)[3])


def redirected_to(body: bytes) -> int | None:
    """Decode the body of an RTM_NEWTFILTER: the index that our filter sends to, 0 when that link has gone.

    None: it is not such a filter; the kernel tells of a u32's hash table first, and then of what is in it.
    """
    if not is_our_filter(body):
        return None
    options = netlink.attributes(netlink.attributes(body, _TCMSG.size).get(_OPTIONS, b""))
    first = netlink.attributes(netlink.attributes(options.get(_U32_ACT, b"")).get(1, b""))
    parms = netlink.attributes(first.get(_ACT_OPTIONS, b"")).get(_MIRRED_PARMS)
    if parms is None or first.get(_ACT_KIND, b"").rstrip(b"\0") != b"mirred":
        return None
    return int(_MIRRED.unpack_from(parms)[6])
