"""Golden files: the text that a test expects, in a file of its own below tests/golden/.

`GOLDEN_REWRITE=1 pytest tests/unit/agent/test_drivers.py` writes the files anew; then read the diff before committing
it, for whatever it says is what will be expected. A file that no test asks for any more fails `unasked`.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

ROOT = Path(__file__).parents[1] / "golden"
REWRITE = os.environ.get("GOLDEN_REWRITE", "") not in {"", "0"}


def check(name: str, actual: str) -> None:
    """Compare text with the golden file of that name, `folder/case`; write it when told to rewrite."""
    check_file(ROOT / f"{name}.txt", actual)


def check_file(path: Path, actual: str) -> None:
    """Compare text with a file anywhere in the tree, as `check` does: of documentation, say."""
    if REWRITE:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(actual)
        return
    expected = path.read_text() if path.exists() else ""
    if expected != actual:
        diff = difflib.unified_diff(expected.splitlines(), actual.splitlines(), str(path), "actual", lineterm="")
        raise AssertionError("\n".join(diff) + "\nif this is right: GOLDEN_REWRITE=1, and read the diff")


def unasked(folder: str, names: set[str]) -> set[str]:
    """Return the golden files of a folder that no case has; with REWRITE they are removed."""
    stray = {path.stem for path in (ROOT / folder).glob("*.txt")} - names
    if REWRITE:
        for name in stray:
            (ROOT / folder / f"{name}.txt").unlink()
        return set()
    return stray
