"""What Prometheus sees of leases, pools and the store.

Counters on the path of a lease are plain numbers, made into metrics when somebody looks: the library's own cost 8 µs a
count.
"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

import prometheus_client
from netweft_common import errors
from prometheus_client import metrics_core, registry

from netweft_ipam.domain.leases import Lease
from netweft_ipam.domain.pools import Pool, quota

_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0)
_BUCKET_NAMES = (*map(str, _BUCKETS), "+Inf")
_LEASED = "LEASED"


class LeaseMetrics(registry.Collector):
    """Counts what became of requests for addresses.

    Args:
        registry: Where they are shown.
    """

    def __init__(self, registry: prometheus_client.CollectorRegistry) -> None:
        self._outcomes: Counter[str] = Counter({_LEASED: 0})
        registry.register(self)

    def requested(self, outcomes: Sequence[Lease | errors.NetweftError]) -> None:
        """Count the outcomes of one call."""
        refused = [outcome.reason for outcome in outcomes if isinstance(outcome, errors.NetweftError)]
        self._outcomes[_LEASED] += len(outcomes) - len(refused)
        if refused:
            self._outcomes.update(refused)

    def collect(self) -> Iterator[metrics_core.Metric]:
        """Return the counts as the library wants them."""
        family = metrics_core.CounterMetricFamily(
            "netweft_ipam_requests", "Addresses asked for, by outcome: LEASED or the reason.", labels=["outcome"]
        )
        for outcome, count in tuple(self._outcomes.items()):
            family.add_metric([outcome], count)
        yield family


class StoreMetrics(registry.Collector):
    """Measures scripts.

    Args:
        registry: Where they are shown.
    """

    def __init__(self, registry: prometheus_client.CollectorRegistry) -> None:
        self._counts: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}
        registry.register(self)

    def observe(self, script: str, seconds: float) -> None:
        """Count one answer."""
        counts = self._counts.get(script)
        if counts is None:
            counts = self._counts[script] = [0] * len(_BUCKET_NAMES)
            self._seconds[script] = 0.0
        counts[bisect.bisect_left(_BUCKETS, seconds)] += 1
        self._seconds[script] += seconds

    def collect(self) -> Iterator[metrics_core.Metric]:
        """Return the counts as the library wants them."""
        family = metrics_core.HistogramMetricFamily(
            "netweft_ipam_store_seconds",
            "Time until the store answered a script; `lease` and `request` lease addresses.",
            labels=["script"],
        )
        for script, counts in tuple(self._counts.items()):
            buckets = list(zip(_BUCKET_NAMES, map(float, itertools.accumulate(counts)), strict=True))
            family.add_metric([script], buckets, self._seconds[script])
        yield family


class PoolMetrics:
    """Shows how full pools are.

    Args:
        registry: Where they are shown.
    """

    def __init__(self, registry: prometheus_client.CollectorRegistry) -> None:
        self._addresses = prometheus_client.Gauge(
            "netweft_ipam_pool_addresses",
            "Addresses of a pool, by state: leased, quarantined, reserved, capacity (less these), quota (if any).",
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
            self._addresses.labels(name, "reserved").set(pool.id.reserved)
            self._addresses.labels(name, "capacity").set(pool.id.capacity)
            allowed = quota(pool.labels)
            if allowed is not None:
                self._addresses.labels(name, "quota").set(allowed)
