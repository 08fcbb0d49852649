from __future__ import annotations

import pytest
from netweft_controller.domain import commits
from netweft_controller.domain.objects import (
    ClaimInfo,
    DriverInfo,
    Endpoint,
    EndpointState,
    Host,
    HostFacts,
    Lease,
    Network,
    OptionInfo,
    Sandbox,
    SandboxState,
    Scope,
    Subnet,
)
from netweft_controller.domain.state import State


@pytest.fixture
def anyio_backend():
    return "asyncio"


BRIDGE = DriverInfo(
    name="bridge",
    scope=Scope.LOCAL,
    options=(
        OptionInfo(name="mtu", aliases=("com.docker.network.driver.mtu",), type="int", minimum=68, maximum=65535),
        OptionInfo(name="icc", type="bool"),
        OptionInfo(name="mode", choices=("nat", "routed")),
        OptionInfo(name="name", pattern="[a-z]{1,4}"),
        OptionInfo(name="any-number", type="int"),
    ),
)
OVERLAY = DriverInfo(
    name="overlay",
    scope=Scope.GLOBAL,
    claims=(ClaimInfo(name="vni", minimum=10, maximum=12, option="vni"),),
    options=(OptionInfo(name="vni", type="int"), OptionInfo(name="direct_routing", type="bool")),
)
HOST_DRIVER = DriverInfo(name="host", scope=Scope.LOCAL, needs_addresses=False, single_network=True)


class Builder:
    """A state that grows by log entries, as the real one does."""

    def __init__(self) -> None:
        self.state = State(store_id="s")

    def write(self, *values, delete=()):
        state = self.state
        writes = []
        for value in values:
            kind = commits.kind_of(value)
            known = state.record(kind, value.id) is not None
            writes.append(commits.Write(commits.Action.UPDATED if known else commits.Action.CREATED, value))
        writes += [commits.Write(commits.Action.DELETED, value) for value in delete]
        return state.apply(commits.Entry(state.revision + 1, 1000 + state.revision, tuple(writes)))

    def host(self, number=1, **fields):
        fields.setdefault("facts", HostFacts(drivers=(BRIDGE, OVERLAY, HOST_DRIVER), routes=("192.168.0.0/24",)))
        fields.setdefault("vtep_address", f"192.0.2.{number}")
        host = Host(id=oid(number), name=f"h{number}", agent_target=f"unix:/h{number}", **fields)
        self.write(host)
        return host

    def network(self, number=10, **fields):
        fields.setdefault("driver", "bridge")
        fields.setdefault("scope", Scope.GLOBAL if fields["driver"] == "overlay" else Scope.LOCAL)
        subnet = Subnet(subnet=f"10.{number}.0.0/24", gateway=f"10.{number}.0.1", pool_id=f"p{number}")
        network = Network(id=oid(number), **{"name": f"n{number}", "subnets": (subnet,), **fields})
        self.write(network)
        return network

    def sandbox(self, number=100, host=1, **fields):
        fields.setdefault("state", SandboxState.READY)
        sandbox = Sandbox(id=oid(number), container_id=f"c{number}", host_id=oid(host), **fields)
        self.write(sandbox)
        return sandbox

    def endpoint(self, number=1000, network=10, sandbox=100, host=1, **fields):
        endpoint = make_endpoint(number, network, sandbox, host, **fields)
        self.write(endpoint)
        return endpoint


def oid(number):
    return f"{number:08x}{0:024x}"


def make_endpoint(number=1000, network=10, sandbox=100, host=1, **fields):
    fields.setdefault("state", EndpointState.JOINED if sandbox else EndpointState.CREATED)
    fields.setdefault("mac_address", f"02:42:00:00:{number >> 8 & 255:02x}:{number & 255:02x}")
    fields.setdefault(
        "leases", (Lease(address=f"10.{network}.0.{number % 200 + 2}/24", pool_id=f"p{network}", epoch=1),)
    )
    return Endpoint(
        id=oid(number),
        name=f"e{number}",
        network_id=oid(network),
        sandbox_id=oid(sandbox) if sandbox else "",
        host_id=oid(host) if sandbox else "",
        **fields,
    )


@pytest.fixture
def build():
    return Builder()


@pytest.fixture
def endpoint_of():
    return make_endpoint


@pytest.fixture
def id_of():
    return oid


@pytest.fixture
def drivers():
    return {"bridge": BRIDGE, "overlay": OVERLAY, "host": HOST_DRIVER}
