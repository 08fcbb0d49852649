"""What callers ask for, as values: requests without their transport."""

from __future__ import annotations

import msgspec

from netweft_controller.domain.objects import Bandwidth, Dns, ExtraHost, Namespace, PublishedPort, StaticRoute, Subnet


class NetworkSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A network to be made; fields as in CreateNetworkRequest."""

    name: str
    driver: str = ""
    host: str = ""
    subnets: tuple[Subnet, ...] = ()
    options: dict[str, str] = msgspec.field(default_factory=dict)
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    internal: bool = False
    enable_ipv4: bool = True
    enable_ipv6: bool = False
    ipam_driver: str = ""
    address_space: str = ""
    attachable: bool = False


class EndpointSpec(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint to be made; fields as in the message EndpointSpec."""

    network: str
    name: str = ""
    addresses: tuple[str, ...] = ()
    mac_address: str = ""
    dns_names: tuple[str, ...] = ()
    interface_name: str = ""
    gateway_priority: int = 0
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    options: dict[str, str] = msgspec.field(default_factory=dict)
    ports: tuple[PublishedPort, ...] = ()
    bandwidth: Bandwidth | None = None
    link_local: tuple[str, ...] = ()
    routes: tuple[StaticRoute, ...] = ()
    sysctls: dict[str, str] = msgspec.field(default_factory=dict)


class SandboxSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox to be made; fields as in the message SandboxSpec."""

    host: str = ""
    container_id: str
    namespace: Namespace = msgspec.field(default_factory=Namespace)
    hostname: str = ""
    domainname: str = ""
    dns: Dns | None = None
    extra_hosts: tuple[ExtraHost, ...] = ()
    hosts_path: str = ""
    resolv_conf_path: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)


# A sandbox that exists, by the user's word, or one to be found or made.
SandboxRef = str | SandboxSpec


class AttachItem(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint to be made and joined; without a sandbox it is only made."""

    endpoint: EndpointSpec
    sandbox: SandboxRef | None = None


class EndpointWord(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint by the user's words."""

    endpoint: str
    network: str = ""
    delete_sandbox: bool = False
