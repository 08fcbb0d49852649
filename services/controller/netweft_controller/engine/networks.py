"""Creating and deleting networks.

Creation: check, reserve pools, lease gateways and auxiliary addresses, commit. Any failure gives back what was taken;
a crash leaves pools whose label names a network without a record, which the reconciler returns.

Deletion: mark DELETING, release pools, remove the record. The mark is durable, so whoever finds it goes on.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import msgspec
from netweft_common import deadline, errors, logs

from netweft_controller.clients.ipam import AUXILIARY, GATEWAY, Ask, Ipam, Release
from netweft_controller.domain import commits, names, networks, tombs
from netweft_controller.domain.networks import AddressWant, NetworkPlan
from netweft_controller.domain.objects import Lease, Network, NetworkState, Record
from netweft_controller.domain.specs import NetworkSpec
from netweft_controller.domain.state import State
from netweft_controller.engine.requests import Done, Outcome, Request
from netweft_controller.engine.work import Work
from netweft_controller.sync.replica import Replica

_log = logs.get()
_UNDO_S = 10.0


class NetworkEngine:
    """What the controller does for networks.

    Args:
        replica: Intent.
        ipam: Pools and addresses.
        work: Owner of the sagas.
    """

    def __init__(self, *, replica: Replica, ipam: Ipam, work: Work) -> None:
        self._replica = replica
        self._ipam = ipam
        self._work = work

    def check(self, request: Request, spec: NetworkSpec) -> Record[Network]:
        """Return what would be made; nothing is done.

        Raises:
            NetweftError: It could not be made.
        """
        plan = networks.plan(self._replica.state, spec, request.id_for("network"))
        shown = tuple(
            msgspec.structs.replace(subnet, subnet="" if subnet.subnet in ("0.0.0.0/0", "::/0") else subnet.subnet)
            for subnet in plan.network.subnets
        )
        return Record(msgspec.structs.replace(plan.network, id="", subnets=shown), 0, 0)

    async def create(self, request: Request, spec: NetworkSpec) -> Record[Network]:
        """Create a network. Idempotent by request.

        Raises:
            NetweftError: It could not be made; nothing stays, or the outcome is not known (Unavailable).
        """
        return await self._work.once(
            request.key, request.fingerprint, lambda: self._create(request, spec), name="create network"
        )

    async def delete(self, request: Request, word: str) -> None:
        """Delete a network without endpoints. Idempotent by request.

        Raises:
            NotFound: There is none.
            FailedPrecondition: It has endpoints.
            Unavailable: The deletion is recorded and will be finished.
        """
        await self._work.once(
            request.key, request.fingerprint, lambda: self._delete(request, word), name="delete network"
        )

    async def delete_bound(self, network_id: str) -> None:
        """Delete a network whose host was forgotten, if it has no endpoints. Idempotent.

        Raises:
            NetweftError: A step failed.
        """

        def decision(state: State) -> commits.Commit | None:
            record = state.networks.get(network_id)
            return networks.mark_deleting(state, record, None) if record is not None else None

        await self._replica.decide(decision)
        await self.finish_deletion(network_id)

    async def finish_deletion(self, network_id: str) -> None:
        """Go on with a deletion that was recorded. Idempotent.

        Raises:
            NetweftError: A step failed; it stays recorded.
        """
        record = self._replica.state.networks.get(network_id)
        if record is None or record.value.state is not NetworkState.DELETING:
            return
        for subnet in record.value.subnets:
            await self.release_pool(subnet.pool_id)

        def decision(state: State) -> commits.Commit | None:
            now = state.networks.get(network_id)
            deleting = now is not None and now.value.state is NetworkState.DELETING
            return networks.delete(now) if now is not None and deleting else None

        await self._replica.decide(decision)

    async def _create(self, request: Request, spec: NetworkSpec) -> Record[Network]:
        known = await self._replica.find_request(request.key)
        if known is not None:
            return self._first_answer(request, known)
        try:
            return await self._make(request, spec)
        except errors.NetweftError as error:
            return self._first_answer(request, await self._replica.find_after(request.key, error))

    async def _make(self, request: Request, spec: NetworkSpec) -> Record[Network]:
        network_id = request.id_for("network")
        plan = networks.plan(self._replica.state, spec, network_id)
        try:
            outcome = await self._reserve_and_record(request, plan, "")
        except errors.Conflict as error:
            tomb = error.metadata.get("owner", "")
            if error.metadata.get("claim") != tombs.of(network_id) or not tombs.is_gone(tomb):
                raise
            # Pools of an earlier try have been returned; those of this one are not among them.
            outcome = await self._reserve_and_record(request, plan, tomb)
        if isinstance(outcome, commits.Replayed):
            assert outcome.request is not None, "it was not there before"
            return self._first_answer(request, outcome.request)
        return self._replica.state.networks[network_id]

    async def _reserve_and_record(
        self, request: Request, plan: NetworkPlan, tomb: str
    ) -> commits.Committed | commits.Replayed | None:
        pools: list[str] = []
        try:
            network = await self._reserve(request, plan, pools)
            once = request.remember(Outcome(items=(Done(id=network.id, told=True, network=network),)))
            outcome = await self._replica.decide(lambda state: networks.create(state, plan, network, once, tomb=tomb))
        except errors.NetweftError as error:
            if not isinstance(error, errors.Unavailable):
                await self._undo(request, pools)
            # Otherwise nobody knows whether the network was recorded: its pools stay until the reconciler does.
            raise
        if isinstance(outcome, commits.Replayed):
            # Another controller was faster with the same request.
            await self._undo(request, pools)
        return outcome

    async def _reserve(self, request: Request, plan: NetworkPlan, pools: list[str]) -> Network:
        """Return the network with its pools and gateways; ids of the pools go to `pools` as they are reserved."""
        network = plan.network
        found: list[tuple[str, str]] = []
        for want in plan.pools:
            try:
                answer = await self._request_pool(request, want, network)
            except errors.FailedPrecondition:
                # Perhaps it overlaps what an earlier try of this very request left behind; or what one has recorded.
                if await self._replica.find_request(request.key) is not None:
                    raise
                if not await self._release_leftovers(network.id, keep=pools):
                    raise
                answer = await self._request_pool(request, want, network)
            found.append(answer)
            pools.append(answer[1])
        network = networks.check_against_pool(network, found)
        wants = networks.addresses(network)
        if not wants:
            return network
        asks = [_ask(network, want) for want in wants]
        answers = await self._ipam.request_addresses(asks, request_id=request.id_for("gateways", uuid.uuid4().hex))
        for address, lease in zip(wants, answers, strict=True):
            if isinstance(lease, errors.NetweftError):
                what = f"auxiliary address {address.name}" if address.name else "gateway"
                raise type(lease)(
                    lease.reason, f"the {what} of subnets[{address.subnet_index}] cannot be leased: {lease.message}"
                ) from lease
        return _with_gateways(network, wants, [answer for answer in answers if isinstance(answer, Lease)])

    async def _request_pool(self, request: Request, want: networks.PoolWant, network: Network) -> tuple[str, str]:
        # Not the same key for every try: IPAM would answer with a pool that the undo of an earlier try gave back.
        return await self._ipam.request_pool(
            want, request_id=request.id_for("pool", uuid.uuid4().hex), network_id=network.id
        )

    async def _release_leftovers(self, network_id: str, keep: Sequence[str]) -> bool:
        left = [pool.id async for pool in self._ipam.pools() if pool.network_id == network_id and pool.id not in keep]
        for pool_id in left:
            await self.release_pool(pool_id)
        return bool(left)

    async def _undo(self, request: Request, pools: Sequence[str]) -> None:
        """Release pools, but for those of which another try of the request has recorded that they are in use."""
        deadline.set_remaining(_UNDO_S)
        try:
            known = await self._replica.find_request(request.key)
            recorded = _pools_of(request, known) if known is not None else frozenset()
        except errors.NetweftError as error:
            _log.warning("pools not given back", count=len(pools), error=error.message)
            return  # the reconciler finds what nobody has recorded
        for pool_id in pools:
            if pool_id in recorded:
                continue
            try:
                await self.release_pool(pool_id)
            except errors.NetweftError as error:
                _log.warning("pool not given back", pool_id=pool_id, error=error.message)

    async def release_pool(self, pool_id: str) -> None:
        """Release a pool of which no record speaks; leases that are left in it are nobody's.

        Raises:
            NetweftError: As IPAM says.
        """
        try:
            await self._ipam.release_pool(pool_id)
        except errors.FailedPrecondition:
            left = [
                Release(pool_id, lease.lease.ip, lease.owner_key, lease.lease.epoch)
                async for lease in self._ipam.leases(pool_id)
            ]
            await self._ipam.release_addresses(left)
            await self._ipam.release_pool(pool_id)

    def _first_answer(self, request: Request, known: commits.Request) -> Record[Network]:
        (done,) = request.recall(known).items
        assert done is not None, "a network is remembered once it is made"
        assert done.network is not None, "the same"
        record = self._replica.state.networks.get(done.id)
        return record or Record(done.network, 0, 0)

    async def _delete(self, request: Request, word: str) -> None:
        known = await self._replica.find_request(request.key)
        network_id = ""
        if known is None:
            try:
                network_id = await self._mark(request, word)
            except errors.NetweftError as error:
                known = await self._replica.find_after(request.key, error)
        if known is not None:
            (done,) = request.recall(known).items
            network_id = done.id if done is not None else ""
        try:
            await self.finish_deletion(network_id)
        except errors.NetweftError as error:
            raise errors.Unavailable(
                "DELETION_PENDING",
                f"the deletion of network {word} is recorded and will be finished: {error.message}",
                network=network_id,
            ) from error

    async def _mark(self, request: Request, word: str) -> str:
        network_id = ""
        once: commits.Request | None = None

        def decision(state: State) -> commits.Commit | None:
            nonlocal network_id, once
            record = names.get_network(state, word)
            network_id = record.value.id
            once = request.remember(Outcome(items=(Done(id=network_id, told=True),)))
            return networks.mark_deleting(state, record, once)

        await self._replica.decide(decision)
        # An attach that was committed just before the mark: from now on no other can be.
        state = self._replica.state
        record = state.networks.get(network_id)
        if record is not None and state.endpoint_count(network_id):
            await self._replica.decide(lambda state: networks.restore(state.networks[network_id], once))
            networks.refuse_endpoints(self._replica.state, record)
        return network_id


def _ask(network: Network, want: AddressWant) -> Ask:
    pool_id = network.subnets[want.subnet_index].pool_id
    if want.name:
        return Ask(pool_id, want.address, f"aux/{network.id}/{want.name}", network.host_id, AUXILIARY)
    return Ask(pool_id, want.address, f"gateway/{network.id}", network.host_id, GATEWAY)


def _with_gateways(network: Network, wants: Sequence[AddressWant], leases: Sequence[Lease]) -> Network:
    subnets = list(network.subnets)
    for want, lease in zip(wants, leases, strict=True):
        if not want.name:
            subnets[want.subnet_index] = msgspec.structs.replace(subnets[want.subnet_index], gateway=lease.ip)
    return msgspec.structs.replace(network, subnets=tuple(subnets))


def _pools_of(request: Request, known: commits.Request) -> frozenset[str]:
    """Return the pools of the network that a try of a request has recorded."""
    (done,) = request.recall(known).items
    network = done.network if done is not None else None
    return frozenset(subnet.pool_id for subnet in network.subnets) if network is not None else frozenset()
