"""What a container runtime asks by CNI, as typed values: variables and configuration, checked (CNI SPEC 1.1.0 §2, §3).

Pure. Every refusal has the code that the specification gives it.

| source | what is taken of it |
|---|---|
| variables | CNI_COMMAND, CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME; of CNI_ARGS: IP, MAC, K8S_* as labels |
| configuration | cniVersion, name, network, driver options in `options`, labels, dns, `gatewayPriority`, prevResult |
| `args.cni` | ips, labels (CONVENTIONS.md) |
| `runtimeConfig` | portMappings, ips, mac, bandwidth, aliases, dns: the capabilities |
"""

from __future__ import annotations

import enum
import ipaddress
import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from netweft_agent.domain.objects import Bandwidth, PublishedPort

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Versions of the specification that are spoken."""


class Code(enum.IntEnum):
    """Error codes: those of the specification below 100, and ours."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    BAD_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODING_FAILURE = 6
    BAD_CONFIGURATION = 7
    TRY_AGAIN = 11
    NOT_AVAILABLE = 50
    FAILED_PRECONDITION = 100
    ALREADY_EXISTS = 101
    DENIED = 102
    KERNEL = 103
    NOT_AS_WANTED = 104
    INTERNAL = 999


class CniError(Exception):
    """A refusal, with the code that the runtime is told.

    Attributes:
        code: Of the specification, or 100 and more.
        details: More for whoever reads it; may be empty.
    """

    def __init__(self, code: Code, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


class Verb(enum.StrEnum):
    """Verbs of the specification that reach the agent."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    GC = "GC"
    STATUS = "STATUS"


SINCE: Mapping[Verb, str] = {Verb.CHECK: "0.4.0", Verb.GC: "1.1.0", Verb.STATUS: "1.1.0"}
"""First version of the specification that has a verb."""

_WITH_CONTAINER = frozenset({Verb.ADD, Verb.DEL, Verb.CHECK})
_WITH_NAMESPACE = frozenset({Verb.ADD, Verb.CHECK})


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """What a runtime attaches: one interface of one container."""

    container_id: str
    ifname: str


class Dns(msgspec.Struct, frozen=True, kw_only=True):
    """Name servers as CNI writes them."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One call.

    Attributes:
        name: Of the CNI network, by which a runtime knows its attachments.
        network: Network of ours that it stands for.
        attachment: None where the verb is about no container.
        netns: Path as the runtime knows it; empty: none given.
        addresses: Asked for, without prefix length.
        previous: Result of the plugin before, or of the ADD (CHECK, DEL); None: there is none.
        valid: Attachments that a GC has to leave.
        lease_only: We are another plugin's IPAM, and make no interface.
        routes: For the result of such a call.
    """

    verb: Verb
    version: str
    name: str
    network: str
    attachment: Attachment | None = None
    netns: str = ""
    addresses: tuple[str, ...] = ()
    mac: str = ""
    ports: tuple[PublishedPort, ...] = ()
    bandwidth: Bandwidth | None = None
    aliases: tuple[str, ...] = ()
    dns: Dns = msgspec.field(default_factory=Dns)
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    options: Mapping[str, str] = msgspec.field(default_factory=dict)
    gateway_priority: int = 0
    previous: Mapping[str, Any] | None = None
    valid: frozenset[Attachment] = frozenset()
    lease_only: bool = False
    routes: tuple[tuple[str, str], ...] = ()


_CONTAINER_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
_NETWORK_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
_MAC = re.compile(r"(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}")
_K8S = ("K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID", "K8S_POD_INFRA_CONTAINER_ID")

_OF_RUNTIMES = frozenset(
    {
        *(
            "cniVersion",
            "cniVersions",
            "name",
            "type",
            "args",
            "capabilities",
            "runtimeConfig",
            "prevResult",
            "plugins",
        ),
        *("disableCheck", "disableGC", "loadOnlyInlinedPlugins", "dns", "ipam"),
    }
)
_OURS = frozenset({"network", "socket", "stateDir", "labels", "options", "gatewayPriority"})
_OF_IPAM = frozenset({"type", "network", "socket", "stateDir", "routes", "labels"})


def version_of(config: bytes) -> str:
    """Return the version that a configuration is written in; the newest where that cannot be read."""
    try:
        found = json.loads(config)["cniVersion"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return VERSIONS[-1]
    return found if found in VERSIONS else VERSIONS[-1]


def parse(variables: Mapping[str, str], config: bytes, *, own_name: str = "netweft") -> Request:
    """Read one call.

    Args:
        variables: CNI_*.
        config: JSON, as the runtime gave it on stdin.
        own_name: What the plugin's file is called.

    Raises:
        CniError: Something is missing, unreadable, or not supported.
    """
    verb = _verb(variables)
    attachment = _attachment(variables) if verb in _WITH_CONTAINER else None
    netns = variables.get("CNI_NETNS", "")
    if verb in _WITH_NAMESPACE and not netns:
        raise CniError(Code.BAD_ENVIRONMENT, f"CNI_NETNS must be set for {verb}")
    whole = decode(config)
    version = _version(whole, verb)
    name = _text(whole, "name")
    if not _NETWORK_NAME.fullmatch(name):
        raise bad("name", name, "1 to 128 letters, digits, '_', '.', '-', the first one a letter or digit")
    ipam = mapping(whole, "ipam")
    lease_only = bool(ipam) and ipam.get("type") == own_name and whole.get("type") != own_name
    part = ipam if lease_only else whole
    _refuse_unknown(part, _OF_IPAM if lease_only else _OF_RUNTIMES | _OURS, "ipam." if lease_only else "")
    if not lease_only and ipam and ipam.get("type", own_name) != own_name:
        raise CniError(
            Code.UNSUPPORTED_FIELD,
            f"ipam {json.dumps(ipam)} is not supported: addresses come from the network's own pools; leave it out",
        )
    given = mapping(whole, "runtimeConfig")
    conventional = mapping(mapping(whole, "args", "args."), "cni", "args.")
    words = _arguments(variables.get("CNI_ARGS", ""))
    previous = whole.get("prevResult")
    if previous is not None and not isinstance(previous, dict):
        raise bad("prevResult", previous, "an object")
    if verb is Verb.CHECK and previous is None:
        raise CniError(Code.BAD_CONFIGURATION, "CHECK needs prevResult, the result of the ADD")
    return Request(
        verb=verb,
        version=version,
        name=name,
        network=_text(part, "network") or name,
        attachment=attachment,
        netns=netns,
        addresses=_addresses(given, conventional, words),
        mac=_mac(given, words),
        ports=tuple(_port(item) for item in _list(given, "portMappings")),
        bandwidth=_bandwidth(given),
        aliases=_aliases(given, name),
        dns=_dns(mapping(whole, "dns"), mapping(given, "dns")),
        labels=_labels(part, conventional, words),
        options=_texts(part, "options"),
        gateway_priority=_priority(part, attachment),
        previous=previous,
        valid=frozenset(_valid(whole)) if verb is Verb.GC else frozenset(),
        lease_only=lease_only,
        routes=tuple(_route(item) for item in _list(part, "routes")) if lease_only else (),
    )


# --- variables ---


def _verb(variables: Mapping[str, str]) -> Verb:
    text = variables.get("CNI_COMMAND", "")
    try:
        return Verb(text)
    except ValueError:
        raise CniError(Code.BAD_ENVIRONMENT, f"CNI_COMMAND {text!r} is none of {', '.join(Verb)}, VERSION") from None


def _attachment(variables: Mapping[str, str]) -> Attachment:
    container_id, ifname = variables.get("CNI_CONTAINERID", ""), variables.get("CNI_IFNAME", "")
    wrong = []
    if not _CONTAINER_ID.fullmatch(container_id):
        wrong.append(
            f"CNI_CONTAINERID {container_id[:140]!r} is not 1 to 128 letters, digits, '_', '.', '-', "
            "the first one a letter or digit"
        )
    # dev_valid_name() of net/core/dev.c, and what the specification says.
    if (
        not 0 < len(ifname.encode()) < 16
        or ifname in {".", ".."}
        or any(one in "/:%" or one.isspace() or not one.isprintable() for one in ifname)
    ):
        wrong.append(f"CNI_IFNAME {ifname[:32]!r} is not 1 to 15 bytes without '/', ':', '%' and space")
    if wrong:
        raise CniError(Code.BAD_ENVIRONMENT, "; ".join(wrong))
    return Attachment(container_id=container_id, ifname=ifname)


def _arguments(text: str) -> dict[str, str]:
    """Read CNI_ARGS: `KEY=VALUE;KEY=VALUE`."""
    found: dict[str, str] = {}
    for pair in filter(None, text.split(";")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise CniError(Code.BAD_ENVIRONMENT, f"CNI_ARGS: {pair[:64]!r} is not KEY=VALUE")
        found[key] = value
    unknown = sorted(set(found) - {"IP", "MAC", "IgnoreUnknown", *_K8S})
    if unknown and found.get("IgnoreUnknown", "").lower() not in {"1", "true"}:
        raise CniError(
            Code.BAD_ENVIRONMENT,
            f"CNI_ARGS has {', '.join(unknown)[:200]}, of which nothing is known; or IgnoreUnknown=1",
        )
    return found


# --- configuration ---


def decode(config: bytes, what: str = "the configuration") -> dict[str, Any]:
    """Read what a runtime writes; CniError: it is no JSON object."""
    try:
        whole = json.loads(config)
    except (ValueError, RecursionError) as error:
        raise CniError(Code.DECODING_FAILURE, f"{what} is no JSON: {error}") from None
    if not isinstance(whole, dict):
        raise CniError(Code.DECODING_FAILURE, f"{what} is no JSON object")
    return whole


def _version(whole: Mapping[str, Any], verb: Verb) -> str:
    version = whole.get("cniVersion", "")
    if not isinstance(version, str):
        raise CniError(Code.DECODING_FAILURE, f"cniVersion {json.dumps(version)} is no text")
    if version not in VERSIONS:
        raise CniError(
            Code.INCOMPATIBLE_VERSION, f"cniVersion {version!r} is none of {', '.join(VERSIONS)}, which are supported"
        )
    first = SINCE.get(verb, VERSIONS[0])
    if VERSIONS.index(version) < VERSIONS.index(first):
        raise CniError(Code.INCOMPATIBLE_VERSION, f"cniVersion {version} has no {verb}; it came with {first}")
    return version


def _refuse_unknown(part: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    for key, value in part.items():
        if key not in known and not key.startswith("cni.dev/"):
            raise CniError(
                Code.UNSUPPORTED_FIELD,
                f"{where}{key}: {json.dumps(value)[:200]} is not supported; known are {', '.join(sorted(known))}",
            )


def bad(where: str, value: object, wanted: str) -> CniError:
    """Return the error of a value that is none of those that are wanted."""
    return CniError(Code.BAD_CONFIGURATION, f"{where} {json.dumps(value, default=str)[:200]} must be {wanted}")


def _text(part: Mapping[str, Any], key: str, where: str = "") -> str:
    value = part.get(key, "")
    if not isinstance(value, str):
        raise bad(where + key, value, "a text")
    return value


def _number(part: Mapping[str, Any], key: str, low: int, high: int, where: str = "") -> int:
    value = part.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise bad(where + key, value, f"a whole number from {low} to {high}")
    return value


def _priority(part: Mapping[str, Any], attachment: Attachment | None) -> int:
    """Return the priority in the choice of the container's gateway: one beside the first does not take it over.

    Every runtime calls the first one eth0, and expects its default route to stay.
    """
    if part.get("gatewayPriority") is None:
        return -1 if attachment is not None and attachment.ifname != "eth0" else 0
    return _number(part, "gatewayPriority", -(2**31), 2**31 - 1)


def mapping(part: Mapping[str, Any], key: str, where: str = "") -> Mapping[str, Any]:
    """Return an object of a part, empty where there is none; CniError: it is something else."""
    value = part.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad(where + key, value, "an object")
    return value


def _list(part: Mapping[str, Any], key: str, where: str = "") -> list[Any]:
    value = part.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise bad(where + key, value, "a list")
    return value


def _texts(part: Mapping[str, Any], key: str) -> dict[str, str]:
    found = mapping(part, key)
    for name, value in found.items():
        if not isinstance(value, str):
            raise bad(f"{key}.{name}", value, "a text")
    return dict(found)


def _text_list(part: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    found = _list(part, key, where)
    for value in found:
        if not isinstance(value, str):
            raise bad(where + key, value, "a list of texts")
    return tuple(found)


def _addresses(given: Mapping[str, Any], conventional: Mapping[str, Any], words: Mapping[str, str]) -> tuple[str, ...]:
    """Return the addresses asked for: of the capability, else of `args`, else of CNI_ARGS."""
    asked = _text_list(given, "ips", "runtimeConfig.") or _text_list(conventional, "ips", "args.cni.")
    if not asked and words.get("IP"):
        asked = tuple(words["IP"].split(","))
    found = []
    for text in asked:
        try:
            found.append(str(ipaddress.ip_interface(text).ip))
        except ValueError:
            raise bad("ips", text, "an address, with or without prefix length") from None
    return tuple(found)


def _mac(given: Mapping[str, Any], words: Mapping[str, str]) -> str:
    mac = _text(given, "mac", "runtimeConfig.") or words.get("MAC", "")
    if mac and not _MAC.fullmatch(mac):
        raise bad("mac", mac, "six pairs of hexadecimal digits with colons")
    return mac.lower()


def _port(item: object) -> PublishedPort:
    where = "runtimeConfig.portMappings."
    if not isinstance(item, dict):
        raise bad("runtimeConfig.portMappings", item, "a list of objects")
    protocol = (_text(item, "protocol", where) or "tcp").lower()
    if protocol not in {"tcp", "udp", "sctp"}:
        raise bad(where + "protocol", protocol, "tcp, udp or sctp")
    address = _text(item, "hostIP", where)
    if address:
        try:
            address = str(ipaddress.ip_address(address))
        except ValueError:
            raise bad(where + "hostIP", address, "an address") from None
    return PublishedPort(
        protocol=protocol,
        container_port=_number(item, "containerPort", 1, 65535, where),
        host_port=_number(item, "hostPort", 0, 65535, where),
        host_address=address,
    )


def _bandwidth(given: Mapping[str, Any]) -> Bandwidth | None:
    part = mapping(given, "bandwidth", "runtimeConfig.")
    names = {
        "ingress_rate": "ingressRate",
        "ingress_burst": "ingressBurst",
        "egress_rate": "egressRate",
        "egress_burst": "egressBurst",
    }
    found = {
        field: _number(part, key, 0, 2**63 - 1, "runtimeConfig.bandwidth.") if part.get(key) is not None else 0
        for field, key in names.items()
    }
    return Bandwidth(**found) if any(found.values()) else None


def _aliases(given: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return the names that the container has in this network: the capability has them by the CNI network's name."""
    return _text_list(mapping(given, "aliases", "runtimeConfig."), name, "runtimeConfig.aliases.")


def _dns(own: Mapping[str, Any], given: Mapping[str, Any]) -> Dns:
    """Return name servers: the runtime's, which are written with other words, go before the configuration's."""
    where = "runtimeConfig.dns."
    servers = _text_list(given, "servers", where) or _text_list(own, "nameservers", "dns.")
    for text in servers:
        try:
            ipaddress.ip_address(text)
        except ValueError:
            raise bad("dns", text, "an address") from None
    return Dns(
        nameservers=servers,
        domain=_text(own, "domain", "dns."),
        search=_text_list(given, "searches", where) or _text_list(own, "search", "dns."),
        options=_text_list(given, "options", where) or _text_list(own, "options", "dns."),
    )


def _labels(part: Mapping[str, Any], conventional: Mapping[str, Any], words: Mapping[str, str]) -> dict[str, str]:
    found = _texts(part, "labels")
    for item in _list(conventional, "labels", "args.cni."):
        # What is in args may be ignored, and what is not understood of it has to be (CONVENTIONS.md).
        if isinstance(item, dict) and isinstance(item.get("key"), str) and isinstance(item.get("value"), str):
            found[item["key"]] = item["value"]
    found.update((key, words[key]) for key in _K8S if words.get(key))
    return found


def _route(item: object) -> tuple[str, str]:
    if not isinstance(item, dict):
        raise bad("ipam.routes", item, "a list of objects")
    destination, gateway = _text(item, "dst", "ipam.routes."), _text(item, "gw", "ipam.routes.")
    try:
        ipaddress.ip_network(destination)
        if gateway:
            ipaddress.ip_address(gateway)
    except ValueError:
        raise bad("ipam.routes", item, "a destination in dst, a next hop in gw") from None
    return destination, gateway


def _valid(whole: Mapping[str, Any]) -> list[Attachment]:
    """Return what a GC has to leave; without the list nothing may be taken for gone."""
    key = "cni.dev/valid-attachments"
    if whole.get(key) is None:
        raise CniError(Code.BAD_CONFIGURATION, f"GC needs {key}, the attachments that are still in use")
    found = []
    for item in _list(whole, key):
        if not isinstance(item, dict):
            raise bad(key, item, "a list of objects")
        found.append(Attachment(container_id=_text(item, "containerID", key), ifname=_text(item, "ifname", key)))
    return found
