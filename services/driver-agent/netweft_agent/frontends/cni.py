"""CNI: what the plugin hands over is done here (SPEC 1.1.0 §2).

An attachment of a runtime, one interface of one container, is an endpoint whose name is made of the host's id, the
container's and the interface's name, so DEL, CHECK and GC find it without any memory of ours. With `lease_only` we are
the IPAM of another plugin: the endpoint is joined to nothing, and keeps its leases for whoever has made the interface.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Mapping
from typing import Any, Protocol

import structlog
from netweft_common import errors

from netweft_agent.domain.cluster import Cluster, Container, Found, Wish
from netweft_agent.domain.objects import Kind, Ref
from netweft_agent.domain.plan import Operation
from netweft_agent.domain.resources import HOST, Key, Link, Namespace, Resource, Route, Sysctl
from netweft_agent.frontends import cni_result, netavark_config
from netweft_agent.frontends.cni_config import Attachment, CniError, Code, Request, Verb, parse, version_of
from netweft_agent.frontends.cni_pending import Pending
from netweft_agent.frontends.rested import once_rested

log = structlog.get_logger(__name__)

LABEL = "netweft.cni."
CONVERGENCE_S = 1.0
"""How long a CHECK waits for the repair of what it finds."""
RETRY_S = 5.0
"""How often DELs that wait are tried again."""

MAGIC = b"NWC1"

Variables = Mapping[str, str]


class Host(Protocol):
    """What is asked of this host's engine."""

    def wanted(self, owner: str) -> Mapping[Key, Resource]:
        """Return what an owner wants of the kernel."""

    async def observe(self, ref: Ref) -> tuple[Mapping[Key, Resource], tuple[Operation, ...]]:
        """Return what an object has in the kernel, and what would be done to repair it."""


class Given(Protocol):
    """Paths of namespaces that are handed over as descriptors."""

    def path(self, descriptor: int, asked: str, key: str) -> str:
        """Return a path by which the agent can open the namespace at any time."""

    def forget(self, key: str) -> None:
        """Let go of what `path` has made for a key; idempotent."""

    def leads_to(self, path: str, descriptor: int) -> bool:
        """Return whether a path leads to the namespace of a descriptor."""


class CniService:
    """Answers the plugin.

    Args:
        cluster: Where endpoints are made.
        host: This host's engine.
        given: Keeps namespaces that have no path here.
        pending: DELs that wait.
        host_id: Of this host.
    """

    def __init__(self, *, cluster: Cluster, host: Host, given: Given, pending: Pending, host_id: str) -> None:
        self._cluster = cluster
        self._host = host
        self._given = given
        self._pending = pending
        self._host_id = host_id
        self._carrying_out = asyncio.Lock()
        """One at a time: a DEL that is under way must not come to its end after the ADD that waits for it."""

    async def run(self) -> None:
        """Carry out what waits, again and again, until cancelled."""
        while True:
            await self._carry_out_pending()
            await asyncio.sleep(RETRY_S)

    async def answer(self, frame: bytes, netns: int | None) -> tuple[int, bytes]:
        """Answer one call: return the plugin's exit code and what it prints.

        Args:
            frame: As the plugin sends it, see `unpack`.
            netns: Descriptor of the container's namespace, which the caller closes.
        """
        version = version_of(b"")
        try:
            variables, config = netavark_config.as_cni(*unpack(frame))
            version = version_of(config)
            request = parse(variables, config, own_name=variables.get("NAME") or "netweft")
            return 0, await self._do(request, frame, netns)
        except CniError as error:
            return 1, cni_result.failure(version, error)
        except errors.NetweftError as error:
            return 1, cni_result.failure(version, translate(error))
        except Exception as error:  # the outermost frame
            log.exception("cni request failed")
            bug = CniError(Code.INTERNAL, f"a bug of netweft's agent: {type(error).__name__}: {error}; report it")
            return 1, cni_result.failure(version, bug)

    async def _do(self, request: Request, frame: bytes, netns: int | None) -> bytes:
        if request.verb is Verb.ADD:
            await self._carry_out_pending()
            return await (self._lease(request) if request.lease_only else self._add(request, netns))
        if request.verb is Verb.DEL:
            await self._delete(request, frame)
        elif request.verb is Verb.CHECK:
            await self._check(request, netns)
        elif request.verb is Verb.GC:
            await self._collect(request)
        else:
            await self._status(request)
        return b""

    # --- ADD ---

    async def _add(self, request: Request, netns: int | None) -> bytes:
        attachment = _of(request)
        if netns is None:
            raise CniError(Code.BAD_ENVIRONMENT, "CNI_NETNS: the plugin has handed over no namespace")
        key = self._name(attachment)
        try:
            path = self._given.path(netns, request.netns, key)
        except errors.InvalidArgument as error:
            raise CniError(Code.BAD_ENVIRONMENT, f"CNI_NETNS: {error.message}") from error
        container = Container(
            container_id=attachment.container_id,
            netns_path=path,
            dns_servers=request.dns.nameservers,
            dns_search=request.dns.search,
            dns_options=request.dns.options,
        )
        try:
            found = await once_rested(lambda: self._cluster.attach(self._wish(request), container))
        except errors.NetweftError as error:
            if not isinstance(error, errors.AlreadyExists):
                self._given.forget(key)
            raise
        return cni_result.success(request.version, self._result(request, found), request.previous)

    async def _lease(self, request: Request) -> bytes:
        found = await once_rested(lambda: self._cluster.create(self._wish(request)))
        gateways = {
            one.subnet: offered
            for one in await self._cluster.subnets(request.network)
            if (offered := one.default_gateway or one.gateway) is not None
        }
        addresses = []
        for address in found.addresses:
            gateway = next((str(offered.ip) for subnet, offered in gateways.items() if address.ip in subnet), "")
            addresses.append(cni_result.Address(address=str(address), gateway=gateway))
        result = cni_result.Result(addresses=addresses, routes=request.routes, dns=request.dns)
        return cni_result.success(request.version, result)

    def _name(self, attachment: Attachment) -> str:
        return endpoint_name(self._host_id, attachment)

    def _wish(self, request: Request) -> Wish:
        attachment = _of(request)
        return Wish(
            network=request.network,
            name=self._name(attachment),
            addresses=request.addresses,
            mac=request.mac,
            interface_name="" if request.lease_only else attachment.ifname,
            dns_names=request.aliases,
            ports=request.ports,
            bandwidth=request.bandwidth,
            gateway_priority=request.gateway_priority,
            options=request.options,
            labels={
                **request.labels,
                f"{LABEL}network": request.name,
                f"{LABEL}container": attachment.container_id,
                f"{LABEL}ifname": attachment.ifname,
                f"{LABEL}host": self._host_id,
            },
        )

    def _result(self, request: Request, found: Found) -> cni_result.Result:
        """Describe what the kernel has been made to have: all that concerns the container's interface."""
        ifname = _of(request).ifname
        own = self._host.wanted(f"endpoint/{found.id}").values()
        shared = self._host.wanted(f"sandbox/{found.sandbox_id}").values()
        links = [one for one in own if isinstance(one, Link)]
        outside = [cni_result.Interface(name=one.name) for one in links if one.ns == HOST and one.kind == "veth"]
        bridges = dict.fromkeys(one.master for one in links if one.ns == HOST and one.master is not None)
        inside = [
            cni_result.Interface(name=one.name, mac=one.mac or "", sandbox=request.netns, mtu=one.mtu or 0)
            for one in links
            if one.kind == "peer"
        ]
        before = [*(cni_result.Interface(name=one) for one in bridges), *outside]
        gateways = {"6" if ":" in one else "4": one for one in found.gateways}
        return cni_result.Result(
            interfaces=[*before, *inside],
            addresses=[
                cni_result.Address(
                    address=str(one),
                    gateway=gateways.get(str(one.version), ""),
                    interface=len(before) if inside else None,
                )
                for one in found.addresses
            ],
            routes=[
                (one.destination, one.via or "")
                for one in (*own, *shared)
                if isinstance(one, Route) and one.link == ifname and one.ns != HOST
            ],
            dns=request.dns,
        )

    # --- DEL, GC ---

    async def _delete(self, request: Request, frame: bytes) -> None:
        """Take an attachment away; what is gone is gone, and what cannot go now goes later."""
        name = self._name(_of(request))
        try:
            await self._detach(request.network, name)
        except (errors.Unavailable, errors.Conflict) as error:
            log.warning("DEL is kept for later", endpoint=name, network=request.network, error=str(error))
            self._pending.keep(frame)

    async def _detach(self, network: str, name: str) -> None:
        with contextlib.suppress(errors.NotFound):  # the network has gone, and with it what was in it
            await self._cluster.detach(network, name)
        self._given.forget(name)

    async def _carry_out_pending(self) -> None:
        async with self._carrying_out:
            for name, frame in self._pending:
                try:
                    variables, config = netavark_config.as_cni(*unpack(frame))
                    request = parse(variables, config, own_name=variables.get("NAME") or "netweft")
                    await self._detach(request.network, self._name(_of(request)))
                except (errors.Unavailable, errors.Conflict):
                    return
                except (errors.NetweftError, CniError) as error:
                    log.warning("a DEL that was kept is given up", file=name, error=str(error))
                self._pending.drop(name)

    async def _collect(self, request: Request) -> None:
        """Take away all attachments of this CNI network on this host but those that are in use."""
        try:
            found = await self._cluster.endpoints(request.network, f"{LABEL}host={self._host_id}")
        except errors.NotFound:
            return
        failed = []
        for one in found:
            known = Attachment(
                container_id=one.labels.get(f"{LABEL}container", ""), ifname=one.labels.get(f"{LABEL}ifname", "")
            )
            if one.labels.get(f"{LABEL}network") != request.name or known in request.valid:
                continue
            try:
                await self._detach(request.network, one.name)
            except errors.NetweftError as error:
                failed.append(error)
        if failed:
            raise failed[0]

    # --- CHECK, STATUS ---

    async def _check(self, request: Request, netns: int | None) -> None:
        attachment = _of(request)
        try:
            found = await self._cluster.endpoint(request.network, self._name(attachment))
        except errors.NotFound as error:
            raise CniError(
                Code.UNKNOWN_CONTAINER,
                f"{attachment.ifname} of container {attachment.container_id} is not attached to {request.network}",
            ) from error
        _compare(request, found)
        if request.lease_only:
            return
        for one in self._host.wanted(f"sandbox/{found.sandbox_id}").values():
            if isinstance(one, Namespace) and (netns is None or not self._given.leads_to(one.source, netns)):
                raise CniError(
                    Code.NOT_AS_WANTED,
                    f"CNI_NETNS {request.netns} is not the namespace that container {attachment.container_id} was "
                    f"added with, which is {one.source}",
                )
        loop = asyncio.get_running_loop()
        end = loop.time() + CONVERGENCE_S
        while missing := await self._missing(found):
            if loop.time() > end:
                raise CniError(
                    Code.NOT_AS_WANTED,
                    f"{attachment.ifname} of container {attachment.container_id} is not as it shall be",
                    "\n".join(missing),
                )
            await asyncio.sleep(CONVERGENCE_S / 10)

    async def _missing(self, found: Found) -> list[str]:
        commands = []
        for ref in (Ref(kind=Kind.ENDPOINT, id=found.id), Ref(kind=Kind.SANDBOX, id=found.sandbox_id)):
            _, steps = await self._host.observe(ref)
            # Settings may be another plugin's by now (tuning), and files are nobody's but the container's.
            commands += [step.command() for step in steps if not isinstance(step.resource, Sysctl)]
        return commands

    async def _status(self, request: Request) -> None:
        try:
            await self._cluster.subnets(request.network)
        except errors.NetweftError as error:
            raise CniError(
                Code.NOT_AVAILABLE, f"nothing can be attached to network {request.network}: {error.message}"
            ) from error


def unpack(frame: bytes) -> tuple[Variables, bytes]:
    """Read what the plugin sends: magic, two lengths of 32 bits, variables with zeros between them, configuration.

    Raises:
        CniError: It is something else.
    """
    sizes = [int.from_bytes(frame[at : at + 4], "big") for at in (4, 8)]
    if frame[:4] != MAGIC or len(frame) != 12 + sum(sizes):
        raise CniError(Code.IO_FAILURE, "what came over the socket is no call of netweft's CNI plugin")
    pairs = (one.partition("=") for one in os.fsdecode(frame[12 : 12 + sizes[0]]).split("\0"))
    return {key: value for key, _, value in pairs}, frame[12 + sizes[0] :]


def pack(variables: Variables, config: bytes) -> bytes:
    """Write what `unpack` reads."""
    words = b"\0".join(os.fsencode(f"{key}={value}") for key, value in variables.items())
    return MAGIC + len(words).to_bytes(4, "big") + len(config).to_bytes(4, "big") + words + config


def endpoint_name(host_id: str, attachment: Attachment) -> str:
    """Name the endpoint of an attachment: no two of a network have one name, though hosts may have equal containers."""
    text = f"{host_id}/{attachment.container_id}/{attachment.ifname}"
    return f"cni-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def translate(error: errors.NetweftError) -> CniError:
    """Return an error in CNI's words."""
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), Code.INTERNAL)
    return CniError(code, f"{error.message} [{error.reason}]")


_CODES: dict[type[errors.NetweftError], Code] = {
    errors.InvalidArgument: Code.BAD_CONFIGURATION,
    errors.OutOfRange: Code.BAD_CONFIGURATION,
    errors.NotFound: Code.BAD_CONFIGURATION,
    errors.AlreadyExists: Code.ALREADY_EXISTS,
    errors.FailedPrecondition: Code.FAILED_PRECONDITION,
    errors.PermissionDenied: Code.DENIED,
    errors.Unauthenticated: Code.DENIED,
    errors.Exhausted: Code.TRY_AGAIN,
    errors.Conflict: Code.TRY_AGAIN,
    errors.Unavailable: Code.TRY_AGAIN,
    errors.KernelError: Code.KERNEL,
}


def _of(request: Request) -> Attachment:
    assert request.attachment is not None, f"{request.verb} is about a container"
    return request.attachment


def _compare(request: Request, found: Found) -> None:
    """Refuse a CHECK whose ADD had another result than what there is."""
    previous: Mapping[str, Any] = request.previous or {}
    ifname = _of(request).ifname
    interfaces = previous.get("interfaces") or []
    mine = [n for n, one in enumerate(interfaces) if one.get("name") == ifname and one.get("sandbox")]
    if not request.lease_only and found.addresses and not mine:
        raise CniError(Code.BAD_CONFIGURATION, f"prevResult has no interface {ifname} of a container")
    told = {
        one.get("address") for one in previous.get("ips") or [] if request.lease_only or one.get("interface") in mine
    }
    lost = [str(one) for one in found.addresses if str(one) not in told]
    if lost:
        raise CniError(Code.NOT_AS_WANTED, f"{ifname} has {', '.join(lost)}, of which prevResult says nothing")
