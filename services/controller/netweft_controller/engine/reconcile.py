"""The reconciler: finishes or undoes what crashes, silent hosts and failed releases have left.

It runs in every controller. All it does is guarded or idempotent, so two of them at the same work do it once.

Orphans among leases are looked for where a pool has another number of leases than records speak of. The others are
looked at in turn, some in each pass, for a number can be right by chance.

An orphan is returned behind a tomb (`domain.tombs`), so that no record of it comes meanwhile. Whoever finds the tomb
of a reconciler that died before the return goes on from there.
"""

from __future__ import annotations

import asyncio
import collections
import datetime as dt
import time
import uuid
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence

import msgspec
from netweft_common import deadline, errors, logs

from netweft_controller.clients.ipam import ENDPOINT, Ipam, PoolInfo, Release
from netweft_controller.domain import commits, reconcile, tombs
from netweft_controller.domain.objects import Kind
from netweft_controller.domain.reconcile import Held, Sight, Todo
from netweft_controller.domain.state import State
from netweft_controller.engine.hosts import HostEngine
from netweft_controller.engine.joining import Attached, Joiner, joined
from netweft_controller.engine.liveness import Liveness
from netweft_controller.engine.networks import NetworkEngine
from netweft_controller.engine.removal import Remover
from netweft_controller.sync.replica import Replica

_log = logs.get()
_CHUNK = 1000
_LOOKED_AT = 2000
"""Leases a pass that are looked at though their number is right."""
_PASS_S = 10.0
_TOMB_S = 120.0
"""Longer than any saga lasts."""
_RETURN_S = 15.0
"""Longer than it takes to return one orphan: what lasts longer is nobody's work any more."""


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """When the reconciler acts.

    Attributes:
        interval: Between passes over unfinished objects.
        settle_after: Age of an unfinished object at which it is taken up.
        forsake_after: Silence of a host after which what is recorded on it is taken away; zero: never.
        orphan_grace: Age of an orphan at which it is returned; longer than any saga lasts.
    """

    interval: dt.timedelta
    settle_after: dt.timedelta
    orphan_grace: dt.timedelta
    forsake_after: dt.timedelta = dt.timedelta(0)


class Reconciler:
    """Finishes what others began.

    Args:
        replica: Intent.
        ipam: Where orphans are.
        joiner: Asks hosts.
        remover: Takes away.
        networks: Finishes deletions of networks.
        hosts: Clears forgotten hosts.
        liveness: Which hosts can be asked.
        timing: When to act.
        monotonic: Clock in seconds.
        clock: Seconds since 1970 by a clock that all controllers share, for what others read.
    """

    def __init__(
        self,
        *,
        replica: Replica,
        ipam: Ipam,
        joiner: Joiner,
        remover: Remover,
        networks: NetworkEngine,
        hosts: HostEngine,
        liveness: Liveness,
        timing: Timing,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._replica = replica
        self._ipam = ipam
        self._joiner = joiner
        self._remover = remover
        self._networks = networks
        self._hosts = hosts
        self._liveness = liveness
        self._timing = timing
        self._monotonic = monotonic
        self._clock = clock
        self._seen: Mapping[Sight, float] = {}
        self._orphans: dict[tuple[str, ...], float] = {}
        # Pools whose turn to be looked at has not come, and how many leases may be.
        self._turns: collections.deque[str] = collections.deque()
        self._credit = 0
        # All there are, as they were when the pass began and what it has made since.
        self._tombs: dict[str, str] = {}

    async def run(self) -> None:
        """Reconcile until cancelled."""
        next_scan_s = self._monotonic()
        scan_s = max(1.0, self._timing.orphan_grace.total_seconds() / 2)
        while True:
            await asyncio.sleep(self._timing.interval.total_seconds())
            deadline.set_remaining(_PASS_S)
            try:
                if not self._replica.is_loaded:
                    continue
                await self.settle()
                if self._monotonic() >= next_scan_s:
                    deadline.set_remaining(None)
                    next_scan_s = self._monotonic() + scan_s
                    await self.return_orphans()
            except errors.NetweftError as error:
                _log.warning("reconciler waits", reason=error.reason, error=error.message)
            except Exception:  # noqa: BLE001  # the outermost frame of a task: the next pass may work
                _log.exception("reconciler broke")

    # Unfinished objects

    async def settle(self) -> Todo:
        """Take up what is overdue; returns what that was."""
        todo = reconcile.overdue(
            self._replica.state,
            self._seen,
            now_s=self._monotonic(),
            after_s=self._timing.settle_after.total_seconds(),
            host_state=self._liveness.state,
            lost_for_s=self._liveness.lost_for_s,
            forsake_after_s=self._timing.forsake_after.total_seconds(),
            now_ms=int(self._clock() * 1000),
        )
        self._seen = todo.seen
        if todo.is_empty:
            return todo
        _log.info(
            "reconciling",
            joining=len(todo.ask_endpoints) + len(todo.ask_sandboxes),
            leaving=len(todo.finish_endpoints) + len(todo.finish_sandboxes),
            networks=len(todo.delete_networks),
            hosts=len(todo.clear_hosts) + len(todo.forsake_hosts) + len(todo.drop_hosts),
        )
        for start in range(0, max(len(todo.ask_endpoints), len(todo.ask_sandboxes)), _CHUNK):
            await self._ask(todo.ask_endpoints[start : start + _CHUNK], todo.ask_sandboxes[start : start + _CHUNK])
        for start in range(0, max(len(todo.finish_endpoints), len(todo.finish_sandboxes)), _CHUNK):
            await self._finish(
                todo.finish_endpoints[start : start + _CHUNK], todo.finish_sandboxes[start : start + _CHUNK]
            )
        for network_id in todo.delete_networks:
            await _tried("network deletion waits", network_id, self._networks.finish_deletion(network_id))
        for host_id in todo.clear_hosts:
            await _tried("host clearing waits", host_id, self._hosts.clear(host_id))
        for host_id in todo.forsake_hosts:
            _log.warning("host is lost, its endpoints are taken away", host_id=host_id)
            await _tried("lost host waits", host_id, self._hosts.forsake(host_id))
        for host_id in todo.drop_hosts:
            await _tried("expired token waits", host_id, self._hosts.drop_pending(host_id))
        return todo

    async def _ask(self, endpoint_ids: Sequence[str], sandbox_ids: Sequence[str]) -> None:
        statuses = await self._joiner.ask_hosts(endpoint_ids, sandbox_ids)
        state = self._replica.state
        endpoints, sandboxes = reconcile.refused(state, statuses)
        confirmed = [result for id_ in endpoint_ids if isinstance(result := joined(state, id_, statuses), Attached)]
        self._joiner.confirm(confirmed)
        self._joiner.confirm_sandboxes([id_ for id_ in sandbox_ids if id_ not in sandboxes], statuses)
        if endpoints or sandboxes:
            await self._joiner.undo(endpoints, sandboxes)

    async def _finish(self, endpoint_ids: Collection[str], sandbox_ids: Collection[str]) -> None:
        for id_, error in (await self._remover.finish(endpoint_ids, sandbox_ids)).items():
            _log.warning("removal waits", object_id=id_, error=error.message)

    # Orphans

    async def return_orphans(self) -> int:
        """Return pools and leases that no record has spoken of for the grace time; returns how many."""
        self._tombs = dict(await self._replica.store.find_claims(tombs.PREFIX))
        pools = {pool.id: pool async for pool in self._ipam.pools()}
        seen: dict[tuple[str, ...], float] = {}
        returned = 0
        for pool_id, network_id in reconcile.orphan_pools(
            self._replica.state, [(pool.id, pool.network_id) for pool in pools.values()]
        ):
            del pools[pool_id]
            if self._is_due(("pool", pool_id, network_id), seen) or self._is_abandoned(tombs.of(network_id)):
                returned += await self._return_pool(pool_id, network_id)
        chosen = self._chosen(pools)
        for pool_id in chosen:
            held = [
                Held(lease.lease, lease.owner_key, lease.kind == ENDPOINT) async for lease in self._ipam.leases(pool_id)
            ]
            due = [
                one
                for one in reconcile.orphan_leases(self._replica.state, held)
                if self._is_due(("lease", pool_id, one.lease.ip, str(one.lease.epoch), one.owner_key), seen)
            ]
            for one in due:
                returned += await self._return_lease(one)
        self._orphans = seen
        await self._clear_tombs()
        return returned

    def _chosen(self, pools: Mapping[str, PoolInfo]) -> Collection[str]:
        """Return the pools to look at: with another number of leases than recorded, with orphans, and in their turn."""
        state = self._replica.state
        suspects = {orphan[1] for orphan in self._orphans if orphan[0] == "lease"}
        chosen = {
            pool.id: None
            for pool in pools.values()
            if pool.id in suspects or not reconcile.is_balanced(state, pool.id, pool.network_id, pool.leased)
        }
        self._credit = min(self._credit + _LOOKED_AT, _LOOKED_AT)
        if not self._turns:
            self._turns.extend(pools)
        while self._turns and self._credit > 0:
            pool = pools.get(self._turns.popleft())
            if pool is not None and pool.id not in chosen:
                chosen[pool.id] = None
                self._credit -= max(1, pool.leased)
        return chosen

    def _is_due(self, orphan: tuple[str, ...], seen: dict[tuple[str, ...], float]) -> bool:
        now_s = self._monotonic()
        seen[orphan] = self._orphans.get(orphan, now_s)
        return now_s - seen[orphan] >= self._timing.orphan_grace.total_seconds()

    def _is_abandoned(self, claim: str) -> bool:
        """Whether somebody has buried an orphan, and died before he could say that it is gone."""
        tomb = self._tombs.get(claim)
        return tomb is not None and not tombs.is_gone(tomb) and tombs.age_s(tomb, self._clock()) > _RETURN_S

    async def _return_pool(self, pool_id: str, network_id: str) -> int:
        def is_recorded(state: State) -> bool:
            record = state.networks.get(network_id)
            return record is not None and any(subnet.pool_id == pool_id for subnet in record.value.subnets)

        claim = tombs.of(network_id)
        if not await self._bury(claim, tombs.Stage.RETURNING, Kind.NETWORK, network_id, is_recorded):
            return 0
        await self._networks.release_pool(pool_id)
        await self._replica.commit(self._tomb(claim, tombs.Stage.GONE))
        _log.info("orphan pool returned", pool_id=pool_id, network_id=network_id)
        return 1

    async def _return_lease(self, one: Held) -> int:
        def is_recorded(state: State) -> bool:
            return not reconcile.orphan_leases(state, [one])

        claim = tombs.of_lease(one.owner_key, one.lease)
        if not await self._bury(claim, tombs.Stage.GONE, Kind.ENDPOINT, one.owner_key, is_recorded):
            return 0
        await self._ipam.release_addresses([Release(one.lease.pool_id, one.lease.ip, one.owner_key, one.lease.epoch)])
        _log.info("orphan lease returned", pool_id=one.lease.pool_id, address=one.lease.ip, owner=one.owner_key)
        return 1

    async def _bury(
        self, claim: str, stage: tombs.Stage, kind: Kind, owner_id: str, is_recorded: Callable[[State], bool]
    ) -> bool:
        """Make sure that no record of this owner comes with the orphan; False: there is one."""
        change = self._tomb(claim, stage)

        def decision(state: State) -> commits.Commit | None:
            if is_recorded(state):
                return None
            record = state.record(kind, owner_id)
            guard = commits.Guard(kind=kind, id=owner_id, revision=record.revision if record is not None else 0)
            return msgspec.structs.replace(change, guards=(guard,))

        try:
            return await self._replica.decide(decision) is not None
        except errors.Conflict:
            # Another reconciler is at it, or was a short while ago.
            return False

    def _tomb(self, claim: str, stage: tombs.Stage) -> commits.Commit:
        """Return the commit that makes a tomb, in the place of the one that is known."""
        old = self._tombs.get(claim)
        fresh = self._tombs[claim] = tombs.made(stage, self._clock(), uuid.uuid4().hex[:16])
        return commits.Commit(take=((claim, fresh),), drop=((claim, old),) if old is not None else ())

    async def _clear_tombs(self) -> None:
        """Drop old tombs, and open the way past those of which nothing was left to return."""
        now_s = self._clock()
        old = [(claim, tomb) for claim, tomb in self._tombs.items() if tombs.age_s(tomb, now_s) > _TOMB_S]
        if old:
            await self._replica.commit(commits.Commit(drop=tuple(old)))
        for claim in self._tombs.keys() - dict(old).keys():
            if self._is_abandoned(claim):
                await self._replica.commit(self._tomb(claim, tombs.Stage.GONE))


async def _tried(event: str, object_id: str, work: Coroutine[object, object, None]) -> None:
    try:
        await work
    except errors.NetweftError as error:
        _log.warning(event, object_id=object_id, error=error.message)
