"""The agent's word to IPAM: this host lives, and these leases are its own.

Runs beside the link to the controller, and needs no controller: a lease does not run out while its host lives, whatever
else is down. What to say is decided in `domain.leases`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from netweft.ipam.v1 import ipam_pb2, ipam_pb2_grpc
from netweft_common import client, status
from netweft_common.errors import Conflict, FailedPrecondition, NetweftError, Unavailable

from netweft_agent.domain import leases
from netweft_agent.domain.leases import Held
from netweft_agent.domain.objects import Endpoint, Network, Ref
from netweft_agent.engine.engine import Engine
from netweft_agent.engine.store import Change

log = structlog.get_logger(__name__)

CALL_S = 5.0
CLAIMS = 1024
"""Leases of one call; IPAM takes 4,096."""
JITTER = 0.2
"""Share of the interval that chance takes away: hosts that heard of a failover together do not all call together."""
RENEWED_EACH = 5
"""Of so many heartbeats one renews leases too, for whoever lists them; that the host lives keeps them."""
RENEWED_EACH_OF_MANY = 30
"""The same where IPAM has many hosts to hear: it costs IPAM a script for each subnet that the host is in."""


class LeaseKeeper:
    """Speaks for one host to IPAM.

    Args:
        connections: To IPAM's replicas, of which the first one that answers is kept to; owned by the caller.
        engine: The host's engine, started.
        host_id: Id of the host.
        interval_s: Between heartbeats, unless IPAM says that it may be longer.
        monotonic: Clock in seconds.
    """

    def __init__(
        self,
        connections: Sequence[client.Connection],
        engine: Engine,
        host_id: str,
        *,
        interval_s: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ways = [(one, ipam_pb2_grpc.IpamServiceStub(one.channel)) for one in connections]
        for one, stub in self._ways:
            one.over_stream(stub.RenewStream, ipam_pb2.RenewStreamRequest, renew=stub.RenewLeases)
        self._engine = engine
        self._host_id = host_id
        self._interval_s = interval_s
        self.silent_s = interval_s
        """Until the next heartbeat: longer than asked for where IPAM has many hosts to hear."""
        self._monotonic = monotonic
        self._book = leases.Book()
        self._lost: dict[Ref, NetweftError] = {}
        self._away = False
        self._beats = 0
        """Heartbeats since leases were renewed, that one included; 0: they are to be."""
        # A host that was there before may be sent what was leased before.
        self._is_old = bool(engine.position.store_id)

    @property
    def is_watching(self) -> bool:
        """Whether new endpoints are to be checked."""
        return self._book.is_watching(self._monotonic())

    def lost(self) -> Mapping[Ref, NetweftError]:
        """Return the endpoints that hold an address which IPAM has given to others, with what is to be said."""
        return self._lost

    async def run(self) -> None:
        """Speak until cancelled."""
        while True:
            try:
                await self.beat()
            except NetweftError as error:
                if not self._away:
                    log.warning("IPAM does not know that this host lives", error=str(error), retry_s=self._interval_s)
                self._away = True
            else:
                if self._away:
                    log.info("IPAM knows again that this host lives")
                self._away = False
            await asyncio.sleep(self.silent_s * (1 - JITTER * random.random()))  # noqa: S311  # no secret

    async def beat(self) -> None:
        """Tell that the host lives, and what else IPAM is to know.

        Raises:
            NetweftError: IPAM does not answer, or does not take this host's word.
        """
        each = RENEWED_EACH if self.silent_s <= self._interval_s else RENEWED_EACH_OF_MANY
        self.silent_s = self._interval_s
        renews = not 0 < self._beats < each
        request = ipam_pb2.RenewLeasesRequest(host_id=self._host_id, alive_only=not renews)
        answer = await self._call(lambda stub: stub.RenewLeases, request)
        self._beats = 1 if renews else self._beats + 1
        before = self._book.store_epoch
        self._book.hear(answer.store_epoch, reassert=answer.reassert, holds=self._is_old, now_s=self._monotonic())
        if before and before != answer.store_epoch:
            log.warning("IPAM's store continues another history", store_epoch=answer.store_epoch, before=before)
        if self._book.is_due(self._monotonic()):
            try:
                await self._report(answer.store_epoch, await self._engine.holdings())
            except FailedPrecondition as error:
                # It changed again; the next heartbeat's answer names the new one.
                if error.reason != "STORE_EPOCH_STALE":
                    raise
            self._tell_lost()
        if self._book.reported and not self._book.refused:
            # Who has something to tell still comes again soon.
            self.silent_s = max(self._interval_s, answer.silent_ms / 1e3)

    async def check(self, changes: Sequence[Change]) -> dict[Ref, NetweftError]:
        """Ask IPAM for the leases of endpoints that are new here, and return those that may not come, with the reason.

        To be asked while `is_watching`, before the changes are applied.
        """
        networks = {change.put.id: change.put for change in changes if isinstance(change.put, Network)}
        claims: dict[Held, Endpoint] = {}
        for change in changes:
            endpoint = change.put
            if isinstance(endpoint, Endpoint) and change.ref not in self._engine.store.objects:
                network = networks.get(endpoint.network_id) or self._engine.store.network(endpoint.network_id)
                # What is not known to be leased is told of as soon as it is.
                claims.update(dict.fromkeys(leases.of_endpoint(endpoint, network) or (), endpoint))
        if not claims:
            return {}
        held, epoch = list(claims), self._book.store_epoch
        try:
            outcomes = [one for part in _parts(held) for one in await self._claim(epoch, part, more=True)]
        except NetweftError as error:
            why = f"the store of IPAM was replaced, and IPAM does not say whose address it is: {error.message}"
            outcomes = [Conflict("LEASE_UNCHECKED", f"{why}; try again")] * len(held)
        refused: dict[Ref, NetweftError] = {}
        for claim, outcome in zip(held, outcomes, strict=True):
            if outcome is None:
                self._book.told(epoch, [claim], [None])
            else:
                endpoint = claims[claim]
                refused[endpoint.ref] = _not_now(outcome, leases.lost(endpoint, claim, outcome))
        return refused

    async def _report(self, epoch: str, holdings: leases.Holdings) -> None:
        untold = self._book.untold(holdings.leases, self._monotonic())
        parts = _parts(untold)
        final = holdings.whole and not self._book.reported
        if final and not parts:
            parts = [[]]
        for place, part in enumerate(parts, start=1):
            outcomes = await self._claim(epoch, part, more=not (final and place == len(parts)))
            self._book.told(epoch, part, outcomes)
        if final:
            self._book.reported = True
            log.info("leases reported", store_epoch=epoch, count=len(holdings.leases), refused=len(self._book.refused))

    async def _claim(self, epoch: str, claims: Sequence[Held], *, more: bool) -> list[NetweftError | None]:
        request = ipam_pb2.ReassertLeasesRequest(
            host_id=self._host_id,
            store_epoch=epoch,
            more=more,
            leases=[
                ipam_pb2.Lease(
                    pool_id=one.pool_id,
                    address=str(one.address),
                    epoch=one.epoch,
                    owner=ipam_pb2.Owner(key=one.owner, host_id=self._host_id, kind=ipam_pb2.OWNER_KIND_ENDPOINT),
                )
                for one in claims
            ],
        )
        answer = await self._call(lambda stub: stub.ReassertLeases, request)
        return [status.from_item_status(one.status) for one in answer.results]

    def _tell_lost(self) -> None:
        """Bring what the controller is told up to what IPAM has refused."""
        lost: dict[Ref, NetweftError] = {}
        for claim, error in self._book.refused.items():
            endpoint = self._engine.store.endpoint(claim.owner)
            if endpoint is not None:
                lost[endpoint.ref] = leases.lost(endpoint, claim, error)
        for ref in lost.keys() - self._lost.keys():
            log.error("lease lost", endpoint=ref.id, error=str(lost[ref]))
        for ref in self._lost.keys() - lost.keys():
            log.info("lease no longer disputed", endpoint=ref.id)
            self._engine.report_again(ref)
        self._lost = lost

    async def _call(self, method: Callable[[ipam_pb2_grpc.IpamServiceAsyncStub], Any], request: Any) -> Any:
        """Ask the replica that answered last, or the next one that does."""
        failure: Unavailable | None = None
        for _ in self._ways:
            connection, stub = self._ways[0]
            try:
                return await connection.call(method(stub), request, timeout_s=CALL_S)
            except Unavailable as error:
                failure = failure or error
                self._ways.append(self._ways.pop(0))
        assert failure is not None, "there is one at least"
        raise failure


def _not_now(outcome: NetweftError, lost: NetweftError) -> NetweftError:
    """Return how a new endpoint is refused: its caller asks again and gets another address."""
    if isinstance(outcome, Conflict):
        return outcome
    return Conflict(lost.reason, lost.message, **lost.metadata)


def _parts(claims: Sequence[Held]) -> list[Sequence[Held]]:
    return [claims[start : start + CLAIMS] for start in range(0, len(claims), CLAIMS)]
