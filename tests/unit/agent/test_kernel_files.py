"""Managed files: whole or not at all, and somebody else's edit stands."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace
from netweft_agent.domain.resources import File
from netweft_agent.kernel.files import Files
from netweft_common import errors


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path / "run")


@pytest.fixture(params=[False, True], ids=["by rename", "in place"])
def hosts(request, tmp_path):
    def make(content: str) -> File:
        return File(
            ns="sandbox/s1", path=str(tmp_path / "run/sandboxes/s1/hosts"), content=content, in_place=request.param
        )

    return make


def text(file: File) -> str:
    return Path(file.path).read_text()


def test_a_file_is_written_with_its_folders_for_all_to_read(files, hosts, tmp_path):
    files.write(hosts("one\n"))

    assert "one\n" == text(hosts(""))
    assert 0o644 == stat.S_IMODE(Path(hosts("").path).stat().st_mode)
    assert ["hosts"] == [entry.name for entry in (tmp_path / "run/sandboxes/s1").iterdir()]


def test_a_file_is_read_back_as_it_was_written(files, hosts):
    files.write(hosts("one\n"))

    assert hosts("one\n") == files.read(hosts("other\n"))


def test_a_missing_file_is_none(files, hosts):
    assert files.read(hosts("one\n")) is None


def test_a_file_can_be_written_many_times(files, hosts):
    for content in ("one\n", "a much longer text\n", "2\n"):
        files.write(hosts(content))

        assert (content, hosts(content)) == (text(hosts("")), files.read(hosts("")))


def test_an_edited_file_reads_as_nobodys_and_is_left_alone(files, hosts):
    files.write(hosts("one\n"))
    Path(hosts("").path).write_text("one\nmine\n")

    seen = files.read(hosts("one\n"))
    files.write(hosts("two\n"))
    files.remove(hosts("one\n"))

    assert (None, "one\nmine\n") == (seen.content, text(hosts("")))
    assert hosts("two\n").matches(seen)


EXCHANGED = {
    "a line comes": ([], ["10.0.0.2\tweb"], "1\tone\nmine\n", "1\tone\nmine\n10.0.0.2\tweb\n"),
    "a line goes, by exact match": (["1\tone"], [], "1\tone\n1\tone two\n#1\tone\n", "1\tone two\n#1\tone\n"),
    "one for another": (["1\tone"], ["2\ttwo"], "1\tone\nmine\n", "mine\n2\ttwo\n"),
    "all of the same": (["1\tone"], [], "1\tone\nmine\n1\tone\n", "mine\n"),
    "one that was edited away is not put back": (["1\tone"], ["1\tone", "2\ttwo"], "mine\n", "mine\n2\ttwo\n"),
    "one that somebody wrote before": ([], ["1\tone"], "1\tone\nmine\n", "1\tone\nmine\n"),
    "after a last line without an end": ([], ["1\tone"], "mine", "mine\n1\tone\n"),
    "into a file that is not UTF-8": ([], ["1\tone"], "\udcff\udcfe\n", "\udcff\udcfe\n1\tone\n"),
}


@dataclass(frozen=True)
class Exchange:
    old: list[str]
    new: list[str]
    edited: str
    expected: str


@pytest.mark.parametrize("case", [Exchange(*one) for one in EXCHANGED.values()], ids=EXCHANGED)
def test_lines_come_and_go_in_a_file_that_somebody_edited(files, hosts, case):
    before = replace(hosts("as it was\n"), lines=tuple(case.old))
    after = replace(hosts("as it shall be\n"), lines=tuple(case.new))
    files.write(before)
    path = Path(before.path)
    path.write_bytes(os.fsencode(case.edited))
    inode = path.stat().st_ino
    seen = files.read(before)

    files.write(after, before)

    assert before.matches(seen)
    assert after.matches(seen) is (case.old == case.new)
    assert os.fsencode(case.expected) == path.read_bytes()
    assert inode == path.stat().st_ino
    assert after.matches(files.read(after))
    assert files.read(after).content is None


def test_a_file_that_was_given_to_us_is_taken_over(files, tmp_path):
    given = File(ns="sandbox/s1", path=str(tmp_path / "hosts"), content="one\n", in_place=True)
    Path(given.path).write_text("somebody's\n")

    seen = files.read(given)
    files.write(given)

    assert ("somebody's\n", "one\n") == (seen.content, text(given))


def test_a_file_in_our_folder_that_we_did_not_write_is_left_alone(files, tmp_path):
    mine = File(ns="sandbox/s1", path=str(tmp_path / "run/sandboxes/s1/hosts"), content="one\n")
    Path(mine.path).parent.mkdir(parents=True)
    Path(mine.path).write_text("somebody's\n")

    seen = files.read(mine)
    files.write(mine)

    assert (None, "somebody's\n") == (seen.content, text(mine))


def test_a_crash_between_note_and_file_leaves_it_ours(files, hosts, monkeypatch):
    files.write(hosts("one\n"))

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("netweft_agent.kernel.files._rewrite", crash)
    original = __import__("netweft_agent.kernel.files", fromlist=["_replace"])._replace
    monkeypatch.setattr(
        "netweft_agent.kernel.files._replace",
        lambda path, content: crash() if path.endswith("/hosts") else original(path, content),
    )
    with pytest.raises(KeyboardInterrupt):
        files.write(hosts("two\n"))
    monkeypatch.undo()

    seen = files.read(hosts("two\n"))
    files.write(hosts("two\n"))

    assert ("one\n", "two\n") == (seen.content, text(hosts("")))


def test_a_file_of_ours_is_removed_with_its_empty_folders(files, tmp_path):
    file = File(ns="sandbox/s1", path=str(tmp_path / "run/sandboxes/s1/hosts"), content="one\n")
    files.write(file)

    files.remove(file)
    files.remove(file)

    assert [] == list((tmp_path / "run").iterdir())


def test_a_file_that_was_given_to_us_is_not_removed(files, tmp_path):
    file = File(ns="sandbox/s1", path=str(tmp_path / "resolv.conf"), content="one\n", in_place=True)
    files.write(file)

    files.remove(file)

    assert "one\n" == text(file)


def test_writing_in_place_keeps_the_inode(files, tmp_path):
    file = File(ns="sandbox/s1", path=str(tmp_path / "resolv.conf"), content="one\n", in_place=True)
    (tmp_path / "resolv.conf").write_text("before\n")
    before = Path(file.path).stat().st_ino

    files.write(file)

    assert before == Path(file.path).stat().st_ino


def test_a_symbolic_link_is_not_followed(files, hosts, tmp_path):
    target = tmp_path / "target"
    target.write_text("precious\n")
    Path(hosts("").path).parent.mkdir(parents=True)
    Path(hosts("").path).symlink_to(target)

    with pytest.raises(errors.KernelError) as raised:
        files.write(hosts("one\n"))

    assert ("precious\n", True) == (target.read_text(), hosts("").path in str(raised.value))


def test_a_callers_path_outside_the_allowed_folders_is_refused(tmp_path):
    files = Files(tmp_path / "run", [tmp_path / "allowed"])
    (tmp_path / "allowed").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "allowed/way-out").symlink_to(tmp_path / "secret")

    for folder in ("secret", "allowed/../secret", "allowed/way-out"):
        with pytest.raises(errors.FailedPrecondition, match="file_roots"):
            files.write(File(ns="sandbox/s1", path=str(tmp_path / folder / "hosts"), content="x\n", in_place=True))
    files.write(File(ns="sandbox/s1", path=str(tmp_path / "allowed/hosts"), content="x\n", in_place=True))

    assert ([], "x\n") == (list((tmp_path / "secret").iterdir()), (tmp_path / "allowed/hosts").read_text())
