"""Docker's plugin: a network driver and an IPAM driver, by libnetwork's remote protocols.

Docker calls, in this order: RequestPool, CreateNetwork; for each container RequestAddress, CreateEndpoint, Join,
ProgramExternalConnectivity, and all of it backwards. A container that starts has no network namespace yet at Join: the
end of the veth pair that is for it waits in the host's, and Docker moves it, names it and gives it its addresses. In a
container that runs it is made as it shall be (docs/decisions/0028-connected-live.md). Routes are Docker's to choose.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import msgspec
import structlog
from netweft_common import errors

from netweft_agent.domain.cluster import Cluster, Found, FoundNetwork
from netweft_agent.domain.objects import Interface, Subnet
from netweft_agent.frontends import docker_protocol as protocol
from netweft_agent.frontends.docker_endpoints import Endpoints, Places
from netweft_agent.frontends.docker_memory import Memory
from netweft_agent.frontends.docker_networks import ADDRESS_SPACE, Bind, DockerNetwork, DockerSubnet, Networks

log = structlog.get_logger(__name__)

RETRY_S = 5.0
"""How often it is tried again to remove what could not be removed."""
CALL_S = 60.0
"""How long Docker waits at most."""
DNS_NAMES = "netweft.dns-names"
"""Endpoint option: further names, by colons, since Docker's client parts options by commas. It tells of no aliases."""
_PREFIX_OPTIONS = (
    "interface_prefix",
    "com.docker.network.container_iface_prefix",
    "com.docker.network.container_interface_prefix",
)
_GATEWAY_MODES = {4: "gateway_mode_ipv4", 6: "gateway_mode_ipv6"}
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")

Answer = Mapping[str, Any]
Handler = Callable[[bytes], Awaitable[Answer]]


class DockerService:
    """Answers Docker.

    Args:
        cluster: Where networks and endpoints are made.
        places: Where interfaces are made.
        memory: What Docker's networks are.
        host_id: Of this host.
        bind: Has the controllers know which networks this host has bound.
    """

    def __init__(self, *, cluster: Cluster, places: Places, memory: Memory, host_id: str, bind: Bind) -> None:
        self._networks = Networks(cluster=cluster, memory=memory, host_id=host_id, bind=bind)
        self._endpoints = Endpoints(cluster=cluster, places=places, memory=memory, host_id=host_id)
        self._handlers: dict[str, Handler] = {
            "/Plugin.Activate": _always({"Implements": ["NetworkDriver", "IpamDriver"]}),
            "/NetworkDriver.GetCapabilities": _always(
                {"Scope": "local", "ConnectivityScope": "global", "GwAllocChecker": True}
            ),
            "/NetworkDriver.GwAllocCheck": self._gateway_needed,
            "/NetworkDriver.AllocateNetwork": _refuse_swarm,
            "/NetworkDriver.FreeNetwork": _always({}),
            "/NetworkDriver.CreateNetwork": self._create_network,
            "/NetworkDriver.DeleteNetwork": self._delete_network,
            "/NetworkDriver.CreateEndpoint": self._create_endpoint,
            "/NetworkDriver.DeleteEndpoint": self._delete_endpoint,
            "/NetworkDriver.EndpointOperInfo": self._info,
            "/NetworkDriver.Join": self._join,
            "/NetworkDriver.Leave": self._leave,
            "/NetworkDriver.ProgramExternalConnectivity": self._publish,
            "/NetworkDriver.RevokeExternalConnectivity": self._withdraw,
            # Of nodes of a Swarm; our hosts know of each other.
            "/NetworkDriver.DiscoverNew": _always({}),
            "/NetworkDriver.DiscoverDelete": _always({}),
            "/IpamDriver.GetCapabilities": _always({"RequiresMACAddress": True, "RequiresRequestReplay": False}),
            "/IpamDriver.GetDefaultAddressSpaces": _always(
                {"LocalDefaultAddressSpace": ADDRESS_SPACE, "GlobalDefaultAddressSpace": ADDRESS_SPACE}
            ),
            "/IpamDriver.RequestPool": self._request_pool,
            "/IpamDriver.ReleasePool": self._release_pool,
            "/IpamDriver.RequestAddress": self._request_address,
            "/IpamDriver.ReleaseAddress": self._release_address,
        }

    async def run(self) -> None:
        """Remove what Docker has forgotten, and what could not be removed before, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            for collect in (self._endpoints.collect, self._networks.collect):
                try:
                    await collect(loop.time())
                except errors.NetweftError as error:
                    log.debug("what Docker has forgotten stays for now", error=str(error))
            await asyncio.sleep(RETRY_S)

    async def answer(self, target: str, body: bytes) -> tuple[int, bytes]:
        """Return the status and the body that answer a call; what goes wrong is Docker's to show."""
        handler = self._handlers.get(target)
        if handler is None:
            return 404, self.refuse(f"{target[:64]} is nothing that netweft's Docker plugin does")
        try:
            async with asyncio.timeout(CALL_S):
                return 200, msgspec.json.encode(await handler(body))
        except errors.InvalidArgument as error:
            return 400, self.refuse(_text(error))
        except errors.NetweftError as error:
            return 500, self.refuse(_text(error))
        except TimeoutError:
            return 500, self.refuse(f"netweft's controllers have not answered in {CALL_S:g} s; see netweft host ls")
        except Exception as error:  # the outermost frame
            log.exception("docker request failed", target=target)
            return 500, self.refuse(f"a bug of netweft's agent: {type(error).__name__}: {error}; report it")

    def refuse(self, message: str) -> bytes:
        """Write an error: the protocol of networks has it as `Err`, the one of IPAM as `Error`."""
        return msgspec.json.encode({"Err": message, "Error": message})

    # --- IPAM ---

    async def _request_pool(self, body: bytes) -> Answer:
        asked = protocol.read(body, protocol.RequestPool)
        pool_id, chosen = await self._networks.request_pool(
            asked.options or {},
            protocol.subnet(asked.pool, "Pool") if asked.pool else None,
            protocol.subnet(asked.sub_pool, "SubPool") if asked.sub_pool else None,
            v6=asked.v6,
        )
        gateway = chosen.default_gateway or chosen.gateway
        data = {protocol.GATEWAY: str(gateway)} if gateway is not None else {}
        return {"PoolID": pool_id, "Pool": str(chosen.subnet), "Data": data}

    async def _release_pool(self, body: bytes) -> Answer:
        await self._networks.release_pool(protocol.read(body, protocol.ReleasePool).pool_id)
        return {}

    async def _request_address(self, body: bytes) -> Answer:
        asked = protocol.read(body, protocol.RequestAddress)
        options = asked.options or {}
        address = protocol.address(asked.address, "Address") if asked.address else None
        network, pool = await self._networks.of_pool(asked.pool_id)
        subnet = protocol.subnet(pool.subnet, "Pool")
        if address is not None and address.version != subnet.version:
            raise errors.InvalidArgument("BAD_ADDRESS", f"{address} is not in {subnet}", field="Address")
        mac = options.get(protocol.MAC_ADDRESS, "").lower()
        if mac:
            name = options.get(protocol.ENDPOINT_NAME, "")
            own = await self._endpoints.request(
                network, mac, address, subnet.version, ours=bool(pool.docker_id), name=_host_name(name)
            )
            return {"Address": str(own), "Data": {}}
        # Of the network itself: its gateway, or an address that Docker keeps out, of which CreateNetwork tells.
        if address is None and options.get(protocol.ADDRESS_TYPE) == protocol.GATEWAY:
            of_pool = next((one for one in network.subnets if one.subnet == subnet), None)
            gateway = of_pool.gateway if of_pool is not None else None
            address = gateway.ip if gateway is not None else subnet[1]
        if address is None:
            raise errors.InvalidArgument(
                "MAC_MISSING", f"an address of {subnet} is for whoever has a MAC address; say {protocol.MAC_ADDRESS}"
            )
        if address not in subnet:
            raise errors.FailedPrecondition("OUT_OF_SUBNET", f"{address} is not in {subnet}; choose one that is")
        return {"Address": f"{address}/{subnet.prefixlen}", "Data": {}}

    async def _release_address(self, body: bytes) -> Answer:
        asked = protocol.read(body, protocol.ReleaseAddress)
        pool = self._networks.pool(asked.pool_id)
        if asked.address and pool is not None:
            address = protocol.address(asked.address.partition("/")[0], "Address")
            await self._endpoints.release(pool.network, address)
        return {}

    # --- networks ---

    async def _gateway_needed(self, body: bytes) -> Answer:
        options = _generic(protocol.read(body, protocol.GwAllocCheck).options)
        isolated = {
            version: any(key.endswith(word) and value == "isolated" for key, value in options.items())
            for version, word in _GATEWAY_MODES.items()
        }
        return {"SkipIPv4": isolated[4], "SkipIPv6": isolated[6]}

    async def _create_network(self, body: bytes) -> Answer:
        asked = protocol.read(body, protocol.CreateNetwork)
        options = asked.options or {}
        four, six = (_subnets(one) for one in (asked.ipv4_data, asked.ipv6_data))
        wanted = DockerNetwork(
            docker_id=asked.network_id,
            subnets=(*four, *six),
            options=_generic(options),
            internal=_flag(options, protocol.INTERNAL),
            enable_ipv4=bool(four),
            enable_ipv6=bool(six),
        )
        made = await self._networks.create(wanted)
        log.info("docker network", network=made.name, docker_id=asked.network_id)
        return {}

    async def _delete_network(self, body: bytes) -> Answer:
        docker_id = protocol.read(body, protocol.OfNetwork).network_id
        if (network_id := self._networks.bound(docker_id)) is not None:
            # Docker would not say so if it had containers in it.
            await self._endpoints.clear(network_id)
        await self._networks.delete(docker_id)
        return {}

    # --- endpoints ---

    async def _create_endpoint(self, body: bytes) -> Answer:
        asked = protocol.read(body, protocol.CreateEndpoint)
        network = await self._networks.of_docker(asked.network_id)
        given = asked.interface or protocol.Given()
        addresses = tuple(
            protocol.interface(text, field)
            for text, field in ((given.address, "Address"), (given.address_ipv6, "AddressIPv6"))
            if text
        )
        found = await self._endpoints.associate(
            asked.endpoint_id, network, given.mac_address.lower(), addresses, _dns_names(asked.options or {})
        )
        # What Docker has said must not be said again.
        answer = {} if given.mac_address else {"MacAddress": found.mac}
        for key, said, version in (("Address", given.address, 4), ("AddressIPv6", given.address_ipv6, 6)):
            own = next((one for one in found.addresses if one.version == version), None)
            if not said and own is not None:
                answer[key] = str(own)
        return {"Interface": answer}

    async def _join(self, body: bytes) -> Answer:
        asked = protocol.read(body, protocol.Join)
        network = await self._networks.of_docker(asked.network_id)
        found = await self._endpoints.join(asked.endpoint_id, asked.sandbox_key)
        gateways = {} if network.internal else _gateways(network, found)
        return {
            "InterfaceName": {"SrcName": found.interface_name, "DstPrefix": _prefix(network)},
            "Gateway": gateways.get(4, ""),
            "GatewayIPv6": gateways.get(6, ""),
            "StaticRoutes": [
                {"Destination": str(one.subnet), "RouteType": 0, "NextHop": gateways[one.subnet.version]}
                for one in network.subnets
                if one.subnet.version in gateways and all(own.ip not in one.subnet for own in found.addresses)
            ],
            # Else Docker would add an interface on a bridge of its own where there is no way out.
            "DisableGatewayService": True,
        }

    async def _publish(self, body: bytes) -> Answer:
        asked = protocol.read(body, protocol.OfEndpoint)
        await self._endpoints.publish(asked.endpoint_id, protocol.ports(asked.options))
        return {}

    async def _withdraw(self, body: bytes) -> Answer:
        await self._endpoints.withdraw(protocol.read(body, protocol.OfEndpoint).endpoint_id)
        return {}

    async def _leave(self, body: bytes) -> Answer:
        await self._endpoints.leave(protocol.read(body, protocol.OfEndpoint).endpoint_id)
        return {}

    async def _delete_endpoint(self, body: bytes) -> Answer:
        await self._endpoints.delete(protocol.read(body, protocol.OfEndpoint).endpoint_id)
        return {}

    async def _info(self, body: bytes) -> Answer:
        found = await self._endpoints.get(protocol.read(body, protocol.OfEndpoint).endpoint_id)
        own = str(found.addresses[0].ip) if found.addresses else ""
        return {
            "Value": {
                "netweft.endpoint": found.id,
                "netweft.network": found.network_id,
                protocol.MAC_ADDRESS: found.mac,
                protocol.PORT_MAP: protocol.port_map(found.ports, own),
            }
        }


def _always(answer: Answer) -> Handler:
    async def handler(body: bytes) -> Answer:
        protocol.read(body, protocol.Nothing)
        return answer

    return handler


async def _refuse_swarm(body: bytes) -> Answer:
    protocol.read(body, protocol.Nothing)
    raise errors.FailedPrecondition(
        "NO_SWARM",
        "networks of netweft span hosts without a Swarm, and are no networks of one; make the network on each host, by "
        "one netweft.network",
    )


def _text(error: errors.NetweftError) -> str:
    return f"{error.message} [{error.reason}]"


def _generic(options: protocol.Map) -> dict[str, str]:
    """Return the driver options that Docker's user gave.

    Raises:
        InvalidArgument: They are no texts.
    """
    given = (options or {}).get(protocol.GENERIC) or {}
    try:
        return msgspec.convert(given, dict[str, str])
    except msgspec.ValidationError as error:
        raise errors.InvalidArgument("BAD_OPTIONS", f"{protocol.GENERIC}: {error}", field=protocol.GENERIC) from error


def _flag(options: Mapping[str, Any], key: str) -> bool:
    value = options.get(key, False)
    if not isinstance(value, bool):
        raise errors.InvalidArgument("BAD_OPTIONS", f"{key} is neither true nor false", field=key)
    return value


def _subnets(data: Iterable[protocol.IpamData] | None) -> list[DockerSubnet]:
    return [
        DockerSubnet(
            subnet=protocol.subnet(one.pool, "Pool"),
            gateway=protocol.interface(one.gateway, "Gateway") if one.gateway else None,
            aux_addresses={
                key: str(protocol.interface(text, "AuxAddresses").ip) for key, text in (one.aux_addresses or {}).items()
            },
            ours=one.address_space == ADDRESS_SPACE,
        )
        for one in data or ()
    ]


def _host_name(name: str) -> str:
    """Return a container's name if it can be looked up; Docker's may have underscores."""
    return name if _HOST_NAME.fullmatch(name) else ""


def _dns_names(options: Mapping[str, Any]) -> tuple[str, ...]:
    text = options.get(DNS_NAMES, "")
    if not isinstance(text, str):
        raise errors.InvalidArgument("BAD_OPTIONS", f"{DNS_NAMES} is no text", field=DNS_NAMES)
    unknown = [key for key in options if key.startswith("netweft.") and key != DNS_NAMES]
    if unknown:
        raise errors.InvalidArgument(
            "UNKNOWN_OPTION", f"--driver-opt {unknown[0]} is not known here; known is {DNS_NAMES}", field=unknown[0]
        )
    return tuple(one for one in re.split(r"[:,\s]+", text) if one)


def _prefix(network: FoundNetwork) -> str:
    """Return what the container's interface is named by; Docker adds a number that is free."""
    return next((network.options[key] for key in _PREFIX_OPTIONS if key in network.options), "eth")


def _gateways(network: FoundNetwork, found: Found) -> dict[int, str]:
    """Return the gateways of an endpoint, by IP version."""
    offered = [(own, _offered(network.subnets, own)) for own in found.addresses]
    return {own.version: str(gateway.ip) for own, gateway in offered if gateway is not None}


def _offered(subnets: Iterable[Subnet], own: Interface) -> Interface | None:
    return next((one.default_gateway or one.gateway for one in subnets if own.ip in one.subnet), None)
