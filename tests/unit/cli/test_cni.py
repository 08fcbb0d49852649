"""`netweft cni install` and `netweft netavark install` write what runtimes look for, never over what is not ours."""

from __future__ import annotations

import json
import subprocess

import pytest
from netweft_cli import main


@pytest.fixture
def install(tmp_path):
    def call(*arguments):
        return main.main(
            ["cni", "install", "--bin-dir", str(tmp_path / "bin"), "--conf-dir", str(tmp_path / "net.d"), *arguments]
        )

    return call


def names(folder):
    return [one.name for one in folder.iterdir()]


def test_the_plugin_runs_where_it_is_put_and_the_network_names_it(install, tmp_path, capsys):
    assert 0 == install("front")

    binary, conf = tmp_path / "bin" / "netweft", tmp_path / "net.d" / "10-front.conflist"
    assert [str(binary), str(conf)] == capsys.readouterr().out.split()
    assert (0o755, 0o644) == (binary.stat().st_mode & 0o777, conf.stat().st_mode & 0o777)
    assert {
        "cniVersion": "1.0.0",
        "name": "front",
        "plugins": [
            {
                "type": "netweft",
                "network": "front",
                "capabilities": {
                    "portMappings": True,
                    "ips": True,
                    "mac": True,
                    "bandwidth": True,
                    "aliases": True,
                    "dns": True,
                },
            }
        ],
    } == json.loads(conf.read_text())
    done = subprocess.run([binary], input=b"{}", env={"CNI_COMMAND": "VERSION"}, capture_output=True, check=True)
    assert "1.1.0" in json.loads(done.stdout)["supportedVersions"]


def test_what_is_said_goes_into_the_network(install, tmp_path):
    socket = tmp_path / "cni.sock"

    assert 0 == install(
        *("front", "--name", "pods", "--priority", "5", "--cni-version", "1.1.0", "--chain", "tuning"),
        *("--socket", str(socket), "--state-dir", str(tmp_path)),
    )

    found = json.loads((tmp_path / "net.d" / "05-pods.conflist").read_text())
    first, second = found["plugins"]
    assert ("1.1.0", "pods", {"type": "tuning"}) == (found["cniVersion"], found["name"], second)
    assert (str(socket), str(tmp_path)) == (first["socket"], first["stateDir"])


def test_installing_again_replaces_ours_and_leaves_nothing_else(install, tmp_path):
    for network in ("front", "back"):
        assert 0 == install(network, "--name", "pods")

    assert ["netweft"] == names(tmp_path / "bin")
    assert ["10-pods.conflist"] == names(tmp_path / "net.d")
    assert "back" == json.loads((tmp_path / "net.d" / "10-pods.conflist").read_text())["plugins"][0]["network"]


@pytest.mark.parametrize("place", ["bin/netweft", "net.d/10-front.conflist"])
def test_what_is_not_ours_stays_unless_forced(install, tmp_path, place, capsys):
    foreign = tmp_path / place
    foreign.parent.mkdir()
    foreign.write_text("theirs")

    refused = install("front")
    left = foreign.read_text()
    forced = install("front", "--force")

    assert "not netweft's" in capsys.readouterr().err
    assert (True, "theirs", 0) == (refused != 0, left, forced)
    assert "theirs" != foreign.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["../x"], "--name"), (["front", "--name", "a b"], "--name"), (["front", "--cni-version", "2.0.0"], "1.1.0")],
)
def test_what_cannot_be_is_refused_before_anything_is_written(install, tmp_path, arguments, words, capsys):
    assert 2 == install(*arguments)
    assert words in capsys.readouterr().err
    assert [] == names(tmp_path)


def test_a_folder_that_cannot_be_written_is_told(install, tmp_path, capsys):
    (tmp_path / "bin").write_text("a file")

    assert 0 != install("front")
    assert "cannot be written" in capsys.readouterr().err


def test_netavarks_plugin_is_the_same_file_and_runs_where_it_is_put(tmp_path, capsys):
    for _ in range(2):
        assert 0 == main.main(["netavark", "install", "--plugin-dir", str(tmp_path / "netavark")])

    path = tmp_path / "netavark" / "netweft"
    assert [str(path)] * 2 == capsys.readouterr().out.split()
    done = subprocess.run([path, "info"], env={}, capture_output=True, check=True)
    assert "1.0.0" == json.loads(done.stdout)["api_version"]


def test_a_driver_of_somebody_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "netweft").write_text("theirs")

    assert 0 != main.main(["netavark", "install", "--plugin-dir", str(tmp_path)])

    assert "theirs" == (tmp_path / "netweft").read_text()
    assert "--force" in capsys.readouterr().err
