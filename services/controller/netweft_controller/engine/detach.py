"""The saga of a detach: mark, take out of the hosts, give addresses back, end.

The mark is one commit for the whole batch, and remembers which endpoints the caller's words meant: a retry takes away
those, not others that have got their names since.
"""

from __future__ import annotations

from collections.abc import Sequence

from netweft_common import errors

from netweft_controller.domain import commits, names, removal
from netweft_controller.domain.specs import EndpointWord
from netweft_controller.domain.state import State
from netweft_controller.engine.removal import Remover
from netweft_controller.engine.requests import Done, Outcome, Request
from netweft_controller.sync.replica import Replica

_TRIES = 5


class Detach:
    """One detach, from look-up to answer.

    Args:
        request: Whose it is.
        words: What to take away.
        refuse_joined: True: an endpoint in a sandbox is refused.
        missing_is_ok: True: an endpoint that is not there is fine.
        replica: Intent.
        remover: Takes endpoints away.
    """

    def __init__(
        self,
        request: Request,
        words: Sequence[EndpointWord],
        *,
        refuse_joined: bool,
        missing_is_ok: bool,
        replica: Replica,
        remover: Remover,
    ) -> None:
        self._request = request
        self._words = words
        self._refuse_joined = refuse_joined
        self._missing_is_ok = missing_is_ok
        self._replica = replica
        self._remover = remover
        # What is remembered of an earlier try: one entry an item.
        self._known: commits.Request | None = None
        self._looked_up = False
        self._done: Sequence[Done | None] = [None] * len(words)
        # What the last decision chose, and why not.
        self._chosen: dict[int, str] = {}
        self._sandbox_ids: set[str] = set()
        self._is_sure = True
        self._results: dict[int, errors.NetweftError] = {}

    async def run(self) -> list[errors.NetweftError | None]:
        """Detach; one outcome an item, in their order.

        Raises:
            NetweftError: The whole batch failed; nothing was done, or the outcome is not known (Unavailable).
        """
        for _ in range(_TRIES):
            outcome = await self._replica.decide(self._decide)
            if isinstance(outcome, commits.Replayed):
                self._recall(outcome.request)
            elif not self._looked_up and (self._results or not self._is_sure):
                # What cannot be now may have been done by an earlier try, or may be by what is not known here yet.
                self._recall(await self._replica.find_request(self._request.key))
            else:
                break
        failures = await self._remover.finish(list(self._chosen.values()), self._sandbox_ids)
        self._results.update(
            (index, failures[endpoint_id]) for index, endpoint_id in self._chosen.items() if endpoint_id in failures
        )
        return [self._results.get(index) for index in range(len(self._words))]

    def _recall(self, known: commits.Request | None) -> None:
        self._looked_up = True
        self._known = known
        self._done = self._request.recall(known).items if known is not None else [None] * len(self._words)

    def _decide(self, state: State) -> commits.Commit | None:
        self._chosen, self._sandbox_ids, self._results = {}, set(), {}
        self._is_sure = True
        for index, word in enumerate(self._words):
            done = self._done[index]
            if done is not None:
                self._choose(state, index, done.id, word)
                continue
            try:
                endpoint_id = self._find(state, index, word)
            except errors.NetweftError as error:
                self._results[index] = error
            else:
                # Another controller may have made it a moment ago, and told so.
                self._is_sure = self._is_sure and (bool(endpoint_id) or self._looked_up)
                # Remembered also where it is not there: a retry must not take away what gets its name meanwhile.
                self._choose(state, index, endpoint_id, word)
        if not self._is_sure:
            return None
        items = tuple(
            Done(id=self._chosen[index], told=True) if index in self._chosen else None
            for index in range(len(self._words))
        )
        is_news = any(item is not None and self._done[index] is None for index, item in enumerate(items))
        once = self._request.remember(Outcome(items=items)) if is_news else None
        return removal.mark(state, self._chosen.values(), self._sandbox_ids, once=once, after=self._known)

    def _choose(self, state: State, index: int, endpoint_id: str, word: EndpointWord) -> None:
        self._chosen[index] = endpoint_id
        record = state.endpoints.get(endpoint_id)
        if word.delete_sandbox and record is not None and record.value.sandbox_id:
            self._sandbox_ids.add(record.value.sandbox_id)

    def _find(self, state: State, index: int, word: EndpointWord) -> str:
        """Return the endpoint's id; empty: it is not there, and that is fine."""
        path = f"items[{index}]." if self._missing_is_ok else ""
        try:
            record = names.get_endpoint(state, word.endpoint, word.network, f"{path}endpoint", f"{path}network")
        except errors.NotFound:
            if self._missing_is_ok:
                return ""
            raise
        if self._refuse_joined and record.value.is_active:
            raise errors.FailedPrecondition(
                "ENDPOINT_JOINED",
                f"endpoint {record.value.name} is joined to sandbox {record.value.sandbox_id};"
                " let it leave first, or use force",
                endpoint=record.value.id,
            )
        return record.value.id
