"""Names and hardware addresses, made from ids so that a restarted agent finds what it made (IFNAMSIZ: 15 bytes)."""

from __future__ import annotations

DIGITS = 11

PORT = "nwv-"
"""What the name of an endpoint's port begins with."""

UNGUARDED_PORT = "nwx-"
"""The same, of an endpoint that may send what it likes."""

BRIDGES = ("nwb-", "nwu-")
"""What the names of our links begin with that packets are forwarded by: bridges, and ways out of overlays."""


def bridge(network_id: str) -> str:
    """Name the bridge of a bridge network."""
    return f"nwb-{network_id[:DIGITS]}"


def veth(endpoint_id: str, *, guarded: bool = True) -> str:
    """Name the host's end of an endpoint's veth pair."""
    return f"{PORT if guarded else UNGUARDED_PORT}{endpoint_id[:DIGITS]}"


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
