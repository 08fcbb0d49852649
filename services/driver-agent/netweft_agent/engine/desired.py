"""What all owners together want of the kernel.

Each owner's wishes are replaced as a whole; a resource lives as long as one owner wants it. `replace` returns the keys
that may now differ from the kernel, so that the planner looks at those only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from netweft_common.errors import FailedPrecondition, NetweftError

from netweft_agent.domain.resources import Key, Resource


@dataclass(slots=True)
class Desired:
    """Resources by key, with the owners that want them. Not thread-safe: one task owns it."""

    resources: dict[Key, Resource] = field(default_factory=dict)
    wanted_by: dict[Key, dict[str, None]] = field(default_factory=dict)
    """Owners of each key in the order of their coming: an ordered set."""
    by_owner: dict[str, Mapping[Key, Resource]] = field(default_factory=dict)

    def replace(self, wishes: Mapping[str, Mapping[Key, Resource]]) -> tuple[dict[Key, str], dict[str, NetweftError]]:
        """Make the wishes all that these owners want.

        An owner whose wish contradicts what another one has already gets nothing of it.

        Returns:
            The keys concerned, old and new, each with who answers for it; and the refused owners, each with the reason.
        """
        concerned: dict[Key, str] = {}
        for owner in wishes:
            for key in self.by_owner.pop(owner, ()):
                self._discard(key, owner)
                concerned[key] = owner
        refused: dict[str, NetweftError] = {}
        for owner, wanted in wishes.items():
            rival = self._rival(wanted)
            if rival is not None:
                refused[owner] = _taken(owner, rival, self.owner(rival))
                continue
            for key, resource in wanted.items():
                others = self.wanted_by.get(key)
                if others is None:
                    self.resources[key] = resource
                    self.wanted_by[key] = {owner: None}
                else:
                    others[owner] = None
                concerned[key] = owner
            if wanted:
                self.by_owner[owner] = wanted
        for key, owner in concerned.items():
            if (owners := self.wanted_by.get(key)) is not None and (len(owners) > 1 or owner not in owners):
                concerned[key] = self.answerable(key, owner)
        return concerned, refused

    def owner(self, key: Key, default: str = "host") -> str:
        """Return one owner of a key; the default when nobody wants it."""
        return next(iter(self.wanted_by.get(key, ())), default)

    def answerable(self, key: Key, default: str = "host") -> str:
        """Return whose failure ends what is to be done for a key, and who fails with it first.

        That is its owner; of several owners none, but one of the key's own: a fault of one shall not keep the others
        from what they share.
        """
        owners = self.wanted_by.get(key, ())
        return self.owner(key, default) if len(owners) < 2 else alone(key)

    def _rival(self, wanted: Mapping[Key, Resource]) -> Key | None:
        for key, resource in wanted.items():
            there = self.resources.get(key)
            if there is not None and there is not resource and there != resource:
                return key
        return None

    def _discard(self, key: Key, owner: str) -> None:
        owners = self.wanted_by[key]
        del owners[owner]
        if not owners:
            del self.wanted_by[key], self.resources[key]


def alone(key: Key) -> str:
    """Return an owner that is of one key only, so that it fails alone."""
    return "host/" + "/".join(part for part in key if part)


def _taken(owner: str, key: Key, holder: str) -> NetweftError:
    kind, ns, *name = key
    if kind == "port":
        protocol, address, port = name
        return FailedPrecondition(
            "PORT_IN_USE",
            f"port {port}/{protocol} cannot be published at {'all addresses' if address == '*' else address}: {holder} "
            "has it; publish another one, or take it from there",
            object=owner,
            holder=holder,
            port=port,
            protocol=protocol,
        )
    if kind == "nft-element" and ns.startswith("network/") and "any_ports" in name[2]:
        protocol, _, port = name[3].partition(" . ")
        return FailedPrecondition(
            "PORT_IN_USE",
            f"port {port}/{protocol} of this host leads to {holder} of the same network already, at another address; "
            "with a network that has a namespace of its own, one number leads to one endpoint: publish another one",
            object=owner,
            holder=holder,
            port=port,
            protocol=protocol,
        )
    return FailedPrecondition(
        "RESOURCE_TAKEN",
        f"{owner} needs {kind} {' '.join(name)} in {ns or 'the host'}, which {holder} has in another form; "
        "give one of them another name, or remove one",
        object=owner,
        holder=holder,
    )
