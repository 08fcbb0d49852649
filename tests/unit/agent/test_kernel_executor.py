"""Pure parts of the executor: which steps go together, names of files, the book-keeping of a batch."""

from __future__ import annotations

import pytest
from netweft_agent.domain import nft
from netweft_agent.domain.plan import Operation
from netweft_agent.domain.resources import (
    HOST,
    Address,
    Fdb,
    File,
    Link,
    Namespace,
    Neighbour,
    Redirect,
    Route,
    Sysctl,
    TokenBucket,
)
from netweft_agent.kernel import netns, sysctl
from netweft_agent.kernel.executor import Executor, Phase, phase
from netweft_agent.kernel.run import Run, describe
from netweft_common import errors

NS = "sandbox/s1"


def add(resource, owner="test"):
    return Operation(before=None, after=resource, owner=owner)


def drop(resource):
    return Operation(before=resource, after=None, owner="test")


@pytest.mark.parametrize(
    ("resource", "when_added", "when_removed"),
    [
        (Namespace(ns=NS), Phase.NAMESPACES, Phase.DROP_NAMESPACES),
        (Sysctl(ns=NS, path="net/x", value="1"), Phase.SYSCTLS, Phase.SYSCTLS),
        (nft.NftTable(ns=HOST, table=nft.Table("inet", "netweft")), Phase.FIREWALL, Phase.FIREWALL),
        (Link(ns=HOST, name="b", kind="bridge"), Phase.MASTERS, Phase.DROP_LINKS),
        (Link(ns=HOST, name="x", kind="vxlan"), Phase.MASTERS, Phase.DROP_LINKS),
        (Link(ns=HOST, name="v", kind="veth"), Phase.LINKS, Phase.DROP_LINKS),
        (Link(ns=HOST, name="i", kind="ifb"), Phase.LINKS, Phase.DROP_LINKS),
        (TokenBucket(ns=HOST, link="v", rate=1, burst=1, limit=1), Phase.INSIDE, Phase.INSIDE),
        (Redirect(ns=HOST, link="v", to="i"), Phase.INSIDE, Phase.INSIDE),
        (Link(ns=NS, name="eth0", kind="peer"), Phase.INSIDE, Phase.DROP_LINKS),
        (Link(ns=NS, name="lo", kind="loopback"), Phase.INSIDE, Phase.DROP_LINKS),
        (Address(ns=NS, link="eth0", address="10.0.0.2/16"), Phase.INSIDE, Phase.INSIDE),
        (Route(ns=NS, destination="0.0.0.0/0", link="eth0"), Phase.INSIDE, Phase.INSIDE),
        (Neighbour(ns=NS, link="eth0", ip="10.0.0.1", mac="02:00:00:00:00:01"), Phase.INSIDE, Phase.INSIDE),
        (Fdb(ns=NS, link="eth0", mac="02:00:00:00:00:01"), Phase.INSIDE, Phase.INSIDE),
        (File(ns=NS, path="/x", content=""), Phase.FILES, Phase.FILES),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, Phase) else value.name,
)
def test_each_kind_has_its_phase(resource, when_added, when_removed):
    assert (when_added, when_removed) == (phase(add(resource)), phase(drop(resource)))


def test_a_setting_of_a_link_waits_only_for_a_link_that_the_batch_makes():
    settings = [
        Sysctl(ns=NS, path=path, value="1")
        for path in (
            "net/ipv4/conf/eth0/log_martians",
            "net/ipv6/neigh/eth0/gc_stale_time",
            "net/ipv4/conf/eth1/log_martians",
            "net/ipv4/conf/all/log_martians",
            "net/ipv4/ip_forward",
        )
    ]
    steps = [*map(add, settings), add(Link(ns=NS, name="eth0", kind="peer"))]

    assert {0, 1} == Executor._settings_of_new_links(steps)


def test_a_failure_skips_the_rest_of_its_owner_and_keeps_what_was_done():
    steps = [add(Namespace(ns=f"sandbox/{n}"), owner) for n, owner in enumerate("abab")]
    run = Run(steps)
    error = errors.KernelError("op", "target", 1)

    run.fail(0, error)

    assert [1, 3] == run.begin(range(1, 4))
    assert [error, None, error, None] == run.results


@pytest.mark.parametrize(
    ("resource", "words"),
    [
        (Link(ns=HOST, name="nwb-1", kind="bridge"), "link nwb-1 in the host"),
        (Address(ns=NS, link="eth0", address="10.0.0.2/16"), "address eth0 10.0.0.2/16 in sandbox/s1"),
        (Namespace(ns=NS), "netns sandbox/s1"),
    ],
    ids=["link", "address", "namespace"],
)
def test_messages_name_the_object_and_where_it_is(resource, words):
    assert words == describe(add(resource))


@pytest.mark.parametrize("ns", ["sandbox/a", "network/0123-x.y_z"])
def test_the_name_of_a_namespaces_file_leads_back_to_it(ns):
    assert ns == netns.from_file_name(netns.file_name(ns))


@pytest.mark.parametrize("name", ["other-x", "sandbox-", "sandbox", "network-..", ".hidden"])
def test_other_files_are_no_namespaces(name):
    assert netns.from_file_name(name) is None


@pytest.mark.parametrize("path", ["kernel/hostname", "net/../kernel/hostname", "/net/x", "net/x\0y", ""])
def test_settings_outside_of_the_network_are_refused(path):
    with pytest.raises(errors.InvalidArgument) as raised:
        sysctl.write(path, "1")

    assert "INVALID_SYSCTL" == raised.value.reason
