"""What a host's stream carries is what the changes say, and of an endpoint elsewhere it is made once for all hosts."""

from __future__ import annotations

import msgspec
from netweft.agent.v1 import agent_pb2
from netweft.controller.v1 import host_pb2
from netweft_controller.clients import wire
from netweft_controller.domain.changes import Change, HostKind
from netweft_controller.domain.objects import (
    Endpoint,
    EndpointState,
    Lease,
    Network,
    Peer,
    PublishedPort,
    Record,
    Sandbox,
    Scope,
)

ENDPOINT = Endpoint(
    id="e" * 32,
    name="web",
    network_id="n" * 32,
    sandbox_id="s" * 32,
    host_id="h" * 32,
    mac_address="02:42:0a:01:00:02",
    leases=(Lease(address="10.1.0.2/24", pool_id="pool", epoch=3),),
    labels={"a": "b"},
    state=EndpointState.JOINED,
)
NETWORK = Network(id="n" * 32, name="red", driver="overlay", scope=Scope.GLOBAL, claims={"vni": 4096})
SANDBOX = Sandbox(id="s" * 32, container_id="c", host_id="h" * 32)


def told_of(endpoint: Endpoint = ENDPOINT, *, vtep: str = "192.0.2.1", revision: int = 7, at: int = 9) -> Change:
    """Return what a host is told of an endpoint elsewhere."""
    return Change(at, HostKind.PEER, endpoint.id, Peer(endpoint=endpoint, revision=revision, vtep_address=vtep))


def response(*changes: Change, snapshot: bool = False) -> host_pb2.WatchHostResponse:
    """Return the message of these changes."""
    data = wire.watch_response(changes, revision=12, snapshot=snapshot, snapshot_end=snapshot, store_id="store")
    return host_pb2.WatchHostResponse.FromString(data)


def test_a_message_is_that_of_its_changes_one_by_one_in_their_order():
    changes = [
        Change(11, HostKind.PEER, "f" * 32, None),
        Change(5, HostKind.NETWORK, NETWORK.id, Record(NETWORK, 4, 1000)),
        Change(6, HostKind.SANDBOX, SANDBOX.id, Record(SANDBOX, 6, 1000)),
        Change(7, HostKind.ENDPOINT, ENDPOINT.id, Record(ENDPOINT, 7, 1000)),
        told_of(),
        told_of(msgspec.structs.replace(ENDPOINT, id="d" * 32, leases=())),
    ]

    wanted = host_pb2.WatchHostResponse(
        changes=[wire.change(one) for one in changes], revision=12, snapshot=True, snapshot_end=True, store_id="store"
    )

    assert wanted == response(*changes, snapshot=True)
    assert host_pb2.WatchHostResponse(revision=12, store_id="store") == response()


def test_what_differs_between_hosts_or_versions_is_not_mistaken_for_the_same():
    changes = [
        told_of(),
        told_of(at=10),
        told_of(revision=8),
        told_of(vtep="192.0.2.2"),
        told_of(msgspec.structs.replace(ENDPOINT, mac_address="02:42:0a:01:00:03")),
    ]

    for change in (*changes, *changes):
        assert [wire.change(change)] == list(response(change).changes)


def test_the_message_of_an_endpoint_elsewhere_is_made_once_for_all_hosts(monkeypatch):
    made = []
    peer = wire.peer
    monkeypatch.setattr(wire, "peer", lambda value: made.append(value) or peer(value))
    fresh = msgspec.structs.replace(ENDPOINT)  # nobody was told of it yet

    messages = [response(told_of(fresh)) for _ in range(3)]

    assert messages[0] == messages[1] == messages[2]
    assert 1 == len(made)


def status_of(wanted: tuple[PublishedPort, ...], **fields: object) -> tuple[PublishedPort, ...]:
    """Return the ports of the status that answers a change with an endpoint of these ports."""
    value = msgspec.structs.replace(ENDPOINT, ports=wanted)
    change = Change(7, HostKind.ENDPOINT, value.id, Record(value, 7, 1000))
    return wire.status_of(change, agent_pb2.ObjectStatus(revision=7, **fields)).ports


def test_a_host_tells_of_a_changes_ports_only_what_it_assigned():
    ports = tuple(PublishedPort(container_port=80 + n, host_port=5000, host_port_end=6000) for n in range(3))
    made = tuple(one.with_assigned(number) for one, number in zip(ports, (5001, 0, 5003), strict=True))

    assert made == status_of(ports, assigned_ports=[5001, 0, 5003])
    assert made[:1] == status_of(ports, ports=[wire.published_port(made[0])])
    assert () == status_of(ports, assigned_ports=[5001])
    assert () == status_of(ports)
    gone = wire.status_of(
        Change(8, HostKind.ENDPOINT, ENDPOINT.id, None), agent_pb2.ObjectStatus(revision=8, assigned_ports=[1])
    )
    assert () == gone.ports
