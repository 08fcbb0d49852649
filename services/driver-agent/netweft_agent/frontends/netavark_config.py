"""Calls of netavark's plugin, read as calls of CNI, and their answers in netavark's words (plugin-API.md). Pure.

A network of Podman's stands for one of ours, which has to be there:
Podman does not tell plugins of networks that are removed. Addresses are leased by us (`ipam_options.driver` "none").

| netavark | here |
|---|---|
| `network.options`: netweft.network | network of ours; the network's own name by default |
| `network.options`: netweft.socket, netweft.stateDir | of the agent; read by the plugin |
| `network_options`: static_ips, static_mac, interface_name, aliases | of the endpoint |
| `network_options`: options | the driver's options of the endpoint |
| `port_mappings` | of each endpoint; published by the one that has the container's default route (decision 0007) |
| `container_name` | a name of the endpoint, and the label netweft.container.name |
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from ipaddress import ip_interface
from typing import Any

from netweft_agent.domain.objects import Subnet
from netweft_agent.frontends.cni_config import CniError, Code, bad, decode, mapping

STDIN = "what is on stdin"
COMMAND, NETNS = "NETAVARK_COMMAND", "NETAVARK_NETNS"
NAME_LABEL = "netweft.container.name"
MOST_PORTS = 4096
"""Of one container, ranges written out."""
_VERSION = "1.1.0"
_HOST_NAME = re.compile(r"\w([\w-]{0,61}\w)?(\.\w([\w-]{0,61}\w)?)*", re.ASCII)
_OPTIONS = frozenset({"netweft.network", "netweft.socket", "netweft.stateDir"})
_VERBS = {"setup": "ADD", "teardown": "DEL"}

Variables = Mapping[str, str]


def as_cni(variables: Variables, config: bytes) -> tuple[Variables, bytes]:
    """Return a call of netavark's as one of CNI; one of CNI as it is.

    Raises:
        CniError: It cannot be read.
    """
    verb = variables.get(COMMAND)
    if verb is None:
        return variables, config
    if verb not in _VERBS:
        raise CniError(Code.BAD_ENVIRONMENT, f"netavark's {verb!r} is none of create, {', '.join(_VERBS)}")
    whole = decode(config, STDIN)
    network, chosen = mapping(whole, "network"), mapping(whole, "network_options")
    name, container_name = _text(network, "name"), _text(whole, "container_name")
    own = [container_name] if _HOST_NAME.fullmatch(container_name) else []
    asked: dict[str, Any] = {
        "ips": _texts(chosen, "static_ips"),
        "mac": _text(chosen, "static_mac"),
        "portMappings": list(_ports(whole.get("port_mappings") or [])),
        "aliases": {name: list(dict.fromkeys([*own, *_texts(chosen, "aliases")]))},
    }
    config_of_cni = {
        "cniVersion": _VERSION,
        "name": name,
        "type": "netweft",
        "network": network_of(network),
        "labels": {NAME_LABEL: container_name} if container_name else {},
        "options": mapping(chosen, "options"),
        "runtimeConfig": asked,
    }
    return {
        "CNI_COMMAND": _VERBS[verb],
        "CNI_CONTAINERID": _text(whole, "container_id"),
        "CNI_IFNAME": _text(chosen, "interface_name"),
        "CNI_NETNS": variables.get(NETNS, ""),
    }, json.dumps(config_of_cni).encode()


def network_of(network: Mapping[str, Any]) -> str:
    """Return the network of ours that one of Podman's stands for."""
    return _text(mapping(network, "options"), "netweft.network") or _text(network, "name")


def created(network: Mapping[str, Any], subnets: tuple[Subnet, ...]) -> dict[str, Any]:
    """Return a network of Podman's, complete.

    Raises:
        CniError: It shall have what only the network of ours can have.
    """
    name = network_of(network)
    unknown = sorted(set(mapping(network, "options")) - _OPTIONS)
    if unknown:
        raise _refusal(f"--opt {', '.join(unknown)} is none of {', '.join(sorted(_OPTIONS))}", name)
    for key, word in (("internal", "--internal"), ("network_interface", "--interface-name"), ("routes", "--route")):
        if network.get(key):
            raise _refusal(f"{word} is not for networks of netweft's", name)
    if _text(mapping(network, "ipam_options"), "driver") not in {"", "host-local", "none"}:
        raise _refusal("--ipam-driver: addresses are leased by netweft", name)
    ours = {str(one.subnet): one for one in subnets}
    subnets_asked = network.get("subnets") or []
    if not isinstance(subnets_asked, list) or not all(isinstance(one, dict) for one in subnets_asked):
        raise bad("subnets", subnets_asked, "a list of objects")
    for asked in subnets_asked:
        subnet = _text(asked, "subnet")
        if subnet not in ours:
            raise _refusal(f"--subnet {subnet} is none of {', '.join(ours)}, which network {name} has", name)
        gateway = ours[subnet].default_gateway or ours[subnet].gateway
        if asked.get("lease_range") or (asked.get("gateway") and asked["gateway"] != str(gateway and gateway.ip)):
            raise _refusal(f"--ip-range and --gateway of {subnet} are those that network {name} was made with", name)
    told = []
    for text, one in ours.items():
        gateway = one.default_gateway or one.gateway
        told.append({"subnet": text, **({"gateway": str(gateway.ip)} if gateway is not None else {})})
    return {
        **network,
        "subnets": told,
        "ipv6_enabled": any(":" in text for text in ours),
        "dns_enabled": False,
        "ipam_options": {**mapping(network, "ipam_options"), "driver": "none"},
    }


def status(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what CNI's ADD has made as netavark's status block."""
    interfaces: dict[str, Any] = {}
    for place, interface in enumerate(result.get("interfaces", ())):
        if not interface.get("sandbox"):
            continue
        held = [one for one in result["ips"] if one.get("interface") == place]
        interfaces[interface["name"]] = {
            "mac_address": interface.get("mac", ""),
            "subnets": [
                {
                    "ipnet": str(ip_interface(one["address"])),
                    **({"gateway": one["gateway"]} if "gateway" in one else {}),
                }
                for one in held
            ],
        }
    return {"dns_search_domains": [], "dns_server_ips": [], "interfaces": interfaces}


def _refusal(what: str, name: str) -> CniError:
    return CniError(
        Code.BAD_CONFIGURATION, f"{what}; leave it out, and see `netweft network create --help` for network {name}"
    )


def _ports(mappings: object) -> list[dict[str, Any]]:
    """Return port mappings in CNI's words: ranges and lists of protocols written out."""
    if not isinstance(mappings, list):
        raise bad("port_mappings", mappings, "a list")
    found: list[dict[str, Any]] = []
    for one in mappings:
        if not isinstance(one, dict):
            raise bad("port_mappings", one, "a list of objects")
        count, host, container = (one.get(key) or 0 for key in ("range", "host_port", "container_port"))
        if not all(type(number) is int and 0 <= number <= 65535 for number in (count, host, container)):
            raise bad("port_mappings", one, "numbers of ports")
        if len(found) + count > MOST_PORTS:
            raise CniError(Code.BAD_CONFIGURATION, f"more than {MOST_PORTS} ports are published")
        found += [
            {
                "hostPort": host + offset if host else 0,
                "containerPort": container + offset,
                "hostIP": _text(one, "host_ip"),
                "protocol": protocol,
            }
            for protocol in (_text(one, "protocol") or "tcp").split(",")
            for offset in range(count or 1)
        ]
    return found


def _text(part: Mapping[str, Any], key: str) -> str:
    value = part.get(key)
    if value is not None and not isinstance(value, str):
        raise bad(key, value, "a text")
    return value or ""


def _texts(part: Mapping[str, Any], key: str) -> list[str]:
    value = part.get(key)
    if value is not None and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        raise bad(key, value, "a list of texts")
    return value or []
