"""Stacks of real processes for end-to-end tests, and what is true of a whole cluster when nothing is half-made."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import netweft_client
import pytest
from netweft_cli import layout, netns, processes, reach, rtnl, stack
from netweft_common import errors

from tests.support import logs

T = TypeVar("T")

SETTLE_S = 30.0
"""Longest wait for a cluster to come to rest; a machine that does other things too is slow."""

QUICK: Mapping[str, str] = {
    "NETWEFT_CONTROLLER_RECONCILE_INTERVAL": "200ms",
    "NETWEFT_CONTROLLER_SETTLE_AFTER": "1s",
    # Longer than the outages here, so that a caller who asks again is not taken for one who has given up.
    "NETWEFT_CONTROLLER_ORPHAN_GRACE": "8s",
    "NETWEFT_CONTROLLER_REPORT_INTERVAL": "1s",
    "NETWEFT_CONTROLLER_HOST_GRACE": "10s",
    "NETWEFT_AGENT_LEASE_INTERVAL": "200ms",
    "NETWEFT_IPAM_REPORT_LEAST": "200ms",
}
"""Settings with which the reconciler takes seconds for what it gives minutes otherwise."""


NONE_AHEAD: Mapping[str, str] = {"NETWEFT_CONTROLLER_LEASE_AHEAD": "0"}
"""Setting with which every lease is somebody's at once, for tests that count leases."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A running stack.

    Args:
        stack: Its processes.
        environ: Settings of the services, for each start.
    """

    stack: stack.Stack
    environ: Mapping[str, str]

    @property
    def layout(self) -> layout.Layout:
        return self.stack.layout

    def client(self, *, timeout_s: float = 30.0, retry_for_s: float | None = None) -> netweft_client.Client:
        """Return a client; without retries where `retry_for_s` is 0."""
        plan = self.layout
        return netweft_client.Client(
            plan.controller, ipam_target=plan.ipam, timeout_s=timeout_s, retry_for_s=retry_for_s
        )

    def host(self, name: str) -> Path:
        """Return the namespace that plays a host."""
        found = self.layout.netns(next(host for host in self.layout.hosts if host.name == name))
        assert found is not None
        return found

    def agent_dir(self, name: str) -> Path:
        """Return the run directory of a host's agent."""
        return self.layout.host_dir(next(host for host in self.layout.hosts if host.name == name)) / "run"

    def kill(self, name: str) -> None:
        """Kill a process with SIGKILL; it is gone when this returns."""
        process = self.stack.processes.find(name)
        assert process is not None, f"{name} does not run"
        processes.end(process.pid, grace_s=0, kill=True)

    def pid(self, name: str) -> int:
        """Return the process id of one that runs."""
        process = self.stack.processes.find(name)
        assert process is not None, f"{name} does not run"
        return process.pid

    def terminate(self, name: str) -> None:
        """End a process with SIGTERM, and see to it that it ends by itself."""
        assert self.stack.processes.stop(name, grace_s=20), f"{name} had to be killed"

    def start(self, name: str) -> None:
        """Start a process that was ended; it serves when this returns."""
        with self._settings():
            self.stack.start(name)

    @contextlib.contextmanager
    def dead(self, name: str) -> Iterator[None]:
        """Have a process dead, by SIGKILL, while the block runs."""
        self.kill(name)
        try:
            yield
        finally:
            self.start(name)

    def up(self) -> None:
        """Start all, and wait until the hosts are there."""
        with self._settings():
            self.stack.up()
        self.stack.wait_for_hosts()

    def log(self, name: str) -> str:
        """Return what a process has said since the stack was made."""
        return self.stack.processes.log_path(name).read_text(errors="replace")

    @contextlib.contextmanager
    def _settings(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environ.items():
                patch.setenv(name, value)
            yield


@contextlib.contextmanager
def running(
    *names: str, environ: Mapping[str, str] | None = None, kind: type[stack.Stack] = stack.Stack
) -> Iterator[Cluster]:
    """Run a stack with these hosts, remove it whatever happens, and see to it that nothing of it is left."""
    # A unix socket's path is short: pytest's own directories may be too long.
    folder = Path(tempfile.mkdtemp(prefix="nw-"))
    cluster = Cluster(kind(layout.plan(folder / "run", names=names)), environ or {})
    try:
        with logs.kept(cluster.layout.run_dir):
            cluster.up()
            yield cluster
    finally:
        left = cluster.stack.down()
        shutil.rmtree(folder, ignore_errors=True)
    assert () == left.lines


def wait_until(look: Callable[[], T], done: Callable[[T], bool], *, timeout_s: float = SETTLE_S) -> T:
    """Look until it is as wanted, or the time is over, and return what was seen last."""
    ends_at = time.monotonic() + timeout_s
    while not done(seen := look()) and time.monotonic() < ends_at:
        time.sleep(0.05)
    return seen


def unanswered(pinger: reach.Pinger) -> list[str]:
    """Return when echoes were sent that had no answer, in seconds since the first, and how many there were."""
    first = min(pinger._sent.values(), default=0.0)
    lost = [f"{at - first:.2f} s" for key, at in pinger._sent.items() if key not in pinger._answered]
    return [*lost, f"{len(pinger._sent)} sent"] if lost else []


# The truth about a cluster


def problems(cluster: Cluster, *, leases: bool = True) -> list[str]:
    """Return everything that is half-made, left over or lost; what serves nobody is a problem too.

    Args:
        cluster: Where to look.
        leases: False: do not look for leases and pools that serve nobody. What a caller has asked for and never asked
            for again is kept for him until the controllers' orphan grace is over.
    """
    with cluster.client() as client:
        found = _Cluster(client)
        return [
            *found.unsettled(),
            *(found.wrong_pools() if leases else ()),
            *(found.wrong_leases() if leases else ()),
            *(line for host in found.hosts for line in _wrong_on_host(cluster, client, found, host)),
        ]


def settled(cluster: Cluster, *, timeout_s: float = SETTLE_S) -> list[str]:
    """Return the problems that a cluster still has when it has had time to get rid of them."""
    return wait_until(lambda: problems(cluster), lambda lines: not lines, timeout_s=timeout_s)


class _Cluster:
    """All records and leases as they are now."""

    def __init__(self, client: netweft_client.Client) -> None:
        self.networks = {one.id: one for one in client.list_networks(page_size=1000)}
        self.endpoints = {one.id: one for one in client.list_endpoints(page_size=1000)}
        self.sandboxes = {one.id: one for one in client.list_sandboxes(page_size=1000)}
        self.hosts = list(client.list_hosts())
        self.pools = [pool.id for pool in client.list_pools()]
        self.leases = [lease for pool in self.pools for lease in _leases(client, pool)]

    def unsettled(self) -> Iterator[str]:
        for network in self.networks.values():
            if network.state is not netweft_client.NetworkState.READY:
                yield f"network {network.name} is {network.state}"
        for endpoint in self.endpoints.values():
            if endpoint.state is not netweft_client.EndpointState.JOINED or endpoint.status_message:
                yield f"endpoint {endpoint.name} is {endpoint.state} {endpoint.status_message}"
            if endpoint.sandbox_id not in self.sandboxes:
                yield f"endpoint {endpoint.name} is in sandbox {endpoint.sandbox_id or '-'}, which does not exist"
        for sandbox in self.sandboxes.values():
            if sandbox.state is not netweft_client.SandboxState.READY or sandbox.status_message:
                yield f"sandbox {sandbox.container_id} is {sandbox.state} {sandbox.status_message}"

    def wrong_pools(self) -> Iterator[str]:
        wanted = {subnet.pool_id for network in self.networks.values() for subnet in network.subnets}
        yield from _difference("pool", wanted, set(self.pools))

    def wrong_leases(self) -> Iterator[str]:
        wanted = [(str(address), endpoint.id) for endpoint in self.endpoints.values() for address in endpoint.addresses]
        for network in self.networks.values():
            wanted += [
                (f"{subnet.gateway}/{subnet.subnet.prefixlen}", f"gateway/{network.id}")
                for subnet in network.subnets
                if subnet.gateway is not None and subnet.subnet is not None
            ]
        held = [(str(lease.address), lease.owner.key) for lease in self.leases]
        if len(held) != len(set(held)):
            yield f"leases are listed twice: {sorted(held)}"
        yield from _difference("lease", set(wanted), set(held))


def _leases(client: netweft_client.Client, pool: str) -> list[netweft_client.Lease]:
    try:
        return list(client.list_leases(pool, page_size=1000))
    except errors.NotFound:
        # It went between two looks: as a pool it is told of all the same, and the next look is another one.
        return []


def _wrong_on_host(
    cluster: Cluster, client: netweft_client.Client, found: _Cluster, host: netweft_client.Host
) -> Iterator[str]:
    # Not by its target: that may be where only other hosts can call.
    seen = client.observe(next(cluster.layout.agent(one) for one in cluster.layout.hosts if one.name == host.name))
    yield from (f"drift on {host.name}: {step.command}" for step in seen.drift)
    yield from (f"{host.name} has {one.object.kind} {one.object.id}: {one.error}" for one in seen.statuses if one.error)
    here = [endpoint for endpoint in found.endpoints.values() if endpoint.host_id == host.id]
    wanted = {f"nwv-{endpoint.id[:11]}" for endpoint in here}
    yield from _difference(
        f"link on {host.name}", wanted, {name for name in links(cluster, host.name) if "nwv-" in name}
    )
    made = netweft_client.NewNamespace
    sandboxes = [one for one in found.sandboxes.values() if one.host_id == host.id]
    owned = {f"sandbox-{one.id}" for one in sandboxes if isinstance(one.namespace, made)}
    overlays = {f"network-{one.network_id}" for one in here if found.networks[one.network_id].driver == "overlay"}
    yield from _difference(f"namespace on {host.name}", owned | overlays, namespaces(cluster, host.name))
    for sandbox in sandboxes:
        if isinstance(sandbox.namespace, netweft_client.HandoverNamespace):
            continue  # its runtime knows
        inside = {one.interface_name for one in here if one.sandbox_id == sandbox.id} | {"lo"}
        try:
            there = {link.name for link in netns.call(Path(sandbox.netns_path), rtnl.links)}
        except errors.NotFound as error:
            yield f"sandbox {sandbox.container_id}: {error.message}"
        else:
            yield from _difference(f"link in sandbox {sandbox.container_id}", inside, there)


def _difference(what: str, wanted: set[T], there: set[T]) -> Iterator[str]:
    yield from (f"{what} {one} is missing" for one in sorted(map(str, wanted - there)))
    yield from (f"{what} {one} is too many" for one in sorted(map(str, there - wanted)))


def links(cluster: Cluster, host: str) -> set[str]:
    """Return the names of all links in a host's namespace and in those of its networks."""
    spaces = [
        cluster.host(host),
        *(path for path in netns_paths(cluster, host) if path.name.startswith("network-")),
    ]
    return {link.name for space in spaces for link in netns.call(space, rtnl.links)}


def namespaces(cluster: Cluster, host: str) -> set[str]:
    """Return the names of the namespaces that an agent has made, `sandbox-<id>` and `network-<id>`."""
    return {path.name for path in netns_paths(cluster, host)}


def netns_paths(cluster: Cluster, host: str) -> Sequence[Path]:
    """Return the files of the namespaces that an agent has made."""
    folder = cluster.agent_dir(host) / "netns"
    return sorted(folder.iterdir()) if folder.exists() else []


def kernel(cluster: Cluster, *, handles: bool = True) -> dict[str, dict[str, object]]:
    """Return what is configured in each namespace: links with their indexes, addresses, routes, entries, rules.

    Args:
        cluster: Whose hosts to look at; needs ip, bridge and nft.
        handles: With the numbers by which the kernel knows rules: those of one that was made anew differ.
    """
    spaces = {host.name: cluster.host(host.name) for host in cluster.layout.hosts}
    for host in cluster.layout.hosts:
        spaces |= {f"{host.name} {path.name}": path for path in netns_paths(cluster, host.name)}
    return {name: _kernel(path, handles=handles) for name, path in spaces.items()}


def _kernel(path: Path, *, handles: bool) -> dict[str, object]:
    # Learned entries come and go by themselves.
    return {
        "links": [_without_timers(link) for link in json.loads(_run(path, "ip", "-d", "-j", "link"))],
        "addresses": _run(path, "ip", "-o", "-4", "address"),
        "routes": _run(path, "ip", "-4", "route", "show", "table", "all"),
        "neighbours": sorted(_run(path, "ip", "neigh", "show", "nud", "permanent").splitlines()),
        "fdb": sorted(line for line in _run(path, "bridge", "fdb").splitlines() if re.search("permanent|static", line)),
        "nft": _run(path, "nft", "-s", *(["-a"] if handles else []), "list", "ruleset"),
    }


def _run(path: Path, *command: str) -> str:
    return netns.call(
        path, lambda: subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    )


def _without_timers(value):
    if isinstance(value, dict):
        return {key: _without_timers(item) for key, item in value.items() if "timer" not in key}
    return [_without_timers(item) for item in value] if isinstance(value, list) else value
