"""Rules for single fields of requests; every error names the field's path and what would be right."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence

from netweft_common import errors

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

BATCH_MAX = 1024
LABELS_MAX = 128
LABEL_KEY_MAX_BYTES = 256
LABEL_VALUE_MAX_BYTES = 4096
OPTIONS_MAX = 128
DNS_NAMES_MAX = 64
EXTRA_HOSTS_MAX = 256
SUBNETS_MAX = 16
AUX_ADDRESSES_MAX = 256
PORT_MAX = 65535
PORTS_MAX = 4096
REQUEST_ID_MAX_BYTES = 128
PATH_MAX_BYTES = 4095
IFNAME_MAX_BYTES = 15

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_CONTAINER_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_ID = re.compile(r"[0-9a-f]{32}")
_MAC = re.compile(r"[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}")
# Links and folders that the kernel has in every namespace (net/ipv4/devinet.c).
_INTERFACES_OF_ALL = frozenset({"", ".", "..", "lo", "all", "default"})
_DNS_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


def invalid(field: str, message: str, reason: str = "FIELD_MALFORMED") -> errors.InvalidArgument:
    """Return the error for a field."""
    return errors.InvalidArgument(reason, f"{field}: {message}", field=field)


def name(value: str, field: str) -> str:
    """Check a network's or endpoint's name."""
    if not _NAME.fullmatch(value):
        raise invalid(
            field, f"{_show(value)} is not 1 to 63 of [A-Za-z0-9_.-], starting with a letter or digit", "NAME_MALFORMED"
        )
    return value


def container_id(value: str, field: str) -> str:
    """Check a container id."""
    if not _CONTAINER_ID.fullmatch(value):
        raise invalid(field, f"{_show(value)} is not 1 to 128 of [A-Za-z0-9_.-]", "CONTAINER_ID_MALFORMED")
    return value


def object_id(value: str, field: str) -> str:
    """Check an id that somebody else chose."""
    if not _ID.fullmatch(value):
        raise invalid(field, f"{_show(value)} is not 32 lower-case hexadecimal digits", "ID_MALFORMED")
    return value


def request_id(value: str) -> str:
    """Check an idempotency key; empty is allowed."""
    if len(value.encode()) > REQUEST_ID_MAX_BYTES or any(not char.isprintable() for char in value):
        raise invalid("request_id", f"{_show(value)} is not up to {REQUEST_ID_MAX_BYTES} printable bytes")
    return value


def network_prefix(value: str, field: str) -> IpNetwork:
    """Parse a CIDR without host bits."""
    try:
        interface = ipaddress.ip_interface(value)
    except ValueError:
        raise invalid(
            field, f"{_show(value)} is not a subnet in CIDR form such as 10.0.0.0/24", "SUBNET_MALFORMED"
        ) from None
    if "/" not in value:
        raise invalid(field, f"{value} has no prefix length; write for example {value}/24", "SUBNET_MALFORMED")
    if "%" in value:
        raise invalid(field, f"{value} has a zone, which a subnet cannot have", "SUBNET_MALFORMED")
    if interface.ip != interface.network.network_address:
        raise invalid(field, f"{value} has host bits set; write {interface.network}", "SUBNET_HOST_BITS")
    return interface.network


def address(value: str, field: str) -> IpAddress:
    """Parse an address that something may have: no prefix length, no zone, not unspecified, multicast or loopback."""
    try:
        parsed = ipaddress.ip_address(value)
    except ValueError:
        raise invalid(
            field, f"{_show(value)} is not an IP address (without prefix length)", "ADDRESS_MALFORMED"
        ) from None
    if "%" in value:
        raise invalid(field, f"{value} has a zone; leave out what follows the %", "ADDRESS_MALFORMED")
    if parsed.is_unspecified or parsed.is_multicast or parsed.is_loopback:
        raise invalid(field, f"{value} is an unspecified, multicast or loopback address", "ADDRESS_UNUSABLE")
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        raise invalid(field, f"{value} is an IPv4 address in IPv6 form; write {parsed.ipv4_mapped}", "ADDRESS_UNUSABLE")
    return parsed


def binding_address(value: str, field: str) -> str:
    """Return the canonical text of a host's address that a port is published at; unspecified and loopback are fine."""
    try:
        parsed = ipaddress.ip_address(value)
    except ValueError:
        raise invalid(
            field, f"{_show(value)} is not an IP address (without prefix length)", "ADDRESS_MALFORMED"
        ) from None
    if isinstance(parsed, ipaddress.IPv6Address):
        parsed = parsed.ipv4_mapped or parsed
    if "%" in value or parsed.is_multicast or (parsed.version == 6 and parsed.is_link_local):
        raise invalid(field, f"{value} is a multicast address, or one that needs a zone", "ADDRESS_UNUSABLE")
    if value == "::1":
        raise invalid(
            field, "IPv6 has no way from the loopback address into a network; use 127.0.0.1", "ADDRESS_UNUSABLE"
        )
    return str(parsed)


def port_number(value: int, field: str, *, least: int = 1) -> int:
    """Check the number of a port."""
    if not least <= value <= PORT_MAX:
        raise invalid(field, f"{value} is not between {least} and {PORT_MAX}", "PORT_OUT_OF_RANGE")
    return value


def any_address(value: str, field: str) -> IpAddress:
    """Parse an address that is only written down, such as a name server's: loopback is fine, and so is a zone."""
    try:
        return ipaddress.ip_address(value)
    except ValueError:
        raise invalid(field, f"{_show(value)} is not an IP address", "ADDRESS_MALFORMED") from None


def host_address_in(value: str, subnet: IpNetwork, field: str) -> IpAddress:
    """Parse an address that a host of the subnet may have: inside, neither network nor broadcast address."""
    parsed = address(value, field)
    if parsed not in subnet:
        raise invalid(field, f"{value} is not in the subnet {subnet}", "ADDRESS_OUTSIDE_SUBNET")
    if subnet.prefixlen < subnet.max_prefixlen - 1:
        if parsed == subnet.network_address:
            raise invalid(field, f"{value} is the network address of {subnet}", "ADDRESS_RESERVED")
        if parsed.version == 4 and parsed == subnet.broadcast_address:
            raise invalid(field, f"{value} is the broadcast address of {subnet}", "ADDRESS_RESERVED")
    return parsed


def mac_address(value: str, field: str) -> str:
    """Return a unicast MAC address in lower case with colons."""
    if not _MAC.fullmatch(value):
        raise invalid(field, f"{_show(value)} is not a MAC address such as 02:42:ac:11:00:02", "MAC_MALFORMED")
    text = value.lower().replace("-", ":")
    if int(text[:2], 16) & 1:
        raise invalid(field, f"{value} is a multicast address; the first byte must be even", "MAC_MULTICAST")
    if text == "00:00:00:00:00:00":
        raise invalid(field, f"{value} is not an address of anybody", "MAC_MALFORMED")
    return text


def interface_name(value: str, field: str) -> str:
    """Check a name as the kernel does (dev_valid_name in net/core/dev.c), and refuse what sysctl would misread."""
    if len(value.encode()) > IFNAME_MAX_BYTES:
        raise invalid(field, f"{_show(value)} has more than {IFNAME_MAX_BYTES} bytes", "INTERFACE_NAME_TOO_LONG")
    bad = value in _INTERFACES_OF_ALL or any(
        char in "/:%" or char.isspace() or not char.isprintable() for char in value
    )
    if bad:
        raise invalid(
            field,
            f"{_show(value)} is no interface name: no '/', ':', '%', space or control characters, and none of"
            " '.', '..', 'lo', 'all' and 'default'",
            "INTERFACE_NAME_MALFORMED",
        )
    return value


def absolute_path(value: str, field: str) -> str:
    """Check a path on a host."""
    parts = value.split("/")
    if not value.startswith("/") or value == "/" or ".." in parts or "\0" in value:
        raise invalid(field, f"{_show(value)} is not an absolute path without '..'", "PATH_MALFORMED")
    if len(value.encode()) > PATH_MAX_BYTES:
        raise invalid(field, f"the path has more than {PATH_MAX_BYTES} bytes", "PATH_MALFORMED")
    return value


def host_name(value: str, field: str) -> str:
    """Check a name that goes into hosts or resolv.conf (RFC 1123 §2.1, with the underscore that people use)."""
    labels = value.removesuffix(".").split(".")
    if len(value) > 253 or any(not _DNS_LABEL.fullmatch(label) for label in labels):
        raise invalid(
            field,
            f"{_show(value)} is not a host name: labels of [A-Za-z0-9_-] with dots between",
            "HOST_NAME_MALFORMED",
        )
    return value


def resolver_option(value: str, field: str) -> str:
    """Check one option of resolv.conf(5)."""
    if not re.fullmatch(r"[A-Za-z0-9_:.-]{1,64}", value):
        raise invalid(field, f"{_show(value)} is not a resolver option such as ndots:1", "DNS_OPTION_MALFORMED")
    return value


def labels(values: Mapping[str, str], field: str = "labels") -> dict[str, str]:
    """Check count and sizes of labels."""
    count(values, LABELS_MAX, field)
    for key, value in values.items():
        if not key or len(key.encode()) > LABEL_KEY_MAX_BYTES or not key.isprintable():
            raise invalid(
                field, f"key {_show(key)} is not 1 to {LABEL_KEY_MAX_BYTES} printable bytes", "LABEL_MALFORMED"
            )
        if len(value.encode()) > LABEL_VALUE_MAX_BYTES:
            raise invalid(
                field, f"the value of {_show(key)} has more than {LABEL_VALUE_MAX_BYTES} bytes", "LABEL_MALFORMED"
            )
    return dict(values)


def count(values: Sequence[object] | Mapping[str, str], most: int, field: str) -> None:
    """Check that there are not too many of something."""
    if len(values) > most:
        raise invalid(field, f"{len(values)} are more than the {most} allowed", "TOO_MANY")


def batch(items: Sequence[object], field: str = "items") -> None:
    """Check the size of a batch."""
    if not 1 <= len(items) <= BATCH_MAX:
        raise invalid(field, f"{len(items)} items; a batch has 1 to {BATCH_MAX}", "BATCH_SIZE")


def _show(value: str) -> str:
    return repr(value if len(value) <= 80 else value[:79] + "…")
