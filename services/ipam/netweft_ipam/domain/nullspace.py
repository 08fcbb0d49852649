"""The null address space: pools that give no addresses, for networks that need none (libnetwork's null IPAM)."""

from __future__ import annotations

from netweft_common import errors

from netweft_ipam.domain.addressing import Subnet, parse_subnet
from netweft_ipam.domain.pools import PoolAsk, PoolId

SPACE = "null"

_WHOLE = (Subnet(4, 0, 0), Subnet(6, 0, 0))


def ask(subnet: str, ip_range: str, *, ipv6: bool) -> PoolAsk:
    """Return a checked request for a pool of the null space.

    Raises:
        InvalidArgument: It names a part of a family; the null space has whole families only.
    """
    wanted = parse_subnet(subnet, field="subnet") if subnet else _WHOLE[ipv6]
    if wanted not in _WHOLE or ip_range:
        raise errors.InvalidArgument(
            "NULL_SPACE_SUBNET",
            f"subnet: address space {SPACE} has the pools 0.0.0.0/0 and ::/0 alone, and no ranges; "
            "name another space, or no subnet",
            field="ip_range" if wanted in _WHOLE else "subnet",
        )
    return PoolAsk(space=SPACE, subnet=wanted)


def is_pool(pool: PoolId) -> bool:
    """Return whether a pool is one of the two of the null space."""
    return pool.space == SPACE and pool.subnet in _WHOLE and pool.range is None
