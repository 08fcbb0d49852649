"""Namespaces that are handed over as descriptors: a path by which they can be opened again at any time.

A runtime's path is good where it leads to the same namespace here. An agent with a mount namespace of its own may see
something else there, or nothing: then the namespace is pinned by a bind mount in the run directory, as by ip-netns(8).
"""

from __future__ import annotations

import os
from pathlib import Path

from netweft_common import errors

from netweft_agent.kernel import netns


class GivenNamespaces:
    """Paths of namespaces.

    Args:
        run_dir: Of the agent.
    """

    def __init__(self, run_dir: Path) -> None:
        self._directory = run_dir / "netns-given"

    def path(self, descriptor: int, asked: str, key: str) -> str:
        """Return a path by which the agent can open the namespace.

        Args:
            descriptor: Of the namespace.
            asked: The caller's path; may lead elsewhere, or nowhere, here.
            key: To find a pinned one by, a file's name.

        Raises:
            InvalidArgument: The descriptor is of something else.
            KernelError: The kernel refused to pin it.
        """
        netns.check_descriptor(descriptor, asked)
        return asked if self.leads_to(asked, descriptor) else self._pin(descriptor, key)

    def forget(self, key: str) -> None:
        """Let go of a pinned namespace; idempotent.

        Raises:
            KernelError: The pin could not be removed.
        """
        netns.unpin(self._directory / key)

    def leads_to(self, path: str, descriptor: int) -> bool:
        """Return whether a path leads to the namespace of a descriptor."""
        try:
            there = netns.open_path(path)
        except errors.NetweftError:
            return False
        try:
            return os.path.sameopenfile(there, descriptor)
        finally:
            os.close(there)

    def _pin(self, descriptor: int, key: str) -> str:
        self.forget(key)
        path = self._directory / key
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o400)
        try:
            netns.bind(f"/proc/self/fd/{descriptor}", path)
        except errors.KernelError:
            path.unlink()
            raise
        return str(path)
