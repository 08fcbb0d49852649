"""Messages to objects and back, and every way in which a message can be wrong."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_interface, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from netweft.agent.v1 import agent_pb2
from netweft.common.v1 import endpoint_pb2, host_pb2, network_pb2, sandbox_pb2
from netweft_agent.domain.objects import Endpoint, Kind, Network, Peer, PublishedPort, Ref, Sandbox, Subnet
from netweft_agent.domain.plan import Operation
from netweft_agent.domain.resources import HOST, Address, Sysctl
from netweft_agent.engine.engine import Status
from netweft_agent.rpc import convert
from netweft_common.errors import InvalidArgument, KernelError

from tests.support.agent import DRIVERS, oid


def network_message(**fields):
    return network_pb2.Network(
        **{
            "id": oid(1),
            "name": "web",
            "driver": "overlay",
            "subnets": [network_pb2.Subnet(subnet="10.1.0.0/24", gateway="10.1.0.1")],
            "enable_ipv4": True,
            **fields,
        }
    )


def sandbox_message(**fields):
    return sandbox_pb2.Sandbox(**{"id": oid(101), **fields})


def endpoint_message(**fields):
    return endpoint_pb2.Endpoint(
        **{
            "id": oid(1001),
            "name": "ep",
            "network_id": oid(1),
            "sandbox_id": oid(101),
            "addresses": ["10.1.0.5/24"],
            **fields,
        }
    )


def peer_message(**fields):
    return endpoint_pb2.Peer(
        **{
            "endpoint_id": oid(5001),
            "network_id": oid(1),
            "host_id": oid(7),
            "vtep_address": "192.0.2.2",
            "mac_address": "02:00:00:00:00:02",
            "addresses": ["10.1.0.9/24"],
            **fields,
        }
    )


def test_a_network_is_read_whole():
    message = network_message(
        subnets=[
            network_pb2.Subnet(subnet="10.1.0.0/24", gateway="10.1.0.1"),
            network_pb2.Subnet(subnet="fd00::/64", gateway="fd00::1/64"),
            network_pb2.Subnet(subnet="10.2.0.0/24"),
        ],
        options={"mtu": "1400"},
        claims={"vni": 4096},
        internal=True,
        enable_ipv6=True,
        revision=3,
    )

    change = convert.change(agent_pb2.Change(revision=9, network=message))

    expected = Network(
        id=oid(1),
        name="web",
        driver="overlay",
        subnets=(
            Subnet(subnet=ip_network("10.1.0.0/24"), gateway=ip_interface("10.1.0.1/24")),
            Subnet(subnet=ip_network("fd00::/64"), gateway=ip_interface("fd00::1/64")),
            Subnet(subnet=ip_network("10.2.0.0/24"), gateway=None),
        ),
        options={"mtu": "1400"},
        claims={"vni": 4096},
        internal=True,
        enable_ipv6=True,
        revision=9,
    )
    assert (Ref(kind=Kind.NETWORK, id=oid(1)), 9, expected) == (change.ref, change.revision, change.put)


def test_a_sandbox_is_read_whole():
    message = sandbox_message(
        container_id="c1",
        namespace=sandbox_pb2.Namespace(pid=4711),
        hostname="web",
        domainname="example.net",
        dns=sandbox_pb2.DnsConfig(servers=["192.0.2.1"], search=["a", "b"], options=["ndots:0"]),
        extra_hosts=[
            sandbox_pb2.ExtraHost(name="db", address="10.0.0.9"),
            sandbox_pb2.ExtraHost(name="up", address="host-gateway"),
        ],
        hosts_path="/c/hosts",
        resolv_conf_path="/c/resolv.conf",
    )

    change = convert.change(agent_pb2.Change(revision=2, sandbox=message))

    assert change.put == Sandbox(
        id=oid(101),
        container_id="c1",
        source="pid:4711",
        hostname="web",
        domainname="example.net",
        dns_servers=("192.0.2.1",),
        dns_search=("a", "b"),
        dns_options=("ndots:0",),
        extra_hosts=(("db", "10.0.0.9"), ("up", "host-gateway")),
        hosts_path="/c/hosts",
        resolv_conf_path="/c/resolv.conf",
        revision=2,
    )


@pytest.mark.parametrize(
    ("namespace", "source"),
    [
        (None, ""),
        (sandbox_pb2.Namespace(), ""),
        (sandbox_pb2.Namespace(create=True), ""),
        (sandbox_pb2.Namespace(path="/run/netns/c1"), "/run/netns/c1"),
        (sandbox_pb2.Namespace(pid=1), "pid:1"),
        (sandbox_pb2.Namespace(host=True), "host"),
    ],
)
def test_where_a_namespace_comes_from(namespace, source):
    assert source == convert.sandbox(sandbox_message(namespace=namespace), "sandbox").source


def test_an_endpoint_is_read_whole():
    message = endpoint_message(
        mac_address="02:42:0A:00:00:02",
        addresses=["10.1.0.5/24", "fd00::5/64"],
        dns_names=["web"],
        interface_name="eth0",
        gateway_priority=-3,
        options={"a": "b"},
        state=endpoint_pb2.ENDPOINT_STATE_JOINED,
    )

    change = convert.change(agent_pb2.Change(revision=4, endpoint=message))

    assert change.put == Endpoint(
        id=oid(1001),
        name="ep",
        network_id=oid(1),
        sandbox_id=oid(101),
        mac="02:42:0a:00:00:02",
        addresses=(ip_interface("10.1.0.5/24"), ip_interface("fd00::5/64")),
        dns_names=("web",),
        interface_name="eth0",
        gateway_priority=-3,
        options={"a": "b"},
        confirmed=True,
        revision=4,
    )


@pytest.mark.parametrize(
    ("state", "confirmed"),
    [
        (endpoint_pb2.ENDPOINT_STATE_UNSPECIFIED, False),
        (endpoint_pb2.ENDPOINT_STATE_JOINING, False),
        (endpoint_pb2.ENDPOINT_STATE_JOINED, True),
        (endpoint_pb2.ENDPOINT_STATE_LEAVING, False),
    ],
)
def test_only_a_joined_endpoint_is_confirmed(state, confirmed):
    assert confirmed == convert.endpoint(endpoint_message(state=state), "endpoint").confirmed


def test_a_peer_is_read_whole():
    change = convert.change(agent_pb2.Change(revision=4, peer=peer_message(vtep_address="2001:db8::2")))

    assert change.put == Peer(
        endpoint_id=oid(5001),
        network_id=oid(1),
        host_id=oid(7),
        vtep="2001:db8::2",
        mac="02:00:00:00:00:02",
        addresses=("10.1.0.9",),
        revision=4,
    )


@pytest.mark.parametrize(
    ("written", "read"),
    [("10.1.0.9/24", "10.1.0.9"), ("0.1.0.9/24", "0.1.0.9"), ("FD00:0::9/64", "fd00::9"), ("fd00::9/32", "fd00::9")],
)
def test_of_a_peers_address_the_text_is_kept_as_everybody_writes_it(written, read):
    assert (read,) == convert.peer(peer_message(addresses=[written]), "peer").addresses


def test_a_removal_is_read():
    message = agent_pb2.Change(revision=4, gone=agent_pb2.ObjectRef(kind=agent_pb2.OBJECT_KIND_PEER, id=oid(5001)))

    change = convert.change(message)

    assert (Ref(kind=Kind.PEER, id=oid(5001)), 4, None) == (change.ref, change.revision, change.put)


LONG = "x" * 100_000

WRONG_IDS = [
    "",
    "x",
    oid(1)[:-1],
    oid(1) + "0",
    oid(1).upper().replace("0", "A"),
    "../" + oid(1)[3:],
    oid(1) + "\n",
    LONG,
]
WRONG_MACS = [
    "02:00:00:00:00",
    "02:00:00:00:00:00:00",
    "02-00-00-00-00-01",
    "03:00:00:00:00:01",
    "ff:ff:ff:ff:ff:ff",
    "00:00:00:00:00:00",
    "0g:00:00:00:00:01",
    "02:00:00:00:00:01\n",
    LONG,
]
WRONG_INTERFACES = [
    "a" * 16,
    "é" * 8,
    "a b",
    "a/b",
    "..",
    ".",
    "lo",
    "all",
    "default",
    "a:b",
    "a%d",
    "a\n",
    "a\x00",
    LONG,
]
WRONG_ADDRESSES = [
    "",
    "10.1.0.5",
    "10.1.0.5/33",
    "10.1.0/24",
    "fe80::1%eth0/64",
    "0.0.0.0/0",
    "224.0.0.1/4",
    "ff02::1/16",
    "10.1.0.5/24 ",
    "web",
    LONG,
]
WRONG_PATHS = ["relative", "/a/../../etc/shadow", "..", "/a/..", "/a\x00b", "/" + LONG]
WRONG_TEXTS = ["a\nb", "a\tb", "a\x00", "a\u2028b", LONG]


def cases():
    for text in WRONG_IDS:
        yield "network", network_message(id=text), "id"
        yield "sandbox", sandbox_message(id=text), "id"
        yield "endpoint", endpoint_message(id=text), "id"
        yield "endpoint", endpoint_message(network_id=text), "network_id"
        yield "endpoint", endpoint_message(sandbox_id=text), "sandbox_id"
        yield "peer", peer_message(endpoint_id=text), "endpoint_id"
        yield "peer", peer_message(network_id=text), "network_id"
        yield "gone", agent_pb2.ObjectRef(kind=agent_pb2.OBJECT_KIND_NETWORK, id=text), "id"
    for text in WRONG_MACS:
        yield "endpoint", endpoint_message(mac_address=text), "mac_address"
        yield "peer", peer_message(mac_address=text), "mac_address"
    for text in WRONG_INTERFACES:
        yield "endpoint", endpoint_message(interface_name=text), "interface_name"
    for text in WRONG_ADDRESSES:
        yield "endpoint", endpoint_message(addresses=["10.1.0.5/24", text]), "addresses[1]"
        yield "peer", peer_message(addresses=[text]), "addresses[0]"
    yield "endpoint", endpoint_message(addresses=["10.1.0.5/24"] * 257), "addresses"
    for text in ["", "nowhere", "0.0.0.0", "239.1.1.1", "fe80::1%eth0", LONG]:
        yield "peer", peer_message(vtep_address=text), "vtep_address"
    for text in WRONG_PATHS:
        yield "sandbox", sandbox_message(hosts_path=text), "hosts_path"
        yield "sandbox", sandbox_message(resolv_conf_path=text), "resolv_conf_path"
        yield "sandbox", sandbox_message(namespace=sandbox_pb2.Namespace(path=text)), "namespace.path"
    yield "sandbox", sandbox_message(namespace=sandbox_pb2.Namespace(path="")), "namespace.path"
    yield "sandbox", sandbox_message(namespace=sandbox_pb2.Namespace(pid=0)), "namespace.pid"
    yield "sandbox", sandbox_message(namespace=sandbox_pb2.Namespace(host=False)), "namespace.host"
    yield "sandbox", sandbox_message(namespace=sandbox_pb2.Namespace(create=False)), "namespace.create"
    for text in WRONG_TEXTS:
        yield "sandbox", sandbox_message(hostname=text), "hostname"
        yield "sandbox", sandbox_message(domainname=text), "domainname"
        yield "sandbox", sandbox_message(dns=sandbox_pb2.DnsConfig(search=["a", text])), "dns.search[1]"
        yield "sandbox", sandbox_message(dns=sandbox_pb2.DnsConfig(options=[text])), "dns.options[0]"
        extra = sandbox_pb2.ExtraHost(name=text, address="10.0.0.1")
        yield "sandbox", sandbox_message(extra_hosts=[extra]), "extra_hosts[0].name"
    for text in ["", "nowhere", "10.0.0.1 evil", "10.0.0.1/24", "10.0.0.1\n10.0.0.2"]:
        yield "sandbox", sandbox_message(dns=sandbox_pb2.DnsConfig(servers=[text])), "dns.servers[0]"
        extra = sandbox_pb2.ExtraHost(name="db", address=text)
        yield "sandbox", sandbox_message(extra_hosts=[extra]), "extra_hosts[0].address"
    many = [sandbox_pb2.ExtraHost(name="db", address="10.0.0.1")] * 257
    yield "sandbox", sandbox_message(extra_hosts=many), "extra_hosts"
    for text in ["", "10.1.0.1/24", "10.1.0.0/33", "web", LONG]:
        yield "network", network_message(subnets=[network_pb2.Subnet(subnet=text)]), "subnets[0].subnet"
    for text in ["10.2.0.1", "fd00::1", "web", "10.1.0.1.1"]:
        subnet = network_pb2.Subnet(subnet="10.1.0.0/24", gateway=text)
        yield "network", network_message(subnets=[subnet]), "subnets[0].gateway"
    yield "network", network_message(subnets=[network_pb2.Subnet(subnet="10.1.0.0/24")] * 257), "subnets"
    yield "gone", agent_pb2.ObjectRef(id=oid(1)), "kind"
    yield "gone", agent_pb2.ObjectRef(kind=99, id=oid(1)), "kind"


MALFORMED = [(agent_pb2.Change(revision=1, **{kind: message}), f"{kind}.{field}") for kind, message, field in cases()]


@pytest.mark.parametrize(("message", "field"), MALFORMED, ids=[f"{at}-{one[1]}" for at, one in enumerate(MALFORMED)])
def test_a_malformed_field_is_named(message, field):
    with pytest.raises(InvalidArgument) as caught:
        convert.change(message, "changes[3]")

    assert f"changes[3].{field}" == caught.value.field
    assert len(caught.value.message) < 400
    assert "\n" not in caught.value.message


def test_a_change_without_an_object_is_named():
    with pytest.raises(InvalidArgument, match="names no object") as caught:
        convert.change(agent_pb2.Change(revision=3), "changes[0]")

    assert "changes[0]" == caught.value.field


@pytest.mark.parametrize("count", [0, 4097])
def test_a_call_has_neither_no_changes_nor_too_many(count):
    with pytest.raises(InvalidArgument, match="1 to 4096") as caught:
        convert.changes([agent_pb2.Change()] * count)

    assert "changes" == caught.value.field


def test_a_batch_names_the_place_of_the_first_malformed_change():
    good = agent_pb2.Change(revision=1, network=network_message())

    with pytest.raises(InvalidArgument) as caught:
        convert.changes([good, agent_pb2.Change(revision=1, network=network_message(id="x"))])

    assert "changes[1].network.id" == caught.value.field


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80))
def test_bytes_that_parse_as_a_message_are_taken_or_refused_and_nothing_else(data):
    message = agent_pb2.Change()
    try:
        message.ParseFromString(data)
    except Exception:  # noqa: BLE001  # not even a message
        return
    try:
        convert.change(message)
    except InvalidArgument as error:
        assert error.field.startswith("change")  # noqa: PT017


texts = st.text(max_size=20)


@settings(max_examples=200, deadline=None)
@given(texts, texts, texts, texts, st.lists(texts, max_size=3))
def test_whatever_the_fields_say_they_are_taken_or_refused_and_nothing_else(mac, name, path, host, listed):
    messages = [
        agent_pb2.Change(endpoint=endpoint_message(mac_address=mac, interface_name=name, addresses=listed)),
        agent_pb2.Change(
            sandbox=sandbox_message(
                namespace=sandbox_pb2.Namespace(path=path),
                hostname=host,
                dns=sandbox_pb2.DnsConfig(servers=listed, search=listed, options=listed),
            )
        ),
        agent_pb2.Change(peer=peer_message(vtep_address=host, mac_address=mac)),
    ]
    for message in messages:
        try:
            item = convert.change(message).put
        except InvalidArgument:
            continue
        assert not isinstance(item, Sandbox) or "\n" not in item.hostname + "".join(item.dns_search)


def test_a_status_is_written():
    error = KernelError("ip link add", "eth0", 17, "exists")
    status = Status(
        ref=Ref(kind=Kind.ENDPOINT, id=oid(1001)), revision=7, error=error, interface_name="eth0", applied=True
    )

    message = convert.status_message(status)

    assert (agent_pb2.OBJECT_KIND_ENDPOINT, oid(1001)) == (message.object.kind, message.object.id)
    assert (7, "eth0", True) == (message.revision, message.interface_name, message.was_applied)
    assert ("KERNEL_EEXIST", error.message) == (message.status.reason, message.status.message)


def test_a_status_without_an_error_is_ok():
    message = convert.status_message(Status(ref=Ref(kind=Kind.SANDBOX, id=oid(1)), revision=1, netns_path="/run/x"))

    assert (0, "/run/x") == (message.status.code, message.netns_path)


def test_steps_are_written_in_order_without_those_that_need_no_command():
    add = Operation(before=None, after=Address(ns=HOST, link="br0", address="10.0.0.1/24"), owner="network/1")
    silent = Operation(before=Sysctl(ns=HOST, path="net/ipv4/ip_forward", value="1"), after=None, owner="network/1")

    (step,) = convert.steps([silent, add])

    assert ("ip address add 10.0.0.1/24 dev br0", "", "network/1", "ip address del 10.0.0.1/24 dev br0") == (
        step.command,
        step.namespace,
        step.owner,
        step.inverse,
    )


@pytest.mark.parametrize("name", DRIVERS)
def test_a_driver_tells_every_option_that_it_takes(name):
    driver = DRIVERS[name]

    info = convert.driver_info(driver)

    assert (name, driver.needs_addresses, driver.single_network) == (
        info.name,
        info.needs_addresses,
        info.single_network,
    )
    assert [one.name for one in dataclasses.fields(driver.options)] == [one.name for one in info.options]
    assert all(one.description for one in info.options)
    assert [one.name for one in driver.claims] == [one.name for one in info.claims]


def test_an_option_tells_type_default_range_and_form():
    options = {one.name: one for one in convert.driver_info(DRIVERS["bridge"]).options}

    assert options["icc"] == host_pb2.OptionInfo(
        name="icc",
        aliases=["com.docker.network.bridge.enable_icc"],
        type="bool",
        default_value="true",
        description="Let endpoints of the network talk to each other.",
    )
    assert ("int", "1500", 0, 65535) == (
        options["mtu"].type,
        options["mtu"].default_value,
        options["mtu"].minimum,
        options["mtu"].maximum,
    )
    assert "[A-Za-z0-9_.-]{1,15}" == options["bridge_name"].pattern


PORT = endpoint_pb2.PublishedPort(
    protocol=endpoint_pb2.PORT_PROTOCOL_UDP,
    container_port=53,
    host_address="192.0.2.1",
    host_port=5000,
    host_port_end=5010,
    assigned_port=5003,
)


def test_published_ports_are_read_and_written_whole():
    change = convert.change(agent_pb2.Change(revision=1, endpoint=endpoint_message(ports=[PORT])))

    assert isinstance(change.put, Endpoint)
    assert change.put.ports == (
        PublishedPort(
            protocol="udp",
            container_port=53,
            host_address="192.0.2.1",
            host_port=5000,
            host_port_end=5010,
            assigned_port=5003,
        ),
    )
    assert [PORT] == convert.published_ports(change.put.ports)


def test_the_answer_to_a_change_says_of_its_ports_only_what_was_assigned():
    ports = tuple(PublishedPort(container_port=80 + n, host_port=5000, host_port_end=6000) for n in range(3))
    ports = tuple(one.with_assigned(number) for one, number in zip(ports, (5001, 0, 5003), strict=True))
    status = Status(ref=Ref(kind=Kind.ENDPOINT, id=oid(1)), revision=7, ports=ports)

    answer = convert.status_message(status, of_revision=7)
    newer, report = convert.status_message(status, of_revision=6), convert.status_message(status)
    refusal = InvalidArgument("PORT_TWICE", "no")
    refused = convert.status_message(replace(status, error=refusal), of_revision=7)

    assert ([5001, 0, 5003], []) == (list(answer.assigned_ports), list(answer.ports))
    assert convert.published_ports(ports) == list(newer.ports) == list(report.ports)
    assert [] == [*newer.assigned_ports, *report.assigned_ports, *refused.assigned_ports]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", ""),
        ("0.0.0.0", "0.0.0.0"),
        ("::", "::"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("127.0.0.1", "127.0.0.1"),
    ],
)
def test_host_addresses_of_ports_are_made_canonical(given, expected):
    message = endpoint_message(ports=[endpoint_pb2.PublishedPort(container_port=80, host_address=given)])

    change = convert.change(agent_pb2.Change(revision=1, endpoint=message))

    assert isinstance(change.put, Endpoint)
    assert [PublishedPort(container_port=80, host_address=expected)] == list(change.put.ports)


BAD_PORTS = {
    "no container port": {"container_port": 0},
    "a container port beyond 65535": {"container_port": 65536},
    "a host port beyond 65535": {"host_port": 65536},
    "a range that ends beyond 65535": {"host_port": 65000, "host_port_end": 65536},
    "a range that ends before it starts": {"host_port": 81, "host_port_end": 80},
    "a range without a start": {"host_port_end": 80},
    "an assigned port beyond 65535": {"assigned_port": 65536},
    "a host address that is none": {"host_address": "host"},
    "a host address with a prefix": {"host_address": "192.0.2.1/24"},
    "a host address with a zone": {"host_address": "fe80::1%eth0"},
    "a link-local host address": {"host_address": "fe80::1"},
    "a multicast host address": {"host_address": "224.0.0.1"},
    "an unknown protocol": {"protocol": 9},
}


@pytest.mark.parametrize("fields", BAD_PORTS.values(), ids=BAD_PORTS)
def test_malformed_ports_are_refused_by_field(fields):
    message = endpoint_message(ports=[endpoint_pb2.PublishedPort(**{"container_port": 80, **fields})])

    with pytest.raises(InvalidArgument) as caught:
        convert.change(agent_pb2.Change(revision=1, endpoint=message))

    assert caught.value.metadata["field"].startswith("change.endpoint.ports[0]")


@pytest.mark.parametrize(
    "ports",
    [
        [endpoint_pb2.PublishedPort(container_port=80, assigned_port=at) for at in (1, 2)],
        [endpoint_pb2.PublishedPort(container_port=1 + at) for at in range(convert.MAX_PORTS + 1)],
    ],
    ids=["the same twice", "too many"],
)
def test_a_list_of_ports_that_cannot_be_is_refused(ports):
    with pytest.raises(InvalidArgument) as caught:
        convert.change(agent_pb2.Change(revision=1, endpoint=endpoint_message(ports=ports)))

    assert "change.endpoint.ports" == caught.value.metadata["field"]


def test_an_auxiliary_address_may_be_the_endpoints_gateway():
    subnets = [
        network_pb2.Subnet(
            subnet="10.1.0.0/24",
            gateway="10.1.0.1",
            aux_addresses={"DefaultGatewayIPv4": "10.1.0.254", "x": "10.1.0.9"},
        ),
        network_pb2.Subnet(subnet="fd00::/64", aux_addresses={"DefaultGatewayIPv6": "fd00::254"}),
    ]

    change = convert.change(agent_pb2.Change(revision=1, network=network_message(subnets=subnets)))

    assert isinstance(change.put, Network)
    assert ["10.1.0.254/24", "fd00::254/64"] == [str(one.default_gateway) for one in change.put.subnets]


@pytest.mark.parametrize(
    ("text", "reason"), [("10.2.0.1", "BAD_GATEWAY"), ("fd00::1", "BAD_GATEWAY"), ("web", "BAD_ADDRESS")]
)
def test_a_gateway_outside_its_subnet_is_refused(text, reason):
    subnet = network_pb2.Subnet(subnet="10.1.0.0/24", aux_addresses={"DefaultGatewayIPv4": text})

    with pytest.raises(InvalidArgument) as caught:
        convert.change(agent_pb2.Change(revision=1, network=network_message(subnets=[subnet])))

    assert reason == caught.value.reason
    assert "change.network.subnets[0].aux_addresses[DefaultGatewayIPv4]" == caught.value.metadata["field"]
