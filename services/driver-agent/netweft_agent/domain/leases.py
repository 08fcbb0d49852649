"""Leases: which addresses this host holds, and what IPAM is still to be told of them.

IPAM's store may lose the end of what it has acknowledged, and the hosts are the second copy of it. Each heartbeat is
answered with the store epoch, which is another one after every restart, restore and failover:

    IPAM says                            the host
    the epoch that it knows              tells nothing
    another epoch, or "report"           tells all that it holds, the last part marked as such
    for REVIEWS_S after that             tells what it has taken up since, and all of it again a few times: of two
                                         owners of one address the one who reported first is not told of the other
    for WATCH_S after that               tells of the leases of a new endpoint before it takes the endpoint in: it may
                                         have got them before the loss, and somebody else after it

What IPAM refuses is told again with each heartbeat until it is taken or gone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from netweft_common.errors import Conflict, FailedPrecondition, NetweftError, Unavailable

from netweft_agent.domain.objects import Endpoint, Interface, Network

WATCH_S = 120.0
"""Longer than any attach lasts, from its lease to its host."""

REVIEWS_S = (10.0, 60.0, WATCH_S)
"""How long after a change of the store epoch all is told again."""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """The lease of one address of one endpoint.

    Attributes:
        owner: The endpoint's id, which is the key of the lease's owner.
        address: With the subnet's prefix length.
        epoch: Fencing epoch that the lease was granted with.
    """

    owner: str
    pool_id: str
    address: Interface
    epoch: int


class Holdings(msgspec.Struct, frozen=True, kw_only=True):
    """What a host holds.

    Attributes:
        leases: The leases of the endpoints that are on it.
        whole: Whether these are all: False while the host does not know what it is to have.
    """

    leases: Collection[Held] = ()
    whole: bool = False


def of_endpoint(endpoint: Endpoint, network: Network | None) -> tuple[Held, ...] | None:
    """Return the leases of an endpoint; None when it is not known which they are."""
    if not endpoint.addresses:
        return ()
    pools = [_pool(network, address) for address in endpoint.addresses]
    if not all(pools) or len(endpoint.lease_epochs) != len(endpoint.addresses):
        return None
    return tuple(
        Held(owner=endpoint.id, pool_id=pool_id, address=address, epoch=epoch)
        for pool_id, address, epoch in zip(pools, endpoint.addresses, endpoint.lease_epochs, strict=True)
    )


def holdings(endpoints: Iterable[Endpoint], networks: Mapping[str, Network], *, whole: bool) -> Holdings:
    """Return what these endpoints hold.

    Args:
        endpoints: Those that are on the host.
        networks: The host's networks by id.
        whole: Whether the host knows all that it is to have.
    """
    found: list[Held] = []
    for endpoint in endpoints:
        leases = of_endpoint(endpoint, networks.get(endpoint.network_id))
        if leases is None:
            whole = False
        else:
            found += leases
    return Holdings(leases=found, whole=whole)


@dataclass(slots=True)
class Book:
    """What IPAM was told under its present store epoch, and what it said. One task writes it; it does nothing itself.

    Attributes:
        store_epoch: Empty: IPAM was never heard.
        reported: IPAM knows that it was told all.
        refused: Leases that IPAM has given to others, with what it said.
    """

    store_epoch: str = ""
    reported: bool = False
    refused: dict[Held, NetweftError] = field(default_factory=dict)
    _taken: set[Held] = field(default_factory=set)
    _since_s: float = -math.inf
    _reviews: int = len(REVIEWS_S)

    def hear(self, store_epoch: str, *, reassert: bool, holds: bool, now_s: float) -> None:
        """Take note of the answer to a heartbeat.

        Args:
            store_epoch: The present one.
            reassert: Whether IPAM asks for a report.
            holds: Whether this host may have got leases before the answer.
            now_s: Monotonic clock.
        """
        if not reassert and not self.store_epoch:
            # An earlier life of this agent has reported.
            self.store_epoch, self.reported = store_epoch, True
            return
        if store_epoch == self.store_epoch and not (reassert and self.reported):
            return
        watches = holds or bool(self.store_epoch)
        self.store_epoch, self.reported = store_epoch, False
        self._taken.clear()
        if watches:
            self._since_s, self._reviews = now_s, 0

    def is_watching(self, now_s: float) -> bool:
        """Return whether new endpoints may come with leases that IPAM has forgotten."""
        return now_s - self._since_s < WATCH_S

    def is_due(self, now_s: float) -> bool:
        """Return whether the host must look what there is to tell."""
        return not self.reported or bool(self.refused) or self.is_watching(now_s) or self._review_is_due(now_s)

    def untold(self, held: Iterable[Held], now_s: float) -> list[Held]:
        """Return what IPAM is to be told of what the host holds now, and forget what it holds no more."""
        if self._review_is_due(now_s):
            self._reviews += 1
            self._taken.clear()
        present = set(held)
        self._taken &= present
        self.refused = {one: error for one, error in self.refused.items() if one in present}
        return [one for one in present if one not in self._taken]

    def told(self, store_epoch: str, claims: Sequence[Held], outcomes: Sequence[NetweftError | None]) -> None:
        """Take note of what IPAM said of each claim under an epoch; what it could not decide is told again."""
        if store_epoch != self.store_epoch:
            return
        for claim, error in zip(claims, outcomes, strict=True):
            if error is None:
                self._taken.add(claim)
                self.refused.pop(claim, None)
            elif not isinstance(error, Unavailable | Conflict):
                self.refused[claim] = error

    def _review_is_due(self, now_s: float) -> bool:
        return self._reviews < len(REVIEWS_S) and now_s - self._since_s >= REVIEWS_S[self._reviews]


def lost(endpoint: Endpoint, claim: Held, error: NetweftError) -> FailedPrecondition:
    """Return what is wrong with an endpoint whose lease IPAM has given to somebody else.

    Args:
        endpoint: The endpoint.
        claim: Its lease.
        error: What IPAM says.
    """
    holder = error.metadata.get("holder", "")
    why = f"{holder} has it too" if holder else error.message
    return FailedPrecondition(
        "LEASE_LOST",
        f"address {claim.address.ip} of endpoint {endpoint.name} ({endpoint.id}) is not leased to it any more: {why}; "
        "detach one of them and attach it again",
        endpoint=endpoint.id,
        address=str(claim.address.ip),
        pool_id=claim.pool_id,
        **({"holder": holder} if holder else {}),
    )


def _pool(network: Network | None, address: Interface) -> str:
    if network is None:
        return ""
    return next((one.pool_id for one in network.subnets if address.ip in one.subnet), "")
