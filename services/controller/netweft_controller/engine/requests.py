"""Requests and what is remembered of them.

A mutation's request id makes all ids that it chooses, so that a retry makes the same objects. What is remembered says
of each item whether it was done (`Done`, kept until the outcome may have been told) and what the answer was.
"""

from __future__ import annotations

import hashlib
import uuid

import msgspec

from netweft_controller.domain import commits
from netweft_controller.domain.objects import Endpoint, Network, Sandbox
from netweft_controller.engine.work import reused


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One mutation of a caller.

    Attributes:
        key: The idempotency key with the method's name before it.
        fingerprint: Digest of the body.
    """

    key: str
    fingerprint: bytes

    def id_for(self, *parts: str) -> str:
        """Return an id, 32 hexadecimal digits, that is the same for every try of this request."""
        return hashlib.sha256("\0".join((self.key, *parts)).encode()).hexdigest()[:32]

    def remember(self, outcome: Outcome) -> commits.Request:
        """Return what the store keeps of this request."""
        return commits.Request(id=self.key, fingerprint=self.fingerprint, outcome=_encoder.encode(outcome))

    def recall(self, known: commits.Request) -> Outcome:
        """Return what was remembered.

        Raises:
            AlreadyExists: The key was used with another body.
        """
        if known.fingerprint != self.fingerprint:
            raise reused(self.key)
        return _decoder.decode(known.outcome)


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """One item that was committed.

    Attributes:
        id: What it made or removed.
        told: The host has confirmed it, so the caller may have been told; before that, a missing object was undone.
        endpoint: The answer, for when the object has changed since; likewise sandbox and network. Of a change that
            nobody was told of yet: what it was before.
        revision: Revision of the answer's object; likewise its time of creation.
    """

    id: str
    told: bool = False
    endpoint: Endpoint | None = None
    sandbox: Sandbox | None = None
    network: Network | None = None
    revision: int = 0
    created_ms: int = 0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What was remembered: one entry an item; None: the item failed, a retry tries it again.

    Attributes:
        nonce: Different in each version, so that versions can be told apart.
    """

    items: tuple[Done | None, ...]
    nonce: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex[:16])


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Outcome)


def request(method: str, request_id: str, body: bytes) -> Request:
    """Return a request.

    Args:
        method: Short name of the method: keys of different methods do not meet.
        request_id: The caller's idempotency key; empty: the request is never the same as another.
        body: The request's bytes, in a deterministic encoding.
    """
    return Request(
        key=f"{method}/{request_id or uuid.uuid4().hex}",
        fingerprint=hashlib.blake2b(body, digest_size=16).digest(),
    )
