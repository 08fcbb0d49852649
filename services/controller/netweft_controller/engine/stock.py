"""Addresses leased ahead, so that a caller who attaches one endpoint after the other does not wait for IPAM each time.

What is held is a lease like any other. Its owner is the id of an endpoint that is yet to be made, and the attach that
takes it makes the endpoint of that id, so nothing has to be handed over later. A lease whose endpoint is never made is
what a crash between lease and commit leaves, and goes back the same way: the reconciler of any controller buries the
owner, which refuses the record of that endpoint from then on, and returns the lease.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
import uuid
from collections.abc import Callable, Iterable

import msgspec
from netweft_common import deadline, errors, logs

from netweft_controller.clients.ipam import Ask, Ipam, Release, releases_of
from netweft_controller.domain import stock
from netweft_controller.domain.endpoints import Placement
from netweft_controller.domain.objects import Lease
from netweft_controller.sync.replica import Replica

_log = logs.get()
_FILL_S = 5.0
_END_S = 1.0

_Key = tuple[str, str]  # network id, host id


class Ahead(msgspec.Struct, frozen=True, kw_only=True):
    """The addresses of one endpoint that is yet to be made.

    Attributes:
        endpoint_id: Owner of the leases, and id that the endpoint must have.
        leases: One for each of its wants, in their order.
        asked_s: When they were asked for, monotonic seconds.
    """

    endpoint_id: str
    leases: tuple[Lease, ...]
    asked_s: float


class _Shelf:
    """What is held for one host and network."""

    def __init__(self, pool_ids: tuple[str, ...]) -> None:
        self.pool_ids = pool_ids
        self.held: collections.deque[Ahead] = collections.deque()
        self.uses: collections.deque[float] = collections.deque(maxlen=stock.HOT_USES)


class Stock:
    """Addresses leased ahead.

    Args:
        replica: How full networks are.
        ipam: Where they come from.
        level: Held at most for one host and network; 0: none.
        max_age_s: Age at which what was not used goes back, in seconds; far below the age at which a reconciler
            returns leases without records.
        monotonic: Clock in seconds.
    """

    def __init__(
        self,
        *,
        replica: Replica,
        ipam: Ipam,
        level: int,
        max_age_s: float = stock.MAX_AGE_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_age_s = max_age_s
        self._level = level
        self._replica = replica
        self._ipam = ipam
        self._monotonic = monotonic
        self._shelves: dict[_Key, _Shelf] = {}
        self._unused: list[Ahead] = []
        self._wake = asyncio.Event()
        self.busy = False
        """Whether it is filled or cleared at the moment."""

    @property
    def held(self) -> int:
        """How many endpoints' addresses are held."""
        return sum(len(shelf.held) for shelf in self._shelves.values()) + len(self._unused)

    def take(self, placement: Placement) -> Ahead | None:
        """Return addresses for an endpoint that takes any; None: it must ask for its own."""
        if not self._level:
            return None
        key = (placement.endpoint.network_id, placement.endpoint.host_id)
        pool_ids = tuple(want.pools[0] for want in placement.wants)
        shelf = self._shelves.get(key)
        if shelf is None or shelf.pool_ids != pool_ids:
            self._clear(shelf)
            shelf = self._shelves[key] = _Shelf(pool_ids)
        now_s = self._monotonic()
        shelf.uses.append(now_s)
        found: Ahead | None = None
        while shelf.held and found is None:
            one = shelf.held.popleft()
            if now_s - one.asked_s < self._max_age_s:
                found = one
            else:
                self._unused.append(one)
        if len(shelf.held) <= self._level // 2 and stock.is_hot(shelf.uses, now_s):
            self._wake.set()
        return found

    def put_back(self, ahead: Ahead) -> None:
        """Give back what was taken and is in no record."""
        self._unused.append(ahead)
        self._wake.set()

    async def run(self) -> None:
        """Fill and clear until cancelled; what is left is given back then."""
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._max_age_s / 3 if self._shelves or self._unused else None):
                        await self._wake.wait()
                self._wake.clear()
                self.busy = True
                deadline.set_remaining(_FILL_S)
                await self._work()
                self.busy = False
        finally:
            # A courtesy: the reconciler of any controller would find them.
            for shelf in self._shelves.values():
                self._clear(shelf)
            with contextlib.suppress(errors.NetweftError, TimeoutError):
                async with asyncio.timeout(_END_S):
                    deadline.set_remaining(_END_S)
                    await self._return_unused()

    async def _work(self) -> None:
        try:
            for key, shelf in list(self._shelves.items()):
                self._drop_old(key, shelf)
                wanted = self._shortage(key, shelf)
                if wanted:
                    await self._fill(key, shelf, wanted)
            await self._return_unused()
        except errors.NetweftError as error:
            # Attaches ask for themselves; what may have been granted has no record, and the reconciler finds it.
            _log.info("no addresses leased ahead", reason=error.reason, error=error.message)
            for shelf in self._shelves.values():
                shelf.uses.clear()

    def _drop_old(self, key: _Key, shelf: _Shelf) -> None:
        now_s = self._monotonic()
        gone = not self._replica.is_loaded or key[0] not in self._replica.state.networks
        while shelf.held and (gone or now_s - shelf.held[0].asked_s >= self._max_age_s):
            self._unused.append(shelf.held.popleft())
        if not shelf.held and not any(now_s - one <= stock.HOT_S for one in shelf.uses):
            del self._shelves[key]

    def _shortage(self, key: _Key, shelf: _Shelf) -> int:
        if len(shelf.held) > self._level // 2 or not stock.is_hot(shelf.uses, self._monotonic()):
            return 0
        network = self._replica.state.networks.get(key[0])
        if network is None:
            return 0
        elsewhere = sum(
            len(other.held) for of, other in self._shelves.items() if of[0] == key[0] and other is not shelf
        )
        room = stock.room(network.value, self._replica.state.endpoint_count(key[0]), shelf.pool_ids) - elsewhere
        return max(0, min(self._level, room) - len(shelf.held))

    async def _fill(self, key: _Key, shelf: _Shelf, count: int) -> None:
        asked_s = self._monotonic()
        ids = [uuid.uuid4().hex for _ in range(count)]
        asks = [Ask(pool_id, "", id_, key[1]) for id_ in ids for pool_id in shelf.pool_ids]
        answers = await self._ipam.request_addresses(asks, request_id=uuid.uuid4().hex)
        each = len(shelf.pool_ids)
        for place, id_ in enumerate(ids):
            part = answers[place * each : (place + 1) * each]
            leases = tuple(answer for answer in part if isinstance(answer, Lease))
            ahead = Ahead(endpoint_id=id_, leases=leases, asked_s=asked_s)
            if len(leases) == each:
                shelf.held.append(ahead)
            elif leases:
                self._unused.append(ahead)
        if not shelf.held:
            shelf.uses.clear()  # a full pool: not worth asking again at once

    def _clear(self, shelf: _Shelf | None) -> None:
        if shelf is not None:
            self._unused += shelf.held
            shelf.held.clear()

    async def _return_unused(self) -> None:
        if self._unused:
            unused, self._unused = self._unused, []
            await self._ipam.release_addresses(list(_releases(unused)))


def _releases(unused: Iterable[Ahead]) -> Iterable[Release]:
    for one in unused:
        yield from releases_of(one.endpoint_id, one.leases)
