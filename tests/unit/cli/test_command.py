from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import netweft_client
import pytest
from netweft_cli import main, output

NETWEFT = Path(sys.executable).parent / "netweft"


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path) -> None:
    """No command of these tests may find a stack of the machine."""
    monkeypatch.setenv("NETWEFT_RUN_DIR", str(tmp_path))
    monkeypatch.delenv("NETWEFT_TARGET", raising=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"], ["network", "create", "--help"], ["endpoint", "join", "-h"], ["sandbox", "--help"],
        ["sandbox", "update", "-h"], ["sandbox", "refresh", "-h"], ["sandbox", "stats", "-h"],
        ["attach", "--help"], ["plan", "--help"], ["host", "rm", "--help"], ["demo", "--help"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_level_explains_itself(arguments, capsys):
    assert main.main(arguments) == 0
    assert "Usage: netweft" in capsys.readouterr().out


def test_the_exit_codes_are_in_the_help(capsys):
    main.main(["--help"])

    assert "3 not found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["network", "nonsense"], "nonsense"),
        (["network", "create"], "Missing argument"),
        (["network", "create", "n", "--nonsense"], "--nonsense"),
        (["network", "ls", "-o", "xml"], "xml"),
        (["network", "create", "n", "--subnet", "10.0.0.1/8"], "host bits"),
        (["attach", "n", "c", "d", "--ip", "10.0.0.1"], "for one container"),
        (["attach", "n", "c", "--netns", "/x", "--pid", "7"], "give one"),
        (["network", "ls", "--target", "nonsense"], "nonsense"),
        (["host", "join", "127.0.0.1:1", "--token-file", "/nowhere/token"], "/nowhere/token cannot be read"),
        (["host", "join", "127.0.0.1:1", "--token-file", "/dev/null"], "the token is not whole"),
        (["host", "leave", "--state-dir", "/nowhere"], "/nowhere/host-id cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_malformed_command_is_one_line_and_exit_code_2(arguments, words, capsys):
    code = main.main(arguments)

    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("netweft: ")
    assert words in err


def test_what_a_refresh_repaired_is_shown_as_the_commands_that_did_it(monkeypatch, capsys):
    steps = (
        netweft_client.PlanStep(command="ip route add default", namespace="sandbox/s1", owner="", inverse=""),
        netweft_client.PlanStep(command="ip link set nwv-1 up", namespace="", owner="", inverse=""),
    )
    monkeypatch.setattr(netweft_client.Client, "refresh_sandbox", lambda _, name: {"c1": steps}[name])

    assert main.main(["sandbox", "refresh", "c1", "--target", "unix:/nowhere"]) == 0

    assert capsys.readouterr().out.splitlines() == [
        "# in sandbox/s1", "  ip route add default", "# in the host", "  ip link set nwv-1 up"
    ]  # fmt: skip


def test_nobody_there_is_exit_code_7_with_advice(capsys):
    assert main.main(["network", "ls", "--timeout", "0.2"]) == 7
    assert "netweft up" in capsys.readouterr().err


def test_no_stack_is_exit_code_3(capsys):
    assert main.main(["status"]) == 3
    assert "NO_STACK" in capsys.readouterr().err


def test_stopping_where_nothing_runs_is_well(capsys):
    assert main.main(["down"]) == 0


def test_versions_are_data_too(capsys):
    main.main(["version", "-o", "json"])

    assert json.loads(capsys.readouterr().out)["netweft-cli"] == "0.1.0"


def test_help_needs_neither_grpc_nor_rich_nor_yaml():
    code = "import sys; from netweft_cli import main; main.main(['--help']); print([m for m in sys.modules])"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout

    assert "'typer'" in loaded
    for name in ("grpc", "google", "rich", "yaml", "netweft_client", "asyncio"):
        assert f"'{name}'" not in loaded


def test_help_is_there_at_once():
    """What is imported is what help takes: each of these would double it, and so would some hundred small modules."""
    told = subprocess.run(
        [sys.executable, "-X", "importtime", NETWEFT, "--help"], capture_output=True, text=True, check=True, timeout=60
    )

    assert "Usage: netweft" in told.stdout
    imported = [line.rpartition("|")[2].strip() for line in told.stderr.splitlines() if line.startswith("import time:")]
    heavy = {"grpc", "google", "netweft", "netweft_client", "asyncio", "rich", "yaml", "pyroute2", "textual", "redis"}
    assert heavy & {name.partition(".")[0] for name in imported} == set()
    assert len(imported) < 300


def test_a_reader_that_goes_away_is_no_failure():
    shell = f"{NETWEFT} --help | head -n 1; echo ${{PIPESTATUS[0]}}"

    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_offered(shell):
    environ = {"_NETWEFT_COMPLETE": f"source_{shell}", "PATH": "/usr/bin:/bin"}

    done = subprocess.run([NETWEFT], env=environ, capture_output=True, text=True, check=False, timeout=60)

    assert "netweft" in done.stdout


class TestOutput:
    def test_a_table_is_aligned_and_never_cut(self, capsys):
        output.write_table(["A", "LONG"], [["x" * 150, "y"], ["", "z"]])

        assert capsys.readouterr().out == f"{'A':150}   LONG\n{'x' * 150}   y\n{'':150}   z\n"

    def test_wide_columns_are_shown_when_asked_for(self, capsys):
        columns = [
            output.Column(title="N", value=str),
            output.Column(title="W", value=lambda item: item * 2, wide=True),
        ]

        output.show(["a"], columns, form=output.Format.TABLE, name=str)
        output.show(["a"], columns, form=output.Format.WIDE, name=str)

        assert capsys.readouterr().out == "N\na\nN   W\na   aa\n"
