"""One connection to the store's servers: URL forms, script calls in one round trip, errors as ours."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import time
from collections.abc import Callable
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import redis.exceptions as redis_errors
from netweft_common import deadline, errors
from redis.asyncio import BlockingConnectionPool, Redis, sentinel
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from netweft_ipam.store.scripts import Script

CALL_TIMEOUT_S = 5.0
_CONNECT_TIMEOUT_S = 1.0
_MAX_CONNECTIONS = 64
_OLDEST = (7, 0)
# Enough to replace a pooled connection that died with its server; the caller's own retries do the rest.
_RETRIES = 2

_AWAY = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.BusyLoadingError,
    redis_errors.ReadOnlyError,
    redis_errors.ClusterDownError,
    redis_errors.MovedError,
    redis_errors.TryAgainError,
    redis_errors.MasterDownError,
    OSError,
)
# Refusals that an operator cures, by the first word of the server's answer.
_REFUSES = ("OOM", "MISCONF", "NOREPLICAS", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "READONLY", "BUSY")


@dataclasses.dataclass(frozen=True, slots=True)
class Epoch:
    """Which history of writes the servers continue; it changes with every restart and every promotion of a replica.

    Attributes:
        id: Its identity.
        histories: Replication ids (INFO replication, master_replid), one for each primary.
    """

    id: str
    histories: frozenset[str]


class Connection:
    """A client of the store, whatever runs there.

    Args:
        client: redis-py's client.
        where: The URL without its password, for messages.
        replicas: How many replicas must have each write before it is acknowledged (WAIT); not with Cluster.
        replicas_timeout_s: How long they may take.
    """

    def __init__(
        self, client: Redis | RedisCluster, where: str, *, replicas: int = 0, replicas_timeout_s: float = 1.0
    ) -> None:
        self._client = client
        self._where = where
        self._observer: Callable[[str, float], None] | None = None
        self._replicas = replicas
        self._replicas_timeout_ms = max(1, round(replicas_timeout_s * 1000))

    @classmethod
    def open(cls, url: str, *, replicas: int = 0, replicas_timeout_s: float = 1.0) -> Self:
        """Return a connection; nothing is sent yet.

        Args:
            replicas: See Connection.
            replicas_timeout_s: See Connection.
            url: redis://, rediss:// or unix:// for one server, redis+sentinel://host:port,host:port/<service> for
                Sentinel, redis+cluster://host:port for Cluster.

        Raises:
            InvalidArgument: The URL is of none of these forms, or replicas are to be waited for in a Cluster.
        """
        parts = urlsplit(url)
        options: dict[str, Any] = {
            "socket_timeout": CALL_TIMEOUT_S,
            "socket_connect_timeout": _CONNECT_TIMEOUT_S,
            "retry": Retry(ExponentialBackoff(base=0.02, cap=0.2), _RETRIES),
        }
        client: Redis | RedisCluster
        try:
            if parts.scheme in ("redis", "rediss", "unix"):
                pool = BlockingConnectionPool.from_url(
                    url, max_connections=_MAX_CONNECTIONS, timeout=CALL_TIMEOUT_S, **options
                )
                client = Redis.from_pool(pool)
            elif parts.scheme == "redis+cluster":
                client = RedisCluster.from_url(
                    urlunsplit(parts._replace(scheme="redis")),
                    socket_timeout=CALL_TIMEOUT_S,
                    socket_connect_timeout=_CONNECT_TIMEOUT_S,
                )
            elif parts.scheme == "redis+sentinel":
                client = _by_sentinel(parts.netloc, parts.path.strip("/"), options)
            else:
                raise ValueError(f"scheme {parts.scheme!r}")  # noqa: TRY301  # told as the other malformations are
        except ValueError as error:
            raise errors.InvalidArgument(
                "STORE_URL_MALFORMED",
                f"store_url: {_masked(url)!r} is no store URL ({error}); use redis://host:port, unix:///path, "
                "redis+sentinel://host:port,host:port/service or redis+cluster://host:port",
                field="store_url",
            ) from error
        if replicas and isinstance(client, RedisCluster):
            raise errors.InvalidArgument(
                "REPLICAS_IN_CLUSTER",
                "wait_replicas: a Cluster cannot be waited for by WAIT; set min-replicas-to-write at its servers",
                field="wait_replicas",
            )
        return cls(client, _masked(url), replicas=replicas, replicas_timeout_s=replicas_timeout_s)

    async def run(self, script: Script, key: str, *args: str | bytes | int) -> list[Any]:
        """Run a script over one hash tag, in one round trip.

        Raises:
            Unavailable: No answer in time, or a server that cannot write now.
            Internal: The script failed.
        """
        started = time.perf_counter()
        try:
            async with asyncio.timeout(deadline.remaining_s(CALL_TIMEOUT_S)):
                try:
                    answer = await self._send("EVALSHA", script.sha, 1, key, *args)
                except redis_errors.NoScriptError:
                    answer = await self._send("EVAL", script.text, 1, key, *args)
        except (redis_errors.RedisError, OSError, TimeoutError) as error:
            raise self._translate(error, script.name) from error
        if self._observer is not None:
            self._observer(script.name, time.perf_counter() - started)
        assert isinstance(answer, list)
        return answer

    def observe(self, observer: Callable[[str, float], None]) -> None:
        """Tell an observer of each script that was answered: its name, and how many seconds it took."""
        self._observer = observer

    async def _send(self, *args: str | bytes | int) -> Any:
        if not self._replicas or isinstance(self._client, RedisCluster):
            return await self._client.execute_command(*args)
        # WAIT speaks of the writes of its own connection, so both go over one.
        async with self._client.pipeline(transaction=False) as pipe:
            pipe.execute_command(*args)
            pipe.execute_command("WAIT", self._replicas, self._replicas_timeout_ms)
            answer, replicas = await pipe.execute(raise_on_error=False)
        for part in (answer, replicas):
            if isinstance(part, Exception):
                raise part
        if replicas < self._replicas:
            raise errors.Unavailable(
                "NOT_REPLICATED",
                f"{replicas} of {self._replicas} replicas of the store at {self._where} have the write; it is done and "
                "may be lost: ask again with the same request id",
                store=self._where,
            )
        return answer

    async def weaknesses(self) -> list[str]:
        """Return in sentences what the store's servers lack; an empty list is good.

        Raises:
            Unavailable: No answer in time.
        """
        nodes = {"target_nodes": RedisCluster.PRIMARIES} if isinstance(self._client, RedisCluster) else {}
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                answer = await self._client.execute_command("INFO", **nodes)
        except (redis_errors.RedisError, OSError, TimeoutError) as error:
            raise self._translate(error, "INFO") from error
        servers = {self._where: answer} if "redis_version" in answer else answer
        found = []
        for where, info in servers.items():
            if tuple(int(part) for part in str(info["redis_version"]).split(".")[:2]) < _OLDEST:
                found.append(f"the store at {where} is version {info['redis_version']}; leases need 7.0 or later")
            if not int(info.get("aof_enabled", 0)):
                found.append(
                    f"the store at {where} keeps no append-only file: a restart forgets leases; set appendonly yes"
                )
            if str(info.get("maxmemory_policy", "noeviction")) != "noeviction":
                found.append(f"the store at {where} may evict leases; set maxmemory-policy noeviction")
        return found

    async def command(self, *args: str | bytes | int) -> Any:
        """Run one command over one key.

        Raises:
            Unavailable: No answer in time.
            Internal: The server refused the command.
        """
        try:
            async with asyncio.timeout(deadline.remaining_s(CALL_TIMEOUT_S)):
                return await self._client.execute_command(*args)
        except (redis_errors.RedisError, OSError, TimeoutError) as error:
            raise self._translate(error, str(args[0])) from error

    async def epoch(self) -> Epoch:
        """Return which history of writes the servers continue.

        Raises:
            Unavailable: No answer in time.
        """
        nodes = {"target_nodes": RedisCluster.PRIMARIES} if isinstance(self._client, RedisCluster) else {}
        try:
            async with asyncio.timeout(deadline.remaining_s(CALL_TIMEOUT_S)):
                answer = await self._client.execute_command("INFO", "replication", **nodes)
        except (redis_errors.RedisError, OSError, TimeoutError) as error:
            raise self._translate(error, "INFO") from error
        parts = [answer] if "master_replid" in answer else answer.values()
        histories = frozenset(str(part["master_replid"]) for part in parts)
        return Epoch(hashlib.sha256(",".join(sorted(histories)).encode()).hexdigest()[:16], histories)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    def _translate(self, error: Exception, what: str) -> errors.NetweftError:
        text = str(error) or type(error).__name__
        if isinstance(error, (TimeoutError, *_AWAY)) or text.startswith(_REFUSES):
            return errors.Unavailable(
                "STORE_UNAVAILABLE",
                f"the store at {self._where} did not do {what}: {text}; nothing is lost, try again",
                retry_after_s=0.5,
                store=self._where,
            )
        return errors.Internal("STORE_FAILED", f"the store at {self._where} failed at {what}: {text}")


def _by_sentinel(netloc: str, service: str, options: dict[str, Any]) -> Redis:
    credentials, _, hosts = netloc.rpartition("@")
    if not service:
        raise ValueError("no service name behind the sentinels")
    addresses = []
    for host in hosts.split(","):
        name, _, port = host.rpartition(":")
        addresses.append((name or port, int(port) if name else 26379))
    user, _, password = credentials.partition(":")
    watch = sentinel.Sentinel(addresses, socket_timeout=_CONNECT_TIMEOUT_S)  # type: ignore[no-untyped-call]  # redis-py's gap
    client: Redis = watch.master_for(service, username=user or None, password=password or None, **options)
    return client


def _masked(url: str) -> str:
    parts = urlsplit(url)
    _, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"***@{host}" if at else host, query=""))
