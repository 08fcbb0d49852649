"""What is told of an overlay network beyond its record: ways between its hosts that are too narrow for it."""

from __future__ import annotations

from collections.abc import Iterator

from netweft_controller.domain.objects import NarrowPath, Network
from netweft_controller.domain.state import State

DRIVER = "overlay"
_OVERHEAD = {4: 50, 6: 70}
"""Bytes that VXLAN adds over IPv4 and IPv6 (RFC 7348 §5)."""


def narrow_paths(state: State, network: Network) -> Iterator[NarrowPath]:
    """Yield the ways between hosts of a network that carry less than it needs, by host; of other drivers' none.

    What a host found counts for the networks that both hosts have, and not for one whose own MTU fits.
    """
    if network.driver != DRIVER:
        return
    members = state.hosts_with(network.id)
    mtu = int(network.options.get("mtu") or 0)
    for host_id in sorted(members):
        record = state.hosts.get(host_id)
        for path in record.value.narrow_paths if record is not None else ():
            overhead = _OVERHEAD[6 if record is not None and ":" in record.value.vtep_address else 4]
            if path.peer_host_id in members and (not mtu or path.mtu_bytes < mtu + overhead):
                yield path
