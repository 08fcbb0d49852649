"""How many addresses to lease ahead: few, for a short time, and only where they are plenty."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from netweft_controller.domain.objects import Network

HOT_USES = 4
HOT_S = 2.0
"""So many attaches one by one within so many seconds are worth it."""

MAX_AGE_S = 3.0
"""Age at which what was not used goes back.

Shorter than the time for which IPAM gives nothing out after a failover: an address that the store has forgotten
meanwhile is too old to be used before anybody else can get it.
"""

_SHARE = 32
"""What is held ahead is at most this fraction of what is free."""


def is_hot(uses: Iterable[float], now_s: float) -> bool:
    """Return whether a host and network are worth it.

    Args:
        uses: Times of the last attaches, monotonic seconds.
        now_s: Now.
    """
    return sum(now_s - one <= HOT_S for one in uses) >= HOT_USES


def room(network: Network, endpoints: int, pool_ids: Iterable[str]) -> int:
    """Return how many addresses of each pool one controller may hold ahead, over all hosts.

    Args:
        network: Whose pools they are.
        endpoints: How many it has.
        pool_ids: Pools that each of its endpoints takes an address from.
    """
    sizes = [
        ipaddress.ip_network(subnet.ip_range or subnet.subnet).num_addresses
        for subnet in network.subnets
        if subnet.pool_id in set(pool_ids)
    ]
    return max(0, (min(sizes, default=0) - endpoints) // _SHARE)
