"""What an attach would record, without asking or changing anything: for plans."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence

import msgspec

from netweft_controller.domain import endpoints
from netweft_controller.domain.changes import Change, HostKind
from netweft_controller.domain.objects import Endpoint, Lease, Network, Record, Subnet
from netweft_controller.domain.specs import AttachItem
from netweft_controller.domain.state import State

# Addresses that are looked at before giving up: a plan is for people, and need not find a hole in a full /8.
_SEARCH_LIMIT = 1 << 17


def attach(state: State, items: Sequence[AttachItem]) -> dict[str, list[Change]]:
    """Return what each host would be told, by host id.

    Addresses that IPAM would choose are shown as the lowest that no known endpoint uses.

    Raises:
        NetweftError: Of the first item that cannot be.
    """
    placer = endpoints.Placer(state)
    revision = state.revision + 1
    taken: dict[str, set[str]] = {}
    told: dict[str, dict[tuple[HostKind, str], Change]] = {}
    macs: set[tuple[str, str]] = set()
    for index, item in enumerate(items):
        placement = placer.place(
            item, endpoint_id=_id("endpoint", index), sandbox_id=_id("sandbox", index), path=f"items[{index}]."
        )
        endpoint = _with_addresses(state, placement, taken, macs)
        target = placement.target
        assert target is not None, "items of an attach have a sandbox"
        changes = told.setdefault(target.host.value.id, {})
        sandbox = target.record or Record(target.sandbox, revision, 0)
        for change in (
            Change(revision, HostKind.NETWORK, placement.network.value.id, placement.network),
            Change(sandbox.revision, HostKind.SANDBOX, sandbox.value.id, sandbox),
            Change(revision, HostKind.ENDPOINT, endpoint.id, Record(endpoint, revision, 0)),
        ):
            changes.setdefault((change.kind, change.id), change)
    order = list(HostKind)
    return {
        host_id: sorted(changes.values(), key=lambda change: order.index(change.kind))
        for host_id, changes in told.items()
    }


def _with_addresses(
    state: State, placement: endpoints.Placement, taken: dict[str, set[str]], macs: set[tuple[str, str]]
) -> Endpoint:
    endpoint, network = placement.endpoint, placement.network.value
    used = taken.get(network.id)
    if used is None:
        used = taken[network.id] = _used(state, network)
    leases: list[Lease] = []
    for want in placement.wants:
        lease = _lease(network, want, used)
        if lease is not None:
            used.add(lease.ip)
            leases.append(lease)
    endpoint = msgspec.structs.replace(endpoint, leases=tuple(leases))
    if not endpoint.mac_address and network.needs_addresses:
        endpoint = msgspec.structs.replace(endpoint, mac_address=endpoints.free_mac(state, endpoint, macs))
    macs.add((network.id, endpoint.mac_address))
    return endpoint


def _used(state: State, network: Network) -> set[str]:
    used = {lease.ip for record in state.endpoints_of_network(network.id) for lease in record.value.leases}
    for subnet in network.subnets:
        used.update((subnet.gateway, *subnet.aux_addresses.values()))
    return used


def _lease(network: Network, want: endpoints.Want, used: set[str]) -> Lease | None:
    by_pool = {subnet.pool_id: subnet for subnet in network.subnets}
    for pool_id in want.pools:
        subnet = by_pool[pool_id]
        prefix_length = subnet.subnet.partition("/")[2]
        ip = want.address or _lowest(subnet, used)
        if ip:
            return Lease(address=f"{ip}/{prefix_length}", pool_id=pool_id, epoch=0)
    return None


def _lowest(subnet: Subnet, used: set[str]) -> str:
    whole = ipaddress.ip_network(subnet.subnet)
    candidates = ipaddress.ip_network(subnet.ip_range) if subnet.ip_range else whole
    small = whole.prefixlen >= whole.max_prefixlen - 1
    for tried, address in enumerate(candidates):
        if tried == _SEARCH_LIMIT:
            break
        if not small and (
            address == whole.network_address or (whole.version == 4 and address == whole.broadcast_address)
        ):
            continue
        if str(address) not in used:
            return str(address)
    return ""


def _id(kind: str, index: int) -> str:
    return hashlib.sha256(f"plan {kind} {index}".encode()).hexdigest()[:32]
