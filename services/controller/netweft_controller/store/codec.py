"""Objects and log entries as bytes (MessagePack), which only this package reads."""

from __future__ import annotations

import typing
from collections.abc import Sequence

import msgspec

from netweft_controller.domain import commits
from netweft_controller.domain.objects import CLASSES, Kind, Object, Record

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[Kind, msgspec.msgpack.Decoder[Object]] = {
    kind: msgspec.msgpack.Decoder(cls) for kind, cls in CLASSES.items()
}
_log_decoder = msgspec.msgpack.Decoder(tuple[tuple[commits.Action, Kind, bytes], ...])
_request_decoder = msgspec.msgpack.Decoder(tuple[bytes, bytes])


def encode(value: Object) -> bytes:
    """Return the bytes of an object."""
    return _encoder.encode(value)


def decode(kind: Kind, data: bytes) -> Object:
    """Return the object; fields that a newer version added are ignored, missing ones get their defaults."""
    return _decoders[kind].decode(data)


def encode_log(writes: Sequence[commits.Write], values: Sequence[bytes]) -> bytes:
    """Return the bytes of a log entry, from the writes and the bytes of their objects in the same order."""
    return _encoder.encode([(write.action, write.kind, data) for write, data in zip(writes, values, strict=True)])


def decode_log(data: bytes) -> tuple[commits.Write, ...]:
    """Return the writes of a log entry."""
    return tuple(commits.Write(action, decode(kind, value)) for action, kind, value in _log_decoder.decode(data))


def encode_request(request: commits.Request) -> bytes:
    """Return the bytes of what is remembered of a request."""
    return _encoder.encode((request.fingerprint, request.outcome))


def decode_request(request_id: str, data: bytes) -> commits.Request:
    """Return what is remembered of a request."""
    fingerprint, outcome = _request_decoder.decode(data)
    return commits.Request(id=request_id, fingerprint=fingerprint, outcome=outcome)


def encode_stored(revision: int, created_ms: int, data: bytes) -> bytes:
    """Return an object as the store's hash holds it: its revision and time of creation, then its bytes."""
    return b"%d:%d:%s" % (revision, created_ms, data)


def decode_stored(kind: Kind, stored: bytes) -> commits.AnyRecord:
    """Return the record that `encode_stored` or the commit script wrote."""
    revision, created_ms, data = stored.split(b":", 2)
    record = Record(decode(kind, data), int(revision), int(created_ms))  # type: ignore[type-var]  # one of four
    return typing.cast("commits.AnyRecord", record)
