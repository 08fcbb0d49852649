from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


def _load_fake_server():
    # Tests are found by path (--import-mode=importlib), so a module beside them has no name to be imported by.
    spec = importlib.util.spec_from_file_location("netweft_fake_server", Path(__file__).with_name("fake_server.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def target(tmp_path):
    return f"unix:{tmp_path}/c.sock"


@pytest.fixture
def fake(anyio_backend):
    return _load_fake_server().Fake()
