"""The firewall's layout as a page: every table, chain, map and set that drivers make, and who fills it.

Made of what drivers render for one network of each kind, so nothing can be on the page that is not in the code; and of
the tables in the drivers' docstrings, which say what a set means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from ipaddress import ip_interface
from typing import Any

import msgspec
from netweft_agent.domain import nft
from netweft_agent.domain.objects import Endpoint, HostFiles, Network, Object
from netweft_agent.domain.resources import Key, Resource
from netweft_agent.drivers import firewall, guard, publish
from netweft_agent.engine.render import Renderer
from netweft_agent.engine.store import ObjectStore

from tests.support.agent import DRIVERS, FACTS, endpoint, network, peer, port, sandbox, subnets

CHAINS = {
    ("inet netweft", "raw"): "what comes from an endpoint for a loopback address of the host is dropped",
    ("inet netweft", "prerouting"): "what is for the host itself may be for a published port",
    ("inet netweft", "output"): "the same for what the host itself sends",
    ("inet netweft", "shards"): "where there are further bridges: what passes them is tracked at the first one",
    ("inet netweft", "turned"): "where there are further bridges: translated frames that go down again by their trunk",
    ("inet netweft", "publish"): "translation of published ports, by map",
    ("inet netweft", "forward"): "the judgement: who may reach whom",
    ("inet netweft", "postrouting"): "with which address traffic leaves",
    ("inet netweft", "input"): "VXLAN from anybody but the peers' hosts is dropped",
    ("bridge netweft", "prerouting"): "the guard: what an endpoint may send, before all else",
    (
        "bridge netweft",
        "forward",
    ): "where there are further bridges: broadcasts that would go down again by their trunk",
    ("inet netweft-admin", "prerouting"): "the administrator's, before our translation",
    ("inet netweft-admin", "forward"): "the administrator's, before our judgement",
    ("network", "shards"): "where there are further bridges: what passes them is tracked at the first one",
    ("network", "prerouting"): "what comes in from the host may be for a published port",
    ("network", "forward"): "in come answers and published ports, nothing else",
    ("network", "postrouting"): "traffic leaves with the pair's address",
    ("network", "output"): "no redirects: endpoints would keep such routes",
}

OWNERS = {"endpoint": "endpoints", "network": "networks", "peer": "peers (endpoints of other hosts)"}


def scenario(vtep: str = "192.0.2.2") -> list[Object]:
    """Return networks of every kind with endpoints: what a busy host has.

    Args:
        vtep: Tunnel address of another host.
    """

    def dual(number: int, **fields: Any) -> Network:
        prefixes = subnets(f"10.{number}.0.0/24", f"fd00:{number}::/64")
        return network(number, subnets=prefixes, enable_ipv6=True, **fields)

    def one(number: int, net: int, last: int, **fields: Any) -> Endpoint:
        addresses = (ip_interface(f"10.{net}.0.{last}/24"), ip_interface(f"fd00:{net}::{last}/64"))
        mac = f"02:42:0a:{net:02x}:00:{last:02x}"
        return endpoint(number, net, number - 900, addresses=addresses, mac=mac, **fields)

    routed = {"gateway_mode_ipv4": "routed", "gateway_mode_ipv6": "routed"}
    open_all = {"gateway_mode_ipv4": "nat-unprotected", "gateway_mode_ipv6": "nat-unprotected"}
    at_one_address = (port(8443, 443, "192.0.2.1"), port(8443, 443, "2001:db8::1"), port(53, 53, "127.0.0.1", "udp"))
    ports = (port(8080, 80), *at_one_address)
    return [
        dual(1),
        dual(2, options={"icc": "false", "snat_ipv4": "192.0.2.1", "snat_ipv6": "2001:db8::1"}),
        dual(3, options=routed),
        dual(4, options={**open_all, "trusted_host_interfaces": "wg0"}),
        dual(5, internal=True),
        network(6, driver="overlay", subnets=subnets("10.6.0.0/24", "10.66.0.0/24", "fd00:6::/64"), enable_ipv6=True),
        *(sandbox(number) for number in range(101, 107)),
        one(1001, 1, 2, ports=ports),
        one(1002, 2, 2),
        one(1003, 3, 2, ports=(port(8080, 81),)),
        one(1004, 4, 2),
        one(1005, 5, 2),
        one(1006, 6, 2, ports=(port(8080, 82),)),
        peer(5001, 6, vtep=vtep, addresses=(ip_interface("10.6.0.101/24"), ip_interface("fd00:6::101/64"))),
    ]


def crowded() -> list[Object]:
    """Return networks with endpoints beyond what the first bridge takes."""
    return [
        network(7),
        network(8, driver="overlay"),
        *(sandbox(number) for number in (107, 108)),
        endpoint(1007, 7, 107, shard=1),
        endpoint(1008, 8, 108, shard=1),
    ]


def rendered(items: list[Object], vtep: str = FACTS.vtep) -> dict[str, Mapping[Key, Resource]]:
    """Return what the drivers want for objects, by owner, on a host with a tunnel address."""
    store = ObjectStore()
    for item in items:
        store.put(item)
    renderer = Renderer(DRIVERS, msgspec.structs.replace(FACTS, vtep=vtep), HostFiles())
    wishes = renderer.render(store, renderer.everything(store))
    for refusal in wishes.refused.values():
        raise refusal
    return wishes.by_owner


def layout(*hosts: Mapping[str, Mapping[Key, Resource]]) -> str:
    """Return the page's body.

    Args:
        hosts: What the drivers want on some hosts, by owner.

    Raises:
        KeyError: A chain or set is described nowhere.
    """
    every = [(owner, one) for wanted in hosts for owner, parts in wanted.items() for one in parts.values()]
    places = sorted({_place(one) for _, one in every if isinstance(one, nft.NftTable | nft.NftOffer)}, key=_order)
    return "\n".join(line for place in places for line in _table(place, every))


def _place(one: nft.NftTable | nft.NftOffer | nft.NftSet | nft.NftChain | nft.NftElement) -> str:
    return "network" if one.ns else one.table.text()


def _order(place: str) -> int:
    return ["bridge netweft", "inet netweft-admin", "inet netweft", "network"].index(place)


_TITLES = {
    "bridge netweft": "Table `bridge netweft` of the host",
    "inet netweft-admin": "Table `inet netweft-admin` of the host",
    "inet netweft": "Table `inet netweft` of the host",
    "network": "Table `inet netweft` of an overlay network's namespace",
}


def _table(place: str, every: list[tuple[str, Resource]]) -> Iterator[str]:
    here = [
        (owner, one)
        for owner, one in every
        if isinstance(one, nft.NftTable | nft.NftOffer | nft.NftSet | nft.NftChain | nft.NftElement)
        and _place(one) == place
    ]
    yield f"## {_TITLES[place]}\n"
    owned = any(isinstance(one, nft.NftTable) and one.owned for _, one in here)
    if owned:
        yield "Flags: `owner`, `persist`.\n"
    yield "| chain | type | hook | priority | policy | |"
    yield "|---|---|---|---|---|---|"
    chains: dict[str, nft.Base | None] = {}
    for _, one in here:
        if isinstance(one, nft.NftOffer):
            chains |= dict(one.chains)
        elif isinstance(one, nft.NftChain):
            chains[one.name] = one.base
    for name, base in sorted(chains.items(), key=lambda item: _when(item[1])):
        cells = (
            (base.type, base.hook, str(base.priority), base.policy) if base is not None else ("-", "called", "-", "-")
        )
        yield f"| `{name}` | {' | '.join(cells)} | {CHAINS[place, name]} |"
    yield ""
    sets = {one.spec: None for _, one in here if isinstance(one, nft.NftSet)}
    if not sets:
        return
    yield "| set or map | key | value | an element is made by | meaning |"
    yield "|---|---|---|---|---|"
    told = meanings()
    for spec in sorted(sets, key=lambda spec: spec.name):
        makers = sorted(
            {owner.partition("/")[0] for owner, one in here if isinstance(one, nft.NftElement) and one.spec == spec}
        )
        assert makers, f"no network of the scenario fills {spec.name}"
        key = _types(spec.clauses()[0])
        flags = " (prefixes)" if spec.interval else ""
        by = ", ".join(OWNERS[maker] for maker in makers)
        value = f"`{key[1]}`" if key[1] else ""
        yield f"| `{spec.name}` | `{key[0]}`{flags} | {value} | {by} | {told[spec.name]} |"
    yield ""


def _when(base: nft.Base | None) -> tuple[int, int]:
    hooks = ["prerouting", "input", "forward", "output", "postrouting"]
    return (len(hooks), 0) if base is None else (hooks.index(base.hook), base.priority)


def _types(clause: str) -> tuple[str, str]:
    """Return key and value of a set as nft writes them."""
    key, _, value = clause.partition(" ")[2].partition(" : ")
    return key, value


def meanings() -> dict[str, str]:
    """Return what the drivers' docstrings say of each set, by name: the last column of their tables."""
    found: dict[str, str] = {}
    for module in (firewall, guard, publish):
        for line in (module.__doc__ or "").splitlines():
            if line.startswith("| `"):
                cells = [cell.strip() for cell in line.strip("|").split("|")]
                found |= dict.fromkeys(re.findall(r"`(\w+)`", cells[0]), cells[-1])
    return found


def tidy(listing: str) -> str:
    """Return what nft lists without what is nobody's choice: order of elements, digests, line breaks."""
    text = re.sub(r' comment "[0-9a-f]{16}"| # progname .*', "", listing)
    # Not every nft that lists an owner knows the flag that goes with it.
    text = re.sub(r"flags owner.*", "flags owner", text)
    text = re.sub(r",\n\s+", ", ", text).replace(" burst 5 packets", "")
    lines = []
    for line in text.splitlines():
        match = re.fullmatch(r"(\s*elements = \{ )(.*?)( \})", line)
        if match is None:
            lines.append(line.rstrip())
            continue
        elements = sorted(match[2].split(", "))
        lines.append(match[1] + f",\n{' ' * 14}".join(elements).replace(" " * 14, "\t\t             ") + match[3])
    return "\n".join(lines) + "\n"
