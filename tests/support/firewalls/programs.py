"""ufw and firewalld as programs, those of Debian 13, on a host that is a namespace.

They see another root than this machine's, with folders of their own where they keep what they know, and processes of
their own; all of it is gone when the host is closed. Their rules are the host's: what they leave is taken away then.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tests.support import debian
from tests.support.netns import Netns

TIMEOUT_S = 60.0
_OWN = ("etc", "var/lib")


class Program:
    """A host's namespace with Debian's root.

    Args:
        netns: Path of the namespace.
    """

    def __init__(self, netns: str | Path) -> None:
        root = debian.root("trixie", debian.FIREWALLS)
        self._host = Netns.at(str(netns))
        self._before = self._tables()
        self.folder = Path(tempfile.mkdtemp(prefix="nw-fw-"))
        for one in _OWN:
            shutil.copytree(root / one, self.folder / one, symlinks=True)
        script = [f"mount --bind {root} {root} && mount -o remount,bind,ro {root}", f"mount -t proc proc {root}/proc"]
        script += [f"mount --rbind /{one} {root}/{one}" for one in ("sys", "dev")]
        script += [f"mount -t tmpfs none {root}/{one}" for one in ("run", "tmp", "var/log")]
        script += [f"mount --bind {self.folder / one} {root}/{one}" for one in _OWN]
        script += [f"cd {root} && pivot_root . . && umount -l . && cd /"]
        lines = [f"{line} || exit" for line in script] + ["echo mounted", "exec sleep 100000"]
        self._keeper = subprocess.Popen(
            [
                "nsenter", f"--net={netns}", "unshare", "--mount", "--pid", "--fork", "--kill-child",
                "--propagation=private", "sh", "-c", "\n".join(lines),
            ],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert self._keeper.stdout is not None
        with self._keeper.stdout as out:
            said = out.readline()
        if said != "mounted\n":
            self.close()
            raise AssertionError(said)
        (self._init,) = Path(f"/proc/{self._keeper.pid}/task/{self._keeper.pid}/children").read_text().split()

    def _tables(self) -> set[str]:
        return set(self._host.exec(["nft", "list", "tables"]).stdout.splitlines())

    def left(self) -> set[str]:
        """Return tables that were not there before and still keep something out; chains that nobody calls may stay."""
        found = set()
        for table in self._tables() - self._before:
            if "policy drop" in self._host.exec(["nft", "list", *table.split()]).stdout or table.endswith(" firewalld"):
                found.add(table)
        return found

    def _command(self, *words: str) -> list[str]:
        return ["nsenter", f"--target={self._init}", "--mount", "--net", "--pid", *words]

    def run(self, *words: str, check: bool = True) -> str:
        """Run a command, and return what it prints."""
        done = subprocess.run(
            self._command(*words),
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
        assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start a command; what it says is in the file `log` of the folder."""
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(self._command(*words), stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def log(self) -> str:
        """Return what commands that were started have said."""
        return (self.folder / "log").read_text(errors="replace")

    def close(self) -> None:
        """End all processes, and take the folders away."""
        self._keeper.kill()
        self._keeper.wait()
        for table in self._tables() - self._before:
            self._host.exec(["nft", "delete", *table.split()])
        self._host.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Ufw(Program):
    """ufw, with the settings that it comes with: what comes in is denied, and so is what is routed."""

    def start_up(self) -> None:
        """Enable it."""
        self.run("ufw", "--force", "enable")

    def reload(self) -> None:
        """Have it make its rules anew."""
        self.run("ufw", "reload")

    def end(self) -> None:
        """Disable it: its rules go."""
        self.run("ufw", "--force", "disable")


class Firewalld(Program):
    """firewalld with the bus that it needs, and the settings that it comes with: zone public."""

    def start_up(self) -> None:
        """Start it; it has made its rules when this returns."""
        self.run("mkdir", "-p", "/run/dbus")
        self._bus = self.start("dbus-daemon", "--system", "--nofork", "--nopidfile")
        self._daemon = self.start("firewalld", "--nofork", "--nopid")
        ends_s = time.monotonic() + TIMEOUT_S
        while "running" not in self.run("firewall-cmd", "--state", check=False).splitlines():
            assert self._daemon.poll() is None, self.log()
            assert time.monotonic() < ends_s, self.log()
            time.sleep(0.1)

    def reload(self) -> None:
        """Have it make its rules anew, as `systemctl reload` does."""
        self.run("firewall-cmd", "--reload")

    def end(self) -> None:
        """End it: its rules go."""
        for name, one in (("firewalld", self._daemon), ("dbus-daemon", self._bus)):
            # nsenter, which is the one that was started, passes no signals on.
            self.run("pkill", "--signal", "TERM", "--full", name)
            one.wait(timeout=TIMEOUT_S)
