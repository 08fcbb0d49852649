"""How a failure leaves the command line: one sentence on stderr, and an exit code that scripts may rely on."""

from __future__ import annotations

import os
import sys
import traceback

from netweft_common import errors

OK = 0
FAILURE = 1
USAGE = 2
NOT_FOUND = 3
ALREADY_EXISTS = 4
FAILED_PRECONDITION = 5
EXHAUSTED = 6
UNAVAILABLE = 7
PERMISSION_DENIED = 8
CONFLICT = 9
INTERRUPTED = 130

HELP = """Exit codes: 0 done, 1 failed, 2 malformed command or value, 3 not found, 4 exists already,
5 something stands in the way, 6 nothing left, 7 no answer, 8 not allowed, 9 changed meanwhile (try again),
130 interrupted."""

_CODES: tuple[tuple[type[errors.NetweftError], int], ...] = (
    (errors.InvalidArgument, USAGE),
    (errors.NotFound, NOT_FOUND),
    (errors.AlreadyExists, ALREADY_EXISTS),
    (errors.FailedPrecondition, FAILED_PRECONDITION),
    (errors.OutOfRange, FAILED_PRECONDITION),
    (errors.Exhausted, EXHAUSTED),
    (errors.Unavailable, UNAVAILABLE),
    (errors.PermissionDenied, PERMISSION_DENIED),
    (errors.Unauthenticated, PERMISSION_DENIED),
    (errors.Conflict, CONFLICT),
)

_ADVICE = {"UNREACHABLE": "is it running? `netweft up` starts a stack here, --target names another"}


def exit_code(error: errors.NetweftError) -> int:
    """Return the exit code of a failure."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILURE)


def sentence(error: errors.NetweftError) -> str:
    """Return what the user is told: the message, the stable reason, and what to do where the message cannot know."""
    advice = _ADVICE.get(error.reason)
    return f"{error.message} [{error.reason}]" + (f"; {advice}" if advice else "")


def report(error: errors.NetweftError) -> int:
    """Write a failure to stderr and return its exit code."""
    sys.stderr.write(f"netweft: {sentence(error)}\n")
    return exit_code(error)


def report_unexpected(error: BaseException) -> int:
    """Write a failure of ours to stderr: one line, or all of it with NETWEFT_DEBUG."""
    if os.environ.get("NETWEFT_DEBUG"):
        traceback.print_exception(error)
    else:
        text = f"{type(error).__name__}: {error}"
        sys.stderr.write(f"netweft: this is a bug of netweft: {text}; NETWEFT_DEBUG=1 shows where\n")
    return FAILURE
