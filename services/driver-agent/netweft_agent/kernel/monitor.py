"""Tell of changes that others make."""

from __future__ import annotations

from collections.abc import AsyncIterator

from netweft_agent.domain.resources import Ns
from netweft_agent.kernel.executor import Executor
from netweft_agent.kernel.netns import Namespaces


class Monitor:
    def __init__(self, namespaces: Namespaces, executor: Executor) -> None:
        pass

    async def changes(self) -> AsyncIterator[Ns]:
        raise NotImplementedError
        yield ""

    def close(self) -> None:
        pass
