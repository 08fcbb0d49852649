"""`make bench [ONLY=a,b]`: run the works, print a table, write build/bench.json.

{"<work>": {"ours": {"median_ms": ..., "p99_ms": ..., "per_second": ...}, "<peer>": {...}, "floor": {...}}}
Peers that are not installed are left out. Compare figures of one run only: machines differ, and the same one does.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table as Printed

from tests.bench import attaching, cni, crowd, docker, drifting, ipam, limits, publishing, remote, restarting, scale

GROUPS: dict[tuple[str, ...], Callable[[set[str]], attaching.Table]] = {
    ("attach", "attach-batch", "detach-batch"): attaching.run,
    crowd.WORKS: crowd.run,
    ipam.WORKS: ipam.run,
    limits.WORKS: limits.run,
    cni.WORKS: cni.run,
    docker.WORKS: docker.run,
    publishing.WORKS: publishing.run,
    restarting.WORKS: restarting.run,
    drifting.WORKS: drifting.run,
    remote.WORKS: remote.run,
    scale.WORKS: scale.run,
}
WORKS = [work for group in GROUPS for work in group]
LONG = {*scale.WORKS}
"""Take minutes, so they run only where they are named."""
OUT = Path("build/bench.json")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--only",
        default=",".join(work for work in WORKS if work not in LONG),
        help="works to run, by comma: " + ", ".join(WORKS),
    )
    chosen = set(parser.parse_args().only.split(","))
    if unknown := chosen - set(WORKS):
        parser.error(f"no work named {', '.join(sorted(unknown))}; there are {', '.join(WORKS)}")
    found: attaching.Table = {}
    for names, run in GROUPS.items():
        if chosen & set(names):
            found |= run(chosen & set(names))
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(found, indent=2) + "\n")
    table = Printed("work", "who", "median ms", "p99 ms", "per second")
    for work, columns in found.items():
        for who, values in columns.items():
            if "median_ms" in values:
                table.add_row(
                    work, who, f"{values['median_ms']:.2f}", f"{values['p99_ms']:.2f}", f"{values['per_second']:.0f}"
                )
            else:
                table.add_row(work, who, *(f"{name} {value:g}" for name, value in values.items()))
    Console().print(table)


if __name__ == "__main__":
    main()
