"""The bridge driver: a network of one host, on a Linux bridge in the host's namespace.

Each endpoint is a veth pair, one end a port of the bridge, the other in the sandbox. The bridge holds the gateway's
address, unless the gateway mode or `inhibit_ipv4` says otherwise. With `icc` off its ports are isolated from each other
by the kernel (bridge(8), `isolated`), not by filter rules: bridged frames pass no inet hook. When there are many
endpoints they share out further bridges among them, see `shards`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

from netweft_common.errors import InvalidArgument

from netweft_agent.domain import names, ports
from netweft_agent.domain.objects import Endpoint, Facts, Interface, Network, Peer, Scope, Subnetwork
from netweft_agent.domain.resources import (
    HOST,
    Address,
    Advertise,
    Fdb,
    Key,
    Link,
    PeerEnd,
    Port,
    PortHold,
    Resource,
    Sysctl,
)
from netweft_agent.domain.state import HostState
from netweft_agent.drivers import base, firewall, guard, limits, publish, shards
from netweft_agent.drivers.bridge_options import Mode, Options


class BridgeDriver:
    """Networks of one host."""

    name: ClassVar[str] = "bridge"
    scope: ClassVar[Scope] = Scope.LOCAL
    claims: ClassVar[tuple[base.Claim, ...]] = ()
    options: ClassVar[type[Options]] = Options
    needs_addresses: ClassVar[bool] = True
    single_network: ClassVar[bool] = False

    def __init__(self) -> None:
        self._own = base.OwnParts()

    def check(self, network: Network, attachment: base.Attachment, facts: Facts) -> None:
        """Refuse the host's own namespace, limits that its kernel lacks, contradicting options, and ports to nowhere.

        Raises:
            FailedPrecondition: The sandbox or the kernel is not fit for it, or a port cannot be published.
            InvalidArgument: An option contradicts the network, or no kernel can lead a port of the host into it.
        """
        base.refuse_host_sandbox(self.name, attachment)
        limits.refuse_lacking(attachment.endpoint, facts)
        _check_network(network, base.parse(Options, network.options, driver=self.name))
        if attachment.endpoint.ports:
            _check_ports(network, attachment.endpoint)

    def render(
        self, network: Network, attachments: Sequence[base.Attachment], peers: Sequence[Peer], facts: Facts
    ) -> HostState:
        """Render the bridge with its gateway and firewall, and a veth pair for each endpoint."""
        del peers
        options = base.parse(Options, network.options, driver=self.name)
        bridge = options.bridge_name or names.bridge(network.id)
        state = HostState()
        own = self._own.get(network, facts, lambda: _network(network, options, bridge))
        state.take(f"network/{network.id}", own)
        for attachment in attachments:
            shard = attachment.endpoint.shard
            published = _published(network, attachment, options, bridge) if attachment.endpoint.ports else []
            # br_netfilter translates a frame to the endpoint's own published port in the bridge: it has to turn round,
            # at the endpoint's port or at the trunk of its bridge.
            turns = not shard and any(isinstance(one, PortHold) for one in published)
            fixed = bool(shard) and _is_fixed(options)
            port = Port(isolated=not options.icc, hairpin=turns, flood=not fixed)
            link = veth(
                attachment,
                ns=HOST,
                master=names.further_bridge(network.id, shard) if shard else bridge,
                mtu=options.mtu or None,
                port=port,
                ipv6=network.enable_ipv6,
                guarded=options.anti_spoof,
                advertise=base.advertise(network, options),
            )
            ipv6 = base.has_ipv6(attachment.endpoint, network_has=network.enable_ipv6)
            may_send = guard.endpoint(attachment.endpoint, ipv6=ipv6) if options.anti_spoof else []
            known = [_known(attachment.endpoint)] if fixed else []
            state.add(attachment.owner, *link, *may_send, *published, *known)
            if shard:
                state.join(attachment.owner, self._further(network, options, bridge, shard, facts))
        return state

    def _further(
        self, network: Network, options: Options, first: str, shard: int, facts: Facts
    ) -> Mapping[Key, Resource]:
        return self._own.get(network, facts, lambda: _further(network, options, first, shard), shard=shard)

    def gateway(self, network: Network, endpoint: Endpoint, version: int) -> Interface | None:
        """Offer the bridge's address, or the one that the network names."""
        return base.subnet_gateway(network, endpoint, version)

    def routes(self, network: Network, endpoint: Endpoint) -> Mapping[Subnetwork, Interface]:
        """Return the network's other subnets, between which the host forwards, unless it is internal."""
        return {} if network.internal else base.other_subnets(network, endpoint)

    def interface_prefix(self, network: Network) -> str:
        """Return what the option says."""
        return base.parse(Options, network.options, driver=self.name).interface_prefix

    def binds(self, network: Network, endpoint: Endpoint) -> ports.Addresses:
        """Return the host's addresses at which ports are translated."""
        of = _ways(network, endpoint, base.parse(Options, network.options, driver=self.name), base.IP_VERSIONS)
        return publish.addresses(of)


_TRANSLATED = (Mode.NAT, Mode.NAT_UNPROTECTED)


def _ways(network: Network, endpoint: Endpoint, options: Options, versions: Collection[int]) -> publish.Ways:
    translated = () if network.internal else options.versions(*_TRANSLATED) & frozenset(versions)
    return publish.ways(endpoint, options.binding, translated)


def _published(network: Network, attachment: base.Attachment, options: Options, bridge: str) -> list[Resource]:
    endpoint = attachment.endpoint
    of = _ways(network, endpoint, options, attachment.gateway_of)
    wanted = publish.render(endpoint, bridge, of)
    routed = frozenset() if network.internal else options.versions(Mode.ROUTED) & attachment.gateway_of
    addresses = [str(one.ip) for one in endpoint.addresses if one.version in routed]
    if addresses:
        wanted += [
            firewall.opened(address, port.protocol, port.container_port)
            for port in endpoint.ports
            for address in addresses
        ]
    return wanted


def _check_network(network: Network, options: Options) -> None:
    for version in sorted(base.IP_VERSIONS):
        if options.mode(version) is Mode.ISOLATED and not network.internal:
            raise InvalidArgument(
                "ISOLATED_NOT_INTERNAL",
                f"network {network.name} has gateway mode isolated for IPv{version}, which is for internal networks; "
                "create it as internal, or with another mode",
                field=f"options[gateway_mode_ipv{version}]",
            )


def _check_ports(network: Network, endpoint: Endpoint) -> None:
    options = base.parse(Options, network.options, driver=BridgeDriver.name)
    of = _ways(network, endpoint, options, base.IP_VERSIONS)
    routed = not network.internal and any(options.mode(one.version) is Mode.ROUTED for one in endpoint.addresses)
    # In that mode it is opened at the endpoint's own address, whatever is said of the host's.
    translated = [one for one in endpoint.ports if not routed or of(one) or one.host_address == "::1"]
    publish.refuse_unreachable(network, endpoint, translated, of, options.host_binding)
    publish.refuse_twice(endpoint, of)


def _network(network: Network, options: Options, bridge: str) -> list[Resource]:
    wanted: list[Resource] = [
        Link(
            ns=HOST,
            name=bridge,
            kind="bridge",
            mtu=options.mtu or None,
            mac=names.mac(network.id),
            ipv6=network.enable_ipv6 and options.mode(6) is not Mode.ISOLATED,
            shared=bool(options.bridge_name),
        )
    ]
    wanted += [
        Address(ns=HOST, link=bridge, address=str(one.gateway))
        for one in network.subnets
        if one.gateway is not None and _has_address(options, one.subnet.version)
    ]
    if not network.internal:
        if network.enable_ipv4:
            wanted.append(Sysctl(ns=HOST, path="net/ipv4/ip_forward", value="1"))
        if network.enable_ipv6:
            wanted.append(Sysctl(ns=HOST, path="net/ipv6/conf/all/forwarding", value="1"))
    return wanted + firewall.network(bridge, network, _policy(options))


def _further(network: Network, options: Options, first: str, shard: int) -> list[Resource]:
    bridge, (trunk, far) = names.further_bridge(network.id, shard), names.trunk(network.id, shard)
    fixed = _is_fixed(options)
    return [
        *shards.further(
            HOST,
            bridge,
            first=first,
            trunk=trunk,
            far=far,
            mac=names.further_mac(network.id, shard),
            mtu=options.mtu or None,
            trunk_port=Port(isolated=not options.icc, hairpin=fixed),
            far_port=Port(learning=not fixed),
        ),
        *firewall.further(bridge, trunk, first),
    ]


def _is_fixed(options: Options) -> bool:
    """Return whether further bridges know their endpoints by entries of ours, and learn nothing by their trunks.

    Else a frame that turns round in the first bridge would teach a further one that its sender is elsewhere. Endpoints
    that may send with any MAC have to be learned; with isolated ports nothing turns round.
    """
    return options.anti_spoof and options.icc


def _known(endpoint: Endpoint) -> Fdb:
    """Render that a further bridge knows an endpoint's port, though the endpoint is silent."""
    return Fdb(ns=HOST, link=names.veth(endpoint.id), mac=mac(endpoint))


def _has_address(options: Options, version: int) -> bool:
    """Return whether the bridge has an address of an IP version."""
    return options.mode(version) is not Mode.ISOLATED and not (version == 4 and options.inhibit_ipv4)


def _policy(options: Options) -> firewall.Policy:
    return firewall.Policy(
        icc=options.icc,
        leaving={
            version: (options.snat(version) or firewall.MASQUERADE)
            for version in options.versions(*_TRANSLATED)
            if options.masquerade
        },
        unprotected=options.versions(Mode.NAT_UNPROTECTED),
        routed=options.versions(Mode.ROUTED),
        trusted=options.trusted,
        guarded=options.anti_spoof,
    )


def mac(endpoint: Endpoint) -> str:
    """Return the MAC of an endpoint's interface."""
    return endpoint.mac or names.mac(endpoint.id)


def veth(
    attachment: base.Attachment,
    *,
    ns: str,
    master: str,
    mtu: int | None,
    port: Port,
    ipv6: bool,
    guarded: bool = True,
    advertise: Advertise | None = None,
) -> list[Resource]:
    """Render an endpoint's veth pair, its limits and addresses: one end a port of `master` in `ns`, one in the sandbox.

    IPv6 is off on the bridge's side always: a port needs no address, and each one with IPv6 on would flood
    multicast listener reports to all others. `guarded` says how the port is named, see `guard`; `advertise` how
    neighbours are told of the addresses. What is in a sandbox of a handover is the caller's.
    """
    endpoint, inside = attachment.endpoint, attachment.sandbox.ns
    host_end = names.veth(endpoint.id, guarded=guarded)
    ipv6 = base.has_ipv6(endpoint, network_has=ipv6)
    leaves = attachment.sandbox.leaves
    pair: list[Resource] = [
        Link(
            ns=ns,
            name=host_end,
            kind="veth",
            mtu=mtu,
            master=master,
            ipv6=False,
            port=port,
            peer=PeerEnd(ns=inside, name=endpoint.interface_name, mac=mac(endpoint), leaves=leaves),
        )
    ]
    if not leaves:
        pair.append(
            Link(
                ns=inside,
                name=endpoint.interface_name,
                kind="peer",
                mtu=mtu,
                mac=mac(endpoint),
                ipv6=ipv6,
                peer=PeerEnd(ns=ns, name=host_end),
            )
        )
        pair += base.inside(attachment, ipv6=ipv6, advertise=advertise)
    return [*pair, *limits.render(endpoint, ns=ns, link=host_end, mtu=mtu)]
