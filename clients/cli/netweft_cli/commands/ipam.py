"""`netweft pool` and `netweft lease`: what addresses there are, and who holds them."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import itertools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
from netweft_common import errors

from netweft_cli import options, output

if TYPE_CHECKING:
    import netweft_client

# As many as a page may have: by the service's default a full /16 would be 656 calls.
_PAGE_SIZE = 4096
_QUOTA_LABEL = "netweft.quota.leases"
# What agents call themselves; other users of IPAM have ids of their own.
_AGENT_ID = re.compile(r"[0-9a-f]{32}")

pools = typer.Typer(help="Pools of addresses.", no_args_is_help=True)
leases = typer.Typer(help="Leases of addresses.", no_args_is_help=True)

POOL_COLUMNS = [
    output.Column(title="POOL", value=lambda pool: pool.id),
    output.Column(title="SPACE", value=lambda pool: pool.address_space),
    output.Column(title="SUBNET", value=lambda pool: str(pool.subnet)),
    output.Column(title="RANGE", value=lambda pool: str(pool.ip_range or "-")),
    output.Column(title="LEASED", value=lambda pool: str(pool.use.leased)),
    output.Column(title="RESTING", value=lambda pool: str(pool.use.quarantined)),
    output.Column(title="FREE", value=lambda pool: str(_free(pool))),
    output.Column(title="CAPACITY", value=lambda pool: str(pool.use.capacity)),
    output.Column(title="RESERVED", value=lambda pool: str(pool.use.reserved), wide=True),
    output.Column(title="NEXT FREE", value=lambda pool: str(pool.use.next_free_time or "-"), wide=True),
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


Space = Annotated[
    str,
    typer.Option("--address-space", metavar="SPACE", help="Where to look; by default where somebody has the address."),
]


@pools.command("ls")
def ls_pools(
    *,
    address_space: Annotated[str, typer.Option("--address-space", metavar="SPACE", help="Only of this space.")] = "",
    network: Annotated[str, typer.Option("--network", metavar="NETWORK", help="Only of this network.")] = "",
    quiet: options.Quiet = False,
    form: options.Output = output.Format.TABLE,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """List pools by address space and subnet."""
    with options.connect(target, timeout) as client:
        if network:
            found = [client.get_pool(pool) for pool in _pools(client, network)]
            found = [pool for pool in found if address_space in ("", pool.address_space)]
        else:
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
    host: Annotated[
        str, typer.Option("--host", metavar="HOST", help="Only of this host, by id; by name if the controller answers.")
    ] = "",
    form: options.Output = output.Format.TABLE,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """List leases in the order of their addresses."""
    with options.connect(target, timeout) as client:
        listed = functools.partial(_listed, client, names or _pools(client, network), owner)
        found = _of_host(client, host, listed) if host else listed("")
    output.show(found, LEASE_COLUMNS, form=form, name=lambda lease: str(lease.address))


@leases.command("inspect")
def inspect_leases(
    addresses: Annotated[list[str], typer.Argument(metavar="ADDRESS...", help="Addresses without prefix length.")],
    *,
    space: Space = "",
    events: Annotated[int, typer.Option("--events", metavar="N", min=0, help="Of its history, at most so much.")] = 20,
    form: options.Output = output.Format.JSON,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Show who has an address since when, and what happened to it before, the newest first."""
    with options.connect(target, timeout) as client:
        found = [
            {
                "lease": lease,
                "events": list(
                    itertools.islice(client.list_lease_events(lease.pool_id, address=str(lease.address.ip)), events)
                ),
            }
            for lease in (_lease(client, address, space) for address in addresses)
        ]
    if form.is_data:
        output.write_data(found, form)
    else:
        output.show(
            [entry["lease"] for entry in found], LEASE_COLUMNS, form=form, name=lambda lease: str(lease.address)
        )


@leases.command("reserve")
def reserve(
    pool: Annotated[str, typer.Argument(metavar="POOL", help="Pool id, as `pool ls` shows it.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who keeps it; the same name gets the same address.")],
    *,
    address: Annotated[str, typer.Option("--ip", metavar="ADDRESS", help="By default the next free one.")] = "",
    request_id: options.RequestId = "",
    form: options.Output = output.Format.TABLE,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Keep an address by name, without an endpoint, until it is released."""
    with options.connect(target, timeout) as client:
        lease = client.reserve_address(pool, name, address=address, request_id=request_id)
    output.show([lease], LEASE_COLUMNS, form=form, name=lambda lease: str(lease.address))


@leases.command("release")
def release(
    addresses: Annotated[list[str], typer.Argument(metavar="ADDRESS...", help="Addresses without prefix length.")],
    *,
    space: Space = "",
    force: Annotated[
        bool,
        typer.Option("--force", help="Also what an endpoint or a network holds, though it may go on using it."),
    ] = False,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Give reserved addresses back."""
    with options.connect(target, timeout) as client:
        for address in addresses:
            lease = _lease(client, address, space)
            if lease.owner.kind != "reservation" and not force:
                raise errors.FailedPrecondition(
                    "NOT_A_RESERVATION",
                    f"address {address} is held by {lease.owner.kind} {lease.owner.key}, which may be using it; "
                    "detach the endpoint or delete the network, or use --force",
                    address=address,
                )
            client.release_address(lease)
            output.write_lines([str(lease.address)])


@leases.command("history")
def history(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="Address without prefix length.")],
    *,
    space: Space = "",
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="At most so much.")] = 100,
    form: options.Output = output.Format.TABLE,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Print what happened to an address, the newest first, whether or not somebody has it now."""
    with options.connect(target, timeout) as client:
        pool = _pool_of(client, address, space)
        found = itertools.islice(client.list_lease_events(pool, address=address, page_size=min(limit, 1000)), limit)
        output.write_stream(found, form, line=functools.partial(_line, wide=form is output.Format.WIDE))


@leases.command("watch")
def watch(
    pool: Annotated[str, typer.Argument(metavar="POOL", help="Pool id; what is shown is of the pool's whole subnet.")],
    *,
    since: Annotated[str, typer.Option("--since", metavar="EVENT", help="Begin behind this event id.")] = "",
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="End after this many; by default never.")
    ] = None,
    form: options.Output = output.Format.TABLE,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Print what happens to addresses as it happens, until interrupted; with -o json one line an event."""
    with options.connect(target, timeout) as client:
        found = itertools.islice(client.watch_leases(pool, after_id=since), limit)
        output.write_stream(found, form, line=functools.partial(_line, wide=form is output.Format.WIDE))


def _line(event: netweft_client.LeaseEvent, *, wide: bool) -> str:
    time = event.time.isoformat(timespec="milliseconds") if event.time else "-"
    parts = [time, event.type.value, str(event.address), event.owner_key]
    parts.append(event.host_id if wide else output.short(event.host_id) or "-")
    if wide:
        parts += [f"epoch={event.epoch}", f"id={event.id}"]
    return "  ".join(parts)


def _free(pool: netweft_client.Pool) -> int:
    """Return how many addresses can still be leased; a quota may allow fewer than there are."""
    free = pool.use.capacity - pool.use.leased - pool.use.quarantined
    quota = pool.labels.get(_QUOTA_LABEL, "")
    return max(0, min(free, int(quota) - pool.use.leased) if quota.isdecimal() else free)


def _lease(client: netweft_client.Client, address: str, space: str) -> netweft_client.Lease:
    """Return an address's lease, wherever it is if no space is named."""
    if space:
        return client.lookup_address(address, address_space=space)
    found = []
    for each in dict.fromkeys(pool.address_space for pool in client.list_pools()):
        with contextlib.suppress(errors.NotFound):
            found.append(client.lookup_address(address, address_space=each))
    if not found:
        raise errors.NotFound("LEASE_UNKNOWN", f"nobody has the address {address}", address=address)
    if len(found) > 1:
        raise _space_needed(address, "is leased", [lease.pool_id for lease in found])
    return found[0]


def _pool_of(client: netweft_client.Client, address: str, space: str) -> str:
    """Return the id of a pool whose subnet has an address; pools of one subnet share its history."""
    try:
        wanted = ipaddress.ip_address(address)
    except ValueError as error:
        raise errors.InvalidArgument(
            "ADDRESS_MALFORMED", f"{address!r} is no address; write it without a prefix length", field="ADDRESS"
        ) from error
    found = {pool.address_space: pool.id for pool in client.list_pools(address_space=space) if wanted in pool.subnet}
    if not found:
        where = f"of address space {space} " if space else ""
        raise errors.NotFound(
            "ADDRESS_UNKNOWN",
            f"no pool {where}has the address {address}; `netweft pool ls` shows them",
            address=address,
        )
    if len(found) > 1:
        raise _space_needed(address, "is", list(found.values()))
    return found.popitem()[1]


def _space_needed(address: str, what: str, pools: list[str]) -> errors.InvalidArgument:
    spaces = ", ".join(pool.partition("/")[0] for pool in pools)
    return errors.InvalidArgument(
        "SPACE_NEEDED",
        f"address {address} {what} in several address spaces ({spaces}); name one with --address-space",
        field="--address-space",
    )


def _listed(client: netweft_client.Client, pools: list[str], owner: str, host_id: str) -> list[netweft_client.Lease]:
    return [
        lease
        for pool in pools
        for lease in client.list_leases(pool, owner_key=owner, host_id=host_id, page_size=_PAGE_SIZE)
    ]


def _of_host(
    client: netweft_client.Client, host: str, listed: Callable[[str], list[netweft_client.Lease]]
) -> list[netweft_client.Lease]:
    """Return a host's leases; IPAM knows hosts by id alone, so the controller is asked for what is not one.

    Args:
        client: Whom to ask.
        host: Id, as leases have it or its beginning, or a name.
        listed: Returns the leases of the host with an id, or all for "".

    Raises:
        NotFound: Neither knows it.
        Unavailable: No lease has such an id, and the controller, which knows names, does not answer.
        InvalidArgument: Several ids begin so.
    """
    found = listed(host)
    if found or _AGENT_ID.fullmatch(host):
        return found
    try:
        return listed(client.get_host(host).id)
    except (errors.NotFound, errors.Unavailable) as error:
        found = [lease for lease in listed("") if lease.owner.host_id.startswith(host)]
        ids = sorted({lease.owner.host_id for lease in found})
        if len(ids) == 1:
            return found
        if ids:
            raise errors.InvalidArgument(
                "HOST_AMBIGUOUS",
                f"--host {host}: leases of {len(ids)} hosts have ids that begin so ({', '.join(ids)}); give more of it",
                field="--host",
            ) from error
        if isinstance(error, errors.NotFound):
            raise errors.NotFound(
                "HOST_UNKNOWN",
                f"--host {host}: no lease is of a host with this id, and the controller knows no host of this name or "
                "id; `netweft host ls` shows the hosts",
                host=host,
            ) from error
        raise errors.Unavailable(
            "HOST_NAME_UNRESOLVED",
            f"--host {host}: no lease is of a host with this id, and the controller, which knows names, does not "
            f"answer ({error.message}); give the host's id, as `netweft lease ls -o json` shows it, or --target",
            host=host,
        ) from error


def _pools(client: netweft_client.Client, network: str) -> list[str]:
    if not network:
        return [pool.id for pool in client.list_pools()]
    return [subnet.pool_id for subnet in client.get_network(network).network.subnets if subnet.pool_id]
