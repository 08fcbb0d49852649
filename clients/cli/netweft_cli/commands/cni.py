"""`netweft cni`: put the CNI plugin where container runtimes look for it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from netweft_cni import plugin
from netweft_common import errors

from netweft_cli import installed, options, output

app = typer.Typer(help="The CNI plugin of container runtimes.", no_args_is_help=True)

CAPABILITIES = ("portMappings", "ips", "mac", "bandwidth", "aliases", "dns")
PLUGIN = "netweft"
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")


@app.command("install")
def install(
    network: Annotated[str, typer.Argument(help="Network of ours that containers are attached to.")],
    *,
    name: Annotated[str, typer.Option("--name", help="Name of the CNI network; the network's own by default.")] = "",
    bin_dir: Annotated[Path, typer.Option("--bin-dir", help="Where runtimes look for plugins.")] = Path("/opt/cni/bin"),
    conf_dir: Annotated[Path, typer.Option("--conf-dir", help="Where they look for networks.")] = Path(
        "/etc/cni/net.d"
    ),
    priority: Annotated[
        int, typer.Option("--priority", min=0, max=99, help="The lowest one is a runtime's default network.")
    ] = 10,
    cni_version: Annotated[str, typer.Option("--cni-version", help=f"One of {', '.join(plugin.VERSIONS)}.")] = "1.0.0",
    chain: Annotated[
        list[str] | None,
        typer.Option("--chain", metavar="PLUGIN", help="Plugin that comes after ours (tuning, say); may be repeated."),
    ] = None,
    socket: Annotated[Path, typer.Option("--socket", help="The agent's socket.")] = Path(plugin.SOCKET),
    state_dir: options.StateDir = options.DEFAULT_STATE_DIR,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there and not ours.")] = False,
) -> None:
    """Write the plugin's file and a network for it, and print where they are."""
    called = name or network
    if not _NAME.fullmatch(called):
        raise errors.InvalidArgument(
            "NAME_MALFORMED",
            f"--name {called!r}: 1 to 128 letters, digits, '_', '.', '-', the first one a letter or digit",
            field="--name",
        )
    if cni_version not in plugin.VERSIONS:
        raise errors.InvalidArgument(
            "FLAG_MALFORMED",
            f"--cni-version {cni_version!r} is none of {', '.join(plugin.VERSIONS)}",
            field="--cni-version",
        )
    own: dict[str, Any] = {
        "type": PLUGIN,
        "network": network,
        "capabilities": dict.fromkeys(CAPABILITIES, True),
    }
    if socket != Path(plugin.SOCKET):
        own["socket"] = str(socket.absolute())
    if state_dir != Path(plugin.STATE_DIR):
        own["stateDir"] = str(state_dir.absolute())
    others: list[dict[str, Any]] = [{"type": one} for one in chain or ()]
    conflist = {"cniVersion": cni_version, "name": called, "plugins": [own, *others]}
    binary, conf = bin_dir / PLUGIN, conf_dir / f"{priority:02}-{called}.conflist"
    if not force:
        installed.refuse_foreign(binary, is_ours=installed.is_plugin)
        installed.refuse_foreign(conf, is_ours=lambda text: b'"type": "netweft"' in text)
    installed.write(binary, installed.plugin_text(), 0o755)
    installed.write(conf, json.dumps(conflist, indent=2).encode() + b"\n", 0o644)
    output.write_lines([str(binary), str(conf)])
