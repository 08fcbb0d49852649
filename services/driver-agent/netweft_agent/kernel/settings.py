"""Settings below /proc/sys/net as they were left, looked at again and again: the kernel tells nobody of their changes.

An open file of a setting stays bound to its namespace, and is read in 4 µs wherever the thread is; it keeps nothing
alive, and is an error once namespace or link has gone. Opening one takes several times as long. So as many are kept
open as descriptors can be spared, and the others take turns. With 512 open a look takes 2 ms, 1 % of a processor.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from netweft_common import errors

from netweft_agent.domain.resources import Key, Ns, Sysctl
from netweft_agent.kernel import sysctl
from netweft_agent.kernel.netns import Namespaces

LOOK_INTERVAL_S = 0.2
HELD = 512
TURNS = 8
"""Settings that are not held open and have their turn in one look."""


@dataclass(slots=True)
class _Kept:
    """A setting that was as wanted when it was last written or read."""

    setting: Sysctl
    fd: int = -1
    inode: int = 0
    """Of the namespace in which it was opened."""


class Settings:
    """The settings that shall stay as they are; any thread may use it, but `look` from one in the host's namespace.

    Args:
        namespaces: Registry; only entered.
        held: How many are kept open.
    """

    def __init__(self, namespaces: Namespaces, *, held: int = HELD) -> None:
        self._namespaces = namespaces
        self._most = held
        self._lock = threading.Lock()
        self._kept: dict[Key, _Kept] = {}
        self._open = 0
        self._turn = 0

    def keep(self, setting: Sysctl) -> None:
        """Remember a setting that is as wanted now; it is told of once when it is not."""
        with self._lock:
            there = self._kept.get(setting.key)
            if there is None:
                self._kept[setting.key] = _Kept(setting)
            else:
                there.setting = setting

    def forget(self, key: Key) -> None:
        """Forget a setting that nobody wants any more; idempotent."""
        with self._lock:
            self._drop(key)

    def look(self) -> set[Ns]:
        """Read settings, and return the namespaces of those that somebody has changed; they are forgotten by that.

        One whose namespace or link has gone is forgotten too: that is told of otherwise.
        """
        with self._lock:
            held = [key for key, one in self._kept.items() if one.fd >= 0]
            waiting = [key for key, one in self._kept.items() if one.fd < 0]
        changed = self._look_at(held, self._is_same)
        room = max(0, self._most - self._open)
        start = self._turn % max(1, len(waiting))
        turn = list(itertools.islice(itertools.chain(waiting[start:], waiting[:start]), max(TURNS, room)))
        self._turn += len(turn)
        return changed | self._look_at(turn, self._visit)

    def _look_at(self, keys: Iterable[Key], is_same: Callable[[_Kept], bool]) -> set[Ns]:
        """Return the namespaces of settings that have changed; the lock is held for one at a time: attaches want it."""
        changed: set[Ns] = set()
        for key in keys:
            with self._lock:
                one = self._kept.get(key)
                if one is not None and not is_same(one):
                    changed.add(one.setting.ns)
                    self._drop(key)
        return changed

    def close(self) -> None:
        """Close all; idempotent."""
        with self._lock:
            for key in list(self._kept):
                self._drop(key)

    def _drop(self, key: Key) -> None:
        one = self._kept.pop(key, None)
        if one is not None:
            self._close(one)

    def _close(self, one: _Kept) -> None:
        if one.fd >= 0:
            os.close(one.fd)
            one.fd = -1
            self._open -= 1

    def _is_same(self, one: _Kept) -> bool:
        """Return whether a setting that is held open is as it was left; one of another namespace is opened again."""
        try:
            if os.fstat(self._namespaces.fd(one.setting.ns)).st_ino != one.inode:
                self._close(one)
                return True
            return _matches(one.setting, os.pread(one.fd, 4096, 0))
        except (OSError, errors.NotFound):
            self._close(one)
            return True

    def _visit(self, one: _Kept) -> bool:
        """Return whether a setting is as it was left; it is held open from now on if there is room."""
        try:
            with self._namespaces.entered(one.setting.ns):
                fd = sysctl.open_to_read(one.setting.path)
        except (OSError, errors.NetweftError):
            return True
        one.fd, self._open = fd, self._open + 1
        with contextlib.suppress(OSError, errors.NotFound):
            one.inode = os.fstat(self._namespaces.fd(one.setting.ns)).st_ino
        same = self._is_same(one)
        if self._open > self._most:
            self._close(one)
        return same


def _matches(setting: Sysctl, content: bytes) -> bool:
    return content.decode(errors="replace").split() == setting.value.split()
