"""What Docker's networks are to us, in a file of the agent's state folder.

Docker says it once, when a network is made, and never again, though both may restart. It is this host's own affair, so
it is not the controllers': a network that somebody else has made is not changed by Docker's use of it.
"""

from __future__ import annotations

import os
from pathlib import Path

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
    """The file; a change is there when `save` returns, whatever happens then.

    Args:
        path: Of the file.

    Raises:
        FailedPrecondition: What is in it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.state = State()
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

    def save(self) -> None:
        """Write it whole, or not at all."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self._path.with_suffix(".new")
        with fresh.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(self.state), indent=1) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
