"""A gRPC server: listeners, health, reflection, and a drain that lets calls finish.

Use it as a context: entering binds and serves, leaving drains.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import prometheus_client
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]  # ships no types
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]  # ships no types

from netweft_common import errors, identity, interceptors, listen, logs, tls

S = TypeVar("S")

MESSAGE_LIMIT_BYTES = 16 << 20  # a batch of 1,024 attaches is 1 to 2 MiB

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
    # Two servers on one port would share its connections without a word.
    ("grpc.so_reuseport", 0),
    # Clients ping every 20 s (client.py); a server that thinks that too often ends the connection (too_many_pings).
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Notice a host that vanished without a FIN within 80 s, so that its streams end.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


class Server:
    """One gRPC server of this process.

    Args:
        listen_at: Targets: `unix:/path`, `host:port`; port 0 lets the kernel choose.
        tls_files: TLS of all TCP targets; without it TCP is loopback only.
        client_certificates: False: clients of TCP show none, and are guests to `access`.
        admit: Asked of each caller with a certificate, before its role is; raises for one that is not let in.
        access: Roles by method for callers with a certificate; None lets each of them call everything.
        registry: Where RPCs are counted; None counts nothing.
        rpc_metrics: In place of registry where several servers of a process share one.
        grace: How long calls in flight may take after the drain began.
        log: Logger; a default one when None.
    """

    def __init__(
        self,
        *,
        listen_at: Sequence[str],
        tls_files: tls.TlsFiles | None = None,
        client_certificates: bool = True,
        admit: Callable[[identity.Identity], None] | None = None,
        access: identity.Access | None = None,
        registry: prometheus_client.CollectorRegistry | None = None,
        rpc_metrics: interceptors.RpcMetrics | None = None,
        grace: dt.timedelta = dt.timedelta(seconds=10),
        log: logs.Logger | None = None,
    ) -> None:
        self._listen_at = tuple(listen_at)
        self._tls_files = tls_files
        self._client_certificates = client_certificates
        self._grace = grace
        self._log: logs.Logger = log if log is not None else logs.get()
        if rpc_metrics is None and registry is not None:
            rpc_metrics = interceptors.RpcMetrics(registry)
        self._interceptor = interceptors.ServerInterceptor(
            tls=tls_files is not None,
            client_certificates=client_certificates,
            admit=admit,
            access=access,
            metrics=rpc_metrics,
            log=self._log,
        )
        self._additions: list[tuple[Callable[[Any, Any], None], object]] = []
        self._names: list[str] = []
        self._sockets: list[listen.UnixAddress] = []
        self._server: aio.Server | None = None
        self._health = health.aio.HealthServicer()
        self._targets: tuple[str, ...] = ()
        self._drained: asyncio.Task[None] | None = None

    def add(self, add_servicer: Callable[[S, Any], None], servicer: S) -> Self:
        """Offer a service; before the server is entered.

        Args:
            add_servicer: Generated function, for example `ipam_pb2_grpc.add_IpamServiceServicer_to_server`.
            servicer: Its implementation.
        """
        self._additions.append((add_servicer, servicer))
        return self

    @property
    def targets(self) -> tuple[str, ...]:
        """Targets as bound, in the order asked for: the kernel's choice in place of port 0."""
        return self._targets

    @property
    def services(self) -> tuple[str, ...]:
        """Full names of the services offered, without health and reflection."""
        return tuple(self._names)

    async def __aenter__(self) -> Self:
        """Bind and serve.

        Raises:
            InvalidArgument: A target is malformed, or TCP beyond loopback without TLS.
            FailedPrecondition: An address is in use, or a TLS file is unusable.
        """
        if not self._listen_at:
            raise errors.InvalidArgument("NO_TARGET", "a server needs at least one target to listen at", field="listen")
        addresses = [listen.parse(target) for target in self._listen_at]
        for address in addresses:
            self._check_insecure(address)
        self._server = aio.server(interceptors=[self._interceptor], options=OPTIONS)
        try:
            self._register(self._server)
            self._targets = tuple(self._bind(self._server, address) for address in addresses)
            await self._server.start()
        except BaseException:
            await self._server.stop(None)
            self._remove_sockets()
            raise
        for name in self._names:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._log.info("serving", targets=",".join(self._targets), services=",".join(self._names))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drain."""
        await self.drain()

    async def drain(self) -> None:
        """Say NOT_SERVING, stop accepting, end streams, and let calls in flight finish within the grace. Idempotent.

        A cancelled caller does not shorten the drain of the others: it goes on in its own task.
        """
        if self._drained is None:
            self._drained = asyncio.get_running_loop().create_task(self._drain(), name="drain")
        await asyncio.shield(self._drained)

    async def _drain(self) -> None:
        if self._server is None:
            return
        self._log.info("draining", grace_s=self._grace.total_seconds())
        await self._health.enter_graceful_shutdown()
        ending = asyncio.get_running_loop().create_task(self._interceptor.drain(), name="drain calls")
        try:
            await self._server.stop(self._grace.total_seconds())
        finally:
            ending.cancel()
        self._remove_sockets()
        self._log.info("drained")

    def _check_insecure(self, address: listen.Address) -> None:
        if self._tls_files is None and isinstance(address, listen.TcpAddress) and not address.is_loopback:
            raise errors.InvalidArgument(
                "INSECURE_TARGET",
                f"refusing to listen at {address.target} without TLS: anyone who reaches it could command this "
                "service; set tls_ca, tls_cert and tls_key, or listen on loopback or a unix socket",
                field="listen",
                target=address.target,
            )

    def _register(self, server: aio.Server) -> None:
        recorder = _NameRecorder(server)
        for add_servicer, servicer in self._additions:
            add_servicer(servicer, recorder)
        self._names = recorder.names
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection([*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)

    def _bind(self, server: aio.Server, address: listen.Address) -> str:
        if isinstance(address, listen.UnixAddress):
            listen.prepare_socket(address)
        try:
            if isinstance(address, listen.UnixAddress):
                with listen.socket_umask():
                    server.add_insecure_port(address.target)
                self._sockets.append(address)
                return address.target
            if self._tls_files is not None:
                port = server.add_secure_port(address.target, self._credentials(self._tls_files))
            else:
                port = server.add_insecure_port(address.target)
        except RuntimeError as error:
            raise errors.FailedPrecondition(
                "ADDRESS_UNUSABLE",
                f"cannot listen at {address.target}: the address is in use or not this machine's; choose another",
                target=address.target,
            ) from error
        return listen.TcpAddress(host=address.host, port=port).target

    def _credentials(self, files: tls.TlsFiles) -> grpc.ServerCredentials:
        return tls.server_credentials(files, client_certificates=self._client_certificates)

    def _remove_sockets(self) -> None:
        for address in self._sockets:
            listen.remove_socket(address)


class _NameRecorder:
    """Stands in for the server in generated `add_..._to_server` functions, to learn the services' names."""

    def __init__(self, server: aio.Server) -> None:
        self._server = server
        self.names: list[str] = []

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        for handler in handlers:
            name = getattr(handler, "service_name", None)
            if callable(name):
                self.names.append(name())
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self._server.add_registered_method_handlers(service, handlers)
