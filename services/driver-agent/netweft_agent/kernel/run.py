"""The book-keeping of one batch of operations: results, and which owners have failed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from netweft_common import errors

from netweft_agent.domain.plan import Operation


def describe(step: Operation) -> str:
    """Return a short name of what a step is about, for messages: `link eth0 in sandbox/x`."""
    kind, ns, *rest = (*step.resource.key, "")
    name = " ".join(word for word in rest if word)
    return f"{kind} {name} in {ns or 'the host'}" if name else f"{kind} {ns}"


class Run:
    """One batch while it is carried out.

    A step of an owner that failed before is skipped with that owner's error. Steps that went into the same send as the
    one that failed were not skipped, and say truly how they ended, so that whoever undoes knows what was done.
    """

    def __init__(self, steps: Sequence[Operation]) -> None:
        self.steps = steps
        self.results: list[errors.NetweftError | None] = [None] * len(steps)
        self._failed: dict[str, errors.NetweftError] = {}

    def begin(self, indices: Iterable[int]) -> list[int]:
        """Return those whose owner has not failed; the others get the owner's error."""
        if not self._failed:
            return list(indices)
        ready = []
        for index in indices:
            error = self._failed.get(self.steps[index].owner)
            if error is None:
                ready.append(index)
            else:
                self.results[index] = error
        return ready

    def fail(self, index: int, error: errors.NetweftError) -> None:
        """Note that a step failed."""
        if self.results[index] is None:
            self.results[index] = error
        self._failed.setdefault(self.steps[index].owner, error)

    def refuse(self, index: int, errno: int, detail: str = "") -> None:
        """Note that the kernel refused a step."""
        step = self.steps[index]
        op = step.command() or step.resource.add_command()
        self.fail(index, errors.KernelError(op, describe(step), errno, detail))
