"""A channel over TLS that follows its certificate files: replaced files are used from the next look on.

gRPC's own channels keep the certificate that they were made with. This one makes another one when the files have
changed, and gives calls in flight on the old one some time to end. A call costs one comparison more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from grpc import aio

from netweft_common import errors, logs, tls

LOOK_S = 5.0
"""How often the files are looked at, at most: at a call."""
GRACE_S = 30.0
"""How long calls in flight on the old channel may go on."""


class RenewingChannel:
    """Stands in for a grpc.aio channel where stubs are made.

    Args:
        files: What is followed.
        make: Opens a channel with what the files hold now.
        monotonic: Clock in seconds.
    """

    def __init__(
        self,
        files: tls.TlsFiles,
        make: Callable[[], aio.Channel],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files = files
        self._make = make
        self._monotonic = monotonic
        self._seen = tls.stamp(files)
        self._looked_s = monotonic()
        self._closing: set[asyncio.Task[None]] = set()
        self.current = make()
        self.generation = 0

    def unary_unary(self, *arguments: Any, **options: Any) -> _Method:
        """Return a method that is called on the channel of the moment; likewise the other three."""
        return _Method(self, "unary_unary", arguments, options)

    def unary_stream(self, *arguments: Any, **options: Any) -> _Method:
        """Return a method with a server stream."""
        return _Method(self, "unary_stream", arguments, options)

    def stream_unary(self, *arguments: Any, **options: Any) -> _Method:
        """Return a method with a client stream."""
        return _Method(self, "stream_unary", arguments, options)

    def stream_stream(self, *arguments: Any, **options: Any) -> _Method:
        """Return a method with both."""
        return _Method(self, "stream_stream", arguments, options)

    async def close(self, grace: float | None = None) -> None:
        """Close the channel of the moment and those that are on their way out."""
        for task in self._closing:
            task.cancel()
        await self.current.close(grace)

    def look(self) -> None:
        """Change the channel if the files have been replaced since the last look."""
        now_s = self._monotonic()
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        found = tls.stamp(self._files)
        if found == self._seen:
            return
        try:
            fresh = self._make()
        except errors.NetweftError as error:  # replaced by halves: the old one does until it is whole
            logs.get().warning("certificate not taken", error=error.message)
            return
        old, self.current, self._seen = self.current, fresh, found
        self.generation += 1
        task = asyncio.get_running_loop().create_task(old.close(GRACE_S), name="close old channel")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


class _Method:
    """A multi-callable of whatever channel is the current one."""

    __slots__ = ("_arguments", "_channel", "_generation", "_kind", "_method", "_options", "_target")

    def __init__(self, channel: RenewingChannel, kind: str, arguments: Any, options: Any) -> None:
        self._channel = channel
        self._kind = kind
        self._arguments = arguments
        self._options = options
        self._method: str = arguments[0]  # as grpc's own keep it, see client.method_name
        self._generation = -1
        self._target: Any = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self._channel.look()
        if self._generation != self._channel.generation:
            self._generation = self._channel.generation
            self._target = getattr(self._channel.current, self._kind)(*self._arguments, **self._options)
        return self._target(*arguments, **options)
