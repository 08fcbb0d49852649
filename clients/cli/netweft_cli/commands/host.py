"""`netweft host`: machines with an agent."""

from __future__ import annotations

from typing import Annotated

import typer

from netweft_cli import options, output
from netweft_cli.commands import common

app = typer.Typer(help="Hosts: machines with an agent.", no_args_is_help=True)

COLUMNS = [
    output.Column(title="HOST ID", value=lambda host: output.short(host.id)),
    output.Column(title="NAME", value=lambda host: host.name),
    output.Column(title="STATE", value=lambda host: host.state),
    output.Column(title="VTEP", value=lambda host: str(host.vtep_address or "-")),
    output.Column(title="DRIVERS", value=lambda host: output.joined(driver.name for driver in host.facts.drivers)),
    output.Column(title="VERSION", value=lambda host: host.facts.agent_version),
    output.Column(title="KERNEL", value=lambda host: host.facts.kernel_release, wide=True),
    output.Column(title="FEATURES", value=lambda host: output.joined(host.facts.features), wide=True),
    output.Column(title="AGENT", value=lambda host: host.agent_target, wide=True),
    output.Column(title="HEARTBEAT", value=lambda host: str(host.heartbeat_time or "-"), wide=True),
]


@app.command("ls")
def ls(
    filters: options.Filters = None,
    quiet: options.Quiet = False,
    form: options.Output = output.Format.TABLE,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """List hosts. Filters: name, id, state=ready|lost, label."""
    with options.connect(target, timeout) as client:
        found = list(client.list_hosts(*(filters or ())))
    output.show(found, COLUMNS, form=form, name=lambda host: host.name, quiet=quiet)


@app.command("inspect")
def inspect(
    names: Annotated[list[str], typer.Argument(metavar="HOST...", help="Id, name or unique id prefix.")],
    form: options.Output = output.Format.JSON,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Show all of one or more hosts: facts, drivers and the options they take."""
    with options.connect(target, timeout) as client:
        found = [client.get_host(name) for name in names]
    output.show(found, COLUMNS, form=form, name=lambda host: host.name)


@app.command("rm")
def rm(
    names: Annotated[list[str], typer.Argument(metavar="HOST...", help="Id, name or unique id prefix.")],
    force: Annotated[bool, typer.Option("--force", help="Forget its sandboxes and endpoints too.")] = False,
    request_id: options.RequestId = "",
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Forget hosts that are gone for good, and print their names."""
    with options.connect(target, timeout) as client:
        common.each(names, lambda name: client.delete_host(name, force=force, request_id=request_id))
