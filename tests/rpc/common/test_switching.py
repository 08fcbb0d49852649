"""Certificates that are replaced under a running server and an open channel."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest
from netweft.controller.v1 import host_pb2, host_pb2_grpc
from netweft.ipam.v1 import ipam_pb2, ipam_pb2_grpc
from netweft_common import client, credentials, errors, exchange, identity, pki, server, switching
from netweft_common.identity import Identity, Role

pytestmark = pytest.mark.anyio

NOW = dt.datetime.now(tz=dt.UTC)


class Hosts(host_pb2_grpc.HostServiceServicer):
    """Answers with the caller's identity."""

    async def CordonHost(self, request, context):
        del request, context
        return host_pb2.CordonHostResponse(host={"name": str(identity.current())})


class Joining(host_pb2_grpc.JoinServiceServicer):
    """Likewise."""

    async def Join(self, request, context):
        del request, context
        return host_pb2.JoinResponse(host_name=str(identity.current()))


@pytest.fixture
def authority():
    return pki.new_authority("test", now=NOW)


def put(authority, folder, role, name, signer=None):
    key, request = pki.new_request()
    holder = Identity(role=role, name=name)
    cert = (signer or authority).issue(request, holder, names=["localhost"], life=dt.timedelta(days=1), now=NOW)
    credentials.put(folder, ca=authority.certificate_pem, cert=cert, key=key)
    return credentials.files(folder)


async def ask(connection):
    answer = await connection.call(
        host_pb2_grpc.HostServiceStub(connection.channel).CordonHost, host_pb2.CordonHostRequest(), timeout_s=5
    )
    return answer.host.name


def serve(files, **options):
    made = server.Server(listen_at=["localhost:0"], tls_files=files, grace=dt.timedelta(0), **options)
    return made.add(host_pb2_grpc.add_HostServiceServicer_to_server, Hosts()).add(
        host_pb2_grpc.add_JoinServiceServicer_to_server, Joining()
    )


async def test_a_channel_shows_the_certificate_that_came_meanwhile(authority, tmp_path, monkeypatch):
    monkeypatch.setattr(switching, "LOOK_S", 0.0)
    mine = put(authority, tmp_path / "c", Role.CLIENT, "one")
    async with (
        serve(put(authority, tmp_path / "s", Role.CONTROLLER, "s")) as running,
        client.Connection(running.targets[0], tls_files=mine) as connection,
    ):
        first = await ask(connection)
        put(authority, tmp_path / "c", Role.CLIENT, "two")
        second = await ask(connection)

    assert ("client/one", "client/two") == (first, second)


async def test_a_half_replaced_set_is_not_taken(authority, tmp_path, monkeypatch):
    monkeypatch.setattr(switching, "LOOK_S", 0.0)
    mine = put(authority, tmp_path / "c", Role.CLIENT, "one")
    async with (
        serve(put(authority, tmp_path / "s", Role.CONTROLLER, "s")) as running,
        client.Connection(running.targets[0], tls_files=mine) as connection,
    ):
        mine.key.write_bytes(pki.new_request()[0])

        assert "client/one" == await ask(connection)


async def test_a_server_shows_the_certificate_that_came_meanwhile(authority, tmp_path):
    other = pki.new_authority("other", now=NOW)
    theirs = put(authority, tmp_path / "s", Role.CONTROLLER, "s", signer=other)
    mine = put(authority, tmp_path / "c", Role.CLIENT, "one")
    async with (
        serve(theirs) as running,
        client.Connection(running.targets[0], tls_files=mine) as connection,
    ):
        with pytest.raises(errors.Unavailable):
            await ask(connection)
        put(authority, tmp_path / "s", Role.CONTROLLER, "s")
        async with client.Connection(running.targets[0], tls_files=mine) as later:
            assert "client/one" == await ask(later)


async def test_a_guest_needs_no_certificate_and_may_do_only_what_names_guests(authority, tmp_path):
    access = {"/netweft.controller.v1.JoinService/Join": frozenset({Role.GUEST})}
    files = put(authority, tmp_path / "s", Role.CONTROLLER, "s")
    async with (
        serve(files, client_certificates=False, access=access) as running,
        client.open_guest_channel(running.targets[0], authority.certificate_pem) as channel,
    ):
        answer = await host_pb2_grpc.JoinServiceStub(channel).Join(host_pb2.JoinRequest(), timeout=5)
        with pytest.raises(client.aio.AioRpcError) as caught:
            await host_pb2_grpc.HostServiceStub(channel).CordonHost(host_pb2.CordonHostRequest(), timeout=5)

    assert "guest" == answer.host_name
    assert "PERMISSION_DENIED" == caught.value.code().name


async def test_who_is_not_admitted_is_told_so_and_a_local_caller_is_not_asked(authority, tmp_path):
    def admit(caller):
        raise errors.Unauthenticated("HOST_UNKNOWN", f"{caller} is nobody")

    mine = put(authority, tmp_path / "c", Role.CLIENT, "one")
    made = server.Server(
        listen_at=["localhost:0", f"unix:{tmp_path}/s"],
        tls_files=put(authority, tmp_path / "s.d", Role.CONTROLLER, "s"),
        admit=admit,
        grace=dt.timedelta(0),
    ).add(host_pb2_grpc.add_HostServiceServicer_to_server, Hosts())
    async with made as running:
        async with client.Connection(running.targets[0], tls_files=mine) as connection:
            with pytest.raises(errors.Unauthenticated, match="nobody"):
                await ask(connection)
        async with client.Connection(running.targets[1]) as connection:
            assert "local" == await ask(connection)


class Ipam(ipam_pb2_grpc.IpamServiceServicer):
    """Answers over a stream with the caller's identity, and counts the streams."""

    streams = 0

    async def RequestAddresses(self, request, context):
        del request, context
        lease = ipam_pb2.Lease(address=str(identity.current()))
        return ipam_pb2.RequestAddressesResponse(results=[ipam_pb2.AddressResult(lease=lease)])

    def AddressStream(self, requests, context):
        self.streams += 1
        return exchange.serve(requests, context, ipam_pb2.AddressStreamResponse, {"request": self.RequestAddresses})


async def test_who_is_admitted_no_more_is_told_so_over_a_stream_that_is_open(authority, tmp_path):
    out = set()

    def admit(caller):
        if caller.name in out:
            raise errors.Unauthenticated("HOST_UNKNOWN", f"{caller} is nobody")

    ipam = Ipam()
    made = server.Server(
        listen_at=["localhost:0"],
        tls_files=put(authority, tmp_path / "s", Role.CONTROLLER, "s"),
        admit=admit,
        grace=dt.timedelta(0),
    ).add(ipam_pb2_grpc.add_IpamServiceServicer_to_server, ipam)
    async with (
        made as running,
        client.Connection(running.targets[0], tls_files=put(authority, tmp_path / "c", Role.CLIENT, "one")) as one,
        client.Connection(running.targets[0], tls_files=put(authority, tmp_path / "d", Role.CLIENT, "two")) as two,
    ):

        async def call(connection):
            stub = ipam_pb2_grpc.IpamServiceStub(connection.channel)
            connection.over_stream(stub.AddressStream, ipam_pb2.AddressStreamRequest, request=stub.RequestAddresses)
            answers = [
                await connection.call(stub.RequestAddresses, ipam_pb2.RequestAddressesRequest(), timeout_s=5)
                for _ in range(2)
            ]
            yield {answer.results[0].lease.address for answer in answers}
            yield await connection.call(stub.RequestAddresses, ipam_pb2.RequestAddressesRequest(), timeout_s=5)

        leaving, staying = call(one), call(two)
        before = [await anext(leaving), await anext(staying)]
        out.add("one")
        with pytest.raises(errors.Unauthenticated, match="nobody"):
            await anext(leaving)
        after = await anext(staying)

    assert [{"client/one"}, {"client/two"}] == before
    assert "client/two" == after.results[0].lease.address
    assert 2 == ipam.streams


async def test_the_old_channel_ends_when_its_calls_had_time(authority, tmp_path, monkeypatch):
    monkeypatch.setattr(switching, "LOOK_S", 0.0)
    monkeypatch.setattr(switching, "GRACE_S", 0.0)
    mine = put(authority, tmp_path / "c", Role.CLIENT, "one")
    async with (
        serve(put(authority, tmp_path / "s", Role.CONTROLLER, "s")) as running,
        client.Connection(running.targets[0], tls_files=mine) as connection,
    ):
        await ask(connection)
        put(authority, tmp_path / "c", Role.CLIENT, "two")
        await ask(connection)
        async with asyncio.timeout(5):
            while connection._closing:
                await asyncio.sleep(0.01)

        assert "client/two" == await ask(connection)


async def test_a_server_that_goes_is_followed_by_the_next_one_and_the_first_is_not_asked_again(tmp_path):
    def make(name):
        made = server.Server(listen_at=[f"unix:{tmp_path}/{name}"], grace=dt.timedelta(0))
        return made.add(host_pb2_grpc.add_HostServiceServicer_to_server, Hosts())

    async with make("b"):
        first = make("a")
        async with first, client.Connection(f"unix:{tmp_path}/a, unix:{tmp_path}/b") as connection:
            await ask(connection)
            before = connection.channel.target
            await first.drain()
            with pytest.raises(errors.Unavailable):
                await ask(connection)
            await ask(connection)
            after = connection.channel.target

    assert (f"unix:{tmp_path}/a", f"unix:{tmp_path}/b") == (before, after)


async def test_many_calls_that_fail_together_go_one_target_on(tmp_path):
    targets = ",".join(f"unix:{tmp_path}/{name}" for name in "abc")
    async with client.Connection(targets) as connection:
        failed = await asyncio.gather(*(ask(connection) for _ in range(10)), return_exceptions=True)

        assert 10 == sum(isinstance(one, errors.Unavailable) for one in failed)
        assert f"unix:{tmp_path}/b" == connection.channel.target


async def test_what_a_server_says_itself_is_no_reason_to_leave_it(tmp_path):
    class Silent(Hosts):
        async def CordonHost(self, request, context):
            raise errors.Unavailable("HOST_UNREACHABLE", "the host does not answer")

    made = server.Server(listen_at=[f"unix:{tmp_path}/a"], grace=dt.timedelta(0))
    async with (
        made.add(host_pb2_grpc.add_HostServiceServicer_to_server, Silent()),
        client.Connection(f"unix:{tmp_path}/a,unix:{tmp_path}/b") as connection,
    ):
        with pytest.raises(errors.Unavailable, match="the host"):
            await ask(connection)

        assert f"unix:{tmp_path}/a" == connection.channel.target
