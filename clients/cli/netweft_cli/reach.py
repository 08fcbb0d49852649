"""Who reaches whom: real ICMP echo (RFC 792, RFC 4443) from inside network namespaces.

A raw socket stays in the namespace of the thread that made it, so one loop in one thread asks for any number of
pairs at once, and no `ping` program is needed. Needs CAP_NET_RAW in the source's namespace.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import itertools
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from netweft_cli import netns

DEFAULT_TIMEOUT_S = 1.0
RETRY_S = 0.25
"""An echo that went out while ARP was still being asked may be lost; the next one is not."""

_IDENTS = itertools.count(os.getpid())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A question: from a namespace (None: the caller's own) to an address."""

    source: Path | None
    destination: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What a pinger saw. Sent and lost are echoes; the gap is the longest time without any answer."""

    sent: int
    lost: int
    longest_gap_s: float


def reach(source: Path | None, destination: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> bool:
    """Whether an address answers an echo from inside a namespace within the time."""
    pair = Pair(source=source, destination=destination)
    return reach_all([pair], timeout_s=timeout_s)[pair] is not None


def reach_all(pairs: Iterable[Pair], *, timeout_s: float = DEFAULT_TIMEOUT_S) -> dict[Pair, float | None]:
    """Ask all pairs at once, again every 250 ms while there is no answer.

    Returns:
        Seconds from the last question to its answer, or None where there was none within the time.

    Raises:
        NotFound: A source is no namespace.
        InvalidArgument: A destination is no address.
        PermissionError: No CAP_NET_RAW.
    """
    asked = list(dict.fromkeys(pairs))
    answers: dict[Pair, float | None] = dict.fromkeys(asked)
    sent: dict[_Key, tuple[Pair, float]] = {}
    with _Echoes() as echoes:
        ends = time.monotonic() + timeout_s
        while (now := time.monotonic()) < ends and (missing := [pair for pair in asked if answers[pair] is None]):
            sent |= {echoes.send(pair): (pair, time.monotonic()) for pair in missing}
            for key in echoes.receive(min(now + RETRY_S, ends), expected=len(missing)):
                # Echoes that waited for ARP are answered late, and all at once.
                pair, sent_at = sent[key]
                answers[pair] = time.monotonic() - sent_at
    return answers


class Pinger:
    """Ask one pair in steady beat from a thread of its own, to see what an interruption costs.

    with Pinger(pair, interval_s=0.01) as pinger: ...
    pinger.loss
    """

    def __init__(self, pair: Pair, *, interval_s: float = 0.01, patience_s: float = 1.0) -> None:
        self._pair = pair
        self._interval_s = interval_s
        self._patience_s = patience_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pinger")
        self._sent: dict[_Key, float] = {}
        self._answered: dict[_Key, float] = {}
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop asking, and wait for the last answers."""
        self._stop.set()
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure

    @property
    def sent(self) -> int:
        """How many echoes were asked for so far."""
        return len(self._sent)

    @property
    def loss(self) -> Loss:
        """What was seen; complete once the context is left."""
        answers = sorted(self._answered.values())
        gaps = [later - earlier for earlier, later in itertools.pairwise(answers)]
        return Loss(
            sent=len(self._sent),
            lost=len(self._sent) - len(self._answered),
            longest_gap_s=max(gaps, default=float("inf")),
        )

    def _run(self) -> None:
        try:
            with _Echoes() as echoes:
                due = time.monotonic()
                while not self._stop.is_set():
                    self._sent[echoes.send(self._pair)] = due
                    # A beat that was missed is not made up for: the answers to a burst would overflow the socket, and
                    # look like a loss.
                    due = max(due + self._interval_s, time.monotonic() + self._interval_s / 2)
                    self._collect(echoes, due, expected=None)
                missing = len(self._sent) - len(self._answered)
                self._collect(echoes, time.monotonic() + self._patience_s, expected=missing)
        except BaseException as error:  # noqa: BLE001  # raised where the context is left
            self._failure = error

    def _collect(self, echoes: _Echoes, until: float, *, expected: int | None) -> None:
        for key in echoes.receive(until, expected=expected):
            if key in self._sent:
                self._answered.setdefault(key, time.monotonic())


_Key = tuple[Path | None, int, int]
"""Source, IP version, sequence number; the number wraps at 65,536, far beyond what is under way at once."""


class _Echoes:
    """Raw ICMP sockets, one for each namespace and IP version, and one loop over them."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._sockets: dict[tuple[Path | None, int], socket.socket] = {}
        self._ident = next(_IDENTS) & 0xFFFF
        self._sequence = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._selector.close()
        for sock in self._sockets.values():
            sock.close()

    def send(self, pair: Pair) -> _Key:
        """Send one echo and return what its answer will be known by; one that cannot be sent gets no answer."""
        address = ipaddress.ip_address(pair.destination)
        sequence = next(self._sequence) & 0xFFFF
        # No route, no neighbour, or refused by a rule on the way out: that is an answer too, and it is no.
        with contextlib.suppress(OSError):
            self._socket(pair.source, address.version).sendto(
                _request(address.version, self._ident, sequence), (str(address), 0)
            )
        return pair.source, address.version, sequence

    def receive(self, until: float, *, expected: int | None) -> Iterator[_Key]:
        """Yield answers until a moment of the monotonic clock, or until as many as expected have come."""
        seen: set[_Key] = set()
        while (left_s := until - time.monotonic()) > 0 and (expected is None or len(seen) < expected):
            for ready, _ in self._selector.select(left_s):
                source, version = ready.data
                try:
                    data = self._sockets[source, version].recv(2048)
                except OSError:  # an ICMP error that came back
                    continue
                sequence = _reply(version, data, self._ident)
                if sequence is not None and (key := (source, version, sequence)) not in seen:
                    seen.add(key)
                    yield key

    def _socket(self, source: Path | None, version: int) -> socket.socket:
        if (source, version) not in self._sockets:
            sock = netns.call(source, lambda: _open(version))
            self._sockets[source, version] = sock
            self._selector.register(sock, selectors.EVENT_READ, (source, version))
        return self._sockets[source, version]


def _open(version: int) -> socket.socket:
    if version == 4:
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMP)
    else:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMPV6)
    sock.setblocking(False)  # noqa: FBT003  # the standard library's
    return sock


def _request(version: int, ident: int, sequence: int) -> bytes:
    """Return an echo request; the kernel fills in ICMPv6's checksum (RFC 3542 §3.1), ICMP's is ours."""
    body = b"netweft!" * 4
    kind = 8 if version == 4 else 128
    blank = struct.pack("!BBHHH", kind, 0, 0, ident, sequence) + body
    return struct.pack("!BBHHH", kind, 0, _checksum(blank) if version == 4 else 0, ident, sequence) + body


def _reply(version: int, data: bytes, ident: int) -> int | None:
    """Return the sequence number of an echo reply to us; a raw ICMPv4 socket hands over the IP header too."""
    icmp = data[(data[0] & 0xF) * 4 :] if version == 4 and data else data
    if len(icmp) < 8:
        return None
    kind, its_ident, sequence = map(int, struct.unpack_from("!BxxxHH", icmp))
    return sequence if kind == (0 if version == 4 else 129) and its_ident == ident else None


def _checksum(data: bytes) -> int:
    """Return the internet checksum of RFC 1071 over an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
