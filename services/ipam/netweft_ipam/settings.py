"""Settings of netweft-ipam."""

from __future__ import annotations

import dataclasses
import datetime as dt
from dataclasses import field

from netweft_common import errors
from netweft_common.settings import ServiceSettings, about

from netweft_ipam.domain import predefined
from netweft_ipam.domain.settling import Patience


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class IpamSettings(ServiceSettings):
    """What the address service can be told."""

    listen: tuple[str, ...] = field(
        default=("127.0.0.1:7710",), metadata=about("Targets to serve at: unix:/path or host:port; several by comma.")
    )
    store_url: str = field(
        default="redis://127.0.0.1:6379/0",
        metadata=about(
            "Redis or Valkey 7.0 or later: redis://host:port, rediss://, unix:///path, "
            "redis+sentinel://host:port,host:port/service, redis+cluster://host:port.",
            secret=True,
        ),
    )
    key_prefix: str = field(default="netweft", metadata=about("Prefix of all keys in the store."))
    cluster_id: str = field(
        default="netweft", metadata=about("Name of the cluster; the IPv6 prefix of automatic pools is derived from it.")
    )
    # Entries hold a comma themselves, so one text with semicolons, not a tuple that the environment splits at commas.
    local_pools: str = field(
        default=";".join(predefined.DEFAULT_LOCAL),
        metadata=about("Where pools of one host come from: base/length,size entries, parted by semicolons."),
    )
    global_pools: str = field(
        default=";".join(predefined.DEFAULT_GLOBAL),
        metadata=about("Where pools of the cluster come from: base/length,size entries, parted by semicolons."),
    )
    quarantine: dt.timedelta = field(
        default=dt.timedelta(seconds=5),
        metadata=about(
            "How long a released address rests before another owner gets it, for example 5s; 0s: not at all."
        ),
    )
    sweep_interval: dt.timedelta = field(
        default=dt.timedelta(seconds=5),
        metadata=about(
            "How often leases whose TTL is over are ended; should the replica that gave them out be gone, up to twelve"
            " times as late."
        ),
    )
    renewals_per_second: int = field(
        default=100,
        metadata=about(
            "Heartbeats a second that this replica asks of all hosts together: the more hosts there are, the longer"
            " each may be silent, up to 10 s and half of report_live and report_most; 0: each speaks as often as its"
            " own settings say."
        ),
    )
    wait_replicas: int = field(
        default=0, metadata=about("How many replicas must have a write before it is acknowledged; 0: none.")
    )
    wait_timeout: dt.timedelta = field(
        default=dt.timedelta(seconds=1), metadata=about("How long these replicas may take, for example 500ms.")
    )
    report_live: dt.timedelta = field(
        default=dt.timedelta(seconds=60),
        metadata=about("After a failover, hosts are waited for that were heard of in so long a time before it."),
    )
    report_least: dt.timedelta = field(
        default=dt.timedelta(seconds=1), metadata=about("At least so long, if there are such hosts.")
    )
    report_most: dt.timedelta = field(default=dt.timedelta(seconds=30), metadata=about("At most so long."))
    events_kept: int = field(
        default=1024,
        metadata=about("Entries of each subnet's history that are kept, of up to 256 events each; 0: no history."),
    )
    check_history: bool = field(
        default=True,
        metadata=about("Notice that the store restarted or failed over before more leases are given out."),
    )

    def __post_init__(self) -> None:
        """Refuse numbers that each call would fail by, or that would never rest.

        Raises:
            InvalidArgument: There is one.
        """
        for name, value in (
            ("events_kept", self.events_kept),
            ("renewals_per_second", self.renewals_per_second),
            ("wait_replicas", self.wait_replicas),
        ):
            if value < 0:
                raise _malformed(name, value, "a count, 0 or more")
        if not self.sweep_interval:
            raise _malformed("sweep_interval", "0s", "longer than that: the store would be swept without a pause")
        if not self.key_prefix or set(self.key_prefix) & set("{}"):
            raise _malformed("key_prefix", repr(self.key_prefix), "some text without braces, which mark the hash tag")

    def patience(self) -> Patience:
        """Return how long hosts are waited for after a failover."""
        live, least, most = (
            round(time.total_seconds() * 1000) for time in (self.report_live, self.report_least, self.report_most)
        )
        return Patience(live_ms=live, least_ms=least, most_ms=most)

    def predefined(self) -> predefined.Predefined:
        """Return the predefined lists.

        Raises:
            InvalidArgument: An entry is malformed.
        """
        return predefined.build(
            local=_entries(self.local_pools), global_=_entries(self.global_pools), cluster_id=self.cluster_id
        )


def _malformed(name: str, value: object, what: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(
        "SETTING_MALFORMED", f"--{name.replace('_', '-')}: {value} must be {what}", field=name
    )


def _entries(text: str) -> list[str]:
    return [entry for entry in text.split(";") if entry.strip()]
