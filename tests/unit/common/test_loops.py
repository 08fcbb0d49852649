"""Services take uvloop where it is, and do without it where it is not."""

from __future__ import annotations

import asyncio
import sys

import pytest
from netweft_common import loops


def test_uvloop_is_taken_where_it_is_installed():
    uvloop = pytest.importorskip("uvloop")
    factory = loops.fastest()
    assert factory is not None

    with asyncio.Runner(loop_factory=factory) as runner:
        assert isinstance(runner.get_loop(), uvloop.Loop)


def test_without_it_the_loop_is_asyncios_own(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)  # as if it were not installed

    assert loops.fastest() is None
