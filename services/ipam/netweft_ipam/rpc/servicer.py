"""IpamService: each method reads a request, asks the store, writes the answer."""

# ruff: noqa: N802, ARG002  # names and parameters are the contract's
from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message
from netweft.ipam.v1 import ipam_pb2, ipam_pb2_grpc
from netweft_common import errors, exchange, identity, status
from netweft_common.pace import Pace

from netweft_ipam.domain import pools
from netweft_ipam.domain.leases import AddressAsk, AddressReturn, Claim, Lease, RequestTag
from netweft_ipam.domain.pools import PoolId
from netweft_ipam.domain.predefined import Predefined
from netweft_ipam.engine.allocator import Allocator
from netweft_ipam.engine.figures import LeaseMetrics
from netweft_ipam.engine.gate import Gate
from netweft_ipam.rpc import convert, leasewire, limits
from netweft_ipam.store.protocol import BEFORE_ALL, Store

Context = Any  # grpc.aio.ServicerContext, generic in request and response; nothing here uses it
Results = TypeVar(
    "Results", ipam_pb2.RequestAddressesResponse, ipam_pb2.ReassertLeasesResponse, ipam_pb2.TransferLeasesResponse
)

# Polled, so that a thousand watchers need no thousand connections to the store.
_WATCH_INTERVAL_S = 0.25
_WATCH_EVENTS = 1000
# The ids that agents give their hosts: a certificate of such a name is that host's, and no word for another.
_OWN_ID = re.compile(r"[0-9a-f]{32}")


class IpamServicer(ipam_pb2_grpc.IpamServiceServicer):
    """The service; it raises NetweftError, and the server's interceptor makes a status of it.

    Args:
        store: Where pools and leases are kept.
        predefined: Where pools come from when nobody names a subnet.
        metrics: Where outcomes are counted; None: nowhere.
        gate: Who is told which hosts there are; None: one of its own.
        pace: How often hosts are to speak; None: as they like.
    """

    def __init__(
        self,
        store: Store,
        predefined: Predefined,
        metrics: LeaseMetrics | None = None,
        gate: Gate | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._metrics = metrics
        self._pace = pace if pace is not None else Pace(0)
        self._gate = gate if gate is not None else Gate(store)
        self._store = store
        self._allocator = Allocator(store)
        self._predefined = predefined
        # Which agent's certificate is of which host, where it names the host by another word than its id.
        self._agents: dict[str, str] = {}

    async def GetDefaultAddressSpaces(
        self, request: ipam_pb2.GetDefaultAddressSpacesRequest, context: Context
    ) -> ipam_pb2.GetDefaultAddressSpacesResponse:
        """Name the default address spaces."""
        return ipam_pb2.GetDefaultAddressSpacesResponse(local=pools.LOCAL_DEFAULT, **{"global": pools.GLOBAL_DEFAULT})

    async def RequestPool(self, request: ipam_pb2.RequestPoolRequest, context: Context) -> ipam_pb2.RequestPoolResponse:
        """Reserve a pool."""
        ask = convert.pool_ask(request, self._predefined)
        pool = await self._store.request_pool(ask, _tag(request, request.request_id))
        return ipam_pb2.RequestPoolResponse(pool=convert.to_pool(pool))

    async def ReleasePool(self, request: ipam_pb2.ReleasePoolRequest, context: Context) -> ipam_pb2.ReleasePoolResponse:
        """Give a pool back."""
        pool = convert.pool_id(request.pool_id)
        await self._store.release_pool(
            pool, infrastructure=request.release_infrastructure, tag=_tag(request, request.request_id)
        )
        return ipam_pb2.ReleasePoolResponse()

    async def GetPool(self, request: ipam_pb2.GetPoolRequest, context: Context) -> ipam_pb2.GetPoolResponse:
        """Return one pool."""
        pool = await self._store.get_pool(convert.pool_id(request.pool_id))
        return ipam_pb2.GetPoolResponse(pool=convert.to_pool(pool))

    async def ListPools(self, request: ipam_pb2.ListPoolsRequest, context: Context) -> ipam_pb2.ListPoolsResponse:
        """Return a page of pools."""
        space = request.address_space and pools.check_space(request.address_space, field="address_space")
        limit = convert.page_limit(request.page_size, of_leases=False)
        page = await self._store.list_pools(space=space, start=convert.pool_start(request.page_token), limit=limit)
        return ipam_pb2.ListPoolsResponse(
            pools=[convert.to_pool(pool) for pool in page.pools],
            next_page_token=convert.to_token(str(page.next)) if page.next is not None else "",
        )

    async def RequestAddresses(
        self, request: ipam_pb2.RequestAddressesRequest, context: Context
    ) -> ipam_pb2.RequestAddressesResponse:
        """Lease addresses; an item's failure is told with the item."""
        limits.check_batch(len(request.items), field="items")
        tag = _tag(request, request.request_id)
        plain = convert.plain_asks(request.items)
        if plain is not None:
            outcomes = await self._allocator.request_of(*plain, tag)
        else:
            outcomes = await self._allocator.request(_asks(request.items), tag)
        if self._metrics is not None:
            self._metrics.requested(outcomes)
        return leasewire.granted(outcomes) or _fill(ipam_pb2.RequestAddressesResponse(), outcomes)

    async def ReleaseAddresses(
        self, request: ipam_pb2.ReleaseAddressesRequest, context: Context
    ) -> ipam_pb2.ReleaseAddressesResponse:
        """Give addresses back; an item's failure is told with the item."""
        limits.check_batch(len(request.items), field="items")
        tag = _tag(request, request.request_id)
        items = _returns(request.items)
        outcomes = await self._allocator.release(items, tag)
        return ipam_pb2.ReleaseAddressesResponse(results=[status.to_item_status(outcome) for outcome in outcomes])

    def AddressStream(self, requests: Any, context: Any) -> Any:
        """Lease and release, over a stream."""
        methods: exchange.Methods = {"request": self.RequestAddresses, "release": self.ReleaseAddresses}
        return exchange.serve(requests, context, ipam_pb2.AddressStreamResponse, methods)

    async def RenewLeases(self, request: ipam_pb2.RenewLeasesRequest, context: Context) -> ipam_pb2.RenewLeasesResponse:
        """Renew all leases of a host, or note that it lives. Idempotent by nature: the request id is only checked."""
        limits.check_request_id(request.request_id)
        host_id = await self._own_host(request.host_id)
        silent_ms = self._pace.silent_ms(host_id)
        speak = self._store.beat_host if request.alive_only else self._store.renew_host
        renewal = await speak(host_id, silent_ms=silent_ms)
        return ipam_pb2.RenewLeasesResponse(
            renewed=renewal.renewed,
            store_epoch=renewal.store_epoch,
            reassert=renewal.reassert,
            silent_ms=silent_ms,
        )

    def RenewStream(self, requests: Any, context: Any) -> Any:
        """Renew, over a stream."""
        return exchange.serve(requests, context, ipam_pb2.RenewStreamResponse, {"renew": self.RenewLeases})

    async def ReassertLeases(
        self, request: ipam_pb2.ReassertLeasesRequest, context: Context
    ) -> ipam_pb2.ReassertLeasesResponse:
        """Take back what a host holds. Idempotent."""
        host_id = await self._own_host(request.host_id)
        if request.leases:
            limits.check_batch(len(request.leases), field="leases")
        items: list[tuple[PoolId, Claim] | errors.NetweftError] = []
        for index, lease in enumerate(request.leases):
            try:
                items.append(convert.claim(index, lease, host_id))
            except errors.InvalidArgument as error:
                items.append(error)
        outcomes = await self._allocator.reassert(host_id, request.store_epoch, items, complete=not request.more)
        return _fill(ipam_pb2.ReassertLeasesResponse(), outcomes)

    async def TransferLeases(
        self, request: ipam_pb2.TransferLeasesRequest, context: Context
    ) -> ipam_pb2.TransferLeasesResponse:
        """Move leases to another host; an item's failure is told with the item."""
        limits.check_batch(len(request.items), field="items")
        host_id = await self._own_host(request.host_id)
        items = _returns(request.items)
        outcomes = await self._allocator.transfer(items, host_id, _tag(request, request.request_id))
        return _fill(ipam_pb2.TransferLeasesResponse(), outcomes)

    async def SetHosts(self, request: ipam_pb2.SetHostsRequest, context: Context) -> ipam_pb2.SetHostsResponse:
        """Take note of which hosts there are."""
        await self._gate.set(convert.roster(request))
        return ipam_pb2.SetHostsResponse()

    async def LookupAddress(
        self, request: ipam_pb2.LookupAddressRequest, context: Context
    ) -> ipam_pb2.LookupAddressResponse:
        """Say who has an address."""
        space = pools.check_space(request.address_space, field="address_space")
        lease = await self._store.lookup(space, convert.single(request.address, field="address"))
        response = ipam_pb2.LookupAddressResponse()
        convert.LeaseWriter().write(lease, response.lease)
        return response

    async def ListLeaseEvents(
        self, request: ipam_pb2.ListLeaseEventsRequest, context: Context
    ) -> ipam_pb2.ListLeaseEventsResponse:
        """Return a page of a pool's history."""
        pool = convert.pool_id(request.pool_id)
        events, before = await self._store.list_events(
            pool,
            address=convert.address_of(pool, request.address, field="address") if request.address else None,
            before=convert.event_id(convert.from_token(request.page_token), field="page_token"),
            limit=convert.page_limit(request.page_size, of_leases=False),
        )
        return ipam_pb2.ListLeaseEventsResponse(
            events=[convert.to_event(pool, event) for event in events],
            next_page_token=convert.to_token(before) if before else "",
        )

    async def WatchLeases(
        self, request: ipam_pb2.WatchLeasesRequest, context: Context
    ) -> AsyncIterator[ipam_pb2.WatchLeasesResponse]:
        """Stream a pool's history as it goes on."""
        pool = convert.pool_id(request.pool_id)
        after = convert.event_id(request.after_id, field="after_id")
        if not after:
            after = next((event.id for event in await self._store.read_events(pool, after="", limit=1)), BEFORE_ALL)
        while True:
            events = await self._store.read_events(pool, after=after, limit=_WATCH_EVENTS)
            if events:
                after = events[-1].id
                yield ipam_pb2.WatchLeasesResponse(events=[convert.to_event(pool, event) for event in events])
            else:
                await asyncio.sleep(_WATCH_INTERVAL_S)

    async def ListLeases(self, request: ipam_pb2.ListLeasesRequest, context: Context) -> Any:
        """Return a page of leases, as the bytes of its message."""
        pool = convert.pool_id(request.pool_id)
        page = await self._store.list_leases(
            pool,
            wanted=convert.lease_filter(request),
            after=convert.lease_after(request.page_token, pool),
            limit=convert.page_limit(request.page_size, of_leases=True),
        )
        token = convert.to_token(f"{page.next:x}") if page.next is not None else ""
        return leasewire.listed(pool, page.leases, next_page_token=token)

    async def _own_host(self, text: str) -> str:
        """Return a host's id for which the caller may speak.

        An agent's certificate names the host's id, or else its name. Which name belongs to an id is taken from the
        first agent that comes with it, as the controller takes it at the first registration.

        Raises:
            InvalidArgument: It is none.
            PermissionDenied: The caller is another host's agent.
        """
        host_id = limits.check_host_id(text, field="host_id", required=True)
        caller = identity.current()
        if caller.role is identity.Role.AGENT and caller.name != host_id:
            name = self._agents.get(host_id)
            if name is None and not _OWN_ID.fullmatch(caller.name):
                name = self._agents[host_id] = await self._store.bind_agent(host_id, caller.name)
            identity.require_self(host_id, name or host_id)
        return host_id


def _tag(request: Message, request_id: str) -> RequestTag:
    if not request_id:
        return RequestTag()
    limits.check_request_id(request_id)
    body = type(request).__name__.encode() + request.SerializeToString(deterministic=True)
    return RequestTag(request_id, hashlib.blake2b(body, digest_size=16).digest())


def _asks(items: Sequence[ipam_pb2.AddressRequest]) -> list[tuple[PoolId, AddressAsk] | errors.NetweftError]:
    found: list[tuple[PoolId, AddressAsk] | errors.NetweftError] = []
    for index, item in enumerate(items):
        try:
            found.append(convert.address_ask(index, item))
        except errors.InvalidArgument as error:
            found.append(error)
    return found


def _returns(items: Sequence[ipam_pb2.AddressRelease]) -> list[tuple[PoolId, AddressReturn] | errors.NetweftError]:
    found: list[tuple[PoolId, AddressReturn] | errors.NetweftError] = []
    for index, item in enumerate(items):
        try:
            found.append(convert.address_return(index, item))
        except errors.InvalidArgument as error:
            found.append(error)
    return found


def _fill(response: Results, outcomes: Sequence[Lease | errors.NetweftError]) -> Results:
    writer = convert.LeaseWriter()
    results = response.results
    for outcome in outcomes:
        result = results.add()
        if isinstance(outcome, errors.NetweftError):
            result.status.CopyFrom(status.to_item_status(outcome))
        else:
            writer.write(outcome, result.lease)
    return response
