"""Rules for networks: what a request becomes, which pools and addresses it needs, when it may go."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

import msgspec
from netweft_common import errors

from netweft_controller.domain import bridge, commits, fields, names, options, overlay, tombs
from netweft_controller.domain.objects import (
    ClaimInfo,
    DriverInfo,
    Host,
    Network,
    NetworkState,
    Record,
    Scope,
    Subnet,
)
from netweft_controller.domain.specs import NetworkSpec
from netweft_controller.domain.state import State

DEFAULT_DRIVER = "bridge"
IPAM_DEFAULT = "default"
IPAM_NULL = "null"
LOCAL_SPACE = "LocalDefault"
GLOBAL_SPACE = "GlobalDefault"
POOL_LABEL = "netweft.network_id"
_SHOWN_ENDPOINTS = 10
_SPACE = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_REFUSED_PREFIXES = tuple(
    (ipaddress.ip_network(text), why)
    for text, why in (
        ("127.0.0.0/8", "loopback"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
        ("::1/128", "loopback"),
        ("ff00::/8", "multicast"),
        ("fe80::/10", "link-local"),
    )
)


class PoolWant(msgspec.Struct, frozen=True, kw_only=True):
    """A pool to be requested of IPAM, for one subnet of the network."""

    address_space: str
    subnet: str
    ip_range: str
    ipv6: bool
    exclude: tuple[str, ...]


class AddressWant(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway or auxiliary address to be leased; an empty name is the gateway, an empty address is any."""

    subnet_index: int
    name: str
    address: str


class NetworkPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A checked request.

    Attributes:
        network: The network; subnets without pool ids, no claims.
        pools: One for each of its subnets, in their order.
    """

    network: Network
    driver: DriverInfo
    pools: tuple[PoolWant, ...]


def plan(state: State, spec: NetworkSpec, network_id: str) -> NetworkPlan:
    """Check a request and say what it needs.

    Raises:
        InvalidArgument: A field is wrong; names it.
        NotFound: No such host.
        AlreadyExists: The name is in use.
        FailedPrecondition: No host offers a driver, or the driver allows one network only.
    """
    fields.name(spec.name, "name")
    fields.labels(spec.labels)
    host = names.get_host(state, spec.host) if spec.host else None
    driver = _driver(state, spec.driver or DEFAULT_DRIVER, host)
    driver_options = options.check(spec.options, driver)
    if host is not None and driver.scope is Scope.GLOBAL:
        raise fields.invalid("host", f"driver {driver.name} spans all hosts; leave the host out", "HOST_NOT_ALLOWED")
    check_free(state, spec.name, driver)
    ipam_driver = _ipam_driver(spec, driver)
    space = _address_space(spec, driver, host)
    network = Network(
        id=network_id,
        name=spec.name,
        driver=driver.name,
        scope=driver.scope,
        host_id=host.value.id if host else "",
        options=driver_options,
        labels=dict(spec.labels),
        internal=spec.internal,
        enable_ipv4=spec.enable_ipv4,
        enable_ipv6=spec.enable_ipv6,
        ipam_driver=ipam_driver,
        address_space=space if ipam_driver == IPAM_DEFAULT else "",
        attachable=spec.attachable,
        needs_addresses=driver.needs_addresses,
    )
    bridge.check(state, network)
    overlay.check(network, GLOBAL_SPACE)
    _claims(state, driver, network)
    if ipam_driver == IPAM_NULL:
        return NetworkPlan(network=network, driver=driver, pools=())
    subnets = _subnets(spec, driver)
    exclude = _exclude(state, host) if driver.scope is Scope.LOCAL else ()
    pools = tuple(
        PoolWant(
            address_space=space,
            subnet=subnet.subnet,
            ip_range=subnet.ip_range,
            ipv6=":" in subnet.subnet,
            exclude=exclude,
        )
        for subnet in subnets
    )
    return NetworkPlan(network=msgspec.structs.replace(network, subnets=subnets), driver=driver, pools=pools)


def addresses(network: Network) -> tuple[AddressWant, ...]:
    """Return the gateway and auxiliary addresses to lease; those that are named come first, so that none is given
    away to an automatic one.
    """  # noqa: D205  # one sentence
    wants = [
        AddressWant(subnet_index=index, name=name, address=address)
        for index, subnet in enumerate(network.subnets)
        for name, address in (("", subnet.gateway), *sorted(subnet.aux_addresses.items()))
        if name or address or not bridge.skips_gateway(network, 6 if ":" in subnet.subnet else 4)
    ]
    return tuple(sorted(wants, key=lambda want: not want.address))


def check_against_pool(network: Network, pools: Sequence[tuple[str, str]]) -> Network:
    """Return the network with what IPAM answered: (subnet, pool id) for each subnet."""
    subnets = tuple(
        msgspec.structs.replace(subnet, subnet=prefix, pool_id=pool_id)
        for subnet, (prefix, pool_id) in zip(network.subnets, pools, strict=True)
    )
    return msgspec.structs.replace(network, subnets=subnets)


def create(
    state: State, made: NetworkPlan, network: Network, once: commits.Request, *, tomb: str = ""
) -> commits.Commit:
    """Return the commit that records a network whose pools and addresses are leased.

    Args:
        state: Intent as it is.
        made: What was planned.
        network: It, with what was reserved.
        once: The request.
        tomb: Tomb of pools of an earlier try, which was there before anything of this one was reserved; empty: none.

    Raises:
        AlreadyExists: The name was taken meanwhile.
        FailedPrecondition: A chosen number was taken meanwhile.
    """
    check_free(state, network.name, made.driver)
    claims = _claims(state, made.driver, network)
    builder = commits.Builder()
    builder.create(msgspec.structs.replace(network, claims=claims))
    if network.host_id:
        builder.guard(_still(state, network.host_id))
    builder.take(name_claim(network.name), network.id)
    for claim in claim_names(network, claims, single=made.driver.single_network):
        builder.take(claim, network.id)
    if tomb:
        builder.take(tombs.of(network.id), tomb)
    else:
        builder.free(tombs.of(network.id))
    return builder.build(once)


def mark_deleting(state: State, record: Record[Network], once: commits.Request | None) -> commits.Commit | None:
    """Return the commit that accepts a deletion; None when it was accepted before.

    Raises:
        FailedPrecondition: The network has endpoints, or hosts have bound it; names them.
    """
    refuse_endpoints(state, record)
    _refuse_bound(state, record)
    if record.value.state is NetworkState.DELETING:
        return None
    builder = commits.Builder()
    builder.update(record, msgspec.structs.replace(record.value, state=NetworkState.DELETING))
    return builder.build(once)


def restore(record: Record[Network], once: commits.Request | None) -> commits.Commit:
    """Return the commit that takes a deletion back."""
    builder = commits.Builder()
    builder.update(record, msgspec.structs.replace(record.value, state=NetworkState.READY))
    if once is not None:
        builder.forget(once.id)
    return builder.build()


def delete(record: Record[Network]) -> commits.Commit:
    """Return the commit that removes a network whose pools are released."""
    network = record.value
    builder = commits.Builder()
    builder.delete(record)
    builder.drop(name_claim(network.name), network.id)
    for claim in claim_names(network, network.claims, single=True):
        builder.drop(claim, network.id)
    return builder.build()


def refuse_endpoints(state: State, record: Record[Network]) -> None:
    """Refuse a network that has endpoints.

    Raises:
        FailedPrecondition: Names some of them.
    """
    names_ = sorted(endpoint.value.name for endpoint in state.endpoints_of_network(record.value.id))
    if names_:
        shown = ", ".join(names_[:_SHOWN_ENDPOINTS]) + (
            f" and {len(names_) - _SHOWN_ENDPOINTS} more" if len(names_) > _SHOWN_ENDPOINTS else ""
        )
        raise errors.FailedPrecondition(
            "NETWORK_HAS_ENDPOINTS",
            f"network {record.value.name} has {len(names_)} endpoints ({shown}); detach them, then delete it",
            network=record.value.id,
            endpoints=shown,
        )


def _refuse_bound(state: State, record: Record[Network]) -> None:
    hosts = sorted(
        host.value.name for host in state.hosts.values() if record.value.id in host.value.facts.bound_networks
    )
    if hosts:
        shown = ", ".join(hosts[:_SHOWN_ENDPOINTS]) + (
            f" and {len(hosts) - _SHOWN_ENDPOINTS} more" if len(hosts) > _SHOWN_ENDPOINTS else ""
        )
        raise errors.FailedPrecondition(
            "NETWORK_BOUND",
            f"network {record.value.name} is one of Docker's on {shown}; remove it there (docker network rm), then "
            "delete it",
            network=record.value.id,
            hosts=shown,
        )


def name_claim(name: str) -> str:
    """Return the claim of a network's name."""
    return f"network-name/{name}"


def check_free(state: State, name: str, driver: DriverInfo) -> None:
    """Refuse a name in use, and a second network of a driver that allows one.

    Raises:
        AlreadyExists: The name is in use.
        FailedPrecondition: The driver's only network exists.
    """
    holder = state.network_ids_by_name.get(name)
    if holder is not None:
        raise errors.AlreadyExists(
            "NETWORK_EXISTS", f"there is a network {name} already ({holder}); choose another name",
            name=name, network=holder,
        )  # fmt: skip
    if driver.single_network:
        for record in state.networks.values():
            if record.value.driver == driver.name:
                raise errors.FailedPrecondition(
                    "SINGLE_NETWORK",
                    f"driver {driver.name} has one network only, and that is {record.value.name}; use it",
                    network=record.value.id,
                )


def _driver(state: State, name: str, host: Record[Host] | None) -> DriverInfo:
    if not state.hosts:
        raise errors.FailedPrecondition(
            "NO_HOSTS", "the cluster has no hosts yet, so no driver is known; start an agent, then try again"
        )
    host_id = host.value.id if host else ""
    driver = state.driver(name, host_id)
    if driver is None:
        known = state.drivers(host_id)
        where = f"host {host.value.name}" if host else "any host"
        raise fields.invalid(
            "driver", f"{name[:64]!r} is not a driver of {where}; known are {', '.join(sorted(known)) or 'none'}",
            "DRIVER_UNKNOWN",
        )  # fmt: skip
    return driver


def _ipam_driver(spec: NetworkSpec, driver: DriverInfo) -> str:
    if spec.ipam_driver not in ("", IPAM_DEFAULT, IPAM_NULL):
        raise fields.invalid(
            "ipam_driver", f"{spec.ipam_driver[:64]!r} is not an IPAM driver; known are default, null", "IPAM_UNKNOWN"
        )
    if not driver.needs_addresses:
        if spec.subnets:
            raise fields.invalid("subnets", f"networks of driver {driver.name} have no addresses", "SUBNET_NOT_ALLOWED")
        return IPAM_NULL
    if spec.ipam_driver == IPAM_NULL:
        raise fields.invalid(
            "ipam_driver", f"driver {driver.name} needs addresses, which null does not give", "IPAM_NOT_ALLOWED"
        )
    if not (spec.enable_ipv4 or spec.enable_ipv6):
        raise fields.invalid("disable_ipv4", "a network needs IPv4, IPv6 or both", "NO_FAMILY")
    return IPAM_DEFAULT


def _address_space(spec: NetworkSpec, driver: DriverInfo, host: Record[Host] | None) -> str:
    if spec.address_space:
        if not _SPACE.fullmatch(spec.address_space):
            raise fields.invalid("address_space", "it is not 1 to 128 of [A-Za-z0-9_.:-]", "ADDRESS_SPACE_MALFORMED")
        return spec.address_space
    if driver.scope is Scope.GLOBAL:
        return GLOBAL_SPACE
    return f"{LOCAL_SPACE}:{host.value.id}" if host else LOCAL_SPACE


def _subnets(spec: NetworkSpec, driver: DriverInfo) -> tuple[Subnet, ...]:
    del driver
    fields.count(spec.subnets, fields.SUBNETS_MAX, "subnets")
    checked: list[Subnet] = []
    prefixes: list[fields.IpNetwork] = []
    for index, subnet in enumerate(spec.subnets):
        path = f"subnets[{index}]"
        one, prefix = _subnet(subnet, spec, path)
        for other in prefixes:
            # 0.0.0.0/N means "any of that size", which overlaps nothing.
            if prefix is not None and prefix.version == other.version and prefix.overlaps(other):
                raise fields.invalid(
                    f"{path}.subnet", f"{prefix} overlaps {other} of the same request", "SUBNET_OVERLAP"
                )
        if prefix is not None:
            prefixes.append(prefix)
        checked.append(one)
    # One automatic subnet for each enabled family that has none.
    if spec.enable_ipv4 and all(":" in subnet.subnet for subnet in checked):
        checked.append(Subnet(subnet="0.0.0.0/0"))
    if spec.enable_ipv6 and all(":" not in subnet.subnet for subnet in checked):
        checked.append(Subnet(subnet="::/0"))
    return tuple(checked)


def _subnet(subnet: Subnet, spec: NetworkSpec, path: str) -> tuple[Subnet, fields.IpNetwork | None]:
    """Return the subnet in canonical form, and its prefix unless IPAM is to choose."""
    details = {"gateway": subnet.gateway, "ip_range": subnet.ip_range, "aux_addresses": subnet.aux_addresses}
    prefix = fields.network_prefix(subnet.subnet, f"{path}.subnet") if subnet.subnet else None
    if prefix is None or prefix.network_address.is_unspecified:
        for field, value in details.items():
            if value:
                raise fields.invalid(f"{path}.{field}", "it needs a subnet that says where it lies", "SUBNET_MISSING")
        if prefix is None:
            return Subnet(subnet="0.0.0.0/0" if spec.enable_ipv4 else "::/0"), None
    _check_family(prefix, spec, path)
    if prefix.network_address.is_unspecified:
        return Subnet(subnet=str(prefix)), None
    for refused, why in _REFUSED_PREFIXES:
        if prefix.version == refused.version and prefix.overlaps(refused):
            raise fields.invalid(f"{path}.subnet", f"{prefix} holds {why} addresses ({refused})", "SUBNET_UNUSABLE")
    ip_range = fields.network_prefix(subnet.ip_range, f"{path}.ip_range") if subnet.ip_range else None
    if ip_range is not None and not (ip_range.version == prefix.version and ip_range.subnet_of(prefix)):  # type: ignore[arg-type]  # one version by the first half
        raise fields.invalid(f"{path}.ip_range", f"{ip_range} is not inside {prefix}", "RANGE_OUTSIDE_SUBNET")
    gateway = str(fields.host_address_in(subnet.gateway, prefix, f"{path}.gateway")) if subnet.gateway else ""
    aux = _aux_addresses(subnet, prefix, gateway, path)
    return Subnet(subnet=str(prefix), gateway=gateway, ip_range=str(ip_range or ""), aux_addresses=aux), prefix


def _aux_addresses(subnet: Subnet, prefix: fields.IpNetwork, gateway: str, path: str) -> dict[str, str]:
    fields.count(subnet.aux_addresses, fields.AUX_ADDRESSES_MAX, f"{path}.aux_addresses")
    used = {gateway: "the gateway"} if gateway else {}
    aux: dict[str, str] = {}
    for name, text in sorted(subnet.aux_addresses.items()):  # a protobuf map has no order of its own
        field = f"{path}.aux_addresses[{name[:64]!r}]"
        fields.name(name, field)
        address = str(fields.host_address_in(text, prefix, field))
        if address in used:
            raise fields.invalid(field, f"{address} is {used[address]} already", "ADDRESS_TWICE")
        used[address] = f"auxiliary address {name}"
        aux[name] = address
    return aux


def _check_family(prefix: fields.IpNetwork, spec: NetworkSpec, path: str) -> None:
    if prefix.version == 6 and not spec.enable_ipv6:
        raise fields.invalid(f"{path}.subnet", f"{prefix} is IPv6, which is off; set enable_ipv6", "FAMILY_DISABLED")
    if prefix.version == 4 and not spec.enable_ipv4:
        raise fields.invalid(f"{path}.subnet", f"{prefix} is IPv4, which is off", "FAMILY_DISABLED")


def _exclude(state: State, host: Record[Host] | None) -> tuple[str, ...]:
    hosts = [host] if host else state.hosts.values()
    found: set[str] = set()
    for record in hosts:
        found.update(record.value.facts.routes)
        for server in record.value.facts.name_servers:
            try:
                address = ipaddress.ip_address(server)
            except ValueError:
                continue
            found.add(f"{address}/{address.max_prefixlen}")
    return tuple(sorted(found))


def _claims(state: State, driver: DriverInfo, network: Network) -> dict[str, int]:
    return {claim.name: _number(state, claim, network) for claim in driver.claims}


def _number(state: State, claim: ClaimInfo, network: Network) -> int:
    """Return the user's number, or the first free one from a place that the network's id gives.

    Starting at a place of its own, a network does not get the number of one that was just deleted, of which some host
    may still hold entries, and two controllers that create at the same time do not choose the same number.
    """
    chosen = network.options.get(claim.option, "") if claim.option else ""
    if chosen:
        number = int(chosen)
        if not claim.minimum <= number <= claim.maximum:
            raise fields.invalid(
                f"options[{claim.option!r}]",
                f"{claim.name} {number} is not between {claim.minimum} and {claim.maximum}",
                "OPTION_OUT_OF_RANGE",
            )
        holder = state.number_owner(claim.name, number)
        if holder is not None and holder != network.id:
            raise errors.FailedPrecondition(
                "NUMBER_IN_USE",
                f"{claim.name} {number} belongs to network {state.networks[holder].value.name}; choose another",
                network=holder,
            )
        return number
    span = claim.maximum - claim.minimum + 1
    start = int(network.id[:8], 16) % span
    for step in range(span):
        number = claim.minimum + (start + step) % span
        if state.number_owner(claim.name, number) is None:
            return number
    raise errors.Exhausted(
        "NUMBERS_EXHAUSTED", f"all {span} numbers {claim.name} of driver {network.driver} are in use; delete a network"
    )


def claim_names(network: Network, claims: dict[str, int], *, single: bool) -> list[str]:
    """Return what a network claims besides its name.

    Args:
        network: The network.
        claims: Its cluster-wide numbers.
        single: Whether its driver allows one network only.
    """
    found = [f"number/{claim}/{number}" for claim, number in claims.items()]
    if single:
        found.append(f"driver/{network.driver}")
    return found


def _still(state: State, host_id: str) -> Record[Host]:
    record = state.hosts.get(host_id)
    if record is None:
        raise errors.NotFound("HOST_NOT_FOUND", f"host {host_id} was deleted meanwhile", host=host_id)
    return record
