"""`netweft host`: machines with an agent."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from netweft_common import errors

from netweft_cli import options, output
from netweft_cli.commands import common

app = typer.Typer(help="Hosts: machines with an agent.", no_args_is_help=True)

COLUMNS = [
    output.Column(title="HOST ID", value=lambda host: output.short(host.id)),
    output.Column(title="NAME", value=lambda host: host.name),
    output.Column(title="STATE", value=lambda host: f"{host.state}, cordoned" if host.cordoned else host.state),
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
    """List hosts. Filters: name, id, state=ready|lost|pending, label."""
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
    """Forget hosts that are gone for good, and print their names; their certificates are worth nothing from then on."""
    with options.connect(target, timeout) as client:
        common.each(names, lambda name: client.delete_host(name, force=force, request_id=request_id))


@app.command("cordon")
def cordon(
    names: Annotated[list[str], typer.Argument(metavar="HOST...", help="Id, name or unique id prefix.")],
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Let hosts take no new endpoints; what is on them stays."""
    with options.connect(target, timeout) as client:
        common.each(names, client.cordon_host)


@app.command("uncordon")
def uncordon(
    names: Annotated[list[str], typer.Argument(metavar="HOST...", help="Id, name or unique id prefix.")],
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Let hosts take new endpoints again."""
    with options.connect(target, timeout) as client:
        common.each(names, lambda name: client.cordon_host(name, cordoned=False))


@app.command("drain")
def drain(
    names: Annotated[list[str], typer.Argument(metavar="HOST...", help="Id, name or unique id prefix.")],
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Cordon hosts, detach all their endpoints and delete their sandboxes."""
    with options.connect(target, timeout) as client:
        common.each(names, client.drain_host)


@app.command("token")
def token(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Name of the host; without: the machine's own.")] = "",
    ttl: Annotated[int, typer.Option("--ttl", help="How long the token is good, in seconds.")] = 3600,
    request_id: options.RequestId = "",
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Print a token by which one machine may become a host, with `netweft host join`; a secret."""
    with options.connect(target, timeout) as client:
        made = client.create_join_token(name, ttl_s=ttl, request_id=request_id)
    output.write_lines([made.token])


@app.command("join")
def join(
    controller: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where a controller lets machines join.")],
    *,
    token_file: Annotated[
        str, typer.Option("--token-file", help="File that holds the token; -: standard input.")
    ] = "-",  # noqa: S107  # no secret
    name: Annotated[str, typer.Option("--name", help="Name of this host; without: the machine's own.")] = "",
    state_dir: options.StateDir = options.DEFAULT_STATE_DIR,
    controller_target: Annotated[
        str, typer.Option("--controller", help="Where the agent reaches controllers, host:port.")
    ] = "",
    ipam: Annotated[str, typer.Option("--ipam", help="Where the agent reaches IPAM, host:port.")] = "",
    listen: Annotated[str, typer.Option("--listen", help="Where controllers reach the agent, host:port.")] = "",
    vtep: Annotated[str, typer.Option("--vtep", help="Tunnel address of this host; without: no overlays.")] = "",
) -> None:
    """Make this machine a host of the cluster that a token names; then start its agent."""
    from netweft_common import pki  # noqa: PLC0415  # certificates cost 60 ms

    from netweft_cli import joining  # noqa: PLC0415  # as above

    text = sys.stdin.read() if token_file == "-" else _read(Path(token_file), "--token-file")  # noqa: S105  # no secret
    found = joining.join(pki.read_token(text), controller, name=name or _machine_name(), state_dir=state_dir)
    path = joining.configuration(
        state_dir, controller=controller_target, ipam=ipam, listen_at=listen, name=found, vtep=vtep
    )
    output.write_lines([f"joined as {found}; start its agent: netweft-agent --config {path}"])


@app.command("leave")
def leave(
    force: Annotated[bool, typer.Option("--force", help="Take its sandboxes and endpoints along.")] = False,
    state_dir: options.StateDir = options.DEFAULT_STATE_DIR,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Take this machine out of its cluster, with the agent's own certificate; stop the agent afterwards.

    Without --target it asks the controllers that the agent has.
    """
    from netweft_common import credentials  # noqa: PLC0415  # of this command alone

    from netweft_cli import joining  # noqa: PLC0415  # as above

    host_id = _read(state_dir / "host-id", "--state-dir").strip()
    files = credentials.files(state_dir / "tls")
    with options.connect(target or joining.controller(state_dir), timeout, tls_files=files) as client:
        client.delete_host(host_id, force=force)
    (state_dir / "host-id").unlink()
    output.write_lines([f"left; {state_dir} may be removed when the agent has stopped"])


def _read(path: Path, flag: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.InvalidArgument(
            "FILE_UNREADABLE", f"{flag}: {path} cannot be read: {error}; give another one", field=flag
        ) from error


def _machine_name() -> str:
    import socket  # noqa: PLC0415  # of this command alone

    return socket.gethostname()
