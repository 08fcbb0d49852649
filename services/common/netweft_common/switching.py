"""A channel that can be exchanged under its stubs: for another target, or for other certificates.

gRPC's own channels keep the target and the certificate that they were made with. This one is made anew when its target
does not answer and there are others, and when the certificate files have been replaced. Calls in flight on the old one
get some time to end. A call costs one comparison more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from netweft_common import errors, logs, tls

LOOK_S = 5.0
"""How often the files are looked at, at most: at a call."""
GRACE_S = 30.0
"""How long calls in flight on the old channel may go on."""


class SwitchingChannel:
    """Stands in for a grpc channel where stubs are made.

    Args:
        targets: One is used at a time, the first one first.
        files: Certificates; None: there are none to follow.
        make: Opens a channel to a target, with what the files hold now.
        discard: Closes a channel that is used no more.
        monotonic: Clock in seconds.
    """

    def __init__(
        self,
        targets: Sequence[str],
        files: tls.TlsFiles | None,
        *,
        make: Callable[[str], Any],
        discard: Callable[[Any], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._targets = tuple(targets)
        self._files = files
        self._make = make
        self._discard = discard
        self._monotonic = monotonic
        self._seen = tls.stamp(files) if files is not None else None
        self._looked_s = monotonic()
        self._place = 0
        self.current = make(self._targets[0])
        self.generation = 0

    @property
    def target(self) -> str:
        """The target of the moment."""
        return self._targets[self._place]

    @property
    def has_others(self) -> bool:
        """Whether there are several targets."""
        return len(self._targets) > 1

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

    def turn(self, generation: int) -> None:
        """Go to the next target, unless somebody has since the generation that did not answer."""
        if self.has_others and generation == self.generation:
            place = (self._place + 1) % len(self._targets)
            self._exchange(self._make(self._targets[place]))
            self._place = place

    def look(self) -> None:
        """Make the channel anew if the files have been replaced since the last look."""
        if self._files is None:
            return
        now_s = self._monotonic()
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        found = tls.stamp(self._files)
        if found == self._seen:
            return
        try:
            fresh = self._make(self.target)
        except errors.NetweftError as error:  # replaced by halves: the old one does until it is whole
            logs.get().warning("certificate not taken", error=error.message)
            return
        self._seen = found
        self._exchange(fresh)

    def _exchange(self, fresh: Any) -> None:
        old, self.current = self.current, fresh
        self.generation += 1
        self._discard(old)


class _Method:
    """A multi-callable of whatever channel is the current one."""

    __slots__ = ("_arguments", "_channel", "_generation", "_kind", "_method", "_options", "_target")

    def __init__(self, channel: SwitchingChannel, kind: str, arguments: Any, options: Any) -> None:
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
