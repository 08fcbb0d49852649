"""Ask services how they are: gRPC's health protocol, and the controller's list of hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import netweft_client
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]  # ships no types
from netweft_common import client, errors

TIMEOUT_S = 2.0
POLL_S = 0.02


def check(target: str) -> str:
    """Return `serving`, `not serving`, or why there is no answer; never raises for a service that is ill."""
    return asyncio.run(_check(target))


def wait_for_hosts(target: str, names: Sequence[str], *, timeout_s: float) -> None:
    """Wait until the controller lists these hosts as ready.

    Raises:
        Unavailable: Some are missing after the time.
    """
    asyncio.run(_wait_for_hosts(target, names, timeout_s))


async def _wait_for_hosts(target: str, names: Sequence[str], timeout_s: float) -> None:
    async with netweft_client.AsyncClient(target, ipam_target=target) as asked:
        missing = set(names)
        try:
            async with asyncio.timeout(timeout_s):
                # A watch would miss what registered before it began, and this is over in a moment.
                while missing := set(names) - {host.name async for host in asked.list_hosts("state=ready")}:  # noqa: ASYNC110
                    await asyncio.sleep(POLL_S)
        except TimeoutError as error:
            raise errors.Unavailable(
                "HOSTS_MISSING", f"{', '.join(sorted(missing))} did not register at {target} within {timeout_s:g} s"
            ) from error


async def _check(target: str) -> str:
    async with client.Connection(target) as connection:
        stub = health_pb2_grpc.HealthStub(connection.channel)
        try:
            answer = await connection.call(stub.Check, health_pb2.HealthCheckRequest(), timeout_s=TIMEOUT_S)
        except errors.NetweftError as error:
            return error.reason.lower().replace("_", " ")
    name: str = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return name.lower().replace("_", " ")
