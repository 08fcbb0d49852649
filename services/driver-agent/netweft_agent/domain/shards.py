"""Shards: the bridges that the endpoints of one network on one host share out among them.

A Linux bridge takes 1,023 ports (BR_MAX_PORTS, net/bridge/br_private.h), and each port makes the next one dearer: with
a thousand on it a veth is created in twice the time. So a network has as many bridges on a host as it needs. Shard 0 is
the network's own bridge; endpoints beyond its share are in further ones, each a bridge that is joined to the first.
"""

from __future__ import annotations

from collections.abc import Mapping

PORTS = 250
"""Endpoints of a shard. More may be in one for a while: what was attached before there were shards, or is put back."""

MOST = 256
"""Shards of a network on a host: what their names have digits for, and fewer than a bridge takes ports."""


def find_free(taken: Mapping[int, int], ports: int = PORTS) -> int | None:
    """Return the lowest shard that takes another endpoint; None: they are all full.

    Args:
        taken: Endpoints by shard; a shard that is not named has none.
        ports: Endpoints that a shard takes.
    """
    return next((shard for shard in range(MOST) if taken.get(shard, 0) < ports), None)
