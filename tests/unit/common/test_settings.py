"""Settings: defaults < file < environment < flags, each parsed to its type."""

from __future__ import annotations

import dataclasses
import datetime as dt
from dataclasses import field
from pathlib import Path

import pytest
from netweft_common import errors, settings


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Demo(settings.ServiceSettings):
    redis_url: str = field(default="redis://localhost", metadata=settings.about("Where the store is."))
    password: str = field(default="", metadata=settings.about("Secret.", secret=True))
    workers: int = field(default=1, metadata=settings.about("How many."))
    ratio: float = field(default=0.5, metadata=settings.about("Share."))
    fast: bool = field(default=False, metadata=settings.about("Whether."))
    state: Path | None = field(default=None, metadata=settings.about("Where."))
    ttl: dt.timedelta = field(default=dt.timedelta(seconds=30), metadata=settings.about("How long."))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    name: str = field(metadata=settings.about("Required one."))


def load(argv=(), environ=None, cls=Demo):
    return settings.load(cls, service="demo", argv=list(argv), environ=environ or {})


def test_without_any_source_the_defaults_hold():
    assert Demo() == load()


def test_each_source_wins_over_the_one_before(tmp_path):
    path = tmp_path / "demo.toml"
    path.write_text('workers = 2\nratio = 1\nttl = "1m"\nlisten = ["unix:/a", "127.0.0.1:1"]\n')
    environ = {"NETWEFT_DEMO_CONFIG": str(path), "NETWEFT_DEMO_RATIO": "2.5", "NETWEFT_DEMO_TTL": "2m"}

    found = load(["--ttl", "3m"], environ)

    assert (2, 2.5, dt.timedelta(minutes=3), ("unix:/a", "127.0.0.1:1")) == (
        found.workers,
        found.ratio,
        found.ttl,
        found.listen,
    )


@pytest.mark.parametrize(
    ("argv", "name", "expected"),
    [
        (["--workers", "3"], "workers", 3),
        (["--ratio", "0.25"], "ratio", 0.25),
        (["--fast"], "fast", True),
        (["--no-fast"], "fast", False),
        (["--state", "/var/lib/x"], "state", Path("/var/lib/x")),
        (["--state", ""], "state", None),
        (["--ttl", "1h30m"], "ttl", dt.timedelta(hours=1, minutes=30)),
        (["--ttl", "250ms"], "ttl", dt.timedelta(milliseconds=250)),
        (["--ttl", "5"], "ttl", dt.timedelta(seconds=5)),
        (["--listen", "unix:/a", "--listen", "127.0.0.1:1,[::1]:2"], "listen", ("unix:/a", "127.0.0.1:1", "[::1]:2")),
        (["--log-level", "debug"], "log_level", "debug"),
        (["--ready-fd", "3"], "ready_fd", 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_flag_becomes_a_typed_value(argv, name, expected):
    assert expected == getattr(load(argv), name)


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [("FAST", "yes", True), ("FAST", "0", False), ("LISTEN", "unix:/a, unix:/b", ("unix:/a", "unix:/b"))],
    ids=["yes", "zero", "list"],
)
def test_a_variable_becomes_a_typed_value(key, text, expected):
    assert expected == getattr(load(environ={f"NETWEFT_DEMO_{key}": text}), key.lower())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--workers", "many"], ("--workers", "'many'", "a whole number")),
        (["--ttl", "soon"], ("--ttl", "'soon'", "a duration")),
        (["--ttl", "5 parsecs"], ("--ttl", "a duration")),
        (["--log-level", "loud"], ("--log-level", "one of debug, info, warning, error")),
    ],
    ids=["int", "duration", "unit", "word"],
)
def test_a_malformed_value_names_its_place_and_what_is_wanted(argv, words):
    with pytest.raises(errors.InvalidArgument) as caught:
        load(argv)

    assert [] == [word for word in words if word not in caught.value.message]


@pytest.mark.parametrize(
    "line",
    ["workers = true", 'workers = "x"', "workers = 1.5", "listen = [1]", "redis_url = 5", "state = 1", "ttl = -1"],
)
def test_a_file_with_the_wrong_type_is_refused(tmp_path, line):
    path = tmp_path / "demo.toml"
    path.write_text(line)

    with pytest.raises(errors.InvalidArgument) as caught:
        load(["--config", str(path)])

    assert ("SETTING_MALFORMED", True) == (caught.value.reason, str(path) in caught.value.message)


def test_an_unknown_key_of_a_file_is_refused_with_the_known_ones(tmp_path):
    path = tmp_path / "demo.toml"
    path.write_text("worker = 2")

    with pytest.raises(errors.InvalidArgument, match=r"'worker'.*known are.*redis_url.*workers"):
        load(["--config", str(path)])


def test_an_unknown_variable_is_refused():
    with pytest.raises(errors.InvalidArgument, match="NETWEFT_DEMO_WORKER "):
        load(environ={"NETWEFT_DEMO_WORKER": "2"})


def test_variables_that_kubernetes_makes_of_a_service_are_not_ours():
    environ = {
        "NETWEFT_DEMO_SERVICE_HOST": "10.0.0.1",
        "NETWEFT_DEMO_SERVICE_PORT_GRPC": "7000",
        "NETWEFT_DEMO_PORT": "tcp://10.0.0.1:7000",
        "NETWEFT_DEMO_PORT_7000_TCP_ADDR": "10.0.0.1",
        "NETWEFT_OTHER_WORKERS": "5",
    }

    assert Demo() == load(environ=environ)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(errors.InvalidArgument, match=r"cannot read .*gone\.toml"):
        load(["--config", str(tmp_path / "gone.toml")])


def test_a_required_setting_says_how_to_give_it():
    with pytest.raises(errors.InvalidArgument, match="--name, NETWEFT_DEMO_NAME or name"):
        load(cls=Needs)


def test_help_lists_each_setting_with_its_default(capsys):
    with pytest.raises(SystemExit):
        load(["--help"])

    text = " ".join(capsys.readouterr().out.split())
    assert "How long. Default: 30s." in text
    assert "NETWEFT_DEMO_<NAME>" in text


def test_a_description_for_the_log_masks_secrets():
    found = settings.describe(Demo(password="hunter2", redis_url="redis://me:pw@host/0"))

    assert ("***", "redis://***@host/0") == (found["password"], found["redis_url"])
