"""Which hosts are behind, and waiting for them."""

from __future__ import annotations

import asyncio

import pytest
from netweft.controller.v1 import host_pb2, network_pb2

pytestmark = pytest.mark.anyio

H1, H2 = f"{1:032x}", f"{2:032x}"


async def shown(face):
    found = await face.networks.GetNetwork(network_pb2.GetNetworkRequest(network="front"))
    return found.revision, {one.host_id: one.behind for one in found.hosts}


async def report(face, host_id, revision):
    await face.hosts.ReportHost(host_pb2.ReportHostRequest(host_id=host_id, applied_revision=revision, full=True))


@pytest.fixture
async def spread(face, make_item):
    await face.network(driver="overlay")
    await face.attach(make_item(name="a"), make_item(name="b", host="h2", container="c2"))
    await face.settled()


async def test_a_host_is_behind_until_it_says_that_it_has_all_of_the_network(face, spread, make_item):
    revision, before = await shown(face)
    await report(face, H1, revision)
    _, first = await shown(face)
    await report(face, H2, revision + 5)
    _, second = await shown(face)

    assert {H1: True, H2: True} == before
    assert {H1: False, H2: True} == first
    assert {H1: False, H2: False} == second


async def test_a_change_puts_hosts_behind_again_and_one_of_another_network_does_not(face, spread, make_item):
    revision, _ = await shown(face)
    for host_id in (H1, H2):
        await report(face, host_id, revision)
    await face.network("other")
    await face.attach(make_item("other", name="x"))
    untouched = await shown(face)

    await face.detach("b", delete_sandbox=True)

    assert (revision, {H1: False, H2: False}) == untouched
    later, hosts = await shown(face)
    assert later > revision
    assert {H1: True} == hosts


async def test_what_a_host_has_confirmed_puts_nobody_behind(face, spread, make_item):
    before, _ = await shown(face)

    (result,) = await face.attach(make_item(name="c", container="c3"))
    told = result.endpoint.revision
    for host_id in (H1, H2):
        await report(face, host_id, told)
    await face.settled()
    found = face.state.endpoints[result.endpoint.id].revision
    revision, hosts = await shown(face)
    request = network_pb2.WaitNetworkRequest(network="front", revision=found, timeout_ms=1)
    answer = await face.networks.WaitNetwork(request)

    assert before < told < found
    assert (told, {H1: False, H2: False}) == (revision, hosts)
    assert [] == list(answer.behind_host_ids)


async def test_waiting_ends_when_the_last_host_has_it(face, spread):
    revision, _ = await shown(face)
    await report(face, H1, revision)
    waiting = asyncio.create_task(
        face.networks.WaitNetwork(network_pb2.WaitNetworkRequest(network="front", timeout_ms=20_000))
    )
    await asyncio.sleep(0.1)
    pending = not waiting.done()

    await report(face, H2, revision)

    answer = await waiting
    assert pending
    assert (revision, []) == (answer.revision, list(answer.behind_host_ids))


async def test_waiting_ends_with_who_is_behind_when_the_time_is_over(face, spread):
    revision, _ = await shown(face)
    await report(face, H1, revision)

    answer = await face.networks.WaitNetwork(network_pb2.WaitNetworkRequest(network="front", timeout_ms=1))

    assert [H2] == list(answer.behind_host_ids)


async def test_a_stream_says_how_far_it_is_though_the_host_was_told_otherwise(face, spread, make_item, monkeypatch):
    from netweft_controller.sync import hostwatch  # noqa: PLC0415  # for its time

    monkeypatch.setattr(hostwatch, "ACK_S", 0.05)
    stream = face.host_streams.WatchHost(host_pb2.WatchHostRequest(host_id=H1))
    await stream.read()
    (result,) = await face.attach(make_item(name="c", container="c3"))

    async with asyncio.timeout(5):
        while (message := await stream.read()).revision < result.endpoint.revision:
            pass

    stream.cancel()
    assert [] == [one for one in message.changes if one.WhichOneof("object") == "endpoint"]


async def test_another_controller_knows_how_far_hosts_are(world, face, spread):
    other = await world.start_controller()
    revision, _ = await shown(face)
    for host_id in (H1, H2):
        await report(face, host_id, revision + 100)
    await face.controller.liveness.exchange()

    await other.controller.liveness.exchange()

    _, hosts = await shown(other)
    assert {H1: False, H2: False} == hosts


async def test_whoever_waits_has_the_hosts_asked(face, spread):
    streams = {id_: face.host_streams.WatchHost(host_pb2.WatchHostRequest(host_id=id_)) for id_ in (H1, H2)}
    for stream in streams.values():
        while not (await stream.read()).snapshot_end:
            pass
    revision, _ = await shown(face)
    await report(face, H1, revision)
    waiting = asyncio.create_task(
        face.networks.WaitNetwork(network_pb2.WaitNetworkRequest(network="front", timeout_ms=20_000))
    )

    async with asyncio.timeout(5):
        while not (message := await streams[H2].read()).report_now:
            pass
    await report(face, H2, message.revision)

    assert [] == list((await waiting).behind_host_ids)
    assert message.revision >= revision
    for stream in streams.values():
        stream.cancel()


@pytest.mark.parametrize(("hosts", "silent_ms"), [(2, 0), (300, 3000), (2000, 7500)])
async def test_many_hosts_may_be_silent_for_up_to_half_of_the_grace(face, spread, hosts, silent_ms):
    for number in range(hosts):
        face.controller.pace.silent_ms(f"h{number}")

    answer = await face.hosts.ReportHost(host_pb2.ReportHostRequest(host_id=H1))

    assert silent_ms == answer.silent_ms // 100 * 100
