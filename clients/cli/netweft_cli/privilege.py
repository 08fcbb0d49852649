"""What a stack needs of the kernel, and how somebody who is not root gets it: a user namespace.

Inside one (user_namespaces(7)) the caller is root over network and mount namespaces of his own, which is all that
playing hosts takes; outside he stays who he was.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from netweft_common import errors

from netweft_cli import netns

INSIDE = "NETWEFT_USER_NAMESPACE"


def ensure(run_dir: Path, *, host_network: bool = False) -> None:
    """Return if network namespaces can be made here; else run this command again inside a user namespace.

    Args:
        run_dir: Run directory to keep: inside, the caller seems to be root and would choose another.
        host_network: Whether the machine's own network is meant: that is root's alone.

    Raises:
        PermissionDenied: Neither works; says what is needed.
    """
    if host_network and os.geteuid() != 0:
        raise errors.PermissionDenied(
            "ROOT_NEEDED", "--host-network changes this machine's own network: run as root, or leave it out"
        )
    if not (why := _refusal(netns.CLONE_NEWNET | netns.CLONE_NEWNS)):
        return
    if host_network or INSIDE in os.environ:
        raise errors.PermissionDenied("NAMESPACES_REFUSED", f"the kernel refuses network namespaces: {why}")
    if inside := _refusal(netns.CLONE_NEWUSER | netns.CLONE_NEWNET | netns.CLONE_NEWNS):
        raise errors.PermissionDenied("NAMESPACES_REFUSED", _advice(why, inside))
    os.environ[INSIDE] = "1"
    _enter()
    # A fresh process: capabilities come with the exec, and nothing of before the change is left in memory.
    os.execv(sys.executable, [sys.executable, "-m", "netweft_cli.main", *sys.argv[1:], "--run-dir", str(run_dir)])  # noqa: S606  # ourselves


def _refusal(flags: int) -> str:
    """Return why namespaces cannot be made and used, empty if they can; a child tries, so nothing of ours changes."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        why = ""
        try:
            _try(flags)
        except OSError as error:
            why = error.strerror or str(error)
        os.write(write, why.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return text


def _try(flags: int) -> None:
    uid, gid = os.geteuid(), os.getegid()
    netns.unshare(flags)
    if flags & netns.CLONE_NEWUSER:
        _map(uid, gid)
    # Some systems give the namespace and withhold its powers (AppArmor on Ubuntu): only using them tells.
    netns.mount("none", Path("/"), netns.MS_REC | netns.MS_PRIVATE)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _enter() -> None:
    uid, gid = os.geteuid(), os.getegid()
    netns.unshare(netns.CLONE_NEWUSER | netns.CLONE_NEWNET | netns.CLONE_NEWNS)
    _map(uid, gid)
    netns.mount("none", Path("/"), netns.MS_REC | netns.MS_PRIVATE)


def _map(uid: int, gid: int) -> None:
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def _advice(why: str, inside: str) -> str:
    switches = {
        "kernel.unprivileged_userns_clone": "0",
        "kernel.apparmor_restrict_unprivileged_userns": "1",
        "user.max_user_namespaces": "0",
    }
    wrong = [name for name, bad in switches.items() if _sysctl(name) == bad]
    hint = f" ({', '.join(f'{name} is {switches[name]}' for name in wrong)})" if wrong else ""
    return (
        f"network namespaces are refused ({why}), and so is a user namespace to make them in ({inside}){hint}; "
        "run as root, or let users have user namespaces; in a container give it --privileged"
    )


def _sysctl(name: str) -> str:
    try:
        return Path("/proc/sys", *name.split(".")).read_text().strip()
    except OSError:
        return ""
