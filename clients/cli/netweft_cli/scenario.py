"""What the demo sets up, and who must reach whom: pure values, so that a test can read the rules.

Two hosts. A bridge network on each, an internal bridge network on the first, an overlay over both; two containers on
each network and host, and one that is in two networks.
"""

from __future__ import annotations

import dataclasses
import enum

HOSTS = ("hostA", "hostB")


class World(enum.StrEnum):
    """A destination that is no container."""

    HOST = "host"
    """The underlay address of the container's own host."""
    OUTSIDE = "outside"
    """An address behind the hosts' default route, which knows no way back to containers."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network of the demo; host is empty where all hosts have it."""

    name: str
    driver: str
    subnet: str
    host: str = ""
    internal: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container of the demo and the networks that it is in."""

    name: str
    host: str
    networks: tuple[Network, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Networks and containers."""

    networks: tuple[Network, ...]
    containers: tuple[Container, ...]

    @property
    def destinations(self) -> tuple[tuple[Container, Network], ...]:
        """Every endpoint, grouped by network."""
        return tuple(
            (container, network)
            for network in self.networks
            for container in self.containers
            if network in container.networks
        )


def standard(per_host: int = 2) -> Scenario:
    """Return the demo's scenario with so many containers on each network and host."""
    first, second = HOSTS
    bridge_a = Network(name="bridge-a", driver="bridge", host=first, subnet="10.81.0.0/24")
    bridge_b = Network(name="bridge-b", driver="bridge", host=second, subnet="10.82.0.0/24")
    overlay = Network(name="overlay", driver="overlay", subnet="10.90.0.0/16")
    closed = Network(name="internal", driver="bridge", host=first, subnet="10.83.0.0/24", internal=True)
    places = (("a", first, bridge_a), ("b", second, bridge_b), ("x", first, overlay), ("y", second, overlay))
    containers = [
        Container(name=f"{letter}{number}", host=host, networks=(network,))
        for letter, host, network in (*places, ("i", first, closed))
        for number in range(1, per_host + 1)
    ]
    containers.append(Container(name="ax", host=first, networks=(bridge_a, overlay)))
    return Scenario(networks=(bridge_a, bridge_b, overlay, closed), containers=tuple(containers))


def may_reach(source: Container, network: Network) -> bool:
    """Whether a container must reach endpoints of a network: those of its own networks and no others."""
    return network in source.networks


def may_reach_world(source: Container, destination: World) -> bool:
    """Whether a container must get out: all but those that are in internal networks only."""
    assert destination in World
    return any(not network.internal for network in source.networks)
