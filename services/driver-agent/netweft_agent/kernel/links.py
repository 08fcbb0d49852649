"""Make, change and remove links: three stages for any number of them, a send each.

1. Create, all in one send a socket, each followed by the question what has become of it; nothing is up yet. A link is
   born with its name, MAC, MTU, master and group, its other end in place: afterwards each of these would cost an RTNL
   round, and a move 16 ms.
2. Switch IPv6, by file, where the answer says that it is not as wanted.
3. Set what the answer shows to be still missing: the bridge port's attributes, and up.

A change begins with the question, and goes through stages 2 and 3 alike. So does a link that is found to exist and to
be ours, which is what a crash between the stages leaves.
"""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from netweft_common import errors, faults

from netweft_agent.domain import resources
from netweft_agent.domain.resources import Link, Ns
from netweft_agent.kernel import dumps, netlink, rtnl, sysctl
from netweft_agent.kernel.indexes import Indexes
from netweft_agent.kernel.netns import Namespaces
from netweft_agent.kernel.nsids import Nsids
from netweft_agent.kernel.reaper import Reaper
from netweft_agent.kernel.run import Run, describe
from netweft_agent.kernel.sockets import Sockets

_REAP_AT_ONCE = 8
_OF_ENDPOINTS = frozenset({"veth", "ifb"})
"""Kinds that come and go with endpoints, whose names nobody else will want soon."""
_TRIES = 2


@dataclass(slots=True)
class _Work:
    """One link on its way through the stages."""

    step: int
    link: Link
    info: dumps.LinkInfo | None = None
    born: bool = False
    """It was created by this batch, so a later failure removes it again."""
    settled: bool = False
    """It is somebody else's and will do: nothing is left to be done."""


def differences(link: Link, info: dumps.LinkInfo, master_index: int | None) -> list[bytes]:
    """Return the messages that turn a link into what is wanted, none when it is so. IPv6 goes by file, not here.

    Args:
        link: As wanted.
        info: As it is.
        master_index: Index of the wanted master; None: no master.
    """
    wanted_master = master_index or 0
    moves = wanted_master != info.master_index
    mtu = link.mtu if link.mtu is not None and link.mtu != info.mtu else None
    mac = link.mac if link.mac is not None and link.mac != info.mac else None
    # A port starts with the kernel's defaults at each bridge.
    port = link.port if link.port is not None and link.port != (resources.Port() if moves else info.port) else None
    up = link.up if link.up != info.up else None
    group = resources.LINK_GROUP if link.kind != "loopback" and info.group != resources.LINK_GROUP else None
    messages = []
    if moves:
        # Port attributes in the message that sets the master are refused: they are checked against the old master.
        messages.append(rtnl.set_link(info.ifindex, master_index=wanted_master))
    if any(change is not None for change in (mtu, mac, port, up, group)):
        messages.append(rtnl.set_link(info.ifindex, up=up, mtu=mtu, mac=mac, port=port, group=group))
    return messages


class Links:
    """Links of the host and of the networks' namespaces; belongs to the writer thread."""

    def __init__(
        self, namespaces: Namespaces, sockets: Sockets, indexes: Indexes, reaper: Reaper, nsids: Nsids
    ) -> None:
        self._namespaces = namespaces
        self._nsids = nsids
        self._sockets = sockets
        self._indexes = indexes
        self._reaper = reaper
        self.newborn: dict[tuple[Ns, str], Link] = {}
        """Other ends of the veths made in this batch, as they were born, by namespace and name."""

    # --- make and change ---

    def apply(self, run: Run, indices: Iterable[int], peers: dict[tuple[Ns, str], Link]) -> None:
        """Make or change links of rank BRIDGE, VXLAN or LINK.

        Args:
            run: The batch.
            indices: Its steps.
            peers: What the batch wants of the other ends, by namespace and name, since they are born with it.
        """
        work = []
        for index in run.begin(indices):
            link = run.steps[index].after
            assert isinstance(link, Link), "a removal among the additions"
            work.append(_Work(index, link, born=run.steps[index].before is None))
        work = self._check_namespaces(run, work)
        self._create(run, [item for item in work if item.born], peers, _TRIES)
        faults.reach(faults.Point.KERNEL_VETHS)
        self._look(run, [item for item in work if not item.born and item.info is None and not item.settled])
        self._finish(run, [item for item in work if item.info is not None])

    def _check_namespaces(self, run: Run, work: list[_Work]) -> list[_Work]:
        ready = []
        for item in work:
            peer = item.link.peer if item.link.kind == "veth" else None
            spaces = {item.link.ns, peer.ns if peer is not None else item.link.ns, item.link.socket_ns or item.link.ns}
            try:
                for ns in spaces:
                    self._namespaces.fd(ns)
            except errors.NotFound as error:
                run.fail(item.step, error)
                continue
            if item.born and self._reaper.pending() and any(self._reaper.covers(ns) for ns in spaces):
                self._reaper.reap()
            ready.append(item)
        return ready

    def _create(self, run: Run, work: list[_Work], peers: dict[tuple[Ns, str], Link], tries: int) -> None:
        by_socket: dict[Ns, list[_Work]] = defaultdict(list)
        for item in work:
            link = item.link
            by_socket[link.socket_ns if link.kind == "vxlan" and link.socket_ns is not None else link.ns].append(item)
        again = []
        for ns, items in by_socket.items():
            messages, sent = [], []
            for item in items:
                try:
                    messages.append(self._birth(item.link, peers))
                    sent.append(item)
                except errors.NetweftError as error:
                    run.fail(item.step, error)
            here = all(item.link.ns == ns for item in sent)
            if here:
                messages += [rtnl.get_link(item.link.name) for item in sent]
            acks = netlink.talk(self._sockets.get(ns), messages) if messages else []
            created, told = acks[: len(sent)], acks[len(sent) :]
            if not here:
                told = [
                    netlink.talk(self._sockets.get(item.link.ns), [rtnl.get_link(item.link.name)])[0] for item in sent
                ]
            for item, ack, answer in zip(sent, created, told, strict=True):
                if self._settle(run, item, ack, answer, peers) or tries == 1:
                    continue
                again.append(item)
        if again:
            self._create(run, again, peers, tries - 1)
            return

    def _birth(self, link: Link, peers: dict[tuple[Ns, str], Link]) -> bytes:
        if link.kind == "bridge":
            return rtnl.create_bridge(link.name, mac=link.mac)
        if link.kind == "vxlan":
            assert link.vxlan is not None, f"vxlan {link.name} without its attributes"
            elsewhere = link.socket_ns is not None and link.socket_ns != link.ns
            fd = self._namespaces.fd(link.ns) if elsewhere else None
            return rtnl.create_vxlan(link.name, link.vxlan, mtu=link.mtu, mac=link.mac, ns_fd=fd)
        if link.kind == "ifb":
            return rtnl.create_link(link.name, link.kind)
        if link.kind != "veth" or link.peer is None:
            raise errors.Internal("UNKNOWN_LINK_KIND", f"link {link.name} of kind {link.kind!r} cannot be created")
        peer = peers.get((link.peer.ns, link.peer.name))
        return rtnl.create_veth(
            link.name,
            mtu=link.mtu,
            mac=link.mac,
            master_index=self._master(link),
            peer_name=link.peer.name,
            peer_mtu=peer.mtu if peer is not None and peer.mtu is not None else link.mtu,
            peer_mac=peer.mac if peer is not None and peer.mac is not None else link.peer.mac,
            peer_ns_fd=self._namespaces.fd(link.peer.ns),
        )

    def _master(self, link: Link) -> int | None:
        if link.master is None:
            return None
        found = self._indexes.resolve(link.ns, [link.master])
        if link.master not in found:
            raise errors.FailedPrecondition(
                "MASTER_NOT_FOUND",
                f"link {link.name} shall be a port of bridge {link.master} in {link.ns or 'the host'}, "
                "which does not exist; apply its network first",
                link=link.name,
                master=link.master,
            )
        return found[link.master]

    def _settle(
        self, run: Run, item: _Work, ack: netlink.Ack, answer: netlink.Ack, peers: dict[tuple[Ns, str], Link]
    ) -> bool:
        """Take what the kernel said to a creation; False: it is worth another try."""
        link = item.link
        info: dumps.LinkInfo | None = None
        if answer.replies and not answer.errno:
            body = answer.replies[0].body
            fresh_veth = ack.errno == 0 and link.kind == "veth"
            info = self._as_born(link, body) if fresh_veth else dumps.link(body)
        if ack.errno == 0 and info is not None:
            item.info = info
            self._remember(link, info)
            if link.peer is not None and link.kind == "veth":
                wanted = peers.get((link.peer.ns, link.peer.name))
                if wanted is not None:
                    self.newborn[link.peer.ns, link.peer.name] = wanted
            return True
        item.born = False
        if ack.errno == errno.EEXIST:
            return self._adopt(run, item, info)
        if ack.errno in {errno.ENODEV, errno.EINVAL} and link.master is not None:
            known = self._indexes.find(link.ns, link.master)
            fresh = self._indexes.ask(link.ns, [link.master]).get(link.master)
            if known is not None and fresh is not None and fresh.ifindex != known.ifindex:
                item.born = True
                return False
        if ack.errno == errno.EXFULL and link.master is not None:
            run.fail(item.step, _full(link))
            return True
        run.refuse(item.step, ack.errno or answer.errno, ack.detail or answer.detail)
        return True

    def _as_born(self, link: Link, body: bytes) -> dumps.LinkInfo:
        """Return a new veth as it must be, since its creation was acknowledged; only some of it is read."""
        born = dumps.born(body)
        return dumps.LinkInfo(
            ifindex=born.ifindex,
            name=link.name,
            up=False,
            kind=link.kind,
            mtu=link.mtu or 0,
            mac=link.mac or "",
            master_index=self._master(link) or 0,
            link_index=born.other,
            link_nsid=born.nsid,
            group=resources.LINK_GROUP,
            ipv6_disabled=born.ipv6_disabled,
            accept_ra=born.accept_ra,
            port=resources.Port() if link.master is not None else None,
            vxlan=None,
        )

    def _adopt(self, run: Run, item: _Work, info: dumps.LinkInfo | None) -> bool:
        """Take over a link that exists if it is what is wanted, or ours and in the way; else say whose it is."""
        link = item.link
        ours = info is not None and info.group in {resources.LINK_GROUP, resources.REAP_GROUP}
        if info is None and link.vxlan is not None:
            run.fail(item.step, _vni_taken(link))
            return True
        if info is None:
            return self._adopt_far_end(run, item)
        if not ours and not self._all_ours(link.ns):
            if link.shared and info.kind == link.kind:
                self._share(run, item, info)
            else:
                run.fail(item.step, _foreign(link.name, link.ns, f"a {link.kind}"))
            return True
        same = info.kind == link.kind and (link.vxlan is None or link.vxlan == info.vxlan)
        if info.group != resources.REAP_GROUP and same and self._is_pair(link, info):
            item.info = info
            self._remember(link, info)
            return True
        # Ours, from an earlier life, and no use: make room.
        netlink.talk(self._sockets.get(link.ns), [rtnl.set_link(info.ifindex, group=resources.REAP_GROUP)])
        self._reaper.reap_namespace(link.ns)
        item.born = True
        return False

    def _share(self, run: Run, item: _Work, info: dumps.LinkInfo) -> None:
        """Use a bridge that is somebody else's; it has to be up, and is left as it is otherwise."""
        item.settled = True
        self._indexes.put(item.link.ns, item.link.name, info.ifindex, ours=False)
        if not info.up:
            ack = netlink.talk(self._sockets.get(item.link.ns), [rtnl.set_link(info.ifindex, up=True)])[0]
            if ack.errno:
                run.refuse(item.step, ack.errno, ack.detail)

    def _adopt_far_end(self, run: Run, item: _Work) -> bool:
        """Make room for the other end, if what has its name is ours, from a pair that was torn."""
        peer = item.link.peer
        assert peer is not None, "only the other end of a veth can exist while the link does not"
        there = self._indexes.ask(peer.ns, [peer.name]).get(peer.name)
        if there is None or there.group not in {resources.LINK_GROUP, resources.REAP_GROUP}:
            run.fail(item.step, _foreign(peer.name, peer.ns, f"the other end of {item.link.name}"))
            return True
        netlink.talk(self._sockets.get(peer.ns), [rtnl.set_link(there.ifindex, group=resources.REAP_GROUP)])
        self._reaper.reap_namespace(peer.ns)
        item.born = True
        return False

    def _is_pair(self, link: Link, info: dumps.LinkInfo) -> bool:
        if link.kind != "veth" or link.peer is None or link.peer.leaves:
            return True
        other = self._indexes.ask(link.peer.ns, [link.peer.name]).get(link.peer.name)
        return other is not None and other.ifindex == info.link_index and other.link_index == info.ifindex

    def _all_ours(self, ns: Ns) -> bool:
        return ns.startswith("network/") and self._namespaces.owned(ns)

    def _remember(self, link: Link, info: dumps.LinkInfo) -> None:
        self._indexes.put(link.ns, link.name, info.ifindex, ours=True)
        if link.kind == "veth" and link.peer is not None and info.link_index and not link.peer.leaves:
            self._indexes.put(link.peer.ns, link.peer.name, info.link_index, ours=True)
            if link.ns == resources.HOST and info.link_nsid is not None:
                self._nsids.put(info.link_nsid, link.peer.ns)

    def _look(self, run: Run, work: list[_Work]) -> None:
        """Ask for the links that are to be changed."""
        by_ns: dict[Ns, list[_Work]] = defaultdict(list)
        for item in work:
            if run.results[item.step] is None:
                by_ns[item.link.ns].append(item)
        for ns, items in by_ns.items():
            found = self._indexes.ask(ns, [item.link.name for item in items])
            for item in items:
                info = found.get(item.link.name)
                if info is None:
                    run.refuse(item.step, errno.ENODEV)
                elif item.link.shared and info.group != resources.LINK_GROUP:
                    self._share(run, item, info)
                else:
                    item.info = info

    def _finish(self, run: Run, work: list[_Work]) -> None:
        """Stages 2 and 3."""
        for item in work:
            self._indexes.want(item.link)
        work = self._switch_ipv6(run, work)
        by_ns: dict[Ns, list[tuple[_Work, bytes]]] = defaultdict(list)
        for item in work:
            assert item.info is not None, "finished without a look"
            try:
                messages = differences(item.link, item.info, self._master(item.link))
            except errors.NetweftError as error:
                self._give_up(run, item, error)
                continue
            by_ns[item.link.ns] += [(item, message) for message in messages]
        for ns, pairs in by_ns.items():
            acks = netlink.talk(self._sockets.get(ns), [message for _, message in pairs])
            for (item, _), ack in zip(pairs, acks, strict=True):
                if ack.errno:
                    step = run.steps[item.step]
                    self._give_up(run, item, errors.KernelError(step.command(), describe(step), ack.errno, ack.detail))

    def _switch_ipv6(self, run: Run, work: list[_Work]) -> list[_Work]:
        by_ns: dict[Ns, list[_Work]] = defaultdict(list)
        for item in work:
            if item.link.ipv6 is not None and item.info is not None and item.info.ipv6 != item.link.ipv6:
                by_ns[item.link.ns].append(item)
        dropped = set()
        for ns, items in by_ns.items():
            with self._namespaces.entered(ns):
                for item in items:
                    try:
                        sysctl.switch_ipv6(item.link.name, on=bool(item.link.ipv6), look=False)
                    except errors.NetweftError as error:
                        self._give_up(run, item, error)
                        dropped.add(item.step)
        return [item for item in work if item.step not in dropped] if dropped else work

    def _give_up(self, run: Run, item: _Work, error: errors.NetweftError) -> None:
        run.fail(item.step, error)
        if item.born and item.info is not None:
            item.born = False
            self._doom(item.link.ns, [(item.link, item.info.ifindex)])

    # --- remove ---

    def remove(self, run: Run, indices: Iterable[int]) -> None:
        """Remove links; of a veth both ends go. What is gone already is success; what is not ours is refused.

        A bridge of somebody else's that was used is let go of.
        """
        by_ns: dict[Ns, list[tuple[int, Link]]] = defaultdict(list)
        for index in run.begin(indices):
            link = run.steps[index].before
            assert isinstance(link, Link), "an addition among the removals"
            if link.kind in {"loopback", "peer"}:
                continue  # the one never goes, the other with the end that was created
            if self._namespaces.holds(link.ns):
                by_ns[link.ns].append((index, link))
        heavy = any(link.kind not in _OF_ENDPOINTS for pairs in by_ns.values() for _, link in pairs)
        at_once = heavy or sum(map(len, by_ns.values())) >= _REAP_AT_ONCE
        try:
            for ns, pairs in by_ns.items():
                # What waits must not forward any more; the rest the kernel takes down together, for less.
                self._remove_in(run, ns, pairs, down=not at_once)
        finally:
            if at_once:
                self._reaper.reap()

    def _remove_in(self, run: Run, ns: Ns, pairs: list[tuple[int, Link]], *, down: bool) -> None:
        ready: list[tuple[int, Link, int]] = []
        unknown = []
        for index, link in pairs:
            known = self._indexes.find(ns, link.name)
            if known is not None and known.ours:
                ready.append((index, link, known.ifindex))
            else:
                unknown.append((index, link))
        lost = self._doom_steps(run, ns, ready, down=down)
        if unknown or lost:
            self._doom_steps(run, ns, self._checked(run, ns, [*unknown, *lost]), down=down)

    def _checked(self, run: Run, ns: Ns, pairs: list[tuple[int, Link]]) -> list[tuple[int, Link, int]]:
        found = self._indexes.ask(ns, [link.name for _, link in pairs])
        ready = []
        for index, link in pairs:
            info = found.get(link.name)
            if info is None:
                continue  # gone, as wanted
            if info.group in {resources.LINK_GROUP, resources.REAP_GROUP} or self._all_ours(ns):
                ready.append((index, link, info.ifindex))
            elif not link.shared:
                run.fail(index, _foreign(link.name, ns, "to be deleted"))
        return ready

    def _doom_steps(
        self, run: Run, ns: Ns, ready: list[tuple[int, Link, int]], *, down: bool
    ) -> list[tuple[int, Link]]:
        """Doom links; return those whose remembered index leads nowhere."""
        acks = self._doom(ns, [(link, index) for _, link, index in ready], down=down)
        lost = []
        for (step, link, _), ack in zip(ready, acks, strict=True):
            if ack.errno == errno.ENODEV:
                lost.append((step, link))
            elif ack.errno:
                run.refuse(step, ack.errno, ack.detail)
        return lost

    def _doom(self, ns: Ns, links: list[tuple[Link, int]], *, down: bool = True) -> list[netlink.Ack]:
        if not links:
            return []
        for link, _ in links:  # first, so that the events of what follows are known as our own
            self._indexes.forget(ns, link.name)
            if link.peer is not None:
                self._indexes.forget(link.peer.ns, link.peer.name)
        # An ifb stays up until it is reaped: taking it down waits for the kernel, and what is in its queue still goes.
        messages = [
            rtnl.set_link(index, up=False if down and link.kind != "ifb" else None, group=resources.REAP_GROUP)
            for link, index in links
        ]
        acks = netlink.talk(self._sockets.get(ns), messages)
        for (link, _), ack in zip(links, acks, strict=True):
            if not ack.errno:
                self._reaper.add(ns, link.peer.ns if link.peer is not None else (None if link.kind == "veth" else ns))
        return acks


def _foreign(name: str, ns: Ns, what: str) -> errors.FailedPrecondition:
    return errors.FailedPrecondition(
        "FOREIGN_LINK",
        f"link {name} in {ns or 'the host'} was wanted as {what}, but a link of that name is there that is somebody "
        "else's (it has not our link group); rename or remove it, or choose another name",
        link=name,
        namespace=ns,
    )


def _full(link: Link) -> errors.Exhausted:
    return errors.Exhausted(
        "BRIDGE_FULL",
        f"link {link.name} in {link.ns or 'the host'} was wanted as a port of bridge {link.master}, which has as "
        "many as the kernel gives a bridge, 1,023; detach endpoints of that network here, or take off the bridge what "
        f"somebody else has put on it (`ip link show master {link.master}` lists them)",
        link=link.name,
        master=str(link.master),
    )


def _vni_taken(link: Link) -> errors.FailedPrecondition:
    assert link.vxlan is not None, "asked for tunnels only"
    vni, port = link.vxlan.vni, link.vxlan.port
    where = (link.ns if link.socket_ns is None else link.socket_ns) or "the host"
    return errors.FailedPrecondition(
        "VNI_IN_USE",
        f"link {link.name} in {link.ns or 'the host'} was wanted as a vxlan of VNI {vni} at UDP port {port}, but "
        f"{where} has a vxlan device of that VNI and port already, which may have been moved to another namespace; "
        "find it with `ip -d link show type vxlan` and remove it, or make the network with another VNI or port",
        link=link.name,
        vni=str(vni),
        port=str(port),
    )
