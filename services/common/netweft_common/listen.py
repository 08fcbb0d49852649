"""Addresses to listen at: `unix:/path` and `host:port`, and what must be so before a socket is bound."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from netweft_common import errors

SOCKET_MODE = 0o660
DIRECTORY_MODE = 0o750
_SOCKET_PATH_LIMIT_BYTES = 107  # sun_path less its end, unix(7)
_HOST_PORT = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<host>[^:\[\]/]+)):(?P<port>[0-9]{1,5})")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UnixAddress:
    """A unix socket by absolute path."""

    path: str

    @property
    def target(self) -> str:
        """The gRPC target."""
        return f"unix:{self.path}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TcpAddress:
    """A host and a port; port 0 lets the kernel choose."""

    host: str
    port: int

    @property
    def target(self) -> str:
        """The gRPC target."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it; a name other than localhost is taken to be reachable."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback
        except ValueError:
            return False


Address = UnixAddress | TcpAddress


def parse(target: str) -> Address:
    """Return the address that a target names.

    Raises:
        InvalidArgument: It is neither `unix:/absolute/path` nor `host:port`, or its path is longer than unix(7) allows.
    """
    if target.startswith("unix:"):
        path = target.removeprefix("unix:")
        path = "/" + path.lstrip("/") if path.startswith("/") else path
        if not path.startswith("/"):
            raise errors.InvalidArgument(
                "TARGET_MALFORMED", f"target {target!r}: the socket's path must be absolute, as unix:/run/x.sock"
            )
        if len(os.fsencode(path)) > _SOCKET_PATH_LIMIT_BYTES:
            raise errors.InvalidArgument(
                "SOCKET_PATH_TOO_LONG",
                f"target {target!r}: the path has {len(os.fsencode(path))} bytes and a unix socket allows "
                f"{_SOCKET_PATH_LIMIT_BYTES}; choose a shorter run directory",
            )
        return UnixAddress(path=path)
    match = _HOST_PORT.fullmatch(target)
    if match is None or int(match["port"]) > 65535:
        raise errors.InvalidArgument(
            "TARGET_MALFORMED", f"target {target!r} is neither unix:/path nor host:port ([address]:port for IPv6)"
        )
    return TcpAddress(host=match["v6"] or match["host"], port=int(match["port"]))


def prepare_socket(address: UnixAddress) -> None:
    """Make the socket's directory and remove what a dead process left at its path. Idempotent.

    A directory that exists keeps its mode: it is somebody's choice.

    Raises:
        FailedPrecondition: A living process listens there, something that is no socket is there, or the
            directory cannot be made.
    """
    path = Path(address.path)
    try:
        path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise errors.FailedPrecondition(
            "SOCKET_DIRECTORY_UNUSABLE",
            f"cannot make the directory of socket {path}: {error}; choose another path or run as its owner",
            path=str(path),
        ) from error
    if not stat.S_ISSOCK(mode):
        raise errors.FailedPrecondition(
            "SOCKET_PATH_TAKEN", f"{path} exists and is no socket; remove it or choose another path", path=str(path)
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(address.path)
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError as error:  # a full backlog (EAGAIN) is a living process too
            reason = f" ({error})"
        else:
            reason = ""
    raise errors.FailedPrecondition(
        "SOCKET_IN_USE",
        f"another process listens at {path}{reason}; stop it or choose another path",
        path=str(path),
    )


def remove_socket(address: UnixAddress) -> None:
    """Remove the socket's file. Idempotent."""
    Path(address.path).unlink(missing_ok=True)


@contextlib.contextmanager
def socket_umask() -> Iterator[None]:
    """Make files that appear inside the context mode 0660 at most; a chmod after bind would leave a gap.

    The umask is the process's, so nothing may be awaited that lets others make files meanwhile.
    """
    before = os.umask(0o777 & ~SOCKET_MODE)
    try:
        yield
    finally:
        os.umask(before)
