"""Calls of Docker, answered over a double of the cluster."""

from __future__ import annotations

import asyncio
import json

import pytest
from netweft_agent.domain.cluster import NetworkWish
from netweft_agent.domain.objects import PublishedPort
from netweft_agent.frontends import docker, docker_endpoints, docker_networks, rested
from netweft_agent.frontends.docker_memory import Memory
from netweft_common import errors

from tests.unit.agent.docker_world import (
    ENDPOINT,
    HOST_ID,
    MAC,
    NAMED,
    NETWORK,
    OTHER_HOST,
    OTHER_NETWORK,
    World,
)

pytestmark = pytest.mark.anyio
PORTS = [
    {"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8080, "HostPortEnd": 8080},
    {"Proto": 17, "IP": "", "Port": 53, "HostIP": "127.0.0.1", "HostPort": 0, "HostPortEnd": 0},
    {"Proto": 132, "IP": "", "Port": 9, "HostIP": "::", "HostPort": 9000, "HostPortEnd": 9010},
]
GONE = errors.Unavailable("CONTROLLER_UNREACHABLE", "no controller answers")


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def other(world, tmp_path):
    """Another host of the same cluster."""
    return World(tmp_path / "other", world, OTHER_HOST)


# --- the plugin ---


async def test_it_is_a_network_driver_and_an_ipam_driver(world):
    assert {"Implements": ["NetworkDriver", "IpamDriver"]} == (await world.raw("/Plugin.Activate", b""))[1]
    assert "local" == (await world.call("NetworkDriver.GetCapabilities"))["Scope"]
    assert (await world.call("IpamDriver.GetCapabilities"))["RequiresMACAddress"]


async def test_what_is_not_done_is_not_found(world):
    status, said = await world.raw("/VolumeDriver.Create", b"{}")

    assert (404, True) == (status, "VolumeDriver.Create" in said["Err"])


@pytest.mark.parametrize("method", ["DiscoverNew", "DiscoverDelete", "FreeNetwork"])
async def test_what_is_for_a_swarm_is_taken_note_of(world, method):
    assert {} == await world.call(f"NetworkDriver.{method}", DiscoveryType=1, DiscoveryData={"Address": "192.0.2.1"})


async def test_a_network_of_a_swarm_is_refused(world):
    assert "on each host" in await world.refused("NetworkDriver.AllocateNetwork", NetworkID=NETWORK)


@pytest.mark.parametrize("body", [b"", b"null", b" \n"], ids=["empty", "null", "blank"])
async def test_a_body_without_anything_has_no_fields(world, body):
    assert 200 == (await world.raw("/IpamDriver.GetCapabilities", body))[0]
    status, said = await world.raw("/NetworkDriver.CreateNetwork", body)

    assert (400, True) == (status, "NetworkID" in said["Err"])


GARBAGE = {
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"7",
    "no UTF-8": b'{"NetworkID": "\xff"}',
    "a wrong type": b'{"NetworkID": 7}',
    "an empty id": b'{"NetworkID": ""}',
    "a path for an id": b'{"NetworkID": "../../etc"}',
    "a long id": json.dumps({"NetworkID": "1" * 4000}).encode(),
    "deep": b"[" * 100_000,
    "deep where it fits": b'{"NetworkID": "1", "Options": ' + b"[" * 100_000,
}


@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize(
    "target",
    ["/NetworkDriver.CreateNetwork", "/NetworkDriver.DeleteNetwork", "/NetworkDriver.Join", "/NetworkDriver.Leave"],
)
async def test_garbage_is_refused_with_what_is_wrong(world, target, body):
    status, said = await world.raw(target, body)

    assert 400 == status
    assert "plugin protocol" in said["Err"]
    assert [] == world.cluster.calls


# --- networks ---


async def test_a_network_without_a_name_is_a_bridge_of_this_host(world):
    await world.make_network(name="", com__docker__network__driver__mtu="1400")

    (made,) = world.cluster.networks_by_id.values()
    assert ("docker-111111111111", "bridge", HOST_ID) == (made.name, made.driver, made.host_id)
    assert {"com.docker.network.driver.mtu": "1400"} == made.options


async def test_one_with_a_name_is_an_overlay_of_that_name(world):
    await world.make_network()

    (made,) = world.cluster.networks_by_id.values()
    assert ("front", "overlay", "") == (made.name, made.driver, made.host_id)


async def test_the_driver_is_an_option(world):
    await world.make_network(netweft__driver="bridge")

    assert "bridge" == world.cluster.named("front").driver
    assert HOST_ID == world.cluster.named("front").host_id


async def test_all_that_docker_says_of_addresses_is_the_networks(world):
    await world.make_network(
        subnets=("10.9.0.0/24", "fd00:9::/64"), ip_range="10.9.0.128/25", gateway="10.9.0.9", v6=True, internal=True
    )

    made = world.cluster.named("front")
    assert ["10.9.0.0/24", "fd00:9::/64"] == [str(one.subnet) for one in made.subnets]
    assert "10.9.0.9/24" == str(made.subnets[0].gateway)
    assert {"10.9.0.0/24": "10.9.0.128/25"} == made.ip_ranges
    assert (True, True) == (made.internal, made.enable_ipv6)


async def test_hosts_with_one_name_have_one_network(world, other):
    first = await world.make_network()
    second = await other.make_network(OTHER_NETWORK)

    assert ["front"] == world.names
    assert first[0].partition("#")[0] == second[0].partition("#")[0]


async def test_hosts_that_make_it_at_once_have_one_network(world, other):
    asked = {"AddressSpace": "netweft", "Pool": "", "Options": NAMED, "V6": False}
    one, two = [await host.call("IpamDriver.RequestPool", **asked) for host in (world, other)]
    assert one["Pool"] == two["Pool"]

    data = [{"AddressSpace": "netweft", "Pool": one["Pool"], "Gateway": one["Data"]["com.docker.network.gateway"]}]
    said = {"NetworkID": NETWORK, "Options": {"com.docker.network.generic": NAMED}, "IPv4Data": data}
    await asyncio.gather(*(host.call("NetworkDriver.CreateNetwork", **said) for host in (world, other)))

    assert ["front"] == world.names


async def test_a_network_that_is_there_is_used_and_stays(world):
    await world.cluster.create_network(NetworkWish(name="front", driver="overlay"))

    await world.remove_network(await world.make_network())

    assert ["front"] == world.names


OTHERWISE = {
    "subnet": ({"subnets": ("10.77.0.0/24",)}, "10.77.0.0/24"),
    "range": ({"ip_range": "10.1.0.128/25"}, "--ip-range"),
    "IPv6": ({"v6": True}, "IPv6"),
    "internal": ({"internal": True}, "internal"),
    "driver": ({"netweft__driver": "bridge"}, "driver"),
    "option": ({"mtu": "1400"}, "option mtu"),
}


@pytest.mark.parametrize(("said", "named"), OTHERWISE.values(), ids=OTHERWISE)
async def test_a_network_that_is_there_is_not_taken_for_another(world, said, named):
    await world.cluster.create_network(NetworkWish(name="front", driver="overlay"))

    with pytest.raises(AssertionError, match="is there already") as caught:
        await world.make_network(**said)

    assert named in str(caught.value)


async def test_a_network_of_another_host_alone_is_refused(world, other):
    await world.make_network(netweft__driver="bridge")

    with pytest.raises(AssertionError, match="is there already, with host"):
        await other.make_network()


async def test_the_name_must_be_said_in_both_places(world):
    pool = await world.call("IpamDriver.RequestPool", AddressSpace="netweft", Pool="", Options=None, V6=False)
    said = {"com.docker.network.generic": NAMED}
    data = [{"AddressSpace": "netweft", "Pool": pool["Pool"], "Gateway": "10.1.0.1/24"}]

    error = await world.refused("NetworkDriver.CreateNetwork", NetworkID=NETWORK, Options=said, IPv4Data=data)

    assert "-o netweft.network=front" in error
    assert "--ipam-opt netweft.network=(none)" in error


async def test_an_overlay_needs_a_name(world):
    with pytest.raises(AssertionError, match=r"netweft\.network=NAME"):
        await world.make_network(name="", netweft__driver="overlay")


async def test_an_unknown_option_of_ipam_is_refused(world):
    error = await world.refused("IpamDriver.RequestPool", Pool="", Options={"netweft.driver": "overlay"}, V6=False)

    assert "--ipam-opt netweft.driver" in error


async def test_addresses_may_be_another_ipam_drivers(world):
    data = [{"AddressSpace": "LocalDefault", "Pool": "172.18.0.0/16", "Gateway": "172.18.0.1/16"}]
    await world.call("NetworkDriver.CreateNetwork", NetworkID=NETWORK, Options={}, IPv4Data=data)
    given = {"Address": "172.18.0.2/16", "AddressIPv6": "", "MacAddress": ""}
    made = await world.call(
        "NetworkDriver.CreateEndpoint", NetworkID=NETWORK, EndpointID=ENDPOINT, Interface=given, Options=None
    )

    (own,) = world.cluster.found.values()
    assert ["172.18.0.2/16"] == [str(one) for one in own.addresses]
    assert {"MacAddress": own.mac} == made["Interface"]


async def test_a_network_without_addresses_is_refused(world):
    data = [{"AddressSpace": "null", "Pool": "0.0.0.0/0", "Gateway": ""}]

    assert "--ipam-driver" in await world.refused("NetworkDriver.CreateNetwork", NetworkID=NETWORK, IPv4Data=data)


async def test_what_was_made_for_docker_goes_with_the_last_host(world, other):
    mine, theirs = await world.make_network(), await other.make_network(OTHER_NETWORK)

    await world.remove_network(mine)
    assert ["front"] == world.names

    await other.remove_network(theirs, OTHER_NETWORK)
    assert [] == world.names


async def test_two_networks_of_one_docker_may_be_one_of_ours(world):
    one, two = await world.make_network(), await world.make_network(OTHER_NETWORK)

    await world.remove_network(one)
    assert ["front"] == world.names

    await world.remove_network(two, OTHER_NETWORK)
    assert [] == world.names


async def test_removal_is_well_again_and_again_and_when_the_network_has_gone(world):
    pools = await world.make_network()
    world.cluster.networks_by_id.clear()

    for _ in range(2):
        await world.remove_network(pools)


async def test_a_failed_creation_leaves_nothing(world):
    pool = await world.call("IpamDriver.RequestPool", Pool="", Options=None, V6=False)
    assert 1 == len(world.names)

    for _ in range(2):
        await world.call("IpamDriver.ReleasePool", PoolID=pool["PoolID"])

    assert [] == world.names


async def test_a_network_made_in_vain_is_deleted(world):
    pool = await world.call("IpamDriver.RequestPool", Pool="", Options=NAMED, V6=False)
    data = [{"AddressSpace": "netweft", "Pool": pool["Pool"], "Gateway": "10.1.0.1/24"}]
    bind, world.cluster.bind = world.cluster.bind, _unavailable
    world.service._networks._bind = _unavailable  # as if the link had gone down just then
    await world.refused(
        "NetworkDriver.CreateNetwork",
        NetworkID=NETWORK, Options={"com.docker.network.generic": NAMED}, IPv4Data=data,
    )  # fmt: skip
    assert ["front"] == world.names

    world.service._networks._bind = world.cluster.bind = bind
    await world.service._networks.collect(0)

    assert [] == world.names


async def _unavailable(networks):
    raise GONE


async def test_docker_that_asks_in_a_circle_is_told_what_to_do(world):
    await world.cluster.create_network(NetworkWish(name="front", driver="overlay"))
    for _ in range(docker_networks._MOST_ASKED):
        await world.call("IpamDriver.RequestPool", Pool="", Options=NAMED, V6=False)

    assert "--subnet" in await world.refused("IpamDriver.RequestPool", Pool="", Options=NAMED, V6=False)


async def test_a_network_that_cannot_go_now_goes_later(world):
    pools = await world.make_network()
    for pool in pools:
        await world.call("IpamDriver.ReleasePool", PoolID=pool)
    world.cluster.error = GONE
    await world.call("NetworkDriver.DeleteNetwork", NetworkID=NETWORK)
    world.cluster.error = None

    world.restart()
    await world.service._networks.collect(0)

    assert [] == world.names


async def test_a_reservation_that_nobody_holds_goes_after_a_while(world):
    pool = await world.call("IpamDriver.RequestPool", Pool="", Options=None, V6=False)
    del world.memory.state.pools[pool["PoolID"]]  # as if the agent had died before it wrote that down

    await world.service._networks.collect(100)
    assert 1 == len(world.names)
    await world.service._networks.collect(100 + docker_networks.RESERVED_S)

    assert [] == world.names


async def test_a_gateway_outside_its_subnet_is_refused(world):
    with pytest.raises(AssertionError, match=r"192\.0\.2\.1 is not in"):
        await world.make_network(subnets=("10.9.0.0/24",), gateway="192.0.2.1")


async def test_whether_docker_need_ask_for_a_gateway_is_said(world):
    options = {"com.docker.network.generic": {"com.docker.network.bridge.gateway_mode_ipv4": "isolated"}}

    assert {"SkipIPv4": True, "SkipIPv6": False} == await world.call("NetworkDriver.GwAllocCheck", Options=options)


# --- endpoints ---


async def test_a_container_gets_an_interface_that_docker_moves_and_a_gateway(world):
    pools = await world.make_network(subnets=("10.9.0.0/24", "fd00:9::/64"), v6=True)

    joined = await world.connect(pools)

    (own,) = world.cluster.found.values()
    assert ["10.9.0.2/24", "fd00:9::2/64"] == [str(one) for one in own.addresses]
    assert {"SrcName": own.interface_name, "DstPrefix": "eth"} == joined["InterfaceName"]
    assert ("10.9.0.1", "fd00:9::1") == (joined["Gateway"], joined["GatewayIPv6"])
    assert joined["DisableGatewayService"]
    assert own.sandbox_id


async def test_in_a_container_that_runs_docker_has_nothing_to_move(world, monkeypatch):
    monkeypatch.setattr("os.path.ismount", lambda path: path == "/run/docker/netns/c1")

    joined = await world.connect(await world.make_network())

    (own,) = world.cluster.found.values()
    assert {"SrcName": "", "DstPrefix": "eth"} == joined["InterfaceName"]
    assert joined["Gateway"]
    assert {own.sandbox_id: "/run/docker/netns/c1"} == world.cluster.places.placed


async def test_one_that_starts_has_its_interface_in_the_host(world):
    await world.connect(await world.make_network())

    assert ["here"] == list(world.cluster.places.placed.values())


async def test_docker_is_told_why_an_interface_cannot_be_made(world):
    pools = await world.make_network()
    world.cluster.places.error = errors.FailedPrecondition("LINK_EXISTS", "there is an eth100 already")

    with pytest.raises(AssertionError, match=r"there is an eth100 already \[LINK_EXISTS\]"):
        await world.connect(pools)


async def test_an_internal_network_has_no_gateway(world):
    joined = await world.connect(await world.make_network(internal=True))

    assert ("", "") == (joined["Gateway"], joined["GatewayIPv6"])
    assert joined["DisableGatewayService"]


async def test_other_subnets_of_its_network_are_reached_by_the_gateway(world):
    pools = await world.make_network(subnets=("10.8.0.0/24", "10.9.0.0/24"))

    joined = await world.connect(pools[:1])

    assert [{"Destination": "10.9.0.0/24", "RouteType": 0, "NextHop": "10.8.0.1"}] == joined["StaticRoutes"]


async def test_the_networks_option_names_interfaces(world):
    joined = await world.connect(await world.make_network(com__docker__network__container_iface_prefix="net"))

    assert "net" == joined["InterfaceName"]["DstPrefix"]


async def test_an_address_that_is_asked_for_is_had(world):
    pools = await world.make_network(subnets=("10.9.0.0/24", "fd00:9::/64"), v6=True)

    assert "10.9.0.77/24" == await world.lease(pools[0], address="10.9.0.77")
    assert "fd00:9::77/64" == await world.lease(pools[1], address="fd00:9::77")

    (own,) = world.cluster.found.values()
    assert ["10.9.0.77/24", "fd00:9::77/64"] == [str(one) for one in own.addresses]


@pytest.mark.parametrize(("addresses", "pause"), [(("10.9.0.77",), "REST_S"), ((), "REST_OF_SEVERAL_S")])
async def test_an_address_that_rests_is_waited_for(world, monkeypatch, addresses, pause):
    pools = await world.make_network(subnets=("10.9.0.0/24", "fd00:9::/64"), v6=True)
    attach, refusals = world.cluster.attach, iter([True, False])
    if not addresses:
        await world.lease(pools[0])

    async def rests(wish, container):
        if next(refusals):
            monkeypatch.setattr(rested, pause, 0.001)
            raise errors.FailedPrecondition("ADDRESS_QUARANTINED", "it rests")
        return await attach(wish, container)

    world.cluster.attach = rests

    asked = addresses[0] if addresses else "fd00:9::77"
    assert asked in await world.lease(pools[not addresses], address=asked)


async def test_asking_again_for_an_address_gets_the_same(world):
    (pool,) = await world.make_network()

    assert 1 == len({await world.lease(pool) for _ in range(3)})


async def test_an_address_in_use_is_refused_and_so_is_a_mac(world):
    (pool,) = await world.make_network()
    await world.connect([pool])
    (own,) = world.cluster.found.values()
    mac = {"com.docker.network.endpoint.macaddress": "02:42:00:00:00:99"}

    taken = str(own.addresses[0].ip)
    assert "in use" in await world.refused("IpamDriver.RequestAddress", PoolID=pool, Address=taken, Options=mac)
    mac = {"com.docker.network.endpoint.macaddress": MAC}
    assert "another container's" in await world.refused("IpamDriver.RequestAddress", PoolID=pool, Options=mac)


async def test_ports_are_published_when_the_container_leaves_by_the_network_and_as_long(world):
    pools = await world.make_network()
    await world.connect(pools)
    said = {"NetworkID": NETWORK, "EndpointID": ENDPOINT, "Options": {"com.docker.network.portmap": PORTS}}

    await world.call("NetworkDriver.ProgramExternalConnectivity", **said)
    (own,) = world.cluster.found.values()
    assert own.ports == (
        PublishedPort(container_port=80, host_port=8080),
        PublishedPort(protocol="udp", container_port=53, host_address="127.0.0.1"),
        PublishedPort(protocol="sctp", container_port=9, host_address="::", host_port=9000, host_port_end=9010),
    )
    value = (await world.call("NetworkDriver.EndpointOperInfo", NetworkID=NETWORK, EndpointID=ENDPOINT))["Value"]
    assert [6, 17, 132] == [one["Proto"] for one in value["com.docker.network.portmap"]]

    for _ in range(2):
        await world.call("NetworkDriver.RevokeExternalConnectivity", NetworkID=NETWORK, EndpointID=ENDPOINT)
    (own,) = world.cluster.found.values()
    assert () == own.ports


@pytest.mark.parametrize("ports", [7, [{"Proto": 1, "Port": 80}], [{"Proto": 6, "Port": 0}], [{"Proto": 6}], ["80"]])
async def test_a_port_map_that_is_none_is_refused(world, ports):
    await world.connect(await world.make_network())
    said = {"NetworkID": NETWORK, "EndpointID": ENDPOINT, "Options": {"com.docker.network.portmap": ports}}

    assert "portmap" in await world.refused("NetworkDriver.ProgramExternalConnectivity", **said)


async def test_names_are_an_option_and_the_containers_own_where_docker_says_it(world):
    (pool,) = await world.make_network()
    options = {
        "com.docker.network.endpoint.macaddress": MAC,
        "com.docker.network.endpoint.name": "web",
    }
    await world.call("IpamDriver.RequestAddress", PoolID=pool, Address="", Options=options)
    await world.connect([pool], **{"netweft.dns-names": "a:b.example"})

    (wish,) = [call[1] for call in world.cluster.calls if call[0] == "create"]
    assert ("web",) == wish.dns_names
    assert ("update", "dns_names") in world.cluster.calls


async def test_an_unknown_endpoint_option_of_ours_is_refused(world):
    with pytest.raises(AssertionError, match=r"netweft\.dns-name "):
        await world.connect(await world.make_network(), **{"netweft.dns-name": "a"})


async def test_a_container_that_goes_leaves_nothing(world):
    pools = await world.make_network(subnets=("10.9.0.0/24", "fd00:9::/64"), v6=True)
    await world.connect(pools)

    await world.disconnect(pools)

    assert {} == world.cluster.found


@pytest.mark.parametrize("method", ["Leave", "DeleteEndpoint", "RevokeExternalConnectivity"])
async def test_what_takes_away_is_well_again_and_again_and_before_there_was_anything(world, method):
    for _ in range(2):
        await world.call(f"NetworkDriver.{method}", NetworkID=NETWORK, EndpointID=ENDPOINT)
    pools = await world.make_network()
    await world.connect(pools)
    for _ in range(2):
        await world.call(f"NetworkDriver.{method}", NetworkID=NETWORK, EndpointID=ENDPOINT)


@pytest.mark.parametrize("method", ["Join", "EndpointOperInfo", "ProgramExternalConnectivity"])
async def test_what_needs_an_endpoint_says_that_there_is_none(world, method):
    await world.make_network()
    said = {"NetworkID": NETWORK, "EndpointID": ENDPOINT, "SandboxKey": "/run/docker/netns/c1"}

    assert "connect it again" in await world.refused(f"NetworkDriver.{method}", **said)


async def test_what_needs_a_network_says_that_there_is_none(world):
    said = {"NetworkID": NETWORK, "EndpointID": ENDPOINT, "SandboxKey": "/run/docker/netns/c1", "Interface": {}}

    for method in ("CreateEndpoint", "Join"):
        assert "docker network rm" in await world.refused(f"NetworkDriver.{method}", **said)
    assert "anew" in await world.refused("IpamDriver.RequestAddress", PoolID="10.0.0.0/24#1", Options=None)


async def test_releasing_what_is_not_there_is_well(world):
    (pool,) = await world.make_network()

    for pool_id, address in ((pool, "10.1.0.99"), (pool, ""), ("unknown", "10.1.0.2")):
        await world.call("IpamDriver.ReleaseAddress", PoolID=pool_id, Address=address)
    await world.call("IpamDriver.ReleasePool", PoolID="unknown")


async def test_a_container_takes_one_call_of_the_cluster(world):
    (pool,) = await world.make_network()
    await world.service._endpoints._load()
    world.cluster.calls.clear()

    await world.connect([pool])

    assert ["create", "attach"] == [call[0] for call in world.cluster.calls]  # the double attaches by its own create


async def test_a_join_again_says_the_same(world):
    first = await world.connect(await world.make_network())
    said = {"NetworkID": NETWORK, "EndpointID": ENDPOINT, "SandboxKey": "/run/docker/netns/c1"}

    assert first == await world.call("NetworkDriver.Join", **said)


async def test_an_endpoint_that_has_left_may_join_again_as_it_was(world):
    await world.connect(await world.make_network())
    (before,) = world.cluster.found.values()
    await world.call("NetworkDriver.Leave", NetworkID=NETWORK, EndpointID=ENDPOINT)
    said = {"NetworkID": NETWORK, "EndpointID": ENDPOINT, "SandboxKey": "/run/docker/netns/c2"}

    await world.call("NetworkDriver.Join", **said)

    (after,) = world.cluster.found.values()
    assert before.id != after.id
    assert (before.addresses, before.mac, before.sandbox_id) == (after.addresses, after.mac, after.sandbox_id)


async def test_another_driver_may_have_our_addresses(world):
    pool = await world.call("IpamDriver.RequestPool", Pool="", Options=None, V6=False)

    address = await world.lease(pool["PoolID"])
    await world.service._endpoints.collect(0)
    await world.service._endpoints.collect(10 * docker_endpoints.PENDING_S)
    assert 1 == len(world.cluster.found)

    await world.call("IpamDriver.ReleaseAddress", PoolID=pool["PoolID"], Address=address.partition("/")[0])
    await world.call("IpamDriver.ReleasePool", PoolID=pool["PoolID"])
    assert ({}, []) == (world.cluster.found, world.names)


async def test_an_address_that_docker_forgets_is_taken_back_after_a_while(world):
    (pool,) = await world.make_network()
    await world.lease(pool)

    await world.service._endpoints.collect(100)
    await world.service._endpoints.collect(100 + docker_endpoints.PENDING_S / 2)
    assert 1 == len(world.cluster.found)
    await world.service._endpoints.collect(100 + docker_endpoints.PENDING_S)

    assert {} == world.cluster.found


async def test_a_container_that_has_joined_is_never_taken_for_forgotten(world):
    await world.connect(await world.make_network())

    for now in (0, 10 * docker_endpoints.PENDING_S):
        await world.service._endpoints.collect(now)

    assert 1 == len(world.cluster.found)


async def test_a_container_whose_namespace_is_gone_for_a_while_is_forgotten(world, tmp_path):
    key = tmp_path / "c1"
    key.touch()
    await world.connect(await world.make_network(), key=str(key))
    late = 100 + docker_endpoints.PENDING_S

    for now in (100, late):
        await world.service._endpoints.collect(now)
    assert 1 == len(world.cluster.found)
    key.unlink()
    await world.service._endpoints.collect(late)
    assert 1 == len(world.cluster.found)
    await world.service._endpoints.collect(late + docker_endpoints.PENDING_S)

    assert ({}, {}) == (world.cluster.found, world.memory.endpoints)
    world.restart()
    assert {} == world.memory.endpoints


async def test_where_docker_s_folder_is_not_seen_nothing_is_known_of_namespaces(world, tmp_path):
    await world.connect(await world.make_network(), key=str(tmp_path / "nowhere" / "c1"))

    for now in (0, 10 * docker_endpoints.PENDING_S):
        await world.service._endpoints.collect(now)

    assert 1 == len(world.cluster.found)


@pytest.mark.parametrize("text", ["", "\n", "only-one\n", "two words\n"])
async def test_half_a_file_of_an_endpoint_is_none(world, text):
    await world.connect(await world.make_network())
    (file,) = (world.folder / "docker-endpoints").iterdir()
    file.write_text(text)

    world.restart()

    assert {} == world.memory.endpoints


async def test_a_removed_network_takes_with_it_what_docker_has_forgotten(world):
    pools = await world.make_network()
    await world.connect(pools)

    await world.remove_network(pools)

    assert ({}, []) == (world.cluster.found, world.names)


# --- restarts, and a cluster that does not answer ---


async def test_all_goes_on_after_a_restart_of_the_agent(world):
    pools = await world.make_network()
    await world.connect(pools)

    world.restart()

    said = {"NetworkID": NETWORK, "EndpointID": ENDPOINT}
    assert (await world.call("NetworkDriver.EndpointOperInfo", **said))["Value"]
    await world.disconnect(pools)
    world.restart()
    await world.remove_network(pools)
    assert ({}, []) == (world.cluster.found, world.names)


async def test_a_restart_between_two_addresses_is_not_noticed(world):
    pools = await world.make_network(subnets=("10.9.0.0/24", "fd00:9::/64"), v6=True)
    await world.lease(pools[0])

    world.restart()

    assert "fd00:9::2/64" == await world.lease(pools[1])
    assert 1 == len(world.cluster.found)


async def test_an_endpoint_whose_creation_was_not_answered_is_made_anew(world):
    (pool,) = await world.make_network()
    await world.lease(pool)
    world.restart()
    await world.service._endpoints._load()
    world.service._endpoints._found.clear()

    assert await world.lease(pool)
    assert 1 == len(world.cluster.found)


async def test_what_makes_says_that_nobody_answers(world):
    (pool,) = await world.make_network()
    world.cluster.error = GONE
    mac = {"com.docker.network.endpoint.macaddress": MAC}

    assert "no controller answers" in await world.refused("IpamDriver.RequestAddress", PoolID=pool, Options=mac)
    assert "no controller answers" in await world.refused("IpamDriver.RequestPool", Pool="", Options=NAMED, V6=False)


async def test_a_container_goes_though_nobody_answers_and_is_cleared_away_later(world):
    pools = await world.make_network()
    await world.connect(pools)
    world.cluster.error = GONE
    await world.disconnect(pools)
    assert 1 == len(world.cluster.found)

    world.cluster.error = None
    world.restart()
    await world.service._endpoints.collect(0)

    assert {} == world.cluster.found
    assert [] == world.memory.state.gone_endpoints


async def test_the_same_holds_for_an_agent_that_has_just_been_started(world):
    pools = await world.make_network()
    await world.connect(pools)
    world.restart()
    world.cluster.error = GONE
    await world.disconnect(pools)
    for pool in pools:
        await world.call("IpamDriver.ReleasePool", PoolID=pool)
    await world.call("NetworkDriver.DeleteNetwork", NetworkID=NETWORK)

    world.cluster.error = None
    world.restart()
    await world.service._endpoints.collect(0)
    await world.service._networks.collect(0)

    assert ({}, []) == (world.cluster.found, world.names)
    assert [] == world.memory.state.gone_ids + world.memory.state.gone_addresses


async def test_a_mac_that_is_still_to_be_cleared_away_can_be_used_again(world):
    pools = await world.make_network()
    await world.connect(pools)
    world.cluster.error = GONE
    await world.disconnect(pools)
    world.cluster.error = None

    await world.connect(pools, endpoint="f" * 64)

    (own,) = world.cluster.found.values()
    assert own.name == world.memory.endpoints["f" * 64].name
    assert [] == world.memory.state.gone_endpoints


async def test_a_file_that_cannot_be_read_is_not_taken_for_none(tmp_path):
    (tmp_path / "docker.json").write_text("{")

    with pytest.raises(errors.FailedPrecondition, match=r"docker\.json"):
        Memory(tmp_path)


async def test_a_cluster_that_never_answers_is_not_waited_for(world, monkeypatch):
    monkeypatch.setattr(docker, "CALL_S", 0.01)
    world.cluster.endpoints = lambda *_: asyncio.sleep(3600)

    assert "have not answered" in await world.refused("NetworkDriver.Leave", NetworkID=NETWORK, EndpointID=ENDPOINT)


async def test_a_bug_is_told_and_does_not_end_the_plugin(world):
    world.cluster.endpoints = lambda *_: 1 / 0

    assert "a bug" in await world.refused("NetworkDriver.Leave", NetworkID=NETWORK, EndpointID=ENDPOINT)
    assert 200 == (await world.raw("/Plugin.Activate", b""))[0]
