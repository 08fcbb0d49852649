"""Work `restart-1000`: an agent with a thousand endpoints, of 1,000 sandboxes, dies and starts again.

Killed and asked to end, three times each. Meanwhile one endpoint asks another every 10 ms. What counts: seconds from
the start of the process to its readiness, and how many of them it had a processor; echoes lost; and what the kernel
tells of changes, of which there must be none. That the agent owns its tables again is not counted: it changes nothing.
"""

from __future__ import annotations

import asyncio
import collections
import os
import statistics
import time
from pathlib import Path

from netweft_cli import processes, reach, stack
from netweft_client import AsyncClient, model

from tests.bench import attaching
from tests.support import changes

WORKS = ("restart-1000",)
ENDPOINTS = 1000
BATCH = 100
TIMES = 3
AGENT = "agent-host1"
_CLAIM = ("nftables 0", "nftables 15")  # NFT_MSG_NEWTABLE with a new owner, and the number of its transaction


def run(works: set[str]) -> attaching.Table:
    """Time the work asked for."""
    del works
    columns = {}
    with attaching.running_stack() as running:
        pair = asyncio.run(_fill(running))
        for who, kill in (("killed", True), ("asked to end", False)):
            columns[who] = _restarts(running, pair, kill=kill)
    return {"restart-1000": columns}


async def _fill(running: stack.Stack) -> reach.Pair:
    """Attach a thousand, and return who asks whom."""
    made: list[model.Attached] = []
    async with AsyncClient(target=running.layout.controller) as client:
        await client.create_network("bench", driver="bridge", subnets=[model.SubnetSpec(subnet="10.99.0.0/16")])
        for first in range(0, ENDPOINTS, BATCH):
            answers = await client.attach_endpoints(
                [
                    model.AttachItem(
                        endpoint=model.EndpointSpec(network="bench", name=f"e{number}"),
                        sandbox=model.SandboxSpec(container_id=f"c{number}"),
                    )
                    for number in range(first, first + BATCH)
                ]
            )
            attaching.all_well(answers)
            made += [one for one in answers if isinstance(one, model.Attached)]
    sandbox = made[0].sandbox
    assert sandbox is not None, "asked for"
    return reach.Pair(source=Path(sandbox.netns_path), destination=str(made[-1].endpoint.addresses[0].ip))


def _restarts(running: stack.Stack, pair: reach.Pair, *, kill: bool) -> dict[str, float]:
    took_s: list[float] = []
    cpu_s: list[float] = []
    lost, told = 0, collections.Counter[str]()
    (host,) = running.layout.hosts
    space = running.layout.netns(host)
    assert space is not None, "hosts of the bench have namespaces of their own"
    for _ in range(TIMES):
        with reach.Pinger(pair, interval_s=0.01) as pinger, changes.told_in(space) as heard:
            process = running.processes.find(AGENT)
            assert process is not None, f"{AGENT} does not run"
            processes.end(process.pid, grace_s=20.0, kill=kill)
            start = time.perf_counter()
            running.start(AGENT)
            took_s.append(time.perf_counter() - start)
            cpu_s.append(_cpu_s(running))
            time.sleep(2.0)  # what it has to do late, it does within this
            told.update({what: count for what, count in heard.take().items() if what not in _CLAIM})
        lost += pinger.loss.lost
    return {
        "ready s": round(statistics.median(took_s), 2),
        "at most": round(max(took_s), 2),
        "cpu s": round(statistics.median(cpu_s), 2),
        "lost": lost,
        "changes": told.total(),
        **told,
    }


def _cpu_s(running: stack.Stack) -> float:
    """Return how long the agent has had a processor so far, proc(5) stat fields 14 and 15."""
    process = running.processes.find(AGENT)
    assert process is not None, f"{AGENT} runs"
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
