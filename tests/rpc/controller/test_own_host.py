"""What an agent's certificate lets it do to endpoints and sandboxes: its own host's, and what is on none."""

from __future__ import annotations

import pytest
from netweft.controller.v1 import endpoint_pb2, sandbox_pb2
from netweft_common import errors, identity
from netweft_controller.rpc.endpoints import EndpointService
from netweft_controller.rpc.sandboxes import SandboxService

from tests.rpc.controller.test_host_identity import H1, H2, certificate

pytestmark = pytest.mark.anyio


@pytest.fixture
def endpoints(face):
    parts = face.controller
    return EndpointService(parts.replica, parts.endpoints, parts.updater, parts.settler)


@pytest.fixture
def sandboxes(face):
    parts = face.controller
    return SandboxService(parts.replica, parts.sandboxes, parts.updater, parts.settler)


@pytest.fixture
async def there(face, endpoints):
    """An endpoint on each host, and one on none."""
    await face.network("front", driver="overlay")
    answer = await endpoints.AttachEndpoints(attach(("e1", "h1"), ("e2", "h2")), None)
    assert [0, 0] == [one.status.code for one in answer.results]
    spec = endpoint_pb2.EndpointSpec(network="front", name="e3")
    await endpoints.CreateEndpoint(endpoint_pb2.CreateEndpointRequest(request_id="c", endpoint=spec), None)
    return {one.endpoint.name: one.sandbox.id for one in answer.results}


def ref(host, container="c9"):
    return endpoint_pb2.SandboxRef(spec=endpoint_pb2.SandboxSpec(host=host, container_id=container))


def attach(*pairs):
    items = [
        endpoint_pb2.AttachItem(
            endpoint=endpoint_pb2.EndpointSpec(network="front", name=name), sandbox=ref(host, f"c-{name}")
        )
        for name, host in pairs
    ]
    return endpoint_pb2.AttachEndpointsRequest(request_id="-".join(name for name, _ in pairs), items=items)


def detach(*names):
    items = [endpoint_pb2.DetachItem(endpoint=name, network="front") for name in names]
    return endpoint_pb2.DetachEndpointsRequest(request_id="-".join(("d", *names)), items=items)


def named(kind, **fields):
    return kind(endpoint="e2", network="front", request_id="r", **fields)


FOREIGN = {
    "attach": ("AttachEndpoints", lambda _: attach(("e9", "h2"))),
    "attach, among its own": ("AttachEndpoints", lambda _: attach(("e8", "h1"), ("e9", "h2"))),
    "attach to a sandbox that is there": (
        "AttachEndpoints",
        lambda there: endpoint_pb2.AttachEndpointsRequest(
            request_id="x",
            items=[
                endpoint_pb2.AttachItem(
                    endpoint=endpoint_pb2.EndpointSpec(network="front", name="e9"),
                    sandbox=endpoint_pb2.SandboxRef(sandbox=there["e2"]),
                )
            ],
        ),
    ),
    "plan": ("PlanAttach", lambda _: endpoint_pb2.PlanAttachRequest(items=attach(("e9", "h2")).items)),
    "detach": ("DetachEndpoints", lambda _: detach("e2")),
    "detach, among its own": ("DetachEndpoints", lambda _: detach("e1", "e2")),
    "delete": ("DeleteEndpoint", lambda _: named(endpoint_pb2.DeleteEndpointRequest, force=True)),
    "leave": ("LeaveEndpoint", lambda _: named(endpoint_pb2.LeaveEndpointRequest)),
    "join one of its own elsewhere": (
        "JoinEndpoint",
        lambda _: endpoint_pb2.JoinEndpointRequest(endpoint="e3", network="front", sandbox=ref("h2")),
    ),
    "update": (
        "UpdateEndpoint",
        lambda _: named(
            endpoint_pb2.UpdateEndpointRequest, update_mask={"paths": ["labels"]}, spec=endpoint_pb2.EndpointSpec()
        ),
    ),
}


@pytest.mark.parametrize("case", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("holder", ["h1", H1], ids=["by name", "by id"])
async def test_an_agent_does_nothing_to_endpoints_of_another_host(face, endpoints, there, case, holder):
    method, request_of = case

    with certificate(holder), pytest.raises(errors.PermissionDenied, match="may not act for host"):
        await getattr(endpoints, method)(request_of(there), None)

    found = {record.value.name: record.value.host_id for record in face.state.endpoints.values()}
    assert {"e1": H1, "e2": H2, "e3": ""} == found


async def test_an_agent_attaches_and_takes_away_on_its_own_host_and_what_is_on_none(endpoints, there):
    with certificate("h1"):
        attached = await endpoints.AttachEndpoints(attach(("e4", "h1"), ("e5", H1)), None)
        detached = await endpoints.DetachEndpoints(detach("e1", "e3", "e4", "never-made"), None)

    assert [0, 0] == [one.status.code for one in attached.results]
    assert [0, 0, 0, 0] == [one.code for one in detached.results]


async def test_an_agent_makes_and_deletes_sandboxes_of_its_own_host_only(sandboxes, there):
    def made(host):
        spec = endpoint_pb2.SandboxSpec(host=host, container_id="fresh")
        return sandbox_pb2.CreateSandboxRequest(request_id=f"s-{host}", sandbox=spec)

    with certificate("h1"):
        await sandboxes.CreateSandbox(made("h1"), None)
        for call in (
            sandboxes.CreateSandbox(made("h2"), None),
            sandboxes.DeleteSandbox(sandbox_pb2.DeleteSandboxRequest(request_id="a", sandbox=there["e2"]), None),
            sandboxes.RefreshSandbox(sandbox_pb2.RefreshSandboxRequest(sandbox=there["e2"]), None),
        ):
            with pytest.raises(errors.PermissionDenied, match="may not act for host"):
                await call
        gone = sandbox_pb2.DeleteSandboxRequest(request_id="b", sandbox=there["e1"], force=True)
        await sandboxes.DeleteSandbox(gone, None)
        await sandboxes.DeleteSandbox(gone, None)


async def test_users_are_asked_nothing_of_the_kind(endpoints, there):
    with certificate("somebody", identity.Role.CLIENT):
        detached = await endpoints.DetachEndpoints(detach("e1", "e2"), None)

    assert [0, 0] == [one.code for one in detached.results]
