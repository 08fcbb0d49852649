"""Flags of endpoints whose texts mean something: ports as Docker writes them, limits as tc does, routes, settings."""

from __future__ import annotations

import decimal
import enum
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from netweft_common import errors

from netweft_cli import options

if TYPE_CHECKING:
    from netweft_client import Bandwidth, PublishedPort, StaticRoute

Publish = Annotated[
    list[str] | None,
    typer.Option(
        "--publish",
        "-p",
        metavar="[[ADDRESS:][PORT[-LAST]]:]PORT[-LAST][/tcp|udp|sctp]",
        help="Port of the host that leads to the container's; may be repeated.",
    ),
]
Route = Annotated[
    list[str] | None,
    typer.Option("--route", metavar="CIDR[=HOP]", help="Static route of the sandbox; without a hop on the link."),
]
Sysctl = Annotated[
    list[str] | None,
    typer.Option("--sysctl", metavar="net.ipv4.conf.IFNAME.KEY=VALUE", help="Kernel setting of the interface."),
]
LinkLocalIp = Annotated[
    list[str] | None, typer.Option("--link-local-ip", metavar="ADDRESS", help="Further address, link-local.")
]
IngressRate = Annotated[
    str, typer.Option("--ingress-rate", metavar="10mbit", help="Limit of what goes into the container; 0: none.")
]
IngressBurst = Annotated[
    str,
    typer.Option("--ingress-burst", metavar="1mb", help="What may go in at once beyond that; 0: what 100 ms carry."),
]
EgressRate = Annotated[
    str, typer.Option("--egress-rate", metavar="10mbit", help="Limit of what comes out of the container; 0: none.")
]
EgressBurst = Annotated[
    str, typer.Option("--egress-burst", metavar="1mb", help="What may come out at once beyond that; 0: as for ingress.")
]


class Clear(enum.StrEnum):
    """What may be taken away as a whole, by its field's name."""

    PORTS = "ports"
    BANDWIDTH = "bandwidth"
    ROUTES = "routes"
    SYSCTLS = "sysctls"
    DNS_NAMES = "dns-names"
    LABELS = "labels"

    @property
    def field(self) -> str:
        """The client's name for it."""
        return self.value.replace("-", "_")

    @property
    def nothing(self) -> tuple[()] | dict[str, str] | Bandwidth:
        """What it is when nothing is left."""
        if self is Clear.BANDWIDTH:
            from netweft_client import Bandwidth  # noqa: PLC0415  # loads grpc

            return Bandwidth()
        return {} if self in {Clear.SYSCTLS, Clear.LABELS} else ()


_PORT = re.compile(
    r"(?:(?:(?P<address>\[[0-9A-Fa-f:.]+\]|[0-9.]+):)?(?P<host>[0-9]*(?:-[0-9]+)?):)?"
    r"(?P<container>[0-9]+(?:-[0-9]+)?)(?:/(?P<protocol>[a-zA-Z]+))?"
)
_MOST = 4096


def ports(texts: Sequence[str] | None) -> tuple[PublishedPort, ...]:
    """Return the ports that texts ask for; a range of container ports is one for each.

    A range of the host's as long as the container's goes one to one with it; another one is what to choose from, for a
    single container port (docker-run(1), --publish).

    Raises:
        InvalidArgument: A text is of another form, or its ranges do not fit each other.
    """
    return tuple(one for text in texts or () for one in _port(text))


def _port(text: str) -> list[PublishedPort]:
    from netweft_client import Protocol, PublishedPort  # noqa: PLC0415  # loads grpc

    match = _PORT.fullmatch(text)
    protocol = (match["protocol"] or "tcp").lower() if match else ""
    if match is None or protocol not in set(Protocol):
        raise _malformed(text, "it is not [[ADDRESS:][PORT[-LAST]]:]PORT[-LAST][/tcp|udp|sctp], IPv6 in brackets")
    first, last = _range(text, match["container"])
    low, high = _range(text, match["host"] or "0")
    address = (match["address"] or "").strip("[]")
    count = last - first + 1

    def one(container: int, host: int, host_end: int = 0) -> PublishedPort:
        return PublishedPort(
            container_port=container,
            protocol=Protocol(protocol),
            host_address=address,
            host_port=host,
            host_port_end=host_end,
        )

    if not low:
        return [one(first + n, 0) for n in range(count)]
    if high - low + 1 == count:
        return [one(first + n, low + n) for n in range(count)]
    if count == 1:
        return [one(first, low, high)]
    raise _malformed(text, f"{high - low + 1} ports of the host do not go with {count} of the container")


def changed(
    known: Sequence[PublishedPort], added: Sequence[str] | None, removed: Sequence[str] | None
) -> tuple[PublishedPort, ...]:
    """Return the ports with some added, and those of some container ports removed.

    Raises:
        InvalidArgument: A text is malformed, or no port is published for a container port that is to be removed.
    """
    rest = list(known)
    for text in removed or ():
        number, _, protocol = text.partition("/")
        kept = [one for one in rest if (str(one.container_port), one.protocol) != (number, protocol or "tcp")]
        if len(kept) == len(rest):
            there = ", ".join(f"{one.container_port}/{one.protocol}" for one in rest) or "none"
            raise errors.InvalidArgument(
                "NOT_PUBLISHED",
                f"--publish-rm {text!r}: it is not published; published are {there}",
                field="--publish-rm",
            )
        rest = kept
    return (*rest, *ports(added))


def _range(text: str, part: str) -> tuple[int, int]:
    first, _, last = part.partition("-")
    found = int(first or 0), int(last or first or 0)
    if found[1] < found[0] or found[1] > 65535 or found[1] - found[0] >= _MOST or (last and not first):
        raise _malformed(text, f"{part} is no range of ports")
    return found


def _malformed(text: str, why: str) -> errors.InvalidArgument:
    return errors.InvalidArgument("FLAG_MALFORMED", f"--publish {text!r}: {why}", field="--publish")


_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)([a-z]*)")
_BITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9, "tbit": 10**12}
_BYTES = {"b": 8, "kb": 8 << 10, "mb": 8 << 20, "gb": 8 << 30}


def bandwidth(
    ingress_rate: str, ingress_burst: str, egress_rate: str, egress_burst: str, known: Bandwidth | None = None
) -> Bandwidth | None:
    """Return the limits that texts ask for, with units as tc(8) has them; None: no text asks for any.

    Args:
        ingress_rate: Empty: as it is.
        ingress_burst: Likewise.
        egress_rate: Likewise.
        egress_burst: Likewise.
        known: What the endpoint has; a rate of 0 takes its burst away too.

    Raises:
        InvalidArgument: A text is no quantity, or of a unit that it cannot have.
    """
    from netweft_client import Bandwidth  # noqa: PLC0415  # loads grpc

    if not any((ingress_rate, ingress_burst, egress_rate, egress_burst)):
        return None
    had = known or Bandwidth()
    into = _bits("--ingress-rate", ingress_rate, had.ingress_bits_per_second)
    out = _bits("--egress-rate", egress_rate, had.egress_bits_per_second)
    return Bandwidth(
        ingress_bits_per_second=into,
        ingress_burst_bits=_bits("--ingress-burst", ingress_burst, had.ingress_burst_bits if into else 0),
        egress_bits_per_second=out,
        egress_burst_bits=_bits("--egress-burst", egress_burst, had.egress_burst_bits if out else 0),
    )


def _bits(flag: str, text: str, default: int) -> int:
    if not text:
        return default
    units = _BITS | _BYTES if flag.endswith("burst") else _BITS
    match = _QUANTITY.fullmatch(text.lower())
    if match is None or (match[2] not in units and text != "0"):
        raise errors.InvalidArgument(
            "FLAG_MALFORMED",
            f"{flag} {text!r}: it is not a number with one of the units {', '.join(units)}",
            field=flag,
        )
    return int(decimal.Decimal(match[1]) * units.get(match[2], 1))


def limit_of(value: Bandwidth | None) -> str:
    """Return limits as they are shown: `in 10mbit, out 1gbit`."""
    rates = () if value is None else (("in", value.ingress_bits_per_second), ("out", value.egress_bits_per_second))
    return ", ".join(f"{way} {_text_of_rate(rate)}" for way, rate in rates if rate) or "-"


def _text_of_rate(rate: int) -> str:
    unit, size = next((one for one in reversed(_BITS.items()) if not rate % one[1]), ("bit", 1))
    return f"{rate // size}{unit}"


def routes(texts: Sequence[str] | None) -> tuple[StaticRoute, ...]:
    """Return the routes that texts ask for; the controller checks the addresses."""
    from netweft_client import StaticRoute  # noqa: PLC0415  # loads grpc

    found = (text.partition("=") for text in texts or ())
    return tuple(StaticRoute(destination=destination, next_hop=hop) for destination, _, hop in found)


def sysctls(texts: Sequence[str] | None) -> dict[str, str]:
    """Return the settings that texts ask for.

    Raises:
        InvalidArgument: One has no value, or comes twice.
    """
    return options.mapping(texts, "--sysctl")


def text_of(port: PublishedPort) -> str:
    """Return a port as Docker's lists show it: where it is reached, and what it leads to."""
    number = port.assigned_port or port.host_port
    if not number:
        return f"{port.container_port}/{port.protocol}"
    address = port.host_address or "0.0.0.0"  # noqa: S104  # shown, not bound
    shown = f"[{address}]" if ":" in address else address
    return f"{shown}:{number}->{port.container_port}/{port.protocol}"
