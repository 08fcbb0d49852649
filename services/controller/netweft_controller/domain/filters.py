"""Filters and pages of lists.

A page token is the sort key of the last object of the page, so it outlives restarts and objects that come and go.
"""

from __future__ import annotations

import base64
import binascii
import heapq
import json
from collections.abc import Callable, Collection, Iterable, Sequence

from netweft_controller.domain import fields, names
from netweft_controller.domain.objects import Endpoint, Host, HostState, Network, Record, Sandbox, Scope, T
from netweft_controller.domain.state import State

PAGE_DEFAULT = 100
PAGE_MAX = 1000
_TERMS_MAX = 64

SortKey = tuple[str, ...]


def page(
    records: Iterable[Record[T]], key: Callable[[Record[T]], SortKey], *, size: int, token: str
) -> tuple[list[Record[T]], str]:
    """Return one page in the order of the key, and the token of the next one.

    Raises:
        InvalidArgument: Size or token is malformed.
    """
    if size < 0:
        raise fields.invalid("page_size", f"{size} is negative", "PAGE_SIZE")
    size = min(size or PAGE_DEFAULT, PAGE_MAX)
    after = _parse_token(token) if token else None
    rest = (record for record in records if after is None or key(record) > after)
    found = heapq.nsmallest(size + 1, rest, key=key)
    if len(found) <= size:
        return found, ""
    del found[size:]
    return found, _make_token(key(found[-1]))


def terms(filters: Sequence[str], known: Collection[str]) -> list[tuple[str, str]]:
    """Return filters as pairs of word and value.

    Raises:
        InvalidArgument: A term is malformed or its word unknown.
    """
    fields.count(filters, _TERMS_MAX, "filters")
    result = []
    for index, term in enumerate(filters):
        word, separator, value = term.partition("=")
        if not separator or word not in known:
            raise fields.invalid(
                f"filters[{index}]",
                f"{term[:80]!r} is no term; known are {', '.join(f'{one}=' for one in sorted(known))}",
                "FILTER_UNKNOWN",
            )
        result.append((word, value))
    return result


def networks(filters: Sequence[str]) -> Callable[[Record[Network]], bool]:
    """Return the test that a list of networks asks for."""
    pairs = terms(filters, ("name", "id", "driver", "scope", "internal", "label"))
    for index, (word, value) in enumerate(pairs):
        if word == "scope":
            _one_of(value, list(Scope), index)
        if word == "internal":
            _one_of(value, ("true", "false"), index)

    def test(record: Record[Network]) -> bool:
        value = record.value
        have = {
            "name": value.name,
            "driver": value.driver,
            "scope": str(value.scope),
            "internal": "true" if value.internal else "false",
        }
        return all(_holds(word, wanted, value.id, value.labels, have) for word, wanted in pairs)

    return test


def endpoints(
    state: State, filters: Sequence[str]
) -> tuple[Iterable[Record[Endpoint]], Callable[[Record[Endpoint]], bool]]:
    """Return the endpoints to look at, and the test that a list of endpoints asks for.

    Raises:
        NotFound: No such network, sandbox or host.
    """
    pairs = terms(filters, ("network", "sandbox", "host", "name", "id", "address", "label"))
    candidates: Iterable[Record[Endpoint]] = state.endpoints.values()
    resolved: list[tuple[str, str]] = []
    for index, (word, value) in enumerate(pairs):
        field = f"filters[{index}]"
        wanted = value
        if word == "network":
            wanted = names.get_network(state, value, field).value.id
            candidates = state.endpoints_of_network(wanted)
        elif word == "sandbox":
            wanted = names.get_sandbox(state, value, field).value.id
            candidates = state.endpoints_of_sandbox(wanted)
        elif word == "host":
            wanted = names.get_host(state, value, field).value.id
            candidates = state.endpoints_of_host(wanted)
        elif word == "address":
            wanted = str(fields.any_address(value, field))
        resolved.append((word, wanted))

    def test(record: Record[Endpoint]) -> bool:
        value = record.value
        have = {"network": value.network_id, "sandbox": value.sandbox_id, "host": value.host_id, "name": value.name}
        return all(
            any(lease.ip == wanted for lease in value.leases)
            if word == "address"
            else _holds(word, wanted, value.id, value.labels, have)
            for word, wanted in resolved
        )

    return candidates, test


def sandboxes(state: State, filters: Sequence[str]) -> Callable[[Record[Sandbox]], bool]:
    """Return the test that a list of sandboxes asks for.

    Raises:
        NotFound: No such host.
    """
    pairs = [
        (word, names.get_host(state, value, f"filters[{index}]").value.id if word == "host" else value)
        for index, (word, value) in enumerate(terms(filters, ("host", "container", "id", "label")))
    ]

    def test(record: Record[Sandbox]) -> bool:
        value = record.value
        have = {"host": value.host_id, "container": value.container_id}
        return all(_holds(word, wanted, value.id, value.labels, have) for word, wanted in pairs)

    return test


def hosts(filters: Sequence[str], state_of: Callable[[str], HostState]) -> Callable[[Record[Host]], bool]:
    """Return the test that a list of hosts asks for."""
    pairs = terms(filters, ("name", "id", "state", "label"))
    for index, (word, value) in enumerate(pairs):
        if word == "state":
            _one_of(value, list(HostState), index)

    def test(record: Record[Host]) -> bool:
        value = record.value
        have = {"name": value.name, "state": str(state_of(value.id))}
        return all(_holds(word, wanted, value.id, value.labels, have) for word, wanted in pairs)

    return test


def _holds(word: str, wanted: str, id_: str, labels: dict[str, str], have: dict[str, str]) -> bool:
    if word == "id":
        return id_.startswith(wanted)
    if word == "label":
        key, separator, value = wanted.partition("=")
        return key in labels and (not separator or labels[key] == value)
    return have[word] == wanted


def _one_of(value: str, known: Sequence[str], index: int) -> None:
    if value not in known:
        raise fields.invalid(f"filters[{index}]", f"{value[:80]!r} is none of {', '.join(known)}", "FILTER_MALFORMED")


def _make_token(key: SortKey) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode()


def _parse_token(token: str) -> SortKey:
    try:
        parsed = json.loads(base64.urlsafe_b64decode(token.encode()))
    except (ValueError, binascii.Error):
        parsed = None
    if not isinstance(parsed, list) or not all(isinstance(part, str) for part in parsed):
        raise fields.invalid("page_token", "it is not a token of an earlier answer", "PAGE_TOKEN")
    return tuple(parsed)
