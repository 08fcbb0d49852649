"""What an agent's certificate lets it say to IPAM: its own host's affairs and nobody else's."""

from __future__ import annotations

import contextlib

import grpc
import pytest
from netweft.ipam.v1 import ipam_pb2 as pb
from netweft.ipam.v1 import ipam_pb2_grpc
from netweft_common import client, identity
from netweft_ipam import app
from netweft_ipam.engine.gate import Gate
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


# Hosts that are no more


READS = {
    "ListPools": pb.ListPoolsRequest(),
    "ListLeases": pb.ListLeasesRequest(pool_id="a/10.0.0.0/24"),
    "LookupAddress": pb.LookupAddressRequest(address_space="a", address="10.0.0.1"),
}


@pytest.fixture
async def replicas(tmp_path):
    """Yield a store, the gates of two replicas on it, and what calls the first one with a certificate."""
    authority = Authority(tmp_path / "tls")
    files = authority.issue("ipam", "netweft://ipam/one", addresses=["127.0.0.1"])
    chosen = IpamSettings(listen=("127.0.0.1:0",), tls_ca=files.ca, tls_cert=files.cert, tls_key=files.key)
    store = MemoryStore()
    gates = [Gate(store), Gate(store)]
    async with contextlib.AsyncExitStack() as stack:
        running = [await stack.enter_async_context(app.build_server(chosen, store, gate=gate)) for gate in gates]

        async def call(uri, method, request, replica=0):
            own = authority.issue(f"{uri.replace('/', '-')}-{replica}", f"netweft://{uri}")
            async with client.open_channel(running[replica].targets[0], tls_files=own) as channel:
                try:
                    await getattr(ipam_pb2_grpc.IpamServiceStub(channel), method)(request)
                except grpc.RpcError as error:
                    return error.code().name, error.details()
                return "OK", ""

        yield gates, call


def hosts(revision, **names):
    known = [pb.KnownHost(id=id_, name=name) for name, id_ in names.items()]
    return pb.SetHostsRequest(store_id="s", revision=revision, hosts=known)


async def test_agents_of_hosts_that_were_deleted_are_refused_by_all_replicas_and_all_methods(replicas):
    gates, call = replicas
    renew = CALLS["RenewLeases"]
    by_id, by_name = f"agent/{H2}", "agent/h2"
    before = [await call(uri, "RenewLeases", renew(H2)) for uri in (by_id, by_name)]
    await call("controller/c", "SetHosts", hosts(1, h1=H1, h2=H2))
    known = [await call(uri, "RenewLeases", renew(H2)) for uri in (by_id, by_name)]

    told = await call("controller/c", "SetHosts", hosts(2, h1=H1))
    late = await call("controller/other", "SetHosts", hosts(1, h1=H1, h2=H2))
    await gates[1].look()
    refused = [
        await call(uri, method, request, replica)
        for uri in (by_id, by_name)
        for replica in (0, 1)
        for method, request in {**READS, **{name: make(H2) for name, make in CALLS.items()}}.items()
    ]
    others = [
        await call(f"agent/{H1}", "RenewLeases", renew(H1)),
        await call("agent/h1", "RenewLeases", renew(H1), 1),
        await call("client/c", "ListPools", READS["ListPools"]),
        await call("controller/c", "RenewLeases", renew(H2)),
    ]

    assert [("OK", "")] * 2 == before == known
    assert [("OK", "")] * 2 == [told, late]
    assert {"UNAUTHENTICATED"} == {code for code, _ in refused}
    assert all("no host of this cluster" in message for _, message in refused)
    assert [("OK", "")] * 4 == others


async def test_where_certificates_come_from_elsewhere_every_agent_is_let_in(replicas):
    _, call = replicas
    await call("controller/c", "SetHosts", hosts(1, h1=H1))
    refused, _ = await call(f"agent/{H2}", "ListPools", READS["ListPools"])

    await call("controller/c", "SetHosts", pb.SetHostsRequest(store_id="s", revision=1, any=True))
    let_in = await call(f"agent/{H2}", "ListPools", READS["ListPools"])

    assert "UNAUTHENTICATED" == refused
    assert ("OK", "") == let_in


@pytest.mark.parametrize(
    ("caller", "request_", "code", "word"),
    [
        ("agent/h1", hosts(1), "PERMISSION_DENIED", "SetHosts"),
        ("client/c", hosts(1), "PERMISSION_DENIED", "SetHosts"),
        ("controller/c", pb.SetHostsRequest(), "INVALID_ARGUMENT", "store_id"),
        ("controller/c", hosts(1, h1=""), "INVALID_ARGUMENT", r"hosts[0].id"),
        ("controller/c", hosts(1, h1="a b"), "INVALID_ARGUMENT", r"hosts[0].id"),
        (
            "controller/c",
            pb.SetHostsRequest(store_id="s", any=True, hosts=[pb.KnownHost(id=H1)]),
            "INVALID_ARGUMENT",
            "unset any",
        ),
    ],
    ids=["agent", "client", "no store", "no id", "no such id", "any and some"],
)
async def test_who_may_not_say_which_hosts_there_are_and_what_is_no_list_is_refused(
    replicas, caller, request_, code, word
):
    gates, call = replicas

    found, message = await call(caller, "SetHosts", request_)

    assert code == found
    assert word in message
    gates[0].admit(identity.Identity(role=identity.Role.AGENT, name="anybody"))
