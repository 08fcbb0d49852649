"""Which flows end with ports: by port where few end, by the endpoint's address where nothing leads to it any more."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from netweft_agent.domain.resources import HOST, PortHold
from netweft_agent.kernel.conntrack import FEW, Flows, Translated, of_ports

A, B = "10.0.0.2", "10.0.0.3"


def hold(number, *targets, protocol="tcp", address="0.0.0.0"):  # as ports are published
    return PortHold(ns=HOST, protocol=protocol, address=address, port=number, targets=targets)


def holds(count, *addresses, first=1):
    return [hold(first + number, *(f"{one}:{number}" for one in addresses)) for number in range(count)]


def by_port(ports):
    return [Flows(one.protocol, one.address, one.port) for one in ports]


MANY = FEW + 1


@pytest.mark.parametrize(
    ("ended", "held", "expected"),
    [
        pytest.param([], [], [], id="nothing"),
        pytest.param(holds(FEW, A), [], by_port(holds(FEW, A)), id="few go by port"),
        pytest.param(holds(MANY, A), [], [Translated(A)], id="many go by address"),
        pytest.param(
            holds(MANY, A, "[fd00::2]"), [], [Translated(A), Translated("fd00::2")], id="both families by address"
        ),
        pytest.param(holds(MANY, A), holds(1, A, first=900), by_port(holds(MANY, A)), id="one is left, so by port"),
        pytest.param(holds(MANY, A), holds(3, B, first=900), [Translated(A)], id="another's are no hindrance"),
        pytest.param(
            [*holds(MANY, A), hold(99, f"{B}:1")], [], [Translated(A), *by_port([hold(99)])], id="each as it is best"
        ),
        pytest.param(
            holds(MANY, A, "[fd00::2]"),
            [hold(900, "[fd00::2]:1")],
            [Translated(A), *by_port(holds(MANY, A))],
            id="one family is left, so by port too",
        ),
        pytest.param([hold(1), hold(1)], [], by_port([hold(1)]), id="each once"),
        pytest.param(holds(MANY), [], by_port(holds(MANY)), id="what led nowhere goes by port"),
    ],
)
def test_what_ends_with_ports(ended, held, expected):
    assert {HOST: expected} == of_ports(ended, lambda: held)


def test_what_is_held_is_asked_for_only_where_many_end():
    def held():
        raise AssertionError("asked")

    assert {HOST: by_port(holds(2, A))} == of_ports(holds(2, A), held)


def test_ports_through_a_namespace_end_there_at_any_address_and_in_the_host_one_by_one():
    inside = [replace(one, address="192.0.2.1", through="network/n") for one in holds(FEW + 1, A)]
    beside = hold(99, f"{A}:99")

    found = of_ports([*inside, beside], lambda: [beside])

    expected = {
        HOST: [*(Flows("tcp", "192.0.2.1", one.port) for one in inside), Flows("tcp", "0.0.0.0", 99)],
        "network/n": [Translated(A)],
    }
    assert expected == found


def test_ports_through_a_namespace_that_are_left_keep_their_flows():
    inside = [replace(one, through="network/n") for one in holds(FEW + 2, A)]

    found = of_ports(inside[:-1], lambda: inside[-1:])

    assert [Flows("tcp", "*", one.port) for one in inside[:-1]] == found["network/n"]
