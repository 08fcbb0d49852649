"""`netweft demo`: the main job in a minute, shown as it happens."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from netweft_common import errors

from netweft_cli import failures, layout, privilege, scenario

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from netweft_cli import demo as work

WIDTH = 110


def demo(
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Leave all of it running, and say how to look at it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
    per_host: Annotated[
        int, typer.Option("--containers", metavar="N", min=1, max=50, help="Containers on each network and host.")
    ] = 2,
    timed: Annotated[bool, typer.Option("--timings/--no-timings", help="Whether to take timings.")] = True,
    run_dir: Annotated[Path | None, typer.Option("--run-dir", metavar="PATH", help="Folder for the stack.")] = None,
) -> None:
    """Two hosts in namespaces, containers on both: show who reaches whom, then leave nothing.

    Exit code 1 when a pair that must talk does not, one that must not does, or anything is left behind.
    """
    chosen = run_dir or _folder()
    try:
        privilege.ensure(chosen)
    except errors.PermissionDenied:
        if run_dir is None:
            chosen.rmdir()
        raise
    from rich.console import Console  # noqa: PLC0415  # what --help need not wait for

    from netweft_cli import demo as work  # noqa: PLC0415  # loads grpc

    console = Console(stderr=as_json, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    plan = scenario.standard(per_host)
    report = work.run(chosen, plan, lambda text: _step(console, text), keep=keep, timed=timed)
    if as_json:
        sys.stdout.write(json.dumps(_document(report), indent=2) + "\n")
    else:
        _show(console, plan, report, keep=keep)
    if keep:
        console.print(f"\nLeft running. To look at it and to stop it:\n  export NETWEFT_RUN_DIR={chosen}")
        console.print("  netweft endpoint ls\n  netweft down")
    if not report.ok:
        raise typer.Exit(failures.FAILURE)


def _folder() -> Path:
    """Return a fresh folder with a short path: a unix socket's has 107 bytes."""
    base = layout.default_run_dir().parent
    return Path(tempfile.mkdtemp(prefix="netweft-demo-", dir=base if os.access(base, os.W_OK) else None))


@contextlib.contextmanager
def _step(console: Console, text: str) -> Iterator[None]:
    before = time.monotonic()
    try:
        if console.is_terminal:
            with console.status(text):
                yield
        else:
            yield
    except BaseException:
        console.print(f"[red]✗[/] {text}")
        raise
    console.print(f"[green]✓[/] {text} [dim]{time.monotonic() - before:.1f} s[/]")


def _show(console: Console, plan: scenario.Scenario, report: work.Report, *, keep: bool) -> None:
    console.print("\n[bold]Who reaches whom[/]  (rows ask, columns answer; [red]![/] is not as it must be)")
    console.print(_reach_table(plan, report))
    for host in scenario.HOSTS:
        names = " ".join(container.name for container in plan.containers if container.host == host)
        console.print(f"[dim]on {host}: {names}[/]", soft_wrap=True)
    console.print(f"\n[bold]One more attach to {plan.networks[0].name} would be[/]")
    for line in report.plan:
        console.print(line, markup=False, style="dim" if line.startswith("#") else "", soft_wrap=True)
    if report.timings:
        console.print("\n[bold]Timings[/]  (through the controller, durable in the store, into namespaces that exist)")
        console.print(f"  attach, one at a time   {report.timings.attach_p50_ms:6.2f} ms (median)")
        console.print(f"  attach, in a batch      {report.timings.attach_batch_ms_each:6.2f} ms each")
        console.print(f"  detach, in a batch      {report.timings.detach_batch_ms_each:6.2f} ms each")
    wrong = [one for one in report.findings if one.is_wrong]
    console.print()
    for one in wrong:
        must = "must reach and does not" if one.expected else "must not reach and does"
        console.print(f"[red]✗ {one.source} {must}: {one.destination} {one.network} {one.address}[/]")
    if not wrong:
        yes = sum(one.expected for one in report.findings)
        no = len(report.findings) - yes
        console.print(f"[green]✓[/] {yes} pairs talk that must, {no} pairs do not that must not")
    for line in report.left:
        console.print(f"[red]✗ left behind: {line}[/]")
    if not keep and not report.left:
        console.print("[green]✓[/] nothing is left: no process, namespace, link, nftables table, mount or file")


def _reach_table(plan: scenario.Scenario, report: work.Report) -> Table:
    from rich.table import Table  # noqa: PLC0415  # what --help need not wait for

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("\nfrom", no_wrap=True)
    columns = [(container.name, network.name) for container, network in plan.destinations]
    columns += [(world, "") for world in scenario.World]
    networks = [""]
    for name, network in columns:
        # The network stands above its first column only.
        title = f"{network if network != networks[-1] else ''}\n{name}"
        networks.append(network)
        table.add_column(title, no_wrap=True)
    found = {(one.source, one.destination, one.network): one for one in report.findings}
    for container in plan.containers:
        cells = [_mark(found.get((container.name, name, network))) for name, network in columns]
        table.add_row(container.name, *cells)
    return table


def _mark(finding: work.Finding | None) -> str:
    if finding is None:
        return "[dim]·[/]"
    mark = "✓" if finding.reached else "✗"
    if finding.is_wrong:
        return f"[bold red]{mark}![/]"
    return f"[green]{mark}[/]" if finding.reached else f"[dim]{mark}[/]"


def _document(report: work.Report) -> dict[str, object]:
    return {
        "ok": report.ok,
        "pairs": [
            {
                "from": one.source,
                "to": one.destination,
                "network": one.network,
                "address": one.address,
                "expected": one.expected,
                "reached": one.reached,
                "rtt_ms": None if one.rtt_s is None else round(one.rtt_s * 1e3, 3),
            }
            for one in report.findings
        ],
        "plan": report.plan,
        "timings": None if report.timings is None else dataclasses.asdict(report.timings),
        "left": report.left,
    }
