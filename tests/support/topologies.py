"""Several store servers as one store: a Cluster, or a pair that sentinels watch; all on loopback."""

from __future__ import annotations

import contextlib
import functools
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import redis

from tests.support.store import StoreServer, find_server

SLOTS = 16_384
_LIMIT_S = 30.0


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens at, whose cluster bus (port + 10000) is one too."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            probes = [stack.enter_context(socket.socket()) for _ in range(2)]
            probes[0].bind(("127.0.0.1", 0))
            port = probes[0].getsockname()[1]
            if port < 55_536:  # the bus has its port 10000 above
                with contextlib.suppress(OSError):
                    probes[1].bind(("127.0.0.1", port + 10_000))
                    found.append(port)
    return found


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until something holds."""
    ends_at = time.monotonic() + _LIMIT_S
    while time.monotonic() < ends_at:
        with contextlib.suppress(redis.RedisError):
            if condition():
                return
        time.sleep(0.02)
    raise AssertionError(f"not within {_LIMIT_S:.0f} s: {what}")


class Cluster:
    """Primaries that share the slots, each with one replica; use it as a context.

    Args:
        primaries: How many.
    """

    def __init__(self, primaries: int = 3) -> None:
        options = [*("--bind", "127.0.0.1", "--cluster-enabled", "yes", "--cluster-node-timeout", "1000")]
        options += ["--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0"]
        ports = free_ports(2 * primaries)
        self.servers = [StoreServer(port=port, options=options) for port in ports]
        self._primaries = primaries

    def __enter__(self) -> Self:
        """Start them and make them one."""
        for server in self.servers:
            server.start()
        clients = [self.client(server) for server in self.servers]
        try:
            each = SLOTS // self._primaries
            for number, told in enumerate(clients[: self._primaries]):
                last = SLOTS - 1 if number == self._primaries - 1 else (number + 1) * each - 1
                told.execute_command("CLUSTER", "ADDSLOTSRANGE", number * each, last)
            for number, told in enumerate(clients):
                told.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", self.servers[number].port)
            ids = [told.execute_command("CLUSTER", "MYID") for told in clients]
            for number, told in enumerate(clients[self._primaries :]):
                until(functools.partial(_replicates, told, ids[number]), "a node knows its primary")
            for told in clients:
                until(functools.partial(_is_whole, told), "the cluster is whole")
            for told in clients[self._primaries :]:
                until(functools.partial(_follows, told), "a replica follows")
        except BaseException:
            self.stop()
            raise
        finally:
            for told in clients:
                told.close()
        return self

    def __exit__(self, *_: object) -> None:
        """End them."""
        self.stop()

    @property
    def url(self) -> str:
        """URL of the whole."""
        return f"redis+cluster://127.0.0.1:{self.servers[-1].port}"

    def owner_of(self, key: str) -> StoreServer:
        """Return the primary that has a key."""
        with contextlib.closing(self.client(self.servers[-1])) as told:
            slot = int(told.execute_command("CLUSTER", "KEYSLOT", key))
        return self.servers[min(slot // (SLOTS // self._primaries), self._primaries - 1)]

    def stop(self) -> None:
        """End all of them. Idempotent."""
        for server in self.servers:
            server.stop()

    @staticmethod
    def client(server: StoreServer) -> Any:
        """Return a client of one server."""
        return redis.Redis(unix_socket_path=server.socket_path)


class Watched:
    """A primary and a replica, and a sentinel that promotes the replica when the primary dies; use it as a context."""

    SERVICE = "netweft"

    def __init__(self) -> None:
        primary, replica, self._sentinel_port = free_ports(3)
        options = ("--bind", "127.0.0.1", "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
        self.primary = StoreServer(port=primary, options=options)
        self.replica = StoreServer(port=replica, options=(*options, "--replicaof", f"127.0.0.1 {primary}"))
        self._sentinel: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="netweft-sentinel-")

    def __enter__(self) -> Self:
        """Start all three; returns when the sentinel knows both servers."""
        try:
            self.primary.start()
            self.replica.start()
            with contextlib.closing(Cluster.client(self.replica)) as told:
                until(functools.partial(_follows, told), "the replica follows")
            self._start_sentinel()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End all three."""
        self.stop()

    @property
    def url(self) -> str:
        """URL of the whole."""
        return f"redis+sentinel://127.0.0.1:{self._sentinel_port}/{self.SERVICE}"

    def stop(self) -> None:
        """End all three. Idempotent."""
        if self._sentinel is not None and self._sentinel.poll() is None:
            self._sentinel.send_signal(signal.SIGTERM)
            self._sentinel.wait(timeout=15)
        self.primary.stop()
        self.replica.stop()
        self._folder.cleanup()

    def _start_sentinel(self) -> None:
        binary = find_server()
        assert binary is not None
        file = Path(self._folder.name) / "sentinel.conf"
        file.write_text(
            f"port {self._sentinel_port}\nbind 127.0.0.1\ndir {self._folder.name}\n"
            f"sentinel monitor {self.SERVICE} 127.0.0.1 {self.primary.port} 1\n"
            f"sentinel down-after-milliseconds {self.SERVICE} 500\nsentinel failover-timeout {self.SERVICE} 2000\n"
        )
        self._sentinel = subprocess.Popen(
            [binary, str(file), "--sentinel"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        made: Any = redis.Redis(host="127.0.0.1", port=self._sentinel_port)
        with contextlib.closing(made) as told:
            until(lambda: told.sentinel_master(self.SERVICE)["num-slaves"] == 1, "the sentinel knows the replica")


def _replicates(told: Any, primary: bytes) -> bool:
    return bool(told.execute_command("CLUSTER", "REPLICATE", primary))


def _is_whole(told: Any) -> bool:
    return bool(told.cluster("INFO")["cluster_state"] == "ok")


def _follows(told: Any) -> bool:
    return bool(told.info("replication")["master_link_status"] == "up")
