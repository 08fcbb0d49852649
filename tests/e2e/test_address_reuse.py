"""Addresses that move between hosts under traffic: nobody gets another's packets, and no kernel keeps what is past.

`NETWEFT_LONG=1` makes it a thousand moves, in four runs.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import random
import socket
import threading

import pytest
from netweft_client import EndpointSpec, SandboxSpec, SubnetSpec

from tests.e2e import support, test_overlay
from tests.support import vxlan
from tests.support.netns import Netns, require_tool

pytestmark = [pytest.mark.e2e, pytest.mark.netns]

IS_LONG = os.environ.get("NETWEFT_LONG", "") not in {"", "0"}
RUNS, MOVES = (4, 250) if IS_LONG else (1, 24)
HOSTS = ("h1", "h2", "h3")
VTEPS = {"h1": "192.0.2.1", "h2": "192.0.2.2", "h3": "192.0.2.3"}
NEAR, FAR = "10.81.0.{}", "10.82.0.{}"
MOVING = ("10.81.0.101", "10.81.0.102", "10.82.0.103", "10.82.0.104")
FIXED_MACS = {"10.81.0.102": "02:42:00:00:01:02", "10.82.0.104": "02:42:00:00:01:04"}
"""Addresses that have the same MAC wherever they are, as a container keeps its own."""
PORT = 7007
BEAT_S = 0.01
ENOUGH = 2
"""Datagrams of each sender that the new owner must have got before a move counts as seen."""


@pytest.fixture(scope="module")
def cluster():
    require_tool("ip")
    require_tool("bridge")
    with support.running(*HOSTS, environ=test_overlay.SETTINGS) as cluster:
        with cluster.client() as client:
            subnets = [SubnetSpec(subnet="10.81.0.0/24"), SubnetSpec(subnet="10.82.0.0/24")]
            client.create_network("net", driver="overlay", subnets=subnets)
        yield cluster


@dataclasses.dataclass(kw_only=True)
class Owner:
    """Who has an address now: its endpoint, and the ears in its sandbox."""

    host: str
    name: str
    mac: str
    box: Netns
    ears: socket.socket
    wire: socket.socket
    heard: dict[str, int] = dataclasses.field(default_factory=dict)
    foreign: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def listen(self, address):
        """Take in what came: from whom, and what was for somebody else."""
        with contextlib.suppress(BlockingIOError):
            while True:
                words = self.ears.recv(64).decode().split()
                self.heard[words[0]] = self.heard.get(words[0], 0) + 1
                if words[1] != address:
                    self.foreign.append((words[0], words[1]))
        with contextlib.suppress(BlockingIOError):
            while True:
                frame = self.wire.recv(2048)
                is_ours = frame[12:14] == b"\x08\0" and frame[23] == socket.IPPROTO_UDP
                if is_ours and int.from_bytes(frame[36:38], "big") == PORT:
                    destination = socket.inet_ntoa(frame[30:34])
                    if destination != address:
                        self.foreign.append(("a frame", destination))

    def close(self):
        self.ears.close()
        self.wire.close()
        self.box.close()


class Senders:
    """Endpoints that stay where they are, one a host and subnet, each sending to all moving addresses all the time."""

    def __init__(self, boxes):
        self._sockets = {}
        for name, box in boxes.items():
            sock = box.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.settimeout(0)
            self._sockets[name] = sock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="senders")

    @property
    def names(self):
        return set(self._sockets)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        for sock in self._sockets.values():
            sock.close()

    def _run(self):
        while not self._stop.wait(BEAT_S):
            for name, sock in self._sockets.items():
                for address in MOVING:
                    with contextlib.suppress(OSError):  # nobody has the address at the moment
                        sock.sendto(f"{name} {address}".encode(), (address, PORT))


def attach(client, name, host, address, mac=""):
    spec = EndpointSpec(network="net", name=name, addresses=(address,), mac_address=mac)
    made = client.attach_endpoint(spec, SandboxSpec(container_id=name, host=host))
    return made, Netns.at(made.sandbox.netns_path)


class Run:
    """The moves of a run, and what is true after each."""

    def __init__(self, cluster, client, stack):
        self.client = client
        self.vni = client.get_network("net").network.claims["vni"]
        self.id = client.get_network("net").network.id
        spaces = {name: cluster.agent_dir(name) / "netns" / f"network-{self.id}" for name in HOSTS}
        self.senders = {}
        self.macs = {}
        for number, host in enumerate(HOSTS, 11):
            for subnet in (NEAR, FAR):
                name = f"{host}-{'near' if subnet is NEAR else 'far'}"
                made, box = attach(client, name, host, subnet.format(number))
                stack.callback(box.close)
                self.senders[name] = box
                self.macs[subnet.format(number)] = (host, made.endpoint.mac_address)

        def opened(path):
            return stack.enter_context(contextlib.closing(Netns.at(str(path))))

        self.spaces = {name: opened(path) for name, path in spaces.items()}
        self.underlay = opened(cluster.layout.underlay_netns)
        self.owners: dict[str, Owner] = {}
        self.count = 0

    def move(self, address, host):
        """Take an address from its owner, if it has one, and give it to a new one on a host."""
        self.leave(address)
        self.count += 1
        name = f"moving-{self.count}"
        made, box = attach(self.client, name, host, address, FIXED_MACS.get(address, ""))
        ears = box.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        ears.bind(("", PORT))
        ears.settimeout(0)
        wire = box.run(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)))
        wire.settimeout(0)
        mac = made.endpoint.mac_address
        self.owners[address] = Owner(host=host, name=name, mac=mac, box=box, ears=ears, wire=wire)
        assert () == self.client.wait_network("net", revision=made.endpoint.revision, wait_s=support.SETTLE_S)

    def leave(self, address):
        owner = self.owners.pop(address, None)
        if owner is not None:
            owner.listen(address)
            assert [] == owner.foreign, f"{address} on {owner.host} got what was for others"
            owner.close()
            self.client.detach_endpoint(owner.name, network="net", delete_sandbox=True)

    def seen(self, address, senders):
        """Wait until all senders' datagrams come to the owner of an address; return those that do not."""
        owner = self.owners[address]

        def missing():
            owner.listen(address)
            return {name for name in senders if owner.heard.get(name, 0) < ENOUGH}

        return support.wait_until(missing, lambda found: not found)

    def where(self):
        """Return host and MAC of every address of the network."""
        return self.macs | {address: (owner.host, owner.mac) for address, owner in self.owners.items()}

    def stale(self):
        """Return what any host's kernel has that is not as it is now, and what it lacks."""
        where = self.where()
        wrong = []
        for name, space in self.spaces.items():
            away = {address: one for address, one in where.items() if one[0] != name}
            entries = json.loads(space.exec(["bridge", "-j", "fdb", "show"]).stdout)
            beliefs = _neighbours(space)
            tables = {
                "tunnel": (_entries(entries, "self"), {(mac, VTEPS[host]) for host, mac in away.values()}),
                "bridge": (_entries(entries, "master"), {(mac, "") for _, mac in away.values()}),
                "ports": (_entries(entries, "ports"), {(mac, "") for host, mac in where.values() if host == name}),
                "neighbours": (beliefs["vxlan0"], {(address, mac) for address, (_, mac) in away.items()}),
            }
            for what, (there, wanted) in tables.items():
                wrong += [f"{name}: {what} has {one}" for one in sorted(there - wanted)]
                wrong += [f"{name}: {what} lacks {one}" for one in sorted(wanted - there)]
            known = {(address, mac) for address, (_, mac) in where.items()}
            addresses = where.keys()
            learnt = {one for one in beliefs["br0"] if one[0] in addresses}
            wrong += [f"{name}: the gateway believes {one}" for one in sorted(learnt - known)]
        for name, box in self.senders.items():
            learnt = {one for one in _neighbours(box)["eth0"] if one[0] in where}
            known = {(address, mac) for address, (_, mac) in where.items()}
            wrong += [f"sender {name} believes {one}" for one in sorted(learnt - known)]
        return wrong


def _entries(entries, table):
    """Return (MAC, tunnel end) of a forwarding table: `self`, `master`, or what is at ports of endpoints."""
    if table == "self":
        chosen = [one for one in entries if one["ifname"] == "vxlan0" and "self" in one.get("flags", ())]
    else:
        # The MACs of links themselves are permanent.
        of_bridge = [one for one in entries if one.get("master") == "br0" and one.get("state") != "permanent"]
        chosen = [one for one in of_bridge if (one["ifname"] == "vxlan0") is (table == "master")]
    return {(one["mac"], one.get("dst", "")) for one in chosen}


def _neighbours(space):
    """Return (address, MAC) of what is believed, by link."""
    shown = json.loads(space.exec(["ip", "-4", "-j", "neigh", "show"]).stdout or "[]")
    found = collections.defaultdict(set)
    for one in shown:
        if "lladdr" in one and "FAILED" not in one.get("state", ()):
            found[one["dev"]].add((one["dst"], one["lladdr"]))
    return found


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(RUNS))
def test_addresses_move_between_hosts_under_traffic(cluster, client, seed):
    chooser = random.Random(seed)
    with contextlib.ExitStack() as stack:
        run = Run(cluster, client, stack)
        senders = stack.enter_context(Senders(run.senders))
        stack.callback(lambda: [owner.close() for owner in run.owners.values()])
        for address in MOVING:
            run.move(address, chooser.choice(HOSTS))
        wrong: list[str] = []
        for number in range(MOVES):
            address = chooser.choice(MOVING)
            before = run.owners[address].host
            host = chooser.choice([one for one in HOSTS if one != before])
            run.move(address, host)
            with vxlan.Capture(run.underlay) as capture:
                missing = run.seen(address, senders.names)
            ours = [one for one in capture.carried() if one.vni == run.vni]
            astray = {one.destination for one in ours if one.frame[30:34] == socket.inet_aton(address)} - {VTEPS[host]}
            wrong += [f"move {number}: {address} went to {one} and not to {host}" for one in sorted(astray)]
            wrong += [f"move {number}: {address} on {host} does not hear {name}" for name in sorted(missing)]
            stale = support.wait_until(run.stale, lambda found: not found, timeout_s=5)
            wrong += [f"move {number}: {line}" for line in stale]
            assert [] == wrong
        for address in MOVING:
            run.leave(address)
