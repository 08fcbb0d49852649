"""Work `attach-at-1000`: what an attach costs when a network has a thousand endpoints on the host already.

The first hundred, those up to the thousandth, and the hundred after 1,100, more than a bridge takes ports: in one run
of one stack, the sandboxes made before; those between them come in batches. The kernel's own part grows with a bridge's
ports: what it was at the first hundred stands in the same line.
"""

from __future__ import annotations

import asyncio

from netweft_cli import stack
from netweft_client import AsyncClient, model

from tests.bench import attaching, figures
from tests.support.netns import Netns

WORKS = ("attach-at-1000",)
HUNDRED = 100
FULL = 1000
BEYOND = 1100


def run(works: set[str]) -> attaching.Table:
    """Time the work asked for."""
    del works
    containers = [Netns(f"w{number}") for number in range(3 * HUNDRED)]
    try:
        with attaching.running_stack() as running:
            hundreds = asyncio.run(_ours(running, containers))
    finally:
        for space in containers:
            space.close()
    before, there, beyond = (figures.of(one) for one in hundreds)
    return {
        "attach-at-1000": {
            "ours": there.as_json(),
            "ours, the first hundred": before.as_json(),
            "ours, times that": {"times": round(there.median_ms / before.median_ms, 2)},
            "ours, after 1,100": beyond.as_json(),
            "ours, after 1,100, times that": {"times": round(beyond.median_ms / before.median_ms, 2)},
        }
    }


async def _ours(running: stack.Stack, containers: list[Netns]) -> list[list[float]]:
    """Return what the first hundred attaches took, those up to the thousandth, and a hundred after 1,100."""
    items = [
        model.AttachItem(
            endpoint=model.EndpointSpec(network="crowd", name=f"w{number}"),
            sandbox=model.SandboxSpec(
                container_id=f"w{number}", namespace=model.NamespacePath(path=str(container.path))
            ),
        )
        for number, container in enumerate(containers)
    ]
    crowd = [
        model.AttachItem(
            endpoint=model.EndpointSpec(network="crowd", name=f"f{number}"),
            sandbox=model.SandboxSpec(container_id=f"f{number}"),
        )
        for number in range(BEYOND - 2 * HUNDRED)
    ]
    async with AsyncClient(target=running.layout.controller) as client:
        await client.create_network("crowd", driver="bridge", subnets=[model.SubnetSpec(subnet="10.99.0.0/16")])
        for item in items:
            assert isinstance(item.sandbox, model.SandboxSpec), "as made above"
            await client.create_sandbox(item.sandbox)
        first = [await attaching.attach_one(client, item.endpoint, item) for item in items[:HUNDRED]]
        for start in range(0, FULL - 2 * HUNDRED, HUNDRED):
            attaching.all_well(await client.attach_endpoints(crowd[start : start + HUNDRED]))
        last = [await attaching.attach_one(client, item.endpoint, item) for item in items[HUNDRED : 2 * HUNDRED]]
        attaching.all_well(await client.attach_endpoints(crowd[FULL - 2 * HUNDRED :]))
        beyond = [await attaching.attach_one(client, item.endpoint, item) for item in items[2 * HUNDRED :]]
    return [first, last, beyond]
