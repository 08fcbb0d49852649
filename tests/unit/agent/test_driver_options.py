"""Driver options: declared once, read from text, told apart when wrong."""

from __future__ import annotations

import dataclasses

import pytest
from netweft_agent.drivers import base
from netweft_agent.drivers.bridge_options import Options as BridgeOptions
from netweft_common.errors import InvalidArgument


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    icc: bool = base.option(default=True, doc="Talk.", aliases=("com.docker.network.bridge.enable_icc",))
    mtu: int = base.option(1500, "MTU.", aliases=("com.docker.network.driver.mtu",), minimum=68, maximum=65535)
    offset: int = base.option(0, "Unbounded.")
    mode: str = base.option("l2", "Mode.", choices=("l2", "l3"))
    parent: str = base.option("", "Parent.", pattern=r"[a-z0-9.]{1,15}")
    note: str = base.option("", "Anything.")


READ = {
    "nothing": ({}, Options()),
    "by name": ({"mtu": "1400"}, Options(mtu=1400)),
    "by alias": ({"com.docker.network.driver.mtu": "1400"}, Options(mtu=1400)),
    "lowest": ({"mtu": "68"}, Options(mtu=68)),
    "highest": ({"mtu": "65535"}, Options(mtu=65535)),
    "negative where unbounded": ({"offset": "-5"}, Options(offset=-5)),
    "bool true": ({"icc": "True"}, Options(icc=True)),
    "bool bare": ({"icc": ""}, Options(icc=True)),
    "bool 0": ({"icc": "0"}, Options(icc=False)),
    "bool no": ({"icc": "no"}, Options(icc=False)),
    "choice": ({"mode": "l3"}, Options(mode="l3")),
    "pattern": ({"parent": "eth0.10"}, Options(parent="eth0.10")),
    "the default is fine though it has another form": ({"parent": ""}, Options(parent="")),
    "any text": ({"note": "a b\tc"}, Options(note="a b\tc")),
}


@pytest.mark.parametrize(("given", "expected"), READ.values(), ids=READ)
def test_parse(given, expected):
    assert expected == base.parse(Options, given, driver="toy")


REFUSED = {
    "unknown": ({"colour": "red"}, "UNKNOWN_OPTION", "colour"),
    "not a number": ({"mtu": "many"}, "BAD_OPTION", "mtu"),
    "empty number": ({"mtu": ""}, "BAD_OPTION", "mtu"),
    "below": ({"mtu": "67"}, "BAD_OPTION", "mtu"),
    "above": ({"mtu": "65536"}, "BAD_OPTION", "mtu"),
    "two signs": ({"offset": "--5"}, "BAD_OPTION", "offset"),
    "digits of another script": ({"mtu": "١٤٠٠"}, "BAD_OPTION", "mtu"),
    "a superscript, which isdigit takes": ({"offset": "²"}, "BAD_OPTION", "offset"),
    "a number without end": ({"offset": "9" * 5000}, "BAD_OPTION", "offset"),
    "a fraction": ({"mtu": "1400.0"}, "BAD_OPTION", "mtu"),
    "no bool": ({"icc": "maybe"}, "BAD_OPTION", "icc"),
    "no choice": ({"mode": "l4"}, "BAD_OPTION", "mode"),
    "another form": ({"parent": "eth 0"}, "BAD_OPTION", "parent"),
    "a form with a newline behind": ({"parent": "eth0\n"}, "BAD_OPTION", "parent"),
    "name and alias": (
        {"mtu": "1400", "com.docker.network.driver.mtu": "1500"},
        "OPTION_TWICE",
        "com.docker.network.driver.mtu",
    ),
}


@pytest.mark.parametrize(("given", "reason", "key"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_told_by_its_key(given, reason, key):
    with pytest.raises(InvalidArgument) as caught:
        base.parse(Options, given, driver="toy")

    assert (reason, f"options[{key}]") == (caught.value.reason, caught.value.field)
    assert key in caught.value.message
    assert "toy" in caught.value.message


def test_an_unknown_key_is_told_the_known_ones():
    with pytest.raises(InvalidArgument, match="it takes: icc, mode, mtu, note, offset, parent"):
        base.parse(Options, {"colour": "red"}, driver="toy")


def test_a_driver_without_options_says_so():
    @dataclasses.dataclass(frozen=True)
    class Nothing:
        pass

    with pytest.raises(InvalidArgument, match="it takes: none"):
        base.parse(Nothing, {"x": "1"}, driver="toy")


@pytest.mark.parametrize(
    ("name", "accepted"),
    [("br-web", True), ("nwb-0123456789a", True), ("a" * 16, False), ("br web", False), ("br/web", False), ("", True)],
)
def test_a_bridges_name_is_one_that_the_kernel_takes(name, accepted):
    if accepted:
        assert name == base.parse(BridgeOptions, {"bridge_name": name}, driver="bridge").bridge_name
    else:
        with pytest.raises(InvalidArgument):
            base.parse(BridgeOptions, {"bridge_name": name}, driver="bridge")


BRIDGE_DEFAULTS = {
    "bridge_name": "",
    "icc": True,
    "masquerade": True,
    "mtu": 1500,
    "host_binding": "0.0.0.0",
    "inhibit_ipv4": False,
    "gateway_mode_ipv4": "nat",
    "gateway_mode_ipv6": "nat",
    "snat_ipv4": "",
    "snat_ipv6": "",
    "trusted_host_interfaces": "",
    "interface_prefix": "eth",
    "anti_spoof": True,
    "advertise_addr_nmsgs": 3,
    "advertise_addr_ms": 1000,
    "default_bridge": False,
}


def test_a_bridge_network_has_these_options_with_these_defaults():
    assert BRIDGE_DEFAULTS == dataclasses.asdict(base.parse(BridgeOptions, {}, driver="bridge"))


DOCKERS = {
    "com.docker.network.bridge.name": ("br0", "bridge_name", "br0"),
    "com.docker.network.bridge.enable_ip_masquerade": ("false", "masquerade", False),
    "com.docker.network.bridge.enable_icc": ("false", "icc", False),
    "com.docker.network.bridge.inhibit_ipv4": ("true", "inhibit_ipv4", True),
    "com.docker.network.bridge.gateway_mode_ipv4": ("routed", "gateway_mode_ipv4", "routed"),
    "com.docker.network.bridge.gateway_mode_ipv6": ("nat-unprotected", "gateway_mode_ipv6", "nat-unprotected"),
    "com.docker.network.bridge.host_binding_ipv4": ("127.0.0.1", "host_binding", "127.0.0.1"),
    "com.docker.network.bridge.default_bridge": ("true", "default_bridge", True),
    "com.docker.network.bridge.trusted_host_interfaces": ("eth0:wg0", "trusted_host_interfaces", "eth0:wg0"),
    "com.docker.network.driver.mtu": ("9000", "mtu", 9000),
    "com.docker.network.advertise_addr_nmsgs": ("0", "advertise_addr_nmsgs", 0),
    "com.docker.network.advertise_addr_ms": ("100", "advertise_addr_ms", 100),
    "com.docker.network.host_ipv4": ("192.0.2.1", "snat_ipv4", "192.0.2.1"),
    "com.docker.network.host_ipv6": ("2001:db8::1", "snat_ipv6", "2001:db8::1"),
    "com.docker.network.container_iface_prefix": ("lan", "interface_prefix", "lan"),
}


@pytest.mark.parametrize(("key", "case"), DOCKERS.items(), ids=DOCKERS)
def test_a_bridge_networks_options_have_dockers_names_too(key, case):
    text, name, value = case

    assert BRIDGE_DEFAULTS | {name: value} == dataclasses.asdict(
        base.parse(BridgeOptions, {key: text}, driver="bridge")
    )


BRIDGE_REFUSALS = {
    "a name with a slash": ("bridge_name", "br/0"),
    "a name that is too long": ("bridge_name", "b" * 16),
    "a name that the kernel uses": ("bridge_name", "all"),
    "a name that is a folder": ("bridge_name", ".."),
    "no truth value": ("masquerade", "maybe"),
    "more announcements than Docker sends": ("advertise_addr_nmsgs", "4"),
    "fewer announcements than none": ("advertise_addr_nmsgs", "-1"),
    "announcements in quick succession": ("advertise_addr_ms", "99"),
    "announcements in slow succession": ("advertise_addr_ms", "2001"),
    "an MTU below IP's": ("mtu", "67"),
    "a negative MTU": ("mtu", "-1"),
    "an MTU beyond what fits": ("mtu", "65536"),
    "an unknown mode": ("gateway_mode_ipv4", "open"),
    "an unknown mode of IPv6": ("gateway_mode_ipv6", "NAT"),
    "a binding that is no address": ("host_binding", "1.2.3.400"),
    "a binding to a multicast address": ("host_binding", "224.0.0.1"),
    "a SNAT address of the other family": ("snat_ipv6", "1.2.3.4"),
    "a SNAT address that is none": ("snat_ipv4", "1.2.3.400"),
    "a SNAT address with a zone": ("snat_ipv6", "fe80::1%eth0"),
    "trusted interfaces by comma": ("trusted_host_interfaces", "eth0, eth1"),
    "a trusted interface that is too long": ("trusted_host_interfaces", "e" * 16),
    "an empty trusted interface": ("trusted_host_interfaces", "eth0::eth1"),
    "a prefix that leaves no room for a number": ("interface_prefix", "e" * 12),
    "a prefix with a slash": ("interface_prefix", "e/"),
}


@pytest.mark.parametrize(("name", "value"), BRIDGE_REFUSALS.values(), ids=BRIDGE_REFUSALS)
def test_a_bridge_networks_option_that_is_wrong_is_told_by_its_name(name, value):
    with pytest.raises(InvalidArgument) as caught:
        base.parse(BridgeOptions, {name: value}, driver="bridge")

    assert ("BAD_OPTION", f"options[{name}]") == (caught.value.reason, caught.value.metadata["field"])


def test_addresses_in_options_are_made_canonical():
    found = base.parse(BridgeOptions, {"host_binding": "2001:DB8:0::1", "snat_ipv6": "2001:DB8::0:2"}, driver="bridge")

    assert ("2001:db8::1", "2001:db8::2") == (found.binding, found.snat(6))
