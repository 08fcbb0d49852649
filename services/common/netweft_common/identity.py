"""Who calls: the role and name in the client certificate, or `local`.

A certificate names its holder in a URI subject alternative name `netweft://<role>/<name>` (RFC 5280 §4.2.1.6). A
caller on a unix socket, or on a server without TLS (which listens on loopback only), has the role `local`: the
socket's file mode is its check. Handlers read the caller with `current()`.
"""

from __future__ import annotations

import contextvars
import dataclasses
import enum
import re
from collections.abc import Iterable, Mapping

from netweft_common import errors

SCHEME = "netweft"
_URI = re.compile(r"netweft://(?P<role>[a-z]+)/(?P<name>[A-Za-z0-9_.-]{1,253})")

# Health is for probes and reflection for tools; neither tells anything that the published protos do not.
_OPEN_SERVICES = (
    "grpc.health.v1.Health",
    "grpc.reflection.v1alpha.ServerReflection",
    "grpc.reflection.v1.ServerReflection",
)


class Role(enum.StrEnum):
    """What a caller is."""

    CONTROLLER = "controller"
    IPAM = "ipam"
    AGENT = "agent"
    CLIENT = "client"
    ADMIN = "admin"
    LOCAL = "local"
    GUEST = "guest"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A caller.

    Attributes:
        role: What it is.
        name: Which one: for an agent its host id or host name as the certificate says; empty for `local`.
    """

    role: Role
    name: str = ""

    def __str__(self) -> str:
        return f"{self.role}/{self.name}" if self.name else str(self.role)


LOCAL = Identity(role=Role.LOCAL)
GUEST = Identity(role=Role.GUEST)
"""Who has no certificate yet, at a server that asks for none."""
_CERTIFICATE_ROLES = {str(role): role for role in Role if role not in (Role.LOCAL, Role.GUEST)}

# Roles allowed, by full method name `/package.Service/Method` or `/package.Service/*`.
Access = Mapping[str, frozenset[Role]]

_current: contextvars.ContextVar[Identity] = contextvars.ContextVar("netweft_identity", default=LOCAL)


def current() -> Identity:
    """Return the caller of the RPC being handled; outside of one, `local`."""
    return _current.get()


def set_current(identity: Identity) -> contextvars.Token[Identity]:
    """Set the caller for the running task; the interceptor does so, and tests may."""
    return _current.set(identity)


def require_self(name: str, *aliases: str, what: str = "host") -> None:
    """Refuse an agent that speaks for another host than its own; every other role may pass.

    Args:
        name: Host that the request is about, as the certificate would name it.
        aliases: Other names of the same host.
        what: Word for the object in the message.

    Raises:
        PermissionDenied: The caller is an agent of another name.
    """
    caller = current()
    if caller.role is Role.AGENT and caller.name not in (name, *aliases):
        raise errors.PermissionDenied(
            "FOREIGN_HOST",
            f"agent {caller.name} may not act for {what} {name}: use the certificate of that {what}",
            caller=str(caller),
            host=name,
        )


def from_uris(names: Iterable[str]) -> Identity:
    """Return the identity that a certificate's subject alternative names give.

    Raises:
        Unauthenticated: None, or more than one, of them is `netweft://<role>/<name>` with a known role.
    """
    found = [name for name in names if name.startswith(f"{SCHEME}://")]
    if len(found) != 1:
        raise errors.Unauthenticated(
            "IDENTITY_MISSING",
            f"the client certificate has {len(found)} URI names of the form netweft://<role>/<name>, and needs one; "
            "issue it anew",
        )
    match = _URI.fullmatch(found[0])
    role = _CERTIFICATE_ROLES.get(match["role"]) if match else None
    if match is None or role is None:
        allowed = ", ".join(_CERTIFICATE_ROLES)
        raise errors.Unauthenticated(
            "IDENTITY_MALFORMED",
            f"the client certificate says {found[0]!r}; it must be netweft://<role>/<name> with a role of {allowed}",
        )
    return Identity(role=role, name=match["name"])


def roles_of(access: Access | None, method: str) -> frozenset[Role] | None:
    """Return the roles that may call a method; None means every one that has an identity."""
    if access is None:
        return None
    if is_open(method):
        return None
    service = method[1:].rpartition("/")[0]
    return access.get(method, access.get(f"/{service}/*", frozenset()))


def is_open(method: str) -> bool:
    """Return whether a method is one of health or reflection, which every identity may call."""
    return method[1:].rpartition("/")[0] in _OPEN_SERVICES


def authorise(caller: Identity, method: str, roles: frozenset[Role] | None) -> None:
    """Refuse a caller whose role is not among the roles; `local` may do all, a guest only what names him.

    Raises:
        PermissionDenied: The role is not among them.
    """
    if caller.role is Role.LOCAL or (roles is None and (caller.role is not Role.GUEST or is_open(method))):
        return
    if roles is not None and caller.role in roles:
        return
    allowed = ", ".join(sorted(roles or ())) or "nobody but a local caller"
    raise errors.PermissionDenied(
        "ROLE_NOT_ALLOWED",
        f"{caller} may not call {method}: allowed are {allowed}; use a certificate of such a role",
        caller=str(caller),
        method=method,
    )
