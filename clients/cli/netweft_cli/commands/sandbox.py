"""`netweft sandbox`: a container's network namespace, created by the agent or given."""

from __future__ import annotations

from typing import Annotated

import typer

from netweft_cli import options, output
from netweft_cli.commands import common

app = typer.Typer(help="Sandboxes: a container's network namespace on one host.", no_args_is_help=True)


@app.command("create")
def create(
    container: Annotated[str, typer.Argument(help="Container id, unique on the host.")],
    *,
    host: options.Host = "",
    netns: options.Netns = "",
    pid: options.Pid = 0,
    host_network: options.HostNetwork = False,
    hostname: options.Hostname = "",
    domainname: options.Domainname = "",
    dns: options.Dns = None,
    dns_search: options.DnsSearch = None,
    dns_option: options.DnsOption = None,
    add_host: options.AddHost = None,
    label: options.Labels = None,
    request_id: options.RequestId = "",
    form: options.Output = output.Format.TABLE,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Make a sandbox, wait until its host has it, and print its id."""
    spec = options.sandbox_spec(
        container,
        host=host,
        netns=netns,
        pid=pid,
        host_network=host_network,
        hostname=hostname,
        domainname=domainname,
        dns=dns,
        dns_search=dns_search,
        dns_option=dns_option,
        add_host=add_host,
        label=label,
    )
    with options.connect(target, timeout) as client:
        made = client.create_sandbox(spec, request_id=request_id)
    common.created(made, form, made.container_id)


@app.command("ls")
def ls(
    filters: options.Filters = None,
    quiet: options.Quiet = False,
    form: options.Output = output.Format.TABLE,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """List sandboxes. Filters: host, container, id, label."""
    with options.connect(target, timeout) as client:
        found = list(client.list_sandboxes(*(filters or ())))
        hosts = common.host_names(client) if form.is_table and found else {}
    output.show(found, _columns(hosts), form=form, name=lambda sandbox: sandbox.container_id, quiet=quiet)


@app.command("inspect")
def inspect(
    names: Annotated[list[str], typer.Argument(metavar="SANDBOX...", help="Id, unique id prefix, or container id.")],
    form: options.Output = output.Format.JSON,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Show all of one or more sandboxes, with their endpoints."""
    with options.connect(target, timeout) as client:
        found = [client.get_sandbox(name) for name in names]
        hosts = common.host_names(client) if form.is_table else {}
    if form.is_data:
        output.write_data([common.flat(one.sandbox, one) for one in found], form)
    else:
        output.show(
            [one.sandbox for one in found], _columns(hosts), form=form, name=lambda sandbox: sandbox.container_id
        )


@app.command("rm")
def rm(
    names: Annotated[list[str], typer.Argument(metavar="SANDBOX...", help="Id, unique id prefix, or container id.")],
    force: Annotated[bool, typer.Option("--force", help="Remove its endpoints first.")] = False,
    request_id: options.RequestId = "",
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Remove sandboxes and print their names."""
    with options.connect(target, timeout) as client:
        common.each(names, lambda name: client.delete_sandbox(name, force=force, request_id=request_id))


def _columns(hosts: dict[str, str]) -> list[output.Column]:
    return [
        output.Column(title="SANDBOX ID", value=lambda sandbox: output.short(sandbox.id)),
        output.Column(title="CONTAINER", value=lambda sandbox: sandbox.container_id),
        output.Column(title="HOST", value=lambda sandbox: hosts.get(sandbox.host_id, sandbox.host_id)),
        output.Column(title="STATE", value=lambda sandbox: sandbox.state),
        output.Column(title="NAMESPACE", value=lambda sandbox: sandbox.netns_path or "-"),
        output.Column(title="HOSTNAME", value=lambda sandbox: sandbox.hostname or "-", wide=True),
        output.Column(title="LABELS", value=lambda sandbox: output.pairs(sandbox.labels) or "-", wide=True),
        output.Column(title="PROBLEM", value=lambda sandbox: sandbox.status_message or "-", wide=True),
    ]
