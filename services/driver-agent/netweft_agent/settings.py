"""The agent's settings."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from pathlib import Path

from netweft_common import settings


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings(settings.ServiceSettings):
    """Settings of netweft-agent."""

    controller: str = field(
        default="",
        metadata=settings.about("Controllers: unix:/path or host:port, several by comma; empty: work alone."),
    )
    ipam: tuple[str, ...] = field(
        default=(),
        metadata=settings.about(
            "Targets of the IPAM service, several by comma, of which one is asked: it is told that this host lives and"
            " which addresses it holds. Empty: IPAM is not told."
        ),
    )
    lease_interval: dt.timedelta = field(
        default=dt.timedelta(seconds=2),
        metadata=settings.about(
            "How often IPAM is told that this host lives, unless it says that that may be seldom; shorter than any"
            " lease's TTL."
        ),
    )
    host_name: str = field(default="", metadata=settings.about("Name of this host; empty: the machine's own."))
    vtep_address: str = field(
        default="", metadata=settings.about("Tunnel address of this host; empty: no overlay networks.")
    )
    advertise: str = field(
        default="",
        metadata=settings.about("Target by which controllers reach this agent; empty: the first one of listen."),
    )
    state_dir: Path = field(
        default=Path("/var/lib/netweft"), metadata=settings.about("Folder of the host id and the journal.")
    )
    tls_dir: Path | None = field(
        default=None,
        metadata=settings.about(
            "Folder of the credentials that 'netweft host join' got, in place of tls_ca, tls_cert and tls_key; they are"
            " renewed there."
        ),
    )
    run_dir: Path = field(
        default=Path("/run/netweft"), metadata=settings.about("Folder of namespaces and of sandboxes' files.")
    )
    docker_socket: str = field(
        default="/run/docker/plugins/netweft.sock",
        metadata=settings.about(
            "Socket of the Docker plugin; in that folder Docker finds it, as a driver by the file's name; empty: none."
        ),
    )
    file_roots: tuple[str, ...] = field(
        default=("/var/lib/docker", "/var/lib/containers", "/var/lib/containerd", "/run/containers", "/run/containerd"),
        metadata=settings.about(
            "Folders below which hosts and resolv.conf may be written where a caller says; several by comma."
        ),
    )
    host_gateway_ip: tuple[str, ...] = field(
        default=(),
        metadata=settings.about(
            "What an extra host at host-gateway gets, one address a family, by comma; empty: this host's address on the"
            " network that gives the sandbox its default route, or else vtep_address."
        ),
    )
    path_interval: dt.timedelta = field(
        default=dt.timedelta(minutes=10),
        metadata=settings.about(
            "How often the ways to other hosts' tunnel addresses are asked whether they carry the largest packets, and"
            " a new one within 10 s; 0: never."
        ),
    )
    repair_interval: dt.timedelta = field(
        default=dt.timedelta(seconds=60),
        metadata=settings.about("How often the whole kernel is compared with the intent, besides the kernel's events."),
    )
