"""Hosts that are cordoned, drained, lost for good, and those that join by a token."""

from __future__ import annotations

import asyncio
import datetime as dt
import time

import pytest
from netweft.common.v1 import host_pb2 as common_host_pb2
from netweft.controller.v1 import endpoint_pb2, host_pb2, network_pb2, sandbox_pb2
from netweft_common import errors, identity, pki, status
from netweft_common.identity import Identity, Role
from netweft_controller.domain import commits, tombs
from netweft_controller.engine.admission import Admission

pytestmark = pytest.mark.anyio

NOW = dt.datetime(2026, 11, 27, tzinfo=dt.UTC)


async def cordon(face, cordoned=True):
    return (await face.hosts.CordonHost(host_pb2.CordonHostRequest(host="h1", cordoned=cordoned))).host


async def test_a_cordoned_host_keeps_what_it_has_and_takes_nothing_new(face, make_item):
    await face.network()
    await face.attach(make_item(name="old", container="c1"))
    host = await cordon(face)

    answers = await face.attach(
        make_item(name="a", container="c1"), make_item(name="b", container="c2"), make_item(name="c", host="h2")
    )

    assert host.cordoned
    refused = [status.from_item_status(one.status) for one in answers[:2]]
    assert ["HOST_CORDONED"] * 2 == [one.reason for one in refused]
    assert "c" == answers[2].endpoint.name
    spec = endpoint_pb2.SandboxSpec(host="h1", container_id="c9")
    with pytest.raises(errors.FailedPrecondition, match="cordoned"):
        await face.sandboxes.CreateSandbox(sandbox_pb2.CreateSandboxRequest(sandbox=spec))
    await cordon(face, cordoned=False)
    (again,) = await face.attach(make_item(name="a", container="c1"))
    assert "a" == again.endpoint.name


async def test_an_agent_that_registers_again_is_cordoned_still(world, face):
    await cordon(face)
    host = (await face.hosts.GetHost(host_pb2.GetHostRequest(host="h1"))).host

    await face.hosts.RegisterHost(host_pb2.RegisterHostRequest(host=host))

    assert (await face.hosts.GetHost(host_pb2.GetHostRequest(host="h1"))).host.cordoned


async def test_a_drained_host_has_nothing_left(world, face, make_item):
    await face.network()
    await face.attach(*(make_item(name=f"e{n}", container=f"c{n}") for n in range(3)), make_item(name="x", host="h2"))

    first = await face.hosts.DrainHost(host_pb2.DrainHostRequest(host="h1"))
    second = await face.hosts.DrainHost(host_pb2.DrainHostRequest(host="h1"))

    assert (3, 3) == (first.detached_endpoints, first.deleted_sandboxes)
    assert (0, 0) == (second.detached_endpoints, second.deleted_sandboxes)
    assert first.host.cordoned
    assert [] == world.agents["h1"].names("endpoint")
    assert ["x"] == world.agents["h2"].names("endpoint")
    assert 1 == len(world.ipam.endpoint_leases())


async def test_a_host_that_is_lost_for_good_loses_its_endpoints_and_learns_it_when_it_returns(world, make_item):
    face = await world.start_controller(host_grace=dt.timedelta(0), forsake_after=dt.timedelta(milliseconds=1))
    await world.add_host(face, "h1", 1)
    await face.network()
    await face.attach(make_item(name="e"))
    await face.settled()
    world.agents["h1"].fail["Apply"] = errors.Unavailable("GONE", "it does not answer")

    await face.controller.liveness.exchange()
    await asyncio.sleep(0.01)
    await face.controller.reconciler.settle()

    assert {} == face.state.endpoints
    assert {} == face.state.sandboxes
    assert [] == world.ipam.endpoint_leases()
    assert ["h1"] == [record.value.name for record in face.state.hosts.values()]
    stream = face.host_streams.WatchHost(host_pb2.WatchHostRequest(host_id=f"{1:032x}"))
    snapshot = await stream.read()
    stream.cancel()
    assert (True, []) == (snapshot.snapshot, list(snapshot.changes))


async def test_of_two_agents_with_one_host_id_the_second_is_refused_while_the_first_is_heard(world, face, monkeypatch):
    host = (await face.hosts.GetHost(host_pb2.GetHostRequest(host="h1"))).host
    copied = common_host_pb2.Host()
    copied.CopyFrom(host)
    copied.agent_target, copied.vtep_address, copied.name = "unix:/run/copy.sock", "192.0.2.77", "copy"
    request = host_pb2.RegisterHostRequest(host=copied)

    with pytest.raises(errors.FailedPrecondition, match=r"h1 and ready at .*agent-h1.*copy\.sock") as refused:
        await face.hosts.RegisterHost(request)
    same = await face.hosts.RegisterHost(host_pb2.RegisterHostRequest(host=host))
    later_s = face.controller.liveness._monotonic() + 60
    monkeypatch.setattr(face.controller.liveness, "_monotonic", lambda: later_s)
    moved = await face.hosts.RegisterHost(request)

    assert "HOST_ID_IN_USE" == refused.value.reason
    assert (host.agent_target, "h1") == (same.host.agent_target, same.host.name)
    assert ("unix:/run/copy.sock", "copy") == (moved.host.agent_target, moved.host.name)


async def test_a_network_number_that_is_taken_is_refused_by_the_networks_name(world, face):
    first = await face.network("first", driver="overlay", options={"vni": "4098"})
    other = await world.start_controller()

    for asked_of in (face, other):
        with pytest.raises(errors.FailedPrecondition, match="vni 4098 belongs to network first"):
            await asked_of.network("second", driver="overlay", options={"vni": "4098"})

    assert 4098 == first.claims["vni"]
    assert ["first"] == [record.value.name for record in face.state.networks.values()]
    assert 1 == len(world.ipam.pools)


# Clocks


async def test_controllers_whose_clocks_disagree_live_by_the_stores(world, face, make_item, monkeypatch):
    other = await world.start_controller()
    for one in (face, other):
        await one.controller.liveness.exchange()
    store, request = face.controller.store, asked("disagree")
    tomb = tombs.made(tombs.Stage.RETURNING, face.controller.reconciler._clock(), "x")
    await store.commit(commits.Commit(take=((tombs.of("f" * 32), tomb),)))
    now = time.time

    # Of the other controller: two hours ahead.
    monkeypatch.setattr(time, "time", lambda: now() + 7200)
    await other.controller.liveness.exchange()
    await other.controller.reconciler.return_orphans()
    host = (await other.hosts.GetHost(host_pb2.GetHostRequest(host="h1"))).host
    authority = pki.new_authority("test", now=NOW)

    def admission_of(one):
        clock = one.controller.liveness.now_s
        return Admission(replica=one.controller.replica, authority=authority, life=dt.timedelta(1), shared_s=clock)

    ahead, behind = admission_of(other), admission_of(face)
    token, _ = await ahead.create_token(request, "h9", 60)
    monkeypatch.setattr(time, "time", lambda: now() - 7200)
    await face.controller.replica.reached(other.state.revision)
    joined = await behind.join(token.host_id, token.secret, pki.new_request()[1], "")

    assert {tombs.of("f" * 32): tomb} == dict(await store.find_claims(tombs.PREFIX))
    assert common_host_pb2.HOST_STATE_READY == host.state
    assert "h9" == joined[1]


# Tokens


class Clock:
    def __init__(self):
        self.time = NOW

    def now(self):
        return self.time


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def authority():
    return pki.new_authority("test", now=NOW)


@pytest.fixture
def admission(face, authority, clock):
    made = Admission(replica=face.controller.replica, authority=authority, life=dt.timedelta(days=7), now=clock.now)
    face.controller.admission = made
    return made


def asked(request_id="r1"):
    from netweft_controller.engine import requests  # noqa: PLC0415  # short way to a request

    return requests.request("CreateJoinToken", request_id, b"")


async def test_a_machine_becomes_the_host_of_its_token_once(face, admission, authority):
    token, pending = await admission.create_token(asked(), "h9", 0)
    _, request = pki.new_request()

    certificate, name = await admission.join(token.host_id, token.secret, request, "whatever")

    assert pending.value.is_pending
    assert "h9" == name
    assert not face.state.hosts[token.host_id].value.is_pending
    assert (NOW - pki.SKEW, NOW + dt.timedelta(days=7)) == pki.validity(certificate)
    with pytest.raises(errors.Unauthenticated, match="used up"):
        await admission.join(token.host_id, token.secret, request, "whatever")


async def test_a_token_without_a_name_takes_the_machines(face, admission):
    token, pending = await admission.create_token(asked(), "", 0)

    _, name = await admission.join(token.host_id, token.secret, pki.new_request()[1], "machine")

    assert pending.value.name.startswith("joining-")
    assert "machine" == name
    assert [token.host_id] == [id_ for known, id_ in face.state.host_ids_by_name.items() if known == "machine"]


async def test_a_name_that_is_taken_leaves_the_token_good(face, admission):
    token, _ = await admission.create_token(asked(), "", 0)

    with pytest.raises(errors.FailedPrecondition, match="h1"):
        await admission.join(token.host_id, token.secret, pki.new_request()[1], "h1")

    assert "h7" == (await admission.join(token.host_id, token.secret, pki.new_request()[1], "h7"))[1]


async def test_the_same_request_again_gives_another_secret_for_the_same_host(admission):
    first, _ = await admission.create_token(asked(), "h9", 0)
    second, _ = await admission.create_token(asked(), "h9", 0)

    assert first.host_id == second.host_id
    with pytest.raises(errors.Unauthenticated):
        await admission.join(first.host_id, first.secret, pki.new_request()[1], "")
    await admission.join(second.host_id, second.secret, pki.new_request()[1], "")
    with pytest.raises(errors.FailedPrecondition, match="has joined"):
        await admission.create_token(asked(), "h9", 0)


async def test_a_wrong_secret_and_an_unknown_host_are_refused_alike(admission):
    token, _ = await admission.create_token(asked(), "h9", 0)

    for host_id, secret in ((token.host_id, "wrong"), ("f" * 32, token.secret), ("", "")):
        with pytest.raises(errors.Unauthenticated, match="unknown, used up or expired"):
            await admission.join(host_id, secret, pki.new_request()[1], "")


async def test_a_token_expires_and_its_host_goes(face, admission, clock):
    token, _ = await admission.create_token(asked(), "h9", 60)
    clock.time += dt.timedelta(seconds=61)

    with pytest.raises(errors.Unauthenticated):
        await admission.join(token.host_id, token.secret, pki.new_request()[1], "")
    face.controller.reconciler._clock = clock.time.timestamp
    await face.controller.reconciler.settle()

    assert token.host_id not in face.state.hosts


async def test_an_unusable_request_leaves_the_token_good(admission):
    token, _ = await admission.create_token(asked(), "h9", 0)

    with pytest.raises(errors.InvalidArgument):
        await admission.join(token.host_id, token.secret, b"nothing", "")

    await admission.join(token.host_id, token.secret, pki.new_request()[1], "")


async def test_a_host_renews_its_own_certificate_and_nobody_elses(face, admission):
    token, _ = await admission.create_token(asked(), "h9", 0)
    await admission.join(token.host_id, token.secret, pki.new_request()[1], "")
    agent = Identity(role=Role.AGENT, name=token.host_id)

    assert pki.validity(admission.renew(agent, pki.new_request()[1]))
    for nobody in (Identity(role=Role.CLIENT, name=token.host_id), Identity(role=Role.AGENT, name="f" * 32)):
        with pytest.raises(errors.PermissionDenied):
            admission.renew(nobody, pki.new_request()[1])


async def test_the_certificate_of_a_deleted_host_is_worth_nothing(face, admission):
    token, _ = await admission.create_token(asked(), "h9", 0)
    await admission.join(token.host_id, token.secret, pki.new_request()[1], "")
    agent = Identity(role=Role.AGENT, name=token.host_id)
    admission.admit(agent)

    await face.hosts.DeleteHost(host_pb2.DeleteHostRequest(host="h9"))

    with pytest.raises(errors.Unauthenticated, match="deleted"):
        admission.admit(agent)
    admission.admit(Identity(role=Role.CLIENT, name="somebody"))


async def test_without_an_authority_nobody_joins_and_every_certificate_is_admitted(face):
    with pytest.raises(errors.FailedPrecondition, match="signs no certificates"):
        await face.hosts.CreateJoinToken(host_pb2.CreateJoinTokenRequest())

    face.controller.admission.admit(Identity(role=Role.AGENT, name="f" * 32))


async def test_a_pending_host_is_shown_as_one(face, authority, world):
    face.controller.admission._authority = authority
    answer = await face.hosts.CreateJoinToken(host_pb2.CreateJoinTokenRequest(host_name="h9", ttl_seconds=60))

    found = (await face.hosts.GetHost(host_pb2.GetHostRequest(host="h9"))).host

    assert common_host_pb2.HOST_STATE_PENDING == found.state
    assert answer.host.token_expire_time == found.token_expire_time
    assert pki.read_token(answer.token).host_id == found.id
    assert identity.current().role is Role.LOCAL


# Drift


async def test_what_a_host_repaired_is_shown_and_told_as_an_event(face):
    repair = common_host_pb2.Repair(object="endpoint/e", namespace="sandbox/s", command="ip link set lo up")
    drift = common_host_pb2.Drift(operations=3, repairs=[repair])
    request = host_pb2.ReportHostRequest(host_id=f"{1:032x}", drift=drift)
    revision = face.state.revision

    await face.hosts.ReportHost(request)
    await face.hosts.ReportHost(request)
    await face.hosts.ReportHost(host_pb2.ReportHostRequest(host_id=f"{1:032x}"))

    shown = (await face.hosts.GetHost(host_pb2.GetHostRequest(host="h1"))).host
    assert drift.operations == shown.drift.operations
    assert [repair.command] == [one.command for one in shown.drift.repairs]
    assert revision + 1 == face.state.revision


async def test_an_agent_that_starts_again_has_repaired_nothing_yet(face):
    drift = common_host_pb2.Drift(operations=3)
    await face.hosts.ReportHost(host_pb2.ReportHostRequest(host_id=f"{1:032x}", drift=drift))
    host = (await face.hosts.GetHost(host_pb2.GetHostRequest(host="h1"))).host

    await face.hosts.RegisterHost(host_pb2.RegisterHostRequest(host=host))

    assert not (await face.hosts.GetHost(host_pb2.GetHostRequest(host="h1"))).host.HasField("drift")


# Ways between hosts


def ways(host, *found):
    paths = [
        common_host_pb2.NarrowPath(
            host_id=f"{host:032x}", peer_host_id=f"{peer:032x}", mtu_bytes=mtu, needed_bytes=1500
        )
        for peer, mtu in found
    ]
    narrow = common_host_pb2.NarrowPaths(paths=paths)
    return host_pb2.ReportHostRequest(host_id=f"{host:032x}", narrow_paths=narrow)


async def test_narrow_ways_are_shown_told_as_an_event_and_gone_when_they_are_wide(face):
    revision = face.state.revision

    for request in (ways(1, (2, 1400)), ways(1, (2, 1400)), host_pb2.ReportHostRequest(host_id=f"{1:032x}")):
        await face.hosts.ReportHost(request)
    shown = (await face.hosts.GetHost(host_pb2.GetHostRequest(host="h1"))).host.narrow_paths.paths
    await face.hosts.RegisterHost(
        host_pb2.RegisterHostRequest(host=(await face.hosts.GetHost(host_pb2.GetHostRequest(host="h1"))).host)
    )
    kept = (await face.hosts.GetHost(host_pb2.GetHostRequest(host="h1"))).host.narrow_paths.paths
    told = face.state.revision
    await face.hosts.ReportHost(ways(1))

    assert [(f"{2:032x}", 1400, 1500)] == [(one.peer_host_id, one.mtu_bytes, one.needed_bytes) for one in shown]
    assert list(shown) == list(kept)
    assert (revision + 1, revision + 2) == (told, face.state.revision)
    assert not (await face.hosts.GetHost(host_pb2.GetHostRequest(host="h1"))).host.HasField("narrow_paths")


async def test_a_host_tells_its_own_ways_only(face):
    request = ways(1, (2, 1400))
    request.narrow_paths.paths[0].host_id = f"{2:032x}"

    with pytest.raises(errors.InvalidArgument, match="the reporting host's"):
        await face.hosts.ReportHost(request)


async def test_a_network_shows_narrow_ways_between_its_hosts_that_matter_to_it(face, make_item):
    for name, mtu in (("wide", ""), ("small", "1300"), ("local", "")):
        options = {"mtu": mtu} if mtu else {}
        await face.network(name, driver="bridge" if name == "local" else "overlay", options=options)
        for host in ("h1", "h2"):
            await face.attach(make_item(name, f"{name}-{host}", host=host))
    await face.hosts.ReportHost(ways(1, (2, 1400), (3, 1400)))

    shown = {
        name: (await face.networks.GetNetwork(network_pb2.GetNetworkRequest(network=name))).narrow_paths
        for name in ("wide", "small", "local")
    }

    assert {"wide": [f"{2:032x}"], "small": [], "local": []} == {
        name: [one.peer_host_id for one in found] for name, found in shown.items()
    }
