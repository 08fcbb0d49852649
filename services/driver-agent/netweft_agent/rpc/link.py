"""The agent's side of HostService: register, follow the change log, report.

Runs beside the AgentService as long as the agent lives. Without a controller the agent keeps what it has; the link
comes back with back-off, registers again, and resumes by revision.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Collection, Iterable

import msgspec
import structlog
from netweft.agent.v1 import agent_pb2
from netweft.common.v1 import host_pb2
from netweft.controller.v1 import host_pb2 as controller_pb2
from netweft.controller.v1 import host_pb2_grpc as controller_grpc
from netweft_common import client, errors

from netweft_agent.engine.engine import Drift, Engine, Status
from netweft_agent.engine.journal import Position
from netweft_agent.engine.paths import NarrowPath, PathWatch
from netweft_agent.engine.store import Change
from netweft_agent.rpc import convert
from netweft_agent.rpc.leases import JITTER, LeaseKeeper

log = structlog.get_logger(__name__)

ACK_PART = 5
"""A host that has come further says so after this part of the report interval, and no sooner unless it is asked."""
FIRST_RETRY_S = 0.2
LAST_RETRY_S = 5.0


class Link:
    """One agent's link to a controller.

    Args:
        connection: To the controller; owned by the caller.
        engine: The host's engine.
        host: What to register.
        leases: Who knows which endpoints have lost their addresses to others; None: nobody does.
        paths: Who knows which ways to other hosts are narrow; None: nobody does.
    """

    def __init__(
        self,
        connection: client.Connection,
        engine: Engine,
        host: host_pb2.Host,
        leases: LeaseKeeper | None = None,
        paths: PathWatch | None = None,
    ) -> None:
        self._leases = leases
        self._connection = connection
        self._stub = controller_grpc.HostServiceStub(connection.channel)
        connection.over_stream(
            self._stub.ReportStream, controller_pb2.ReportStreamRequest, report=self._stub.ReportHost
        )
        self._engine = engine
        self._host = host
        self._full_report = True
        self._told_drift = Drift()
        self._paths = paths
        self._told_paths: tuple[NarrowPath, ...] | None = None
        self._is_stale = False
        self._further = asyncio.Event()
        self._asked = asyncio.Event()
        self._delay_s = FIRST_RETRY_S
        self._tried = asyncio.Event()

    async def tried(self, timeout_s: float) -> None:
        """Wait until the host is registered or the first try has failed, but no longer than `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._tried.wait()

    def set_underlay_mtu(self, mtu_bytes: int) -> None:
        """Have the controller told another MTU of the interface that holds the tunnel address."""
        self._host.facts.underlay_mtu_bytes = mtu_bytes
        self._is_stale = True
        self._report_now()

    async def bind(self, networks: Collection[str]) -> None:
        """Have the controller know which networks a runtime has bound, all of them by id, before this returns.

        Raises:
            NetweftError: It does not know, and is told when the link is up again.
        """
        self._host.facts.bound_networks[:] = sorted(networks)
        self._is_stale = True
        await self._register()

    async def run(self) -> None:
        """Keep the link up until cancelled."""
        while True:
            try:
                await self._follow_and_report(await self._register())
            except* errors.NetweftError as group:
                self._tried.set()
                log.warning("controller link down", error=str(group.exceptions[0]), retry_s=self._delay_s)
            await asyncio.sleep(self._delay_s)
            self._delay_s = min(self._delay_s * 2, LAST_RETRY_S)

    async def _register(self) -> float:
        answer = await self._connection.call(
            self._stub.RegisterHost, controller_pb2.RegisterHostRequest(host=self._host), timeout_s=10
        )
        self._full_report = True
        self._told_drift = Drift()
        self._told_paths = None
        self._is_stale = False
        self._tried.set()
        log.info("registered", host_id=self._host.id, host_name=self._host.name)
        return float(answer.report_interval_seconds or 5)

    async def _follow_and_report(self, interval_s: float) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._report(interval_s))

    async def _follow(self) -> None:
        """Apply the stream; ends with the error that ended it."""
        position = self._engine.position
        request = controller_pb2.WatchHostRequest(
            host_id=self._host.id, resume_revision=position.revision, store_id=position.store_id
        )
        snapshot: list[Change] = []
        whole = True
        async for message in self._connection.stream(self._stub.WatchHost, request):
            before = self._engine.position
            same_store = message.store_id == before.store_id
            held = self._engine.store.objects.get if same_store else convert.nothing_held
            changes = _readable(message.changes, held)
            reached = Position(store_id=message.store_id, revision=message.revision)
            if not message.snapshot:
                await self._engine.apply(changes, reached)
            else:
                snapshot += changes
                whole = whole and len(changes) == len(message.changes)
                if message.snapshot_end and whole:
                    await self._engine.apply_snapshot(snapshot, reached)
                elif message.snapshot_end:
                    # Without knowing all that there shall be, nothing may be taken for gone.
                    await self._engine.apply(snapshot, reached)
            if message.report_now:
                self._report_now()
            if self._engine.position != before:
                self._further.set()
            self._delay_s = FIRST_RETRY_S
        raise errors.Unavailable("STREAM_ENDED", "the controller ended the host's stream; it is opened again")

    async def _report(self, interval_s: float) -> None:
        """Send heartbeats with the statuses that changed."""
        while True:
            if self._is_stale:
                await self._register()
            full = self._full_report
            self._full_report = False
            self._further.clear()
            self._asked.clear()
            statuses = self._statuses(full=full)
            drift = self._engine.drift
            narrow = self._paths.narrow if self._paths is not None else self._told_paths
            try:
                answer = await self._connection.call(
                    self._stub.ReportHost,
                    controller_pb2.ReportHostRequest(
                        host_id=self._host.id,
                        applied_revision=self._engine.position.revision,
                        statuses=[convert.status_message(one) for one in statuses],
                        full=full,
                        drift=convert.drift(drift) if drift != self._told_drift else None,
                        narrow_paths=convert.narrow_paths(self._host.id, narrow)
                        if narrow is not None and narrow != self._told_paths
                        else None,
                    ),
                    timeout_s=10,
                )
                self._told_drift = drift
                self._told_paths = narrow
            except errors.NetweftError:
                self._full_report = True
                raise
            self._full_report = answer.want_full
            if answer.want_full and not full:
                continue
            await self._rest(interval_s, answer.silent_ms / 1000)

    async def _rest(self, interval_s: float, silent_s: float) -> None:
        """Wait until the next report is due.

        Args:
            interval_s: Between two of them where nothing is to be told.
            silent_s: How long nothing need be told; less than a part of that: that part.
        """
        soonest_s = max(silent_s * (1 - JITTER * random.random()), interval_s / ACK_PART)  # noqa: S311  # no secret
        if not await _happens(self._asked, within_s=soonest_s):
            await _happens(self._further, within_s=max(0.0, interval_s - soonest_s))

    def _report_now(self) -> None:
        self._asked.set()
        self._further.set()

    def _statuses(self, *, full: bool) -> list[Status]:
        """Return what is to be reported; a lost lease is told with each report, until it is none."""
        fresh = {one.ref: one for one in self._engine.take_unreported()}
        lost = self._leases.lost() if self._leases is not None else {}
        known = self._engine.statuses
        told = known if full else fresh | {ref: known[ref] for ref in lost if ref in known}
        return [
            msgspec.structs.replace(one, error=lost[ref]) if ref in lost and one.error is None else one
            for ref, one in told.items()
        ]


async def _happens(event: asyncio.Event, *, within_s: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            return await event.wait()
    return False


def _readable(messages: Iterable[agent_pb2.Change], held: convert.Held) -> list[Change]:
    """Read changes, without those that this agent cannot read: they must not keep it from all the others."""
    changes = []
    for message in messages:
        try:
            changes.append(convert.change(message, held=held))
        except errors.InvalidArgument as error:
            log.error("change not understood, skipped", revision=message.revision, error=str(error))  # noqa: TRY400
    return changes
