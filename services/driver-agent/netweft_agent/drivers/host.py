"""The host driver: the sandbox is the host's own namespace, and nothing is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from netweft_common.errors import FailedPrecondition

from netweft_agent.domain import ports
from netweft_agent.domain.objects import Endpoint, Facts, Interface, Network, Peer, Scope, Subnetwork
from netweft_agent.domain.state import HostState
from netweft_agent.drivers import base


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The host driver takes no options."""


class HostDriver:
    """Endpoints that use the host's network as it is."""

    name: ClassVar[str] = "host"
    scope: ClassVar[Scope] = Scope.LOCAL
    claims: ClassVar[tuple[base.Claim, ...]] = ()
    options: ClassVar[type[Options]] = Options
    needs_addresses: ClassVar[bool] = False
    single_network: ClassVar[bool] = True

    def check(self, network: Network, attachment: base.Attachment, facts: Facts) -> None:
        """Refuse a sandbox with a namespace of its own, and published ports.

        Raises:
            FailedPrecondition: The sandbox is not the host's namespace, or the endpoint publishes ports.
        """
        del network, facts
        base.refuse_ports(self.name, attachment)
        if attachment.sandbox.source != "host":
            raise FailedPrecondition(
                "NOT_HOST_SANDBOX",
                f"endpoint {attachment.endpoint.name} of a host network cannot join sandbox {attachment.sandbox.id}, "
                "which has a namespace of its own; create the sandbox with namespace `host`",
            )

    def render(
        self, network: Network, attachments: Sequence[base.Attachment], peers: Sequence[Peer], facts: Facts
    ) -> HostState:
        """Render nothing: the host's network is not ours to change."""
        del network, attachments, peers, facts
        return HostState()

    def gateway(self, network: Network, endpoint: Endpoint, version: int) -> Interface | None:
        """Offer no gateway: the host has its own routes."""
        del network, endpoint, version
        return None

    def routes(self, network: Network, endpoint: Endpoint) -> Mapping[Subnetwork, Interface]:
        """Return none."""
        del network, endpoint
        return {}

    def interface_prefix(self, network: Network) -> str:
        """Return the usual one."""
        del network
        return base.INTERFACE_PREFIX

    def binds(self, network: Network, endpoint: Endpoint) -> ports.Addresses:
        """Hold no ports."""
        del network, endpoint
        return ports.nowhere
