"""Works `peer-propagation`, `peer-install-10k` and `vxlan-throughput`: overlays between hosts in namespaces.

`peer-propagation`: eight hosts; an attach on the first, and how long after its call the entry is in the kernel of each
of the other seven, as the kernel itself tells (rtnetlink(7), RTNLGRP_NEIGH), every host a sample.

`peer-install-10k`: a network has 10,000 endpoints on simulated hosts (tests/scale); the first one on a real host brings
the network there, and all of them. Timed from the attach's call until all entries and neighbours are in its kernel.

`vxlan-throughput`: one TCP stream between containers on two hosts; the same over a VXLAN device made by hand between
the same hosts, and between the hosts themselves. What matters is the ratio: all share one machine's processors.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from netweft_cli import stack
from netweft_client import AttachItem, Client, EndpointSpec, SandboxSpec, SubnetSpec
from netweft_common.errors import Unavailable

from tests.bench import attaching, figures, scale
from tests.scale import services
from tests.support.netns import Netns

WORKS = ("peer-propagation", "peer-install-10k", "vxlan-throughput")
HOSTS = 8
PROBES = 100
ENDPOINTS = 10_000
BATCH = 500
STREAM_S = 1.0
ROUNDS = 12
HOME_COUNT = 2
"""Simulated hosts that have the 10,000 endpoints; each of them has to learn those of the others too."""
ASKED_AGAIN = 5
JOINS = 3
HAND_PORT = 4790
LATE_S = 10.0
IDLE_SHARE = 0.05
"""Of a processor."""

_NEIGHBOURS = Path("/proc/net/stat/arp_cache")
_RTMGRP_NEIGH = 4
_RTM_NEWNEIGH = 28
_AF_BRIDGE = 7
_NDA_LLADDR = 2
_NTF_SELF = 2
_ROOM_BYTES = 64 << 20
_SO_RCVBUFFORCE = 33


def run(works: set[str]) -> attaching.Table:
    """Time the works asked for."""
    table: attaching.Table = {}
    if "peer-propagation" in works:
        names = [f"h{number}" for number in range(1, HOSTS + 1)]
        with attaching.running_stack(*names) as running, Client(running.layout.controller) as client:
            table["peer-propagation"] = {"ours": figures.of(_propagation(running, client, names)).as_json()}
    if "peer-install-10k" in works:
        endpoints = int(os.environ.get("NETWEFT_BENCH_ENDPOINTS", str(ENDPOINTS)))
        with attaching.running_stack("h1") as running, Client(running.layout.controller, timeout_s=120) as client:
            table["peer-install-10k"] = _install(running, client, endpoints)
    if "vxlan-throughput" in works:
        with attaching.running_stack("h1", "h2") as running, Client(running.layout.controller) as client:
            table["vxlan-throughput"] = _throughput(running, client)
    return table


class Entries:
    """Forwarding entries of VXLAN devices that come into a namespace, with the time of each by the monotonic clock.

    Args:
        space: The namespace.
    """

    def __init__(self, space: Netns) -> None:
        self.came_s: dict[str, float] = {}
        self._sock = space.run(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE))
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM_BYTES)
        self._sock.bind((0, _RTMGRP_NEIGH))
        self._ended, self._end = os.pipe()
        self._thread = threading.Thread(target=self._listen, name="entries")
        self._thread.start()

    def wait(self, macs: set[str]) -> float:
        """Wait until these are there; returns when the last one came.

        Raises:
            TimeoutError: They have not come.
        """
        ends_s = time.monotonic() + LATE_S
        while not macs <= self.came_s.keys():
            if time.monotonic() > ends_s:
                raise TimeoutError(f"{len(macs - self.came_s.keys())} of {len(macs)} entries have not come")
            time.sleep(0.002)
        return max(self.came_s[mac] for mac in macs)

    def close(self) -> None:
        """Listen no more."""
        os.write(self._end, b"x")
        self._thread.join()
        self._sock.close()
        os.close(self._end)
        os.close(self._ended)

    def _listen(self) -> None:
        while self._ended not in select.select([self._sock, self._ended], [], [])[0]:
            data = self._sock.recv(1 << 20)
            now_s = time.monotonic()
            for mac in _self_entries(data):
                self.came_s.setdefault(mac, now_s)


def _self_entries(data: bytes) -> Iterator[str]:
    """Yield the MAC addresses of entries of devices' own tables, of messages of rtnetlink(7)."""
    at = 0
    while at + 28 <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        family, flags = data[at + 16], data[at + 26]
        if kind == _RTM_NEWNEIGH and family == _AF_BRIDGE and flags & _NTF_SELF:
            part = at + 28
            while part + 4 <= at + length:
                size, attribute = struct.unpack_from("=HH", data, part)
                if attribute == _NDA_LLADDR:
                    yield data[part + 4 : part + size].hex(":")
                part += (size + 3) & ~3
        at += (length + 3) & ~3


def _propagation(running: stack.Stack, client: Client, names: list[str]) -> list[float]:
    client.create_network("wide", driver="overlay", subnets=[SubnetSpec(subnet="10.97.0.0/16")])
    for name in names:
        _attach(client, "wide", name, "first")
    with contextlib.ExitStack() as open_spaces:
        seen = [
            open_spaces.enter_context(contextlib.closing(Entries(_network_space(running, client, "wide", name))))
            for name in names[1:]
        ]
        took = []
        for number in range(PROBES):
            called_s = time.monotonic()
            mac = _attach(client, "wide", names[0], f"probe{number}")
            took += [1e3 * (entries.wait({mac}) - called_s) for entries in seen]
    return took


def _install(running: stack.Stack, client: Client, endpoints: int) -> dict[str, dict[str, float]]:
    client.create_network("large", driver="overlay", subnets=[SubnetSpec(subnet="10.96.0.0/16")])
    with _simulated(running, HOME_COUNT):
        for first in range(0, endpoints, BATCH):
            items = [
                AttachItem(
                    endpoint=EndpointSpec(network="large", name=f"e{number}"),
                    sandbox=SandboxSpec(container_id=f"e{number}", host=f"s{number % HOME_COUNT}"),
                )
                for number in range(first, min(first + BATCH, endpoints))
            ]
            request_id = uuid.uuid4().hex
            for _ in range(ASKED_AGAIN):  # as callers do where a host is too busy to answer in time
                results = client.attach_endpoints(items, request_id=request_id)
                if not any(isinstance(one, Unavailable) for one in results):
                    break
            attaching.all_well(results)
        took = []
        busy = {name: _pid(running, name) for name in ("agent-h1", "controller")}
        spent_s = dict.fromkeys(busy, 0.0)
        for number in range(JOINS):
            neighbours = _steady_neighbours()
            before_s = {name: scale.cpu_s(pid) for name, pid in busy.items()}
            called_s = time.monotonic()
            _attach(client, "large", "h1", f"first{number}")
            attached_s = time.monotonic()
            with _network_space(running, client, "large", "h1") as space:
                all_there_s = _wait_for_entries(space, endpoints, neighbours + endpoints)
            took.append((attached_s - called_s, all_there_s - called_s))
            for name, pid in busy.items():
                spent_s[name] += scale.cpu_s(pid) - before_s[name]
            client.detach_endpoint(f"h1-first{number}", network="large")
            _wait_for_rest(running, "agent-h1")
    return {
        "ours": figures.of([1e3 * whole for _, whole in took]).as_json(),
        "ours, until the attach is answered": figures.of([1e3 * attach for attach, _ in took]).as_json(),
        "cluster": {
            "endpoints": endpoints,
            **{f"cpu s of {name}": round(one / JOINS, 2) for name, one in spent_s.items()},
        },
    }


@contextlib.contextmanager
def _simulated(running: stack.Stack, count: int) -> Iterator[None]:
    """Have hosts that are agents but for the kernel beside those of a stack, named s0, s1 and so on."""
    with tempfile.TemporaryDirectory(prefix="nw-sim-") as folder:
        for name in ("controller.sock", "ipam.sock"):
            (Path(folder) / name).symlink_to(running.layout.run_dir / name)
        command = [sys.executable, "-m", "tests.scale.worker", "--folder", folder, "--first", "0"]
        command += ["--count", str(count), "--prefix", "s"]
        process = services.spawn(command, Path(folder) / "worker.log")
        try:
            yield
        finally:
            services.end(process, "worker")


def _pid(running: stack.Stack, name: str) -> int:
    process = running.processes.find(name)
    assert process is not None, f"{name} runs"
    return process.pid


def _wait_for_rest(running: stack.Stack, name: str) -> None:
    """Wait until a process does nothing but what it always does, so that the next figure has nothing of the last."""
    pid = _pid(running, name)
    spent_s = scale.cpu_s(pid)
    while True:
        time.sleep(1)
        before_s, spent_s = spent_s, scale.cpu_s(pid)
        if spent_s - before_s < IDLE_SHARE:
            return


def _neighbours() -> int:
    """Return how many neighbours the kernel holds in all namespaces; unlike a dump this takes next to nothing."""
    return int(_NEIGHBOURS.read_text().splitlines()[1].split()[0], 16)


def _steady_neighbours() -> int:
    """Return how many there are when the kernel has let go of those that went."""
    before = -1
    while before != (now := _neighbours()):
        before = now
        time.sleep(0.3)
    return now


def _wait_for_entries(space: Netns, count: int, neighbours: int) -> float:
    """Wait until a network's namespace has forwarding entries and neighbours for so many endpoints elsewhere.

    Args:
        space: The network's namespace.
        count: How many endpoints.
        neighbours: How many neighbours the kernel holds then in all.

    Returns:
        When all were there, by the monotonic clock.
    """
    ends_s = time.monotonic() + 60
    while (there := _neighbours()) < neighbours:
        if time.monotonic() > ends_s:
            raise TimeoutError(f"the kernel holds {there} neighbours, and not {neighbours}")
        time.sleep(0.005)
    seen_s = time.monotonic()
    # Neighbours are written last. Where they are not, or are not this network's, the time is that of the last look.
    for command in (["bridge", "fdb", "show", "dev", "vxlan0"], ["ip", "neigh", "show", "dev", "vxlan0"]):
        while True:
            lines = space.exec(command).stdout.splitlines()
            found = sum("dst" in line or "lladdr" in line for line in lines)
            if found >= count:
                break
            if time.monotonic() > ends_s:
                raise TimeoutError(f"{' '.join(command)}: {found} of {count}")
            time.sleep(0.05)
            seen_s = time.monotonic()
    return seen_s


def _throughput(running: stack.Stack, client: Client) -> dict[str, dict[str, float]]:
    client.create_network("stream", driver="overlay", subnets=[SubnetSpec(subnet="10.95.0.0/24")])
    with contextlib.ExitStack() as spaces:
        hosts = [spaces.enter_context(Netns.at(str(running.layout.netns(one)))) for one in running.layout.hosts]
        boxes, addresses = [], []
        for host in running.layout.hosts:
            attached = client.attach_endpoint(
                EndpointSpec(network="stream", name=host.name), SandboxSpec(container_id=host.name, host=host.name)
            )
            boxes.append(spaces.enter_context(Netns.at(attached.sandbox.netns_path)))
            addresses.append(str(attached.endpoint.addresses[0].ip))
        by_hand = [spaces.enter_context(Netns()) for _ in hosts]
        underlay = [str(one.address) for one in running.layout.hosts]
        for number, (host, box) in enumerate(zip(hosts, by_hand, strict=True)):
            _vxlan_by_hand(host, box, underlay[number], underlay[1 - number], f"10.94.0.{number + 1}/24")
        ways = {
            "overlay": (*boxes, addresses[1]),
            "by hand": (*by_hand, "10.94.0.2"),
            "underlay": (*hosts, underlay[1]),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            # One after the other and again, so that what else the machine does meets all of them.
            for name, way in ways.items():
                rates[name].append(_stream(*way))
    medians = {name: statistics.median(one) for name, one in rates.items()}
    return {
        **{name: {"gbit_per_second": round(one / 1e9, 2)} for name, one in medians.items()},
        "ours, times that": {
            "by hand": round(medians["overlay"] / medians["by hand"], 3),
            "underlay": round(medians["overlay"] / medians["underlay"], 3),
        },
    }


def _vxlan_by_hand(host: Netns, box: Netns, local: str, remote: str, address: str) -> None:
    """Give a container a network as an administrator would: a bridge with a VXLAN device to the other host."""
    for command in (
        "ip link add handbr type bridge",
        f"ip link add handvx mtu 1450 type vxlan id 94 dstport {HAND_PORT} local {local} remote {remote}",
        "ip link set handvx master handbr up",
        "ip link set handbr mtu 1450 up",
        f"ip link add handve mtu 1450 type veth peer name eth0 mtu 1450 netns {box.path}",
        "ip link set handve master handbr up",
    ):
        host.exec(command.split())
    for command in ("ip link set lo up", f"ip address add {address} dev eth0", "ip link set eth0 up"):
        box.exec(command.split())


def _stream(sender: Netns, receiver: Netns, address: str) -> float:
    """Send one TCP stream for a while; returns bits a second, as its receiver saw them."""
    with receiver.popen([sys.executable, "-c", _RECEIVER, address]) as taking:
        assert taking.stdout is not None, "as asked for"
        try:
            port = taking.stdout.readline().strip()
            with sender.popen([sys.executable, "-c", _SENDER, address, port, str(STREAM_S)]) as giving:
                said, _ = giving.communicate(timeout=30)
            assert giving.returncode == 0, said
            return float(taking.stdout.readline())
        finally:
            taking.kill()


_RECEIVER = """
import socket, sys, time
listener = socket.create_server((sys.argv[1], 0))
print(listener.getsockname()[1], flush=True)
stream, _ = listener.accept()
room, count = bytearray(1 << 20), 0
started = time.monotonic()
while got := stream.recv_into(room):
    count += got
print(8 * count / (time.monotonic() - started), flush=True)
"""

_SENDER = """
import socket, sys, time
stream = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)
data, ends = bytes(1 << 20), time.monotonic() + float(sys.argv[3])
while time.monotonic() < ends:
    stream.sendall(data)
stream.close()
"""


def _attach(client: Client, network: str, host: str, name: str) -> str:
    """Attach a container of its own; returns the endpoint's MAC address."""
    attached = client.attach_endpoint(
        EndpointSpec(network=network, name=f"{host}-{name}"), SandboxSpec(container_id=f"{network}-{name}", host=host)
    )
    return str(attached.endpoint.mac_address)


def _network_space(running: stack.Stack, client: Client, network: str, host: str) -> Netns:
    """Open the namespace that a network has on a host."""
    place = next(one for one in running.layout.hosts if one.name == host)
    space = running.layout.host_dir(place) / "run" / "netns" / f"network-{client.get_network(network).network.id}"
    return Netns.at(str(space))
