"""What a bridge network's options and flags must be together, told when it is created.

The driver refuses the same when an endpoint is attached, which is late: a network may be created days before. Options
go by the driver's own names (`domain/options.py`).
"""

from __future__ import annotations

import ipaddress

from netweft_common import errors

from netweft_controller.domain import fields
from netweft_controller.domain.objects import Network
from netweft_controller.domain.state import State

DRIVER = "bridge"
_ISOLATED = "isolated"
_LEAST_MTU = 68  # RFC 791 §3.2; the kernel refuses less
_RESERVED_NAMES = frozenset({".", "..", "lo", "all", "default"})  # net/ipv4/devinet.c
_ADDRESSES = {"host_binding": (4, 6), "snat_ipv4": (4,), "snat_ipv6": (6,)}


def check(state: State, network: Network) -> None:
    """Refuse a bridge network that no host could make; any other driver's passes.

    Raises:
        InvalidArgument: Options contradict each other or the network.
        FailedPrecondition: Its bridge is another network's.
    """
    if network.driver != DRIVER:
        return
    _check_modes(network)
    _check_values(network.options)
    name = network.options.get("bridge_name", "")
    for record in state.networks.values() if name else ():
        other = record.value
        meet = not other.host_id or not network.host_id or other.host_id == network.host_id
        if other.driver == DRIVER and other.id != network.id and other.options.get("bridge_name") == name and meet:
            raise errors.FailedPrecondition(
                "BRIDGE_NAME_IN_USE",
                f"options['bridge_name']: {name} is the bridge of network {other.name}; choose another name, or none",
                network=other.id,
            )


def skips_gateway(network: Network, version: int) -> bool:
    """Return whether no address of a family is needed for the bridge: nobody would have it."""
    if network.driver != DRIVER:
        return False
    if network.options.get(f"gateway_mode_ipv{version}") == _ISOLATED:
        return True
    return version == 4 and network.internal and network.options.get("inhibit_ipv4") == "true"


def _check_modes(network: Network) -> None:
    for version in (4, 6):
        key = f"gateway_mode_ipv{version}"
        if network.options.get(key) == _ISOLATED and not network.internal:
            raise fields.invalid(
                f"options[{key!r}]", "isolated is for internal networks; set internal, or choose another mode",
                "ISOLATED_NOT_INTERNAL",
            )  # fmt: skip


def _check_values(options: dict[str, str]) -> None:
    if options.get("bridge_name") in _RESERVED_NAMES:
        raise fields.invalid("options['bridge_name']", "the kernel uses that name itself", "OPTION_MALFORMED")
    mtu = int(options.get("mtu") or 0)
    if 0 < mtu < _LEAST_MTU:
        raise fields.invalid(
            "options['mtu']", f"{mtu} is less than {_LEAST_MTU}; 0 is the kernel's default", "OPTION_OUT_OF_RANGE"
        )
    for key, versions in _ADDRESSES.items():
        if options.get(key):
            _check_address(f"options[{key!r}]", options[key], versions)


def _check_address(field: str, value: str, versions: tuple[int, ...]) -> None:
    try:
        found = ipaddress.ip_address(value)
    except ValueError:
        found = None
    if found is None or found.version not in versions or found.is_multicast:
        wanted = " or ".join(f"IPv{version}" for version in versions)
        raise fields.invalid(field, f"{value!r} is not an {wanted} address of the host", "OPTION_MALFORMED")
