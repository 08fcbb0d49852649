"""Ports of the host that are held by sockets of this process, so that nobody else can take them.

A socket is bound and does not listen: packets that no rule leads elsewhere are refused by the kernel at once. It is
bound without SO_REUSEADDR, for two sockets that both have it may share a port until one of them listens. Where remains
of closed connections (TIME_WAIT) forbid that, it is bound with it, made to listen, which asks for the port alone, and
shut down again, which leaves it bound (inet_csk_listen_start, tcp_disconnect).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import resource
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from netweft_common import errors

from netweft_agent.domain.ports import PortWant
from netweft_agent.domain.resources import ANY_ADDRESS, HOST, Key, PortHold
from netweft_agent.kernel.netns import Namespaces

_KINDS = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}
_NO_PROTOCOL = frozenset({errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EAFNOSUPPORT})
_RESERVED_S = 60.0
"""How long a reserved port waits for the change that wanted it."""
_DESCRIPTORS = 4096
"""Room made in the process's table of descriptors: when it grows, threads wait for each other (expand_fdtable)."""
_ALL = ("0.0.0.0", "::")  # noqa: S104  # that is what is asked for
_DEFAULT_RANGE = (49153, 65535)
_NET = Path("/proc/thread-self/net")


@dataclass(slots=True)
class _Held:
    """A held or reserved port; without sockets where the kernel does not know the protocol."""

    protocol: str
    port: int
    sockets: dict[str, socket.socket | None]
    """By address, one for both families at all addresses; None where the kernel does not know the protocol, so that
    nobody can take the port."""
    hold: PortHold | None = None
    """None: reserved only."""
    since_s: float = field(default_factory=time.monotonic)

    def close(self) -> None:
        _close(self.sockets)

    def overlaps(self, protocol: str, addresses: Iterable[str], port: int) -> bool:
        """Return whether both cannot be held."""
        return (self.protocol, self.port) == (protocol, port) and any(
            mine == theirs or (_version(mine) == _version(theirs) and (_is_any(mine) or _is_any(theirs)))
            for mine in self.sockets
            for theirs in addresses
        )


class Ports:
    """The held ports of the host's namespace. Any thread may call.

    Args:
        namespaces: Registry; sockets are opened in the host's namespace.
    """

    def __init__(self, namespaces: Namespaces) -> None:
        self._namespaces = namespaces
        self._lock = threading.Lock()
        self._held: dict[Key, _Held] = {}
        self._reserved: dict[tuple[str, int], _Held] = {}
        self._last = 0
        _make_room()

    def hold(self, wanted: Sequence[PortHold]) -> list[errors.NetweftError | None]:
        """Take ports; idempotent. Return why each cannot be had, with who has it where that can be known."""
        with self._lock, self._namespaces.visited(HOST):
            return [self._hold(one) for one in wanted]

    def _hold(self, wanted: PortHold) -> errors.NetweftError | None:
        key = wanted.key
        there = self._held.get(key)
        if there is not None:
            there.hold = wanted
            return None
        addresses = _addresses(wanted.address)
        sockets = self._take_reserved(wanted)
        missing = [one for one in addresses if one not in sockets] if sockets else addresses
        both = _bind_both(wanted.protocol, wanted.port) if missing == _ALL else None
        try:
            sockets |= self._bind(wanted.protocol, missing, wanted.port) if both is None else dict.fromkeys(_ALL, both)
        except OSError as error:
            _close(sockets)
            return self._refusal(wanted.protocol, addresses, wanted.port, error)
        self._held[key] = _Held(wanted.protocol, wanted.port, sockets, wanted)
        return None

    def release(self, wanted: PortHold) -> None:
        """Let go of a port; idempotent."""
        with self._lock:
            there = self._held.pop(wanted.key, None)
        if there is not None:
            there.close()

    def has(self, key: Key) -> bool:
        """Return whether a port is held."""
        return key in self._held

    def held(self) -> dict[Key, PortHold]:
        """Return what is held."""
        with self._lock:
            return {key: one.hold for key, one in self._held.items() if one.hold is not None}

    def adopt(self, wanted: Iterable[PortHold]) -> None:
        """Take the ports that can be had, without a word on the others: what a restart finds is to be held again."""
        self.hold([one for one in wanted if one.key not in self._held])

    def reserve(self, want: PortWant) -> int:
        """Return a port that is free at all the addresses, and keep it for the next minute; see domain.ports.Reserver.

        Raises:
            FailedPrecondition: None of a range is free.
            Exhausted: None of the ephemeral range is free.
        """
        with self._lock, self._namespaces.visited(HOST):
            self._forget_stale()
            last = OSError(errno.EADDRINUSE, "")
            for port in self._candidates(want):
                if (want.protocol, port) in self._reserved:
                    continue
                try:
                    sockets = self._bind(want.protocol, want.addresses, port)
                except OSError as error:
                    last = error
                    if error.errno != errno.EADDRINUSE:
                        break
                    continue
                self._reserved[want.protocol, port] = _Held(want.protocol, port, sockets)
                return port
            if want.first == want.last != 0 or last.errno != errno.EADDRINUSE:
                raise self._refusal(want.protocol, want.addresses, want.first, last)
            where = _where(want.addresses)
            if not want.first:
                raise errors.Exhausted(
                    "PORTS_EXHAUSTED",
                    f"no {want.protocol} port of the host's ephemeral range is free at {where}; widen "
                    "net.ipv4.ip_local_port_range, or name a port",
                )
            raise errors.FailedPrecondition(
                "PORTS_IN_USE",
                f"none of the {want.protocol} ports {want.first} to {want.last} is free at {where}; give a wider range",
            )

    def close(self) -> None:
        """Let go of all."""
        with self._lock:
            for one in (*self._held.values(), *self._reserved.values()):
                one.close()
            self._held.clear()
            self._reserved.clear()

    # --- what is free ---

    def _candidates(self, want: PortWant) -> Iterator[int]:
        if want.first:
            yield from range(want.first, want.last + 1)
            return
        low, high = _ephemeral_range()
        reserved = _reserved_ports()
        start = self._last + 1 if low <= self._last < high else low
        for port in itertools.chain(range(start, high + 1), range(low, start)):
            if port not in reserved:
                self._last = port
                yield port

    def _forget_stale(self) -> None:
        now_s = time.monotonic()
        for key in [key for key, one in self._reserved.items() if now_s - one.since_s > _RESERVED_S]:
            self._reserved.pop(key).close()

    def _take_reserved(self, wanted: PortHold) -> dict[str, socket.socket | None]:
        """Return the sockets that were reserved for this, at those of its addresses that were."""
        key = (wanted.protocol, wanted.port)
        reserved = self._reserved.get(key)
        if reserved is None:
            return {}
        addresses = _addresses(wanted.address)
        taken = {address: reserved.sockets.pop(address) for address in addresses if address in reserved.sockets}
        if not reserved.sockets:
            del self._reserved[key]
        return taken

    def _bind(self, protocol: str, addresses: Iterable[str], port: int) -> dict[str, socket.socket | None]:
        """Bind a socket at each address.

        Raises:
            OSError: One of them is not to be had; none is bound.
        """
        bound: dict[str, socket.socket | None] = {}
        try:
            for address in addresses:
                bound[address] = _bind_one(protocol, address, port)
                if bound[address] is None and self._overlapping(protocol, (address,), port) is not None:
                    raise OSError(errno.EADDRINUSE, "")  # noqa: TRY301  # as the kernel would, if it could
        except OSError:
            _close(bound)
            raise
        return bound

    def _overlapping(self, protocol: str, addresses: Iterable[str], port: int) -> PortHold | None:
        for one in self._held.values():
            if one.hold is not None and one.overlaps(protocol, addresses, port):
                return one.hold
        return None

    # --- who has it ---

    def _refusal(self, protocol: str, addresses: tuple[str, ...], port: int, error: OSError) -> errors.NetweftError:
        where = _where(addresses)
        if error.errno == errno.EADDRNOTAVAIL:
            return errors.FailedPrecondition(
                "HOST_ADDRESS_UNKNOWN",
                f"port {port}/{protocol} cannot be published at {where}: no interface of this host has that address; "
                "name one that it has, or none",
                address=where,
                port=str(port),
            )
        if error.errno != errno.EADDRINUSE:
            return errors.KernelError("bind", f"{where} port {port}/{protocol}", error.errno or errno.EIO)
        ours = self._overlapping(protocol, addresses, port)
        holder = ours.holder or "another endpoint" if ours is not None else _process_with(protocol, port)
        return errors.FailedPrecondition(
            "PORT_IN_USE",
            f"port {port}/{protocol} cannot be published at {where}: {holder or 'somebody else'} has it; "
            "publish another one, or end what has it",
            port=str(port),
            protocol=protocol,
            holder=holder,
        )


def _addresses(address: str) -> tuple[str, ...]:
    return _ALL if address == ANY_ADDRESS else (address,)


def _where(addresses: tuple[str, ...]) -> str:
    return "all addresses" if len(addresses) > 1 and all(map(_is_any, addresses)) else " and ".join(addresses)


def _is_any(address: str) -> bool:
    return address in {"0.0.0.0", "::"}  # noqa: S104  # compared, not bound


def _version(address: str) -> int:
    return 6 if ":" in address else 4


def _close(sockets: Mapping[str, socket.socket | None]) -> None:
    for sock in sockets.values():
        if sock is not None:
            sock.close()


def _bind_both(protocol: str, port: int) -> socket.socket | None:
    """Bind one socket at all addresses of both families (ipv6(7), IPV6_V6ONLY); None: they must be tried one by one."""
    kind, number = _KINDS[protocol]
    if protocol == "sctp":  # its sockets may share what they are bound to
        return None
    try:
        sock = socket.socket(socket.AF_INET6, kind, number)
    except OSError:
        return None
    try:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", port))
    except OSError:
        sock.close()
        return None
    return sock


def _bind_one(protocol: str, address: str, port: int) -> socket.socket | None:
    kind, number = _KINDS[protocol]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        sock = socket.socket(family, kind, number)
    except OSError as error:
        if error.errno in _NO_PROTOCOL:
            return None
        raise
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            sock.bind((address, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or protocol != "tcp":
                raise
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
            sock.listen(1)
            sock.shutdown(socket.SHUT_RDWR)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except BaseException:
        sock.close()
        raise
    return sock


def _make_room() -> None:
    """Let this process have as many descriptors as it may, and make room for the first thousands."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    with contextlib.suppress(OSError):
        spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        try:
            wanted = _DESCRIPTORS if soft == resource.RLIM_INFINITY else min(_DESCRIPTORS, soft) - 1
            os.close(fcntl.fcntl(spare, fcntl.F_DUPFD_CLOEXEC, wanted))
        finally:
            os.close(spare)


def _ephemeral_range() -> tuple[int, int]:
    """Return the range that the kernel itself chooses from (ip_local_port_range in ip-sysctl.rst)."""
    with contextlib.suppress(OSError, ValueError):
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        return int(low), int(high)
    return _DEFAULT_RANGE


def _reserved_ports() -> set[int]:
    with contextlib.suppress(OSError, ValueError):
        found: set[int] = set()
        for part in Path("/proc/sys/net/ipv4/ip_local_reserved_ports").read_text().strip().split(","):
            if part:
                low, _, high = part.partition("-")
                found.update(range(int(low), int(high or low) + 1))
        return found
    return set()


# --- who has a port ---


def _process_with(protocol: str, port: int) -> str:
    """Return a process that has a socket on a port, as `process 1234 (nginx)`; empty when it cannot be found."""
    inodes = {inode for table in (protocol, f"{protocol}6") for inode in _inodes(_NET / table, port)}
    if not inodes:
        return ""
    names = {f"socket:[{inode}]" for inode in inodes}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _has_any(entry / "fd", names):
            with contextlib.suppress(OSError):
                return f"process {entry.name} ({(entry / 'comm').read_text().strip()})"
    return ""


def _inodes(table: Path, port: int) -> Iterator[str]:
    """Yield the inodes of a table's sockets with that local port (proc_net_tcp.rst)."""
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:
        return
    for line in lines:
        words = line.split()
        if len(words) > 9 and int(words[1].rpartition(":")[2], 16) == port and words[9] != "0":
            yield words[9]


def _has_any(folder: Path, names: set[str]) -> bool:
    with contextlib.suppress(OSError):
        for fd in folder.iterdir():
            with contextlib.suppress(OSError):
                if str(fd.readlink()) in names:
                    return True
    return False
