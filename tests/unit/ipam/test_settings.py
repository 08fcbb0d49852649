"""What netweft-ipam may be told, and what it says of its store."""

from __future__ import annotations

import pytest
import structlog
from netweft_common import errors, settings
from netweft_ipam import app
from netweft_ipam.settings import IpamSettings
from structlog.testing import capture_logs


def load(*argv: str) -> IpamSettings:
    return settings.load(IpamSettings, service="ipam", argv=argv, environ={})


@pytest.mark.parametrize(
    ("argument", "field"),
    [
        ("--events-kept=-1", "events_kept"),
        ("--wait-replicas=-1", "wait_replicas"),
        ("--sweep-interval=0s", "sweep_interval"),
        ("--key-prefix={a}", "key_prefix"),
        ("--key-prefix=", "key_prefix"),
    ],
)
def test_a_number_that_no_call_could_live_with_is_refused_at_start(argument, field, capsys):
    with pytest.raises(errors.InvalidArgument) as caught:
        load(argument)

    assert field == caught.value.field
    assert 2 == app.main([argument])
    assert f"--{field.replace('_', '-')}: " in capsys.readouterr().err


def test_what_is_off_by_nought_may_be_nought():
    found = load("--events-kept=0", "--wait-replicas=0", "--quarantine=0s", "--report-most=0s")

    assert (0, 0, 0.0) == (found.events_kept, found.wait_replicas, found.quarantine.total_seconds())


class SilentStore:
    """A store whose user may not run INFO, after it was away twice."""

    def __init__(self) -> None:
        self.asked = 0

    async def weaknesses(self) -> list[str]:
        self.asked += 1
        if self.asked <= 2:
            raise errors.Unavailable("STORE_UNAVAILABLE", "away")
        raise errors.Internal("STORE_FAILED", "the store at here failed at INFO: NOPERM")


@pytest.fixture
def logged():
    """Keep what is logged, whatever levels another test has left out."""
    before = structlog.get_config()
    structlog.reset_defaults()
    with capture_logs() as lines:
        yield lines
    structlog.configure(**before)


@pytest.mark.anyio
async def test_a_store_that_does_not_tell_what_it_is_is_warned_of_and_served_from(monkeypatch, logged):
    monkeypatch.setattr(app, "OBSERVE_INTERVAL_S", 0)
    store = SilentStore()

    await app.warn_once(store)

    assert 3 == store.asked
    assert ["store does not answer", "store weakness"] == [line["event"] for line in logged]
    line = logged[1]
    assert "NOPERM" in line["what"]
    assert "unknown" in line["what"]
