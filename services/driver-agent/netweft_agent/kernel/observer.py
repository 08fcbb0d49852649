"""Look at a kernel and tell what is there in the form of resources, so that it compares with what is wanted."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from netweft_agent.domain.resources import Key, Ns, Resource
from netweft_agent.kernel.api import Observation
from netweft_agent.kernel.files import Files
from netweft_agent.kernel.netns import Namespaces


class Observer:
    def __init__(self, namespaces: Namespaces, files: Files) -> None:
        pass

    def observe(self, wanted: Mapping[Key, Resource], namespaces: Collection[Ns] | None) -> Observation:
        raise NotImplementedError

    def close(self) -> None:
        pass
