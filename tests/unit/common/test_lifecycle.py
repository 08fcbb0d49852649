"""A process's life, in a process of its own where signals are concerned."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from netweft_common import lifecycle

PROLOGUE = """
import asyncio, os, signal, sys
from netweft_common import errors, lifecycle, logs, loops
logs.configure()
"""


def run(body: str, **environ: str) -> subprocess.CompletedProcess[str]:
    script = PROLOGUE + body + "\nsys.exit(lifecycle.run(main, loop_factory=eval(os.environ['LOOP'])))"
    return subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture(params=["None", "loops.fastest()"], ids=["asyncio's loop", "the fastest loop"], autouse=True)
def loop_factory(request, monkeypatch):
    """Every test is run with each event loop that services run on."""
    monkeypatch.setenv("LOOP", request.param)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_process_in_order(name):
    done = run(f"""
async def main(life):
    os.kill(os.getpid(), signal.{name})
    await life.stopped()
    print("cleaned up")
""")

    assert (0, "cleaned up\n") == (done.returncode, done.stdout)


def test_a_second_signal_cancels_main():
    done = run("""
async def main(life):
    os.kill(os.getpid(), signal.SIGTERM)
    await life.stopped()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.Event().wait()
""")

    assert (1, True) == (done.returncode, "stopped at once" in done.stderr)


def test_the_death_of_a_background_task_ends_the_process_after_its_cleanup():
    done = run("""
async def dies():
    raise ValueError("boom")
async def main(life):
    life.spawn(dies(), name="syncer")
    await life.stopped()
    print("cleaned up")
""")

    assert (1, "cleaned up\n") == (done.returncode, done.stdout)
    assert "background task died task=syncer" in done.stderr
    assert "ValueError: boom" in done.stderr


def test_background_tasks_still_run_while_main_cleans_up():
    done = run("""
async def main(life):
    asked = asyncio.Event()
    answered = asyncio.Event()
    async def serves():
        await asked.wait()
        answered.set()
        await asyncio.Event().wait()
    life.spawn(serves(), name="serves")
    life.stop()
    await life.stopped()
    asked.set()
    await answered.wait()
    print("answered")
""")

    assert (0, "answered\n") == (done.returncode, done.stdout)


def test_an_error_for_the_user_is_one_line_without_traceback():
    done = run("""
async def main(life):
    raise errors.InvalidArgument("NO_TARGET", "give one")
""")

    assert (1, 1) == (done.returncode, len(done.stderr.splitlines()))
    assert 'cannot go on reason=NO_TARGET error="give one"' in done.stderr


def test_a_bug_comes_with_its_traceback():
    done = run("""
async def main(life):
    raise KeyError("x")
""")

    assert (1, True, True) == (done.returncode, "Traceback" in done.stderr, "KeyError" in done.stderr)


def test_the_ready_descriptor_gets_the_targets_and_is_closed():
    reader, writer = os.pipe()
    script = (
        PROLOGUE
        + """
async def main(life):
    life.ready(["unix:/x", "127.0.0.1:5"])
sys.exit(lifecycle.run(main))
"""
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], env=os.environ | {"NETWEFT_READY_FD": str(writer)}, pass_fds=[writer]
    ) as process:
        os.close(writer)
        with os.fdopen(reader) as lines:
            text = lines.read()
        assert 0 == process.wait(30)

    assert {"targets": ["unix:/x", "127.0.0.1:5"]} == json.loads(text)


def test_the_service_manager_is_told_of_start_and_end(tmp_path):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(10)
        done = run(
            """
async def main(life):
    life.ready(["unix:/x"])
    life.stop()
""",
            NOTIFY_SOCKET=path,
        )
        states = [manager.recv(1000), manager.recv(1000)]

    assert 0 == done.returncode
    assert [b"READY=1\nSTATUS=serving at unix:/x", b"STOPPING=1"] == states


@pytest.mark.parametrize("path", ["", "relative", "/nowhere/at/all"])
def test_without_a_service_manager_notify_says_so(path):
    assert lifecycle.notify("READY=1", {"NOTIFY_SOCKET": path}) is False


def test_the_signal_module_is_left_as_found():
    before = signal.getsignal(signal.SIGTERM)

    async def main(life: lifecycle.Lifecycle) -> None:
        life.stop()

    assert 0 == lifecycle.run(main)
    assert before is signal.getsignal(signal.SIGTERM)
