"""What an agent's certificate lets it say: its own host's affairs and nobody else's."""

from __future__ import annotations

import contextlib

import pytest
from netweft.common.v1 import host_pb2 as common_host_pb2
from netweft.controller.v1 import host_pb2
from netweft_common import errors, identity
from netweft_controller.rpc.hosts import HostService

pytestmark = pytest.mark.anyio

H1, H2 = f"{1:032x}", f"{2:032x}"


@pytest.fixture
def service(face):
    parts = face.controller
    return HostService(
        replica=parts.replica,
        hosts=parts.hosts,
        admission=parts.admission,
        liveness=parts.liveness,
        watches=parts.watches,
        report_interval_s=5,
        pace=parts.pace,
    )


@contextlib.contextmanager
def certificate(name, role=identity.Role.AGENT):
    """Have what is called inside come from the holder of a certificate."""
    token = identity.set_current(identity.Identity(role=role, name=name))
    try:
        yield
    finally:
        identity._current.reset(token)


async def register(service, host_id, name):
    host = common_host_pb2.Host(id=host_id, name=name, agent_target="unix:/run/elsewhere.sock")
    await service.RegisterHost(host_pb2.RegisterHostRequest(host=host), None)


@pytest.mark.parametrize(
    ("holder", "host_id", "name"),
    [
        ("h3", H2, "h3"),
        (H1, H2, H1),
        (H1, H2, "h2"),
        ("h1", H2, "h9"),
        ("h1", H1, "h9"),
        ("h1", f"{9:032x}", "h2"),
    ],
    ids=["another's id", "another's id, by id", "another's both", "another's id, renamed", "renamed", "another's name"],
)
async def test_an_agent_registers_no_host_but_its_own(face, service, holder, host_id, name):
    before = {id_: record.value for id_, record in face.state.hosts.items()}

    with certificate(holder), pytest.raises(errors.PermissionDenied, match=f"agent {holder} may not act for host"):
        await register(service, host_id, name)

    assert before == {id_: record.value for id_, record in face.state.hosts.items()}


@pytest.mark.parametrize(
    ("holder", "host_id", "name"),
    [("h1", H1, "h1"), (H1, H1, "h1"), (H1, H1, "h9"), ("h3", f"{3:032x}", "h3")],
    ids=["by name", "by id", "by id, renamed", "a new host"],
)
async def test_an_agent_registers_its_own_host(face, service, holder, host_id, name):
    face.controller.liveness._heard_s.clear()  # silent: who is heard and comes from elsewhere is another machine

    with certificate(holder):
        await register(service, host_id, name)

    assert name == face.state.hosts[host_id].value.name


async def test_an_agent_reports_and_watches_its_own_host_only(face, service):
    with certificate("h1"):
        await service.ReportHost(host_pb2.ReportHostRequest(host_id=H1), None)
        with pytest.raises(errors.PermissionDenied, match="agent h1"):
            await service.ReportHost(host_pb2.ReportHostRequest(host_id=H2), None)
        stream = service.WatchHost(host_pb2.WatchHostRequest(host_id=H2), None)
        with pytest.raises(errors.PermissionDenied, match="agent h1"):
            await anext(stream)


async def test_an_administrator_may_register_any_host(face, service):
    with certificate("root", identity.Role.ADMIN):
        await register(service, H2, "h2")

    assert face.state.hosts[H2].value.agent_target == "unix:/run/elsewhere.sock"
