"""`netweft network`: create, ls, inspect, rm, with Docker's flags."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from netweft_common import errors

from netweft_cli import ipamflags, options, output
from netweft_cli.commands import common

if TYPE_CHECKING:
    from netweft_client import model

app = typer.Typer(help="Networks.", no_args_is_help=True)


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Name, unique in the cluster.")],
    *,
    driver: Annotated[str, typer.Option("--driver", "-d", help="bridge, overlay, host, null, ...")] = "bridge",
    subnet: Annotated[list[str] | None, typer.Option("--subnet", metavar="CIDR", help="Subnet; one or more.")] = None,
    gateway: Annotated[
        list[str] | None, typer.Option("--gateway", metavar="ADDRESS", help="Gateway of its subnet.")
    ] = None,
    ip_range: Annotated[
        list[str] | None, typer.Option("--ip-range", metavar="CIDR", help="Part that addresses are taken from.")
    ] = None,
    aux_address: Annotated[
        list[str] | None, typer.Option("--aux-address", metavar="NAME=ADDRESS", help="Address that is kept out.")
    ] = None,
    internal: Annotated[bool, typer.Option("--internal", help="No way out of the network.")] = False,
    ipv4: Annotated[bool, typer.Option("--ipv4/--no-ipv4", help="Whether endpoints get IPv4 addresses.")] = True,
    ipv6: Annotated[bool, typer.Option("--ipv6/--no-ipv6", help="Whether endpoints get IPv6 addresses.")] = False,
    attachable: Annotated[bool, typer.Option("--attachable", help="Any orchestrator may attach by name.")] = False,
    ipam_driver: Annotated[str, typer.Option("--ipam-driver", help="default or null.")] = "",
    address_space: Annotated[str, typer.Option("--address-space", help="Address space of its pools.")] = "",
    host: Annotated[str, typer.Option("--host", metavar="HOST", help="Bind a local network to this host.")] = "",
    opt: options.DriverOptions = None,
    label: options.Labels = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and show what would be made.")] = False,
    request_id: options.RequestId = "",
    form: options.Output = output.Format.TABLE,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Create a network and print its id."""
    subnets = ipamflags.subnets(
        subnet or [], gateway or [], ip_range or [], options.mapping(aux_address, "--aux-address")
    )
    chosen = options.mapping(opt, "--opt")
    labels = options.mapping(label, "--label", bare=True)
    with options.connect(target, timeout) as client:
        made = client.create_network(
            name,
            driver=driver,
            host=host,
            subnets=subnets,
            options=chosen,
            labels=labels,
            internal=internal,
            enable_ipv4=ipv4,
            enable_ipv6=ipv6,
            ipam_driver=ipam_driver,
            address_space=address_space,
            attachable=attachable,
            validate_only=dry_run,
            request_id=request_id,
        )
    common.created(made, form, made.name)


@app.command("ls")
def ls(
    filters: options.Filters = None,
    quiet: options.Quiet = False,
    form: options.Output = output.Format.TABLE,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """List networks. Filters: name, id, driver, scope=local|global, internal=true|false, label."""
    with options.connect(target, timeout) as client:
        networks = list(client.list_networks(*(filters or ())))
        hosts = common.host_names(client) if form.is_table and networks else {}
    output.show(networks, _columns(hosts), form=form, name=lambda network: network.name, quiet=quiet)


def _warn(text: str) -> None:
    typer.echo(f"netweft: {text}", err=True)


@app.command("inspect")
def inspect(
    names: Annotated[list[str], typer.Argument(metavar="NETWORK...", help="Id, name or unique id prefix.")],
    form: options.Output = output.Format.JSON,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Show all of one or more networks, with their number of endpoints and the hosts that have some."""
    with options.connect(target, timeout) as client:
        found = [client.get_network(name) for name in names]
        narrow = [(one.network.name, path) for one in found for path in one.narrow_paths]
        hosts = common.host_names(client) if form.is_table or narrow else {}
    for network, path in narrow:
        _warn(
            f"warning: network {network}: packets of {path.needed_bytes} bytes do not get from host "
            f"{hosts.get(path.host_id, path.host_id)} to {hosts.get(path.peer_host_id, path.peer_host_id)}, only those "
            f"of {path.mtu_bytes}; raise the MTU of the way between them, or make the network with a lower --opt mtu="
        )
    if form.is_data:
        output.write_data([common.flat(one.network, one) for one in found], form)
    else:
        output.show([one.network for one in found], _columns(hosts), form=form, name=lambda network: network.name)


@app.command("rm")
def rm(
    names: Annotated[list[str], typer.Argument(metavar="NETWORK...", help="Id, name or unique id prefix.")],
    request_id: options.RequestId = "",
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Remove networks that have no endpoints, and print their names."""
    with options.connect(target, timeout) as client:
        common.each(names, lambda name: client.delete_network(name, request_id=request_id))


@app.command("wait")
def wait(
    names: Annotated[list[str], typer.Argument(metavar="NETWORK...", help="Id, name or unique id prefix.")],
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Wait until the kernels of all hosts of a network have what was changed of it."""

    def one(name: str) -> None:
        behind = client.wait_network(name, wait_s=timeout, timeout_s=timeout + 1)
        if behind:
            known = common.host_names(client)
            raise errors.Unavailable(
                "HOSTS_BEHIND",
                f"network {name}: {', '.join(known.get(host, host) for host in behind)} did not follow within"
                f" {timeout:g} s; see `netweft host ls`",
            )

    with options.connect(target, timeout) as client:
        common.each(names, one)


def _columns(hosts: dict[str, str]) -> list[output.Column]:
    def subnets(network: model.Network) -> str:
        return output.joined(subnet.subnet for subnet in network.subnets)

    return [
        output.Column(title="NETWORK ID", value=lambda network: output.short(network.id)),
        output.Column(title="NAME", value=lambda network: network.name),
        output.Column(title="DRIVER", value=lambda network: network.driver),
        output.Column(title="SCOPE", value=lambda network: network.scope),
        output.Column(title="SUBNETS", value=subnets),
        output.Column(title="INTERNAL", value=lambda network: str(network.internal).lower()),
        output.Column(title="HOST", value=lambda network: hosts.get(network.host_id, network.host_id) or "-"),
        output.Column(
            title="GATEWAYS",
            value=lambda network: output.joined(subnet.gateway for subnet in network.subnets),
            wide=True,
        ),
        output.Column(title="STATE", value=lambda network: network.state, wide=True),
        output.Column(title="CLAIMS", value=lambda network: output.pairs(network.claims) or "-", wide=True),
        output.Column(title="OPTIONS", value=lambda network: output.pairs(network.options) or "-", wide=True),
        output.Column(title="LABELS", value=lambda network: output.pairs(network.labels) or "-", wide=True),
    ]
