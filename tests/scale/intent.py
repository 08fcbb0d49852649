"""What each host is to have, read from what the controller's API lists alone, and what differs from it."""

from __future__ import annotations

import collections
from collections.abc import Iterator

from netweft_agent.domain.objects import Endpoint, Kind, Peer, Ref
from netweft_agent.domain.resources import Fdb, File, Link, Neighbour, Sysctl
from netweft_client import AsyncClient, model

from tests.scale.hosts import SimulatedHost


class Intent:
    """All records of a cluster at rest.

    Args:
        networks: All of them; overlays.
        endpoints: All of them.
        sandboxes: All of them.
        vteps: Tunnel addresses, by host id.
    """

    def __init__(self, networks, endpoints, sandboxes, vteps: dict[str, str]) -> None:
        self.networks: dict[str, model.Network] = {one.id: one for one in networks}
        self.endpoints: dict[str, model.Endpoint] = {one.id: one for one in endpoints}
        self._sandboxes: list[model.Sandbox] = list(sandboxes)
        self._vteps = vteps
        self._of_network = collections.defaultdict(list)
        self._of_host = collections.defaultdict(list)
        for one in self.endpoints.values():
            self._of_network[one.network_id].append(one)
            self._of_host[one.host_id].append(one)

    def own(self, host_id: str) -> list[model.Endpoint]:
        """Return the endpoints on a host."""
        return self._of_host[host_id]

    def peers(self, host_id: str) -> list[model.Endpoint]:
        """Return the endpoints elsewhere of the networks that are on a host."""
        here = {one.network_id for one in self.own(host_id)}
        return [one for network_id in here for one in self._of_network[network_id] if one.host_id != host_id]

    def refs(self, host_id: str) -> set[Ref]:
        """Return the objects that a host is to hold."""
        found = {Ref(kind=Kind.SANDBOX, id=one.id) for one in self._sandboxes if one.host_id == host_id}
        for one in self.own(host_id):
            found |= {Ref(kind=Kind.ENDPOINT, id=one.id), Ref(kind=Kind.NETWORK, id=one.network_id)}
        return found | {Ref(kind=Kind.PEER, id=one.id) for one in self.peers(host_id)}

    def differences(self, host: SimulatedHost) -> Iterator[str]:
        """Yield what a host, and its kernel, has otherwise."""
        held = host.engine.store.objects
        wanted = self.refs(host.id)
        yield from (f"{host.name} lacks {ref}" for ref in wanted - held.keys())
        yield from (f"{host.name} has {ref} too many" for ref in held.keys() - wanted)
        for ref in wanted & held.keys():
            item = held[ref]
            if isinstance(item, Endpoint | Peer):
                record = self.endpoints[item.id if isinstance(item, Endpoint) else item.endpoint_id]
                meant = [str(one.ip if isinstance(item, Peer) else one) for one in record.addresses]
                if meant != [str(one) for one in item.addresses]:
                    yield f"{host.name} has {ref} with other addresses"
                if str(record.mac_address) != item.mac:
                    yield f"{host.name} has {ref} with another MAC address"
        yield from self._in_kernel(host)

    def _in_kernel(self, host: SimulatedHost) -> Iterator[str]:
        state = host.kernel.state
        links = {one.name for one in state.values() if isinstance(one, Link) and one.name.startswith("nwv-")}
        if links != {f"nwv-{one.id[:11]}" for one in self.own(host.id)}:
            yield f"{host.name}: links of endpoints that are not there, or lack"
        wanted = {
            (f"network-{one.network_id}", str(one.mac_address), self._vteps[one.host_id]) for one in self.peers(host.id)
        }
        entries = [one for one in state.values() if isinstance(one, Fdb) and one.vtep is not None]
        there = {(one.ns.replace("/", "-"), one.mac, one.vtep) for one in entries}
        yield from (f"{host.name}: no forwarding entry {one}" for one in wanted - there)
        yield from (f"{host.name}: forwarding entry {one} too many" for one in there - wanted)
        neighbours = {(one.ns.replace("/", "-"), one.ip) for one in state.values() if isinstance(one, Neighbour)}
        addresses = {
            (f"network-{one.network_id}", str(address.ip)) for one in self.peers(host.id) for address in one.addresses
        }
        yield from (f"{host.name}: neighbour {one} differs" for one in neighbours ^ addresses)
        rest = {key for key, one in host.engine.desired.resources.items() if not isinstance(one, Sysctl | File)}
        yield from (f"{host.name}: {key} is not in the kernel" for key in rest - state.keys())


async def read(client: AsyncClient) -> Intent:
    """Read all records."""
    hosts = [one async for one in client.list_hosts()]
    return Intent(
        [one async for one in client.list_networks(page_size=1000)],
        [one async for one in client.list_endpoints(page_size=1000)],
        [one async for one in client.list_sandboxes(page_size=1000)],
        {one.id: str(one.vtep_address) for one in hosts},
    )
