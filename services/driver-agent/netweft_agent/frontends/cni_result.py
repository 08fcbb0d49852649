"""Answers to container runtimes, as JSON in the words of each version of CNI (SPEC 1.1.0 §5). Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from ipaddress import ip_interface
from typing import Any

import msgspec

from netweft_agent.frontends.cni_config import VERSIONS, CniError, Dns


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """An interface; `sandbox` is empty for one of the host. MTU 0: not said."""

    name: str
    mac: str = ""
    sandbox: str = ""
    mtu: int = 0


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """An address with prefix length; `interface` is its place in the list of interfaces, None: of none."""

    address: str
    gateway: str = ""
    interface: int | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What an ADD has made."""

    interfaces: Sequence[Interface] = ()
    addresses: Sequence[Address] = ()
    routes: Sequence[tuple[str, str]] = ()
    dns: Dns = msgspec.field(default_factory=Dns)


def success(version: str, result: Result, previous: Mapping[str, Any] | None = None) -> bytes:
    """Write a result; with that of the plugin before, whose interfaces and addresses come first.

    Args:
        version: To write it in.
        result: Ours.
        previous: Of the plugin before, in the same version.
    """
    before = dict(previous or {})
    shift = len(before.get("interfaces") or ())
    said: dict[str, Any] = {"cniVersion": version}
    interfaces = [*(before.get("interfaces") or ()), *(_interface(version, one) for one in result.interfaces)]
    if interfaces:
        said["interfaces"] = interfaces
    said["ips"] = [*(before.get("ips") or ()), *(_address(version, one, shift) for one in result.addresses)]
    routes = [*(before.get("routes") or ()), *(_route(one) for one in result.routes)]
    if routes:
        said["routes"] = routes
    said["dns"] = _dns(result.dns) or before.get("dns") or {}
    return json.dumps(said).encode()


def failure(version: str, error: CniError) -> bytes:
    """Write an error."""
    said = {"cniVersion": version, "code": int(error.code), "msg": error.message}
    if error.details:
        said["details"] = error.details
    return json.dumps(said).encode()


def _interface(version: str, one: Interface) -> dict[str, Any]:
    said: dict[str, Any] = {"name": one.name}
    if one.mac:
        said["mac"] = one.mac
    if one.mtu and _at_least(version, "1.1.0"):
        said["mtu"] = one.mtu
    if one.sandbox:
        said["sandbox"] = one.sandbox
    return said


def _address(version: str, one: Address, shift: int) -> dict[str, Any]:
    said: dict[str, Any] = {"address": one.address}
    if not _at_least(version, "1.0.0"):
        said["version"] = str(ip_interface(one.address).version)
    if one.gateway:
        said["gateway"] = one.gateway
    if one.interface is not None:
        said["interface"] = one.interface + shift
    return said


def _route(one: tuple[str, str]) -> dict[str, str]:
    destination, gateway = one
    return {"dst": destination, "gw": gateway} if gateway else {"dst": destination}


def _dns(dns: Dns) -> dict[str, Any]:
    said = {
        "nameservers": list(dns.nameservers),
        "domain": dns.domain,
        "search": list(dns.search),
        "options": list(dns.options),
    }
    return {key: value for key, value in said.items() if value}


def _at_least(version: str, first: str) -> bool:
    return VERSIONS.index(version) >= VERSIONS.index(first)
