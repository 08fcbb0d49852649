"""Small managed files (hosts, resolv.conf), and the knowledge whether somebody else has edited them.

Digests of what we wrote are kept in the run directory. A file that has none of them was edited, and is left alone from
then on, as libnetwork does with resolv.conf. The digest of a new content is noted before it is written and beside that
of the old one, so a crash between the two leaves a file that is still known as ours.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from netweft_common import errors

from netweft_agent.domain import resources

_LIMIT_BYTES = 4 << 20


class Files:
    """The managed files of this host.

    Args:
        run_dir: Directory of the agent; its part `files` holds a note of digests for each managed file.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._notes = run_dir / "files"

    def write(self, file: resources.File) -> None:
        """Write the file unless somebody edited it; idempotent.

        Directories are made with mode 0755. Readers see old or new, except of a file that is written in place.

        Raises:
            KernelError: It cannot be written.
        """
        if file.content is None:
            return
        path, content = Path(file.path), file.content.encode()
        with _translated(f"install -m 644 /dev/stdin {path}", path):
            there = _read(path)
            if self._edited(path, there):
                return
            noted = self._noted(path)[:1] if there is not None else []
            _replace(self._note(path), "\n".join([_digest(content), *noted]).encode())
            if there == content:
                return
            if file.in_place:
                _rewrite(path, content)
            else:
                _replace(path, content)

    def remove(self, file: resources.File) -> None:
        """Remove the file; one that was given to us, or was edited, only from our memory. Idempotent.

        Raises:
            KernelError: It cannot be removed.
        """
        path = Path(file.path)
        with _translated(f"rm -f {path}", path):
            if not file.in_place and not self._edited(path, _read(path)):
                path.unlink(missing_ok=True)
                self._prune(path.parent)
            self._note(path).unlink(missing_ok=True)
            self._prune(self._notes)

    def read(self, file: resources.File) -> resources.File | None:
        """Return the file as it is, its content None when somebody edited it; None when it is not there.

        Raises:
            KernelError: It cannot be read.
        """
        path = Path(file.path)
        with _translated(f"cat {path}", path):
            there = _read(path)
            if there is None:
                return None
            content = None if self._edited(path, there) else there.decode(errors="replace")
        return resources.File(ns=file.ns, path=file.path, content=content, in_place=file.in_place)

    def _edited(self, path: Path, there: bytes | None) -> bool:
        noted = self._noted(path)
        return bool(noted) and there is not None and _digest(there) not in noted

    def _note(self, path: Path) -> Path:
        return self._notes / hashlib.sha256(bytes(path)).hexdigest()[:32]

    def _noted(self, path: Path) -> list[str]:
        note = _read(self._note(path))
        return note.decode(errors="replace").split() if note else []

    def _prune(self, directory: Path) -> None:
        """Remove the directories of ours that have become empty."""
        while directory != self._run_dir and self._run_dir in directory.parents:
            try:
                directory.rmdir()
            except OSError:  # not empty, or gone
                return
            directory = directory.parent


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def _translated(op: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.KernelError(op, str(path), error.errno or errno.EIO) from error


def _read(path: Path) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with open(fd, "rb") as file:  # noqa: PTH123  # a descriptor, not a path
        return file.read(_LIMIT_BYTES)


def _rewrite(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    with open(fd, "wb") as file:  # noqa: PTH123  # a descriptor, not a path
        file.write(content)
        file.truncate()


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
    try:
        with open(fd, "wb") as file:  # noqa: PTH123  # a descriptor, not a path
            os.fchmod(fd, 0o644)
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
