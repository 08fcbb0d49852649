"""Resources: the things in a kernel that the agent makes, as keyed values.

Desired and observed state are both mappings from key to resource; the planner compares them and knows nothing of
kinds. Each resource prints the command that an administrator would type for it, so that a plan reads as a script.

A resource says of itself: `key` (kind, namespace, identity), `needs` (keys without which it cannot exist: when one of
them goes, it goes too, without an operation of its own), `matches(observed)` (only managed attributes count, an
attribute of None is not managed), and `convertible(observed)` (whether the kernel can change one into the other in
place). nftables' resources are in `domain/nft.py` and have the same face.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from ipaddress import ip_interface
from typing import ClassVar, Protocol, Self

import msgspec

Ns = str
"""Name of a network namespace: HOST, `sandbox/<id>` or `network/<id>`."""

Key = tuple[str, ...]
"""Identity of a resource: kind, namespace, then what is unique in it."""

HOST: Ns = ""
"""The namespace that the agent runs in."""

LINK_GROUP = 0x6E77
"""Link group (IFLA_GROUP, ip-link(8)) of every link of ours."""

REAP_GROUP = 0x6E78
"""Link group of links of ours that wait to be deleted together."""

PROTOCOL = 110
"""Route protocol (rtm_protocol, ip-route(8)) and address protocol (IFA_PROTO) of ours."""

QDISC_MAJOR = 0x6E77
"""Handle (tc(8)) of the root queueing disciplines of ours."""

FILTER_PREFERENCE = 0x6E77
"""Preference (tc(8)) of the filters of ours."""

TICK_NS = 64
"""Unit of time of the kernel's traffic control (PSCHED_SHIFT, net/pkt_sched.h)."""


class Resource(Protocol):
    """What the planner needs of a resource."""

    @property
    def key(self) -> Key:
        """Identity: kind, namespace, then what is unique in it."""

    @property
    def ns(self) -> Ns:
        """Namespace that it is in."""

    @property
    def rank(self) -> int:
        """Place in the order of creation, see Rank."""

    def needs(self) -> Iterable[Key]:
        """Yield the keys without which it cannot exist."""

    def matches(self, observed: Self) -> bool:
        """Return whether what is there will do."""

    def convertible(self, observed: Self) -> bool:
        """Return whether the kernel can turn what is there into this one in place."""

    def add_command(self) -> str:
        """Print the command that makes it."""

    def delete_command(self) -> str:
        """Print the command that removes it; empty where it goes by itself."""

    def change_command(self, observed: Self) -> str:
        """Print the command that turns what is there into this one."""


class Rank:
    """Order of creation; removal runs the other way. Policy (nftables) is there before any link comes up."""

    NAMESPACE = 0
    SYSCTL = 10
    FILE = 15  # needs nothing, so that no failure of a link or route keeps it from being written
    PORT = 17  # before firewall state that leads packets to it
    NFT = 20  # nft.py uses 20 to 29
    BRIDGE = 30
    VXLAN = 31
    LINK = 32
    LIMIT = 33  # before the far end comes up, so that nothing passes without it
    PEER = 34
    ADDRESS = 40
    ROUTE = 50
    FDB = 60
    NEIGHBOUR = 61
    LINK_SYSCTL = 65  # after all that one netlink message carries


class Plain:
    """The face of a resource that is either there as described or not, and that the kernel replaces in place."""

    __slots__ = ()

    def matches(self, observed: Self) -> bool:
        return self == observed

    def convertible(self, observed: Self) -> bool:
        return True

    def change_command(self, observed: Self) -> str:
        return self.add_command()

    def add_command(self) -> str:
        raise NotImplementedError


class Partly(Plain):
    """A plain resource of which some fields say nothing of what is in the kernel: it is equal without them."""

    __slots__ = ()

    def essence(self) -> tuple[object, ...]:
        """Return what counts."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Partly) and type(other) is type(self) and self.essence() == other.essence()

    def __ne__(self, other: object) -> bool:
        # Else it would be that of Struct, which knows nothing of the above.
        return not self == other

    def __hash__(self) -> int:
        return hash(self.essence())


class Namespace(Plain, msgspec.Struct, frozen=True, kw_only=True):
    """A network namespace that the agent holds open.

    Attributes:
        source: Empty: the agent makes it and owns it. Else the absolute path of one that exists, or `pid:<n>`.
    """

    ns: Ns
    source: str = ""

    @property
    def key(self) -> Key:
        return ("netns", self.ns)

    @property
    def rank(self) -> int:
        return Rank.NAMESPACE

    @property
    def owned(self) -> bool:
        """True when the agent made the namespace, so that all in it dies with it."""
        return not self.source

    def needs(self) -> Iterable[Key]:
        return ()

    def convertible(self, observed: Self) -> bool:
        return False

    def add_command(self) -> str:
        if self.owned:
            return f"ip netns add {self.ns.replace('/', '-')}"
        return f"ip netns attach {self.ns.replace('/', '-')} {self.source}"

    def delete_command(self) -> str:
        return f"ip netns del {self.ns.replace('/', '-')}"


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """Attributes of a bridge port (bridge(8), `bridge link set`)."""

    isolated: bool = False
    hairpin: bool = False
    learning: bool = True
    flood: bool = True
    neigh_suppress: bool = False

    def words(self) -> str:
        """Print the attributes that differ from the kernel's defaults, as bridge(8) takes them."""
        default = Port()
        names = ("isolated", "hairpin", "learning", "flood", "neigh_suppress")
        return " ".join(
            f"{name} {'on' if getattr(self, name) else 'off'}"
            for name in names
            if getattr(self, name) != getattr(default, name)
        )


class Vxlan(msgspec.Struct, frozen=True, kw_only=True):
    """Attributes of a VXLAN device (RFC 7348; ip-link(8), type vxlan). Learning is always off.

    Attributes:
        vni: VXLAN network identifier, 1 to 2^24-1.
        local: Source address of the tunnel (the VTEP address).
        port: UDP destination port.
        proxy: Answer ARP and ND from the device's permanent neighbours.
    """

    vni: int
    local: str
    port: int = 4789
    proxy: bool = True


class PeerEnd(msgspec.Struct, frozen=True, kw_only=True):
    """Where the other end of a veth pair is, and what it is born with.

    Attributes:
        leaves: Somebody else takes it elsewhere and gives it another name: it is not looked for.
    """

    ns: Ns
    name: str
    mac: str | None = None
    leaves: bool = False


_LINK_RANKS = {"bridge": Rank.BRIDGE, "vxlan": Rank.VXLAN, "veth": Rank.LINK, "ifb": Rank.LINK}


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A network interface.

    Attributes:
        kind: `bridge`, `vxlan`, `veth` (the end that is created), `peer` (a veth's other end, born with it), `ifb` or
            `loopback`; the kernel's IFLA_INFO_KIND except for `peer` and `loopback`.
        mtu: In bytes; None: not managed.
        mac: Lower-case, colons; None: the kernel's choice.
        master: Name of the bridge in the same namespace that the link is a port of; a `peer` may be one as well.
        ipv6: False: IPv6 is off on the link (disable_ipv6=1). True: on, with accept_ra=0. None: not managed.
        peer: Of a `veth`: its other end. Of a `peer`: the end that is created.
        vxlan: Of a `vxlan`.
        port: Of a bridge port.
        socket_ns: Of a `vxlan`: the namespace that its UDP socket is in; the link itself is made in `ns`.
        shared: Of a `bridge`: somebody else's of that name will do; it is left as it is, and never removed.
    """

    ns: Ns
    name: str
    kind: str
    mtu: int | None = None
    mac: str | None = None
    master: str | None = None
    up: bool = True
    ipv6: bool | None = None
    peer: PeerEnd | None = None
    vxlan: Vxlan | None = None
    port: Port | None = None
    socket_ns: Ns | None = None
    shared: bool = False

    @property
    def key(self) -> Key:
        return ("link", self.ns, self.name)

    @property
    def rank(self) -> int:
        return _LINK_RANKS.get(self.kind, Rank.PEER)

    def needs(self) -> Iterable[Key]:
        # A bridge's ports survive it, so the master is no need: a port that lost its master differs and is changed.
        yield ("netns", self.ns)
        if self.kind == "peer" and self.peer is not None:
            yield ("link", self.peer.ns, self.peer.name)

    def matches(self, observed: Self) -> bool:
        def same(mine: object, theirs: object) -> bool:
            return mine is None or mine == theirs

        # Which namespace a veth's other end is in, no dump tells by name; a missing other end shows as its own key.
        return (
            self.kind == observed.kind
            and self.master == observed.master
            and self.up == observed.up
            and same(self.mtu, observed.mtu)
            and same(self.mac, observed.mac)
            and same(self.ipv6, observed.ipv6)
            and same(self.vxlan, observed.vxlan)
            and same(self.port, observed.port)
        )

    def convertible(self, observed: Self) -> bool:
        return self.kind == observed.kind and (self.vxlan is None or self.vxlan == observed.vxlan)

    def add_command(self) -> str:
        if self.kind == "loopback":
            return f"ip link set {self.name} up"
        words = ["ip link"]
        if self.kind == "peer":
            words.append(f"set {self.name}")
        else:
            words.append(f"add {self.name}")
        words += self._attributes()
        if self.kind == "veth" and self.peer is not None:
            words.append(f"type veth peer name {self.peer.name}")
            words += [f"address {self.peer.mac}"] if self.peer.mac else []
            words.append(f"netns {self.peer.ns.replace('/', '-')}")
        elif self.kind == "vxlan" and self.vxlan is not None:
            words.append(f"netns {self.ns.replace('/', '-')}" if self.socket_ns is not None else "")
            words.append(
                f"type vxlan id {self.vxlan.vni} local {self.vxlan.local} dstport {self.vxlan.port} nolearning"
                + (" proxy" if self.vxlan.proxy else "")
            )
        elif self.kind in {"bridge", "ifb"}:
            words.append(f"type {self.kind}")
        return " ".join(word for word in words if word) + self._port_command()

    def delete_command(self) -> str:
        return "" if self.kind in {"loopback", "peer"} else f"ip link del {self.name}"

    def change_command(self, observed: Self) -> str:
        if self.kind == "loopback":
            return f"ip link set {self.name} {'up' if self.up else 'down'}"
        return " ".join([f"ip link set {self.name}", *self._attributes()]) + self._port_command()

    def _attributes(self) -> list[str]:
        words = [f"mtu {self.mtu}"] if self.mtu is not None else []
        words += [f"address {self.mac}"] if self.mac is not None else []
        words += [f"master {self.master}"] if self.master is not None else []
        words += [f"group {LINK_GROUP:#x}"]
        words += ["addrgenmode none"] if self.ipv6 is False else []
        words += ["up" if self.up else "down"]
        return words

    def _port_command(self) -> str:
        words = self.port.words() if self.port is not None else ""
        return f" && bridge link set dev {self.name} {words}" if words else ""


class TokenBucket(Plain, msgspec.Struct, frozen=True, kw_only=True):
    """A limit of what a link sends: a token bucket as its root queueing discipline (tc-tbf(8)).

    Attributes:
        rate: In bytes a second.
        burst: What may go at once beyond that, in bytes.
        limit: What may wait, burst included, in bytes; more is dropped.
    """

    ns: Ns
    link: str
    rate: int
    burst: int
    limit: int

    @property
    def key(self) -> Key:
        return ("limit", self.ns, self.link)

    @property
    def rank(self) -> int:
        return Rank.LIMIT

    def needs(self) -> Iterable[Key]:
        return (("link", self.ns, self.link),)

    def matches(self, observed: Self) -> bool:
        if (self.rate, self.limit) != (observed.rate, observed.limit):
            return False
        # The kernel keeps the burst as time and tells it in units of 64 ns, as a number of 32 bits.
        unit_bytes = self.rate * TICK_NS / 1_000_000_000
        told = self.burst < unit_bytes * 2**32
        return not told or abs(self.burst - observed.burst) <= 1 + 2 * unit_bytes

    def add_command(self) -> str:
        return (
            f"tc qdisc replace dev {self.link} root handle {QDISC_MAJOR:x}: tbf rate {self.rate * 8}bit "
            f"burst {self.burst}b limit {self.limit}b"
        )

    def delete_command(self) -> str:
        return f"tc qdisc del dev {self.link} root handle {QDISC_MAJOR:x}:"


class Redirect(Plain, msgspec.Struct, frozen=True, kw_only=True):
    """Everything that comes in by a link passes another one first, whose queueing discipline can hold it back.

    While the other one is missing the kernel drops what comes in.

    Attributes:
        to: Name of an `ifb` in the same namespace; empty only as observed: there is none.
    """

    ns: Ns
    link: str
    to: str

    @property
    def key(self) -> Key:
        return ("redirect", self.ns, self.link)

    @property
    def rank(self) -> int:
        return Rank.LIMIT

    def needs(self) -> Iterable[Key]:
        # Not the other link: with that gone alone, the filter is still there, and drops.
        return (("link", self.ns, self.link),)

    def add_command(self) -> str:
        # clsact and not ingress: others put their programs there too, and it stays when our filter goes.
        return (
            f"tc qdisc add dev {self.link} clsact && tc filter add dev {self.link} ingress pref {FILTER_PREFERENCE} "
            f"protocol all u32 match u32 0 0 action mirred egress redirect dev {self.to}"
        )

    def delete_command(self) -> str:
        return f"tc filter del dev {self.link} ingress pref {FILTER_PREFERENCE}"

    def change_command(self, observed: Self) -> str:
        return f"{self.delete_command()} && {self.add_command()}"


class Advertise(msgspec.Struct, frozen=True, kw_only=True):
    """That neighbours are told when an address comes to where it is; no state of the kernel.

    Attributes:
        network: Id of the network whose endpoints are the neighbours.
        count: How many times.
        interval_ms: Between two times, in milliseconds.
        link: Of what is not on this host: by which link in the namespace its neighbours here are told.
    """

    network: str
    count: int
    interval_ms: int
    link: str = ""


class Address(Partly, msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """An address of a link, and the connected route that the kernel makes with it.

    Attributes:
        address: With prefix length, for example 10.0.0.2/16. IPv6 is set with IFA_F_NODAD: addresses are allocated.
        advertise: None: nobody is told of it.
        connected: False only as observed: somebody has deleted the route to its prefix.
    """

    ns: Ns
    link: str
    address: str
    advertise: Advertise | None = None
    connected: bool = True

    @property
    def key(self) -> Key:
        return ("address", self.ns, self.link, self.address)

    @property
    def rank(self) -> int:
        return Rank.ADDRESS

    def essence(self) -> tuple[object, ...]:
        return (self.ns, self.link, self.address, self.connected)

    def needs(self) -> Iterable[Key]:
        return (("link", self.ns, self.link),)

    def add_command(self) -> str:
        return f"ip address add {self.address} dev {self.link}" + (" nodad" if ":" in self.address else "")

    def change_command(self, observed: Self) -> str:
        own, prefix = ip_interface(self.address), connected_prefix(self.address)
        if own.version == 6:
            return f"ip -6 route add {prefix} dev {self.link} proto kernel metric 256"
        return f"ip route append {prefix} dev {self.link} proto kernel scope link src {own.ip}"

    def delete_command(self) -> str:
        return f"ip address del {self.address} dev {self.link}"


@functools.lru_cache(maxsize=4096)
def connected_prefix(address: str) -> str:
    """Return where the route leads that comes with an address; empty: none does, it stands alone."""
    prefix = ip_interface(address).network
    return "" if prefix.num_addresses == 1 else str(prefix)


class Route(Partly, msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A route of the main table.

    Attributes:
        destination: CIDR; 0.0.0.0/0 and ::/0 are the default routes.
        link: Name of the outgoing link.
        via: Next hop; None: the destination is on the link.
        foreign: The link is not ours, and is there or not.
    """

    ns: Ns
    destination: str
    link: str
    via: str | None = None
    foreign: bool = False

    @property
    def key(self) -> Key:
        return ("route", self.ns, self.destination)

    @property
    def rank(self) -> int:
        # A next hop must be reachable already: routes on the link go first.
        return Rank.ROUTE + (self.via is not None)

    def essence(self) -> tuple[object, ...]:
        return (self.ns, self.destination, self.link, self.via)

    def needs(self) -> Iterable[Key]:
        return (("netns", self.ns) if self.foreign else ("link", self.ns, self.link),)

    def add_command(self) -> str:
        return self._command("add")

    def delete_command(self) -> str:
        return self._command("del")

    def change_command(self, observed: Self) -> str:
        return self._command("replace")

    def _command(self, verb: str) -> str:
        family = " -6" if ":" in self.destination else ""
        via = f" via {self.via}" if self.via else ""
        proto = f" proto {PROTOCOL}" if verb != "del" else ""
        return f"ip{family} route {verb} {self.destination}{via} dev {self.link}{proto}"


class Neighbour(Partly, msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A permanent neighbour (ip-neighbour(8)), always written with replace.

    Attributes:
        advertise: None: nobody is told when it moves.
    """

    rank: ClassVar[int] = Rank.NEIGHBOUR

    ns: Ns
    link: str
    ip: str
    mac: str
    advertise: Advertise | None = None

    @property
    def key(self) -> Key:
        return ("neighbour", self.ns, self.link, self.ip)

    def essence(self) -> tuple[object, ...]:
        return (self.ns, self.link, self.ip, self.mac)

    def needs(self) -> Iterable[Key]:
        return (("link", self.ns, self.link),)

    def add_command(self) -> str:
        return f"ip neighbour replace {self.ip} lladdr {self.mac} dev {self.link} nud permanent"

    def delete_command(self) -> str:
        return f"ip neighbour del {self.ip} dev {self.link}"


class Fdb(Plain, msgspec.Struct, frozen=True, kw_only=True):
    """A forwarding entry, always written with replace.

    Attributes:
        vtep: For the VXLAN device's own table (`self permanent`): the remote VTEP address. None: a static entry of the
            bridge that the link is a port of (`master static`).
    """

    rank: ClassVar[int] = Rank.FDB

    ns: Ns
    link: str
    mac: str
    vtep: str | None = None

    @property
    def key(self) -> Key:
        return ("fdb", self.ns, self.link, self.mac, "master" if self.vtep is None else "self")

    def needs(self) -> Iterable[Key]:
        return (("link", self.ns, self.link),)

    def add_command(self) -> str:
        if self.vtep is None:
            return f"bridge fdb replace {self.mac} dev {self.link} master static"
        return f"bridge fdb replace {self.mac} dev {self.link} self permanent dst {self.vtep}"

    def delete_command(self) -> str:
        return f"bridge fdb del {self.mac} dev {self.link} {'master' if self.vtep is None else 'self'}"


class Sysctl(Partly, msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A kernel setting below /proc/sys/net that is made so and never put back: others may rely on it by then.

    Attributes:
        path: Below /proc/sys, with slashes, for example net/ipv4/ip_forward.
        link: Of a setting of one link: its name; the setting comes and goes with it. Empty: it is the namespace's.
        optional: A kernel without the setting does as if it was so.
    """

    ns: Ns
    path: str
    value: str
    link: str = ""
    optional: bool = False

    @property
    def key(self) -> Key:
        return ("sysctl", self.ns, self.path)

    @property
    def rank(self) -> int:
        return Rank.LINK_SYSCTL if self.link else Rank.SYSCTL

    def essence(self) -> tuple[object, ...]:
        return (self.ns, self.path, self.value, self.link)

    def needs(self) -> Iterable[Key]:
        return (("link", self.ns, self.link),) if self.link else (("netns", self.ns),)

    def add_command(self) -> str:
        return f"sysctl -w {self.path.replace('/', '.')}={self.value}"

    def delete_command(self) -> str:
        return ""


class File(Plain, msgspec.Struct, frozen=True, kw_only=True):
    """A small text file of a sandbox (hosts, resolv.conf), written by rename so that a reader sees old or new.

    Attributes:
        path: Absolute.
        content: Whole text; None only as observed: somebody else's edit stands.
        lines: Those of the text that are put into a file that was edited, and taken out again; none: such a file is
            left alone.
        in_place: True: the file was given by path and may be bind-mounted, so it is rewritten, not replaced.
    """

    ns: Ns
    path: str
    content: str | None
    lines: tuple[str, ...] = ()
    in_place: bool = False

    @property
    def key(self) -> Key:
        return ("file", self.ns, self.path)

    @property
    def rank(self) -> int:
        return Rank.FILE

    def needs(self) -> Iterable[Key]:
        return ()

    def matches(self, observed: Self) -> bool:
        return self.lines == observed.lines if observed.content is None else self.content == observed.content

    def add_command(self) -> str:
        return f"install -m 644 /dev/stdin {self.path}"

    def delete_command(self) -> str:
        return f"rm -f {self.path}"


ANY_ADDRESS = "*"
"""As the address of a held port: all addresses of both families."""


class PortHold(Partly, msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A port of the host that nobody else can take: bound by a socket of the agent's process, and gone with it.

    Removing it or changing its targets also ends the flows that were led to the old ones.

    Attributes:
        protocol: tcp, udp or sctp.
        address: Canonical text; 0.0.0.0 and :: are all of the family; ANY_ADDRESS.
        targets: Where its packets are led to, `10.0.0.2:80` or `[fd00::2]:80`, at most one a family.
        holder: Whom to name to somebody else who wants it.
        through: Namespace that its packets go through on their way to the targets, where they are translated a second
            time, under the same number; empty: none.
    """

    ns: Ns
    protocol: str
    address: str
    port: int
    targets: tuple[str, ...] = ()
    holder: str = ""
    through: Ns = ""
    key: Key = ()

    rank: ClassVar[int] = Rank.PORT

    def __post_init__(self) -> None:
        """Work out what is asked for several times of each of thousands."""
        msgspec.structs.force_setattr(self, "key", ("port", self.ns, self.protocol, self.address, str(self.port)))

    def essence(self) -> tuple[object, ...]:
        return (self.key, self.targets)

    def needs(self) -> Iterable[Key]:
        return (("netns", self.ns),)

    def text(self) -> str:
        """Print it as people write it."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{address}:{self.port}/{self.protocol}"

    def add_command(self) -> str:
        return f"hold {self.text()} for {' '.join(self.targets)}"

    def delete_command(self) -> str:
        return f"release {self.text()} && {self._flush()}"

    def change_command(self, observed: Self) -> str:
        return f"{self.add_command()} && {self._flush()}"

    def _flush(self) -> str:
        command = f"conntrack -D -p {self.protocol} --orig-port-dst {self.port}"
        inside = f" && ip netns exec {self.through.replace('/', '-')} {command}" if self.through else ""
        return command + inside


def as_down(link: Link) -> Link:
    """Return the link as it is before it is brought up."""
    return msgspec.structs.replace(link, up=False)
