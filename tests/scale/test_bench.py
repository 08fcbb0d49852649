"""The benchmark at a small size: its work is done, whatever its figures are."""

from __future__ import annotations

import pytest

from tests.bench import scale

pytestmark = pytest.mark.e2e


def test_a_small_cluster_misses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """All endpoints are attached, each host holds what its networks have, and each probe comes to all other hosts."""
    hosts, each, probes = 8, 2, 8
    monkeypatch.setenv("NETWEFT_BENCH_HOSTS", str(hosts))
    monkeypatch.setenv("NETWEFT_BENCH_ENDPOINTS", str(hosts * scale.NETWORKS_OF_HOST * each))

    found = scale.run({"scale-1000"})["scale-1000"]

    endpoints = hosts * scale.NETWORKS_OF_HOST * each + hosts + probes
    assert endpoints == found["cluster"]["endpoints"]
    narrow = scale.NETWORKS_OF_HOST * (1 + each * scale.HOSTS_OF_NETWORK)  # a network, and endpoints here and elsewhere
    sandboxes = endpoints
    assert hosts * (narrow + 1 + hosts + probes) + sandboxes == found["cluster"]["objects on hosts"]
    assert probes * (hosts - 1) == found["propagation"]["entries"]
    assert 0 == found["propagation"]["missing"]
