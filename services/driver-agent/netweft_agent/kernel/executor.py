"""Carry out operations in order, in few sends: neighbouring steps of one kind go together.

The cost of an attach is the kernel's RTNL time; what we can save is round trips and look-ups. A batch of attaches comes
out as: firewall transactions, one send that creates all veths, IPv6 switches where needed, one send that brings the
host ends up, and for each sandbox one send with everything inside. The plan's order guarantees what has to be there
first; within these groups order across kinds does not matter.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec
from netweft_common import errors, faults

from netweft_agent.domain import names
from netweft_agent.domain.nft import NftElement, NftGuest, NftOffer, NftTable, Table
from netweft_agent.domain.plan import Operation
from netweft_agent.domain.resources import (
    HOST,
    Fdb,
    File,
    Key,
    Link,
    Namespace,
    Neighbour,
    Ns,
    PortHold,
    Rank,
    Resource,
    Sysctl,
)
from netweft_agent.kernel import conntrack, dumps, netlink, nft, nft_guests, rtnl, sysctl
from netweft_agent.kernel.files import Files
from netweft_agent.kernel.indexes import Indexes
from netweft_agent.kernel.inside import Inside
from netweft_agent.kernel.links import Links
from netweft_agent.kernel.netns import Namespaces
from netweft_agent.kernel.nsids import Nsids
from netweft_agent.kernel.ports import Ports
from netweft_agent.kernel.reaper import Reaper
from netweft_agent.kernel.run import Run
from netweft_agent.kernel.sockets import Sockets

_OPENED = frozenset(names.OPENED.values())
_NOTHING: Mapping[str, str] = {}


class Phase(enum.Enum):
    """Steps that are carried out together when they are neighbours."""

    NAMESPACES = enum.auto()
    DROP_NAMESPACES = enum.auto()
    SYSCTLS = enum.auto()
    FIREWALL = enum.auto()
    MASTERS = enum.auto()
    LINKS = enum.auto()
    INSIDE = enum.auto()
    DROP_LINKS = enum.auto()
    FILES = enum.auto()
    PORTS = enum.auto()


_DONE = {
    Phase.NAMESPACES: faults.Point.KERNEL_NAMESPACES,
    Phase.DROP_NAMESPACES: faults.Point.KERNEL_UNPINNED,
    Phase.SYSCTLS: faults.Point.KERNEL_SETTINGS,
    Phase.FIREWALL: faults.Point.KERNEL_FIREWALL,
    Phase.MASTERS: faults.Point.KERNEL_BRIDGES,
    Phase.LINKS: faults.Point.KERNEL_LINKS,
    Phase.INSIDE: faults.Point.KERNEL_INSIDE,
    Phase.DROP_LINKS: faults.Point.KERNEL_DOOMED,
    Phase.FILES: faults.Point.KERNEL_FILES,
    Phase.PORTS: faults.Point.KERNEL_PORTS,
}


_PHASES: Mapping[type[Resource], Phase] = {
    Sysctl: Phase.SYSCTLS,
    File: Phase.FILES,
    PortHold: Phase.PORTS,
    NftElement: Phase.FIREWALL,
    Fdb: Phase.INSIDE,
    Neighbour: Phase.INSIDE,
}


def phase(step: Operation) -> Phase:
    """Return what a step is carried out with."""
    resource = step.resource
    known = _PHASES.get(type(resource))
    if known is not None:
        return known
    gone = step.after is None
    found = Phase.INSIDE
    if isinstance(resource, Namespace):
        found = Phase.DROP_NAMESPACES if gone else Phase.NAMESPACES
    elif Rank.NFT <= resource.rank < Rank.BRIDGE:
        found = Phase.FIREWALL
    elif isinstance(resource, Link):
        if gone:
            found = Phase.DROP_LINKS
        elif resource.rank != Rank.PEER:
            found = Phase.LINKS if resource.rank == Rank.LINK else Phase.MASTERS
    return found


class Executor:
    """The one writer of a kernel; belongs to the writer thread.

    Args:
        namespaces: Registry.
        files: Managed files.
        ports: Held ports.
    """

    def __init__(self, namespaces: Namespaces, files: Files, ports: Ports) -> None:
        self._namespaces = namespaces
        self._files = files
        self._ports = ports
        self.sockets = Sockets(namespaces)
        self.indexes = Indexes(self.sockets)
        self._reaper = Reaper(self.sockets)
        self.nsids = Nsids()
        """Ids of namespaces in the host's, which events carry."""
        self._unnumbered: list[Ns] = []
        self._links = Links(namespaces, self.sockets, self.indexes, self._reaper, self.nsids)
        self._inside = Inside(namespaces, self.sockets, self.indexes, self._links, self._born_with)
        self._born: dict[Ns, dict[str, str]] = {}
        self._handlers: dict[Phase, Callable[[Run, list[int]], None]] = {
            Phase.NAMESPACES: self._hold_namespaces,
            Phase.DROP_NAMESPACES: self._drop_namespaces,
            Phase.SYSCTLS: self._set_sysctls,
            Phase.FIREWALL: self._change_firewall,
            Phase.MASTERS: self._make_links,
            Phase.LINKS: self._make_links,
            Phase.INSIDE: self._inside.apply,
            Phase.DROP_LINKS: self._links.remove,
            Phase.FILES: self._change_files,
            Phase.PORTS: self._change_ports,
        }
        self._claimed: set[Table] = set()
        self._shut: list[conntrack.Flows] = []
        """Flows to endpoints' own ports that are open no more: what is established is not asked again."""
        self._ended: list[PortHold] = []
        """Ports whose flows lead to where they led before this batch."""
        self._peers: dict[tuple[Ns, str], Link] = {}

    def execute(self, steps: Sequence[Operation]) -> list[errors.NetweftError | None]:
        """Carry out the steps; see api.Kernel.execute."""
        run = Run(steps)
        self._peers = {
            (step.after.ns, step.after.name): step.after
            for step in steps
            if isinstance(step.after, Link) and step.after.kind == "peer"
        }
        self._links.newborn.clear()
        late = self._settings_of_new_links(steps)
        order = [index for index in range(len(steps)) if index not in late] if late else range(len(steps))
        for kind, group in itertools.groupby(order, key=lambda index: phase(steps[index])):
            self._carry_out(run, self._handlers[kind], list(group))
            faults.reach(_DONE[kind])
        if late:
            self._carry_out(run, self._set_sysctls, sorted(late))
            faults.reach(_DONE[Phase.SYSCTLS])
        if self._ended or self._shut:
            self._end_flows()
        return run.results

    @staticmethod
    def _carry_out(run: Run, handler: Callable[[Run, list[int]], None], group: list[int]) -> None:
        """Carry out one group; what stops it as a whole (no descriptor left, say) is each of its steps' failure."""
        try:
            handler(run, group)
        except errors.NetweftError as error:
            for index in group:
                run.fail(index, error)

    def flush(self) -> None:
        """Delete the links that wait for it."""
        self._reaper.reap()

    def idle(self) -> float | None:
        """Do what is due; return the seconds until it is worth calling again, None if never."""
        if self._unnumbered:
            spaces, self._unnumbered = self._unnumbered, []
            self._number([ns for ns in spaces if self._namespaces.holds(ns) and not self.nsids.has(ns)])
        return self._reaper.reap_if_due()

    def start(self) -> None:
        """Delete what an earlier run left in the host: doomed links, and what is half-made or half-gone."""
        self._namespaces.clear()
        self._files.clear()
        self._reaper.reap_namespace(HOST)

    def close(self) -> None:
        """Delete what waits, and close the sockets."""
        self._reaper.reap()
        self.sockets.close()

    # --- namespaces ---

    def adopt(self, namespaces: Iterable[Namespace], doomed: Collection[Ns]) -> None:
        """Open namespaces that exist already, made by an earlier run or by others; one that vanishes is left out.

        Args:
            namespaces: They.
            doomed: Those in which an earlier run has left links that wait to be deleted.
        """
        held = []
        for namespace in namespaces:
            with contextlib.suppress(errors.NetweftError):
                self._hold(namespace, reap=namespace.ns in doomed)
                held.append(namespace.ns)
        self._number(held)

    def _hold_namespaces(self, run: Run, indices: Iterable[int]) -> None:
        for index in run.begin(indices):
            namespace = run.steps[index].after
            assert isinstance(namespace, Namespace), "a removal among the additions"
            try:
                self._hold(namespace)
            except errors.NetweftError as error:
                run.fail(index, error)
                continue
            # A veth into it gives it an id, and tells; what has none after the batch is given one when there is time.
            self._unnumbered.append(namespace.ns)

    def _hold(self, namespace: Namespace, *, reap: bool = True) -> None:
        made = self._namespaces.hold(namespace)
        self._forget(namespace.ns)
        if reap and not made and namespace.owned:
            self._reaper.reap_namespace(namespace.ns)

    def _number(self, spaces: list[Ns]) -> None:
        """Give namespaces an id in the host's, so that their events are heard; without one, they just are not."""
        messages = []
        for ns in spaces:
            fd = self._namespaces.fd(ns)
            messages += [rtnl.assign_nsid(fd), rtnl.get_nsid(fd)]
        if not messages:
            return
        acks = netlink.talk(self.sockets.get(HOST), messages)
        for ns, answer in zip(spaces, acks[1::2], strict=True):
            if answer.replies:
                self.nsids.put(dumps.nsid(answer.replies[0].body), ns)

    def _drop_namespaces(self, run: Run, indices: Iterable[int]) -> None:
        for index in run.begin(indices):
            namespace = run.steps[index].before
            assert isinstance(namespace, Namespace), "an addition among the removals"
            if self._reaper.covers(namespace.ns):
                self._reaper.reap()
            self._forget(namespace.ns)
            try:
                self._namespaces.drop(namespace)
            except errors.NetweftError as error:
                run.fail(index, error)

    def _forget(self, ns: Ns) -> None:
        self.sockets.forget(ns)
        self.indexes.forget_namespace(ns)
        self._born.pop(ns, None)
        self.nsids.forget(ns)

    # --- settings ---

    @staticmethod
    def _settings_of_new_links(steps: Sequence[Operation]) -> set[int]:
        """Return the steps whose setting is one of a link that this batch makes, so that they have to wait for it."""
        made = {step.after.key for step in steps if step.before is None and isinstance(step.after, Link)}
        if not made:
            return set()
        late = set()
        for index, step in enumerate(steps):
            if not isinstance(step.after, Sysctl):
                continue
            words = step.after.path.split("/")
            if len(words) > 4 and words[2] in {"conf", "neigh"} and ("link", step.after.ns, words[3]) in made:
                late.add(index)
        return late

    def _set_sysctls(self, run: Run, indices: Iterable[int]) -> None:
        by_ns: dict[Ns, list[tuple[int, Sysctl]]] = defaultdict(list)
        for index in run.begin(indices):
            setting = run.steps[index].after
            if isinstance(setting, Sysctl):  # else: it stays as it is, others may rely on it by now
                by_ns[setting.ns].append((index, setting))
        for ns, settings in by_ns.items():
            try:
                with self._namespaces.entered(ns):
                    for index, setting in settings:
                        self._set_sysctl(run, index, setting)
            except errors.NetweftError as error:
                for index, _ in settings:
                    run.fail(index, error)

    def _set_sysctl(self, run: Run, index: int, setting: Sysctl) -> None:
        try:
            sysctl.write(setting.path, setting.value, missing_ok=setting.optional)
        except errors.NetweftError as error:
            run.fail(index, error)
            return
        where, _, name = setting.path.rpartition("/")
        # `all/disable_ipv6` sets the default as well (addrconf_disable_ipv6); `all/accept_ra` does not.
        if where == f"{sysctl.IPV6_CONF}/default" or setting.path == f"{sysctl.IPV6_CONF}/all/disable_ipv6":
            self._born.setdefault(setting.ns, {})[name] = setting.value

    def _born_with(self, ns: Ns) -> Mapping[str, str]:
        return self._born.get(ns, _NOTHING) if self._namespaces.owned(ns) else _NOTHING

    # --- the rest ---

    def _make_links(self, run: Run, indices: Iterable[int]) -> None:
        self._links.apply(run, indices, self._peers)

    def _change_files(self, run: Run, indices: Iterable[int]) -> None:
        for index in run.begin(indices):
            step = run.steps[index]
            try:
                if isinstance(step.after, File):
                    self._files.write(step.after, step.before if isinstance(step.before, File) else None)
                elif isinstance(step.before, File):
                    self._files.remove(step.before)
            except errors.NetweftError as error:
                run.fail(index, error)

    def _change_ports(self, run: Run, indices: Iterable[int]) -> None:
        added: list[tuple[int, PortHold]] = []
        for index in run.begin(indices):
            before, after = run.steps[index].before, run.steps[index].after
            if isinstance(after, PortHold):
                added.append((index, after))
            elif isinstance(before, PortHold):
                self._ports.release(before)
            one = run.steps[index].resource
            assert isinstance(one, PortHold), "phase() sorts by kind"
            if isinstance(before, PortHold):
                self._ended.append(before)
            elif one.protocol == "udp":
                # No handshake, so a sender that was there before the port goes on with the entry that it has.
                self._ended.append(msgspec.structs.replace(one, targets=()))
        for (index, _), error in zip(added, self._ports.hold([one for _, one in added]), strict=True):
            if error is not None:
                run.fail(index, error)

    def _shut_ports(self, steps: Iterable[Operation]) -> None:
        for step in steps:
            gone = step.before
            if step.after is None and isinstance(gone, NftElement) and gone.spec.name in _OPENED:
                address, protocol, port = gone.item
                self._shut.append(conntrack.Flows(str(protocol), str(address), int(port)))

    def _end_flows(self) -> None:
        """End the flows of ports that led elsewhere before; by now no new one can begin."""
        ended, self._ended = self._ended, []
        found = conntrack.of_ports(ended, lambda: self._ports.held().values())
        found[HOST] += self._shut
        self._shut = []
        for ns, flows in found.items():
            if self._namespaces.holds(ns):  # what is gone took its flows along
                conntrack.end(self.sockets.get(ns, netlink.NETLINK_NETFILTER), flows)

    def _change_firewall(self, run: Run, indices: Iterable[int]) -> None:
        by_ns: dict[Ns, list[int]] = defaultdict(list)
        for index in run.begin(indices):
            by_ns[run.steps[index].resource.ns].append(index)
        for ns, group in by_ns.items():
            if not self._namespaces.holds(ns):
                for index in group:
                    if run.steps[index].after is not None:
                        run.fail(index, errors.NotFound("NETNS_NOT_HELD", f"network namespace {ns} is not open"))
                continue
            guests = {index for index in group if isinstance(run.steps[index].resource, NftGuest | NftOffer)}
            if guests:
                self._change_elsewhere(run, ns, sorted(guests))
            self._transact(run, ns, [index for index in group if index not in guests] if guests else group)
            if ns == HOST:
                self._shut_ports(run.steps[index] for index in group if run.results[index] is None)

    def _change_elsewhere(self, run: Run, ns: Ns, guests: Iterable[int]) -> None:
        """Change what we have in tables that are not ours; a chain that is not there or not open is let alone."""
        sock = self.sockets.get(ns, netlink.NETLINK_NETFILTER)
        steps = [run.steps[index] for index in guests]
        added = [step.after for step in steps if step.before is None]
        removed = [step.before for step in steps if step.after is None]
        with contextlib.suppress(errors.NetweftError):
            for one in added:
                if isinstance(one, NftOffer):
                    nft_guests.offer(sock, one)
            for one in removed:
                if isinstance(one, NftOffer):
                    nft_guests.withdraw(sock, one)
            nft_guests.change(
                sock,
                [one for one in added if isinstance(one, NftGuest)],
                [one for one in removed if isinstance(one, NftGuest)],
            )

    def take_over(self, tables: Iterable[NftTable], indexes: Mapping[Key, int], wanted: Mapping[Key, Resource]) -> None:
        """Go on where an earlier run has stopped: own its tables, and know its links, whose events nobody else tells.

        Args:
            tables: That are there.
            indexes: Of links of ours that are there.
            wanted: How they shall be.
        """
        self._claim(tables)
        for key, index in indexes.items():
            link = wanted.get(key)
            if isinstance(link, Link) and self.indexes.find(link.ns, link.name) is None:
                self.indexes.put(link.ns, link.name, index, ours=True, link=link)

    def _claim(self, tables: Iterable[NftTable]) -> None:
        """Become the owner of the host's tables that an earlier run has left."""
        unclaimed = [one.table for one in tables if one.owned and one.ns == HOST and one.table not in self._claimed]
        if unclaimed:
            self._claimed.update(unclaimed)
            nft.claim(self.sockets.get(HOST, netlink.NETLINK_NETFILTER), unclaimed)

    def _transact(self, run: Run, ns: Ns, group: list[int]) -> None:
        """Make one transaction of the steps; if the kernel refuses some, another of those that are not affected."""
        while group:
            try:
                sock = self.sockets.get(ns, netlink.NETLINK_NETFILTER)
                refused = nft.apply(sock, [run.steps[index] for index in group])
            except errors.NetweftError as error:
                for index in group:
                    run.fail(index, error)
                return
            if not refused:
                return
            for position, refusal in refused.items():
                run.fail(group[position], refusal)
            group = run.begin(index for position, index in enumerate(group) if position not in refused)
