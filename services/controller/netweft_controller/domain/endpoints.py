"""Rules for endpoints and sandboxes: from a batch of requests to one commit, and back out again."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from netweft_common import errors

from netweft_controller.domain import commits, fields, names, settings, tombs
from netweft_controller.domain.objects import (
    Endpoint,
    EndpointState,
    Host,
    Lease,
    Namespace,
    NamespaceSource,
    Network,
    NetworkState,
    PublishedPort,
    Record,
    Sandbox,
    SandboxState,
    Scope,
)
from netweft_controller.domain.specs import AttachItem, EndpointSpec, SandboxRef, SandboxSpec
from netweft_controller.domain.state import State

HOST_GATEWAY = "host-gateway"
"""Docker's word for the address by which a sandbox reaches its host; the agent finds out which that is."""
_PID_MAX = 1 << 22  # PID_MAX_LIMIT, include/linux/threads.h
_PRIORITY_LIMIT = 1 << 31
_MACS_TRIED = 7
_PORT_PROTOCOLS = frozenset({"tcp", "udp", "sctp"})


class Want(msgspec.Struct, frozen=True, kw_only=True):
    """One address to lease.

    Attributes:
        address: The one asked for; empty: any.
        pools: Pools to try in order.
    """

    address: str
    pools: tuple[str, ...]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where an endpoint is to join.

    Attributes:
        sandbox: The sandbox; recorded, or to be recorded with the endpoint.
        record: Its record, or None when it is to be made.
    """

    sandbox: Sandbox
    record: Record[Sandbox] | None
    host: Record[Host]


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint that may be made: checked, without addresses yet.

    Attributes:
        target: Where it joins; None: nowhere yet.
    """

    endpoint: Endpoint
    network: Record[Network]
    target: Target | None
    wants: tuple[Want, ...]


class Placer:
    """Checks the items of one batch, each against the state and the items before it.

    Args:
        state: Intent as it is.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._names: set[tuple[str, str]] = set()
        self._macs: set[tuple[str, str]] = set()
        self._interfaces: set[tuple[str, str]] = set()
        self._new_sandboxes: dict[tuple[str, str], Target] = {}

    def place(self, item: AttachItem, *, endpoint_id: str, sandbox_id: str, path: str) -> Placement:
        """Check one item of an attach.

        Args:
            item: What is asked for.
            endpoint_id: Id that the endpoint will have.
            sandbox_id: Id that its sandbox will have if it must be made.
            path: Path of the item in the request, for messages.

        Raises:
            NetweftError: The item cannot be; nothing of it was taken note of.
        """
        target = None
        if item.sandbox is not None:
            target = self.target(item.sandbox, sandbox_id=sandbox_id, path=f"{path}sandbox")
        placement = self.endpoint(item.endpoint, endpoint_id=endpoint_id, target=target, path=f"{path}endpoint")
        if target is not None and target.record is None:
            self._new_sandboxes[target.sandbox.host_id, target.sandbox.container_id] = target
        return placement

    def endpoint(self, spec: EndpointSpec, *, endpoint_id: str, target: Target | None, path: str) -> Placement:
        """Check an endpoint that joins a target, or none.

        Raises:
            NetweftError: It cannot be.
        """
        network = names.get_network(self._state, spec.network, f"{path}.network")
        name = spec.name or f"ep-{endpoint_id[:12]}"
        fields.name(name, f"{path}.name")
        fields.labels(spec.labels, f"{path}.labels")
        if spec.options:
            raise fields.invalid(
                f"{path}.options",
                f"driver {network.value.driver} takes no options of endpoints; leave them out",
                "OPTION_UNKNOWN",
            )
        endpoint = Endpoint(
            id=endpoint_id,
            name=name,
            network_id=network.value.id,
            mac_address=self._mac(spec, network, path),
            dns_names=dns_names(name, spec.dns_names, f"{path}.dns_names"),
            interface_name=_interface_name(spec, path),
            gateway_priority=gateway_priority(spec.gateway_priority, f"{path}.gateway_priority"),
            labels=dict(spec.labels),
            ports=published_ports(spec.ports, network.value, f"{path}.ports"),
            link_local=settings.link_local(spec.link_local, network.value, f"{path}.link_local_addresses"),
            routes=settings.routes(spec.routes, network.value, f"{path}.routes"),
            sysctls=settings.sysctls(spec.sysctls, network.value, f"{path}.sysctls"),
            bandwidth=settings.bandwidth(spec.bandwidth, network.value, f"{path}.bandwidth"),
        )
        self._check_network(network, path)
        self._check_name(endpoint, network)
        wants = _wants(spec, network.value, path)
        if target is not None:
            check_join(self._state, endpoint, network, target, path)
            self._check_interface(endpoint, target, path)
            endpoint = joining(endpoint, target.sandbox)
        else:
            endpoint = msgspec.structs.replace(endpoint, kept=True)
        self._names.add((endpoint.network_id, endpoint.name))
        self._macs.add((endpoint.network_id, endpoint.mac_address))
        return Placement(endpoint=endpoint, network=network, target=target, wants=wants)

    def target(self, ref: SandboxRef, *, sandbox_id: str, path: str) -> Target:
        """Find the sandbox, or describe the one to be made.

        Raises:
            NetweftError: There is none, or it cannot be made.
        """
        if isinstance(ref, str):
            return existing_target(self._state, names.get_sandbox(self._state, ref, path))
        return self._described(ref, sandbox_id, f"{path}.spec")

    def _described(self, spec: SandboxSpec, sandbox_id: str, path: str) -> Target:
        sandbox, host = check_sandbox(self._state, spec, sandbox_id, path)
        known = self._new_sandboxes.get((sandbox.host_id, sandbox.container_id))
        if known is not None:
            return known
        record = self._state.sandbox_by_container(sandbox.host_id, sandbox.container_id)
        if record is not None:
            return existing_target(self._state, record)
        return Target(sandbox=sandbox, record=None, host=host)

    def _check_network(self, network: Record[Network], path: str) -> None:
        if network.value.state is NetworkState.DELETING:
            raise errors.FailedPrecondition(
                "NETWORK_DELETING", f"{path}: network {network.value.name} is being deleted; use another",
                network=network.value.id,
            )  # fmt: skip

    def _check_name(self, endpoint: Endpoint, network: Record[Network]) -> None:
        holder = self._state.endpoint_by_name(endpoint.network_id, endpoint.name)
        if holder is not None and holder.value.id == endpoint.id:
            return
        if holder is not None or (endpoint.network_id, endpoint.name) in self._names:
            state = f", {holder.value.state}" if holder is not None else ""
            raise errors.AlreadyExists(
                "ENDPOINT_EXISTS",
                f"network {network.value.name} has an endpoint {endpoint.name} already"
                f" ({holder.value.id if holder else 'of the same batch'}{state}); choose another name",
                network=endpoint.network_id,
                name=endpoint.name,
            )

    def _check_interface(self, endpoint: Endpoint, target: Target, path: str) -> None:
        if not endpoint.interface_name:
            return
        key = (target.sandbox.id, endpoint.interface_name)
        taken = key in self._interfaces or any(
            other.value.interface_name == endpoint.interface_name and other.value.id != endpoint.id
            for other in self._state.endpoints_of_sandbox(target.sandbox.id)
        )
        if taken:
            raise errors.FailedPrecondition(
                "INTERFACE_NAME_IN_USE",
                f"{path}.interface_name: sandbox {target.sandbox.container_id} has an interface"
                f" {endpoint.interface_name} already; choose another, or none",
            )
        self._interfaces.add(key)

    def _mac(self, spec: EndpointSpec, network: Record[Network], path: str) -> str:
        if not network.value.needs_addresses:
            if spec.mac_address:
                raise fields.invalid(
                    f"{path}.mac_address", f"networks of driver {network.value.driver} make no link", "MAC_NOT_ALLOWED"
                )
            return ""
        if not spec.mac_address:
            return ""
        mac = fields.mac_address(spec.mac_address, f"{path}.mac_address")
        holder = self._state.mac_owner(network.value.id, mac)
        if holder is not None or (network.value.id, mac) in self._macs:
            raise errors.FailedPrecondition(
                "MAC_IN_USE",
                f"{path}.mac_address: {mac} belongs to another endpoint of network {network.value.name}"
                f" ({holder or 'in the same batch'}); choose another, or none",
            )
        return mac


def published_ports(ports: Sequence[PublishedPort], network: Network, path: str) -> tuple[PublishedPort, ...]:
    """Check published ports and return them in canonical form; what a host has assigned is not the caller's to say.

    Raises:
        InvalidArgument: One is malformed, two want the same port of the host, or there are too many.
        FailedPrecondition: The network is internal.
    """
    if not ports:
        return ()
    fields.count(ports, fields.PORTS_MAX, path)
    if network.internal:
        raise errors.FailedPrecondition(
            "INTERNAL_NETWORK",
            f"{path}: network {network.name} is internal, so nothing outside reaches it; publish the ports on another "
            "network of the sandbox",
            network=network.id,
        )
    found: list[PublishedPort] = []
    places: dict[tuple[object, ...], int] = {}
    for index, port in enumerate(ports):
        one = _published_port(port, path, index)
        found.append(one)
        # Thousands of them are published at once: nothing is written or compared that need not be.
        exact = one.host_port if one.host_port_end in (0, one.host_port) else 0
        wish = (one.protocol, one.host_address, exact) if exact else one.binding
        rival = places.setdefault(wish, index)
        if rival != index:
            raise fields.invalid(
                f"{path}[{index}]", f"it wants the same port of the host as {path}[{rival}]", "PORT_TWICE"
            )
    return tuple(found)


def _published_port(port: PublishedPort, path: str, index: int) -> PublishedPort:
    if (
        port.protocol in _PORT_PROTOCOLS
        and 0 < port.container_port <= fields.PORT_MAX
        and 0 <= port.host_port <= fields.PORT_MAX
        and not port.host_port_end
        and not port.host_address
        and not port.assigned_port
    ):
        return port  # as nearly all are
    path = f"{path}[{index}]"
    if port.protocol not in _PORT_PROTOCOLS:
        raise fields.invalid(f"{path}.protocol", "it is none of tcp, udp and sctp", "PROTOCOL_UNKNOWN")
    fields.port_number(port.container_port, f"{path}.container_port")
    fields.port_number(port.host_port, f"{path}.host_port", least=0)
    if port.host_port_end:
        fields.port_number(port.host_port_end, f"{path}.host_port_end", least=max(port.host_port, 1))
        if not port.host_port:
            raise fields.invalid(f"{path}.host_port", "a range needs its first port", "FIELD_MISSING")
    address = fields.binding_address(port.host_address, f"{path}.host_address") if port.host_address else ""
    return msgspec.structs.replace(port, host_address=address, assigned_port=0)


def check_sandbox(state: State, spec: SandboxSpec, sandbox_id: str, path: str) -> tuple[Sandbox, Record[Host]]:
    """Check a description of a sandbox.

    Raises:
        NetweftError: It cannot be.
    """
    host = _host(state, spec.host, f"{path}.host")
    if host.value.cordoned and state.sandbox_by_container(host.value.id, spec.container_id) is None:
        raise cordoned(host.value, path)
    fields.container_id(spec.container_id, f"{path}.container_id")
    fields.labels(spec.labels, f"{path}.labels")
    if spec.hostname:
        fields.host_name(spec.hostname, f"{path}.hostname")
    if spec.domainname:
        fields.host_name(spec.domainname, f"{path}.domainname")
    for field, value in (("hosts_path", spec.hosts_path), ("resolv_conf_path", spec.resolv_conf_path)):
        if value:
            fields.absolute_path(value, f"{path}.{field}")
    _check_namespace(spec.namespace, f"{path}.namespace")
    check_files(spec, path)
    sandbox = Sandbox(
        id=sandbox_id,
        container_id=spec.container_id,
        host_id=host.value.id,
        namespace=spec.namespace,
        hostname=spec.hostname,
        domainname=spec.domainname,
        dns=spec.dns,
        extra_hosts=spec.extra_hosts,
        hosts_path=spec.hosts_path,
        resolv_conf_path=spec.resolv_conf_path,
        labels=dict(spec.labels),
    )
    return sandbox, host


def existing_target(state: State, record: Record[Sandbox]) -> Target:
    """Return a recorded sandbox as a target.

    Raises:
        FailedPrecondition: It is being deleted, or its host is gone.
    """
    sandbox = record.value
    if sandbox.state is SandboxState.DELETING:
        raise errors.FailedPrecondition(
            "SANDBOX_DELETING",
            f"sandbox {sandbox.container_id} ({sandbox.id}) is being deleted; try again when it is gone",
            sandbox=sandbox.id,
        )
    host = state.hosts.get(sandbox.host_id)
    if host is None:
        raise errors.FailedPrecondition(
            "HOST_GONE",
            f"the host {sandbox.host_id} of sandbox {sandbox.container_id} is not registered; start its agent",
            host=sandbox.host_id,
        )
    return Target(sandbox=sandbox, record=record, host=host)


def check_join(state: State, endpoint: Endpoint, network: Record[Network], target: Target, path: str) -> None:
    """Check that an endpoint of a network may join a sandbox on its host.

    Raises:
        FailedPrecondition: The host is cordoned, does not offer the driver, has no tunnel address, or the network is
            another's.
    """
    del state, endpoint
    host, value = target.host.value, network.value
    if host.cordoned:
        raise cordoned(host, path)
    if value.host_id and value.host_id != host.id:
        raise errors.FailedPrecondition(
            "OTHER_HOST",
            f"{path}.network: {value.name} is bound to host {value.host_id}, and the sandbox is on {host.name}",
            network=value.id,
            host=host.id,
        )
    if all(driver.name != value.driver for driver in host.facts.drivers):
        known = ", ".join(sorted(driver.name for driver in host.facts.drivers)) or "none"
        raise errors.FailedPrecondition(
            "DRIVER_NOT_ON_HOST",
            f"{path}.network: host {host.name} does not offer driver {value.driver}; it offers {known}",
            host=host.id,
        )
    if value.scope is Scope.GLOBAL and not host.vtep_address:
        raise errors.FailedPrecondition(
            "NO_VTEP",
            f"{path}.network: host {host.name} has no tunnel address, so it takes part in no overlay; "
            "set its agent's VTEP address",
            host=host.id,
        )


def cordoned(host: Host, path: str) -> errors.FailedPrecondition:
    """Return the error of something new on a host that takes nothing new."""
    return errors.FailedPrecondition(
        "HOST_CORDONED",
        f"{path}: host {host.name} is cordoned and takes nothing new; choose another host, or uncordon it",
        host=host.id,
    )


def joining(endpoint: Endpoint, sandbox: Sandbox) -> Endpoint:
    """Return the endpoint on its way into a sandbox."""
    return msgspec.structs.replace(
        endpoint,
        sandbox_id=sandbox.id,
        host_id=sandbox.host_id,
        state=EndpointState.JOINING,
        deleting=False,
        status_message="",
    )


def create(
    state: State,
    placements: Sequence[Placement],
    leases: Mapping[str, tuple[Lease, ...]],
) -> tuple[commits.Builder, dict[str, Endpoint]]:
    """Return the commit that records endpoints with their leases, and the endpoints by id.

    Args:
        state: Intent as it is.
        placements: What may be made.
        leases: What each endpoint got, by endpoint id.
    """
    builder = commits.Builder()
    made: dict[str, Endpoint] = {}
    macs: set[tuple[str, str]] = {
        (p.endpoint.network_id, p.endpoint.mac_address) for p in placements if p.endpoint.mac_address
    }
    sandboxes: dict[str, Sandbox] = {}
    for placement in placements:
        endpoint = msgspec.structs.replace(placement.endpoint, leases=leases[placement.endpoint.id])
        if not endpoint.mac_address and placement.network.value.needs_addresses:
            mac = free_mac(state, endpoint, macs)
            macs.add((endpoint.network_id, mac))
            endpoint = msgspec.structs.replace(endpoint, mac_address=mac)
        made[endpoint.id] = endpoint
        builder.guard(placement.network)
        builder.create(endpoint)
        builder.take(name_claim(endpoint), endpoint.id)
        for lease in endpoint.leases:
            builder.free(tombs.of_lease(endpoint.id, lease))
        target = placement.target
        if target is not None and target.sandbox.id not in sandboxes:
            sandboxes[target.sandbox.id] = target.sandbox
            record_target(builder, target)
    return builder, made


def join(record: Record[Endpoint], network: Record[Network], target: Target, once: commits.Request) -> commits.Commit:
    """Return the commit that sends an endpoint that exists into a sandbox."""
    builder = commits.Builder()
    builder.guard(network)
    builder.update(record, msgspec.structs.replace(joining(record.value, target.sandbox), kept=True))
    record_target(builder, target)
    return builder.build(once)


def record_target(builder: commits.Builder, target: Target) -> None:
    """Add the sandbox of a target to a commit: as a guard when it is recorded, else as a new object."""
    if target.record is not None:
        builder.guard(target.record)
        return
    builder.guard(target.host)
    builder.create(target.sandbox)
    builder.take(container_claim(target.sandbox), target.sandbox.id)


def free_mac(state: State, endpoint: Endpoint, taken: set[tuple[str, str]]) -> str:
    """Return a locally administered MAC address made from the endpoint's id that its network does not have yet.

    02:42 is what Docker's tools show for containers; four bytes of the id follow, other four when those are taken.
    """
    for start in range(0, _MACS_TRIED * 4, 4):
        digits = endpoint.id[start : start + 8]
        mac = f"02:42:{digits[:2]}:{digits[2:4]}:{digits[4:6]}:{digits[6:]}"
        if (endpoint.network_id, mac) not in taken and state.mac_owner(endpoint.network_id, mac) in (None, endpoint.id):
            return mac
    raise errors.Exhausted("MACS_EXHAUSTED", f"no MAC address is free for endpoint {endpoint.id}; give one")


def name_claim(endpoint: Endpoint) -> str:
    """Return the claim of an endpoint's name."""
    return f"endpoint-name/{endpoint.network_id}/{endpoint.name}"


def container_claim(sandbox: Sandbox) -> str:
    """Return the claim of a sandbox's container id."""
    return f"container/{sandbox.host_id}/{sandbox.container_id}"


def gateways(network: Network, endpoint: Endpoint) -> tuple[str, ...]:
    """Return the gateway of each of an endpoint's addresses; none in an internal network.

    An auxiliary address of Docker's name for it is the endpoints' gateway instead of the network's own.
    """
    if network.internal:
        return ()
    by_pool = {
        subnet.pool_id: subnet.aux_addresses.get(
            "DefaultGatewayIPv6" if ":" in subnet.subnet else "DefaultGatewayIPv4", subnet.gateway
        )
        for subnet in network.subnets
    }
    return tuple(gateway for lease in endpoint.leases if (gateway := by_pool.get(lease.pool_id, "")))


def _host(state: State, word: str, path: str) -> Record[Host]:
    if word:
        return names.get_host(state, word, path)
    if not state.hosts:
        raise errors.FailedPrecondition("NO_HOSTS", "the cluster has no hosts yet; start an agent, then try again")
    if len(state.hosts) > 1:
        known = ", ".join(sorted(state.host_ids_by_name)[:10])
        raise fields.invalid(path, f"the cluster has several hosts; name one of {known}", "HOST_MISSING")
    return next(iter(state.hosts.values()))


def only_host(state: State, refs: Iterable[SandboxRef | None]) -> str:
    """Return the id of the host that all of these sandboxes are on; empty: several, none, or not known."""
    found: set[str] = set()
    try:
        for ref in refs:
            if isinstance(ref, str):
                found.add(names.get_sandbox(state, ref).value.host_id)
            elif ref is not None:
                found.add(_host(state, ref.host, "sandbox.host").value.id)
    except errors.NetweftError:
        return ""  # what is wrong with it is told when it is checked
    return found.pop() if len(found) == 1 else ""


def check_files(spec: SandboxSpec, path: str) -> None:
    """Check what goes into hosts and resolv.conf.

    Raises:
        InvalidArgument: A name, address or option is malformed, or there are too many.
    """
    fields.count(spec.extra_hosts, fields.EXTRA_HOSTS_MAX, f"{path}.extra_hosts")
    for index, extra in enumerate(spec.extra_hosts):
        fields.host_name(extra.name, f"{path}.extra_hosts[{index}].name")
        if extra.address != HOST_GATEWAY:
            fields.any_address(extra.address, f"{path}.extra_hosts[{index}].address")
    if spec.dns is not None:
        fields.count((*spec.dns.servers, *spec.dns.search, *spec.dns.options), 64, f"{path}.dns")
        for index, server in enumerate(spec.dns.servers):
            fields.any_address(server, f"{path}.dns.servers[{index}]")
        for index, domain in enumerate(spec.dns.search):
            if domain != ".":
                fields.host_name(domain, f"{path}.dns.search[{index}]")
        for index, option in enumerate(spec.dns.options):
            fields.resolver_option(option, f"{path}.dns.options[{index}]")


def _check_namespace(namespace: Namespace, path: str) -> None:
    if namespace.source is NamespaceSource.PATH:
        fields.absolute_path(namespace.path, f"{path}.path")
    if namespace.source is NamespaceSource.PID and not 1 <= namespace.pid <= _PID_MAX:
        raise fields.invalid(f"{path}.pid", f"{namespace.pid} is not a process id", "PID_MALFORMED")


def dns_names(name: str, further: Sequence[str], path: str) -> tuple[str, ...]:
    """Check an endpoint's names and return all of them, its own first.

    Raises:
        InvalidArgument: One is no host name, or there are too many.
    """
    fields.count(further, fields.DNS_NAMES_MAX, path)
    for index, dns_name in enumerate(further):
        fields.host_name(dns_name, f"{path}[{index}]")
    return tuple(dict.fromkeys((name, *further)))


def gateway_priority(value: int, path: str) -> int:
    """Check a priority in the choice of a sandbox's gateway.

    Raises:
        InvalidArgument: It does not fit 32 bits.
    """
    if not -_PRIORITY_LIMIT <= value < _PRIORITY_LIMIT:
        raise fields.invalid(path, "it does not fit 32 bits")
    return value


def _interface_name(spec: EndpointSpec, path: str) -> str:
    return fields.interface_name(spec.interface_name, f"{path}.interface_name") if spec.interface_name else ""


def _wants(spec: EndpointSpec, network: Network, path: str) -> tuple[Want, ...]:
    if not network.subnets:
        if spec.addresses:
            raise fields.invalid(f"{path}.addresses", f"network {network.name} has no addresses", "ADDRESS_NOT_ALLOWED")
        return ()
    asked: dict[int, str] = {}
    pools: dict[int, list[str]] = {}
    for subnet in network.subnets:
        pools.setdefault(6 if ":" in subnet.subnet else 4, []).append(subnet.pool_id)
    wants: dict[int, Want] = {family: Want(address="", pools=tuple(ids)) for family, ids in sorted(pools.items())}
    fields.count(spec.addresses, 2, f"{path}.addresses")
    for index, text in enumerate(spec.addresses):
        field = f"{path}.addresses[{index}]"
        address = fields.address(text, field)
        if address.version in asked:
            raise fields.invalid(field, f"an endpoint has one IPv{address.version} address", "ADDRESS_TWICE")
        asked[address.version] = str(address)
        inside = [s for s in network.subnets if address in ipaddress.ip_network(s.subnet)]
        if not inside:
            known = ", ".join(subnet.subnet for subnet in network.subnets)
            raise fields.invalid(
                field, f"{address} is in no subnet of network {network.name} ({known})", "ADDRESS_OUTSIDE_SUBNET"
            )
        fields.host_address_in(text, ipaddress.ip_network(inside[0].subnet), field)
        wants[address.version] = Want(address=str(address), pools=(inside[0].pool_id,))
    return tuple(wants.values())
