"""What Prometheus sees of leases, pools and the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import prometheus_client
from netweft_common import errors

from netweft_ipam.domain.leases import Lease
from netweft_ipam.domain.pools import Pool

_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0)


class LeaseMetrics:
    """Counts what became of requests for addresses.

    Args:
        registry: Where they are shown.
    """

    def __init__(self, registry: prometheus_client.CollectorRegistry) -> None:
        self._outcomes = prometheus_client.Counter(
            "netweft_ipam_requests",
            "Addresses asked for, by outcome: LEASED or the reason.",
            ["outcome"],
            registry=registry,
        )

    def requested(self, outcomes: Sequence[Lease | errors.NetweftError]) -> None:
        """Count the outcomes of one call."""
        reasons = Counter(
            outcome.reason if isinstance(outcome, errors.NetweftError) else "LEASED" for outcome in outcomes
        )
        for reason, count in reasons.items():
            self._outcomes.labels(reason).inc(count)


class StoreMetrics:
    """Measures scripts.

    Args:
        registry: Where they are shown.
    """

    def __init__(self, registry: prometheus_client.CollectorRegistry) -> None:
        self._seconds = prometheus_client.Histogram(
            "netweft_ipam_store_seconds",
            "Time until the store answered a script; `request` leases addresses.",
            ["script"],
            buckets=_BUCKETS,
            registry=registry,
        )

    def observe(self, script: str, seconds: float) -> None:
        """Count one answer."""
        self._seconds.labels(script).observe(seconds)


class PoolMetrics:
    """Shows how full pools are.

    Args:
        registry: Where they are shown.
    """

    def __init__(self, registry: prometheus_client.CollectorRegistry) -> None:
        self._addresses = prometheus_client.Gauge(
            "netweft_ipam_pool_addresses",
            "Addresses of a pool, by state: leased, quarantined, capacity.",
            ["pool", "state"],
            registry=registry,
        )

    def show(self, pools: Sequence[Pool]) -> None:
        """Show these pools and no others."""
        self._addresses.clear()
        for pool in pools:
            name = str(pool.id)
            self._addresses.labels(name, "leased").set(pool.use.leased)
            self._addresses.labels(name, "quarantined").set(pool.use.quarantined)
            self._addresses.labels(name, "capacity").set(pool.id.capacity)
