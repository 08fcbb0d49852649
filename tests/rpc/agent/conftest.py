from __future__ import annotations

import contextlib

import pytest
from netweft.agent.v1 import agent_pb2_grpc
from netweft.common.v1 import host_pb2
from netweft_agent.rpc import convert, servicer
from netweft_common import client, server

from tests.support.agent import DRIVERS, Rig


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def rig(tmp_path, anyio_backend):
    async with Rig(tmp_path) as running:
        yield running


class Agent:
    """A client of an agent that really serves."""

    def __init__(self, connection, rig):
        self.rig = rig
        self._connection = connection
        self._stub = agent_pb2_grpc.AgentServiceStub(connection.channel)

    async def call(self, method, request):
        return await self._connection.call(getattr(self._stub, method), request, timeout_s=10)


@pytest.fixture
async def agent(rig, tmp_path, anyio_backend):
    facts = host_pb2.HostFacts(kernel_release="6.1", drivers=[convert.driver_info(one) for one in DRIVERS.values()])
    target = f"unix:{tmp_path}/agent.sock"
    async with contextlib.AsyncExitStack() as stack:
        serving = server.Server(listen_at=[target], access=servicer.ACCESS)
        serving.add(
            agent_pb2_grpc.add_AgentServiceServicer_to_server, servicer.AgentServicer(rig.engine, "h" * 32, facts)
        )
        await stack.enter_async_context(serving)
        connection = await stack.enter_async_context(client.Connection(target))
        yield Agent(connection, rig)
