"""Benchmarks: `make bench`."""

from netweft_common import poller

# As an orchestrator would that cares for latency: docs/architecture.md, "For callers in a hurry".
poller.choose()
