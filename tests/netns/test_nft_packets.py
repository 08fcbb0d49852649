"""Rules of ours at work: real packets between namespaces.

outside 198.51.100.9 --- 198.51.100.1 host 10.1.0.1 --- 10.1.0.2 red
                                           10.2.0.1 --- 10.2.0.2 blue
"""

from __future__ import annotations

import socket
from contextlib import ExitStack, closing
from dataclasses import dataclass

import pytest
from netweft_agent.domain import nft
from netweft_agent.domain.nft import Match, NftChain, NftElement, NftResource, NftSet, NftTable, rule
from netweft_agent.kernel import netlink
from netweft_agent.kernel import nft as kernel
from netweft_agent.kernel.nft import Change

from tests.support.netns import Netns, require_root, require_tool, veth

pytestmark = pytest.mark.netns

OURS = nft.Table("inet", "netweft")
PORTS = nft.Set(
    name="ports", key=(nft.IPV4_ADDR, nft.INET_PROTO, nft.INET_SERVICE), data=(nft.IPV4_ADDR, nft.INET_SERVICE)
)
SUBNETS = nft.Set(name="subnets", key=(nft.IPV4_ADDR,), interval=True)
VERDICTS = nft.Set(name="verdicts", key=(nft.IFNAME,), data=(nft.VERDICT,))
PAIRS = nft.Set(name="pairs", key=(nft.IFNAME, nft.IFNAME))
SOURCES = nft.Set(name="sources", key=(nft.IPV4_ADDR, nft.INET_SERVICE), interval=True)
FORWARD = nft.Base(type="filter", hook="forward", priority=0)
PREROUTING = nft.Base(type="nat", hook="prerouting", priority=-100)
POSTROUTING = nft.Base(type="nat", hook="postrouting", priority=100)
TIMEOUT_S = 0.3


def element(spec, *item, value=()):
    return NftElement(ns="", table=OURS, spec=spec, item=item, value=value)


def chain(name, base, *rules):
    return NftChain(ns="", table=OURS, name=name, base=base, rules=rules)


@dataclass
class Lab:
    host: Netns
    outside: Netns
    red: Netns
    blue: Netns
    sock: socket.socket

    def add(self, *resources: NftResource) -> None:
        table = NftTable(ns="", table=OURS)
        assert {} == kernel.apply(self.sock, [Change(None, resource) for resource in (table, *resources)])


@pytest.fixture
def lab():
    require_root()
    require_tool("ip")
    with ExitStack() as stack:
        host, outside, red, blue = (stack.enter_context(Netns()) for _ in range(4))
        links = ((outside, "out", "198.51.100", 9), (red, "red", "10.1.0", 2), (blue, "blue", "10.2.0", 2))
        for other, name, net, last in links:
            veth(host, name, other, "eth0")
            host.exec(["ip", "address", "add", f"{net}.1/24", "dev", name])
            other.exec(["ip", "address", "add", f"{net}.{last}/24", "dev", "eth0"])
            if other is not outside:
                other.exec(["ip", "route", "add", "default", "via", f"{net}.1"])
        host.exec(["ip", "link", "set", "lo", "up"])
        host.exec(["sysctl", "-qw", "net.ipv4.ip_forward=1"])
        sock = host.run(lambda: netlink.open_socket(netlink.NETLINK_NETFILTER))
        stack.enter_context(closing(sock))
        yield Lab(host, outside, red, blue, sock)


def udp_source(client: Netns, to: tuple[str, int], server: Netns, at: tuple[str, int]) -> str | None:
    """Send a datagram, answer it, and return the source that the server saw; None if it or the answer is lost."""
    with closing(server.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))) as listener:
        listener.bind(at)
        listener.settimeout(TIMEOUT_S)
        with closing(client.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))) as caller:
            caller.settimeout(TIMEOUT_S)
            caller.connect(to)
            caller.send(b"ping")
            try:
                _, source = listener.recvfrom(16)
                listener.sendto(b"pong", source)
                caller.recv(16)
            except TimeoutError:
                return None
            return source[0]


def tcp_source(client: Netns, to: tuple[str, int], server: Netns, at: tuple[str, int]) -> str | None:
    """Connect, and return the source that the server saw; None if nothing comes back, or a refusal."""
    with closing(server.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(at)
        listener.listen()
        listener.settimeout(TIMEOUT_S)
        with closing(client.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))) as caller:
            caller.settimeout(TIMEOUT_S)
            try:
                caller.connect(to)
                connection, source = listener.accept()
            except (TimeoutError, ConnectionRefusedError):
                return None
            connection.close()
            return source[0]


def test_masquerade_hides_a_subnet_and_only_that(lab):
    lab.add(
        NftSet(ns="", table=OURS, spec=SUBNETS),
        element(SUBNETS, "10.1.0.0/24"),
        chain("postrouting", POSTROUTING, rule(Match(nft.IP_SADDR, SUBNETS), nft.Masquerade())),
    )
    lab.outside.exec(["ip", "route", "add", "10.2.0.0/24", "via", "198.51.100.1"])
    server = ("198.51.100.9", 7000)

    assert "198.51.100.1" == udp_source(lab.red, server, lab.outside, server)
    assert "10.2.0.2" == udp_source(lab.blue, server, lab.outside, server)


@pytest.mark.parametrize(("protocol", "send"), [("udp", udp_source), ("tcp", tcp_source)], ids=["udp", "tcp"])
def test_a_published_port_reaches_its_endpoint_by_one_map(lab, protocol, send):
    dnat = nft.Dnat("ip", (nft.IP_DADDR, nft.META_L4PROTO, nft.TH_DPORT), PORTS)
    lab.add(
        NftSet(ns="", table=OURS, spec=PORTS),
        element(PORTS, "198.51.100.1", protocol, 80, value=("10.1.0.2", 8080)),
        element(PORTS, "198.51.100.1", protocol, 81, value=("10.2.0.2", 8081)),
        chain("prerouting", PREROUTING, rule(Match(nft.FIB_DADDR_TYPE, "local"), dnat)),
        chain("postrouting", POSTROUTING, rule(Match(nft.CT_STATUS_FIELD, "dnat"), nft.Masquerade())),
    )

    assert "10.1.0.1" == send(lab.outside, ("198.51.100.1", 80), lab.red, ("10.1.0.2", 8080))
    assert "10.2.0.1" == send(lab.outside, ("198.51.100.1", 81), lab.blue, ("10.2.0.2", 8081))
    assert send(lab.outside, ("198.51.100.1", 82), lab.red, ("10.1.0.2", 8080)) is None


def test_a_verdict_map_keeps_networks_apart_but_lets_answers_through(lab):
    lab.add(
        NftSet(ns="", table=OURS, spec=VERDICTS),
        NftSet(ns="", table=OURS, spec=PAIRS),
        element(PAIRS, "red", "out"),
        element(VERDICTS, "red", value=nft.jump("from-red")),
        element(VERDICTS, "blue", value=nft.DROP),
        chain(
            "forward",
            FORWARD,
            rule(Match(nft.CT_STATE_FIELD, "established,related"), nft.ACCEPT),
            rule(nft.Vmap(nft.META_IIFNAME, VERDICTS)),
        ),
        chain("from-red", None, rule(Match((nft.META_IIFNAME, nft.META_OIFNAME), PAIRS, op="!="), nft.DROP)),
        chain("postrouting", POSTROUTING, rule(nft.Masquerade())),
    )
    outside = ("198.51.100.9", 7000)

    assert "198.51.100.1" == udp_source(lab.red, outside, lab.outside, outside)
    assert udp_source(lab.red, ("10.2.0.2", 7000), lab.blue, ("10.2.0.2", 7000)) is None
    assert udp_source(lab.blue, ("10.1.0.2", 7000), lab.red, ("10.1.0.2", 7000)) is None
    assert udp_source(lab.blue, outside, lab.outside, outside) is None


def test_ranges_of_addresses_and_ports_decide_together(lab):
    lab.add(
        NftSet(ns="", table=OURS, spec=SOURCES),
        element(SOURCES, "10.1.0.0/24", "7000-7010"),
        chain(
            "forward",
            nft.Base(type="filter", hook="forward", priority=0, policy="drop"),
            rule(Match(nft.CT_STATE_FIELD, "established,related"), nft.ACCEPT),
            rule(Match((nft.IP_SADDR, nft.UDP_DPORT), SOURCES), nft.ACCEPT),
        ),
    )
    ways = {"red": (lab.red, "10.2.0.2", lab.blue), "blue": (lab.blue, "10.1.0.2", lab.red)}

    accepted = {
        (name, port)
        for name, (sender, server, receiver) in ways.items()
        for port in (6999, 7000, 7010, 7011)
        if udp_source(sender, (server, port), receiver, (server, port)) is not None
    }

    assert {("red", 7000), ("red", 7010)} == accepted


def test_vxlan_is_taken_from_known_vteps_of_known_networks(lab):
    vnis = nft.Set(name="vnis", key=(nft.VXLAN_VNI.type,))
    vteps = nft.Set(name="vteps", key=(nft.IPV4_ADDR,))
    lab.add(
        NftSet(ns="", table=OURS, spec=vnis),
        NftSet(ns="", table=OURS, spec=vteps),
        element(vnis, 4096),
        element(vteps, "10.1.0.2"),
        chain(
            "input",
            nft.Base(type="filter", hook="input", priority=0),
            rule(
                Match(nft.UDP_DPORT, 4789),
                Match(nft.VXLAN_VNI, vnis),
                Match(nft.IP_SADDR, vteps, op="!="),
                nft.Counter(),
                nft.DROP,
            ),
        ),
    )

    def arrives(sender: Netns, host: str, vni: int) -> bool:
        packet = b"\x08\0\0\0" + vni.to_bytes(3, "big") + b"\0" + b"frame"
        with closing(lab.host.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))) as listener:
            listener.bind((host, 4789))
            listener.settimeout(TIMEOUT_S)
            with closing(sender.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))) as caller:
                caller.sendto(packet, (host, 4789))
            try:
                return listener.recv(64) == packet
            except TimeoutError:
                return False

    assert arrives(lab.red, "10.1.0.1", 4096)
    assert not arrives(lab.blue, "10.2.0.1", 4096)
    assert arrives(lab.blue, "10.2.0.1", 4097)


def test_tcp_is_refused_at_once_by_a_reset(lab):
    lab.add(chain("forward", FORWARD, rule(Match(nft.TCP_DPORT, 7000), nft.Reject("tcp reset"))))

    with closing(lab.red.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))) as caller:
        caller.settimeout(5)
        with pytest.raises(ConnectionRefusedError):
            caller.connect(("10.2.0.2", 7000))
