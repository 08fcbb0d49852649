"""The engine under random puts, removals, faults, drift and restarts: in the end the kernel is what the store says."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from netweft_agent.domain.objects import Endpoint, Kind, Ref
from netweft_agent.engine.journal import Position
from netweft_agent.engine.store import Change

from tests.support.agent import Rig, endpoint, lasting, network, oid, peer, put, refused, sandbox

NETWORKS = {1: "bridge", 2: "overlay", 3: "bridge"}
SANDBOXES = (101, 102)
ENDPOINTS = tuple(range(1001, 1007))
PEERS = (5001, 5002)

networks = st.sampled_from(sorted(NETWORKS))
sandboxes = st.sampled_from(SANDBOXES)


def a_network(number, mtu):
    return network(number, NETWORKS[number], options={"mtu": mtu} if mtu else {})


class EngineMachine(RuleBasedStateMachine):
    """Talks to one engine, whose process may die between two calls, and whose kernel may refuse any step."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.rig = Rig(Path(self.folder.name), ports_per_bridge=2)
        self.revision = 0
        self.confirmed: set[str] = set()

    def do(self, awaitable):
        return self.loop.run_until_complete(asyncio.wait_for(awaitable, 10))

    def next(self):
        self.revision += 1
        return self.revision

    @initialize()
    def start(self):
        self.do(self.rig.start())

    def teardown(self):
        self.do(self.rig.stop())
        self.loop.close()
        self.folder.cleanup()

    # --- what controllers do ---

    @rule(number=networks, mtu=st.sampled_from(["", "1400", "nonsense"]))
    def put_network(self, number, mtu):
        self.do(self.rig.put(self.next(), a_network(number, mtu)))

    @rule(number=sandboxes, source=st.sampled_from(["", "/run/netns/a", "/run/netns/b"]))
    def put_sandbox(self, number, source):
        self.do(self.rig.put(self.next(), sandbox(number, source=source)))

    @rule(
        numbers=st.lists(st.sampled_from(ENDPOINTS), min_size=1, max_size=3, unique=True),
        net=networks,
        box=sandboxes,
        name=st.sampled_from(["", "eth0", "net0"]),
        priority=st.integers(0, 2),
        confirmed=st.booleans(),
    )
    def attach(self, *, numbers, net, box, name, priority, confirmed):
        made = [
            endpoint(one, net, box, interface_name=name, gateway_priority=priority, confirmed=confirmed)
            for one in numbers
        ]
        statuses = self.do(self.rig.put(self.next(), *made))
        for item, status in zip(made, statuses, strict=True):
            held = self.rig.engine.store.endpoint(item.id)
            if status.error is None:
                assert held is not None
                assert held.revision == self.revision
            else:
                assert held is None or held.revision < self.revision or held.confirmed

    @rule(number=st.sampled_from(PEERS), vtep=st.sampled_from(["192.0.2.2", "192.0.2.3"]))
    def put_peer(self, number, vtep):
        self.do(self.rig.put(self.next(), peer(number, 2, vtep=vtep)))

    @rule(data=st.data())
    def remove(self, data):
        refs = sorted(self.rig.engine.store.objects, key=str)
        if refs:
            chosen = data.draw(st.lists(st.sampled_from(refs), min_size=1, max_size=4, unique=True))
            self.do(self.rig.gone(self.next(), *chosen))
            assert not set(chosen) & set(self.rig.engine.store.objects)

    @rule(data=st.data())
    def late_message(self, data):
        refs = sorted(self.rig.engine.store.gone, key=str)
        if refs:
            ref = data.draw(st.sampled_from(refs))
            if ref.kind is Kind.ENDPOINT:
                number = next(one for one in ENDPOINTS if oid(one) == ref.id)
                before = self.rig.engine.store.gone[ref]
                self.do(self.rig.put(before, endpoint(number)))
                assert ref not in self.rig.engine.store.objects

    @rule(data=st.data())
    def snapshot(self, data):
        held = list(self.rig.engine.store.objects.values())
        named = data.draw(st.lists(st.sampled_from(held), unique_by=lambda one: str(one.ref))) if held else []
        changes = [Change(ref=one.ref, revision=one.revision, put=one) for one in named]
        self.do(self.rig.engine.apply_snapshot(changes, Position(store_id="s", revision=self.revision)))
        assert {one.ref for one in named} >= set(self.rig.engine.store.objects)

    @rule(data=st.data())
    def dry_run(self, data):
        before = dict(self.rig.engine.store.objects), dict(self.rig.engine.desired.resources)
        number = data.draw(st.sampled_from(ENDPOINTS))
        try:
            self.do(self.rig.engine.plan(put(self.revision + 1, endpoint(number, 1, 101, interface_name="dry0"))))
        except Exception as error:  # noqa: BLE001  # any refusal will do
            assert type(error).__module__ == "netweft_common.errors"  # noqa: PT017
        assert before == (dict(self.rig.engine.store.objects), dict(self.rig.engine.desired.resources))

    # --- what the world does ---

    @rule(every=st.integers(1, 6), phase=st.integers(0, 5))
    def kernel_refuses(self, every, phase):
        count = iter(range(phase, 10**6))
        self.rig.kernel.fail_at = lambda step: refused(step) if next(count) % every == 0 else None

    @rule()
    def kernel_is_well(self):
        self.rig.kernel.fail_at = None

    @precondition(lambda self: self.rig.kernel.fail_at is None)
    @rule(data=st.data())
    def drift(self, data):
        keys = sorted(self.rig.kernel.state)
        if keys:
            for key in data.draw(st.lists(st.sampled_from(keys), max_size=3, unique=True)):
                self.rig.kernel.state.pop(key, None)
            self.rig.kernel._wither()
            self.do(self.rig.engine.reconcile())

    # A new process knows nothing of a file that the old one could not remove: files carry no mark.
    @precondition(lambda self: not self.rig.engine._leftovers)
    @rule()
    def restart(self):
        self.do(self.rig.restart())

    # --- what always holds ---

    @rule()
    def settle(self):
        self.rig.kernel.fail_at = None
        self.do(self.rig.engine.reconcile())
        self.do(self.rig.engine.reconcile())

        assert self.rig.rendered_and_granted() == lasting(self.rig.kernel.state)
        before = len(self.rig.kernel.executed)
        self.do(self.rig.restart())
        assert len(self.rig.kernel.executed) == before
        for ref, item in self.rig.engine.store.objects.items():
            if isinstance(item, Endpoint) and str(ref) not in self.rig.engine._unrendered:
                status = self.rig.engine.statuses[ref]
                known = {Ref(kind=Kind.NETWORK, id=item.network_id), Ref(kind=Kind.SANDBOX, id=item.sandbox_id)}
                assert (status.error is None) == (known <= self.rig.engine.store.objects.keys()), status

    @invariant()
    def indexes_agree_with_objects(self):
        store = self.rig.engine.store
        endpoints = [one for one in store.objects.values() if isinstance(one, Endpoint)]
        assert {one.id for one in endpoints} == {one for ids in store.by_network.values() for one in ids}
        assert {one.id for one in endpoints} == {one for ids in store.by_sandbox.values() for one in ids}
        counts = Counter((one.network_id, one.shard) for one in endpoints)
        assert counts == {(net, shard): count for net, of in store.shards.items() for shard, count in of.items()}
        assert not store.gone.keys() & store.objects.keys()
        assert set(self.rig.engine._failing) == {
            ref for ref, status in self.rig.engine.statuses.items() if status.error is not None
        }

    @invariant()
    def what_is_believed_of_the_kernel_is_so(self):
        if self.rig.kernel.fail_at is None:
            assert lasting(self.rig.engine.known) == lasting(self.rig.kernel.state)


EngineMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestEngine = EngineMachine.TestCase
