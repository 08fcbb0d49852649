"""The agent's objects: what the controller wants of this host, by id, with the indexes that rendering needs.

Versions only go up: `accept` tells whether a change is newer than what is held. What is gone leaves its revision
behind, so that a late message cannot bring it back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from netweft_agent.domain.objects import Endpoint, Kind, Network, Object, Peer, Ref, Sandbox

MAX_TOMBSTONES = 65536
"""Revisions of gone objects that are remembered; the oldest are forgotten."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """An object put, or gone (`put` is None), at a revision."""

    ref: Ref
    revision: int
    put: Object | None = None


@dataclass(slots=True)
class ObjectStore:
    """Objects by reference. Not thread-safe: one task owns it."""

    objects: dict[Ref, Object] = field(default_factory=dict)
    gone: dict[Ref, int] = field(default_factory=dict)
    by_network: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    by_sandbox: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    peers: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    shards: dict[str, dict[int, int]] = field(default_factory=dict)
    """How many endpoints each shard of a network has, by network and shard."""
    placed: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Handovers whose place is known, by namespace."""

    def is_news(self, change: Change) -> bool:
        """Return whether the change is newer than what is held of its object."""
        held = self.objects.get(change.ref)
        known = held.revision if held is not None else self.gone.get(change.ref, -1)
        return change.revision > known

    def put(self, item: Object) -> Object | None:
        """Keep an object and return the version that it replaces."""
        ref = item.ref
        before = self.remove(ref)
        self.objects[ref] = item
        match item:
            case Endpoint():
                self.by_network[item.network_id].add(item.id)
                self.by_sandbox[item.sandbox_id].add(item.id)
                counts = self.shards.setdefault(item.network_id, {})
                counts[item.shard] = counts.get(item.shard, 0) + 1
            case Peer():
                self.peers[item.network_id].add(item.id)
            case Sandbox() if item.is_placed:
                self.placed[item.ns].add(item.id)
            case _:
                pass
        self.gone.pop(ref, None)
        return before

    def remove(self, ref: Ref) -> Object | None:
        """Drop an object and return it; None when there was none."""
        item = self.objects.pop(ref, None)
        match item:
            case Endpoint():
                _discard(self.by_network, item.network_id, item.id)
                _discard(self.by_sandbox, item.sandbox_id, item.id)
                self._leave(item.network_id, item.shard)
            case Peer():
                _discard(self.peers, item.network_id, item.id)
            case Sandbox() if item.is_placed:
                _discard(self.placed, item.ns, item.id)
            case _:
                pass
        return item

    def _leave(self, network_id: str, shard: int) -> None:
        counts = self.shards[network_id]
        counts[shard] -= 1
        if not counts[shard]:
            del counts[shard]
            if not counts:
                del self.shards[network_id]

    def bury(self, ref: Ref, revision: int) -> None:
        """Remember that an object is gone since a revision."""
        self.gone[ref] = max(revision, self.gone.get(ref, -1))
        if len(self.gone) > MAX_TOMBSTONES:
            del self.gone[next(iter(self.gone))]

    def restore(self, ref: Ref, item: Object | None, gone: int | None) -> None:
        """Put an object and its tombstone back to what they were."""
        self.remove(ref)
        self.gone.pop(ref, None)
        if item is not None:
            self.put(item)
        if gone is not None:
            self.gone[ref] = gone

    def network(self, identifier: str) -> Network | None:
        """Find a network."""
        found = self.objects.get(Ref(kind=Kind.NETWORK, id=identifier))
        return found if isinstance(found, Network) else None

    def sandbox(self, identifier: str) -> Sandbox | None:
        """Find a sandbox."""
        found = self.objects.get(Ref(kind=Kind.SANDBOX, id=identifier))
        return found if isinstance(found, Sandbox) else None

    def endpoint(self, identifier: str) -> Endpoint | None:
        """Find an endpoint."""
        found = self.objects.get(Ref(kind=Kind.ENDPOINT, id=identifier))
        return found if isinstance(found, Endpoint) else None

    def endpoints_of_sandbox(self, identifier: str) -> list[Endpoint]:
        """List the endpoints of a sandbox."""
        found = (self.endpoint(one) for one in self.by_sandbox.get(identifier, ()))
        return [one for one in found if one is not None]

    def endpoints_of_network(self, identifier: str) -> list[Endpoint]:
        """List the local endpoints of a network."""
        found = (self.endpoint(one) for one in self.by_network.get(identifier, ()))
        return [one for one in found if one is not None]

    def peers_of_network(self, identifier: str) -> list[Peer]:
        """List the peers of a network."""
        found = (self.objects.get(Ref(kind=Kind.PEER, id=one)) for one in self.peers.get(identifier, ()))
        return [one for one in found if isinstance(one, Peer)]

    def of_kind(self, kind: Kind) -> Iterator[Object]:
        """Iterate over the objects of a kind."""
        return (item for ref, item in self.objects.items() if ref.kind is kind)


def same_but_revision(one: Object, other: Object | None) -> bool:
    """Return whether two versions ask the kernel for the same."""
    return other is not None and _bare(one) == _bare(other)


def _bare(item: Object) -> Object:
    if isinstance(item, Endpoint):
        return msgspec.structs.replace(item, revision=0, confirmed=False, lease_epochs=())
    return msgspec.structs.replace(item, revision=0)


def _discard(index: dict[str, set[str]], key: str, value: str) -> None:
    found = index.get(key)
    if found is not None:
        found.discard(value)
        if not found:
            del index[key]
