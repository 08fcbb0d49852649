"""The address service: pools and leases on Redis."""

import os

# gRPC reads this once, when it is imported. Its newer listener hands each request through a pool of threads, which
# costs 0.08 ms a call on two cores.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")

from netweft_common import poller

poller.choose()
