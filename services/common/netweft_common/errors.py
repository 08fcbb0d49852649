"""The error hierarchy of all netweft processes.

Raise the narrowest class. A message names the object, what was asked, what stands in the way, and what to do; the
reason is stable API in UPPER_SNAKE_CASE; the metadata repeats the values as data. `netweft_common.status` maps a class
to its wire form (gRPC status with google.rpc.ErrorInfo, AIP-193) in the one place that does so.
"""

from __future__ import annotations

import errno as errno_codes


class NetweftError(Exception):
    """A failure that a caller can be told of.

    Args:
        reason: Stable UPPER_SNAKE_CASE word, for example ADDRESS_IN_USE.
        message: Sentence for a person: which object, what was asked, what stands in the way, what to do.
        metadata: Names and values of what the message speaks of.
    """

    def __init__(self, reason: str, message: str, **metadata: str) -> None:
        super().__init__(reason, message, metadata)
        self.reason = reason
        self.message = message
        self.metadata = metadata

    def __str__(self) -> str:
        return f"{self.message} [{self.reason}]"


class InvalidArgument(NetweftError):
    """A field is malformed or contradicts another; nothing was changed. Not worth a retry.

    Args:
        field: Path of the field in the request, for example `subnets[0].gateway`.
    """

    def __init__(self, reason: str, message: str, *, field: str = "", **metadata: str) -> None:
        super().__init__(reason, message, **({"field": field} if field else {}), **metadata)
        self.field = field


class NotFound(NetweftError):
    """The object does not exist."""


class AlreadyExists(NetweftError):
    """An object of that name or id exists, or a request id was used with another body."""


class FailedPrecondition(NetweftError):
    """The state of the system forbids it until somebody changes that state."""


class PermissionDenied(NetweftError):
    """The caller is known and may not do this."""


class Unauthenticated(NetweftError):
    """The caller did not say who he is."""


class Exhausted(NetweftError):
    """Nothing of the asked kind is left; later there may be."""


class OutOfRange(NetweftError):
    """A position lies outside what is kept, for example a revision older than the change log."""


class Conflict(NetweftError):
    """Somebody else changed the object at the same time; try again at once."""


class Unavailable(NetweftError):
    """A part that is needed does not answer; try again after a while.

    Args:
        retry_after_s: Seconds to wait before the next try.
    """

    def __init__(self, reason: str, message: str, *, retry_after_s: float = 1.0, **metadata: str) -> None:
        super().__init__(reason, message, **metadata)
        self.retry_after_s = retry_after_s


class KernelError(NetweftError):
    """The kernel refused an operation.

    Args:
        op: What was asked, as a command line.
        target: Object that it was asked for, for example a link's name.
        errno: The kernel's errno, positive.
        detail: The kernel's extended acknowledgement text (NLMSGERR_ATTR_MSG, linux/netlink.h), or empty.
    """

    def __init__(self, op: str, target: str, errno: int, detail: str = "") -> None:
        name = errno_codes.errorcode.get(errno, str(errno))
        super().__init__(
            f"KERNEL_{name}",
            f"the kernel refused `{op}` for {target}: {name}" + (f" ({detail})" if detail else ""),
            op=op,
            target=target,
            errno=name,
        )
        self.op = op
        self.target = target
        self.errno = errno
        self.detail = detail


class Internal(NetweftError):
    """A bug of ours, reported as such."""
