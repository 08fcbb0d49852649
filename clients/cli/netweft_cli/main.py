"""The `netweft` command: what it offers, and how it ends."""

from __future__ import annotations

import os
import sys

import typer
from netweft_common import errors
from typer import exceptions

from netweft_cli import failures
from netweft_cli.commands import (
    attach,
    ca,
    cni,
    demo,
    docker,
    endpoint,
    events,
    host,
    ipam,
    netavark,
    network,
    sandbox,
    stack,
    version,
)

app = typer.Typer(
    name="netweft",
    help="Networks for containers, on one host or on thousands.",
    epilog=failures.HELP,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    # Plain help, as docker's: half the time to the first line, and it reads in a pipe.
    rich_markup_mode=None,
)
app.add_typer(network.app, name="network")
app.add_typer(endpoint.app, name="endpoint")
app.add_typer(sandbox.app, name="sandbox")
app.add_typer(host.app, name="host")
app.add_typer(ca.app, name="ca")
app.add_typer(cni.app, name="cni")
app.add_typer(docker.app, name="docker")
app.add_typer(netavark.app, name="netavark")
app.add_typer(ipam.pools, name="pool")
app.add_typer(ipam.leases, name="lease")
app.command("attach")(attach.attach)
app.command("detach")(attach.detach)
app.command("plan")(attach.plan)
app.command("events")(events.events)
app.command("up")(stack.up)
app.command("down")(stack.down)
app.command("status")(stack.status)
app.command("demo")(demo.demo)
app.command("version")(version.version)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; nothing is raised, and no traceback shown."""
    try:
        result = app(args=argv, prog_name="netweft", standalone_mode=False)
    except errors.NetweftError as error:
        return failures.report(error)
    except exceptions.TyperException as error:
        context = getattr(error, "ctx", None)
        advice = f"; see `{context.command_path} --help`" if context is not None else ""
        sys.stderr.write(f"netweft: {error.format_message().rstrip('.')}{advice}\n")
        return error.exit_code
    except (KeyboardInterrupt, exceptions.Abort):
        return failures.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough; the interpreter must not try to flush the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return failures.OK
    except Exception as error:  # noqa: BLE001  # the outermost frame
        return failures.report_unexpected(error)
    return result if isinstance(result, int) else failures.OK


if __name__ == "__main__":
    sys.exit(main())
