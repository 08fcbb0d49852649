"""Many calls over one stream, of a real client and a real server."""

from __future__ import annotations

import asyncio
import datetime as dt

import grpc
import pytest
from grpc import aio
from netweft.ipam.v1 import ipam_pb2, ipam_pb2_grpc
from netweft_common import client, deadline, errors, exchange, identity, interceptors, metrics, server

pytestmark = pytest.mark.anyio
SERVICE = "netweft.ipam.v1.IpamService"


class Ipam(ipam_pb2_grpc.IpamServiceServicer):
    """Answers by the request's id: each is a case."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.streams = 0
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.ended: list[str] = []

    async def RequestAddresses(self, request, context):
        self.asked.append(request.request_id)
        match request.request_id:
            case "refused":
                raise errors.Exhausted("POOL_EXHAUSTED", "pool p is full", pool="p")
            case "bug":
                raise ValueError("password=hunter2")
            case "deadline":
                return _answer(str(deadline.remaining_s(1e9)))
            case "who":
                return _answer(str(identity.current()))
            case "large":
                return _answer("x" * (4 << 20))
            case "wait":
                self.entered.set()
                try:
                    await self.release.wait()
                except asyncio.CancelledError:
                    self.cancelled.set()
                    raise
        return _answer(request.request_id)

    async def ReleaseAddresses(self, request, context):
        return ipam_pb2.ReleaseAddressesResponse()

    async def AddressStream(self, requests, context):
        self.streams += 1
        methods = {"request": self.RequestAddresses, "release": self.ReleaseAddresses}
        try:
            await exchange.serve(requests, context, ipam_pb2.AddressStreamResponse, methods)
        finally:
            self.ended.append("stream")


class WithoutStream(Ipam):
    AddressStream = ipam_pb2_grpc.IpamServiceServicer.AddressStream


class Breaking(Ipam):
    """Its first stream breaks with the first request."""

    async def AddressStream(self, requests, context):
        self.streams += 1
        async for request in requests:
            if self.streams == 1:
                self.asked.append(f"broke at {request.request.request_id}")
                raise errors.Unavailable("GOES_DOWN", "the server goes down")
            answer = await self.RequestAddresses(request.request, context)
            await context.write(ipam_pb2.AddressStreamResponse(id=request.id, request=answer))


def _answer(text: str) -> ipam_pb2.RequestAddressesResponse:
    return ipam_pb2.RequestAddressesResponse(results=[ipam_pb2.AddressResult(lease=ipam_pb2.Lease(address=text))])


class World:
    def __init__(self, path) -> None:
        self.registry = metrics.new_registry()
        self.rpc_metrics = interceptors.RpcMetrics(self.registry)
        self.target = f"unix:{path}/run/x.sock"

    def server(self, ipam: Ipam, **options) -> server.Server:
        made = server.Server(listen_at=[self.target], rpc_metrics=self.rpc_metrics, **options)
        return made.add(ipam_pb2_grpc.add_IpamServiceServicer_to_server, ipam)

    def count(self, method: str, code: str) -> float | None:
        labels = {"service": SERVICE, "method": method, "code": code}
        return self.registry.get_sample_value("netweft_grpc_handled_total", labels)

    def caller(self, **options) -> Caller:
        return Caller(client.Connection(self.target, **options))


class Caller:
    def __init__(self, connection: client.Connection) -> None:
        self.connection = connection
        self.stub = ipam_pb2_grpc.IpamServiceStub(connection.channel)
        connection.over_stream(
            self.stub.AddressStream,
            ipam_pb2.AddressStreamRequest,
            request=self.stub.RequestAddresses,
            release=self.stub.ReleaseAddresses,
        )

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc):
        await self.connection.close()

    async def ask(self, text: str, **options) -> str:
        request = ipam_pb2.RequestAddressesRequest(request_id=text)
        answer = await self.connection.call(self.stub.RequestAddresses, request, **options)
        return answer.results[0].lease.address

    async def give(self):
        return await self.connection.call(self.stub.ReleaseAddresses, ipam_pb2.ReleaseAddressesRequest())


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


async def test_calls_go_over_one_stream_and_each_gets_its_own_answer(world):
    ipam = Ipam()
    async with world.server(ipam), world.caller() as caller:
        answers = await asyncio.gather(*(caller.ask(f"r{n}") for n in range(200)), caller.give())

        assert [f"r{n}" for n in range(200)] == answers[:-1]
        assert 1 == ipam.streams
        assert 201 == world.count("AddressStream", "OK")
        assert world.count("RequestAddresses", "OK") is None


async def test_a_call_that_waits_holds_up_no_other(world):
    ipam = Ipam()
    async with world.server(ipam), world.caller() as caller:
        waiting = asyncio.create_task(caller.ask("wait"))
        await ipam.entered.wait()

        assert "quick" == await caller.ask("quick")

        ipam.release.set()
        assert "wait" == await waiting


async def test_what_a_call_raises_is_told_of_it_alone(world):
    async with world.server(Ipam()), world.caller() as caller:
        with pytest.raises(errors.Exhausted, match="pool p is full") as refusal:
            await caller.ask("refused")
        with pytest.raises(errors.Internal) as bug:
            await caller.ask("bug")

        assert ("POOL_EXHAUSTED", "p") == (refusal.value.reason, refusal.value.metadata["pool"])
        assert "hunter2" not in bug.value.message
        assert "still there" == await caller.ask("still there")
        assert (1, 1, 1) == tuple(
            world.count("AddressStream", code) for code in ("RESOURCE_EXHAUSTED", "INTERNAL", "OK")
        )


async def test_a_server_without_the_stream_is_called_the_plain_way_and_not_asked_for_it_each_time(world):
    ipam = WithoutStream()
    async with world.server(ipam), world.caller() as caller:
        assert ["a", "b", "c"] == [await caller.ask(text) for text in "abc"]

        assert 3 == world.count("RequestAddresses", "OK")
        assert 1 == world.count("AddressStream", "FAILED_PRECONDITION")


async def test_a_call_whose_stream_breaks_is_made_again_by_itself_and_the_next_one_opens_another(world):
    ipam = Breaking()
    async with world.server(ipam), world.caller() as caller:
        assert "first" == await caller.ask("first")
        assert "second" == await caller.ask("second")

        assert ["broke at first", "first", "second"] == ipam.asked
        assert 2 == ipam.streams
        assert 1 == world.count("RequestAddresses", "OK")


async def test_a_server_that_comes_back_is_met_over_a_new_stream(world):
    async with world.caller() as caller:
        async with world.server(Ipam()):
            assert "before" == await caller.ask("before")
        with pytest.raises(errors.Unavailable):
            await caller.ask("while it is away", timeout_s=1)

        ipam = Ipam()
        async with world.server(ipam):
            assert "after" == await caller.ask("after", timeout_s=20, wait_for_ready=True)
            assert "over a stream" == await caller.ask("over a stream")
            assert 1 == ipam.streams


async def test_who_turns_from_a_server_that_stands_still_goes_on_over_a_stream_of_the_next(world, tmp_path):
    still, other = Ipam(), Ipam()
    made = server.Server(listen_at=[f"unix:{tmp_path}/other.sock"], rpc_metrics=world.rpc_metrics)
    made.add(ipam_pb2_grpc.add_IpamServiceServicer_to_server, other)
    connection = client.Connection(f"{world.target}, unix:{tmp_path}/other.sock")
    async with world.server(still), made, Caller(connection) as caller:
        first = await caller.ask("one")
        waits = asyncio.create_task(caller.ask("wait"))
        await still.entered.wait()
        with pytest.raises(errors.Unavailable):
            await caller.ask("wait", timeout_s=0.2)  # as of a server that does not answer
        turned = [await caller.ask("two"), await caller.ask("three")]
        still.release.set()
        in_flight = await waits
        async with asyncio.timeout(5):
            while len(still.ended) < 1:  # its stream, which has nothing to do any more
                await asyncio.sleep(0.01)

    assert ("one", ["two", "three"], "wait") == (first, turned, in_flight)
    assert (["one", "wait", "wait"], ["two", "three"]) == (still.asked, other.asked)
    assert (1, 1) == (still.streams, other.streams)


async def test_a_server_that_goes_down_answers_what_it_has_taken_and_no_more(world):
    ipam = Ipam()
    async with world.caller() as caller:
        going = world.server(ipam, grace=dt.timedelta(seconds=20))
        await going.__aenter__()
        waiting = asyncio.create_task(caller.ask("wait"))
        await ipam.entered.wait()

        draining = asyncio.create_task(going.drain())
        while not going._interceptor._draining:
            await asyncio.sleep(0)
        with pytest.raises(errors.Unavailable):
            await caller.ask("too late", timeout_s=2)
        ipam.release.set()

        assert "wait" == await waiting
        await draining
        assert ["wait"] == ipam.asked


async def test_a_call_waits_no_longer_than_its_time_and_its_server_knows_it(world):
    ipam = Ipam()
    async with world.server(ipam), world.caller() as caller:
        assert 6 < float(await caller.ask("deadline", timeout_s=7)) <= 7
        with pytest.raises(errors.Unavailable) as late:
            await caller.ask("wait", timeout_s=0.05)

        assert "DEADLINE_EXCEEDED" == late.value.reason
        assert "still there" == await caller.ask("still there")
        assert 1 == ipam.streams


async def test_a_client_that_goes_takes_its_calls_along(world):
    ipam = Ipam()
    async with world.server(ipam):
        async with world.caller() as caller:
            waiting = asyncio.create_task(caller.ask("wait"))
            await ipam.entered.wait()
        with pytest.raises(errors.Unavailable):
            await waiting

        async with asyncio.timeout(20):
            await ipam.cancelled.wait()


async def test_a_call_on_a_closed_connection_says_so(world):
    async with world.server(Ipam()):
        async with world.caller() as caller:
            await caller.ask("x")
        with pytest.raises(errors.Unavailable) as closed:
            await caller.ask("y")

        assert "CONNECTION_CLOSED" == closed.value.reason


async def test_a_caller_who_gives_up_leaves_the_others_alone(world):
    ipam = Ipam()
    async with world.server(ipam), world.caller() as caller:
        given_up = asyncio.create_task(caller.ask("wait"))
        await ipam.entered.wait()
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up

        assert "other" == await caller.ask("other")
        assert 1 == ipam.streams


async def test_more_calls_than_are_worked_on_at_a_time_are_all_answered(world, monkeypatch):
    monkeypatch.setattr(exchange, "IN_FLIGHT", 4)
    ipam = Ipam()
    async with world.server(ipam), world.caller() as caller:
        waiting = [asyncio.create_task(caller.ask("wait")) for _ in range(4)]
        more = [asyncio.create_task(caller.ask(f"r{n}")) for n in range(20)]
        await ipam.entered.wait()
        ipam.release.set()

        assert ["wait"] * 4 == await asyncio.gather(*waiting)
        assert [f"r{n}" for n in range(20)] == await asyncio.gather(*more)


async def test_large_answers_do_not_get_mixed(world):
    async with world.server(Ipam()), world.caller() as caller:
        answers = await asyncio.gather(*(caller.ask(text) for text in ("large", "small", "large", "small")))

        assert [4 << 20, 5, 4 << 20, 5] == [len(answer) for answer in answers]


async def test_a_request_that_names_no_call_is_refused_and_names_those_there_are(world):
    async with world.server(Ipam()), aio.insecure_channel(world.target) as channel:
        stream = ipam_pb2_grpc.IpamServiceStub(channel).AddressStream()
        await stream.write(ipam_pb2.AddressStreamRequest(id=5))
        response = await stream.read()

        assert (5, "CALL_MISSING") == (response.id, response.status.reason)
        assert "request, release" in response.status.message
        stream.cancel()


async def test_bytes_that_are_no_request_end_the_stream_with_what_is_wrong(world):
    async with world.server(Ipam()), aio.insecure_channel(world.target) as channel:
        stream = channel.stream_stream(f"/{SERVICE}/AddressStream")()
        await stream.write(b"\xff\xff\xff")
        with pytest.raises(aio.AioRpcError) as refusal:
            await stream.read()

        assert grpc.StatusCode.INVALID_ARGUMENT == refusal.value.code()
