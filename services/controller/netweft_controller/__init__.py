"""The controller: the only writer of intent."""

from netweft_common import poller

poller.choose()
