"""Ask a service how it is, by gRPC's health protocol."""

from __future__ import annotations

import asyncio

from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]  # ships no types
from netweft_common import client, errors

TIMEOUT_S = 2.0


def check(target: str) -> str:
    """Return `serving`, `not serving`, or why there is no answer; never raises for a service that is ill."""
    return asyncio.run(_check(target))


async def _check(target: str) -> str:
    async with client.Connection(target) as connection:
        stub = health_pb2_grpc.HealthStub(connection.channel)
        try:
            answer = await connection.call(stub.Check, health_pb2.HealthCheckRequest(), timeout_s=TIMEOUT_S)
        except errors.NetweftError as error:
            return error.reason.lower().replace("_", " ")
    name: str = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return name.lower().replace("_", " ")
