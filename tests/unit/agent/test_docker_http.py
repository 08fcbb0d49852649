"""The socket of the Docker plugin, asked by whoever there may be."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import socket
import stat
import struct

import pytest
from netweft_agent.frontends import docker_http, sockets

from tests.unit.agent.docker_world import World

pytestmark = pytest.mark.anyio

ACTIVATE = b"POST /Plugin.Activate HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
OK = b"HTTP/1.1 200 \r\n"


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def path(tmp_path):
    async with docker_http.serve(tmp_path / "netweft.sock", World(tmp_path).service):
        yield tmp_path / "netweft.sock"


async def ask(path, *parts):
    """Send parts, and return all that comes back until the other side ends."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    with contextlib.closing(writer):
        for part in parts:
            writer.write(part)
            await writer.drain()
        writer.write_eof()
        return await reader.read()


class Unix(http.client.HTTPConnection):
    """A client that is none of ours."""

    def __init__(self, path):
        super().__init__("docker")
        self._path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


async def test_a_client_asks_again_and_again_over_one_connection(path):
    def converse():
        with contextlib.closing(Unix(path)) as client:
            answers = []
            for target in ("/Plugin.Activate", "/nothing", "/NetworkDriver.GetCapabilities"):
                client.request("POST", target, body=b"")
                answer = client.getresponse()
                answers.append((answer.status, json.loads(answer.read()), answer.getheader("Content-Type")))
            return answers

    first, second, third = await asyncio.to_thread(converse)

    assert (200, {"Implements": ["NetworkDriver", "IpamDriver"]}, "application/vnd.docker.plugins.v1.2+json") == first
    assert 404 == second[0]
    assert "local" == third[1]["Scope"]


async def test_a_request_may_come_in_pieces_in_chunks_and_behind_another(path):
    pieces = [ACTIVATE[at : at + 1] for at in range(len(ACTIVATE))]
    chunked = b"POST /Plugin.Activate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"

    assert (await ask(path, *pieces)).startswith(OK)
    assert (await ask(path, chunked)).startswith(OK)
    assert 3 == (await ask(path, ACTIVATE + chunked + ACTIVATE)).count(OK)


async def test_who_waits_to_be_told_to_go_on_is_told(path):
    reader, writer = await asyncio.open_unix_connection(str(path))
    with contextlib.closing(writer):
        writer.write(b"POST /Plugin.Activate HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(b"{}")
        assert (await reader.readuntil(b"\r\n")).startswith(OK)


REFUSED = {
    "another method": (b"GET /Plugin.Activate HTTP/1.1\r\nHost: x\r\n\r\n", b"405"),
    "no HTTP": (b"\x16\x03\x01" + os.urandom(64) + b"\r\n\r\n", b"400"),
    "no host": (b"POST / HTTP/1.1\r\n\r\n", b"400"),
    "two lengths": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
    "a length below zero": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"400"),
    "endless headers": (b"POST / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000, b"431"),
    "too much": (
        b"POST /Plugin.Activate HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n" + b" " * 2_000_000,
        b"413",
    ),
}


@pytest.mark.parametrize(("sent", "status"), REFUSED.values(), ids=REFUSED)
async def test_what_is_no_request_is_refused_with_a_reason(path, sent, status):
    answer = await ask(path, sent)

    assert answer.startswith(b"HTTP/1.1 " + status)
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["Err"]


CUT = {
    "nothing": b"",
    "half a line": b"POST /Plug",
    "half a body": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{",
}


@pytest.mark.parametrize("sent", CUT.values(), ids=CUT)
async def test_who_goes_before_he_has_said_all_harms_nobody(path, sent):
    await ask(path, sent)

    assert (await ask(path, ACTIVATE)).startswith(OK)


async def test_who_says_nothing_more_is_not_waited_for(path, monkeypatch):
    monkeypatch.setattr(docker_http, "REQUEST_S", 0.05)
    reader, writer = await asyncio.open_unix_connection(str(path))
    with contextlib.closing(writer):
        writer.write(ACTIVATE[:20])
        assert b"" == await reader.read()


async def test_who_does_not_read_keeps_nobody_else_waiting(path):
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.settimeout(0)
        deaf.connect(str(path))
        with contextlib.suppress(BlockingIOError):
            while True:
                deaf.send(ACTIVATE * 100)
                await asyncio.sleep(0)

        assert (await ask(path, ACTIVATE)).startswith(OK)


async def test_the_sockets_mode_lets_owner_and_group_in(path):
    assert 0o660 == stat.S_IMODE(path.stat().st_mode)


async def test_others_than_root_are_refused(path, monkeypatch):
    class Somebody:
        size = struct.calcsize("=iII")

        @staticmethod
        def unpack(_):
            return 1, 65534, 65534

    monkeypatch.setattr(sockets, "_CREDENTIALS", Somebody)

    answer = await ask(path, ACTIVATE)

    assert answer.startswith(b"HTTP/1.1 403")
    assert b"only root" in answer


async def test_a_socket_that_vanishes_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(docker_http, "VANISHED_S", 0.01)
    path = tmp_path / "plugins" / "netweft.sock"
    serving = asyncio.create_task(docker_http.serve_always(path, World(tmp_path).service))
    try:
        await _until(path.is_socket)
        path.unlink()
        await _until(path.is_socket)
        assert (await ask(path, ACTIVATE)).startswith(OK)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    assert not path.exists()


async def test_without_a_place_for_the_socket_it_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(docker_http, "NO_PLACE_S", 0.01)
    place = tmp_path / "plugins"
    place.write_text("no folder")
    serving = asyncio.create_task(docker_http.serve_always(place / "netweft.sock", World(tmp_path).service))
    try:
        await asyncio.sleep(0.05)
        place.unlink()
        await _until((place / "netweft.sock").is_socket)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def _until(condition):
    async with asyncio.timeout(5):
        while not condition():  # a file has no event
            await asyncio.sleep(0.005)
