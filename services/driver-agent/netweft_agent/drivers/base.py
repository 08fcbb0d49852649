"""What a network driver is, and what drivers share.

A driver is one file: a class with the attributes of `Driver`, a frozen `Options` dataclass, and `render`, which is pure
and additive: the resources of two endpoints are those of the one and those of the other, so that a change of one
endpoint costs the rendering of one endpoint. It is found by its entry point in the group `netweft.drivers`.
What it is given and returns are msgspec structs: `msgspec.structs.replace` makes one anew with other fields.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from importlib.metadata import entry_points
from typing import Any, ClassVar, Protocol, TypeVar

import msgspec
from netweft_common.errors import FailedPrecondition, InvalidArgument

from netweft_agent.domain import ports
from netweft_agent.domain.objects import Endpoint, Facts, Interface, Network, Peer, Sandbox, Scope, Subnetwork
from netweft_agent.domain.resources import Address, Advertise, Key, Resource, Route, Sysctl
from netweft_agent.domain.state import HostState

GROUP = "netweft.drivers"


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A number, unique in the cluster, that the controller claims for each network of the driver.

    Attributes:
        option: Driver option by which a user may choose the number.
    """

    name: str
    minimum: int
    maximum: int
    option: str = ""


class OwnParts:
    """What networks and shards render to by themselves, kept while network and host's facts stay as they are.

    Each attach renders its network along, of which nothing has changed.

    Args:
        limit: Networks and shards remembered; the one that was added first goes first.
    """

    def __init__(self, limit: int = 1024) -> None:
        self._limit = limit
        self._known: dict[tuple[str, int], tuple[Network, Facts, Mapping[Key, Resource]]] = {}

    def get(
        self, network: Network, facts: Facts, make: Callable[[], Iterable[Resource]], *, shard: int = 0
    ) -> Mapping[Key, Resource]:
        """Return the resources by key; what is returned must not be changed.

        Args:
            network: Compared by identity, as are the facts: the store keeps one object a revision.
            facts: Of the host.
            make: Called when they are not known.
            shard: The parts are a further shard's, and not the network's.
        """
        part = network.id, shard
        known = self._known.get(part)
        if known is not None and known[0] is network and known[1] is facts:
            return known[2]
        rendered = HostState()
        rendered.add(network.id, *make())
        made = rendered.by_owner.get(network.id, {})
        self._known.pop(part, None)
        self._known[part] = (network, facts, made)
        if len(self._known) > self._limit:
            del self._known[next(iter(self._known))]
        return made


IP_VERSIONS = frozenset({4, 6})

INTERFACE_PREFIX = "eth"


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint with the sandbox that it is joined to.

    Attributes:
        gateway_of: IP versions whose default route the endpoint gives its sandbox. Only for these its ports are
            published, since answers to strangers leave by that route. Told of endpoints with ports alone.
    """

    endpoint: Endpoint
    sandbox: Sandbox
    gateway_of: frozenset[int] = IP_VERSIONS

    @property
    def owner(self) -> str:
        """Owner of the endpoint's resources."""
        return f"endpoint/{self.endpoint.id}"


class Driver(Protocol):
    """A network driver."""

    name: ClassVar[str]
    """What users write after --driver."""
    scope: ClassVar[Scope]
    """Reach of its networks."""
    claims: ClassVar[tuple[Claim, ...]]
    """Numbers that each network needs."""
    options: ClassVar[type[Any]]
    """Frozen dataclass of its options, each made by `option`."""
    needs_addresses: ClassVar[bool]
    """False: IPAM is skipped."""
    single_network: ClassVar[bool]
    """True: at most one network in the cluster."""

    def check(self, network: Network, attachment: Attachment, facts: Facts) -> None:
        """Refuse what cannot be rendered on this host, before anything is touched.

        Raises:
            FailedPrecondition: The host or the sandbox is not fit for it.
        """

    def render(
        self, network: Network, attachments: Sequence[Attachment], peers: Sequence[Peer], facts: Facts
    ) -> HostState:
        """Return the network's own resources and those of the endpoints and peers given."""

    def gateway(self, network: Network, endpoint: Endpoint, version: int) -> Interface | None:
        """Return the gateway that the endpoint offers its sandbox for an IP version, if any."""

    def routes(self, network: Network, endpoint: Endpoint) -> Mapping[Subnetwork, Interface]:
        """Return the network's other subnets, which its endpoint reaches by the gateway given, default route or not."""

    def interface_prefix(self, network: Network) -> str:
        """Return what the name of an endpoint's interface begins with when the endpoint names none."""

    def binds(self, network: Network, endpoint: Endpoint) -> ports.Addresses:
        """Return what tells the host's addresses at which a published port of the endpoint is held."""


def option(
    default: object,
    doc: str,
    *,
    aliases: tuple[str, ...] = (),
    choices: tuple[str, ...] = (),
    minimum: int = 0,
    maximum: int = 0,
    pattern: str = "",
) -> Any:
    """Declare one driver option; the type is the default's: bool, int or str.

    Args:
        default: Value where the user says nothing.
        doc: One sentence for the user.
        aliases: Other keys for it, such as Docker's long ones.
        choices: Values that a str may have; empty: any.
        minimum: Of an int.
        maximum: Of an int; equal to minimum: unbounded.
        pattern: Regular expression that a str must match as a whole.
    """
    return field(
        default=default,
        metadata={
            "doc": doc,
            "aliases": aliases,
            "choices": choices,
            "minimum": minimum,
            "maximum": maximum,
            "pattern": pattern,
        },
    )


def advertise_count() -> Any:
    """Declare how many times endpoints' addresses are announced; Docker has it for all drivers."""
    return option(
        3,
        "How many times neighbours are told of an endpoint's addresses, by gratuitous ARP and unsolicited neighbour "
        "advertisements; 0: never.",
        aliases=("com.docker.network.advertise_addr_nmsgs",),
        minimum=0,
        maximum=3,
    )


def advertise_interval() -> Any:
    """Declare how long it is from one announcement to the next."""
    return option(
        1000,
        "Milliseconds from one time that neighbours are told of an endpoint's addresses to the next.",
        aliases=("com.docker.network.advertise_addr_ms",),
        minimum=100,
        maximum=2000,
    )


class Advertised(Protocol):
    """Options that say how addresses are announced."""

    @property
    def advertise_addr_nmsgs(self) -> int:
        """How many times."""

    @property
    def advertise_addr_ms(self) -> int:
        """Milliseconds between two times."""


def advertise(network: Network, options: Advertised, link: str = "") -> Advertise | None:
    """Return how addresses of a network are announced; None: not at all."""
    if not options.advertise_addr_nmsgs:
        return None
    return Advertise(
        network=network.id, count=options.advertise_addr_nmsgs, interval_ms=options.advertise_addr_ms, link=link
    )


T = TypeVar("T")

_NUMBER = re.compile(r"-?[0-9]{1,18}")


def parse(kind: type[T], given: Mapping[str, str], *, driver: str) -> T:
    """Read a driver's options from text.

    Raises:
        InvalidArgument: An unknown key (the message lists the known ones), two keys of one option, or a value of
            another type.
    """
    # Asked several times for each attach, and the same for all endpoints of a network.
    parsed: T = _parsed(kind, tuple(given.items()), driver)  # type: ignore[arg-type]  # a type has a hash
    return parsed


@functools.lru_cache(maxsize=1024)
def _parsed(kind: type[Any], given: tuple[tuple[str, str], ...], driver: str) -> Any:
    declared: dict[str, Field[Any]] = {}
    for one in fields(kind):
        for key in (one.name, *one.metadata.get("aliases", ())):
            declared[key] = one
    values: dict[str, object] = {}
    keys: dict[str, str] = {}
    for key, text in given:
        if key not in declared:
            known = ", ".join(sorted(one.name for one in fields(kind)))
            raise InvalidArgument(
                "UNKNOWN_OPTION",
                f"driver {driver} has no option {key!r}; it takes: {known or 'none'}",
                field=f"options[{key}]",
            )
        name = declared[key].name
        if name in values:
            raise InvalidArgument(
                "OPTION_TWICE",
                f"options {keys[name]} and {key} of driver {driver} are the same option; give one of them",
                field=f"options[{key}]",
            )
        keys[name] = key
        values[name] = _value(declared[key], key, text, driver)
    return kind(**values)


def _value(one: Field[Any], key: str, text: str, driver: str) -> object:
    assert one.default is not MISSING, "driver options have defaults"
    if isinstance(one.default, bool):
        if text.lower() in {"true", "1", "yes", "on", ""}:
            return True
        if text.lower() in {"false", "0", "no", "off"}:
            return False
        expected = "true or false"
    elif isinstance(one.default, int):
        low, high = one.metadata["minimum"], one.metadata["maximum"]
        if _NUMBER.fullmatch(text) and (low == high or low <= int(text) <= high):
            return int(text)
        expected = "a whole number" + (f" from {low} to {high}" if low != high else "")
    else:
        choices, pattern = one.metadata["choices"], one.metadata["pattern"]
        if text == one.default or (
            (not choices or text in choices) and (not pattern or re.fullmatch(pattern, text) is not None)
        ):
            return text
        expected = "one of " + ", ".join(choices) if choices else f"of the form {pattern}"
    raise InvalidArgument(
        "BAD_OPTION", f"option {key} of driver {driver} is {text!r}; it must be {expected}", field=f"options[{key}]"
    )


def subnet_gateway(network: Network, endpoint: Endpoint, version: int) -> Interface | None:
    """Return the gateway of the subnet that holds the endpoint's address of that IP version."""
    if network.internal or (version == 6 and not has_ipv6(endpoint, network_has=network.enable_ipv6)):
        return None
    for address in endpoint.addresses:
        if address.version == version:
            for one in network.subnets:
                offered = one.default_gateway or one.gateway
                if offered is not None and address.ip in one.subnet:
                    return offered
    return None


def other_subnets(network: Network, endpoint: Endpoint) -> dict[Subnetwork, Interface]:
    """Return the subnets of the network that hold none of the endpoint's addresses, with the gateway that leads there.

    That is the network's own one in the endpoint's subnet of the same family; where there is none, nothing leads there.
    """
    if len(network.subnets) < 2:
        return {}
    found: dict[Subnetwork, Interface] = {}
    for version in sorted(IP_VERSIONS):
        own = [one.ip for one in endpoint.addresses if one.version == version]
        if not own or (version == 6 and not has_ipv6(endpoint, network_has=network.enable_ipv6)):
            continue
        of_version = [one for one in network.subnets if one.subnet.version == version]
        held = [one for one in of_version if any(address in one.subnet for address in own)]
        gateway = next((one.gateway for one in held if one.gateway is not None), None)
        if gateway is not None:
            found |= {one.subnet: gateway for one in of_version if one not in held and one.gateway is not None}
    return found


_NO_IPV6 = "net.ipv6.conf.IFNAME.disable_ipv6"


def has_ipv6(endpoint: Endpoint, *, network_has: bool) -> bool:
    """Return whether an endpoint's interface has IPv6: its network may have it, and its own settings may not."""
    return network_has and endpoint.sysctls.get(_NO_IPV6, "0") == "0"


def inside(attachment: Attachment, *, ipv6: bool, advertise: Advertise | None = None) -> list[Resource]:
    """Render what an endpoint sets on its interface in the sandbox: addresses, static routes, kernel settings.

    Without IPv6 on the interface, what needs it is left out.
    """
    endpoint, ns = attachment.endpoint, attachment.sandbox.ns
    link = endpoint.interface_name
    wanted: list[Resource] = [
        Address(ns=ns, link=link, address=str(one), advertise=told)
        for addresses, told in ((endpoint.addresses, advertise), (endpoint.link_local, None))
        for one in addresses
        if ipv6 or one.version == 4
    ]
    for route in endpoint.routes:
        if ipv6 or route.destination.version == 4:
            via = None if route.next_hop is None else str(route.next_hop)
            wanted.append(Route(ns=ns, destination=str(route.destination), link=link, via=via))
    for key, value in endpoint.sysctls.items():
        if key != _NO_IPV6:  # the link's own business
            # A link's name may have dots, which are no separators.
            path = "/".join(link if word == "IFNAME" else word for word in key.split("."))
            wanted.append(Sysctl(ns=ns, path=path, value=value, link=link))
    return wanted


def refuse_host_sandbox(driver: str, attachment: Attachment) -> None:
    """Raise FailedPrecondition when the sandbox is the host's own namespace."""
    if attachment.sandbox.source == "host":
        raise FailedPrecondition(
            "HOST_SANDBOX",
            f"endpoint {attachment.endpoint.name} of a {driver} network cannot join sandbox {attachment.sandbox.id}: "
            "that is the host's own namespace; use a network of driver host, or a sandbox with its own namespace",
        )


def refuse_ports(driver: str, attachment: Attachment) -> None:
    """Raise FailedPrecondition when the endpoint publishes ports, which networks of the driver cannot."""
    if attachment.endpoint.ports:
        raise FailedPrecondition(
            "PORTS_NOT_PUBLISHED",
            f"endpoint {attachment.endpoint.name} asks for published ports, which networks of driver {driver} do not "
            "have; attach the sandbox to a bridge network too and publish them there",
            driver=driver,
        )


def load() -> dict[str, Driver]:
    """Find all installed drivers by their entry points, by name.

    Raises:
        FailedPrecondition: Two distributions offer the same name, or a driver cannot be loaded.
    """
    found: dict[str, Driver] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda one: (one.name, one.value)):
        try:
            driver: Driver = entry.load()()
        except Exception as error:
            raise FailedPrecondition(
                "DRIVER_BROKEN",
                f"network driver {entry.name} ({entry.value}) cannot be loaded: {type(error).__name__}: {error}; "
                "mend or remove the distribution that offers it",
                driver=entry.name,
            ) from error
        if driver.name in found and type(found[driver.name]) is not type(driver):
            raise FailedPrecondition(
                "DRIVER_TWICE", f"two installed distributions offer a network driver {driver.name!r}; remove one"
            )
        found[driver.name] = driver
    return found
