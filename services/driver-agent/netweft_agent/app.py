"""netweft-agent: the composition root."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Collection
from importlib.metadata import version
from pathlib import Path

from netweft.agent.v1 import agent_pb2_grpc
from netweft.common.v1 import host_pb2
from netweft_common import client, credentials, errors, faults, lifecycle, logs, metrics, server, settings, tls

from netweft_agent.domain.cluster import Cluster
from netweft_agent.domain.objects import Facts, HostFiles
from netweft_agent.drivers import base
from netweft_agent.engine.engine import Engine
from netweft_agent.engine.journal import Journal
from netweft_agent.engine.paths import PathWatch
from netweft_agent.engine.render import Renderer
from netweft_agent.frontends import cni, cni_socket, docker, docker_http, netavark
from netweft_agent.frontends.cni_pending import Pending
from netweft_agent.frontends.docker_memory import Memory
from netweft_agent.frontends.docker_networks import Bind
from netweft_agent.kernel import facts as kernel_facts
from netweft_agent.kernel import hostfiles
from netweft_agent.kernel import paths as kernel_paths
from netweft_agent.kernel.given import GivenNamespaces
from netweft_agent.kernel.linux import LinuxKernel
from netweft_agent.rpc import convert, link, servicer
from netweft_agent.rpc.cluster import ControllerCluster
from netweft_agent.rpc.leases import LeaseKeeper
from netweft_agent.settings import AgentSettings

REGISTER_WAIT_S = 3.0
SWITCH_INTERVAL_S = 0.0005


def main(argv: list[str] | None = None) -> int:
    """Run the agent until SIGTERM; returns the exit code."""
    try:
        chosen = settings.load(AgentSettings, service="agent", argv=argv, description=__doc__ or "")
    except errors.NetweftError as error:
        sys.stderr.write(f"netweft-agent: {error}\n")
        return 2
    # The kernel's thread hands the interpreter back and forth with the loop's: waiting 5 ms for it would be an attach.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    logs.configure(level=chosen.log_level, style=chosen.log_format)
    faults.arm()
    return lifecycle.run(lambda life: serve(chosen, life), ready_fd=chosen.ready_fd)


async def serve(chosen: AgentSettings, life: lifecycle.Lifecycle) -> None:
    """Bring the kernel to the journal, then serve and follow the controller.

    Raises:
        FailedPrecondition: The journal or what is remembered of Docker's networks is unreadable, a driver is installed
            twice, or an address is in use.
    """
    if chosen.tls_dir is not None and chosen.tls_ca is not None:
        raise errors.InvalidArgument("TLS_TWICE", "give tls_dir, or tls_ca, tls_cert and tls_key", field="tls_dir")
    tls_files = (
        credentials.files(chosen.tls_dir)
        if chosen.tls_dir is not None
        else tls.from_settings(chosen.tls_ca, chosen.tls_cert, chosen.tls_key)
    )
    drivers = base.load()
    host_id = own_id(chosen.state_dir)
    found = kernel_facts.probe(chosen.vtep_address)
    facts = Facts(
        host_id=host_id,
        vtep=chosen.vtep_address,
        underlay_mtu=found.underlay_mtu,
        underlay=ipaddress.ip_interface(found.underlay) if found.underlay else None,
        underlay_link=found.underlay_link,
        run_dir=str(chosen.run_dir),
        features=found.features,
        host_gateways=chosen.host_gateway_ip,
    )
    own_files = hostfiles.Paths()
    host_files = hostfiles.read(own_files)
    registry = metrics.new_registry()
    async with contextlib.AsyncExitStack() as stack:
        kernel = LinuxKernel(chosen.run_dir, tuple(Path(one) for one in chosen.file_roots))
        stack.push_async_callback(kernel.close)
        journal = Journal(chosen.state_dir / "journal")
        stack.callback(journal.close)
        engine = Engine(kernel=kernel, renderer=Renderer(drivers, facts, host_files, kernel.ports), journal=journal)
        await engine.start()
        life.spawn(engine.run(), name="engine")
        life.spawn(engine.repair_loop(chosen.repair_interval.total_seconds()), name="repair")
        changed_files = hostfiles.changes(own_files, host_files, interval_s=chosen.repair_interval.total_seconds())
        life.spawn(follow_host(engine, changed_files), name="host files")
        if chosen.metrics_listen:
            await stack.enter_async_context(metrics.serve(registry, chosen.metrics_listen))
        memory = Memory(chosen.state_dir)
        report = host_facts(found, drivers, memory.bound)
        watch = watch_paths(chosen, engine)
        keeper = await keep_leases(chosen, tls_files, engine, host_id, stack)
        grpc_server = server.Server(
            listen_at=chosen.listen or (f"unix:{chosen.run_dir}/agent.sock",),
            tls_files=tls_files,
            access=servicer.ACCESS,
            registry=registry,
            grace=chosen.grace,
        )
        grpc_server.add(
            agent_pb2_grpc.add_AgentServiceServicer_to_server, servicer.AgentServicer(engine, host_id, report, keeper)
        )
        await stack.enter_async_context(grpc_server)
        if chosen.controller:
            connection = await stack.enter_async_context(client.Connection(chosen.controller, tls_files=tls_files))
            host = host_pb2.Host(
                id=host_id,
                name=chosen.host_name or socket.gethostname(),
                agent_target=chosen.advertise or grpc_server.targets[0],
                vtep_address=chosen.vtep_address,
                facts=report,
            )
            if chosen.tls_dir is not None:
                keep_certificate(chosen.tls_dir, connection, host, life)
            to_controller = link.Link(connection, engine, host, keeper, watch)
            if watch is not None:
                watch.on_mtu = to_controller.set_underlay_mtu
            life.spawn(to_controller.run(), name="link")
            # Who waits for readiness expects the controller to know this host, where there is a controller.
            await to_controller.tried(REGISTER_WAIT_S)
            cluster = ControllerCluster(connection, host_id)
            await offer_to_runtimes(
                chosen, cluster, engine, host_id, memory=memory, bind=to_controller.bind, life=life, stack=stack
            )
        if watch is not None:
            life.spawn(watch.run(), name="paths")
        if keeper is not None:
            life.spawn(keeper.run(), name="leases")
        life.ready(grpc_server.targets)
        await life.stopped()


async def offer_to_runtimes(
    chosen: AgentSettings,
    cluster: Cluster,
    engine: Engine,
    host_id: str,
    *,
    memory: Memory,
    bind: Bind,
    life: lifecycle.Lifecycle,
    stack: contextlib.AsyncExitStack,
) -> None:
    """Answer the plugin of CNI and netavark, and Docker, as long as the agent runs."""
    plugin = cni.CniService(
        cluster=cluster,
        host=engine,
        given=GivenNamespaces(chosen.run_dir),
        pending=Pending(chosen.state_dir),
        host_id=host_id,
    )
    await stack.enter_async_context(
        cni_socket.serve(chosen.run_dir / "cni.sock", netavark.NetavarkService(cni=plugin, cluster=cluster))
    )
    life.spawn(plugin.run(), name="cni")
    if chosen.docker_socket:
        service = docker.DockerService(cluster=cluster, places=engine, memory=memory, host_id=host_id, bind=bind)
        life.spawn(docker_http.serve_always(Path(chosen.docker_socket), service), name="docker socket")
        life.spawn(service.run(), name="docker")


def keep_certificate(
    folder: Path, connection: client.Connection, host: host_pb2.Host, life: lifecycle.Lifecycle
) -> None:
    """Have the host be met by its id, and its certificate renewed."""
    from netweft_common import pki  # noqa: PLC0415  # cryptography takes 60 ms, and hosts without TLS need none

    from netweft_agent.rpc import certificate  # noqa: PLC0415  # as above

    host.tls_server_name = pki.agent_server_name(host.id)
    life.spawn(certificate.Certificate(folder, connection).run(), name="certificate")


def watch_paths(chosen: AgentSettings, engine: Engine) -> PathWatch | None:
    """Return who watches the ways to other hosts; None where there is no tunnel address, or it is not wanted."""
    interval_s = chosen.path_interval.total_seconds()
    if not chosen.vtep_address or not interval_s:
        return None
    underlay = kernel_paths.Underlay(chosen.vtep_address)
    return PathWatch(engine, kernel_paths.measure, underlay.mtu, interval_s=interval_s)


async def keep_leases(
    chosen: AgentSettings,
    tls_files: tls.TlsFiles | None,
    engine: Engine,
    host_id: str,
    stack: contextlib.AsyncExitStack,
) -> LeaseKeeper | None:
    """Return who speaks for this host to IPAM; None where no IPAM is set. The stack closes the connections."""
    if not chosen.ipam:
        logs.get().warning(
            "IPAM is not told of this host",
            hint="set ipam: after a failover its store cannot know which addresses are here",
        )
        return None
    connections = [
        await stack.enter_async_context(client.Connection(target, tls_files=tls_files)) for target in chosen.ipam
    ]
    return LeaseKeeper(connections, engine, host_id, interval_s=chosen.lease_interval.total_seconds())


async def follow_host(engine: Engine, changed: AsyncIterator[HostFiles]) -> None:
    """Have sandboxes' files follow the host's, until cancelled."""
    async for files in changed:
        try:
            await engine.follow_host(files)
        except errors.NetweftError as error:
            logs.get().warning("files of sandboxes do not follow the host's", error=str(error))


def own_id(state_dir: Path) -> str:
    """Return this host's id, made once and kept in the state folder.

    Raises:
        FailedPrecondition: The file holds something else.
    """
    path = state_dir / "host-id"
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists():
        text = path.read_text().strip()
        if not re.fullmatch(r"[0-9a-f]{32}", text):
            raise errors.FailedPrecondition(
                "HOST_ID_BROKEN", f"{path} holds no host id; remove it and the host gets a new one", path=str(path)
            )
        return text
    fresh = uuid.uuid4().hex
    temporary = path.with_suffix(".new")
    temporary.write_text(fresh + "\n")
    temporary.replace(path)
    return fresh


def host_facts(
    found: kernel_facts.KernelFacts, drivers: dict[str, base.Driver], bound_networks: Collection[str]
) -> host_pb2.HostFacts:
    """Write what is reported of this host."""
    return host_pb2.HostFacts(
        agent_version=version("netweft-agent"),
        kernel_release=found.kernel_release,
        boot_id=found.boot_id,
        features=sorted(found.features),
        drivers=[convert.driver_info(one) for _, one in sorted(drivers.items())],
        underlay_mtu_bytes=found.underlay_mtu,
        routes=list(found.routes),
        name_servers=list(found.name_servers),
        bound_networks=sorted(bound_networks),
    )


if __name__ == "__main__":
    sys.exit(main())
