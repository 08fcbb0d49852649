"""Keeping a joined host's certificate good: a new one is asked for when two thirds of its life are over."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable
from pathlib import Path

import structlog
from netweft.controller.v1 import host_pb2, host_pb2_grpc
from netweft_common import client, clock, credentials, errors, pki

log = structlog.get_logger(__name__)

LOOK_S = 60.0
"""How often the certificate's age is looked at, at most; a short life is looked at more often."""


class Certificate:
    """The certificate of a joined host.

    Args:
        folder: Where it is kept, see `credentials`.
        connection: To the controller, with that certificate.
        clock_: Time.
    """

    def __init__(self, folder: Path, connection: client.Connection, clock_: clock.Clock = clock.SYSTEM) -> None:
        self._folder = folder
        self._connection = connection
        self._stub = host_pb2_grpc.HostServiceStub(connection.channel)
        self._clock = clock_

    async def run(self) -> None:
        """Renew until cancelled."""
        while True:
            start, end = pki.validity(credentials.files(self._folder).cert.read_bytes())
            issued = start + pki.SKEW
            due = issued + (end - issued) * 2 / 3
            if self._clock.now() >= due:
                try:
                    await self.renew()
                except errors.NetweftError as error:
                    log.warning("certificate not renewed", error=error.message, good_until=end.isoformat())
            await self._clock.sleep(_pause_s(due, end, self._clock.now))

    async def renew(self) -> None:
        """Get the next certificate and keep it; servers and channels take it by themselves.

        Raises:
            NetweftError: The controller gave none, or it could not be kept; the one before stays.
        """
        key, request = pki.new_request()
        answer = await self._connection.call(
            self._stub.RenewCertificate, host_pb2.RenewCertificateRequest(certificate_request=request), timeout_s=10
        )
        ca = await asyncio.to_thread(credentials.files(self._folder).ca.read_bytes)
        await asyncio.to_thread(credentials.put, self._folder, ca=ca, cert=answer.certificate, key=key)
        log.info("certificate renewed", good_until=pki.validity(answer.certificate)[1].isoformat())


def _pause_s(due: dt.datetime, end: dt.datetime, now: Callable[[], dt.datetime]) -> float:
    """Return how long to wait: until it is due, or a part of what is left when it has been."""
    left = due - now() if now() < due else (end - now()) / 10
    return min(LOOK_S, max(1.0, left.total_seconds()))
