"""`netweft pool` and `netweft lease`: what addresses there are, and who holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from netweft_cli import options, output

if TYPE_CHECKING:
    import netweft_client

pools = typer.Typer(help="Pools of addresses.", no_args_is_help=True)
leases = typer.Typer(help="Leases of addresses.", no_args_is_help=True)

POOL_COLUMNS = [
    output.Column(title="POOL", value=lambda pool: pool.id),
    output.Column(title="SPACE", value=lambda pool: pool.address_space),
    output.Column(title="SUBNET", value=lambda pool: str(pool.subnet)),
    output.Column(title="RANGE", value=lambda pool: str(pool.ip_range or "-")),
    output.Column(title="LEASED", value=lambda pool: str(pool.use.leased)),
    output.Column(title="RESTING", value=lambda pool: str(pool.use.quarantined)),
    output.Column(title="CAPACITY", value=lambda pool: str(pool.use.capacity)),
    output.Column(title="LABELS", value=lambda pool: output.pairs(pool.labels) or "-", wide=True),
]
LEASE_COLUMNS = [
    output.Column(title="ADDRESS", value=lambda lease: str(lease.address)),
    output.Column(title="KIND", value=lambda lease: lease.owner.kind),
    output.Column(title="OWNER", value=lambda lease: lease.owner.key),
    output.Column(title="HOST", value=lambda lease: output.short(lease.owner.host_id) or "-"),
    output.Column(title="EPOCH", value=lambda lease: str(lease.epoch)),
    output.Column(title="SINCE", value=lambda lease: str(lease.create_time or "-")),
    output.Column(title="EXPIRES", value=lambda lease: str(lease.expire_time or "never"), wide=True),
    output.Column(title="POOL", value=lambda lease: lease.pool_id, wide=True),
]


@pools.command("ls")
def ls_pools(
    address_space: Annotated[str, typer.Option("--address-space", metavar="SPACE", help="Only of this space.")] = "",
    quiet: options.Quiet = False,
    form: options.Output = output.Format.TABLE,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """List pools by address space and subnet."""
    with options.connect(target, timeout) as client:
        found = list(client.list_pools(address_space=address_space))
    output.show(found, POOL_COLUMNS, form=form, name=lambda pool: pool.id, quiet=quiet)


@pools.command("inspect")
def inspect_pools(
    names: Annotated[list[str], typer.Argument(metavar="POOL...", help="Pool ids, as `pool ls` shows them.")],
    form: options.Output = output.Format.JSON,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Show all of one or more pools."""
    with options.connect(target, timeout) as client:
        found = [client.get_pool(name) for name in names]
    output.show(found, POOL_COLUMNS, form=form, name=lambda pool: pool.id)


@leases.command("ls")
def ls_leases(
    names: Annotated[list[str] | None, typer.Argument(metavar="[POOL]...", help="Pool ids; by default all.")] = None,
    *,
    network: Annotated[str, typer.Option("--network", metavar="NETWORK", help="Pools of this network.")] = "",
    owner: Annotated[str, typer.Option("--owner", metavar="KEY", help="Only of this owner.")] = "",
    host: Annotated[str, typer.Option("--host", metavar="HOST", help="Only of this host.")] = "",
    form: options.Output = output.Format.TABLE,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """List leases in the order of their addresses."""
    with options.connect(target, timeout) as client:
        host_id = client.get_host(host).id if host else ""
        found = [
            lease
            for pool in names or _pools(client, network)
            for lease in client.list_leases(pool, owner_key=owner, host_id=host_id)
        ]
    output.show(found, LEASE_COLUMNS, form=form, name=lambda lease: str(lease.address))


def _pools(client: netweft_client.Client, network: str) -> list[str]:
    if not network:
        return [pool.id for pool in client.list_pools()]
    return [subnet.pool_id for subnet in client.get_network(network).network.subnets if subnet.pool_id]
