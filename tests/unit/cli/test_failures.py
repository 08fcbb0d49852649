from __future__ import annotations

import pytest
from netweft_cli import failures
from netweft_common import errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidArgument("R", "m"), 2),
        (errors.NotFound("R", "m"), 3),
        (errors.AlreadyExists("R", "m"), 4),
        (errors.FailedPrecondition("R", "m"), 5),
        (errors.OutOfRange("R", "m"), 5),
        (errors.Exhausted("R", "m"), 6),
        (errors.Unavailable("R", "m"), 7),
        (errors.PermissionDenied("R", "m"), 8),
        (errors.Unauthenticated("R", "m"), 8),
        (errors.Conflict("R", "m"), 9),
        (errors.KernelError("ip link add", "eth0", 1), 1),
        (errors.Internal("R", "m"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exit_codes_are_stable(error, code):
    assert code == failures.exit_code(error)


def test_a_failure_is_one_line_with_its_reason_on_stderr(capsys):
    code = failures.report(errors.NotFound("NETWORK_NOT_FOUND", "no network blue"))

    out, err = capsys.readouterr()
    assert (code, out, err) == (3, "", "netweft: no network blue [NETWORK_NOT_FOUND]\n")


def test_what_does_not_answer_comes_with_advice():
    assert "netweft up" in failures.sentence(errors.Unavailable("UNREACHABLE", "nobody at x"))


def test_a_bug_shows_its_traceback_only_when_asked(capsys, monkeypatch):
    monkeypatch.delenv("NETWEFT_DEBUG", raising=False)

    assert failures.report_unexpected(RuntimeError("boo")) == 1
    told = "netweft: this is a bug of netweft: RuntimeError: boo; NETWEFT_DEBUG=1 shows where\n"
    assert told == capsys.readouterr().err

    monkeypatch.setenv("NETWEFT_DEBUG", "1")
    failures.report_unexpected(RuntimeError("boo"))
    assert "RuntimeError: boo" in capsys.readouterr().err
