"""Look at a kernel and tell what is there in the form of resources, so that it compares with what is wanted.

What is ours is told by marks (docs/architecture.md, "What is ours"): the link group, IFA_PROTO, RTPROT and NDA_PROTOCOL
110, handles and preferences of traffic control, tables named `netweft`; inside a namespace made for a network
everything is, except what the kernel makes by itself. Forwarding entries carry no mark: static ones on links of ours
are ours. Belongs to the reader thread and opens its sockets for the time of one look, so that it never waits for the
writer, nor keeps descriptors.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from netweft_agent.domain import names, resources
from netweft_agent.domain import nft as nft_domain
from netweft_agent.domain.resources import (
    HOST,
    Address,
    Fdb,
    File,
    Key,
    Link,
    Namespace,
    Neighbour,
    Ns,
    Redirect,
    Resource,
    Route,
    Sysctl,
    TokenBucket,
)
from netweft_agent.kernel import dumps, netlink, nft, nft_guests, rtnl, sysctl, tc
from netweft_agent.kernel.api import Observation, Statistics
from netweft_agent.kernel.files import Files
from netweft_agent.kernel.netns import Namespaces
from netweft_agent.kernel.ports import Ports

T = TypeVar("T")

TABLE_NAME = "netweft"
_FAMILIES = ("inet", "bridge")

_IFAPROT_KERNEL = frozenset({1, 2, 3})  # loopback, router advertisement, link-local (linux/if_addr.h)
_RTPROT_KERNEL = frozenset({1, 2, 9})  # redirect, kernel, router advertisement (linux/rtnetlink.h)
_LINK_LOCAL = "fe80:"
_LOOPBACK_INDEX = rtnl.LOOPBACK_INDEX.to_bytes(4, sys.byteorder)


@dataclass(slots=True)
class _Look:
    """One namespace while it is looked at."""

    ns: Ns
    wanted: Mapping[Key, Resource]
    all_ours: bool
    found: dict[Key, Resource] = field(default_factory=dict)
    foreign: set[Key] = field(default_factory=set)
    names: dict[int, str] = field(default_factory=dict)
    """Links by index, without those that wait to be deleted."""
    our_links: set[int] = field(default_factory=set)
    ends: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Index of each veth, and of its other end."""
    has_doomed: bool = False
    """Links are there that wait to be deleted."""

    def note(self, resource: Resource, *, ours: bool, excused: bool = False) -> None:
        """Take in what is ours, and what was asked for; `excused`: the latter is nobody's in particular."""
        key = resource.key
        if not ours:
            if key not in self.wanted or key in self.found:
                return
            if not excused:
                self.foreign.add(key)
        else:
            self.foreign.discard(key)
        self.found[key] = resource


class Observer:
    """The reader of a kernel.

    Args:
        namespaces: Registry; only looked into.
        files: Managed files; only read.
        ports: Held ports; only looked at.
    """

    def __init__(self, namespaces: Namespaces, files: Files, ports: Ports) -> None:
        self._namespaces = namespaces
        self._files = files
        self._ports = ports

    def observe(self, wanted: Mapping[Key, Resource], namespaces: Collection[Ns] | None) -> Observation:
        """Look at the kernel; see api.Kernel.observe.

        Raises:
            KernelError: The kernel refuses a dump.
            Unavailable: The ruleset changed all the time.
        """
        by_ns: dict[Ns, dict[Key, Resource]] = {}
        for key, resource in wanted.items():
            by_ns.setdefault(resource.ns, {})[key] = resource
        found: dict[Key, Resource] = {}
        if namespaces is None:
            spaces: Iterable[Ns] = dict.fromkeys([HOST, *by_ns, *self._namespaces.pinned()])
            found.update((file.key, file) for file in self._files.forgotten(wanted))
        else:
            spaces = dict.fromkeys(namespaces)
        looks = {ns: self._look(ns, by_ns.get(ns, {})) for ns in spaces}
        foreign: set[Key] = set()
        for look in looks.values():
            found.update(look.found)
            foreign |= look.foreign
        _drop_torn_pairs(looks, found)
        indexes: dict[Key, int] = {
            ("link", ns, look.names[index]): index
            for ns, look in looks.items()
            for index in look.our_links
            if ("link", ns, look.names[index]) in found
        }
        return Observation(
            resources=found,
            foreign=frozenset(foreign & found.keys()),
            indexes=indexes,
            doomed=frozenset(ns for ns, look in looks.items() if look.has_doomed),
        )

    def statistics(self, ns: Ns) -> dict[str, Statistics]:
        """Return the counters of a namespace's links but lo; see api.Kernel.statistics.

        Raises:
            NotFound: The namespace is not held.
            KernelError: The kernel refuses the dump.
        """
        with self._namespaces.entered(ns), netlink.open_socket(netlink.NETLINK_ROUTE) as sock:
            found = _dump(sock, rtnl.dump_statistics(), dumps.counters, "links")
        return {name: Statistics(**counters._asdict()) for name, counters in found if name != "lo"}

    def _look(self, ns: Ns, wanted: Mapping[Key, Resource]) -> _Look:
        look = _Look(ns, wanted, all_ours=False)
        for resource in wanted.values():
            if isinstance(resource, File) and (file := self._files.read(resource)) is not None:
                look.note(file, ours=True)
        if ns == HOST:
            for hold in self._ports.held().values():
                look.note(hold, ours=True)
        with contextlib.ExitStack() as stack:
            fd = stack.enter_context(self._opened(look))
            if fd is None:
                return look
            with self._namespaces.entered_fd(fd):
                route = stack.enter_context(netlink.open_socket(netlink.NETLINK_ROUTE))
                netfilter = stack.enter_context(netlink.open_socket(netlink.NETLINK_NETFILTER))
                _look_at_settings(look)
            _look_at_links(look, route)
            _look_at_addresses(look, route)
            _look_at_routes(look, route)
            # Sandboxes have none, unless a driver wants some there.
            if ns == HOST or look.all_ours or any(isinstance(resource, Neighbour) for resource in wanted.values()):
                _look_at_neighbours(look, route)
            if ns == HOST or look.all_ours:
                _look_at_limits(look, route)
            if ns == HOST or look.all_ours or any(isinstance(resource, Fdb) for resource in wanted.values()):
                _look_at_fdb(look, route)
            _look_at_firewall(look, netfilter)
        return look

    @contextlib.contextmanager
    def _opened(self, look: _Look) -> Iterator[int | None]:
        """Open the namespace and note its resource; None: there is no such namespace."""
        if look.ns == HOST:
            yield self._namespaces.fd(HOST)
            return
        asked = look.wanted.get(("netns", look.ns))
        known = Namespace(ns=look.ns, source=self._namespaces.source(look.ns))
        namespace = asked if isinstance(asked, Namespace) else known
        fd = self._namespaces.look(namespace)
        if fd is None:
            yield None
            return
        look.note(namespace, ours=True)
        look.all_ours = namespace.owned and look.ns.startswith("network/")
        try:
            yield fd
        finally:
            os.close(fd)


def _drop_torn_pairs(looks: Mapping[Ns, _Look], found: dict[Key, Resource]) -> None:
    """Take away veth ends whose other end is not the wanted one, with what is on them.

    When one end was renamed or moved, the pair is made anew, and with it what was on the end that looks well.
    """
    torn = {key for key, resource in found.items() if isinstance(resource, Link) and _is_torn(looks, resource)}
    while torn:
        for key in torn:
            del found[key]
        torn = {key for key, resource in found.items() if any(need in torn for need in resource.needs())}


def _is_torn(looks: Mapping[Ns, _Look], link: Link) -> bool:
    if link.peer is None or link.peer.leaves or link.peer.ns not in looks or link.ns not in looks:
        return False
    mine = looks[link.ns].ends.get(link.name)
    theirs = looks[link.peer.ns].ends.get(link.peer.name)
    return mine is not None and theirs != (mine[1], mine[0])


def _dump(sock: socket.socket, request: bytes, decode: Callable[[bytes], T], what: str) -> list[T]:
    answer = netlink.dump(sock, request)
    error = answer.error(f"dump {what}", what)
    if error is not None:
        raise error
    return [decode(reply.body) for reply in answer.replies]


def _look_at_settings(look: _Look) -> None:
    """Read the settings that were asked for, in the namespace that the thread is in."""
    for resource in look.wanted.values():
        if not isinstance(resource, Sysctl):
            continue
        value = sysctl.read(resource.path)
        if value is None:
            if resource.optional:
                look.note(resource, ours=True)
            continue
        # The kernel prints tabs where people write spaces.
        same = value == " ".join(resource.value.split())
        look.note(msgspec.structs.replace(resource, value=resource.value if same else value), ours=True)


def _look_at_links(look: _Look, sock: socket.socket) -> None:
    infos = _dump(sock, rtnl.dump_links(), _link_info, "links")
    look.names = {info.ifindex: info.name for info in infos if info.group != resources.REAP_GROUP}
    for info in infos:
        if info.group == resources.REAP_GROUP:
            look.has_doomed = True
            continue
        wanted = look.wanted.get(("link", look.ns, info.name))
        assert wanted is None or isinstance(wanted, Link), "a link's key on another resource"
        if info.kind == "veth":
            if info.name.startswith(names.HANDED_OVER):
                continue  # goes with its other end
            look.ends[info.name] = info.ifindex, info.link_index
        loopback = info.kind == "loopback"
        ours = not loopback and (look.all_ours or info.group == resources.LINK_GROUP)
        if ours:
            look.our_links.add(info.ifindex)
        if wanted is not None and wanted.shared and not ours and info.kind == wanted.kind:
            look.note(msgspec.structs.replace(wanted, up=info.up), ours=False, excused=True)
        elif ours or wanted is not None:
            look.note(_link(look, info, wanted), ours=ours, excused=loopback)


@functools.lru_cache(maxsize=16)
def _loopback(body: bytes) -> dumps.LinkInfo:
    """Decode a lo, of which sandboxes have all the same."""
    return dumps.link(body)


def _link_info(body: bytes) -> dumps.LinkInfo:
    return _loopback(body) if body[4:8] == _LOOPBACK_INDEX else dumps.link(body)


def _link(look: _Look, info: dumps.LinkInfo, wanted: Link | None) -> Link:
    kind = info.kind
    if kind == "veth":
        # Which end was created, the kernel does not tell; in sandboxes it is the other one, unless we know better.
        kind = "peer" if look.ns.startswith("sandbox/") else "veth"
        if wanted is not None and wanted.kind in {"veth", "peer"}:
            kind = wanted.kind
    return Link(
        ns=look.ns,
        name=info.name,
        kind=kind,
        mtu=info.mtu,
        mac=info.mac,
        master=look.names.get(info.master_index),
        up=info.up,
        ipv6=info.ipv6,
        peer=wanted.peer if wanted is not None else None,
        vxlan=info.vxlan,
        port=info.port,
        socket_ns=wanted.socket_ns if wanted is not None else None,
        shared=wanted.shared if wanted is not None else False,
    )


def _look_at_addresses(look: _Look, sock: socket.socket) -> None:
    for info in _dump(sock, rtnl.dump_addresses(), dumps.address, "addresses"):
        name = look.names.get(info.ifindex)
        if name is None:
            continue
        made_by_kernel = info.protocol in _IFAPROT_KERNEL or info.address.startswith(_LINK_LOCAL)
        ours = info.protocol == resources.PROTOCOL or (
            look.all_ours and not made_by_kernel and info.ifindex in look.our_links
        )
        # Before Linux 5.18 an address has no protocol; on a link of ours, one that is wanted will be ours.
        look.note(
            Address(ns=look.ns, link=name, address=info.address), ours=ours, excused=info.ifindex in look.our_links
        )


def _unicast_route(body: bytes) -> dumps.RouteInfo | None:
    """Decode a unicast route, and no other."""
    return dumps.route(body) if body[7] == rtnl.RTN_UNICAST else None


def _look_at_routes(look: _Look, sock: socket.socket) -> None:
    # Of a sandbox's routes two thirds are the kernel's own, for local addresses and multicast.
    connected: set[tuple[str, str]] = set()
    """Where links lead by themselves, in whatever table: a link of a VRF has its routes in that one's."""
    for info in _dump(sock, rtnl.dump_routes(), _unicast_route, "routes"):
        name = look.names.get(info.ifindex) if info is not None else None
        if info is None or name is None or info.cloned or not info.destination:
            continue
        if info.via is None:
            connected.add((name, info.destination))
        if info.table != rtnl.RT_TABLE_MAIN:
            continue
        made_by_kernel = info.protocol in _RTPROT_KERNEL
        ours = info.protocol == resources.PROTOCOL or (look.all_ours and not made_by_kernel)
        look.note(
            Route(ns=look.ns, destination=info.destination, link=name, via=info.via), ours=ours, excused=made_by_kernel
        )
    _look_at_connected_routes(look, connected)


def _look_at_connected_routes(look: _Look, connected: Collection[tuple[str, str]]) -> None:
    """Note of wanted addresses whether the route to their prefix is there, of links that are up: others have none."""
    for key, address in look.found.items():
        if not isinstance(address, Address) or key not in look.wanted:
            continue
        prefix = resources.connected_prefix(address.address)
        link = look.found.get(("link", look.ns, address.link))
        if prefix and (address.link, prefix) not in connected and (not isinstance(link, Link) or link.up):
            look.found[key] = msgspec.structs.replace(address, connected=False)


def _look_at_neighbours(look: _Look, sock: socket.socket) -> None:
    for info in _dump(sock, rtnl.dump_neighbours(), dumps.neighbour, "neighbours"):
        name = look.names.get(info.ifindex)
        if name is None or not info.ip or not info.state & rtnl.NUD_PERMANENT:
            continue
        ours = info.protocol == resources.PROTOCOL or look.all_ours
        neighbour = Neighbour(ns=look.ns, link=name, ip=info.ip, mac=info.mac)
        look.note(neighbour, ours=ours, excused=info.ifindex in look.our_links)


def _look_at_fdb(look: _Look, sock: socket.socket) -> None:
    for info in _dump(sock, rtnl.dump_fdb(), dumps.fdb, "forwarding entries"):
        name = look.names.get(info.ifindex)
        if name is None:
            continue
        if info.flags & rtnl.NTF_SELF:
            managed = info.vtep is not None
        else:
            # Static entries; permanent ones are the bridge's own addresses, the others it has learned.
            managed = bool(info.master_index) and info.state & (rtnl.NUD_NOARP | rtnl.NUD_PERMANENT) == rtnl.NUD_NOARP
        if managed:
            look.note(Fdb(ns=look.ns, link=name, mac=info.mac, vtep=info.vtep), ours=info.ifindex in look.our_links)


def _look_at_limits(look: _Look, sock: socket.socket) -> None:
    """Look at the host's ends of veths: token buckets, and redirects where a link of ours has a place for filters."""
    for info in _dump(sock, tc.dump_qdiscs(), tc.qdisc, "queueing disciplines"):
        name = look.names.get(info.ifindex)
        if name is None or info.ifindex not in look.our_links:
            continue
        if info.handle == tc.OUR_QDISC and info.limit:
            bucket = TokenBucket(ns=look.ns, link=name, rate=info.rate, burst=info.burst, limit=info.limit)
            look.note(bucket, ours=True)
        elif info.handle == tc.CLSACT:
            for to in _dump(sock, tc.dump_redirects(info.ifindex), tc.redirected_to, "filters"):
                if to is not None:
                    look.note(Redirect(ns=look.ns, link=name, to=look.names.get(to, "")), ours=True)


def _look_at_firewall(look: _Look, sock: socket.socket) -> None:
    tables = dict.fromkeys(nft_domain.Table(family, TABLE_NAME) for family in _FAMILIES)
    tables.update(
        (resource.table, None) for resource in look.wanted.values() if isinstance(resource, nft_domain.NftTable)
    )
    for resource in nft.observe(sock, look.ns, tables).values():
        look.note(resource, ours=True)
    others = [one for one in look.wanted.values() if isinstance(one, nft_domain.NftGuest | nft_domain.NftOffer)]
    for one in nft_guests.observe(sock, others):
        look.note(one, ours=False, excused=True)
