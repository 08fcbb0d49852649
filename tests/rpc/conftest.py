from __future__ import annotations

import pytest
from anyio import pytest_plugin


@pytest.fixture(scope="session", autouse=True)
def one_event_loop():
    # gRPC's asyncio stack has one completion queue a process. An event that comes late for the closed loop of an
    # earlier test fails in the loop of a later one, and its wake-ups may be lost (grpc/grpc#25364). Services have one
    # loop; so have these tests. It is leased directly: `anyio_backend` is defined at several scopes below.
    with pytest_plugin.get_runner("asyncio", {}):
        yield
