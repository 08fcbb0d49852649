"""Further bridges of a network, and the trunk by which each is joined to the first (docs/decisions/0021-shards.md).

    sandbox ── port ┐                                              ┌ port ── sandbox
    sandbox ── port ┤ first bridge ── trunk ═══ far end ── further ┤ port ── sandbox
    gateway's address, way out, tunnel: all on the first one       └ port ── sandbox

A trunk is a veth pair with both ends in one namespace. Bridges make a star, so nothing can go round in circles. Each
endpoint of a further bridge wants it and its trunk, so they come with the first one and go with the last.

Where endpoints shall not talk to each other, their ports are isolated, and so is the trunk at the first bridge, but not
at its far end: an isolated port talks to the bridge itself and to ports that are not isolated. So a frame of a further
bridge comes up by the trunk and reaches the gateway, but neither ports of the first bridge nor other trunks.

The host has no address on a further bridge, answers no ARP there and takes nothing in by it: whoever sends to its MAC
would get past what is said of the first bridge.
"""

from __future__ import annotations

from netweft_agent.domain.resources import Link, Ns, PeerEnd, Port, Resource, Sysctl


def further(
    ns: Ns,
    name: str,
    *,
    first: str,
    trunk: str,
    far: str,
    mac: str,
    mtu: int | None,
    trunk_port: Port,
    far_port: Port,
) -> list[Resource]:
    """Render a further bridge with its trunk.

    Args:
        ns: Namespace of all bridges of the network.
        name: Of the further bridge.
        first: Name of the first bridge.
        trunk: Name of the trunk's end that is a port of the first bridge.
        far: Name of its other end, a port of the further bridge.
        mac: Of the further bridge: without one it would change with the bridge's ports.
        mtu: In bytes; None: not managed.
        trunk_port: Attributes of the first bridge's port.
        far_port: Attributes of the further bridge's.
    """
    return [
        Link(ns=ns, name=name, kind="bridge", mtu=mtu, mac=mac, ipv6=False),
        Link(
            ns=ns,
            name=trunk,
            kind="veth",
            mtu=mtu,
            master=first,
            ipv6=False,
            port=trunk_port,
            peer=PeerEnd(ns=ns, name=far),
        ),
        Link(
            ns=ns,
            name=far,
            kind="peer",
            mtu=mtu,
            master=name,
            ipv6=False,
            port=far_port,
            peer=PeerEnd(ns=ns, name=trunk),
        ),
        Sysctl(ns=ns, path=f"net/ipv4/conf/{name}/arp_ignore", value="8", link=name),
        # No route leads to a sender by a bridge without addresses, so a strict look at the source drops everything
        # (fib_validate_source, net/ipv4/fib_frontend.c).
        Sysctl(ns=ns, path=f"net/ipv4/conf/{name}/rp_filter", value="1", link=name),
    ]
