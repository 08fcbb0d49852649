from __future__ import annotations

import uuid

import pytest
from netweft.ipam.v1 import ipam_pb2_grpc
from netweft_common import client
from netweft_ipam import app
from netweft_ipam.settings import IpamSettings

from tests.support.store import StoreServer


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="session")
def server():
    with StoreServer() as started:
        yield started


@pytest.fixture
async def stub(server, tmp_path):
    chosen = IpamSettings(
        listen=(f"unix:{tmp_path}/ipam.sock",), store_url=server.url, key_prefix=f"t{uuid.uuid4().hex[:8]}"
    )
    store = app.build_store(chosen)
    async with app.build_server(chosen, store) as running, client.open_channel(running.targets[0]) as channel:
        yield ipam_pb2_grpc.IpamServiceStub(channel)
    await store.aclose()
