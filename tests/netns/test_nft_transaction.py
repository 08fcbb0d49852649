"""Transactions in a real kernel: all or nothing, exact blame, and removing what is gone."""

from __future__ import annotations

import errno
import ipaddress

import msgspec
import pytest
from netweft_agent.domain import nft
from netweft_agent.domain.nft import Match, NftChain, NftElement, NftSet, NftTable, rule
from netweft_agent.kernel import netlink
from netweft_agent.kernel import nft as kernel
from netweft_agent.kernel.nft import Change
from netweft_common import errors

from tests.support import nft_ruleset
from tests.support.netns import Netns, require_root, require_tool

pytestmark = pytest.mark.netns

OURS = nft.Table("inet", "netweft")
TABLE = NftTable(ns="", table=OURS)
VTEPS = nft.Set(name="vteps", key=(nft.IPV4_ADDR,))
NETS = nft.Set(name="nets", key=(nft.IPV4_ADDR,), interval=True)
PORTS = nft.Set(name="ports", key=(nft.IPV4_ADDR, nft.INET_SERVICE), data=(nft.IPV4_ADDR, nft.INET_SERVICE))
VERDICTS = nft.Set(name="verdicts", key=(nft.IFNAME,), data=(nft.VERDICT,))
FORWARD = nft.Base(type="filter", hook="forward", priority=0)


def a_set(spec):
    return NftSet(ns="", table=OURS, spec=spec)


def a_chain(name, *rules, base=None):
    return NftChain(ns="", table=OURS, name=name, base=base, rules=rules)


def element(spec, *item, value=()):
    return NftElement(ns="", table=OURS, spec=spec, item=item, value=value)


def ports(count, first=0):
    address = int(ipaddress.IPv4Address("192.0.2.0"))
    return [
        element(PORTS, str(ipaddress.IPv4Address(address + n // 4)), 1000 + n % 4, value=("10.0.0.2", n % 65536))
        for n in range(first, first + count)
    ]


@pytest.fixture(autouse=True)
def _root():
    require_root()


@pytest.fixture
def ns():
    with Netns() as ns:
        yield ns


@pytest.fixture
def sock(ns):
    sock = ns.run(lambda: netlink.open_socket(netlink.NETLINK_NETFILTER))
    yield sock
    sock.close()


@pytest.fixture(params=[True, False], ids=["destroy", "without destroy, as before Linux 6.3"])
def destroy(request):
    if request.param and not kernel.has_destroy():
        pytest.skip("this kernel has no DESTROY messages")
    return request.param


def add(sock, *resources):
    assert {} == kernel.apply(sock, [Change(None, resource) for resource in resources])


def observed(sock):
    return set(kernel.observe(sock, "", [OURS]).values())


def test_a_table_that_is_not_there_is_nothing(sock):
    assert {} == kernel.observe(sock, "", [OURS])


def test_an_empty_transaction_is_success(sock):
    assert {} == kernel.apply(sock, [])


def test_adding_twice_changes_nothing(sock):
    wanted = [TABLE, a_set(VTEPS), element(VTEPS, "192.0.2.1"), a_chain("forward", rule(nft.ACCEPT), base=FORWARD)]

    add(sock, *wanted)
    add(sock, *wanted)

    assert set(wanted) == observed(sock)


def test_thousands_of_elements_go_in_one_transaction(sock):
    elements = ports(5000)

    add(sock, TABLE, a_set(PORTS), *elements)

    assert {TABLE, a_set(PORTS), *elements} == observed(sock)


def test_operations_come_in_any_order(sock):
    chain = a_chain("forward", rule(nft.Vmap(nft.META_IIFNAME, VERDICTS)), base=FORWARD)
    tenant = a_chain("tenant", rule(nft.DROP))
    wanted = [element(VERDICTS, "eth0", value=nft.jump("tenant")), chain, tenant, a_set(VERDICTS), TABLE]

    add(sock, *wanted)
    there = observed(sock)
    refused = kernel.apply(sock, [Change(resource, None) for resource in wanted])

    assert set(wanted) == there
    assert {} == refused
    assert set() == observed(sock)


@pytest.mark.parametrize("bad", [0, 1, 999, 2999], ids=str)
def test_one_refused_element_is_named_and_nothing_is_done(sock, bad):
    elements = ports(3000)
    taken = msgspec.structs.replace(elements[bad], value=("10.9.9.9", 9))
    add(sock, TABLE, a_set(PORTS), taken)

    refused = kernel.apply(sock, [Change(None, resource) for resource in elements])

    assert {bad: errno.EEXIST} == {index: error.errno for index, error in refused.items()}
    assert elements[bad].add_command() == refused[bad].op
    assert {TABLE, a_set(PORTS), taken} == observed(sock)


def test_all_refused_elements_are_named_at_once(sock):
    elements = ports(2000)
    taken = [msgspec.structs.replace(one, value=("10.9.9.9", 9)) for one in elements[::10]]
    add(sock, TABLE, a_set(PORTS), *taken)

    refused = kernel.apply(sock, [Change(None, resource) for resource in elements])

    assert list(range(0, 2000, 10)) == list(refused)


def test_each_refused_operation_is_named_with_the_kernels_words(sock):
    add(sock, TABLE)
    ops = [
        Change(None, a_chain("one", rule(nft.jump("nowhere")))),
        Change(None, a_chain("two", rule(nft.ACCEPT))),
        Change(None, element(VTEPS, "192.0.2.1")),
    ]

    refused = kernel.apply(sock, ops)

    assert {0: errno.ENOENT, 2: errno.ENOENT} == {index: error.errno for index, error in refused.items()}
    assert isinstance(refused[0], errors.KernelError)
    assert "inet netweft one" == refused[0].target


def test_overlapping_prefixes_are_refused(sock):
    add(sock, TABLE, a_set(NETS), element(NETS, "10.0.0.0/24"))

    refused = kernel.apply(sock, [Change(None, element(NETS, "10.0.0.0/16"))])

    assert [0] == list(refused)


def test_prefixes_side_by_side_come_and_go(sock):
    nets = [element(NETS, f"10.0.{n}.0/24") for n in range(200)]
    add(sock, TABLE, a_set(NETS), *reversed(nets))

    assert {} == kernel.apply(sock, [Change(one, None) for one in nets[50:100]])
    without = observed(sock)
    add(sock, *nets[50:100])

    assert {TABLE, a_set(NETS), *nets[:50], *nets[100:]} == without
    assert {TABLE, a_set(NETS), *nets} == observed(sock)


@pytest.mark.parametrize(
    "prefix", ["0.0.0.0/0", "128.0.0.0/1", "255.255.255.255", "0.0.0.0", "10.0.0.1-10.0.0.4"], ids=str
)
def test_ranges_at_the_edges_read_back_as_written(sock, prefix):
    add(sock, TABLE, a_set(NETS), element(NETS, prefix))

    assert {TABLE, a_set(NETS), element(NETS, prefix)} == observed(sock)


def test_a_changed_element_is_replaced(sock):
    before, after = element(PORTS, "192.0.2.1", 80, value=("10.0.0.2", 80)), None
    after = msgspec.structs.replace(before, value=("10.0.0.3", 80))
    add(sock, TABLE, a_set(PORTS), before)

    refused = kernel.apply(sock, [Change(before, after)])

    assert {} == refused
    assert {TABLE, a_set(PORTS), after} == observed(sock)


def test_removing_what_is_gone_is_success(sock, destroy):
    there, gone = ports(10), ports(10, first=10)
    add(sock, TABLE, a_set(PORTS), *there)
    ops = [Change(one, None) for one in (*there[:5], *gone, a_set(VTEPS), a_chain("no", rule(nft.DROP)))]

    refused = kernel.apply(sock, ops, destroy=destroy)

    assert {} == refused
    assert {TABLE, a_set(PORTS), *there[5:]} == observed(sock)


def test_removing_from_a_table_that_is_gone_is_success(sock, destroy):
    ops = [Change(one, None) for one in (element(VTEPS, "192.0.2.1"), a_set(VTEPS), a_chain("no"), TABLE)]

    assert {} == kernel.apply(sock, ops, destroy=destroy)


def test_changing_what_is_gone_makes_it(sock, destroy):
    before = element(PORTS, "192.0.2.1", 80, value=("10.0.0.2", 80))
    after = msgspec.structs.replace(before, value=("10.0.0.3", 80))
    chain = a_chain("forward", rule(nft.DROP), base=FORWARD)
    add(sock, TABLE, a_set(PORTS))

    refused = kernel.apply(
        sock, [Change(before, after), Change(msgspec.structs.replace(chain, rules=()), chain)], destroy=destroy
    )

    assert {} == refused
    assert {TABLE, a_set(PORTS), after, chain} == observed(sock)


def test_refusals_are_told_of_the_right_operation_after_gone_ones_are_left_out(sock):
    add(sock, TABLE, a_set(PORTS), *ports(1))
    clash = msgspec.structs.replace(ports(1)[0], value=("10.9.9.9", 9))
    ops = [Change(ports(1, first=5)[0], None), Change(None, clash)]

    refused = kernel.apply(sock, ops, destroy=False)

    assert {1: errno.EEXIST} == {index: error.errno for index, error in refused.items()}


def test_elements_of_every_kind_are_removed_by_what_was_observed(sock):
    resources = nft_ruleset.full()
    tables = [resource.table for resource in resources if isinstance(resource, NftTable)]
    add(sock, *resources)

    there = kernel.observe(sock, "", tables).values()
    refused = kernel.apply(sock, [Change(one, None) for one in there if isinstance(one, NftElement)])

    assert {} == refused
    assert {one.key for one in resources if not isinstance(one, NftElement)} == set(kernel.observe(sock, "", tables))


def test_a_chains_rules_are_replaced_together(sock):
    before = a_chain("forward", rule(nft.ACCEPT), rule(nft.DROP), base=FORWARD)
    after = msgspec.structs.replace(before, rules=(rule(nft.Counter(), nft.DROP),))
    add(sock, TABLE, before)

    refused = kernel.apply(sock, [Change(before, after)])

    assert {} == refused
    assert {TABLE, after} == observed(sock)


@pytest.mark.parametrize(
    "base",
    [
        msgspec.structs.replace(FORWARD, policy="drop"),
        msgspec.structs.replace(FORWARD, priority=5),
        msgspec.structs.replace(FORWARD, hook="input"),
        nft.Base(type="nat", hook="postrouting", priority=100),
        None,
    ],
    ids=["policy", "priority", "hook", "type", "no base"],
)
def test_a_chain_moves_to_another_hook(sock, base):
    before = a_chain("forward", rule(nft.ACCEPT), base=FORWARD)
    after = msgspec.structs.replace(before, base=base)
    add(sock, TABLE, before)

    refused = kernel.apply(sock, [Change(before, after)])

    assert {} == refused
    assert {TABLE, after} == observed(sock)


def test_a_set_that_rules_look_into_becomes_another(sock):
    wider = msgspec.structs.replace(VTEPS, interval=True)
    before = [a_set(VTEPS), element(VTEPS, "192.0.2.1"), a_chain("in", rule(Match(nft.IP_SADDR, VTEPS), nft.ACCEPT))]
    after = [a_set(wider), element(wider, "192.0.2.0/24"), a_chain("in", rule(Match(nft.IP_SADDR, wider), nft.ACCEPT))]
    add(sock, TABLE, *before)

    # As the planner has it: the set is removed and made, its elements go with it, the chain differs by its digest.
    ops = [Change(before[0], None), Change(None, after[0]), Change(None, after[1]), Change(before[2], after[2])]
    refused = kernel.apply(sock, ops)

    assert {} == refused
    assert {TABLE, *after} == observed(sock)


def test_a_table_is_made_again_in_one_transaction(sock):
    add(sock, TABLE, a_set(VTEPS), element(VTEPS, "192.0.2.1"))

    refused = kernel.apply(sock, [Change(None, TABLE), Change(None, a_set(NETS)), Change(TABLE, None)])

    assert {} == refused
    assert {TABLE, a_set(NETS)} == observed(sock)


def test_a_foreign_rule_in_a_chain_of_ours_is_seen(ns, sock):
    require_tool("nft")
    chain = a_chain("forward", rule(nft.ACCEPT), base=FORWARD)
    add(sock, TABLE, chain)

    ns.exec(["nft", "add", "rule", "inet", "netweft", "forward", "drop"])
    there = kernel.observe(sock, "", [OURS])[chain.key]

    assert not chain.matches(there)
    assert {} == kernel.apply(sock, [Change(there, chain)])
    assert {TABLE, chain} == observed(sock)


def test_a_table_that_was_put_to_sleep_is_woken(ns, sock):
    require_tool("nft")
    add(sock, TABLE, a_chain("forward", base=FORWARD))
    ns.exec(["nft", "add", "table", "inet", "netweft", "{ flags dormant; }"])

    there = kernel.observe(sock, "", [OURS])[TABLE.key]

    assert msgspec.structs.replace(TABLE, dormant=True) == there
    assert {} == kernel.apply(sock, [Change(there, TABLE)])
    assert TABLE == kernel.observe(sock, "", [OURS])[TABLE.key]


def test_tables_of_others_are_left_alone(ns, sock):
    require_tool("nft")
    ns.exec(["nft", "-f", "-"], stdin="table ip docker {\n set s { type ipv4_addr; }\n chain c { }\n}\n")
    before = ns.exec(["nft", "list", "ruleset"]).stdout
    add(sock, TABLE, a_set(VTEPS))

    there = observed(sock)
    kernel.apply(sock, [Change(TABLE, None)])

    assert {TABLE, a_set(VTEPS)} == there
    assert before == ns.exec(["nft", "list", "ruleset"]).stdout


def test_without_permission_every_operation_is_refused(sock, monkeypatch):
    ack = netlink.Ack(errno.EPERM)
    monkeypatch.setattr(kernel, "exchange", lambda sock, messages: [(-1, ack)])

    refused = kernel.apply(sock, [Change(None, TABLE), Change(None, a_set(VTEPS))], destroy=True)

    assert {0: errno.EPERM, 1: errno.EPERM} == {index: error.errno for index, error in refused.items()}


def test_a_value_of_the_wrong_type_is_a_bug_of_ours(sock):
    with pytest.raises(errors.Internal, match="not-an-address"):
        kernel.apply(sock, [Change(None, element(VTEPS, "not-an-address"))])
