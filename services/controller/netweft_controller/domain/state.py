"""All intent in memory with the indexes that rules need; it changes only by log entries.

One task writes it; rules read it and change nothing. Every index is derived from the records alone.
"""

from __future__ import annotations

import collections
import typing
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet

import msgspec

from netweft_controller.domain import commits, seen
from netweft_controller.domain.objects import (
    DriverInfo,
    Endpoint,
    Host,
    Kind,
    Network,
    Object,
    Record,
    Sandbox,
    kind_of,
)

_K = typing.TypeVar("_K")
_NOTHING: frozenset[str] = frozenset()


class Presence(msgspec.Struct, frozen=True):
    """A network on a host: it is there while active endpoints of it are.

    Attributes:
        active: Number of active endpoints.
        since: Revision at which it appeared, or a later one (after a reload the true one is not known).
    """

    active: int
    since: int


class Delta(msgspec.Struct, frozen=True):
    """One object that changed, with its versions on both sides."""

    kind: Kind
    id: str
    before: commits.AnyRecord | None
    after: commits.AnyRecord | None


class State:
    """All intent at one revision."""

    def __init__(self, *, store_id: str = "", revision: int = 0) -> None:
        self.store_id = store_id
        self.revision = revision
        self.networks: dict[str, Record[Network]] = {}
        self.sandboxes: dict[str, Record[Sandbox]] = {}
        self.endpoints: dict[str, Record[Endpoint]] = {}
        self.hosts: dict[str, Record[Host]] = {}
        self._tables: dict[Kind, object] = {
            Kind.NETWORK: self.networks,
            Kind.SANDBOX: self.sandboxes,
            Kind.ENDPOINT: self.endpoints,
            Kind.HOST: self.hosts,
        }
        self.network_ids_by_name: dict[str, str] = {}
        self.host_ids_by_name: dict[str, str] = {}
        # Container id -> sandbox ids, on all hosts; within one host it is unique by a claim.
        self._sandboxes_by_container: dict[str, set[str]] = {}
        self._sandbox_ids: dict[tuple[str, str], str] = {}
        """By host and container id: the claims of intent have one of both."""
        # Network id -> endpoint name -> endpoint id.
        self._endpoints_by_name: dict[str, dict[str, str]] = {}
        self._endpoints_of_sandbox: dict[str, set[str]] = {}
        self._endpoints_of_host: dict[str, set[str]] = {}
        self._sandboxes_of_host: dict[str, set[str]] = {}
        self._networks_of_host: dict[str, set[str]] = {}
        self._macs: dict[tuple[str, str], str] = {}
        self._numbers: dict[tuple[str, int], str] = {}
        # Pool id -> leases of endpoints.
        self._leases: collections.Counter[str] = collections.Counter()
        # Host id -> network id -> presence, and the same by network.
        self._presence: dict[str, dict[str, Presence]] = {}
        self._hosts_of_network: dict[str, set[str]] = {}
        self._unsettled: dict[tuple[Kind, str], None] = {}
        # Network id -> revision of the last change that its hosts must follow.
        self._network_revisions: dict[str, int] = {}

    # Reading

    def network_revision(self, network_id: str) -> int:
        """Return the revision that hosts of a network must have followed to have all of it."""
        return self._network_revisions.get(network_id, 0)

    def record(self, kind: Kind, id_: str) -> commits.AnyRecord | None:
        """Return an object of any kind, or None."""
        return self._table(kind).get(id_)

    def records(self, kind: Kind) -> Iterable[commits.AnyRecord]:
        """Return the objects of a kind."""
        return self._table(kind).values()

    def endpoint_by_name(self, network_id: str, name: str) -> Record[Endpoint] | None:
        """Return the endpoint of that name in a network, or None."""
        id_ = self._endpoints_by_name.get(network_id, {}).get(name)
        return None if id_ is None else self.endpoints[id_]

    def endpoints_of_network(self, network_id: str) -> Iterator[Record[Endpoint]]:
        """Yield the endpoints of a network."""
        return (self.endpoints[id_] for id_ in self._endpoints_by_name.get(network_id, {}).values())

    def endpoint_count(self, network_id: str) -> int:
        """Return how many endpoints a network has."""
        return len(self._endpoints_by_name.get(network_id, {}))

    def lease_count(self, pool_id: str) -> int:
        """Return how many addresses of a pool endpoints are recorded with."""
        return self._leases[pool_id]

    def endpoints_of_sandbox(self, sandbox_id: str) -> Iterator[Record[Endpoint]]:
        """Yield the endpoints of a sandbox."""
        return (self.endpoints[id_] for id_ in self._endpoints_of_sandbox.get(sandbox_id, _NOTHING))

    def endpoints_of_host(self, host_id: str) -> Iterator[Record[Endpoint]]:
        """Yield the endpoints on a host."""
        return (self.endpoints[id_] for id_ in self._endpoints_of_host.get(host_id, _NOTHING))

    def sandboxes_of_host(self, host_id: str) -> Iterator[Record[Sandbox]]:
        """Yield the sandboxes on a host."""
        return (self.sandboxes[id_] for id_ in self._sandboxes_of_host.get(host_id, _NOTHING))

    def networks_bound_to(self, host_id: str) -> Iterator[Record[Network]]:
        """Yield the networks that are bound to a host."""
        return (self.networks[id_] for id_ in self._networks_of_host.get(host_id, _NOTHING))

    def sandboxes_of_container(self, container_id: str) -> Iterator[Record[Sandbox]]:
        """Yield the sandboxes of a container id, on any host."""
        return (self.sandboxes[id_] for id_ in self._sandboxes_by_container.get(container_id, _NOTHING))

    def sandbox_by_container(self, host_id: str, container_id: str) -> Record[Sandbox] | None:
        """Return the sandbox of a container id on a host, or None."""
        id_ = self._sandbox_ids.get((host_id, container_id))
        return None if id_ is None else self.sandboxes[id_]

    def mac_owner(self, network_id: str, mac_address: str) -> str | None:
        """Return the endpoint that has a MAC address in a network, or None."""
        return self._macs.get((network_id, mac_address))

    def number_owner(self, claim: str, number: int) -> str | None:
        """Return the network that holds a claimed number, or None."""
        return self._numbers.get((claim, number))

    def presence(self, host_id: str, network_id: str) -> Presence | None:
        """Return since when a network is on a host, or None."""
        return self._presence.get(host_id, {}).get(network_id)

    def networks_on(self, host_id: str) -> Mapping[str, Presence]:
        """Return the networks that are on a host, by id."""
        return self._presence.get(host_id, {})

    def hosts_with(self, network_id: str) -> AbstractSet[str]:
        """Return the hosts that a network is on."""
        return self._hosts_of_network.get(network_id, _NOTHING)

    def hosts_named(self) -> AbstractSet[str]:
        """Return the hosts that endpoints, sandboxes and networks are recorded on."""
        return self._endpoints_of_host.keys() | self._sandboxes_of_host.keys() | self._networks_of_host.keys()

    def unsettled(self) -> Iterator[commits.AnyRecord]:
        """Yield the objects in a state that ends by itself: joining, leaving, creating, deleting."""
        for kind, id_ in self._unsettled:
            record = self.record(kind, id_)
            assert record is not None, "the index is of records"
            yield record

    def drivers(self, host_id: str = "") -> dict[str, DriverInfo]:
        """Return the drivers that a host offers, or that any host offers, by name."""
        records: Iterable[Record[Host]] = self.hosts.values()
        if host_id:
            records = (self.hosts[host_id],)
        return {driver.name: driver for record in records for driver in record.value.facts.drivers}

    def driver(self, name: str, host_id: str = "") -> DriverInfo | None:
        """Return one of `drivers`, without a look at each host; None: nobody offers it."""
        records = (self.hosts[host_id],) if host_id else reversed(self.hosts.values())
        return next((one for record in records for one in record.value.facts.drivers if one.name == name), None)

    # Changing

    def load(self, records: Iterable[commits.AnyRecord]) -> None:
        """Add records of a state that is being loaded."""
        for record in records:
            self._replace(kind_of(record.value), record.value.id, record, self.revision)

    def loaded(self) -> None:
        """Finish loading: networks count as having appeared now, since nobody knows when they did."""
        for networks in self._presence.values():
            for network_id, presence in networks.items():
                networks[network_id] = Presence(presence.active, self.revision)
        # What was deleted before the load, nobody knows any more.
        self._network_revisions = dict.fromkeys(self.networks, self.revision)

    def apply(self, entry: commits.Entry) -> list[Delta]:
        """Take over a log entry; what a record already has is skipped. Returns what changed."""
        deltas = []
        for write in entry.writes:
            value = write.value
            before = self._table(write.kind).get(value.id)
            if before is not None and before.revision >= entry.revision:
                continue
            after: commits.AnyRecord | None = None
            if write.action is not commits.Action.DELETED:
                after = _record(value, entry.revision, before.created_ms if before else entry.time_ms)
            if before is None and after is None:
                continue
            self._replace(write.kind, value.id, after, entry.revision)
            if isinstance(value, Endpoint):
                # What hosts are not told of they would not follow before their next bookmark.
                if seen.differs(*(typing.cast("Endpoint | None", one and one.value) for one in (before, after))):
                    self._network_revisions[value.network_id] = entry.revision
            elif isinstance(value, Network):
                self._network_revisions[value.id] = entry.revision
                if after is None:
                    del self._network_revisions[value.id]
            deltas.append(Delta(write.kind, value.id, before, after))
        self.revision = max(self.revision, entry.revision)
        return deltas

    def _table(self, kind: Kind) -> dict[str, commits.AnyRecord]:
        return typing.cast("dict[str, commits.AnyRecord]", self._tables[kind])

    def _replace(self, kind: Kind, id_: str, after: commits.AnyRecord | None, revision: int) -> None:
        table = self._table(kind)
        before = table.pop(id_, None)
        if before is not None:
            self._unindex(before.value)
        self._unsettled.pop((kind, id_), None)
        if after is not None:
            table[id_] = after
            self._index(after.value)
            if is_unsettled(after.value):
                self._unsettled[kind, id_] = None
        if kind is Kind.ENDPOINT:
            self._count(
                typing.cast("Endpoint | None", before and before.value),
                typing.cast("Endpoint | None", after and after.value),
                revision,
            )

    def _index(self, value: Object) -> None:
        if isinstance(value, Endpoint):
            self._endpoints_by_name.setdefault(value.network_id, {})[value.name] = value.id
            _add(self._endpoints_of_sandbox, value.sandbox_id, value.id)
            _add(self._endpoints_of_host, value.host_id, value.id)
            if value.mac_address:
                self._macs[value.network_id, value.mac_address] = value.id
            for lease in value.leases:
                self._leases[lease.pool_id] += 1
        elif isinstance(value, Sandbox):
            _add(self._sandboxes_by_container, value.container_id, value.id)
            if value.container_id:
                self._sandbox_ids[value.host_id, value.container_id] = value.id
            _add(self._sandboxes_of_host, value.host_id, value.id)
        elif isinstance(value, Network):
            self.network_ids_by_name[value.name] = value.id
            _add(self._networks_of_host, value.host_id, value.id)
            for claim, number in value.claims.items():
                self._numbers[claim, number] = value.id
        else:
            self.host_ids_by_name[value.name] = value.id

    def _unindex(self, value: Object) -> None:
        if isinstance(value, Endpoint):
            names = self._endpoints_by_name.get(value.network_id, {})
            if names.get(value.name) == value.id:
                del names[value.name]
                if not names:
                    del self._endpoints_by_name[value.network_id]
            _remove(self._endpoints_of_sandbox, value.sandbox_id, value.id)
            _remove(self._endpoints_of_host, value.host_id, value.id)
            _forget(self._macs, (value.network_id, value.mac_address), value.id)
            for lease in value.leases:
                self._leases[lease.pool_id] -= 1
        elif isinstance(value, Sandbox):
            _remove(self._sandboxes_by_container, value.container_id, value.id)
            _forget(self._sandbox_ids, (value.host_id, value.container_id), value.id)
            _remove(self._sandboxes_of_host, value.host_id, value.id)
        elif isinstance(value, Network):
            _forget(self.network_ids_by_name, value.name, value.id)
            _remove(self._networks_of_host, value.host_id, value.id)
            for claim, number in value.claims.items():
                self._numbers.pop((claim, number), None)
            for subnet in value.subnets:
                if not self._leases[subnet.pool_id]:
                    del self._leases[subnet.pool_id]
        else:
            _forget(self.host_ids_by_name, value.name, value.id)

    def _count(self, before: Endpoint | None, after: Endpoint | None, revision: int) -> None:
        was = (before.host_id, before.network_id) if before is not None and before.is_active else None
        now = (after.host_id, after.network_id) if after is not None and after.is_active else None
        if was == now:
            return
        if was is not None:
            host_id, network_id = was
            presence = self._presence[host_id][network_id]
            if presence.active > 1:
                self._presence[host_id][network_id] = Presence(presence.active - 1, presence.since)
            else:
                del self._presence[host_id][network_id]
                _remove(self._hosts_of_network, network_id, host_id)
        if now is not None:
            host_id, network_id = now
            networks = self._presence.setdefault(host_id, {})
            old = networks.get(network_id)
            if old is None:
                networks[network_id] = Presence(1, revision)
                _add(self._hosts_of_network, network_id, host_id)
            else:
                networks[network_id] = Presence(old.active + 1, old.since)


def is_unsettled(value: Object) -> bool:
    """Whether an object is in a state that ends by itself."""
    return getattr(value, "state", None) in _UNSETTLED


_UNSETTLED = frozenset({"joining", "leaving", "creating", "deleting"})


def _record(value: Object, revision: int, created_ms: int) -> commits.AnyRecord:
    return typing.cast("commits.AnyRecord", Record(value, revision, created_ms))


def _add(index: dict[str, set[str]], key: str, id_: str) -> None:
    if key:
        index.setdefault(key, set()).add(id_)


def _forget(index: dict[_K, str], key: _K, id_: str) -> None:
    """Drop an entry, unless another object has its place by now."""
    if index.get(key) == id_:
        del index[key]


def _remove(index: dict[str, set[str]], key: str, id_: str) -> None:
    ids = index.get(key)
    if ids is not None:
        ids.discard(id_)
        if not ids:
            del index[key]
