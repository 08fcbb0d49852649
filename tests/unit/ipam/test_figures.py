"""Figures as Prometheus reads them."""

from __future__ import annotations

import prometheus_client
import pytest
from netweft_common import errors
from netweft_ipam.domain.leases import Lease, Owner
from netweft_ipam.domain.pools import Pool, PoolUse
from netweft_ipam.engine.figures import LeaseMetrics, PoolMetrics, StoreMetrics

from tests.support.ipam import pool_id


@pytest.fixture
def registry():
    return prometheus_client.CollectorRegistry(auto_describe=True)


def test_outcomes_of_requests_are_counted_by_reason(registry):
    metrics = LeaseMetrics(registry)
    lease = Lease(pool_id("g/10.1.0.0/24"), 1, Owner("e"), 1, 0)

    metrics.requested([lease, errors.NotFound("POOL_UNKNOWN", "no"), lease])
    metrics.requested([errors.NotFound("POOL_UNKNOWN", "no")])

    counts = [
        registry.get_sample_value("netweft_ipam_requests_total", {"outcome": outcome})
        for outcome in ("LEASED", "POOL_UNKNOWN", "POOL_SETTLING")
    ]
    assert [2, 2, None] == counts


def test_nothing_leased_yet_is_a_zero_and_not_a_gap(registry):
    LeaseMetrics(registry)

    assert 0 == registry.get_sample_value("netweft_ipam_requests_total", {"outcome": "LEASED"})


def test_times_of_scripts_are_a_histogram(registry):
    metrics = StoreMetrics(registry)

    for seconds in (0.0004, 0.001, 0.0011, 7.0):
        metrics.observe("lease", seconds)

    def value(name, **labels):
        return registry.get_sample_value(f"netweft_ipam_store_seconds_{name}", {"script": "lease", **labels})

    assert [1, 2, 3, 4] == [value("bucket", le=bound) for bound in ("0.0005", "0.001", "0.002", "+Inf")]
    assert 4 == value("count")
    assert 7.0025 == pytest.approx(value("sum"))


def test_pools_show_how_full_they_are_until_they_are_gone(registry):
    metrics = PoolMetrics(registry)
    first, second = (
        Pool(id=pool_id(name), labels=labels, created_ms=0, use=PoolUse(leased=leased, quarantined=3))
        for name, leased, labels in (("g/10.1.0.0/24", 200, {"netweft.quota.leases": "210"}), ("g/10.2.0.0/24", 5, {}))
    )

    def shown(pool: Pool) -> list[float | None]:
        return [
            registry.get_sample_value("netweft_ipam_pool_addresses", {"pool": str(pool.id), "state": state})
            for state in ("leased", "quarantined", "reserved", "capacity", "quota")
        ]

    metrics.show([first, second])
    both = [shown(first), shown(second)]
    metrics.show([second])

    assert [[200, 3, 2, 254, 210], [5, 3, 2, 254, None]] == both
    assert [[None] * 5, [5, 3, 2, 254, None]] == [shown(first), shown(second)]
