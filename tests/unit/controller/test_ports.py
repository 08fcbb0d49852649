"""Published ports as callers ask for them: what is refused and by which field, what is made canonical."""

from __future__ import annotations

import msgspec
import pytest
from netweft.common.v1 import endpoint_pb2
from netweft_common import errors
from netweft_controller.clients import wire
from netweft_controller.domain import endpoints, fields
from netweft_controller.domain.objects import Endpoint, Kind, Network, PublishedPort, Record, Scope
from netweft_controller.store import codec

NETWORK = Network(id="1" * 32, name="web", driver="bridge", scope=Scope.LOCAL)


def port(container_port=80, **values):
    return PublishedPort(container_port=container_port, **values)


def check(*ports, network=NETWORK):
    return endpoints.published_ports(ports, network, "endpoint.ports")


GOOD = {
    "automatic": (port(), port()),
    "exact": (port(host_port=8080), port(host_port=8080)),
    "a range": (port(host_port=8000, host_port_end=8010), port(host_port=8000, host_port_end=8010)),
    "every protocol": (port(protocol="sctp"), port(protocol="sctp")),
    "an address": (port(host_address="2001:DB8::0:1"), port(host_address="2001:db8::1")),
    "a mapped address": (port(host_address="::ffff:192.0.2.1"), port(host_address="192.0.2.1")),
    "all of a family": (port(host_address="0.0.0.0"), port(host_address="0.0.0.0")),
    "the loopback address": (port(host_address="127.0.0.1"), port(host_address="127.0.0.1")),
    "what a host assigned is left out": (port(assigned_port=40000), port()),
}


@pytest.mark.parametrize(("given", "expected"), GOOD.values(), ids=GOOD)
def test_a_good_port_is_taken_in_canonical_form(given, expected):
    assert (expected,) == check(given)


BAD = {
    "no container port": ([port(0)], "[0].container_port", "PORT_OUT_OF_RANGE"),
    "a container port beyond the last": ([port(65536)], "[0].container_port", "PORT_OUT_OF_RANGE"),
    "a host port beyond the last": ([port(host_port=65536)], "[0].host_port", "PORT_OUT_OF_RANGE"),
    "a range that ends before it starts": (
        [port(host_port=81, host_port_end=80)],
        "[0].host_port_end",
        "PORT_OUT_OF_RANGE",
    ),
    "a range without a start": ([port(host_port_end=80)], "[0].host_port", "FIELD_MISSING"),
    "an unknown protocol": ([port(protocol="9")], "[0].protocol", "PROTOCOL_UNKNOWN"),
    "no address": ([port(host_address="web")], "[0].host_address", "ADDRESS_MALFORMED"),
    "an address with a prefix": ([port(host_address="192.0.2.1/24")], "[0].host_address", "ADDRESS_MALFORMED"),
    "an address with a zone": ([port(host_address="fe80::1%eth0")], "[0].host_address", "ADDRESS_UNUSABLE"),
    "a multicast address": ([port(host_address="224.0.0.1")], "[0].host_address", "ADDRESS_UNUSABLE"),
    "the loopback address of IPv6": ([port(host_address="::1")], "[0].host_address", "ADDRESS_UNUSABLE"),
    "the same twice": ([port(), port()], "[1]", "PORT_TWICE"),
    "one host port for two": ([port(80, host_port=80), port(81, host_port=80)], "[1]", "PORT_TWICE"),
    "too many": ([port(1 + at) for at in range(fields.PORTS_MAX + 1)], "", "TOO_MANY"),
}


@pytest.mark.parametrize(("given", "where", "reason"), BAD.values(), ids=BAD)
def test_a_bad_port_is_refused_by_its_field(given, where, reason):
    with pytest.raises(errors.InvalidArgument) as caught:
        check(*given)

    assert (reason, f"endpoint.ports{where}") == (caught.value.reason, caught.value.metadata["field"])


def test_one_host_port_at_two_addresses_or_in_two_protocols_is_fine():
    given = (
        port(80, host_port=80, host_address="192.0.2.1"),
        port(81, host_port=80, host_address="192.0.2.2"),
        port(80, host_port=80, protocol="udp", host_address="192.0.2.1"),
    )

    assert given == check(*given)


def test_an_internal_network_publishes_nothing():
    with pytest.raises(errors.FailedPrecondition) as caught:
        check(port(), network=msgspec.structs.replace(NETWORK, internal=True))

    assert "INTERNAL_NETWORK" == caught.value.reason


FULL = port(protocol="udp", host_address="192.0.2.1", host_port=5000, host_port_end=5010, assigned_port=5003)


def test_ports_go_over_the_wire_and_into_the_store_whole():
    endpoint = Endpoint(id="2" * 32, name="db", network_id=NETWORK.id, ports=(FULL, port()))

    message = wire.endpoint(Record(endpoint, 1, 0))
    stored = codec.decode(Kind.ENDPOINT, codec.encode(endpoint))

    assert endpoint.ports == tuple(wire.published_port_from(one) for one in message.ports)
    assert endpoint == stored


def test_a_protocol_that_is_not_said_is_tcp_and_an_unknown_one_is_refused_later():
    said = [endpoint_pb2.PublishedPort(container_port=80, protocol=number) for number in (0, 77)]

    assert ["tcp", "77"] == [wire.published_port_from(one).protocol for one in said]
