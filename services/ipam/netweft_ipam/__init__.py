"""The address service: pools and leases on Redis."""

from netweft_common import poller

poller.choose()
