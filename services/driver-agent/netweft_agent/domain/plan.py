"""The planner: the difference between two states of a kernel, as ordered operations.

`plan` is pure and knows no kinds: creation, change, repair, restart and removal are all the same call. Rules of order:

1. Removals first, in falling rank, so that what one owner gives up another may take in the same plan; but firewall
   state is removed last, after the links it guards.
2. Then additions and changes in rising rank: namespaces, firewall, links, addresses, routes, forwarding entries, files.
3. A resource whose needs are removed goes with them and has no operation of its own; if it is still wanted it is added
   again after what it needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from netweft_agent.domain import resources
from netweft_agent.domain.resources import Key, Namespace, Rank, Resource


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One step: a resource before and after; None where it does not exist.

    Attributes:
        owner: Object that the step is done for: endpoint/<id>, sandbox/<id>, network/<id> or host.
    """

    before: Resource | None
    after: Resource | None
    owner: str

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
    outcome of the first plan as `present`, gives nothing.

    Args:
        desired: What there shall be.
        present: What there is and is ours.
        owners: Object that each key belongs to; `host` where unknown.
    """
    removed = {key for key in present if key not in desired}
    recreated = {key for key, wanted in desired.items() if key in present and not wanted.convertible(present[key])} - {
        key for key, wanted in desired.items() if key in present and wanted.matches(present[key])
    }
    implied = _implied(removed | recreated, present)

    removals = [
        Operation(before=present[key], after=None, owner=owners.get(key, "host"))
        for key in (removed | recreated) - implied
    ]
    changes = []
    for key, wanted in desired.items():
        there = present.get(key)
        if there is None or key in recreated or key in implied:
            changes.append(Operation(before=None, after=wanted, owner=owners.get(key, "host")))
        elif not wanted.matches(there):
            changes.append(Operation(before=there, after=wanted, owner=owners.get(key, "host")))
    # Firewall state that is made anew must go in the transaction that makes it.
    changes += [step for step in removals if _is_firewall(step) and step.resource.key in desired]
    removals = [step for step in removals if not (_is_firewall(step) and step.resource.key in desired)]
    removals.sort(key=_removal_order)
    changes.sort(key=lambda step: (step.resource.rank, step.resource.ns, step.after is not None))
    # Firewall state of removed things goes after the links it guarded, and after what comes instead is in force.
    late = [step for step in removals if _is_firewall(step)]
    early = [step for step in removals if not _is_firewall(step) and not _is_netns(step)]
    spaces = [step for step in removals if _is_netns(step)]
    return (*early, *changes, *late, *spaces)


def _is_firewall(step: Operation) -> bool:
    return Rank.NFT <= step.resource.rank < Rank.BRIDGE


def _is_netns(step: Operation) -> bool:
    return step.resource.rank == Rank.NAMESPACE


def _removal_order(step: Operation) -> tuple[int, str]:
    return (-step.resource.rank, step.resource.ns)


def _implied(gone: set[Key], present: Mapping[Key, Resource]) -> set[Key]:
    """Return the keys that vanish because something they need is in `gone`.

    The death of a namespace of ours takes everything in it but links: a VXLAN device or a veth has an effect outside
    until the kernel gets round to it, so links are always removed by name first. A namespace that was given to us
    lives on, so nothing in it is implied by our letting go of it.
    """
    implied: set[Key] = set()
    dying = set(gone)
    # Needs are at most three deep (address, peer, veth), so a few passes settle it.
    while True:
        fresh = {
            key
            for key, resource in present.items()
            if key not in implied and any(_takes_along(need, key, dying, present) for need in resource.needs())
        }
        if not fresh:
            return implied
        implied |= fresh
        dying |= fresh


def _takes_along(need: Key, key: Key, dying: set[Key], present: Mapping[Key, Resource]) -> bool:
    if need not in dying:
        return False
    holder = present.get(need)
    if isinstance(holder, Namespace):
        return holder.owned and not isinstance(present[key], resources.Link)
    return True
