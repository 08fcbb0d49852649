"""How grpc is told to wait for its sockets."""

from __future__ import annotations

import pytest
from netweft_common import poller


@pytest.mark.parametrize(
    ("version", "environ", "expected"),
    [
        ("1.85.1", {}, {"GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener"}),
        ("1.71.0rc1", {}, {"GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener"}),
        ("1.85.1", {"GRPC_EXPERIMENTS": "mine"}, {"GRPC_EXPERIMENTS": "mine"}),
        ("1.86.0", {}, {}),
        ("2.0.0", {}, {}),
    ],
    ids=["known", "older", "the user's own", "newer", "much newer"],
)
def test_the_poller_is_chosen_where_it_is_known_and_nobody_else_has_chosen(monkeypatch, version, environ, expected):
    monkeypatch.setattr(poller.metadata, "version", {"grpcio": version}.__getitem__)

    poller.choose(environ)

    assert expected == environ
