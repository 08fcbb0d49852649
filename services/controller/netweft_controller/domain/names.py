"""How a user's word finds an object: full id, then exact name, then unique id prefix."""

from __future__ import annotations

import re
from collections.abc import Mapping

from netweft_common import errors

from netweft_controller.domain import fields
from netweft_controller.domain.objects import Endpoint, Host, Network, Record, Sandbox, T
from netweft_controller.domain.state import State

_PREFIX = re.compile(r"[0-9a-f]{1,31}")


def get_network(state: State, word: str, field: str = "network") -> Record[Network]:
    """Return the network of that id, name or unique id prefix.

    Raises:
        InvalidArgument: The word is empty, or the prefix of several ids.
        NotFound: There is none.
    """
    _require(word, field)
    record = state.networks.get(word) or state.networks.get(state.network_ids_by_name.get(word, ""))
    return record or _by_prefix(state.networks, word, "network", field)


def get_host(state: State, word: str, field: str = "host") -> Record[Host]:
    """Return the host of that id, name or unique id prefix.

    Raises:
        InvalidArgument: The word is empty, or the prefix of several ids.
        NotFound: There is none.
    """
    _require(word, field)
    record = state.hosts.get(word) or state.hosts.get(state.host_ids_by_name.get(word, ""))
    return record or _by_prefix(state.hosts, word, "host", field)


def get_sandbox(state: State, word: str, field: str = "sandbox") -> Record[Sandbox]:
    """Return the sandbox of that id, container id (where unique in the cluster) or unique id prefix.

    Raises:
        InvalidArgument: The word is empty, or stands for several.
        NotFound: There is none.
    """
    _require(word, field)
    record = state.sandboxes.get(word)
    if record is not None:
        return record
    found = list(state.sandboxes_of_container(word))
    if len(found) > 1:
        hosts = ", ".join(sorted(one.value.host_id for one in found))
        raise fields.invalid(
            field, f"container {word} is on several hosts ({hosts}); give the sandbox's id", "AMBIGUOUS"
        )
    return found[0] if found else _by_prefix(state.sandboxes, word, "sandbox", field)


def get_endpoint(
    state: State, word: str, network: str = "", field: str = "endpoint", network_field: str = "network"
) -> Record[Endpoint]:
    """Return the endpoint of that id, name (in the network, if one is given) or unique id prefix.

    Raises:
        InvalidArgument: The word is empty, or stands for several.
        NotFound: There is none, or no such network, or it is not in that network.
    """
    _require(word, field)
    if network:
        owner = get_network(state, network, network_field)
        record = state.endpoints.get(word)
        if record is None or record.value.network_id != owner.value.id:
            record = state.endpoint_by_name(owner.value.id, word)
        if record is None:
            there = {r.value.id: r for r in state.endpoints_of_network(owner.value.id)}
            record = _by_prefix(there, word, f"endpoint in network {owner.value.name}", field)
        return record
    record = state.endpoints.get(word)
    if record is not None:
        return record
    named = [found for id_ in state.networks if (found := state.endpoint_by_name(id_, word)) is not None]
    if len(named) > 1:
        raise fields.invalid(field, f"several networks have an endpoint {word}; name the network too", "AMBIGUOUS")
    return named[0] if named else _by_prefix(state.endpoints, word, "endpoint", field)


def _require(word: str, field: str) -> None:
    if not word:
        raise fields.invalid(field, "give an id or a name", "FIELD_MISSING")


def _by_prefix(records: Mapping[str, Record[T]], word: str, what: str, field: str) -> Record[T]:
    found = [id_ for id_ in records if id_.startswith(word)] if _PREFIX.fullmatch(word) else []
    if len(found) > 1:
        raise fields.invalid(field, f"{len(found)} ids start with {word}; give more digits", "AMBIGUOUS")
    if not found:
        raise errors.NotFound(
            f"{what.split(maxsplit=1)[0].upper()}_NOT_FOUND",
            f"there is no {what} {word[:128]!r}; list them to see what is there",
            field=field,
        )
    return records[found[0]]
