"""Who becomes a host, and whose certificate is worth something.

A pending host is recorded with the digest of its token's secret. A machine that shows the secret becomes that host
once; its certificate names the host's id. A host that is deleted is known no more, and neither is its certificate: no
list of revoked ones is kept. Without an authority none of this is: certificates come from elsewhere, and agents with
one register themselves.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

from netweft_common import clock, errors, pki
from netweft_common.identity import Identity, Role

from netweft_controller.domain import commits, fields, hosts
from netweft_controller.domain.objects import Host, Record
from netweft_controller.domain.state import State
from netweft_controller.engine.requests import Done, Outcome, Request
from netweft_controller.sync.replica import Replica

TTL = dt.timedelta(hours=1)
TTL_MAX = dt.timedelta(days=7)


class Admission:
    """Admits hosts.

    Args:
        replica: Intent.
        authority: Who signs; None: nobody.
        life: How long a host's certificate is good.
        now: The time, for certificates.
        shared_s: Seconds since 1970 by a clock that all controllers share, for tokens: who makes one is not who
            is shown it. None: `now`.
    """

    def __init__(
        self,
        *,
        replica: Replica,
        authority: pki.Authority | None,
        life: dt.timedelta,
        now: Callable[[], dt.datetime] = clock.SYSTEM.now,
        shared_s: Callable[[], float] | None = None,
    ) -> None:
        self._replica = replica
        self._authority = authority
        self._life = life
        self._now = now
        self._shared_s = shared_s if shared_s is not None else lambda: now().timestamp()

    async def create_token(self, request: Request, name: str, ttl_s: int) -> tuple[pki.Token, Record[Host]]:
        """Record a pending host and return the token that stands for it. Idempotent by request, but for the secret.

        Raises:
            FailedPrecondition: There is no authority, another host has the name, or the host has joined.
            InvalidArgument: The name is no host name, or the time too long.
        """
        authority = self._require_authority()
        if ttl_s > TTL_MAX.total_seconds():
            raise fields.invalid("ttl_seconds", f"{ttl_s} is more than {TTL_MAX.days} days", "TTL_TOO_LONG")
        host_id = request.id_for("host")
        token = pki.new_token(host_id, authority)
        ends_s = self._shared_s() + (ttl_s or TTL.total_seconds())
        host = Host(
            id=host_id,
            name=name or f"joining-{host_id[:12]}",
            agent_target="",
            token_digest=pki.digest(token.secret),
            token_expires_ms=int(ends_s * 1000),
            wants_name=not name,
        )
        once = request.remember(Outcome(items=(Done(id=host_id, told=True),)))
        known = await self._replica.find_request(request.key)
        if known is not None:
            request.recall(known)  # refuses another body
        await self._replica.decide(lambda state: hosts.pending(state, host, once, known))
        return token, self._replica.state.hosts[host_id]

    async def join(self, host_id: str, secret: str, request_pem: bytes, name: str) -> tuple[bytes, str]:
        """Let a machine become a pending host; returns its certificate and its name.

        Raises:
            Unauthenticated: The token is unknown, used up or expired.
            FailedPrecondition: There is no authority, or another host has the name.
            InvalidArgument: The certificate request is unusable; the token is still good.
        """
        authority = self._require_authority()
        certificate = self._issue(authority, request_pem, host_id)

        def decision(state: State) -> commits.Commit:
            return hosts.join(
                state,
                host_id,
                is_secret=lambda kept: pki.is_secret_of(secret, kept),
                name=name,
                now_ms=int(self._shared_s() * 1000),
            )

        await self._replica.decide(decision)
        return certificate, self._replica.state.hosts[host_id].value.name

    def renew(self, caller: Identity, request_pem: bytes) -> bytes:
        """Return the next certificate of an agent's host.

        Raises:
            FailedPrecondition: There is no authority.
            PermissionDenied: The caller is no host's agent, or its host is not known by this certificate's name.
        """
        authority = self._require_authority()
        if caller.role is not Role.AGENT or caller.name not in self._replica.state.hosts:
            raise errors.PermissionDenied(
                "NOT_A_HOST", f"{caller} has no certificate that this cluster gave to a host; join first"
            )
        return self._issue(authority, request_pem, caller.name)

    def admit(self, caller: Identity) -> None:
        """Refuse agents of hosts that were deleted, or that never joined.

        Raises:
            Unauthenticated: It is such a one.
        """
        if self._authority is None or caller.role is not Role.AGENT or not self._replica.is_loaded:
            return
        state = self._replica.state
        if caller.name not in state.hosts and caller.name not in state.host_ids_by_name:
            raise errors.Unauthenticated(
                "HOST_UNKNOWN",
                f"{caller} is no host of this cluster: it was deleted, or has not joined; join it with a token",
            )

    def _issue(self, authority: pki.Authority, request_pem: bytes, host_id: str) -> bytes:
        holder = Identity(role=Role.AGENT, name=host_id)
        names = [pki.agent_server_name(host_id)]
        return authority.issue(request_pem, holder, names=names, life=self._life, now=self._now())

    def _require_authority(self) -> pki.Authority:
        if self._authority is None:
            raise errors.FailedPrecondition(
                "NO_AUTHORITY",
                "this controller signs no certificates; start it with ca_key, or give hosts certificates by hand",
            )
        return self._authority
