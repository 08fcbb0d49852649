"""Plans as text: the commands that would be run, with a comment wherever the namespace changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import netweft_client


def lines(steps: Sequence[netweft_client.PlanStep], *, undo: bool = False) -> list[str]:
    """Return steps as lines.

    Args:
        steps: In their order.
        undo: Return what would take them back, last step first.
    """
    result = []
    before: str | None = None
    for step in reversed(steps) if undo else steps:
        command = step.inverse if undo else step.command
        if not command:
            continue
        if step.namespace != before:
            result.append(f"# in {step.namespace or 'the host'}")
            before = step.namespace
        result += [f"  {line}" for line in command.splitlines()]
    return result
