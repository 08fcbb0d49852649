"""One test for each known way past a bridge network's walls, by the CVE or rule that its docstring names.

| rule | here | also |
|---|---|---|
| networks apart (CVE-2025-54410) | `apart`, `no_way` | `test_nft_modes.py` by mode |
| translation for local destinations alone (CVE-2025-67499) | `transit` | `test_nft_publish.py` |
| ports bound to 127.0.0.1 (CVE-2020-8558) | `loopback` | `test_nft_publish.py`: `route_localnet` set by others |
| an endpoint's own address, from a neighbour (moby#45610) | `directly` | `test_nft_modes.py` by mode |
| spoofing; RA, redirects, DHCP servers (CVE-2020-10749) | `advertisement` | `test_nft_guard.py`, frame by frame |
| no IPv6 in IPv4 networks (CVE-2024-32473) | `given_namespace` | `test_nft_modes.py` |
| the administrator's chains first (moby#4737, #22054) | | `test_nft_beside.py` |
| firewalld, ufw, a policy of drop | | `test_nft_beside.py` |
| a flushed ruleset opens nothing (CVE-2025-54388) | `flushed`, `no_agent` | `test_nft_beside.py` |
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_interface
from pathlib import Path

import pytest
from netweft_agent.drivers import guard
from netweft_agent.kernel import nft as kernel_nft
from netweft_cli import netns

from tests.support import firewalls, frames
from tests.support.agent import endpoint, network, port, sandbox, subnets
from tests.support.lab import HOST4, HOST6, NEIGHBOUR4, NEIGHBOUR6, Lab, new_lab
from tests.support.netns import Netns, require_root, require_tool, veth
from tests.support.packets import REFUSED, at_once, tcp, udp

pytestmark = [pytest.mark.netns, pytest.mark.anyio]

SEND = {"tcp": tcp, "udp": udp}
OWN = {4: "10.1.0.5", 6: "fd00:1::5"}
OTHER = {4: "10.2.0.5", 6: "fd00:2::5"}
HOSTS = {4: HOST4, 6: HOST6}
NEIGHBOURS = {4: NEIGHBOUR4, 6: NEIGHBOUR6}
BEYOND = {4: "203.0.113.9", 6: "2001:db8:9::9"}
RED = "02:42:00:00:00:05"


@pytest.fixture(autouse=True)
def _needs():
    require_root()
    require_tool("ip")


@pytest.fixture
async def lab():
    async with new_lab() as lab:
        lab.neighbour.exec(["ip", "route", "add", "10.0.0.0/8", "via", HOST4])
        lab.neighbour.exec(["ip", "route", "add", "fd00::/16", "via", HOST6])
        yield lab


def dual(number=1, **fields):
    return network(number, subnets=subnets(f"10.{number}.0.0/24", f"fd00:{number}::/64"), enable_ipv6=True, **fields)


def both(number=1001, net=1, box=101, last=5, **fields):
    addresses = (ip_interface(f"10.{net}.0.{last}/24"), ip_interface(f"fd00:{net}::{last}/64"))
    return endpoint(number, net, box, addresses=addresses, **fields)


ITEM, STRANGER = both(ports=(port(8080, 80), port(8443, 443, "127.0.0.1"))), both(1002, 2, 102)


async def two_networks(lab, **fields):
    await lab.put(dual(**fields), dual(2, **fields), sandbox(), sandbox(102), ITEM, STRANGER)
    return lab.box(ITEM), lab.box(STRANGER)


@pytest.mark.parametrize("options", [{}, {"icc": "false"}, {"masquerade": "false"}], ids=["nat", "icc off", "no nat"])
@pytest.mark.parametrize("protocol", SEND)
@pytest.mark.parametrize("version", [4, 6])
async def test_networks_are_apart(lab, version, protocol, options):
    """CVE-2025-54410: no endpoint reaches another network's, at its own address, whatever routes it makes itself."""
    box, other = await two_networks(lab, options=options)
    send, to, back = SEND[protocol], OWN[version], OTHER[version]

    # Published port, another one; and the other way.
    seen = at_once(
        lambda: send(other, (to, 8080), box, (to, 8080)),
        lambda: send(other, (to, 9), box, (to, 9)),
        lambda: send(box, (back, 9), other, (back, 9)),
    )

    assert [None] * 3 == seen


async def test_an_endpoint_is_no_way_from_one_of_its_networks_into_the_other(lab):
    """CVE-2025-54410: a sandbox in two networks does not join them for others, which name it as their router."""
    first, second, middle = both(), both(1002, 2, 102), both(1003, 1, 103, 7)
    leg = both(1004, 2, 103, 7, interface_name="eth1")
    await lab.put(dual(), dual(2), *map(sandbox, (101, 102, 103)), first, second, middle, leg)
    lab.box(middle).exec(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])
    for net, item, far in ((1, first, 2), (2, second, 1)):
        lab.box(item).exec(["ip", "route", "add", f"10.{far}.0.0/24", "via", f"10.{net}.0.7"])
        lab.box(item).exec(["ip", "route", "add", f"fd00:{far}::/64", "via", f"fd00:{net}::7"])

    seen = at_once(
        *(
            lambda address=address: udp(lab.box(first), (address, 9), lab.box(second), (address, 9))
            for address in OTHER.values()
        )
    )

    assert [None, None] == seen


@pytest.fixture
def beyond(lab) -> Iterator[Netns]:
    """Somebody on another wire of the host, which is the neighbour's router."""
    with Netns() as far:
        veth(lab.host, "wire1", far, "wire1")
        for prefix, length in (("203.0.113", 24), ("2001:db8:9:", 64)):
            dot = "." if length == 24 else ":"
            nodad = [] if length == 24 else ["nodad"]
            lab.host.exec(["ip", "address", "add", f"{prefix}{dot}1/{length}", "dev", "wire1", *nodad])
            far.exec(["ip", "address", "add", f"{prefix}{dot}9/{length}", "dev", "wire1", *nodad])
            far.exec(["ip", "route", "add", "default", "via", f"{prefix}{dot}1"])
        lab.neighbour.exec(["ip", "route", "add", "203.0.113.0/24", "via", HOST4])
        lab.neighbour.exec(["ip", "route", "add", "2001:db8:9::/64", "via", HOST6])
        yield far


@pytest.mark.parametrize("protocol", SEND)
@pytest.mark.parametrize("version", [4, 6])
async def test_transit_to_a_published_port_of_another_machine_is_untouched(lab, beyond, version, protocol):
    """CVE-2025-67499: only what is for an address of this host is translated, not what it forwards."""
    item = both(ports=(port(8080, 80, protocol=protocol), port(8081, 81, HOSTS[version], protocol=protocol)))
    await lab.put(dual(), sandbox(), item)
    send, to = SEND[protocol], BEYOND[version]

    seen = [send(lab.neighbour, (to, number), beyond, (to, number)) for number in (80, 81)]
    here = send(lab.neighbour, (HOSTS[version], 80), lab.box(item), (OWN[version], 8080))

    assert [NEIGHBOURS[version]] * 2 == seen
    assert NEIGHBOURS[version] == here


def speaks_to_loopback(neighbour: Netns) -> None:
    """Let a machine send packets for 127.0.0.1 to the host, as an attacker's does."""
    neighbour.exec(["ip", "link", "set", "lo", "down"])
    neighbour.exec(["ip", "route", "add", "127.0.0.1", "via", HOST4, "dev", "wire0", "table", "7"])
    neighbour.exec(["ip", "rule", "add", "to", "127.0.0.1", "lookup", "7", "pref", "0"])
    neighbour.exec(["ip", "rule", "del", "pref", "0", "lookup", "local"])
    neighbour.exec(["ip", "rule", "add", "pref", "1", "lookup", "local"])
    neighbour.exec(["sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1"])


@pytest.mark.parametrize("protocol", SEND)
async def test_services_on_the_hosts_loopback_address_are_not_reached_from_outside(lab, protocol):
    """CVE-2020-8558: published ports do not open the host's 127.0.0.1, its own services' or a port bound to it."""
    item = both(ports=(port(8080, 80, protocol=protocol), port(8443, 443, "127.0.0.1", protocol=protocol)))
    await lab.put(dual(), sandbox(), item)
    box, send = lab.box(item), SEND[protocol]
    speaks_to_loopback(lab.neighbour)

    settings = {
        name: lab.host.exec(["sysctl", "-n", f"net.ipv4.conf.{name}.route_localnet"]).stdout.strip()
        for name in ("all", "default", "wire0")
    }
    inside = at_once(
        lambda: send(lab.host, ("127.0.0.1", 5000), lab.host, ("127.0.0.1", 5000)),
        lambda: send(lab.host, ("127.0.0.1", 443), box, (OWN[4], 8443)),
    )
    outside = at_once(
        lambda: send(lab.neighbour, ("127.0.0.1", 5001), lab.host, ("127.0.0.1", 5001), source=(NEIGHBOUR4, 0)),
        lambda: send(lab.neighbour, ("127.0.0.1", 443), box, (OWN[4], 8443), source=(NEIGHBOUR4, 0)),
        lambda: send(lab.neighbour, ("127.0.0.1", 80), box, (OWN[4], 8080), source=(NEIGHBOUR4, 0)),
    )

    assert {"all": "0", "default": "0", "wire0": "0"} == settings
    assert ["127.0.0.1", "10.1.0.1"] == inside
    assert {None, REFUSED} >= set(outside)


@pytest.mark.parametrize("protocol", SEND)
@pytest.mark.parametrize("version", [4, 6])
async def test_a_neighbour_does_not_reach_an_endpoint_directly(lab, version, protocol):
    """moby#45610: in nat mode a machine on the host's link with a route to the subnet gets nowhere."""
    await lab.put(dual(), sandbox(), ITEM)
    box, send, own = lab.box(ITEM), SEND[protocol], OWN[version]

    seen = at_once(
        *(lambda at=at: send(lab.neighbour, (own, at), box, (own, at)) for at in (8080, 8443, 9)),
    )

    assert [None] * 3 == seen


async def test_an_answer_lets_nobody_else_in(lab):
    """CT state: what an endpoint has asked outside comes back, from whom it asked and to the port that it used."""
    await lab.put(dual(), sandbox(), ITEM)
    box = lab.box(ITEM)

    asked = udp(box, (NEIGHBOUR4, 7000), lab.neighbour, (NEIGHBOUR4, 7000), source=(OWN[4], 5555))
    others = at_once(
        lambda: udp(lab.neighbour, (OWN[4], 5556), box, (OWN[4], 5556), source=(NEIGHBOUR4, 7000)),
        lambda: udp(lab.neighbour, (OWN[4], 5555), box, (OWN[4], 5555), source=(NEIGHBOUR4, 7001)),
    )

    assert HOST4 == asked
    assert [None, None] == others


@pytest.mark.parametrize("anti_spoof", ["true", "false"])
async def test_a_router_advertisement_of_an_endpoint_changes_no_route(lab, anti_spoof):
    """CVE-2020-10749, CVE-2020-13401: neither the host nor a neighbour in the network takes a container as its router.

    Not even where endpoints may send what they like: nobody listens.
    """
    net = dual(options={"anti_spoof": anti_spoof})
    liar, other = both(mac=RED), both(1002, 1, 102, 6)
    await lab.put(net, sandbox(), sandbox(102), liar, other)
    source = str(guard.link_local(RED))
    prefix = "2001:db8:bad::"
    option = (
        bytes([3, 4, 64, 0xC0]) + bytes([0, 1, 0, 0, 0, 1, 0, 0]) + bytes(4) + socket.inet_pton(socket.AF_INET6, prefix)
    )
    advertised = frames.icmp6(source, "ff02::1", 134, bytes([64, 0, 7, 8]) + bytes(8) + option)
    lie = frames.ethernet(RED, frames.IPV6, advertised, "33:33:00:00:00:01")
    mark = frames.ethernet(RED, frames.IPV4, frames.udp4(OWN[4], "10.1.0.6"))
    bridge = "nwb-" + net.id[:11]

    arrived = frames.seen(lab.box(liar), [lie], mark, lab.box(other))
    frames.seen(lab.box(liar), [lie], mark, lab.host, bridge)

    routes = "".join(ns.exec(["ip", "-6", "route"]).stdout for ns in (lab.host, lab.box(other)))
    addresses = "".join(ns.exec(["ip", "-6", "address"]).stdout for ns in (lab.host, lab.box(other)))
    assert ([] if anti_spoof == "true" else [lie]) == arrived
    assert "proto ra" not in routes
    assert source not in routes
    assert "2001:db8:bad:" not in addresses


async def test_an_ipv4_endpoint_in_a_given_namespace_has_no_ipv6_either(lab, tmp_path, request):
    """CVE-2024-32473: also where the namespace is somebody else's, who has IPv6 on by default."""
    path = tmp_path / "given"
    netns.create(path)
    request.addfinalizer(lambda: netns.remove(path))
    with closing(Netns.at(str(path))) as given:
        given.exec(["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=0", "net.ipv6.conf.all.disable_ipv6=0"])
        box = sandbox(source=str(path))
        await lab.put(network(), box, endpoint())

        listed = given.exec(["ip", "-6", "address", "show", "eth0"]).stdout
        setting = given.exec(["sysctl", "-n", "net.ipv6.conf.eth0.disable_ipv6"]).stdout.strip()
        theirs = given.exec(["sysctl", "-n", "net.ipv6.conf.default.disable_ipv6"]).stdout.strip()
        await lab.gone(endpoint(), box)

    assert ("", "1", "0") == (listed, setting, theirs)


@contextlib.contextmanager
def streaming(lab: Lab, places: list[tuple[Netns, str]]) -> Iterator[list[int]]:
    """Have datagrams sent to an endpoint's port 9 all the time, and count on leaving how many came in.

    Args:
        lab: The lab.
        places: Who sends, and to which address.
    """
    box, arrived, stop = lab.box(ITEM), [], threading.Event()
    ears = []
    mouths = []
    for version in (4, 6):
        ear = box.run(lambda version=version: socket.socket(_FAMILY[version], socket.SOCK_DGRAM))
        ear.bind((OWN[version], 9))
        ear.settimeout(0)
        ears.append(ear)
    for sender, address in places:
        mouth = sender.run(lambda a=address: socket.socket(_FAMILY[6 if ":" in a else 4], socket.SOCK_DGRAM))
        mouth.connect((address, 9))
        mouths.append(mouth)
    sent = itertools.count()

    def send() -> None:
        while not stop.is_set():
            for mouth in mouths:
                with contextlib.suppress(OSError):  # refused, or no way there: as well
                    mouth.send(b"through")
            next(sent)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield arrived
    finally:
        stop.set()
        thread.join()
        for ear in ears:
            with contextlib.suppress(BlockingIOError):
                while ear.recv(16):
                    arrived.append(1)
            ear.close()
        for mouth in mouths:
            mouth.close()
        assert next(sent) > 0


_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
FIREWALLS = Path(firewalls.__file__).parent


async def test_while_rulesets_are_flushed_and_reloaded_nothing_gets_in(lab):
    """CVE-2025-54388, CVE-2025-54410: closed not only after a reload, but all the time; nothing is to be repaired."""
    require_tool("nft")
    if not kernel_nft.has_owner():
        pytest.skip("this kernel has no tables with an owner")
    _, other = await two_networks(lab)
    places = [(who, OWN[version]) for who in (lab.neighbour, other) for version in (4, 6)]

    with streaming(lab, places) as arrived:
        for _ in range(10):
            lab.host.exec(["nft", "flush", "ruleset"])
            for name in ("firewalld", "docker", "default-drop"):
                lab.host.exec(["nft", "-f", str(FIREWALLS / f"{name}.nft")])
            if shutil.which("iptables-nft-restore"):
                saved = lab.host.exec(["iptables-nft-save"]).stdout
                lab.host.exec(["iptables-nft-restore"], stdin=saved)
        lab.host.exec(["nft", "flush", "ruleset"])

    assert [] == arrived
    assert NEIGHBOUR4 == tcp(lab.neighbour, (HOST4, 80), lab.box(ITEM), (OWN[4], 8080))


async def test_what_streams_does_arrive_where_the_network_is_open(lab):
    """The test above counts nothing because nothing gets in, not because nobody sends."""
    _, other = await two_networks(lab, options={"gateway_mode_ipv4": "nat-unprotected"})

    with streaming(lab, [(lab.neighbour, OWN[4]), (other, OWN[4])]) as arrived:
        udp(lab.neighbour, (OWN[4], 10), lab.box(ITEM), (OWN[4], 10))

    assert arrived


async def test_while_no_agent_runs_all_walls_stand(lab):
    """CVE-2025-54388: the rules are the kernel's, whether the agent lives or not; the next one has nothing to do."""
    box, other = await two_networks(lab)
    await lab.kernel.close()

    seen = at_once(
        lambda: udp(lab.neighbour, (OWN[4], 9), box, (OWN[4], 9)),
        lambda: udp(lab.neighbour, (OWN[6], 9), box, (OWN[6], 9)),
        lambda: udp(other, (OWN[4], 10), box, (OWN[4], 10)),
        lambda: udp(other, (OWN[6], 10), box, (OWN[6], 10)),
        lambda: tcp(box, (NEIGHBOUR4, 7000), lab.neighbour, (NEIGHBOUR4, 7000)),
    )
    drift = await lab.restart()

    assert [None, None, None, None, HOST4] == seen
    assert () == drift
