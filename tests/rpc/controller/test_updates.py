"""Changes of endpoints and sandboxes that exist: on their host before the answer, or not at all."""

from __future__ import annotations

import pytest
from google.protobuf import field_mask_pb2
from netweft.common.v1 import endpoint_pb2 as common_endpoint_pb2
from netweft.common.v1 import sandbox_pb2 as common_sandbox_pb2
from netweft.controller.v1 import endpoint_pb2, sandbox_pb2
from netweft_common import errors

pytestmark = pytest.mark.anyio

Port = common_endpoint_pb2.PublishedPort


def change(*paths, endpoint="web", request_id="", **fields):
    return endpoint_pb2.UpdateEndpointRequest(
        request_id=request_id,
        endpoint=endpoint,
        spec=endpoint_pb2.EndpointSpec(**fields),
        update_mask=field_mask_pb2.FieldMask(paths=paths),
    )


def rename(*paths, sandbox="c1", request_id="", **fields):
    return sandbox_pb2.UpdateSandboxRequest(
        request_id=request_id,
        sandbox=sandbox,
        spec=endpoint_pb2.SandboxSpec(**fields),
        update_mask=field_mask_pb2.FieldMask(paths=paths),
    )


@pytest.fixture
async def attached(world, face, make_item):
    await face.network()
    (result,) = await face.attach(make_item(name="web", ports=[Port(container_port=80)]))
    await face.settled()
    return result.endpoint


def on_host(world, name="web"):
    (found,) = (value for (kind, _), value in world.agents["h1"].objects.items() if getattr(value, "name", "") == name)
    return found


async def test_an_attach_answers_and_keeps_the_ports_that_the_host_assigned(face, attached):
    got = await face.endpoints.GetEndpoint(endpoint_pb2.GetEndpointRequest(endpoint="web"))

    assert [40080] == [port.assigned_port for port in attached.ports]
    assert [40080] == [port.assigned_port for port in got.endpoint.ports]


async def test_a_change_is_on_the_host_when_it_is_answered(world, face, attached):
    limits = common_endpoint_pb2.Bandwidth(ingress_bits_per_second=8000)
    request = change(
        "ports", "bandwidth", "labels", ports=[Port(container_port=81)], bandwidth=limits, labels={"a": "b"}
    )

    answer = await face.endpoints.UpdateEndpoint(request)

    assert [(81, 40081)] == [(port.container_port, port.assigned_port) for port in answer.endpoint.ports]
    assert [81] == [port.container_port for port in on_host(world).ports]
    assert limits == on_host(world).bandwidth
    assert {"a": "b"} == dict(answer.endpoint.labels)
    assert list(attached.addresses) == list(answer.endpoint.addresses)


async def test_what_the_mask_does_not_name_stays(face, attached):
    answer = await face.endpoints.UpdateEndpoint(change("labels", labels={"a": "b"}, gateway_priority=7))

    assert list(attached.ports) == list(answer.endpoint.ports)
    assert 0 == answer.endpoint.gateway_priority


async def test_what_the_host_refuses_is_as_it_was(world, face, attached):
    world.agents["h1"].refuse["web"] = errors.FailedPrecondition("PORT_IN_USE", "port 81/tcp is taken")
    request = change("ports", ports=[Port(container_port=81, host_port=81)], request_id="r1")

    with pytest.raises(errors.FailedPrecondition, match="taken"):
        await face.endpoints.UpdateEndpoint(request)
    world.agents["h1"].refuse.clear()

    got = await face.endpoints.GetEndpoint(endpoint_pb2.GetEndpointRequest(endpoint="web"))
    assert [80] == [port.container_port for port in got.endpoint.ports]
    assert common_endpoint_pb2.ENDPOINT_STATE_JOINED == got.endpoint.state
    again = await face.endpoints.UpdateEndpoint(request)
    assert [81] == [port.assigned_port for port in again.endpoint.ports]


async def test_the_same_request_again_is_the_first_answer(face, attached):
    first = await face.endpoints.UpdateEndpoint(change("labels", labels={"n": "1"}, request_id="r1"))
    await face.settled()
    await face.endpoints.UpdateEndpoint(change("labels", labels={"n": "2"}, request_id="r2"))

    again = await face.endpoints.UpdateEndpoint(change("labels", labels={"n": "1"}, request_id="r1"))

    assert {"n": "1"} == dict(again.endpoint.labels)
    assert first.endpoint.id == again.endpoint.id
    got = await face.endpoints.GetEndpoint(endpoint_pb2.GetEndpointRequest(endpoint="web"))
    assert {"n": "2"} == dict(got.endpoint.labels)


async def test_an_unanswered_change_stays_and_is_done_by_the_next_try(world, face, attached):
    world.agents["h1"].fail["Apply"] = errors.Unavailable("DOWN", "not now")
    request = change("ports", ports=[Port(container_port=81)], request_id="r1")

    with pytest.raises(errors.Unavailable):
        await face.endpoints.UpdateEndpoint(request, timeout_s=5)
    again = await face.endpoints.UpdateEndpoint(request)

    assert [40081] == [port.assigned_port for port in again.endpoint.ports]
    assert [81] == [port.container_port for port in on_host(world).ports]


async def test_an_endpoint_in_no_sandbox_is_changed_in_the_record_alone(world, face):
    await face.network()
    spec = endpoint_pb2.EndpointSpec(network="front", name="web")
    await face.endpoints.CreateEndpoint(endpoint_pb2.CreateEndpointRequest(endpoint=spec))

    answer = await face.endpoints.UpdateEndpoint(change("gateway_priority", gateway_priority=7))

    assert 7 == answer.endpoint.gateway_priority
    assert 0 == world.agents["h1"].calls["Apply"]


REFUSED = {
    "nothing to change": ((), "update_mask", "MASK_MALFORMED"),
    "a field that cannot change": (("addresses",), "update_mask", "MASK_MALFORMED"),
    "a wrong value": (("ports",), "spec.ports[0].container_port", "PORT_OUT_OF_RANGE"),
}


@pytest.mark.parametrize(("paths", "field", "reason"), REFUSED.values(), ids=REFUSED)
async def test_a_wrong_change_is_refused_and_nothing_is_written(face, attached, paths, field, reason):
    revision = face.state.revision

    with pytest.raises(errors.InvalidArgument) as caught:
        await face.endpoints.UpdateEndpoint(change(*paths, ports=[Port(container_port=0)]))

    assert (field, reason) == (caught.value.metadata["field"], caught.value.reason)
    assert revision == face.state.revision


async def test_a_sandbox_is_renamed_and_its_old_name_is_free(world, face, attached, make_item):
    answer = await face.sandboxes.UpdateSandbox(rename("container_id", "hostname", container_id="c9", hostname="web"))

    assert ("c9", "web") == (answer.sandbox.container_id, answer.sandbox.hostname)
    assert ["c9"] == world.agents["h1"].names("sandbox")
    (again,) = await face.attach(make_item(name="other", container="c1"))
    assert answer.sandbox.id != again.sandbox.id


async def test_a_name_that_another_sandbox_has_is_refused(face, attached, make_item):
    await face.attach(make_item(name="other", container="c2"))

    with pytest.raises(errors.AlreadyExists, match="c2"):
        await face.sandboxes.UpdateSandbox(rename("container_id", container_id="c2"))


async def test_a_sandbox_that_its_host_refuses_is_as_it_was(world, face, attached):
    world.agents["h1"].refuse["c1"] = errors.FailedPrecondition("NOT_SO", "no such file")
    dns = common_sandbox_pb2.DnsConfig(servers=["192.0.2.1"])

    with pytest.raises(errors.FailedPrecondition, match="no such file"):
        await face.sandboxes.UpdateSandbox(rename("dns", dns=dns))

    got = await face.sandboxes.GetSandbox(sandbox_pb2.GetSandboxRequest(sandbox="c1"))
    assert not got.sandbox.HasField("dns")


async def test_the_same_change_of_a_sandbox_again_is_the_first_answer(face, attached):
    first = await face.sandboxes.UpdateSandbox(rename("hostname", hostname="a", request_id="r1"))
    await face.settled()
    await face.sandboxes.UpdateSandbox(rename("hostname", hostname="b", request_id="r2"))

    again = await face.sandboxes.UpdateSandbox(rename("hostname", hostname="a", request_id="r1"))

    assert ("a", first.sandbox.id) == (again.sandbox.hostname, again.sandbox.id)


async def test_a_refresh_and_counters_come_from_the_sandboxs_host(face, attached):
    refreshed = await face.sandboxes.RefreshSandbox(sandbox_pb2.RefreshSandboxRequest(sandbox="c1"))
    counted = await face.sandboxes.GetSandboxStatistics(sandbox_pb2.GetSandboxStatisticsRequest(sandbox="c1"))

    assert [f"ip link set eth0 up # {attached.sandbox_id}"] == [step.command for step in refreshed.repaired]
    assert [("eth0", "e", 7, 2**40)] == [
        (one.interface_name, one.endpoint_id, one.rx_bytes, one.tx_packets) for one in counted.interfaces
    ]
    with pytest.raises(errors.NotFound):
        await face.sandboxes.RefreshSandbox(sandbox_pb2.RefreshSandboxRequest(sandbox="c7"))
