"""Published ports as Docker writes them, limits as tc does, and changes of them."""

from __future__ import annotations

import pytest
from netweft_cli import endpointflags
from netweft_client import Bandwidth, Protocol, PublishedPort, StaticRoute
from netweft_common import errors


def port(container, host=0, end=0, *, address="", protocol="tcp", assigned=0):
    return PublishedPort(
        container_port=container,
        protocol=Protocol(protocol),
        host_address=address,
        host_port=host,
        host_port_end=end,
        assigned_port=assigned,
    )


GOOD = {
    "80": [port(80)],
    "80/UDP": [port(80, protocol="udp")],
    "8080:80": [port(80, 8080)],
    ":80": [port(80)],
    "8080:80/sctp": [port(80, 8080, protocol="sctp")],
    "127.0.0.1:8080:80": [port(80, 8080, address="127.0.0.1")],
    "127.0.0.1::80": [port(80, address="127.0.0.1")],
    "[2001:db8::1]:8080:80": [port(80, 8080, address="2001:db8::1")],
    "8000-8010:80": [port(80, 8000, 8010)],
    "80-82": [port(80), port(81), port(82)],
    "8080-8082:80-82": [port(80, 8080), port(81, 8081), port(82, 8082)],
}


@pytest.mark.parametrize("text", GOOD)
def test_a_port_is_read_as_docker_writes_it(text):
    assert tuple(GOOD[text]) == endpointflags.ports([text])


BAD = [
    "", "web", "80/quic", "80:", "8080:80:90:1", "2001:db8::1:8080:80", "82-80", "8080-8081:80-82", "-90:80", "70000",
    "1-65535", "80/tcp/udp", "8080:80 ",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_port_is_refused_with_what_was_written(text):
    with pytest.raises(errors.InvalidArgument) as caught:
        endpointflags.ports([text])

    assert repr(text) in caught.value.message


def test_ports_are_added_and_removed_by_what_they_lead_to():
    known = (port(80, assigned=40000), port(53, protocol="udp"), port(80, address="127.0.0.1"))

    found = endpointflags.changed(known, ["443"], ["80"])

    assert (port(53, protocol="udp"), port(443)) == found
    with pytest.raises(errors.InvalidArgument, match="published are 53/udp"):
        endpointflags.changed(known[1:2], None, ["53"])


SHOWN = {
    "0.0.0.0:40000->80/tcp": port(80, assigned=40000),
    "[::1]:8080->80/udp": port(80, 8080, address="::1", protocol="udp"),
    "80/tcp": port(80),
}


@pytest.mark.parametrize("text", SHOWN)
def test_a_port_is_shown_as_dockers_lists_do(text):
    assert text == endpointflags.text_of(SHOWN[text])


def test_routes_and_settings_are_read():
    assert (
        StaticRoute(destination="198.51.100.0/24", next_hop="10.0.0.9"),
        StaticRoute(destination="203.0.113.0/24", next_hop=""),
    ) == endpointflags.routes(["198.51.100.0/24=10.0.0.9", "203.0.113.0/24"])
    assert {"net.ipv4.conf.IFNAME.x": "1"} == endpointflags.sysctls(["net.ipv4.conf.IFNAME.x=1"])


LIMITS = {
    "a way in": (("10mbit", "", "", ""), Bandwidth(ingress_bits_per_second=10_000_000)),
    "both ways with bursts": (
        ("1.5gbit", "1mb", "64KBIT", "1kb"),
        Bandwidth(
            ingress_bits_per_second=1_500_000_000,
            ingress_burst_bits=8 << 20,
            egress_bits_per_second=64_000,
            egress_burst_bits=8192,
        ),
    ),
    "nothing": (("", "", "", ""), None),
    "none": (("0", "", "0", ""), Bandwidth()),
}


@pytest.mark.parametrize(("texts", "expected"), LIMITS.values(), ids=LIMITS)
def test_limits_are_read_with_units_as_tc_has_them(texts, expected):
    assert expected == endpointflags.bandwidth(*texts)


KNOWN = Bandwidth(
    ingress_bits_per_second=8000, ingress_burst_bits=16, egress_bits_per_second=9000, egress_burst_bits=32
)
CHANGED_LIMITS = {
    "one rate": (
        ("10kbit", "", "", ""),
        Bandwidth(
            ingress_bits_per_second=10_000, ingress_burst_bits=16, egress_bits_per_second=9000, egress_burst_bits=32
        ),
    ),
    "one away": (("", "", "0", ""), Bandwidth(ingress_bits_per_second=8000, ingress_burst_bits=16)),
    "a burst away": (
        ("", "0", "", ""),
        Bandwidth(ingress_bits_per_second=8000, egress_bits_per_second=9000, egress_burst_bits=32),
    ),
}


@pytest.mark.parametrize(("texts", "expected"), CHANGED_LIMITS.values(), ids=CHANGED_LIMITS)
def test_a_change_of_limits_keeps_what_no_flag_names(texts, expected):
    assert expected == endpointflags.bandwidth(*texts, KNOWN)


@pytest.mark.parametrize(
    ("texts", "flag"),
    [
        (("fast", "", "", ""), "--ingress-rate"),
        (("10", "", "", ""), "--ingress-rate"),
        (("-1mbit", "", "", ""), "--ingress-rate"),
        (("", "", "1mb", ""), "--egress-rate"),
        (("1mbit", "65536", "", ""), "--ingress-burst"),
        (("", "", "1mbit", "1tb"), "--egress-burst"),
    ],
)
def test_what_is_no_limit_is_refused_with_the_flag_and_its_units(texts, flag):
    with pytest.raises(errors.InvalidArgument, match="units bit, kbit") as caught:
        endpointflags.bandwidth(*texts)

    assert flag == caught.value.metadata["field"]


SHOWN_LIMITS = {
    "-": None,
    "in 10mbit": Bandwidth(ingress_bits_per_second=10_000_000),
    "in 1500kbit, out 1gbit": Bandwidth(ingress_bits_per_second=1_500_000, egress_bits_per_second=10**9),
    "out 8001bit": Bandwidth(egress_bits_per_second=8001),
}


@pytest.mark.parametrize("text", SHOWN_LIMITS)
def test_limits_are_shown_with_the_largest_unit_that_is_exact(text):
    assert text == endpointflags.limit_of(SHOWN_LIMITS[text])


def test_limits_are_cleared_as_a_whole():
    assert Bandwidth() == endpointflags.Clear.BANDWIDTH.nothing
