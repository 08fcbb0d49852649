"""What is told of an overlay network beyond its record: ways between its hosts that are too narrow for it."""

from __future__ import annotations

from collections.abc import Iterator

from netweft_controller.domain import fields
from netweft_controller.domain.objects import NarrowPath, Network
from netweft_controller.domain.state import State

DRIVER = "overlay"
_OVERHEAD = {4: 50, 6: 70}
"""Bytes that VXLAN adds over IPv4 and IPv6 (RFC 7348 §5)."""


def check(network: Network, default_space: str) -> None:
    """Refuse an overlay network that no host could make; any other driver's passes.

    Args:
        network: As it is to be.
        default_space: Address space in which no subnets overlap that hosts have routes to.

    Raises:
        InvalidArgument: Options contradict the network.
    """
    if network.driver != DRIVER or network.options.get("direct_routing") != "true":
        return
    if network.internal:
        raise fields.invalid(
            "options['direct_routing']",
            "an internal network has no way to other hosts but its tunnel; leave it out, or leave out internal",
            "DIRECT_ROUTING_INTERNAL",
        )
    if network.address_space != default_space:
        raise fields.invalid(
            "options['direct_routing']",
            f"addresses of space {network.address_space} may be another's too, and a host has one route to each;"
            f" use the space {default_space}, or leave it out",
            "DIRECT_ROUTING_SPACE",
        )


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
