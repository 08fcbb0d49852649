"""Where the client looks for services."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import netweft_client
import pytest
from netweft_client import discovery, errors


def test_without_anything_the_packaged_sockets_are_used(tmp_path):
    found = discovery.targets({"NETWEFT_RUN_DIR": str(tmp_path)})

    assert (f"unix:{tmp_path}/controller.sock", f"unix:{tmp_path}/ipam.sock", {}) == (
        found.controller,
        found.ipam,
        found.agents,
    )


def test_a_running_stack_says_where_it_is(tmp_path):
    stack = discovery.Targets(controller="127.0.0.1:1", ipam="127.0.0.1:2", agents={"h1": "127.0.0.1:3"})
    discovery.write(tmp_path, stack)

    assert stack == discovery.targets({"NETWEFT_RUN_DIR": str(tmp_path)})
    assert ["stack.json"] == [path.name for path in tmp_path.iterdir()]


def test_targets_may_stand_below_a_key_of_their_own(tmp_path):
    (tmp_path / "stack.json").write_text('{"pid": 5, "targets": {"controller": "unix:/c"}}')

    assert "unix:/c" == discovery.targets({"NETWEFT_RUN_DIR": str(tmp_path)}).controller


def test_the_environment_wins_over_the_stack(tmp_path):
    discovery.write(tmp_path, discovery.Targets(controller="127.0.0.1:1", ipam="127.0.0.1:2"))
    environ = {"NETWEFT_RUN_DIR": str(tmp_path), "NETWEFT_TARGET": "unix:/c", "NETWEFT_TARGET_IPAM": "unix:/i"}

    found = discovery.targets(environ)

    assert ("unix:/c", "unix:/i") == (found.controller, found.ipam)


@pytest.mark.parametrize("text", ["{", "[]", '{"targets": 3}'], ids=["broken", "list", "number"])
def test_a_stack_file_that_makes_no_sense_is_named(tmp_path, text):
    (tmp_path / "stack.json").write_text(text)

    with pytest.raises(errors.FailedPrecondition, match=r"stack\.json"):
        discovery.targets({"NETWEFT_RUN_DIR": str(tmp_path)})


@pytest.mark.parametrize(
    ("uid", "environ", "expected"),
    [
        (0, {}, "/run/netweft"),
        (0, {"XDG_RUNTIME_DIR": "/run/user/0"}, "/run/netweft"),
        (1000, {"XDG_RUNTIME_DIR": "/run/user/1000"}, "/run/user/1000/netweft"),
        (1000, {}, "/run/netweft"),
        (1000, {"NETWEFT_RUN_DIR": "/x", "XDG_RUNTIME_DIR": "/run/user/1000"}, "/x"),
    ],
    ids=["root", "root-xdg", "user-xdg", "user", "given"],
)
def test_the_run_directory_is_the_users_own(monkeypatch, uid, environ, expected):
    monkeypatch.setattr("os.geteuid", lambda: uid)

    assert Path(expected) == discovery.run_dir(environ)


def test_tls_files_come_from_the_environment():
    environ = {"NETWEFT_TLS_CA": "/ca", "NETWEFT_TLS_CERT": "/cert", "NETWEFT_TLS_KEY": "/key"}

    found = discovery.tls_files(environ)

    assert found is not None
    assert (Path("/ca"), Path("/cert"), Path("/key")) == (found.ca, found.cert, found.key)


def test_values_errors_and_discovery_do_not_load_grpc():
    script = "import sys, netweft_client; netweft_client.discovery.targets(); print('grpc' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)

    assert "False\n" == done.stdout


def test_a_name_that_the_package_lacks_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Klient"):
        _ = netweft_client.Klient


def test_half_of_the_tls_files_is_an_error():
    with pytest.raises(errors.InvalidArgument, match="tls_cert"):
        discovery.tls_files({"NETWEFT_TLS_CA": "/ca"})
