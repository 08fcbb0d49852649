"""An image for container engines, made here of this machine's busybox, so nothing is pulled.

It is an archive as `docker save` writes it, which `docker load`, `podman load` and `ctr image import` all read.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

NAME = "localhost/netweft-test:latest"
"""Of the image, for all engines."""
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def busybox(folder: Path) -> Path:
    """Write the archive of an image into a folder and return its path; its containers sleep until they are killed.

    Skips the test where there is no busybox that needs no libraries.
    """
    program = shutil.which("busybox")
    if (
        program is None
        or b"not a dynamic" not in subprocess.run(["ldd", program], capture_output=True, check=False).stderr
    ):
        pytest.skip("needs a busybox without libraries; on Debian: apt install busybox-static")
    layer = _layer(Path(program))
    config = {
        "architecture": _MACHINES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Cmd": ["sleep", "100000"], "Env": ["PATH=/bin"], "StopSignal": "SIGKILL"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [NAME], "Layers": ["layer/layer.tar"]}]
    path = folder / "image.tar"
    with tarfile.open(path, "w") as archive:
        _add(archive, "config.json", json.dumps(config).encode())
        _add(archive, "layer/layer.tar", layer)
        _add(archive, "manifest.json", json.dumps(manifest).encode())
    return path


def _layer(program: Path) -> bytes:
    applets = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in ("bin", "etc", "proc", "sys", "dev", "tmp"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(folder)
        _add(archive, "bin/busybox", program.read_bytes(), 0o755)
        _add(archive, "etc/passwd", b"root:x:0:0:root:/:/bin/sh\n")
        for name in applets:
            if name != "busybox":
                link = tarfile.TarInfo(f"bin/{name}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(link)
    return packed.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    file = tarfile.TarInfo(name)
    file.size, file.mode = len(content), mode
    archive.addfile(file, io.BytesIO(content))
