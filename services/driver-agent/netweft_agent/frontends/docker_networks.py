"""Docker's networks, which are networks of ours: made for it, or bound because there is one of that name already.

Docker asks for pools before it says what the network is. What it asks for is therefore reserved as a network of its
own, which gives way when the real one is made, or holds the leases if another driver's network has our addresses.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

import msgspec
import structlog
from netweft_common import errors

from netweft_agent.domain.cluster import Cluster, FoundNetwork, NetworkWish, SubnetWish
from netweft_agent.domain.objects import Interface, Subnet, Subnetwork
from netweft_agent.frontends.docker_endpoints import HOST, LABEL
from netweft_agent.frontends.docker_memory import Binding, Memory, Pool

log = structlog.get_logger(__name__)

NAME = "netweft.network"
DRIVER = "netweft.driver"
ADDRESS_SPACE = "netweft"
"""What Docker is told our addresses are of; which space of IPAM's it is, depends on the network."""
MADE = f"{LABEL}made"
RESERVED = f"{LABEL}reserved"
SHARED_SPACE = "GlobalDefault"
"""IPAM's space of networks that span hosts."""
RESERVED_S = 600.0
"""How long a reservation that no pool of Docker's is about may be somebody's who is about to write that down."""
_MOST_ASKED = 8
_TRIES = 20
_AGAIN_S = 0.1
_RACES = frozenset({"NETWORK_EXISTS", "POOL_OVERLAP", "NETWORK_NOT_FOUND"})


Bind = Callable[[Collection[str]], Awaitable[None]]


class DockerSubnet(msgspec.Struct, frozen=True, kw_only=True):
    """A subnet of a network of Docker's.

    Attributes:
        ours: Whether it came from our IPAM driver.
    """

    subnet: Subnetwork
    gateway: Interface | None = None
    aux_addresses: Mapping[str, str] = msgspec.field(default_factory=dict)
    ours: bool = True


class DockerNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """What Docker says of a network when it makes it.

    Attributes:
        options: Driver options, ours among them.
    """

    docker_id: str
    subnets: tuple[DockerSubnet, ...]
    options: Mapping[str, str]
    internal: bool
    enable_ipv4: bool
    enable_ipv6: bool


class Networks:
    """Makes, binds and lets go of them.

    Args:
        cluster: Where they are made.
        memory: What Docker has been told.
        host_id: Of this host.
        bind: Has the controllers know which networks, by id, this host has bound; they are then deleted by nobody.
    """

    def __init__(self, *, cluster: Cluster, memory: Memory, host_id: str, bind: Bind) -> None:
        self._cluster = cluster
        self._bind = bind
        self._memory = memory
        self._host_id = host_id
        self._known: dict[str, FoundNetwork] = {}
        """By id, or by name."""
        self._asked: dict[tuple[str, bool], int] = {}
        """How many pools Docker holds, by name and family, of those that it did not ask for by their subnet."""
        self._changing = asyncio.Lock()
        self._since: dict[str, float] = {}

    # --- pools ---

    async def request_pool(
        self, options: Mapping[str, str], asked: Subnetwork | None, part: Subnetwork | None, *, v6: bool
    ) -> tuple[str, Subnet]:
        """Return a pool's id, and its subnet with the gateway.

        Args:
            options: `NAME`, or nothing.
            asked: Subnet to have; None: any.
            part: What automatic addresses are to come from; None: all of it.
            v6: Whether it shall be IPv6.

        Raises:
            NetweftError: There is no such pool.
        """
        unknown = sorted(set(options) - {NAME})
        if unknown:
            raise errors.InvalidArgument(
                "UNKNOWN_OPTION", f"--ipam-opt {unknown[0]} is not known here; known is {NAME}", field=unknown[0]
            )
        for one, what in ((asked, "--subnet"), (part, "--ip-range")):
            if one is not None and (one.version == 6) is not v6:
                raise errors.InvalidArgument("BAD_SUBNET", f"{what} {one} is of the other IP version", field=what)
        name = options.get(NAME, "")
        async with self._changing:
            if asked is None:
                self._refuse_circle(name, v6=v6)
            shared = await self._find(name) if name else None
            if shared is not None:
                chosen = _choose(shared, asked, part, v6=v6)
            else:
                shared, chosen = await self._reserve(name, asked, part, v6=v6)
            pool_id = f"{chosen.subnet}#{uuid.uuid4().hex[:12]}"
            self._memory.state.pools[pool_id] = Pool(
                network=shared.id, subnet=str(chosen.subnet), ip_range=str(part or ""), name=name,
                reserved=RESERVED in shared.labels,
            )  # fmt: skip
            self._memory.save()
            if asked is None:
                self._asked[name, v6] = self._asked.get((name, v6), 0) + 1
        return pool_id, chosen

    async def release_pool(self, pool_id: str) -> None:
        """Let go of a pool, and of what was reserved for it. Idempotent."""
        async with self._changing:
            pool = self._memory.state.pools.pop(pool_id, None)
            if pool is None:
                return
            self._asked.pop((pool.name, ":" in pool.subnet), None)
            if pool.reserved and not self._is_reserved(pool.network):
                await self._delete(pool.network)
            self._memory.save()

    async def of_pool(self, pool_id: str) -> tuple[FoundNetwork, Pool]:
        """Return the network that a pool's addresses are leased from.

        Raises:
            NotFound: Docker was told of no such pool, or the network is gone.
        """
        pool = self._memory.state.pools.get(pool_id)
        if pool is None:
            raise errors.NotFound(
                "POOL_UNKNOWN", f"this host's netweft has given Docker no pool {pool_id[:64]}; make the network anew"
            )
        return await self._get(pool.network), pool

    def pool(self, pool_id: str) -> Pool | None:
        """Return a pool; None: there is none."""
        return self._memory.state.pools.get(pool_id)

    def _refuse_circle(self, name: str, *, v6: bool) -> None:
        # Where the host has a route to what it got, Docker asks for another one, and keeps the first until then.
        if self._asked.get((name, v6), 0) >= _MOST_ASKED:
            del self._asked[name, v6]
            what = f"the subnet of network {name}" if name else "all subnets that are free"
            raise errors.FailedPrecondition(
                "SUBNET_ROUTED",
                f"Docker finds that this host has a route to {what} already; name the subnet by --subnet, then Docker "
                "does not look",
            )

    async def _reserve(
        self, name: str, asked: Subnetwork | None, part: Subnetwork | None, *, v6: bool
    ) -> tuple[FoundNetwork, Subnet]:
        """Make a network that holds a subnet. Of several hosts that ask for one name, all get the same one."""
        key = f"{name}/{asked}/{part}/{v6}" if name else uuid.uuid4().hex
        wish = NetworkWish(
            name=f"docker-pool-{hashlib.sha256(key.encode()).hexdigest()[:16]}",
            driver="bridge",
            here=True,
            subnets=(SubnetWish(subnet=str(asked or ""), ip_range=str(part or "")),) if asked or part else (),
            enable_ipv4=not v6,
            enable_ipv6=v6,
            labels={RESERVED: name or "yes", HOST: self._host_id},
            address_space=SHARED_SPACE if name else "",
        )
        made = await self._create(wish)
        return made, made.subnets[0]

    def _is_reserved(self, network_id: str) -> bool:
        return any(one.network == network_id for one in self._memory.state.pools.values())

    # --- networks ---

    async def create(self, wanted: DockerNetwork) -> FoundNetwork:
        """Make a network of ours for one of Docker's, or bind the one that has the name. Idempotent.

        Raises:
            NetweftError: It cannot be, and nothing is left of it.
        """
        options = dict(wanted.options)
        name, driver = options.pop(NAME, ""), options.pop(DRIVER, "")
        _refuse_nonsense(wanted, name, driver)
        async with self._changing:
            pools = self._pools_of(wanted, name)
            found = await self._take(wanted, name, driver, options, pools)
            for pool in pools:
                pool.network, pool.docker_id, pool.reserved = found.id, wanted.docker_id, False
                self._asked.pop((pool.name, ":" in pool.subnet), None)
            self._memory.state.networks[wanted.docker_id] = Binding(network=found.id, name=found.name)
            self._memory.save()
        return found

    async def _take(
        self, wanted: DockerNetwork, name: str, driver: str, options: Mapping[str, str], pools: Sequence[Pool]
    ) -> FoundNetwork:
        """Return a network that stays: the one of the name, or a new one."""
        bound = self._memory.bound
        for attempt in range(_TRIES):
            made: FoundNetwork | None = None
            try:
                found = await self._find(name) if name else None
                if found is None:
                    found = made = await self._make(wanted, name, driver, options, pools)
                else:
                    _refuse_other(found, wanted, driver, options, self._host_id)
                await self._bind({*bound, found.id})
                # From now on nobody deletes it; somebody may have until now.
                return await self._cluster.network(found.id)
            except errors.NetweftError as error:
                if made is not None:
                    self._memory.state.gone_networks.append(made.id)
                    self._memory.save()
                # Other hosts may make it as well, and be before us with its name or its pools, or let go of it.
                if not name or attempt == _TRIES - 1 or error.reason not in _RACES:
                    with contextlib.suppress(errors.NetweftError):
                        await self._bind(bound)
                    raise
            await asyncio.sleep(_AGAIN_S)
        raise AssertionError("the last try returns or raises")

    async def delete(self, docker_id: str) -> None:
        """Let go of a network; one that was made for Docker goes with the last host that has it. Idempotent."""
        async with self._changing:
            binding = self._memory.state.networks.get(docker_id)
            if binding is None:
                return
            del self._memory.state.networks[docker_id]
            if all(one.network != binding.network for one in self._memory.state.networks.values()):
                self._memory.state.gone_networks.append(binding.network)
            self._memory.save()
            try:
                await self._let_go()
            except errors.NetweftError as error:
                log.warning("a network of Docker's is let go of later", network=binding.name, error=str(error))

    def bound(self, docker_id: str) -> str | None:
        """Return the id of the network of ours that one of Docker's is; None: none is."""
        binding = self._memory.state.networks.get(docker_id)
        return None if binding is None else binding.network

    async def of_docker(self, docker_id: str) -> FoundNetwork:
        """Return the network of ours that one of Docker's is.

        Raises:
            NotFound: None is, or it is gone.
        """
        network_id = self.bound(docker_id)
        if network_id is None:
            raise errors.NotFound(
                "NETWORK_UNKNOWN",
                f"this host's netweft knows no network {docker_id[:12]} of Docker's; remove it (docker network rm) and "
                "make it anew",
            )
        return await self._get(network_id)

    async def collect(self, now_s: float) -> None:
        """Delete what is still to be deleted, and reservations that no pool of Docker's is about.

        Args:
            now_s: Of a clock that only goes forward.
        """
        async with self._changing:
            await self._let_go()
            found = await self._cluster.networks(f"{HOST}={self._host_id}")
            lost = [one for one in found if RESERVED in one.labels and not self._is_reserved(one.id)]
            self._since = {one.id: self._since.get(one.id, now_s) for one in lost}
            for one in lost:
                if now_s - self._since[one.id] >= RESERVED_S:
                    log.warning("a reservation of Docker's that is nobody's is deleted", network=one.name)
                    await self._delete(one.id)

    async def _let_go(self) -> None:
        """Delete networks that Docker has no more, if they were made for it and nobody else has them."""
        left = self._memory.state.gone_networks
        if left:
            await self._bind(self._memory.bound)
        for network_id in list(left):
            try:
                found = await self._cluster.network(network_id)
                if MADE in found.labels:
                    await self._cluster.delete_network(network_id)
            except (errors.Unavailable, errors.Conflict) as error:
                log.warning("a network of Docker's is deleted later", network=network_id, error=str(error))
                continue
            except errors.NotFound:
                pass
            except errors.FailedPrecondition as error:  # others use it
                log.info("a network that Docker has no more stays", network=network_id, why=error.message)
            self._forget(network_id)
            left.remove(network_id)
            self._memory.save()

    def _pools_of(self, wanted: DockerNetwork, name: str) -> list[Pool]:
        """Find the pools that Docker holds for a network that it makes.

        Raises:
            FailedPrecondition: It holds none, or they are another name's.
        """
        found = []
        for subnet in wanted.subnets:
            if not subnet.ours:
                continue
            free = [
                one
                for one in self._memory.state.pools.values()
                if one.subnet == str(subnet.subnet) and not one.docker_id and one not in found
            ]
            held = next((one for one in free if one.name == name), None)
            if held is None:
                said = next((one.name for one in free), "")
                raise errors.FailedPrecondition(
                    "NAMED_ONCE",
                    f"subnet {subnet.subnet} was asked for with --ipam-opt {NAME}={said or '(none)'}, the network with "
                    f"-o {NAME}={name or '(none)'}; say the same name in both",
                )
            found.append(held)
        return found

    async def _make(
        self, wanted: DockerNetwork, name: str, driver: str, options: Mapping[str, str], pools: Sequence[Pool]
    ) -> FoundNetwork:
        for pool in pools:
            if pool.reserved:
                await self._delete(pool.network)
        ranges = {one.subnet: one.ip_range for one in pools}
        shared = bool(name) and any(one.ours for one in wanted.subnets)
        driver = driver or ("overlay" if name else "bridge")
        wish = NetworkWish(
            name=name or f"docker-{wanted.docker_id[:12]}",
            driver=driver,
            here=not name or driver == "bridge",
            subnets=tuple(
                SubnetWish(
                    subnet=str(one.subnet),
                    gateway=str(one.gateway.ip) if one.gateway is not None else "",
                    ip_range=ranges.get(str(one.subnet), ""),
                    aux_addresses={key: text.partition("/")[0] for key, text in one.aux_addresses.items()},
                )
                for one in wanted.subnets
            ),
            options=options,
            labels={MADE: "yes", HOST: self._host_id},
            internal=wanted.internal,
            enable_ipv4=wanted.enable_ipv4,
            enable_ipv6=wanted.enable_ipv6,
            address_space=SHARED_SPACE if shared else "",
        )
        return self._keep(await self._cluster.create_network(wish))

    async def _create(self, wish: NetworkWish) -> FoundNetwork:
        """Make a reservation, or return the one that is there."""
        try:
            return self._keep(await self._cluster.create_network(wish))
        except errors.AlreadyExists:
            return self._keep(await self._cluster.network(wish.name))

    async def _find(self, name: str) -> FoundNetwork | None:
        """Return a network as it is now; None: there is none."""
        try:
            return self._keep(await self._cluster.network(name))
        except errors.NotFound:
            self._forget(name)
            return None

    async def _get(self, word: str) -> FoundNetwork:
        """Return a network as it was when it was asked for first: nothing of it changes."""
        if word in self._known:
            return self._known[word]
        try:
            return self._keep(await self._cluster.network(word))
        except errors.NotFound as error:
            raise errors.NotFound(
                "NETWORK_GONE",
                f"network {word} of netweft, which is this one of Docker's, is gone; remove Docker's and make it anew",
                network=word,
            ) from error

    async def _delete(self, network_id: str) -> None:
        self._forget(network_id)
        try:
            await self._cluster.delete_network(network_id)
        except (errors.Unavailable, errors.Conflict, errors.FailedPrecondition) as error:
            # It is found by its label later on.
            log.warning("a reservation of Docker's stays for now", network=network_id, error=str(error))

    def _keep(self, found: FoundNetwork) -> FoundNetwork:
        self._known[found.id] = self._known[found.name] = found
        return found

    def _forget(self, word: str) -> None:
        found = self._known.pop(word, None)
        if found is not None:
            self._known.pop(found.id, None)
            self._known.pop(found.name, None)


def _choose(found: FoundNetwork, asked: Subnetwork | None, part: Subnetwork | None, *, v6: bool) -> Subnet:
    """Return the subnet of a network that is there which Docker means.

    Raises:
        FailedPrecondition: It has no such one.
    """
    of_family = [one for one in found.subnets if (one.subnet.version == 6) is v6]
    chosen = next((one for one in of_family if asked is None or one.subnet == asked), None)
    has = ", ".join(str(one.subnet) for one in found.subnets)
    if chosen is None:
        wanted = f"--subnet {asked}" if asked is not None else f"an IPv{6 if v6 else 4} subnet"
        raise errors.FailedPrecondition(
            "OTHER_SUBNET",
            f"network {found.name} is there already and has {has}, not {wanted}; say what it has, or another name",
            network=found.name,
        )
    there = found.ip_ranges.get(str(chosen.subnet), "")
    if part is not None and str(part) != there:
        raise errors.FailedPrecondition(
            "OTHER_RANGE",
            f"network {found.name} is there already and gives addresses of {there or chosen.subnet}, not --ip-range "
            f"{part}; leave that out",
            network=found.name,
        )
    return chosen


def _refuse_nonsense(wanted: DockerNetwork, name: str, driver: str) -> None:
    if driver == "overlay" and not name:
        raise errors.InvalidArgument(
            "NAME_MISSING",
            f"a network of driver overlay is for several hosts: say its name by -o {NAME}=NAME --ipam-opt {NAME}=NAME",
            field=NAME,
        )
    if any(one.subnet.prefixlen == 0 for one in wanted.subnets):
        raise errors.InvalidArgument(
            "NO_SUBNET", "a network of netweft needs addresses: use --ipam-driver netweft, or Docker's default one"
        )


def _refuse_other(
    found: FoundNetwork, wanted: DockerNetwork, driver: str, options: Mapping[str, str], host_id: str
) -> None:
    """Refuse to take a network that is there for one that Docker's user describes otherwise.

    Raises:
        FailedPrecondition: Names what differs.
    """
    have = {str(one.subnet) for one in found.subnets}
    said = {str(one.subnet) for one in wanted.subnets}
    differs: list[tuple[str, object, object, bool]] = [
        ("driver", found.driver, driver, driver not in {"", found.driver}),
        ("internal", found.internal, wanted.internal, found.internal is not wanted.internal),
        ("subnets", ", ".join(sorted(have)), ", ".join(sorted(said)), bool(said - have)),
        ("host", found.host_id, host_id, found.host_id not in {"", host_id}),
    ]
    for key, value in options.items():
        there = found.options.get(key, "(none)")
        differs.append((f"option {key}", there, value, there != value))
    for what, is_there, wish, is_other in differs:
        if is_other:
            raise errors.FailedPrecondition(
                "OTHER_NETWORK",
                f"network {found.name} is there already, with {what} {is_there}, not {wish}; say the same, or another "
                "name",
                network=found.name,
            )
