"""Every error survives each of its wire forms."""

from __future__ import annotations

import errno

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from netweft.common.v1 import status_pb2 as item_pb2
from netweft_common import errors, status

EVERY_CLASS = [
    errors.InvalidArgument("SUBNET_MALFORMED", "subnet 10/33 is none", field="subnets[0].subnet", subnet="10/33"),
    errors.NotFound("NETWORK_UNKNOWN", "no network blue", network="blue"),
    errors.AlreadyExists("NAME_TAKEN", "blue exists", network="blue"),
    errors.FailedPrecondition("POOL_OVERLAP", "overlap", pool="a"),
    errors.PermissionDenied("ROLE_NOT_ALLOWED", "no"),
    errors.Unauthenticated("IDENTITY_MISSING", "who?"),
    errors.Exhausted("POOL_FULL", "full", pool="a"),
    errors.OutOfRange("REVISION_OLD", "too old", revision="3"),
    errors.Conflict("VERSION_MOVED", "again"),
    errors.Unavailable("STORE_DOWN", "later", retry_after_s=2.5, store="redis"),
    errors.KernelError("ip link add br0 type bridge", "br0", errno.EEXIST, "name taken"),
    errors.KernelError("ip link add br0 type bridge", "br0", 9999),
    errors.Internal("BUG", "ours"),
]
each_class = pytest.mark.parametrize("error", EVERY_CLASS, ids=lambda error: f"{type(error).__name__}-{error.reason}")


def as_rpc_error(wire: status.RpcStatus) -> aio.AioRpcError:
    return aio.AioRpcError(wire.code, aio.Metadata(), aio.Metadata(*wire.trailers), details=wire.details)


def facts(error: errors.NetweftError) -> dict[str, object]:
    return {"class": type(error), "args": error.args, **vars(error)}


@each_class
def test_an_error_survives_the_grpc_status(error):
    wire = status.to_rpc_status(error)

    found = status.from_rpc_error(as_rpc_error(wire))

    assert facts(error) == facts(found)


@each_class
def test_an_error_survives_the_status_of_a_batch_item(error):
    wire = status.to_item_status(error)

    found = status.from_item_status(item_pb2.Status.FromString(wire.SerializeToString()))

    assert facts(error) == facts(found)


def test_ok_is_no_error():
    assert item_pb2.Status() == status.to_item_status(None)
    assert status.from_item_status(item_pb2.Status()) is None


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EEXIST, grpc.StatusCode.ALREADY_EXISTS),
        (errno.ENOENT, grpc.StatusCode.NOT_FOUND),
        (errno.ENODEV, grpc.StatusCode.NOT_FOUND),
        (errno.EPERM, grpc.StatusCode.PERMISSION_DENIED),
        (errno.EBUSY, grpc.StatusCode.FAILED_PRECONDITION),
        (errno.ENOTEMPTY, grpc.StatusCode.FAILED_PRECONDITION),
        (errno.ENOSPC, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errno.ENFILE, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errno.EXFULL, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errno.ENOMEM, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errno.EINVAL, grpc.StatusCode.FAILED_PRECONDITION),
        (errno.EOPNOTSUPP, grpc.StatusCode.FAILED_PRECONDITION),
        (errno.EAGAIN, grpc.StatusCode.UNAVAILABLE),
        (errno.EBADMSG, grpc.StatusCode.INTERNAL),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else value.name,
)
def test_a_kernel_error_has_the_code_of_its_errno(number, code):
    assert code is status.code_of(errors.KernelError("ip link", "x", number))


def test_a_child_class_has_the_code_of_its_parent():
    class PoolFull(errors.Exhausted):
        pass

    assert grpc.StatusCode.RESOURCE_EXHAUSTED is status.code_of(PoolFull("A", "b"))


def test_details_are_those_of_aip_193():
    wire = status.to_rpc_status(errors.InvalidArgument("BAD_MTU", "mtu 1", field="mtu", mtu="1"))

    packed = status_pb2.Status.FromString(dict(wire.trailers)["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    assert packed.details[0].Unpack(info)
    assert packed.details[1].Unpack(bad)
    assert ("BAD_MTU", "netweft", {"field": "mtu", "mtu": "1"}) == (info.reason, info.domain, dict(info.metadata))
    assert [("mtu", "mtu 1")] == [(item.field, item.description) for item in bad.field_violations]


def test_retry_info_tells_how_long_to_wait():
    wire = status.to_rpc_status(errors.Unavailable("DOWN", "down", retry_after_s=0.25))

    packed = status_pb2.Status.FromString(dict(wire.trailers)["grpc-status-details-bin"])
    retry = error_details_pb2.RetryInfo()
    assert packed.details[1].Unpack(retry)
    assert 250 == retry.retry_delay.ToMilliseconds()


def test_long_texts_are_cut_so_that_the_trailer_stays_small():
    error = errors.FailedPrecondition("BUSY", "x" * 100_000, **{f"key{n}": "y" * 10_000 for n in range(100)})

    wire = status.to_rpc_status(error)

    assert sum(len(value) for _, value in wire.trailers) < 12_000
    assert wire.details.endswith("…")


def test_metadata_named_as_a_parameter_survives():
    wire = status.to_item_status(errors.NotFound("X", "y"))
    wire.metadata["reason"] = "other"
    wire.metadata["field"] = "f"

    found = status.from_item_status(wire)

    assert found is not None
    assert ("X", {"reason": "other", "field": "f"}) == (found.reason, found.metadata)


@pytest.mark.parametrize(
    ("code", "cls", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable, "UNREACHABLE"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.Unavailable, "DEADLINE_EXCEEDED"),
        (grpc.StatusCode.UNIMPLEMENTED, errors.FailedPrecondition, "UNIMPLEMENTED"),
        (grpc.StatusCode.CANCELLED, errors.Unavailable, "RPC_CANCELLED"),
        (grpc.StatusCode.UNKNOWN, errors.Internal, "RPC_UNKNOWN"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Exhausted, "RPC_RESOURCE_EXHAUSTED"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_failure_of_the_call_itself_names_target_and_method(code, cls, reason):
    error = aio.AioRpcError(code, aio.Metadata(), aio.Metadata(), details="why")

    found = status.from_rpc_error(error, target="unix:/x", method="/netweft.ipam.v1.IpamService/GetPool")

    assert (cls, reason) == (type(found), found.reason)
    assert "unix:/x" in found.message
    assert "GetPool" in found.message


def test_a_foreign_error_info_is_not_taken_for_ours():
    info = error_details_pb2.ErrorInfo(reason="QUOTA", domain="example.com")
    packed = status_pb2.Status(code=8, message="m")
    packed.details.add().Pack(info)
    error = aio.AioRpcError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        aio.Metadata(),
        aio.Metadata((status.DETAILS_KEY, packed.SerializeToString())),
        details="m",
    )

    assert "RPC_RESOURCE_EXHAUSTED" == status.from_rpc_error(error).reason
