"""A ruleset that uses everything that `domain/nft.py` has, once in each form; shared by unit and kernel tests."""

from __future__ import annotations

from netweft_agent.domain import nft
from netweft_agent.domain.nft import Match, NftChain, NftElement, NftResource, NftSet, NftTable, Set, Verdict, rule

INET = nft.Table("inet", "netweft")
BRIDGE = nft.Table("bridge", "netweft")
NETDEV = nft.Table("netdev", "netweft")

VTEPS = Set(name="vteps", key=(nft.IPV4_ADDR,))
NETS = Set(name="nets", key=(nft.IPV4_ADDR,), interval=True)
NETS6 = Set(name="nets6", key=(nft.IPV6_ADDR,), interval=True)
PAIRS = Set(name="pairs", key=(nft.IPV4_ADDR, nft.INET_SERVICE), interval=True)
IFS = Set(name="ifs", key=(nft.IFNAME, nft.IPV4_ADDR))
IFACES = Set(name="ifaces", key=(nft.IFNAME,))
MARKS = Set(name="marks", key=(nft.MARK,))
MACS = Set(name="macs", key=(nft.ETHER_ADDR, nft.IFNAME))
VNIS = Set(name="vnis", key=(nft.VXLAN_VNI.type,))
SHORT = Set(name="short", key=(nft.IPV4_ADDR,), timeout_s=90, size=1024)
SEEN = Set(name="seen", key=(nft.IPV4_ADDR,), dynamic=True, has_timeout=True, size=65535)
PORTS = Set(name="ports", key=(nft.IPV4_ADDR, nft.INET_PROTO, nft.INET_SERVICE), data=(nft.IPV4_ADDR, nft.INET_SERVICE))
PORTS6 = Set(
    name="ports6", key=(nft.IPV6_ADDR, nft.INET_PROTO, nft.INET_SERVICE), data=(nft.IPV6_ADDR, nft.INET_SERVICE)
)
VIPS = Set(name="vips", key=(nft.IPV4_ADDR,), data=(nft.IPV4_ADDR,))
TO_MARK = Set(name="to_mark", key=(nft.IPV4_ADDR,), data=(nft.MARK,))
POLICY = Set(name="verdicts", key=(nft.IFNAME,), data=(nft.VERDICT,))
BY_NET = Set(name="by_net", key=(nft.IPV4_ADDR,), data=(nft.VERDICT,), interval=True)
BY_NET_AND_PORT = Set(name="by_net_and_port", key=(nft.IPV4_ADDR, nft.INET_SERVICE), data=(nft.VERDICT,), interval=True)
NEIGHBOURS = Set(name="neighbours", key=(nft.IPV4_ADDR, nft.ETHER_ADDR))

ELEMENTS: dict[Set, list[tuple[tuple[nft.Atom, ...], tuple[nft.Atom, ...] | Verdict]]] = {
    VTEPS: [(("192.0.2.1",), ()), (("192.0.2.2",), ())],
    NETS: [(("10.0.0.0/24",), ()), (("10.0.1.0/24",), ()), (("10.1.0.5",), ()), (("10.2.0.1-10.2.0.9",), ())],
    NETS6: [(("fd00::/64",), ()), (("fd01::1",), ())],
    PAIRS: [(("10.0.0.0/24", "80-90"), ()), (("10.1.0.1", 22), ())],
    IFS: [(("eth0", "10.0.0.1"), ())],
    IFACES: [(("nwb-0123456789a",), ()), (("eth0",), ())],
    MARKS: [((0x10,), ())],
    MACS: [(("02:42:0a:00:00:02", "eth0"), ())],
    VNIS: [((4096,), ())],
    PORTS: [(("192.0.2.1", "tcp", 80), ("10.0.0.2", 8080)), (("192.0.2.1", "udp", 53), ("10.0.0.3", 53))],
    PORTS6: [(("2001:db8::1", "tcp", 80), ("fd00::2", 8080))],
    VIPS: [(("10.96.0.1",), ("10.0.0.2",))],
    TO_MARK: [(("10.0.0.2",), (7,))],
    POLICY: [(("eth0",), nft.jump("tenant")), (("eth1",), nft.ACCEPT), (("eth2",), nft.goto("tenant"))],
    BY_NET: [(("10.0.0.0/8",), nft.DROP), (("192.168.0.0/16",), nft.RETURN)],
    BY_NET_AND_PORT: [(("10.0.0.0/8", 80), nft.DROP), (("10.0.0.1", "22-23"), nft.ACCEPT)],
    NEIGHBOURS: [(("10.0.0.2", "02:42:0a:00:00:02"), ())],
}

FORWARD = (
    rule(Match(nft.META_IIFNAME, "eth0"), Match(nft.META_OIFNAME, "eth1", op="!="), nft.ACCEPT),
    rule(Match(nft.META_IIFNAME, "nwb-*"), nft.DROP),
    rule(Match(nft.META_MARK, 0x10), nft.ACCEPT),
    rule(Match(nft.META_MARK, 1, mask=0xFF), Match(nft.CT_MARK, 0x50, op="!=", mask=0xF0), nft.ACCEPT),
    rule(Match(nft.META_L4PROTO, "tcp"), nft.ACCEPT),
    rule(Match(nft.META_L4PROTO, "tcp", op="!="), nft.ACCEPT),
    rule(Match(nft.META_L4PROTO, ("tcp", "udp")), Match(nft.TH_DPORT, 53), nft.ACCEPT),
    rule(Match(nft.META_NFPROTO, "ipv6"), nft.DROP),
    rule(Match(nft.CT_STATE_FIELD, "established,related"), nft.ACCEPT),
    rule(Match(nft.CT_STATE_FIELD, "invalid"), nft.DROP),
    rule(Match(nft.CT_STATE_FIELD, "established", op="!="), nft.DROP),
    rule(Match(nft.CT_STATUS_FIELD, "dnat"), nft.ACCEPT),
    rule(Match(nft.CT_STATUS_FIELD, "dnat", op="!"), nft.DROP),
    rule(Match(nft.IP_SADDR, "10.0.0.1"), nft.ACCEPT),
    rule(Match(nft.IP_SADDR, "10.0.0.0/24"), Match(nft.IP_DADDR, "10.16.0.0/12", op="!="), nft.ACCEPT),
    rule(Match(nft.IP_SADDR, "10.0.0.1-10.0.0.9"), nft.ACCEPT),
    rule(Match(nft.IP_SADDR, VTEPS), nft.ACCEPT),
    rule(Match(nft.IP_SADDR, VTEPS, op="!="), Match(nft.UDP_DPORT, 4789), nft.DROP),
    rule(Match(nft.IP_DADDR, NETS), nft.ACCEPT),
    rule(Match(nft.IP6_SADDR, "fd00::/64"), Match(nft.IP6_DADDR, "fd00::1"), nft.ACCEPT),
    rule(Match(nft.IP6_SADDR, "fd00::/63"), Match(nft.IP6_DADDR, NETS6), nft.ACCEPT),
    rule(Match(nft.IP_PROTOCOL, "tcp"), nft.ACCEPT),
    rule(Match(nft.TCP_DPORT, "80-90"), nft.ACCEPT),
    rule(Match(nft.TCP_DPORT, "80-90", op="!="), nft.ACCEPT),
    rule(Match(nft.TCP_DPORT, (22, 80, "100-200")), nft.ACCEPT),
    rule(Match(nft.UDP_SPORT, 53), nft.ACCEPT),
    rule(Match(nft.SCTP_DPORT, 53), nft.ACCEPT),
    rule(Match(nft.ICMP, "echo-request"), nft.ACCEPT),
    rule(Match(nft.ICMPV6, "nd-router-advert"), nft.DROP),
    rule(Match(nft.ICMPV6, ("echo-request", "nd-router-advert")), nft.DROP),
    rule(Match(nft.ETHER_SADDR, "02:42:0a:00:00:02"), nft.ACCEPT),
    rule(Match(nft.FIB_DADDR_TYPE, "local"), nft.ACCEPT),
    rule(Match(nft.FIB_DADDR_TYPE, "local", op="!="), nft.ACCEPT),
    rule(Match(nft.FIB_SADDR_TYPE, "local", op="!="), nft.ACCEPT),
    rule(Match(nft.META_PKTTYPE, ("broadcast", "multicast")), nft.DROP),
    rule(Match(nft.META_PKTTYPE, "other"), nft.DROP),
    rule(Match(nft.UDP_DPORT, 4789), Match(nft.VXLAN_VNI, 0x1000), nft.ACCEPT),
    rule(Match(nft.UDP_DPORT, 4789), Match(nft.VXLAN_VNI, VNIS), nft.ACCEPT),
    rule(Match((nft.IP_SADDR, nft.TCP_DPORT), PAIRS), nft.ACCEPT),
    rule(Match((nft.META_IIFNAME, nft.IP_SADDR), IFS), nft.ACCEPT),
    rule(Match((nft.META_IIFNAME, nft.IP_SADDR), IFS, op="!="), nft.DROP),
    rule(Match((nft.ETHER_SADDR, nft.META_IIFNAME), MACS), nft.ACCEPT),
    rule(Match((nft.IP_SADDR, nft.UDP_DPORT), (("10.0.0.1", 53), ("10.0.0.2", 54))), nft.ACCEPT),
    rule(Match(nft.META_MARK, MARKS), nft.ACCEPT),
    rule(nft.Vmap(nft.META_IIFNAME, POLICY)),
    rule(nft.Vmap(nft.IP_SADDR, BY_NET)),
    rule(nft.Vmap((nft.IP_SADDR, nft.TCP_DPORT), BY_NET_AND_PORT)),
    rule(nft.Vmap(nft.CT_STATE_FIELD, (("invalid", nft.DROP), ("established", nft.ACCEPT), ("related", nft.ACCEPT)))),
    rule(nft.Counter(), nft.ACCEPT),
    rule(nft.Log(prefix="netweft: "), nft.ACCEPT),
    rule(nft.Log(prefix="netweft: ", group=3), nft.DROP),
    rule(nft.Limit(10, burst=20), nft.ACCEPT),
    rule(nft.Limit(10, "minute", burst=7, over=True), nft.DROP),
    rule(nft.SetMark(nft.META_MARK, 5)),
    rule(nft.SetMark(nft.META_MARK, nft.CT_MARK)),
    rule(nft.SetMark(nft.CT_MARK, nft.META_MARK)),
    rule(nft.SetMark(nft.CT_MARK, 7)),
    rule(nft.Reject()),
    rule(Match(nft.TCP_DPORT, 9), nft.Reject("tcp reset")),
    rule(nft.Reject("icmpx admin-prohibited")),
    rule(nft.jump("tenant")),
    rule(nft.goto("tenant")),
    rule(nft.CONTINUE),
)
TENANT = (rule(Match(nft.META_OIFNAME, IFACES), nft.RETURN),)
PREROUTING = (
    rule(Match(nft.FIB_DADDR_TYPE, "local"), nft.Dnat("ip", (nft.IP_DADDR, nft.META_L4PROTO, nft.TH_DPORT), PORTS)),
    rule(nft.Dnat("ip6", (nft.IP6_DADDR, nft.META_L4PROTO, nft.TH_DPORT), PORTS6)),
    rule(nft.Dnat("ip", nft.IP_DADDR, VIPS)),
    rule(Match(nft.IP_DADDR, "192.0.2.1"), Match(nft.TCP_DPORT, 80), nft.Dnat("ip", "10.0.0.2", port=8080)),
    rule(Match(nft.META_L4PROTO, "tcp"), nft.Dnat("ip6", "fd00::2", port=80)),
    rule(Match(nft.IP_DADDR, "192.0.2.2"), nft.Dnat("ip", "10.0.0.3")),
    rule(Match(nft.TCP_DPORT, 80), nft.Redirect(8080)),
)
POSTROUTING = (
    rule(Match(nft.IP_SADDR, NETS), nft.Masquerade()),
    rule(nft.Masquerade(("fully-random",))),
    rule(nft.Masquerade(("random", "persistent"))),
    rule(Match(nft.IP_SADDR, "10.0.0.0/24"), nft.Snat("ip", "192.0.2.1")),
    rule(nft.Snat("ip", nft.IP_SADDR, VIPS)),
)
BRIDGE_FORWARD = (
    rule(Match(nft.ARP_OPERATION, "request"), nft.ACCEPT),
    rule(Match((nft.ARP_SADDR_IP, nft.ARP_SADDR_ETHER), NEIGHBOURS, op="!="), nft.DROP),
    rule(Match(nft.ETHER_SADDR, "02:42:0a:00:00:02", op="!="), nft.DROP),
    rule(Match(nft.META_IIFNAME, "eth0"), Match((nft.IP_SADDR, nft.ETHER_SADDR), NEIGHBOURS, op="!="), nft.DROP),
    rule(Match(nft.IP6_SADDR, "fd00::1"), nft.ACCEPT),
    rule(Match(nft.TCP_DPORT, 80), nft.DROP),
    rule(Match(nft.ICMPV6, "nd-router-advert"), nft.DROP),
)
NETDEV_INGRESS = (
    rule(Match(nft.IP_SADDR, "10.0.0.1"), nft.ACCEPT),
    rule(Match(nft.UDP_DPORT, 4789), nft.DROP),
)


def _elements(table: nft.Table, spec: Set) -> list[NftElement]:
    return [NftElement(ns="", table=table, spec=spec, item=item, value=value) for item, value in ELEMENTS.get(spec, [])]


def _sets(table: nft.Table, *specs: Set) -> list[NftResource]:
    return [
        *(NftSet(ns="", table=table, spec=spec) for spec in specs),
        *(element for spec in specs for element in _elements(table, spec)),
    ]


def _base(kind: str, hook: str, priority: int, policy: str = "accept", device: str = "") -> nft.Base:
    return nft.Base(type=kind, hook=hook, priority=priority, policy=policy, device=device)


def full() -> list[NftResource]:
    """Return the whole ruleset as resources of the host's namespace."""
    return [
        NftTable(ns="", table=INET),
        *_sets(INET, VTEPS, NETS, NETS6, PAIRS, IFS, IFACES, MARKS, MACS, VNIS, SHORT, SEEN),
        *_sets(INET, PORTS, PORTS6, VIPS, TO_MARK, POLICY, BY_NET, BY_NET_AND_PORT),
        NftChain(ns="", table=INET, name="tenant", rules=TENANT),
        NftChain(ns="", table=INET, name="forward", base=_base("filter", "forward", 0, "drop"), rules=FORWARD),
        NftChain(ns="", table=INET, name="prerouting", base=_base("nat", "prerouting", -100), rules=PREROUTING),
        NftChain(ns="", table=INET, name="postrouting", base=_base("nat", "postrouting", 105), rules=POSTROUTING),
        NftChain(ns="", table=INET, name="raw", base=_base("filter", "prerouting", -301), rules=(rule(nft.Notrack()),)),
        NftChain(ns="", table=INET, name="odd", base=_base("filter", "input", 17)),
        NftTable(ns="", table=BRIDGE),
        *_sets(BRIDGE, NEIGHBOURS),
        NftChain(ns="", table=BRIDGE, name="forward", base=_base("filter", "forward", -200), rules=BRIDGE_FORWARD),
        NftTable(ns="", table=NETDEV),
        NftChain(ns="", table=NETDEV, name="lo", base=_base("filter", "ingress", 0, device="lo"), rules=NETDEV_INGRESS),
    ]
