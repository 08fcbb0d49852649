"""Calls of CNI's plugin, answered over doubles of the cluster and of the host."""

from __future__ import annotations

import asyncio
import json
from ipaddress import ip_interface

import pytest
from netweft_agent.domain.cluster import Found
from netweft_agent.domain.objects import Kind
from netweft_agent.domain.plan import Operation
from netweft_agent.domain.resources import Address, Link, Namespace, PeerEnd, Route, Sysctl
from netweft_agent.frontends import cni, rested
from netweft_agent.frontends.cni_config import Attachment
from netweft_agent.frontends.cni_pending import Pending
from netweft_common import errors

from tests.support.agent import subnets

pytestmark = pytest.mark.anyio
HOST_ID = "h" * 32
NETNS = 7
CONFIG = {"cniVersion": "1.1.0", "name": "front", "type": "netweft"}


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Cluster:
    """Endpoints in a dictionary; `error` is what every call raises."""

    def __init__(self):
        self.found: dict[tuple[str, str], Found] = {}
        self.wishes = []
        self.containers = []
        self.networks = {"front": subnets("10.1.0.0/24"), "back": subnets("10.2.0.0/24")}
        self.error: errors.NetweftError | None = None
        self.detached = []

    def _check(self, network):
        if self.error is not None:
            raise self.error
        if network not in self.networks:
            raise errors.NotFound("NETWORK_NOT_FOUND", f"there is no network {network}")

    async def subnets(self, network):
        self._check(network)
        return self.networks[network]

    async def attach(self, wish, container):
        self.containers.append(container)
        return await self._make(wish, sandbox_id=f"s-{container.container_id}", gateways=("10.1.0.1",))

    async def create(self, wish):
        return await self._make(wish)

    async def _make(self, wish, **fields):
        self._check(wish.network)
        self.wishes.append(wish)
        if (wish.network, wish.name) in self.found:
            raise errors.AlreadyExists("ENDPOINT_EXISTS", f"there is an endpoint {wish.name} already")
        address = ip_interface(f"{wish.addresses[0] if wish.addresses else '10.1.0.2'}/24")
        made = Found(
            id=f"id-{wish.name}",
            name=wish.name,
            addresses=(address,),
            labels=wish.labels,
            **fields,
        )
        self.found[wish.network, wish.name] = made
        return made

    async def detach(self, network, name):
        self._check(network)
        self.detached.append(name)
        self.found.pop((network, name), None)

    async def endpoint(self, network, name):
        self._check(network)
        if (network, name) not in self.found:
            raise errors.NotFound("ENDPOINT_NOT_FOUND", f"there is no endpoint {name}")
        return self.found[network, name]

    async def endpoints(self, network, label):
        if network:
            self._check(network)
        key, _, value = label.partition("=")
        return [
            one
            for (where, _), one in self.found.items()
            if where == (network or where) and one.labels.get(key) == value
        ]


class Host:
    """What owners want, and what is missing of it: for so many looks, or for good."""

    def __init__(self):
        self.missing: list[Operation] = []
        self.looks = 0
        self.repaired_after: int | None = None

    def wanted(self, owner):
        kind, _, _identifier = owner.partition("/")
        if kind == "endpoint":
            parts = [
                Link(ns="", name="nwv-1", kind="veth", master="nwb-1", peer=PeerEnd(ns="sandbox/s", name="eth0")),
                Link(ns="sandbox/s", name="eth0", kind="peer", mac="02:00:00:00:00:02", mtu=1450),
                Address(ns="sandbox/s", link="eth0", address="10.1.0.2/24"),
            ]
        else:
            parts = [
                Namespace(ns="sandbox/s", source="/run/netns/c1"),
                Route(ns="sandbox/s", destination="0.0.0.0/0", link="eth0", via="10.1.0.1"),
            ]
        return {one.key: one for one in parts}

    async def observe(self, ref):
        self.looks += 1
        if self.repaired_after is not None and self.looks > self.repaired_after:
            self.missing = []
        return {}, tuple(self.missing) if ref.kind is Kind.ENDPOINT else ()


class Given:
    """Says yes to every path but those of elsewhere."""

    def __init__(self):
        self.pinned: set[str] = set()

    def path(self, descriptor, asked, key):
        assert NETNS == descriptor
        if asked.startswith("/elsewhere"):
            self.pinned.add(key)
            return f"/pinned/{key}"
        return asked

    def forget(self, key):
        self.pinned.discard(key)

    def leads_to(self, path, descriptor):
        return (path, descriptor) == ("/run/netns/c1", NETNS)


class World:
    def __init__(self, folder):
        self.cluster, self.host, self.given, self.pending = Cluster(), Host(), Given(), Pending(folder)
        self.service = cni.CniService(
            cluster=self.cluster, host=self.host, given=self.given, pending=self.pending, host_id=HOST_ID
        )

    async def call(self, verb, *, container="c1", ifname="eth0", netns="/run/netns/c1", descriptor=NETNS, **config):
        variables = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_IFNAME": ifname, "CNI_NETNS": netns}
        code, text = await self.service.answer(frame(variables, {**CONFIG, **config}), descriptor)
        return code, json.loads(text) if text else None


def frame(variables, config):
    words = b"\0".join(f"{key}={value}".encode() for key, value in variables.items())
    whole = config if isinstance(config, bytes) else json.dumps(config).encode()
    return b"NWC1" + len(words).to_bytes(4, "big") + len(whole).to_bytes(4, "big") + words + whole


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


async def test_an_add_is_answered_with_all_that_it_has_made(world):
    assert (
        0,
        {
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "nwb-1"},
                {"name": "nwv-1"},
                {"name": "eth0", "mac": "02:00:00:00:00:02", "mtu": 1450, "sandbox": "/run/netns/c1"},
            ],
            "ips": [{"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 2}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}],
            "dns": {},
        },
    ) == await world.call("ADD")


async def test_before_1_1_0_there_is_no_mtu_and_before_1_0_0_addresses_have_a_version(world):
    _, older = await world.call("ADD", cniVersion="0.4.0")
    _, newer = await world.call("ADD", cniVersion="1.0.0", container="c2")

    assert ["4", None] == [one["ips"][0].get("version") for one in (older, newer)]
    assert all("mtu" not in one["interfaces"][2] for one in (older, newer))
    assert ["0.4.0", "1.0.0"] == [one["cniVersion"] for one in (older, newer)]


async def test_the_result_of_a_plugin_before_goes_first_and_ours_count_on(world):
    before = {
        "interfaces": [{"name": "other0"}, {"name": "net1", "sandbox": "/run/netns/c1"}],
        "ips": [{"address": "192.0.2.2/24", "interface": 1}],
        "routes": [{"dst": "198.51.100.0/24"}],
        "dns": {"nameservers": ["192.0.2.53"]},
    }

    _, result = await world.call("ADD", prevResult=before)

    assert ["other0", "net1", "nwb-1", "nwv-1", "eth0"] == [one["name"] for one in result["interfaces"]]
    assert [1, 4] == [one["interface"] for one in result["ips"]]
    assert ["198.51.100.0/24", "0.0.0.0/0"] == [one["dst"] for one in result["routes"]]
    assert {"nameservers": ["192.0.2.53"]} == result["dns"]


async def test_what_the_runtime_asks_for_is_what_the_endpoint_is(world):
    capabilities = {
        "ips": ["10.1.0.9/24"],
        "mac": "02:00:00:00:00:09",
        "aliases": {"front": ["web"]},
        "dns": {"servers": ["192.0.2.53"]},
        "portMappings": [{"hostPort": 8080, "containerPort": 80}],
        "bandwidth": {"ingressRate": 8000},
    }

    _, result = await world.call("ADD", runtimeConfig=capabilities, labels={"a": "b"}, gatewayPriority=3)

    (wish,), (container,) = world.cluster.wishes, world.cluster.containers
    assert (("10.1.0.9",), "02:00:00:00:00:09", ("web",), 3, "eth0") == (
        wish.addresses,
        wish.mac,
        wish.dns_names,
        wish.gateway_priority,
        wish.interface_name,
    )
    assert (8080, 8000) == (wish.ports[0].host_port, wish.bandwidth.ingress_rate)
    assert {
        "a": "b",
        "netweft.cni.network": "front",
        "netweft.cni.container": "c1",
        "netweft.cni.ifname": "eth0",
        "netweft.cni.host": HOST_ID,
    } == wish.labels
    assert ("c1", "/run/netns/c1", ("192.0.2.53",)) == (
        container.container_id,
        container.netns_path,
        container.dns_servers,
    )
    assert {"nameservers": ["192.0.2.53"]} == result["dns"]


async def test_a_second_add_of_the_same_is_refused_and_the_first_one_stays(world):
    await world.call("ADD", netns="/elsewhere/c1")

    code, answer = await world.call("ADD", netns="/elsewhere/c1")

    assert (1, 101) == (code, answer["code"])
    assert 1 == len(world.cluster.found) == len(world.given.pinned)


async def test_interfaces_of_one_container_are_attachments_of_their_own(world):
    for ifname in ("eth0", "eth1"):
        assert 0 == (await world.call("ADD", ifname=ifname))[0]
    await world.call("DEL", ifname="eth0")

    assert [cni.endpoint_name(HOST_ID, Attachment(container_id="c1", ifname="eth1"))] == [
        name for _, name in world.cluster.found
    ]


def test_equal_containers_of_two_hosts_have_endpoints_of_their_own():
    attachment = Attachment(container_id="c1", ifname="eth0")

    assert cni.endpoint_name("a" * 32, attachment) != cni.endpoint_name("b" * 32, attachment)


async def test_a_namespace_without_a_path_here_is_pinned_until_the_del(world):
    await world.call("ADD", netns="/elsewhere/c1")
    pinned = set(world.given.pinned)
    (container,) = world.cluster.containers

    await world.call("DEL", netns="", descriptor=None)

    assert [f"/pinned/{name}" for name in pinned] == [container.netns_path]
    assert set() == world.given.pinned


async def test_an_add_that_fails_lets_go_of_the_namespace(world):
    world.cluster.error = errors.Exhausted("POOL_FULL", "no address is free")

    code, answer = await world.call("ADD", netns="/elsewhere/c1")

    assert (1, 11) == (code, answer["code"])
    assert set() == world.given.pinned


@pytest.mark.parametrize(("rests_for", "expected"), [(3, 0), (1000, 1)], ids=["a while", "too long"])
async def test_an_add_waits_for_an_address_that_rests(world, monkeypatch, rests_for, expected):
    monkeypatch.setattr(rested, "REST_S", 0.05)
    resting = [errors.FailedPrecondition("ADDRESS_QUARANTINED", "it rests")] * rests_for

    async def attach(wish, container, make=world.cluster.attach):
        if resting:
            raise resting.pop()
        return await make(wish, container)

    monkeypatch.setattr(world.cluster, "attach", attach)

    code, answer = await world.call("ADD", runtimeConfig={"ips": ["10.1.0.9"]})

    assert (expected, 100 if expected else None) == (code, answer.get("code"))
    assert (expected == 1) == bool(resting)


async def test_an_add_without_a_descriptor_is_refused(world):
    code, answer = await world.call("ADD", descriptor=None)

    assert (1, 4) == (code, answer["code"])
    assert "CNI_NETNS" in answer["msg"]


async def test_a_del_is_well_with_everything_gone(world):
    await world.call("ADD")

    assert [(0, None)] * 3 == [
        await world.call("DEL", netns="", descriptor=None),
        await world.call("DEL"),
        await world.call("DEL", network="never-made"),
    ]
    assert {} == world.cluster.found


async def test_a_del_without_a_controller_is_kept_and_done_before_the_next_add(world):
    await world.call("ADD")
    world.cluster.error = errors.Unavailable("UNREACHABLE", "no controller")
    answer = await world.call("DEL")
    kept = len(list(world.pending))
    failed = await world.call("ADD")
    world.cluster.error = None

    again = await world.call("ADD")

    assert ((0, None), 1, 11, 0) == (answer, kept, failed[1]["code"], again[0])
    assert [] == list(world.pending)
    assert 1 == len(world.cluster.found)


async def test_a_kept_del_whose_network_has_gone_lets_go_of_the_namespace(world):
    await world.call("ADD", netns="/elsewhere/c1")
    world.cluster.error = errors.Unavailable("UNREACHABLE", "no controller")
    await world.call("DEL", netns="", descriptor=None)
    world.cluster.error = None
    del world.cluster.networks["front"]

    await world.call("ADD", container="c2", network="back")

    assert [] == list(world.pending)
    assert set() == world.given.pinned


async def test_an_add_waits_for_a_kept_del_that_is_under_way(world):
    await world.call("ADD")
    world.cluster.error = errors.Unavailable("UNREACHABLE", "no controller")
    await world.call("DEL")
    world.cluster.error = None
    begun, go_on = asyncio.Event(), asyncio.Event()
    detach = world.cluster.detach

    async def slow(network, name):
        begun.set()
        await go_on.wait()
        await detach(network, name)

    world.cluster.detach = slow
    async with asyncio.TaskGroup() as tasks:
        loop = tasks.create_task(world.service.run())
        await begun.wait()
        add = tasks.create_task(world.call("ADD"))
        await asyncio.sleep(0)
        world.cluster.detach = detach
        go_on.set()
        answer = await add
        loop.cancel()

    assert 0 == answer[0]
    assert (1, 1) == (len(world.cluster.found), len(world.cluster.detached))


async def test_a_kept_del_that_nobody_can_read_is_given_up(world):
    world.pending.keep(b"rubbish")
    world.pending.keep(frame({"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "../x", "CNI_IFNAME": "eth0"}, CONFIG))

    assert 0 == (await world.call("ADD"))[0]
    assert [] == list(world.pending)


async def previous(world, **fields):
    _, result = await world.call("ADD", **fields)
    return result


async def test_a_check_is_well_when_nothing_is_missing(world):
    result = await previous(world)

    assert (0, None) == await world.call("CHECK", prevResult=result)


MISSING = Operation(before=None, after=Address(ns="sandbox/s", link="eth0", address="10.1.0.2/24"), owner="endpoint/1")


async def test_a_check_tells_what_is_missing(world, monkeypatch):
    monkeypatch.setattr(cni, "CONVERGENCE_S", 0)
    result = await previous(world)
    world.host.missing = [MISSING]

    code, answer = await world.call("CHECK", prevResult=result)

    assert (1, 104) == (code, answer["code"])
    assert "ip address add 10.1.0.2/24 dev eth0" == answer["details"]


async def test_a_check_waits_for_a_repair_under_way(world):
    result = await previous(world)
    world.host.missing, world.host.repaired_after = [MISSING], 1

    assert (0, None) == await world.call("CHECK", prevResult=result)


async def test_a_check_lets_settings_alone_that_another_plugin_may_have_changed(world):
    result = await previous(world)
    setting = Sysctl(ns="sandbox/s", path="net/ipv4/conf/eth0/log_martians", value="1")
    world.host.missing = [Operation(before=None, after=setting, owner="endpoint/1")]

    assert (0, None) == await world.call("CHECK", prevResult=result)


async def test_a_check_of_what_was_never_added_is_of_an_unknown_container(world):
    result = await previous(world)

    code, answer = await world.call("CHECK", container="c2", prevResult=result)

    assert (1, 3) == (code, answer["code"])


async def test_a_check_in_another_namespace_than_the_adds_is_refused(world):
    result = await previous(world)

    code, answer = await world.call("CHECK", prevResult=result, descriptor=NETNS + 1, netns="/run/netns/c2")

    assert (1, 104) == (code, answer["code"])
    assert "/run/netns/c2 is not" in answer["msg"]


WRONG_RESULTS = {
    "no interface": ({"interfaces": [], "ips": []}, 7),
    "another interface": ({"interfaces": [{"name": "eth9", "sandbox": "/x"}], "ips": []}, 7),
    "an interface of the host": ({"interfaces": [{"name": "eth0"}], "ips": []}, 7),
    "another address": (
        {"interfaces": [{"name": "eth0", "sandbox": "/x"}], "ips": [{"address": "10.1.0.3/24", "interface": 0}]},
        104,
    ),
    "the address at another interface": (
        {"interfaces": [{"name": "eth0", "sandbox": "/x"}], "ips": [{"address": "10.1.0.2/24", "interface": 1}]},
        104,
    ),
}


@pytest.mark.parametrize(("result", "expected"), WRONG_RESULTS.values(), ids=WRONG_RESULTS)
async def test_a_check_with_another_result_than_the_adds_is_refused(world, result, expected):
    await world.call("ADD")

    code, answer = await world.call("CHECK", prevResult=result)

    assert (1, expected) == (code, answer["code"])


async def test_a_gc_takes_what_is_not_in_use_of_this_network_and_this_host(world):
    for container in ("a", "b", "c"):
        await world.call("ADD", container=container)
    await world.call("ADD", container="d", name="other", network="front")
    foreign = Found(
        id="x",
        name="x",
        labels={"netweft.cni.network": "front", "netweft.cni.host": "elsewhere", "netweft.cni.container": "z"},
    )
    by_hand = Found(id="y", name="y")
    world.cluster.found["front", "x"], world.cluster.found["front", "y"] = foreign, by_hand
    valid = [{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "eth1"}]

    answer = await world.call("GC", **{"cni.dev/valid-attachments": valid})

    assert (0, None) == answer
    assert ["a", "d", None, "z"] == sorted(
        (one.labels.get("netweft.cni.container") for one in world.cluster.found.values()),
        key=("a", "d", None, "z").index,
    )


async def test_a_gc_of_a_network_that_has_gone_is_well(world):
    assert (0, None) == await world.call("GC", network="gone", **{"cni.dev/valid-attachments": []})


STATUSES = {
    "ready": (None, "front", None),
    "no controller": (errors.Unavailable("UNREACHABLE", "no controller"), "front", 50),
    "no network": (None, "gone", 50),
}


@pytest.mark.parametrize(("error", "network", "expected"), STATUSES.values(), ids=STATUSES)
async def test_a_status_says_whether_an_add_could_be_done(world, error, network, expected):
    world.cluster.error = error

    code, answer = await world.call("STATUS", network=network)

    assert (int(expected is not None), expected) == (code, answer and answer["code"])


async def test_as_the_ipam_of_another_plugin_addresses_are_leased_and_nothing_is_made(world):
    config = {"type": "bridge", "ipam": {"type": "netweft", "network": "back", "routes": [{"dst": "0.0.0.0/0"}]}}
    world.cluster.networks["back"] = subnets("10.1.0.0/24")

    code, result = await world.call("ADD", descriptor=None, **config)
    checked = await world.call("CHECK", prevResult={"ips": result["ips"]}, **config)
    lost = await world.call("CHECK", prevResult={"ips": [{"address": "10.1.0.77/24"}]}, **config)
    gone = await world.call("DEL", **config)

    assert {
        "cniVersion": "1.1.0",
        "ips": [{"address": "10.1.0.2/24", "gateway": "10.1.0.1"}],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {},
    } == result
    assert (0, (0, None), 104, (0, None)) == (code, checked, lost[1]["code"], gone)
    assert ([], {}) == (world.cluster.containers, world.cluster.found)
    assert "" == world.cluster.wishes[0].interface_name


CODES = {
    "what was asked is wrong": (errors.InvalidArgument("X", "m"), 7),
    "there is no such thing": (errors.NotFound("X", "m"), 7),
    "it is there": (errors.AlreadyExists("X", "m"), 101),
    "something is in the way": (errors.FailedPrecondition("X", "m"), 100),
    "no": (errors.PermissionDenied("X", "m"), 102),
    "full": (errors.Exhausted("X", "m"), 11),
    "somebody was faster": (errors.Conflict("X", "m"), 11),
    "not now": (errors.Unavailable("X", "m"), 11),
    "the kernel": (errors.KernelError("op", "target", 22), 103),
    "a bug": (errors.Internal("X", "m"), 999),
}


@pytest.mark.parametrize(("error", "expected"), CODES.values(), ids=CODES)
async def test_every_error_has_its_code(world, error, expected):
    world.cluster.error = error

    code, answer = await world.call("ADD")

    assert (1, expected) == (code, answer["code"])
    assert {"cniVersion", "code", "msg"} == answer.keys()


async def test_a_bug_of_ours_is_told_and_takes_nobody_along(world, monkeypatch):
    monkeypatch.setattr(world.host, "wanted", lambda owner: 1 / 0)

    code, answer = await world.call("ADD")

    assert (1, 999) == (code, answer["code"])
    assert "ZeroDivisionError" in answer["msg"]


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n\r\n", b"NWC1" + b"\xff" * 8, b"NWC1" + bytes(9)])
async def test_a_frame_that_is_none_is_refused(world, sent):
    code, answer = await world.service.answer(sent, None)

    assert (1, 5) == (code, json.loads(answer)["code"])
