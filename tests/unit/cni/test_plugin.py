"""The plugin as a runtime runs it: over the agent's socket, and alone."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from netweft_agent.frontends import cni, cni_config, cni_pending, cni_socket, sockets
from netweft_cni import plugin

pytestmark = pytest.mark.anyio

PLUGIN = Path(plugin.__file__)
CONFIG = {"cniVersion": "1.0.0", "name": "front", "type": "netweft"}
ADD = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"}


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Service:
    """Answers as told, and remembers what was asked."""

    def __init__(self, code=0, text=b'{"said": "ADD"}'):
        self.code, self.text = code, text
        self.asked: list[tuple[dict[str, str], bytes, int | None]] = []

    async def answer(self, frame, netns):
        inode = None if netns is None else os.fstat(netns).st_ino
        self.asked.append((*cni.unpack(frame), inode))
        return self.code, self.text


@pytest.fixture
async def service(tmp_path, anyio_backend):
    made = Service()
    async with cni_socket.serve(tmp_path / "cni.sock", made):
        yield made


@pytest.fixture
def run(tmp_path):
    async def call(config=CONFIG, *, env=(), path=tmp_path / "cni.sock", name="plugin.py", **changed):
        given = {**ADD, "CNI_NETNS": "/proc/self/ns/net", **changed}
        environ = {
            **{key: value for key, value in given.items() if value is not None},
            "NETWEFT_CNI_SOCKET": str(path),
            "NETWEFT_CNI_STATE_DIR": str(tmp_path / "state"),
            **dict(env),
        }
        text = config if isinstance(config, bytes) else json.dumps(config).encode()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(PLUGIN.with_name(name))),
            env={key: value for key, value in environ.items() if value is not None},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate(text)
        assert err == b"", err
        return process.returncode, json.loads(out) if out else None

    return call


async def test_all_goes_to_the_agent_as_it_is_and_its_answer_is_printed(service, run):
    config = {**CONFIG, "prevResult": {"ips": []}, "text": "ä" * 70_000}

    answer = await run(config, CNI_ARGS="K8S_POD_NAME=ä", CNI_PATH="/opt/cni/bin")

    ((variables, sent, inode),) = service.asked
    assert (0, {"said": "ADD"}) == answer
    assert config == json.loads(sent)
    assert {**ADD, "CNI_ARGS": "K8S_POD_NAME=ä", "NAME": "plugin.py"}.items() <= variables.items()
    assert os.stat("/proc/self/ns/net").st_ino == inode  # noqa: PTH116  # not awaited


async def test_the_agents_refusal_is_the_plugins(service, run):
    service.code, service.text = 1, b'{"code": 7}'

    assert (1, {"code": 7}) == await run()


async def test_the_socket_is_that_of_the_configuration_when_nothing_else_is_said(service, run, tmp_path):
    config = {**CONFIG, "socket": str(tmp_path / "cni.sock")}
    in_ipam = {**CONFIG, "ipam": {"type": "netweft", "socket": str(tmp_path / "cni.sock")}}

    for one in (config, in_ipam):
        assert 0 == (await run(one, env={"NETWEFT_CNI_SOCKET": None}))[0]


async def test_a_del_of_a_container_that_has_gone_is_handed_over_without_its_namespace(service, run):
    for gone in ("/run/netns/never-made", "", None):
        assert 0 == (await run(CNI_COMMAND="DEL", CNI_NETNS=gone))[0]

    assert [None] * 3 == [inode for *_, inode in service.asked]


async def test_an_agent_that_dies_before_it_answers_is_worth_another_try(service, run):
    service.text = b""

    async def dies(frame, netns):
        raise OSError

    service.answer = dies

    assert (1, 11) == await coded(run())


async def coded(answer):
    code, said = await answer
    return code, said["code"]


WITHOUT_AGENT = {
    "ADD": ({}, {}, 11),
    "CHECK": ({"CNI_COMMAND": "CHECK"}, {}, 11),
    "GC": ({"CNI_COMMAND": "GC"}, {"cniVersion": "1.1.0"}, 11),
    "STATUS": ({"CNI_COMMAND": "STATUS"}, {"cniVersion": "1.1.0"}, 50),
    "a version": ({}, {"cniVersion": "2.0.0"}, 1),
    "a DEL of another version": ({"CNI_COMMAND": "DEL"}, {"cniVersion": "0.1.0"}, 1),
}


@pytest.mark.parametrize(("variables", "config", "expected"), WITHOUT_AGENT.values(), ids=WITHOUT_AGENT)
async def test_without_an_agent_errors_have_their_codes(run, variables, config, expected):
    assert (1, expected) == await coded(run({**CONFIG, **config}, **variables))


ENVIRONMENTS = {
    "no command": ({"CNI_COMMAND": None}, "CNI_COMMAND"),
    "an unknown command": ({"CNI_COMMAND": "MAKE"}, "CNI_COMMAND"),
    "no container": ({"CNI_CONTAINERID": None}, "CNI_CONTAINERID"),
    "no interface": ({"CNI_IFNAME": ""}, "CNI_IFNAME"),
    "no namespace": ({"CNI_NETNS": None}, "CNI_NETNS"),
    "a namespace that is not there": ({"CNI_NETNS": "/run/netns/never-made"}, "CNI_NETNS"),
    "three at once": (
        {"CNI_NETNS": "", "CNI_IFNAME": "", "CNI_CONTAINERID": ""},
        "CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS",
    ),
}


@pytest.mark.parametrize(("variables", "named"), ENVIRONMENTS.values(), ids=ENVIRONMENTS)
async def test_a_variable_that_is_missing_is_named_agent_or_not(run, variables, named):
    code, said = await run(**variables)

    assert (1, 4) == (code, said["code"])
    assert named in said["msg"]


@pytest.mark.parametrize("config", [b"", b"{", b"[]", b"\xff", b"null", b'"x"', b"[" * 50_000, b'{"cniVersion": []}'])
async def test_without_an_agent_what_cannot_be_read_is_an_error_and_no_traceback(run, config):
    code, said = await coded(run(config))

    assert (1, True) == (code, said in {1, 6})


async def test_an_endless_configuration_is_refused(run):
    assert (1, 5) == await coded(run(b" " * (plugin.MOST_BYTES + 1)))


VERSIONS = {
    "an old one": (b'{"cniVersion": "0.4.0"}', "0.4.0"),
    "the newest": (b'{"cniVersion": "1.1.0"}', "1.1.0"),
    "one that is not there": (b'{"cniVersion": "9.0.0"}', "1.1.0"),
    "nothing": (b"", "1.1.0"),
    "rubbish": (b"{", "1.1.0"),
}


@pytest.mark.parametrize(("config", "expected"), VERSIONS.values(), ids=VERSIONS)
async def test_version_is_answered_without_an_agent_and_without_variables(run, config, expected):
    variables = dict.fromkeys((*ADD, "CNI_NETNS"))

    answer = await run(config, **{**variables, "CNI_COMMAND": "VERSION"})

    assert (0, {"cniVersion": expected, "supportedVersions": list(cni_config.VERSIONS)}) == answer


async def test_a_del_without_an_agent_is_kept_where_the_agent_looks_for_it(run, tmp_path):
    first = await run(CNI_COMMAND="DEL", CNI_NETNS="")
    second = await run(CNI_COMMAND="DEL", CNI_CONTAINERID="c2")

    kept = [cni.unpack(frame)[0]["CNI_CONTAINERID"] for _, frame in cni_pending.Pending(tmp_path / "state")]
    assert ((0, None), (0, None), ["c1", "c2"]) == (first, second, kept)
    assert 0o700 == (tmp_path / "state" / "cni-pending").stat().st_mode & 0o777


async def test_a_del_that_cannot_be_kept_has_to_come_again(run, tmp_path):
    (tmp_path / "state").write_text("in the way")

    assert (1, 11) == await coded(run(CNI_COMMAND="DEL"))


async def test_what_the_plugin_and_the_agent_have_in_common_is_the_same():
    assert (cni_config.VERSIONS, cni.MAGIC, cni_pending.FOLDER) == (plugin.VERSIONS, plugin.MAGIC, plugin.PENDING)
    assert {*cni_config.Verb, "VERSION"} == plugin.NEEDED.keys()
    assert plugin.MOST_BYTES < cni_socket.MOST_BYTES


# --- netavark ---


@pytest.fixture
def netavark(tmp_path):
    async def call(*arguments, config=None, path=tmp_path / "cni.sock"):
        options = {"netweft.socket": str(path), "netweft.stateDir": str(tmp_path / "state")}
        whole = {"options": options} if arguments[:1] == ("create",) else {"network": {"options": options}}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(PLUGIN), *arguments),
            env={},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate(json.dumps(whole).encode() if config is None else config)
        assert err == b"", err
        return process.returncode, json.loads(out) if out else None

    return call


@pytest.mark.parametrize(
    ("arguments", "inside"),
    [(("create",), False), (("setup", "/proc/self/ns/net"), True), (("teardown", "/run/netns/never-made"), False)],
)
async def test_netavarks_calls_go_to_the_socket_that_the_network_names(service, netavark, arguments, inside):
    code, said = await netavark(*arguments)

    ((variables, _, inode),) = service.asked
    assert (0, {"said": "ADD"}) == (code, said)
    expected = {"NETAVARK_COMMAND": arguments[0], **({"NETAVARK_NETNS": arguments[1]} if arguments[1:] else {})}
    assert expected == variables
    assert (os.stat("/proc/self/ns/net").st_ino if inside else None) == inode  # noqa: PTH116  # not awaited


async def test_netavark_is_told_of_versions_without_an_agent(netavark):
    assert (0, {"version": version("netweft-cni"), "api_version": "1.0.0"}) == await netavark("info", config=b"")


WRONG_CALLS = {
    "an unknown verb": (("update",), None, "usage"),
    "no namespace": (("setup",), None, "usage"),
    "too much": (("create", "x"), None, "usage"),
    "a namespace that is not there": (("setup", "/run/netns/never-made"), None, "cannot be opened"),
    "too long": (("create",), b" " * (plugin.MOST_BYTES + 1), "longer than"),
    "no agent": (("create",), None, "is netweft-agent running"),
    "no agent, rubbish": (("teardown", "/x"), b"{", "cannot be kept"),
}


@pytest.mark.parametrize(("arguments", "config", "said"), WRONG_CALLS.values(), ids=WRONG_CALLS)
async def test_what_is_wrong_is_told_in_netavarks_words(netavark, arguments, config, said):
    code, answer = await netavark(*arguments, config=config)

    assert (1, {"error"}) == (code, answer.keys())
    assert said in answer["error"]


async def test_a_teardown_without_an_agent_is_kept_where_the_agent_looks_for_it(netavark, tmp_path):
    answer = await netavark("teardown", "/run/netns/never-made")

    kept = [cni.unpack(frame)[0]["NETAVARK_COMMAND"] for _, frame in cni_pending.Pending(tmp_path / "state")]
    assert ((0, None), ["teardown"]) == (answer, kept)


LOADED = "import sys; exec(open(sys.argv[1]).read(), {'__name__': 'x'}); print(*sys.modules)"


def test_the_plugin_imports_nothing_that_takes_time():
    command = [sys.executable, "-I", "-S", "-c", LOADED, str(PLUGIN)]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())

    assert "posix" in loaded
    assert set() == loaded & {"json", "re", "socket", "enum", "typing", "argparse", "pathlib"}


def test_the_plugin_is_an_executable_of_pythons_own_library():
    assert "#!/usr/bin/python3 -IS" == PLUGIN.read_text().partition("\n")[0]
    assert PLUGIN.stat().st_mode & 0o111


# --- the socket ---


async def ask(path, sent, *, half=False):
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(0)
        await loop.sock_connect(client, str(path))
        await loop.sock_sendall(client, sent)
        if half:
            client.shutdown(socket.SHUT_WR)
        return await loop.sock_recv(client, 65536)


async def test_the_socket_is_for_root_and_its_group(service, tmp_path):
    assert 0o660 == (tmp_path / "cni.sock").stat().st_mode & 0o777


async def test_garbage_on_the_socket_is_answered_and_others_go_on(tmp_path, run):
    world = cni.CniService(cluster=None, host=None, given=None, pending=None, host_id="h")
    async with cni_socket.serve(tmp_path / "cni.sock", world):
        answers = [
            await ask(tmp_path / "cni.sock", sent, half=True)
            for sent in (b"", b"GET /", b"\0" * 12, b"NWC1\xff\xff\xff\xff\xff\xff\xff\xff", b"NWC1" + bytes(8))
        ]

        assert [5, 5, 5, 5, 4] == [json.loads(answer[1:])["code"] for answer in answers]
        assert (1, 2) == await coded(run({**CONFIG, "unknown": 1}))


async def test_one_who_says_nothing_keeps_nobody_waiting(tmp_path, run, service, monkeypatch):
    monkeypatch.setattr(cni_socket, "REQUEST_S", 0.05)
    silent = asyncio.create_task(ask(tmp_path / "cni.sock", b"NWC1"))

    assert 0 == (await run())[0]
    assert b"" == await silent


async def test_the_socket_of_an_agent_that_was_killed_is_taken_over(tmp_path, run):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "cni.sock"))
    service = Service()

    async with cni_socket.serve(tmp_path / "cni.sock", service):
        assert 0 == (await run())[0]

    assert not (tmp_path / "cni.sock").exists()


async def test_others_than_root_are_refused(tmp_path, service, monkeypatch):
    monkeypatch.setattr(sockets, "_CREDENTIALS", _Somebody)

    answer = await ask(tmp_path / "cni.sock", b"NWC1" + bytes(8))

    assert 102 == json.loads(answer[1:])["code"]
    assert [] == service.asked


class _Somebody:
    size = 12

    @staticmethod
    def unpack(packed):
        assert 12 == len(packed)
        return 1, 65534, 65534
