"""A folder of credentials that are replaced as a whole: who joined keeps its certificate there and renews it.

`current` is a symbolic link to the folder of the newest set. It is exchanged by rename, so a reader finds a key and its
certificate, never one of each.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from pathlib import Path

from netweft_common import errors, tls

CURRENT = "current"
CA, CERT, KEY = "ca.pem", "cert.pem", "key.pem"


def files(folder: Path) -> tls.TlsFiles:
    """Return the files of a folder's current set."""
    current = folder / CURRENT
    return tls.TlsFiles(ca=current / CA, cert=current / CERT, key=current / KEY)


def put(folder: Path, *, ca: bytes, cert: bytes, key: bytes) -> None:
    """Make a set the current one, and remove those before it.

    Raises:
        FailedPrecondition: The folder cannot be written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = folder / uuid.uuid4().hex
        fresh.mkdir(mode=0o700)
        for name, data in ((CA, ca), (CERT, cert), (KEY, key)):
            descriptor = os.open(fresh / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        link = folder / f".{fresh.name}"
        link.symlink_to(fresh.name)
        link.replace(folder / CURRENT)
    except OSError as error:
        raise errors.FailedPrecondition(
            "CREDENTIALS_UNWRITABLE",
            f"cannot keep credentials in {folder}: {error.strerror}; let this process write there",
            path=str(folder),
        ) from error
    for old in folder.iterdir():
        if old.is_dir() and not old.is_symlink() and old != fresh:
            with contextlib.suppress(OSError):
                shutil.rmtree(old)
