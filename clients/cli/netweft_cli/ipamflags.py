"""Docker's --subnet, --gateway, --ip-range and --aux-address: each belongs to the subnet that contains it."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from netweft_common import errors

if TYPE_CHECKING:
    import netweft_client

Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network


def subnets(
    subnet: Sequence[str],
    gateway: Sequence[str],
    ip_range: Sequence[str],
    aux_address: Mapping[str, str],
) -> list[netweft_client.SubnetSpec]:
    """Return the IPAM configurations that flags describe.

    Raises:
        InvalidArgument: A text is no subnet or address, or belongs to no subnet; names the flag.
    """
    import netweft_client  # noqa: PLC0415  # loads grpc

    known = [_network(text, "--subnet") for text in subnet]
    gateways: dict[int, str] = {}
    ranges: dict[int, str] = {}
    auxiliary: dict[int, dict[str, str]] = {}
    for text in gateway:
        _put(gateways, _home(known, _address(text, "--gateway"), "--gateway"), text, "--gateway")
    for text in ip_range:
        _put(ranges, _home(known, _network(text, "--ip-range"), "--ip-range"), text, "--ip-range")
    for name, text in aux_address.items():
        auxiliary.setdefault(_home(known, _address(text, "--aux-address"), "--aux-address"), {})[name] = text
    return [
        netweft_client.SubnetSpec(
            subnet=text,
            gateway=gateways.get(number, ""),
            ip_range=ranges.get(number, ""),
            aux_addresses=auxiliary.get(number, {}),
        )
        for number, text in enumerate(subnet)
    ]


def _network(text: str, flag: str) -> Prefix:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise errors.InvalidArgument(
            "CIDR_MALFORMED", f"{flag} {text!r} is no subnet such as 10.0.0.0/16: {error}", field=flag
        ) from error


def _address(text: str, flag: str) -> Prefix:
    try:
        return ipaddress.ip_network(ipaddress.ip_address(text))
    except ValueError as error:
        raise errors.InvalidArgument("ADDRESS_MALFORMED", f"{flag} {text!r} is no address", field=flag) from error


def _home(known: Sequence[Prefix], inner: Prefix, flag: str) -> int:
    for number, outer in enumerate(known):
        if outer.version == inner.version and inner.subnet_of(outer):  # type: ignore[arg-type]  # same version, checked
            return number
    raise errors.InvalidArgument(
        "NO_SUBNET_FOR_FLAG",
        f"{flag} {str(inner).removesuffix('/32').removesuffix('/128')} is in none of the subnets given; "
        "add the --subnet that contains it",
        field=flag,
    )


def _put(slots: dict[int, str], number: int, text: str, flag: str) -> None:
    if number in slots:
        raise errors.InvalidArgument(
            "FLAG_REPEATED", f"{flag}: {slots[number]} and {text} are for one subnet", field=flag
        )
    slots[number] = text
