"""What others do to a host's network behind the agent's back, one of each kind, and how to see that it is mended.

For a host with an endpoint of a bridge network, with limits and a setting of its own, and an endpoint of an overlay
network with a peer on another host; `place` makes them.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

from netweft_cli import layout, netns
from netweft_client import model
from netweft_client.aio import AsyncClient

BRIDGE, OVERLAY = "front", "cross"
ENDPOINT, NEAR, FAR = "near", "x", "y"
OTHER_BRIDGE = "theirs"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Namespaces by name, and what stands for names in the commands."""

    spaces: dict[str, Path]
    words: dict[str, str]

    def run(self, where: str, command: str) -> str:
        """Run a command as somebody else would, and return what it prints; what it refuses is printed too."""
        words = command.format(**self.words).split()
        done = netns.call(
            self.spaces[where],
            lambda: subprocess.run(
                words, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=20
            ),
        )
        return done.stdout


@dataclasses.dataclass(frozen=True, slots=True)
class Tampering:
    """One thing that is done, and a look that shows it: what it prints is another text until the repair."""

    where: str
    command: str
    look: str

    def seen(self, place: Place) -> str:
        """Return what the look shows; of a link that was made anew, the index differs and does not count."""
        return re.sub(
            r"^\d+: |@if\d+|link-netnsid \d+|link/ether \S+", "", place.run(self.where, self.look), flags=re.MULTILINE
        )


TAMPERINGS = {
    "link deleted": Tampering("host", "ip link del {veth}", "ip -o link show dev {veth}"),
    "far end deleted": Tampering("sandbox", "ip link del eth0", "ip -o -4 address show dev eth0"),
    "link down": Tampering("host", "ip link set {veth} down", "ip -o link show dev {veth}"),
    "address removed": Tampering("sandbox", "ip address del {ip} dev eth0", "ip -o -4 address show dev eth0"),
    "route removed": Tampering("sandbox", "ip route del default", "ip route show default"),
    "connected route removed": Tampering("sandbox", "ip route flush dev eth0 proto kernel", "ip route show dev eth0"),
    "setting of the host": Tampering("host", "sysctl -w net.ipv4.ip_forward=0", "sysctl net.ipv4.ip_forward"),
    "setting of an endpoint": Tampering(
        "sandbox", "sysctl -w net.ipv4.conf.eth0.arp_announce=0", "sysctl net.ipv4.conf.eth0.arp_announce"
    ),
    "table flushed": Tampering("network", "nft flush table inet netweft", "nft -s list ruleset"),
    "table deleted": Tampering("network", "nft delete table inet netweft", "nft -s list ruleset"),
    "forwarding entry deleted": Tampering(
        "network", "bridge fdb del {mac} dev vxlan0 self", "bridge fdb show dev vxlan0"
    ),
    "neighbour deleted": Tampering("network", "ip neigh del {peer} dev vxlan0", "ip neigh show nud permanent"),
    "port detached": Tampering("host", "ip link set {veth} nomaster", "ip -o link show dev {veth}"),
    "master changed": Tampering("host", f"ip link set {{veth}} master {OTHER_BRIDGE}", "ip -o link show dev {veth}"),
    "queueing discipline removed": Tampering("host", "tc qdisc del dev {veth} root", "tc qdisc show dev {veth} root"),
    "filter removed": Tampering("host", "tc filter del dev {veth} ingress", "tc filter show dev {veth} ingress"),
}


async def place(client: AsyncClient, plan: layout.Layout) -> Place:
    """Attach the endpoints on the first two hosts of a stack, and return where they are."""
    host, other = plan.hosts[:2]
    await client.create_network(BRIDGE, host=host.name)
    await client.create_network(OVERLAY, driver="overlay")
    spec = model.EndpointSpec(
        network=BRIDGE,
        name=ENDPOINT,
        bandwidth=model.Bandwidth(ingress_bits_per_second=10_000_000, egress_bits_per_second=10_000_000),
        sysctls={"net.ipv4.conf.IFNAME.arp_announce": "2"},
    )
    near = await client.attach_endpoint(spec, model.SandboxSpec(container_id=ENDPOINT, host=host.name))
    here = await client.attach_endpoint(
        model.EndpointSpec(network=OVERLAY, name=NEAR), model.SandboxSpec(container_id=NEAR, host=host.name)
    )
    there = await client.attach_endpoint(
        model.EndpointSpec(network=OVERLAY, name=FAR), model.SandboxSpec(container_id=FAR, host=other.name)
    )
    space = plan.netns(host)
    assert space is not None, "hosts have namespaces of their own"
    assert near.sandbox is not None, "asked for"
    found = Place(
        spaces={
            "host": space,
            "sandbox": Path(near.sandbox.netns_path),
            "network": plan.host_dir(host) / "run" / "netns" / f"network-{here.endpoint.network_id}",
        },
        words={
            "veth": f"nwv-{near.endpoint.id[:11]}",
            "ip": str(near.endpoint.addresses[0]),
            "mac": there.endpoint.mac_address,
            "peer": str(there.endpoint.addresses[0].ip),
        },
    )
    found.run("host", f"ip link add {OTHER_BRIDGE} type bridge")
    return found
