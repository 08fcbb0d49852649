"""Which port of the host a binding gets: what had one keeps it, exact ones first, then ranges, then automatic ones.

The rules are libnetwork's (`portallocator`): bindings of one container port that say the same of the host's port and
differ in the host's address get one port of the host, so that a service has one number wherever it is asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
from netweft_common.errors import FailedPrecondition

from netweft_agent.domain.objects import PublishedPort

PROTOCOLS = ("tcp", "udp", "sctp")


class PortWant(msgspec.Struct, frozen=True, kw_only=True):
    """A port of the host to be reserved.

    Attributes:
        addresses: Host addresses at which it must be free, all of them at once.
        first: First port that will do, or 0: any of the ephemeral range.
        last: Last port that will do.
    """

    protocol: str
    addresses: tuple[str, ...]
    first: int
    last: int


class Reserver(Protocol):
    """Finds ports that are free, and keeps them so until they are held or the change is given up."""

    def reserve(self, want: PortWant) -> int:
        """Return a port that nobody else can take.

        Raises:
            FailedPrecondition: None of a range is free.
            Exhausted: None of the ephemeral range is free.
        """


Addresses = Callable[[PublishedPort], tuple[str, ...]]
"""Returns the host addresses at which a binding is held; none: it needs no port of the host."""


def nowhere(port: PublishedPort) -> tuple[str, ...]:
    """Hold no binding."""
    del port
    return ()


def assign(
    ports: Sequence[PublishedPort], held: Sequence[PublishedPort], addresses: Addresses, reserver: Reserver
) -> tuple[PublishedPort, ...]:
    """Return the bindings with their assigned ports, in their order.

    Exact ports are not reserved: they are taken when the endpoint is applied, and the error is the same then.

    Args:
        ports: What is asked for. A port that was assigned in another life or on another host is tried first.
        held: What the endpoint has on this host so far.
        addresses: Where a binding is held.
        reserver: Finds free ports.

    Raises:
        FailedPrecondition: A range has no free port.
        Exhausted: The ephemeral range has no free port.
    """
    before = {one.binding: one.assigned_port for one in held}
    found: dict[int, int] = {}
    groups: dict[_Group, list[int]] = {}
    for place, one in enumerate(ports):
        if not addresses(one):
            found[place] = 0
        elif one.is_exact:
            found[place] = one.host_port
        elif already := before.get(one.binding):
            found[place] = already
        else:
            groups.setdefault(_group(one), []).append(place)
    common = {_group(ports[place]): port for place, port in found.items() if port} if groups else {}
    # Ranges first: an automatic port might be the last one of a range.
    for group, places in sorted(groups.items(), key=lambda pair: pair[0][2] == 0):
        want = PortWant(
            protocol=group[0],
            addresses=tuple(dict.fromkeys(address for place in places for address in addresses(ports[place]))),
            first=group[2],
            last=group[3],
        )
        preferred = common.get(group, 0) or ports[places[0]].assigned_port
        found.update(dict.fromkeys(places, _reserve(want, preferred, reserver)))
    return tuple(one.with_assigned(found[place]) for place, one in enumerate(ports))


_Group = tuple[str, int, int, int]


def _group(one: PublishedPort) -> _Group:
    return (one.protocol, one.container_port, one.host_port, one.host_port_end)


def _reserve(want: PortWant, preferred: int, reserver: Reserver) -> int:
    """Reserve the preferred port if it is one that will do and is free, else any."""
    if preferred and (not want.first or want.first <= preferred <= want.last):
        with contextlib.suppress(FailedPrecondition):
            return reserver.reserve(msgspec.structs.replace(want, first=preferred, last=preferred))
    return reserver.reserve(want)
