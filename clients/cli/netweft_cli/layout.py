"""What a stack consists of: its hosts, addresses, files and processes, as values.

Nothing here touches the machine; `stack.py` does.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
from pathlib import Path
from typing import Any

from netweft_common import errors

UNDERLAY = ipaddress.IPv4Network("192.0.2.0/24")
"""TEST-NET-1 (RFC 5737): never a real host's, so no route of the machine is shadowed inside the namespaces."""
UNDERLAY_ROUTER = UNDERLAY[254]
OUTSIDE = ipaddress.IPv4Interface("203.0.113.1/32")
"""TEST-NET-3: stands for the world outside, behind the hosts' default route."""
HOST_LIMIT = 200
_VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One host of a stack.

    Args:
        name: Name in the controller.
        address: Underlay and tunnel address; None on the machine's own network.
    """

    name: str
    address: ipaddress.IPv4Address | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A stack in its run directory.

    Args:
        run_dir: Absolute folder of everything that the stack makes.
        hosts: Hosts, at least one.
        store_url: A store that is not ours to start; empty: an embedded one.
    """

    run_dir: Path
    hosts: tuple[Host, ...]
    store_url: str = ""

    @property
    def host_network(self) -> bool:
        """Whether the agent works on the machine's own network."""
        return self.hosts[0].address is None

    @property
    def store_socket(self) -> Path:
        """Socket of the embedded store."""
        return self.run_dir / "store" / "store.sock"

    @property
    def effective_store_url(self) -> str:
        """URL that the services are given."""
        return self.store_url or f"unix://{self.store_socket}"

    @property
    def ipam(self) -> str:
        """Target of IPAM."""
        return f"unix:{self.run_dir}/ipam.sock"

    @property
    def controller(self) -> str:
        """Target of the controller."""
        return f"unix:{self.run_dir}/controller.sock"

    def agent(self, host: Host) -> str:
        """Return the target of a host's agent."""
        return f"unix:{self.host_dir(host)}/agent.sock"

    def host_dir(self, host: Host) -> Path:
        """Return the folder of a host: its agent's state, and the namespaces of its sandboxes."""
        return self.run_dir / "hosts" / host.name

    def docker_socket(self, host: Host) -> Path | None:
        """Return where a Docker of a played host finds its plugin; None for the machine itself: where Docker looks."""
        return None if host.address is None else self.host_dir(host) / "docker" / "netweft.sock"

    def netns(self, host: Host) -> Path | None:
        """Return the namespace that plays the host; None for the machine itself."""
        return None if host.address is None else self.run_dir / "netns" / host.name

    @property
    def underlay_netns(self) -> Path:
        """Namespace that holds the bridge between the hosts, and the outside address."""
        return self.run_dir / "netns" / "underlay"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all processes in the order of their start."""
        own_store = () if self.store_url else ("store",)
        return (*own_store, "ipam", "controller", *(f"agent-{host.name}" for host in self.hosts))

    def to_json(self) -> str:
        """Return the text of stack.json: what `parse` reads, and the targets for whoever looks."""
        document = {
            "version": _VERSION,
            "run_dir": str(self.run_dir),
            "store_url": self.store_url,
            "hosts": [{"name": host.name, "address": str(host.address or "")} for host in self.hosts],
            "targets": {
                "controller": self.controller,
                "ipam": self.ipam,
                "store": self.effective_store_url,
                "agents": {host.name: self.agent(host) for host in self.hosts},
            },
        }
        return json.dumps(document, indent=2) + "\n"


def plan(
    run_dir: Path, *, names: tuple[str, ...] = ("host1",), host_network: bool = False, store_url: str = ""
) -> Layout:
    """Return the layout of a new stack; host N gets underlay address 192.0.2.N.

    Raises:
        InvalidArgument: No host, too many, a name twice, or several on one machine's network.
    """
    if not 1 <= len(names) <= HOST_LIMIT or len(set(names)) != len(names):
        raise errors.InvalidArgument(
            "HOSTS_INVALID", f"a stack has 1 to {HOST_LIMIT} hosts with names of their own, not {len(names)}"
        )
    if host_network and len(names) > 1:
        raise errors.InvalidArgument(
            "HOSTS_INVALID", f"the machine's own network is one host, not {len(names)}; leave out --host-network"
        )
    hosts = tuple(
        Host(name=name, address=None if host_network else UNDERLAY[number]) for number, name in enumerate(names, 1)
    )
    return Layout(run_dir=run_dir.absolute(), hosts=hosts, store_url=store_url)


def parse(text: str, run_dir: Path) -> Layout:
    """Return the layout that `to_json` wrote.

    Raises:
        FailedPrecondition: The text is none, or of another version.
    """
    try:
        document: dict[str, Any] = json.loads(text)
        version: int = document["version"]
        hosts = tuple(
            Host(name=host["name"], address=ipaddress.IPv4Address(host["address"]) if host["address"] else None)
            for host in document["hosts"]
        )
        store_url: str = document["store_url"]
    except (ValueError, KeyError, TypeError) as error:
        raise _broken(run_dir, str(error)) from error
    if version != _VERSION or not hosts:
        raise _broken(run_dir, f"version {version}, {len(hosts)} hosts")
    return Layout(run_dir=run_dir.absolute(), hosts=hosts, store_url=store_url)


def _broken(run_dir: Path, why: str) -> errors.FailedPrecondition:
    return errors.FailedPrecondition(
        "STACK_FILE_BROKEN",
        f"{run_dir}/stack.json is not one of this version's ({why}); stop what runs there and remove {run_dir}",
        path=str(run_dir),
    )


def default_run_dir() -> Path:
    """Return NETWEFT_RUN_DIR, else /run/netweft for root, else a folder of the user's."""
    if chosen := os.environ.get("NETWEFT_RUN_DIR"):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/run/netweft")
    if base := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(base) / "netweft"
    return Path(f"/tmp/netweft-{os.getuid()}")  # noqa: S108  # made with mode 0700 and checked for its owner
