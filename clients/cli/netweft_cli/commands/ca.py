"""`netweft ca`: a cluster's own certificates."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from netweft_cli import output

app = typer.Typer(help="Certificates: an authority of the cluster's own.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the authority is, or is to be.")]


class Holder(enum.StrEnum):
    """Whom a certificate may be issued to by hand; hosts get theirs by `netweft host join`."""

    CONTROLLER = "controller"
    IPAM = "ipam"
    CLIENT = "client"
    ADMIN = "admin"


@app.command("init")
def init(folder: Folder) -> None:
    """Make an authority: ca.pem for everybody, ca.key for controllers alone."""
    from netweft_cli import joining  # noqa: PLC0415  # certificates cost 60 ms

    output.write_lines([str(joining.new_authority(folder))])


@app.command("issue")
def issue(
    folder: Folder,
    role: Annotated[Holder, typer.Argument(metavar="ROLE", help="controller, ipam, client or admin.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whom it names.")],
    addresses: Annotated[
        list[str] | None, typer.Option("--address", help="Address or name at which a server is met; repeatable.")
    ] = None,
) -> None:
    """Issue a certificate, and print the paths of it and its key."""
    from netweft_common.identity import Role  # noqa: PLC0415  # as above

    from netweft_cli import joining  # noqa: PLC0415  # as above

    output.write_lines([str(path) for path in joining.issue(folder, Role(role), name, addresses or [])])
