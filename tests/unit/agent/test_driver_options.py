"""Driver options: declared once, read from text, told apart when wrong."""

from __future__ import annotations

import dataclasses

import pytest
from netweft_agent.drivers import base
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
    from netweft_agent.drivers.bridge import Options as BridgeOptions  # noqa: PLC0415  # the only use

    if accepted:
        assert name == base.parse(BridgeOptions, {"bridge_name": name}, driver="bridge").bridge_name
    else:
        with pytest.raises(InvalidArgument):
            base.parse(BridgeOptions, {"bridge_name": name}, driver="bridge")
