"""`python -m tests.scale.worker`: a process of simulated hosts, told what to do over a socket, one JSON object a line.

{"do": "watch"}                                  note from now on when entries for peers are written
{"do": "written"}                                -> [[host, MAC address, monotonic seconds], ...] since then
{"do": "resync", "host": 7}                      -> seconds until a host that has lost all has as much as before
{"do": "size"}                                   -> {"objects": ..., "resources": ...} of all hosts together
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

# Without `poller.choose()`: its one thread takes the interpreter's lock for each event of all hosts, and where these
# keep that busy a new connection is not answered within the 20 s that its caller waits.
from netweft_common import logs, loops

from tests.scale.hosts import SimulatedHost, until

AT_ONCE = 20
"""Hosts that start side by side."""


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--prefix", default="h", help="of the hosts' names")
    parser.add_argument("--nice", type=int, default=0, help="how far these hosts give way to others")
    parser.add_argument("--ready-fd", type=int, required=True)
    chosen = parser.parse_args()
    logs.configure(level="error")
    os.nice(chosen.nice)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # As in the controller: many small objects that live long.
    gc.freeze()
    gc.set_threshold(50_000, 20, 1000)
    hosts = {
        number: SimulatedHost(number, chosen.folder, prefix=chosen.prefix)
        for number in range(chosen.first, chosen.first + chosen.count)
    }
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with contextlib.AsyncExitStack() as stack:
        waiting = list(hosts.values())
        for start in range(0, len(waiting), AT_ONCE):
            part = waiting[start : start + AT_ONCE]
            for host in part:
                stack.push_async_callback(host.stop)
            await asyncio.gather(*(host.start() for host in part))
        await stack.enter_async_context(
            await asyncio.start_unix_server(
                lambda reader, writer: _serve(hosts, reader, writer), chosen.folder / f"worker{chosen.first}.sock"
            )
        )
        os.write(chosen.ready_fd, b"ready\n")
        os.close(chosen.ready_fd)
        await ended.wait()


async def _serve(hosts: dict[int, SimulatedHost], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.closing(writer):
        while line := await reader.readline():
            writer.write(json.dumps(await _do(hosts, json.loads(line))).encode() + b"\n")
            await writer.drain()


async def _do(hosts: dict[int, SimulatedHost], order: dict[str, Any]) -> Any:
    match order["do"]:
        case "watch":
            for host in hosts.values():
                host.kernel.written_s = {}
            return None
        case "written":
            return [[host.number, *one] for host in hosts.values() for one in (host.kernel.written_s or {}).items()]
        case "resync":
            return await _resync(hosts[order["host"]])
        case "size":
            return {
                "objects": sum(len(host.engine.store.objects) for host in hosts.values()),
                "resources": sum(len(host.kernel.state) for host in hosts.values()),
            }
        case other:
            raise ValueError(other)


async def _resync(host: SimulatedHost) -> float:
    objects, resources = len(host.engine.store.objects), len(host.kernel.state)
    await host.stop()
    host.lose()
    started_s = time.monotonic()
    await host.start()
    await until(lambda: (objects, resources) == (len(host.engine.store.objects), len(host.kernel.state)))
    return time.monotonic() - started_s


if __name__ == "__main__":
    # Not the agents' own loop: a hundred of them share this one, which has no sockets of the kernel to listen to.
    with asyncio.Runner(loop_factory=loops.fastest()) as runner:
        runner.run(main())
