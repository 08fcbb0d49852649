"""Who a certificate says its holder is, and what that lets him do."""

from __future__ import annotations

import contextvars

import pytest
from netweft_common import errors, identity
from netweft_common.identity import Identity, Role

ACCESS = {
    "/netweft.ipam.v1.IpamService/*": frozenset({Role.CONTROLLER}),
    "/netweft.ipam.v1.IpamService/GetPool": frozenset({Role.CLIENT}),
}


@pytest.mark.parametrize("role", [role for role in Role if role not in (Role.LOCAL, Role.GUEST)])
def test_a_certificate_gives_role_and_name(role):
    names = ["host.example", f"netweft://{role}/web-1.example"]

    assert Identity(role=role, name="web-1.example") == identity.from_uris(names)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], "IDENTITY_MISSING"),
        (["spiffe://x/agent"], "IDENTITY_MISSING"),
        (["netweft://agent/a", "netweft://admin/a"], "IDENTITY_MISSING"),
        (["netweft://root/a"], "IDENTITY_MALFORMED"),
        (["netweft://local/a"], "IDENTITY_MALFORMED"),
        (["netweft://agent/"], "IDENTITY_MALFORMED"),
        (["netweft://agent/a/b"], "IDENTITY_MALFORMED"),
        (["netweft://agent/a\n"], "IDENTITY_MALFORMED"),
    ],
)
def test_a_certificate_that_names_nobody_is_refused(names, reason):
    with pytest.raises(errors.Unauthenticated) as caught:
        identity.from_uris(names)

    assert reason == caught.value.reason


@pytest.mark.parametrize(
    ("access", "method", "expected"),
    [
        (None, "/netweft.ipam.v1.IpamService/GetPool", None),
        (ACCESS, "/netweft.ipam.v1.IpamService/GetPool", {Role.CLIENT}),
        (ACCESS, "/netweft.ipam.v1.IpamService/ListPools", {Role.CONTROLLER}),
        (ACCESS, "/netweft.agent.v1.AgentService/Apply", set()),
        (ACCESS, "/grpc.health.v1.Health/Check", None),
    ],
    ids=["no-table", "method", "service", "unknown", "health"],
)
def test_a_method_has_its_roles_and_nobody_where_the_table_is_silent(access, method, expected):
    assert expected == identity.roles_of(access, method)


def test_a_role_outside_the_list_is_refused_and_told_which_are_allowed():
    with pytest.raises(errors.PermissionDenied, match="agent/a may not call /x/Y: allowed are admin, client"):
        identity.authorise(Identity(role=Role.AGENT, name="a"), "/x/Y", frozenset({Role.CLIENT, Role.ADMIN}))


@pytest.mark.parametrize("roles", [None, frozenset(), frozenset({Role.AGENT})], ids=["open", "nobody", "agent"])
def test_a_local_caller_may_do_all(roles):
    assert identity.authorise(identity.LOCAL, "/x/Y", roles) is None


@pytest.mark.parametrize(
    ("caller", "allowed"),
    [
        (Identity(role=Role.AGENT, name="h1"), True),
        (Identity(role=Role.AGENT, name="host-1"), True),
        (Identity(role=Role.AGENT, name="h2"), False),
        (Identity(role=Role.CONTROLLER, name="c"), True),
        (identity.LOCAL, True),
    ],
    ids=str,
)
def test_an_agent_speaks_for_its_own_host_only(caller, allowed):
    def act() -> bool:
        identity.set_current(caller)
        try:
            identity.require_self("h1", "host-1")
        except errors.PermissionDenied:
            return False
        return True

    assert allowed is contextvars.copy_context().run(act)
