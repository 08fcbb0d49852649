"""What front-ends of container runtimes ask of the cluster, for containers of this host.

`rpc/cluster.py` asks the controllers; tests have a double.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from netweft_agent.domain.objects import Bandwidth, Interface, PublishedPort, Subnet


class Wish(msgspec.Struct, frozen=True, kw_only=True):
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
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    options: Mapping[str, str] = msgspec.field(default_factory=dict)


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """The sandbox that it joins, made when there is none of that container.

    Attributes:
        netns_path: Of its namespace; empty: the runtime moves interfaces into it himself.
    """

    container_id: str
    netns_path: str = ""
    dns_servers: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint as it is.

    Attributes:
        sandbox_id: Empty: it is joined to none.
        interface_name: As its host has made it; empty while it is joined to nothing.
        gateways: Of its network, one a family; only told of one that was just attached.
    """

    id: str
    name: str
    sandbox_id: str = ""
    addresses: tuple[Interface, ...] = ()
    gateways: tuple[str, ...] = ()
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    network_id: str = ""
    mac: str = ""
    interface_name: str = ""
    ports: tuple[PublishedPort, ...] = ()
    created_s: float = 0.0


class SubnetWish(msgspec.Struct, frozen=True, kw_only=True):
    """A subnet of a network to be made; see Subnet of the protocol."""

    subnet: str = ""
    gateway: str = ""
    ip_range: str = ""
    aux_addresses: Mapping[str, str] = msgspec.field(default_factory=dict)


class NetworkWish(msgspec.Struct, frozen=True, kw_only=True):
    """A network to be made; see CreateNetworkRequest of the protocol.

    Attributes:
        here: Of this host alone.
    """

    name: str
    driver: str
    here: bool = False
    subnets: tuple[SubnetWish, ...] = ()
    options: Mapping[str, str] = msgspec.field(default_factory=dict)
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    internal: bool = False
    enable_ipv4: bool = True
    enable_ipv6: bool = False
    address_space: str = ""


class FoundNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """A network as it is; nothing of it ever changes.

    Attributes:
        host_id: Empty: it is of all hosts.
        ip_ranges: What automatic addresses come from, where that is not the whole subnet, by subnet.
        created_s: Time of creation, in seconds since the epoch, by the store's clock.
    """

    id: str
    name: str
    driver: str
    host_id: str = ""
    subnets: tuple[Subnet, ...] = ()
    ip_ranges: Mapping[str, str] = msgspec.field(default_factory=dict)
    options: Mapping[str, str] = msgspec.field(default_factory=dict)
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    internal: bool = False
    enable_ipv4: bool = True
    enable_ipv6: bool = False
    created_s: float = 0.0


class Cluster(Protocol):
    """The cluster, as a front-end sees it. Every call raises NetweftError."""

    async def network(self, network: str) -> FoundNetwork:
        """Return one network by id or name; NotFound where there is none."""

    async def networks(self, label: str) -> list[FoundNetwork]:
        """Return the networks that have a label, `key=value`."""

    async def create_network(self, wish: NetworkWish) -> FoundNetwork:
        """Make a network."""

    async def delete_network(self, network: str) -> None:
        """Take a network away; one that is gone is gone. FailedPrecondition while it has endpoints."""

    async def update(
        self,
        endpoint_id: str,
        *,
        dns_names: tuple[str, ...] | None = None,
        ports: tuple[PublishedPort, ...] | None = None,
    ) -> Found:
        """Change what is given of an endpoint, and wait for its host."""

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
        """Return the endpoints of a network that have a label, `key=value`; of all networks where it is empty."""
