"""The null address space in front of a store: nothing of it is kept, so any number of networks share its pools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from netweft_common import errors

from netweft_ipam.domain import nullspace, refusals
from netweft_ipam.domain.leases import (
    AddressAsk,
    AddressReturn,
    Lease,
    LeaseColumns,
    LeaseEvent,
    LeaseFilter,
    RequestTag,
)
from netweft_ipam.domain.pools import Pool, PoolAsk, PoolId
from netweft_ipam.store.protocol import LeasePage, Store


class NullSpaceStore:
    """A store that answers for the null space itself, and hands everything else on.

    Args:
        store: The store for all other spaces.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        """Hand on what the null space has no answer of its own for; it has no pools that the store would know."""
        return getattr(self._store, name)

    async def request_pool(self, ask: PoolAsk, tag: RequestTag) -> Pool:
        """See Store."""
        if ask.space != nullspace.SPACE:
            return await self._store.request_pool(ask, tag)
        assert ask.subnet is not None
        return _pool(PoolId(ask.space, ask.subnet))

    async def release_pool(self, pool: PoolId, *, infrastructure: bool, tag: RequestTag) -> None:
        """See Store."""
        if pool.space != nullspace.SPACE:
            await self._store.release_pool(pool, infrastructure=infrastructure, tag=tag)
            return
        _check(pool)

    async def get_pool(self, pool: PoolId) -> Pool:
        """See Store."""
        if pool.space != nullspace.SPACE:
            return await self._store.get_pool(pool)
        return _pool(_check(pool))

    async def request_addresses(
        self, pool: PoolId, asks: Sequence[AddressAsk], tag: RequestTag
    ) -> list[Lease | errors.NetweftError]:
        """See Store."""
        if pool.space != nullspace.SPACE:
            return await self._store.request_addresses(pool, asks, tag)
        _check(pool)
        return [Lease(pool, 0, ask.owner, 0, 0) for ask in asks]

    async def release_addresses(
        self, pool: PoolId, returns: Sequence[AddressReturn], tag: RequestTag
    ) -> list[errors.NetweftError | None]:
        """See Store."""
        if pool.space != nullspace.SPACE:
            return await self._store.release_addresses(pool, returns, tag)
        _check(pool)
        return [None] * len(returns)

    async def transfer(
        self, pool: PoolId, returns: Sequence[AddressReturn], host_id: str, tag: RequestTag
    ) -> list[Lease | errors.NetweftError]:
        """See Store."""
        if pool.space != nullspace.SPACE:
            return await self._store.transfer(pool, returns, host_id, tag)
        _check(pool)
        return [refusals.not_leased(pool, each.address) for each in returns]

    async def list_leases(self, pool: PoolId, *, wanted: LeaseFilter, after: int | None, limit: int) -> LeasePage:
        """See Store."""
        if pool.space != nullspace.SPACE:
            return await self._store.list_leases(pool, wanted=wanted, after=after, limit=limit)
        _check(pool)
        return LeasePage(LeaseColumns(), None)

    async def list_events(
        self, pool: PoolId, *, address: int | None, before: str, limit: int
    ) -> tuple[list[LeaseEvent], str]:
        """See Store."""
        if pool.space != nullspace.SPACE:
            return await self._store.list_events(pool, address=address, before=before, limit=limit)
        _check(pool)
        return [], ""

    async def read_events(self, pool: PoolId, *, after: str, limit: int) -> list[LeaseEvent]:
        """See Store."""
        if pool.space != nullspace.SPACE:
            return await self._store.read_events(pool, after=after, limit=limit)
        _check(pool)
        return []


def _pool(pool: PoolId) -> Pool:
    return Pool(id=pool, labels={}, created_ms=0)


def _check(pool: PoolId) -> PoolId:
    if not nullspace.is_pool(pool):
        raise refusals.pool_unknown(pool)
    return pool
