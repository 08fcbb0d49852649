from __future__ import annotations

import json
from pathlib import Path

import pytest
from netweft_cli import layout
from netweft_common import errors


def test_a_layout_survives_its_file():
    planned = layout.plan(Path("/run/x"), names=("a", "b"), store_url="redis://elsewhere")

    assert planned == layout.parse(planned.to_json(), Path("/run/x"))


def test_hosts_get_underlay_addresses_in_order():
    planned = layout.plan(Path("/run/x"), names=("a", "b"))

    assert [str(host.address) for host in planned.hosts] == ["192.0.2.1", "192.0.2.2"]


def test_on_the_machines_own_network_there_is_no_namespace():
    planned = layout.plan(Path("/run/x"), host_network=True)

    assert planned.host_network
    assert planned.netns(planned.hosts[0]) is None


def test_the_file_names_targets_for_whoever_looks():
    targets = json.loads(layout.plan(Path("/run/x"), names=("a",)).to_json())["targets"]

    assert targets["controller"] == "unix:/run/x/controller.sock"
    assert targets["agents"] == {"a": "unix:/run/x/hosts/a/agent.sock"}


def test_a_store_of_others_is_not_ours_to_start():
    own = layout.plan(Path("/run/x"))
    given = layout.plan(Path("/run/x"), store_url="redis://elsewhere")

    assert own.names == ("store", "ipam", "controller", "agent-host1")
    assert given.names == ("ipam", "controller", "agent-host1")
    assert given.effective_store_url == "redis://elsewhere"


@pytest.mark.parametrize(
    ("names", "host_network"),
    [((), False), (("a", "a"), False), (("a", "b"), True), (tuple(map(str, range(201))), False)],
    ids=["none", "twice the same", "two on one machine's network", "more than addresses"],
)
def test_hosts_that_cannot_be_are_refused(names, host_network):
    with pytest.raises(errors.InvalidArgument):
        layout.plan(Path("/run/x"), names=names, host_network=host_network)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 9, "hosts": [{"name": "a", "address": ""}], "store_url": ""}'],
    ids=["empty", "a list", "no fields", "another version"],
)
def test_a_broken_file_says_what_to_do(text):
    with pytest.raises(errors.FailedPrecondition, match="remove /run/x"):
        layout.parse(text, Path("/run/x"))


def test_the_run_directory_of_the_environment_wins(monkeypatch):
    monkeypatch.setenv("NETWEFT_RUN_DIR", "/elsewhere")

    assert Path("/elsewhere") == layout.default_run_dir()
