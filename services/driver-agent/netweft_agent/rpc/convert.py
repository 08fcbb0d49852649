"""Protobuf messages to the agent's objects and back, with the checks of the edge.

The controller has validated what it sends; the agent checks again what could hurt its host, because whoever holds its
socket may call it: ids that become file names, names that become links, paths that are opened.
"""

from __future__ import annotations

import dataclasses
import re
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from ipaddress import IPv6Address, ip_address, ip_interface, ip_network
from typing import Any, TypeVar

import msgspec
from netweft.agent.v1 import agent_pb2
from netweft.common.v1 import endpoint_pb2, host_pb2, network_pb2, plan_pb2, sandbox_pb2
from netweft_common import status as status_map
from netweft_common.errors import InvalidArgument

from netweft_agent.domain import sandbox as sandbox_domain
from netweft_agent.domain.objects import (
    HANDOVER,
    Bandwidth,
    Endpoint,
    Interface,
    Kind,
    Network,
    Object,
    Peer,
    PublishedPort,
    Ref,
    Sandbox,
    Scope,
    StaticRoute,
    Subnet,
    Subnetwork,
)
from netweft_agent.domain.plan import Operation
from netweft_agent.drivers.base import Driver
from netweft_agent.engine.engine import Drift, Status
from netweft_agent.engine.paths import NarrowPath
from netweft_agent.engine.store import Change
from netweft_agent.kernel.api import Statistics

MAX_CHANGES = 4096
MAX_LISTED = 256
"""Addresses, servers and the like that one object may list."""
MAX_PORTS = 4096
"""Published ports of one endpoint."""
MAX_TEXT = 1024
"""Characters of one value that goes into a file or a path."""

MAX_PORT = 65535

T = TypeVar("T")

_ID = re.compile(r"[0-9a-f]{32}")
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")
_INTERFACE = re.compile(r"[^\s/:%\x00-\x1f\x7f]{1,15}")

_RESERVED = frozenset({".", "..", "lo", "all", "default"})
"""No name of an interface: links and folders that the kernel has in every namespace (net/ipv4/devinet.c)."""

_KINDS = {
    agent_pb2.OBJECT_KIND_NETWORK: Kind.NETWORK,
    agent_pb2.OBJECT_KIND_SANDBOX: Kind.SANDBOX,
    agent_pb2.OBJECT_KIND_ENDPOINT: Kind.ENDPOINT,
    agent_pb2.OBJECT_KIND_PEER: Kind.PEER,
}
_KIND_NUMBERS = {kind: number for number, kind in _KINDS.items()}

_SCOPES = {Scope.LOCAL: network_pb2.SCOPE_LOCAL, Scope.GLOBAL: network_pb2.SCOPE_GLOBAL}


Held = Callable[[Ref], Object | None]
"""Looks up what the host holds already: an object of the same revision needs no second reading."""

_KIND_OF_FIELD = {"network": Kind.NETWORK, "sandbox": Kind.SANDBOX, "endpoint": Kind.ENDPOINT}


nothing_held: Held = dict[Ref, Object]().get
"""Holds nothing: every change is read whole."""


def changes(messages: Iterable[agent_pb2.Change], held: Held = nothing_held) -> list[Change]:
    """Read a batch of changes.

    Args:
        messages: The batch.
        held: What the host holds of the store that the revisions belong to.

    Raises:
        InvalidArgument: Too many or none, or a malformed one; the field says which.
    """
    listed = list(messages)
    if not 1 <= len(listed) <= MAX_CHANGES:
        raise InvalidArgument(
            "BAD_COUNT", f"a call carries 1 to {MAX_CHANGES} changes, this one {len(listed)}", field="changes"
        )
    return [change(message, f"changes[{at}]", held) for at, message in enumerate(listed)]


def change(message: agent_pb2.Change, field: str = "change", held: Held = nothing_held) -> Change:
    """Read one change; `held` as in `changes`.

    Raises:
        InvalidArgument: It is malformed; the field says where.
    """
    which = message.WhichOneof("object")
    if which == "gone":
        found = ref(message.gone, f"{field}.gone")
        return Change(ref=found, revision=message.revision)
    kind = _KIND_OF_FIELD.get(which or "")
    if kind is not None:
        # Most changes come twice, by the fast path and by the sure one, and a network with each of its endpoints.
        known = held(Ref(kind=kind, id=getattr(message, kind).id))
        if known is not None and known.revision == message.revision:
            return Change(ref=known.ref, revision=message.revision, put=known)
    item: Object
    if which == "network":
        item = network(message.network, f"{field}.network")
    elif which == "sandbox":
        item = sandbox(message.sandbox, f"{field}.sandbox")
    elif which == "endpoint":
        item = endpoint(message.endpoint, f"{field}.endpoint")
    elif which == "peer":
        item = peer(message.peer, f"{field}.peer")
    else:
        raise InvalidArgument("NO_OBJECT", f"{field} names no object", field=field)
    if item.revision != message.revision:
        item = msgspec.structs.replace(item, revision=message.revision)
    return Change(ref=item.ref, revision=message.revision, put=item)


def ref(message: agent_pb2.ObjectRef, field: str = "object") -> Ref:
    """Read a reference.

    Raises:
        InvalidArgument: The kind is unknown or the id malformed.
    """
    kind = _KINDS.get(message.kind)
    if kind is None:
        raise InvalidArgument("BAD_KIND", f"{field} has no kind that this agent knows", field=f"{field}.kind")
    return Ref(kind=kind, id=identifier(message.id, f"{field}.id"))


def network(message: network_pb2.Network, field: str) -> Network:
    """Read a network."""
    return Network(
        id=identifier(message.id, f"{field}.id"),
        name=message.name,
        driver=message.driver,
        subnets=tuple(_subnet(one, where) for one, where in _listed(message.subnets, f"{field}.subnets")),
        options=dict(message.options),
        claims=dict(message.claims),
        internal=message.internal,
        enable_ipv4=message.enable_ipv4,
        enable_ipv6=message.enable_ipv6,
        revision=message.revision,
    )


def sandbox(message: sandbox_pb2.Sandbox, field: str) -> Sandbox:
    """Read a sandbox."""
    return Sandbox(
        id=identifier(message.id, f"{field}.id"),
        container_id=message.container_id,
        source=_source(message.namespace, f"{field}.namespace"),
        hostname=_words(message.hostname, f"{field}.hostname"),
        domainname=_words(message.domainname, f"{field}.domainname"),
        dns_servers=tuple(_ip(one, where) for one, where in _listed(message.dns.servers, f"{field}.dns.servers")),
        dns_search=tuple(_words(one, where) for one, where in _listed(message.dns.search, f"{field}.dns.search")),
        dns_options=tuple(_words(one, where) for one, where in _listed(message.dns.options, f"{field}.dns.options")),
        extra_hosts=tuple(
            (_words(one.name, f"{where}.name"), _extra_address(one.address, f"{where}.address"))
            for one, where in _listed(message.extra_hosts, f"{field}.extra_hosts")
        ),
        hosts_path=_path(message.hosts_path, f"{field}.hosts_path"),
        resolv_conf_path=_path(message.resolv_conf_path, f"{field}.resolv_conf_path"),
        revision=message.revision,
    )


def _extra_address(text: str, field: str) -> str:
    return text if text == sandbox_domain.HOST_GATEWAY else _ip(text, field)


def endpoint(message: endpoint_pb2.Endpoint, field: str) -> Endpoint:
    """Read an endpoint."""
    return Endpoint(
        id=identifier(message.id, f"{field}.id"),
        name=message.name,
        network_id=identifier(message.network_id, f"{field}.network_id"),
        sandbox_id=identifier(message.sandbox_id, f"{field}.sandbox_id"),
        mac=_mac(message.mac_address, f"{field}.mac_address"),
        addresses=_addresses(message.addresses, f"{field}.addresses"),
        dns_names=tuple(message.dns_names),
        interface_name=_interface(message.interface_name, f"{field}.interface_name"),
        gateway_priority=message.gateway_priority,
        options=dict(message.options),
        ports=ports(message.ports, f"{field}.ports"),
        link_local=_addresses(message.link_local_addresses, f"{field}.link_local_addresses"),
        routes=tuple(_route(one, where) for one, where in _listed(message.routes, f"{field}.routes")),
        sysctls=_sysctls(message.sysctls, f"{field}.sysctls"),
        bandwidth=_bandwidth(message.bandwidth) if message.HasField("bandwidth") else None,
        confirmed=message.state == endpoint_pb2.ENDPOINT_STATE_JOINED,
        lease_epochs=tuple(message.lease_epochs),
        revision=message.revision,
    )


_PROTOCOLS = {
    endpoint_pb2.PORT_PROTOCOL_UNSPECIFIED: "tcp",
    endpoint_pb2.PORT_PROTOCOL_TCP: "tcp",
    endpoint_pb2.PORT_PROTOCOL_UDP: "udp",
    endpoint_pb2.PORT_PROTOCOL_SCTP: "sctp",
}
_PROTOCOL_NUMBERS = {
    "tcp": endpoint_pb2.PORT_PROTOCOL_TCP,
    "udp": endpoint_pb2.PORT_PROTOCOL_UDP,
    "sctp": endpoint_pb2.PORT_PROTOCOL_SCTP,
}


def _route(message: endpoint_pb2.StaticRoute, field: str) -> StaticRoute:
    try:
        destination = ip_network(message.destination)
        next_hop = ip_address(message.next_hop) if message.next_hop else None
    except ValueError as error:
        raise InvalidArgument(
            "BAD_ROUTE",
            f"{field} needs a destination without host bits, and a next hop that is an address",
            field=field,
        ) from error
    if next_hop is not None and next_hop.version != destination.version:
        raise InvalidArgument("BAD_ROUTE", f"{field} has a next hop of the other IP version", field=field)
    return StaticRoute(destination=destination, next_hop=next_hop)


_SYSCTL = re.compile(r"net\.(ipv4|ipv6|mpls)\.[a-z0-9_]{1,32}\.IFNAME\.[a-z0-9_]{1,64}")


def _sysctls(values: Mapping[str, str], field: str) -> dict[str, str]:
    for (key, value), where in _listed(values.items(), field):
        if not _SYSCTL.fullmatch(key) or not re.fullmatch(r"[0-9 -]{1,64}", value):
            raise InvalidArgument(
                "BAD_SYSCTL",
                f"{where} is {key[:128]!r}: {value[:64]!r}; a key is net.<ipv4|ipv6|mpls>.<section>.IFNAME.<key>, a "
                "value is made of numbers",
                field=where,
            )
    return dict(values)


def _bandwidth(message: endpoint_pb2.Bandwidth) -> Bandwidth:
    return Bandwidth(
        ingress_rate=message.ingress_bits_per_second,
        ingress_burst=message.ingress_burst_bits,
        egress_rate=message.egress_bits_per_second,
        egress_burst=message.egress_burst_bits,
    )


def ports(messages: Collection[endpoint_pb2.PublishedPort], field: str) -> tuple[PublishedPort, ...]:
    """Read published ports."""
    if len(messages) > MAX_PORTS:
        raise InvalidArgument(
            "BAD_COUNT", f"{field} has {len(messages)} entries; at most {MAX_PORTS} are taken", field=field
        )
    found = [_published_port(one, field, place) for place, one in enumerate(messages)]
    if len({one.binding for one in found}) != len(found):
        raise InvalidArgument("PORT_TWICE", f"{field} has the same binding twice", field=field)
    return tuple(found)


def _published_port(message: endpoint_pb2.PublishedPort, field: str, place: int) -> PublishedPort:
    protocol, inside, assigned = _PROTOCOLS.get(message.protocol), message.container_port, message.assigned_port
    first, last, address = message.host_port, message.host_port_end, message.host_address
    if protocol and 1 <= inside <= MAX_PORT and first <= MAX_PORT and assigned <= MAX_PORT and not last and not address:
        # As nearly all are, of which there may be thousands.
        return PublishedPort(protocol=protocol, container_port=inside, host_port=first, assigned_port=assigned)
    field = f"{field}[{place}]"
    if protocol is None:
        raise InvalidArgument(
            "BAD_PROTOCOL", f"{field}.protocol is {message.protocol}, which this agent does not know", field=field
        )
    if not 1 <= inside <= MAX_PORT or first > MAX_PORT or (last and not first <= last <= MAX_PORT):
        raise InvalidArgument(
            "BAD_PORT",
            f"{field} has a container port not from 1 to {MAX_PORT}, or a host port beyond that, or a range "
            "that ends before it starts",
            field=field,
        )
    if (last and not first) or assigned > MAX_PORT:
        raise InvalidArgument(
            "BAD_PORT",
            f"{field} has host_port_end without host_port, or an assigned port beyond {MAX_PORT}",
            field=field,
        )
    return PublishedPort(
        protocol=protocol,
        container_port=inside,
        host_address=_host_address(address, f"{field}.host_address"),
        host_port=first,
        host_port_end=last,
        assigned_port=assigned,
    )


def _host_address(text: str, field: str) -> str:
    if not text:
        return ""
    try:
        found = ip_address(text)
    except ValueError as error:
        raise InvalidArgument("BAD_ADDRESS", f"{field} is no IP address: {text[:64]!r}", field=field) from error
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    if "%" in text or found.is_multicast or (found.is_link_local and found.version == 6):
        raise InvalidArgument(
            "BAD_ADDRESS",
            f"{field} is {text[:64]!r}; it must be an address of the host that needs no zone",
            field=field,
        )
    return str(found)


def published_ports(ports: Iterable[PublishedPort]) -> list[endpoint_pb2.PublishedPort]:
    """Write published ports, with what the host has assigned."""
    return [
        endpoint_pb2.PublishedPort(
            protocol=_PROTOCOL_NUMBERS[one.protocol],
            container_port=one.container_port,
            host_address=one.host_address,
            host_port=one.host_port,
            host_port_end=one.host_port_end,
            assigned_port=one.assigned_port,
        )
        for one in ports
    ]


def peer(message: endpoint_pb2.Peer, field: str) -> Peer:
    """Read a peer."""
    return Peer(
        endpoint_id=identifier(message.endpoint_id, f"{field}.endpoint_id"),
        network_id=identifier(message.network_id, f"{field}.network_id"),
        host_id=message.host_id,
        vtep=_vtep(message.vtep_address, f"{field}.vtep_address"),
        mac=_mac(message.mac_address, f"{field}.mac_address"),
        addresses=tuple(
            [_without_prefix(one, where) for one, where in _listed(message.addresses, f"{field}.addresses")]
        ),
        revision=message.revision,
    )


def _vtep(text: str, field: str) -> str:
    return _plain(text) or str(_address(text, field).ip)


def _without_prefix(text: str, field: str) -> str:
    """Read an address with its prefix length, and leave that out."""
    address, _, length = text.partition("/")
    if length in _LENGTHS4 and (found := _plain(address)):
        return found
    return str(_with_prefix(text, field).ip)


_LENGTHS4 = frozenset(map(str, range(33)))


def _plain(text: str) -> str:
    """Return an address of a usual IPv4 host as it is; empty: it is none, and may still be right in another way."""
    # A fiftieth of what ipaddress takes, and of a large network there are ten thousands to read at once.
    try:
        packed = socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        return ""
    return text if 0 < packed[0] < 224 else ""


def status_message(status: Status, *, of_revision: int | None = None) -> agent_pb2.ObjectStatus:
    """Write a status.

    Args:
        status: The status.
        of_revision: Of the change that it answers: whoever sent it knows the ports in it; None: it answers none.
    """
    known = status.error is None and status.revision == of_revision
    return agent_pb2.ObjectStatus(
        object=agent_pb2.ObjectRef(kind=_KIND_NUMBERS[status.ref.kind], id=status.ref.id),
        revision=status.revision,
        status=status_map.to_item_status(status.error),
        netns_path=status.netns_path,
        interface_name=status.interface_name,
        was_applied=status.applied,
        ports=() if known else published_ports(status.ports),
        assigned_ports=[one.assigned_port for one in status.ports] if known else (),
    )


def narrow_paths(host_id: str, found: Iterable[NarrowPath]) -> host_pb2.NarrowPaths:
    """Write which ways from this host are narrow."""
    return host_pb2.NarrowPaths(
        paths=[
            host_pb2.NarrowPath(
                host_id=host_id, peer_host_id=one.host_id, mtu_bytes=one.mtu_bytes, needed_bytes=one.needed_bytes
            )
            for one in found
        ]
    )


def drift(found: Drift) -> host_pb2.Drift:
    """Write what had to be repaired."""
    message = host_pb2.Drift(operations=found.operations)
    for one in found.repairs:
        message.repairs.add(object=one.owner, namespace=one.ns, command=one.command).time.FromMilliseconds(one.time_ms)
    return message


def interface_statistics(name: str, endpoint_id: str, counters: Statistics) -> sandbox_pb2.InterfaceStatistics:
    """Write the counters of an interface."""
    found = msgspec.structs.asdict(counters)
    return sandbox_pb2.InterfaceStatistics(interface_name=name, endpoint_id=endpoint_id, **found)


def steps(operations: Iterable[Operation]) -> list[plan_pb2.PlanStep]:
    """Write a plan; operations that need no command are left out."""
    return [
        plan_pb2.PlanStep(
            command=command,
            namespace=operation.resource.ns,
            owner=operation.owner,
            inverse=operation.inverse().command(),
        )
        for operation in operations
        if (command := operation.command())
    ]


def driver_info(driver: Driver) -> host_pb2.DriverInfo:
    """Write what a driver promises and takes."""
    return host_pb2.DriverInfo(
        name=driver.name,
        scope=_SCOPES[driver.scope],
        claims=[
            host_pb2.ClaimInfo(name=one.name, minimum=one.minimum, maximum=one.maximum, option=one.option)
            for one in driver.claims
        ],
        options=[_option_info(one) for one in dataclasses.fields(driver.options)],
        needs_addresses=driver.needs_addresses,
        single_network=driver.single_network,
    )


def _option_info(one: dataclasses.Field[Any]) -> host_pb2.OptionInfo:
    kind = "bool" if isinstance(one.default, bool) else "int" if isinstance(one.default, int) else "string"
    default = str(one.default).lower() if kind == "bool" else str(one.default)
    return host_pb2.OptionInfo(
        name=one.name,
        aliases=one.metadata["aliases"],
        type=kind,
        default_value=default,
        choices=one.metadata["choices"],
        minimum=one.metadata["minimum"],
        maximum=one.metadata["maximum"],
        description=one.metadata["doc"],
        pattern=one.metadata["pattern"],
    )


def _subnet(message: network_pb2.Subnet, field: str) -> Subnet:
    try:
        subnet = ip_network(message.subnet)
    except ValueError as error:
        raise InvalidArgument(
            "BAD_SUBNET",
            f"{field}.subnet is {message.subnet[:64]!r}; it must be a prefix without host bits, as in 10.0.0.0/16",
            field=f"{field}.subnet",
        ) from error
    name = _DEFAULT_GATEWAYS[subnet.version]
    return Subnet(
        subnet=subnet,
        gateway=_gateway(message.gateway, subnet, f"{field}.gateway"),
        default_gateway=_gateway(message.aux_addresses.get(name, ""), subnet, f"{field}.aux_addresses[{name}]"),
        pool_id=message.pool_id,
    )


_DEFAULT_GATEWAYS = {4: "DefaultGatewayIPv4", 6: "DefaultGatewayIPv6"}
"""Docker's names of auxiliary addresses that are the endpoints' gateway instead of the network's own."""


def _gateway(text: str, subnet: Subnetwork, field: str) -> Interface | None:
    if not text:
        return None
    found = _address(f"{text.partition('/')[0]}/{subnet.prefixlen}", field)
    if found.ip not in subnet:
        raise InvalidArgument("BAD_GATEWAY", f"{field} {found.ip} is not in {subnet}", field=field)
    return found


def identifier(text: str, field: str) -> str:
    """Read an id.

    Raises:
        InvalidArgument: It is malformed.
    """
    if not _ID.fullmatch(text):
        raise InvalidArgument("BAD_ID", f"{field} is {text[:64]!r}; an id is 32 hexadecimal digits", field=field)
    return text


def _mac(text: str, field: str) -> str:
    if text and (not _MAC.fullmatch(text.lower()) or text == "00:00:00:00:00:00"):
        raise InvalidArgument(
            "BAD_MAC", f"{field} is {text[:64]!r}; it must be a unicast MAC address like 02:42:0a:00:00:02", field=field
        )
    return text.lower()


def _interface(text: str, field: str) -> str:
    if text and (not _INTERFACE.fullmatch(text) or len(text.encode()) > 15 or text in _RESERVED):
        raise InvalidArgument(
            "BAD_INTERFACE",
            f"{field} is {text[:64]!r}; an interface name has 1 to 15 bytes without '/', ':', '%' and spaces, and is "
            "none that the kernel uses itself (lo, all, default)",
            field=field,
        )
    return text


def _listed(messages: Collection[T], field: str) -> Iterator[tuple[T, str]]:
    """Yield the parts of a list, each with its field."""
    if len(messages) > MAX_LISTED:
        raise InvalidArgument(
            "BAD_COUNT", f"{field} has {len(messages)} entries; at most {MAX_LISTED} are taken", field=field
        )
    for place, one in enumerate(messages):
        yield one, f"{field}[{place}]"


def _addresses(texts: Collection[str], field: str) -> tuple[Interface, ...]:
    return tuple(_with_prefix(text, where) for text, where in _listed(texts, field))


def _with_prefix(text: str, field: str) -> Interface:
    if "/" not in text:
        raise InvalidArgument(
            "BAD_ADDRESS",
            f"{field} is {text[:64]!r}; it needs the subnet's prefix length, as in 10.0.0.2/16",
            field=field,
        )
    return _address(text, field)


def _address(text: str, field: str) -> Interface:
    try:
        found = ip_interface(text)
    except ValueError as error:
        raise InvalidArgument("BAD_ADDRESS", f"{field} is no address: {text[:64]!r}", field=field) from error
    if "%" in text or found.ip.is_unspecified or found.ip.is_multicast:
        raise InvalidArgument(
            "BAD_ADDRESS", f"{field} is {text[:64]!r}; it must be one interface's address without a zone", field=field
        )
    return found


def _ip(text: str, field: str) -> str:
    try:
        ip_address(text)
    except ValueError as error:
        raise InvalidArgument("BAD_ADDRESS", f"{field} is no IP address: {text[:64]!r}", field=field) from error
    return _words(text, field)


def _path(text: str, field: str) -> str:
    broken = not text.startswith("/") or "\x00" in text or ".." in text.split("/") or len(text) > MAX_TEXT
    if text and broken:
        raise InvalidArgument(
            "BAD_PATH", f"{field} is {text[:128]!r}; it must be an absolute path without '..'", field=field
        )
    return text


def _words(text: str, field: str) -> str:
    """Return text that goes into one line of a file."""
    if len(text) > MAX_TEXT or any(not char.isprintable() for char in text):
        raise InvalidArgument(
            "BAD_TEXT", f"{field} has a control character, or more than {MAX_TEXT} characters", field=field
        )
    return text


def _source(message: sandbox_pb2.Namespace, field: str) -> str:
    match message.WhichOneof("source"):
        case "path":
            if not message.path:
                raise InvalidArgument("BAD_PATH", f"{field}.path is empty", field=f"{field}.path")
            return _path(message.path, f"{field}.path")
        case "pid":
            if message.pid == 0:
                raise InvalidArgument("BAD_PID", f"{field}.pid is 0, which is no process", field=f"{field}.pid")
            return f"pid:{message.pid}"
        case "host" if message.host:
            return "host"
        case "handover" if message.handover:
            return HANDOVER
        case "create" if message.create:
            return ""
        case None:
            return ""
        case which:
            raise InvalidArgument(
                "BAD_NAMESPACE", f"{field}.{which} is false; say what it is instead", field=f"{field}.{which}"
            )
