"""Works `cni-add` and `cni-del`: what a runtime waits for, ours against bridge + host-local + portmap + firewall.

Each container has one published port. Ours is one program, the others are a chain: a runtime runs one after the other,
and bridge runs host-local. All as files that are executed, each container in its turn, with a stack of ours whose store
syncs every write to disk.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from netweft_client import Client, model
from netweft_cni import plugin

from tests.bench import figures
from tests.bench.attaching import Table, running_stack
from tests.support.netns import Netns

WORKS = ("cni-add", "cni-del")
OTHERS = Path("/usr/lib/cni")
CHAIN = ("bridge", "host-local", "portmap", "firewall")
CONTAINERS = 60
WARM = 10

Step = tuple[str, Path, Mapping[str, Any]]
"""Name, program and configuration of a plugin."""


class Container(NamedTuple):
    """A container: which one, its namespace, and where the runtime keeps the result of its ADD."""

    number: int
    box: Netns
    cached: Path


def run(works: set[str]) -> Table:
    """Time the works asked for, with the chain in the same run, both in turn."""
    table: Table = {name: {} for name in WORKS if name in works}
    with tempfile.TemporaryDirectory() as text, running_stack() as running:
        folder = Path(text)
        ours_at = folder / "netweft"
        shutil.copy(plugin.__file__, ours_at)
        others = Netns()
        boxes = [Netns(f"c{number}") for number in range(2 * (CONTAINERS + WARM))]
        try:
            with Client(running.layout.controller) as client:
                client.create_network("front", subnets=[model.SubnetSpec(subnet="10.99.0.0/16")])
            agent = running.layout.host_dir(running.layout.hosts[0])
            environ = {
                "NETWEFT_CNI_SOCKET": str(agent / "run" / "cni.sock"),
                "NETWEFT_CNI_STATE_DIR": str(agent / "state"),
            }
            rivals: list[tuple[str, Sequence[Step], Mapping[str, str], Callable[[Callable[[], float]], float]]] = [
                ("ours", [("netweft", ours_at, {"network": "front"})], environ, lambda timed: timed()),
            ]
            if all((OTHERS / one).exists() for one in CHAIN):
                others.exec(["ip", "link", "set", "lo", "up"])
                rivals.append((" + ".join(CHAIN), _chain(folder), {}, others.run))
            took: dict[tuple[str, str], list[float]] = {}
            for verb in ("ADD", "DEL"):
                for number in range(CONTAINERS + WARM):
                    for place, (who, steps, extra, inside) in enumerate(rivals):
                        container = Container(number, boxes[2 * number + place], folder / f"{place}-{number}.json")
                        spent = inside(_call(verb, steps, extra, container))
                        if number >= WARM:
                            took.setdefault((f"cni-{verb.lower()}", who), []).append(spent)
            for (work, who), times in took.items():
                if work in table:
                    table[work][who] = figures.of(times).as_json()
        finally:
            for space in (*boxes, others):
                space.close()
    return table


def _chain(folder: Path) -> list[Step]:
    bridge = {
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(folder / "host-local"),
            "ranges": [[{"subnet": "10.88.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return [
        ("bridge", OTHERS / "bridge", bridge),
        ("portmap", OTHERS / "portmap", {"snat": True}),
        ("firewall", OTHERS / "firewall", {"backend": "iptables"}),
    ]


def _call(verb: str, steps: Sequence[Step], extra: Mapping[str, str], container: Container) -> Callable[[], float]:
    """Return what runs the plugins of one container as a runtime does, and says how many milliseconds it took."""
    environ = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": f"c{container.number}",
        "CNI_NETNS": str(container.box.path),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(OTHERS),
        "PATH": os.environ["PATH"],
        **extra,
    }
    port = {"hostPort": 20000 + container.number, "containerPort": 80, "protocol": "tcp"}
    common = {"cniVersion": "1.0.0", "name": "bench", "runtimeConfig": {"portMappings": [port]}}

    def timed() -> float:
        previous = json.loads(container.cached.read_text()) if verb == "DEL" else None
        said = b""
        start = time.perf_counter()
        for name, program, own in steps if verb == "ADD" else steps[::-1]:
            config = {**common, **own, "type": name}
            if previous is not None:
                config["prevResult"] = previous
            done = subprocess.run(
                [program], input=json.dumps(config).encode(), env=environ, capture_output=True, check=False
            )
            if done.returncode:
                raise SystemExit(f"{name} {verb}: {done.stdout.decode()} {done.stderr.decode()}")
            if verb == "ADD":
                said = done.stdout
                previous = json.loads(said)
        spent = (time.perf_counter() - start) * 1e3
        if verb == "ADD":
            container.cached.write_bytes(said)
        return spent

    return timed
