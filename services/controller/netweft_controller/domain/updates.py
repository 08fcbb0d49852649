"""Rules for changes of endpoints and sandboxes that exist: which fields may change, and to what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
from netweft_common import errors

from netweft_controller.domain import commits, endpoints, fields, settings
from netweft_controller.domain.objects import Endpoint, EndpointState, Network, Record, Sandbox, SandboxState
from netweft_controller.domain.specs import EndpointSpec, SandboxSpec
from netweft_controller.domain.state import State

_EndpointRule = Callable[[Endpoint, EndpointSpec, Network, str], Endpoint]
_SandboxRule = Callable[[Sandbox, SandboxSpec], Sandbox]


def endpoint(state: State, record: Record[Endpoint], spec: EndpointSpec, mask: Sequence[str]) -> Endpoint:
    """Return an endpoint with new values in the fields of the mask.

    Raises:
        InvalidArgument: The mask names a field that cannot change, or none, or a new value is wrong.
        FailedPrecondition: A new value contradicts the network.
        Conflict: The endpoint is on its way out of its sandbox.
    """
    _check_mask(mask, ENDPOINT_FIELDS)
    value = record.value
    # One that joins may have been acknowledged: its host's confirmation is recorded a moment later.
    if value.state is EndpointState.LEAVING:
        raise errors.Conflict(
            "ENDPOINT_BUSY", f"endpoint {value.name} is {value.state}; ask again when that is over", endpoint=value.id
        )
    network = state.networks[value.network_id].value
    for name in dict.fromkeys(mask):
        value = ENDPOINT_FIELDS[name](value, spec, network, f"spec.{name}")
    return value


def sandbox(state: State, record: Record[Sandbox], spec: SandboxSpec, mask: Sequence[str]) -> Sandbox:
    """Return a sandbox with new values in the fields of the mask.

    Raises:
        InvalidArgument: The mask names a field that cannot change, or none, or a new value is wrong.
        FailedPrecondition: It is being deleted.
        AlreadyExists: Its host has another sandbox of the new container id.
    """
    _check_mask(mask, SANDBOX_FIELDS)
    value = record.value
    if value.state is SandboxState.DELETING:
        raise errors.FailedPrecondition(
            "SANDBOX_DELETING", f"sandbox {value.container_id} ({value.id}) is being deleted", sandbox=value.id
        )
    for name in dict.fromkeys(mask):
        value = SANDBOX_FIELDS[name](value, spec)
    holder = state.sandbox_by_container(value.host_id, value.container_id)
    if holder is not None and holder.value.id != value.id:
        raise errors.AlreadyExists(
            "SANDBOX_EXISTS",
            f"the host has a sandbox of container {value.container_id} already ({holder.value.id}); choose another",
            sandbox=holder.value.id,
        )
    return value


def record_endpoint(record: Record[Endpoint], value: Endpoint, once: commits.Request | None = None) -> commits.Commit:
    """Return the commit that records a changed endpoint."""
    builder = commits.Builder()
    if value != record.value:
        builder.update(record, value)
    else:
        builder.guard(record)
    return builder.build(once)


def record_sandbox(record: Record[Sandbox], value: Sandbox, once: commits.Request | None = None) -> commits.Commit:
    """Return the commit that records a changed sandbox, and its name where that is another one."""
    builder = commits.Builder()
    if value != record.value:
        builder.update(record, value)
    else:
        builder.guard(record)
    if value.container_id != record.value.container_id:
        builder.drop(endpoints.container_claim(record.value), value.id)
        builder.take(endpoints.container_claim(value), value.id)
    return builder.build(once)


def _ports(value: Endpoint, spec: EndpointSpec, network: Network, path: str) -> Endpoint:
    wanted = endpoints.published_ports(spec.ports, network, path)
    # A binding that stays keeps its port until the host says another one.
    before = {one.binding: one for one in value.ports}
    return msgspec.structs.replace(value, ports=tuple(before.get(one.binding, one) for one in wanted))


def _bandwidth(value: Endpoint, spec: EndpointSpec, network: Network, path: str) -> Endpoint:
    return msgspec.structs.replace(value, bandwidth=settings.bandwidth(spec.bandwidth, network, path))


def _dns_names(value: Endpoint, spec: EndpointSpec, network: Network, path: str) -> Endpoint:
    del network
    return msgspec.structs.replace(value, dns_names=endpoints.dns_names(value.name, spec.dns_names, path))


def _gateway_priority(value: Endpoint, spec: EndpointSpec, network: Network, path: str) -> Endpoint:
    del network
    return msgspec.structs.replace(value, gateway_priority=endpoints.gateway_priority(spec.gateway_priority, path))


def _labels(value: Endpoint, spec: EndpointSpec, network: Network, path: str) -> Endpoint:
    del network
    return msgspec.structs.replace(value, labels=fields.labels(spec.labels, path))


def _routes(value: Endpoint, spec: EndpointSpec, network: Network, path: str) -> Endpoint:
    return msgspec.structs.replace(value, routes=settings.routes(spec.routes, network, path))


def _sysctls(value: Endpoint, spec: EndpointSpec, network: Network, path: str) -> Endpoint:
    return msgspec.structs.replace(value, sysctls=settings.sysctls(spec.sysctls, network, path))


def _container_id(value: Sandbox, spec: SandboxSpec) -> Sandbox:
    return msgspec.structs.replace(value, container_id=fields.container_id(spec.container_id, "spec.container_id"))


def _hostname(value: Sandbox, spec: SandboxSpec) -> Sandbox:
    return msgspec.structs.replace(value, hostname=spec.hostname and fields.host_name(spec.hostname, "spec.hostname"))


def _domainname(value: Sandbox, spec: SandboxSpec) -> Sandbox:
    name = spec.domainname and fields.host_name(spec.domainname, "spec.domainname")
    return msgspec.structs.replace(value, domainname=name)


def _dns(value: Sandbox, spec: SandboxSpec) -> Sandbox:
    endpoints.check_files(spec, "spec")
    return msgspec.structs.replace(value, dns=spec.dns)


def _extra_hosts(value: Sandbox, spec: SandboxSpec) -> Sandbox:
    endpoints.check_files(spec, "spec")
    return msgspec.structs.replace(value, extra_hosts=spec.extra_hosts)


def _sandbox_labels(value: Sandbox, spec: SandboxSpec) -> Sandbox:
    return msgspec.structs.replace(value, labels=fields.labels(spec.labels, "spec.labels"))


ENDPOINT_FIELDS: Mapping[str, _EndpointRule] = {
    "ports": _ports,
    "bandwidth": _bandwidth,
    "dns_names": _dns_names,
    "gateway_priority": _gateway_priority,
    "labels": _labels,
    "routes": _routes,
    "sysctls": _sysctls,
}
"""Fields of an endpoint that may change, by their names in the message EndpointSpec."""

SANDBOX_FIELDS: Mapping[str, _SandboxRule] = {
    "container_id": _container_id,
    "hostname": _hostname,
    "domainname": _domainname,
    "dns": _dns,
    "extra_hosts": _extra_hosts,
    "labels": _sandbox_labels,
}
"""Fields of a sandbox that may change, by their names in the message SandboxSpec."""


def _check_mask(mask: Sequence[str], known: Mapping[str, object]) -> None:
    unknown = [one for one in mask if one not in known]
    if unknown or not mask:
        said = f"{unknown[0][:64]!r} cannot be changed" if unknown else "it names no field"
        raise fields.invalid("update_mask", f"{said}; what can be is: {', '.join(known)}", "MASK_MALFORMED")
