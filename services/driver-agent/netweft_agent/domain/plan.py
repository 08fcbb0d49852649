"""The planner: the difference between two states of a kernel, as ordered operations.

`plan` is pure and knows no kinds: creation, change, repair, restart and removal are all the same call. Rules of order:

1. Removals first, in falling rank, so that what one owner gives up another may take in the same plan; but firewall
   state is removed last, after the links it guards.
2. Then additions and changes in rising rank: namespaces, files, firewall, links, addresses, routes, forwarding entries.
3. A resource whose needs are removed goes with them and has no operation of its own; if it is still wanted it is added
   again after what it needs.
4. A namespace that is exchanged for another of the same name takes everything in it along; removed ones go last.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from netweft_agent.domain.resources import Address, Key, Link, Namespace, Rank, Resource, Route

_LEAVES = frozenset({"nft-element", "port", "address", "route", "fdb", "neighbour", "file", "sysctl"})
"""Kinds that nothing needs; there may be thousands of them."""


class Operation(NamedTuple):
    """One step: a resource before and after; None where it does not exist."""

    before: Resource | None
    after: Resource | None
    owner: str
    """Object that the step is done for: endpoint/<id>, sandbox/<id>, network/<id> or host."""

    @property
    def resource(self) -> Resource:
        """The resource concerned, as it will be, or as it was when it goes."""
        found = self.after if self.after is not None else self.before
        assert found is not None, "an operation without a resource"
        return found

    def command(self) -> str:
        """Print the step as an administrator would type it; empty where nothing needs to be typed."""
        if self.after is None:
            return self.resource.delete_command()
        if self.before is None:
            return self.after.add_command()
        return self.after.change_command(self.before)

    def inverse(self) -> Operation:
        """Return the step that undoes this one."""
        return Operation(before=self.after, after=self.before, owner=self.owner)


def plan(
    desired: Mapping[Key, Resource], present: Mapping[Key, Resource], owners: Mapping[Key, str]
) -> tuple[Operation, ...]:
    """Return the operations that turn `present` into `desired`, in order.

    Both mappings may be a part of a host's state, as long as they cover the same part. Planning twice, with the
    outcome of the first plan as `present`, gives nothing. The order depends on that of the mappings alone.

    Args:
        desired: What there shall be.
        present: What there is and is ours.
        owners: Object that each key belongs to; `host` where unknown.
    """
    removed = {key for key in present if key not in desired}
    recreated = {
        key
        for key, wanted in desired.items()
        if (there := present.get(key)) is not None and not wanted.matches(there) and not wanted.convertible(there)
    }
    moved = {key for key in recreated if isinstance(desired[key], Namespace)}
    if moved:
        # Another namespace of the same name: nothing of what was in the old one is in the new one.
        recreated |= {key for key in _dependents(moved, present) if key in desired}
    recreated |= _torn_pairs(removed | recreated, desired, present)
    gone = removed | recreated
    lost = implied(gone, present)
    again = recreated | lost | _shaken_routes(gone, desired, present)

    removals = [
        Operation(before=there, after=None, owner=owners.get(key, "host"))
        for key, there in present.items()
        if key in gone and key not in lost
    ]
    changes = []
    for key, wanted in desired.items():
        there = present.get(key)
        if there is None or key in again:
            changes.append(Operation(before=None, after=wanted, owner=owners.get(key, "host")))
        elif not wanted.matches(there):
            changes.append(Operation(before=there, after=wanted, owner=owners.get(key, "host")))
    spaces = {key[1] for key in moved}
    early: list[Operation] = []
    late: list[Operation] = []
    swapped: list[Operation] = []
    dropped: list[Operation] = []
    for step in removals:
        one = step.resource
        inside = one.ns in spaces
        if one.rank == Rank.NAMESPACE:
            (swapped if inside else dropped).append(step)
        elif inside or not _is_firewall(step):
            early.append(step)
        elif one.key in desired:
            # Firewall state that is made anew must go in the transaction that makes it.
            changes.append(step)
        else:
            # That of removed things goes after the links it guarded, and after what comes instead is in force.
            late.append(step)
    for steps in (early, swapped, late, dropped):
        steps.sort(key=_removal_order)
    changes.sort(key=_change_order)
    return (*early, *swapped, *changes, *late, *dropped)


def implied(gone: Collection[Key], present: Mapping[Key, Resource]) -> set[Key]:
    """Return the keys that vanish because something they need is in `gone`.

    A link that may be somebody else's is only let go of, and what is on it goes by itself. The death of a namespace of
    ours takes everything in it but links: a VXLAN device or a veth has an effect outside until the kernel gets round to
    it, so links are always removed by name first. A namespace that was given to us lives on, so nothing in it is
    implied by our letting go of it.
    """

    def takes_along(need: Key, resource: Resource) -> bool:
        holder = present.get(need)
        if isinstance(holder, Link):
            return not holder.shared
        return not isinstance(holder, Namespace) or (holder.owned and not isinstance(resource, Link))

    return _closure(gone, present, takes_along)


def _dependents(gone: Collection[Key], present: Mapping[Key, Resource]) -> set[Key]:
    """Return the keys that need something in `gone`, directly or not."""
    return _closure(gone, present, lambda _need, _resource: True)


def _closure(
    gone: Collection[Key], present: Mapping[Key, Resource], takes_along: Callable[[Key, Resource], bool]
) -> set[Key]:
    gone = [key for key in gone if key[0] not in _LEAVES]
    if not gone:
        return set()
    needed_by: dict[Key, list[Key]] = {}
    for key, resource in present.items():
        for need in resource.needs():
            needed_by.setdefault(need, []).append(key)
    found: set[Key] = set()
    dying = list(gone)
    while dying:
        need = dying.pop()
        for key in needed_by.get(need, ()):
            if key not in found and takes_along(need, present[key]):
                found.add(key)
                dying.append(key)
    return found


def _torn_pairs(gone: set[Key], desired: Mapping[Key, Resource], present: Mapping[Key, Resource]) -> set[Key]:
    """Return the veths to be made anew because their other end is missing, goes, or was made with another veth.

    The other end is born with the veth and can neither be made nor exchanged alone.
    """
    torn: set[Key] = set()
    for key, wanted in desired.items():
        if not isinstance(wanted, Link) or wanted.kind != "peer" or wanted.peer is None:
            continue
        there = present.get(key)
        pairs = {("link", wanted.peer.ns, wanted.peer.name)}
        if isinstance(there, Link) and there.peer is not None:
            pairs.add(("link", there.peer.ns, there.peer.name))
        if there is None or key in gone or len(pairs) > 1:
            torn |= pairs
    for key in gone:
        there = present.get(key)
        if isinstance(there, Link) and there.kind == "peer" and there.peer is not None:
            torn.add(("link", there.peer.ns, there.peer.name))
    return {key for key in torn if key in present and key in desired}


def _shaken_routes(gone: set[Key], desired: Mapping[Key, Resource], present: Mapping[Key, Resource]) -> set[Key]:
    """Return the routes to be written again: with a link's last address the kernel drops all its routes."""
    links = {(key[1], there.link) for key in gone if isinstance(there := present[key], Address)}
    if not links:
        return set()
    return {
        key
        for key, wanted in desired.items()
        if isinstance(wanted, Route) and (wanted.ns, wanted.link) in links and wanted == present.get(key)
    }


def _is_firewall(step: Operation) -> bool:
    return Rank.NFT <= step.resource.rank < Rank.BRIDGE


def _change_order(step: Operation) -> tuple[int, str, bool]:
    after = step.after
    one = step.resource if after is None else after
    return one.rank, one.ns, after is not None


def _removal_order(step: Operation) -> tuple[int, str]:
    return (-step.resource.rank, step.resource.ns)
