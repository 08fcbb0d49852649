"""What `netweft host join` does on the machine that joins, and what `netweft ca` makes."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import tomllib
from pathlib import Path

from netweft_client import joining
from netweft_common import credentials, errors, listen, pki
from netweft_common.identity import Identity, Role

LIFE = dt.timedelta(days=825)
"""Of certificates that are made by hand; longer ones are refused by some (CA/Browser Forum, ballot 193)."""


def join(token: pki.Token, controller: str, *, name: str, state_dir: Path) -> str:
    """Become the host that a token stands for; returns the name that it has.

    The state folder gets the host's id and its credentials.

    Raises:
        FailedPrecondition: The folder is another host's, or cannot be written.
        Unauthenticated: The token is unknown, used up or expired.
        Unavailable: The controller does not answer, or is not one of the token's cluster.
    """
    known = state_dir / "host-id"
    if known.exists():
        raise errors.FailedPrecondition(
            "HOST_HAS_JOINED",
            f"{state_dir} holds the state of host {known.read_text().strip()} already; leave that cluster first "
            "('netweft host leave'), or give another --state-dir",
        )
    key, request = pki.new_request()
    certificate, found = asyncio.run(joining.join(token, controller, request_pem=request, name=name))
    credentials.put(state_dir / "tls", ca=token.authority_pem, cert=certificate, key=key)
    known.write_text(f"{token.host_id}\n")
    return found


def configuration(state_dir: Path, *, controller: str, ipam: str, listen_at: str, name: str, vtep: str) -> Path:
    """Write the agent's configuration file, and return its path."""
    values = {
        "controller": controller,
        "ipam": ipam,
        "listen": listen_at,
        "host_name": name,
        "vtep_address": vtep,
        "state_dir": str(state_dir),
        "tls_dir": str(state_dir / "tls"),
    }
    path = state_dir / "agent.toml"
    # A JSON string is a TOML basic string.
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items() if value))
    return path


def controller(state_dir: Path) -> str:
    """Return the controllers that the agent's configuration file names; empty where it names none."""
    with contextlib.suppress(FileNotFoundError, tomllib.TOMLDecodeError):
        return str(tomllib.loads((state_dir / "agent.toml").read_text()).get("controller", ""))
    return ""


def new_authority(folder: Path) -> Path:
    """Make an authority in a folder that has none; returns its certificate's path.

    Raises:
        AlreadyExists: There is one.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    certificate, key = folder / "ca.pem", folder / "ca.key"
    if certificate.exists() or key.exists():
        raise errors.AlreadyExists("AUTHORITY_EXISTS", f"{folder} has an authority already; choose another folder")
    made = pki.new_authority("netweft", now=dt.datetime.now(tz=dt.UTC))
    _secret(key, made.key_pem)
    certificate.write_bytes(made.certificate_pem)
    return certificate


def issue(folder: Path, role: Role, name: str, addresses: list[str]) -> tuple[Path, Path]:
    """Issue a certificate from a folder's authority; returns the paths of certificate and key.

    Raises:
        FailedPrecondition: The folder has no authority.
    """
    for address in addresses:
        listen.parse(f"[{address}]:0" if ":" in address else f"{address}:0")
    authority = pki.load_authority(folder / "ca.pem", folder / "ca.key")
    key, request = pki.new_request()
    holder = Identity(role=role, name=name)
    certificate = authority.issue(
        request, holder, names=[*addresses, "localhost"], life=LIFE, now=dt.datetime.now(tz=dt.UTC)
    )
    stem = f"{role}-{name}"
    paths = folder / f"{stem}.pem", folder / f"{stem}.key"
    _secret(paths[1], key)
    paths[0].write_bytes(certificate)
    return paths


def _secret(path: Path, data: bytes) -> None:
    path.touch(mode=0o600, exist_ok=True)
    path.chmod(0o600)
    path.write_bytes(data)
