"""The one place that maps NetweftError to its wire forms, and back.

On a gRPC call an error is a status code with google.rpc.ErrorInfo (domain `netweft`), a BadRequest field violation for
a field, and RetryInfo for what is worth a later try, all in the trailer `grpc-status-details-bin` (AIP-193). For one
item of a batch it is a `netweft.common.v1.Status`. Both round-trip: class, reason, message and metadata survive.
"""

from __future__ import annotations

import dataclasses
import errno as errno_codes
import math
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # googleapis ships no types
from google.rpc import status_pb2 as rpc_status_pb2
from netweft.common.v1 import status_pb2

from netweft_common import errors

DOMAIN = "netweft"
DETAILS_KEY = "grpc-status-details-bin"
OK = grpc.StatusCode.OK.value[0]

# Trailers share one HTTP/2 header block whose size peers limit (8 KiB by default in gRPC); a longer text would turn
# the error into RESOURCE_EXHAUSTED at the reader.
MESSAGE_LIMIT = 1024
METADATA_VALUE_LIMIT = 512
METADATA_COUNT_LIMIT = 16

# Errno by what a caller can do about it; what is missing here is our bug and becomes INTERNAL.
_CODE_OF_ERRNO: dict[int, grpc.StatusCode] = {
    **dict.fromkeys((errno_codes.EEXIST,), grpc.StatusCode.ALREADY_EXISTS),
    **dict.fromkeys(
        (errno_codes.ENOENT, errno_codes.ENODEV, errno_codes.ENXIO, errno_codes.ESRCH), grpc.StatusCode.NOT_FOUND
    ),
    **dict.fromkeys((errno_codes.EPERM, errno_codes.EACCES), grpc.StatusCode.PERMISSION_DENIED),
    **dict.fromkeys(
        (
            errno_codes.ENOSPC,
            errno_codes.ENFILE,
            errno_codes.EMFILE,
            errno_codes.EXFULL,
            errno_codes.ENOMEM,
            errno_codes.ENOBUFS,
        ),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ),
    **dict.fromkeys(
        (
            errno_codes.EBUSY,
            errno_codes.ENOTEMPTY,
            errno_codes.EINVAL,
            errno_codes.EOPNOTSUPP,
            errno_codes.ENOTSUP,
            errno_codes.EAFNOSUPPORT,
            errno_codes.EPROTONOSUPPORT,
            errno_codes.ERANGE,
            errno_codes.EADDRINUSE,
            errno_codes.EADDRNOTAVAIL,
            errno_codes.ENETUNREACH,
            errno_codes.EHOSTUNREACH,
            errno_codes.ENETDOWN,
            errno_codes.ENOTCONN,
            errno_codes.ELOOP,
            errno_codes.EROFS,
        ),
        grpc.StatusCode.FAILED_PRECONDITION,
    ),
    **dict.fromkeys((errno_codes.EAGAIN, errno_codes.EINTR), grpc.StatusCode.UNAVAILABLE),
}

_CODE_OF_CLASS: dict[type[errors.NetweftError], grpc.StatusCode] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Exhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.Conflict: grpc.StatusCode.ABORTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Internal: grpc.StatusCode.INTERNAL,
}
_CLASS_OF_CODE: dict[grpc.StatusCode, type[errors.NetweftError]] = {
    **{code: cls for cls, code in _CODE_OF_CLASS.items()},
    # What only the library says, in the class that tells a caller the right thing to do.
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.Unavailable,
    grpc.StatusCode.CANCELLED: errors.Unavailable,
    grpc.StatusCode.UNIMPLEMENTED: errors.FailedPrecondition,
    grpc.StatusCode.DATA_LOSS: errors.Internal,
    grpc.StatusCode.UNKNOWN: errors.Internal,
}
_CODE_OF_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

_RETRY_AFTER = "retry_after_s"
_KERNEL_DETAIL = "detail"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RpcStatus:
    """An error as `context.abort` takes it.

    Attributes:
        code: Canonical code.
        details: Message, cut to MESSAGE_LIMIT characters.
        trailers: Trailing metadata with the serialised google.rpc.Status.
    """

    code: grpc.StatusCode
    details: str
    trailers: tuple[tuple[str, bytes], ...]


def code_of(error: errors.NetweftError) -> grpc.StatusCode:
    """Return the canonical code of an error; a KernelError's is by its errno."""
    if isinstance(error, errors.KernelError):
        return _CODE_OF_ERRNO.get(error.errno, grpc.StatusCode.INTERNAL)
    for cls in type(error).__mro__:
        if code := _CODE_OF_CLASS.get(cls):
            return code
    return grpc.StatusCode.INTERNAL


def to_rpc_status(error: errors.NetweftError) -> RpcStatus:
    """Return the gRPC form of an error."""
    code = code_of(error)
    message = _cut(error.message, MESSAGE_LIMIT)
    details = [
        _pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=_wire_metadata(error))),
    ]
    if isinstance(error, errors.InvalidArgument) and error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=message, reason=error.reason
        )
        details.append(_pack(error_details_pb2.BadRequest(field_violations=[violation])))
    if isinstance(error, errors.Unavailable):
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    status = rpc_status_pb2.Status(code=code.value[0], message=message, details=details)
    return RpcStatus(code=code, details=message, trailers=((DETAILS_KEY, status.SerializeToString()),))


def from_rpc_error(error: grpc.RpcError, *, target: str = "", method: str = "") -> errors.NetweftError:
    """Return the NetweftError that a failed call carries; the call itself failing (no answer, deadline) is one too.

    Args:
        error: What grpc or grpc.aio raised.
        target: Where the call went; named in the message when the server itself said nothing.
        method: Which method was called; named likewise.
    """
    code = _attribute(error, "code") or grpc.StatusCode.UNKNOWN
    text = _attribute(error, "details") or ""
    for key, value in _attribute(error, "trailing_metadata") or ():
        if key == DETAILS_KEY:
            status = rpc_status_pb2.Status()
            status.MergeFromString(value)
            found = _from_details(code, status)
            if found is not None:
                return found
    return _from_library(code, text, target=target, method=method)


def late(*, target: str, method: str) -> errors.NetweftError:
    """Return the error of a call that was not answered in time."""
    return _from_library(grpc.StatusCode.DEADLINE_EXCEEDED, "", target=target, method=method)


def to_item_status(error: errors.NetweftError | None) -> status_pb2.Status:
    """Return the form that an error has as one item of a batch; None is OK."""
    if error is None:
        return status_pb2.Status()
    metadata = _wire_metadata(error)
    if isinstance(error, errors.Unavailable):
        metadata[_RETRY_AFTER] = repr(error.retry_after_s)
    return status_pb2.Status(
        code=code_of(error).value[0],
        message=_cut(error.message, MESSAGE_LIMIT),
        reason=error.reason,
        metadata=metadata,
    )


def from_item_status(status: status_pb2.Status) -> errors.NetweftError | None:
    """Return the error of one item of a batch; None for OK."""
    if status.code == OK:
        return None
    metadata = dict(status.metadata)
    retry_after_s = _seconds(metadata.pop(_RETRY_AFTER, ""))
    code = _CODE_OF_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
    return _rebuild(code, status.reason, status.message, metadata, retry_after_s)


def _from_details(code: grpc.StatusCode, status: rpc_status_pb2.Status) -> errors.NetweftError | None:
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    retry_after_s: float | None = None
    found = False
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
            found = found or info.domain == DOMAIN
        elif detail.Is(retry.DESCRIPTOR):
            detail.Unpack(retry)
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    if not found:
        return None
    return _rebuild(code, info.reason, status.message, dict(info.metadata), retry_after_s)


def _rebuild(
    code: grpc.StatusCode, reason: str, message: str, metadata: dict[str, str], retry_after_s: float | None
) -> errors.NetweftError:
    if reason.startswith("KERNEL_") and "op" in metadata:
        return _rebuild_kernel_error(message, metadata)
    cls = _CLASS_OF_CODE.get(code, errors.Internal)
    error: errors.NetweftError
    if cls is errors.InvalidArgument:
        error = errors.InvalidArgument(reason, message, field=metadata.get("field", ""))
    elif cls is errors.Unavailable:
        error = errors.Unavailable(reason, message, retry_after_s=1.0 if retry_after_s is None else retry_after_s)
    else:
        error = cls(reason, message)
    # Set, not passed as keywords: a peer may send a key that is the name of a parameter.
    error.metadata = metadata
    error.args = (reason, message, metadata)
    return error


def _rebuild_kernel_error(message: str, metadata: dict[str, str]) -> errors.KernelError:
    name = metadata.get("errno", "")
    number = getattr(errno_codes, name, None)
    if not isinstance(number, int):
        number = int(name) if name.isdecimal() else 0
    error = errors.KernelError(metadata["op"], metadata.get("target", ""), number, metadata.pop(_KERNEL_DETAIL, ""))
    error.message = message
    error.metadata = metadata
    return error


def _from_library(code: grpc.StatusCode, text: str, *, target: str, method: str) -> errors.NetweftError:
    where = target or "the server"
    what = method.rpartition("/")[2] or "the call"
    metadata = {key: value for key, value in (("target", target), ("method", method)) if value}
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.Unavailable(
            "DEADLINE_EXCEEDED",
            f"{what} at {where} was not answered in time; it may still be done: ask again with the same request id",
            retry_after_s=1.0,
            **metadata,
        )
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return errors.FailedPrecondition(
            "UNIMPLEMENTED", f"{where} does not offer {what}; upgrade it, or check the target ({text})", **metadata
        )
    if code is grpc.StatusCode.UNAVAILABLE:
        return errors.Unavailable(
            "UNREACHABLE",
            f"{where} does not answer {what}; check that it runs and is reachable ({text})",
            retry_after_s=1.0,
            **metadata,
        )
    cls: Callable[..., errors.NetweftError] = _CLASS_OF_CODE.get(code, errors.Internal)
    return cls(f"RPC_{code.name}", f"{what} at {where} failed: {text or code.name}", **metadata)


def _wire_metadata(error: errors.NetweftError) -> dict[str, str]:
    metadata = {
        key: _cut(str(value), METADATA_VALUE_LIMIT)
        for key, value in list(error.metadata.items())[:METADATA_COUNT_LIMIT]
    }
    if isinstance(error, errors.KernelError) and error.detail:
        metadata[_KERNEL_DETAIL] = _cut(error.detail, METADATA_VALUE_LIMIT)
    return metadata


def _pack(
    message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _attribute(error: grpc.RpcError, name: str) -> Any:
    """Call one of the accessors that grpc adds to RpcError's children, and not to RpcError itself."""
    accessor = getattr(error, name, None)
    return accessor() if callable(accessor) else None
