"""`netweft up`, `down` and `status`: a stack on this machine."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Annotated

import typer
from netweft_common import errors

from netweft_cli import failures, layout, options, output, privilege, stack


def up(
    run_dir: options.RunDir = None,
    hosts: Annotated[
        int,
        typer.Option("--hosts", metavar="N", min=1, max=layout.HOST_LIMIT, help="Hosts to play."),
    ] = 1,
    host_network: Annotated[
        bool, typer.Option("--host-network", help="One agent on this machine's own network; needs root.")
    ] = False,
    store_url: Annotated[
        str, typer.Option("--store-url", metavar="URL", help="A running Redis or Valkey; by default one is started.")
    ] = "",
) -> None:
    """Start store, IPAM, controller and agent, and leave them running; again, it starts what has died.

    The agent plays a host in a network namespace made for it: this machine's own network is not touched. Who is not
    root gets a user namespace, where the kernel lets him.
    """
    chosen = run_dir or layout.default_run_dir()
    privilege.ensure(chosen, host_network=host_network)
    names = tuple(f"host{number}" for number in range(1, hosts + 1))
    planned = layout.plan(chosen, names=names, host_network=host_network, store_url=store_url)
    running = stack.Stack(planned)
    started = running.up(progress)
    running.wait_for_hosts()
    progress(f"{'up' if started else 'already up'}: {planned.controller}")
    if chosen != layout.default_run_dir():
        # For eval: the other commands do not know --run-dir.
        sys.stdout.write(f"export NETWEFT_RUN_DIR={chosen}\n")


def down(run_dir: options.RunDir = None) -> None:
    """Stop the stack, remove all that it made, and look whether anything is left. Nothing running is well too."""
    chosen = run_dir or layout.default_run_dir()
    try:
        running = stack.Stack.load(chosen)
    except errors.NotFound:
        progress(f"nothing runs in {chosen}")
        return
    left = running.down(progress)
    if left:
        raise errors.FailedPrecondition(
            "LEFT_BEHIND", "still there: " + "; ".join(left.lines) + "; run `netweft down` again as who started it"
        )


def status(run_dir: options.RunDir = None, form: options.Output = output.Format.TABLE) -> None:
    """Show what runs, and how it is; exit code 7 unless all of it serves."""
    found = stack.Stack.load(run_dir or layout.default_run_dir()).status()
    rows = [dataclasses.asdict(one) for one in found]
    if form is output.Format.JSON:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    elif form is output.Format.YAML:
        import yaml  # noqa: PLC0415  # 50 ms that only YAML should cost

        sys.stdout.write(yaml.safe_dump(rows, sort_keys=False))
    elif form is output.Format.NAME:
        output.write_lines(one.name for one in found)
    else:
        output.write_table(
            ["PROCESS", "STATE", "PID", "HEALTH", "TARGET"],
            [[one.name, one.state, str(one.pid or "-"), one.health or "-", one.target] for one in found],
        )
    if any(one.health != "serving" for one in found):
        raise typer.Exit(failures.UNAVAILABLE)


def progress(line: str) -> None:
    """Say a step to whoever waits; on stderr, for stdout is for answers."""
    sys.stderr.write(f"» {line}\n")
    sys.stderr.flush()
