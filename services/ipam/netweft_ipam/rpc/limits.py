"""What a request may carry: the edge's checks of lengths, counts and characters."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from netweft_common import errors

BATCH_LIMIT = 4096
KEY_BYTES = 256
# A character is at most 4 bytes, so that many are short enough without looking closer.
SURELY_SHORT = KEY_BYTES // 4
REQUEST_ID_BYTES = 128
LABELS_COUNT = 64
LABELS_BYTES = 16_384
EXCLUDE_COUNT = 4096
TTL_LIMIT_S = 366 * 86_400

_HOST_ID = re.compile(r"[A-Za-z0-9_.:-]{0,128}")
_REQUEST_ID = re.compile(r"[\x21-\x7e]{0,128}")


def check_batch(count: int, *, field: str) -> None:
    """Refuse an empty batch, or one over the limit.

    Raises:
        InvalidArgument: It is.
    """
    if not 1 <= count <= BATCH_LIMIT:
        raise errors.InvalidArgument(
            "BATCH_SIZE", f"{field}: {count} items; a call takes 1 to {BATCH_LIMIT}", field=field
        )


def check_request_id(request_id: str) -> str:
    """Return a request id.

    Raises:
        InvalidArgument: Longer than 128 bytes, or of other than printable ASCII characters.
    """
    if not _REQUEST_ID.fullmatch(request_id):
        raise errors.InvalidArgument(
            "REQUEST_ID_MALFORMED",
            f"request_id: {request_id[:32]!r} is no request id; use up to {REQUEST_ID_BYTES} printable ASCII "
            "characters without spaces, for example a UUID",
            field="request_id",
        )
    return request_id


def check_owner_key(key: str, *, field: str, required: bool = True) -> str:
    """Return an owner's key.

    Raises:
        InvalidArgument: Empty where it is required, or longer than 256 bytes.
    """
    if (key or not required) and len(key.encode()) <= KEY_BYTES:
        return key
    raise errors.InvalidArgument(
        "OWNER_KEY_MALFORMED",
        f"{field}: an owner's key is 1 to {KEY_BYTES} bytes long, this one {len(key.encode())}",
        field=field,
    )


@functools.lru_cache(maxsize=16_384)
def is_host_id(host_id: str) -> bool:
    """Return whether a text is a host's id, or empty."""
    return _HOST_ID.fullmatch(host_id) is not None


def check_host_id(host_id: str, *, field: str, required: bool = False) -> str:
    """Return a host's id.

    Raises:
        InvalidArgument: Empty where it is required, or of other characters than letters, digits and _.:-
    """
    if is_host_id(host_id) and (host_id or not required):
        return host_id
    raise errors.InvalidArgument(
        "HOST_ID_MALFORMED",
        f"{field}: {host_id[:64]!r} is no host id; use up to 128 letters, digits or _.:-",
        field=field,
    )


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels as a dict.

    Raises:
        InvalidArgument: Too many, or too long together.
    """
    size = sum(len(key.encode()) + len(value.encode()) for key, value in labels.items())
    if len(labels) > LABELS_COUNT or size > LABELS_BYTES or "" in labels:
        raise errors.InvalidArgument(
            "LABELS_SIZE",
            f"labels: {len(labels)} labels of {size} bytes; a pool takes up to {LABELS_COUNT} named ones of together "
            f"{LABELS_BYTES} bytes",
            field="labels",
        )
    return dict(labels)


def check_ttl(ttl_s: int, *, field: str) -> int:
    """Return a TTL in seconds.

    Raises:
        InvalidArgument: More than a year.
    """
    if ttl_s > TTL_LIMIT_S:
        raise errors.InvalidArgument(
            "TTL_TOO_LONG",
            f"{field}: {ttl_s} s; a lease may run {TTL_LIMIT_S} s at most, or for ever with 0",
            field=field,
        )
    return ttl_s
