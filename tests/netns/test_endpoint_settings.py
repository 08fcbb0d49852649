"""What an endpoint sets on its interface, in the real kernel: link-local addresses, static routes, kernel settings."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

import msgspec
import pytest
from netweft_agent.domain.objects import StaticRoute
from netweft_common.errors import FailedPrecondition, NetweftError

from tests.support.agent import endpoint, network, sandbox, subnets
from tests.support.lab import new_lab
from tests.support.netns import require_root, require_tool

pytestmark = [pytest.mark.netns, pytest.mark.anyio]

DUAL = network(1, enable_ipv6=True, subnets=subnets("10.1.0.0/24", "fd00:1::/64"))
MARTIANS = "net.ipv4.conf.IFNAME.log_martians"


@pytest.fixture(autouse=True)
def _needs():
    require_root()
    require_tool("ip")
    require_tool("ping")


@pytest.fixture
async def lab():
    async with new_lab() as lab:
        yield lab


def both(number=1001, box=101, last=5, **fields):
    addresses = (ip_interface(f"10.1.0.{last}/24"), ip_interface(f"fd00:1::{last}/64"))
    return endpoint(number, 1, box, addresses=addresses, **fields)


def pings(client, address, *options) -> bool:
    return client.exec(["ping", "-c", "1", "-W", "1", *options, address], check=False).returncode == 0


def route(destination, hop=None):
    return StaticRoute(destination=ip_network(destination), next_hop=None if hop is None else ip_address(hop))


def setting(box, path):
    return box.exec(["cat", f"/proc/sys/{path}"]).stdout.strip()


async def test_link_local_addresses_are_answered_and_pass_the_guard(lab):
    asked = both(link_local=(ip_interface("169.254.7.7/16"), ip_interface("fe80::7/64")))
    asker = both(1002, 102, 6, link_local=(ip_interface("169.254.7.8/16"), ip_interface("fe80::8/64")))
    await lab.put(DUAL, sandbox(), sandbox(102), asked, asker)
    box = lab.box(asker)

    assert pings(box, "169.254.7.7", "-I", "169.254.7.8")
    assert pings(box, "fe80::7%eth0", "-I", "fe80::8%eth0")


@pytest.mark.parametrize(
    ("destination", "hop", "target"),
    [("198.51.100.0/24", "10.1.0.6", "198.51.100.1"), ("2001:db8:7::/48", "fd00:1::6", "2001:db8:7::1")],
    ids=["IPv4", "IPv6"],
)
async def test_a_static_route_leads_by_its_hop_and_goes_with_its_endpoint(lab, destination, hop, target):
    walker = both(routes=(route(destination, hop),))
    router = both(1002, 102, 6)
    # What answers for somebody else's address has to be allowed to.
    await lab.put(
        msgspec.structs.replace(DUAL, options={"anti_spoof": "false"}), sandbox(), sandbox(102), walker, router
    )
    lab.box(router).exec(["ip", "address", "add", f"{target}/{128 if ':' in target else 32}", "dev", "lo"])
    reached = pings(lab.box(walker), target)

    await lab.put(msgspec.structs.replace(walker, routes=()))

    assert reached
    shown = lab.box(walker).exec(["ip", "-6" if ":" in target else "-4", "route"]).stdout
    assert destination not in shown


async def test_a_route_on_the_link_asks_for_its_destination_there(lab):
    walker, other = both(routes=(route("192.0.2.128/25"),)), both(1002, 102, 6)
    await lab.put(
        msgspec.structs.replace(DUAL, options={"anti_spoof": "false"}), sandbox(), sandbox(102), walker, other
    )
    lab.box(other).exec(["ip", "address", "add", "192.0.2.200/32", "dev", "eth0"])

    assert pings(lab.box(walker), "192.0.2.200")


async def test_two_endpoints_of_a_sandbox_cannot_have_one_destination_by_different_ways(lab):
    await lab.put(DUAL, network(2), sandbox(), both(routes=(route("198.51.100.0/24", "10.1.0.6"),)))

    with pytest.raises(FailedPrecondition, match=r"198\.51\.100\.0/24"):
        await lab.put(endpoint(1002, 2, 101, interface_name="eth1", routes=(route("198.51.100.0/24", "10.2.0.6"),)))


async def test_a_setting_is_of_its_interface_alone_and_is_changed_in_place(lab):
    item = both(sysctls={MARTIANS: "1", "net.ipv6.neigh.IFNAME.retrans_time_ms": "500"})
    await lab.put(DUAL, network(2), sandbox(), item, endpoint(1002, 2, 101, interface_name="eth1"))
    box = lab.box(item)
    index = box.exec(["cat", "/sys/class/net/eth0/ifindex"]).stdout

    first = setting(box, "net/ipv4/conf/eth0/log_martians"), setting(box, "net/ipv4/conf/eth1/log_martians")
    await lab.put(msgspec.structs.replace(item, sysctls={MARTIANS: "0"}))

    assert ("1", "0") == first
    assert "500" == setting(box, "net/ipv6/neigh/eth0/retrans_time_ms")
    assert "0" == setting(box, "net/ipv4/conf/eth0/log_martians")
    assert index == box.exec(["cat", "/sys/class/net/eth0/ifindex"]).stdout


async def test_a_setting_that_the_kernel_has_not_fails_the_endpoint_and_leaves_nothing(lab):
    await lab.put(DUAL, sandbox())

    with pytest.raises(NetweftError, match="no_such"):
        await lab.put(both(sysctls={"net.ipv4.conf.IFNAME.no_such": "1"}))

    assert not [key for key in lab.known if key[0] == "link" and key[-1] == "eth0"]


async def test_an_interface_without_ipv6_has_none_of_it_in_a_network_that_has(lab):
    item = both(
        sysctls={"net.ipv6.conf.IFNAME.disable_ipv6": "1"},
        link_local=(ip_interface("fe80::7/64"),),
        routes=(route("2001:db8:7::/48", "fd00:1::6"), route("198.51.100.0/24", "10.1.0.6")),
    )
    await lab.put(DUAL, sandbox(), item)
    box = lab.box(item)

    assert "1" == setting(box, "net/ipv6/conf/eth0/disable_ipv6")
    assert "" == box.exec(["ip", "-6", "address", "show", "dev", "eth0"]).stdout
    assert "198.51.100.0/24" in box.exec(["ip", "route"]).stdout


async def test_what_is_set_is_found_as_it_is_by_a_restarted_agent_and_repaired_when_it_is_not(lab):
    item = both(
        link_local=(ip_interface("169.254.7.7/16"),),
        routes=(route("198.51.100.0/24", "10.1.0.6"),),
        sysctls={MARTIANS: "1"},
    )
    await lab.put(DUAL, sandbox(), item)
    untouched = await lab.restart()
    box = lab.box(item)
    box.exec(["ip", "address", "del", "169.254.7.7/16", "dev", "eth0"])
    box.exec(["ip", "route", "del", "198.51.100.0/24"])
    box.exec(["sh", "-c", "echo 0 >/proc/sys/net/ipv4/conf/eth0/log_martians"])

    repaired = await lab.restart()

    assert () == untouched
    assert ["address", "route", "sysctl"] == sorted(step.resource.key[0] for step in repaired)
    assert "1" == setting(box, "net/ipv4/conf/eth0/log_martians")
