"""Calls to the IPAM service, in the words of the domain."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
import typing
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

import msgspec
from netweft.ipam.v1 import ipam_pb2, ipam_pb2_grpc
from netweft_common import client, deadline, errors, status, tls

from netweft_controller.domain.networks import POOL_LABEL, PoolWant
from netweft_controller.domain.objects import Lease

_SERVICE = "/netweft.ipam.v1.IpamService/"
_RETRY = tuple(
    _SERVICE + method for method in ("RequestPool", "RequestAddresses", "ReleaseAddresses", "ListPools", "ListLeases")
)
_PAGE_POOLS = 100  # IPAM asks its store about each: others are to have their turn
_PAGE_LEASES = 4096
_RELEASE_BATCH = 4096
_SETTLING = "POOL_SETTLING"
_SETTLING_S = 10.0
"""After a failover of its store IPAM gives nothing out until the hosts have reported: so long it is asked again."""

OwnerKind: typing.TypeAlias = ipam_pb2.OwnerKind.ValueType
ENDPOINT = ipam_pb2.OWNER_KIND_ENDPOINT
GATEWAY = ipam_pb2.OWNER_KIND_GATEWAY
AUXILIARY = ipam_pb2.OWNER_KIND_AUXILIARY


class Ask(msgspec.Struct, frozen=True):
    """One address asked for; an empty address is any."""

    pool_id: str
    address: str
    owner_key: str
    host_id: str = ""
    kind: OwnerKind = ENDPOINT


class Release(msgspec.Struct, frozen=True):
    """One address given back."""

    pool_id: str
    ip: str
    owner_key: str
    epoch: int = 0


class PoolInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A pool of a network of ours.

    Attributes:
        created_ms: Milliseconds since 1970.
        leased: Number of leases held in it, gateway and auxiliary addresses among them.
    """

    id: str
    network_id: str
    created_ms: int
    leased: int


class LeaseInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A lease as IPAM lists it; `created_ms` is in milliseconds since 1970."""

    lease: Lease
    owner_key: str
    kind: OwnerKind
    created_ms: int


class Ipam:
    """The IPAM service.

    Args:
        target: Its gRPC target.
        tls_files: For TCP.
        timeout: Longest wait for an answer; the caller's deadline may be shorter.
    """

    def __init__(
        self, target: str, *, tls_files: tls.TlsFiles | None = None, timeout: dt.timedelta = dt.timedelta(seconds=5)
    ) -> None:
        self._connection = client.Connection(target, tls_files=tls_files, retry=_RETRY, timeout=timeout)
        self._stub = ipam_pb2_grpc.IpamServiceStub(self._connection.channel)
        self._connection.over_stream(
            self._stub.AddressStream,
            ipam_pb2.AddressStreamRequest,
            request=self._stub.RequestAddresses,
            release=self._stub.ReleaseAddresses,
        )

    async def close(self) -> None:
        """Close the channel."""
        await self._connection.close()

    async def request_pool(self, want: PoolWant, *, request_id: str, network_id: str) -> tuple[str, str]:
        """Reserve a pool for a network; returns its subnet and id. Idempotent by request id.

        Raises:
            NetweftError: As IPAM says.
        """
        response = await self._connection.call(
            self._stub.RequestPool,
            ipam_pb2.RequestPoolRequest(
                request_id=request_id,
                address_space=want.address_space,
                subnet="" if want.subnet in ("0.0.0.0/0", "::/0") else want.subnet,
                ip_range=want.ip_range,
                ipv6=want.ipv6,
                exclude=want.exclude,
                labels={POOL_LABEL: network_id},
            ),
        )
        return response.pool.subnet, response.pool.id

    async def release_pool(self, pool_id: str) -> None:
        """Give a pool back with its gateway and auxiliary addresses; one that is gone is fine.

        Raises:
            FailedPrecondition: Other leases are held.
            NetweftError: As IPAM says.
        """
        try:
            await self._connection.call(
                self._stub.ReleasePool, ipam_pb2.ReleasePoolRequest(pool_id=pool_id, release_infrastructure=True)
            )
        except errors.NotFound:
            return

    async def request_addresses(self, asks: Sequence[Ask], *, request_id: str) -> list[Lease | errors.NetweftError]:
        """Lease addresses, each with its own outcome, in the order asked. Idempotent by request id.

        Raises:
            NetweftError: The whole call failed; some leases may have been granted.
        """
        ends_s = time.monotonic() + deadline.remaining_s(_SETTLING_S)
        while True:
            found = await self._try_request(asks, request_id)
            settling = [one for one in found if isinstance(one, errors.Unavailable) and one.reason == _SETTLING]
            if not settling:
                return found
            wait_s = settling[0].retry_after_s
            if time.monotonic() + wait_s >= ends_s:
                if len(settling) == len(asks):
                    raise settling[0]
                return found
            await asyncio.sleep(wait_s)

    async def _try_request(self, asks: Sequence[Ask], request_id: str) -> list[Lease | errors.NetweftError]:
        try:
            return await self._request_addresses(asks, request_id)
        except errors.Unavailable as error:
            if error.reason != _SETTLING:
                raise
            return [error] * len(asks)

    async def _request_addresses(self, asks: Sequence[Ask], request_id: str) -> list[Lease | errors.NetweftError]:
        response = await self._connection.call(
            self._stub.RequestAddresses,
            ipam_pb2.RequestAddressesRequest(
                request_id=request_id,
                items=[
                    ipam_pb2.AddressRequest(
                        pool_id=ask.pool_id,
                        address=ask.address,
                        owner=ipam_pb2.Owner(key=ask.owner_key, host_id=ask.host_id, kind=ask.kind),
                    )
                    for ask in asks
                ],
            ),
        )
        return [status.from_item_status(result.status) or _lease(result.lease) for result in response.results]

    async def release_addresses(self, releases: Sequence[Release]) -> None:
        """Give addresses back; what is not held any more, or by another, is left alone.

        Raises:
            NetweftError: The call failed; it can be made again.
        """
        for start in range(0, len(releases), _RELEASE_BATCH):
            await self._connection.call(
                self._stub.ReleaseAddresses,
                ipam_pb2.ReleaseAddressesRequest(
                    items=[
                        ipam_pb2.AddressRelease(
                            pool_id=one.pool_id, address=one.ip, owner_key=one.owner_key, epoch=one.epoch
                        )
                        for one in releases[start : start + _RELEASE_BATCH]
                    ]
                ),
            )

    async def set_hosts(self, store_id: str, revision: int, names: Mapping[str, str] | None) -> None:
        """Say which hosts there are; agents of others are refused. Idempotent.

        Args:
            store_id: Of the intent's store.
            revision: Of the intent, at which it is so.
            names: Name of each host by its id; None: agents of any host are let in.

        Raises:
            NetweftError: The call failed; it can be made again.
        """
        hosts = [ipam_pb2.KnownHost(id=id_, name=name) for id_, name in (names or {}).items()]
        await self._connection.call(
            self._stub.SetHosts,
            ipam_pb2.SetHostsRequest(store_id=store_id, revision=revision, hosts=hosts, any=names is None),
        )

    async def pools(self) -> AsyncIterator[PoolInfo]:
        """Yield the pools that were made for networks."""
        token = ""
        while True:
            response = await self._connection.call(
                self._stub.ListPools, ipam_pb2.ListPoolsRequest(page_size=_PAGE_POOLS, page_token=token)
            )
            for pool in response.pools:
                if POOL_LABEL in pool.labels:
                    yield PoolInfo(
                        id=pool.id,
                        network_id=pool.labels[POOL_LABEL],
                        created_ms=pool.create_time.ToMilliseconds(),
                        leased=pool.use.leased,
                    )
            token = response.next_page_token
            if not token:
                return

    async def leases(self, pool_id: str) -> AsyncIterator[LeaseInfo]:
        """Yield the leases of a pool."""
        token = ""
        while True:
            try:
                response = await self._connection.call(
                    self._stub.ListLeases,
                    ipam_pb2.ListLeasesRequest(page_size=_PAGE_LEASES, page_token=token, pool_id=pool_id),
                )
            except errors.NotFound:
                return
            for lease in response.leases:
                yield LeaseInfo(
                    lease=_lease(lease),
                    owner_key=lease.owner.key,
                    kind=lease.owner.kind,
                    created_ms=lease.create_time.ToMilliseconds(),
                )
            token = response.next_page_token
            if not token:
                return


def releases_of(endpoint_id: str, leases: Iterable[Lease]) -> list[Release]:
    """Return what gives an endpoint's addresses back."""
    return [Release(lease.pool_id, lease.ip, endpoint_id, lease.epoch) for lease in leases]


def _lease(message: ipam_pb2.Lease) -> Lease:
    return Lease(address=message.address, pool_id=message.pool_id, epoch=message.epoch)
