"""Calls of netavark's plugin: what CNI is asked, and what netavark is told."""

from __future__ import annotations

import json

import pytest
from netweft_agent.frontends import cni, cni_config, netavark, netavark_config
from netweft_agent.frontends.cni_config import Verb
from netweft_agent.frontends.cni_pending import Pending
from netweft_common import errors

from tests.support.agent import subnets
from tests.unit.agent.test_cni_service import Cluster, Given, Host

pytestmark = pytest.mark.anyio
NETNS = 7
NETWORK = {
    "name": "front",
    "id": "2f25",
    "driver": "netweft",
    "ipv6_enabled": False,
    "internal": False,
    "dns_enabled": True,
    "ipam_options": {"driver": "host-local"},
}
EXEC = {
    "container_id": "7529",
    "container_name": "web",
    "port_mappings": None,
    "network": NETWORK,
    "network_options": {"interface_name": "eth0", "static_ips": None, "static_mac": None, "aliases": ["752947ff91f9"]},
}
FULL = {
    **EXEC,
    "port_mappings": [
        {"container_port": 80, "host_ip": "192.0.2.1", "host_port": 8080, "protocol": "tcp,udp", "range": 2},
        {"container_port": 53, "host_ip": "", "host_port": 0, "protocol": "", "range": 0},
    ],
    "network_options": {
        **EXEC["network_options"],
        "static_ips": ["10.1.0.9"],
        "static_mac": "02:00:00:00:00:09",
        "options": {"a": "b"},
    },
}


@pytest.fixture
def anyio_backend():
    return "asyncio"


class World:
    def __init__(self, folder):
        self.cluster, self.pending = Cluster(), Pending(folder)
        self.cni = cni.CniService(
            cluster=self.cluster, host=Host(), given=Given(), pending=self.pending, host_id="h" * 32
        )
        self.service = netavark.NetavarkService(cni=self.cni, cluster=self.cluster)

    async def call(self, verb, whole, descriptor=NETNS):
        config = whole if isinstance(whole, bytes) else json.dumps(whole).encode()
        code, text = await self.service.answer(frame(verb, config), descriptor)
        return code, json.loads(text) if text else None


def frame(verb, config):
    return cni.pack({"NETAVARK_COMMAND": verb, "NETAVARK_NETNS": "/run/netns/c1"}, config)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


async def test_a_created_network_has_the_subnets_of_ours_and_leaves_addresses_to_us(world):
    code, made = await world.call("create", NETWORK, None)

    assert 0 == code
    assert {
        **NETWORK,
        "subnets": [{"subnet": "10.1.0.0/24", "gateway": "10.1.0.1"}],
        "dns_enabled": False,
        "ipam_options": {"driver": "none"},
    } == made


async def test_a_network_of_podmans_may_have_another_name_than_ours(world):
    whole = {**NETWORK, "name": "here", "options": {"netweft.network": "front", "netweft.socket": "/x"}}

    code, made = await world.call("create", whole, None)

    assert (0, "here", whole["options"]) == (code, made["name"], made["options"])


async def test_a_network_of_two_families_says_so(world):
    world.cluster.networks["front"] = subnets("10.1.0.0/24", "fd00:1::/64")

    _, made = await world.call("create", NETWORK, None)

    assert (True, 2) == (made["ipv6_enabled"], len(made["subnets"]))


REFUSED = {
    "a network that is not there": ({"name": "gone"}, "netweft network create gone"),
    "an unknown option": ({"options": {"mtu": "1400"}}, "--opt mtu"),
    "internal": ({"internal": True}, "--internal"),
    "a bridge's name": ({"network_interface": "br9"}, "--interface-name"),
    "routes": ({"routes": [{"destination": "10.9.0.0/24", "gateway": "10.1.0.2"}]}, "--route"),
    "another ipam": ({"ipam_options": {"driver": "dhcp"}}, "--ipam-driver"),
    "another subnet": ({"subnets": [{"subnet": "10.9.0.0/24"}]}, "10.9.0.0/24 is none of 10.1.0.0/24"),
    "another gateway": ({"subnets": [{"subnet": "10.1.0.0/24", "gateway": "10.1.0.9"}]}, "--gateway"),
    "a range": ({"subnets": [{"subnet": "10.1.0.0/24", "lease_range": {"start_ip": "10.1.0.5"}}]}, "--ip-range"),
    "subnets that are none": ({"subnets": ["10.9.0.0/24"]}, "must be a list of objects"),
    "subnets that are no list": ({"subnets": 7}, "subnets 7 must be"),
    "options that are none": ({"options": ["x"]}, "options"),
    "a name that is none": ({"name": 7}, "name 7 must be a text"),
}


@pytest.mark.parametrize(("change", "said"), REFUSED.values(), ids=REFUSED)
async def test_what_only_a_network_of_ours_can_have_is_refused(world, change, said):
    code, answer = await world.call("create", {**NETWORK, **change}, None)

    assert (1, {"error"}) == (code, answer.keys())
    assert said in answer["error"]


async def test_the_subnet_that_it_has_may_be_asked_for(world):
    whole = {**NETWORK, "subnets": [{"subnet": "10.1.0.0/24", "gateway": "10.1.0.1", "lease_range": None}]}

    assert 0 == (await world.call("create", whole, None))[0]


def test_a_setup_is_an_add():
    variables, config = netavark_config.as_cni(
        {"NETAVARK_COMMAND": "setup", "NETAVARK_NETNS": "/run/netns/c1"}, json.dumps(FULL).encode()
    )

    request = cni_config.parse(variables, config)

    assert (Verb.ADD, "front", "/run/netns/c1") == (request.verb, request.network, request.netns)
    assert ("7529", "eth0") == (request.attachment.container_id, request.attachment.ifname)
    assert (("10.1.0.9",), "02:00:00:00:00:09", {"a": "b"}) == (request.addresses, request.mac, request.options)
    assert ("web", "752947ff91f9") == request.aliases
    assert {"netweft.container.name": "web"} == request.labels
    assert [
        ("tcp", 8080, 80, "192.0.2.1"),
        ("tcp", 8081, 81, "192.0.2.1"),
        ("udp", 8080, 80, "192.0.2.1"),
        ("udp", 8081, 81, "192.0.2.1"),
        ("tcp", 0, 53, ""),
    ] == [(one.protocol, one.host_port, one.container_port, one.host_address) for one in request.ports]


def test_a_name_that_is_no_host_name_is_a_label_alone():
    whole = {**EXEC, "container_name": "web-"}

    _, config = netavark_config.as_cni({"NETAVARK_COMMAND": "setup"}, json.dumps(whole).encode())

    found = json.loads(config)
    assert {"front": ["752947ff91f9"]} == found["runtimeConfig"]["aliases"]
    assert {"netweft.container.name": "web-"} == found["labels"]


async def test_a_setup_is_answered_with_a_status_block(world):
    code, block = await world.call("setup", EXEC)

    assert 0 == code
    assert {
        "dns_search_domains": [],
        "dns_server_ips": [],
        "interfaces": {
            "eth0": {
                "mac_address": "02:00:00:00:00:02",
                "subnets": [{"gateway": "10.1.0.1", "ipnet": "10.1.0.2/24"}],
            }
        },
    } == block


async def test_a_teardown_that_waited_is_done_before_the_next_setup(world):
    await world.call("setup", FULL)
    world.pending.keep(frame("teardown", json.dumps(FULL).encode()))

    code, _ = await world.call("setup", FULL)

    assert (0, []) == (code, list(world.pending))


async def test_a_teardown_is_silent_and_may_be_repeated(world):
    await world.call("setup", FULL)

    assert [(0, None)] * 2 == [await world.call("teardown", FULL, None) for _ in range(2)]
    assert {} == world.cluster.found


async def test_a_teardown_is_well_when_the_network_has_gone(world):
    assert (0, None) == await world.call("teardown", {**EXEC, "network": {**NETWORK, "name": "gone"}}, None)


async def test_calls_of_cni_go_on_unchanged(world):
    variables = {"CNI_COMMAND": "STATUS"}
    config = json.dumps({"cniVersion": "1.1.0", "name": "front", "type": "netweft"}).encode()

    assert (0, b"") == await world.service.answer(cni.pack(variables, config), None)


BAD = {
    "no JSON": (b"{", "no JSON"),
    "no object": (b"[]", "no JSON object"),
    "deep": (b"[" * 100_000, "no JSON"),
    "nothing": (b"{}", "CNI_CONTAINERID"),
    "no container": ({**EXEC, "container_id": ""}, "CONTAINERID"),
    "a path for a container": ({**EXEC, "container_id": "../x"}, "CONTAINERID"),
    "a path for an interface": ({**EXEC, "network_options": {"interface_name": "a/b"}}, "IFNAME"),
    "no interface": ({**EXEC, "network_options": None}, "IFNAME"),
    "a path for a network": ({**EXEC, "network": {**NETWORK, "name": "../x"}}, "name"),
    "an address that is none": (
        {**EXEC, "network_options": {"interface_name": "eth0", "static_ips": ["x"]}},
        "an address",
    ),
    "addresses that are no list": ({**EXEC, "network_options": {"static_ips": "x"}}, "static_ips"),
    "a MAC that is none": ({**EXEC, "network_options": {"interface_name": "eth0", "static_mac": "x"}}, "mac"),
    "ports that are no list": ({**EXEC, "port_mappings": 7}, "port_mappings"),
    "a port that is none": ({**EXEC, "port_mappings": ["80"]}, "port_mappings"),
    "a port that is a text": ({**EXEC, "port_mappings": [{"container_port": "80"}]}, "numbers of ports"),
    "a port beyond": ({**EXEC, "port_mappings": [{"container_port": 65535, "host_port": 1, "range": 2}]}, "65536"),
    "too many ports": (
        {**EXEC, "port_mappings": [{"container_port": 1, "host_port": 1, "range": 5000}]},
        "more than 4096",
    ),
    "a protocol that is none": ({**EXEC, "port_mappings": [{"container_port": 80, "protocol": "icmp"}]}, "icmp"),
    "options that are no texts": (
        {**EXEC, "network_options": {"interface_name": "eth0", "options": {"a": 1}}},
        "options",
    ),
}


@pytest.mark.parametrize(("whole", "said"), BAD.values(), ids=BAD)
async def test_bad_input_is_refused_in_netavarks_words(world, whole, said):
    code, answer = await world.call("setup", whole)

    assert (1, {"error"}) == (code, answer.keys())
    assert said in answer["error"]
    assert [] == world.cluster.wishes


async def test_errors_of_the_cluster_are_told(world):
    world.cluster.error = errors.Exhausted("POOL_FULL", "no address is free")

    answers = [await world.call("setup", EXEC), await world.call("create", NETWORK, None)]

    assert [(1, {"error": "no address is free [POOL_FULL]"})] * 2 == answers


async def test_an_unknown_verb_is_refused(world):
    code, answer = await world.call("update", EXEC)

    assert 1 == code
    assert "update" in answer["error"]


def test_a_status_leaves_out_interfaces_of_the_host_and_gateways_that_are_none():
    found = netavark_config.status(
        {
            "interfaces": [{"name": "br"}, {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/x"}],
            "ips": [{"address": "10.1.0.2/24", "interface": 1}, {"address": "192.0.2.1/24", "interface": 0}],
        }
    )

    assert {"eth0": {"mac_address": "02:00:00:00:00:01", "subnets": [{"ipnet": "10.1.0.2/24"}]}} == found["interfaces"]
