"""Works `publish-300`, `publish-one-at-5000` and `conn-rate-at-5000`: published ports, through controller and agent.

A stack of two hosts in namespaces; the containers are on one of them, callers come from the wire between the hosts.
Counted beside the times: processes that the ports brought, which must be none.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from netweft_cli import stack
from netweft_client import Client, EndpointSpec, PublishedPort, SandboxSpec, SubnetSpec

from tests.bench import attaching, figures
from tests.support.netns import Netns

WORKS = ("publish-300", "publish-one-at-5000", "conn-rate-at-5000")
PORTS = 300
OTHERS = 5000
PART = 2500  # of one endpoint
FIRST_OTHER = 20_000
ROUNDS = 10
ONES = 40
CONNECTIONS = 2000
RATES = 3
H1 = "192.0.2.1"


def run(works: set[str]) -> attaching.Table:
    """Time the works asked for."""
    table: attaching.Table = {}
    with attaching.running_stack("h1", "h2") as running, Client(running.layout.controller) as client:
        client.create_network("bench", host="h1", subnets=[SubnetSpec(subnet="10.98.0.0/16")])
        web = _attach(client, "web")
        if "publish-300" in works:
            table["publish-300"] = _many(client, running)
        few = _ones(client)
        rate_few = _rates(client, running, web)
        if works & {"publish-one-at-5000", "conn-rate-at-5000"}:
            for part in range(OTHERS // PART):
                first = FIRST_OTHER + part * PART
                _attach(client, f"others{part}", *range(first, first + PART))
        if "publish-one-at-5000" in works:
            many = _ones(client)
            table["publish-one-at-5000"] = {
                "ours": figures.of(many).as_json(),
                "ours, with none": figures.of(few).as_json(),
                "ours, more": {"median_more_ms": round(figures.of(many).median_ms - figures.of(few).median_ms, 2)},
            }
        if "conn-rate-at-5000" in works:
            rate_many = _rates(client, running, web)
            best = max(rate_many), max(rate_few)
            table["conn-rate-at-5000"] = {
                "ours": {"per_second": round(best[0])},
                "ours, with one": {"per_second": round(best[1])},
                "ours, part of that": {"times": round(best[0] / best[1], 3)},
            }
    return table


def _attach(client: Client, name: str, *ports: int) -> Netns:
    spec = EndpointSpec(network="bench", name=name, ports=_published(*ports))
    made = client.attach_endpoint(spec, SandboxSpec(container_id=name, host="h1"), timeout_s=120)
    return Netns.at(made.sandbox.netns_path)


def _published(*ports: int) -> tuple[PublishedPort, ...]:
    return tuple(PublishedPort(container_port=one, host_port=one) for one in ports)


def _publish(client: Client, *ports: int) -> float:
    """Return how long it takes to have exactly these ports published, in milliseconds."""
    start = time.perf_counter()
    client.update_endpoint("web", network="bench", ports=_published(*ports), timeout_s=120)
    return (time.perf_counter() - start) * 1e3


def _many(client: Client, running: stack.Stack) -> dict[str, dict[str, float]]:
    before = _processes(running)
    took: dict[str, list[float]] = {"ours": [], "ours, removed": []}
    for _ in range(ROUNDS):
        took["ours"].append(_publish(client, *range(10_000, 10_000 + PORTS)))
        added = _processes(running) - before
        took["ours, removed"].append(_publish(client))
    return {
        **{who: figures.of(values).as_json() for who, values in took.items()},
        "ours, processes": {"added": float(added)},
    }


def _ones(client: Client) -> list[float]:
    found = []
    for _ in range(ONES):
        found.append(_publish(client, 8080))
        _publish(client)
    return found


def _rates(client: Client, running: stack.Stack, web: Netns) -> list[float]:
    """Return new connections a second to one published port, some times over."""
    _publish(client, 8080)
    with contextlib.closing(Netns.at(str(running.layout.underlay_netns))) as outside, _serving(web):
        rates = [outside.run(lambda: _connect(CONNECTIONS)) for _ in range(RATES)]
    _publish(client)
    return rates


def _connect(count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        with socket.create_connection((H1, 8080), timeout=5) as caller:
            # A reset leaves no TIME_WAIT behind, of which the port range would run out.
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    return count / (time.perf_counter() - start)


@contextlib.contextmanager
def _serving(web: Netns) -> Iterator[None]:
    listener = web.run(lambda: socket.create_server(("0.0.0.0", 8080), backlog=512))  # in a container
    thread = threading.Thread(target=_accept, args=(listener.accept,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        listener.close()


def _accept(accept: Callable[[], tuple[socket.socket, object]]) -> None:
    with contextlib.suppress(OSError):  # the listener was shut down
        while True:
            accept()[0].close()


def _processes(running: stack.Stack) -> int:
    """Return how many processes there are below the stack's own."""
    mine = {process.pid for name in running.layout.names if (process := running.processes.find(name)) is not None}
    found = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                found += parent in mine or int(entry.name) in mine
    return found - (os.getpid() in mine)
