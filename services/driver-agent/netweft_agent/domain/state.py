"""HostState: what a render asks for, each resource under the owner that wants it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from netweft_common.errors import Internal

from netweft_agent.domain.resources import Key, Resource

HOST_OWNER = "host"


class HostState:
    """Resources under owners, filled by renders.

    An owner is `endpoint/<id>`, `peer/<id>`, `sandbox/<id>`, `network/<id>` or `host`. Several owners may want one and
    the same resource (a firewall table, a remote tunnel address); it lives as long as one of them does.
    """

    __slots__ = ("by_owner",)

    def __init__(self) -> None:
        self.by_owner: dict[str, Mapping[Key, Resource]] = {}

    def add(self, owner: str, *wanted: Resource) -> None:
        """Note that `owner` wants these resources; raises Internal when it already wants another of the same key."""
        if not wanted:
            return
        mine = dict(self.by_owner.get(owner, ()))
        for resource in wanted:
            there = mine.setdefault(resource.key, resource)
            if there is not resource and there != resource:
                raise Internal("RENDER_CONFLICT", f"{owner} renders two different resources as {resource.key}")
        self.by_owner[owner] = mine

    def take(self, owner: str, wanted: Mapping[Key, Resource]) -> None:
        """Note that `owner`, which has nothing yet, wants all of a mapping, which is kept as it is and never changed.

        Raises:
            Internal: The owner has something.
        """
        if owner in self.by_owner:
            raise Internal("RENDER_CONFLICT", f"{owner} is rendered twice")
        self.by_owner[owner] = wanted

    def join(self, owner: str, wanted: Mapping[Key, Resource]) -> None:
        """Note that `owner` wants all of a mapping too, which others may want as well and which is never changed.

        Raises:
            Internal: It already wants another resource of one of the keys.
        """
        mine = self.by_owner.get(owner, {})
        for key in mine.keys() & wanted.keys():
            if mine[key] != wanted[key]:
                raise Internal("RENDER_CONFLICT", f"{owner} renders two different resources as {key}")
        self.by_owner[owner] = {**mine, **wanted}

    def resources(self) -> dict[Key, Resource]:
        """Return everything wanted, by key."""
        return {key: resource for wanted in self.by_owner.values() for key, resource in wanted.items()}

    def owners(self) -> dict[Key, str]:
        """Return one owner for each key."""
        return {key: owner for owner, wanted in self.by_owner.items() for key in wanted}

    def __iter__(self) -> Iterator[Resource]:
        return iter(self.resources().values())
