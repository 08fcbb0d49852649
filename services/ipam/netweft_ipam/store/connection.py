"""One connection to the store's servers: URL forms, script calls in one round trip, errors as ours."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

from netweft_common import deadline, errors

from netweft_ipam.store.direct import Direct
from netweft_ipam.store.discovered import BySentinel, InCluster
from netweft_ipam.store.link import Argument, Command, Info, Link, LinkLost, Refused
from netweft_ipam.store.scripts import Script

CALL_TIMEOUT_S = 5.0
# A little less than a call waits, so that the first one to run out of time ends a dead connection for all.
_SILENT_S = 0.9 * CALL_TIMEOUT_S
_OLDEST = (7, 0)
# Enough to replace a connection that died with its server; the caller's own retries do the rest.
_PAUSES_S = (0.04, 0.08)
# Refusals that an operator or the next seconds cure, by the first word of the server's answer.
_REFUSES = ("OOM", "MISCONF", "NOREPLICAS", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "READONLY", "BUSY", "TRYAGAIN")

Answer = TypeVar("Answer")


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
        way: How its servers are reached.
        where: The URL without its password, for messages.
        replicas: How many replicas must have each write before it is acknowledged (WAIT); not with Cluster.
    """

    def __init__(self, way: Link, where: str, *, replicas: int = 0) -> None:
        self._link = way
        self._where = where
        self._observer: Callable[[str, float], None] | None = None
        self._replicas = replicas

    @classmethod
    def open(cls, url: str, *, replicas: int = 0, replicas_timeout_s: float = 1.0) -> Self:
        """Return a connection; nothing is sent yet.

        Args:
            url: redis://, rediss:// or unix:// for one server, redis+sentinel://host:port,host:port/<service> for
                Sentinel, redis+cluster://host:port for Cluster.
            replicas: See Connection.
            replicas_timeout_s: How long they may take.

        Raises:
            InvalidArgument: The URL is of none of these forms, or replicas are to be waited for in a Cluster.
        """
        where, timeout_ms = "", max(1, round(replicas_timeout_s * 1000))
        way: Link
        try:
            parts, where = urlsplit(url), _masked(url)
            if parts.scheme in ("redis", "rediss", "unix"):
                way = Direct(url, where, replicas=replicas, replicas_timeout_ms=timeout_ms)
            elif parts.scheme == "redis+cluster":
                way = InCluster(parts, timeout_s=CALL_TIMEOUT_S)
            elif parts.scheme == "redis+sentinel":
                way = BySentinel(
                    parts, where, timeout_s=CALL_TIMEOUT_S, replicas=replicas, replicas_timeout_ms=timeout_ms
                )
            else:
                raise ValueError(f"scheme {parts.scheme!r}")  # noqa: TRY301  # told as the other malformations are
        except ValueError as error:
            raise errors.InvalidArgument(
                "STORE_URL_MALFORMED",
                f"store_url: {where!r} is no store URL ({error}); use redis://host:port, unix:///path, "
                "redis+sentinel://host:port,host:port/service or redis+cluster://host:port",
                field="store_url",
            ) from error
        if replicas and isinstance(way, InCluster):
            raise errors.InvalidArgument(
                "REPLICAS_IN_CLUSTER",
                "wait_replicas: a Cluster cannot be waited for by WAIT; set min-replicas-to-write at its servers",
                field="wait_replicas",
            )
        return cls(way, where, replicas=replicas)

    async def run(self, script: Script, key: str, *args: Argument, repeatable: bool = True) -> list[Any]:
        """Run a script over one hash tag, in one round trip.

        Args:
            script: The script.
            key: Its only key; all others are of the same hash tag.
            args: Its arguments.
            repeatable: Whether a second run changes nothing that the first has not; if not, it is never sent twice.

        Raises:
            Unavailable: No answer in time, a server that cannot write now, or replicas that do not have the write.
            Internal: The script failed.
        """
        started = time.perf_counter()
        answer = await self._do(lambda: self._evaluate(script, key, args), script.name, repeatable=repeatable)
        if self._observer is not None:
            self._observer(script.name, time.perf_counter() - started)
        assert isinstance(answer, list)
        return answer

    def observe(self, observer: Callable[[str, float], None]) -> None:
        """Tell an observer of each script that was answered: its name, and how many seconds it took."""
        self._observer = observer

    async def weaknesses(self) -> list[str]:
        """Return in sentences what the store's servers lack; an empty list is good.

        Raises:
            Unavailable: No answer in time.
        """
        found = []
        for where, info in (await self._info("")).items():
            if tuple(int(part) for part in info["redis_version"].split(".")[:2]) < _OLDEST:
                found.append(f"the store at {where} is version {info['redis_version']}; leases need 7.0 or later")
            if not int(info.get("aof_enabled", "0")):
                found.append(
                    f"the store at {where} keeps no append-only file: a restart forgets leases; set appendonly yes"
                )
            if info.get("maxmemory_policy", "noeviction") != "noeviction":
                found.append(f"the store at {where} may evict leases; set maxmemory-policy noeviction")
        return found

    async def command(self, *args: Argument) -> Any:
        """Run one command over one key; one that may be done twice.

        Raises:
            Unavailable: No answer in time.
            Internal: The server refused the command.
        """
        return await self._do(
            lambda: self._link.call(args, deadline.remaining_s(CALL_TIMEOUT_S)), str(args[0]), repeatable=True
        )

    async def epoch(self) -> Epoch:
        """Return which history of writes the servers continue.

        Raises:
            Unavailable: No answer in time.
        """
        histories = frozenset(info["master_replid"] for info in (await self._info("replication")).values())
        return Epoch(hashlib.sha256(",".join(sorted(histories)).encode()).hexdigest()[:16], histories)

    async def _info(self, section: str) -> dict[str, Info]:
        found = await self._do(
            lambda: self._link.info(section, deadline.remaining_s(CALL_TIMEOUT_S)), "INFO", repeatable=True
        )
        return dict(found)

    async def close(self) -> None:
        """Close all connections."""
        await self._link.close()

    async def _evaluate(self, script: Script, key: str, args: Sequence[Argument]) -> Any:
        send = self._call_durably if self._replicas and not script.is_read else self._link.call
        timeout_s = deadline.remaining_s(CALL_TIMEOUT_S)
        try:
            return await send(("EVALSHA", script.sha, 1, key, *args), timeout_s)
        except Refused as refused:
            if not str(refused).startswith("NOSCRIPT"):
                raise
            # The server was restarted, or is another one: a script is not data, it is not kept.
            return await send(("EVAL", script.text, 1, key, *args), timeout_s)

    async def _call_durably(self, command: Command, timeout_s: float) -> Any:
        answer, replicas = await self._link.call_durably(command, timeout_s)
        if replicas < self._replicas:
            raise errors.Unavailable(
                "NOT_REPLICATED",
                f"{replicas} of {self._replicas} replicas of the store at {self._where} have the write; it is done and "
                "may be lost: ask again with the same request id",
                store=self._where,
            )
        return answer

    async def _do(self, step: Callable[[], Awaitable[Answer]], what: str, *, repeatable: bool) -> Answer:
        """Take a step, and take it again after a short while when no server answered, if that can do no harm."""
        pauses_s = iter(_PAUSES_S)
        while True:
            try:
                return await step()
            except LinkLost as lost:
                pause_s = next(pauses_s, None)
                if pause_s is None or (lost.was_sent and not repeatable):
                    raise self._unavailable(what, str(lost)) from lost
            except TimeoutError as error:
                self._link.give_up(_SILENT_S)
                raise self._unavailable(what, "no answer in time") from error
            except Refused as refused:
                text = str(refused)
                if text.startswith(_REFUSES):
                    raise self._unavailable(what, text) from refused
                message = f"the store at {self._where} failed at {what}: {text}"
                raise errors.Internal("STORE_FAILED", message) from refused
            await asyncio.sleep(pause_s)

    def _unavailable(self, what: str, why: str) -> errors.Unavailable:
        return errors.Unavailable(
            "STORE_UNAVAILABLE",
            f"the store at {self._where} did not do {what}: {why}; nothing is lost, try again",
            retry_after_s=0.5,
            store=self._where,
        )


def _masked(url: str) -> str:
    parts = urlsplit(url)
    _, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"***@{host}" if at else host, query=""))
