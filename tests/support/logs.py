"""What a stack's processes said, kept for the report of a test that fails: the run directory goes with the stack.

Where NETWEFT_KEEP names a folder, a failure also leaves a copy of the run directory there: whole logs, the store's
append-only file with every change in its order, the agents' journals.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

_TAIL_LINES = 40
_running: dict[Path, str] = {}
_ended: dict[str, str] = {}


@contextlib.contextmanager
def kept(run_dir: Path) -> Iterator[None]:
    """Know of a stack while the block runs; to be left before the run directory is removed."""
    _running[run_dir] = ""
    try:
        yield
    finally:
        del _running[run_dir]
        # A failure of the setup, or of the teardown that follows, is reported after the directory is gone.
        _ended.update(_tails(run_dir))


def forget_ended() -> None:
    """Forget the stacks that are gone: from now on they explain nothing."""
    _ended.clear()


def tails() -> dict[str, str]:
    """Return the last lines of each process of the stacks that run, or have just ended."""
    return _ended | {name: text for run_dir in _running for name, text in _tails(run_dir).items()}


def copy(test: str) -> None:
    """Copy the run directories of the stacks that run to the folder that NETWEFT_KEEP names, if it does."""
    if not (keep := os.environ.get("NETWEFT_KEEP")):
        return
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", test)[-150:]
    for run_dir in _running:
        places = (Path(keep) / f"{name}-{number}" for number in itertools.count(1))
        place = next(one for one in places if not one.exists())
        shutil.copytree(run_dir, place, ignore=_unreadable, symlinks=True)


def _unreadable(folder: str, names: list[str]) -> set[str]:
    # Sockets, and the files that namespaces are bound to.
    return {name for name in names if name == "netns" or stat.S_ISSOCK((Path(folder) / name).lstat().st_mode)}


def _tails(run_dir: Path) -> dict[str, str]:
    found = {}
    for path in sorted((run_dir / "log").glob("*.log")):
        lines = path.read_text(errors="replace").splitlines()
        found[f"{path.stem}, last lines of {len(lines)}"] = "\n".join(lines[-_TAIL_LINES:])
    return found
