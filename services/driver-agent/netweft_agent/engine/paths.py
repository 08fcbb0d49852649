"""Watch the underlay: its own MTU, which overlays follow, and whether the ways to other hosts carry what is promised.

A way that is too narrow loses large packets and nothing else: connections open and then hang, and no device says so.
Each tunnel end is asked when the host gets to know it, and seldom from then on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import msgspec
import structlog
from netweft_common.errors import NetweftError

from netweft_agent.domain.objects import Kind, Network
from netweft_agent.drivers import overlay
from netweft_agent.engine.engine import Engine
from netweft_agent.engine.journal import Position

log = structlog.get_logger(__name__)

TICK_S = 10.0
"""Longest time until a new tunnel end is noticed, or another MTU."""
MENDING = 10
"""A narrow way is asked so many times as often as others: somebody may be at work on it."""
MOST = 256
"""Narrow ways that are told."""

Measure = Callable[[str, Mapping[str, int]], Mapping[str, int]]
"""Is given our tunnel address and sizes by tunnel address; returns what narrow ways carry, see kernel/paths.py."""


class NarrowPath(msgspec.Struct, frozen=True, kw_only=True):
    """A way to another host that carries less than overlays promise; sizes of underlay packets in bytes."""

    host_id: str
    vtep: str
    mtu_bytes: int
    needed_bytes: int


class _Wanted(msgspec.Struct, frozen=True, kw_only=True):
    host_id: str
    needed_bytes: int


class _Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a way carries: `mtu_bytes` is 0 where it is wide enough, as far as is known."""

    at_s: float
    wanted: _Wanted
    mtu_bytes: int


class PathWatch:
    """Watches for one engine.

    Args:
        engine: Its peers are asked.
        measure: Asks; called in a thread.
        underlay_mtu: Returns the MTU of the interface that holds the tunnel address; None: it is not known now.
        interval_s: How often each way is asked.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        engine: Engine,
        measure: Measure,
        underlay_mtu: Callable[[], int | None],
        *,
        interval_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._measure = measure
        self._underlay_mtu = underlay_mtu
        self._interval_s = interval_s
        self._clock = clock
        self._measured: dict[str, _Measured] = {}
        self._seen: Position | None = None
        self._wanted: dict[str, _Wanted] = {}
        self.narrow: tuple[NarrowPath, ...] = ()
        """Ways that are known to be narrow, by host id."""
        self.on_mtu: Callable[[int], None] = lambda _: None
        """Told the underlay's MTU when it is another."""

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                await self.look()
            except NetweftError as error:
                log.warning("underlay not looked at", error=str(error))
            await asyncio.sleep(min(TICK_S, self._interval_s))

    async def look(self) -> None:
        """Follow the underlay's MTU, and ask the ways whose turn it is.

        Raises:
            NetweftError: The engine did not take the MTU.
        """
        mtu = self._underlay_mtu()
        facts = self._engine.facts
        if mtu is not None and mtu != facts.underlay_mtu:
            log.warning("the underlay has another MTU", was=facts.underlay_mtu, mtu=mtu)
            await self._engine.follow_underlay(mtu)
            self.on_mtu(mtu)
            self._seen = None
        self._note_wanted()
        now = self._clock()
        due = {vtep: one for vtep, one in self._wanted.items() if self._is_due(vtep, one, now)}
        if due:
            sizes = {vtep: one.needed_bytes for vtep, one in due.items()}
            carried = await asyncio.to_thread(self._measure, self._engine.facts.vtep, sizes)
            for vtep, one in due.items():
                self._measured[vtep] = _Measured(at_s=now, wanted=one, mtu_bytes=carried.get(vtep, 0))
        self._tell()

    def _is_due(self, vtep: str, wanted: _Wanted, now: float) -> bool:
        last = self._measured.get(vtep)
        if last is None or last.wanted != wanted:
            return True
        return now - last.at_s >= (self._interval_s / MENDING if last.mtu_bytes else self._interval_s)

    def _note_wanted(self) -> None:
        if self._engine.position == self._seen:
            return
        self._seen = self._engine.position
        store, facts = self._engine.store, self._engine.facts
        self._wanted = {}
        for network in store.of_kind(Kind.NETWORK):
            if not isinstance(network, Network) or network.driver != overlay.OverlayDriver.name:
                continue
            try:
                needed = overlay.mtu_of(network, facts) + overlay.overhead(facts)
            except NetweftError:
                continue  # its options are told of where it is rendered
            for peer in store.peers_of_network(network.id):
                known = self._wanted.get(peer.vtep)
                if peer.vtep and (known is None or known.needed_bytes < needed):
                    self._wanted[peer.vtep] = _Wanted(host_id=peer.host_id, needed_bytes=needed)
        self._measured = {vtep: one for vtep, one in self._measured.items() if vtep in self._wanted}

    def _tell(self) -> None:
        found = [
            NarrowPath(
                host_id=one.wanted.host_id, vtep=vtep, mtu_bytes=one.mtu_bytes, needed_bytes=one.wanted.needed_bytes
            )
            for vtep, one in self._measured.items()
            if one.mtu_bytes
        ]
        narrow = tuple(sorted(found, key=lambda one: (one.host_id, one.vtep))[:MOST])
        for path in narrow:
            if path not in self.narrow:
                log.warning(
                    "the way to a host carries less than is promised: raise its MTU, or lower the networks'",
                    host_id=path.host_id,
                    vtep=path.vtep,
                    mtu=path.mtu_bytes,
                    needed=path.needed_bytes,
                )
        for vtep in {one.vtep for one in self.narrow} - {one.vtep for one in narrow}:
            log.info("the way to a host is wide enough, or of no account", vtep=vtep)
        self.narrow = narrow
