"""Beside other firewalls: an administrator's rules come first, nobody's are touched, and a flush opens nothing."""

from __future__ import annotations

import asyncio
from ipaddress import ip_interface
from pathlib import Path

import pytest
from netweft_agent.domain.plan import plan
from netweft_agent.engine.engine import Engine
from netweft_agent.engine.journal import Journal
from netweft_agent.kernel import nft as kernel_nft

from tests.support import firewalls
from tests.support.agent import endpoint, network, port, put, sandbox, subnets
from tests.support.lab import HOST4, HOST6, NEIGHBOUR4, NEIGHBOUR6, new_lab
from tests.support.netns import require_root, require_tool
from tests.support.packets import at_once, tcp, udp

pytestmark = [pytest.mark.netns, pytest.mark.anyio]

A4, A6 = "10.1.0.5", "fd00:1::5"
DUAL = network(subnets=subnets("10.1.0.0/24", "fd00:1::/64"), enable_ipv6=True)
ITEM = endpoint(addresses=(ip_interface(f"{A4}/24"), ip_interface(f"{A6}/64")), ports=(port(8080, 80),))
FOLDER = Path(firewalls.__file__).parent
DOCUMENTED = Path(__file__).parents[2] / "docs/dataplane/README.md"


@pytest.fixture(autouse=True)
def _needs():
    require_root()
    require_tool("ip")
    require_tool("nft")


@pytest.fixture
async def lab():
    async with new_lab() as lab:
        yield lab


def load(lab, name):
    lab.host.exec(["nft", "-f", str(FOLDER / f"{name}.nft")])


def nft(lab, *lines):
    lab.host.exec(["nft", "-f", "-"], stdin="\n".join(lines) + "\n")


def listed(lab, *tables):
    return "".join(lab.host.exec(["nft", "-s", "list", "table", *table.split()]).stdout for table in tables)


def ways(lab):
    """Return who is seen by whom: neighbour in by the port, endpoint out, in both families."""
    box = lab.box(ITEM)
    return at_once(
        lambda: tcp(lab.neighbour, (HOST4, 80), box, (A4, 8080)),
        lambda: tcp(lab.neighbour, (HOST6, 80), box, (A6, 8080)),
        lambda: tcp(box, (NEIGHBOUR4, 7000), lab.neighbour, (NEIGHBOUR4, 7000)),
        lambda: tcp(box, (NEIGHBOUR6, 7000), lab.neighbour, (NEIGHBOUR6, 7000)),
    )


OPEN = [NEIGHBOUR4, NEIGHBOUR6, HOST4, HOST6]
SHUT = [None, None, None, None]


# --- the administrator's own chains ----------------------------------------------------------------------------------


async def test_the_administrators_chains_are_there_and_come_first(lab):
    """moby#4737, #22054: what the administrator drops is not opened by a published port."""
    await lab.put(DUAL, sandbox(), ITEM)
    before = ways(lab)

    nft(lab, "add rule inet netweft-admin prerouting ip saddr 192.0.2.9 tcp dport 80 drop")
    nft(lab, "add rule inet netweft-admin forward ip6 saddr 2001:db8::9 meta l4proto tcp ct original proto-dst 80 drop")
    after = ways(lab)

    assert (OPEN, [None, None, HOST4, HOST6]) == (before, after)


async def test_the_administrators_rules_stay_whatever_becomes_of_ours(lab):
    await lab.put(DUAL, sandbox(), ITEM)
    nft(lab, "add rule inet netweft-admin forward tcp dport 9999 drop", "add chain inet netweft-admin mine")
    before = listed(lab, "inet netweft-admin")

    drift = await lab.restart()
    await lab.gone(ITEM, sandbox(), DUAL)
    alone = listed(lab, "inet netweft-admin")
    await lab.put(DUAL, sandbox(), ITEM)

    assert () == drift
    assert before == alone == listed(lab, "inet netweft-admin")


@pytest.mark.parametrize(
    ("command", "is_left"),
    [
        ("", False),
        ("add rule inet netweft-admin prerouting tcp dport 9999 drop", True),
        ("add chain inet netweft-admin mine", True),
        ("add set inet netweft-admin mine { type ipv4_addr; }", True),
        ("chain inet netweft-admin forward { policy drop; }", True),
        ("delete chain inet netweft-admin forward", True),
    ],
    ids=["nothing", "a rule", "a chain", "a set", "a policy", "a chain less"],
)
async def test_the_administrators_table_goes_with_the_last_network_unless_he_has_used_it(lab, command, is_left):
    await lab.put(DUAL, sandbox(), ITEM)
    nft(lab, command)

    await lab.gone(ITEM, sandbox(), DUAL)

    tables = lab.host.exec(["nft", "list", "tables"]).stdout.split("\n")
    assert (["table inet netweft-admin"] if is_left else []) == [one for one in tables if "netweft" in one]


async def test_an_administrators_chain_that_is_made_in_another_way_is_let_alone(lab):
    nft(
        lab,
        "add table inet netweft-admin",
        "add chain inet netweft-admin forward { type filter hook forward priority -50; policy drop; }",
    )
    await lab.put(DUAL, sandbox(), ITEM)

    assert "priority -50; policy drop;" in listed(lab, "inet netweft-admin")
    assert SHUT == ways(lab)


# --- other firewalls -------------------------------------------------------------------------------------------------


async def test_beside_docker_all_ways_are_open_and_dockers_rules_are_as_they_were(lab):
    load(lab, "docker")
    before = listed(lab, "ip nat", "ip filter", "ip6 filter")

    await lab.put(DUAL, sandbox(), ITEM)
    during = ways(lab)
    await lab.gone(ITEM, sandbox(), DUAL)

    assert OPEN == during
    assert before == listed(lab, "ip nat", "ip filter", "ip6 filter")


async def test_docker_that_comes_later_is_met_by_the_next_look(lab):
    await lab.put(DUAL, sandbox(), ITEM)
    load(lab, "docker")
    before = ways(lab)

    wanted = lab.desired()
    found = (await lab.kernel.observe(wanted)).resources
    steps = plan(wanted, found, {})
    await lab.kernel.execute(steps)

    assert {"nft-guest"} == {step.resource.key[0] for step in steps}
    assert (SHUT, OPEN) == (before, ways(lab))


async def test_what_an_administrator_drops_in_dockers_chain_is_dropped(lab):
    load(lab, "docker")
    nft(lab, "insert rule ip filter DOCKER-USER ip saddr 192.0.2.9 ct state new drop")
    await lab.put(DUAL, sandbox(), ITEM)

    assert [None, NEIGHBOUR6, HOST4, HOST6] == ways(lab)


async def test_a_chain_of_dockers_without_its_return_is_fine_too(lab):
    load(lab, "docker")
    nft(lab, "flush chain ip filter DOCKER-USER", "flush chain ip6 filter DOCKER-USER")
    await lab.put(DUAL, sandbox(), ITEM)

    assert OPEN == ways(lab)


async def test_iptables_reads_its_tables_with_our_rules_in_them(lab):
    require_tool("iptables-nft")
    load(lab, "docker")
    await lab.put(DUAL, sandbox(), ITEM)

    rules = lab.host.exec(["iptables-nft", "-S", "DOCKER-USER"]).stdout

    assert "-i nwb-+" in rules
    assert "incompatible" not in rules


async def test_a_bridge_with_a_name_of_its_own_is_let_through_by_name(lab):
    load(lab, "docker")
    named = network(subnets=DUAL.subnets, enable_ipv6=True, options={"bridge_name": "br-web"})
    await lab.put(named, sandbox(), ITEM)
    during = ways(lab)
    await lab.gone(ITEM, sandbox(), named)

    assert OPEN == during
    assert "br-web" not in listed(lab, "ip filter")


async def test_beside_firewalld_published_ports_are_open_and_what_goes_out_is_its_to_say(lab):
    """CVE-2025-54388, CVE-2025-54410: firewalld's rules and ours do not undo each other."""
    load(lab, "firewalld")
    before = listed(lab, "inet firewalld")
    await lab.put(DUAL, sandbox(), ITEM)
    alone, after = ways(lab), listed(lab, "inet firewalld")
    nft(lab, 'add rule inet firewalld filter_FWD_public oifname "wire0" accept')  # the way out is in its zone

    assert ([*OPEN[:2], None, None], OPEN) == (alone, ways(lab))
    assert before == after


async def test_firewalls_that_come_and_go_while_we_are_there_change_nothing_of_ours(lab):
    """CVE-2025-54388, CVE-2025-54410: a reload of another firewall."""
    await lab.put(DUAL, sandbox(), ITEM)
    ours = listed(lab, "inet netweft", "bridge netweft")
    load(lab, "firewalld")
    lab.host.exec(["nft", "flush", "table", "inet", "firewalld"])
    lab.host.exec(["nft", "delete", "table", "inet", "firewalld"])
    load(lab, "default-drop")  # flushes the whole ruleset first
    lab.host.exec(["nft", "delete", "table", "inet", "filter"])

    assert ours == listed(lab, "inet netweft", "bridge netweft")
    assert OPEN == ways(lab)


@pytest.mark.parametrize("name", ["default-drop", "ufw"])
async def test_what_a_default_drop_firewall_shuts_stays_shut_until_it_is_opened_there(lab, name):
    """moby#4737, #22054: a port that ufw or a policy of drop shuts is not opened by publishing it."""
    load(lab, name)
    await lab.put(DUAL, sandbox(), ITEM)
    shut = ways(lab)

    # What the documentation tells an administrator to add.
    lines = DOCUMENTED.read_text().splitlines()
    if name == "default-drop":
        told = [line.removeprefix("nft ") for line in lines if "rule inet filter forward " in line]
    else:
        # As the program does it: tests/runtimes/test_firewalls.py.
        words = [line.split() for line in lines if line.startswith("ufw route allow ") and line.endswith(" nwb-+")]
        told = [f'add rule ip filter ufw-user-forward {word[3][0]}ifname "nwb-*" counter accept' for word in words]
    assert len(told) == 2
    nft(lab, *told)

    assert SHUT[:1] == shut[:1]
    assert SHUT[2:3] == shut[2:3]
    assert OPEN == ways(lab)


# --- flushes ---------------------------------------------------------------------------------------------------------


def cracks(lab, stranger):
    """Return what must not be: neighbours and other networks at an endpoint's own address, spoofing aside."""
    lab.neighbour.exec(["ip", "route", "replace", "10.1.0.0/24", "via", HOST4])
    box = lab.box(ITEM)
    other = lab.box(stranger)
    return at_once(lambda: udp(lab.neighbour, (A4, 9), box, (A4, 9)), lambda: udp(other, (A4, 10), box, (A4, 10)))


STRANGER = endpoint(1002, 2, 102)


@pytest.mark.parametrize(
    "command",
    [["nft", "flush", "ruleset"], ["iptables-nft", "-F"], ["iptables-nft", "-t", "nat", "-F"]],
    ids=["nft flush ruleset", "iptables -F", "iptables -t nat -F"],
)
async def test_a_flush_by_others_leaves_ours_alone(lab, command):
    """CVE-2025-54388, CVE-2025-54410: isolation holds through flushes, which find nothing of ours."""
    require_tool(command[0])
    if not kernel_nft.has_owner():
        pytest.skip("this kernel has no tables with an owner")
    await lab.put(DUAL, network(2), sandbox(), sandbox(102), ITEM, STRANGER)
    before = listed(lab, "inet netweft", "bridge netweft")

    lab.host.exec(command)

    assert before == listed(lab, "inet netweft", "bridge netweft")
    assert ([None, None], OPEN) == (cracks(lab, STRANGER), ways(lab))


async def test_nobody_else_can_change_or_remove_our_tables(lab):
    if not kernel_nft.has_owner():
        pytest.skip("this kernel has no tables with an owner")
    await lab.put(DUAL, sandbox(), ITEM)

    answers = [
        lab.host.exec(["nft", *command.split()], check=False)
        for command in (
            "delete table inet netweft",
            "flush chain inet netweft forward",
            "insert rule inet netweft forward accept",
            "delete table bridge netweft",
        )
    ]

    assert [True] * 4 == ["Operation not permitted" in answer.stderr for answer in answers]


async def test_our_tables_outlive_the_agent_and_are_the_next_ones(lab):
    if not kernel_nft.has_owner():
        pytest.skip("this kernel has no tables with an owner")
    await lab.put(DUAL, sandbox(), ITEM)
    before = listed(lab, "inet netweft", "bridge netweft")

    drift = await lab.restart()
    lab.host.exec(["nft", "flush", "ruleset"])

    assert () == drift
    assert before == listed(lab, "inet netweft", "bridge netweft")
    assert OPEN == ways(lab)


@pytest.fixture
def old_kernel(monkeypatch):
    """Make it as if the kernel knew no tables with an owner (before Linux 6.9)."""
    kernel_nft.has_owner.cache_clear()
    monkeypatch.setattr(kernel_nft, "has_owner", lambda: False)


@pytest.mark.usefixtures("old_kernel")
@pytest.mark.parametrize(
    "command",
    ["flush ruleset", "delete table inet netweft", "flush chain inet netweft forward", "delete table bridge netweft"],
)
async def test_in_an_old_kernel_what_others_flush_is_put_back_when_the_kernel_tells(lab, tmp_path, command):
    """CVE-2025-54388, CVE-2025-54410: where a kernel lets others flush our tables, an event has them repaired."""
    engine = Engine(kernel=lab.kernel, renderer=lab.renderer, journal=Journal(tmp_path / "journal"))
    await engine.start()
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(engine.run()), tasks.create_task(engine.repair_loop(3600))]
        await engine.apply(put(1, DUAL, network(2), sandbox(), sandbox(102), ITEM, STRANGER))
        for item in (DUAL, network(2), sandbox(), sandbox(102), ITEM, STRANGER):
            lab.store.put(item)
        before = listed(lab, "inet netweft", "bridge netweft")
        repaired = engine.drift.operations

        lab.host.exec(["nft", *command.split()])
        while engine.drift.operations == repaired:  # the repair has no event
            await asyncio.sleep(0.01)
        await engine.reconcile()

        after = listed(lab, "inet netweft", "bridge netweft")
        found = (await asyncio.to_thread(cracks, lab, STRANGER), await asyncio.to_thread(ways, lab))
        for task in running:
            task.cancel()
    assert sorted(before.splitlines()) == sorted(after.splitlines())
    assert ([None, None], OPEN) == found
