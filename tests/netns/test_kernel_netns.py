"""Namespaces: made, adopted after a restart, given by path, and refused when they are something else."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from pathlib import Path

import pytest
from netweft_agent.domain.plan import plan
from netweft_agent.domain.resources import HOST, File, Namespace
from netweft_agent.kernel import netns
from netweft_agent.kernel.netns import Namespaces
from netweft_common import errors

from tests.support.kernel import Host, bridge, endpoint, new_host, overlay, sandbox, state
from tests.support.netns import Netns, require_root

pytestmark = [pytest.mark.netns, pytest.mark.anyio]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def host(anyio_backend):
    require_root()
    async with new_host() as made:
        yield made


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def inode(path) -> int:
    return Path(path).stat().st_ino


async def test_a_namespace_of_ours_outlives_the_agent_and_is_adopted(host: Host):
    desired = state([*bridge(), *sandbox(), *endpoint(), *overlay()])
    await host.execute(plan(desired, {}, {}))
    before = inode(host.kernel.netns_path("sandbox/s1"))
    await host.kernel.close()

    host.kernel = host.new_kernel()
    seen_before = await host.observe(desired)
    errors_ = [error for error in await host.execute(plan(desired, {}, {})) if error]

    assert (plan(desired, seen_before, {}), errors_) == ((), [])
    assert before == inode(host.kernel.netns_path("sandbox/s1"))
    assert plan(desired, await host.observe(desired), {}) == ()


async def test_a_look_does_not_bring_back_what_is_removed_meanwhile(host: Host, monkeypatch):
    await host.make(*sandbox())
    looked, removed = threading.Event(), threading.Event()
    look = host.kernel._observer.observe

    def slow_look(*args):
        seen = look(*args)
        looked.set()
        removed.wait(10)
        return seen

    monkeypatch.setattr(host.kernel._observer, "observe", slow_look)
    looking = asyncio.ensure_future(host.kernel.observe(state(sandbox()), take_over=False))
    await asyncio.to_thread(looked.wait, 10)
    await host.remove(*sandbox())
    removed.set()
    seen = await looking

    assert ("netns", "sandbox/s1") in seen.resources
    assert ([], False) == (list((host.run_dir / "netns").iterdir()), host.kernel._namespaces.holds("sandbox/s1"))


async def test_a_file_that_a_crash_left_without_its_namespace_goes_at_the_next_start(host: Host):
    await host.make(*sandbox())
    await host.kernel.close()
    folder = host.run_dir / "netns"
    left, place = folder / "sandbox-s2", folder / "sandbox-s3"
    left.touch()
    place.mkdir()

    host.kernel = host.new_kernel()
    await host.observe({})

    assert {"sandbox-s1", "sandbox-s3"} == {path.name for path in folder.iterdir()}
    place.rmdir()


async def test_files_of_a_sandbox_that_nobody_remembers_are_seen_and_can_be_removed(host: Host):
    folder = host.run_dir / "sandboxes" / "s1"
    ours, edited, unfinished = folder / "hosts", folder / "resolv.conf", folder / ".hosts.netweft"
    files = [File(ns="sandbox/s1", path=str(path), content="a\n") for path in (ours, edited)]
    await host.make(*sandbox(), *files)
    await host.kernel.close()
    edited.write_text("b\n")
    unfinished.touch()

    host.kernel = host.new_kernel()
    seen = await host.observe({})
    left_out = await host.observe(state(files))
    await host.remove(*(one for one in seen.values() if isinstance(one, File)))

    assert [str(ours)] == [one.path for one in seen.values() if isinstance(one, File)]
    assert {one.key for one in files} == {key for key in left_out if key[0] == "file"}
    assert [edited] == list(folder.iterdir())


async def test_what_a_crash_left_to_be_deleted_is_deleted_at_the_next_start(host: Host):
    await host.make(*bridge(), *sandbox(), *endpoint())
    host.exec("ip", "link", "set", "nwv-1", "group", str(0x6E78))
    await host.kernel.close()

    host.kernel = host.new_kernel()
    await host.execute([])

    assert "nwv-1" not in host.exec("ip", "link")


async def test_a_pin_without_a_namespace_is_replaced(host: Host):
    pin = host.run_dir / "netns" / "sandbox-s1"
    pin.parent.mkdir()
    pin.touch()

    errors_ = await host.make(*sandbox())

    assert errors_ == []
    os.close(netns.open_path(str(pin)))


async def test_a_place_that_cannot_be_used_is_named_and_others_go_on(host: Host):
    (host.run_dir / "netns" / "sandbox-s1").mkdir(parents=True)

    results = await host.make(*sandbox(1), *sandbox(2))

    assert {"KERNEL_EISDIR"} == {error.reason for error in results}
    assert str(host.run_dir / "netns" / "sandbox-s1") in results[0].message
    os.close(netns.open_path(str(host.run_dir / "netns" / "sandbox-s2")))


async def test_a_given_namespace_is_used_and_let_go_of(host: Host):
    with Netns("theirs") as theirs:
        namespace = Namespace(ns="sandbox/s1", source=theirs.path)
        await host.make(*bridge(), namespace, *endpoint())

        assert theirs.path == host.kernel.netns_path("sandbox/s1")
        assert "10.1.0.2/16" in theirs.exec(["ip", "address"]).stdout

        await host.remove(*endpoint(), namespace)
        assert host.kernel.netns_path("sandbox/s1") == ""


async def test_ipv6_is_off_in_a_given_namespace_whose_links_are_born_with_it(host: Host):
    with Netns("theirs") as theirs:
        namespace = Namespace(ns="sandbox/s1", source=theirs.path)
        await host.make(*bridge(), namespace, *endpoint())

        assert "inet6" not in theirs.exec(["ip", "address", "show", "eth0"]).stdout

        await host.remove(*endpoint(), namespace)


async def test_a_given_namespace_whose_path_leads_to_another_one_is_not_observed(host: Host):
    with Netns("theirs") as theirs, Netns() as other:
        namespace = Namespace(ns="sandbox/s1", source=theirs.path)
        await host.make(namespace)
        netns._libc.umount2(theirs.path.encode(), 2)
        source = f"/proc/{os.getpid()}/fd/{other.fd}".encode()
        assert netns._libc.mount(source, theirs.path.encode(), b"none", 0x1000, None) == 0

        assert await host.observe(state([namespace])) == {}
        assert await host.make(namespace) == []
        assert state([namespace]) == await host.observe(state([namespace]))

        await host.remove(namespace)


async def test_a_namespace_can_be_given_by_process(host: Host):
    with Netns() as theirs:
        process = theirs.popen(["sleep", "60"])
        try:
            namespace = Namespace(ns="sandbox/s1", source=f"pid:{process.pid}")

            errors_ = await host.make(namespace)

            assert errors_ == []
            assert f"/proc/{process.pid}/ns/net" == host.kernel.netns_path("sandbox/s1")
            await host.remove(namespace)
        finally:
            process.kill()
            process.wait(timeout=15)
            process.stdout.close()


@pytest.fixture
def trap(tmp_path):
    """Return paths that are no network namespaces, by what they are."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("/proc/self/ns/net")
    os.mkfifo(tmp_path / "pipe")
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(tmp_path / "socket"))
    yield tmp_path
    bound.close()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file", "NOT_A_NETWORK_NAMESPACE"),
        ("link", "NOT_A_NETWORK_NAMESPACE"),
        ("pipe", "NOT_A_NETWORK_NAMESPACE"),
        ("socket", "KERNEL_ENXIO"),
        ("", "NOT_A_NETWORK_NAMESPACE"),
        ("missing", "NETNS_NOT_FOUND"),
        ("file/below", "NETNS_NOT_FOUND"),
        ("../../../../../../../../proc/self/ns/mnt", "NOT_A_NETWORK_NAMESPACE"),
    ],
)
async def test_what_is_no_network_namespace_is_refused_and_named(host: Host, trap: Path, name, reason):
    path = f"{trap}/{name}" if name else str(trap)

    (error,) = await host.make(Namespace(ns="sandbox/s1", source=path))

    assert (reason, True) == (error.reason, path in str(error))


@pytest.mark.parametrize(
    "ns", ["sandbox/../../etc", "sandbox/", "sandbox/a/b", "other/x", "sandbox/a\0b", "sandbox/.x"]
)
async def test_an_id_that_would_leave_the_run_directory_is_refused(host: Host, ns):
    (error,) = await host.make(Namespace(ns=ns))

    assert isinstance(error, errors.InvalidArgument)
    assert [*host.run_dir.glob("netns/*")] == []


@pytest.mark.parametrize("source", ["relative/path", "pid:", "pid:-1", "pid:1/../2", "/with\0nul"])
async def test_a_source_that_is_no_path_is_refused(host: Host, source):
    (error,) = await host.make(Namespace(ns="sandbox/s1", source=source))

    assert error.reason == "INVALID_NETNS_SOURCE"


async def test_the_hosts_path_leads_to_the_hosts_namespace(host: Host):
    path = host.kernel.netns_path(HOST)

    assert path.startswith("/proc/")


async def test_hundreds_of_sandboxes_keep_a_descriptor_each_and_few_sockets(host: Host):
    count = 300
    before = descriptors()

    errors_ = await host.make(*(part for n in range(count) for part in sandbox(n)))

    assert errors_ == []
    assert descriptors() - before <= count + 256 + 8
    assert await host.remove(*(part for n in range(count) for part in sandbox(n))) == []
    assert descriptors() - before <= 8


def test_the_hosts_own_namespace_is_not_taken_for_a_container(tmp_path):
    require_root()
    namespaces = Namespaces(tmp_path)

    with pytest.raises(errors.FailedPrecondition, match="the host's own"):
        namespaces.hold(Namespace(ns="sandbox/s1", source=f"pid:{os.getpid()}"))

    assert not namespaces.holds("sandbox/s1")
    namespaces.close()


async def test_two_sandboxes_do_not_get_one_namespace(host: Host):
    assert [] == await host.make(Namespace(ns="sandbox/s1"))

    (error,) = await host.make(Namespace(ns="sandbox/s2", source=host.kernel.netns_path("sandbox/s1")))

    assert "NETNS_TAKEN" == error.reason
