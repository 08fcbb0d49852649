"""Every option of a bridge network (libnetwork's, with Docker's names): default, what it takes, what it refuses.

From the controller, which checks what a user asks against what the driver told of itself, to the driver. The texts of
refusals are in tests/golden/options/: of the controller, and of an agent that works alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest
from netweft.common.v1 import host_pb2
from netweft_agent.drivers import base
from netweft_agent.drivers.bridge import BridgeDriver
from netweft_agent.drivers.bridge_options import Options
from netweft_agent.rpc import convert
from netweft_common import errors
from netweft_controller.clients import wire
from netweft_controller.domain import bridge, networks, options
from netweft_controller.domain.commits import Action, Entry, Write
from netweft_controller.domain.objects import Host, HostFacts, Network, Scope, Subnet
from netweft_controller.domain.specs import NetworkSpec
from netweft_controller.domain.state import State

from tests.support import golden

_SAID = host_pb2.Host(facts=host_pb2.HostFacts(drivers=[convert.driver_info(BridgeDriver())]))
(DRIVER,) = wire.host_from(_SAID).facts.drivers
DOCKERS = "com.docker.network.bridge."
BOOLS = {"true": True, "TRUE": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False}
NO_BOOLS = ("", "maybe", "2")
MODES = {mode: mode for mode in ("nat", "nat-unprotected", "routed", "isolated")}
NO_MODES = ("NAT", "bridge", "nat ", "routed,nat")
NO_ADDRESSES = ("x", "1.2.3.400", "192.0.2.1/24", "224.0.0.1", "ff02::1", "fe80::1%eth0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """An option.

    Attributes:
        docker: Docker's name for it; empty: it has none.
        takes: Texts, and what the driver makes of them.
        refuses: Texts.
    """

    docker: str
    default: Any
    takes: dict[str, Any]
    refuses: tuple[str, ...]


CASES = {
    "bridge_name": Case(
        docker=DOCKERS + "name",
        default="",
        takes={"": "", "br0": "br0", "docker0": "docker0", "nwb-0123456789a": "nwb-0123456789a", "a.b_c-d": "a.b_c-d"},
        refuses=("b" * 16, "br/0", "br 0", "br:0", "br%d", ".", "..", "lo", "all", "default", "br0\n"),
    ),
    "masquerade": Case(docker=DOCKERS + "enable_ip_masquerade", default=True, takes=BOOLS, refuses=NO_BOOLS),
    "icc": Case(docker=DOCKERS + "enable_icc", default=True, takes=BOOLS, refuses=NO_BOOLS),
    "inhibit_ipv4": Case(docker=DOCKERS + "inhibit_ipv4", default=False, takes=BOOLS, refuses=NO_BOOLS),
    "gateway_mode_ipv4": Case(docker=DOCKERS + "gateway_mode_ipv4", default="nat", takes=MODES, refuses=NO_MODES),
    "gateway_mode_ipv6": Case(docker=DOCKERS + "gateway_mode_ipv6", default="nat", takes=MODES, refuses=NO_MODES),
    "host_binding": Case(
        docker=DOCKERS + "host_binding_ipv4",
        default="0.0.0.0",
        takes={one: one for one in ("0.0.0.0", "127.0.0.1", "192.0.2.1", "::", "2001:db8::1")},
        refuses=NO_ADDRESSES,
    ),
    "default_bridge": Case(docker=DOCKERS + "default_bridge", default=False, takes=BOOLS, refuses=NO_BOOLS),
    "trusted_host_interfaces": Case(
        docker=DOCKERS + "trusted_host_interfaces",
        default="",
        takes={one: one for one in ("", "eth0", "eth0:wg0", ":".join(f"e{n}" for n in range(32)))},
        refuses=("eth0,eth1", "eth0::eth1", ":eth0", "eth0:", "e" * 16, "eth/0", "eth 0", ":".join("e" * 33)),
    ),
    "mtu": Case(
        docker="com.docker.network.driver.mtu",
        default=1500,
        takes={"0": 0, "68": 68, "1280": 1280, "1500": 1500, "9000": 9000, "65535": 65535},
        refuses=("", "-1", "1", "67", "65536", "1500.0", "0x5dc", "many"),
    ),
    "snat_ipv4": Case(
        docker="com.docker.network.host_ipv4",
        default="",
        takes={"": "", "192.0.2.1": "192.0.2.1"},
        refuses=(*NO_ADDRESSES, "2001:db8::1"),
    ),
    "snat_ipv6": Case(
        docker="com.docker.network.host_ipv6",
        default="",
        takes={"": "", "2001:db8::1": "2001:db8::1"},
        refuses=(*NO_ADDRESSES, "192.0.2.1"),
    ),
    "interface_prefix": Case(
        docker="com.docker.network.container_iface_prefix",
        default="eth",
        takes={one: one for one in ("eth", "lan", "e", "net-")},
        refuses=("", "e" * 12, "e/", "e:", "e t", "e%d"),
    ),
    "anti_spoof": Case(docker="", default=True, takes=BOOLS, refuses=NO_BOOLS),
    "advertise_addr_nmsgs": Case(
        docker="com.docker.network.advertise_addr_nmsgs",
        default=3,
        takes={"0": 0, "1": 1, "2": 2, "3": 3},
        refuses=("", "-1", "4", "1.5", "often"),
    ),
    "advertise_addr_ms": Case(
        docker="com.docker.network.advertise_addr_ms",
        default=1000,
        takes={"100": 100, "1000": 1000, "2000": 2000},
        refuses=("", "0", "99", "2001", "1s"),
    ),
}


def test_there_is_a_case_for_each_option():
    assert {one.name for one in dataclasses.fields(Options)} == CASES.keys()
    assert {one.name: one.aliases[:1] for one in DRIVER.options} == {
        name: (case.docker,) if case.docker else () for name, case in CASES.items()
    }


@pytest.mark.parametrize(("name", "case"), CASES.items(), ids=CASES)
def test_an_option_that_is_not_given_has_its_default_and_the_controller_knows_it(name, case):
    [told] = [one.default_value for one in DRIVER.options if one.name == name]

    assert case.default == getattr(base.parse(Options, {}, driver="bridge"), name)
    assert str(case.default).lower() == told.lower()


TAKEN = [
    (name, key, text, value)
    for name, case in CASES.items()
    for text, value in case.takes.items()
    for key in (name, case.docker)
    if key
]


@pytest.mark.parametrize(
    ("name", "key", "text", "value"), TAKEN, ids=[f"{key.rpartition('.')[2]}={text[:20]}" for _, key, text, _ in TAKEN]
)
def test_what_an_option_takes_comes_to_the_driver(name, key, text, value):
    checked = asked({key: text})

    assert value == getattr(base.parse(Options, checked, driver="bridge"), name)
    assert [name] == list(checked)


@pytest.mark.parametrize("name", CASES)
def test_what_an_option_refuses_is_told_by_its_name_with_what_was_asked_and_what_would_do(name):
    case = CASES[name]
    lines = []
    for text in case.refuses:
        with pytest.raises(errors.InvalidArgument) as told:
            asked({name: text})
        lines.append(f"{name}={text!r}\n  controller: {told.value.message}")
        assert f"options[{name!r}]" == told.value.field
        if text or name in {"mtu", "interface_prefix", "advertise_addr_nmsgs", "advertise_addr_ms"}:
            with pytest.raises(errors.InvalidArgument) as alone:
                base.parse(Options, {name: text}, driver="bridge")
            lines.append(f"  agent: {alone.value.message}")
            assert repr(text) in alone.value.message
    golden.check(f"options/{name}", "\n".join(lines) + "\n")


def test_no_refusals_are_kept_of_options_that_are_gone():
    assert set() == golden.unasked("options", set(CASES) | {"together"})


HOST = Host(id="1" * 32, name="h1", agent_target="unix:/h1", facts=HostFacts(drivers=(DRIVER,)))


def asked(given: dict[str, str], **fields: Any) -> dict[str, str]:
    """Return options as the controller records them."""
    checked = options.check(given, DRIVER)
    # Isolated networks have to be internal, which is another test's business.
    network = Network(id="2" * 32, name="n", driver="bridge", scope=Scope.LOCAL, internal=True, options=checked)
    bridge.check(State(store_id="s"), msgspec.structs.replace(network, **fields))
    return checked


TOGETHER: dict[str, dict[str, Any]] = {
    "isolated, not internal": {"options": {"gateway_mode_ipv4": "isolated"}},
    "isolated in IPv6, not internal": {"options": {"gateway_mode_ipv6": "isolated"}},
    "no family at all": {"enable_ipv4": False},
    "one option by both its names": {"options": {"mtu": "1400", "com.docker.network.driver.mtu": "1400"}},
    "an option that there is not": {"options": {"com.docker.network.bridge.colour": "red"}},
    "a default gateway outside": {
        "subnets": (Subnet(subnet="10.0.0.0/24", aux_addresses={"DefaultGatewayIPv4": "10.0.1.1"}),)
    },
    "a gateway outside": {"subnets": (Subnet(subnet="10.0.0.0/24", gateway="10.0.1.1"),)},
    "a multicast subnet": {"enable_ipv6": True, "subnets": (Subnet(subnet="ff02::/64"),)},
    "a link-local subnet": {"enable_ipv6": True, "subnets": (Subnet(subnet="fe80::/64"),)},
    "two subnets that overlap": {"subnets": (Subnet(subnet="10.0.0.0/24"), Subnet(subnet="10.0.0.0/25"))},
    "a bridge that another network has": {"options": {"bridge_name": "br-web"}},
    "a name that another network has": {"name": "web"},
}


def test_what_is_refused_together_is_told_with_what_stands_in_the_way():
    web = Network(id="3" * 32, name="web", driver="bridge", scope=Scope.LOCAL, options={"bridge_name": "br-web"})
    state = State(store_id="s")
    state.apply(Entry(1, 1000, (Write(Action.CREATED, HOST), Write(Action.CREATED, web))))
    lines = []

    for what, fields in TOGETHER.items():
        with pytest.raises(errors.NetweftError) as caught:
            networks.plan(state, NetworkSpec(**{"name": "n", **fields}), "f" * 32)
        lines.append(f"{what}\n  {type(caught.value).__name__} {caught.value.reason}: {caught.value.message}")

    golden.check("options/together", "\n".join(lines) + "\n")
