"""Fault points do nothing unless a process is told of a file, and then what the file says, once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from netweft_common import faults
from netweft_common.faults import Point

PROGRAM = """
from netweft_common import faults
faults.arm()
faults.reach(faults.Point.CHANGE_STAGED)
print("staged", flush=True)
faults.reach(faults.Point.CHANGE_KEPT)
print("kept", flush=True)
"""


def run(path):
    environ = os.environ | {faults.VARIABLE: str(path)}
    return subprocess.Popen([sys.executable, "-c", PROGRAM], env=environ, stdout=subprocess.PIPE, text=True)


def test_without_the_variable_nothing_is_looked_up():
    before = faults.reach

    faults.arm({"PATH": "/bin"})

    assert faults.reach is before is faults._nothing


@pytest.mark.parametrize("text", [None, f"{Point.ATTACH_LEASED} kill"], ids=["no file", "another point"])
def test_a_point_that_the_file_does_not_name_goes_by(tmp_path, text):
    file = tmp_path / "fault"
    if text is not None:
        file.write_text(text)

    with run(file) as process:
        said = process.stdout.read()

    assert (0, "staged\nkept\n") == (process.returncode, said.partition("staged")[1] + said.partition("staged")[2])
    assert file.exists() is (text is not None)


def test_a_process_is_killed_at_the_point_and_the_file_is_gone(tmp_path):
    file = tmp_path / "fault"
    file.write_text(f"{Point.CHANGE_KEPT} kill\n")

    with run(file) as process:
        said = process.stdout.read()

    assert -signal.SIGKILL == process.returncode
    assert said.endswith("staged\n")
    assert not file.exists()


def test_a_process_is_stopped_at_the_point_and_goes_on_when_told(tmp_path):
    file = tmp_path / "fault"
    file.write_text(f"{Point.CHANGE_KEPT} stop\n")

    with run(file) as process:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        stopped_by = os.WSTOPSIG(status) if os.WIFSTOPPED(status) else None
        process.send_signal(signal.SIGCONT)
        said = process.stdout.read()

    assert signal.SIGSTOP == stopped_by
    assert said.endswith("staged\nkept\n")
    assert not file.exists()
