from __future__ import annotations

import netweft_client
import pytest
from netweft_cli import options
from netweft_common import errors


def test_pairs_become_a_mapping():
    assert options.mapping(["a=1", "b=x=y", "c="], "--opt") == {"a": "1", "b": "x=y", "c": ""}


def test_a_label_needs_no_value():
    assert options.mapping(["blue"], "--label", bare=True) == {"blue": ""}


@pytest.mark.parametrize("texts", [["a"], ["=1"], ["a=1", "a=2"]], ids=["no equals", "no key", "twice"])
def test_malformed_pairs_name_their_flag(texts):
    with pytest.raises(errors.InvalidArgument) as caught:
        options.mapping(texts, "--opt")

    assert caught.value.field == "--opt"


@pytest.mark.parametrize(
    ("flags", "namespace"),
    [
        ({}, netweft_client.NewNamespace()),
        ({"netns": "/run/netns/a"}, netweft_client.NamespacePath(path="/run/netns/a")),
        ({"pid": 7}, netweft_client.NamespacePid(pid=7)),
        ({"host_network": True}, netweft_client.HostNamespace()),
    ],
    ids=["none", "path", "pid", "host"],
)
def test_flags_say_where_the_namespace_comes_from(flags, namespace):
    assert namespace == options.sandbox_spec("c", **flags).namespace


def test_two_sources_of_the_namespace_are_refused():
    with pytest.raises(errors.InvalidArgument, match="--netns and --pid"):
        options.sandbox_spec("c", netns="/x", pid=7)


def test_dns_is_the_hosts_own_unless_a_flag_says_otherwise():
    assert options.sandbox_spec("c").dns is None
    assert options.sandbox_spec("c", dns=["192.0.2.53"]).dns == netweft_client.Dns(servers=("192.0.2.53",))


@pytest.mark.parametrize(
    ("text", "name", "address"),
    [("db:192.0.2.5", "db", "192.0.2.5"), ("db=::1", "db", "::1"), ("db:[::1]", "db", "::1"), ("db:::1", "db", "::1")],
)
def test_a_line_of_hosts_is_written_as_docker_has_it(text, name, address):
    [host] = options.sandbox_spec("c", add_host=[text]).extra_hosts

    assert (name, address) == (host.name, host.address)


@pytest.mark.parametrize(("ip", "ip6"), [("x", ""), ("::1", ""), ("", "10.0.0.1")])
def test_an_address_of_the_wrong_family_is_refused(ip, ip6):
    with pytest.raises(errors.InvalidArgument):
        options.addresses(ip, ip6)
