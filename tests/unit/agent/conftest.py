from __future__ import annotations

import pytest

from tests.support.agent import Rig


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def rig(tmp_path, anyio_backend):
    async with Rig(tmp_path) as running:
        yield running
