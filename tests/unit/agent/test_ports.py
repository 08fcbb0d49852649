"""Which port of the host a binding gets."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from netweft_agent.domain.objects import PublishedPort
from netweft_agent.domain.ports import PortWant, assign
from netweft_common.errors import Exhausted, FailedPrecondition

ANY = ("0.0.0.0", "::")


class Pool:
    """A reserver of a few ports; what it gives is taken."""

    def __init__(self, *free):
        self.free = list(free)
        self.asked: list[PortWant] = []

    def reserve(self, want):
        self.asked.append(want)
        for port in self.free:
            if not want.first or want.first <= port <= want.last:
                self.free.remove(port)
                return port
        if want.first:
            raise FailedPrecondition("PORTS_IN_USE", f"none of {want.first} to {want.last}")
        raise Exhausted("PORTS_EXHAUSTED", "none at all")


def everywhere(port):
    return (port.host_address,) if port.host_address else ANY


def port(container_port=80, first=0, last=0, *, address="", protocol="tcp", assigned=0):
    return PublishedPort(
        protocol=protocol,
        container_port=container_port,
        host_address=address,
        host_port=first,
        host_port_end=last,
        assigned_port=assigned,
    )


TABLE = {
    "an exact port is what it says": ([port(first=8080)], [], [], [8080]),
    "a range of one port is an exact port": ([port(first=8080, last=8080)], [], [], [8080]),
    "an automatic port is the next free one": ([port()], [], [40001, 40002], [40001]),
    "two automatic ports differ": ([port(80), port(81)], [], [40001, 40002], [40001, 40002]),
    "a range gives its first free port": ([port(first=5000, last=5010)], [], [4999, 5004, 5005], [5004]),
    "ranges choose before automatic ports": ([port(80), port(81, 5000, 5010)], [], [5001, 40001], [40001, 5001]),
    "what it has, it keeps": ([port(), port(81)], [port(assigned=40009)], [40001], [40009, 40001]),
    "a changed binding is a new one": ([port(81)], [port(assigned=40009)], [40001], [40001]),
    "an exact port needs not be kept": ([port(first=80)], [port(assigned=40009)], [], [80]),
    "two addresses share one automatic port": (
        [port(address="192.0.2.1"), port(address="192.0.2.2")],
        [],
        [40001, 40002],
        [40001, 40001],
    ),
    "another protocol of the same container port does not share it": (
        [port(), port(protocol="udp")],
        [],
        [40001, 40002],
        [40001, 40002],
    ),
    "a further address joins the port that the others have": (
        [port(address="192.0.2.1"), port(address="192.0.2.2")],
        [port(address="192.0.2.1", assigned=40005)],
        [40001, 40005],
        [40005, 40005],
    ),
    "a further address gets another port where that one is taken": (
        [port(address="192.0.2.1"), port(address="192.0.2.2")],
        [port(address="192.0.2.1", assigned=40005)],
        [40001],
        [40005, 40001],
    ),
    "what another life of it had is tried first": ([port(assigned=40007)], [], [40001, 40007], [40007]),
    "but only if it is free": ([port(assigned=40007)], [], [40001], [40001]),
    "and in the range": ([port(first=5000, last=5010, assigned=40007)], [], [5002, 40007], [5002]),
}


@pytest.mark.parametrize(("wanted", "held", "free", "expected"), TABLE.values(), ids=TABLE)
def test_assigned_ports(wanted, held, free, expected):
    assigned = assign(wanted, held, everywhere, Pool(*free))

    assert expected == [one.assigned_port for one in assigned]
    assert wanted == [replace(one, assigned_port=two.assigned_port) for one, two in zip(assigned, wanted, strict=True)]


def test_a_binding_that_is_held_nowhere_gets_no_port():
    assigned = assign([port(), port(81, 8081)], [], lambda _: (), Pool(40001))

    assert [0, 0] == [one.assigned_port for one in assigned]


def test_a_port_is_asked_for_at_all_addresses_of_its_group_at_once():
    pool = Pool(40001)

    assign([port(address="192.0.2.1"), port(address="192.0.2.2"), port(address="2001:db8::1")], [], everywhere, pool)

    expected = PortWant(protocol="tcp", addresses=("192.0.2.1", "192.0.2.2", "2001:db8::1"), first=0, last=0)
    assert [expected] == pool.asked


@pytest.mark.parametrize(
    ("wanted", "error"),
    [(port(first=5000, last=5001), FailedPrecondition), (port(), Exhausted)],
    ids=["range", "automatic"],
)
def test_where_no_port_is_free_the_reason_is_the_reservers(wanted, error):
    with pytest.raises(error):
        assign([wanted], [], everywhere, Pool())
