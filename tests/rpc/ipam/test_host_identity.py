"""What an agent's certificate lets it say to IPAM: its own host's affairs and nobody else's."""

from __future__ import annotations

import contextlib

import grpc
import pytest
from netweft.ipam.v1 import ipam_pb2 as pb
from netweft.ipam.v1 import ipam_pb2_grpc
from netweft_common import client
from netweft_ipam import app
from netweft_ipam.settings import IpamSettings
from netweft_ipam.store.memory import MemoryStore

from tests.e2e.support_tls import Authority

pytestmark = pytest.mark.anyio

H1, H2 = f"{1:032x}", f"{2:032x}"
CALLS = {
    "RenewLeases": lambda host_id: pb.RenewLeasesRequest(host_id=host_id),
    "ReassertLeases": lambda host_id: pb.ReassertLeasesRequest(host_id=host_id, store_epoch="x"),
    "TransferLeases": lambda host_id: pb.TransferLeasesRequest(
        host_id=host_id, items=[pb.AddressRelease(pool_id="a/10.0.0.0/24", address="10.0.0.1")]
    ),
}


@pytest.fixture
async def says(tmp_path):
    """Yield what makes a call with a certificate and returns its code and message."""
    authority = Authority(tmp_path / "tls")
    files = authority.issue("ipam", "netweft://ipam/one", addresses=["127.0.0.1"])
    chosen = IpamSettings(listen=("127.0.0.1:0",), tls_ca=files.ca, tls_cert=files.cert, tls_key=files.key)
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(app.build_server(chosen, MemoryStore()))
        stubs = {}

        async def call(uri, method, host_id):
            if uri not in stubs:
                own = authority.issue(uri.replace("/", "-"), f"netweft://{uri}")
                channel = await stack.enter_async_context(client.open_channel(running.targets[0], tls_files=own))
                stubs[uri] = ipam_pb2_grpc.IpamServiceStub(channel)
            try:
                await getattr(stubs[uri], method)(CALLS[method](host_id))
            except grpc.RpcError as error:
                return error.code().name, error.details()
            return "OK", ""

        yield call


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize(
    ("uri", "host_id", "allowed"),
    [
        (f"agent/{H1}", H1, True),
        (f"agent/{H1}", H2, False),
        ("controller/c", H1, True),
        ("admin/a", H1, True),
        ("client/c", H1, False),
        ("ipam/other", H1, False),
    ],
    ids=["its own", "another's", "controller", "admin", "client", "ipam"],
)
async def test_an_agent_speaks_for_its_own_host_and_the_controller_for_all(says, method, uri, host_id, allowed):
    code, message = await says(uri, method, host_id)

    assert allowed == (code != "PERMISSION_DENIED"), message


@pytest.mark.parametrize("method", CALLS)
async def test_a_host_belongs_to_the_name_that_came_with_it_first_and_to_its_own_id(says, method):
    await says("agent/h1", "RenewLeases", H1)

    found = [(await says(uri, method, H1))[0] for uri in ("agent/h1", f"agent/{H1}", "agent/h2")]
    _, why = await says("agent/h2", method, H1)

    assert [False, False, True] == [code == "PERMISSION_DENIED" for code in found]
    assert f"agent h2 may not act for host {H1}" in why
