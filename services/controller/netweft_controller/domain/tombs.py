"""Tombs: claims that keep an owner from being recorded with what the reconciler returns for it.

Who has leased and not yet committed either commits before the tomb, and then what he holds is no orphan, or is refused.
A tomb stays longer than any saga lasts. It must not keep out who begins afterwards:

- The tomb of a lease names its epoch. A retry that gives the lease back and asks again gets another.
- The tomb of a pool is its network's, for a pool has no such number, and it says how far the return is. While it is
  RETURNING nobody may record the network: what he has reserved under the pool's id would be returned in its place. Once
  it is GONE, a creation may record the network by naming the very tomb that it has met, since all that it holds was
  reserved after that.

The value of a tomb is `<stage>@<seconds since 1970>@<at random>`. One that is RETURNING for too long was left by
somebody who died, and is made anew by whoever finds it.
"""

from __future__ import annotations

import enum

from netweft_controller.domain.objects import Lease

PREFIX = "tomb/"


class Stage(enum.StrEnum):
    """How far the return of what is buried is; a lease is released by its epoch, so it is as good as gone at once."""

    RETURNING = "returning"
    GONE = "gone"


def of(owner_id: str) -> str:
    """Return the claim of an owner's tomb: of a network; those of an endpoint's leases begin with it."""
    return f"{PREFIX}{owner_id}"


def of_lease(owner_id: str, lease: Lease) -> str:
    """Return the claim of the tomb of one lease."""
    return f"{of(owner_id)}/{lease.pool_id}@{lease.epoch}"


def is_of(claim: str, owner_id: str) -> bool:
    """Whether a claim is a tomb of an owner, or of a lease of his."""
    return claim == of(owner_id) or claim.startswith(f"{of(owner_id)}/")


def made(stage: Stage, now_s: float, nonce: str) -> str:
    """Return the value of a tomb that is made now, in seconds since 1970."""
    return f"{stage}@{round(now_s)}@{nonce}"


def is_gone(tomb: str) -> bool:
    """Whether what is buried has been returned."""
    return tomb.startswith(f"{Stage.GONE}@")


def age_s(tomb: str, now_s: float) -> float:
    """Return how long ago a tomb was made, in seconds; clocks of two machines may differ either way."""
    return abs(now_s - float(tomb.split("@")[1]))
