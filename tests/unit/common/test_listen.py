"""Addresses to listen at, and what a socket's path may hold."""

from __future__ import annotations

import socket

import pytest
from netweft_common import errors, listen


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("unix:/run/x.sock", listen.UnixAddress(path="/run/x.sock")),
        ("unix:///run/x.sock", listen.UnixAddress(path="/run/x.sock")),
        ("127.0.0.1:80", listen.TcpAddress(host="127.0.0.1", port=80)),
        ("[::1]:0", listen.TcpAddress(host="::1", port=0)),
        ("host.example:65535", listen.TcpAddress(host="host.example", port=65535)),
    ],
)
def test_a_target_is_an_address(target, expected):
    assert expected == listen.parse(target)


@pytest.mark.parametrize("target", ["", "unix:x.sock", "host", "host:", "host:70000", "::1:80", "http://h:80", "a:b:1"])
def test_a_malformed_target_is_refused(target):
    with pytest.raises(errors.InvalidArgument) as caught:
        listen.parse(target)

    assert "TARGET_MALFORMED" == caught.value.reason


def test_a_path_longer_than_sun_path_is_refused():
    with pytest.raises(errors.InvalidArgument) as caught:
        listen.parse("unix:/" + "x" * 107)

    assert "SOCKET_PATH_TOO_LONG" == caught.value.reason


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("localhost", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "example.com", "127.0.0.1.example.com")],
)
def test_loopback_is_what_only_this_machine_reaches(host, expected):
    assert expected is listen.TcpAddress(host=host, port=1).is_loopback


@pytest.mark.parametrize("target", ["unix:/run/x.sock", "127.0.0.1:80", "[::1]:80"])
def test_an_address_prints_as_its_target(target):
    assert target == listen.parse(target).target


def test_the_directory_of_a_socket_is_made_for_owner_and_group_only(tmp_path):
    listen.prepare_socket(listen.UnixAddress(path=str(tmp_path / "new" / "x.sock")))

    assert 0o750 == (tmp_path / "new").stat().st_mode & 0o777


def test_the_socket_of_a_dead_process_is_removed(tmp_path):
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()

    listen.prepare_socket(listen.UnixAddress(path=str(path)))

    assert not path.exists()


def test_the_socket_of_a_living_process_is_refused_and_kept(tmp_path):
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(path))
        living.listen()

        with pytest.raises(errors.FailedPrecondition) as caught:
            listen.prepare_socket(listen.UnixAddress(path=str(path)))

    assert ("SOCKET_IN_USE", True) == (caught.value.reason, path.exists())


def test_a_file_at_the_path_is_refused_and_kept(tmp_path):
    path = tmp_path / "x.sock"
    path.write_text("precious")

    with pytest.raises(errors.FailedPrecondition) as caught:
        listen.prepare_socket(listen.UnixAddress(path=str(path)))

    assert ("SOCKET_PATH_TAKEN", "precious") == (caught.value.reason, path.read_text())
