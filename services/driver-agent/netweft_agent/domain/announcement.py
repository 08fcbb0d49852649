"""What neighbours are told of who has an address, so that none of them goes on sending to where it was before.

An announcement is an effect and no state: nothing of it is there to be observed, kept or repaired.
"""

from __future__ import annotations

import msgspec

from netweft_agent.domain.resources import Ns

Place = tuple[Ns, str, str]
"""Namespace, interface and MAC: of each, the last announcement counts."""


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """That addresses are at a MAC: ARP announcements (RFC 5227 §3), unsolicited advertisements (RFC 4861 §7.2.6).

    Attributes:
        link: Name of the interface by which it is told.
        mac: Of somebody behind the interface; empty: of the interface itself, as it is when it is told.
        addresses: Canonical texts, without prefix length.
        count: How many times it is told.
        interval_ms: Between two times, in milliseconds.
    """

    ns: Ns
    link: str
    mac: str = ""
    addresses: tuple[str, ...]
    count: int
    interval_ms: int

    @property
    def place(self) -> Place:
        """What it is about."""
        return (self.ns, self.link, self.mac)

    def rest(self) -> Announcement:
        """Return what is left to tell after one time."""
        return msgspec.structs.replace(self, count=self.count - 1)
