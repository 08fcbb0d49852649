"""When a joined host asks for its next certificate."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest
from netweft_agent.rpc import certificate
from netweft_common import clock, credentials, errors, pki
from netweft_common.identity import Identity, Role

pytestmark = pytest.mark.anyio

LIFE = dt.timedelta(days=3)


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Controller:
    """A connection that signs what it is asked for, or does not answer."""

    def __init__(self, time):
        self.time = time
        self.authority = pki.new_authority("test", now=time.now())
        self.asked = 0
        self.is_away = False
        self.channel = self

    def __getattr__(self, name):
        return lambda *_, **__: name

    def issue(self, request):
        holder = Identity(role=Role.AGENT, name="a" * 32)
        return self.authority.issue(request, holder, names=[], life=LIFE, now=self.time.now())

    async def call(self, method, request, *, timeout_s):
        del method, timeout_s
        self.asked += 1
        if self.is_away:
            raise errors.Unavailable("AWAY", "away")
        return type("Answer", (), {"certificate": self.issue(request.certificate_request)})


@pytest.fixture
async def world(tmp_path):
    time = clock.ManualClock()
    controller = Controller(time)
    key, request = pki.new_request()
    credentials.put(tmp_path, ca=controller.authority.certificate_pem, cert=controller.issue(request), key=key)
    task = asyncio.create_task(certificate.Certificate(tmp_path, controller, time).run())
    yield time, controller, credentials.files(tmp_path)
    task.cancel()


async def pass_by(time, span):
    """Let time go by in steps."""
    for _ in range(24):
        await time.advance(span.total_seconds() / 24)
        await time.wait_sleepers(1)  # files are written by another thread


async def test_a_certificate_is_left_alone_for_two_thirds_of_its_life(world):
    time, controller, files = world
    before = files.cert.read_bytes()

    await pass_by(time, LIFE * 2 / 3 - dt.timedelta(hours=1))

    assert 0 == controller.asked
    assert before == files.cert.read_bytes()


async def test_it_is_renewed_once_when_it_is_due(world):
    time, controller, files = world

    await pass_by(time, LIFE * 2 / 3 + dt.timedelta(hours=1))

    assert 1 == controller.asked
    assert pki.validity(files.cert.read_bytes())[1] > time.now() + LIFE - dt.timedelta(hours=2)


async def test_a_controller_that_is_away_is_asked_again_and_the_old_one_stays(world):
    time, controller, files = world
    before = files.cert.read_bytes()
    controller.is_away = True

    await pass_by(time, LIFE * 2 / 3 + dt.timedelta(hours=3))

    assert controller.asked > 1
    assert before == files.cert.read_bytes()
    controller.is_away = False
    await pass_by(time, dt.timedelta(hours=2))
    assert before != files.cert.read_bytes()
