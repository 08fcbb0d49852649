"""From objects to owners' wishes: which drivers to ask for what, for any part of the host's objects."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from netweft_common.errors import Exhausted, FailedPrecondition, Internal, NetweftError, NotFound

from netweft_agent.domain import names, ports, shards
from netweft_agent.domain import sandbox as sandbox_domain
from netweft_agent.domain.objects import (
    HANDOVER,
    LATER,
    Endpoint,
    Facts,
    HostFiles,
    Interface,
    Kind,
    Network,
    Object,
    Peer,
    Ref,
    Sandbox,
    Subnetwork,
)
from netweft_agent.domain.objects import (
    Scope as Reach,
)
from netweft_agent.domain.ports import Reserver
from netweft_agent.domain.resources import Key, Resource
from netweft_agent.domain.state import HostState
from netweft_agent.drivers import base
from netweft_agent.drivers.base import Attachment, Driver
from netweft_agent.engine.store import ObjectStore

IP_VERSIONS = (4, 6)
PLACED_FROM = 100
"""First number of interfaces that are made in a runtime's namespace beside its own."""


@dataclass(slots=True)
class Scope:
    """Ids of the objects to render."""

    networks: set[str] = field(default_factory=set)
    sandboxes: set[str] = field(default_factory=set)
    endpoints: set[str] = field(default_factory=set)
    peers: set[str] = field(default_factory=set)

    def owners(self) -> list[str]:
        """Return the owners whose wishes the render replaces, in an order that makes plans repeatable."""
        return [
            *(f"network/{one}" for one in sorted(self.networks)),
            *(f"sandbox/{one}" for one in sorted(self.sandboxes)),
            *(f"endpoint/{one}" for one in sorted(self.endpoints)),
            *(f"peer/{one}" for one in sorted(self.peers)),
        ]

    def add(self, item: Object) -> None:
        """Take in one object alone."""
        kinds = {
            Kind.NETWORK: self.networks,
            Kind.SANDBOX: self.sandboxes,
            Kind.ENDPOINT: self.endpoints,
            Kind.PEER: self.peers,
        }
        kinds[item.ref.kind].add(item.id)

    def add_endpoint(self, endpoint: Endpoint) -> None:
        """Take in an endpoint with its sandbox, whose routes and files depend on all its endpoints."""
        self.endpoints.add(endpoint.id)
        self.sandboxes.add(endpoint.sandbox_id)


@dataclass(slots=True)
class Wishes:
    """Outcome of a render.

    Attributes:
        by_owner: What each owner wants; one that wants nothing has an empty mapping.
        refused: Owners whose part could not be rendered, with the reason.
    """

    by_owner: dict[str, Mapping[Key, Resource]]
    refused: dict[str, NetweftError] = field(default_factory=dict)

    def refuse(self, owners: Iterable[str], error: NetweftError) -> None:
        """Note that these owners could not be rendered."""
        for owner in owners:
            if self.by_owner.pop(owner, None) is not None:
                self.refused[owner] = error


class Renderer:
    """Renders parts of a store.

    Args:
        drivers: By name.
        facts: Of the host.
        host: The host's own files; may be exchanged, for what is rendered from then on.
        ports: Finds free ports of the host; None: every published port has to be named.
        ports_per_bridge: Endpoints of a network that share a bridge.
    """

    def __init__(
        self,
        drivers: Mapping[str, Driver],
        facts: Facts,
        host: HostFiles,
        ports: Reserver | None = None,
        *,
        ports_per_bridge: int = shards.PORTS,
    ) -> None:
        self.drivers = drivers
        self.facts = facts
        self.host = host
        self.ports = ports
        self._ports_per_bridge = ports_per_bridge

    def complete(self, store: ObjectStore, endpoint: Endpoint, held: Endpoint | None) -> Endpoint:
        """Return an endpoint with what the host chooses: interface's name, shard, and the ports that its bindings get.

        What it has it keeps.

        Args:
            store: What the host holds.
            endpoint: As the controller wants it.
            held: As the host holds it; None: it is new.

        Raises:
            FailedPrecondition: None of a range of ports is free.
            Exhausted: None of the ephemeral range is free, or no bridge of the network.
        """
        network = store.network(endpoint.network_id)
        if network is None or network.driver not in self.drivers:
            return endpoint
        driver = self.drivers[network.driver]
        sandbox = store.sandbox(endpoint.sandbox_id)
        if sandbox is not None and sandbox.source == HANDOVER:
            name = _handover_name(store, endpoint, held, sandbox, driver.interface_prefix(network))
            endpoint = msgspec.structs.replace(endpoint, interface_name=name)
        elif not endpoint.interface_name:
            name = _interface_name(store, endpoint, held, driver, network)
            endpoint = msgspec.structs.replace(endpoint, interface_name=name)
        shard = self._shard(store, endpoint, held, network)
        if shard != endpoint.shard:
            endpoint = msgspec.structs.replace(endpoint, shard=shard)
        if not endpoint.ports or self.ports is None:
            return endpoint
        before = () if held is None else held.ports
        assigned = ports.assign(endpoint.ports, before, driver.binds(network, endpoint), self.ports)
        return endpoint if assigned == endpoint.ports else msgspec.structs.replace(endpoint, ports=assigned)

    def _shard(self, store: ObjectStore, endpoint: Endpoint, held: Endpoint | None, network: Network) -> int:
        """Return the shard that an endpoint is in, else the lowest that takes it: they fill up after leaves."""
        if held is not None and held.network_id == network.id:
            return held.shard
        found = shards.find_free(store.shards.get(network.id, {}), self._ports_per_bridge)
        if found is None:
            raise Exhausted(
                "BRIDGES_FULL",
                f"endpoint {endpoint.name} cannot be attached: network {network.name} has "
                f"{len(store.by_network[network.id])} endpoints on this host, and the {shards.MOST} bridges that a "
                "network may have here take no more; detach some, or attach it on another host",
                network=network.name,
            )
        return found

    def check(self, store: ObjectStore, endpoint: Endpoint) -> None:
        """Refuse an endpoint that cannot be rendered.

        Raises:
            NotFound: Its network or sandbox is not known here.
            FailedPrecondition: Its driver is not installed, or refuses it.
            InvalidArgument: Its network has an option that the driver of this host does not know.
        """
        network, attachment = self._network(store, endpoint), self._attachment(store, endpoint)
        if network is None:
            raise NotFound(
                "NETWORK_UNKNOWN", f"endpoint {endpoint.name}: this host was not told of network {endpoint.network_id}"
            )
        if attachment is None:
            raise NotFound(
                "SANDBOX_UNKNOWN", f"endpoint {endpoint.name}: this host was not told of sandbox {endpoint.sandbox_id}"
            )
        if network.driver not in self.drivers:
            raise FailedPrecondition(
                "DRIVER_UNKNOWN",
                f"network {network.name} needs driver {network.driver}, which this host has not; "
                f"it has: {', '.join(sorted(self.drivers))}",
            )
        driver = self.drivers[network.driver]
        base.parse(driver.options, network.options, driver=driver.name)
        try:
            driver.check(network, attachment, self.facts)
        except NetweftError:
            raise
        except Exception as error:  # a driver may be anybody's
            raise _bug(network, error) from error

    def everything(self, store: ObjectStore) -> Scope:
        """Return the scope of all objects."""
        return Scope(
            networks={one.id for one in store.of_kind(Kind.NETWORK)},
            sandboxes={one.id for one in store.of_kind(Kind.SANDBOX)},
            endpoints={one.id for one in store.of_kind(Kind.ENDPOINT)},
            peers={one.id for one in store.of_kind(Kind.PEER)},
        )

    def render(self, store: ObjectStore, scope: Scope) -> Wishes:
        """Return the wishes of each owner in the scope.

        A network is rendered only while the host has an endpoint of it. What one driver cannot render is refused to
        the owners of that network alone.
        """
        endpoints = self._attachments(store, scope)
        peers = _peers(store, scope)
        owners = [one.owner for group in endpoints.values() for one in group]
        wishes = Wishes({owner: {} for owner in (*scope.owners(), *owners)})
        for identifier in sorted(scope.networks | endpoints.keys() | peers.keys()):
            network = store.network(identifier)
            if network is None or not store.by_network.get(identifier) or network.driver not in self.drivers:
                continue
            attached, known = endpoints.get(identifier, []), peers.get(identifier, [])
            try:
                part = self._render_network(network, attached, known)
            except NetweftError as error:
                owners = [f"network/{identifier}", *(one.owner for one in attached)]
                wishes.refuse([*owners, *(f"peer/{one.id}" for one in known)], error)
                continue
            for owner, wanted in part.by_owner.items():
                if owner in wishes.by_owner:
                    wishes.by_owner[owner] = wanted
        for identifier in scope.sandboxes:
            sandbox = store.sandbox(identifier)
            if sandbox is None:
                continue
            try:
                members = self._members(store, sandbox)
            except NetweftError as error:
                wishes.refuse([f"sandbox/{identifier}"], error)
                continue
            parts = sandbox_domain.render(sandbox, members, self.facts, self.host)
            wishes.by_owner[f"sandbox/{identifier}"] = {one.key: one for one in parts}
        return wishes

    def _render_network(self, network: Network, attachments: Sequence[Attachment], peers: Sequence[Peer]) -> HostState:
        try:
            return self.drivers[network.driver].render(network, attachments, peers, self.facts)
        except NetweftError:
            raise
        except Exception as error:  # a driver may be anybody's, and must not take other networks along
            raise _bug(network, error) from error

    def _gateways(self, network: Network, endpoint: Endpoint) -> dict[int, Interface]:
        driver = self.drivers[network.driver]
        try:
            offered = {version: driver.gateway(network, endpoint, version) for version in IP_VERSIONS}
        except NetweftError:
            raise
        except Exception as error:  # as above
            raise _bug(network, error) from error
        return {version: gateway for version, gateway in offered.items() if gateway is not None}

    def _routes(self, network: Network, endpoint: Endpoint) -> Mapping[Subnetwork, Interface]:
        try:
            return self.drivers[network.driver].routes(network, endpoint)
        except Exception as error:  # as above
            raise _bug(network, error) from error

    def _attachments(self, store: ObjectStore, scope: Scope) -> dict[str, list[Attachment]]:
        """Return the scope's endpoints with their sandboxes, by network, but for those that wait for their place.

        With them those with published ports that share a sandbox with one: the ports follow the default route.
        """
        found: dict[str, list[Attachment]] = {}
        siblings = {
            one.id
            for sandbox in scope.sandboxes
            for one in store.endpoints_of_sandbox(sandbox)
            if one.ports and one.id not in scope.endpoints
        }
        for identifier in (*scope.endpoints, *sorted(siblings)):
            endpoint = store.endpoint(identifier)
            attachment = None if endpoint is None else self._attachment(store, endpoint)
            if attachment is not None and attachment.sandbox.place != LATER:
                if attachment.endpoint.ports:
                    attachment = msgspec.structs.replace(attachment, gateway_of=self._gateway_of(store, attachment))
                found.setdefault(attachment.endpoint.network_id, []).append(attachment)
        return found

    def _gateway_of(self, store: ObjectStore, attachment: Attachment) -> frozenset[int]:
        """Return the IP versions whose default route the endpoint gives its sandbox."""
        try:
            members = self._members(store, attachment.sandbox)
        except NetweftError:
            return frozenset()  # what is wrong is told of the sandbox
        chosen = {version: sandbox_domain.gateway_member(members, version) for version in IP_VERSIONS}
        return frozenset(
            version
            for version, member in chosen.items()
            if member is not None and member.endpoint.id == attachment.endpoint.id
        )

    def _members(self, store: ObjectStore, sandbox: Sandbox) -> list[sandbox_domain.Member]:
        members = []
        host_wanted = sandbox_domain.asks_for_host(sandbox)
        for endpoint in store.endpoints_of_sandbox(sandbox.id):
            network = self._network(store, endpoint)
            if network is None or network.driver not in self.drivers:
                continue
            members.append(
                sandbox_domain.Member(
                    endpoint=endpoint,
                    network_name=network.name,
                    internal=network.internal,
                    gateways=self._gateways(network, endpoint),
                    host=self._host_addresses(network, endpoint) if host_wanted else {},
                    ipv6=base.has_ipv6(endpoint, network_has=network.enable_ipv6),
                    routes=self._routes(network, endpoint),
                )
            )
        return members

    def _host_addresses(self, network: Network, endpoint: Endpoint) -> dict[int, Interface]:
        """Return the host's own addresses on a network of one host; the gateway of one of many is nobody's own."""
        if self.drivers[network.driver].scope is not Reach.LOCAL:
            return {}
        return {
            one.subnet.version: one.gateway
            for one in network.subnets
            if one.gateway is not None and any(address.ip in one.subnet for address in endpoint.addresses)
        }

    def _network(self, store: ObjectStore, endpoint: Endpoint) -> Network | None:
        return store.network(endpoint.network_id)

    def _attachment(self, store: ObjectStore, endpoint: Endpoint) -> Attachment | None:
        sandbox = store.sandbox(endpoint.sandbox_id)
        return None if sandbox is None else Attachment(endpoint=endpoint, sandbox=sandbox)


def _interface_name(
    store: ObjectStore, endpoint: Endpoint, held: Endpoint | None, driver: Driver, network: Network
) -> str:
    """Return the name that an endpoint has in its sandbox, else the lowest one that is free."""
    if held is not None and held.sandbox_id == endpoint.sandbox_id:
        return held.interface_name
    prefix = driver.interface_prefix(network)
    taken = {one.interface_name for one in store.endpoints_of_sandbox(endpoint.sandbox_id)}
    number = 0
    while f"{prefix}{number}" in taken:
        number += 1
    return f"{prefix}{number}"


def _handover_name(store: ObjectStore, endpoint: Endpoint, held: Endpoint | None, sandbox: Sandbox, prefix: str) -> str:
    """Return the name of an endpoint's interface where it is made.

    In a runtime's namespace the runtime counts its own interfaces from 0 without looking, so ours are counted from
    `PLACED_FROM`.
    """
    waiting = names.handed_over(endpoint.id)
    if not sandbox.is_placed:
        return waiting
    if held is not None and held.interface_name not in {"", waiting}:
        return held.interface_name
    there = (one for other in store.placed.get(sandbox.ns, ()) for one in store.endpoints_of_sandbox(other))
    taken = {one.interface_name for one in there}
    return next(name for number in itertools.count(PLACED_FROM) if (name := f"{prefix}{number}") not in taken)


def _bug(network: Network, error: Exception) -> Internal:
    return Internal(
        "DRIVER_BUG",
        f"driver {network.driver} failed on network {network.name}: {type(error).__name__}: {error}; "
        "its other networks go on; report it to the driver's author",
        driver=network.driver,
        network=network.name,
    )


def _peers(store: ObjectStore, scope: Scope) -> dict[str, list[Peer]]:
    """Return the scope's peers, by network."""
    found: dict[str, list[Peer]] = {}
    for identifier in scope.peers:
        peer = store.objects.get(Ref(kind=Kind.PEER, id=identifier))
        if isinstance(peer, Peer):
            found.setdefault(peer.network_id, []).append(peer)
    return found
