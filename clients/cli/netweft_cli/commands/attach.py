"""`netweft attach`, `detach` and `plan`: create and join in one call, the reverse, and what the first would do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from netweft_common import errors

from netweft_cli import endpointflags, failures, options, output, plans

if TYPE_CHECKING:
    import netweft_client

Network = Annotated[str, typer.Argument(help="Network by id, name or unique id prefix.")]
Containers = Annotated[
    list[str], typer.Argument(metavar="CONTAINER...", help="Container ids; one that has no sandbox yet gets one.")
]
Name = Annotated[str, typer.Option("--name", help="Name of the endpoint; by default made from its id.")]

COLUMNS = [
    output.Column(title="CONTAINER", value=lambda one: one.sandbox.container_id),
    output.Column(title="ENDPOINT", value=lambda one: output.short(one.endpoint.id)),
    output.Column(title="ADDRESSES", value=lambda one: output.joined(one.endpoint.addresses)),
    output.Column(title="MAC", value=lambda one: one.endpoint.mac_address or "-"),
    output.Column(title="GATEWAYS", value=lambda one: output.joined(one.gateways)),
    output.Column(title="PORTS", value=lambda one: output.joined(map(endpointflags.text_of, one.endpoint.ports))),
    output.Column(title="NAMESPACE", value=lambda one: one.sandbox.netns_path or "-"),
]


def attach(
    network: Network,
    containers: Containers,
    *,
    name: Name = "",
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
    request_id: options.RequestId = "",
    form: options.Output = output.Format.TABLE,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Connect containers to a network: create an endpoint for each, join it, and wait for the kernel."""
    given = _of_items(locals())
    with options.connect(target, timeout) as client:
        items = _items(client, **given)
        results = client.attach_endpoints(items, request_id=request_id)
    attached = [one for one in results if not isinstance(one, errors.NetweftError)]
    output.show(attached, COLUMNS, form=form, name=lambda one: one.endpoint.name)
    _exit_with(results)


def plan(
    network: Network,
    containers: Containers,
    *,
    name: Name = "",
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
    undo: Annotated[bool, typer.Option("--undo", help="Show what would take it away again.")] = False,
    form: options.Output = output.Format.TABLE,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Say what `attach` with the same arguments would do on the hosts, as command lines; nothing is done."""
    given = _of_items(locals())
    with options.connect(target, timeout) as client:
        found = client.plan_attach(_items(client, **given))
        hosts = {one.id: one.name for one in client.list_hosts()} if not form.is_data else {}
    if form.is_data:
        output.write_data(found, form)
        return
    for one in found:
        output.write_lines([f"# {hosts.get(one.host_id, one.host_id)}", *plans.lines(one.steps, undo=undo)])


def detach(
    network: Network,
    containers: Annotated[
        list[str], typer.Argument(metavar="CONTAINER...", help="Container ids; or endpoints of the network.")
    ],
    *,
    delete_sandbox: Annotated[
        bool, typer.Option("--delete-sandbox", help="Remove the sandbox too when this was its last endpoint.")
    ] = False,
    request_id: options.RequestId = "",
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Disconnect containers from a network: leave, delete the endpoint, give its addresses back."""
    import netweft_client  # noqa: PLC0415  # loads grpc

    with options.connect(target, timeout) as client:
        items = [
            netweft_client.DetachItem(endpoint=endpoint, network=network, delete_sandbox=delete_sandbox)
            for container in containers
            for endpoint in _endpoints(client, network, container)
        ]
        results = client.detach_endpoints(items, request_id=request_id) if items else []
    _exit_with(results)
    output.write_lines(containers)


def _endpoints(client: netweft_client.Client, network: str, container: str) -> list[str]:
    """Return what connects a container to a network; a word that is no container names an endpoint itself."""
    try:
        sandbox = client.get_sandbox(container).sandbox
    except errors.NotFound:
        return [client.get_endpoint(container, network=network).id]
    found = [endpoint.id for endpoint in client.list_endpoints(f"network={network}", f"sandbox={sandbox.id}")]
    if not found:
        raise errors.NotFound(
            "NOT_ATTACHED", f"container {container} is not attached to network {network}", container=container
        )
    return found


def _of_items(given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that describe what is attached: `attach` and `plan` have these in common."""
    others = ("request_id", "form", "target", "timeout", "undo")
    return {key: value for key, value in given.items() if key not in others}


def _items(
    client: netweft_client.Client,
    *,
    network: str,
    containers: list[str],
    name: str,
    ip: str,
    ip6: str,
    mac_address: str,
    alias: list[str] | None,
    interface: str,
    gw_priority: int,
    publish: list[str] | None,
    ingress_rate: str,
    ingress_burst: str,
    egress_rate: str,
    egress_burst: str,
    route: list[str] | None,
    sysctl: list[str] | None,
    link_local_ip: list[str] | None,
    opt: list[str] | None,
    label: list[str] | None,
    **sandbox: Any,
) -> list[netweft_client.AttachItem]:
    import netweft_client  # noqa: PLC0415  # loads grpc

    single = [flag for flag, value in (("--ip", ip), ("--ip6", ip6), ("--mac-address", mac_address)) if value]
    single += [flag for flag in ("netns", "pid", "host_network") if sandbox[flag]]
    if len(containers) > 1 and single:
        flag = "--" + single[0].removeprefix("--").replace("_", "-")
        raise errors.InvalidArgument("FLAG_FOR_ONE", f"{flag} is for one container, not {len(containers)}", field=flag)
    endpoint = netweft_client.EndpointSpec(
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
    return [
        netweft_client.AttachItem(endpoint=endpoint, sandbox=_sandbox(client, container, sandbox))
        for container in containers
    ]


def _sandbox(client: netweft_client.Client, container: str, given: dict[str, Any]) -> netweft_client.model.SandboxRef:
    """Return a sandbox that exists where nothing says how to make one, else its description."""
    spec = options.sandbox_spec(container, **given)
    if any(given.values()):
        return spec
    try:
        return client.get_sandbox(container).sandbox.id
    except errors.NotFound:
        return spec


def _exit_with(results: Sequence[object]) -> None:
    code = failures.OK
    for one in results:
        if isinstance(one, errors.NetweftError):
            reported = failures.report(one)
            code = code or reported
    if code:
        raise typer.Exit(code)
