"""The Lua scripts, as Redis gets them: the shared part and the script's own, one text each."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from importlib import resources


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """One script.

    Attributes:
        name: File name without suffix.
        text: What is sent by EVAL.
        sha: What EVALSHA names it by.
        is_read: Whether it changes nothing.
    """

    name: str
    text: str
    sha: str
    is_read: bool


_READS = frozenset({"events", "find", "list", "lookup", "seen", "use"})


@functools.cache
def load(library: str, name: str) -> Script:
    """Return a script behind its library (`pool`, `space` or `hosts`); with none, as it is."""
    files = resources.files(__package__) / "lua"
    text = "\n".join((files / f"{part}.lua").read_text(encoding="utf-8") for part in (library, name) if part)
    sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    return Script(name=name, text=text, sha=sha, is_read=name in _READS)
