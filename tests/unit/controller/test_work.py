"""Work that outlives its caller."""

from __future__ import annotations

import asyncio

import pytest
from netweft_common import errors
from netweft_controller.engine.work import Work

pytestmark = pytest.mark.anyio


async def test_a_failure_of_the_block_stays_what_it_is():
    wrong = errors.InvalidArgument("SETTING_MALFORMED", "the setting is wrong")

    with pytest.raises(errors.InvalidArgument) as caught:
        async with Work():
            raise wrong

    assert wrong is caught.value


async def test_a_block_that_fails_waits_for_nothing_but_ends_its_sagas():
    ended = asyncio.Event()

    async def saga() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def fail() -> None:
        async with Work() as work:
            work.spawn(saga(), name="saga")
            await asyncio.sleep(0)
            raise errors.InvalidArgument("SETTING_MALFORMED", "the setting is wrong")

    with pytest.raises(errors.InvalidArgument):
        await fail()

    assert ended.is_set()
