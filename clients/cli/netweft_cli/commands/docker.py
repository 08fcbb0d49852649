"""`netweft docker`: tell Docker where its plugin is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer
from netweft_common import errors

from netweft_cli import installed, output

app = typer.Typer(help="The plugin of Docker.", no_args_is_help=True)

SOCKET = Path("/run/docker/plugins/netweft.sock")
SPECS = Path("/etc/docker/plugins")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")


@app.command("install")
def install(
    socket: Annotated[Path, typer.Option("--socket", help="The agent's docker_socket, as Docker sees it.")] = SOCKET,
    *,
    name: Annotated[str, typer.Option("--name", help="Of the driver and the IPAM driver.")] = "netweft",
    spec_dir: Annotated[
        Path, typer.Option("--spec-dir", help="Where Docker looks: there, or in its plugins' folder.")
    ] = SPECS,
    as_json: Annotated[bool, typer.Option("--json", help="Write NAME.json, not NAME.spec.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there and not ours.")] = False,
) -> None:
    """Write the file by which Docker finds the plugin at a socket of another folder than its own, and print its path.

    Nothing is needed for an agent with its default docker_socket: Docker finds that by itself.
    """
    if not _NAME.fullmatch(name):
        raise errors.InvalidArgument(
            "NAME_MALFORMED",
            f"--name {name!r}: 1 to 63 of a-z, 0-9, '_', '.', '-', the first one a letter or digit",
            field="--name",
        )
    target = f"unix://{socket.absolute()}"
    text = json.dumps({"Name": name, "Addr": target}, indent=2) if as_json else target
    path = spec_dir / f"{name}.{'json' if as_json else 'spec'}"
    if not force:
        installed.refuse_foreign(path, is_ours=lambda there: b"netweft" in there)
    installed.write(path, text.encode() + b"\n", 0o644)
    output.write_lines([str(path)])
