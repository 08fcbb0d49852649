"""What an endpoint may send: frames with its own MAC and addresses, and nothing that makes it a router or DHCP server.

A table of the bridge family judges each frame that comes in by an endpoint's port, bridged or for the host. Ports are
told by their names, so other bridges of the host pay one comparison, and endpoints of networks with `anti_spoof` off
have ports of another name.

| set | key | who adds | meaning |
|---|---|---|---|
| `own4` | interface . MAC . address | each endpoint, an element an address | what it may send as in IPv4 and ARP |
| `own6` | interface . MAC . address | each endpoint, an element an address | the same in IPv6 and ND |

Everything else is dropped: other protocols too, for a frame of any protocol teaches the bridge a MAC.
"""

from __future__ import annotations

from ipaddress import IPv6Address

from netweft_agent.domain import names, nft
from netweft_agent.domain.objects import Endpoint
from netweft_agent.domain.resources import HOST, Resource

TABLE = nft.Table("bridge", "netweft")

OWN4 = nft.Set(name="own4", key=(nft.IFNAME, nft.ETHER_ADDR, nft.IPV4_ADDR))
OWN6 = nft.Set(name="own6", key=(nft.IFNAME, nft.ETHER_ADDR, nft.IPV6_ADDR))

_DHCP_SERVER, _DHCPV6_SERVER = 67, 547
_ROUTERS_WORDS = ("nd-router-advert", "nd-redirect")


def _is_own(spec: nft.Set, address: nft.Field, op: str = "==", mac: nft.Field = nft.ETHER_SADDR) -> nft.Match:
    return nft.Match((nft.META_IIFNAME, mac, address), spec, op=op)


BASE: tuple[Resource, ...] = (
    nft.NftTable(ns=HOST, table=TABLE, owned=True),
    nft.NftSet(ns=HOST, table=TABLE, spec=OWN4),
    nft.NftSet(ns=HOST, table=TABLE, spec=OWN6),
    nft.NftChain(
        ns=HOST,
        table=TABLE,
        name="prerouting",
        base=nft.Base(type="filter", hook="prerouting", priority=-300),
        rules=(
            nft.rule(nft.Match(nft.META_IIFNAME, f"{names.PORT}*", op="!="), nft.ACCEPT),
            # A DHCP server, or a router, would lead others astray (CVE-2020-10749, CVE-2020-13401).
            nft.rule(nft.Match(nft.UDP_SPORT, (_DHCP_SERVER, _DHCPV6_SERVER)), nft.Counter(), nft.DROP),
            nft.rule(nft.Match(nft.ICMPV6, _ROUTERS_WORDS), nft.Counter(), nft.DROP),
            nft.rule(_is_own(OWN4, nft.IP_SADDR), nft.ACCEPT),
            nft.rule(
                nft.Match(nft.ICMPV6, "nd-neighbor-advert"),
                _is_own(OWN6, nft.ICMPV6_TADDR, "!="),
                nft.Counter(),
                nft.DROP,
            ),
            nft.rule(_is_own(OWN6, nft.IP6_SADDR), nft.ACCEPT),
            # The Ethernet header and the ARP body have to say the same.
            nft.rule(
                _is_own(OWN4, nft.ARP_SADDR_IP),
                _is_own(OWN4, nft.ARP_SADDR_IP, mac=nft.ARP_SADDR_ETHER),
                nft.ACCEPT,
            ),
            # Who asks whether somebody has his address already, before he uses it (RFC 5227 §2.1.1, RFC 4862 §5.4).
            nft.rule(nft.Match(nft.ARP_SADDR_IP, "0.0.0.0"), _is_own(OWN4, nft.ARP_DADDR_IP), nft.ACCEPT),  # noqa: S104
            nft.rule(
                nft.Match(nft.IP6_SADDR, "::"),
                nft.Match(nft.ICMPV6, "nd-neighbor-solicit"),
                _is_own(OWN6, nft.ICMPV6_TADDR),
                nft.ACCEPT,
            ),
            nft.rule(nft.Counter(), nft.DROP),
        ),
    ),
)


def endpoint(one: Endpoint, *, ipv6: bool) -> list[nft.NftElement]:
    """Render what an endpoint may send as: its addresses and, with IPv6, the link-local one that its MAC makes."""
    port, mac = names.veth(one.id), one.mac or names.mac(one.id)
    addresses = [*one.addresses, *one.link_local]
    own = [(OWN6 if one.version == 6 else OWN4, str(one.ip)) for one in addresses if ipv6 or one.version == 4]
    if ipv6:
        own.append((OWN6, str(link_local(mac))))
    return [
        nft.NftElement(ns=HOST, table=TABLE, spec=spec, item=(port, mac, address))
        for spec, address in dict.fromkeys(own)
    ]


def link_local(mac: str) -> IPv6Address:
    """Return the link-local address that the kernel makes of a MAC (modified EUI-64, RFC 4291 appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    interface = bytes((octets[0] ^ 2,)) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return IPv6Address(b"\xfe\x80" + bytes(6) + interface)
