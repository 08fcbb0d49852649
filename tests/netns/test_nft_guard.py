"""What endpoints may send, by frames made by hand in a privileged sandbox: as themselves they pass, as others not.

red 10.1.0.5, fd00:1::5 and blue 10.1.0.6, fd00:1::6 are on one network.
"""

from __future__ import annotations

from ipaddress import ip_interface

import pytest
from netweft_agent.drivers import guard

from tests.support import frames
from tests.support.agent import endpoint, network, sandbox, subnets
from tests.support.lab import NEIGHBOUR4, new_lab
from tests.support.netns import Netns, require_root, require_tool
from tests.support.packets import udp

pytestmark = [pytest.mark.netns, pytest.mark.anyio]

RED, BLUE, GATEWAY, STRANGER = "02:42:00:00:00:05", "02:42:00:00:00:06", "02:42:00:00:00:01", "02:42:00:00:00:99"
RED_LL = str(guard.link_local(RED))


@pytest.fixture(autouse=True)
def _needs():
    require_root()
    require_tool("ip")


def red(**fields):
    fields.setdefault("addresses", (ip_interface("10.1.0.5/24"), ip_interface("fd00:1::5/64")))
    return endpoint(1001, 1, 101, mac=RED, **fields)


def blue(**fields):
    fields.setdefault("addresses", (ip_interface("10.1.0.6/24"), ip_interface("fd00:1::6/64")))
    return endpoint(1002, 1, 102, mac=BLUE, **fields)


def dual(**fields):
    return network(subnets=subnets("10.1.0.0/24", "fd00:1::/64"), enable_ipv6=True, **fields)


MARK = frames.ethernet(RED, frames.IPV4, frames.udp4("10.1.0.5", "10.1.0.6"))

PASSED = {
    "IPv4 as itself": frames.ethernet(RED, frames.IPV4, frames.udp4("10.1.0.5", "10.1.0.6")),
    "IPv6 as itself": frames.ethernet(RED, frames.IPV6, frames.udp6("fd00:1::5", "fd00:1::6")),
    "IPv6 by its link-local address": frames.ethernet(RED, frames.IPV6, frames.udp6(RED_LL, "ff02::1")),
    "an ARP question": frames.ethernet(RED, frames.ARP, frames.arp(1, RED, "10.1.0.5", "10.1.0.6")),
    "an ARP answer": frames.ethernet(RED, frames.ARP, frames.arp(2, RED, "10.1.0.5", "10.1.0.6", BLUE)),
    "an ARP announcement": frames.ethernet(RED, frames.ARP, frames.arp(1, RED, "10.1.0.5", "10.1.0.5")),
    "an ARP probe of its address": frames.ethernet(RED, frames.ARP, frames.arp(1, RED, "0.0.0.0", "10.1.0.5")),
    "a neighbour solicitation": frames.ethernet(RED, frames.IPV6, frames.solicitation("fd00:1::5", "fd00:1::6")),
    "a solicitation for its own address": frames.ethernet(RED, frames.IPV6, frames.solicitation("::", "fd00:1::5")),
    "a neighbour advertisement": frames.ethernet(RED, frames.IPV6, frames.advertisement("fd00:1::5", "fd00:1::5", RED)),
    "a DHCP client": frames.ethernet(RED, frames.IPV4, frames.udp4("10.1.0.5", "10.1.0.6", 68, 67)),
}

DROPPED = {
    "another MAC": frames.ethernet(STRANGER, frames.IPV4, frames.udp4("10.1.0.5", "10.1.0.6")),
    "the other endpoint's MAC": frames.ethernet(BLUE, frames.IPV4, frames.udp4("10.1.0.5", "10.1.0.6")),
    "another MAC in IPv6": frames.ethernet(STRANGER, frames.IPV6, frames.udp6("fd00:1::5", "fd00:1::6")),
    "the gateway's address": frames.ethernet(RED, frames.IPV4, frames.udp4("10.1.0.1", "10.1.0.6")),
    "an address of nobody": frames.ethernet(RED, frames.IPV4, frames.udp4("10.1.0.77", "10.1.0.6")),
    "an address from outside": frames.ethernet(RED, frames.IPV4, frames.udp4(NEIGHBOUR4, "10.1.0.6")),
    "no address": frames.ethernet(RED, frames.IPV4, frames.udp4("0.0.0.0", "255.255.255.255", 68, 67)),
    "the gateway's IPv6 address": frames.ethernet(RED, frames.IPV6, frames.udp6("fd00:1::1", "fd00:1::6")),
    "another link-local address": frames.ethernet(RED, frames.IPV6, frames.udp6("fe80::1", "ff02::1")),
    "an ARP answer for the gateway": frames.ethernet(RED, frames.ARP, frames.arp(2, RED, "10.1.0.1", "10.1.0.6", BLUE)),
    "an ARP question as the gateway": frames.ethernet(RED, frames.ARP, frames.arp(1, RED, "10.1.0.1", "10.1.0.6")),
    "an ARP answer with another MAC inside": frames.ethernet(
        RED, frames.ARP, frames.arp(2, STRANGER, "10.1.0.5", "10.1.0.6", BLUE)
    ),
    "an ARP answer with another MAC outside": frames.ethernet(
        STRANGER, frames.ARP, frames.arp(2, RED, "10.1.0.5", "10.1.0.6", BLUE)
    ),
    "an ARP probe of another's address": frames.ethernet(RED, frames.ARP, frames.arp(1, RED, "0.0.0.0", "10.1.0.6")),
    "an advertisement for the gateway": frames.ethernet(
        RED, frames.IPV6, frames.advertisement("fd00:1::5", "fd00:1::1", RED)
    ),
    "an advertisement for the other endpoint": frames.ethernet(
        RED, frames.IPV6, frames.advertisement(RED_LL, "fd00:1::6", RED)
    ),
    "a doubt about another's address": frames.ethernet(RED, frames.IPV6, frames.solicitation("::", "fd00:1::6")),
    "a router advertisement": frames.ethernet(RED, frames.IPV6, frames.router_advertisement(RED_LL)),
    "a redirect": frames.ethernet(RED, frames.IPV6, frames.icmp6(RED_LL, "fd00:1::6", 137, bytes(36))),
    "a DHCP server": frames.ethernet(RED, frames.IPV4, frames.udp4("10.1.0.5", "255.255.255.255", 67, 68)),
    "a DHCPv6 server": frames.ethernet(RED, frames.IPV6, frames.udp6("fd00:1::5", "fd00:1::6", 547, 546)),
    "a protocol that nobody asked for": frames.ethernet(RED, frames.LLDP, bytes(46)),
    "a spanning tree": frames.ethernet(RED, 38, b"\x42\x42\x03" + bytes(43), "01:80:c2:00:00:00"),
    "another's address in a VLAN": frames.ethernet(
        RED, frames.VLAN, b"\x00\x07\x08\x00" + frames.udp4("10.1.0.1", "10.1.0.6")
    ),
}


async def test_an_endpoint_may_send_as_itself_and_as_nobody_else():
    """CVE-2020-10749, CVE-2020-13401, CAP_NET_RAW: spoofed MAC, IP, ARP, ND; RA, redirects, DHCP servers."""
    async with new_lab() as lab:
        await lab.put(dual(), sandbox(), sandbox(102), red(), blue())
        every = {**PASSED, **DROPPED}

        seen = {
            name: bool(frames.seen(lab.box(red()), [frame], MARK, lab.box(blue()))) for name, frame in every.items()
        }

        assert {**dict.fromkeys(PASSED, True), **dict.fromkeys(DROPPED, False)} == seen


async def test_the_host_is_guarded_as_the_other_endpoints_are():
    async with new_lab() as lab:
        await lab.put(dual(), sandbox(), red())
        bridge = "nwb-" + network().id[:11]
        lies = [DROPPED[name] for name in ("the gateway's address", "an ARP question as the gateway", "a redirect")]

        assert [MARK] == frames.seen(lab.box(red()), [*lies, MARK], MARK, lab.host, bridge)


async def test_where_anti_spoofing_is_off_an_endpoint_may_send_what_it_likes():
    async with new_lab() as lab:
        await lab.put(dual(options={"anti_spoof": "false"}), sandbox(), sandbox(102), red(), blue())
        lies = [DROPPED[name] for name in ("the gateway's address", "a router advertisement", "a DHCP server")]

        assert lies == frames.seen(lab.box(red()), lies, MARK, lab.box(blue()))


async def test_in_an_ipv4_network_no_ipv6_frame_passes():
    """CVE-2024-32473, by frames made by hand."""
    async with new_lab() as lab:
        four = (ip_interface("10.1.0.5/24"),)
        await lab.put(
            network(), sandbox(), sandbox(102), red(addresses=four), blue(addresses=(ip_interface("10.1.0.6/24"),))
        )
        tries = [PASSED["IPv6 as itself"], PASSED["IPv6 by its link-local address"], PASSED["a neighbour solicitation"]]

        assert [] == frames.seen(lab.box(red()), tries, MARK, lab.box(blue()))


async def test_bridges_of_others_are_not_judged():
    async with new_lab() as lab:
        await lab.put(dual(), sandbox(), red())
        with Netns() as other, Netns() as listener:
            lab.host.exec(["ip", "link", "add", "br-other", "up", "type", "bridge"])
            for number, ns in enumerate((other, listener)):
                lab.host.exec(
                    ["ip", "link", "add", f"veth{number}", "type", "veth", "peer", "name", "eth0", "netns", ns.path]
                )
                lab.host.exec(["ip", "link", "set", f"veth{number}", "master", "br-other", "up"])
                ns.exec(["ip", "link", "set", "eth0", "up"])
            lies = [DROPPED["a router advertisement"], DROPPED["a protocol that nobody asked for"]]

            assert lies == frames.seen(other, lies, MARK, listener)


async def test_what_an_endpoint_may_send_goes_with_it():
    async with new_lab() as lab:
        await lab.put(dual(), sandbox(), sandbox(102), red(), blue())
        await lab.gone(red(), sandbox())
        await lab.put(sandbox(), red(addresses=(ip_interface("10.1.0.7/24"),)))
        old = frames.ethernet(RED, frames.IPV4, frames.udp4("10.1.0.5", "10.1.0.6"))
        mark = frames.ethernet(RED, frames.IPV4, frames.udp4("10.1.0.7", "10.1.0.6"))
        lab._boxes.clear()

        assert [] == frames.seen(lab.box(red()), [old], mark, lab.box(blue()))


async def test_a_guarded_endpoint_talks_to_the_host_and_out():
    async with new_lab() as lab:
        await lab.put(dual(), sandbox(), red())

        assert "192.0.2.1" == udp(lab.box(red()), (NEIGHBOUR4, 9), lab.neighbour, (NEIGHBOUR4, 9))
