"""DELs that could not be carried out yet: kept as files, for a runtime that lets go of a container asks but once.

The plugin writes them while there is no agent, the agent while there is no controller. Files are tiny and few, so they
are read and written where they are needed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

FOLDER = "cni-pending"


class Pending:
    """The folder.

    Args:
        state_dir: Of the agent.
    """

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / FOLDER

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        """Yield name and content of each, oldest first."""
        if not self._folder.is_dir():
            return
        for name in sorted(one.name for one in self._folder.iterdir() if one.suffix != ".new"):
            yield name, (self._folder / name).read_bytes()

    def keep(self, frame: bytes) -> None:
        """Keep one; it is on disk when this returns."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / f"{time.time_ns():020}-{os.getpid()}"
        fresh = path.with_suffix(".new")
        with fresh.open("xb") as file:
            file.write(frame)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)

    def drop(self, name: str) -> None:
        """Forget one; idempotent."""
        (self._folder / name).unlink(missing_ok=True)
