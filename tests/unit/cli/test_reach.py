from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from netweft_cli import netns, reach, rtnl
from netweft_common import errors

pytestmark = pytest.mark.netns


@pytest.fixture
def wire() -> Iterator[tuple[Path, Path]]:
    """Two namespaces on a bridge: 192.0.2.1 is the bridge, 192.0.2.2 its neighbour."""
    folder = Path(tempfile.mkdtemp(prefix="nw-"))
    here, there = folder / "here", folder / "there"
    for path in (here, there):
        netns.create(path)
    fd = os.open(there, os.O_RDONLY)

    def bridge() -> None:
        rtnl.set_up("lo")
        rtnl.add_bridge("br")
        rtnl.add_address("br", ipaddress.ip_interface("192.0.2.1/24"))
        rtnl.add_veth("port", master="br", peer="eth0", peer_netns_fd=fd)

    def neighbour() -> None:
        rtnl.set_up("eth0")
        rtnl.add_address("eth0", ipaddress.ip_interface("192.0.2.2/24"))

    netns.call(here, bridge)
    netns.call(there, neighbour)
    os.close(fd)
    yield here, there
    for path in (here, there):
        netns.remove(path)
    shutil.rmtree(folder)


def test_a_neighbour_answers_and_an_address_that_nobody_has_does_not(wire):
    here, there = wire
    pairs = [
        reach.Pair(source=here, destination="192.0.2.2"),
        reach.Pair(source=there, destination="192.0.2.1"),
        reach.Pair(source=here, destination="192.0.2.9"),
        reach.Pair(source=there, destination="203.0.113.1"),
        reach.Pair(source=here, destination="::1"),
    ]

    answers = reach.reach_all(pairs, timeout_s=1.0)

    expected = [True, True, False, False, True]
    assert expected == [answers[pair] is not None for pair in pairs]


def test_answers_end_the_wait_at_once(wire):
    here, _ = wire
    before = time.monotonic()

    assert reach.reach(here, "192.0.2.2", timeout_s=30)
    assert time.monotonic() - before < 10


def test_answers_to_earlier_questions_count_too(wire):
    here, there = wire
    # The first echoes wait for ARP, and are all answered together once somebody has the address.
    address = ipaddress.ip_interface("192.0.2.3/24")
    later = threading.Timer(3 * reach.RETRY_S, lambda: netns.call(there, lambda: rtnl.add_address("eth0", address)))
    later.start()

    reached = reach.reach(here, "192.0.2.3", timeout_s=30)

    later.join(timeout=30)
    assert reached


def test_the_caller_stays_in_its_namespace(wire):
    here, _ = wire
    before = netns.inode(Path("/proc/self/ns/net"))

    reach.reach(here, "192.0.2.1")

    assert before == netns.inode(Path("/proc/self/ns/net"))


def test_a_pinger_counts_every_echo_that_had_no_answer(wire):
    here, there = wire
    pair = reach.Pair(source=here, destination="192.0.2.2")

    with reach.Pinger(pair, interval_s=0.005) as whole:
        assert reach.reach(there, "192.0.2.1", timeout_s=30)
    with reach.Pinger(pair, interval_s=0.005, patience_s=0.1) as broken:
        assert reach.reach(here, "192.0.2.2", timeout_s=30)
        netns.call(there, lambda: [rtnl.delete_link(link.index) for link in rtnl.links() if link.name == "eth0"])
        assert not reach.reach(here, "192.0.2.2", timeout_s=0.2)

    assert whole.loss.lost == 0
    assert whole.loss.sent > 0
    assert broken.loss.lost > 0


def test_a_pinger_that_had_no_time_to_ask_does_not_make_up_for_it(wire):
    here, _ = wire
    pair = reach.Pair(source=here, destination="192.0.2.2")

    with contextlib.ExitStack() as stack:
        pingers = [stack.enter_context(reach.Pinger(pair, interval_s=0.002)) for _ in range(4)]
        assert reach.reach(here, "192.0.2.2", timeout_s=30)
        # Python's lock is held by a call that does not let go of it, as if the machine had no time for this process.
        ctypes.PyDLL(None).usleep(900_000)

    assert [0] * 4 == [pinger.loss.lost for pinger in pingers]


def test_a_path_that_is_no_namespace_is_named(tmp_path):
    with pytest.raises(errors.NotFound, match="no network namespace"):
        reach.reach(tmp_path / "none", "192.0.2.1")
