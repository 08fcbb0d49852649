"""Settings of the controller."""

from __future__ import annotations

import dataclasses
import datetime as dt

from netweft_common import settings


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings(settings.ServiceSettings):
    """What the controller needs to know."""

    store_url: str = dataclasses.field(
        metadata=settings.about(
            "Redis or Valkey 7 with its append-only file on: redis://, rediss://, unix:// or redis+cluster://.",
            secret=True,
        )
    )
    ipam_target: str = dataclasses.field(metadata=settings.about("gRPC target of the IPAM service."))
    cluster: str = dataclasses.field(
        default="netweft",
        metadata=settings.about("Prefix of all keys in the store; controllers with the same one are one cluster."),
    )
    log_writes: int = dataclasses.field(
        default=200_000,
        metadata=settings.about(
            "Changes of objects that the log keeps for watchers to resume from; about 400 bytes each."
        ),
    )
    request_ttl: dt.timedelta = dataclasses.field(
        default=dt.timedelta(hours=24),
        metadata=settings.about("How long a request id is remembered; about 1 KiB of the store each."),
    )
    report_interval: dt.timedelta = dataclasses.field(
        default=dt.timedelta(seconds=5), metadata=settings.about("How often agents report, in whole seconds.")
    )
    host_grace: dt.timedelta = dataclasses.field(
        default=dt.timedelta(seconds=15), metadata=settings.about("Silence after which a host counts as lost.")
    )
    reconcile_interval: dt.timedelta = dataclasses.field(
        default=dt.timedelta(seconds=2), metadata=settings.about("How often unfinished work is looked for.")
    )
    settle_after: dt.timedelta = dataclasses.field(
        default=dt.timedelta(seconds=5),
        metadata=settings.about("Age at which an unfinished join, leave or deletion is taken up by the reconciler."),
    )
    orphan_grace: dt.timedelta = dataclasses.field(
        default=dt.timedelta(seconds=60),
        metadata=settings.about("Age at which a lease or pool that no record speaks of is returned."),
    )
    lease_ahead: int = dataclasses.field(
        default=8,
        metadata=settings.about(
            "Addresses leased ahead for a host and network while endpoints are attached there one by one; what is not"
            " used within 3 s goes back. 0: none."
        ),
    )
    agent_timeout: dt.timedelta = dataclasses.field(
        default=dt.timedelta(seconds=20), metadata=settings.about("Longest wait for an agent's answer.")
    )
