from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import importlib.util
import shutil
import sys
import tempfile
import uuid
from pathlib import Path

import grpc
import pytest
from netweft.agent.v1 import agent_pb2_grpc
from netweft.common.v1 import host_pb2 as common_host_pb2
from netweft.common.v1 import network_pb2 as common_network_pb2
from netweft.controller.v1 import (
    endpoint_pb2,
    endpoint_pb2_grpc,
    event_pb2_grpc,
    host_pb2,
    host_pb2_grpc,
    network_pb2,
    network_pb2_grpc,
    sandbox_pb2_grpc,
)
from netweft.ipam.v1 import ipam_pb2_grpc
from netweft_common import client, logs, server
from netweft_controller.app import Controller
from netweft_controller.settings import Settings
from netweft_controller.store.redis import RedisStore


def _sibling(name: str, path: Path):
    """Test files are found by path (importmode=importlib), so what they share is loaded by path."""
    full = f"netweft_tests_controller_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


fakes = _sibling("fakes", Path(__file__).with_name("fakes.py"))
_stores = _sibling("stores", Path(__file__).parents[2] / "contract" / "controller" / "conftest.py")
store_server = _stores.store_server
killable_server = _stores.killable_server

BRIDGE = common_host_pb2.DriverInfo(
    name="bridge",
    scope=common_network_pb2.SCOPE_LOCAL,
    needs_addresses=True,
    options=[
        common_host_pb2.OptionInfo(
            name="mtu", aliases=["com.docker.network.driver.mtu"], type="int", minimum=68, maximum=65535
        ),
        common_host_pb2.OptionInfo(name="icc", type="bool"),
        common_host_pb2.OptionInfo(name="mode", type="string", choices=["nat", "routed"]),
    ],
)
OVERLAY = common_host_pb2.DriverInfo(
    name="overlay",
    scope=common_network_pb2.SCOPE_GLOBAL,
    needs_addresses=True,
    claims=[common_host_pb2.ClaimInfo(name="vni", minimum=4096, maximum=4099, option="vni")],
    options=[
        common_host_pb2.OptionInfo(name="vni", type="int", minimum=1, maximum=16777215),
        common_host_pb2.OptionInfo(name="mtu", type="int", minimum=0, maximum=65485),
    ],
)
HOST = common_host_pb2.DriverInfo(name="host", scope=common_network_pb2.SCOPE_LOCAL, single_network=True)


logs.configure(level="warning")
# grpc.aio ends its poller when the last server or channel of the process goes, and that thread may then still write to
# a descriptor that is somebody else's by now (seen: a byte in the store's connection). One reference keeps it.
grpc.aio.init_grpc_aio()


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


class World:
    """A controller with a store, an IPAM and the agents of two hosts, each behind a socket of its own."""

    def __init__(self, directory: Path, store_url: str) -> None:
        self.directory = directory
        self.cluster = uuid.uuid4().hex
        self.store_url = store_url
        self.ipam = fakes.FakeIpam()
        self.agents = {}
        self.stack = contextlib.AsyncExitStack()
        self.count = 0

    def settings(self, **fields) -> Settings:
        return Settings(
            store_url=self.store_url,
            ipam_target=f"unix:{self.directory}/ipam",
            cluster=self.cluster,
            # What is leased ahead has tests of its own; the others count leases.
            **{"reconcile_interval": dt.timedelta(hours=1), "lease_ahead": 0, **fields},
        )

    async def serve(self, name: str, add, servicer) -> str:
        target = f"unix:{self.directory}/{name}"
        await self.stack.enter_async_context(
            server.Server(listen_at=[target], grace=dt.timedelta(0)).add(add, servicer)
        )
        return target

    async def start_controller(self, store=None, **fields) -> Face:
        """Start one more controller of the cluster, and return what speaks to it."""
        self.count += 1
        config = self.settings(**fields)
        if store is None:
            store = RedisStore(self.store_url, prefix=self.cluster)
        controller = Controller(config, store, None)
        face = Face(controller, f"unix:{self.directory}/controller{self.count}")
        await face.start()
        self.stack.push_async_callback(face.stop)
        return face

    async def add_host(self, face, name: str, number: int, drivers=(BRIDGE, OVERLAY, HOST), vtep="auto"):
        agent = fakes.FakeAgent()
        target = await self.serve(f"agent-{name}", agent_pb2_grpc.add_AgentServiceServicer_to_server, agent)
        self.agents[name] = agent
        host = common_host_pb2.Host(
            id=f"{number:032x}",
            name=name,
            agent_target=target,
            vtep_address=f"192.0.2.{number}" if vtep == "auto" else vtep,
            facts=common_host_pb2.HostFacts(drivers=drivers, routes=["192.168.7.0/24"], name_servers=["192.168.7.1"]),
        )
        await face.hosts.RegisterHost(host_pb2.RegisterHostRequest(host=host))
        return host


class Face:
    """One controller and stubs to it."""

    def __init__(self, controller: Controller, target: str) -> None:
        self.controller = controller
        self.target = target
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        await self._stack.enter_async_context(self.controller.open())
        group = await self._stack.enter_async_context(asyncio.TaskGroup())
        tasks = [group.create_task(task, name=name) for name, task in self.controller.background().items()]
        self._stack.callback(lambda: [task.cancel() for task in tasks])
        grpc_server = server.Server(listen_at=[self.target], grace=dt.timedelta(0))
        self.controller.add_to(grpc_server)
        await self._stack.enter_async_context(grpc_server)
        connection = await self._stack.enter_async_context(client.Connection(self.target))
        self.connection = connection
        self.networks = _Stub(connection, network_pb2_grpc.NetworkServiceStub(connection.channel))
        self.endpoints = _Stub(connection, endpoint_pb2_grpc.EndpointServiceStub(connection.channel))
        self.sandboxes = _Stub(connection, sandbox_pb2_grpc.SandboxServiceStub(connection.channel))
        self.hosts = _Stub(connection, host_pb2_grpc.HostServiceStub(connection.channel))
        self.host_streams = host_pb2_grpc.HostServiceStub(connection.channel)
        self.event_streams = event_pb2_grpc.EventServiceStub(connection.channel)
        async with asyncio.timeout(10):
            while not self.controller.replica.is_loaded:
                await asyncio.sleep(0.005)

    async def stop(self) -> None:
        await self._stack.aclose()

    async def reconcile(self, passes: int = 3) -> None:
        """Let the reconciler find that much time has gone by, some times."""
        reconciler = self.controller.reconciler
        for _ in range(passes):
            await reconciler.settle()
            await reconciler.return_orphans()
            now_s = reconciler._monotonic() + 3600
            reconciler._monotonic = lambda now_s=now_s: now_s
            await self.settled()

    async def settled(self) -> None:
        """Wait until confirmations are recorded."""
        await self.controller.settler.flush()

    @property
    def state(self):
        return self.controller.replica.state

    # Short words for what most tests do

    async def network(self, name="front", **fields):
        request = network_pb2.CreateNetworkRequest(name=name, **fields)
        return (await self.networks.CreateNetwork(request)).network

    async def attach(self, *items, request_id="", **fields):
        request = endpoint_pb2.AttachEndpointsRequest(request_id=request_id, items=items)
        return list((await self.endpoints.AttachEndpoints(request, **fields)).results)

    async def detach(self, *words, request_id="", **fields):
        items = [endpoint_pb2.DetachItem(endpoint=word, **fields) for word in words]
        request = endpoint_pb2.DetachEndpointsRequest(request_id=request_id, items=items)
        return list((await self.endpoints.DetachEndpoints(request)).results)


class _Stub:
    def __init__(self, connection, stub) -> None:
        self._connection = connection
        self._stub = stub

    def __getattr__(self, name):
        return lambda request, **fields: self._connection.call(getattr(self._stub, name), request, **fields)


def item(network="front", name="", container="c1", host="h1", **fields):
    return endpoint_pb2.AttachItem(
        endpoint=endpoint_pb2.EndpointSpec(network=network, name=name, **fields),
        sandbox=endpoint_pb2.SandboxRef(spec=endpoint_pb2.SandboxSpec(host=host, container_id=container)),
    )


@pytest.fixture
def make_item():
    return item


@pytest.fixture
async def world(anyio_backend, store_server):
    await store_server.ready()
    directory = Path(tempfile.mkdtemp(prefix="nw-"))
    world = World(directory, store_server.url)
    async with world.stack:
        await world.serve("ipam", ipam_pb2_grpc.add_IpamServiceServicer_to_server, world.ipam)
        yield world
    shutil.rmtree(directory)


@pytest.fixture
async def face(world):
    face = await world.start_controller()
    await world.add_host(face, "h1", 1)
    await world.add_host(face, "h2", 2)
    return face
