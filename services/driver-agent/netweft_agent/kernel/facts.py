"""Find out what this host is and what its kernel can do, by asking and by trying.

Device types are tried in a network namespace that is thrown away, since configuration files lie (modules, containers)
and a trial also loads the module. All together takes a few milliseconds where nothing has to be loaded.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
from netweft_common import errors

from netweft_agent.domain import nft as nft_domain
from netweft_agent.domain import resources
from netweft_agent.kernel import dumps, netlink, netns, nft, rtnl, sysctl, tc

_DEFAULT_MTU_BYTES = 1500
_RESOLV_CONF = Path("/etc/resolv.conf")
_PROC = Path("/proc/sys/kernel")
_IFLA_VLAN_ID = 1
_KINDS = {
    "bridge": b"",
    "veth": b"",
    "dummy": b"",
    "vxlan": netlink.attr_u32(rtnl.IFLA_VXLAN_ID, 1),
    "macvlan": b"",
    "ipvlan": b"",
    "vlan": netlink.attr_u16(_IFLA_VLAN_ID, 2),
    "ifb": b"",
}
_ON_A_PARENT = frozenset({"macvlan", "ipvlan", "vlan"})


class KernelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        kernel_release: As `uname -r` prints it.
        boot_id: Changes with every boot, after which nothing that was made is left.
        features: Of bridge, veth, dummy, vxlan, macvlan, ipvlan, vlan, ifb, tbf, mirred, nftables, nftables-bridge,
            ipv6.
        underlay_mtu: MTU of the interface that holds the tunnel address, or of the default route, in bytes.
        underlay: The tunnel address with its prefix length; empty: there is none.
        underlay_link: Name of the interface that holds it.
        routes: Destinations on the host's links, as CIDRs, without links of ours.
        name_servers: Of the host's resolv.conf.
    """

    kernel_release: str
    boot_id: str
    features: frozenset[str]
    underlay_mtu: int
    underlay: str
    underlay_link: str
    routes: tuple[str, ...]
    name_servers: tuple[str, ...]


def probe(vtep: str = "", *, resolv_conf: Path = _RESOLV_CONF) -> KernelFacts:
    """Look at the host whose network namespace the calling thread is in.

    Args:
        vtep: Tunnel address; empty: none.
        resolv_conf: Where to read name servers from.

    Raises:
        FailedPrecondition: No interface of this host has the tunnel address.
        KernelError: The kernel lets us make no namespace, or refuses a dump.
    """
    with contextlib.closing(netlink.open_socket(netlink.NETLINK_ROUTE)) as sock:
        links = {
            info.ifindex: info
            for info in (dumps.link(reply.body) for reply in netlink.dump(sock, rtnl.dump_links()).replies)
        }
        routes = [
            route
            for route in (dumps.route(reply.body) for reply in netlink.dump(sock, rtnl.dump_routes()).replies)
            if route.table == rtnl.RT_TABLE_MAIN and route.kind == rtnl.RTN_UNICAST and route.ifindex in links
        ]
        addresses = [dumps.address(reply.body) for reply in netlink.dump(sock, rtnl.dump_addresses()).replies]
    at = _holder(vtep, links, addresses)
    return KernelFacts(
        kernel_release=(_PROC / "osrelease").read_text().strip(),
        boot_id=(_PROC / "random/boot_id").read_text().strip(),
        features=frozenset(_features()),
        underlay_mtu=_underlay_mtu(vtep, links, addresses, routes),
        underlay=at.address if at is not None else "",
        underlay_link=links[at.ifindex].name if at is not None else "",
        routes=_on_link(links, routes),
        name_servers=tuple(_name_servers(resolv_conf)),
    )


def _holder(
    vtep: str, links: dict[int, dumps.LinkInfo], addresses: list[dumps.AddressInfo]
) -> dumps.AddressInfo | None:
    """Return the entry of the tunnel address, if there is one."""
    text = dumps.text_ip(rtnl.packed_ip(vtep)[1]) if vtep else ""
    found = (one for one in addresses if one.address.partition("/")[0] == text and one.ifindex in links)
    return next(found, None)


def _underlay_mtu(
    vtep: str,
    links: dict[int, dumps.LinkInfo],
    addresses: list[dumps.AddressInfo],
    routes: list[dumps.RouteInfo],
) -> int:
    if vtep:
        at = _holder(vtep, links, addresses)
        if at is not None:
            return links[at.ifindex].mtu
        raise errors.FailedPrecondition(
            "VTEP_ADDRESS_NOT_HERE",
            f"the tunnel address {vtep} is on no interface of this host; set the address that other hosts reach it by",
            address=vtep,
        )
    defaults = sorted((route for route in routes if route.destination == "0.0.0.0/0"), key=lambda route: route.priority)
    return links[defaults[0].ifindex].mtu if defaults else _DEFAULT_MTU_BYTES


def _on_link(links: dict[int, dumps.LinkInfo], routes: list[dumps.RouteInfo]) -> tuple[str, ...]:
    found = {
        route.destination
        for route in routes
        if route.via is None
        and not route.cloned
        and route.protocol != resources.PROTOCOL
        and links[route.ifindex].group != resources.LINK_GROUP
        and not route.destination.startswith("fe80:")
        and not route.destination.endswith("/0")
    }
    return tuple(sorted(found))


def _name_servers(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(errors="replace")
    except OSError:  # a host without resolv.conf resolves nothing
        return
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            yield words[1]


def _features() -> set[str]:
    """Try in a thread of its own, which never comes back to the host's namespace."""
    found: set[str] = set()
    failure: list[errors.NetweftError] = []

    def tried() -> None:
        try:
            netns.leave()
            found.update(_try_all())
        except errors.NetweftError as error:
            failure.append(error)

    thread = threading.Thread(target=tried, name="netweft-probe")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return found


def _try_limits(sock: socket.socket) -> Iterator[str]:
    """Try a token bucket, and a filter that redirects; on the loopback, that nothing else be needed."""
    here = rtnl.LOOPBACK_INDEX
    bucket, redirect = tc.set_bucket(here, rate=1 << 20, burst=1 << 16, limit=1 << 17), tc.add_redirect(here, here)
    made, _, redirected = netlink.talk(sock, [bucket, tc.add_clsact(here), redirect])
    if not made.errno:
        yield "tbf"
    if not redirected.errno:
        yield "mirred"


def _try_all() -> Iterator[str]:
    if sysctl.read(f"{sysctl.IPV6_CONF}/default/disable_ipv6") is not None:
        yield "ipv6"
    with contextlib.closing(netlink.open_socket(netlink.NETLINK_ROUTE)) as sock:
        for kind, data in _KINDS.items():
            parent = rtnl.LOOPBACK_INDEX if kind in _ON_A_PARENT else None
            ack = netlink.talk(sock, [rtnl.create_link(f"try-{kind}", kind, data, parent_index=parent)])[0]
            # A type that is not there is EOPNOTSUPP; any other complaint comes from the type itself.
            if ack.errno != errno.EOPNOTSUPP:
                yield kind
        yield from _try_limits(sock)
    try:
        with contextlib.closing(netlink.open_socket(netlink.NETLINK_NETFILTER)) as sock:
            for family, feature in (("inet", "nftables"), ("bridge", "nftables-bridge")):
                table = nft_domain.NftTable(ns="", table=nft_domain.Table(family, "try"))
                if not nft.apply(sock, [nft.Change(None, table)]):
                    yield feature
    except errors.KernelError:  # no netfilter in the kernel
        return
