"""What the agent's kernel layer costs beside raw netlink: one endpoint at a time, and a batch. Run as root.

Usage: python tests/bench/kernel.py [ENDPOINTS] [--profile]

Floor: hand-packed messages over ready sockets, one send in the host, one in the container, for a veth whose namespace
exists, as little as the kernel can be asked. Ours: `LinuxKernel.execute` through asyncio, with MAC, MTU, link group,
port attributes, IPv6 switched off by file and ownership marks besides. Both in turn on bridges of their own in one
network namespace made for the run. Prints a JSON line for each row.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import shutil
import socket
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from netweft_agent.domain.plan import Operation, plan
from netweft_agent.domain.resources import HOST, Address, Link, Namespace, PeerEnd, Port, Resource, Route, Sysctl
from netweft_agent.kernel.linux import LinuxKernel

_libc = ctypes.CDLL(None, use_errno=True)
_NEWNET = 0x40000000


# --- the floor: nothing of ours in it ---


def _attr(kind: int, data: bytes) -> bytes:
    size = 4 + len(data)
    return struct.pack("=HH", size, kind) + data + b"\0" * (-size % 4)


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 5 | flags, 1, 0) + body


def _link(index: int = 0, flags: int = 0) -> bytes:
    return struct.pack("=BBHiII", 0, 0, 0, index, flags, flags)


def _talk(sock: socket.socket, messages: list[bytes]) -> None:
    sock.send(b"".join(messages))
    missing = len(messages)
    while missing:
        data, at = sock.recv(65536), 0
        while at < len(data):
            size, kind = struct.unpack_from("=IH", data, at)
            if kind == 2:
                code = struct.unpack_from("=i", data, at + 16)[0]
                if code:
                    raise OSError(-code, os.strerror(-code))
                missing -= 1
            at += (size + 3) & ~3


def _netlink() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    sock.bind((0, 0))
    return sock


def _no_ipv6() -> None:
    for scope in ("default", "all"):
        Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6").write_text("1")


class Floor:
    def __init__(self, count: int) -> None:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self._host = _netlink()
        _talk(self._host, [_message(16, 0x600, _link(0, 1) + _attr(3, b"floor\0") + _attr(18, _attr(1, b"bridge\0")))])
        self._bridge = socket.if_nametoindex("floor")
        self._inside = []
        for _ in range(count):
            assert _libc.unshare(_NEWNET) == 0
            _no_ipv6()
            self._inside.append((os.open("/proc/thread-self/ns/net", os.O_RDONLY), _netlink()))
            assert _libc.setns(home, _NEWNET) == 0

    def attach(self, number: int) -> None:
        fd, inside = self._inside[number]
        _talk(self._host, [self._create(number, fd)])
        _talk(inside, self._settings(number))

    def attach_all(self, numbers: Sequence[int]) -> None:
        _talk(self._host, [self._create(number, self._inside[number][0]) for number in numbers])
        for number in numbers:
            _talk(self._inside[number][1], self._settings(number))

    def _create(self, number: int, fd: int) -> bytes:
        peer = _link() + _attr(3, b"eth0\0") + _attr(28, struct.pack("=I", fd))
        info = _attr(18, _attr(1, b"veth\0") + _attr(2, _attr(1, peer)))
        name = _attr(3, b"f%d\0" % number) + _attr(10, struct.pack("=I", self._bridge))
        return _message(16, 0x600, _link(0, 1) + name + info)

    @staticmethod
    def _settings(number: int) -> list[bytes]:
        address = struct.pack(">I", 0x0A000002 + number)
        route = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 3, 0, 1, 0)
        return [
            _message(16, 0, _link(1, 1)),
            _message(16, 0, _link(2, 1)),
            _message(20, 0x600, struct.pack("=BBBBi", 2, 16, 0, 0, 2) + _attr(2, address) + _attr(1, address)),
            _message(24, 0x600, route + _attr(5, struct.pack(">I", 0x0A000001)) + _attr(4, struct.pack("=I", 2))),
        ]


# --- ours ---


def _steps(wanted: Sequence[Resource], owner: str) -> tuple[Operation, ...]:
    desired = {resource.key: resource for resource in wanted}
    return plan(desired, {}, dict.fromkeys(desired, owner))


def _sandbox(number: int) -> list[Resource]:
    ns = f"sandbox/b{number}"
    return [Namespace(ns=ns), Sysctl(ns=ns, path="net/ipv6/conf/default/disable_ipv6", value="1")]


def _endpoint(number: int) -> list[Resource]:
    ns, name = f"sandbox/b{number}", f"nwv-{number:011x}"
    ip = f"10.1.{number >> 8}.{number & 255}"
    mac = "02:42:0a:01:" + f"{number >> 8:02x}:{number & 255:02x}"
    far = PeerEnd(ns=ns, name="eth0", mac=mac)
    near = PeerEnd(ns=HOST, name=name)
    port = Port(isolated=True)
    return [
        Link(ns=HOST, name=name, kind="veth", mtu=1450, master="ours", ipv6=False, peer=far, port=port),
        Link(ns=ns, name="lo", kind="loopback"),
        Link(ns=ns, name="eth0", kind="peer", mtu=1450, mac=mac, ipv6=False, peer=near),
        Address(ns=ns, link="eth0", address=f"{ip}/16"),
        Route(ns=ns, destination="0.0.0.0/0", link="eth0", via="10.1.0.1"),
    ]


def _gone(wanted: Sequence[Resource]) -> tuple[Operation, ...]:
    return plan({}, {resource.key: resource for resource in wanted}, {})


def _row(work: str, ours: Sequence[float], floor: Sequence[float] | None = None, **more: object) -> None:
    row: dict[str, object] = {"work": work, "median_ms": round(statistics.median(ours) * 1e3, 3)}
    if len(ours) >= 20:
        row["p99_ms"] = round(sorted(ours)[int(len(ours) * 0.99)] * 1e3, 3)
    if floor is not None:
        row["floor_median_ms"] = round(statistics.median(floor) * 1e3, 3)
        row["ratio"] = round(statistics.median(ours) / statistics.median(floor), 2)
    print(json.dumps(row | more), flush=True)


async def _measure(count: int, run_dir: Path, *, profile: bool) -> None:
    floor = Floor(2 * count)
    kernel = LinuxKernel(run_dir)

    async def execute(steps: Sequence[Operation]) -> float:
        start = time.perf_counter()
        results = await kernel.execute(steps)
        elapsed = time.perf_counter() - start
        assert not any(results), [error for error in results if error]
        return elapsed

    bridge = Link(ns=HOST, name="ours", kind="bridge", mtu=1450, ipv6=False)
    await execute(_steps([bridge], "network/n"))
    spaces = [resource for number in range(2 * count) for resource in _sandbox(number)]
    per_space = [await execute(_steps(spaces, "sandbox")) / (2 * count)]
    _row("make a sandbox namespace, batched", per_space)

    singles = [_steps(_endpoint(number), f"endpoint/{number}") for number in range(count)]
    ours, theirs = [], []
    if profile:
        _profile(kernel)
    for number, steps in enumerate(singles):
        start = time.perf_counter()
        floor.attach(number)
        theirs.append(time.perf_counter() - start)
        ours.append(await execute(steps))
    _row("attach, one at a time", ours, theirs, endpoints=count)

    batch = range(count, 2 * count)
    steps = tuple(step for number in batch for step in _endpoint(number))
    planned = _steps(steps, "endpoints")
    start = time.perf_counter()
    floor.attach_all(batch)
    floor_each = (time.perf_counter() - start) / count
    _row("attach, in one batch", [await execute(planned) / count], [floor_each], endpoints=count)

    everything = {resource.key: resource for number in range(2 * count) for resource in _endpoint(number)}
    start = time.perf_counter()
    observation = await kernel.observe(everything)
    elapsed = time.perf_counter() - start
    assert plan(everything, {key: observation.resources[key] for key in everything}, {}) == ()
    _row("observe a sandbox", [elapsed / (2 * count)], sandboxes=2 * count)

    gone = [await execute(_gone(_endpoint(number))) for number in range(min(count, 50))]
    _row("detach, one at a time, answer", gone)
    rest = [resource for number in range(min(count, 50), 2 * count) for resource in _endpoint(number)]
    _row("detach, in one batch, links gone", [await execute(_gone(rest)) / (2 * count - min(count, 50))])
    await execute(_gone([*spaces, bridge]))
    await kernel.close()


def _profile(kernel: LinuxKernel) -> None:
    import cProfile  # noqa: PLC0415  # only when asked for
    import pstats  # noqa: PLC0415

    original, profiler = kernel._executor.execute, cProfile.Profile()

    def profiled(steps: Sequence[Operation]) -> object:
        return profiler.runcall(original, steps)

    kernel._executor.execute = profiled  # type: ignore[assignment,method-assign]
    import atexit  # noqa: PLC0415

    atexit.register(lambda: pstats.Stats(profiler).sort_stats("tottime").print_stats(25))


def main() -> None:
    count = next((int(word) for word in sys.argv[1:] if word.isdigit()), 100)
    run_dir = Path(tempfile.mkdtemp(prefix="netweft-bench-"))
    if _libc.unshare(_NEWNET):
        raise SystemExit("needs root")
    try:
        asyncio.run(_measure(count, run_dir, profile="--profile" in sys.argv))
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)


if __name__ == "__main__":
    main()
