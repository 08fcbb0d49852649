"""What flags change of a sandbox that exists."""

from __future__ import annotations

import dataclasses
import inspect

import netweft_client
import pytest
from netweft_cli import sandboxflags
from netweft_client import Dns

KNOWN = Dns(servers=("192.0.2.1",), search=("a.example",), options=("ndots:2",))

CHANGED = {
    "servers alone": ((["192.0.2.2"], None, None), dataclasses.replace(KNOWN, servers=("192.0.2.2",))),
    "search alone": ((None, ["."], None), dataclasses.replace(KNOWN, search=(".",))),
    "options alone": ((None, None, ["rotate"]), dataclasses.replace(KNOWN, options=("rotate",))),
    "all": ((["::1"], ["b"], ["x"]), Dns(servers=("::1",), search=("b",), options=("x",))),
}  # fmt: skip


@pytest.mark.parametrize(("texts", "expected"), CHANGED.values(), ids=CHANGED)
def test_a_part_of_dns_that_no_flag_names_stays(texts, expected):
    assert expected == sandboxflags.changed_dns(KNOWN, *texts)


def test_a_sandbox_that_follows_its_host_in_all_gets_what_flags_say():
    assert Dns(search=("b",)) == sandboxflags.changed_dns(None, None, ["b"], None)


@pytest.mark.parametrize("one", sandboxflags.Clear)
def test_what_may_be_cleared_is_a_field_of_an_update_and_becomes_what_a_new_sandbox_has(one):
    fresh = netweft_client.SandboxSpec(container_id="c")

    assert one.field in inspect.signature(netweft_client.Client.update_sandbox).parameters
    assert (getattr(fresh, one.field) or Dns()) == (one.nothing or Dns())
