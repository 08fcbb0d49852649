from __future__ import annotations

import uuid

import pytest
from netweft_ipam.domain.settling import Patience
from netweft_ipam.store.connection import Connection
from netweft_ipam.store.memory import MemoryStore
from netweft_ipam.store.redis_store import RedisStore

from tests.support.ipam import Clock, Desk
from tests.support.store import StoreServer

QUARANTINE_MS = 5000


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="session")
def server():
    with StoreServer(appendfsync="no") as started:
        yield started


@pytest.fixture
def clock():
    return Clock()


def make_redis_store(server, clock):
    return RedisStore(
        Connection.open(server.url),
        prefix=f"t{uuid.uuid4().hex[:8]}",
        quarantine_ms=QUARANTINE_MS,
        patience=Patience(least_ms=0),
        now_ms=clock,
    )


@pytest.fixture
async def redis_store(server, clock):
    store = RedisStore(
        Connection.open(server.url),
        prefix=f"t{uuid.uuid4().hex[:8]}",
        quarantine_ms=QUARANTINE_MS,
        now_ms=clock,
        patience=Patience(least_ms=0),
    )
    yield store
    await store.aclose()


@pytest.fixture(params=["memory", "redis"])
async def store(request, clock):
    if request.param == "memory":
        yield MemoryStore(quarantine_ms=QUARANTINE_MS, now_ms=clock)
        return
    server = request.getfixturevalue("server")
    made = RedisStore(
        Connection.open(server.url),
        prefix=f"t{uuid.uuid4().hex[:8]}",
        quarantine_ms=QUARANTINE_MS,
        now_ms=clock,
        patience=Patience(least_ms=0),
    )
    yield made
    await made.aclose()


@pytest.fixture
def desk(store):
    return Desk(store)
