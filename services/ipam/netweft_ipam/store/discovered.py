"""The way to servers that must be found first, by Sentinel or in a Cluster: redis-py knows how."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar
from urllib.parse import SplitResult, unquote, urlunsplit

import redis.exceptions as redis_errors
from redis.asyncio import Redis, sentinel
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from netweft_ipam.store.link import CONNECT_TIMEOUT_S, Command, Info, LinkLost, Refused

_SENTINEL_PORT = 26379
_AWAY = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.BusyLoadingError,
    redis_errors.ReadOnlyError,
    redis_errors.ClusterDownError,
    redis_errors.MovedError,
    redis_errors.TryAgainError,
    redis_errors.MasterDownError,
    redis_errors.SlotNotCoveredError,
    OSError,
)

Answer = TypeVar("Answer")


class BySentinel:
    """A link to the primary that sentinels name.

    Args:
        parts: redis+sentinel://[user:password@]host:port,host:port/<service>; the password is the primary's.
        where: The same without a password, for messages.
        timeout_s: Longest wait for one answer.
        replicas: How many replicas `call_durably` waits for.
        replicas_timeout_ms: How long it waits.

    Raises:
        ValueError: The URL is malformed.
    """

    def __init__(
        self, parts: SplitResult, where: str, *, timeout_s: float, replicas: int, replicas_timeout_ms: int
    ) -> None:
        credentials, _, hosts = parts.netloc.rpartition("@")
        service = parts.path.strip("/")
        if not service:
            raise ValueError("no service name behind the sentinels")
        user, _, password = credentials.partition(":")
        self._where = where
        self._wait: Command = ("WAIT", replicas, replicas_timeout_ms)
        self._sentinel = sentinel.Sentinel(
            [_address(host) for host in hosts.split(",")], socket_timeout=CONNECT_TIMEOUT_S
        )  # type: ignore[no-untyped-call]  # redis-py's gap
        self._client: Redis = self._sentinel.master_for(
            service,
            username=unquote(user) or None,
            password=unquote(password) or None,
            socket_timeout=timeout_s,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            retry=_once(),
        )

    async def call(self, command: Command, timeout_s: float) -> Any:
        """See Link."""
        return await _told(self._client.execute_command(*command), timeout_s)  # type: ignore[no-untyped-call]  # as above

    async def call_durably(self, command: Command, timeout_s: float) -> tuple[Any, int]:
        """See Link."""
        # WAIT speaks of the writes of its own connection, so both go over one.
        async with self._client.pipeline(transaction=False) as pipe:
            pipe.execute_command(*command)
            pipe.execute_command(*self._wait)
            answer, replicas = await _told(pipe.execute(raise_on_error=False), timeout_s)
        for part in (answer, replicas):
            if isinstance(part, Exception):
                raise _translated(part) from part
        return answer, int(replicas)

    async def info(self, section: str, timeout_s: float) -> dict[str, Info]:
        """See Link."""
        return {self._where: _texts(await self.call(("INFO", section) if section else ("INFO",), timeout_s))}

    def give_up(self, silent_s: float) -> None:
        """See Link; redis-py drops a connection that is silent for its timeout by itself."""

    async def close(self) -> None:
        """See Link."""
        await self._client.aclose()
        await self._sentinel.aclose()


class InCluster:
    """A link to the primaries of a Cluster.

    Args:
        parts: redis+cluster://[user:password@]host:port of any node.
        timeout_s: Longest wait for one answer.

    Raises:
        ValueError: The URL is malformed.
    """

    def __init__(self, parts: SplitResult, *, timeout_s: float) -> None:
        self._client = RedisCluster.from_url(
            urlunsplit(parts._replace(scheme="redis")),
            socket_timeout=timeout_s,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            retry=_once(),
        )

    async def call(self, command: Command, timeout_s: float) -> Any:
        """See Link."""
        return await _told(self._client.execute_command(*command), timeout_s)

    async def call_durably(self, command: Command, timeout_s: float) -> tuple[Any, int]:
        """See Link; WAIT cannot be asked of a Cluster, so nobody is counted."""
        return await self.call(command, timeout_s), 0

    async def info(self, section: str, timeout_s: float) -> dict[str, Info]:
        """See Link."""
        command = ("INFO", section) if section else ("INFO",)
        asked = self._client.execute_command(*command, target_nodes=RedisCluster.PRIMARIES)
        answer = await _told(asked, timeout_s)
        # redis-py returns one node's answer as it is, and those of several by name.
        nodes = answer if all(isinstance(info, dict) for info in answer.values()) else {"the cluster": answer}
        return {str(name): _texts(info) for name, info in nodes.items()}

    def give_up(self, silent_s: float) -> None:
        """See Link; redis-py drops a connection that is silent for its timeout by itself."""

    async def close(self) -> None:
        """See Link."""
        await self._client.aclose()


async def _told(answer: Awaitable[Answer], timeout_s: float) -> Answer:
    async with asyncio.timeout(timeout_s):
        try:
            return await answer
        except (redis_errors.RedisError, OSError) as error:
            raise _translated(error) from error


def _translated(error: Exception) -> LinkLost | Refused:
    text = str(error) or type(error).__name__
    if isinstance(error, redis_errors.NoScriptError):
        return Refused(f"NOSCRIPT {text}")
    if isinstance(error, _AWAY):
        # Sentinels that name nobody are asked before anything is sent.
        return LinkLost(text, was_sent=not isinstance(error, sentinel.MasterNotFoundError))
    return Refused(text)


def _texts(info: dict[str, Any]) -> Info:
    return {name: str(value) for name, value in info.items()}


def _address(text: str) -> tuple[str, int]:
    name, _, port = text.rpartition(":")
    return (name, int(port)) if name else (port, _SENTINEL_PORT)


def _once() -> Retry:
    # What may be done twice is known a layer above.
    return Retry(NoBackoff(), 0)
