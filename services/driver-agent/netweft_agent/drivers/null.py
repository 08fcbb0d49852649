"""The null driver: a sandbox with nothing but its loopback interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from netweft_agent.domain import ports
from netweft_agent.domain.objects import Endpoint, Facts, Interface, Network, Peer, Scope, Subnetwork
from netweft_agent.domain.state import HostState
from netweft_agent.drivers import base


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The null driver takes no options."""


class NullDriver:
    """Endpoints without a link."""

    name: ClassVar[str] = "null"
    scope: ClassVar[Scope] = Scope.LOCAL
    claims: ClassVar[tuple[base.Claim, ...]] = ()
    options: ClassVar[type[Options]] = Options
    needs_addresses: ClassVar[bool] = False
    single_network: ClassVar[bool] = True

    def check(self, network: Network, attachment: base.Attachment, facts: Facts) -> None:
        """Accept any sandbox but the host's, and no published ports."""
        del network, facts
        base.refuse_ports(self.name, attachment)
        base.refuse_host_sandbox(self.name, attachment)

    def render(
        self, network: Network, attachments: Sequence[base.Attachment], peers: Sequence[Peer], facts: Facts
    ) -> HostState:
        """Render nothing: the sandbox itself has its loopback interface."""
        del network, attachments, peers, facts
        return HostState()

    def gateway(self, network: Network, endpoint: Endpoint, version: int) -> Interface | None:
        """Offer no gateway."""
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
