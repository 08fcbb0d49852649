"""`netweft netavark`: put the plugin where Podman's netavark looks for drivers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from netweft_cli import installed, output

app = typer.Typer(help="The network driver of Podman.", no_args_is_help=True)

PLUGIN = "netweft"


@app.command("install")
def install(
    *,
    plugin_dir: Annotated[
        Path, typer.Option("--plugin-dir", help="One of netavark_plugin_dirs of containers.conf.")
    ] = Path("/usr/local/libexec/netavark"),
    force: Annotated[bool, typer.Option("--force", help="Replace what is there and not ours.")] = False,
) -> None:
    """Write the plugin's file, and print where it is; then: podman network create --driver netweft NETWORK."""
    path = plugin_dir / PLUGIN
    if not force:
        installed.refuse_foreign(path, is_ours=installed.is_plugin)
    installed.write(path, installed.plugin_text(), 0o755)
    output.write_lines([str(path)])
