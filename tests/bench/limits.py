"""Work `limits`: how near to its rate a limited endpoint comes over 2 s, and what that takes of the machine.

A bridge network in a host of its own, two endpoints, one TCP connection that is given all it takes. Bytes are those of
frames, as the token bucket counts them; the first half second, in which the burst is used up, is left out.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import statistics
import threading
import time
from collections.abc import Sequence
from ipaddress import ip_interface
from pathlib import Path

from netweft_agent.domain.objects import Bandwidth, Endpoint
from netweft_agent.domain.plan import Operation, plan
from netweft_agent.drivers.base import Attachment

from tests.support.agent import DRIVERS, FACTS, endpoint, limits, network, oid, sandbox, subnets
from tests.support.lab import Lab, new_lab
from tests.support.netns import Netns

WORKS = ("limits",)
RATES = {"10mbit": 10**7, "100mbit": 10**8, "1gbit": 10**9}
SECONDS = 2.0
WARM_S = 0.5
ATTACHES = 40
NETWORK = network(subnets=subnets("10.1.0.0/16"))

Table = dict[str, dict[str, dict[str, float]]]


def run(works: set[str]) -> Table:
    """Time the works asked for."""
    del works
    return {"limits": asyncio.run(_measure())}


async def _measure() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    async with new_lab() as lab:
        item, other = _endpoint(0), _endpoint(1)
        await lab.put(NETWORK, sandbox(100), sandbox(101), item, other)
        for text, rate in RATES.items():
            for way, wanted, link in (
                ("ingress", limits(ingress=rate), "nwv"),
                ("egress", limits(egress=rate), "nws"),
            ):
                await lab.put(dataclasses.replace(item, bandwidth=wanted))
                ends = (lab.box(other), "10.1.1.1", lab.box(item), "10.1.1.0")
                source, at, target, to = ends if way == "ingress" else (*ends[2:], *ends[:2])
                found[f"{way} {text}"] = _transfer(lab, f"{link}-{oid(1000)[:11]}", rate, (source, at), (target, to))
        for name, wanted in (("attach without", None), ("attach with both", limits(10**7, 10**7))):
            found[name] = await _attaches(lab, wanted)
    return found


def _endpoint(number: int, bandwidth: Bandwidth | None = None) -> Endpoint:
    address = ip_interface(f"10.1.{1 + number // 250}.{number % 250}/16")
    return endpoint(1000 + number, sandbox=100 + number, addresses=(address,), bandwidth=bandwidth)


def _transfer(lab: Lab, link: str, rate: int, source: tuple[Netns, str], target: tuple[Netns, str]) -> dict[str, float]:
    listener = target[0].run(lambda: socket.create_server((target[1], 5000)))
    caller = source[0].run(lambda: socket.create_connection((target[1], 5000), source_address=(source[1], 0)))
    with listener, caller:
        receiver, _ = listener.accept()
        ended = threading.Event()

        def send() -> None:
            block = bytes(1 << 16)
            caller.settimeout(0.1)
            while not ended.is_set():
                try:
                    caller.send(block)
                except TimeoutError:
                    continue

        def receive() -> None:
            buffer = bytearray(1 << 18)
            while receiver.recv_into(buffer):
                pass

        with receiver:
            threads = [threading.Thread(target=part) for part in (send, receive)]
            for thread in threads:
                thread.start()
            time.sleep(WARM_S)
            start, busy, before = time.perf_counter(), _busy(), _bytes(lab, link)
            time.sleep(SECONDS)
            carried, took, used = _bytes(lab, link) - before, time.perf_counter() - start, _busy() - busy
            ended.set()
            threads[0].join()
            caller.shutdown(socket.SHUT_WR)
            threads[1].join()
    return {
        "of the rate, %": round(100 * carried * 8 / took / rate, 2),
        "one processor, %": round(100 * used / took, 1),
    }


def _bytes(lab: Lab, link: str) -> int:
    (found,) = json.loads(lab.host.exec(["tc", "-s", "-j", "qdisc", "show", "dev", link, "root"]).stdout)
    return int(found["bytes"])


def _busy() -> float:
    """Return the seconds that all processors have worked (proc(5), /proc/stat)."""
    words = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(words) - words[3] - words[4]) / 100


async def _attaches(lab: Lab, wanted: Bandwidth | None) -> dict[str, float]:
    """Time the kernel's part: what is planned for one endpoint."""
    boxes = [sandbox(102 + number) for number in range(ATTACHES)]
    await lab.put(*boxes)
    items = [Attachment(endpoint=_endpoint(2 + number, wanted), sandbox=box) for number, box in enumerate(boxes)]
    made = [DRIVERS["bridge"].render(NETWORK, [item], [], FACTS).by_owner[item.owner] for item in items]
    attach = [await _timed(lab, plan(one, {}, {})) for one in made]
    detach = [await _timed(lab, plan({}, one, {})) for one in made]
    return {"attach, ms": round(statistics.median(attach), 3), "detach, ms": round(statistics.median(detach), 3)}


async def _timed(lab: Lab, steps: Sequence[Operation]) -> float:
    start = time.perf_counter()
    errors = [one for one in await lab.kernel.execute(steps) if one is not None]
    took = (time.perf_counter() - start) * 1e3
    assert not errors, errors
    return took
