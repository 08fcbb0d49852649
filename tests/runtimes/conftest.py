"""Hosts with engines, and the last words of what failed."""

from __future__ import annotations

import netweft_client
import pytest

from tests.e2e import support
from tests.e2e.conftest import pytest_runtest_makereport  # noqa: F401  # a hook: having it is using it

SUBNET = "10.71.0.0/24"


@pytest.fixture(scope="module")
def cluster():
    """Two hosts with an overlay network `front`."""
    with support.running("h1", "h2", environ={**support.QUICK, **support.NONE_AHEAD}) as cluster:
        with cluster.client() as client:
            client.create_network("front", driver="overlay", subnets=[netweft_client.SubnetSpec(subnet=SUBNET)])
        yield cluster


@pytest.fixture
def client(cluster):
    with cluster.client() as client:
        yield client
        assert [] == [one.name for one in client.list_endpoints()]
        assert [] == [one.container_id for one in client.list_sandboxes()]
