"""Short words for tests of pools and leases."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from netweft_common import errors
from netweft_ipam.domain import predefined
from netweft_ipam.domain.addressing import Subnet, format_address, parse_address, parse_subnet
from netweft_ipam.domain.leases import AddressAsk, AddressReturn, Lease, LeaseFilter, Owner, OwnerKind, RequestTag
from netweft_ipam.domain.pools import PoolAsk, PoolId, parse_pool_id
from netweft_ipam.store.protocol import Store

PREDEFINED = predefined.build(
    local=predefined.DEFAULT_LOCAL, global_=predefined.DEFAULT_GLOBAL, cluster_id="test-cluster"
)


class Clock:
    """Time in ms that moves when a test says so."""

    def __init__(self, now_ms: int = 1_800_000_000_000) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms

    def advance(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)


def subnet(text: str) -> Subnet:
    return parse_subnet(text, field="subnet")


def pool_id(text: str) -> PoolId:
    return parse_pool_id(text, field="pool_id")


def tag(request_id: str, body: str = "") -> RequestTag:
    return RequestTag(request_id, hashlib.blake2b(body.encode(), digest_size=16).digest())


def ask(
    key: str,
    address: str = "",
    *,
    host: str = "",
    kind: OwnerKind = OwnerKind.ENDPOINT,
    ttl_s: int = 0,
    serial: bool = False,
) -> AddressAsk:
    number = parse_address(6 if ":" in address else 4, address, field="address") if address else None
    return AddressAsk(Owner(key, host, kind), number, ttl_s, serial)


class Desk:
    """A store, spoken to in texts.

    Args:
        store: The store.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    async def pool(self, text: str, request_id: str = "", *, labels: dict[str, str] | None = None) -> str:
        """Request the pool `<space>/<subnet>[/<range>]`, and return its id."""
        wanted = pool_id(text)
        request = PoolAsk(space=wanted.space, subnet=wanted.subnet, range=wanted.range, labels=labels or {})
        return str((await self.store.request_pool(request, tag(request_id, text) if request_id else RequestTag())).id)

    async def any_pool(
        self,
        space: str,
        *,
        size: int | None = None,
        exclude: Sequence[str] = (),
        version: int = 4,
        request_id: str = "",
    ) -> str:
        """Request a predefined pool, and return its id."""
        assert version in (4, 6)
        request = PoolAsk(
            space=space,
            choices=PREDEFINED.choices(space, 6 if version == 6 else 4, size),
            exclude=tuple(sorted(subnet(text) for text in exclude)),
        )
        return str((await self.store.request_pool(request, tag(request_id) if request_id else RequestTag())).id)

    async def drop(self, pool: str, request_id: str = "", *, infrastructure: bool = False) -> None:
        """Release a pool."""
        mark = tag(request_id, pool) if request_id else RequestTag()
        await self.store.release_pool(pool_id(pool), infrastructure=infrastructure, tag=mark)

    async def lease(self, pool: str, *asks: AddressAsk, request_id: str = "") -> list[str]:
        """Request addresses, and return each as text, or the reason why not."""
        return [told(outcome) for outcome in await self.leases(pool, *asks, request_id=request_id)]

    async def leases(
        self, pool: str, *asks: AddressAsk, request_id: str = "", body: str = ""
    ) -> list[Lease | errors.NetweftError]:
        """Request addresses."""
        mark = tag(request_id, body or repr(asks)) if request_id else RequestTag()
        return await self.store.request_addresses(pool_id(pool), asks, mark)

    async def give_back(
        self, pool: str, *returns: tuple[str, str] | tuple[str, str, int], request_id: str = ""
    ) -> list[str]:
        """Release addresses given as (address, owner's key[, epoch]); return OK or the reason for each."""
        wanted = pool_id(pool)
        items = [
            AddressReturn(parse_address(wanted.subnet.version, address, field="address"), key, *epoch)
            for address, key, *epoch in returns
        ]
        mark = tag(request_id, repr(items)) if request_id else RequestTag()
        outcomes = await self.store.release_addresses(wanted, items, mark)
        return ["OK" if outcome is None else outcome.reason for outcome in outcomes]

    async def listed(self, pool: str, *, limit: int = 1000, key: str = "", host: str = "") -> list[Lease]:
        """Return all leases of a pool, read page by page."""
        found: list[Lease] = []
        after: int | None = None
        while True:
            page = await self.store.list_leases(
                pool_id(pool), wanted=LeaseFilter(owner_key=key, host_id=host), after=after, limit=limit
            )
            assert len(page.leases.addresses) <= limit
            found += page.leases.leases(pool_id(pool))
            if page.next is None:
                return found
            after = page.next

    async def held(self, pool: str, *, limit: int = 1000, key: str = "", host: str = "") -> dict[str, str]:
        """Return address to owner's key of all leases of a pool."""
        return {text(lease): lease.owner.key for lease in await self.listed(pool, limit=limit, key=key, host=host)}


def text(lease: Lease) -> str:
    """Return a lease's address as text."""
    return format_address(lease.pool.subnet.version, lease.address)


def told(outcome: Lease | errors.NetweftError) -> str:
    """Return an outcome's address, or its reason."""
    return text(outcome) if isinstance(outcome, Lease) else outcome.reason
