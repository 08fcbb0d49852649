"""`netweft endpoint`: the single verbs of the Container Network Model, create, join, leave, rm, and looking at them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from netweft_cli import endpointflags, options, output
from netweft_cli.commands import common

if TYPE_CHECKING:
    import netweft_client

app = typer.Typer(help="Endpoints: a container's connection to one network.", no_args_is_help=True)

Endpoint = Annotated[str, typer.Argument(help="Id, unique id prefix, or name (with --network where it is ambiguous).")]
Network = Annotated[str, typer.Option("--network", metavar="NETWORK", help="Network of the endpoint.")]


@app.command("create")
def create(
    network: Annotated[str, typer.Argument(help="Network by id, name or unique id prefix.")],
    name: Annotated[str, typer.Argument(help="Name, unique in the network; by default made from the id.")] = "",
    *,
    ip: options.Ip = "",
    ip6: options.Ip6 = "",
    mac_address: options.MacAddress = "",
    alias: options.Alias = None,
    interface: options.Interface = "",
    gw_priority: options.GatewayPriority = 0,
    publish: endpointflags.Publish = None,
    ingress_rate: endpointflags.IngressRate = "",
    ingress_burst: endpointflags.IngressBurst = "",
    egress_rate: endpointflags.EgressRate = "",
    egress_burst: endpointflags.EgressBurst = "",
    route: endpointflags.Route = None,
    sysctl: endpointflags.Sysctl = None,
    link_local_ip: endpointflags.LinkLocalIp = None,
    opt: options.DriverOptions = None,
    label: options.Labels = None,
    request_id: options.RequestId = "",
    form: options.Output = output.Format.TABLE,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Create an endpoint that is in no sandbox yet, and print its id."""
    import netweft_client  # noqa: PLC0415  # loads grpc

    spec = netweft_client.EndpointSpec(
        network=network,
        name=name,
        addresses=options.addresses(ip, ip6),
        mac_address=mac_address,
        dns_names=tuple(alias or ()),
        interface_name=interface,
        gateway_priority=gw_priority,
        ports=endpointflags.ports(publish),
        bandwidth=endpointflags.bandwidth(ingress_rate, ingress_burst, egress_rate, egress_burst),
        routes=endpointflags.routes(route),
        sysctls=endpointflags.sysctls(sysctl),
        link_local_addresses=tuple(link_local_ip or ()),
        options=options.mapping(opt, "--opt"),
        labels=options.mapping(label, "--label", bare=True),
    )
    with options.connect(target, timeout) as client:
        made = client.create_endpoint(spec, request_id=request_id)
    common.created(made, form, made.name)


@app.command("ls")
def ls(
    filters: options.Filters = None,
    quiet: options.Quiet = False,
    form: options.Output = output.Format.TABLE,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """List endpoints. Filters: network, sandbox, host, name, id, address, label."""
    with options.connect(target, timeout) as client:
        endpoints = list(client.list_endpoints(*(filters or ())))
        names = _Names(client) if form.is_table and endpoints else _Names(None)
    output.show(endpoints, _columns(names), form=form, name=lambda endpoint: endpoint.name, quiet=quiet)


@app.command("inspect")
def inspect(
    names: Annotated[list[str], typer.Argument(metavar="ENDPOINT...", help="Id, unique id prefix, or name.")],
    *,
    network: Network = "",
    form: options.Output = output.Format.JSON,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Show all of one or more endpoints."""
    with options.connect(target, timeout) as client:
        found = [client.get_endpoint(name, network=network) for name in names]
        known = _Names(client) if form.is_table else _Names(None)
    output.show(found, _columns(known), form=form, name=lambda endpoint: endpoint.name)


@app.command("update")
def update(
    endpoint: Endpoint,
    *,
    network: Network = "",
    publish: endpointflags.Publish = None,
    ingress_rate: endpointflags.IngressRate = "",
    ingress_burst: endpointflags.IngressBurst = "",
    egress_rate: endpointflags.EgressRate = "",
    egress_burst: endpointflags.EgressBurst = "",
    publish_add: Annotated[
        list[str] | None, typer.Option("--publish-add", metavar="AS --publish", help="Publish this one too.")
    ] = None,
    publish_rm: Annotated[
        list[str] | None, typer.Option("--publish-rm", metavar="PORT[/PROTOCOL]", help="Publish this one no more.")
    ] = None,
    route: endpointflags.Route = None,
    sysctl: endpointflags.Sysctl = None,
    alias: options.Alias = None,
    gw_priority: Annotated[
        int | None, typer.Option("--gw-priority", help="The highest one gives the default route.")
    ] = None,
    label: options.Labels = None,
    clear: Annotated[
        list[endpointflags.Clear] | None, typer.Option("--clear", help="Take all of these away; may be repeated.")
    ] = None,
    request_id: options.RequestId = "",
    form: options.Output = output.Format.TABLE,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Change an endpoint, also while it is joined; what a flag names is replaced as a whole, all else stays."""
    given: dict[str, Any] = {one.field: one.nothing for one in clear or ()}
    if publish is not None:
        given["ports"] = endpointflags.ports(publish)
    if route is not None:
        given["routes"] = endpointflags.routes(route)
    if sysctl is not None:
        given["sysctls"] = endpointflags.sysctls(sysctl)
    if alias is not None:
        given["dns_names"] = tuple(alias)
    if gw_priority is not None:
        given["gateway_priority"] = gw_priority
    if label is not None:
        given["labels"] = options.mapping(label, "--label", bare=True)
    limits = (ingress_rate, ingress_burst, egress_rate, egress_burst)
    with options.connect(target, timeout) as client:
        if publish_add or publish_rm or any(limits):
            known = client.get_endpoint(endpoint, network=network)
            if publish_add or publish_rm:
                given["ports"] = endpointflags.changed(given.get("ports", known.ports), publish_add, publish_rm)
            if any(limits):
                given["bandwidth"] = endpointflags.bandwidth(*limits, given.get("bandwidth", known.bandwidth))
        made = client.update_endpoint(endpoint, network=network, request_id=request_id, **given)
        names = _Names(client) if form.is_table else _Names(None)
    output.show([made], _columns(names), form=form, name=lambda one: one.name)


@app.command("rm")
def rm(
    names: Annotated[list[str], typer.Argument(metavar="ENDPOINT...", help="Id, unique id prefix, or name.")],
    *,
    network: Network = "",
    force: Annotated[bool, typer.Option("--force", help="Leave its sandbox first.")] = False,
    request_id: options.RequestId = "",
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Remove endpoints, give their addresses back, and print their names."""
    with options.connect(target, timeout) as client:
        common.each(
            names, lambda name: client.delete_endpoint(name, network=network, force=force, request_id=request_id)
        )


@app.command("join")
def join(
    endpoint: Endpoint,
    sandbox: Annotated[str, typer.Argument(help="Sandbox by id, unique id prefix, or container id.")],
    *,
    network: Network = "",
    request_id: options.RequestId = "",
    form: options.Output = output.Format.TABLE,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Join an endpoint to a sandbox and wait until the host's kernel has it."""
    with options.connect(target, timeout) as client:
        joined = client.join_endpoint(endpoint, sandbox, network=network, request_id=request_id)
    if form.is_data:
        output.write_data(joined, form)
    elif form is output.Format.NAME:
        output.write_lines([joined.endpoint.name])
    else:
        addresses = output.joined(joined.endpoint.addresses)
        output.write_lines([f"{joined.endpoint.name} joined {joined.sandbox.container_id} with {addresses}"])


@app.command("leave")
def leave(
    endpoint: Endpoint,
    *,
    network: Network = "",
    request_id: options.RequestId = "",
    form: options.Output = output.Format.TABLE,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Take an endpoint out of its sandbox; it keeps its addresses."""
    with options.connect(target, timeout) as client:
        left = client.leave_endpoint(endpoint, network=network, request_id=request_id)
    if form.is_data:
        output.write_data(left, form)
    else:
        output.write_lines([left.name])


class _Names:
    """Names of what endpoints refer to; without a client, ids."""

    def __init__(self, client: netweft_client.Client | None) -> None:
        self.networks = common.network_names(client) if client else {}
        self.hosts = common.host_names(client) if client else {}
        self.sandboxes = common.container_ids(client) if client else {}


def _columns(names: _Names) -> list[output.Column]:
    return [
        output.Column(title="ENDPOINT ID", value=lambda endpoint: output.short(endpoint.id)),
        output.Column(title="NAME", value=lambda endpoint: endpoint.name),
        output.Column(title="NETWORK", value=lambda endpoint: names.networks.get(endpoint.network_id, "-")),
        output.Column(title="SANDBOX", value=lambda endpoint: names.sandboxes.get(endpoint.sandbox_id, "-")),
        output.Column(title="HOST", value=lambda endpoint: names.hosts.get(endpoint.host_id, "-")),
        output.Column(title="ADDRESSES", value=lambda endpoint: output.joined(endpoint.addresses)),
        output.Column(title="MAC", value=lambda endpoint: endpoint.mac_address or "-"),
        output.Column(title="STATE", value=lambda endpoint: endpoint.state),
        output.Column(title="PORTS", value=lambda endpoint: output.joined(map(endpointflags.text_of, endpoint.ports))),
        output.Column(title="LIMITS", value=lambda endpoint: endpointflags.limit_of(endpoint.bandwidth), wide=True),
        output.Column(title="INTERFACE", value=lambda endpoint: endpoint.interface_name or "-", wide=True),
        output.Column(title="NAMES", value=lambda endpoint: output.joined(endpoint.dns_names), wide=True),
        output.Column(title="LABELS", value=lambda endpoint: output.pairs(endpoint.labels) or "-", wide=True),
        output.Column(title="PROBLEM", value=lambda endpoint: endpoint.status_message or "-", wide=True),
    ]
