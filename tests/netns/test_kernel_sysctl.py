"""Settings of the namespace that a thread is in, read and written through mounts of proc that nobody else sees."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from netweft_agent.kernel import sysctl
from netweft_common import errors

from tests.support.netns import Netns, require_root

pytestmark = pytest.mark.netns

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
SETTING = "net/ipv6/conf/lo/hop_limit"


@pytest.fixture
def spaces() -> Iterator[list[Netns]]:
    require_root()
    made = [Netns() for _ in range(4)]
    yield made
    for space in made:
        space.close()


def in_thread(job):
    """Run a job in a thread of its own, which may leave the namespace and takes what it opened with it."""
    results, failures = [], []

    def run() -> None:
        try:
            results.append(job())
        except BaseException as error:  # noqa: BLE001  # carried over
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def visit(space: Netns) -> None:
    assert _libc.setns(space.fd, _CLONE_NEWNET) == 0


def as_everybody_sees(space: Netns) -> str:
    return space.run(lambda: Path("/proc/sys", SETTING).read_text().strip())


@pytest.mark.parametrize("opens", [1, 3, 1000], ids=["a-mount-each", "mounts-change-midway", "one-mount"])
def test_each_namespace_has_its_own_settings_however_many_mounts_are_used(spaces, monkeypatch, opens):
    monkeypatch.setattr(sysctl, "_OPENS", opens)

    def visit_all() -> list[str | None]:
        for number, space in enumerate(spaces):
            visit(space)
            sysctl.write(SETTING, str(100 + number))
        read = []
        for space in reversed(spaces):
            visit(space)
            read.append(sysctl.read(SETTING))
        return read

    assert in_thread(visit_all) == ["103", "102", "101", "100"]
    assert [as_everybody_sees(space) for space in spaces] == ["100", "101", "102", "103"]


def test_a_mount_is_shared_by_as_many_settings_as_it_shall_be_and_seen_by_nobody(spaces, monkeypatch):
    made: list[int | None] = []
    mount = sysctl._mount

    def counted() -> int | None:
        made.append(mount())
        return made[-1]

    monkeypatch.setattr(sysctl, "_mount", counted)
    monkeypatch.setattr(sysctl, "_OPENS", 10)
    before = Path("/proc/self/mountinfo").read_text()

    def read_often() -> str:
        visit(spaces[0])
        for _ in range(25):
            sysctl.read(SETTING)
        return Path("/proc/self/mountinfo").read_text()

    assert in_thread(read_often) == before
    assert len(made) == 3
    assert None not in made


def test_where_proc_may_not_be_mounted_everybodys_serves(spaces, monkeypatch):
    monkeypatch.setattr(sysctl, "_mount", lambda: None)

    def write() -> str | None:
        visit(spaces[0])
        sysctl.write(SETTING, "77")
        return sysctl.read(SETTING)

    assert in_thread(write) == "77"
    assert as_everybody_sees(spaces[0]) == "77"


def test_a_thread_takes_its_mounts_with_it(spaces):
    before = descriptors()

    def read() -> str | None:
        visit(spaces[0])
        return sysctl.read(SETTING)

    for _ in range(5):
        assert in_thread(read) == "64"
    assert descriptors() == before


@pytest.mark.parametrize("path", ["kernel/hostname", "net/../kernel/hostname", "net/a\0b"])
def test_what_is_not_the_networks_is_refused(path):
    with pytest.raises(errors.InvalidArgument, match="is not below net/"):
        sysctl.read(path)


def test_a_setting_that_is_not_there_is_none(spaces):
    def read() -> str | None:
        visit(spaces[0])
        return sysctl.read("net/ipv6/conf/none0/hop_limit")

    assert in_thread(read) is None
