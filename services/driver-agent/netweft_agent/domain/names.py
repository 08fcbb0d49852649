"""Names and hardware addresses, made from ids so that a restarted agent finds what it made (IFNAMSIZ: 15 bytes)."""

from __future__ import annotations

DIGITS = 11

PORT = "nwv-"
"""What the name of an endpoint's port begins with."""

UNGUARDED_PORT = "nwx-"
"""The same, of an endpoint that may send what it likes."""

HANDED_OVER = "nwh-"
"""What the name begins with of an endpoint's interface that somebody else takes to its sandbox."""

BRIDGES = ("nwb-", "nwu-")
"""What the names of our links begin with that packets are forwarded by: bridges, and ways out of overlays."""

OPENED = {4: "opened4", 6: "opened6"}
"""Sets of the firewall, by IP version, of addresses, protocols and ports of endpoints that anybody may come in to."""


def bridge(network_id: str) -> str:
    """Name the bridge of a bridge network."""
    return f"nwb-{network_id[:DIGITS]}"


def further_bridge(network_id: str, shard: int) -> str:
    """Name a further bridge of a bridge network."""
    return f"nwb-{_shard(network_id, shard)}"


def trunk(network_id: str, shard: int) -> tuple[str, str]:
    """Name the two ends of the pair that joins a further bridge to the first: the first bridge's port, the other's."""
    return f"nwt-{_shard(network_id, shard)}", f"nwf-{_shard(network_id, shard)}"


def _shard(network_id: str, shard: int) -> str:
    return f"{network_id[:8]}-{shard:02x}"


def veth(endpoint_id: str, *, guarded: bool = True) -> str:
    """Name the host's end of an endpoint's veth pair."""
    return f"{PORT if guarded else UNGUARDED_PORT}{endpoint_id[:DIGITS]}"


def handed_over(endpoint_id: str) -> str:
    """Name the interface of an endpoint until somebody else takes it to its sandbox, under a name of his."""
    return f"{HANDED_OVER}{endpoint_id[:DIGITS]}"


def shaper(endpoint_id: str) -> str:
    """Name the link that what an endpoint sends passes first, when there is a limit to it."""
    return f"nws-{endpoint_id[:DIGITS]}"


def uplink(network_id: str) -> str:
    """Name the host's end of the pair that leads from a network's own namespace to the host."""
    return f"nwu-{network_id[:DIGITS]}"


def network_ns(network_id: str) -> str:
    """Name the namespace that an overlay network has for itself."""
    return f"network/{network_id}"


def mac(identifier: str) -> str:
    """Make a locally administered unicast address of the last ten digits of an id (IEEE 802, 02 in the first octet)."""
    digits = identifier[-10:]
    return ":".join(["02", *(digits[at : at + 2] for at in range(0, 10, 2))])


def further_mac(network_id: str, shard: int) -> str:
    """Make such an address for a further bridge: 06 in the first octet, the shard in the second."""
    digits = network_id[-8:]
    return ":".join(["06", f"{shard:02x}", *(digits[at : at + 2] for at in range(0, 8, 2))])
