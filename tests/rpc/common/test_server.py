# servicers have the names of their rpcs; the house writes expected == actual
"""A real server and a real client of ours, over unix sockets and TCP."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import io
import logging
import os
import socket

import grpc
import pytest
import structlog
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from netweft.common.v1 import network_pb2
from netweft.controller.v1 import event_pb2, event_pb2_grpc
from netweft.ipam.v1 import ipam_pb2, ipam_pb2_grpc
from netweft_common import client, clock, deadline, errors, identity, interceptors, metrics, server, status

pytestmark = pytest.mark.anyio
IPAM = "netweft.ipam.v1.IpamService"
LARGE = 77  # revision whose message is larger than HTTP/2's window
EVENTS = "netweft.controller.v1.EventService"


class Ipam(ipam_pb2_grpc.IpamServiceServicer):
    """Answers by the pool's name: each is a case."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def GetPool(self, request, context):
        match request.pool_id:
            case "none":
                raise errors.NotFound("POOL_UNKNOWN", "no pool none", pool="none")
            case "bug":
                raise ValueError("password=hunter2")
            case "who":
                return ipam_pb2.GetPoolResponse(pool=ipam_pb2.Pool(id=str(identity.current())))
            case "deadline":
                return ipam_pb2.GetPoolResponse(pool=ipam_pb2.Pool(id=str(deadline.remaining_s(1e9))))
            case "wait":
                self.entered.set()
                try:
                    await self.release.wait()
                except asyncio.CancelledError:
                    self.cancelled.set()
                    raise
        return ipam_pb2.GetPoolResponse(pool=ipam_pb2.Pool(id=request.pool_id))


class Events(event_pb2_grpc.EventServiceServicer):
    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.sending = asyncio.Event()

    async def Watch(self, request, context):
        try:
            if request.after_revision == LARGE:
                self.sending.set()
                large = event_pb2.Event(network=network_pb2.Network(name="x" * (8 << 20)))
                yield event_pb2.WatchResponse(events=[large], revision=LARGE)
            yield event_pb2.WatchResponse(revision=1)
            if request.after_revision == 9:
                raise errors.OutOfRange("REVISION_OLD", "too old")
            await asyncio.Event().wait()
        finally:
            self.ended.set()


class World:
    def __init__(self, path) -> None:
        self.ipam, self.events = Ipam(), Events()
        self.registry = metrics.new_registry()
        self.rpc_metrics = interceptors.RpcMetrics(self.registry)
        self.target = f"unix:{path}/run/x.sock"

    def server(self, **options) -> server.Server:
        options.setdefault("listen_at", [self.target])
        made = server.Server(rpc_metrics=self.rpc_metrics, **options)
        made.add(ipam_pb2_grpc.add_IpamServiceServicer_to_server, self.ipam)
        return made.add(event_pb2_grpc.add_EventServiceServicer_to_server, self.events)

    def count(self, code: str, method: str = "GetPool", service: str = IPAM) -> float | None:
        labels = {"service": service, "method": method, "code": code}
        return self.registry.get_sample_value("netweft_grpc_handled_total", labels)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


async def get_pool(connection: client.Connection, pool: str, **options) -> str:
    stub = ipam_pb2_grpc.IpamServiceStub(connection.channel)
    answer = await connection.call(stub.GetPool, ipam_pb2.GetPoolRequest(pool_id=pool), **options)
    return answer.pool.id


def watch(connection: client.Connection, after_revision: int = 0):
    stub = event_pb2_grpc.EventServiceStub(connection.channel)
    return connection.stream(stub.Watch, event_pb2.WatchRequest(after_revision=after_revision))


async def health_of(connection: client.Connection, service: str) -> str:
    stub = health_pb2_grpc.HealthStub(connection.channel)
    answer = await connection.call(stub.Check, health_pb2.HealthCheckRequest(service=service))
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


# Listening


@pytest.mark.parametrize(
    ("service", "method", "body"),
    [
        (IPAM, "GetPool", b"\x0a\x02\xff\xfe"),
        (IPAM, "GetPool", b"\xff\xff\xff"),
        (EVENTS, "Watch", b"\x12\x02\xff\xfe"),
    ],
    ids=["not UTF-8", "no message", "a stream's"],
)
async def test_bytes_that_are_no_request_are_the_callers_mistake(world, service, method, body):
    async with world.server(), client.open_channel(world.target) as channel:
        open_stream = channel.unary_stream(f"/{service}/{method}")
        with pytest.raises(aio.AioRpcError) as caught:
            await anext(aiter(open_stream(body)))
    error = status.from_rpc_error(caught.value, target=world.target, method=method)

    assert (errors.InvalidArgument, "REQUEST_MALFORMED") == (type(error), error.reason)
    assert world.count("INVALID_ARGUMENT", method, service) == 1


async def test_one_server_answers_at_all_its_targets_and_says_which_ports(world):
    async with world.server(listen_at=[world.target, "127.0.0.1:0", "[::1]:0"]) as made:
        found = []
        for target in made.targets:
            async with client.Connection(target) as connection:
                found.append(await get_pool(connection, target))

    assert list(made.targets) == found
    assert [] == [target for target in made.targets if target.endswith(":0")]


async def test_the_socket_is_for_owner_and_group_and_gone_afterwards(world, tmp_path):
    before = os.umask(0)
    try:
        async with world.server():
            found = [(tmp_path / name).stat().st_mode & 0o777 for name in ("run", "run/x.sock")]
    finally:
        os.umask(before)

    assert [0o750, 0o660] == found
    assert not (tmp_path / "run" / "x.sock").exists()


async def test_a_dead_processs_socket_is_replaced(world, tmp_path):
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "run" / "x.sock"))

    async with world.server(), client.Connection(world.target) as connection:
        assert "a" == await get_pool(connection, "a")


async def test_a_second_server_at_a_living_socket_is_refused_and_the_first_serves_on(world):
    async with world.server():
        with pytest.raises(errors.FailedPrecondition, match="another process listens at"):
            async with world.server():
                pass

        async with client.Connection(world.target) as connection:
            assert "a" == await get_pool(connection, "a")


async def test_a_second_server_at_a_port_is_refused(world):
    async with world.server(listen_at=["127.0.0.1:0"]) as first:
        with pytest.raises(errors.FailedPrecondition, match="the address is in use"):
            async with world.server(listen_at=first.targets):
                pass


@pytest.mark.parametrize("target", ["0.0.0.0:0", "[::]:0", "192.0.2.1:7000", "example.com:7000"])
async def test_tcp_beyond_loopback_without_tls_is_refused(world, target):
    with pytest.raises(errors.InvalidArgument, match="set tls_ca, tls_cert and tls_key"):
        async with world.server(listen_at=[target]):
            pass


async def test_a_server_needs_a_target(world):
    with pytest.raises(errors.InvalidArgument, match="at least one target"):
        async with world.server(listen_at=[]):
            pass


# Errors


async def test_an_error_of_ours_arrives_as_itself(world):
    async with world.server(), client.Connection(world.target) as connection:
        with pytest.raises(errors.NotFound) as caught:
            await get_pool(connection, "none")

    assert ("POOL_UNKNOWN", "no pool none", {"pool": "none"}) == caught.value.args
    assert 1 == world.count("NOT_FOUND")


async def test_a_bug_arrives_as_internal_with_an_incident_and_without_its_text(world):
    stream = io.StringIO()
    logger = structlog.wrap_logger(structlog.PrintLogger(stream), processors=[structlog.processors.KeyValueRenderer()])
    async with world.server(log=logger), client.Connection(world.target) as connection:
        with pytest.raises(errors.Internal) as caught:
            await get_pool(connection, "bug")

    assert "hunter2" not in str(caught.value)
    assert caught.value.metadata["incident"] in stream.getvalue()
    assert "ValueError" in stream.getvalue()
    assert 1 == world.count("INTERNAL")


async def test_a_method_that_is_not_there_is_told_as_such(world):
    async with world.server(), client.Connection(world.target) as connection:
        call = connection.channel.unary_unary(f"/{IPAM}/Nonsense")
        with pytest.raises(errors.FailedPrecondition) as caught:
            await connection.call(call, b"")

    assert "UNIMPLEMENTED" == caught.value.reason


async def test_an_error_in_the_middle_of_a_stream_arrives_after_what_was_sent(world):
    async with world.server(), client.Connection(world.target) as connection:
        stream = watch(connection, 9)
        first = await anext(stream)
        with pytest.raises(errors.OutOfRange):
            await anext(stream)

    assert 1 == first.revision
    assert 1 == world.count("OUT_OF_RANGE", "Watch", EVENTS)


async def test_health_of_an_unknown_service_keeps_the_librarys_answer(world):
    async with world.server(), client.Connection(world.target) as connection:
        with pytest.raises(errors.NotFound):
            await health_of(connection, "nobody")


async def test_a_target_where_nobody_is_says_which(tmp_path):
    async with client.Connection(f"unix:{tmp_path}/x.sock") as connection:
        with pytest.raises(errors.Unavailable, match=r"x\.sock does not answer GetPool") as caught:
            await get_pool(connection, "a")

    assert "UNREACHABLE" == caught.value.reason


async def test_wait_for_ready_waits_for_the_server_to_come_up(world):
    async with client.Connection(world.target, wait_for_ready=True) as connection, asyncio.TaskGroup() as group:
        asked = group.create_task(get_pool(connection, "a"))
        async with world.server():
            assert "a" == await asked


@pytest.mark.parametrize("over", ["unix", "tcp"])
async def test_a_server_that_is_slow_to_take_a_connection_is_reached(world, tmp_path, over):
    taken: list[None] = []

    async def pump(reader, writer):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()

    async def take(reader, writer):
        taken.append(None)
        await asyncio.sleep(1.0)  # as one does that has other things to do
        there, to = await asyncio.open_unix_connection(tmp_path / "run" / "x.sock")
        with contextlib.closing(writer), contextlib.closing(to):
            await asyncio.gather(pump(reader, to), pump(there, writer))

    async with world.server():
        if over == "unix":
            slow = await asyncio.start_unix_server(take, tmp_path / "slow.sock")
            target = f"unix:{tmp_path}/slow.sock"
        else:
            slow = await asyncio.start_server(take, "127.0.0.1", 0)
            target = f"127.0.0.1:{slow.sockets[0].getsockname()[1]}"
        try:
            async with client.Connection(target, wait_for_ready=True) as connection:
                assert "a" == await get_pool(connection, "a")
            assert 1 == len(taken)
        finally:
            slow.close()


async def test_a_closed_connection_says_so(world):
    async with world.server():
        async with client.Connection(world.target) as connection:
            await get_pool(connection, "a")
        with pytest.raises(errors.Unavailable) as caught:
            await get_pool(connection, "a")

    assert "CONNECTION_CLOSED" == caught.value.reason


# Deadlines


async def test_a_caller_that_waits_no_longer_cancels_the_handler(world):
    async with world.server(), client.Connection(world.target) as connection:
        with pytest.raises(errors.Unavailable) as caught:
            await get_pool(connection, "wait", timeout_s=0.1)
        async with asyncio.timeout(10):
            await world.ipam.cancelled.wait()

    assert "DEADLINE_EXCEEDED" == caught.value.reason
    assert 1 == world.count("CANCELLED")


async def test_a_handler_sees_how_long_its_caller_waits(world):
    async with world.server(), client.Connection(world.target) as connection:
        found = float(await get_pool(connection, "deadline", timeout_s=5))

    assert 4 < found < 6  # the wire rounds a timeout up


# Drain


async def test_drain_lets_a_call_in_flight_finish_while_health_says_no(world):
    async with client.Connection(world.target) as connection, asyncio.TaskGroup() as group:
        made = world.server()
        async with made:
            before = [await health_of(connection, name) for name in ("", IPAM, EVENTS)]
            watcher = health_pb2_grpc.HealthStub(connection.channel).Watch(health_pb2.HealthCheckRequest(service=IPAM))
            first = await watcher.read()
            in_flight = group.create_task(get_pool(connection, "wait"))
            await world.ipam.entered.wait()

            drain = group.create_task(made.drain())
            second = await watcher.read()
            world.ipam.release.set()
            answer = await in_flight
            await drain

    assert ["SERVING"] * 3 == before
    assert [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING] == [
        first.status,
        second.status,
    ]
    assert "wait" == answer


async def test_drain_ends_streams_at_once_with_unavailable(world):
    async with client.Connection(world.target) as connection:
        async with asyncio.timeout(5):  # far below the grace
            async with world.server(grace=dt.timedelta(minutes=5)) as made:
                stream = watch(connection)
                await anext(stream)

                async with asyncio.TaskGroup() as group:
                    group.create_task(made.drain())
                    with pytest.raises(errors.Unavailable) as caught:
                        await anext(stream)

    assert "SERVER_DRAINING" == caught.value.reason
    assert world.events.ended.is_set()


async def test_drain_ends_a_stream_in_the_middle_of_a_message_once_it_is_sent(world):
    # A cancellation inside the library's own write once left the call open until the end of the grace.
    async with asyncio.timeout(20), client.Connection(world.target) as connection:  # far below the grace
        made = world.server(grace=dt.timedelta(minutes=5))
        async with made, asyncio.TaskGroup() as group:
            stub = event_pb2_grpc.EventServiceStub(connection.channel)
            call = stub.Watch(event_pb2.WatchRequest(after_revision=LARGE))  # nobody reads: the write has to wait
            await world.events.sending.wait()
            await clock.settle()
            group.create_task(made.drain())
            await clock.settle()

            message = await call.read()
            with pytest.raises(aio.AioRpcError) as caught:
                await call.read()

    assert LARGE == message.revision
    assert "SERVER_DRAINING" == status.from_rpc_error(caught.value).reason


async def test_drain_cancels_what_outlasts_the_grace(world):
    async with client.Connection(world.target) as connection, asyncio.TaskGroup() as group:
        async with world.server(grace=dt.timedelta(milliseconds=50)):
            in_flight = group.create_task(refused(get_pool(connection, "wait")))
            await world.ipam.entered.wait()

        assert isinstance(await in_flight, errors.Unavailable)
    assert world.ipam.cancelled.is_set()


async def refused(call) -> errors.NetweftError | None:
    try:
        await call
    except errors.NetweftError as error:
        return error
    return None


async def test_a_client_that_ends_its_stream_ends_the_handler(world):
    async with world.server(), client.Connection(world.target) as connection:
        stream = watch(connection)
        await anext(stream)
        await stream.aclose()
        async with asyncio.timeout(10):
            await world.events.ended.wait()


# What tools see


async def test_reflection_lists_the_services(world):
    async with world.server() as made, client.Connection(world.target) as connection:
        stub = reflection_pb2_grpc.ServerReflectionStub(connection.channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        answer = await call.read()
        call.cancel()

    found = {service.name for service in answer.list_services_response.service}
    assert {IPAM, EVENTS} == set(made.services)
    assert {IPAM, EVENTS, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} == found


async def test_the_largest_batch_passes(world):
    async with world.server(), client.Connection(world.target) as connection:
        pool = "x" * (12 << 20)

        assert len(pool) == len(await get_pool(connection, pool))


async def test_rpcs_are_counted_and_timed(world):
    async with world.server(), client.Connection(world.target) as connection:
        for _ in range(3):
            await get_pool(connection, "a")

    labels = {"service": IPAM, "method": "GetPool"}
    assert 3 == world.count("OK")
    assert 3 == world.registry.get_sample_value("netweft_grpc_handling_seconds_count", labels)


async def test_metrics_are_shown_over_http_at_loopback_and_unix(world, tmp_path):
    async with (
        metrics.serve(world.registry, "127.0.0.1:0") as target,
        metrics.serve(world.registry, f"unix:{tmp_path}/m.sock"),
    ):
        host, _, port = target.rpartition(":")
        answers = []
        for opened in (asyncio.open_connection(host, int(port)), asyncio.open_unix_connection(tmp_path / "m.sock")):
            reader, writer = await opened
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            answers.append(await reader.read())
            writer.close()
            await writer.wait_closed()

    assert [b"HTTP/1.1 200 OK"] * 2 == [answer.partition(b"\r\n")[0] for answer in answers]
    assert [] == [answer for answer in answers if b"process_cpu_seconds_total" not in answer]


async def test_metrics_beyond_loopback_are_refused(world):
    with pytest.raises(errors.InvalidArgument, match="no authentication"):
        async with metrics.serve(world.registry, "0.0.0.0:0"):
            pass


@pytest.mark.parametrize(
    ("head", "code"),
    [(b"GET / HTTP/1.1\r\n\r\n", b"404"), (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"), (b"\r\n\r\n", b"405")],
    ids=["path", "method", "empty"],
)
async def test_the_metrics_endpoint_answers_nothing_else(world, head, code):
    assert code == metrics.respond(world.registry, head).split(b" ")[1]


# Retries of the channel


class Flaky(ipam_pb2_grpc.IpamServiceServicer):
    def __init__(self) -> None:
        self.calls: list[str] = []

    async def GetPool(self, request, context):
        return self.once("GetPool", ipam_pb2.GetPoolResponse())

    async def ReleasePool(self, request, context):
        return self.once("ReleasePool", ipam_pb2.ReleasePoolResponse())

    def once(self, method: str, answer):
        self.calls.append(method)
        if self.calls.count(method) == 1:
            raise errors.Unavailable("STORE_DOWN", "again")
        return answer


async def test_only_methods_named_as_idempotent_are_called_again(world):
    flaky = Flaky()
    made = server.Server(listen_at=[world.target]).add(ipam_pb2_grpc.add_IpamServiceServicer_to_server, flaky)
    async with made, client.Connection(world.target, retry=[f"/{IPAM}/GetPool"]) as connection:
        stub = ipam_pb2_grpc.IpamServiceStub(connection.channel)
        await connection.call(stub.GetPool, ipam_pb2.GetPoolRequest())
        with pytest.raises(errors.Unavailable):
            await connection.call(stub.ReleasePool, ipam_pb2.ReleasePoolRequest())

    assert ["GetPool", "GetPool", "ReleasePool"] == flaky.calls


async def test_a_plain_grpc_client_sees_plain_grpc_statuses(world, caplog):
    caplog.set_level(logging.ERROR)
    async with world.server(), aio.insecure_channel(world.target) as channel:
        with pytest.raises(aio.AioRpcError) as caught:
            await ipam_pb2_grpc.IpamServiceStub(channel).GetPool(ipam_pb2.GetPoolRequest(pool_id="none"))

    assert (grpc.StatusCode.NOT_FOUND, "no pool none") == (caught.value.code(), caught.value.details())
    assert [] == caplog.messages
