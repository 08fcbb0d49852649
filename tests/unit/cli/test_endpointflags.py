"""Published ports as Docker writes them, and changes of them."""

from __future__ import annotations

import pytest
from netweft_cli import endpointflags
from netweft_client import Protocol, PublishedPort, StaticRoute
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
