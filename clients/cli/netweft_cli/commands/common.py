"""What several groups of commands do alike."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import typer
from netweft_common import errors

from netweft_cli import failures, output

if TYPE_CHECKING:
    import netweft_client


def created(made: Any, form: output.Format, name: str) -> None:
    """Print what was made: its id as Docker does, or as --output says."""
    if form.is_data:
        output.write_data(made, form)
    else:
        output.write_lines([name if form is output.Format.NAME else made.id])


def each(names: Iterable[str], act: Callable[[str], object]) -> None:
    """Act on each name and print those that worked; the exit code is that of the first failure.

    Raises:
        typer.Exit: Something failed; it was reported.
    """
    code = failures.OK
    for name in names:
        try:
            act(name)
        except errors.NetweftError as error:
            code = code or failures.report(error)
            if isinstance(error, errors.Unavailable):
                break
        else:
            sys.stdout.write(f"{name}\n")
    if code:
        raise typer.Exit(code)


def flat(inner: Any, outer: Any) -> dict[str, Any]:
    """Return an object and the fields that its lookup adds as one document."""
    own = {field.name: getattr(inner, field.name) for field in dataclasses.fields(inner)}
    more = {field.name: getattr(outer, field.name) for field in dataclasses.fields(outer)}
    return own | {name: value for name, value in more.items() if value is not inner}


def host_names(client: netweft_client.Client) -> dict[str, str]:
    """Return names of hosts by id: people know hosts by name."""
    return {host.id: host.name for host in client.list_hosts()}


def network_names(client: netweft_client.Client) -> dict[str, str]:
    """Return names of networks by id."""
    return {network.id: network.name for network in client.list_networks()}


def container_ids(client: netweft_client.Client) -> dict[str, str]:
    """Return container ids of sandboxes by id."""
    return {sandbox.id: sandbox.container_id for sandbox in client.list_sandboxes()}
