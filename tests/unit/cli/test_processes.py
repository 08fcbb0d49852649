from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from netweft_cli import processes
from netweft_common import errors

READY = "import sys, os, signal; os.write(int(sys.argv[sys.argv.index('--ready-fd') + 1]), b'x'); signal.pause()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + READY


@pytest.fixture
def table(tmp_path) -> Iterator[processes.Table]:
    found = processes.Table(tmp_path)
    yield found
    for pid in found.strays():
        processes.end(pid, grace_s=0, kill=True)


def spec(code: str = READY, name: str = "p") -> processes.Spec:
    return processes.Spec(name=name, command=(sys.executable, "-c", code))


def test_a_process_is_up_when_it_says_so(table):
    [process] = table.start([spec()], timeout_s=20)

    assert process.alive
    assert process == table.find("p")
    assert [process.pid] == table.strays()


def test_a_caller_with_many_descriptors_can_start_and_end_one(table):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] < 1300:
        pytest.skip("needs more than 1,300 descriptors")
    with contextlib.ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 1300), limits[1]))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        for _ in range(1100):  # more than select(2) takes
            stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        [process] = table.start([spec()], timeout_s=20)

        assert processes.end(process.pid, grace_s=20)
    assert not process.alive


def test_starting_again_starts_nothing(table):
    table.start([spec()], timeout_s=20)

    assert table.start([spec()], timeout_s=20) == []


def test_processes_of_a_group_start_side_by_side(table):
    started = table.start([spec(name="a"), spec(name="b")], timeout_s=20)

    assert [process.name for process in started] == ["a", "b"]


def test_a_process_that_dies_while_it_starts_is_reported_with_its_last_words(table):
    with pytest.raises(errors.Unavailable, match=r"(?s)p ended while it started.*the disk is full"):
        table.start([spec("raise SystemExit('the disk is full')")], timeout_s=20)

    assert table.find("p") is None


def test_a_process_that_never_gets_ready_is_reported(table):
    with pytest.raises(errors.Unavailable, match="did not become ready in time"):
        table.start([spec("import signal; signal.pause()")], timeout_s=0.2)


def test_a_foreign_program_is_up_when_its_probe_says_so(table):
    answers = iter([False, False, True])
    foreign = processes.Spec(name="p", command=("sleep", "60"), probe=lambda: next(answers))

    [process] = table.start([foreign], timeout_s=20)

    assert process.alive


def test_stopping_ends_a_process_and_stopping_again_is_well(table):
    [process] = table.start([spec()], timeout_s=20)

    assert table.stop("p", grace_s=20)
    assert not process.alive
    assert table.stop("p", grace_s=20)


def test_a_process_that_ignores_the_request_is_killed(table):
    [process] = table.start([spec(STUBBORN)], timeout_s=20)

    assert not table.stop("p", grace_s=0.05)
    assert not process.alive


def test_a_pid_that_somebody_else_has_now_is_never_signalled(table, tmp_path):
    [process] = table.start([spec()], timeout_s=20)
    recycled = dataclasses.replace(process, start_ticks=process.start_ticks - 1)
    (tmp_path / "pid" / "p.json").write_text(json.dumps(dataclasses.asdict(recycled)))

    assert table.stop("p", grace_s=0)
    assert process.alive


def test_a_pid_of_another_boot_is_nobody(table):
    [process] = table.start([spec()], timeout_s=20)

    assert not dataclasses.replace(process, boot_id="another").alive


def test_a_process_that_only_waits_to_be_reaped_is_gone(table, tmp_path):
    [process] = table.start([spec()], timeout_s=20)

    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    assert not process.alive
    assert table.strays() == []


def test_what_a_dead_starter_left_without_a_pid_file_is_found_by_its_mark(table, tmp_path):
    orphan = subprocess.Popen(["sleep", "60"], env={processes.MARK: str(tmp_path)})

    assert [orphan.pid] == table.strays()
    processes.end(orphan.pid, grace_s=5)
    orphan.wait(timeout=15)


def test_a_broken_pid_file_is_no_process(table, tmp_path):
    (tmp_path / "pid").mkdir()
    (tmp_path / "pid" / "p.json").write_text("{")

    assert table.find("p") is None
