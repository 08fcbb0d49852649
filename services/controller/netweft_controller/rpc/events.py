"""EventService."""

# ruff: noqa: N802  # methods are named by the protocol

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from netweft.controller.v1 import event_pb2, event_pb2_grpc

from netweft_controller.clients import wire
from netweft_controller.domain import commits, filters, names
from netweft_controller.domain.fields import invalid
from netweft_controller.domain.objects import Endpoint, Host, Kind, Network, Record, Sandbox
from netweft_controller.domain.state import State
from netweft_controller.engine.liveness import Liveness
from netweft_controller.sync.replica import Replica

BOOKMARK_S = 15.0
_EVENTS_MAX = 1000
_ACTIONS = {
    commits.Action.CREATED: event_pb2.EVENT_ACTION_CREATED,
    commits.Action.UPDATED: event_pb2.EVENT_ACTION_UPDATED,
    commits.Action.DELETED: event_pb2.EVENT_ACTION_DELETED,
}


class EventService(event_pb2_grpc.EventServiceServicer):
    """Events.

    Args:
        replica: What is read.
        liveness: Heartbeats, for hosts in events.
        bookmark_s: How long the stream is silent at most, in seconds.
    """

    def __init__(self, replica: Replica, liveness: Liveness, *, bookmark_s: float = BOOKMARK_S) -> None:
        self._replica = replica
        self._liveness = liveness
        self._bookmark_s = bookmark_s

    async def Watch(self, request: event_pb2.WatchRequest, context: Any) -> AsyncIterator[event_pb2.WatchResponse]:
        """Stream events."""
        del context
        wanted = _Filter(self._replica.state, list(request.filters))
        revision = request.after_revision or self._replica.state.revision
        if request.after_revision:
            # The caller may have it from a controller that is ahead of this one.
            await self._replica.reached(revision)
        else:
            # The caller learns from where it watches before anything happens.
            yield event_pb2.WatchResponse(revision=revision)
        while True:
            entries = await self._replica.read_log(revision)
            if not entries:
                if not await self._replica.wait_past(revision, self._bookmark_s):
                    yield event_pb2.WatchResponse(revision=revision)
                continue
            events: list[event_pb2.Event] = []
            for entry in entries:
                events += [self._event(entry, write) for write in entry.writes if wanted.holds(write)]
                revision = entry.revision
                if len(events) >= _EVENTS_MAX:
                    yield event_pb2.WatchResponse(events=events, revision=revision)
                    events = []
            if events:
                yield event_pb2.WatchResponse(events=events, revision=revision)

    def _event(self, entry: commits.Entry, write: commits.Write) -> event_pb2.Event:
        event = event_pb2.Event(revision=entry.revision, action=_ACTIONS[write.action])
        event.time.FromMilliseconds(entry.time_ms)
        value = write.value
        # An entry does not say when an object was made; an event of its making is that time.
        now = self._replica.state.record(write.kind, value.id)
        created_ms = entry.time_ms if write.action is commits.Action.CREATED else now.created_ms if now else 0
        if isinstance(value, Network):
            event.network.CopyFrom(wire.network(Record(value, entry.revision, created_ms)))
        elif isinstance(value, Endpoint):
            event.endpoint.CopyFrom(wire.endpoint(Record(value, entry.revision, created_ms)))
        elif isinstance(value, Sandbox):
            event.sandbox.CopyFrom(wire.sandbox(Record(value, entry.revision, created_ms)))
        else:
            event.host.CopyFrom(
                wire.host(
                    Record(value, entry.revision, created_ms),
                    self._liveness.state(value.id),
                    self._liveness.heartbeat_ms(value.id),
                )
            )
        return event


class _Filter:
    """The terms of a watch; names are resolved once, at its beginning."""

    def __init__(self, state: State, terms: list[str]) -> None:
        self._kinds: set[Kind] | None = None
        self._network_id = ""
        self._host_id = ""
        for index, (word, value) in enumerate(filters.terms(terms, ("type", "network", "host"))):
            field = f"filters[{index}]"
            if word == "type":
                if value not in list(Kind):
                    raise invalid(field, f"{value[:80]!r} is none of {', '.join(Kind)}", "FILTER_MALFORMED")
                chosen = {Kind(value)}
                self._kinds = chosen if self._kinds is None else self._kinds & chosen
            elif word == "network":
                self._network_id = names.get_network(state, value, field).value.id
            else:
                self._host_id = names.get_host(state, value, field).value.id

    def holds(self, write: commits.Write) -> bool:
        value = write.value
        if self._kinds is not None and write.kind not in self._kinds:
            return False
        if self._network_id:
            network_id = value.network_id if isinstance(value, Endpoint) else value.id
            if not isinstance(value, Endpoint | Network) or network_id != self._network_id:
                return False
        if self._host_id:
            host_id = value.id if isinstance(value, Host) else value.host_id
            return host_id == self._host_id
        return True
