"""Interface indexes by name, as far as they are known: what was created here needs no look-up.

An index is never given to another link of the same namespace by itself, so a stale one shows as ENODEV; whoever gets
that forgets it and asks again, once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from netweft_agent.domain import resources
from netweft_agent.domain.resources import Link, Ns
from netweft_agent.kernel import dumps, netlink, rtnl
from netweft_agent.kernel.sockets import Sockets


class Known(NamedTuple):
    """What is remembered of a link."""

    ifindex: int
    ours: bool
    link: Link | None = None
    """How it shall be, where the writer has had to do with it."""


class Indexes:
    """Cache of the writer thread; the event loop only looks whether an index is in it."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._known: dict[Ns, dict[str, Known]] = {}
        self._names: dict[tuple[Ns, int], str] = {}
        """Names by index, for events. May name a link that is known by another index now."""

    def put(self, ns: Ns, name: str, index: int, *, ours: bool, link: Link | None = None) -> None:
        """Remember a link; `link`: how it shall be, None leaves what was said before."""
        known = self._known.setdefault(ns, {})
        if link is None and (old := known.get(name)) is not None and old.ifindex == index:
            link = old.link
        known[name] = Known(index, ours, link)
        self._names[ns, index] = name

    def want(self, link: Link) -> None:
        """Remember how a known link shall be."""
        known = self.find(link.ns, link.name)
        if known is not None:
            self._known[link.ns][link.name] = known._replace(link=link)

    def find(self, ns: Ns, name: str) -> Known | None:
        """Return what is remembered, or None."""
        return self._known.get(ns, {}).get(name)

    def forget(self, ns: Ns, name: str) -> None:
        """Forget a link; idempotent."""
        known = self._known.get(ns, {}).pop(name, None)
        if known is not None:
            self._names.pop((ns, known.ifindex), None)

    def forget_namespace(self, ns: Ns) -> None:
        """Forget all links of a namespace."""
        for known in self._known.pop(ns, {}).values():
            self._names.pop((ns, known.ifindex), None)

    def is_ours(self, ns: Ns, index: int) -> bool:
        """Return whether the link is one of ours that shall be there."""
        known = self._find_index(ns, index)
        return known is not None and known.ours

    def is_as_wanted(self, ns: Ns, info: dumps.LinkInfo | dumps.LinkState) -> bool:
        """Return whether a link is as it shall be, or none of our business."""
        known = self._find_index(ns, info.ifindex)
        if known is None or known.link is None:
            return True
        return known.link.name == info.name and self._is_so(known.link, info)

    def _find_index(self, ns: Ns, index: int) -> Known | None:
        name = self._names.get((ns, index))
        known = self.find(ns, name) if name is not None else None
        return known if known is not None and known.ifindex == index else None

    def _is_so(self, link: Link, info: dumps.LinkInfo | dumps.LinkState) -> bool:
        master = self.find(link.ns, link.master) if link.master is not None else None
        # What a sandbox makes its own interface a port of is its own business.
        free = link.kind == "peer" and link.master is None
        return (
            link.up == info.up
            and (link.mtu is None or link.mtu == info.mtu)
            and (link.mac is None or link.mac == info.mac)
            and (free or info.master_index == (master.ifindex if master is not None else 0))
        )

    def ask(self, ns: Ns, names: Iterable[str]) -> dict[str, dumps.LinkInfo]:
        """Ask the kernel for links, in one send, and remember them; what does not exist is left out.

        Raises:
            NotFound: The namespace is not held.
        """
        wanted = list(dict.fromkeys(names))
        found = {}
        for name, ack in zip(
            wanted, netlink.talk(self._sockets.get(ns), [rtnl.get_link(name) for name in wanted]), strict=True
        ):
            if ack.errno or not ack.replies:
                self.forget(ns, name)
                continue
            info = found[name] = dumps.link(ack.replies[0].body)
            self.put(ns, name, info.ifindex, ours=info.group == resources.LINK_GROUP)
        return found

    def resolve(self, ns: Ns, names: Iterable[str]) -> dict[str, int]:
        """Return the indexes of links, asking for those that are not known; what does not exist is left out."""
        found: dict[str, int] = {}
        unknown = []
        for name in names:
            known = self.find(ns, name)
            if known is not None:
                found[name] = known.ifindex
            else:
                unknown.append(name)
        if unknown:
            found.update((name, info.ifindex) for name, info in self.ask(ns, unknown).items())
        return found
