"""The engine over the kernel's double: what is in kernel, store and statuses after each call."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace
from netweft_agent.domain import names
from netweft_agent.domain.objects import HANDOVER, HERE, LATER, Kind, Ref
from netweft_agent.domain.resources import HOST, Link, Route
from netweft_agent.engine.journal import Position
from netweft_agent.kernel.fake import FakeKernel
from netweft_common.errors import KernelError, NotFound, Unavailable

from tests.support.agent import (
    FailAt,
    Rig,
    endpoint,
    errors_of,
    gone,
    lasting,
    network,
    oid,
    peer,
    put,
    refused,
    sandbox,
    until,
)

pytestmark = pytest.mark.anyio

BRIDGE = (network(), sandbox(), endpoint())


async def test_an_attach_leaves_exactly_what_was_rendered(rig):
    statuses = await rig.put(1, *BRIDGE)

    assert ["", "", ""] == errors_of(statuses)
    assert rig.rendered() == rig.kernel.state
    assert ("link", f"sandbox/{oid(101)}", "eth0") in rig.kernel.state


async def test_statuses_come_in_the_order_of_the_changes_and_name_interface_and_namespace(rig):
    statuses = await rig.put(3, network(), sandbox(), endpoint(interface_name=""), endpoint(1002, interface_name=""))

    assert [Kind.NETWORK, Kind.SANDBOX, Kind.ENDPOINT, Kind.ENDPOINT] == [one.ref.kind for one in statuses]
    assert ["eth0", "eth1"] == [one.interface_name for one in statuses[2:]]
    assert f"/run/netweft/netns/sandbox-{oid(101)}" == statuses[1].netns_path
    assert {3} == {one.revision for one in statuses}
    assert all(one.applied for one in statuses)


@pytest.mark.parametrize("revision", [4, 5], ids=["older", "same"])
async def test_a_change_that_is_no_news_does_nothing_to_the_kernel(rig, revision):
    await rig.put(5, *BRIDGE)
    before = rig.count()

    statuses = await rig.put(revision, network(), sandbox(), endpoint(mac="02:00:00:00:00:99"))

    assert before == rig.count()
    assert ["", "", ""] == errors_of(statuses)
    assert [5, 5, 5] == [one.revision for one in statuses]


async def test_a_newer_revision_of_the_same_content_does_nothing_to_the_kernel_and_is_kept(rig):
    await rig.put(5, *BRIDGE)
    before = rig.count()

    await rig.put(6, network(), sandbox(), endpoint(confirmed=True))
    await rig.restart()

    assert before == rig.count()
    assert {6} == {one.revision for one in rig.engine.store.objects.values()}
    assert rig.engine.store.endpoint(oid(1001)).confirmed


async def test_what_is_gone_does_not_come_back_by_a_late_message(rig):
    await rig.put(5, *BRIDGE)
    await rig.gone(7, endpoint())
    before = rig.count()

    await rig.put(6, endpoint())

    assert before == rig.count()
    assert rig.engine.store.endpoint(oid(1001)) is None


async def test_the_last_detach_takes_the_networks_resources_along(rig):
    await rig.put(1, network(), sandbox(), endpoint(), endpoint(1002, interface_name="eth1"))
    await rig.gone(2, endpoint(1002))
    with_one = lasting(rig.kernel.state)

    await rig.gone(3, endpoint())

    assert ("link", HOST, f"nwb-{oid(1)[:11]}") in with_one
    assert {"netns", "link", "file"} == {key[0] for key in lasting(rig.kernel.state)}
    assert {f"sandbox/{oid(101)}"} == {key[1] for key in lasting(rig.kernel.state)}


async def test_a_removed_sandbox_takes_its_endpoints_along(rig):
    await rig.put(1, *BRIDGE)

    await rig.gone(2, sandbox())

    assert {} == lasting(rig.kernel.state)
    assert [Ref(kind=Kind.NETWORK, id=oid(1))] == list(rig.engine.store.objects)
    assert Ref(kind=Kind.ENDPOINT, id=oid(1001)) not in rig.engine.statuses


async def test_a_sandbox_and_its_endpoint_may_be_removed_in_one_batch_in_any_order(rig):
    await rig.put(1, *BRIDGE)

    statuses = await rig.gone(2, sandbox(), endpoint())

    assert ["", ""] == errors_of(statuses)
    assert {} == lasting(rig.kernel.state)
    await rig.restart()
    assert {Kind.NETWORK} == {ref.kind for ref in rig.engine.store.objects}


async def test_a_removed_network_takes_its_endpoints_along(rig):
    await rig.put(1, *BRIDGE)

    await rig.gone(2, network())

    assert {Kind.SANDBOX} == {ref.kind for ref in rig.engine.store.objects}
    assert {f"sandbox/{oid(101)}"} == {key[1] for key in lasting(rig.kernel.state)}


# --- peers -----------------------------------------------------------------------------------------------------------


async def test_peers_wait_for_the_networks_first_endpoint_and_go_with_its_last(rig):
    peers = [peer(5001), peer(5002), peer(5003, vtep="192.0.2.3")]
    await rig.put(1, network(driver="overlay"), sandbox(), *peers)
    before = lasting(rig.kernel.state)

    await rig.put(2, endpoint())
    with_endpoint = dict(rig.kernel.state)
    await rig.gone(3, endpoint())

    assert set() == {key for key in before if key[0] in {"fdb", "neighbour"}}
    assert 6 == sum(key[0] == "fdb" and key[2] == "vxlan0" for key in with_endpoint)
    assert 3 == sum(key[0] == "neighbour" for key in with_endpoint)
    assert before == lasting(rig.kernel.state)


async def test_a_peer_costs_its_own_entries_only(rig):
    await rig.put(1, network(driver="overlay"), sandbox(), endpoint(), peer(5001))
    before = rig.count()

    await rig.put(2, peer(5002))

    assert ["fdb", "fdb", "neighbour"] == sorted(step.resource.key[0] for step in rig.kernel.executed[before:])


async def test_a_tunnel_address_stays_known_while_one_peer_behind_it_is_left(rig):
    await rig.put(1, network(driver="overlay"), sandbox(), endpoint(), peer(5001), peer(5002))

    await rig.gone(2, peer(5001))
    with_one = {key for key in rig.kernel.state if "vteps4" in key and key[0] == "nft-element"}
    await rig.gone(3, peer(5002))

    assert 1 == len(with_one)
    assert set() == {key for key in rig.kernel.state if "vteps4" in key and key[0] == "nft-element"}


# --- faults ----------------------------------------------------------------------------------------------------------


def _steps_of_an_attach(driver):
    async def count(folder):
        async with Rig(folder) as rig:
            await rig.put(1, network(2), sandbox(102), endpoint(1002, 2, 102))
            before = rig.count()
            await rig.put(2, network(driver=driver), sandbox(), endpoint())
            return rig.count() - before

    return count


@pytest.mark.parametrize("driver", ["bridge", "overlay"])
async def test_a_fault_at_any_step_of_an_attach_leaves_nothing_of_it(tmp_path, driver):
    (tmp_path / "dry").mkdir()
    steps = await _steps_of_an_attach(driver)(tmp_path / "dry")
    assert steps > 10

    for place in range(steps):
        folder = tmp_path / str(place)
        folder.mkdir()
        async with Rig(folder) as rig:
            await rig.put(1, network(2), sandbox(102), endpoint(1002, 2, 102))
            before = lasting(rig.kernel.state)
            rig.kernel.fail_at = FailAt(place)

            statuses = await rig.put(2, network(driver=driver), sandbox(), endpoint())

            (step,) = rig.kernel.fail_at.failed
            where = f"step {place}: {step.command()}"
            assert "KERNEL_EBUSY" == statuses[2].error.reason, where
            assert not statuses[2].applied, where
            assert rig.engine.store.endpoint(oid(1001)) is None, where
            await _remove_rest(rig)
            assert before == lasting(rig.kernel.state), where
            assert before == lasting(rig.engine.known), where
            await rig.restart()
            assert before == lasting(rig.kernel.state), where


async def _remove_rest(rig):
    """Remove sandbox and network where only the endpoint was refused: they were asked for and are well."""
    for item in (sandbox(), network()):
        if item.ref in rig.engine.store.objects:
            await rig.gone(3, item)


@pytest.mark.parametrize("driver", ["bridge", "overlay"])
async def test_a_fault_of_one_endpoint_does_not_touch_the_others_of_the_batch(tmp_path, driver):
    def bad(step):
        return refused(step) if step.owner == f"endpoint/{oid(1002)}" and step.after is not None else None

    async with Rig(tmp_path, kernel=FakeKernel(fail_at=bad)) as rig:
        batch = [sandbox(101), sandbox(102), sandbox(103)]
        batch += [endpoint(1001 + at, 1, 101 + at) for at in range(3)]
        statuses = await rig.put(1, network(driver=driver), *batch)

        assert ["", "", "", "", "", "KERNEL_EBUSY", ""] == errors_of(statuses)
        assert rig.rendered() == rig.kernel.state
        assert {oid(1001), oid(1003)} == rig.engine.store.by_network[oid(1)]
        assert ("link", f"sandbox/{oid(102)}", "eth0") not in rig.kernel.state


@pytest.mark.parametrize("driver", ["bridge", "overlay"])
async def test_the_first_endpoint_of_a_further_bridge_does_not_take_the_others_along_when_it_fails(tmp_path, driver):
    def bad(step):
        its_own = isinstance(step.after, Link) and step.after.name == names.veth(oid(1002))
        return refused(step) if its_own else None

    async with Rig(tmp_path, kernel=FakeKernel(fail_at=bad), ports_per_bridge=2) as rig:
        there = [endpoint(number, 1, 101, interface_name=f"eth{number}") for number in (1004, 1005)]
        await rig.put(1, network(driver=driver), sandbox(101), sandbox(102), sandbox(103), *there)

        statuses = await rig.put(2, endpoint(1002, 1, 102), endpoint(1003, 1, 103))

        assert ["KERNEL_EBUSY", ""] == errors_of(statuses)
        assert rig.rendered() == rig.kernel.state
        assert 1 == rig.engine.store.shards[oid(1)][1]


@pytest.mark.parametrize("driver", ["bridge", "overlay"])
async def test_a_fault_at_any_step_of_an_attach_to_a_further_bridge_leaves_nothing_of_it(tmp_path, driver):
    async def first(rig):
        await rig.put(1, network(driver=driver), sandbox(), sandbox(102), endpoint())

    (tmp_path / "dry").mkdir()
    async with Rig(tmp_path / "dry", ports_per_bridge=1) as rig:
        await first(rig)
        before = rig.count()
        await rig.put(2, endpoint(1002, 1, 102))
        steps = rig.count() - before
    assert steps > 10

    for place in range(steps):
        folder = tmp_path / str(place)
        folder.mkdir()
        async with Rig(folder, ports_per_bridge=1) as rig:
            await first(rig)
            there = lasting(rig.kernel.state)
            rig.kernel.fail_at = FailAt(place)

            (status,) = await rig.put(2, endpoint(1002, 1, 102))

            (step,) = rig.kernel.fail_at.failed
            where = f"step {place}: {step.command()}"
            assert "KERNEL_EBUSY" == status.error.reason, where
            assert {0: 1} == rig.engine.store.shards[oid(1)], where
            assert there == lasting(rig.kernel.state), where


async def test_two_networks_that_share_a_refused_firewall_both_fail(tmp_path):
    def bad(step):
        return refused(step) if step.resource.key[0] == "nft-table" and step.after is not None else None

    async with Rig(tmp_path, kernel=FakeKernel(fail_at=bad)) as rig:
        statuses = await rig.put(
            1, network(1), network(2), sandbox(), endpoint(), endpoint(1002, 2, 101, interface_name="eth1")
        )

        assert ["KERNEL_EBUSY", "KERNEL_EBUSY"] == errors_of(statuses)[3:]
        assert set() == {key for key in rig.kernel.state if key[0].startswith("nft")}


async def test_a_refused_attach_can_be_asked_for_again_at_a_later_revision(rig):
    rig.kernel.fail_at = FailAt(0)
    await rig.put(1, *BRIDGE)
    rig.kernel.fail_at = None

    statuses = await rig.put(2, *BRIDGE)

    assert ["", "", ""] == errors_of(statuses)
    assert rig.rendered() == rig.kernel.state


async def test_a_second_delivery_of_a_refused_attach_is_not_tried_again(rig):
    await rig.put(1, network(), sandbox())
    rig.kernel.fail_at = FailAt(0)
    await rig.put(2, endpoint())
    before = rig.count()

    statuses = await rig.put(2, endpoint())

    assert before == rig.count()
    assert ["KERNEL_EBUSY"] == errors_of(statuses)


async def test_a_sandbox_that_was_refused_is_made_when_it_is_sent_again_as_it_is(rig):
    rig.kernel.fail_at = FailAt(0)
    first = await rig.put(2, network(), sandbox(), endpoint())
    rig.kernel.fail_at = None

    second = await rig.engine.apply([*put(2, network(), sandbox()), *put(3, endpoint(1002))])

    assert ["KERNEL_EBUSY", "KERNEL_EBUSY"] == errors_of(first)[1:]
    assert ["", "", ""] == errors_of(second)
    assert rig.rendered() == rig.kernel.state


async def test_a_network_is_well_when_its_first_endpoint_was_refused_over_it(rig):
    await rig.put(1, network(), sandbox())
    rig.kernel.fail_at = lambda step: refused(step) if step.owner == f"network/{oid(1)}" else None

    statuses = await rig.put(2, endpoint())

    assert ["KERNEL_EBUSY"] == errors_of(statuses)
    assert rig.engine.statuses[network().ref].error is None


async def test_an_endpoint_that_came_before_its_network_is_taken_when_it_is_sent_again(rig):
    early = await rig.put(2, sandbox(), endpoint())
    await rig.put(1, network())

    statuses = await rig.put(2, endpoint())

    assert ["", "NETWORK_UNKNOWN"] == errors_of(early)
    assert [""] == errors_of(statuses)
    assert rig.rendered() == rig.kernel.state


async def test_a_refused_update_leaves_the_version_before(rig):
    await rig.put(1, network(), sandbox(), endpoint(confirmed=False))
    before = dict(rig.kernel.state)
    rig.kernel.fail_at = FailAt(0)

    statuses = await rig.put(2, network(options={"mtu": "1400"}))

    assert ["KERNEL_EBUSY"] == errors_of(statuses)
    assert before == rig.kernel.state
    assert {} == rig.engine.store.network(oid(1)).options
    assert rig.rendered() == rig.kernel.state


async def test_an_endpoint_that_cannot_follow_its_network_says_so_and_is_mended_by_a_reconcile(rig):
    await rig.put(1, *BRIDGE)
    rig.kernel.fail_at = lambda step: refused(step) if step.owner == f"endpoint/{oid(1001)}" else None

    statuses = await rig.put(2, network(options={"mtu": "1400"}))
    told = rig.engine.statuses[endpoint().ref]
    rig.kernel.fail_at = None
    await rig.engine.reconcile()

    assert [""] == errors_of(statuses)
    assert "KERNEL_EBUSY" == told.error.reason
    assert rig.engine.statuses[endpoint().ref].error is None
    assert rig.rendered() == rig.kernel.state


async def test_a_fault_of_the_endpoint_that_gives_the_default_route_leaves_the_others_of_its_sandbox(rig):
    def bad(step):
        return refused(step) if step.owner == f"endpoint/{oid(1001)}" and step.after is not None else None

    rig.kernel.fail_at = bad
    first = endpoint(interface_name="eth0", gateway_priority=5)

    statuses = await rig.put(1, network(), sandbox(hostname="web"), first, endpoint(1002, interface_name="eth1"))

    assert ["", "", "KERNEL_EBUSY", ""] == errors_of(statuses)
    assert rig.rendered() == rig.kernel.state
    assert "eth1" == rig.kernel.state["route", f"sandbox/{oid(101)}", "0.0.0.0/0"].link


async def test_a_confirmed_endpoint_that_fails_is_kept_and_mended_by_a_reconcile(rig):
    await rig.put(1, network(), sandbox())
    rig.kernel.fail_at = FailAt(2)
    (status,) = await rig.put(2, endpoint(confirmed=True))
    assert "KERNEL_EBUSY" == status.error.reason
    rig.kernel.fail_at = None

    await rig.engine.reconcile()

    assert rig.rendered() == rig.kernel.state
    assert rig.engine.statuses[endpoint().ref].error is None
    assert endpoint().ref in rig.engine.unreported


async def test_a_confirmed_endpoint_that_fails_is_kept_over_a_restart(rig):
    await rig.put(1, network(), sandbox())
    rig.kernel.fail_at = FailAt(2)
    await rig.put(2, endpoint(confirmed=True))
    rig.kernel.fail_at = None

    await rig.restart()

    assert rig.engine.store.endpoint(oid(1001)).confirmed
    assert rig.rendered() == rig.kernel.state


async def test_a_confirmed_endpoint_keeps_the_sandbox_that_failed_with_it(rig):
    def no_namespace(step):
        return refused(step, 2) if step.resource.key[0] == "netns" else None

    rig.kernel.fail_at = no_namespace
    statuses = await rig.put(1, network(), sandbox(source="/run/netns/c1"), endpoint(confirmed=True))
    assert "KERNEL_ENOENT" == statuses[2].error.reason
    rig.kernel.fail_at = None

    await rig.engine.reconcile()

    assert rig.rendered() == rig.kernel.state
    assert rig.engine.statuses[endpoint().ref].error is None


async def test_a_refused_peer_is_kept_and_mended_by_a_reconcile(rig):
    await rig.put(1, network(driver="overlay"), sandbox(), endpoint())
    rig.kernel.fail_at = FailAt(0)
    (status,) = await rig.put(2, peer())
    rig.kernel.fail_at = None
    await rig.restart()

    assert "KERNEL_EBUSY" == status.error.reason
    assert rig.rendered() == rig.kernel.state
    assert 2 == sum(key[0] == "fdb" and key[2] == "vxlan0" for key in rig.kernel.state)


async def test_a_refused_removal_is_told_and_the_same_call_again_removes(rig):
    await rig.put(1, *BRIDGE)
    veth = ("link", HOST, f"nwv-{oid(1001)[:11]}")
    rig.kernel.fail_at = lambda step: refused(step) if step.resource.key == veth else None
    first = await rig.gone(2, endpoint())
    there = veth in rig.kernel.state
    rig.kernel.fail_at = None

    second = await rig.gone(2, endpoint())

    assert ["KERNEL_EBUSY"] == errors_of(first)
    assert there
    assert [""] == errors_of(second)
    assert veth not in rig.kernel.state


async def test_a_refused_removal_is_done_by_the_next_round_of_anybody(rig):
    await rig.put(1, *BRIDGE)
    veth = ("link", HOST, f"nwv-{oid(1001)[:11]}")
    rig.kernel.fail_at = lambda step: refused(step) if step.resource.key == veth else None
    await rig.gone(2, endpoint())
    rig.kernel.fail_at = None

    await rig.put(3, network(2), sandbox(102), endpoint(1002, 2, 102))

    assert veth not in rig.kernel.state


async def test_a_refused_removal_is_not_forgotten_over_a_restart(rig):
    await rig.put(1, *BRIDGE)
    rig.kernel.fail_at = lambda step: refused(step) if step.after is None else None
    await rig.gone(2, endpoint())
    rig.kernel.fail_at = None

    await rig.restart()

    assert rig.engine.store.endpoint(oid(1001)) is None
    assert rig.rendered() == lasting(rig.kernel.state) | {k: v for k, v in rig.rendered().items() if k[0] == "sysctl"}


async def test_the_error_of_a_removal_is_forgotten_when_a_reconcile_has_done_it(rig):
    await rig.put(1, *BRIDGE)
    rig.kernel.fail_at = lambda step: refused(step) if step.after is None else None
    await rig.gone(2, endpoint())
    rig.kernel.fail_at = None

    await rig.engine.reconcile()

    assert endpoint().ref not in rig.engine.statuses


async def test_a_fault_while_a_link_is_made_anew_leaves_no_belief_in_what_went_with_the_old_one(rig):
    await rig.put(1, network(), sandbox(), endpoint(confirmed=True))
    rig.kernel.fail_at = lambda step: refused(step) if step.resource.key[0] == "link" and step.before is None else None

    await rig.put(2, endpoint(interface_name="net0", confirmed=True))

    assert lasting(rig.kernel.state) == lasting(rig.engine.known)
    rig.kernel.fail_at = None
    await rig.engine.reconcile()
    assert rig.rendered() == rig.kernel.state


# --- what would break another's things -------------------------------------------------------------------------------


async def test_two_endpoints_of_one_sandbox_cannot_have_the_same_interface_name(rig):
    await rig.put(1, *BRIDGE)
    before = dict(rig.kernel.state)

    statuses = await rig.put(2, network(2), endpoint(1002, 2, 101))

    assert ["", "RESOURCE_TAKEN"] == errors_of(statuses)
    assert before == rig.kernel.state
    assert rig.rendered() == rig.kernel.state


async def test_two_endpoints_may_exchange_their_interface_names_in_one_batch(rig):
    await rig.put(1, network(), sandbox(), endpoint(), endpoint(1002, interface_name="eth1"))

    statuses = await rig.put(2, endpoint(interface_name="eth1"), endpoint(1002, interface_name="eth0"))

    assert ["", ""] == errors_of(statuses)
    assert rig.rendered() == rig.kernel.state


async def test_two_networks_cannot_have_the_same_bridge(rig):
    named = {"bridge_name": "br-web"}
    await rig.put(1, network(options=named), sandbox(), endpoint())
    before = dict(rig.kernel.state)

    statuses = await rig.put(2, network(2, options=named), endpoint(1002, 2, 101, interface_name="eth1"))

    assert "RESOURCE_TAKEN" == statuses[1].error.reason
    assert before == rig.kernel.state


async def test_a_network_with_an_unknown_option_is_refused_to_its_endpoint_and_the_engine_goes_on(rig):
    statuses = await rig.put(1, network(options={"colour": "red"}), sandbox(), endpoint())
    others = await rig.put(2, network(2), endpoint(1002, 2, 101))

    assert ["", "", "UNKNOWN_OPTION"] == errors_of(statuses)
    assert ["", ""] == errors_of(others)


async def test_an_update_that_cannot_be_rendered_leaves_the_version_before(rig):
    await rig.put(1, *BRIDGE)
    before = dict(rig.kernel.state)

    statuses = await rig.put(2, network(options={"mtu": "many"}))

    assert ["BAD_OPTION"] == errors_of(statuses)
    assert before == rig.kernel.state
    assert {} == rig.engine.store.network(oid(1)).options


class _Broken:
    """A driver of somebody who had a bad day."""

    def __init__(self, inner):
        self._inner = inner
        self.broken = True

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def render(self, *parts):
        if self.broken:
            raise ZeroDivisionError
        return self._inner.render(*parts)


async def test_a_driver_that_fails_takes_no_other_network_along(tmp_path):
    from tests.support.agent import DRIVERS  # noqa: PLC0415  # only here

    broken = _Broken(DRIVERS["bridge"])
    async with Rig(tmp_path, drivers={**DRIVERS, "broken": broken}) as rig:
        items = [network(1, "broken"), network(2), sandbox(), endpoint(), endpoint(1002, 2, 101, interface_name="eth1")]
        statuses = await rig.put(1, *items)

        assert ["", "DRIVER_BUG", ""] == errors_of(statuses)[2:]


async def test_an_agent_starts_though_a_driver_cannot_render_what_the_journal_holds_and_mends_it_later(tmp_path):
    from tests.support.agent import DRIVERS  # noqa: PLC0415  # only here

    broken = _Broken(DRIVERS["bridge"])
    broken.broken = False
    rig = Rig(tmp_path, drivers={**DRIVERS, "broken": broken})
    async with rig:
        await rig.put(1, network(1, "broken"), sandbox(), endpoint(confirmed=True))
    broken.broken = True

    async with rig:
        assert "DRIVER_BUG" == rig.engine.statuses[endpoint().ref].error.reason
        broken.broken = False
        await rig.engine.reconcile()
        assert rig.engine.statuses[endpoint().ref].error is None
        assert rig.rendered() == rig.kernel.state


async def test_a_bug_in_the_kernel_layer_is_told_and_the_engine_goes_on(rig):
    class BugError(Exception):
        pass

    def bug(step):
        rig.kernel.fail_at = None
        raise BugError

    rig.kernel.fail_at = bug
    with pytest.raises(Exception, match="BugError"):
        await rig.put(1, *BRIDGE)

    statuses = await rig.put(2, *BRIDGE)

    assert ["", "", ""] == errors_of(statuses)
    assert rig.rendered() == rig.kernel.state


async def test_what_is_foreign_is_refused_and_left(rig):
    bridge = ("link", HOST, f"nwb-{oid(1)[:11]}")
    rig.kernel.state[bridge] = foreign = replace(
        next(one for key, one in _state_of_attach().items() if key == bridge), mtu=9000
    )
    rig.kernel.foreign.add(bridge)

    statuses = await rig.put(1, *BRIDGE)

    assert "FOREIGN_LINK" == statuses[2].error.reason
    assert foreign == rig.kernel.state[bridge]


def _state_of_attach():
    from netweft_agent.domain.objects import Facts  # noqa: PLC0415  # only here
    from netweft_agent.drivers.base import Attachment  # noqa: PLC0415
    from netweft_agent.drivers.bridge import BridgeDriver  # noqa: PLC0415

    attachment = Attachment(endpoint=endpoint(), sandbox=sandbox())
    return BridgeDriver().render(network(), [attachment], [], Facts()).resources()


# --- restart, drift, snapshot ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["bridge", "overlay"])
async def test_a_restart_over_an_unchanged_kernel_does_nothing(rig, driver):
    await rig.put(1, network(driver=driver), sandbox(), endpoint(), peer())
    before, state = rig.count(), dict(rig.kernel.state)

    await rig.restart()

    assert before == rig.count()
    assert state == rig.kernel.state
    assert {True} == {one.applied for one in rig.engine.statuses.values()}
    assert {ref for ref in rig.engine.store.objects if ref.kind is not Kind.PEER} == rig.engine.unreported


async def test_a_peer_that_is_well_has_no_status_and_one_that_failed_is_told_of_until_it_is_well(tmp_path):
    trouble = {f"peer/{oid(5002)}"}

    def bad(step):
        return refused(step) if step.owner in trouble else None

    async with Rig(tmp_path, kernel=FakeKernel(fail_at=bad)) as rig:
        await rig.put(1, network(driver="overlay"), sandbox(), endpoint(), peer(5001))
        rig.engine.take_unreported()

        await rig.put(2, peer(5002))
        failed = rig.engine.take_unreported()
        trouble.clear()
        await rig.engine.reconcile()
        mended = rig.engine.take_unreported()

        assert [(peer(5002).ref, True)] == [(one.ref, one.error is not None) for one in failed]
        assert [(peer(5002).ref, None)] == [(one.ref, one.error) for one in mended]
        assert peer(5001).ref not in rig.engine.statuses


OVERLAY = (network(driver="overlay"), sandbox(), endpoint(), peer(5001), peer(5002), peer(5003, vtep="192.0.2.3"))
AT = Position(store_id="s", revision=9)


@pytest.mark.parametrize(
    "told",
    [
        lambda engine: engine.apply_snapshot(put(5, *OVERLAY), AT),
        lambda engine: engine.apply_snapshot(put(9, *OVERLAY), AT),
        lambda engine: engine.apply_snapshot(put(1, *reversed(OVERLAY)), Position(store_id="another", revision=1)),
        lambda engine: engine.apply(put(9, *OVERLAY), AT),
        lambda engine: engine.apply(put(9, *OVERLAY[3:]), AT),
        lambda engine: engine.apply([*gone(9, endpoint(1009), peer(1001)), *put(9, OVERLAY[0])], AT),
        lambda engine: engine.apply([*gone(5, *OVERLAY), *put(9, *OVERLAY[:3])], AT),
    ],
    ids=[
        "a snapshot of the same",
        "a snapshot at a later revision",
        "a snapshot of another store",
        "all again at a later revision, as after a restart of the controller",
        "all peers again",
        "that others are gone, and an endpoint of its own is no peer",
        "late, what is older than what is held",
    ],
)
async def test_what_a_host_is_told_again_after_a_restart_does_not_touch_its_kernel(rig, told):
    await rig.engine.apply_snapshot(put(5, *OVERLAY), Position(store_id="s", revision=5))
    await rig.restart()
    before, state = rig.count(), dict(rig.kernel.state)

    await told(rig.engine)
    await rig.restart()

    assert before == rig.count()
    assert state == rig.kernel.state


async def test_a_restart_repairs_exactly_what_drifted(rig):
    await rig.put(1, *BRIDGE)
    whole = dict(rig.kernel.state)
    await rig.stop()
    del rig.kernel.state["route", f"sandbox/{oid(101)}", "0.0.0.0/0"]
    bridge = rig.kernel.state["link", HOST, f"nwb-{oid(1)[:11]}"]
    rig.kernel.state[bridge.key] = replace(bridge, up=False)
    before = rig.count()

    await rig.start()

    assert whole == rig.kernel.state
    assert ["link", "route"] == [step.resource.key[0] for step in rig.kernel.executed[before:]]


async def test_an_agent_without_a_journal_removes_nothing_before_the_controller_has_spoken(rig):
    await rig.put(1, *BRIDGE)
    state = dict(rig.kernel.state)
    await rig.stop()
    rig.path.unlink()

    await rig.start()
    held = dict(rig.kernel.state)
    await rig.engine.apply_snapshot([], Position(store_id="s", revision=9))

    assert state == held
    assert {"file"} == {key[0] for key in lasting(rig.kernel.state)}, "files carry no mark: unknown ones stay"


async def test_a_drift_of_a_pair_seen_from_one_side_is_repaired_as_a_whole(rig):
    await rig.put(1, *BRIDGE)
    whole = dict(rig.kernel.state)
    inside = f"sandbox/{oid(101)}"
    for key in [key for key in rig.kernel.state if key[1] == inside and "eth0" in key]:
        del rig.kernel.state[key]
    del rig.kernel.state["link", HOST, f"nwv-{oid(1001)[:11]}"]

    await rig.engine.reconcile([inside])

    assert whole == rig.kernel.state
    assert rig.engine.statuses[endpoint().ref].error is None


async def test_a_snapshot_removes_what_it_does_not_name_and_keeps_what_is_newer(rig):
    await rig.put(1, network(), sandbox(101), sandbox(102), endpoint())
    await rig.put(8, sandbox(103))

    await rig.engine.apply_snapshot(put(1, network(), sandbox(101)), Position(store_id="s", revision=5))

    assert {oid(1), oid(101), oid(103)} == {ref.id for ref in rig.engine.store.objects}
    assert rig.rendered() == lasting(rig.kernel.state) | {k: v for k, v in rig.rendered().items() if k[0] == "sysctl"}
    assert Position(store_id="s", revision=5) == rig.engine.position


async def test_a_snapshot_removes_what_was_put_at_its_very_revision_and_is_not_named(rig):
    await rig.put(5, sandbox())

    await rig.engine.apply_snapshot([], Position(store_id="s", revision=5))

    assert {} == rig.engine.store.objects


async def test_a_snapshot_brings_back_what_an_older_message_removed(rig):
    await rig.put(5, network(driver="overlay"), sandbox(), endpoint(), peer())
    await rig.gone(7, peer())

    await rig.engine.apply_snapshot(
        put(5, network(driver="overlay"), sandbox(), endpoint(), peer()), Position(store_id="s", revision=9)
    )

    assert peer().ref in rig.engine.store.objects


async def test_a_snapshot_does_not_bring_back_what_a_newer_message_removed(rig):
    await rig.put(5, *BRIDGE)
    await rig.gone(12, endpoint())

    await rig.engine.apply_snapshot(put(5, *BRIDGE), Position(store_id="s", revision=9))

    assert rig.engine.store.endpoint(oid(1001)) is None


async def test_a_snapshot_sees_what_the_queue_before_it_brings(rig):
    late = asyncio.ensure_future(rig.put(4, *BRIDGE))
    await asyncio.sleep(0)

    await rig.engine.apply_snapshot([], Position(store_id="s", revision=9))

    assert ["", "", ""] == errors_of(await late)
    assert {} == rig.engine.store.objects
    assert {} == lasting(rig.kernel.state)


async def test_a_snapshot_tries_again_what_was_refused(rig):
    await rig.put(1, network(), sandbox())
    rig.kernel.fail_at = FailAt(0)
    await rig.put(2, endpoint())
    rig.kernel.fail_at = None

    await rig.engine.apply_snapshot(put(2, network(), sandbox(), endpoint()), Position(store_id="s", revision=3))

    assert rig.rendered() == rig.kernel.state
    assert endpoint().ref in rig.engine.store.objects


async def test_a_snapshot_ends_the_memory_of_what_was_refused_and_is_not_wanted_any_more(rig):
    await rig.put(2, sandbox(), endpoint())
    before = set(rig.engine.statuses)

    await rig.engine.apply_snapshot(put(2, sandbox()), Position(store_id="s", revision=3))

    assert endpoint().ref in before
    assert {sandbox().ref} == set(rig.engine.statuses)


async def test_a_snapshot_of_another_store_starts_revisions_anew_without_touching_the_kernel(rig):
    await rig.engine.apply_snapshot(put(900, *BRIDGE), Position(store_id="old", revision=900))
    before = rig.count()

    await rig.engine.apply_snapshot(put(2, *BRIDGE), Position(store_id="new", revision=3))
    await rig.put(4, endpoint(gateway_priority=1))

    assert before == rig.count()
    assert 4 == rig.engine.store.endpoint(oid(1001)).revision


async def test_changes_of_another_store_than_the_one_followed_are_refused(rig):
    await rig.engine.apply_snapshot(put(900, network()), Position(store_id="old", revision=900))

    with pytest.raises(Unavailable, match="still follows old"):
        await rig.engine.apply(put(3, sandbox()), store_id="new")

    assert sandbox().ref not in rig.engine.store.objects


# --- journal ---------------------------------------------------------------------------------------------------------


async def test_a_journal_that_fails_refuses_the_change_and_nothing_is_left(rig, monkeypatch):
    await rig.put(1, network(2), sandbox(102), endpoint(1002, 2, 102))
    before, size = lasting(rig.kernel.state), rig.path.read_bytes()

    with monkeypatch.context() as patch:
        patch.setattr("netweft_agent.engine.journal.os.write", _disk_full)
        patch.setattr("netweft_agent.engine.journal.os.fsync", _disk_full)
        statuses = await rig.put(2, *BRIDGE)

    assert ["JOURNAL_FULL"] * 3 == errors_of(statuses)
    assert before == lasting(rig.kernel.state)
    assert size == rig.path.read_bytes()
    assert {oid(2), oid(102), oid(1002)} == {ref.id for ref in rig.engine.store.objects}


async def test_a_position_is_not_kept_before_all_up_to_it_is(rig, monkeypatch):
    await rig.engine.apply(put(1, network(), sandbox()), Position(store_id="s", revision=1))
    with monkeypatch.context() as patch:
        patch.setattr("netweft_agent.engine.journal.os.write", _disk_full)
        patch.setattr("netweft_agent.engine.journal.os.fsync", _disk_full)
        await rig.engine.apply(put(2, endpoint(confirmed=True)), Position(store_id="s", revision=2))
        await rig.stop()
        await rig.start()
        after_crash = rig.engine.position

    await rig.engine.apply(put(2, endpoint(confirmed=True)), Position(store_id="s", revision=2))
    await rig.restart()

    assert Position(store_id="s", revision=1) == after_crash
    assert Position(store_id="s", revision=2) == rig.engine.position
    assert endpoint().ref in rig.engine.store.objects


async def test_a_journal_that_takes_writes_again_catches_up_before_it_says_the_position(rig, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("netweft_agent.engine.journal.os.write", _disk_full)
        patch.setattr("netweft_agent.engine.journal.os.fsync", _disk_full)
        await rig.engine.apply(
            put(2, network(), sandbox(), endpoint(confirmed=True)), Position(store_id="s", revision=2)
        )

    await rig.engine.apply([], Position(store_id="s", revision=3))
    await rig.restart()

    assert Position(store_id="s", revision=3) == rig.engine.position
    assert endpoint().ref in rig.engine.store.objects
    assert rig.rendered() == rig.kernel.state


async def test_a_full_disk_refuses_only_what_it_has_to_keep(rig, monkeypatch):
    await rig.put(1, *BRIDGE)

    with monkeypatch.context() as patch:
        patch.setattr("netweft_agent.engine.journal.os.write", _disk_full)
        patch.setattr("netweft_agent.engine.journal.os.fsync", _disk_full)
        statuses = await rig.engine.apply([*put(2, *BRIDGE), *gone(2, peer()), *put(2, endpoint(1002, confirmed=True))])
    await rig.engine.reconcile()
    await rig.restart()

    assert ["", "", "", "", "JOURNAL_FULL"] == errors_of(statuses)
    assert {2} == {item.revision for item in rig.engine.store.objects.values()}
    assert endpoint(1002).ref in rig.engine.store.objects


def _disk_full(*_args):
    raise OSError(28, "No space left on device")


# --- merging, cancelling, dry runs -----------------------------------------------------------------------------------


async def test_applies_that_wait_are_merged(rig):
    await rig.put(1, network(), *(sandbox(100 + at) for at in range(50)))
    calls = len(rig.kernel.calls)

    statuses = await asyncio.gather(*(rig.put(2, endpoint(1000 + at, 1, 100 + at)) for at in range(50)))

    assert [""] * 50 == [one for answer in statuses for one in errors_of(answer)]
    assert len(rig.kernel.calls) - calls <= 3
    assert rig.rendered() == rig.kernel.state


async def test_two_changes_of_one_object_that_are_merged_keep_their_order_and_each_its_answer(rig):
    await rig.put(1, network(), sandbox())

    first, second, third = await asyncio.gather(
        rig.put(2, endpoint(interface_name="")), rig.gone(3, endpoint()), rig.put(4, endpoint(interface_name="net7"))
    )

    assert "eth0" == first[0].interface_name
    assert 3 == second[0].revision
    assert "net7" == third[0].interface_name
    assert rig.rendered() == rig.kernel.state


async def test_what_builds_on_the_newer_of_two_merged_changes_follows_it(rig):
    await rig.put(1, *BRIDGE)

    # A stream that is behind says that the sandbox was gone, while a call brings it again with another endpoint.
    of_stream, of_call = await asyncio.gather(
        rig.gone(2, endpoint(), sandbox()), rig.put(3, network(), sandbox(), endpoint(1002))
    )

    assert ["", "", "", "", ""] == errors_of([*of_stream, *of_call])
    assert {oid(1002)} == {one.id for one in rig.engine.store.endpoints_of_sandbox(oid(101))}
    assert lasting(rig.rendered()) == lasting(rig.kernel.state)


async def test_a_change_that_comes_twice_costs_one_round(rig):
    one, other = await asyncio.gather(rig.put(1, *BRIDGE), rig.put(1, *BRIDGE))

    assert one == other
    assert ["", "", ""] == errors_of(one)
    assert 1 == len(rig.kernel.calls)


async def test_a_cancelled_call_does_not_stop_the_work(rig):
    call = asyncio.ensure_future(rig.put(1, *BRIDGE))
    await asyncio.sleep(0)
    call.cancel()

    await rig.engine.reconcile()

    assert call.cancelled()
    assert rig.rendered() == rig.kernel.state
    assert endpoint().ref in rig.engine.store.objects


async def test_a_stopped_engine_finishes_what_it_has_begun(rig):
    call = asyncio.ensure_future(rig.put(1, *BRIDGE))
    await until(lambda: rig.kernel.calls)

    await rig.restart()

    assert ["", "", ""] == errors_of(await call)
    assert endpoint().ref in rig.engine.store.objects


def _everything(engine):
    return (
        dict(engine.store.objects),
        dict(engine.store.gone),
        {key: set(ids) for key, ids in engine.store.by_network.items()},
        {key: set(ids) for key, ids in engine.store.by_sandbox.items()},
        {key: set(ids) for key, ids in engine.store.peers.items()},
        dict(engine.desired.resources),
        {key: set(owners) for key, owners in engine.desired.wanted_by.items()},
        dict(engine.known),
        dict(engine.statuses),
        set(engine.unreported),
    )


DRY_RUNS = {
    "attach": put(9, network(3), sandbox(103), endpoint(1003, 3, 103)),
    "attach to what is there": put(9, endpoint(1003, 1, 101, interface_name="eth5")),
    "change": put(9, network(options={"mtu": "1400"})),
    "same content": put(9, network(), sandbox(), endpoint(confirmed=True)),
    "detach": gone(9, endpoint()),
    "sandbox then its endpoint": gone(9, sandbox(), endpoint()),
    "network": gone(9, network()),
    "bring back": put(9, endpoint(1009, interface_name="eth9")),
}


@pytest.mark.parametrize("changes", DRY_RUNS.values(), ids=DRY_RUNS)
async def test_a_dry_run_says_what_apply_does_and_leaves_everything_as_it_was(rig, changes):
    await rig.put(1, *BRIDGE, endpoint(1009, interface_name="eth9"))
    await rig.gone(5, endpoint(1009))
    before, count = _everything(rig.engine), rig.count()

    steps = await rig.engine.plan(changes)

    assert before == _everything(rig.engine)
    assert count == rig.count()
    await rig.engine.apply(changes)
    assert list(steps) == rig.kernel.executed[count:]


async def test_a_dry_run_raises_what_would_be_refused_and_leaves_everything_as_it_was(rig):
    await rig.put(1, *BRIDGE)
    before = _everything(rig.engine)

    with pytest.raises(NotFound, match="was not told of network"):
        await rig.engine.plan(put(9, endpoint(1003, 7, 101)))

    assert before == _everything(rig.engine)


# --- looking, repairing ----------------------------------------------------------------------------------------------


async def test_observe_of_one_object_shows_its_part_and_its_drift(rig):
    await rig.put(1, *BRIDGE)
    del rig.kernel.state["address", f"sandbox/{oid(101)}", "eth0", "10.1.0.3/24"]

    present, drift = await rig.engine.observe(endpoint().ref)

    assert {"link", "nft-element"} == {key[0] for key in present}
    assert ["ip address add 10.1.0.3/24 dev eth0"] == [step.command() for step in drift]


async def test_looks_beside_the_engines_work_take_nothing_over(rig):
    await rig.put(1, *BRIDGE)
    before = rig.kernel.taken_over

    await rig.engine.observe()
    loop = asyncio.ensure_future(rig.engine.repair_loop(0.001, debounce_s=0))
    seen = len(rig.kernel.observations)
    await until(lambda: len(rig.kernel.observations) > seen)
    loop.cancel()

    assert before == rig.kernel.taken_over


async def test_observe_of_an_unknown_object_says_so(rig):
    with pytest.raises(NotFound, match="holds no endpoint"):
        await rig.engine.observe(endpoint().ref)


async def test_the_repair_loop_mends_what_the_kernel_tells_of(rig):
    await rig.put(1, *BRIDGE)
    whole = dict(rig.kernel.state)
    loop = asyncio.ensure_future(rig.engine.repair_loop(3600, debounce_s=0))
    await asyncio.sleep(0)
    del rig.kernel.state["route", f"sandbox/{oid(101)}", "0.0.0.0/0"]
    rig.kernel.drift(f"sandbox/{oid(101)}")

    await until(lambda: whole == rig.kernel.state)

    loop.cancel()
    assert frozenset({f"sandbox/{oid(101)}"}) == rig.kernel.observations[-1]


async def test_the_repair_loop_tries_a_failed_endpoint_again_and_tells_that_it_is_well(rig):
    await rig.put(1, network(), sandbox())
    rig.kernel.fail_at = lambda step: refused(step) if "eth0" in step.resource.key else None
    await rig.put(2, endpoint(confirmed=True))
    rig.kernel.fail_at = None
    rig.engine.take_unreported()
    loop = asyncio.ensure_future(rig.engine.repair_loop(0.001, debounce_s=0))

    await until(lambda: endpoint().ref in rig.engine.unreported)

    loop.cancel()
    assert [None] == [one.error for one in rig.engine.take_unreported()]
    assert rig.rendered() == rig.kernel.state


async def test_the_repair_loop_outlives_a_kernel_that_does_not_answer(rig, monkeypatch):
    await rig.put(1, *BRIDGE)
    whole = dict(rig.kernel.state)
    observe, failures = rig.kernel.observe, [Unavailable("BUSY", "busy")] * 3

    async def failing(*args, **fields):
        if failures:
            raise failures.pop()
        return await observe(*args, **fields)

    monkeypatch.setattr(rig.kernel, "observe", failing)
    del rig.kernel.state["route", f"sandbox/{oid(101)}", "0.0.0.0/0"]
    loop = asyncio.ensure_future(rig.engine.repair_loop(0.001, debounce_s=0))

    await until(lambda: whole == rig.kernel.state)

    assert not loop.done()
    loop.cancel()


@pytest.mark.parametrize("driver", ["bridge", "overlay"])
async def test_a_death_at_any_step_of_an_attach_is_cleaned_up_by_the_next_process(tmp_path, driver):
    (tmp_path / "dry").mkdir()
    steps = await _steps_of_an_attach(driver)(tmp_path / "dry")

    for place in range(steps):
        folder = tmp_path / str(place)
        folder.mkdir()
        rig = Rig(folder)
        await rig.start()
        await rig.put(1, network(2), sandbox(102), endpoint(1002, 2, 102))
        before = {key: one for key, one in lasting(rig.kernel.state).items() if key[0] != "file"}
        rig.kernel.crash_after(place)
        call = asyncio.ensure_future(rig.put(2, network(driver=driver), sandbox(), endpoint()))
        await until(rig.has_ended)
        call.cancel()
        rig.journal.close()

        async with Rig(folder, kernel=rig.kernel) as again:
            left = {key: one for key, one in lasting(rig.kernel.state).items() if key[0] != "file"}
            assert before == left, f"after step {place}"
            statuses = await again.put(2, network(driver=driver), sandbox(), endpoint())
            assert ["", "", ""] == errors_of(statuses)
            assert again.rendered() == rig.kernel.state


async def test_a_removal_that_the_kernel_refuses_keeps_no_other_from_being_done_at_a_restart(rig):
    await rig.put(1, network(), sandbox(101), sandbox(102), endpoint(1001, 1, 101), endpoint(1002, 1, 102))
    await rig.gone(2, endpoint(1001, 1, 101), endpoint(1002, 1, 102))
    extra = [("link", HOST, "nwv-a"), ("link", HOST, "nwv-b"), ("link", HOST, "nwv-c")]
    for key in extra:
        rig.kernel.state[key] = Link(ns=HOST, name=key[2], kind="bridge")
    rig.kernel.fail_at = lambda step: refused(step) if step.resource.key == extra[0] else None

    await rig.restart()

    assert {extra[0]} == set(extra) & rig.kernel.state.keys()


async def test_what_is_repaired_is_counted_and_the_last_of_it_is_kept(rig):
    await rig.put(1, *BRIDGE)
    before = rig.engine.drift
    route = "route", f"sandbox/{oid(101)}", "0.0.0.0/0"

    for _ in range(40):
        del rig.kernel.state[route]
        await rig.engine.reconcile({f"sandbox/{oid(101)}"})

    found = rig.engine.drift
    assert (0, ()) == (before.operations, before.repairs)
    assert (40, 32) == (found.operations, len(found.repairs))
    last = found.repairs[-1]
    assert (f"sandbox/{oid(101)}", f"sandbox/{oid(101)}") == (last.owner, last.ns)
    assert last.command.startswith("ip route add 0.0.0.0/0 via ")
    assert last.time_ms > 1_600_000_000_000


async def test_what_callers_ask_for_is_no_drift(rig):
    await rig.put(1, *BRIDGE)
    await rig.engine.reconcile()

    assert 0 == rig.engine.drift.operations


# --- where a runtime wants its interfaces ---

HANDED = sandbox(source=HANDOVER, container_id="c1")
INSIDE = "/run/docker/netns/c1"


async def _expected(rig, *items):
    with rig.engine.expecting("c1"):
        return await rig.put(1, network(), *items)


def _links(rig):
    return {(one.ns, one.name) for one in rig.kernel.state.values() if isinstance(one, Link)}


async def test_what_is_expected_waits_until_its_runtime_says_where(rig):
    statuses = await _expected(rig, HANDED, endpoint(confirmed=True))
    waiting = _links(rig)

    made = await rig.engine.place(HANDED.id, INSIDE)

    assert ["", "", ""] == errors_of(statuses)
    assert not any(name.startswith(("nwv", "nwh", "eth")) for _, name in waiting)
    assert {oid(1001): "eth100"} == made
    assert (rig.engine.store.sandbox(HANDED.id).ns, "eth100") in _links(rig)
    assert not [one for one in rig.kernel.state.values() if isinstance(one, Route) and one.link == "eth100"]
    assert "eth100" == rig.engine.statuses[endpoint().ref].interface_name
    assert endpoint().ref in rig.engine.unreported


async def test_what_nobody_expects_is_made_in_the_host_at_once(rig):
    await rig.put(1, network(), HANDED, endpoint())

    assert rig.engine.store.endpoint(oid(1001)).interface_name.startswith("nwh-")
    assert rig.engine.store.sandbox(HANDED.id).leaves
    assert rig.rendered() == rig.kernel.state


async def test_a_container_that_starts_has_it_in_the_host_once_it_is_said(rig):
    await _expected(rig, HANDED, endpoint())

    made = await rig.engine.place(HANDED.id, HERE)

    assert made[oid(1001)].startswith("nwh-")
    (veth,) = (one for one in rig.kernel.state.values() if isinstance(one, Link) and one.kind == "veth")
    assert veth.peer.leaves
    assert veth.peer.name == made[oid(1001)]


async def test_said_again_it_is_the_same_and_costs_nothing(rig):
    await _expected(rig, HANDED, endpoint())
    made = await rig.engine.place(HANDED.id, INSIDE)
    before = rig.count()

    again = await rig.engine.place(HANDED.id, INSIDE)

    assert made == again
    assert before == rig.count()


async def test_the_place_is_kept_over_restarts_and_over_what_controllers_say(rig):
    await _expected(rig, HANDED, endpoint())
    await rig.restart()
    assert LATER == rig.engine.store.sandbox(HANDED.id).place
    await rig.engine.place(HANDED.id, INSIDE)
    before = rig.kernel.state.copy()

    await rig.restart()
    await rig.put(2, replace(HANDED, hostname="new"), endpoint(interface_name="nwh-of-before"))

    assert INSIDE == rig.engine.store.sandbox(HANDED.id).place
    assert "eth100" == rig.engine.store.endpoint(oid(1001)).interface_name
    assert before == rig.kernel.state


async def test_interfaces_of_one_namespace_have_names_of_their_own(rig):
    other = sandbox(102, source=HANDOVER, container_id="c1")
    await _expected(rig, HANDED, endpoint(), other, endpoint(1002, sandbox=102))

    made = await rig.engine.place(HANDED.id, INSIDE) | await rig.engine.place(other.id, INSIDE)
    assert {oid(1001): "eth100", oid(1002): "eth101"} == made
    assert rig.rendered() == rig.kernel.state

    await rig.gone(2, endpoint(), HANDED)
    assert rig.rendered() == rig.kernel.state
    assert (rig.engine.store.sandbox(other.id).ns, "eth101") in _links(rig)


async def test_an_interface_that_cannot_be_made_is_told_and_leaves_nothing(rig):
    await _expected(rig, HANDED, endpoint())
    before = rig.kernel.state.copy()
    rig.kernel.fail_at = FailAt(1)

    with pytest.raises(KernelError):
        await rig.engine.place(HANDED.id, INSIDE)
    assert lasting(before) == lasting(rig.kernel.state)

    rig.kernel.fail_at = None
    await rig.gone(2, endpoint(), HANDED, network())
    assert {} == lasting(rig.kernel.state)


async def test_a_sandbox_that_nobody_has_heard_of_has_no_place(rig):
    with pytest.raises(NotFound, match="holds no sandbox"):
        await rig.engine.place(oid(999), HERE)
