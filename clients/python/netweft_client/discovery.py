"""Where the services of this machine answer: environment, the file of a running stack, the packaged default."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from netweft_common import errors, tls

STACK_FILE = "stack.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """gRPC targets.

    Attributes:
        controller: Of the controller.
        ipam: Of IPAM.
        agents: Of agents, by host name.
    """

    controller: str
    ipam: str
    agents: Mapping[str, str] = field(default_factory=dict)


def run_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the run directory: NETWEFT_RUN_DIR, else /run/netweft, or $XDG_RUNTIME_DIR/netweft for other than root."""
    if path := environ.get("NETWEFT_RUN_DIR"):
        return Path(path)
    if os.geteuid() != 0 and (base := environ.get("XDG_RUNTIME_DIR")):
        return Path(base) / "netweft"
    return Path("/run/netweft")


def targets(environ: Mapping[str, str] = os.environ) -> Targets:
    """Return the targets: NETWEFT_TARGET and NETWEFT_TARGET_IPAM, else the stack's file, else sockets in the run dir.

    Raises:
        FailedPrecondition: The stack's file is there and cannot be read or understood.
    """
    directory = run_dir(environ)
    found = _read(directory / STACK_FILE)
    return Targets(
        controller=environ.get("NETWEFT_TARGET") or found.get("controller") or f"unix:{directory}/controller.sock",
        ipam=environ.get("NETWEFT_TARGET_IPAM") or found.get("ipam") or f"unix:{directory}/ipam.sock",
        agents=found.get("agents") or {},
    )


def write(directory: Path, stack: Targets) -> Path:
    """Write the stack's file, in one step, and return its path; whoever starts a stack does so."""
    path = directory / STACK_FILE
    draft = directory / f".{STACK_FILE}.{os.getpid()}"
    draft.write_text(json.dumps(dataclasses.asdict(stack) | {"agents": dict(stack.agents)}, indent=1) + "\n")
    draft.replace(path)
    return path


def tls_files(environ: Mapping[str, str] = os.environ) -> tls.TlsFiles | None:
    """Return the files of NETWEFT_TLS_CA, NETWEFT_TLS_CERT and NETWEFT_TLS_KEY; None when none is set.

    Raises:
        InvalidArgument: Some are set and some are not.
    """
    ca, cert, key = (
        Path(path) if (path := environ.get(f"NETWEFT_TLS_{part}")) else None for part in ("CA", "CERT", "KEY")
    )
    return tls.from_settings(ca, cert, key, environ.get("NETWEFT_TLS_SERVER_NAME", ""))


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise errors.FailedPrecondition(
            "STACK_FILE_UNREADABLE",
            f"cannot read {path}: {error}; remove it, or set NETWEFT_TARGET to say where the controller is",
            path=str(path),
        ) from error
    document = document.get("targets", document) if isinstance(document, dict) else None
    if not isinstance(document, dict):
        raise errors.FailedPrecondition(
            "STACK_FILE_MALFORMED",
            f"{path} is not a JSON object with controller, ipam and agents; remove it and start the stack anew",
            path=str(path),
        )
    return document
