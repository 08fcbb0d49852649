"""From objects to owners' wishes: which drivers to ask for what, for any part of the host's objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from netweft_common.errors import FailedPrecondition, NotFound

from netweft_agent.domain import sandbox as sandbox_domain
from netweft_agent.domain.objects import Endpoint, Facts, Kind, Network, Peer, Ref, Sandbox
from netweft_agent.domain.resources import Key, Resource
from netweft_agent.drivers.base import Attachment, Driver
from netweft_agent.engine.store import ObjectStore

IP_VERSIONS = (4, 6)


@dataclass(slots=True)
class Scope:
    """Ids of the objects to render."""

    networks: set[str] = field(default_factory=set)
    sandboxes: set[str] = field(default_factory=set)
    endpoints: set[str] = field(default_factory=set)
    peers: set[str] = field(default_factory=set)

    def owners(self) -> set[str]:
        """Return the owners whose wishes the render replaces."""
        return (
            {f"network/{one}" for one in self.networks}
            | {f"sandbox/{one}" for one in self.sandboxes}
            | {f"endpoint/{one}" for one in self.endpoints}
            | {f"peer/{one}" for one in self.peers}
        )

    def add_endpoint(self, endpoint: Endpoint) -> None:
        """Take in an endpoint with its sandbox, whose routes and files depend on all its endpoints."""
        self.endpoints.add(endpoint.id)
        self.sandboxes.add(endpoint.sandbox_id)


class Renderer:
    """Renders parts of a store.

    Args:
        drivers: By name.
        facts: Of the host.
        resolv_conf: Text of the host's resolv.conf.
    """

    def __init__(self, drivers: Mapping[str, Driver], facts: Facts, resolv_conf: str) -> None:
        self.drivers = drivers
        self.facts = facts
        self.resolv_conf = resolv_conf

    def check(self, store: ObjectStore, endpoint: Endpoint) -> None:
        """Refuse an endpoint that cannot be rendered.

        Raises:
            NotFound: Its network or sandbox is not known here.
            FailedPrecondition: Its driver is not installed, or refuses it.
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
        self.drivers[network.driver].check(network, attachment, self.facts)

    def everything(self, store: ObjectStore) -> Scope:
        """Return the scope of all objects."""
        return Scope(
            networks={one.id for one in store.of_kind(Kind.NETWORK)},
            sandboxes={one.id for one in store.of_kind(Kind.SANDBOX)},
            endpoints={one.id for one in store.of_kind(Kind.ENDPOINT)},
            peers={one.id for one in store.of_kind(Kind.PEER)},
        )

    def render(self, store: ObjectStore, scope: Scope) -> dict[str, dict[Key, Resource]]:
        """Return the wishes of each owner in the scope; an owner that wants nothing has an empty mapping.

        A network is rendered only while the host has an endpoint of it.
        """
        endpoints = self._attachments(store, scope)
        peers = _peers(store, scope)
        wishes: dict[str, dict[Key, Resource]] = {owner: {} for owner in scope.owners()}
        for identifier in scope.networks | endpoints.keys() | peers.keys():
            network = store.network(identifier)
            if network is None or not store.by_network.get(identifier) or network.driver not in self.drivers:
                continue
            part = self.drivers[network.driver].render(
                network, endpoints.get(identifier, []), peers.get(identifier, []), self.facts
            )
            for owner, wanted in part.by_owner.items():
                if owner in wishes:
                    wishes[owner] = wanted
        for identifier in scope.sandboxes:
            sandbox = store.sandbox(identifier)
            if sandbox is not None:
                members = self._members(store, sandbox)
                parts = sandbox_domain.render(sandbox, members, self.facts, self.resolv_conf)
                wishes[f"sandbox/{identifier}"] = {one.key: one for one in parts}
        return wishes

    def _attachments(self, store: ObjectStore, scope: Scope) -> dict[str, list[Attachment]]:
        """Return the scope's endpoints with their sandboxes, by network."""
        found: dict[str, list[Attachment]] = {}
        for identifier in scope.endpoints:
            endpoint = store.endpoint(identifier)
            attachment = None if endpoint is None else self._attachment(store, endpoint)
            if attachment is not None:
                found.setdefault(attachment.endpoint.network_id, []).append(attachment)
        return found

    def _members(self, store: ObjectStore, sandbox: Sandbox) -> list[sandbox_domain.Member]:
        members = []
        for endpoint in store.endpoints_of_sandbox(sandbox.id):
            network = self._network(store, endpoint)
            if network is None or network.driver not in self.drivers:
                continue
            driver = self.drivers[network.driver]
            offered = {version: driver.gateway(network, endpoint, version) for version in IP_VERSIONS}
            members.append(
                sandbox_domain.Member(
                    endpoint=endpoint,
                    network_name=network.name,
                    internal=network.internal,
                    gateways={version: gateway for version, gateway in offered.items() if gateway is not None},
                )
            )
        return members

    def _network(self, store: ObjectStore, endpoint: Endpoint) -> Network | None:
        return store.network(endpoint.network_id)

    def _attachment(self, store: ObjectStore, endpoint: Endpoint) -> Attachment | None:
        sandbox = store.sandbox(endpoint.sandbox_id)
        return None if sandbox is None else Attachment(endpoint=endpoint, sandbox=sandbox)


def _peers(store: ObjectStore, scope: Scope) -> dict[str, list[Peer]]:
    """Return the scope's peers, by network."""
    found: dict[str, list[Peer]] = {}
    for identifier in scope.peers:
        peer = store.objects.get(Ref(kind=Kind.PEER, id=identifier))
        if isinstance(peer, Peer):
            found.setdefault(peer.network_id, []).append(peer)
    return found
