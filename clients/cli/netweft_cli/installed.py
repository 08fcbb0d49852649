"""Files that are put where runtimes look for them: whole or not at all, and never over what is not ours."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from netweft_common import errors

_MARK = b"netweft's CNI plugin"


def plugin_text() -> bytes:
    """Return the plugin of CNI and netavark, one file."""
    return files("netweft_cni").joinpath("plugin.py").read_bytes()


def is_plugin(text: bytes) -> bool:
    """Return whether a file is that plugin, of any version."""
    return _MARK in text


def refuse_foreign(path: Path, is_ours: Callable[[bytes], bool]) -> None:
    """Raise AlreadyExists where a file is there that is not ours."""
    if path.exists() and not is_ours(path.read_bytes()):
        raise errors.AlreadyExists(
            "NOT_OURS", f"{path} is there and not netweft's; move it away, or use --force", path=str(path)
        )


def write(path: Path, content: bytes, mode: int) -> None:
    """Write a file whole, or not at all: a runtime may run or read it meanwhile."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_bytes(content)
        fresh.chmod(mode)
        fresh.replace(path)
    except OSError as error:
        raise errors.FailedPrecondition(
            "NOT_WRITTEN", f"{path} cannot be written: {error.strerror}", path=str(path)
        ) from error
