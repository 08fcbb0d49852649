"""A driver of somebody else: one file and an entry point, and the agent attaches with it."""

from __future__ import annotations

import importlib
import sys

import pytest
from netweft_agent.domain.resources import HOST, Link, PeerEnd
from netweft_agent.drivers import base
from netweft_common.errors import FailedPrecondition

from tests.support.agent import Rig, endpoint, errors_of, lasting, network, oid, sandbox

DRIVER = '''
from dataclasses import dataclass

from netweft_agent.domain.objects import Scope
from netweft_agent.domain.resources import HOST, Link, PeerEnd
from netweft_agent.domain.state import HostState
from netweft_agent.drivers import base


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    mtu: int = base.option(1280, "MTU of the cable.", minimum=68, maximum=9000)


class Cable:
    """A veth pair to the host and nothing else."""

    name = "cable"
    scope = Scope.LOCAL
    claims = ()
    options = Options
    needs_addresses = False
    single_network = False

    def check(self, network, attachment, facts):
        base.refuse_host_sandbox(self.name, attachment)

    def render(self, network, attachments, peers, facts):
        options = base.parse(Options, network.options, driver=self.name)
        state = HostState()
        for one in attachments:
            near, far = f"cable-{one.endpoint.id[:8]}", one.endpoint.interface_name
            ns = one.sandbox.ns
            state.add(
                one.owner,
                Link(ns=HOST, name=near, kind="veth", mtu=options.mtu, peer=PeerEnd(ns=ns, name=far)),
                Link(ns=ns, name=far, kind="peer", mtu=options.mtu, peer=PeerEnd(ns=HOST, name=near)),
            )
        return state

    def gateway(self, network, endpoint, version):
        return None

    def routes(self, network, endpoint):
        return {}

    def interface_prefix(self, network):
        return "cab"

    def binds(self, network, endpoint):
        return lambda port: ()
'''


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Return a function that installs a distribution of one module with drivers."""

    def install(module: str, source: str, *entries: str) -> None:
        site = tmp_path / f"site-{module}"
        info = site / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[netweft.drivers]\n" + "\n".join(entries) + "\n")
        monkeypatch.syspath_prepend(site)
        importlib.invalidate_caches()
        modules.append(module)

    modules: list[str] = []
    yield install
    for module in modules:
        sys.modules.pop(module, None)


def test_the_installed_drivers_are_ours():
    assert {"bridge", "host", "null", "overlay"} <= base.load().keys()


def test_a_driver_is_found_by_its_entry_point(installed):
    installed("toycable", DRIVER, "cable = toycable:Cable")

    found = base.load()

    assert "cable" in found
    assert 1280 == base.parse(found["cable"].options, {}, driver="cable").mtu


@pytest.mark.anyio
async def test_the_engine_attaches_and_detaches_with_it(installed, tmp_path):
    installed("toycable", DRIVER, "cable = toycable:Cable")
    async with Rig(tmp_path, drivers=base.load()) as rig:
        cable = network(driver="cable", subnets=(), options={"mtu": "1300"})
        await rig.put(1, sandbox())
        before = lasting(rig.kernel.state)

        statuses = await rig.put(2, cable, endpoint(addresses=()))

        near = f"cable-{oid(1001)[:8]}"
        expected = Link(ns=HOST, name=near, kind="veth", mtu=1300, peer=PeerEnd(ns=sandbox().ns, name="eth0"))
        assert ["", ""] == errors_of(statuses)
        assert expected == rig.kernel.state["link", HOST, near]

        await rig.gone(3, endpoint())

        assert before == lasting(rig.kernel.state)


def test_two_distributions_cannot_offer_one_name(installed):
    installed("toycable", DRIVER, "cable = toycable:Cable")
    installed("othercable", DRIVER, "cable = othercable:Cable")

    with pytest.raises(FailedPrecondition, match="two installed distributions offer a network driver 'cable'"):
        base.load()


BROKEN = {
    "it cannot be imported": ("import nothing_of_this_name", "cable = toycable:Cable", "nothing_of_this_name"),
    "it has no such class": ("", "cable = toycable:Cable", "Cable"),
    "it cannot be made": (
        "class Cable:\n    def __init__(self): raise ValueError('bad day')",
        "cable = toycable:Cable",
        "bad day",
    ),
}


@pytest.mark.parametrize(("source", "entry", "why"), BROKEN.values(), ids=BROKEN)
def test_a_driver_that_cannot_be_loaded_is_named(installed, source, entry, why):
    installed("toycable", source, entry)

    with pytest.raises(FailedPrecondition, match=r"network driver cable \(toycable:Cable\) cannot be loaded") as caught:
        base.load()

    assert why in caught.value.message
