"""The agent: the only writer of one host's kernel."""

from netweft_common import poller

poller.choose()
