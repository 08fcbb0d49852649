"""The saga of an attach.

An attach is: check, lease (one call), commit (one call), apply (one call a host), answer; the confirmation is recorded
afterwards (`settle`). What happens when a step fails:

    check    nothing was done; the item answers the error
    lease    leases of the item are given back; the item answers the error
    commit   refused: decided again on newer state; lost: the outcome is not known, the caller retries with the same
             request id, and leases without a record go back after a grace time
    apply    refused by the kernel: the item is undone and answers the kernel's error. No answer: nobody knows whether
             the host has it, so the item is marked LEAVING, and its address stays leased until the host has confirmed
             that it is gone; the item answers UNAVAILABLE, and a retry with the same request id starts anew

Of two tries of one request at once the one that has recorded an endpoint undoes it, and the other one answers only what
is on record: see `Joiner.apply`.

An attach of one endpoint that takes any address may find one leased ahead (`stock`), with the id that the endpoint then
has; it is the step "lease" done before, and what happens to it is the same.

Of a batch every item stands for itself. Nothing is asked of the store before the commit unless something looks like a
retry: the commit itself notices one that does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from netweft_common import errors, faults, logs

from netweft_controller.clients.ipam import Ask, Ipam, releases_of
from netweft_controller.domain import commits, endpoints, tombs
from netweft_controller.domain.endpoints import Placement, Placer, Want
from netweft_controller.domain.objects import Endpoint, EndpointState, Lease, Record
from netweft_controller.domain.specs import AttachItem
from netweft_controller.domain.state import State
from netweft_controller.engine.joining import Attached, Joiner, Result
from netweft_controller.engine.requests import Done, Outcome, Request
from netweft_controller.engine.stock import Ahead, Stock
from netweft_controller.sync.replica import Replica, conflict

_log = logs.get()
_TRIES = 10


class Attach:
    """One attach, from check to answer.

    Args:
        request: Whose it is.
        items: What to attach.
        replica: Intent.
        ipam: Addresses.
        joiner: Has hosts take endpoints up.
        stock: Addresses leased ahead.
    """

    def __init__(
        self,
        request: Request,
        items: Sequence[AttachItem],
        *,
        replica: Replica,
        ipam: Ipam,
        joiner: Joiner,
        stock: Stock,
    ) -> None:
        self._request = request
        self._items = items
        self._replica = replica
        self._ipam = ipam
        self._joiner = joiner
        self._stock = stock
        self._ids = [self._own_id(index) for index in range(len(items))]
        self._sandbox_ids = [request.id_for("sandbox", str(index)) for index in range(len(items))]
        self._results: dict[int, Result] = {}
        # What is remembered of this request, if it was tried before, and of that what still holds: one entry an item.
        self._known: commits.Request | None = None
        self._looked_up = False
        self._recorded: set[str] = set()
        """Endpoints that this try has recorded."""
        self._done: list[Done | None] = [None] * len(items)
        self._leases: dict[str, tuple[Lease, ...]] = {}
        self._ahead: dict[int, Ahead] = {}

    def _own_id(self, index: int) -> str:
        """Return the id of an item's endpoint, where no address leased ahead says another."""
        return self._request.id_for("endpoint", str(index))

    async def run(self) -> list[Result]:
        """Attach; one result an item, in their order.

        Raises:
            NetweftError: The whole batch failed; nothing stays, or the outcome is not known (Unavailable).
        """
        if any(id_ in self._replica.state.endpoints for id_ in self._ids):
            await self._look_up()
        await self._record()
        await self._join()
        return [self._results[index] for index in range(len(self._items))]

    # What was done before

    async def _look_up(self) -> None:
        self._looked_up = True
        await self._recall(await self._replica.find_request(self._request.key))

    async def _recall(self, known: commits.Request | None) -> None:
        """Take over what an earlier try has done, and answer for what it was told."""
        self._known = known
        remembered = self._request.recall(known).items if known is not None else (None,) * len(self._items)
        self._done = [None] * len(self._items)
        self._ids = [self._own_id(index) if done is None else done.id for index, done in enumerate(remembered)]
        self._results.update(await self._finish_undo(remembered))
        for index, endpoint_id in enumerate(self._ids):
            if index in self._results:
                continue
            done = remembered[index]
            record = self._replica.state.endpoints.get(endpoint_id)
            if record is not None and record.value.state is not EndpointState.LEAVING:
                self._done[index] = done or Done(id=endpoint_id)
            elif done is not None and done.told and done.endpoint is not None:
                self._results[index] = _first_answer(self._replica.state, done)
                await self._give_back({endpoint_id: self._leases.pop(endpoint_id, ())})

    async def _finish_undo(self, remembered: Sequence[Done | None]) -> dict[int, Result]:
        """Finish what is being undone of an earlier try; returns the items of which that is not possible now."""
        state = self._replica.state
        undone: dict[str, int] = {}
        for index, (endpoint_id, done) in enumerate(zip(self._ids, remembered, strict=True)):
            record = state.endpoints.get(endpoint_id)
            leaving = record is not None and record.value.state is EndpointState.LEAVING
            if index not in self._results and leaving and not (done is not None and done.told):
                undone[endpoint_id] = index
        sandboxes = [id_ for id_ in self._sandbox_ids if id_ in state.sandboxes]
        failures = await self._joiner.finish_undo(undone, sandboxes) if undone or sandboxes else {}
        return {index: failures[endpoint_id] for endpoint_id, index in undone.items() if endpoint_id in failures}

    # Recording

    async def _record(self) -> None:
        """Check, lease and commit until every item is recorded or has failed."""
        for _ in range(_TRIES):
            placements = await self._place()
            await self._lease(placements)
            ready = [placements[index] for index in sorted(placements) if index not in self._results]
            if not ready:
                break
            faults.reach(faults.Point.ATTACH_LEASED)
            builder, made = endpoints.create(self._replica.state, ready, self._leases)
            outcome = await self._replica.commit(builder.build(self._remember(made), self._known))
            if isinstance(outcome, commits.Committed):
                for index in placements:
                    if index not in self._results:
                        self._done[index] = Done(id=self._ids[index])
                        self._recorded.add(self._ids[index])
                        del self._leases[self._ids[index]]
                break
            self._put_back_ahead(outcome)
            if isinstance(outcome, commits.Refused):
                await self._give_up_buried(outcome.claim)
            if isinstance(outcome, commits.Replayed):
                # Somebody else works, or has worked, on this request. What was leased may be what he has recorded,
                # or what he has given back since: it is neither kept nor returned, but asked for again if need be.
                recorded = {id_ for id_ in self._leases if id_ in self._replica.state.endpoints}
                self._leases = {id_: leases for id_, leases in self._leases.items() if id_ not in recorded}
                await self._recall(outcome.request)
                self._leases.clear()
            refused = outcome
        else:
            for index in placements:
                if isinstance(refused, commits.Refused):
                    self._results.setdefault(index, conflict(refused))
                else:
                    self._results.setdefault(index, _busy(self._request))
        # Of items that failed after they had got their addresses.
        await self._give_back(self._leases)

    async def _place(self) -> dict[int, Placement]:
        """Check the items that are still to be recorded."""
        while True:
            placer = Placer(self._replica.state)
            placements: dict[int, Placement] = {}
            failures: dict[int, errors.NetweftError] = {}
            for index, item in enumerate(self._items):
                if index in self._results or self._done[index] is not None:
                    continue
                try:
                    placements[index] = placer.place(
                        item,
                        endpoint_id=self._ids[index],
                        sandbox_id=self._sandbox_ids[index],
                        path=f"items[{index}].",
                    )
                except errors.NetweftError as error:
                    failures[index] = error
            if not failures or self._looked_up:
                self._results.update(failures)
                return placements
            # What cannot be now may have been done by an earlier try, or may be by what is not known here yet.
            await self._look_up()

    def _remember(self, made: Mapping[str, Endpoint]) -> commits.Request:
        items: list[Done | None] = []
        for index, (endpoint_id, item) in enumerate(zip(self._ids, self._items, strict=True)):
            done = self._done[index]
            if endpoint_id in made:
                # What joins nothing is finished with its record.
                bare = item.sandbox is None
                done = Done(id=endpoint_id, told=bare, endpoint=made[endpoint_id] if bare else None)
            items.append(done)
        return self._request.remember(Outcome(items=tuple(items)))

    # Addresses

    def _take_ahead(self, placements: dict[int, Placement]) -> None:
        """Take addresses that were leased ahead, if this attach is one that may have them."""
        if len(self._items) > 1 or self._looked_up or self._ahead:
            return
        for index, placement in placements.items():
            wants = placement.wants
            if placement.target is None or not wants or any(want.address for want in wants):
                continue
            ahead = self._stock.take(placement)
            if ahead is not None:
                self._ahead[index] = ahead
                self._ids[index] = ahead.endpoint_id
                self._leases[ahead.endpoint_id] = ahead.leases
                endpoint = msgspec.structs.replace(placement.endpoint, id=ahead.endpoint_id)
                placements[index] = msgspec.structs.replace(placement, endpoint=endpoint)

    def _put_back_ahead(self, outcome: commits.Refused | commits.Replayed) -> None:
        """Give up addresses leased ahead that this attach will not record after all."""
        recorded = isinstance(outcome, commits.Replayed) and outcome.request is not None
        for index, ahead in list(self._ahead.items()):
            buried = isinstance(outcome, commits.Refused) and tombs.is_of(outcome.claim, ahead.endpoint_id)
            if not recorded and not buried:
                continue  # decided again with the same
            del self._ahead[index], self._leases[ahead.endpoint_id]
            self._ids[index] = self._own_id(index)
            if ahead.endpoint_id not in self._replica.state.endpoints and not buried:
                self._stock.put_back(ahead)

    async def _lease(self, placements: dict[int, Placement]) -> None:
        """Lease what the placements want, each from its pools in order."""
        self._take_ahead(placements)
        waiting: list[_Waiting] = []
        got: dict[int, dict[int, Lease]] = {}
        for index, placement in placements.items():
            endpoint = placement.endpoint
            if endpoint.id not in self._leases:
                got[index] = {}
                waiting += [_Waiting(index, number, endpoint, want, 0) for number, want in enumerate(placement.wants)]
        failed: dict[int, errors.NetweftError] = {}
        while waiting:
            asks = [one.ask() for one in waiting]
            answers = await self._ipam.request_addresses(asks, request_id=_lease_request(self._request, asks))
            further: list[_Waiting] = []
            for one, answer in zip(waiting, answers, strict=True):
                if isinstance(answer, Lease):
                    got[one.index][one.number] = answer
                elif isinstance(answer, errors.Exhausted) and one.pool + 1 < len(one.want.pools):
                    further.append(msgspec.structs.replace(one, pool=one.pool + 1))
                else:
                    failed.setdefault(one.index, answer)
            waiting = [one for one in further if one.index not in failed]
        for index, leases in got.items():
            self._leases[self._ids[index]] = tuple(leases[number] for number in sorted(leases))
        self._results.update(failed)
        await self._give_back({self._ids[index]: self._leases.pop(self._ids[index]) for index in failed})

    async def _give_up_buried(self, claim: str) -> None:
        """Give up what an earlier try had leased long ago, if the reconciler has taken it for orphans."""
        if any(tombs.is_of(claim, id_) for id_ in self._leases):
            buried, self._leases = self._leases, {}
            await self._give_back(buried)

    async def _give_back(self, leases: Mapping[str, tuple[Lease, ...]]) -> None:
        releases = [one for id_, held in leases.items() for one in releases_of(id_, held)]
        if not releases:
            return
        try:
            await self._ipam.release_addresses(releases)
        except errors.NetweftError as error:
            # The reconciler finds them: leases whose owner is in no record.
            _log.warning("leases not given back", count=len(releases), error=error.message)

    # Joining

    async def _join(self) -> None:
        """Have hosts take up what is recorded, and answer."""
        state = self._replica.state
        joining: list[int] = []
        for index, done in enumerate(self._done):
            if done is None or index in self._results:
                continue
            record = state.endpoints.get(done.id)
            if record is not None and record.value.state is EndpointState.JOINING:
                joining.append(index)
            else:
                self._results[index] = current(state, done.id)
        if not joining:
            return
        made = [id_ for id_ in self._sandbox_ids if id_ in state.sandboxes]
        faults.reach(faults.Point.ATTACH_RECORDED)
        ids = [self._ids[index] for index in joining]
        others = [id_ for id_ in ids if id_ not in self._recorded]
        answers = await self._joiner.apply(ids, made, others=others)
        faults.reach(faults.Point.ATTACH_JOINED)
        self._results.update(zip(joining, answers, strict=True))
        attached = {
            index: answer for index, answer in zip(joining, answers, strict=True) if isinstance(answer, Attached)
        }
        if attached:
            told = [
                _told(attached[index]) if index in attached else self._told_before(index)
                for index in range(len(self._items))
            ]
            self._joiner.confirm(attached.values(), self._request.remember(Outcome(items=tuple(told))))

    def _told_before(self, index: int) -> Done | None:
        done = self._done[index]
        return done if done is not None and done.told else None


class _Waiting(msgspec.Struct, frozen=True):
    """One address that an item still waits for.

    Attributes:
        index: Of the item.
        number: Of the want in the item.
        pool: Place in the want's pools of the one to ask next.
    """

    index: int
    number: int
    endpoint: Endpoint
    want: Want
    pool: int

    def ask(self) -> Ask:
        """Return what IPAM is asked."""
        return Ask(self.want.pools[self.pool], self.want.address, self.endpoint.id, self.endpoint.host_id)


def current(state: State, endpoint_id: str) -> Result:
    """Return an endpoint as it is recorded."""
    record = state.endpoints.get(endpoint_id)
    if record is None or record.value.state is EndpointState.LEAVING:
        return errors.Conflict("ENDPOINT_GONE", f"endpoint {endpoint_id} was taken away by somebody else meanwhile")
    network = state.networks.get(record.value.network_id)
    return Attached(
        endpoint=record,
        sandbox=state.sandboxes.get(record.value.sandbox_id),
        gateways=endpoints.gateways(network.value, record.value) if network is not None else (),
    )


def _told(attached: Attached) -> Done:
    return Done(
        id=attached.endpoint.value.id,
        told=True,
        endpoint=attached.endpoint.value,
        sandbox=attached.sandbox.value if attached.sandbox is not None else None,
        revision=attached.endpoint.revision,
        created_ms=attached.endpoint.created_ms,
    )


def _first_answer(state: State, done: Done) -> Attached:
    """Return what the first try was told of an endpoint that has gone since."""
    assert done.endpoint is not None, "asked for such only"
    network = state.networks.get(done.endpoint.network_id)
    sandbox = Record(done.sandbox, done.revision, done.created_ms) if done.sandbox is not None else None
    return Attached(
        endpoint=Record(done.endpoint, done.revision, done.created_ms),
        sandbox=sandbox,
        gateways=endpoints.gateways(network.value, done.endpoint) if network is not None else (),
    )


def _lease_request(request: Request, asks: Sequence[Ask]) -> str:
    """Return IPAM's idempotency key: a retry with fewer open items is another request to it."""
    return request.id_for("lease", *(f"{ask.pool_id} {ask.address} {ask.owner_key}" for ask in asks))


def _busy(request: Request) -> errors.Conflict:
    return errors.Conflict(
        "REQUEST_IN_PROGRESS",
        f"request {request.key.partition('/')[2]} is being done by another controller; ask again",
    )
