"""netweft-ipam, composed: settings, store, server, sweep."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Sequence

import prometheus_client
from netweft.ipam.v1 import ipam_pb2_grpc
from netweft_common import errors, identity, lifecycle, logs, loops, metrics, settings, tls
from netweft_common.identity import Role
from netweft_common.pace import Pace
from netweft_common.server import Server

from netweft_ipam.engine.figures import LeaseMetrics, PoolMetrics, StoreMetrics
from netweft_ipam.engine.gate import Gate
from netweft_ipam.engine.nullspace import NullSpaceStore
from netweft_ipam.rpc.servicer import IpamServicer
from netweft_ipam.settings import IpamSettings
from netweft_ipam.store.connection import Connection
from netweft_ipam.store.protocol import Store
from netweft_ipam.store.redis_store import RedisStore

OBSERVE_INTERVAL_S = 0.5
POOLS_INTERVAL_S = 15.0
POOLS_SHOWN = 1000
DESCRIPTION = "The address service: pools and leases of addresses, kept in Redis."

_SERVICE = "/netweft.ipam.v1.IpamService/"
_CONTROLLERS = frozenset({Role.CONTROLLER, Role.ADMIN})
_HOSTS = _CONTROLLERS | {Role.AGENT}
_READERS = _HOSTS | {Role.CLIENT}

# Leases belong to records of the controller: whoever else gave one back would take an address from a running container.
# A host speaks for itself alone: the servicer checks that.
ACCESS: identity.Access = {
    f"{_SERVICE}RequestPool": _CONTROLLERS,
    f"{_SERVICE}ReleasePool": _CONTROLLERS,
    f"{_SERVICE}RequestAddresses": _CONTROLLERS,
    f"{_SERVICE}ReleaseAddresses": _CONTROLLERS,
    f"{_SERVICE}AddressStream": _CONTROLLERS,
    f"{_SERVICE}TransferLeases": _HOSTS,
    f"{_SERVICE}SetHosts": _CONTROLLERS,
    f"{_SERVICE}RenewLeases": _HOSTS,
    f"{_SERVICE}RenewStream": _HOSTS,
    f"{_SERVICE}ReassertLeases": _HOSTS,
    f"{_SERVICE}GetDefaultAddressSpaces": _READERS,
    f"{_SERVICE}GetPool": _READERS,
    f"{_SERVICE}ListPools": _READERS,
    f"{_SERVICE}ListLeases": _READERS,
    f"{_SERVICE}LookupAddress": _READERS,
    f"{_SERVICE}ListLeaseEvents": _READERS,
    f"{_SERVICE}WatchLeases": _READERS,
}


def build_store(chosen: IpamSettings, *, registry: prometheus_client.CollectorRegistry | None = None) -> RedisStore:
    """Return the store that the settings name; nothing is sent yet.

    Args:
        chosen: Settings.
        registry: Where the time of store calls is shown; None: nowhere.

    Raises:
        InvalidArgument: The URL is malformed.
    """
    connection = Connection.open(
        chosen.store_url,
        replicas=chosen.wait_replicas,
        replicas_timeout_s=chosen.wait_timeout.total_seconds(),
    )
    if registry is not None:
        connection.observe(StoreMetrics(registry).observe)
    return RedisStore(
        connection,
        prefix=chosen.key_prefix,
        quarantine_ms=round(chosen.quarantine.total_seconds() * 1000),
        check_history=chosen.check_history,
        patience=chosen.patience(),
        events_kept=chosen.events_kept,
    )


def build_server(
    chosen: IpamSettings,
    store: Store,
    *,
    registry: prometheus_client.CollectorRegistry | None = None,
    gate: Gate | None = None,
) -> Server:
    """Return the server over a store; entering it serves.

    Args:
        chosen: Settings.
        store: Where pools and leases are.
        registry: Where calls are counted; None: nowhere.
        gate: Who lets agents in; None: one that hears of hosts by this server's own calls only.

    Raises:
        InvalidArgument: A setting is malformed.
    """
    gate = gate if gate is not None else Gate(store)
    server = Server(
        listen_at=chosen.listen,
        admit=gate.admit,
        tls_files=tls.from_settings(chosen.tls_ca, chosen.tls_cert, chosen.tls_key),
        access=ACCESS,
        grace=chosen.grace,
        registry=registry,
    )
    leases = LeaseMetrics(registry) if registry is not None else None
    # Who is waited for after a failover, and until when, goes by heartbeats.
    most_s = min(chosen.report_live, chosen.report_most).total_seconds() / 2
    pace = Pace(chosen.renewals_per_second, most_s=most_s)
    servicer = IpamServicer(NullSpaceStore(store), chosen.predefined(), leases, gate, pace)
    return server.add(ipam_pb2_grpc.add_IpamServiceServicer_to_server, servicer)


async def sweep_for_ever(store: Store, *, interval_s: float) -> None:
    """End leases whose time is over, every so often; a store that is away is tried again."""
    log = logs.get(task="sweep")
    away = False
    while True:
        await asyncio.sleep(interval_s)
        try:
            ended = await store.sweep()
        except errors.NetweftError as error:
            if not away:
                log.warning("sweep failed", reason=error.reason, error=error.message)
            away = True
            continue
        if away:
            log.info("sweep works again")
        away = False
        if ended:
            log.info("leases ran out", count=ended)


async def warn_once(store: Store) -> None:
    """Name what the store lacks, as soon as it answers; one that does not tell may lack anything."""
    away = False
    while True:
        try:
            found = await store.weaknesses()
        except errors.Unavailable as error:
            if not away:
                # Whoever started it with a wrong address or password should not have to wait for the first call.
                logs.get().warning("store does not answer", reason=error.reason, error=error.message)
            away = True
            await asyncio.sleep(OBSERVE_INTERVAL_S)
            continue
        except errors.NetweftError as error:
            found = [f"the store does not tell what it is, so version and durability are unknown: {error.message}"]
        for weakness in found:
            logs.get().warning("store weakness", what=weakness)
        return


async def count_pools(store: Store, pools: PoolMetrics) -> None:
    """Show the use of the first thousand pools, every so often."""
    while True:
        with contextlib.suppress(errors.NetweftError):
            pools.show((await store.list_pools(space="", start=None, limit=POOLS_SHOWN)).pools)
        await asyncio.sleep(POOLS_INTERVAL_S)


async def observe_for_ever(store: Store, gate: Gate) -> None:
    """Notice soon that the store's history is another, for hosts to hear of it, and that there are other hosts."""
    while True:
        with contextlib.suppress(errors.NetweftError):
            await gate.look()
            await store.observe()
        await asyncio.sleep(OBSERVE_INTERVAL_S)


async def serve(chosen: IpamSettings, life: lifecycle.Lifecycle) -> None:
    """Serve until asked to end."""
    async with contextlib.AsyncExitStack() as stack:
        registry = metrics.new_registry()
        if chosen.metrics_listen:
            await stack.enter_async_context(metrics.serve(registry, chosen.metrics_listen))
        store = build_store(chosen, registry=registry)
        stack.push_async_callback(store.aclose)
        gate = Gate(store)
        server = await stack.enter_async_context(build_server(chosen, store, registry=registry, gate=gate))
        life.spawn(warn_once(store), name="warnings")
        life.spawn(sweep_for_ever(store, interval_s=chosen.sweep_interval.total_seconds()), name="sweep")
        if chosen.metrics_listen:
            life.spawn(count_pools(store, PoolMetrics(registry)), name="count-pools")
        life.spawn(observe_for_ever(store, gate), name="observe")
        life.ready(server.targets)
        await life.stopped()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the service; the process's exit code."""
    try:
        chosen = settings.load(IpamSettings, service="ipam", argv=argv, description=DESCRIPTION)
    except errors.NetweftError as error:
        sys.stderr.write(f"netweft-ipam: {error.message}\n")
        return 2
    logs.configure(level=chosen.log_level, style=chosen.log_format)
    return lifecycle.run(lambda life: serve(chosen, life), ready_fd=chosen.ready_fd, loop_factory=loops.fastest())


if __name__ == "__main__":
    sys.exit(main())
