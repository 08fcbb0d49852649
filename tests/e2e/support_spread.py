"""A cluster whose every service is a machine of its own, so that any of them can be cut off from any other.

Three hosts, two controllers, IPAM and a store, each in a namespace with an address on one underlay; they call each
other by TCP with certificates. Tests and their clients call by unix sockets, which no cut can reach. A cut is a table
of nftables in the namespace of the service: what it sends to the other one, and hears from there, is dropped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import ipaddress
import json
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import netweft_client
from netweft_cli import layout, netns, processes, stack

from tests.e2e import support, support_tls
from tests.support import logs

T = TypeVar("T")

HOSTS = ("h1", "h2", "h3")
CONTROLLERS = ("controller", "controller2")
SERVICES = ("store", "ipam", *CONTROLLERS)
ADDRESSES = {
    **{name: str(layout.UNDERLAY[number]) for number, name in enumerate(HOSTS, 1)},
    **{name: str(layout.UNDERLAY[number]) for number, name in enumerate(SERVICES, 201)},
}
PORTS = {"store": 6379, "ipam": 7710, **dict.fromkeys(CONTROLLERS, 7700)}
AGENT_PORT = 7720


class _Stack(stack.Stack):
    """The stack's processes, spread over namespaces."""

    def __init__(self, planned: layout.Layout, authority: support_tls.Authority) -> None:
        super().__init__(planned)
        self._authority = authority

    def space(self, name: str) -> Path:
        return self.layout.run_dir / "netns" / name

    def _make_underlay(self, progress: stack.Progress) -> None:
        super()._make_underlay(progress)
        for name in SERVICES:
            if not self.space(name).exists():
                netns.create(self.space(name))
                stack._plug(self.layout.underlay_netns, self.space(name), f"to-{name}")
                address = ipaddress.IPv4Interface(f"{ADDRESSES[name]}/{layout.UNDERLAY.prefixlen}")
                netns.call(self.space(name), functools.partial(stack._make_host, address))

    def _groups(self) -> list[list[processes.Spec]]:
        return [[self._store()], [self._ipam()], [self._controller(name) for name in CONTROLLERS], self._agents()]

    def _store(self) -> processes.Spec:
        spec = super()._store()
        at = spec.command.index("--port")
        command = (*spec.command[:at], *spec.command[at + 2 :], "--port", str(PORTS["store"]))
        bound = ("--bind", ADDRESSES["store"], "--protected-mode", "no")
        return dataclasses.replace(spec, command=(*command, *bound), netns=self.space("store"))

    def _ipam(self) -> processes.Spec:
        command = (*stack.service("ipam"), *self._served("ipam", self.layout.ipam), *self._stored)
        return processes.Spec(name="ipam", command=command, netns=self.space("ipam"))

    def _controller(self, name: str) -> processes.Spec:
        command = (
            *stack.service("controller"), *self._served(name, f"unix:{self.layout.run_dir}/{name}.sock"),
            *self._stored, "--ipam-target", target("ipam"),
        )  # fmt: skip
        return processes.Spec(name=name, command=command, netns=self.space(name))

    def _agents(self) -> list[processes.Spec]:
        specs = []
        for host in self.layout.hosts:
            spec = self._agent(host)
            words = list(spec.command)
            for word, value in (("--controller", ",".join(map(target, CONTROLLERS))), ("--ipam", target("ipam"))):
                words[words.index(word) + 1] = value
            served = self._served(host.name, f"{host.address}:{AGENT_PORT}", role="agent")
            words += [*served, "--advertise", f"{host.address}:{AGENT_PORT}"]
            specs.append(dataclasses.replace(spec, command=tuple(words)))
        return specs

    @property
    def _stored(self) -> tuple[str, ...]:
        return ("--store-url", f"redis://{target('store')}/0")

    def _served(self, name: str, *more: str, role: str = "") -> tuple[str, ...]:
        listen = more if role else (*more, target(name))
        files = self._files(name, f"netweft://{role or name.rstrip('2')}/{name}")
        return (
            *(f"--listen={one}" for one in listen),
            f"--tls-ca={files[0]}", f"--tls-cert={files[1]}", f"--tls-key={files[2]}",
        )  # fmt: skip

    def _files(self, name: str, uri: str) -> tuple[Path, Path, Path]:
        folder = self._authority.folder
        if not (folder / f"{name}.key").exists():
            self._authority.issue(name, uri, addresses=[ADDRESSES[name]])
        return self._authority.ca, folder / f"{name}.pem", folder / f"{name}.key"


def target(name: str) -> str:
    """Return where a service is called by others."""
    return f"{ADDRESSES[name]}:{PORTS[name]}"


@dataclasses.dataclass(frozen=True)
class Spread(support.Cluster):
    """A running cluster of this kind."""

    def client(self, *, timeout_s: float = 30.0, retry_for_s: float | None = None) -> netweft_client.Client:
        """Return a client of both controllers."""
        folder = self.layout.run_dir
        targets = ",".join(f"unix:{folder}/{name}.sock" for name in CONTROLLERS)
        return netweft_client.Client(
            targets, ipam_target=self.layout.ipam, timeout_s=timeout_s, retry_for_s=retry_for_s
        )

    def space(self, name: str) -> Path:
        """Return the namespace of a service, or of a host."""
        return self.layout.run_dir / "netns" / name

    @contextlib.contextmanager
    def cut(self, one: str, other: str) -> Iterator[None]:
        """Drop all between a service and another service or host; a cut that is there already is that one."""
        where, away = (one, other) if one in SERVICES else (other, one)
        assert where in SERVICES, "between hosts is where containers talk"
        table = f"inet cut-{away}"
        address = ADDRESSES[away]
        self._nft(
            where,
            f"table {table} {{"
            f" chain heard {{ type filter hook input priority -500; ip saddr {address} drop; }};"
            f" chain said {{ type filter hook output priority -500; ip daddr {address} drop; }}; }}",
        )
        try:
            yield
        finally:
            self._nft(where, f"delete table {table}")

    @contextlib.contextmanager
    def still(self, name: str) -> Iterator[None]:
        """Stop a process, and have it go on where it was."""
        process = self.stack.processes.find(name)
        assert process is not None, f"{name} does not run"
        os.kill(process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(process.pid, signal.SIGCONT)

    def _nft(self, name: str, text: str) -> None:
        netns.call(
            self.space(name),
            lambda: subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True, capture_output=True),
        )


@contextlib.contextmanager
def running(environ: Mapping[str, str]) -> Iterator[Spread]:
    """Run such a cluster, remove it whatever happens, and see to it that nothing of it is left."""
    folder = Path(tempfile.mkdtemp(prefix="nw-"))
    planned = layout.plan(folder / "run", names=HOSTS)
    cluster = Spread(_Stack(planned, support_tls.Authority(folder / "tls")), environ)
    try:
        with logs.kept(planned.run_dir):
            cluster.up()
            yield cluster
            cluster.terminate("controller2")  # of which the stack's own `down` does not know
    finally:
        left = cluster.stack.down()
        shutil.rmtree(folder, ignore_errors=True)
    assert () == left.lines


# Faults


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong.

    Args:
        kind: cut: nothing passes between two; dead: killed, and started again when all is over; restarted: killed, and
            started at once; still: stopped, and going on when all is over.
        names: Who: two for a cut, else one.
    """

    kind: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind} {' | '.join(self.names)}"


def parse(text: str) -> list[Fault]:
    """Return faults from their texts, joined by commas."""
    parts = (one.partition(" ") for one in text.split(", "))
    return [Fault(kind=kind, names=tuple(names.split(" | "))) for kind, _, names in parts]


CUTS = [(service, other) for service in SERVICES[1:] for other in HOSTS] + [
    ("store", "ipam"), *(("store", name) for name in CONTROLLERS), *(("ipam", name) for name in CONTROLLERS),
]  # fmt: skip
AGENTS = tuple(f"agent-{name}" for name in HOSTS)
PROCESSES = (*SERVICES, *AGENTS)


def chosen(rng: random.Random, count: int) -> list[Fault]:
    """Return faults for one moment; of one process there is one at most."""
    faults: list[Fault] = []
    free = list(PROCESSES)
    cuts = list(CUTS)
    for _ in range(count):
        kind = rng.choice(("cut", "cut", "cut", "dead", "restarted", "still"))
        names = _taken(rng, cuts) if kind == "cut" else (_taken(rng, free),)
        faults.append(Fault(kind=kind, names=names))
    return faults


def _taken(rng: random.Random, left: list[T]) -> T:
    return left.pop(rng.randrange(len(left)))


@contextlib.contextmanager
def suffering(cluster: Spread, faults: Sequence[Fault]) -> Iterator[None]:
    """Have all faults while the block runs. Cuts are healed first, so that who starts meets a whole network."""
    order = {"restarted": 3, "dead": 0, "still": 1, "cut": 2}
    with contextlib.ExitStack() as left:
        for fault in sorted(faults, key=lambda one: order[one.kind]):
            if fault.kind == "cut":
                left.enter_context(cluster.cut(*fault.names))
            elif fault.kind == "still":
                left.enter_context(cluster.still(*fault.names))
            elif fault.kind == "dead":
                left.enter_context(cluster.dead(*fault.names))
            else:
                cluster.kill(*fault.names)
                cluster.start(*fault.names)
        yield


# Intent and kernel, compared without a word of the agents


def differences(cluster: Spread) -> list[str]:
    """Return where kernels of hosts differ from what is recorded, in each host's overlay networks and sandboxes.

    Compared are forwarding entries, neighbours, tunnel ends that are let in, routes and addresses; what is too many is
    a difference as well.
    """
    with cluster.client() as client:
        intent = _Intent(client)
    return [line for host in HOSTS for line in _different(cluster, intent, host)]


class _Intent:
    """The records."""

    def __init__(self, client: netweft_client.Client) -> None:
        self.hosts = {host.name: host.id for host in client.list_hosts()}
        self.vteps = {id_: ADDRESSES[name] for name, id_ in self.hosts.items()}
        self.networks = {one.id: one for one in client.list_networks(page_size=1000) if one.driver == "overlay"}
        self.endpoints = list(client.list_endpoints(page_size=1000))
        self.sandboxes = {one.id: one for one in client.list_sandboxes(page_size=1000)}

    def of_network(self, network_id: str) -> list[netweft_client.Endpoint]:
        return [one for one in self.endpoints if one.network_id == network_id]


def _different(cluster: Spread, intent: _Intent, host: str) -> Iterator[str]:
    host_id = intent.hosts[host]
    here = [one for one in intent.endpoints if one.host_id == host_id]
    joined = {one.network_id for one in here} & intent.networks.keys()
    admitted = set()
    for network_id in joined:
        network = intent.networks[network_id]
        away = [one for one in intent.of_network(network_id) if one.host_id and one.host_id != host_id]
        admitted |= {(int(network.claims["vni"]), intent.vteps[one.host_id]) for one in away}
        space = cluster.agent_dir(host) / "netns" / f"network-{network_id}"
        where = f"{host}, network {network.name}"
        if not space.exists():
            yield f"{where}: it has no namespace"
            continue
        entries = _json(space, "bridge", "-j", "fdb", "show", "dev", "vxlan0")
        to = {(one["mac"], one["dst"]) for one in entries if "dst" in one}
        yield from support._difference(
            f"{where}: tunnel entry", {(one.mac_address, intent.vteps[one.host_id]) for one in away}, to
        )
        static = {one["mac"] for one in entries if one.get("master") and one.get("state") != "permanent"}
        yield from support._difference(f"{where}: bridge entry", {one.mac_address for one in away}, static)
        neighbours = _json(space, "ip", "-j", "neigh", "show", "nud", "permanent")
        yield from support._difference(
            f"{where}: neighbour",
            {(str(address.ip), one.mac_address) for one in away for address in one.addresses},
            {(one["dst"], one["lladdr"]) for one in neighbours if one["dev"] == "vxlan0"},
        )
        wanted = {str(one.subnet) for one in network.subnets}
        yield from support._difference(f"{where}: route", wanted, set(_routes(space, "br0")) - {"fe80::/64"})
    yield from support._difference(f"{host}: tunnel end let in", admitted, _admitted(cluster, host))
    for one in here:
        box = intent.sandboxes.get(one.sandbox_id)
        if box is None or not Path(box.netns_path).exists():
            yield f"{host}: endpoint {one.name} has no sandbox"
            continue
        found = {
            f"{info['local']}/{info['prefixlen']}"
            for link in _json(Path(box.netns_path), "ip", "-j", "address", "show", "dev", one.interface_name)
            for info in link.get("addr_info", ())
            if info["scope"] == "global"
        }
        yield from support._difference(f"{host}: address of {one.name}", set(map(str, one.addresses)), found)
        for family in sorted({address.version for address in one.addresses}):
            if "default" not in _routes(Path(box.netns_path), one.interface_name, (family,)):
                yield f"{host}: endpoint {one.name} has no default route of IPv{family}"


def _routes(space: Path, device: str, families: Sequence[int] = (4, 6)) -> list[str]:
    """Return the destinations of a device's routes."""
    found = [_json(space, "ip", "-j", f"-{family}", "route", "show", "dev", device) for family in families]
    return [one["dst"] for routes in found for one in routes]


def _admitted(cluster: Spread, host: str) -> set[tuple[int, str]]:
    """Return which tunnel ends a host lets in: VNI and address."""
    text = support._run(cluster.space(host), "nft", "list", "table", "inet", "netweft")
    body = re.search(r"set vteps4 \{(.*?)\n\t\}", text, re.DOTALL)
    pairs = re.findall(r"(\d+\.\d+\.\d+)\.0 \. (\d+\.\d+\.\d+\.\d+)", body[1]) if body else []
    return {(int.from_bytes(ipaddress.IPv4Address(f"0.{vni}").packed), vtep) for vni, vtep in pairs}


def _json(space: Path, *command: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(support._run(space, *command) or "[]")
    return found
