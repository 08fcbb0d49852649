"""A client's call on addresses, as one store call for each pool that it names."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from netweft_common import errors

from netweft_ipam.domain.leases import AddressAsk, AddressReturn, Claim, Lease, RequestTag
from netweft_ipam.domain.pools import PoolId
from netweft_ipam.store.protocol import Store

Wish = TypeVar("Wish", AddressAsk, AddressReturn)
Outcome = TypeVar("Outcome")


class Allocator:
    """Leases over any number of pools.

    Args:
        store: Where they are kept.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def request(
        self, items: Sequence[tuple[PoolId, AddressAsk] | errors.NetweftError], tag: RequestTag
    ) -> list[Lease | errors.NetweftError]:
        """Lease addresses; an item that is an error already keeps it. Outcomes are in the order of items.

        Raises:
            AlreadyExists: The request id came with another body; nothing was done.
            Unavailable: The store does not answer, or the only pool named is not to be used now.
        """

        async def lease(pool: PoolId, asks: Sequence[AddressAsk]) -> Sequence[Lease | errors.NetweftError]:
            return await self._store.request_addresses(pool, asks, tag)

        return await self._spread(items, tag, lease)

    async def request_of(
        self, pool: PoolId, asks: Sequence[AddressAsk], tag: RequestTag
    ) -> Sequence[Lease | errors.NetweftError]:
        """Lease addresses of one pool, as `request` does it: most batches are of one.

        Raises:
            AlreadyExists: The request id came with another body; nothing was done.
            Unavailable: The store does not answer, or the pool is not to be used now.
        """
        try:
            return await self._store.request_addresses(pool, asks, tag)
        except errors.NotFound as error:
            return [error] * len(asks)

    async def release(
        self, items: Sequence[tuple[PoolId, AddressReturn] | errors.NetweftError], tag: RequestTag
    ) -> list[errors.NetweftError | None]:
        """Give addresses back; an item that is an error already keeps it. Outcomes are in the order of items.

        Raises:
            AlreadyExists: The request id came with another body; nothing was done.
            Unavailable: The store does not answer, or the only pool named is not to be used now.
        """

        async def give(pool: PoolId, returns: Sequence[AddressReturn]) -> Sequence[errors.NetweftError | None]:
            return await self._store.release_addresses(pool, returns, tag)

        return await self._spread(items, tag, give)

    async def transfer(
        self, items: Sequence[tuple[PoolId, AddressReturn] | errors.NetweftError], host_id: str, tag: RequestTag
    ) -> list[Lease | errors.NetweftError]:
        """Move leases to another host; an item that is an error already keeps it. Outcomes are in the order of items.

        Raises:
            AlreadyExists: The request id came with another body; nothing was done.
            Unavailable: The store does not answer, or the only pool named is not to be used now.
        """

        async def move(pool: PoolId, returns: Sequence[AddressReturn]) -> Sequence[Lease | errors.NetweftError]:
            return await self._store.transfer(pool, returns, host_id, tag)

        return await self._spread(items, tag, move)

    async def reassert(
        self,
        host_id: str,
        store_epoch: str,
        items: Sequence[tuple[PoolId, Claim] | errors.NetweftError],
        *,
        complete: bool,
    ) -> list[Lease | errors.NetweftError]:
        """Take back what a host holds; an item that is an error already keeps it. Outcomes are in the order of items.

        Raises:
            FailedPrecondition: The store has another epoch; nothing was done.
        """
        claims: dict[PoolId, list[Claim]] = {}
        for item in items:
            if not isinstance(item, errors.NetweftError):
                claims.setdefault(item[0], []).append(item[1])
        found = await self._store.reassert(host_id, store_epoch, claims, complete=complete)
        ready = {pool: iter(outcomes) for pool, outcomes in found.items()}
        return [item if isinstance(item, errors.NetweftError) else next(ready[item[0]]) for item in items]

    async def _spread(
        self,
        items: Sequence[tuple[PoolId, Wish] | errors.NetweftError],
        tag: RequestTag,
        act: Callable[[PoolId, Sequence[Wish]], Awaitable[Sequence[Outcome | errors.NetweftError]]],
    ) -> list[Outcome | errors.NetweftError]:
        pools: dict[PoolId, list[Wish]] = {}
        last: PoolId | None = None
        wishes: list[Wish] = []
        for item in items:
            if isinstance(item, errors.NetweftError):
                continue
            # Most batches are of one pool, and the identity of an object is quicker than the hash of a pool id.
            if item[0] is not last:
                last = item[0]
                wishes = pools.setdefault(last, [])
            wishes.append(item[1])
        if len(pools) == 1 and len(items) == len(next(iter(pools.values()))):
            [(pool, wishes)] = pools.items()
            try:
                return list(await act(pool, wishes))
            except errors.NotFound as error:
                return [error] * len(wishes)
        if tag.id and len(pools) > 1:
            # With one pool its own script looks; with several none may act before all have looked.
            await asyncio.gather(*(self._store.check_tag(pool, tag) for pool in pools))
        answers = await asyncio.gather(*(_settle(act, pool, wishes) for pool, wishes in pools.items()))
        ready = dict(zip(pools, map(iter, answers), strict=True))
        return [item if isinstance(item, errors.NetweftError) else next(ready[item[0]]) for item in items]


async def _settle(
    act: Callable[[PoolId, Sequence[Wish]], Awaitable[Sequence[Outcome | errors.NetweftError]]],
    pool: PoolId,
    wishes: Sequence[Wish],
) -> Iterable[Outcome | errors.NetweftError]:
    """Act on one pool of several: what it cannot do now is told for its items, since others may have been done."""
    try:
        return await act(pool, wishes)
    except (errors.NotFound, errors.Unavailable) as error:
        return [error] * len(wishes)
