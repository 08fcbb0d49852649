"""`netweft docker install` writes what Docker looks for, and never over what is not ours."""

from __future__ import annotations

import json

import pytest
from netweft_cli import main


@pytest.fixture
def install(tmp_path):
    def call(*arguments):
        return main.main(["docker", "install", "--spec-dir", str(tmp_path / "plugins"), *arguments])

    return call


def test_a_spec_says_where_the_socket_is(install, tmp_path, capsys):
    for _ in range(2):
        assert 0 == install("--socket", "/run/netweft/docker/netweft.sock")

    path = tmp_path / "plugins" / "netweft.spec"
    assert [str(path)] * 2 == capsys.readouterr().out.split()
    assert "unix:///run/netweft/docker/netweft.sock\n" == path.read_text()
    assert [path] == list(path.parent.iterdir())


def test_json_says_the_name_too(install, tmp_path):
    assert 0 == install("--json", "--name", "nets")

    assert {"Name": "nets", "Addr": "unix:///run/docker/plugins/netweft.sock"} == json.loads(
        (tmp_path / "plugins" / "nets.json").read_text()
    )


@pytest.mark.parametrize("name", ["", "../x", "-x", "X", "x" * 64])
def test_a_name_that_docker_could_not_use_is_refused(install, tmp_path, name, capsys):
    assert 2 == install("--name", name)

    assert "--name" in capsys.readouterr().err
    assert not (tmp_path / "plugins").exists()


def test_what_is_not_ours_stays_unless_forced(install, tmp_path, capsys):
    foreign = tmp_path / "plugins" / "netweft.spec"
    foreign.parent.mkdir()
    foreign.write_text("tcp://192.0.2.1:80")

    assert 0 != install()
    assert "--force" in capsys.readouterr().err
    assert 0 == install("--force")
    assert foreign.read_text().startswith("unix://")
