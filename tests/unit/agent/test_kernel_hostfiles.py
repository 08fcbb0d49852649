"""The host's own files: which is read, and that changes are told however they are made."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from netweft_agent import app
from netweft_agent.domain.objects import HostFiles
from netweft_agent.domain.resources import File
from netweft_agent.kernel import hostfiles

from tests.support.agent import endpoint, network, oid, sandbox, until

pytestmark = pytest.mark.anyio

STUB = "nameserver 127.0.0.53\noptions edns0\nsearch .\n"
BEHIND = "nameserver 192.0.2.9\nsearch corp\n"
NEVER = 3600.0


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "resolve").mkdir()
    made = hostfiles.Paths(
        resolv_conf=tmp_path / "etc/resolv.conf",
        resolved=tmp_path / "resolve/resolv.conf",
        hosts=tmp_path / "etc/hosts",
    )
    made.resolv_conf.write_text("nameserver 192.0.2.1\n")
    made.hosts.write_text("127.0.0.1 localhost\n")
    return made


def test_the_hosts_own_file_is_read(paths):
    paths.resolved.write_text(BEHIND)

    assert hostfiles.read(paths) == HostFiles(
        resolv_conf="nameserver 192.0.2.1\n", resolv_conf_path=str(paths.resolv_conf), hosts="127.0.0.1 localhost\n"
    )


def test_behind_the_stub_of_systemd_resolved_the_servers_that_it_asks_are_read(paths):
    paths.resolv_conf.write_text(STUB)
    paths.resolved.write_text(BEHIND)

    found = hostfiles.read(paths)

    assert (BEHIND, str(paths.resolved)) == (found.resolv_conf, found.resolv_conf_path)


def test_a_stub_without_systemd_resolved_is_read_as_it_is(paths):
    paths.resolv_conf.write_text(STUB)

    assert STUB == hostfiles.read(paths).resolv_conf


def test_files_that_are_not_there_are_empty(paths):
    paths.resolv_conf.unlink()
    paths.hosts.unlink()

    found = hostfiles.read(paths)

    assert ("", "") == (found.resolv_conf, found.hosts)


@contextlib.asynccontextmanager
async def following(paths, interval_s=NEVER):
    """Yield what was told so far; a look now and then would find all by itself, so it never comes."""
    told = []

    async def follow():
        changed = hostfiles.changes(paths, hostfiles.read(paths), interval_s=interval_s, debounce_s=0)
        async for files in changed:
            told.append(files)  # noqa: PERF401  # seen as they come

    task = asyncio.create_task(follow())
    await asyncio.sleep(0)  # it has its watches when it waits
    try:
        yield told
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def in_place(path, text):
    path.write_text(text)


def by_rename(path, text):
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.rename(path)


def by_link(path, text):
    target = path.parent.parent / "stub-resolv.conf"
    target.write_text(text)
    path.unlink()
    path.symlink_to(target)


def elsewhere(path, text):
    """Write where the file has another name: as through a mount, its folder is told nothing."""
    other = path.parent.parent / "other"
    other.mkdir()
    (other / "name").hardlink_to(path)
    (other / "name").write_text(text)


@pytest.mark.parametrize("write", [in_place, by_rename, by_link, elsewhere])
async def test_a_change_is_told_however_it_is_written(paths, write):
    async with following(paths) as told:
        write(paths.resolv_conf, "nameserver 192.0.2.2\n")

        await until(lambda: told and told[-1].resolv_conf == "nameserver 192.0.2.2\n")


async def test_a_change_of_a_links_target_is_told(paths):
    by_link(paths.resolv_conf, "nameserver 192.0.2.2\n")
    async with following(paths) as told:
        by_rename(paths.resolv_conf.resolve(), "nameserver 192.0.2.3\n")

        await until(lambda: told and told[-1].resolv_conf == "nameserver 192.0.2.3\n")


async def test_a_links_target_that_goes_and_comes_is_told(paths):
    by_link(paths.resolv_conf, "nameserver 192.0.2.2\n")
    target = paths.resolv_conf.resolve()
    async with following(paths) as told:
        target.unlink()
        await until(lambda: told and told[-1].resolv_conf == "")
        target.write_text("nameserver 192.0.2.3\n")

        await until(lambda: told[-1].resolv_conf == "nameserver 192.0.2.3\n")


async def test_a_change_behind_the_stub_is_told(paths):
    paths.resolv_conf.write_text(STUB)
    paths.resolved.write_text(BEHIND)
    async with following(paths) as told:
        by_rename(paths.resolved, "nameserver 192.0.2.8\n")

        await until(lambda: told and told[-1].resolv_conf == "nameserver 192.0.2.8\n")


async def test_what_is_written_as_it_was_is_no_change(paths):
    async with following(paths) as told:
        by_rename(paths.resolv_conf, "nameserver 192.0.2.1\n")
        by_rename(paths.hosts, "10.0.0.1 other\n")

        await until(lambda: told)

    assert ["10.0.0.1 other\n"] == [one.hosts for one in told]


async def test_without_inotify_a_look_now_and_then_finds_a_change(paths, monkeypatch):
    monkeypatch.setattr(hostfiles, "_watch", lambda *_: None)
    async with following(paths, interval_s=0.01) as told:
        by_rename(paths.resolv_conf, "nameserver 192.0.2.2\n")

        await until(lambda: told)


async def test_sandboxes_follow_a_change_of_the_hosts_resolv_conf(rig, paths):
    await rig.put(1, network(), sandbox(), sandbox(102, dns_servers=("192.0.2.77",)), endpoint())
    before = rig.count()

    def servers(number):
        file = rig.kernel.state["file", f"sandbox/{oid(number)}", f"/run/netweft/sandboxes/{oid(number)}/resolv.conf"]
        assert isinstance(file, File)
        return [line for line in (file.content or "").splitlines() if line.startswith("nameserver")]

    changed = hostfiles.changes(paths, HostFiles(), interval_s=NEVER, debounce_s=0)
    task = asyncio.create_task(app.follow_host(rig.engine, changed))
    try:
        await until(lambda: servers(101) == ["nameserver 192.0.2.1"])
        by_rename(paths.resolv_conf, "nameserver 192.0.2.5\n")
        await until(lambda: servers(101) == ["nameserver 192.0.2.5"])
    finally:
        task.cancel()

    assert ["nameserver 192.0.2.77"] == servers(102)
    assert all(isinstance(step.resource, File) for step in rig.kernel.executed[before:])
    assert rig.rendered() == rig.kernel.state


async def test_what_follows_later_is_rendered_from_the_files_as_they_are_now(rig):
    await rig.engine.follow_host(HostFiles(resolv_conf="nameserver 192.0.2.6\n"))

    await rig.put(1, network(), sandbox(), endpoint())

    file = rig.kernel.state["file", f"sandbox/{oid(101)}", f"/run/netweft/sandboxes/{oid(101)}/resolv.conf"]
    assert "nameserver 192.0.2.6\n" in file.content
