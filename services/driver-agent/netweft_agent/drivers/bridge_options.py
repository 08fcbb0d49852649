"""Options of a bridge network, and what they say of each IP version."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address

from netweft_common.errors import InvalidArgument

from netweft_agent.drivers import base

DRIVER = "bridge"

_RESERVED = frozenset({".", "..", "lo", "all", "default"})
"""No names of a bridge: links and folders that the kernel has in every namespace (net/ipv4/devinet.c)."""

_LEAST_MTU = 68
"""RFC 791 §3.2; the kernel refuses less."""


class Mode(StrEnum):
    """How a network is reached from outside, and leaves, in one IP version.

    NAT: leaves with the host's address, is reached by published ports alone.
    NAT_UNPROTECTED: the same, and its endpoints' own addresses are open to who has a route to them.
    ROUTED: leaves with its own addresses, and of these the published ports are open.
    ISOLATED: not even the host has an address in it.
    """

    NAT = "nat"
    NAT_UNPROTECTED = "nat-unprotected"
    ROUTED = "routed"
    ISOLATED = "isolated"


_MODES = tuple(mode.value for mode in Mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of a bridge network; the long names are Docker's."""

    bridge_name: str = base.option(
        "",
        "Name of the bridge device; one that exists already is used as it is, and never removed.",
        aliases=("com.docker.network.bridge.name",),
        pattern=r"[A-Za-z0-9_.-]{1,15}",
    )
    icc: bool = base.option(
        default=True,
        doc="Let endpoints of the network talk to each other.",
        aliases=("com.docker.network.bridge.enable_icc",),
    )
    masquerade: bool = base.option(
        default=True,
        doc="Give traffic that leaves the network the host's address.",
        aliases=("com.docker.network.bridge.enable_ip_masquerade",),
    )
    mtu: int = base.option(
        1500,
        "MTU of bridge and endpoints, in bytes, from 68 on; 0: the kernel's default.",
        aliases=("com.docker.network.driver.mtu",),
        minimum=0,
        maximum=65535,
    )
    host_binding: str = base.option(
        "0.0.0.0",  # noqa: S104  # the default of Docker
        "Host address of published ports that name none; 0.0.0.0: all addresses of both families.",
        aliases=("com.docker.network.bridge.host_binding_ipv4",),
        pattern=r"[0-9A-Fa-f.:]{2,45}",
    )
    inhibit_ipv4: bool = base.option(
        default=False,
        doc="Give the bridge no IPv4 address: the gateway is somebody else on it.",
        aliases=("com.docker.network.bridge.inhibit_ipv4",),
    )
    gateway_mode_ipv4: str = base.option(
        "nat",
        "How IPv4 leaves and is reached: nat, nat-unprotected, routed, or isolated (internal networks only).",
        aliases=("com.docker.network.bridge.gateway_mode_ipv4",),
        choices=_MODES,
    )
    gateway_mode_ipv6: str = base.option(
        "nat",
        "How IPv6 leaves and is reached: nat, nat-unprotected, routed, or isolated (internal networks only).",
        aliases=("com.docker.network.bridge.gateway_mode_ipv6",),
        choices=_MODES,
    )
    snat_ipv4: str = base.option(
        "",
        "Address of the host that leaving IPv4 traffic gets; empty: that of the interface by which it leaves.",
        aliases=("com.docker.network.host_ipv4",),
        pattern=r"[0-9.]{7,15}",
    )
    snat_ipv6: str = base.option(
        "",
        "Address of the host that leaving IPv6 traffic gets; empty: that of the interface by which it leaves.",
        aliases=("com.docker.network.host_ipv6",),
        pattern=r"[0-9A-Fa-f.:]{2,45}",
    )
    trusted_host_interfaces: str = base.option(
        "",
        "Interfaces of the host, by colons, from which endpoints' own addresses may be reached.",
        aliases=("com.docker.network.bridge.trusted_host_interfaces",),
        # A comma is no separator here, and in no name that anybody gives: it would trust nobody, silently.
        pattern=r"[^,/:\s]{1,15}(:[^,/:\s]{1,15}){0,31}",
    )
    interface_prefix: str = base.option(
        "eth",
        "What the names of interfaces in sandboxes begin with; a number follows.",
        aliases=("com.docker.network.container_iface_prefix", "com.docker.network.container_interface_prefix"),
        pattern=r"[A-Za-z][A-Za-z0-9_.-]{0,10}",
    )
    anti_spoof: bool = base.option(
        default=True,
        doc="Let endpoints send only as themselves: with their own MAC and addresses, as no router or DHCP server.",
    )
    advertise_addr_nmsgs: int = base.advertise_count()
    advertise_addr_ms: int = base.advertise_interval()
    default_bridge: bool = base.option(
        default=False,
        doc="The network that Docker calls bridge, in which no names are resolved; the data plane is the same.",
        aliases=("com.docker.network.bridge.default_bridge",),
    )

    def __post_init__(self) -> None:
        """Refuse values that no pattern tells.

        Raises:
            InvalidArgument: One of them; names the option.
        """
        if self.bridge_name in _RESERVED:
            raise _bad("bridge_name", self.bridge_name, "a name that the kernel does not use itself")
        if 0 < self.mtu < _LEAST_MTU:
            raise _bad("mtu", str(self.mtu), f"0, or from {_LEAST_MTU} on")
        _check_address("host_binding", self.host_binding, (4, 6))
        _check_address("snat_ipv4", self.snat_ipv4, (4,))
        _check_address("snat_ipv6", self.snat_ipv6, (6,))

    def mode(self, version: int) -> Mode:
        """Return the gateway mode of an IP version."""
        return Mode(self.gateway_mode_ipv4 if version == 4 else self.gateway_mode_ipv6)

    def snat(self, version: int) -> str:
        """Return the address that leaving traffic of an IP version gets; empty: the outgoing interface's."""
        given = self.snat_ipv4 if version == 4 else self.snat_ipv6
        return str(ip_address(given)) if given else ""

    @property
    def binding(self) -> str:
        """Host address of published ports that name none, in canonical form."""
        return str(ip_address(self.host_binding))

    def versions(self, *modes: Mode) -> frozenset[int]:
        """Return the IP versions that have one of the modes."""
        return frozenset(version for version in base.IP_VERSIONS if self.mode(version) in modes)

    @property
    def trusted(self) -> tuple[str, ...]:
        """Names of the trusted interfaces, each once."""
        return tuple(dict.fromkeys(self.trusted_host_interfaces.split(":"))) if self.trusted_host_interfaces else ()


def _check_address(name: str, value: str, versions: Iterable[int]) -> None:
    if not value:
        return
    try:
        found = ip_address(value)
    except ValueError:
        found = None
    if found is None or found.version not in versions or found.is_multicast:
        expected = " or ".join(f"IPv{version}" for version in versions)
        raise _bad(name, value, f"an {expected} address of the host")


def _bad(name: str, value: str, expected: str) -> InvalidArgument:
    return InvalidArgument(
        "BAD_OPTION", f"option {name} of driver {DRIVER} is {value!r}; it must be {expected}", field=f"options[{name}]"
    )
