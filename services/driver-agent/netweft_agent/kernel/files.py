"""Small managed files (hosts, resolv.conf), and the knowledge whether somebody else has edited them.

A file that somebody edited is left alone from then on, as libnetwork does with resolv.conf; lines of hosts that come
and go with endpoints still do, each as a whole (libnetwork's `etchosts.Add` and `Delete`). To tell, a file of ours
carries a seal: the nanoseconds of its time of modification are made from its content. An edit gives it the clock's.
The seal is set before the file gets its name, so a crash leaves the old file or the new one, both sealed. That costs
one system call where a note beside the file would cost a file.

A file that is written in place (it may be bind-mounted) cannot be sealed and written at once. Of these, digests of what
we wrote are kept in the run directory; the one of a new content is noted before it is written and beside that of the
old one, so a crash between the two leaves a file that is still known as ours.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import msgspec
from netweft_common import errors

from netweft_agent.domain import resources

_LIMIT_BYTES = 4 << 20
_SANDBOXES = "sandboxes"
"""Folder of the run directory with a folder for each sandbox; see domain/sandbox.py."""
_SECOND_NS = 1_000_000_000


class Files:
    """The managed files of this host.

    Args:
        run_dir: Directory of the agent; its part `files` holds a note of digests for each file written in place.
        roots: Folders below which files may be written where a caller says; None: anywhere.
    """

    def __init__(self, run_dir: Path, roots: Sequence[Path] | None = None) -> None:
        self._run_dir = run_dir
        self._roots = None if roots is None else [Path(os.path.realpath(root)) for root in (*roots, run_dir)]
        self._notes = run_dir / "files"

    def write(self, file: resources.File, before: resources.File | None = None) -> None:
        """Write the file; if somebody edited it, exchange no more than its lines. Idempotent.

        Args:
            file: As it shall be.
            before: As it was to be until now; says which lines are to be taken out.

        Directories are made with mode 0755. Readers see old or new, except of a file that is written in place.

        Raises:
            FailedPrecondition: It was given by a path that is none of those that callers may have written.
            KernelError: It cannot be written.
        """
        if file.content is None:
            return
        path, content = Path(file.path), file.content.encode()
        self._refuse_elsewhere(path)
        with _translated(f"install -m 644 /dev/stdin {path}", path):
            there = _read(file.path)
            if there is not None and self._edited(file, there):
                _exchange(file, there.content, () if before is None else before.lines)
                return
            if not file.in_place:
                if there is None or there.content != content or not there.sealed:
                    _replace(file.path, content)
                return
            noted = self._noted(path)[:1] if there is not None else []
            _replace(str(self._note(path)), "\n".join([_digest(content), *noted]).encode())
            if there is None or there.content != content:
                _rewrite(path, content)

    def remove(self, file: resources.File) -> None:
        """Remove the file; one that was given to us, or was edited, only from our memory. Idempotent.

        Raises:
            KernelError: It cannot be removed.
        """
        path = Path(file.path)
        with _translated(f"rm -f {path}", path):
            if file.in_place:
                self._note(path).unlink(missing_ok=True)
                self._prune(self._notes)
            elif not self._edited(file, _read(path)):
                path.unlink(missing_ok=True)
                self._prune(path.parent)

    def read(self, file: resources.File) -> resources.File | None:
        """Return the file as it is, its content None when somebody edited it; None when it is not there.

        Raises:
            KernelError: It cannot be read.
        """
        with _translated(f"cat {file.path}", file.path):
            there = _read(file.path)
            if there is None:
                return None
            content = None if self._edited(file, there) else there.content.decode(errors="replace")
        # Which lines of an edited file are gone for having been edited away cannot be told, and need not be.
        return resources.File(ns=file.ns, path=file.path, content=content, lines=file.lines, in_place=file.in_place)

    def forgotten(self, wanted: Container[resources.Key]) -> Iterator[resources.File]:
        """Yield the files below the run directory that are as we wrote them, and that nobody wants."""
        for folder in _entries(str(self._run_dir / _SANDBOXES)):
            ns = f"sandbox/{folder.name}"
            for entry in _entries(folder.path):
                if ("file", ns, entry.path) in wanted or _is_temporary(entry.name):
                    continue
                there = _read(entry.path)
                if there is not None and there.sealed:
                    yield resources.File(ns=ns, path=entry.path, content=there.content.decode(errors="replace"))

    def clear(self) -> None:
        """Remove what a crash left of files that were being written below the run directory."""
        for path in self._run_dir.glob(f"{_SANDBOXES}/*/.*"):
            if _is_temporary(path.name):
                with contextlib.suppress(OSError):
                    path.unlink()
                    self._prune(path.parent)

    def _refuse_elsewhere(self, path: Path) -> None:
        """Who may attach a container may not have any file of the host written by it."""
        if self._roots is None or self._run_dir in path.parents:
            return
        folder = Path(os.path.realpath(path.parent))
        if not any(root in (folder, *folder.parents) for root in self._roots):
            raise errors.FailedPrecondition(
                "FILE_NOT_ALLOWED",
                f"{path} was given to be written, but lies in none of {', '.join(map(str, self._roots))}; "
                "give a path there, or name its folder in the agent's setting file_roots",
                path=str(path),
            )

    def _edited(self, file: resources.File, there: _Content | None) -> bool:
        """Return whether somebody else wrote what is there, after we had written something."""
        if there is None:
            return False
        if file.in_place:
            noted = self._noted(Path(file.path))
            return bool(noted) and _digest(there.content) not in noted
        # Below the run directory everything began as ours; elsewhere a file without a seal was there before us.
        return not there.sealed and self._run_dir in Path(file.path).parents

    def _note(self, path: Path) -> Path:
        return self._notes / hashlib.sha256(bytes(path)).hexdigest()[:32]

    def _noted(self, path: Path) -> list[str]:
        note = _read(self._note(path))
        return note.content.decode(errors="replace").split() if note else []

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
def _translated(op: str, path: Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.KernelError(op, str(path), error.errno or errno.EIO) from error


class _Content(msgspec.Struct, frozen=True):
    """What is in a file, and whether it carries our seal."""

    content: bytes
    sealed: bool


def _seal(content: bytes) -> int:
    """Return the nanoseconds that say `content` is ours; never 0, which tools write that know seconds only."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) % 999_999_999 + 1


def _read(path: Path | str) -> _Content | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        content = os.read(fd, _LIMIT_BYTES)
        return _Content(content, os.fstat(fd).st_mtime_ns % _SECOND_NS == _seal(content))
    finally:
        os.close(fd)


def _exchange(file: resources.File, content: bytes, old: Sequence[str]) -> None:
    """Take old lines out of an edited file and put new ones at its end; the inode stays, for it may be mounted."""
    gone = {line.encode() for line in old} - {line.encode() for line in file.lines}
    kept = [line for line in content.splitlines(keepends=True) if line.rstrip(b"\r\n") not in gone]
    there = {line.rstrip(b"\r\n") for line in kept}
    fresh = [line.encode() + b"\n" for line in file.lines if line not in old and line.encode() not in there]
    if fresh and kept and not kept[-1].endswith(b"\n"):
        kept[-1] += b"\n"
    changed = b"".join([*kept, *fresh])
    if changed != content:
        _rewrite(Path(file.path), changed)


def _rewrite(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    with open(fd, "wb") as file:  # noqa: PTH123  # a descriptor, not a path
        file.write(content)
        file.truncate()


def _make_folder(folder: str) -> None:
    try:
        os.mkdir(folder, 0o755)  # noqa: PTH102  # Path objects cost as much as the call
    except FileNotFoundError:
        os.makedirs(folder, mode=0o755, exist_ok=True)  # noqa: PTH103  # as above
    except FileExistsError:
        return  # somebody was faster


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".netweft")


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """Return what is in a folder, by name; nothing where there is none."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _replace(path: str, content: bytes) -> None:
    # The writer is alone, so the temporary name may be fixed; what a crash left of it is written over.
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/.{name[:100]}.netweft"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(temporary, flags, 0o644)
    except FileNotFoundError:
        _make_folder(folder)
        fd = os.open(temporary, flags, 0o644)
    try:
        os.fchmod(fd, 0o644)
        if os.write(fd, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301  # the same answer as write's own
        now_ns = time.time_ns()
        os.utime(fd, ns=(now_ns, now_ns - now_ns % _SECOND_NS + _seal(content)))
        os.rename(temporary, path)  # noqa: PTH104  # Path objects cost as much as the call
    except BaseException:
        os.unlink(temporary)  # noqa: PTH108  # as above
        raise
    finally:
        os.close(fd)
