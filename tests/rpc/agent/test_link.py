"""The agent's link to a controller, against a HostService that the test speaks for."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest
from netweft.agent.v1 import agent_pb2
from netweft.common.v1 import host_pb2, network_pb2, sandbox_pb2
from netweft.controller.v1 import host_pb2 as controller_pb2
from netweft.controller.v1 import host_pb2_grpc as controller_grpc
from netweft_agent.engine.journal import Position
from netweft_agent.engine.paths import NarrowPath
from netweft_agent.rpc import link
from netweft_common import client, errors, server

from tests.support.agent import endpoint, lasting, network, oid, put, refused, sandbox, until

pytestmark = pytest.mark.anyio

END = object()


class Controller(controller_grpc.HostServiceServicer):
    """Says to each stream what the test puts into `script`, and notes what it is told."""

    silent_ms = 0

    def __init__(self):
        self.registered = []
        self.watches = []
        self.reports = []
        self.script = asyncio.Queue()
        self.want_full = []
        self.interval_s = 1
        self.unknown = 0

    async def RegisterHost(self, request, context):
        self.registered.append(request.host)
        return controller_pb2.RegisterHostResponse(host=request.host, report_interval_seconds=self.interval_s)

    async def ReportHost(self, request, context):
        if self.unknown:
            self.unknown -= 1
            raise errors.NotFound("HOST_UNKNOWN", "register again")
        self.reports.append(request)
        want_full = self.want_full.pop() if self.want_full else False
        return controller_pb2.ReportHostResponse(want_full=want_full, silent_ms=self.silent_ms)

    async def WatchHost(self, request, context):
        self.watches.append(request)
        while (message := await self.script.get()) is not END:
            if isinstance(message, Exception):
                raise message
            yield message


class Watch:
    """Knows which ways are narrow, as the test says."""

    narrow = ()


@contextlib.asynccontextmanager
async def serving(controller, target):
    made = server.Server(listen_at=[target])
    made.add(controller_grpc.add_HostServiceServicer_to_server, controller)
    async with made:
        yield
        controller.script.put_nowait(END)


@pytest.fixture
async def linked(rig, tmp_path, anyio_backend, monkeypatch):
    """Yield the controller with a rig that is linked to it."""
    monkeypatch.setattr(link, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(link, "LAST_RETRY_S", 0.05)
    target = f"unix:{tmp_path}/controller.sock"
    async with contextlib.AsyncExitStack() as stack:
        controller = Controller()
        await stack.enter_async_context(serving(controller, target))
        connection = await stack.enter_async_context(client.Connection(target))
        host = host_pb2.Host(id="h" * 32, name="host1", agent_target="unix:/run/agent.sock")
        controller.watch = Watch()
        controller.link = made = link.Link(connection, rig.engine, host, paths=controller.watch)
        task = asyncio.create_task(made.run())
        yield controller
        assert not task.done(), task
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def message(revision, *changes, store_id="s", **fields):
    return controller_pb2.WatchHostResponse(changes=changes, revision=revision, store_id=store_id, **fields)


def box(number, revision=1):
    return agent_pb2.Change(revision=revision, sandbox=sandbox_pb2.Sandbox(id=oid(number)))


def gone(number, revision):
    ref = agent_pb2.ObjectRef(kind=agent_pb2.OBJECT_KIND_SANDBOX, id=oid(number))
    return agent_pb2.Change(revision=revision, gone=ref)


def held(rig):
    return {ref.id for ref in rig.engine.store.objects}


async def test_it_registers_asks_for_a_snapshot_and_reports_all(rig, linked):
    await until(lambda: linked.watches and linked.reports)

    assert ["host1"] == [one.name for one in linked.registered]
    assert (0, "") == (linked.watches[0].resume_revision, linked.watches[0].store_id)
    assert linked.reports[0].full


async def test_a_snapshot_in_parts_counts_when_it_is_whole(rig, linked):
    await rig.engine.apply(put(1, sandbox(109)))
    linked.script.put_nowait(message(5, box(101), snapshot=True))
    linked.script.put_nowait(message(5, box(102), snapshot=True))
    await until(linked.script.empty)
    before = held(rig)

    linked.script.put_nowait(message(5, box(103), snapshot=True, snapshot_end=True))
    await until(lambda: rig.engine.position.revision == 5)

    assert {oid(109)} == before
    assert {oid(101), oid(102), oid(103)} == held(rig)
    assert rig.rendered() == rig.kernel.state


async def test_deltas_are_applied_in_order_and_move_the_position(rig, linked):
    linked.script.put_nowait(message(5, box(101), snapshot=True, snapshot_end=True))
    linked.script.put_nowait(message(6, box(102, 6), gone(101, 6)))
    linked.script.put_nowait(message(8))
    await until(lambda: rig.engine.position.revision == 8)

    assert {oid(102)} == held(rig)
    assert Position(store_id="s", revision=8) == rig.engine.position


async def test_it_resumes_by_revision_after_the_stream_ended(rig, linked):
    linked.script.put_nowait(message(5, box(101), snapshot=True, snapshot_end=True))
    linked.script.put_nowait(message(7, box(102, 7)))
    linked.script.put_nowait(END)
    await until(lambda: len(linked.watches) == 2)

    assert (7, "s") == (linked.watches[1].resume_revision, linked.watches[1].store_id)
    assert {oid(101), oid(102)} == held(rig)


async def test_it_resumes_after_it_fell_behind(rig, linked):
    linked.script.put_nowait(message(5, box(101), snapshot=True, snapshot_end=True))
    linked.script.put_nowait(errors.Conflict("FELL_BEHIND", "resume"))
    await until(lambda: len(linked.watches) == 2)

    assert 5 == linked.watches[1].resume_revision


async def test_a_snapshot_that_breaks_off_removes_nothing_and_is_asked_for_again(rig, linked):
    await rig.engine.apply(put(1, sandbox(109)))
    linked.script.put_nowait(message(5, box(101), snapshot=True))
    linked.script.put_nowait(END)
    await until(lambda: len(linked.watches) == 2)

    assert {oid(109)} == held(rig)
    assert 0 == linked.watches[1].resume_revision
    linked.script.put_nowait(message(6, box(102), snapshot=True, snapshot_end=True))
    await until(lambda: rig.engine.position.revision == 6)
    assert {oid(102)} == held(rig), "parts of the broken snapshot do not count"


async def test_after_a_restart_of_the_agent_it_resumes_from_the_journal(rig, linked, tmp_path):
    linked.script.put_nowait(message(5, box(101), snapshot=True, snapshot_end=True))
    await until(lambda: rig.engine.position.revision == 5)

    await rig.restart()

    assert Position(store_id="s", revision=5) == rig.engine.position


async def test_an_unknown_host_registers_again_and_reports_in_full(rig, linked):
    await until(lambda: linked.reports)
    linked.unknown = 1
    linked.script.put_nowait(END)
    await until(lambda: len(linked.registered) >= 2 and len(linked.reports) >= 2)

    assert linked.reports[-1].full


async def test_changed_statuses_are_reported_once_and_all_when_asked(rig, linked):
    linked.want_full = [True]
    await rig.engine.apply(put(1, sandbox(101)))
    await until(lambda: len(linked.reports) >= 2)

    assert [True, True] == [one.full for one in linked.reports[:2]]
    assert {oid(101)} == {one.object.id for one in linked.reports[1].statuses}


async def test_what_changed_since_the_last_report_is_reported_alone(rig, linked):
    await rig.engine.apply(put(1, sandbox(101)))
    await until(lambda: linked.reports)
    rig.kernel.fail_at = lambda step: refused(step) if "eth0" in step.resource.key else None
    await rig.engine.apply(put(2, network(), endpoint(1001)))
    async with asyncio.timeout(5):
        while len(linked.reports) < 2:  # the agent's own second goes by
            await asyncio.sleep(0.05)

    assert not linked.reports[1].full
    statuses = {one.object.id: one.status.reason for one in linked.reports[1].statuses}
    assert {oid(1): "", oid(1001): "KERNEL_EBUSY"} == {key: statuses[key] for key in (oid(1), oid(1001))}


async def test_a_change_that_is_not_understood_is_skipped_and_the_others_are_taken(rig, linked):
    odd = agent_pb2.Change(revision=6, network=network_pb2.Network(id="nonsense"))
    new = agent_pb2.Change(revision=6)
    linked.script.put_nowait(message(5, box(101), snapshot=True, snapshot_end=True))
    linked.script.put_nowait(message(6, odd, new, box(102, 6)))
    await until(lambda: rig.engine.position.revision == 6)

    assert {oid(101), oid(102)} == held(rig)
    assert 1 == len(linked.watches)


async def test_a_snapshot_that_is_not_understood_as_a_whole_removes_nothing(rig, linked):
    await rig.engine.apply(put(1, sandbox(109)))
    odd = agent_pb2.Change(revision=4, network=network_pb2.Network(id="nonsense"))
    linked.script.put_nowait(message(5, odd, snapshot=True))
    linked.script.put_nowait(message(5, box(101), snapshot=True, snapshot_end=True))
    await until(lambda: rig.engine.position.revision == 5)

    assert {oid(101), oid(109)} == held(rig)


async def test_a_controller_that_goes_away_and_comes_back_is_met_again_and_the_data_plane_stays(
    rig, tmp_path, monkeypatch
):
    monkeypatch.setattr(link, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(link, "LAST_RETRY_S", 0.05)
    target, first, second = f"unix:{tmp_path}/c.sock", Controller(), Controller()
    async with client.Connection(target) as connection:
        made = link.Link(connection, rig.engine, host_pb2.Host(id="h" * 32, name="host1"))
        task = asyncio.create_task(made.run())
        await made.tried(10)
        async with serving(first, target):
            first.script.put_nowait(message(5, box(101), snapshot=True, snapshot_end=True))
            await until(lambda: rig.engine.position.revision == 5)
            state = lasting(rig.kernel.state)
        between = lasting(rig.kernel.state)
        async with serving(second, target):
            async with asyncio.timeout(10):
                while not (second.watches and second.reports):  # gRPC reconnects in its own time
                    await asyncio.sleep(0.05)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    assert state == between
    assert (5, "s") == (second.watches[0].resume_revision, second.watches[0].store_id)
    assert second.reports[0].full
    assert {oid(101)} == {one.object.id for one in second.reports[0].statuses}


async def test_what_was_repaired_is_told_once(rig, linked):
    linked.script.put_nowait(message(1, box(101), snapshot=True, snapshot_end=True))
    lo = "link", f"sandbox/{oid(101)}", "lo"
    await until(lambda: lo in rig.kernel.state and rig.engine.position.revision == 1)
    rig.kernel.state[lo] = msgspec.structs.replace(rig.kernel.state[lo], up=False)
    await rig.engine.reconcile()
    await until(lambda: any(one.HasField("drift") for one in linked.reports))
    count = len(linked.reports)
    await until(lambda: len(linked.reports) > count + 1)

    (told,) = [one.drift for one in linked.reports if one.HasField("drift")]

    assert 1 == told.operations
    assert [("ip link set lo up", f"sandbox/{oid(101)}")] == [(one.command, one.namespace) for one in told.repairs]


async def test_narrow_ways_are_told_when_they_change(linked):
    way = NarrowPath(host_id="2" * 32, vtep="192.0.2.2", mtu_bytes=1400, needed_bytes=1500)
    await until(lambda: linked.reports)

    linked.watch.narrow = (way,)
    count = len(linked.reports)
    await until(lambda: len(linked.reports) > count + 2)
    linked.watch.narrow = ()
    count = len(linked.reports)
    await until(lambda: len(linked.reports) > count + 2)

    told = [
        [(one.host_id, one.peer_host_id, one.mtu_bytes, one.needed_bytes) for one in report.narrow_paths.paths]
        for report in linked.reports
        if report.HasField("narrow_paths")
    ]
    assert [[], [("h" * 32, "2" * 32, 1400, 1500)], []] == told


async def test_networks_that_are_bound_are_known_when_that_is_answered(linked):
    await until(lambda: linked.reports)

    await linked.link.bind({"b" * 32, "a" * 32})

    assert ["a" * 32, "b" * 32] == list(linked.registered[-1].facts.bound_networks)


async def test_another_mtu_of_the_underlay_is_told_by_registering_again(linked):
    await until(lambda: linked.reports)

    linked.link.set_underlay_mtu(1400)
    await until(lambda: len(linked.registered) > 1)

    assert [0, 1400] == [one.facts.underlay_mtu_bytes for one in linked.registered]


@pytest.fixture
def silence(monkeypatch):
    """Have hosts be let silent for a minute, and else report after a tenth of a second."""
    monkeypatch.setattr(link, "ACK_PART", 10)
    monkeypatch.setattr(Controller, "silent_ms", 60_000)


async def test_a_host_that_may_be_silent_follows_without_a_word_until_it_is_asked(silence, rig, linked):
    linked.script.put_nowait(message(5, box(101), snapshot=True, snapshot_end=True))
    await until(lambda: linked.reports and rig.engine.position.revision == 5)
    linked.script.put_nowait(message(6, box(106, 6)))
    await until(lambda: rig.engine.position.revision == 6)
    await asyncio.sleep(0.5)
    silent = len(linked.reports)
    linked.script.put_nowait(message(7, report_now=True))
    await until(lambda: len(linked.reports) > silent)

    assert 1 == silent
    assert 7 == linked.reports[-1].applied_revision


async def test_a_host_that_may_be_silent_tells_another_mtu_at_once(silence, linked):
    await until(lambda: linked.reports)

    linked.link.set_underlay_mtu(1400)

    await until(lambda: [0, 1400] == [one.facts.underlay_mtu_bytes for one in linked.registered])
