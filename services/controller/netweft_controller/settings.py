"""Settings of the controller."""

from __future__ import annotations

import dataclasses
import datetime as dt
from pathlib import Path

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
    ipam_target: str = dataclasses.field(metadata=settings.about("gRPC target of the IPAM service; several by comma."))
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
    reports_per_second: int = dataclasses.field(
        default=100,
        metadata=settings.about(
            "Reports a second that this controller asks of all hosts together: the more hosts there are, the longer"
            " each may be silent, up to half of host_grace, unless somebody waits for it; 0: each reports within a"
            " fifth of report_interval after a change."
        ),
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
    forsake_after: dt.timedelta = dataclasses.field(
        default=dt.timedelta(0),
        metadata=settings.about(
            "Silence after which a lost host's endpoints are taken from it and their addresses given to others; its"
            " containers may still run and use them. 0: never."
        ),
    )
    ca_key: Path | None = dataclasses.field(
        default=None,
        metadata=settings.about("PEM file of the key of the authority in tls_ca: hosts then join by token."),
    )
    join_listen: tuple[str, ...] = dataclasses.field(
        default=(),
        metadata=settings.about("host:port at which machines without a certificate may join; needs ca_key."),
    )
    certificate_life: dt.timedelta = dataclasses.field(
        default=dt.timedelta(days=7), metadata=settings.about("How long a host's certificate is good.")
    )
    lease_ahead: int = dataclasses.field(
        default=8,
        metadata=settings.about(
            "Addresses leased ahead for a host and network while endpoints are attached there one by one; what is not"
            " used within 3 s goes back. 0: none."
        ),
    )
    attaches_at_once: int = dataclasses.field(
        default=256,
        metadata=settings.about(
            "Calls that attach which this controller has under way at a time, an eighth of them on one host; others"
            " wait for half of their deadline, 10 s at most, eight for each turn of a host, and beyond that are told to"
            " come again. 0: any number."
        ),
    )
    agent_timeout: dt.timedelta = dataclasses.field(
        default=dt.timedelta(seconds=20), metadata=settings.about("Longest wait for an agent's answer.")
    )
