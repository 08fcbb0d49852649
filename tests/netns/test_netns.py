from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tests.support.netns import Netns, require_root, veth

pytestmark = pytest.mark.netns


@pytest.fixture(autouse=True)
def _root():
    require_root()


def test_code_runs_inside_and_the_caller_stays_outside():
    here = Path("/proc/self/ns/net").stat().st_ino

    with Netns() as ns:
        inside = ns.run(lambda: Path("/proc/thread-self/ns/net").stat().st_ino)

        assert os.fstat(ns.fd).st_ino == inside
    assert here != inside
    assert here == Path("/proc/thread-self/ns/net").stat().st_ino


def test_a_named_namespace_is_a_file_while_it_lasts():
    with Netns(name="blue") as ns:
        path = Path(ns.path)

        assert os.fstat(ns.fd).st_ino == path.stat().st_ino
    assert not path.exists()
    assert not path.parent.exists()
    assert str(path) not in Path("/proc/self/mounts").read_text()


def test_errors_inside_reach_the_caller():
    with Netns() as ns, pytest.raises(ZeroDivisionError):
        ns.run(lambda: 1 // 0)


def test_a_veth_pair_joins_two_namespaces():
    with Netns() as red, Netns(name="blue") as blue:
        veth(red, "r0", blue, "b0")

        names = [name for _, name in red.run(socket.if_nameindex)], [name for _, name in blue.run(socket.if_nameindex)]

    assert (["lo", "r0"], ["lo", "b0"]) == names
