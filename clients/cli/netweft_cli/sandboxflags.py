"""What flags say of a sandbox that exists."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import netweft_client


class Clear(enum.StrEnum):
    """What may be taken away as a whole, by its field's name."""

    HOSTNAME = "hostname"
    DOMAINNAME = "domainname"
    DNS = "dns"
    EXTRA_HOSTS = "extra-hosts"
    LABELS = "labels"

    @property
    def field(self) -> str:
        """The client's name for it."""
        return self.value.replace("-", "_")

    @property
    def nothing(self) -> str | tuple[()] | dict[str, str] | netweft_client.Dns:
        """What it is when nothing is left."""
        if self is Clear.DNS:
            from netweft_client import Dns  # noqa: PLC0415  # loads grpc

            return Dns()
        if self is Clear.LABELS:
            return {}
        return () if self is Clear.EXTRA_HOSTS else ""


def changed_dns(
    known: netweft_client.Dns | None,
    servers: Sequence[str] | None,
    search: Sequence[str] | None,
    options: Sequence[str] | None,
) -> netweft_client.Dns:
    """Return what a sandbox has of DNS, with those parts replaced that flags name."""
    import netweft_client  # noqa: PLC0415  # loads grpc

    before = known or netweft_client.Dns()
    return netweft_client.Dns(
        servers=tuple(servers or before.servers),
        search=tuple(search or before.search),
        options=tuple(options or before.options),
    )
