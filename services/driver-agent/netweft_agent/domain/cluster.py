"""What front-ends of container runtimes ask of the cluster, for containers of this host.

`rpc/cluster.py` asks the controllers; tests have a double.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from netweft_agent.domain.objects import Bandwidth, Interface, PublishedPort, Subnet


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """An endpoint to be made; see EndpointSpec of the protocol."""

    network: str
    name: str
    addresses: tuple[str, ...] = ()
    mac: str = ""
    interface_name: str = ""
    dns_names: tuple[str, ...] = ()
    ports: tuple[PublishedPort, ...] = ()
    bandwidth: Bandwidth | None = None
    gateway_priority: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """The sandbox that it joins, made when there is none of that container."""

    container_id: str
    netns_path: str
    dns_servers: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An endpoint as it is.

    Attributes:
        sandbox_id: Empty: it is joined to none.
        gateways: Of its network, one a family; only told of one that was just attached.
    """

    id: str
    name: str
    sandbox_id: str = ""
    addresses: tuple[Interface, ...] = ()
    gateways: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


class Cluster(Protocol):
    """The cluster, as a front-end sees it. Every call raises NetweftError."""

    async def subnets(self, network: str) -> tuple[Subnet, ...]:
        """Return the subnets of a network; NotFound where there is none."""

    async def attach(self, wish: Wish, container: Container) -> Found:
        """Make an endpoint and join it to a container of this host."""

    async def create(self, wish: Wish) -> Found:
        """Make an endpoint that is in no sandbox: a lease with a name."""

    async def detach(self, network: str, name: str) -> None:
        """Take an endpoint away, and its sandbox when it was the last one; one that is gone is gone."""

    async def endpoint(self, network: str, name: str) -> Found:
        """Return one endpoint; NotFound where there is none."""

    async def endpoints(self, network: str, label: str) -> list[Found]:
        """Return the endpoints of a network that have a label, `key=value`."""
