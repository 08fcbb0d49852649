"""The points of attach, publish and detach at which tests have a process die: this is the one list of them.

A service says `faults.reach(Point.X)` right after the step that the point is named for. That is a call of a function
that does nothing, unless the process was started with NETWEFT_FAULTS=/path/to/a/file, which only tests do. Then each
point looks into that file; where its one line says `<point> kill` or `<point> stop` the file is removed and the process
ends by SIGKILL, or halts by SIGSTOP until somebody sends SIGCONT. So a fault happens once, a restart does not meet it
again, and a file that is still there is a point that was not reached.
"""

from __future__ import annotations

import enum
import functools
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

from netweft_common import logs

VARIABLE = "NETWEFT_FAULTS"


class Point(enum.StrEnum):
    """What has just been done, in the order in which a change comes by."""

    # The controller's.
    ATTACH_LEASED = "attach.leased"
    """Addresses are leased, no record speaks of them."""
    ATTACH_RECORDED = "attach.recorded"
    """The endpoint is JOINING, its host has not been asked."""
    ATTACH_JOINED = "attach.joined"
    """The host has it, nobody was told."""
    ATTACH_CONFIRMED = "attach.confirmed"
    """The endpoint is JOINED in the record; also of a change."""
    PUBLISH_RECORDED = "publish.recorded"
    """A change of an endpoint is recorded, its host has not been asked."""
    PUBLISH_JOINED = "publish.joined"
    """The host has the change, nobody was told."""
    DETACH_MARKED = "detach.marked"
    """The endpoint is LEAVING, its host has not been asked."""
    DETACH_LEFT = "detach.left"
    """No host has it any more, its addresses are leased."""
    DETACH_RELEASED = "detach.released"
    """Its addresses are given back, it is still recorded."""
    DETACH_ENDED = "detach.ended"
    """The record is gone, nobody was told."""

    # The agent's: a round of its engine, and within it the groups of steps that the kernel is asked for together.
    CHANGE_STAGED = "change.staged"
    """A change is in memory, the kernel has not been asked."""
    KERNEL_PIN = "kernel.pin"
    """The file that a namespace will be pinned at is there, the namespace is not."""
    KERNEL_NAMESPACES = "kernel.namespaces"
    """Namespaces are made and pinned."""
    KERNEL_SETTINGS = "kernel.settings"
    """sysctls are set."""
    KERNEL_FILES = "kernel.files"
    """hosts and resolv.conf are written or removed."""
    KERNEL_PORTS = "kernel.ports"
    """Ports of the host are held or let go of."""
    KERNEL_FIREWALL = "kernel.firewall"
    """A transaction of nftables is done in each namespace concerned."""
    KERNEL_BRIDGES = "kernel.bridges"
    """Bridges and VXLAN devices are up."""
    KERNEL_VETHS = "kernel.veths"
    """Links are made, and carry no mark that says whose they are; also bridges and VXLAN devices."""
    KERNEL_LINKS = "kernel.links"
    """The host's ends of veths are marked and up."""
    KERNEL_INSIDE = "kernel.inside"
    """What lies on links is there, or gone: addresses, routes, limits, neighbours, forwarding entries."""
    KERNEL_DOOMED = "kernel.doomed"
    """Links are down, in the group of those that wait to be deleted."""
    KERNEL_REAPED = "kernel.reaped"
    """Links that waited are deleted."""
    KERNEL_UNPINNED = "kernel.unpinned"
    """Namespaces are let go of."""
    CHANGE_EXECUTED = "change.executed"
    """The kernel has followed, the journal does not say so."""
    CHANGE_KEPT = "change.kept"
    """The journal has it, nobody was told."""
    JOURNAL_REWRITTEN = "journal.rewritten"
    """A new journal lies beside the old one, which is still in its place."""


def _nothing(_point: Point) -> None:
    """Go on."""


reach: Callable[[Point], None] = _nothing
"""Say that a point is reached; may not return."""


def arm(environ: Mapping[str, str] = os.environ) -> None:
    """Have points looked up in the file that the environment names; without one, nothing changes. Once, at the start.

    Args:
        environ: Environment.
    """
    global reach  # noqa: PLW0603  # so that a process without faults does not even ask
    path = environ.get(VARIABLE)
    if path:
        reach = functools.partial(_reach, Path(path))
        logs.get().warning("faults can be injected", file=path, hint=f"for tests only: unset {VARIABLE}")


_ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def _reach(path: Path, point: Point) -> None:
    try:
        wanted, action = path.read_text().split()
    except FileNotFoundError:
        return
    if wanted == point:
        path.unlink()
        os.kill(os.getpid(), _ACTIONS[action])
