"""How pools and addresses are named in Redis; the layout itself is told in `lua/pool.lua` and `lua/space.lua`."""

from __future__ import annotations

import binascii
import dataclasses
import functools
import hashlib
import struct

from netweft_ipam.domain.addressing import Subnet, Version
from netweft_ipam.domain.pools import PoolId

_HEX_DIGITS: dict[int, int] = {4: 8, 6: 32}
_VERSION: dict[str, Version] = {"4": 4, "6": 6}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the addresses of one pool are written.

    Attributes:
        key: KEYS[1] of the pool's scripts.
        base: Subnet's first address.
        width: Hexadecimal digits of a ref, an address less the base.
        bucket_digits: Digits of an owner bucket's name.
        range: Name of the pool in its family: its range, empty for the whole subnet.
        low: Lowest automatic ref.
        high: Highest automatic ref; below `low` when there is none.
        result: One packed result of `request.lua`.
    """

    key: str
    base: int
    width: int
    bucket_digits: int
    range: str
    low: str
    high: str
    result: struct.Struct

    def ref(self, address: int) -> str:
        """Return an address's ref."""
        return f"{address - self.base:0{self.width}x}"


def check_prefix(prefix: str) -> str:
    """Return a key prefix; braces would break the hash tags."""
    if not prefix or set(prefix) & set("{}"):
        raise ValueError(f"key prefix {prefix!r}: braces are the hash tag's")
    return prefix


@functools.lru_cache(maxsize=65_536)
def layout(prefix: str, pool: PoolId) -> Layout:
    """Return the layout of a pool."""
    host_bits = pool.subnet.host_bits
    width = max(4, -(-host_bits // 4))
    base = pool.subnet.base
    return Layout(
        key=f"{{{prefix}:{pool.family}}}:m",
        base=base,
        width=width,
        # About 16 owners a bucket in a full pool, and no more than a million buckets.
        bucket_digits=min(5, max(1, (host_bits - 2) // 4)),
        range="" if pool.range is None else str(pool.range),
        low=f"{pool.first - base:0{width}x}",
        high=f"{max(0, pool.last - base):0{width}x}" if pool.capacity else "",
        result=struct.Struct(f">BQQQ{width}s"),
    )


# A copy is much cheaper than a hash by name, which OpenSSL looks up each time.
_SHA1 = hashlib.sha1(usedforsecurity=False)


def digest(key: bytes) -> bytes:
    """Return the digest that an owner is indexed by, 16 hexadecimal digits."""
    hashed = _SHA1.copy()
    hashed.update(key)
    return binascii.hexlify(hashed.digest()[:8])


def space_key(prefix: str, space: str) -> str:
    """Return KEYS[1] of a space's scripts."""
    return f"{{{prefix}:{space}}}:p"


def hexadecimal(version: int, address: int) -> str:
    """Return an address in the registry's writing."""
    return f"{address:0{_HEX_DIGITS[version]}x}"


def subnet_name(subnet: Subnet) -> str:
    """Return a subnet's name in the registry."""
    return f"{subnet.version}{hexadecimal(subnet.version, subnet.base)}/{subnet.prefix:03}"


def pool_name(pool: PoolId) -> str:
    """Return a pool's name in the registry: names sort as pools are listed."""
    name = subnet_name(pool.subnet)
    if pool.range is None:
        return name
    return f"{name}/{hexadecimal(pool.range.version, pool.range.base)}/{pool.range.prefix:03}"


def parse_pool_name(space: str, name: str) -> PoolId:
    """Return the pool of a registry name."""
    version = _VERSION[name[0]]
    base, length, *part = name[1:].split("/")
    subnet = Subnet(version, int(base, 16), int(length))
    return PoolId(space, subnet, Subnet(version, int(part[0], 16), int(part[1])) if part else None)
