"""Whom neighbours have to be told of after a plan, and how soon.

An address that had another MAC in its network before is told of at once: neighbours on this host may still send to the
old one. All else nobody waits for. Where not every address that neighbours may know is remembered, because the agent
was started again or the memory is full, those that are not are told of as if they had moved, but when there is time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from netweft_agent.domain.announcement import Announcement, Place
from netweft_agent.domain.plan import Operation
from netweft_agent.domain.resources import Address, Advertise, Key, Link, Neighbour, Resource, Route
from netweft_agent.domain.sandbox import DEFAULT_ROUTE
from netweft_agent.engine.store import ObjectStore

REMEMBERED = 65536
"""Addresses whose MAC is remembered, across all networks; the one that was told of longest ago is forgotten first."""

_DEFAULT_ROUTES = frozenset(DEFAULT_ROUTE.values())
TOLD: frozenset[type] = frozenset({Address, Neighbour, Route})
"""Types of what matters here; there may be thousands of other things."""


@dataclass(slots=True)
class Told:
    """What is to be announced.

    Attributes:
        now: Before the change is answered.
        later: When there is time.
    """

    now: list[Announcement] = field(default_factory=list)
    later: list[Announcement] = field(default_factory=list)


class Announcing:
    """Collects what plans have made, by owner, and remembers which MAC an address had last.

    Args:
        store: Objects.
        remembered: Addresses to remember.
    """

    def __init__(self, store: ObjectStore, remembered: int = REMEMBERED) -> None:
        self._store = store
        self._limit = remembered
        self._macs: dict[tuple[str, str], str] = {}
        # Networks where a container may know an address by a MAC that is not remembered.
        self._partial: set[str] = set()
        self._fresh: dict[str, None] = {}
        self.gone: list[Place] = []
        """Places at which an address is no more."""

    def made(self, step: Operation) -> None:
        """Take note of something that the kernel has now: an address, a neighbour elsewhere, a way out."""
        made = step.after
        if type(made) not in TOLD:
            return
        if isinstance(made, (Address, Neighbour)):
            if made.advertise is not None:
                self._fresh[step.owner] = None
                if isinstance(step.before, Neighbour):
                    self.gone.append((made.ns, made.advertise.link, step.before.mac))
        elif isinstance(made, Route) and made.destination in _DEFAULT_ROUTES:
            kind, _, sandbox = step.owner.partition("/")
            if kind == "sandbox":
                self.again(sandbox, made.link)

    def again(self, sandbox: str, link: str = "") -> None:
        """Have the addresses of a sandbox told of anew, or those of one of its interfaces."""
        for one in self._store.endpoints_of_sandbox(sandbox):
            if link in {"", one.interface_name}:
                self._fresh[f"endpoint/{one.id}"] = None

    def lost(self, key: Key, before: Resource | None = None) -> None:
        """Take note of something that the kernel has no more.

        Args:
            key: Its key.
            before: What it was, where that is known.
        """
        if key[0] == "address":
            self.gone.append((key[1], key[2], ""))
        elif isinstance(before, Neighbour) and before.advertise is not None:
            self.gone.append((before.ns, before.advertise.link, before.mac))

    def take(self, by_owner: Mapping[str, Mapping[Key, Resource]], known: Mapping[Key, Resource]) -> Told:
        """Return what is to be told since the last call, of what is still wanted and there.

        Args:
            by_owner: What owners want.
            known: What the kernel has.
        """
        told = Told()
        fresh, self._fresh = self._fresh, {}
        for owner in fresh:
            for announcement, moved in self._of(by_owner.get(owner, {}), known):
                (told.now if moved else told.later).append(announcement)
        return told

    def remember(self, by_owner: Mapping[str, Mapping[Key, Resource]]) -> None:
        """Take the MACs of all that is wanted for those that neighbours know; they may know more, from before."""
        for wanted in by_owner.values():
            for _ in self._of(wanted, wanted):
                pass
        self._partial |= {network for network, _ in self._macs}

    def _of(self, wanted: Mapping[Key, Resource], known: Mapping[Key, Resource]) -> Iterable[tuple[Announcement, bool]]:
        """Yield an owner's announcements, and whether one of the addresses had another MAC before."""
        found: dict[Place, tuple[Advertise, list[str]]] = {}
        moved: set[Place] = set()
        unknown: set[Place] = set()
        for key, one in ((key, one) for key, one in wanted.items() if type(one) in TOLD):
            if isinstance(one, Address):
                link = wanted.get(("link", one.ns, one.link))
                mac = link.mac if isinstance(link, Link) else None
                place, ip = (one.ns, one.link, ""), one.address.partition("/")[0]
            elif isinstance(one, Neighbour) and one.advertise is not None:
                mac, ip = one.mac, one.ip
                place = (one.ns, one.advertise.link, mac)
            else:
                continue
            if one.advertise is None or key not in known:
                continue
            found.setdefault(place, (one.advertise, []))[1].append(ip)
            if mac is not None:
                before = self._replace(one.advertise.network, ip, mac)
                if before is None and one.advertise.network in self._partial:
                    unknown.add(place)
                elif before not in {None, mac}:
                    moved.add(place)
        for place, (advertise, addresses) in found.items():
            ns, name, mac = place
            if mac and place not in moved and place not in unknown:
                continue  # of what is elsewhere, only a change matters here
            announcement = Announcement(
                ns=ns,
                link=name,
                mac=mac,
                addresses=tuple(addresses),
                count=advertise.count,
                interval_ms=advertise.interval_ms,
            )
            yield announcement, place in moved

    def _replace(self, network: str, address: str, mac: str) -> str | None:
        """Remember the MAC of an address, and return the one that it had; None: it is not known to have had any."""
        before = self._macs.pop((network, address), None)
        self._macs[network, address] = mac
        if len(self._macs) > self._limit:
            forgotten = next(iter(self._macs))
            del self._macs[forgotten]
            self._partial.add(forgotten[0])
        return before
