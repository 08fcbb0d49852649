"""What Docker sends to network and IPAM drivers, as values (libnetwork's docs/remote.md and docs/ipam.md).

Go writes an absent list or map as null, and one protocol says `Err` where the other says `Error`.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from typing import Annotated, Any, TypeVar

import msgspec
from netweft_common.errors import InvalidArgument

from netweft_agent.domain.objects import Interface, PublishedPort, Subnetwork

PREFIX = "com.docker.network."
GENERIC = f"{PREFIX}generic"
INTERNAL = f"{PREFIX}internal"
ENABLE_IPV4 = f"{PREFIX}enable_ipv4"
ENABLE_IPV6 = f"{PREFIX}enable_ipv6"
GATEWAY = f"{PREFIX}gateway"
PORT_MAP = f"{PREFIX}portmap"
MAC_ADDRESS = f"{PREFIX}endpoint.macaddress"
ENDPOINT_NAME = f"{PREFIX}endpoint.name"
ADDRESS_TYPE = "RequestAddressType"

Id = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
Map = dict[str, Any] | None
_NAMES = {
    "network_id": "NetworkID", "endpoint_id": "EndpointID", "pool_id": "PoolID", "options": "Options", "pool": "Pool",
    "ipv4_data": "IPv4Data", "ipv6_data": "IPv6Data", "gateway": "Gateway", "aux_addresses": "AuxAddresses",
    "address_space": "AddressSpace", "sub_pool": "SubPool", "v6": "V6", "address": "Address", "interface": "Interface",
    "address_ipv6": "AddressIPv6", "mac_address": "MacAddress", "sandbox_key": "SandboxKey", "protocol": "Proto",
    "container_port": "Port", "host_address": "HostIP", "host_port": "HostPort", "host_port_end": "HostPortEnd",
    "container_address": "IP",
}  # fmt: skip


class Message(msgspec.Struct, rename=_NAMES, frozen=True):
    """Something that Docker says; what we do not know of it is left out."""


class Nothing(Message, frozen=True):
    """No fields that matter."""


class IpamData(Message, frozen=True):
    """A subnet of a network, as its IPAM driver gave it."""

    pool: Text
    address_space: Text = ""
    gateway: Text = ""
    aux_addresses: dict[str, str] | None = None


class CreateNetwork(Message, frozen=True):
    """NetworkDriver.CreateNetwork."""

    network_id: Id
    options: Map = None
    ipv4_data: list[IpamData] | None = None
    ipv6_data: list[IpamData] | None = None


class OfNetwork(Message, frozen=True):
    """What is about a network."""

    network_id: Id


class Given(Message, frozen=True):
    """An interface, as far as Docker has decided on it."""

    address: Text = ""
    address_ipv6: Text = ""
    mac_address: Text = ""


class CreateEndpoint(Message, frozen=True):
    """NetworkDriver.CreateEndpoint."""

    network_id: Id
    endpoint_id: Id
    interface: Given | None = None
    options: Map = None


class OfEndpoint(Message, frozen=True):
    """What is about an endpoint."""

    network_id: Id
    endpoint_id: Id
    options: Map = None


class Join(Message, frozen=True):
    """NetworkDriver.Join."""

    network_id: Id
    endpoint_id: Id
    sandbox_key: Annotated[str, msgspec.Meta(min_length=1, max_length=4096, pattern=r"^/[^\x00-\x1f]*$")]
    options: Map = None


class GwAllocCheck(Message, frozen=True):
    """NetworkDriver.GwAllocCheck."""

    options: Map = None


class RequestPool(Message, frozen=True):
    """IpamDriver.RequestPool."""

    address_space: Text = ""
    pool: Text = ""
    sub_pool: Text = ""
    options: dict[str, str] | None = None
    v6: bool = False


class ReleasePool(Message, frozen=True):
    """IpamDriver.ReleasePool."""

    pool_id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class RequestAddress(Message, frozen=True):
    """IpamDriver.RequestAddress."""

    pool_id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    address: Text = ""
    options: dict[str, str] | None = None


class ReleaseAddress(Message, frozen=True):
    """IpamDriver.ReleaseAddress."""

    pool_id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    address: Text = ""


class PortBinding(Message, frozen=True):
    """An element of the port map."""

    protocol: int
    container_port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    host_address: Text = ""
    host_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    host_port_end: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0


M = TypeVar("M", bound=Message)


def read(body: bytes, kind: type[M]) -> M:
    """Read a request; an empty body, or null, has no fields.

    Raises:
        InvalidArgument: It is no JSON, a field is missing, or is something else than it should be.
    """
    text = body.strip()
    try:
        return msgspec.json.decode(b"{}" if text in {b"", b"null"} else text, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(
            "BAD_REQUEST", f"what was asked is no {kind.__name__} of Docker's plugin protocol: {error}"
        ) from error


def ports(options: Map) -> tuple[PublishedPort, ...]:
    """Return the ports that options ask to publish.

    Raises:
        InvalidArgument: They are no port map.
    """
    try:
        bindings = msgspec.convert((options or {}).get(PORT_MAP) or [], list[PortBinding])
    except msgspec.ValidationError as error:
        raise InvalidArgument("BAD_PORT_MAP", f"{PORT_MAP}: {error}", field=PORT_MAP) from error
    found = []
    for one in bindings:
        protocol = _PROTOCOLS.get(one.protocol)
        if protocol is None:
            raise InvalidArgument(
                "BAD_PROTOCOL", f"{PORT_MAP}: protocol {one.protocol} is none of tcp, udp, sctp", field=PORT_MAP
            )
        last = one.host_port_end if one.host_port_end != one.host_port else 0
        found.append(
            PublishedPort(
                protocol=protocol,
                container_port=one.container_port,
                host_address=str(address(one.host_address, "HostIP")) if one.host_address else "",
                host_port=one.host_port,
                host_port_end=last,
            )
        )
    return tuple(found)


_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}
_NUMBERS = {name: number for number, name in _PROTOCOLS.items()}


def port_map(published: tuple[PublishedPort, ...], container_address: str) -> list[dict[str, Any]]:
    """Write published ports as Docker has them."""
    return [
        {
            "Proto": _NUMBERS[one.protocol],
            "IP": container_address,
            "Port": one.container_port,
            "HostIP": one.host_address,
            "HostPort": one.number,
            "HostPortEnd": one.number,
        }
        for one in published
    ]


def address(text: str, field: str) -> IPv4Address | IPv6Address:
    """Read an address.

    Raises:
        InvalidArgument: It is none.
    """
    try:
        return ip_address(text)
    except ValueError as error:
        raise InvalidArgument("BAD_ADDRESS", f"{field} {text[:64]!r} is no IP address", field=field) from error


def interface(text: str, field: str) -> Interface:
    """Read an address with a prefix length.

    Raises:
        InvalidArgument: It is none.
    """
    try:
        return ip_interface(text)
    except ValueError as error:
        raise InvalidArgument(
            "BAD_ADDRESS", f"{field} {text[:64]!r} is no IP address with a prefix length", field=field
        ) from error


def subnet(text: str, field: str) -> Subnetwork:
    """Read a subnet; host bits are left out, as Docker does.

    Raises:
        InvalidArgument: It is none.
    """
    try:
        return ip_network(text, strict=False)
    except ValueError as error:
        raise InvalidArgument("BAD_SUBNET", f"{field} {text[:64]!r} is no subnet", field=field) from error
