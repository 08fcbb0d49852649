"""What runtimes ask by CNI is read as the specification says, and refused with its codes."""

from __future__ import annotations

import json

import pytest
from netweft_agent.domain.objects import Bandwidth, PublishedPort
from netweft_agent.frontends.cni_config import VERSIONS, Attachment, CniError, Code, Dns, Verb, parse, version_of

ADD = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/c1", "CNI_IFNAME": "eth0"}
CONFIG = {"cniVersion": "1.0.0", "name": "front", "type": "netweft"}


def read(variables=(), own_name="netweft", **config):
    whole = {key: value for key, value in {**CONFIG, **config}.items() if value is not ...}
    return parse({**ADD, **dict(variables)}, json.dumps(whole).encode(), own_name=own_name)


def given(**capabilities):
    return {"runtimeConfig": capabilities}


def test_a_plain_add_has_its_attachment_and_the_network_of_its_name():
    request = read()

    assert (Verb.ADD, "1.0.0", "front", "front", "/run/netns/c1") == (
        request.verb, request.version, request.name, request.network, request.netns,
    )  # fmt: skip
    assert Attachment(container_id="c1", ifname="eth0") == request.attachment
    assert not request.lease_only


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_from_0_3_1_to_1_1_0_is_spoken(version):
    assert version == read(cniVersion=version).version


TAKEN = {
    "another network": ({"network": "back"}, "network", "back"),
    "addresses by capability": (given(ips=["10.1.0.5/24", "fd00::5"]), "addresses", ("10.1.0.5", "fd00::5")),
    "addresses by args": ({"args": {"cni": {"ips": ["10.1.0.5"]}}}, "addresses", ("10.1.0.5",)),
    "the capability before args": (
        {"args": {"cni": {"ips": ["10.1.0.6"]}}, **given(ips=["10.1.0.5/24"])},
        "addresses",
        ("10.1.0.5",),
    ),
    "a mac": (given(mac="02:AA:00:00:00:01"), "mac", "02:aa:00:00:00:01"),
    "ports": (
        given(
            portMappings=[
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": 5353, "containerPort": 53, "protocol": "UDP", "hostIP": "192.0.2.1"},
                {"hostPort": 1, "containerPort": 2},
            ]
        ),
        "ports",
        (
            PublishedPort(protocol="tcp", container_port=80, host_port=8080),
            PublishedPort(protocol="udp", container_port=53, host_port=5353, host_address="192.0.2.1"),
            PublishedPort(protocol="tcp", container_port=2, host_port=1),
        ),
    ),
    "bandwidth": (
        given(bandwidth={"ingressRate": 1, "ingressBurst": 2, "egressRate": 3, "egressBurst": 4}),
        "bandwidth",
        Bandwidth(ingress_rate=1, ingress_burst=2, egress_rate=3, egress_burst=4),
    ),
    "no bandwidth": (given(bandwidth={"ingressRate": 0, "egressRate": None}), "bandwidth", None),
    "aliases of this network": (given(aliases={"front": ["web", "www"], "back": ["db"]}), "aliases", ("web", "www")),
    "dns of the runtime": (
        given(dns={"servers": ["192.0.2.53"], "searches": ["a.example"], "options": ["ndots:5"]}),
        "dns",
        Dns(nameservers=("192.0.2.53",), search=("a.example",), options=("ndots:5",)),
    ),
    "dns of the configuration": (
        {"dns": {"nameservers": ["192.0.2.54"], "domain": "example", "search": ["b.example"]}},
        "dns",
        Dns(nameservers=("192.0.2.54",), domain="example", search=("b.example",)),
    ),
    "labels": (
        {"labels": {"a": "1"}, "args": {"cni": {"labels": [{"key": "b", "value": "2"}, "nonsense", {"key": 3}]}}},
        "labels",
        {"a": "1", "b": "2"},
    ),
    "a priority": ({"gatewayPriority": -5}, "gateway_priority", -5),
    "driver options": ({"options": {"x": "y"}}, "options", {"x": "y"}),
    "what runtimes add is let alone": (
        {"cniVersions": ["1.0.0"], "capabilities": {"mac": True}, "disableCheck": True, "cni.dev/attachments": []},
        "labels",
        {},
    ),
    "our own ipam is no other's": ({"ipam": {"type": "netweft"}}, "lease_only", False),
    "an empty ipam": ({"ipam": {}}, "lease_only", False),
    "args of others": ({"args": {"theirs": {"x": 1}, "cni": {"other": 2}}}, "labels", {}),
    "a previous result": ({"prevResult": {"ips": []}}, "previous", {"ips": []}),
}


@pytest.mark.parametrize(("config", "field", "expected"), TAKEN.values(), ids=TAKEN)
def test_configuration_args_and_capabilities_are_taken(config, field, expected):
    assert expected == getattr(read(**config), field)


def test_cni_args_give_address_mac_and_the_pods_labels():
    request = read({"CNI_ARGS": "IgnoreUnknown=1;IP=10.1.0.9;MAC=02:00:00:00:00:09;K8S_POD_NAME=web-1;OTHER=x"})

    assert (("10.1.0.9",), "02:00:00:00:00:09", {"K8S_POD_NAME": "web-1"}) == (
        request.addresses,
        request.mac,
        request.labels,
    )


def test_as_the_ipam_of_another_plugin_only_its_own_part_is_read():
    request = read(
        type="bridge",
        bridge="cni0",
        ipam={
            "type": "netweft",
            "network": "front",
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd00::1"}],
        },
    )

    assert request.lease_only
    assert (("0.0.0.0/0", ""), ("::/0", "fd00::1")) == request.routes


def test_the_name_of_the_file_is_what_a_configuration_calls_us():
    assert read(type="bridge", ipam={"type": "nw"}, own_name="nw").lease_only
    assert not read(type="nw", own_name="nw").lease_only


def test_a_gc_knows_what_is_in_use():
    valid = [{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "eth1"}]

    request = read({"CNI_COMMAND": "GC"}, cniVersion="1.1.0", **{"cni.dev/valid-attachments": valid})

    assert {Attachment(container_id="a", ifname="eth0"), Attachment(container_id="b", ifname="eth1")} == request.valid
    assert request.attachment is None


@pytest.mark.parametrize(
    ("ifname", "config", "expected"),
    [("eth0", {}, 0), ("net1", {}, -1), ("net1", {"gatewayPriority": 0}, 0), ("eth0", {"gatewayPriority": 7}, 7)],
)
def test_an_interface_beside_the_first_one_leaves_it_the_default_route_unless_told_otherwise(ifname, config, expected):
    assert expected == read({"CNI_IFNAME": ifname}, **config).gateway_priority


def test_a_del_needs_no_namespace():
    assert "" == read({"CNI_COMMAND": "DEL", "CNI_NETNS": ""}).netns


PREVIOUS = {"prevResult": {"ips": []}}
REFUSED = {
    "no command": ({"CNI_COMMAND": ""}, {}, Code.BAD_ENVIRONMENT, "CNI_COMMAND"),
    "an unknown command": ({"CNI_COMMAND": "PLUG"}, {}, Code.BAD_ENVIRONMENT, "PLUG"),
    "no container": ({"CNI_CONTAINERID": ""}, {}, Code.BAD_ENVIRONMENT, "CNI_CONTAINERID"),
    "a container that is a path": ({"CNI_CONTAINERID": "../../etc"}, {}, Code.BAD_ENVIRONMENT, "CNI_CONTAINERID"),
    "a container that begins badly": ({"CNI_CONTAINERID": "-x"}, {}, Code.BAD_ENVIRONMENT, "CNI_CONTAINERID"),
    "a container of a line too many": ({"CNI_CONTAINERID": "x\n"}, {}, Code.BAD_ENVIRONMENT, "CNI_CONTAINERID"),
    "an endless container": ({"CNI_CONTAINERID": "x" * 129}, {}, Code.BAD_ENVIRONMENT, "CNI_CONTAINERID"),
    "no interface": ({"CNI_IFNAME": ""}, {}, Code.BAD_ENVIRONMENT, "CNI_IFNAME"),
    "a long interface": ({"CNI_IFNAME": "e" * 16}, {}, Code.BAD_ENVIRONMENT, "CNI_IFNAME"),
    "an interface that is a path": ({"CNI_IFNAME": "../eth0"}, {}, Code.BAD_ENVIRONMENT, "CNI_IFNAME"),
    "an interface that is a folder": ({"CNI_IFNAME": ".."}, {}, Code.BAD_ENVIRONMENT, "CNI_IFNAME"),
    "an interface with a space": ({"CNI_IFNAME": "eth 0"}, {}, Code.BAD_ENVIRONMENT, "CNI_IFNAME"),
    "an interface with a colon": ({"CNI_IFNAME": "eth0:1"}, {}, Code.BAD_ENVIRONMENT, "CNI_IFNAME"),
    "an interface that is a pattern": ({"CNI_IFNAME": "eth%d"}, {}, Code.BAD_ENVIRONMENT, "CNI_IFNAME"),
    "both wrong": ({"CNI_IFNAME": "", "CNI_CONTAINERID": ""}, {}, Code.BAD_ENVIRONMENT, "CNI_IFNAME"),
    "no namespace": ({"CNI_NETNS": ""}, {}, Code.BAD_ENVIRONMENT, "CNI_NETNS"),
    "args that are no pairs": ({"CNI_ARGS": "x"}, {}, Code.BAD_ENVIRONMENT, "CNI_ARGS"),
    "args that nobody knows": ({"CNI_ARGS": "FOO=1"}, {}, Code.BAD_ENVIRONMENT, "FOO"),
    "an old version": ({}, {"cniVersion": "0.2.0"}, Code.INCOMPATIBLE_VERSION, "0.2.0"),
    "a version to come": ({}, {"cniVersion": "1.2.0"}, Code.INCOMPATIBLE_VERSION, "1.2.0"),
    "no version": ({}, {"cniVersion": ...}, Code.INCOMPATIBLE_VERSION, "cniVersion"),
    "a version that is a number": ({}, {"cniVersion": 1}, Code.DECODING_FAILURE, "cniVersion"),
    "CHECK before it was there": (
        {"CNI_COMMAND": "CHECK"}, {"cniVersion": "0.3.1", **PREVIOUS}, Code.INCOMPATIBLE_VERSION, "CHECK",
    ),
    "GC before it was there": ({"CNI_COMMAND": "GC"}, {}, Code.INCOMPATIBLE_VERSION, "GC"),
    "STATUS before it was there": ({"CNI_COMMAND": "STATUS"}, {}, Code.INCOMPATIBLE_VERSION, "STATUS"),
    "CHECK without a result": ({"CNI_COMMAND": "CHECK"}, {}, Code.BAD_CONFIGURATION, "prevResult"),
    "GC without a list": (
        {"CNI_COMMAND": "GC"}, {"cniVersion": "1.1.0"}, Code.BAD_CONFIGURATION, "valid-attachments",
    ),
    "GC with another list": (
        {"CNI_COMMAND": "GC"},
        {"cniVersion": "1.1.0", "cni.dev/valid-attachments": ["x"]},
        Code.BAD_CONFIGURATION,
        "valid-attachments",
    ),
    "no name": ({}, {"name": ...}, Code.BAD_CONFIGURATION, "name"),
    "a name that is a path": ({}, {"name": "../x"}, Code.BAD_CONFIGURATION, "name"),
    "a name that is a list": ({}, {"name": []}, Code.BAD_CONFIGURATION, "name"),
    "an unknown field": ({}, {"mtuu": 5}, Code.UNSUPPORTED_FIELD, "mtuu: 5"),
    "another ipam": ({}, {"ipam": {"type": "host-local"}}, Code.UNSUPPORTED_FIELD, "host-local"),
    "an unknown field of ours in ipam": (
        {}, {"type": "bridge", "ipam": {"type": "netweft", "subnet": "x"}}, Code.UNSUPPORTED_FIELD, "ipam.subnet",
    ),
    "a result that is a text": ({}, {"prevResult": "x"}, Code.BAD_CONFIGURATION, "prevResult"),
    "ipam that is a text": ({}, {"ipam": "x"}, Code.BAD_CONFIGURATION, "ipam"),
    "runtimeConfig that is a list": ({}, {"runtimeConfig": []}, Code.BAD_CONFIGURATION, "runtimeConfig"),
    "an address that is none": ({}, given(ips=["10.1.0.256"]), Code.BAD_CONFIGURATION, "10.1.0.256"),
    "an address that is a number": ({}, given(ips=[1]), Code.BAD_CONFIGURATION, "ips"),
    "a mac that is none": ({}, given(mac="x"), Code.BAD_CONFIGURATION, "mac"),
    "a port beyond": ({}, given(portMappings=[{"containerPort": 70000}]), Code.BAD_CONFIGURATION, "containerPort"),
    "a port that is true": ({}, given(portMappings=[{"containerPort": True}]), Code.BAD_CONFIGURATION, "containerPort"),
    "a port that is a text": ({}, given(portMappings=["80"]), Code.BAD_CONFIGURATION, "portMappings"),
    "a protocol": (
        {}, given(portMappings=[{"containerPort": 1, "protocol": "gre"}]), Code.BAD_CONFIGURATION, "protocol",
    ),
    "a host address": (
        {}, given(portMappings=[{"containerPort": 1, "hostIP": "here"}]), Code.BAD_CONFIGURATION, "hostIP",
    ),
    "a rate below nothing": ({}, given(bandwidth={"ingressRate": -1}), Code.BAD_CONFIGURATION, "ingressRate"),
    "a name server": ({}, given(dns={"servers": ["ns"]}), Code.BAD_CONFIGURATION, "dns"),
    "aliases": ({}, given(aliases={"front": "web"}), Code.BAD_CONFIGURATION, "aliases"),
    "labels": ({}, {"labels": {"a": 1}}, Code.BAD_CONFIGURATION, "labels.a"),
    "a route": (
        {},
        {"type": "bridge", "ipam": {"type": "netweft", "routes": [{"dst": "x"}]}},
        Code.BAD_CONFIGURATION,
        "routes",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("variables", "config", "code", "named"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_refused_with_its_code_and_named(variables, config, code, named):
    with pytest.raises(CniError) as caught:
        read(variables, **config)

    assert code == caught.value.code
    assert named in caught.value.message


UNREADABLE = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "a text": b'"x"',
    "bytes": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
}


@pytest.mark.parametrize("config", UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_a_decoding_failure(config):
    with pytest.raises(CniError) as caught:
        parse(ADD, config)

    assert Code.DECODING_FAILURE == caught.value.code
    assert VERSIONS[-1] == version_of(config)


def test_errors_are_written_in_the_version_that_was_asked_with():
    assert ["0.4.0", "1.1.0", "1.1.0"] == [
        version_of(text) for text in (b'{"cniVersion": "0.4.0"}', b'{"cniVersion": "7"}', b'{"cniVersion": []}')
    ]
