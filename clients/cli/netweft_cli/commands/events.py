"""`netweft events`: what changes, as it changes."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Annotated

import typer

from netweft_cli import options, output

if TYPE_CHECKING:
    import netweft_client


def events(
    *,
    since: Annotated[
        int, typer.Option("--since", metavar="REVISION", min=0, help="Begin after this revision; 0: from now on.")
    ] = 0,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="End after this many; by default never.")
    ] = None,
    filters: options.Filters = None,
    form: options.Output = output.Format.TABLE,
    target: options.Target = "",
    timeout: options.Timeout = options.DEFAULT_TIMEOUT_S,
) -> None:
    """Print changes as they come, until interrupted. Filters: type=network|endpoint|sandbox|host, network, host.

    With -o json each event is one line. A controller that restarts is met again; nothing is missed meanwhile.
    """
    with options.connect(target, timeout) as client:
        found = itertools.islice(client.watch(*(filters or ()), after_revision=since), limit)
        output.write_stream(found, form, line=functools.partial(_line, wide=form is output.Format.WIDE))


def _line(event: netweft_client.Event, *, wide: bool) -> str:
    kind = type(event.object).__name__.lower()
    name = getattr(event.object, "name", "") or getattr(event.object, "container_id", "")
    parts = [event.time.isoformat(timespec="milliseconds") if event.time else "-", f"{kind} {event.action}", name]
    parts.append(event.object.id if wide else output.short(event.object.id))
    parts.append(f"state={event.object.state}")
    if wide:
        parts.append(f"revision={event.revision}")
    return "  ".join(parts)
