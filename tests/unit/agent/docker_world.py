"""A Docker plugin over a double of the cluster, and Docker's ids."""

from __future__ import annotations

import contextlib
import itertools
import json
from ipaddress import ip_address, ip_interface, ip_network

import msgspec
from netweft_agent.domain.cluster import Found, FoundNetwork
from netweft_agent.domain.objects import Subnet
from netweft_agent.frontends.docker import DockerService
from netweft_agent.frontends.docker_memory import Memory
from netweft_common import errors

HOST_ID, OTHER_HOST = "a" * 32, "b" * 32
NETWORK, OTHER_NETWORK = "1" * 64, "2" * 64
ENDPOINT = "e" * 64
MAC = "02:42:0a:00:00:02"
NAMED = {"netweft.network": "front"}


class Places:
    """Where the host makes interfaces; `error` is what it refuses with."""

    def __init__(self, found):
        self._found = found
        self.expected = []
        self.placed = {}
        self.error: errors.NetweftError | None = None

    @contextlib.contextmanager
    def expecting(self, container_id):
        self.expected.append(container_id)
        yield
        self.expected.remove(container_id)

    async def place(self, sandbox, place):
        if self.error is not None:
            raise self.error
        self.placed[sandbox] = place
        return {one.id: one.interface_name for one in self._found.values() if one.sandbox_id == sandbox}


class Cluster:
    """Networks and endpoints in dictionaries, which several hosts may share; `error` is what every call raises."""

    def __init__(self, shared=None, host_id=HOST_ID):
        self.host_id = host_id
        self.networks_by_id = shared.networks_by_id if shared else {}
        self.found = shared.found if shared else {}
        self.bound = shared.bound if shared else {}
        self.numbers = shared.numbers if shared else itertools.count(1)
        self.error: errors.NetweftError | None = None
        self.calls = []
        self.places = Places(self.found)

    def _note(self, what, *said):
        self.calls.append((what, *said))
        if self.error is not None:
            raise self.error

    async def bind(self, networks):
        self._note("bind", *networks)
        self.bound[self.host_id] = set(networks)

    # --- networks ---

    def named(self, word):
        for one in self.networks_by_id.values():
            if word in {one.id, one.name}:
                return one
        raise errors.NotFound("NETWORK_NOT_FOUND", f"there is no network {word}")

    async def network(self, network):
        self._note("network", network)
        return self.named(network)

    async def networks(self, label):
        self._note("networks", label)
        key, _, value = label.partition("=")
        return [one for one in self.networks_by_id.values() if one.labels.get(key) == value]

    async def create_network(self, wish):
        self._note("create_network", wish)
        if any(one.name == wish.name for one in self.networks_by_id.values()):
            raise errors.AlreadyExists("NETWORK_EXISTS", f"there is a network {wish.name} already")
        number = next(self.numbers)
        subnets = []
        for one in wish.subnets or [None]:
            six = wish.enable_ipv6 and not wish.enable_ipv4
            text = (one.subnet if one else "") or (f"fd00:{number}::/64" if six else f"10.{number}.0.0/24")
            self._refuse_overlap(ip_network(text))
            subnet = ip_network(text)
            gateway = (one.gateway if one else "") or str(subnet[1])
            subnets.append(Subnet(subnet=subnet, gateway=ip_interface(f"{gateway}/{subnet.prefixlen}")))
        made = FoundNetwork(
            id=f"{number:032x}",
            name=wish.name,
            driver=wish.driver,
            host_id=self.host_id if wish.here else "",
            subnets=tuple(subnets),
            ip_ranges={one.subnet: one.ip_range for one in wish.subnets if one.ip_range},
            options=dict(wish.options),
            labels=dict(wish.labels),
            internal=wish.internal,
            enable_ipv4=wish.enable_ipv4,
            enable_ipv6=wish.enable_ipv6,
        )
        self.networks_by_id[made.id] = made
        return made

    def _refuse_overlap(self, subnet):
        for one in self.networks_by_id.values():
            for other in one.subnets:
                if other.subnet.version == subnet.version and other.subnet.overlaps(subnet):
                    raise errors.FailedPrecondition("POOL_OVERLAP", f"{subnet} overlaps {other.subnet} of {one.name}")

    async def delete_network(self, network):
        self._note("delete_network", network)
        try:
            found = self.named(network)
        except errors.NotFound:
            return
        if any(one.network_id == found.id for one in self.found.values()):
            raise errors.FailedPrecondition("NETWORK_HAS_ENDPOINTS", f"network {network} has endpoints")
        if any(found.id in one for one in self.bound.values()):
            raise errors.FailedPrecondition("NETWORK_BOUND", f"network {network} is one of Docker's elsewhere")
        del self.networks_by_id[found.id]

    # --- endpoints ---

    async def create(self, wish):
        self._note("create", wish)
        network = self.named(wish.network)
        if (network.id, wish.name) in self.found:
            raise errors.AlreadyExists("ENDPOINT_EXISTS", f"there is an endpoint {wish.name} already")
        asked = [ip_address(one) for one in wish.addresses]
        taken = {own.ip for one in self.found.values() for own in one.addresses}
        addresses = []
        for one in network.subnets:
            mine = next((own for own in asked if own in one.subnet), None)
            if mine is None and any(own.version == one.subnet.version for own in addresses):
                continue
            mine = mine or next(own for own in one.subnet.hosts() if own not in taken and own != one.gateway.ip)
            if mine in taken:
                raise errors.FailedPrecondition("ADDRESS_IN_USE", f"{mine} is in use")
            addresses.append(ip_interface(f"{mine}/{one.subnet.prefixlen}"))
        number = next(self.numbers)
        made = Found(
            id=f"{number:032x}",
            name=wish.name,
            network_id=network.id,
            addresses=tuple(addresses),
            mac=wish.mac or f"02:00:00:00:00:{number:02x}",
            labels=dict(wish.labels),
        )
        self.found[network.id, wish.name] = made
        return made

    def _change(self, endpoint_id, **fields):
        for key, one in self.found.items():
            if one.id == endpoint_id:
                self.found[key] = msgspec.structs.replace(one, **fields)
                return self.found[key]
        raise errors.NotFound("ENDPOINT_NOT_FOUND", f"there is no endpoint {endpoint_id}")

    async def attach(self, wish, container):
        assert not container.netns_path, "the host is told at Join"
        assert container.container_id in self.places.expected, "else its interface would be made at once"
        made = await self.create(wish)
        self._note("attach", container.container_id)
        name = f"nwh-{made.id[-4:]}"
        return self._change(made.id, sandbox_id=f"s-{container.container_id}", interface_name=name)

    async def update(self, endpoint_id, **fields):
        self._note("update", *fields)
        known = {key: one for key, one in fields.items() if one is not None and key == "ports"}
        return self._change(endpoint_id, **known)

    async def detach(self, network, name):
        self._note("detach", name)
        self.found.pop((self.named(network).id, name), None)

    async def endpoint(self, network, name):
        self._note("endpoint", name)
        key = self.named(network).id, name
        if key not in self.found:
            raise errors.NotFound("ENDPOINT_NOT_FOUND", f"there is no endpoint {name}")
        return self.found[key]

    async def endpoints(self, network, label):
        self._note("endpoints", label)
        key, _, value = label.partition("=")
        return [one for one in self.found.values() if one.labels.get(key) == value]


class World:
    """One host's Docker and its plugin."""

    def __init__(self, folder, shared=None, host_id=HOST_ID):
        self.folder = folder
        self.host_id = host_id
        self.cluster = Cluster(shared.cluster if shared else None, host_id)
        self.restart()

    def restart(self):
        """Start the plugin again: all that it knows is in its folder and in the cluster."""
        self.memory = Memory(self.folder)
        self.service = DockerService(
            cluster=self.cluster,
            places=self.cluster.places,
            memory=self.memory,
            host_id=self.host_id,
            bind=self.cluster.bind,
        )

    async def raw(self, target, body):
        status, text = await self.service.answer(target, body)
        return status, json.loads(text)

    async def call(self, method, **said):
        """Call a driver, and return what it answers; an error is an AssertionError that has it."""
        status, found = await self.raw(f"/{method}", json.dumps(said).encode())
        assert 200 == status, found["Err"]
        return found

    async def refused(self, method, **said):
        """Call a driver that refuses, and return what it says."""
        status, found = await self.raw(f"/{method}", json.dumps(said).encode())
        assert 200 != status, found
        assert found["Err"] == found["Error"]
        return found["Err"]

    # --- what Docker does, in its order ---

    async def make_network(
        self, network=NETWORK, *, name="front", subnets=(), ip_range="", v6=False, internal=False, gateway="", **options
    ):
        """Make a network as `docker network create` does, and return its pools' ids."""
        told = {"netweft.network": name} if name else {}
        pools, data = [], {False: [], True: []}
        for family in (False, *([True] if v6 else [])):
            mine = [one for one in subnets if (":" in one) is family] or [""]
            for one in mine:
                pool = await self.call(
                    "IpamDriver.RequestPool",
                    AddressSpace="netweft", Pool=one, SubPool="" if family else ip_range, Options=told, V6=family,
                )  # fmt: skip
                at = pool["Data"]["com.docker.network.gateway"]
                if gateway and not family:
                    asked = {"RequestAddressType": "com.docker.network.gateway"}
                    at = (
                        await self.call(
                            "IpamDriver.RequestAddress", PoolID=pool["PoolID"], Address=gateway, Options=asked
                        )
                    )["Address"]
                pools.append(pool["PoolID"])
                data[family].append({"AddressSpace": "netweft", "Pool": pool["Pool"], "Gateway": at})
        generic = {**told, **{key.replace("__", "."): value for key, value in options.items()}}
        said = {"com.docker.network.generic": generic, "com.docker.network.enable_ipv6": v6}
        if internal:
            said["com.docker.network.internal"] = True
        await self.call(
            "NetworkDriver.CreateNetwork",
            NetworkID=network, Options=said, IPv4Data=data[False], IPv6Data=data[True] or None,
        )  # fmt: skip
        return pools

    async def remove_network(self, pools, network=NETWORK):
        """Remove it as `docker network rm` does."""
        for pool in pools:
            await self.call("IpamDriver.ReleasePool", PoolID=pool)
        await self.call("NetworkDriver.DeleteNetwork", NetworkID=network)

    async def lease(self, pool, mac=MAC, address=""):
        """Return the address that a container with a MAC gets."""
        options = {"com.docker.network.endpoint.macaddress": mac}
        return (await self.call("IpamDriver.RequestAddress", PoolID=pool, Address=address, Options=options))["Address"]

    async def connect(self, pools, *, endpoint=ENDPOINT, network=NETWORK, mac=MAC, key="/run/docker/netns/c1", **more):
        """Connect a container as Docker does, and return what Join answers."""
        addresses = [await self.lease(pool, mac) for pool in pools]
        given = {"Address": addresses[0], "AddressIPv6": addresses[1] if len(addresses) > 1 else "", "MacAddress": mac}
        await self.call(
            "NetworkDriver.CreateEndpoint", NetworkID=network, EndpointID=endpoint, Interface=given, Options=more
        )
        return await self.call("NetworkDriver.Join", NetworkID=network, EndpointID=endpoint, SandboxKey=key, Options={})

    async def disconnect(self, pools, *, endpoint=ENDPOINT, network=NETWORK):
        """Disconnect it as Docker does."""
        known = self.memory.endpoints[endpoint]
        own = self.cluster.found[known.network, known.name]
        for method in ("RevokeExternalConnectivity", "Leave", "DeleteEndpoint"):
            await self.call(f"NetworkDriver.{method}", NetworkID=network, EndpointID=endpoint)
        for pool, address in zip(pools, own.addresses, strict=False):
            await self.call("IpamDriver.ReleaseAddress", PoolID=pool, Address=str(address.ip))

    @property
    def names(self):
        """Names of all networks of ours, without those that reserve pools."""
        return sorted(one.name for one in self.cluster.networks_by_id.values())
