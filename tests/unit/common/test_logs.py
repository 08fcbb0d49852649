"""Log lines, their styles and what they hide."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog
from netweft_common import logs


@pytest.fixture
def stream():
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:], root.level = before
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_console_is_time_level_event_and_pairs(stream):
    logs.configure(stream=stream)

    logs.get(service="ipam").info("pool made", pool="a b", count=2, quote='say "x"')

    assert ['info    pool made service=ipam pool="a b" count=2 quote="say \\"x\\""'] == [
        line.partition(" ")[2] for line in lines(stream)
    ]


def test_json_is_one_object_a_line(stream):
    logs.configure(style="json", stream=stream)

    logs.get().warning("lost", host="h1")

    found = json.loads(stream.getvalue())
    assert ("lost", "warning", "h1") == (found["event"], found["level"], found["host"])


def test_lower_levels_are_silent(stream):
    logs.configure(level="warning", stream=stream)

    logs.get().info("not this")
    logs.get().error("this")

    assert ["this"] == [line.split()[-1] for line in lines(stream)]


def test_secrets_are_masked(stream):
    logs.configure(style="json", stream=stream)

    logs.get().info("start", redis_url="redis://me:pw@h/0", password="pw", auth_token="pw")

    assert "pw" not in stream.getvalue()


def test_the_standard_librarys_warnings_have_the_same_form(stream):
    logs.configure(style="json", stream=stream)

    logging.getLogger("grpc").warning("odd %s", "thing")

    assert ("odd thing", "warning") == tuple(json.loads(stream.getvalue())[key] for key in ("event", "level"))


def test_an_exception_comes_with_its_traceback_below_the_line(stream):
    logs.configure(stream=stream)
    try:
        {}["x"]
    except KeyError:
        logs.get().exception("broke")

    assert lines(stream)[0].endswith("error   broke")
    assert "KeyError: 'x'" == lines(stream)[-1]
