"""What peers take for the same work: CNI's bridge + host-local plugins, and netavark, as their callers run them."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.netns import Netns

CNI = Path("/usr/lib/cni")
NETAVARK = Path("/usr/lib/podman/netavark")

Timings = dict[str, list[float]]


def cni(count: int) -> Timings:
    """Time ADD and DEL of bridge + host-local for `count` containers; empty where the plugins are not installed."""
    if not (CNI / "bridge").exists() or not (CNI / "host-local").exists():
        return {}
    with tempfile.TemporaryDirectory() as data:
        config = json.dumps(
            {
                "cniVersion": "1.0.0",
                "name": "bench",
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "ipMasq": False,
                "ipam": {
                    "type": "host-local",
                    "dataDir": data,
                    "ranges": [[{"subnet": "10.88.0.0/16"}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }
        )

        def verb(name: str) -> Callable[[int, str], tuple[list[str], str, dict[str, str]]]:
            def command(number: int, netns: str) -> tuple[list[str], str, dict[str, str]]:
                environment = {
                    "CNI_COMMAND": name,
                    "CNI_CONTAINERID": f"c{number}",
                    "CNI_NETNS": netns,
                    "CNI_IFNAME": "eth0",
                    "CNI_PATH": str(CNI),
                    "PATH": os.environ["PATH"],
                }
                return [str(CNI / "bridge")], config, environment

            return command

        return _both(count, verb("ADD"), verb("DEL"))


def netavark(count: int) -> Timings:
    """Time setup and teardown of a bridge, address given; empty where netavark is not installed."""
    if not NETAVARK.exists():
        return {}
    with tempfile.TemporaryDirectory() as data:

        def verb(name: str) -> Callable[[int, str], tuple[list[str], str, dict[str, str]]]:
            def command(number: int, netns: str) -> tuple[list[str], str, dict[str, str]]:
                address = f"10.89.{(number + 2) // 256}.{(number + 2) % 256}"
                options = {
                    "container_id": f"{number:064x}",
                    "container_name": f"c{number}",
                    "networks": {"n": {"static_ips": [address], "interface_name": "eth0"}},
                    "network_info": {
                        "n": {
                            "name": "n",
                            "id": f"{7:064x}",
                            "driver": "bridge",
                            "network_interface": "nav0",
                            "subnets": [{"subnet": "10.89.0.0/16", "gateway": "10.89.0.1"}],
                            "ipv6_enabled": False,
                            "internal": False,
                            "dns_enabled": False,
                            "ipam_options": {"driver": "host-local"},
                        }
                    },
                }
                return [str(NETAVARK), "--config", data, name, netns], json.dumps(options), dict(os.environ)

            return command

        return _both(count, verb("setup"), verb("teardown"))


Command = Callable[[int, str], tuple[list[str], str, dict[str, str]]]


def _both(count: int, attach: Command, detach: Command) -> Timings:
    host = Netns()
    containers: list[Netns] = []
    try:
        containers = [Netns() for _ in range(count)]
        return {
            kind: host.run(lambda verb=verb: [_timed(verb(n, str(c.path))) for n, c in enumerate(containers)])
            for kind, verb in (("attach", attach), ("detach", detach))
        }
    finally:
        for space in (*containers, host):
            space.close()


def _timed(call: tuple[list[str], str, dict[str, str]]) -> float:
    """Run a plugin as a runtime does, from a thread that is in the host's namespace; milliseconds."""
    command, text, environment = call
    start = time.perf_counter()
    subprocess.run(command, input=text, env=environment, text=True, check=True, capture_output=True)
    return (time.perf_counter() - start) * 1e3
