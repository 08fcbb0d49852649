"""`netweft sandbox`: a container's network namespace, created by the agent or given."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from netweft_cli import options, output, plans, sandboxflags
from netweft_cli.commands import common

app = typer.Typer(help="Sandboxes: a container's network namespace on one host.", no_args_is_help=True)

Sandbox = Annotated[str, typer.Argument(help="Id, unique id prefix, or container id.")]


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


@app.command("update")
def update(
    sandbox: Sandbox,
    *,
    rename: Annotated[str, typer.Option("--rename", metavar="CONTAINER", help="New container id.")] = "",
    hostname: options.Hostname = "",
    domainname: options.Domainname = "",
    dns: options.Dns = None,
    dns_search: options.DnsSearch = None,
    dns_option: options.DnsOption = None,
    add_host: options.AddHost = None,
    label: options.Labels = None,
    clear: Annotated[
        list[sandboxflags.Clear] | None, typer.Option("--clear", help="Take all of these away; may be repeated.")
    ] = None,
    request_id: options.RequestId = "",
    form: options.Output = output.Format.TABLE,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Change a sandbox, also while it has endpoints; what a flag names is replaced as a whole, all else stays."""
    given: dict[str, Any] = {one.field: one.nothing for one in clear or ()}
    texts = (("container_id", rename), ("hostname", hostname), ("domainname", domainname))
    given |= {field: text for field, text in texts if text}
    if add_host is not None:
        given["extra_hosts"] = options.extra_hosts(add_host)
    if label is not None:
        given["labels"] = options.mapping(label, "--label", bare=True)
    with options.connect(target, timeout) as client:
        if dns or dns_search or dns_option:
            known = given["dns"] if "dns" in given else client.get_sandbox(sandbox).sandbox.dns
            given["dns"] = sandboxflags.changed_dns(known, dns, dns_search, dns_option)
        made = client.update_sandbox(sandbox, request_id=request_id, **given)
        hosts = common.host_names(client) if form.is_table else {}
    output.show([made], _columns(hosts), form=form, name=lambda one: one.container_id)


@app.command("refresh")
def refresh(
    sandbox: Sandbox,
    form: options.Output = output.Format.TABLE,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Compare a sandbox with what its host's kernel has, repair what differs, and show what had to be repaired.

    Its neighbours are told of its addresses again.
    """
    with options.connect(target, timeout) as client:
        repaired = client.refresh_sandbox(sandbox)
    if form.is_data:
        output.write_data(repaired, form)
    else:
        output.write_lines(plans.lines(repaired) or ["# nothing to repair"])


@app.command("stats")
def stats(
    sandbox: Sandbox,
    form: options.Output = output.Format.TABLE,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Show the counters of a sandbox's interfaces since they were made, as the container sees them."""
    with options.connect(target, timeout) as client:
        found = client.get_sandbox_statistics(sandbox)
        endpoints = {}
        if form.is_table and found:
            sandbox_id = client.get_sandbox(sandbox).sandbox.id
            endpoints = {one.id: one.name for one in client.list_endpoints(f"sandbox={sandbox_id}")}
    output.show(found, _counters(endpoints), form=form, name=lambda one: one.interface_name)


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


def _counters(endpoints: dict[str, str]) -> list[output.Column]:
    return [
        output.Column(title="INTERFACE", value=lambda one: one.interface_name),
        output.Column(title="ENDPOINT", value=lambda one: endpoints.get(one.endpoint_id, one.endpoint_id) or "-"),
        output.Column(title="RX BYTES", value=lambda one: str(one.rx_bytes)),
        output.Column(title="RX PACKETS", value=lambda one: str(one.rx_packets)),
        output.Column(title="RX ERRORS", value=lambda one: str(one.rx_errors), wide=True),
        output.Column(title="RX DROPPED", value=lambda one: str(one.rx_dropped)),
        output.Column(title="TX BYTES", value=lambda one: str(one.tx_bytes)),
        output.Column(title="TX PACKETS", value=lambda one: str(one.tx_packets)),
        output.Column(title="TX ERRORS", value=lambda one: str(one.tx_errors), wide=True),
        output.Column(title="TX DROPPED", value=lambda one: str(one.tx_dropped)),
    ]
