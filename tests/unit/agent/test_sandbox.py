"""Sandboxes as a whole: namespace, default routes, hosts, resolv.conf (libnetwork's rules)."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest
from msgspec.structs import replace
from netweft_agent.domain import sandbox as domain
from netweft_agent.domain.objects import HostFiles
from netweft_agent.domain.resources import File, Link, Namespace, Route, Sysctl

from tests.support.agent import FACTS, endpoint, oid, sandbox


def member(number=1001, name="net", *, v4="10.0.0.1/24", v6="", internal=False, others=(), **fields):
    gateways = {int(version): ip_interface(text) for version, text in (("4", v4), ("6", v6)) if text}
    fields.setdefault("interface_name", f"if{number}")
    routes = {ip_network(subnet): ip_interface(gateway) for subnet, gateway in others}
    return domain.Member(
        endpoint=endpoint(number, **fields), network_name=name, internal=internal, gateways=gateways, routes=routes
    )


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


def render(box, *members, facts=FACTS, **host):
    return domain.render(box, members, facts, HostFiles(**{"resolv_conf": "nameserver 192.0.2.53\n", **host}))


TO_10_9 = ("10.9.0.0/24", "10.0.0.1/24")

FURTHER = {
    "none where the default route leads there": ([member(ONE, others=[TO_10_9])], {}),
    "of an internal network": ([member(ONE, v4="", others=[TO_10_9])], {"10.9.0.0/24": f"if{ONE}"}),
    "beside another's default route": (
        [member(ONE, "b", others=[TO_10_9]), member(TWO, "a", v4="10.2.0.1/24")],
        {"10.9.0.0/24": f"if{ONE}"},
    ),
    "none to what the sandbox is in": (
        [member(ONE, v4="", others=[TO_10_9]), member(TWO, addresses=(ip_interface("10.9.0.7/24"),))],
        {},
    ),
    "the first network's by name, whatever came first": (
        [member(TWO, "b", v4="", others=[TO_10_9]), member(ONE, "a", v4="", others=[TO_10_9])],
        {"10.9.0.0/24": f"if{ONE}"},
    ),
    "of both families": (
        [member(ONE, v4="", others=[TO_10_9, ("fd00:9::/64", "fd00:1::1/64")])],
        {"10.9.0.0/24": f"if{ONE}", "fd00:9::/64": f"if{ONE}"},
    ),
}


@pytest.mark.parametrize(("members", "expected"), FURTHER.values(), ids=FURTHER)
def test_further_subnets_of_a_network_have_routes(members, expected):
    routes = [one for one in render(sandbox(), *members) if isinstance(one, Route)]

    assert expected == {one.destination: one.link for one in routes if not one.destination.endswith("/0")}


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


def test_in_the_hosts_own_namespace_nothing_is_made_but_the_sandboxs_files():
    box = sandbox(source="host")

    wanted = render(box, member())

    assert {f"/run/netweft/sandboxes/{box.id}/{name}" for name in ("hosts", "resolv.conf")} == {
        one.path for one in wanted if isinstance(one, File)
    }
    assert len(wanted) == 2


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
    "localhost: 127.0.0.1 in each": (sandbox(), [], False, LOCALHOST),
    "localhost: IPv6 names where an endpoint has IPv6": (sandbox(), [], True, LOCALHOST + LOCALHOST6),
    "extra hosts: after localhost, before its own": (
        sandbox(hostname="web", extra_hosts=(("db", "10.9.9.9"), ("db6", "fd00::9"))),
        [member(addresses=DUAL)],
        True,
        LOCALHOST + LOCALHOST6 + "10.9.9.9\tdb\nfd00::9\tdb6\n10.0.0.5\tweb\nfd00::5\tweb\n",
    ),
    "extra hosts: one name may have several addresses": (
        sandbox(extra_hosts=(("db", "10.9.9.9"), ("db", "10.9.9.8"))),
        [],
        False,
        LOCALHOST + "10.9.9.9\tdb\n10.9.9.8\tdb\n",
    ),
    "IPv6 lines: left out where the container has none, extra hosts too": (
        sandbox(hostname="web", extra_hosts=(("db", "10.9.9.9"), ("db6", "fd00::9"))),
        [member(addresses=V4)],
        False,
        LOCALHOST + "10.9.9.9\tdb\n10.0.0.5\tweb\n",
    ),
    "IPv6 lines: none for an address that the interface has not": (
        sandbox(hostname="web"),
        [replace(member(addresses=DUAL), ipv6=False)],
        True,
        LOCALHOST + LOCALHOST6 + "10.0.0.5\tweb\n",
    ),
    "own lines: none without a hostname": (sandbox(), [member(addresses=V4)], False, LOCALHOST),
    "own lines: none without an endpoint": (sandbox(hostname="web"), [], False, LOCALHOST),
    "own lines: the full name and its first label": (
        sandbox(hostname="web.example.net"),
        [member(addresses=V4)],
        False,
        LOCALHOST + "10.0.0.5\tweb.example.net web\n",
    ),
    "own lines: host and domain name make the full name": (
        sandbox(hostname="web", domainname="example.net"),
        [member(addresses=V4)],
        False,
        LOCALHOST + "10.0.0.5\tweb.example.net web\n",
    ),
    "own lines: the first label is that of the whole": (
        sandbox(hostname="a.b", domainname="example.net"),
        [member(addresses=V4)],
        False,
        LOCALHOST + "10.0.0.5\ta.b.example.net a\n",
    ),
    "own lines: one for each address of each endpoint, by network": (
        sandbox(hostname="web"),
        [member(TWO, "b", addresses=(ip_interface("10.2.0.5/24"),)), member(ONE, "a", addresses=DUAL)],
        True,
        LOCALHOST + LOCALHOST6 + "10.0.0.5\tweb\nfd00::5\tweb\n10.2.0.5\tweb\n",
    ),
    "host-gateway: an address of the host in each family": (
        sandbox(extra_hosts=(("up", "host-gateway"), ("db", "10.9.9.9"))),
        [],
        True,
        LOCALHOST + LOCALHOST6 + "10.0.0.1\tup\nfd00::1\tup\n10.9.9.9\tdb\n",
    ),
    "host-gateway: none of a family that the container has not": (
        sandbox(extra_hosts=(("up", "host-gateway"),)),
        [],
        False,
        LOCALHOST + "10.0.0.1\tup\n",
    ),
}


@pytest.mark.parametrize(("box", "members", "ipv6", "expected"), HOSTS.values(), ids=HOSTS)
def test_hosts_by_libnetworks_rule_of(box, members, ipv6, expected):
    made = domain.hosts(box, members, ipv6=ipv6, gateways=("10.0.0.1", "fd00::1"))

    assert expected == made.content
    assert expected == LOCALHOST + (LOCALHOST6 if ipv6 else "") + "".join(f"{line}\n" for line in made.lines)


V4_HOST, DUAL_HOST = {4: ip_interface("10.0.0.1/24")}, {4: ip_interface("10.0.0.1/24"), 6: ip_interface("fd00::1/64")}
VTEP = replace(FACTS, vtep="192.0.2.1")

GATEWAYS = {
    "nowhere without a default route": ([member(v4="")], VTEP, ()),
    "the bridge's address": ([replace(member(), host=V4_HOST)], VTEP, ("10.0.0.1",)),
    "the bridge's addresses, each by its own default route": (
        [replace(member(v6="fd00::1/64"), host=DUAL_HOST)],
        FACTS,
        ("10.0.0.1", "fd00::1"),
    ),
    "the bridge's address, though another router leads out": (
        [replace(member(v4="10.0.0.254/24"), host=V4_HOST)],
        VTEP,
        ("10.0.0.1",),
    ),
    "the tunnel address, from an overlay": ([member()], VTEP, ("192.0.2.1",)),
    "nowhere from a bridge without an address of the family": (
        [replace(member(v6="fd00::1/64"), host={6: ip_interface("fd00::1/64")})],
        VTEP,
        ("fd00::1",),
    ),
    "what the settings say": (
        [replace(member(), host=V4_HOST)],
        replace(VTEP, host_gateways=("198.51.100.1",)),
        ("198.51.100.1",),
    ),
}


@pytest.mark.parametrize(("members", "facts", "expected"), GATEWAYS.values(), ids=GATEWAYS)
def test_host_gateway_is(members, facts, expected):
    assert expected == domain.host_gateways(members, facts)


BASE = (
    "# made by hand\nnameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch example.net corp\noptions ndots:2 rotate\n"
)
PUBLIC = "The host names no server that the sandbox could reach: these are public ones."

RESOLV = {
    "legacy mode: IPv6 servers removed where there is no IPv6": (
        sandbox(),
        BASE,
        False,
        "nameserver 192.0.2.53\nsearch example.net corp\noptions ndots:2 rotate\n",
        [],
    ),
    "legacy mode: all else is the host's": (
        sandbox(),
        BASE,
        True,
        "nameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch example.net corp\noptions ndots:2 rotate\n",
        [],
    ),
    "legacy mode: loopback servers removed": (
        sandbox(),
        "nameserver 127.0.0.53\nnameserver 127.1.2.3\nnameserver ::1\nnameserver 192.0.2.53\n",
        True,
        "nameserver 192.0.2.53\n",
        [],
    ),
    "legacy mode: none left, public ones": (
        sandbox(),
        "nameserver 127.0.0.53\nnameserver ::1\n",
        False,
        "nameserver 8.8.8.8\nnameserver 8.8.4.4\n",
        [PUBLIC],
    ),
    "legacy mode: none left for want of IPv6, public ones": (
        sandbox(),
        "nameserver 2001:db8::53\n",
        False,
        "nameserver 8.8.8.8\nnameserver 8.8.4.4\n",
        [PUBLIC],
    ),
    "legacy mode: none left, public ones of both families with IPv6": (
        sandbox(),
        "nameserver ::1\n",
        True,
        "nameserver 8.8.8.8\nnameserver 8.8.4.4\nnameserver 2001:4860:4860::8888\nnameserver 2001:4860:4860::8844\n",
        [PUBLIC],
    ),
    "legacy mode: no file at all": (sandbox(), "", False, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n", [PUBLIC]),
    "overrides: servers kept as they are, loopback and IPv6 too": (
        sandbox(dns_servers=("127.0.0.1", "2001:db8::1")),
        BASE,
        False,
        "nameserver 127.0.0.1\nnameserver 2001:db8::1\nsearch example.net corp\noptions ndots:2 rotate\n",
        ["The sandbox's own: servers."],
    ),
    "overrides: search and options replace": (
        sandbox(dns_search=("a.b",), dns_options=("ndots:0",)),
        BASE,
        False,
        "nameserver 192.0.2.53\nsearch a.b\noptions ndots:0\n",
        ["The sandbox's own: search, options."],
    ),
    "overrides: a single dot is no search at all": (
        sandbox(dns_search=(".",), dns_options=("x",)),
        BASE,
        False,
        "nameserver 192.0.2.53\noptions x\n",
        ["The sandbox's own: search, options."],
    ),
    "overrides: a dot among others is none": (
        sandbox(dns_search=("a.b", ".")),
        "nameserver 192.0.2.53\n",
        False,
        "nameserver 192.0.2.53\nsearch a.b\n",
        ["The sandbox's own: search."],
    ),
    "ndots: the host's and the sandbox's stay, without a resolver of ours": (
        sandbox(dns_options=("ndots:5",)),
        "nameserver 192.0.2.1\noptions ndots:many\n",
        False,
        "nameserver 192.0.2.1\noptions ndots:5\n",
        ["The sandbox's own: options."],
    ),
    "reading: domain counts as search, the last one wins": (
        sandbox(),
        "nameserver 192.0.2.1\nsearch a\ndomain b\n",
        False,
        "nameserver 192.0.2.1\nsearch b\n",
        [],
    ),
    "reading: options add up": (
        sandbox(),
        "nameserver 192.0.2.1\noptions a b\noptions c\n",
        False,
        "nameserver 192.0.2.1\noptions a b c\n",
        [],
    ),
    "reading: the host's own search of a dot stays": (
        sandbox(),
        "nameserver 192.0.2.1\nsearch .\n",
        False,
        "nameserver 192.0.2.1\nsearch .\n",
        [],
    ),
    "reading: comments and words without a value are dropped": (
        sandbox(),
        "; old\nnameserver 192.0.2.1 # first\nnameserver\nsearch\noptions\n\n",
        False,
        "nameserver 192.0.2.1\n",
        [],
    ),
    "reading: directives that are not understood are copied": (
        sandbox(),
        "sortlist 10.0.0.0\nnameserver 192.0.2.1\n",
        False,
        "nameserver 192.0.2.1\nsortlist 10.0.0.0\n",
        [],
    ),
    "reading: a zone is part of the server": (
        sandbox(),
        "nameserver fe80::1%eth0\n",
        True,
        "nameserver fe80::1%eth0\n",
        [],
    ),
    "reading: a server that is no address is left out, and told": (
        sandbox(),
        "nameserver dns.local\nnameserver 192.0.2.1\n",
        False,
        "nameserver 192.0.2.1\n",
        ["Left out, being no addresses: dns.local."],
    ),
}


@pytest.mark.parametrize(("box", "base", "ipv6", "expected", "notes"), RESOLV.values(), ids=RESOLV)
def test_resolv_conf_by_libnetworks_rule_of(box, base, ipv6, expected, notes):
    made = domain.resolv(box, HostFiles(resolv_conf=base), ipv6=ipv6)

    text, _, comments = made.partition("\n\n")
    assert expected == text + "\n"
    assert [
        "# From /etc/resolv.conf of the host. Once it is edited, netweft leaves this file alone.",
        *(f"# {one}" for one in notes),
    ] == comments.splitlines()


STUBS = {
    "nameserver 127.0.0.53\n": True,
    "# by systemd\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n": True,
    "nameserver 127.0.0.53\nnameserver 192.0.2.1\n": False,
    "nameserver 127.0.0.1\n": False,
    "nameserver 192.0.2.1\n": False,
    "": False,
}


@pytest.mark.parametrize(("text", "expected"), STUBS.items(), ids=[repr(one) for one in STUBS])
def test_the_stub_of_systemd_resolved_is_known_by_being_the_only_server(text, expected):
    assert expected is domain.is_stub(text)


OF_HOST_NETWORK = {
    "copies of the host's": ({}, "10.1.1.1\thost\n", BASE),
    "extra hosts: a file of its own": (
        {"extra_hosts": (("db", "10.9.9.9"), ("up", "host-gateway"))},
        LOCALHOST + LOCALHOST6 + "10.9.9.9\tdb\n127.0.0.1\tup\n",
        BASE,
    ),
    "overrides: all servers of the host are reached": (
        {"dns_options": ("x",)},
        "10.1.1.1\thost\n",
        "nameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch example.net corp\noptions x\n",
    ),
}


@pytest.mark.parametrize(("fields", "hosts", "resolv"), OF_HOST_NETWORK.values(), ids=OF_HOST_NETWORK)
def test_files_of_the_host_network_are(fields, hosts, resolv):
    box = sandbox(source="host", hostname="web", **fields)

    made = {Path(one.path).name: one for one in render(box, resolv_conf=BASE, hosts="10.1.1.1\thost\n")}

    assert (hosts, resolv) == (made["hosts"].content, made["resolv.conf"].content.partition("\n\n")[0].rstrip() + "\n")


def test_files_have_ipv6_when_an_endpoint_has():
    wanted = render(sandbox(hostname="web"), member(addresses=DUAL), resolv_conf=BASE)

    hosts, resolv = (one for one in wanted if isinstance(one, File))

    assert "ip6-localhost" in hosts.content
    assert ("10.0.0.5\tweb", "fd00::5\tweb") == hosts.lines
    assert "2001:db8::53" in resolv.content
    assert resolv.lines == ()
