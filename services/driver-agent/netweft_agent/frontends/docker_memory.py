"""What Docker's networks and endpoints are to us, in files of the agent's state folder.

Docker says it once, when one is made, and never again, though both may restart. It is this host's own affair, so
it is not the controllers': a network that somebody else has made is not changed by Docker's use of it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import msgspec
from netweft_common.errors import FailedPrecondition


class Pool(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A pool that Docker holds.

    Attributes:
        network: Network of ours that its addresses are leased from, by id.
        subnet: CIDR.
        ip_range: What Docker was told to take automatic addresses from; empty: all of it.
        name: What Docker's user calls the network here; empty: nothing.
        reserved: The network has been made to reserve the subnet, and goes with the pool.
        docker_id: Docker's network that it belongs to; empty: none of ours yet, or another driver's.
    """

    network: str
    subnet: str
    ip_range: str = ""
    name: str = ""
    reserved: bool = False
    docker_id: str = ""


class Binding(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A network of Docker's.

    Attributes:
        network: Network of ours, by id.
        name: Its name.
    """

    network: str
    name: str


class Association(NamedTuple):
    """An endpoint of Docker's.

    Attributes:
        network: Of ours, by id.
        name: Of the endpoint of ours.
        sandbox_key: Path of its container's namespace once that has started; empty: it has joined none.
    """

    network: str
    name: str
    sandbox_key: str = ""


class State(msgspec.Struct, kw_only=True, omit_defaults=True):
    """All of it.

    Attributes:
        pools: By the id that Docker was told.
        networks: By Docker's id.
        gone_networks: Networks of ours, by id, that are still to be deleted.
        gone_endpoints: Endpoints, by network id and name, that are still to be taken away.
        gone_ids: The same, by Docker's id.
        gone_addresses: The same, by network id and address.
    """

    pools: dict[str, Pool] = {}
    networks: dict[str, Binding] = {}
    gone_networks: list[str] = []
    gone_endpoints: list[tuple[str, str]] = []
    gone_ids: list[str] = []
    gone_addresses: list[tuple[str, str]] = []


class Memory:
    """The files: `docker.json`, and one for each endpoint in `docker-endpoints/`, since these come and go.

    Args:
        folder: The agent's state folder.

    Raises:
        FailedPrecondition: What is in the file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._path = path = folder / "docker.json"
        self._endpoints = folder / "docker-endpoints"
        self.state = State()
        self.endpoints: dict[str, Association] = {}
        """By Docker's id."""
        for one in self._endpoints.glob("*"):
            words = one.read_text().rstrip("\n").split(" ", 2)
            if len(words) == 3:  # else the host died while it was written, and with it the container
                self.endpoints[one.name] = Association(*words)
        if path.exists():
            try:
                self.state = msgspec.json.decode(path.read_bytes(), type=State)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise FailedPrecondition(
                    "DOCKER_STATE_BROKEN",
                    f"{path} does not say what Docker's networks are: {error}; restore it, or move it away and make "
                    "Docker's networks of driver netweft anew",
                    path=str(path),
                ) from error

    @property
    def bound(self) -> set[str]:
        """Networks of ours that Docker has, by id."""
        return {one.network for one in self.state.networks.values()}

    def associate(self, docker_id: str, known: Association) -> None:
        """Remember an endpoint. It outlives the agent, and need not outlive the host."""
        if self.endpoints.get(docker_id) != known:
            self.endpoints[docker_id] = known
            self._endpoints.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._endpoints / docker_id).write_text(" ".join(known) + "\n")

    def dissociate(self, docker_id: str) -> None:
        """Forget an endpoint. Idempotent."""
        if self.endpoints.pop(docker_id, None) is not None:
            (self._endpoints / docker_id).unlink(missing_ok=True)

    def save(self) -> None:
        """Write the state whole, or not at all; it is there when this returns, whatever happens then."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self._path.with_suffix(".new")
        with fresh.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(self.state), indent=1) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
