#!/usr/bin/python3 -IS
"""netweft's CNI plugin: hands what a runtime asks to the agent of this host, and prints what the agent says.

With arguments it is a plugin of netavark, Podman's: `create`, `setup NETNS`, `teardown NETNS`, `info`.

The whole request goes over the agent's socket: the CNI_* variables and the configuration as they are, the network
namespace as a descriptor (SCM_RIGHTS, unix(7)), for the agent may not see its path. The agent does the rest, the checks
included. Here is only what has to work without it: VERSION, the errors of a caller, and a DEL, which is left in the
agent's folder for the time when it is back.

A runtime waits for this program to start, for each container: so it imports next to nothing (json alone takes as long
as the interpreter), and is short, since it is compiled at each start.

CNI SPEC 1.1.0, https://github.com/containernetworking/cni/blob/spec-v1.1.0/SPEC.md
netavark 1.14, https://github.com/containers/netavark/blob/v1.14.0/plugin-API.md
"""

from __future__ import annotations

import posix
import sys
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET, socket

VERSION = "0.1.0"
VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
SOCKET = "/run/netweft/cni.sock"
STATE_DIR = "/var/lib/netweft"
PENDING = "cni-pending"
"""Folder in the agent's state folder, of DELs that nobody has taken yet: a frame each."""
MAGIC = b"NWC1"
MOST_BYTES = 4 << 20
TIMEOUT_S = 120.0
INCOMPATIBLE_VERSION, BAD_ENVIRONMENT, IO_FAILURE, DECODING_FAILURE, TRY_AGAIN, NOT_AVAILABLE = 1, 4, 5, 6, 11, 50
NEEDED = {
    "ADD": ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"),
    "CHECK": ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "GC": (),
    "STATUS": (),
    "VERSION": (),
}
"""Verbs, and the variables that each cannot do without."""


def main(environ: dict[bytes, bytes], name: str) -> tuple[int, bytes]:
    """Answer a runtime: return the exit code, and what to print."""
    given = _given(environ)
    config = _read(0)
    if config is None:
        return _failure(IO_FAILURE, f"the configuration on stdin is longer than {MOST_BYTES} bytes", b"")
    verb = given.get("CNI_COMMAND", b"").decode(errors="replace")
    if verb == "VERSION":
        return _version(config)
    missing = ["CNI_COMMAND"] if verb not in NEEDED else [key for key in NEEDED[verb] if not given.get(key)]
    if missing:
        return _failure(BAD_ENVIRONMENT, f"{', '.join(missing)} must be set, CNI_COMMAND to one of {_verbs()}", config)
    netns = -1
    if given.get("CNI_NETNS"):
        try:
            netns = posix.open(given["CNI_NETNS"], posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
        except OSError as error:  # of a container that has gone nothing is left to be opened
            if verb != "DEL":
                return _failure(BAD_ENVIRONMENT, f"CNI_NETNS cannot be opened: {error}", config)
    given["NAME"] = name.encode()
    frame = _frame(given, config)
    # Only a socket of another place is worth reading the configuration for.
    known = given.get("NETWEFT_CNI_SOCKET", b"").decode(errors="replace") or (
        _own(config, "socket") if b'"socket"' in config else ""
    )
    try:
        answer = _ask(known or SOCKET, frame, netns)
    except OSError as error:
        return _alone(verb, frame, config, f"{known or SOCKET}: {error}")
    return answer[0] - 48, answer[1:]


def _given(environ: dict[bytes, bytes]) -> dict[str, bytes]:
    return {key.decode(): value for key, value in environ.items() if key.startswith((b"CNI_", b"NETWEFT_CNI_"))}


def _frame(given: dict[str, bytes], config: bytes) -> bytes:
    variables = b"\0".join(key.encode() + b"=" + value for key, value in given.items())
    return MAGIC + len(variables).to_bytes(4, "big") + len(config).to_bytes(4, "big") + variables + config


def _read(descriptor: int) -> bytes | None:
    parts, size = [], 0
    while part := posix.read(descriptor, 65536):
        parts.append(part)
        size += len(part)
        if size > MOST_BYTES:
            return None
    return b"".join(parts)


def _ask(path: str, frame: bytes, netns: int) -> bytes:
    """Return the agent's answer: one digit, the exit code, and what to print.

    Raises:
        OSError: It is not there, or ended before it had answered.
    """
    connection = socket(AF_UNIX, SOCK_STREAM)
    connection.settimeout(TIMEOUT_S)
    connection.connect(path)
    rights = [(SOL_SOCKET, SCM_RIGHTS, netns.to_bytes(4, sys.byteorder))] if netns >= 0 else []
    try:
        sent = connection.sendmsg([frame], rights)
        while sent < len(frame):
            sent += connection.send(frame[sent:])
    except BrokenPipeError:
        pass  # whoever is refused before he has said all finds the answer there
    answer = b""
    while part := connection.recv(65536):
        answer += part
    if not answer:
        raise ConnectionResetError("the agent ended before it had answered")
    return answer


# --- netavark ---


def netavark(environ: dict[bytes, bytes], argv: list[str]) -> tuple[int, bytes]:
    """Answer netavark, or Podman, which makes networks; as `main`."""
    given, verb = _given(environ), argv[1]
    if verb == "info":
        return 0, b'{"version": "%s", "api_version": "1.0.0"}' % VERSION.encode()
    if len(argv) != {"create": 2, "setup": 3, "teardown": 3}.get(verb):
        return _error("usage: netweft create | setup NETNS | teardown NETNS | info; the rest as JSON on stdin")
    config = _read(0)
    if config is None:
        return _error(f"what is on stdin is longer than {MOST_BYTES} bytes")
    netns = -1
    given["NETAVARK_COMMAND"] = verb.encode()
    if verb != "create":
        given["NETAVARK_NETNS"] = argv[2].encode(errors="surrogateescape")
        try:
            netns = posix.open(argv[2], posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
        except OSError as error:
            if verb != "teardown":
                return _error(f"the network namespace cannot be opened: {error}")
    frame = _frame(given, config)
    known = given.get("NETWEFT_CNI_SOCKET", b"").decode(errors="replace") or (
        _own(config, "socket") if b'"netweft.socket"' in config else ""
    )
    try:
        answer = _ask(known or SOCKET, frame, netns)
    except OSError as error:
        return _netavark_alone(verb, frame, config, f"{known or SOCKET}: {error}")
    return answer[0] - 48, answer[1:]


def _netavark_alone(verb: str, frame: bytes, config: bytes, why: str) -> tuple[int, bytes]:
    why = f"the agent of netweft does not answer at {why}"
    if verb != "teardown":
        return _error(f"{why}; is netweft-agent running?")
    try:
        _read_json(config)
        _keep(frame, _own(config, "stateDir") or STATE_DIR)
    except (OSError, ValueError) as error:
        return _error(f"{why}, and the teardown cannot be kept for later: {error}")
    return 0, b""


def _error(message: str) -> tuple[int, bytes]:
    import json  # noqa: PLC0415

    return 1, json.dumps({"error": message}).encode()


# --- without the agent ---


def _verbs() -> str:
    return ", ".join(NEEDED)


def _read_json(config: bytes) -> dict[str, object]:
    """Return a configuration; ValueError: it is none."""
    import json  # noqa: PLC0415  # takes as long as the interpreter

    try:
        found = json.loads(config)
    except RecursionError as error:
        raise ValueError("it is too deep") from error
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004  # for the caller it is one kind of wrong
    return found


def _spoken(config: bytes) -> str:
    """Return the version to answer in: that of the configuration, if it is one of ours, else the newest."""
    try:
        asked = _read_json(config).get("cniVersion")
    except ValueError:
        asked = ""
    return asked if isinstance(asked, str) and asked in VERSIONS else VERSIONS[-1]


def _version(config: bytes) -> tuple[int, bytes]:
    import json  # noqa: PLC0415

    return 0, json.dumps({"cniVersion": _spoken(config), "supportedVersions": VERSIONS}).encode()


def _own(config: bytes, key: str) -> str:
    """Return a text of our part of a configuration; empty where it is not readable, which the agent will say."""
    try:
        whole = _read_json(config)
    except ValueError:
        return ""
    found = whole.get(key)
    for part in (whole.get("ipam"), whole, whole.get("network")):
        if isinstance(part, dict):
            options = part.get("options")
            found = found or part.get(key) or (options.get(f"netweft.{key}") if isinstance(options, dict) else "")
    return found if isinstance(found, str) else ""


def _alone(verb: str, frame: bytes, config: bytes, why: str) -> tuple[int, bytes]:
    """Do without the agent: say what is wrong with the configuration, or that it has to wait; keep a DEL."""
    try:
        version = _read_json(config).get("cniVersion", "")
    except ValueError as error:
        return _failure(DECODING_FAILURE, f"the configuration cannot be read: {error}", config)
    if version not in VERSIONS:
        supported = ", ".join(VERSIONS)
        return _failure(INCOMPATIBLE_VERSION, f"cniVersion {version!r} is none of {supported}", config)
    if verb == "DEL":
        try:
            _keep(frame, _own(config, "stateDir") or STATE_DIR)
        except OSError as error:
            return _failure(
                TRY_AGAIN, f"the agent does not answer ({why}), and the DEL cannot be kept: {error}", config
            )
        return 0, b""
    code = NOT_AVAILABLE if verb == "STATUS" else TRY_AGAIN
    return _failure(code, f"the agent of netweft does not answer at {why}; is netweft-agent running?", config)


def _keep(frame: bytes, state_dir: str) -> None:
    import os  # noqa: PLC0415
    import time  # noqa: PLC0415

    folder = f"{os.environ.get('NETWEFT_CNI_STATE_DIR') or state_dir}/{PENDING}"
    os.makedirs(folder, mode=0o700, exist_ok=True)  # noqa: PTH103  # pathlib takes long to import
    path = f"{folder}/{time.time_ns():020}-{os.getpid()}"
    descriptor = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(descriptor, frame)
    os.fsync(descriptor)
    os.close(descriptor)
    os.rename(path + ".new", path)  # noqa: PTH104


def _failure(code: int, message: str, config: bytes) -> tuple[int, bytes]:
    import json  # noqa: PLC0415

    return 1, json.dumps({"cniVersion": _spoken(config), "code": code, "msg": message}).encode()


def run() -> None:
    """Answer, and end without tidying up, which takes as long as a quarter of the start."""
    argv = sys.argv
    code, text = main(posix.environ, argv[0].rpartition("/")[2]) if len(argv) < 2 else netavark(posix.environ, argv)
    while text:
        text = text[posix.write(1, text) :]
    posix._exit(code)  # noqa: SLF001  # there is nothing to flush


if __name__ == "__main__":
    run()
