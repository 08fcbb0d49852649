"""The way to one server: one connection, on which all calls are pipelined."""

from __future__ import annotations

import asyncio
from typing import Any

from netweft_common import resp

from netweft_ipam.store.link import CONNECT_TIMEOUT_S, Command, Info, LinkLost, Refused

# WAIT holds up its connection for as long as replicas take, so each call that waits needs one of its own.
_WRITERS = 32
# What a server says that was made a replica: the same name may lead to the new primary by now.
_NOT_PRIMARY = ("READONLY", "MASTERDOWN")


class Direct:
    """A link to one server.

    Args:
        url: See `resp.parse_url`.
        where: The same without a password, for messages.
        replicas: How many replicas `call_durably` waits for.
        replicas_timeout_ms: How long it waits.

    Raises:
        InvalidArgument: The URL is malformed.
    """

    def __init__(self, url: str, where: str, *, replicas: int, replicas_timeout_ms: int) -> None:
        self._url = url
        self._where = where
        self._client = self._open()
        self._wait: Command = ("WAIT", replicas, replicas_timeout_ms)
        self._turns = asyncio.Semaphore(_WRITERS)
        self._writers: list[resp.Client] = []
        self._idle: list[resp.Client] = []

    async def call(self, command: Command, timeout_s: float) -> Any:
        """See Link."""
        try:
            return await self._client.execute(*command, timeout_s=timeout_s)
        except resp.LostError as error:
            raise LinkLost(str(error), was_sent=error.was_sent) from error
        except resp.ReplyError as error:
            raise _refused(self._client, error) from error

    async def call_durably(self, command: Command, timeout_s: float) -> tuple[Any, int]:
        """See Link."""
        async with asyncio.timeout(timeout_s), self._turns:
            if not self._idle:
                self._writers.append(self._open())
                self._idle.append(self._writers[-1])
            writer = self._idle.pop()
            try:
                answers = await writer.execute_all(command, self._wait)
            except resp.LostError as error:
                raise LinkLost(str(error), was_sent=error.was_sent) from error
            finally:
                self._idle.append(writer)
        for answer in answers:
            if isinstance(answer, resp.LostError):
                raise LinkLost(str(answer), was_sent=answer.was_sent) from answer
            if isinstance(answer, resp.ReplyError):
                raise _refused(writer, answer) from answer
        return answers[0], int(answers[1])

    async def info(self, section: str, timeout_s: float) -> dict[str, Info]:
        """See Link."""
        text = await self.call(("INFO", section) if section else ("INFO",), timeout_s)
        return {self._where: read_info(text.decode())}

    def give_up(self, silent_s: float) -> None:
        """See Link."""
        for client in (self._client, *self._writers):
            client.abort_if_silent(silent_s)

    async def close(self) -> None:
        """See Link."""
        for client in (self._client, *self._writers):
            await client.close()

    def _open(self) -> resp.Client:
        return resp.Client(self._url, connect_timeout_s=CONNECT_TIMEOUT_S)


def read_info(text: str) -> Info:
    """Return the fields of an answer to INFO."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value for name, colon, value in pairs if colon}


def _refused(client: resp.Client, error: resp.ReplyError) -> Refused:
    if str(error).startswith(_NOT_PRIMARY):
        client.abort()
    return Refused(str(error))
