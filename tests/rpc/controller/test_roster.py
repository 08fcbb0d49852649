"""IPAM is told which hosts there are, and hears of each that comes or goes."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest
from netweft.controller.v1 import host_pb2
from netweft_common import errors, pki
from netweft_controller.engine import requests, roster
from netweft_controller.engine.admission import Admission

pytestmark = pytest.mark.anyio

H1, H2 = f"{1:032x}", f"{2:032x}"


async def heard(ipam, expected):
    """Wait until IPAM has heard that, and return what it has heard last."""
    async with asyncio.timeout(20):
        while ipam.hosts != expected:
            await asyncio.sleep(0.01)
    return ipam.hosts


@pytest.fixture
async def closed(face, monkeypatch):
    """The roster of a controller that issues certificates."""
    monkeypatch.setattr(roster, "RETRY_S", 0.05)
    face.controller.roster._is_closed = True
    face.controller.roster._wake.set()


async def test_ipam_hears_of_hosts_that_come_and_go(world, face, closed):
    first = await heard(world.ipam, {H1: "h1", H2: "h2"})
    authority = pki.new_authority("test", now=dt.datetime.now(dt.UTC))
    admission = Admission(replica=face.controller.replica, authority=authority, life=dt.timedelta(days=1))
    token, _ = await admission.create_token(requests.request("CreateJoinToken", "r1", b""), "h9", 0)
    # Before it joins: its agent's first word may come at once.
    pending = await heard(world.ipam, {H1: "h1", H2: "h2", token.host_id: "h9"})

    await face.hosts.DeleteHost(host_pb2.DeleteHostRequest(host="h2", force=True))

    assert {H1: "h1", token.host_id: "h9"} == await heard(world.ipam, {H1: "h1", token.host_id: "h9"})
    assert len(first) < len(pending)


async def test_an_ipam_that_was_away_is_told_later(world, face, closed):
    await heard(world.ipam, {H1: "h1", H2: "h2"})
    world.ipam.fail["SetHosts"] = errors.Unavailable("AWAY", "it is away")

    await face.hosts.DeleteHost(host_pb2.DeleteHostRequest(host="h2", force=True))

    assert {H1: "h1"} == await heard(world.ipam, {H1: "h1"})
    assert {} == world.ipam.fail


async def test_the_other_controller_tells_what_the_first_one_could_not(world, face, monkeypatch):
    other = await world.start_controller()
    other.controller.roster._is_closed = True
    other.controller.roster._wake.set()
    await heard(world.ipam, {H1: "h1", H2: "h2"})

    await face.hosts.DeleteHost(host_pb2.DeleteHostRequest(host="h2", force=True))

    assert {H1: "h1"} == await heard(world.ipam, {H1: "h1"})


async def test_a_controller_without_an_authority_lets_agents_of_any_host_in(world, face):
    assert None is await heard(world.ipam, None)
