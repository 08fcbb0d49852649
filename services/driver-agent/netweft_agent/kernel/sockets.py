"""Netlink sockets by namespace, opened inside it and kept while they are used."""

from __future__ import annotations

import socket
from collections import OrderedDict

from netweft_agent.domain.resources import HOST, Ns
from netweft_agent.kernel import netlink
from netweft_agent.kernel.netns import Namespaces


class Sockets:
    """A cache of one thread's sockets.

    Opening one costs 0.1 ms. The least recently used are closed, so that thousands of idle sandboxes cost no
    descriptors; the host's stay.

    Args:
        namespaces: Where they are opened.
        limit: Sockets kept.
    """

    def __init__(self, namespaces: Namespaces, *, limit: int = 256) -> None:
        self._namespaces = namespaces
        self._limit = limit
        self._open: OrderedDict[tuple[Ns, int], socket.socket] = OrderedDict()
        self.ports: set[int] = set()
        """Netlink port ids that these sockets have or had. Events carry that of the socket that caused them."""

    def get(self, ns: Ns, protocol: int = netlink.NETLINK_ROUTE) -> socket.socket:
        """Return a socket inside the namespace, valid until the next call.

        Raises:
            NotFound: The namespace is not held.
            KernelError: No socket could be opened.
        """
        key = (ns, protocol)
        found = self._open.get(key)
        if found is not None:
            self._open.move_to_end(key)
            return found
        with self._namespaces.entered(ns):
            return self._put(key)

    def open_here(self, ns: Ns) -> None:
        """Have a route socket ready, for a thread that has entered the namespace already."""
        key = (ns, netlink.NETLINK_ROUTE)
        if key not in self._open:
            self._put(key)

    def _put(self, key: tuple[Ns, int]) -> socket.socket:
        sock = netlink.open_socket(key[1])
        self.ports.add(sock.getsockname()[0])
        self._open[key] = sock
        if len(self._open) > self._limit:
            self._evict()
        return sock

    def forget(self, ns: Ns) -> None:
        """Close the sockets of a namespace."""
        for key in [key for key in self._open if key[0] == ns]:
            self._open.pop(key).close()

    def close(self) -> None:
        """Close all."""
        for sock in self._open.values():
            sock.close()
        self._open.clear()

    def _evict(self) -> None:
        for key in self._open:
            if key[0] != HOST:
                self._open.pop(key).close()
                return
