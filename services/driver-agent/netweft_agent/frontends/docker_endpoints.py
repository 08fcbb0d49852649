"""Endpoints of Docker's containers, from their first address on.

Docker asks its IPAM driver for one address a family, then its network driver for an endpoint, then to join it. An
attached endpoint of ours has all of that at once, so it is attached at the first request, which is one call of the
controllers for each container. Network and MAC, which Docker says each time, tell that the second request is about it.
Its interface is made at Join, by this host alone: in the container's namespace if there is one, else where Docker takes
it from when there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
import structlog
from netweft_common import errors

from netweft_agent.domain.cluster import Cluster, Container, Found, FoundNetwork, Wish
from netweft_agent.domain.objects import HERE, Interface, PublishedPort
from netweft_agent.frontends.docker_memory import Association, Memory
from netweft_agent.frontends.rested import once_rested

log = structlog.get_logger(__name__)

LABEL = "netweft.docker."
HOST = f"{LABEL}host"
LEASE = f"{LABEL}lease"
"""Of an endpoint that holds addresses for another driver's network, whose calls we do not see."""
PENDING_S = 600.0
"""How long Docker has to say what an address is for, before it is taken back."""

Address = IPv4Address | IPv6Address
T = TypeVar("T")


class Places(Protocol):
    """Where interfaces are made; implemented by the engine, where both are described."""

    def expecting(self, container_id: str) -> contextlib.AbstractContextManager[None]:
        """Have what comes for a container while the block runs wait for `place`."""

    async def place(self, sandbox: str, place: str) -> dict[str, str]:
        """Have interfaces made at a place, a path or HERE, and return their names, by endpoint's id."""


class Endpoints:
    """Makes, finds and removes them; nobody else does, so after a first look they are known.

    Args:
        cluster: Where they are made.
        places: Where their interfaces are made.
        memory: Of what is still to be removed.
        host_id: Of this host.
    """

    def __init__(self, *, cluster: Cluster, places: Places, memory: Memory, host_id: str) -> None:
        self._cluster = cluster
        self._places = places
        self._memory = memory
        self._host_id = host_id
        self._found: dict[str, Found] = {}
        self._is_loaded = False
        self._loading = asyncio.Lock()
        self._left: dict[str, Found] = {}
        """By Docker's id: taken away at Leave, and not yet deleted by Docker, which may have them join again."""
        self._since: dict[str, float] = {}
        """When a pending one was seen first."""

    async def request(
        self, network: FoundNetwork, mac: str, asked: Address | None, version: int, *, ours: bool, name: str = ""
    ) -> Interface:
        """Return the address of a version that an endpoint has; make the endpoint if this is the first of two.

        Args:
            network: To be in.
            mac: Of the endpoint.
            asked: Address that it shall have; None: any.
            version: Of IP.
            ours: Whether Docker's network is of our driver too, which will be told of the endpoint.
            name: What Docker calls it; empty: Docker does not say.

        Raises:
            NetweftError: There is none.
        """
        await self._load()
        called = endpoint_name(mac)
        held = self._by_name(network.id, called)
        addresses = [str(asked)] if asked is not None else []
        if held is not None:
            if self._docker_id(held) is not None:
                raise errors.AlreadyExists(
                    "MAC_IN_USE", f"MAC address {mac} is another container's in network {network.name}; choose another"
                )
            own = _of_version(held, version)
            if own is not None and asked in {None, own.ip}:
                return own
            addresses += [str(one.ip) for one in held.addresses if one.version != version]
            await self._take_away(held)
        labels = {HOST: self._host_id, **({} if ours else {LEASE: "yes"})}
        wish = Wish(
            network=network.id, name=called, addresses=tuple(addresses), mac=mac, labels=labels,
            dns_names=(name,) if name else (),
        )  # fmt: skip
        made = await self._make(wish)
        own = _of_version(made, version)
        if own is None:
            await self._take_away(made)
            raise errors.FailedPrecondition(
                "NO_SUCH_FAMILY", f"network {network.name} has no IPv{version} addresses; make it with a subnet of them"
            )
        return own

    async def release(self, network_id: str, address: Address) -> None:
        """Take away the endpoint that has an address; there may be none. Idempotent."""
        if not await self._is_known():
            self._later(self._memory.state.gone_addresses, (network_id, str(address)))
            return
        for one in list(self._found.values()):
            if one.network_id == network_id and any(own.ip == address for own in one.addresses):
                await self._take_away(one, later=True)

    async def associate(
        self,
        docker_id: str,
        network: FoundNetwork,
        mac: str,
        addresses: tuple[Interface, ...],
        dns_names: tuple[str, ...],
    ) -> Found:
        """Give an endpoint Docker's id; make it, if its addresses are another IPAM driver's. Idempotent.

        Raises:
            NetweftError: There is none, or one with other addresses.
        """
        await self._load()
        held = self._find(docker_id)
        if held is not None:
            return held
        held = self._by_name(network.id, endpoint_name(mac)) if mac else None
        if held is None:
            wish = Wish(
                network=network.id, name=endpoint_name(mac) if mac else f"docker-{docker_id[:32]}", mac=mac,
                addresses=tuple(str(one.ip) for one in addresses), dns_names=dns_names,
                labels={HOST: self._host_id},
            )  # fmt: skip
            held = await self._make(wish)
        elif self._docker_id(held) is not None or {one.ip for one in addresses} - {one.ip for one in held.addresses}:
            raise errors.FailedPrecondition(
                "NOT_AS_LEASED",
                f"endpoint {docker_id[:12]} shall have {', '.join(map(str, addresses)) or 'no address'}, but MAC "
                f"address {mac} was given {', '.join(map(str, held.addresses))} in network {network.name}; connect it "
                "again",
            )
        elif dns_names:
            held = self._keep(await self._cluster.update(held.id, dns_names=dns_names))
        self._memory.associate(docker_id, Association(held.network_id, held.name))
        return held

    async def join(self, docker_id: str, sandbox_key: str) -> Found:
        """Return an endpoint whose container is, or will be, in a namespace, by path. Idempotent.

        In one that is there the interface is made as it shall be; else the end that Docker takes there has the name.

        Raises:
            NetweftError: There is none, or its interface cannot be made.
        """
        held = await self.get(docker_id)
        self._memory.associate(docker_id, Association(held.network_id, held.name, sandbox_key))
        place = sandbox_key if _is_namespace(sandbox_key) else HERE
        made = await self._places.place(held.sandbox_id, place)
        # Where Docker has nothing to move it is told of no interface.
        return msgspec.structs.replace(held, interface_name=made[held.id] if place == HERE else "")

    async def publish(self, docker_id: str, ports: tuple[PublishedPort, ...]) -> None:
        """Publish exactly these ports of an endpoint. Idempotent.

        Raises:
            NetweftError: It cannot be: one is taken, say.
        """
        held = await self.get(docker_id)
        if {one.binding for one in held.ports} != {one.binding for one in ports}:
            self._keep(await self._cluster.update(held.id, ports=ports))

    async def withdraw(self, docker_id: str) -> None:
        """Publish no ports of an endpoint; one that is gone has none. Idempotent."""
        if not await self._is_known():
            return  # what comes next is that it leaves
        held = self._find(docker_id)
        if held is not None and held.ports:
            try:
                self._keep(await self._cluster.update(held.id, ports=()))
            except errors.NotFound:
                self._found.pop(held.id, None)

    async def leave(self, docker_id: str) -> None:
        """Take an endpoint away from its container, with the last one the sandbox; one that is gone is gone."""
        if not await self._is_known():
            self._later(self._memory.state.gone_ids, docker_id)
            return
        held = self._find(docker_id)
        if held is not None:
            await self._take_away(held, later=True)
            self._left[docker_id] = held

    async def delete(self, docker_id: str) -> None:
        """Delete an endpoint and give its addresses back; one that is gone is gone."""
        if not await self._is_known():
            self._later(self._memory.state.gone_ids, docker_id)
            return
        self._left.pop(docker_id, None)
        held = self._find(docker_id)
        if held is not None:
            await self._take_away(held, later=True)
        self._memory.dissociate(docker_id)

    async def get(self, docker_id: str) -> Found:
        """Return an endpoint; one that has left its container is made again, as it was.

        Raises:
            NotFound: Docker has not made it, or has deleted it.
        """
        await self._load()
        held = self._find(docker_id)
        if held is None and docker_id in self._left:
            was = self._left[docker_id]
            wish = Wish(
                network=was.network_id, name=was.name, mac=was.mac, labels=was.labels,
                addresses=tuple(str(one.ip) for one in was.addresses),
            )  # fmt: skip
            held = await self._make(wish)
            del self._left[docker_id]
        if held is None:
            raise errors.NotFound(
                "ENDPOINT_UNKNOWN",
                f"netweft has no endpoint {docker_id[:12]} of Docker's; disconnect the container from the network and "
                "connect it again",
            )
        return held

    async def clear(self, network_id: str) -> None:
        """Take away all endpoints of Docker's in a network on this host."""
        if not await self._is_known():
            return  # what is gone one by one goes later
        for one in list(self._found.values()):
            if one.network_id == network_id:
                await self._take_away(one, later=True)
        for docker_id in [one for one, known in self._memory.endpoints.items() if known.network == network_id]:
            self._memory.dissociate(docker_id)

    async def collect(self, now_s: float) -> None:
        """Take away what Docker has forgotten, and what could not go before.

        Forgotten is for ten minutes what it has never given an id, and what was in a namespace that is not there.

        Args:
            now_s: Of a clock that only goes forward.
        """
        await self._load()
        known = {one[:2] for one in self._memory.endpoints.values() if not _has_gone(one.sandbox_key)}
        pending = {
            one.id: one
            for one in self._found.values()
            if LEASE not in one.labels and (one.network_id, one.name) not in known
        }
        self._since = {one: self._since.get(one, now_s) for one in pending}
        for identifier, since in list(self._since.items()):
            if now_s - since >= PENDING_S:
                forgotten = pending[identifier]
                log.warning("an endpoint that Docker has forgotten is taken away", endpoint=forgotten.name)
                docker_id = self._docker_id(forgotten)
                await self._take_away(forgotten, later=True)
                if docker_id is not None:
                    self._memory.dissociate(docker_id)
        state = self._memory.state
        for docker_id in list(state.gone_ids):
            await self.delete(docker_id)
            state.gone_ids.remove(docker_id)
            self._memory.save()
        for network_id, address in list(state.gone_addresses):
            await self.release(network_id, ip_address(address))
            state.gone_addresses.remove((network_id, address))
            self._memory.save()
        for network_id, name in list(state.gone_endpoints):
            await self._detach(network_id, name)

    # --- what is known ---

    async def _load(self) -> None:
        if self._is_loaded:
            return
        async with self._loading:
            if not self._is_loaded:
                found = await self._cluster.endpoints("", f"{HOST}={self._host_id}")
                self._found = {one.id: one for one in found}
                self._is_loaded = True

    async def _is_known(self) -> bool:
        """Return whether it is known which endpoints there are; it is not while no controller answers after a start."""
        try:
            await self._load()
        except errors.Unavailable as error:
            log.warning("what Docker has done with is taken away later", error=str(error))
            return False
        return True

    def _later(self, gone: list[T], what: T) -> None:
        if what not in gone:
            gone.append(what)
            self._memory.save()

    def _keep(self, found: Found) -> Found:
        self._found[found.id] = found
        return found

    def _find(self, docker_id: str) -> Found | None:
        known = self._memory.endpoints.get(docker_id)
        return None if known is None else self._by_name(known.network, known.name)

    def _docker_id(self, held: Found) -> str | None:
        """Return Docker's id of an endpoint; None: Docker has not given it one."""
        names = self._memory.endpoints.items()
        return next((one for one, known in names if known[:2] == (held.network_id, held.name)), None)

    def _by_name(self, network_id: str, name: str) -> Found | None:
        return next((one for one in self._found.values() if (one.network_id, one.name) == (network_id, name)), None)

    # --- the cluster ---

    async def _make(self, wish: Wish) -> Found:
        if (wish.network, wish.name) in self._memory.state.gone_endpoints:
            await self._detach(wish.network, wish.name)
        try:
            return self._keep(await self._attach(wish))
        except errors.AlreadyExists:
            # Made by a call whose answer got lost, or another host's.
            there = await self._cluster.endpoint(wish.network, wish.name)
            if there.labels.get(HOST) != self._host_id or self._docker_id(there) is not None:
                raise
            await self._detach(wish.network, wish.name)
            return self._keep(await self._attach(wish))

    async def _attach(self, wish: Wish) -> Found:
        several = len(wish.addresses) > 1
        if LEASE in wish.labels:
            return await once_rested(lambda: self._cluster.create(wish), several=several)
        # What it is together with in its container, Docker knows; here each one has a sandbox of its own.
        container = Container(container_id=f"{wish.name}-{wish.network[:8]}")
        with self._places.expecting(container.container_id):
            return await once_rested(lambda: self._cluster.attach(wish, container), several=several)

    async def _take_away(self, held: Found, *, later: bool = False) -> None:
        """Take an endpoint away; where it cannot go now and that will do, later."""
        try:
            await self._detach(held.network_id, held.name)
        except (errors.Unavailable, errors.Conflict) as error:
            if not later:
                raise
            log.warning("an endpoint of Docker's is taken away later", endpoint=held.name, error=str(error))
            self._later(self._memory.state.gone_endpoints, (held.network_id, held.name))
        self._found.pop(held.id, None)

    async def _detach(self, network_id: str, name: str) -> None:
        with contextlib.suppress(errors.NotFound):  # the network has gone, and with it what was in it
            await self._cluster.detach(network_id, name)
        if (network_id, name) in self._memory.state.gone_endpoints:
            self._memory.state.gone_endpoints.remove((network_id, name))
            self._memory.save()


def endpoint_name(mac: str) -> str:
    """Name the endpoint of a MAC address."""
    return f"docker-{mac.replace(':', '').lower()}"


def _has_gone(sandbox_key: str) -> bool:
    """Return whether a namespace's path is gone from a folder that is there, as Docker leaves it."""
    path = Path(sandbox_key)
    return bool(sandbox_key) and not path.exists() and path.parent.is_dir()


def _is_namespace(sandbox_key: str) -> bool:
    """Return whether a namespace is mounted at a path already: before its container starts it is not."""
    return sandbox_key.startswith("/") and os.path.ismount(sandbox_key)


def _of_version(found: Found, version: int) -> Interface | None:
    return next((one for one in found.addresses if one.version == version), None)
