"""The controller's composition root."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from netweft.controller.v1 import endpoint_pb2_grpc, event_pb2_grpc, host_pb2_grpc, network_pb2_grpc, sandbox_pb2_grpc
from netweft_common import (
    errors,
    faults,
    identity,
    interceptors,
    lifecycle,
    logs,
    loops,
    metrics,
    pki,
    server,
    settings,
    tls,
)
from netweft_common.identity import Role
from netweft_common.pace import Pace

from netweft_controller.clients.agents import Agents
from netweft_controller.clients.ipam import Ipam
from netweft_controller.domain.stock import MAX_AGE_S
from netweft_controller.engine.admission import Admission
from netweft_controller.engine.endpoints import EndpointEngine
from netweft_controller.engine.hosts import HostEngine
from netweft_controller.engine.joining import Joiner
from netweft_controller.engine.liveness import Liveness
from netweft_controller.engine.networks import NetworkEngine
from netweft_controller.engine.progress import Progress
from netweft_controller.engine.reconcile import Reconciler, Timing
from netweft_controller.engine.removal import Remover
from netweft_controller.engine.roster import Roster
from netweft_controller.engine.sandboxes import SandboxEngine
from netweft_controller.engine.settle import Settler
from netweft_controller.engine.stock import Stock
from netweft_controller.engine.turns import Turns
from netweft_controller.engine.updates import Updater
from netweft_controller.engine.work import Work
from netweft_controller.rpc.endpoints import EndpointService
from netweft_controller.rpc.events import EventService
from netweft_controller.rpc.hosts import HostService, JoinService
from netweft_controller.rpc.networks import NetworkService
from netweft_controller.rpc.sandboxes import SandboxService
from netweft_controller.settings import Settings
from netweft_controller.store.protocol import Store
from netweft_controller.store.redis import RedisStore
from netweft_controller.sync.held import Held
from netweft_controller.sync.hostwatch import HostWatches
from netweft_controller.sync.replica import Replica

_PACKAGE = "/netweft.controller.v1."
_CLIENTS = frozenset({Role.CLIENT, Role.ADMIN})
_AGENTS = frozenset({Role.AGENT, Role.ADMIN})
_EVERYBODY = frozenset({Role.CLIENT, Role.ADMIN, Role.AGENT})

# An agent acts for its host, and its front-ends (Docker, CNI) attach for the host's containers; rpc/own.py keeps it
# from those of others.
ACCESS: identity.Access = {
    f"{_PACKAGE}NetworkService/*": _EVERYBODY,
    f"{_PACKAGE}EndpointService/*": _EVERYBODY,
    f"{_PACKAGE}SandboxService/*": _EVERYBODY,
    f"{_PACKAGE}EventService/*": _EVERYBODY,
    f"{_PACKAGE}HostService/RegisterHost": _AGENTS,
    f"{_PACKAGE}HostService/ReportHost": _AGENTS,
    f"{_PACKAGE}HostService/ReportStream": _AGENTS,
    f"{_PACKAGE}HostService/WatchHost": _AGENTS,
    f"{_PACKAGE}HostService/GetHost": _EVERYBODY,
    f"{_PACKAGE}HostService/ListHosts": _EVERYBODY,
    f"{_PACKAGE}HostService/DeleteHost": _EVERYBODY,
    f"{_PACKAGE}HostService/CordonHost": _CLIENTS,
    f"{_PACKAGE}HostService/DrainHost": _CLIENTS,
    f"{_PACKAGE}HostService/CreateJoinToken": _CLIENTS,
    f"{_PACKAGE}HostService/RenewCertificate": frozenset({Role.AGENT}),
}

JOIN_ACCESS: identity.Access = {f"{_PACKAGE}JoinService/Join": frozenset({Role.GUEST})}


class Controller:
    """All parts of a controller, wired.

    Args:
        config: Settings.
        store: Where intent is kept.
        tls_files: For calls to IPAM and agents over TCP.
    """

    def __init__(self, config: Settings, store: Store, tls_files: tls.TlsFiles | None) -> None:
        self.store = store
        self.work = Work()
        self.replica = Replica(store)
        self.ipam = Ipam(config.ipam_target, tls_files=tls_files)
        self.agents = Agents(tls_files=tls_files, timeout=config.agent_timeout)
        self.settler = Settler(self.replica)
        self.liveness = Liveness(store, grace=config.host_grace)
        self.pace = Pace(config.reports_per_second, most_s=config.host_grace.total_seconds() / 2)
        self.watches = HostWatches(self.replica, silent_s=lambda: self.pace.silent_s)
        self.progress = Progress(self.replica, self.liveness, self.watches)
        self.held = Held(self.replica)
        self.remover = Remover(replica=self.replica, ipam=self.ipam, agents=self.agents, watches=self.watches)
        self.joiner = Joiner(
            replica=self.replica,
            agents=self.agents,
            remover=self.remover,
            settler=self.settler,
            watches=self.watches,
            held=self.held,
        )
        self.networks = NetworkEngine(replica=self.replica, ipam=self.ipam, work=self.work)
        self.stock = Stock(
            replica=self.replica,
            ipam=self.ipam,
            level=config.lease_ahead,
            max_age_s=min(MAX_AGE_S, config.orphan_grace.total_seconds() / 2),
        )
        self.endpoints = EndpointEngine(
            replica=self.replica,
            ipam=self.ipam,
            agents=self.agents,
            remover=self.remover,
            joiner=self.joiner,
            work=self.work,
            stock=self.stock,
            turns=Turns(config.attaches_at_once),
        )
        self.sandboxes = SandboxEngine(
            replica=self.replica,
            agents=self.agents,
            joiner=self.joiner,
            remover=self.remover,
            settler=self.settler,
            work=self.work,
        )
        self.updater = Updater(replica=self.replica, joiner=self.joiner, settler=self.settler, work=self.work)
        self.hosts = HostEngine(
            replica=self.replica,
            liveness=self.liveness,
            settler=self.settler,
            remover=self.remover,
            networks=self.networks,
            agents=self.agents,
            work=self.work,
            held=self.held,
        )
        authority = None
        if config.ca_key is not None:
            if config.tls_ca is None:
                raise errors.InvalidArgument(
                    "CA_MISSING", "ca_key needs tls_ca: the certificate of that key", field="ca_key"
                )
            authority = pki.load_authority(config.tls_ca, config.ca_key)
        self.admission = Admission(
            replica=self.replica, authority=authority, life=config.certificate_life, shared_s=self.liveness.now_s
        )
        self.roster = Roster(self.replica, self.ipam, is_closed=authority is not None)
        self.reconciler = Reconciler(
            replica=self.replica,
            ipam=self.ipam,
            joiner=self.joiner,
            remover=self.remover,
            networks=self.networks,
            hosts=self.hosts,
            liveness=self.liveness,
            timing=Timing(
                interval=config.reconcile_interval,
                settle_after=config.settle_after,
                orphan_grace=config.orphan_grace,
                forsake_after=config.forsake_after,
            ),
            clock=self.liveness.now_s,
        )
        self._report_interval_s = max(1, round(config.report_interval.total_seconds()))

    def add_to(self, grpc_server: server.Server) -> None:
        """Offer the services on a server."""
        grpc_server.add(
            network_pb2_grpc.add_NetworkServiceServicer_to_server,
            NetworkService(self.replica, self.networks, self.progress),
        )
        grpc_server.add(
            endpoint_pb2_grpc.add_EndpointServiceServicer_to_server,
            EndpointService(self.replica, self.endpoints, self.updater, self.settler),
        )
        grpc_server.add(
            sandbox_pb2_grpc.add_SandboxServiceServicer_to_server,
            SandboxService(self.replica, self.sandboxes, self.updater, self.settler),
        )
        grpc_server.add(
            host_pb2_grpc.add_HostServiceServicer_to_server,
            HostService(
                replica=self.replica,
                hosts=self.hosts,
                admission=self.admission,
                liveness=self.liveness,
                watches=self.watches,
                report_interval_s=self._report_interval_s,
                pace=self.pace,
            ),
        )
        grpc_server.add(event_pb2_grpc.add_EventServiceServicer_to_server, EventService(self.replica, self.liveness))

    def background(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Return what runs beside the services as long as the controller lives, by name."""
        return {
            "replica": self.replica.run(),
            "settler": self.settler.run(),
            "stock": self.stock.run(),
            "liveness": self.liveness.run(),
            "roster": self.roster.run(),
            "reconciler": self.reconciler.run(),
        }

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Own the sagas and connections while the block runs."""
        try:
            async with self.work:
                yield
        finally:
            await self.agents.close()
            await self.ipam.close()
            await self.store.close()


async def serve(config: Settings, life: lifecycle.Lifecycle) -> None:
    """Serve until asked to end."""
    tls_files = tls.from_settings(config.tls_ca, config.tls_cert, config.tls_key)
    registry = metrics.new_registry()
    rpc_metrics = interceptors.RpcMetrics(registry)
    store = RedisStore(
        config.store_url, prefix=config.cluster, log_writes=config.log_writes, request_ttl=config.request_ttl
    )
    controller = Controller(config, store, tls_files)
    async with controller.open():
        # A store that is away at the start is waited for: calls answer UNAVAILABLE until it is there.
        for name, task in controller.background().items():
            life.spawn(task, name=name)
        grpc_server = server.Server(
            listen_at=config.listen,
            tls_files=tls_files,
            admit=controller.admission.admit,
            access=ACCESS,
            rpc_metrics=rpc_metrics,
            grace=config.grace,
        )
        controller.add_to(grpc_server)
        async with contextlib.AsyncExitStack() as stack:
            if config.metrics_listen:
                await stack.enter_async_context(metrics.serve(registry, config.metrics_listen))
            if config.join_listen:
                await stack.enter_async_context(join_server(config, controller, tls_files, rpc_metrics))
            await stack.enter_async_context(grpc_server)
            stack.callback(controller.endpoints.close)
            life.ready(grpc_server.targets)
            await life.stopped()


def join_server(
    config: Settings, controller: Controller, tls_files: tls.TlsFiles | None, rpc_metrics: interceptors.RpcMetrics
) -> server.Server:
    """Return the server that machines without a certificate join at.

    Raises:
        InvalidArgument: Nobody can sign certificates, or there is no TLS.
    """
    if config.ca_key is None or tls_files is None:
        raise errors.InvalidArgument(
            "AUTHORITY_MISSING",
            "join_listen needs tls_ca, tls_cert, tls_key and ca_key: who joins gets a certificate over TLS",
            field="join_listen",
        )
    joining = server.Server(
        listen_at=config.join_listen,
        tls_files=tls_files,
        client_certificates=False,
        access=JOIN_ACCESS,
        rpc_metrics=rpc_metrics,
        grace=config.grace,
    )
    return joining.add(host_pb2_grpc.add_JoinServiceServicer_to_server, JoinService(controller.admission))


def main() -> None:
    """Run the controller."""
    try:
        config = settings.load(Settings, service="controller", description="netweft's controller.")
    except errors.NetweftError as error:
        sys.exit(f"netweft-controller: {error.message}")
    logs.configure(level=config.log_level, style=config.log_format)
    faults.arm()
    sys.exit(lifecycle.run(lambda life: serve(config, life), ready_fd=config.ready_fd, loop_factory=loops.fastest()))
