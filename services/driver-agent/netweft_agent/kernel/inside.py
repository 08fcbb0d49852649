"""What lies on links: far ends of veths, limits, addresses, routes, neighbours, forwarding entries: a send a namespace.

For a sandbox that is [lo up, link up, addresses, routes] in one datagram, as ordered by the plan. Interface indexes are
known from the answer to the veth's creation, so nothing is asked first.
"""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from netweft_common import errors

from netweft_agent.domain import resources
from netweft_agent.domain.resources import Address, Fdb, Link, Neighbour, Ns, Redirect, Route, TokenBucket
from netweft_agent.kernel import dumps, netlink, rtnl, sysctl, tc
from netweft_agent.kernel.indexes import Indexes
from netweft_agent.kernel.links import Links, differences
from netweft_agent.kernel.netns import Namespaces
from netweft_agent.kernel.run import Run
from netweft_agent.kernel.sockets import Sockets

OnLink = Address | Route | Neighbour | Fdb | TokenBucket | Redirect

_ENTRIES = (Fdb, Neighbour)

_GONE = frozenset({errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENXIO})


@dataclass(slots=True)
class _Part:
    """One message of a step."""

    step: int
    message: bytes
    links: tuple[str, ...] = ()
    """Names of the links whose indexes are in the message."""
    best_effort: bool = False
    """Its failure does not matter."""


class Inside:
    """The far ends of links and what lies on links, in any namespace; belongs to the writer thread."""

    def __init__(
        self,
        namespaces: Namespaces,
        sockets: Sockets,
        indexes: Indexes,
        links: Links,
        born_with: Callable[[Ns], Mapping[str, str]],
    ) -> None:
        """Make it.

        Args:
            namespaces: Registry.
            sockets: Of the writer.
            indexes: Of the writer.
            links: Knows which far ends have just been born.
            born_with: Returns the IPv6 settings that a new link of a namespace is born with, as far as known.
        """
        self._namespaces = namespaces
        self._sockets = sockets
        self._indexes = indexes
        self._links = links
        self._born_with = born_with

    def apply(self, run: Run, indices: Iterable[int]) -> None:
        """Carry out steps on what lies on links, and on Link of kind peer and loopback."""
        by_ns: dict[Ns, list[int]] = defaultdict(list)
        for index in run.begin(indices):
            by_ns[run.steps[index].resource.ns].append(index)
        for ns, steps in by_ns.items():
            try:
                self._namespaces.fd(ns)
            except errors.NotFound as error:
                for step in steps:
                    if run.steps[step].after is not None:  # else: gone with the namespace, as wanted
                        run.fail(step, error)
                continue
            self._apply_in(run, ns, steps, retry=True)

    def _apply_in(self, run: Run, ns: Ns, steps: list[int], *, retry: bool) -> None:
        self._prepare_links(run, ns, steps)
        known = self._indexes.resolve(ns, dict.fromkeys(self._link_names(run, steps)))
        parts: list[_Part] = []
        for index in run.begin(steps):
            self._encode(run, index, known, parts)
        if not parts:
            return
        acks = netlink.talk(self._sockets.get(ns), [part.message for part in parts])
        stale = []
        for part, ack in zip(parts, acks, strict=True):
            if not ack.errno or part.best_effort:
                continue
            if ack.errno == errno.ENODEV and retry and part.links:
                for name in part.links:
                    self._indexes.forget(ns, name)
                stale.append(part.step)
                continue
            self._refused(run, part, ack)
        if stale:
            self._apply_in(run, ns, list(dict.fromkeys(stale)), retry=False)

    @staticmethod
    def _link_names(run: Run, steps: Iterable[int]) -> Iterable[str]:
        for index in steps:
            resource = run.steps[index].resource
            if isinstance(resource, _ENTRIES):
                yield resource.link
            elif isinstance(resource, OnLink):
                yield from _links(resource)

    # --- links ---

    def _prepare_links(self, run: Run, ns: Ns, steps: list[int]) -> None:
        """Switch IPv6 of the links, and take those that are not newborn through the long way."""
        links = [(index, link) for index in steps if isinstance(link := run.steps[index].after, Link)]
        for _, link in links:
            self._indexes.want(link)
        looks = [(index, link) for index, link in links if not self._is_known(link)]
        if looks:
            self._adjust(run, ns, looks)
        switches = [
            (index, link, link.ipv6)
            for index, link in links
            if link.ipv6 is not None and self._is_known(link) and not self._is_born_so(link, on=link.ipv6)
        ]
        if not switches:
            return
        with self._namespaces.entered(ns):
            self._sockets.open_here(ns)
            for index, link, on in switches:
                try:
                    sysctl.switch_ipv6(link.name, on=on, look=link.kind == "loopback")
                except errors.NetweftError as error:
                    run.fail(index, error)

    def _master(self, link: Link) -> int | None:
        """Return the index of the bridge that a link shall be a port of; None: of none, or there is no such bridge."""
        if link.master is None:
            return None
        return self._indexes.resolve(link.ns, [link.master]).get(link.master)

    def _is_known(self, link: Link) -> bool:
        return link.kind == "loopback" or (link.ns, link.name) in self._links.newborn

    def _is_born_so(self, link: Link, *, on: bool) -> bool:
        if link.kind == "loopback":
            return False
        born = self._born_with(link.ns)
        if not on:
            return born.get("disable_ipv6") == "1"
        return born.get("disable_ipv6") == "0" and born.get("accept_ra") == "0"

    def _adjust(self, run: Run, ns: Ns, looks: list[tuple[int, Link]]) -> None:
        found = self._indexes.ask(ns, [link.name for _, link in looks])
        parts = []
        for index, link in looks:
            self._indexes.want(link)
            info = found.get(link.name)
            if info is None:
                run.refuse(index, errno.ENODEV, "the other end of its veth is there, but not this one")
                continue
            try:
                if link.ipv6 is not None and info.ipv6 != link.ipv6:
                    with self._namespaces.entered(ns):
                        sysctl.switch_ipv6(link.name, on=link.ipv6)
            except errors.NetweftError as error:
                run.fail(index, error)
                continue
            # What a sandbox has made its own interface a port of is its own business.
            master = info.master_index or None if link.master is None else self._master(link)
            if link.master is not None and master is None:
                run.refuse(index, errno.ENODEV, f"there is no bridge {link.master}")
                continue
            parts += [_Part(index, message) for message in differences(link, info, master)]
        if not parts:
            return
        acks = netlink.talk(self._sockets.get(ns), [part.message for part in parts])
        for part, ack in zip(parts, acks, strict=True):
            if ack.errno:
                run.refuse(part.step, ack.errno, ack.detail)

    # --- messages ---

    def _encode(self, run: Run, index: int, known: Mapping[str, int], parts: list[_Part]) -> None:
        step = run.steps[index]
        if isinstance(step.after, _ENTRIES) and step.after.link in known:
            # As nearly all are, where there are very many.
            entry = step.after
            parts.append(_Part(index, _entry(entry, known[entry.link]), (entry.link,)))
            return
        resource = step.resource
        if isinstance(resource, Link):
            self._encode_link(run, index, step.after, parts)
            return
        assert isinstance(resource, OnLink), f"{resource} is not for a link"
        names = _links(resource) if step.after is not None else (resource.link,)
        missing = [name for name in names if name not in known]
        if missing:
            if step.after is not None:
                run.refuse(index, errno.ENODEV, f"there is no link {missing[0]}")
            return
        at = known[resource.link]
        if step.after is None and isinstance(resource, Address) and not self._is_removable(resource, at):
            return
        if isinstance(step.after, Redirect):
            # Whatever filter of ours there is goes: one that led to a link of old cannot be told from a new one.
            before = [tc.add_clsact(at), tc.delete_redirect(at)]
            parts += [_Part(index, message, names, best_effort=True) for message in before]
            parts.append(_Part(index, tc.add_redirect(at, known[step.after.to]), names))
            return
        messages = (
            _removal(resource, at, self._namespaces)
            if step.after is None
            else [_addition(resource, at, replace=step.before is not None)]
        )
        for position, message in enumerate(messages):
            parts.append(_Part(index, message, names, best_effort=position > 0))

    def _is_removable(self, address: Address, at: int) -> bool:
        """Return whether an address is ours: on a bridge that somebody else has made it may have been there before."""
        known = self._indexes.find(address.ns, address.link)
        if address.ns != resources.HOST or (known is not None and known.ours):
            return True
        answer = netlink.dump(self._sockets.get(address.ns), rtnl.dump_addresses())
        found = (dumps.address(reply.body) for reply in answer.replies)
        return any(
            one.ifindex == at and one.address == address.address and one.protocol == resources.PROTOCOL for one in found
        )

    def _encode_link(self, run: Run, index: int, after: resources.Resource | None, parts: list[_Part]) -> None:
        if not isinstance(after, Link):
            return  # lo never goes, a far end goes with the near one
        if after.kind == "loopback":
            parts.append(_Part(index, rtnl.set_link(rtnl.LOOPBACK_INDEX, up=after.up)))
        elif after.up and (after.ns, after.name) in self._links.newborn:
            found = self._indexes.find(after.ns, after.name)
            assert found is not None, "a newborn link is known"
            port = None
            if after.master is not None:
                master = self._master(after)
                if master is None:
                    run.refuse(index, errno.ENODEV, f"there is no bridge {after.master}")
                    return
                # Not born with it: of a veth's other end the kernel takes no master (veth_newlink, drivers/net/veth.c).
                parts.append(_Part(index, rtnl.set_link(found.ifindex, master_index=master), (after.master,)))
                port = after.port if after.port != resources.Port() else None
            parts.append(_Part(index, rtnl.set_link(found.ifindex, up=True, port=port)))

    # --- refusals ---

    def _refused(self, run: Run, part: _Part, ack: netlink.Ack) -> None:
        step = run.steps[part.step]
        if step.after is None and (
            ack.errno in _GONE or (ack.errno == errno.EINVAL and isinstance(step.before, TokenBucket | Redirect))
        ):
            return
        if step.after is not None and ack.errno == errno.EEXIST:
            if isinstance(step.after, Address) and self._has_address(step.after):
                return
            if isinstance(step.after, Route):
                error = self._settle_route(step.after)
                if error is not None:
                    run.fail(part.step, error)
                return
        run.refuse(part.step, ack.errno, ack.detail)

    def _has_address(self, wanted: Address) -> bool:
        at = self._indexes.resolve(wanted.ns, [wanted.link]).get(wanted.link)
        answer = netlink.dump(self._sockets.get(wanted.ns), rtnl.dump_addresses())
        return any(
            found.ifindex == at and found.address == wanted.address
            for found in (dumps.address(reply.body) for reply in answer.replies)
        )

    def _settle_route(self, wanted: Route) -> errors.NetweftError | None:
        """Compare the route that is in the way with the wanted one; ours is replaced."""
        sock = self._sockets.get(wanted.ns)
        at = self._indexes.resolve(wanted.ns, [wanted.link]).get(wanted.link, 0)
        answer = netlink.dump(sock, rtnl.dump_routes())
        there = [
            found
            for found in (dumps.route(reply.body) for reply in answer.replies)
            if found.destination == wanted.destination and found.table == rtnl.RT_TABLE_MAIN and not found.cloned
        ]
        ours = [found for found in there if found.protocol == resources.PROTOCOL]
        if any(found.ifindex == at and found.via == wanted.via for found in ours):
            return None
        if any(
            found.protocol == rtnl.RTPROT_KERNEL and found.ifindex == at and found.via is wanted.via for found in there
        ):
            return None  # the kernel makes the same one with an address
        if not ours and there:
            found = there[0]
            return errors.FailedPrecondition(
                "FOREIGN_ROUTE",
                f"route {wanted.destination} in {wanted.ns or 'the host'} was wanted over {wanted.link}, but there is "
                f"one that is somebody else's (via {found.via or 'no gateway'}, interface {found.ifindex}, protocol "
                f"{found.protocol}); remove it, or choose another subnet",
                destination=wanted.destination,
                namespace=wanted.ns,
            )
        ack = netlink.talk(sock, [rtnl.add_route(wanted.destination, at, wanted.via, replace=True)])[0]
        return ack.error(wanted.add_command(), describe_route(wanted))


def describe_route(route: Route) -> str:
    """Return a short name of a route."""
    return f"route {route.destination} in {route.ns or 'the host'}"


def _links(resource: OnLink) -> tuple[str, ...]:
    """Return the names of the links whose indexes its messages carry."""
    return (resource.link, resource.to) if isinstance(resource, Redirect) else (resource.link,)


def _addition(resource: OnLink, index: int, *, replace: bool) -> bytes:
    if isinstance(resource, Address):
        # An address that is there lacks its route.
        return (rtnl.add_connected_route if replace else rtnl.add_address)(index, resource.address)
    if isinstance(resource, Route):
        return rtnl.add_route(resource.destination, index, resource.via, replace=replace)
    assert isinstance(resource, TokenBucket), "entries are encoded before, a redirect takes more than one message"
    return tc.set_bucket(index, rate=resource.rate, burst=resource.burst, limit=resource.limit)


def _entry(entry: Fdb | Neighbour, index: int) -> bytes:
    if isinstance(entry, Fdb):
        return rtnl.replace_fdb(index, entry.mac, entry.vtep)
    return rtnl.replace_neighbour(index, entry.ip, entry.mac)


def _removal(resource: OnLink, index: int, namespaces: Namespaces) -> list[bytes]:
    if isinstance(resource, Address):
        return [rtnl.delete_address(index, resource.address)]
    if isinstance(resource, Route):
        anybodys = resource.ns.startswith("network/") and namespaces.owned(resource.ns)
        return [rtnl.delete_route(resource.destination, index, resource.via, ours=not anybodys)]
    if isinstance(resource, Neighbour):
        return [rtnl.delete_neighbour(index, resource.ip)]
    if isinstance(resource, TokenBucket):
        return [tc.delete_bucket(index)]
    if isinstance(resource, Redirect):
        return [tc.delete_redirect(index)]
    messages = [rtnl.delete_fdb(index, resource.mac, master=resource.vtep is None)]
    if resource.vtep is not None:
        # What the bridge has learned of the MAC would send frames to the tunnel until it ages (moby#52661).
        messages.append(rtnl.delete_fdb(index, resource.mac, master=True))
    return messages
