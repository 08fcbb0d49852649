"""Sandboxes as a whole: namespace, default routes, hosts, resolv.conf (libnetwork's rules)."""

from __future__ import annotations

from ipaddress import ip_interface

import pytest
from netweft_agent.domain import sandbox as domain
from netweft_agent.domain.resources import File, Link, Namespace, Route, Sysctl

from tests.support.agent import FACTS, endpoint, oid, sandbox


def member(number=1001, name="net", *, v4="10.0.0.1/24", v6="", internal=False, **fields):
    gateways = {int(version): ip_interface(text) for version, text in (("4", v4), ("6", v6)) if text}
    fields.setdefault("interface_name", f"if{number}")
    return domain.Member(endpoint=endpoint(number, **fields), network_name=name, internal=internal, gateways=gateways)


ONE, TWO, THREE = 1001, 1002, 1003

CHOICES = {
    "none without endpoints": ([], 4, None),
    "none where nobody offers": ([member(ONE, v4="")], 4, None),
    "the only one": ([member(ONE)], 4, ONE),
    "the higher priority": ([member(ONE), member(TWO, gateway_priority=1)], 4, TWO),
    "a negative priority is lower": ([member(ONE, gateway_priority=-1), member(TWO)], 4, TWO),
    "priority before internal": ([member(ONE), member(TWO, internal=True, gateway_priority=1)], 4, TWO),
    "not internal": ([member(ONE, "a", internal=True), member(TWO, "b")], 4, TWO),
    "internal before families": ([member(ONE, "a", internal=True, v6="fd00::1/64"), member(TWO, "b")], 4, TWO),
    "more families": ([member(ONE, "a"), member(TWO, "b", v6="fd00::1/64")], 4, TWO),
    "families before name": ([member(ONE, "a"), member(TWO, "z", v6="fd00::1/64")], 4, TWO),
    "the name": ([member(ONE, "net-b"), member(TWO, "net-a")], 4, TWO),
    "names compare as text": ([member(ONE, "net10"), member(TWO, "net9")], 4, ONE),
    "the id, last of all": ([member(TWO, "net"), member(ONE, "net")], 4, ONE),
    "IPv6 apart from IPv4": ([member(ONE, "a"), member(TWO, "b", v4="", v6="fd00::1/64")], 6, TWO),
    "a priority without a gateway of that version counts nothing": (
        [member(ONE, "a"), member(TWO, "b", v4="", v6="fd00::1/64", gateway_priority=9)],
        4,
        ONE,
    ),
}


@pytest.mark.parametrize("backwards", [False, True], ids=["as given", "backwards"])
@pytest.mark.parametrize(("members", "version", "expected"), CHOICES.values(), ids=CHOICES)
def test_the_default_route_is_given_by(members, version, expected, backwards):
    chosen = domain.gateway_member(list(reversed(members)) if backwards else members, version)

    assert (None if expected is None else oid(expected)) == (None if chosen is None else chosen.endpoint.id)


def render(box, *members, resolv_conf="nameserver 192.0.2.53\n"):
    return domain.render(box, members, FACTS, resolv_conf)


def test_a_sandbox_of_ours_has_namespace_loopback_and_files():
    box = sandbox()
    directory = f"/run/netweft/sandboxes/{box.id}"

    kinds = {one.key: type(one) for one in render(box)}

    assert {
        ("netns", box.ns): Namespace,
        ("sysctl", box.ns, "net/ipv6/conf/default/disable_ipv6"): Sysctl,
        ("link", box.ns, "lo"): Link,
        ("file", box.ns, f"{directory}/hosts"): File,
        ("file", box.ns, f"{directory}/resolv.conf"): File,
    } == kinds


def test_a_given_namespace_keeps_its_settings_and_its_files_are_written_in_place():
    box = sandbox(source="/run/netns/c1", hosts_path="/c/hosts", resolv_conf_path="/c/resolv.conf")

    wanted = render(box)

    assert Namespace(ns=box.ns, source="/run/netns/c1") in wanted
    assert [] == [one for one in wanted if isinstance(one, Sysctl)]
    assert {"/c/hosts": True, "/c/resolv.conf": True} == {
        one.path: one.in_place for one in wanted if isinstance(one, File)
    }


def test_the_hosts_own_namespace_is_left_alone():
    assert render(sandbox(source="host"), member()) == ()


def test_default_routes_go_by_the_chosen_endpoints():
    box = sandbox()

    wanted = render(box, member(ONE, "a"), member(TWO, "b", v4="", v6="fd00::1/64", interface_name="net6"))

    assert {
        Route(ns=box.ns, destination="0.0.0.0/0", link="if1001", via="10.0.0.1"),
        Route(ns=box.ns, destination="::/0", link="net6", via="fd00::1"),
    } == {one for one in wanted if isinstance(one, Route)}


LOCALHOST = "127.0.0.1\tlocalhost\n"
LOCALHOST6 = (
    "::1\tlocalhost ip6-localhost ip6-loopback\n"
    "fe00::\tip6-localnet\n"
    "ff00::\tip6-mcastprefix\n"
    "ff02::1\tip6-allnodes\n"
    "ff02::2\tip6-allrouters\n"
)
V4 = (ip_interface("10.0.0.5/24"),)
DUAL = (*V4, ip_interface("fd00::5/64"))

HOSTS = {
    "nothing but localhost": (sandbox(), [], False, LOCALHOST),
    "IPv6 where the sandbox has it": (sandbox(), [], True, LOCALHOST + LOCALHOST6),
    "extra hosts before its own": (
        sandbox(hostname="web", extra_hosts=(("db", "10.9.9.9"), ("db6", "fd00::9"))),
        [member(addresses=V4)],
        False,
        LOCALHOST + "10.9.9.9\tdb\nfd00::9\tdb6\n10.0.0.5\tweb\n",
    ),
    "no line of its own without a hostname": (sandbox(), [member(addresses=V4)], False, LOCALHOST),
    "the name and its first label": (
        sandbox(hostname="web.example.net"),
        [member(addresses=V4)],
        False,
        LOCALHOST + "10.0.0.5\tweb.example.net web\n",
    ),
    "with a domain": (
        sandbox(hostname="web", domainname="example.net"),
        [member(addresses=V4)],
        False,
        LOCALHOST + "10.0.0.5\tweb.example.net web\n",
    ),
    "a line for each address of each endpoint, by network": (
        sandbox(hostname="web"),
        [member(TWO, "b", addresses=(ip_interface("10.2.0.5/24"),)), member(ONE, "a", addresses=DUAL)],
        True,
        LOCALHOST + LOCALHOST6 + "10.0.0.5\tweb\nfd00::5\tweb\n10.2.0.5\tweb\n",
    ),
}


@pytest.mark.parametrize(("box", "members", "ipv6", "expected"), HOSTS.values(), ids=HOSTS)
def test_hosts(box, members, ipv6, expected):
    assert expected == domain.hosts(box, members, ipv6=ipv6)


BASE = (
    "# made by hand\nnameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch example.net corp\noptions ndots:2 rotate\n"
)

RESOLV = {
    "the host's, without IPv6 servers where there is no IPv6": (
        sandbox(),
        BASE,
        False,
        "nameserver 192.0.2.53\nsearch example.net corp\noptions ndots:2 rotate\n",
    ),
    "the host's, whole": (
        sandbox(),
        BASE,
        True,
        "nameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch example.net corp\noptions ndots:2 rotate\n",
    ),
    "loopback servers are others inside": (
        sandbox(),
        "nameserver 127.0.0.53\nnameserver 127.1.2.3\nnameserver 192.0.2.53\n",
        False,
        "nameserver 192.0.2.53\n",
    ),
    "none left: public ones": (
        sandbox(),
        "nameserver 127.0.0.53\nnameserver ::1\n",
        False,
        "nameserver 8.8.8.8\nnameserver 8.8.4.4\n",
    ),
    "none left, with IPv6": (
        sandbox(),
        "nameserver ::1\n",
        True,
        "nameserver 8.8.8.8\nnameserver 8.8.4.4\nnameserver 2001:4860:4860::8888\nnameserver 2001:4860:4860::8844\n",
    ),
    "no file at all": (sandbox(), "", False, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"),
    "given servers are kept as they are, loopback too": (
        sandbox(dns_servers=("127.0.0.1", "2001:db8::1")),
        BASE,
        False,
        "nameserver 127.0.0.1\nnameserver 2001:db8::1\nsearch example.net corp\noptions ndots:2 rotate\n",
    ),
    "given search and options replace": (
        sandbox(dns_search=("a.b",), dns_options=("ndots:0",)),
        BASE,
        False,
        "nameserver 192.0.2.53\nsearch a.b\noptions ndots:0\n",
    ),
    "a dot is no search at all": (
        sandbox(dns_search=(".",), dns_options=("x",)),
        BASE,
        False,
        "nameserver 192.0.2.53\noptions x\n",
    ),
    "domain counts as search, the last one wins": (
        sandbox(),
        "nameserver 192.0.2.1\nsearch a\ndomain b\n",
        False,
        "nameserver 192.0.2.1\nsearch b\n",
    ),
    "comments and words that are not understood are dropped": (
        sandbox(),
        "; old\nnameserver 192.0.2.1 # first\nsortlist 10.0.0.0\nnameserver\n\n",
        False,
        "nameserver 192.0.2.1\n",
    ),
    "a zone is part of the server": (sandbox(), "nameserver fe80::1%eth0\n", True, "nameserver fe80::1%eth0\n"),
    "what is no address is left to the resolver": (
        sandbox(),
        "nameserver dns.local\n",
        False,
        "nameserver dns.local\n",
    ),
}


@pytest.mark.parametrize(("box", "base", "ipv6", "expected"), RESOLV.values(), ids=RESOLV)
def test_resolv_conf(box, base, ipv6, expected):
    assert expected == domain.resolv(box, base, ipv6=ipv6)


def test_files_have_ipv6_when_an_endpoint_has():
    wanted = render(sandbox(hostname="web"), member(addresses=DUAL), resolv_conf=BASE)

    hosts, resolv = (one.content for one in wanted if isinstance(one, File))

    assert "ip6-localhost" in hosts
    assert "2001:db8::53" in resolv
