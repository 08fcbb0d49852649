"""HostService: the agents' side, and how clients see hosts."""

# ruff: noqa: N802  # methods are named by the protocol

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from netweft.common.v1 import host_pb2 as common_host_pb2
from netweft.controller.v1 import host_pb2, host_pb2_grpc
from netweft_common import exchange, identity, pki
from netweft_common.pace import Pace

from netweft_controller.clients import wire
from netweft_controller.domain import fields, filters, names
from netweft_controller.domain.objects import Host, HostState, Record
from netweft_controller.engine.admission import Admission
from netweft_controller.engine.hosts import HostEngine
from netweft_controller.engine.liveness import Liveness
from netweft_controller.rpc import convert
from netweft_controller.sync.hostwatch import HostWatches
from netweft_controller.sync.replica import Replica


class HostService(host_pb2_grpc.HostServiceServicer):
    """Hosts.

    Args:
        replica: What is read.
        hosts: What is done.
        admission: Who becomes a host.
        liveness: Heartbeats.
        watches: Streams to hosts.
        report_interval_s: How often agents are asked to report, in seconds.
        pace: How long they may be silent where they are many.
    """

    def __init__(
        self,
        *,
        replica: Replica,
        hosts: HostEngine,
        admission: Admission,
        liveness: Liveness,
        watches: HostWatches,
        report_interval_s: int,
        pace: Pace,
    ) -> None:
        self._replica = replica
        self._hosts = hosts
        self._admission = admission
        self._liveness = liveness
        self._watches = watches
        self._report_interval_s = report_interval_s
        self._pace = pace

    async def RegisterHost(self, request: host_pb2.RegisterHostRequest, context: Any) -> host_pb2.RegisterHostResponse:
        """Record a host."""
        del context
        host = wire.host_from(request.host)
        identity.require_self(host.id, host.name)
        if host.tls_server_name not in ("", pki.agent_server_name(host.id)):
            raise fields.invalid(
                "host.tls_server_name",
                f"it must be empty, or {pki.agent_server_name(host.id)}: an agent is met by no other name",
            )
        # By its own name alone an agent could take over another host's id.
        record = await self._hosts.register(host, authorise=lambda held: identity.require_self(held.id, held.name))
        return host_pb2.RegisterHostResponse(
            host=self._message(record), report_interval_seconds=self._report_interval_s
        )

    async def ReportHost(self, request: host_pb2.ReportHostRequest, context: Any) -> host_pb2.ReportHostResponse:
        """Take note of a heartbeat."""
        del context
        self._require_self(request.host_id)
        statuses = [one for message in request.statuses if (one := wire.status_from(message)) is not None]
        want_full = self._hosts.report(request.host_id, statuses, full=request.full, revision=request.applied_revision)
        if request.HasField("drift"):
            await self._hosts.note_drift(request.host_id, wire.drift_from(request.drift))
        if request.HasField("narrow_paths"):
            await self._hosts.note_narrow_paths(request.host_id, wire.narrow_paths_from(request.narrow_paths))
        return host_pb2.ReportHostResponse(want_full=want_full, silent_ms=self._pace.silent_ms(request.host_id))

    def ReportStream(self, requests: Any, context: Any) -> Any:
        """Take note of heartbeats, over a stream."""
        return exchange.serve(requests, context, host_pb2.ReportStreamResponse, {"report": self.ReportHost})

    async def WatchHost(self, request: host_pb2.WatchHostRequest, context: Any) -> AsyncIterator[Any]:
        """Stream what a host must have."""
        del context
        self._require_self(request.host_id)
        stream = self._watches.stream(
            request.host_id, resume_revision=request.resume_revision, store_id=request.store_id
        )
        try:
            async for batch in stream:
                yield wire.watch_response(
                    batch.changes,
                    revision=batch.revision,
                    snapshot=batch.snapshot,
                    snapshot_end=batch.snapshot_end,
                    store_id=batch.store_id,
                    report_now=batch.report_now,
                )
        finally:
            await stream.aclose()  # type: ignore[attr-defined]  # an async generator

    async def GetHost(self, request: host_pb2.GetHostRequest, context: Any) -> host_pb2.GetHostResponse:
        """Return one host."""
        del context
        return host_pb2.GetHostResponse(host=self._message(names.get_host(self._replica.state, request.host)))

    async def ListHosts(self, request: host_pb2.ListHostsRequest, context: Any) -> host_pb2.ListHostsResponse:
        """List hosts by name."""
        del context
        found, token = filters.page(
            filter(filters.hosts(request.filters, self._liveness.state), self._replica.state.hosts.values()),
            lambda record: (record.value.name,),
            size=request.page_size,
            token=request.page_token,
        )
        return host_pb2.ListHostsResponse(hosts=[self._message(record) for record in found], next_page_token=token)

    async def DeleteHost(self, request: host_pb2.DeleteHostRequest, context: Any) -> host_pb2.DeleteHostResponse:
        """Forget a host."""
        del context
        identity.require_self(request.host)  # an agent names its host as its certificate does
        await self._hosts.delete(
            convert.request("DeleteHost", request, request.request_id), request.host, force=request.force
        )
        return host_pb2.DeleteHostResponse()

    async def CordonHost(self, request: host_pb2.CordonHostRequest, context: Any) -> host_pb2.CordonHostResponse:
        """Let a host take new endpoints, or no longer."""
        del context
        record = await self._hosts.cordon(request.host, cordoned=request.cordoned)
        return host_pb2.CordonHostResponse(host=self._message(record))

    async def DrainHost(self, request: host_pb2.DrainHostRequest, context: Any) -> host_pb2.DrainHostResponse:
        """Cordon a host and take away what is on it."""
        del context
        drained = await self._hosts.drain(request.host)
        return host_pb2.DrainHostResponse(
            host=self._message(drained.host),
            detached_endpoints=drained.endpoints,
            deleted_sandboxes=drained.sandboxes,
        )

    async def CreateJoinToken(
        self, request: host_pb2.CreateJoinTokenRequest, context: Any
    ) -> host_pb2.CreateJoinTokenResponse:
        """Make a pending host and its token."""
        del context
        asked = convert.request("CreateJoinToken", request, request.request_id)
        token, record = await self._admission.create_token(asked, request.host_name, request.ttl_seconds)
        return host_pb2.CreateJoinTokenResponse(token=token.text(), host=self._message(record))

    async def RenewCertificate(
        self, request: host_pb2.RenewCertificateRequest, context: Any
    ) -> host_pb2.RenewCertificateResponse:
        """Issue the next certificate of the caller's host."""
        del context
        certificate = self._admission.renew(identity.current(), request.certificate_request)
        return host_pb2.RenewCertificateResponse(certificate=certificate)

    def _message(self, record: Record[Host]) -> common_host_pb2.Host:
        id_ = record.value.id
        state = HostState.PENDING if record.value.is_pending else self._liveness.state(id_)
        return wire.host(record, state, self._liveness.heartbeat_ms(id_))

    def _require_self(self, host_id: str) -> None:
        record = self._replica.state.hosts.get(host_id)
        identity.require_self(host_id, *((record.value.name,) if record is not None else ()))


class JoinService(host_pb2_grpc.JoinServiceServicer):
    """What machines without a certificate may ask.

    Args:
        admission: Who becomes a host.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    async def Join(self, request: host_pb2.JoinRequest, context: Any) -> host_pb2.JoinResponse:
        """Make a machine a host."""
        del context
        certificate, name = await self._admission.join(
            request.host_id, request.secret, request.certificate_request, request.host_name
        )
        return host_pb2.JoinResponse(certificate=certificate, host_name=name)
