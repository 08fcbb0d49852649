"""A filter in the kernel for events that say nothing to us, bpf(4): a veth makes two dozen, and half are such.

What it drops is never copied to us: that something was added, unless it took the place of something (routes) or is the
state of a neighbour that may age, and what bridges tell of their ports and have learned. `Monitor` would throw all that
away.
"""

from __future__ import annotations

import ctypes
import socket
import struct

from netweft_agent.kernel import netlink, rtnl

_SO_ATTACH_FILTER = 26
_LOAD_HALF, _LOAD_BYTE = 0x28, 0x30  # BPF_LD | BPF_ABS with BPF_H, BPF_B
_JUMP_EQUAL, _JUMP_SET, _RETURN = 0x15, 0x45, 0x06  # BPF_JMP | BPF_K with BPF_JEQ, BPF_JSET; BPF_RET | BPF_K
_INSTRUCTION = struct.Struct("=HBBI")
_KIND_AT, _FLAGS_AT, _FAMILY_AT = 4, 6, netlink.HEADER_SIZE
_STATE_AT = netlink.HEADER_SIZE + 8
_WHOLE = 0xFFFFFFFF

# Each line: what to do, where to go on if so and if not (lines to skip), value. Halves are loaded as of the network.
_PROGRAM = (
    (_LOAD_HALF, 0, 0, _KIND_AT),
    (_JUMP_EQUAL, 10, 0, socket.htons(rtnl.RTM_NEWADDR)),  # drop
    (_JUMP_EQUAL, 6, 0, socket.htons(rtnl.RTM_NEWLINK)),  # look at the family
    (_JUMP_EQUAL, 3, 0, socket.htons(rtnl.RTM_NEWNEIGH)),  # look at the state, then at the family
    (_JUMP_EQUAL, 0, 6, socket.htons(rtnl.RTM_NEWROUTE)),  # else keep
    (_LOAD_HALF, 0, 0, _FLAGS_AT),
    (_JUMP_SET, 4, 5, socket.htons(netlink.NLM_F_REPLACE)),  # keep what replaces, drop the rest
    (_LOAD_HALF, 0, 0, _STATE_AT),
    (_JUMP_SET, 3, 0, socket.htons(rtnl.NUD_PERMANENT)),  # drop
    (_LOAD_BYTE, 0, 0, _FAMILY_AT),
    (_JUMP_EQUAL, 1, 0, rtnl.AF_BRIDGE),  # drop, else keep
    (_RETURN, 0, 0, _WHOLE),
    (_RETURN, 0, 0, 0),
)


def attach_to_route_events(sock: socket.socket) -> None:
    """Have the kernel keep from a socket of NETLINK_ROUTE the events that `Monitor` has no use for.

    Raises:
        OSError: The kernel does not take the filter.
    """
    code = b"".join(_INSTRUCTION.pack(*line) for line in _PROGRAM)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(_PROGRAM), ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
