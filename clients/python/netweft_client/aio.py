"""The asynchronous client: one method an rpc, frozen values in and out, NetweftError for each failure.

A call that meets UNAVAILABLE is made again with the same request id, so that it is done once, until its deadline.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from google.protobuf import field_mask_pb2
from grpc import aio as grpc_aio
from netweft.agent.v1 import agent_pb2, agent_pb2_grpc
from netweft.controller.v1 import (
    endpoint_pb2,
    endpoint_pb2_grpc,
    event_pb2,
    event_pb2_grpc,
    host_pb2,
    host_pb2_grpc,
    network_pb2,
    network_pb2_grpc,
    sandbox_pb2,
    sandbox_pb2_grpc,
)
from netweft.ipam.v1 import ipam_pb2, ipam_pb2_grpc
from netweft_common import backoff, client, clock, errors, status, tls

from netweft_client import convert, discovery, model

Response = TypeVar("Response")
Item = TypeVar("Item")
Position = TypeVar("Position")

DEFAULT_TIMEOUT_S = 30.0
ATTEMPT_S = 10.0
"""How long one of several targets is waited for before the next one is asked the same."""
BATCH_LIMIT = 1024  # items of one AttachEndpoints or DetachEndpoints


class Connection(Protocol):
    """What the client asks of a connection; `netweft_common.client.Connection` is the usual one."""

    @property
    def channel(self) -> Any:
        """What stubs are made on."""
        ...

    @property
    def has_others(self) -> bool:
        """Whether another target may answer what this one does not; a call that fails so goes to the next one."""
        ...

    async def call(self, method: Callable[..., Any], request: Any, *, timeout_s: float | None = None) -> Any:
        """Call a unary method; a failure is a NetweftError."""
        ...

    def stream(self, method: Callable[..., Any], request: Any) -> AsyncGenerator[Any, None]:
        """Yield what a method with a server stream sends; a failure is a NetweftError."""
        ...

    async def close(self) -> None:
        """End it; calls in flight fail."""
        ...


class AsyncClient:
    """A client of one cluster; use it as a context, or close it.

    It connects at the first call. Methods that change something take a `request_id`: give your own to make a retry of
    yours, even from another process, the same call; else each call makes one.

    Args:
        target: Controller: `unix:/path` or `host:port`, several by comma; None: `discovery.targets()`.
        ipam_target: IPAM, for pools and leases; None: `discovery.targets()`.
        tls_files: For TCP beyond loopback; None: `discovery.tls_files()`.
        timeout_s: For calls that name none, retries included.
        retry_for_s: How long UNAVAILABLE is retried; None: until the call's deadline. Zero: not at all.
        system_clock: Where waits happen.
        connect: How a target is connected to, for the synchronous face.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        ipam_target: str | None = None,
        tls_files: tls.TlsFiles | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry_for_s: float | None = None,
        system_clock: clock.Clock | None = None,
        connect: Callable[[str, tls.TlsFiles | None], Connection] | None = None,
    ) -> None:
        found = None if target and ipam_target else discovery.targets()
        self.target = target or (found.controller if found else "")
        self.ipam_target = ipam_target or (found.ipam if found else "")
        self._tls_files = tls_files if tls_files is not None else discovery.tls_files()
        self._timeout_s = timeout_s
        self._retry_for_s = retry_for_s
        self._clock = system_clock if system_clock is not None else clock.SystemClock()
        self._closed = False
        self._connect = connect if connect is not None else _connect
        self._connections: dict[str, Connection] = {}
        self._agents: dict[str, agent_pb2_grpc.AgentServiceAsyncStub] = {}

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """Close the connections; calls in flight end with Unavailable. Idempotent."""
        self._closed = True
        for connection in list(self._connections.values()):
            await connection.close()

    # Networks

    async def create_network(
        self,
        name: str,
        *,
        driver: str = "",
        host: str = "",
        subnets: Sequence[model.SubnetSpec] = (),
        options: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        internal: bool = False,
        enable_ipv4: bool = True,
        enable_ipv6: bool = False,
        ipam_driver: str = "",
        address_space: str = "",
        attachable: bool = False,
        validate_only: bool = False,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> model.Network:
        """Create a network.

        Args:
            name: Unique in the cluster.
            driver: Empty: bridge.
            host: For a network of one host, its id or name; empty: not bound.
            subnets: Empty: one automatic subnet for each enabled family.
            options: Driver options.
            labels: The user's own.
            internal: No way out of the network.
            enable_ipv4: Whether endpoints get IPv4 addresses.
            enable_ipv6: Whether endpoints get IPv6 addresses.
            ipam_driver: default or null; empty: as the driver needs.
            address_space: Empty: IPAM's default for the scope.
            attachable: Whether any orchestrator may attach to it by name.
            validate_only: Check and answer what would be made; make nothing.
            request_id: Idempotency key; made when empty.
            timeout_s: Retries included; the client's own when None.

        Raises:
            AlreadyExists: The name is in use.
            InvalidArgument: A field is malformed; `field` says which.
            FailedPrecondition: A subnet overlaps another network's.
        """
        request = network_pb2.CreateNetworkRequest(
            request_id=request_id or new_request_id(),
            name=name,
            driver=driver,
            host=host,
            subnets=[convert.subnet_spec(item) for item in subnets],
            options=options or {},
            labels=labels or {},
            internal=internal,
            disable_ipv4=not enable_ipv4,
            enable_ipv6=enable_ipv6,
            ipam_driver=ipam_driver,
            address_space=address_space,
            attachable=attachable,
            validate_only=validate_only,
        )
        response = await self._call(self._networks.CreateNetwork, request, timeout_s)
        return convert.answer(convert.network, response.network)

    async def get_network(self, network: str, *, timeout_s: float | None = None) -> model.NetworkDetails:
        """Return a network by id, name or unique id prefix.

        Raises:
            NotFound: There is none.
        """
        response = await self._call(
            self._networks.GetNetwork, network_pb2.GetNetworkRequest(network=network), timeout_s
        )
        return model.NetworkDetails(
            network=convert.answer(convert.network, response.network),
            endpoint_count=response.endpoint_count,
            host_ids=tuple(response.host_ids),
            behind_host_ids=tuple(item.host_id for item in response.hosts if item.behind),
            narrow_paths=convert.narrow_paths(response.narrow_paths),
        )

    async def wait_network(
        self, network: str, *, revision: int = 0, wait_s: float = 10.0, timeout_s: float | None = None
    ) -> tuple[str, ...]:
        """Wait until the kernels of all hosts of a network have what was changed of it.

        Args:
            network: By id, name or unique id prefix.
            revision: For example that of an endpoint; 0: the network's last change.
            wait_s: Longest wait.
            timeout_s: Of the call; longer than `wait_s`.

        Returns:
            Ids of the hosts that are behind still; none: all have it.

        Raises:
            NotFound: There is no such network.
        """
        request = network_pb2.WaitNetworkRequest(network=network, revision=revision, timeout_ms=round(wait_s * 1e3))
        limit_s = max(wait_s + 1.0, self._timeout_s) if timeout_s is None else timeout_s
        response = await self._call(self._networks.WaitNetwork, request, limit_s)
        return tuple(response.behind_host_ids)

    async def list_networks(
        self, *filters: str, page_size: int = 0, timeout_s: float | None = None
    ) -> AsyncGenerator[model.Network, None]:
        """Yield networks by name; each page is a call of its own.

        Args:
            *filters: Terms that must all hold, for example `driver=bridge`, `label=team=blue`.
            page_size: How many come with one call; 0: the server's choice.
            timeout_s: Of each call.
        """
        request = network_pb2.ListNetworksRequest(page_size=page_size, filters=filters)
        async for page in self._pages(self._networks.ListNetworks, request, timeout_s):
            for item in page.networks:
                yield convert.answer(convert.network, item)

    async def delete_network(self, network: str, *, request_id: str = "", timeout_s: float | None = None) -> None:
        """Delete a network without endpoints.

        Raises:
            NotFound: There is none.
            FailedPrecondition: It has endpoints; the message names some.
        """
        request = network_pb2.DeleteNetworkRequest(request_id=request_id or new_request_id(), network=network)
        await self._call(self._networks.DeleteNetwork, request, timeout_s)

    # Endpoints

    async def create_endpoint(
        self, endpoint: model.EndpointSpec, *, request_id: str = "", timeout_s: float | None = None
    ) -> model.Endpoint:
        """Create an endpoint with its leases; it is in no sandbox yet.

        Raises:
            NotFound: The network does not exist.
            AlreadyExists: The name is in use in the network.
            Exhausted: The network has no address left.
        """
        request = endpoint_pb2.CreateEndpointRequest(
            request_id=request_id or new_request_id(), endpoint=convert.endpoint_spec(endpoint)
        )
        response = await self._call(self._endpoints.CreateEndpoint, request, timeout_s)
        return convert.answer(convert.endpoint, response.endpoint)

    async def get_endpoint(self, endpoint: str, *, network: str = "", timeout_s: float | None = None) -> model.Endpoint:
        """Return an endpoint by id, unique id prefix, or name with its network.

        Raises:
            NotFound: There is none.
        """
        request = endpoint_pb2.GetEndpointRequest(endpoint=endpoint, network=network)
        response = await self._call(self._endpoints.GetEndpoint, request, timeout_s)
        return convert.answer(convert.endpoint, response.endpoint)

    async def list_endpoints(
        self, *filters: str, page_size: int = 0, timeout_s: float | None = None
    ) -> AsyncGenerator[model.Endpoint, None]:
        """Yield endpoints; see `list_networks`. Filters: network=, sandbox=, host=, name=, id=, address=, label=."""
        request = endpoint_pb2.ListEndpointsRequest(page_size=page_size, filters=filters)
        async for page in self._pages(self._endpoints.ListEndpoints, request, timeout_s):
            for item in page.endpoints:
                yield convert.answer(convert.endpoint, item)

    async def delete_endpoint(
        self,
        endpoint: str,
        *,
        network: str = "",
        force: bool = False,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> None:
        """Delete an endpoint and give its leases back.

        Args:
            endpoint: Id, unique id prefix, or name with its network.
            network: By id or name.
            force: Leave first when it is joined.
            request_id: Idempotency key; made when empty.
            timeout_s: Retries included; the client's own when None.

        Raises:
            NotFound: There is none.
            FailedPrecondition: It is joined and force is not set.
        """
        request = endpoint_pb2.DeleteEndpointRequest(
            request_id=request_id or new_request_id(), endpoint=endpoint, network=network, force=force
        )
        await self._call(self._endpoints.DeleteEndpoint, request, timeout_s)

    async def join_endpoint(
        self,
        endpoint: str,
        sandbox: model.SandboxRef,
        *,
        network: str = "",
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> model.Attached:
        """Join an endpoint to a sandbox and wait until the host's kernel has it; `gateways` of the answer is empty.

        Raises:
            NotFound: Endpoint, sandbox or host does not exist.
            FailedPrecondition: It is joined elsewhere.
            KernelError: The host's kernel refused.
        """
        request = endpoint_pb2.JoinEndpointRequest(
            request_id=request_id or new_request_id(),
            endpoint=endpoint,
            network=network,
            sandbox=convert.sandbox_ref(sandbox),
        )
        response = await self._call(self._endpoints.JoinEndpoint, request, timeout_s)
        return model.Attached(
            endpoint=convert.answer(convert.endpoint, response.endpoint),
            sandbox=convert.answer(convert.sandbox, response.sandbox),
        )

    async def leave_endpoint(
        self, endpoint: str, *, network: str = "", request_id: str = "", timeout_s: float | None = None
    ) -> model.Endpoint:
        """Take an endpoint out of its sandbox; it keeps its addresses.

        Raises:
            NotFound: There is none.
        """
        request = endpoint_pb2.LeaveEndpointRequest(
            request_id=request_id or new_request_id(), endpoint=endpoint, network=network
        )
        response = await self._call(self._endpoints.LeaveEndpoint, request, timeout_s)
        return convert.answer(convert.endpoint, response.endpoint)

    async def attach_endpoints(
        self,
        items: Iterable[model.AttachItem],
        *,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> list[model.Attached | errors.NetweftError]:
        """Create endpoints and join them, each with its own outcome; a failed one leaves nothing behind.

        Args:
            items: Any number; more than 1,024 become several calls, one after the other.
            request_id: Idempotency key of the whole; made when empty.
            timeout_s: Of each call.

        Returns:
            For each item, in order, what was attached or why not.

        Raises:
            NetweftError: A call as a whole failed: nothing of its items is known. Ask again with the request id.
        """
        request_id = request_id or new_request_id()
        found: list[model.Attached | errors.NetweftError] = []
        for number, batch in enumerate(_batches(items)):
            request = endpoint_pb2.AttachEndpointsRequest(
                request_id=_batch_id(request_id, number), items=[convert.attach_item(item) for item in batch]
            )
            response = await self._call(self._endpoints.AttachEndpoints, request, timeout_s)
            found += [convert.answer(convert.attach_result, item) for item in response.results]
        return found

    async def attach_endpoint(
        self,
        endpoint: model.EndpointSpec,
        sandbox: model.SandboxRef,
        *,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> model.Attached:
        """Create one endpoint and join it.

        Raises:
            NetweftError: Why not.
        """
        item = model.AttachItem(endpoint=endpoint, sandbox=sandbox)
        [found] = await self.attach_endpoints([item], request_id=request_id, timeout_s=timeout_s)
        if isinstance(found, errors.NetweftError):
            raise found
        return found

    async def detach_endpoints(
        self,
        items: Iterable[model.DetachItem],
        *,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> list[errors.NetweftError | None]:
        """Take endpoints out of their sandboxes and delete them; one that is gone is well.

        Args:
            items: Any number; more than 1,024 become several calls, one after the other.
            request_id: Idempotency key of the whole; made when empty.
            timeout_s: Of each call.

        Returns:
            For each item, in order, None or why not.
        """
        request_id = request_id or new_request_id()
        found: list[errors.NetweftError | None] = []
        for number, batch in enumerate(_batches(items)):
            request = endpoint_pb2.DetachEndpointsRequest(
                request_id=_batch_id(request_id, number), items=[convert.detach_item(item) for item in batch]
            )
            response = await self._call(self._endpoints.DetachEndpoints, request, timeout_s)
            found += [status.from_item_status(item) for item in response.results]
        return found

    async def detach_endpoint(
        self,
        endpoint: str,
        *,
        network: str = "",
        delete_sandbox: bool = False,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> None:
        """Take one endpoint out of its sandbox and delete it.

        Raises:
            NetweftError: Why not.
        """
        item = model.DetachItem(endpoint=endpoint, network=network, delete_sandbox=delete_sandbox)
        [found] = await self.detach_endpoints([item], request_id=request_id, timeout_s=timeout_s)
        if found is not None:
            raise found

    async def plan_attach(
        self, items: Iterable[model.AttachItem], *, timeout_s: float | None = None
    ) -> tuple[model.HostPlan, ...]:
        """Say what `attach_endpoints` would do on each host; nothing is done. At most 1,024 items."""
        request = endpoint_pb2.PlanAttachRequest(items=[convert.attach_item(item) for item in items])
        response = await self._call(self._endpoints.PlanAttach, request, timeout_s)
        return tuple(convert.host_plan(item) for item in response.plans)

    async def update_endpoint(
        self,
        endpoint: str,
        *,
        network: str = "",
        ports: Iterable[model.PublishedPort] | None = None,
        bandwidth: model.Bandwidth | None = None,
        dns_names: Iterable[str] | None = None,
        gateway_priority: int | None = None,
        labels: Mapping[str, str] | None = None,
        routes: Iterable[model.StaticRoute] | None = None,
        sysctls: Mapping[str, str] | None = None,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> model.Endpoint:
        """Change what is given, each as a whole, and wait until the endpoint's host has the change.

        Args:
            endpoint: Id, unique id prefix, or name (then with network).
            network: By id or name.
            ports: All ports to be published from now on.
            bandwidth: `Bandwidth()` takes the limits away.
            dns_names: Names besides its own.
            gateway_priority: In the choice of the sandbox's gateway, higher first.
            labels: The user's own.
            routes: Static routes.
            sysctls: Of its interface; one that is left out keeps the value that it has.
            request_id: Idempotency key; made when empty.
            timeout_s: Of the call.

        Raises:
            NotFound: There is none.
            FailedPrecondition: Its host refused it (a port is taken); the endpoint is as it was.
        """
        given = _given(
            ports=ports,
            bandwidth=bandwidth,
            dns_names=dns_names,
            gateway_priority=gateway_priority,
            labels=labels,
            routes=routes,
            sysctls=sysctls,
        )
        request = endpoint_pb2.UpdateEndpointRequest(
            request_id=request_id or new_request_id(),
            endpoint=endpoint,
            network=network,
            spec=convert.endpoint_spec(model.EndpointSpec(network=network, **given)),
            update_mask=field_mask_pb2.FieldMask(paths=given),
        )
        response = await self._call(self._endpoints.UpdateEndpoint, request, timeout_s)
        return convert.answer(convert.endpoint, response.endpoint)

    # Sandboxes

    async def create_sandbox(
        self, sandbox: model.SandboxSpec, *, request_id: str = "", timeout_s: float | None = None
    ) -> model.Sandbox:
        """Make a sandbox on a host and wait until it is there.

        Raises:
            AlreadyExists: The container id is in use on the host.
            NotFound: The host does not exist.
        """
        request = sandbox_pb2.CreateSandboxRequest(
            request_id=request_id or new_request_id(), sandbox=convert.sandbox_spec(sandbox)
        )
        response = await self._call(self._sandboxes.CreateSandbox, request, timeout_s)
        return convert.answer(convert.sandbox, response.sandbox)

    async def get_sandbox(self, sandbox: str, *, timeout_s: float | None = None) -> model.SandboxDetails:
        """Return a sandbox by id, unique id prefix or container id.

        Raises:
            NotFound: There is none.
        """
        response = await self._call(
            self._sandboxes.GetSandbox, sandbox_pb2.GetSandboxRequest(sandbox=sandbox), timeout_s
        )
        return model.SandboxDetails(
            sandbox=convert.answer(convert.sandbox, response.sandbox), endpoint_ids=tuple(response.endpoint_ids)
        )

    async def list_sandboxes(
        self, *filters: str, page_size: int = 0, timeout_s: float | None = None
    ) -> AsyncGenerator[model.Sandbox, None]:
        """Yield sandboxes; see `list_networks`. Filters: host=, container=, id=, label=."""
        request = sandbox_pb2.ListSandboxesRequest(page_size=page_size, filters=filters)
        async for page in self._pages(self._sandboxes.ListSandboxes, request, timeout_s):
            for item in page.sandboxes:
                yield convert.answer(convert.sandbox, item)

    async def delete_sandbox(
        self, sandbox: str, *, force: bool = False, request_id: str = "", timeout_s: float | None = None
    ) -> None:
        """Delete a sandbox; with force its endpoints first.

        Raises:
            NotFound: There is none.
            FailedPrecondition: Endpoints are joined and force is not set.
        """
        request = sandbox_pb2.DeleteSandboxRequest(
            request_id=request_id or new_request_id(), sandbox=sandbox, force=force
        )
        await self._call(self._sandboxes.DeleteSandbox, request, timeout_s)

    async def update_sandbox(
        self,
        sandbox: str,
        *,
        container_id: str | None = None,
        hostname: str | None = None,
        domainname: str | None = None,
        dns: model.Dns | None = None,
        extra_hosts: Iterable[model.ExtraHost] | None = None,
        labels: Mapping[str, str] | None = None,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> model.Sandbox:
        """Change what is given, each as a whole, and wait until the sandbox's host has the change.

        Args:
            sandbox: Id, unique id prefix, or container id.
            container_id: The new one.
            hostname: Host name.
            domainname: Domain name.
            dns: `Dns()` follows the host's resolv.conf.
            extra_hosts: Further lines of hosts.
            labels: The user's own.
            request_id: Idempotency key; made when empty.
            timeout_s: Of the call.

        Raises:
            NotFound: There is none.
            AlreadyExists: Its host has another sandbox of the new container id.
        """
        given = _given(
            container_id=container_id,
            hostname=hostname,
            domainname=domainname,
            dns=dns,
            extra_hosts=extra_hosts,
            labels=labels,
        )
        request = sandbox_pb2.UpdateSandboxRequest(
            request_id=request_id or new_request_id(),
            sandbox=sandbox,
            spec=convert.sandbox_spec(model.SandboxSpec(**{"container_id": "", **given})),
            update_mask=field_mask_pb2.FieldMask(paths=given),
        )
        response = await self._call(self._sandboxes.UpdateSandbox, request, timeout_s)
        return convert.answer(convert.sandbox, response.sandbox)

    async def refresh_sandbox(self, sandbox: str, *, timeout_s: float | None = None) -> tuple[model.PlanStep, ...]:
        """Have a sandbox repaired and its addresses announced again; returns what had to be repaired.

        Raises:
            NotFound: There is none.
        """
        request = sandbox_pb2.RefreshSandboxRequest(sandbox=sandbox)
        response = await self._call(self._sandboxes.RefreshSandbox, request, timeout_s)
        return tuple(convert.plan_step(item) for item in response.repaired)

    async def get_sandbox_statistics(
        self, sandbox: str, *, timeout_s: float | None = None
    ) -> tuple[model.InterfaceStatistics, ...]:
        """Return the counters of a sandbox's interfaces, by name.

        Raises:
            NotFound: There is none.
        """
        request = sandbox_pb2.GetSandboxStatisticsRequest(sandbox=sandbox)
        response = await self._call(self._sandboxes.GetSandboxStatistics, request, timeout_s)
        return tuple(convert.interface_statistics(item) for item in response.interfaces)

    # Hosts

    async def get_host(self, host: str, *, timeout_s: float | None = None) -> model.Host:
        """Return a host by id, name or unique id prefix.

        Raises:
            NotFound: There is none.
        """
        response = await self._call(self._hosts.GetHost, host_pb2.GetHostRequest(host=host), timeout_s)
        return convert.answer(convert.host, response.host)

    async def list_hosts(
        self, *filters: str, page_size: int = 0, timeout_s: float | None = None
    ) -> AsyncGenerator[model.Host, None]:
        """Yield hosts by name; see `list_networks`. Filters: name=, id=, state=ready|lost, label=."""
        request = host_pb2.ListHostsRequest(page_size=page_size, filters=filters)
        async for page in self._pages(self._hosts.ListHosts, request, timeout_s):
            for item in page.hosts:
                yield convert.answer(convert.host, item)

    async def delete_host(
        self, host: str, *, force: bool = False, request_id: str = "", timeout_s: float | None = None
    ) -> None:
        """Forget a host; with force its sandboxes and endpoints too.

        Raises:
            NotFound: There is none.
            FailedPrecondition: It is ready or has sandboxes, and force is not set.
        """
        request = host_pb2.DeleteHostRequest(request_id=request_id or new_request_id(), host=host, force=force)
        await self._call(self._hosts.DeleteHost, request, timeout_s)

    async def cordon_host(self, host: str, *, cordoned: bool = True, timeout_s: float | None = None) -> model.Host:
        """Let a host take no new endpoints, or again; what is on it stays. Idempotent.

        Raises:
            NotFound: There is none.
        """
        request = host_pb2.CordonHostRequest(host=host, cordoned=cordoned)
        response = await self._call(self._hosts.CordonHost, request, timeout_s)
        return convert.answer(convert.host, response.host)

    async def drain_host(self, host: str, *, timeout_s: float | None = None) -> model.DrainedHost:
        """Cordon a host, detach its endpoints and delete its sandboxes. Idempotent.

        Raises:
            NotFound: There is none.
            Unavailable: It does not answer; it stays cordoned, and what was marked goes when it returns.
        """
        response = await self._call(self._hosts.DrainHost, host_pb2.DrainHostRequest(host=host), timeout_s)
        return model.DrainedHost(
            host=convert.answer(convert.host, response.host),
            detached_endpoints=response.detached_endpoints,
            deleted_sandboxes=response.deleted_sandboxes,
        )

    async def create_join_token(
        self, host_name: str = "", *, ttl_s: int = 0, request_id: str = "", timeout_s: float | None = None
    ) -> model.JoinToken:
        """Make a pending host and the token by which one machine becomes it.

        Args:
            host_name: Empty: what the machine calls itself.
            ttl_s: How long the token is good; 0: one hour.
            request_id: Idempotency key; made when empty.
            timeout_s: Of the call.

        Raises:
            FailedPrecondition: The controller signs no certificates, or another host has the name.
        """
        request = host_pb2.CreateJoinTokenRequest(
            request_id=request_id or new_request_id(), host_name=host_name, ttl_seconds=ttl_s
        )
        response = await self._call(self._hosts.CreateJoinToken, request, timeout_s)
        return model.JoinToken(token=response.token, host=convert.answer(convert.host, response.host))

    # Events

    async def watch(self, *filters: str, after_revision: int = 0) -> AsyncGenerator[model.Event, None]:
        """Yield events as they come, without end; see `watch_batches`.

        Args:
            *filters: Terms that must all hold: type=network|endpoint|sandbox|host, network=, host=.
            after_revision: 0: from now on.
        """
        async with contextlib.aclosing(self.watch_batches(*filters, after_revision=after_revision)) as batches:
            async for batch in batches:
                for event in batch.events:
                    yield event

    async def watch_batches(self, *filters: str, after_revision: int = 0) -> AsyncGenerator[model.EventBatch, None]:
        """Yield events and bookmarks as they come, and resume by revision when the stream breaks.

        A watch from now on (after_revision 0) that breaks before its first message begins anew, from then on.

        Raises:
            OutOfRange: The revision is older than the log: list again and watch from now.
            Unavailable: No controller answered for `retry_for_s`, or the client's timeout.
        """

        def request(revision: int) -> event_pb2.WatchRequest:
            return event_pb2.WatchRequest(after_revision=revision, filters=filters)

        def advance(revision: int, response: event_pb2.WatchResponse) -> int:
            return max(revision, response.revision)

        stream = self._resumed(self.target, self._events.Watch, request, advance, after_revision)
        async with contextlib.aclosing(stream) as responses:
            async for response in responses:
                yield convert.answer(convert.event_batch, response)

    # IPAM

    async def get_pool(self, pool_id: str, *, timeout_s: float | None = None) -> model.Pool:
        """Return a pool with its use.

        Raises:
            NotFound: There is none.
        """
        response = await self._call(self._ipam.GetPool, ipam_pb2.GetPoolRequest(pool_id=pool_id), timeout_s)
        return convert.answer(convert.pool, response.pool)

    async def list_pools(
        self, *, address_space: str = "", page_size: int = 0, timeout_s: float | None = None
    ) -> AsyncGenerator[model.Pool, None]:
        """Yield pools by address space and subnet; an empty address space is all of them."""
        request = ipam_pb2.ListPoolsRequest(page_size=page_size, address_space=address_space)
        async for page in self._pages(self._ipam.ListPools, request, timeout_s):
            for item in page.pools:
                yield convert.answer(convert.pool, item)

    async def list_leases(
        self,
        pool_id: str,
        *,
        owner_key: str = "",
        host_id: str = "",
        page_size: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[model.Lease, None]:
        """Yield leases of a pool in address order, all or those of an owner or a host."""
        request = ipam_pb2.ListLeasesRequest(page_size=page_size, pool_id=pool_id, owner_key=owner_key, host_id=host_id)
        async for page in self._pages(self._ipam.ListLeases, request, timeout_s):
            for item in page.leases:
                yield convert.answer(convert.lease, item)

    async def lookup_address(
        self, address: model.AddressLike, *, address_space: str, timeout_s: float | None = None
    ) -> model.Lease:
        """Return the lease of an address: who has it, and since when.

        Raises:
            NotFound: Nobody has it.
        """
        request = ipam_pb2.LookupAddressRequest(address_space=address_space, address=str(address))
        response = await self._call(self._ipam.LookupAddress, request, timeout_s)
        return convert.answer(convert.lease, response.lease)

    async def reserve_address(
        self,
        pool_id: str,
        name: str,
        *,
        address: model.AddressLike = "",
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> model.Lease:
        """Keep an address by name, without an endpoint, until it is released; idempotent by name.

        Args:
            pool_id: Pool.
            name: Owner's key; one name may keep several addresses if each is asked for.
            address: Address wanted; empty: the name's own, else the lowest free one.
            request_id: Idempotency key; made when empty.
            timeout_s: Retries included; the client's own when None.

        Raises:
            FailedPrecondition: Somebody else has the address, or it rests.
            Exhausted: No address is left.
        """
        owner = ipam_pb2.Owner(key=name, kind=ipam_pb2.OWNER_KIND_RESERVATION)
        item = ipam_pb2.AddressRequest(pool_id=pool_id, address=str(address), owner=owner)
        request = ipam_pb2.RequestAddressesRequest(request_id=request_id or new_request_id(), items=[item])
        response = await self._call(self._ipam.RequestAddresses, request, timeout_s)
        [result] = response.results
        error = status.from_item_status(result.status)
        if error is not None:
            raise error
        return convert.answer(convert.lease, result.lease)

    async def release_address(
        self,
        lease: model.Lease,
        *,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> None:
        """Give an address back, if the lease still stands; one that nobody holds is fine.

        What an endpoint holds is released by detaching it: without that, its container goes on using the address.

        Raises:
            FailedPrecondition: Somebody else has the address now.
        """
        item = ipam_pb2.AddressRelease(
            pool_id=lease.pool_id, address=str(lease.address.ip), owner_key=lease.owner.key, epoch=lease.epoch
        )
        request = ipam_pb2.ReleaseAddressesRequest(request_id=request_id or new_request_id(), items=[item])
        response = await self._call(self._ipam.ReleaseAddresses, request, timeout_s)
        [result] = response.results
        error = status.from_item_status(result)
        if error is not None:
            raise error

    async def list_lease_events(
        self,
        pool_id: str,
        *,
        address: model.AddressLike = "",
        page_size: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[model.LeaseEvent, None]:
        """Yield what happened to the addresses of a pool, or to one of them, the newest first."""
        request = ipam_pb2.ListLeaseEventsRequest(pool_id=pool_id, address=str(address), page_size=page_size)
        async for page in self._pages(self._ipam.ListLeaseEvents, request, timeout_s):
            for item in page.events:
                yield convert.answer(convert.lease_event, item)

    async def watch_leases(self, pool_id: str, *, after_id: str = "") -> AsyncGenerator[model.LeaseEvent, None]:
        """Yield what happens to the addresses of a pool, without end; resumes by event id when the stream breaks.

        Args:
            pool_id: Pool.
            after_id: Continue behind this event; empty: from now on.

        Raises:
            Unavailable: IPAM did not answer for `retry_for_s`, or the client's timeout.
        """

        def request(last: str) -> ipam_pb2.WatchLeasesRequest:
            return ipam_pb2.WatchLeasesRequest(pool_id=pool_id, after_id=last)

        def advance(last: str, response: ipam_pb2.WatchLeasesResponse) -> str:
            return response.events[-1].id if response.events else last

        stream = self._resumed(self.ipam_target, self._ipam.WatchLeases, request, advance, after_id)
        async with contextlib.aclosing(stream) as responses:
            async for response in responses:
                for item in response.events:
                    yield convert.answer(convert.lease_event, item)

    # One host's kernel

    async def observe(
        self,
        agent_target: str,
        object: model.ObjectRef | None = None,  # noqa: A002  # the proto's word
        *,
        timeout_s: float | None = None,
    ) -> model.Observation:
        """Ask an agent what its kernel has of ours and what differs from the intent.

        Args:
            agent_target: For example `(await client.get_host(name)).agent_target`.
            object: Only this object's part; None: everything.
            timeout_s: Retries included; the client's own when None.
        """
        stub = self._agent(agent_target)
        request = agent_pb2.ObserveRequest(object=convert.object_ref(object))
        response = await self._call(stub.Observe, request, timeout_s, target=agent_target)
        return convert.observation(response)

    async def get_facts(self, agent_target: str, *, timeout_s: float | None = None) -> model.HostFacts:
        """Ask an agent what its host is and can do."""
        stub = self._agent(agent_target)
        response = await self._call(stub.GetFacts, agent_pb2.GetFactsRequest(), timeout_s, target=agent_target)
        return convert.host_facts(response.facts)

    # Below the methods

    async def _call(
        self,
        method: Callable[..., Awaitable[Response]],
        request: Any,
        timeout_s: float | None,
        *,
        target: str | None = None,
    ) -> Response:
        """Call, and call again with the same request on UNAVAILABLE, within the deadline."""
        started = self._clock.monotonic()
        ends_at = started + (self._timeout_s if timeout_s is None else timeout_s)
        retries_end = ends_at if self._retry_for_s is None else min(ends_at, started + self._retry_for_s)
        if target is None:
            target = self.ipam_target if client.method_name(method).startswith("/netweft.ipam.") else self.target
        connection = self._connection(target)
        for delay_s in backoff.delays():
            try:
                left_s = max(0.0, ends_at - self._clock.monotonic())
                if connection.has_others:
                    left_s = min(left_s, ATTEMPT_S)
                response: Response = await connection.call(method, request, timeout_s=left_s)
            except errors.Unavailable as error:
                # A server that answered knows when it will be back; gRPC's own failure to connect knows nothing.
                wait_s = delay_s if error.reason == "UNREACHABLE" else max(delay_s, error.retry_after_s)
                if error.reason == "CONNECTION_CLOSED" or self._clock.monotonic() + wait_s >= retries_end:
                    raise
                await self._clock.sleep(wait_s)
            else:
                return response
        raise AssertionError("delays end")

    async def _resumed(
        self,
        target: str,
        method: Callable[..., Any],
        request: Callable[[Position], Any],
        advance: Callable[[Position, Any], Position],
        position: Position,
    ) -> AsyncGenerator[Any, None]:
        """Yield a stream's responses, and open it again where it stood when it breaks.

        Args:
            target: Of the service.
            method: Its stub's method.
            request: Makes the request for a position.
            advance: Returns the position after a response.
            position: Where to begin.
        """
        connection = self._connection(target)
        limit_s = self._timeout_s if self._retry_for_s is None else self._retry_for_s
        failing_since: float | None = None
        delays = backoff.delays()
        while True:
            try:
                async with contextlib.aclosing(connection.stream(method, request(position))) as responses:
                    async for response in responses:
                        failing_since, delays = None, backoff.delays()
                        position = advance(position, response)
                        yield response
            except errors.Unavailable as error:
                now = self._clock.monotonic()
                failing_since = now if failing_since is None else failing_since
                delay_s = next(delays)
                if error.reason == "CONNECTION_CLOSED" or now - failing_since + delay_s > limit_s:
                    raise
                await self._clock.sleep(delay_s)
            else:  # the server ended it in order, which it does before it stops
                await self._clock.sleep(next(delays))

    async def _pages(
        self,
        method: Callable[..., Awaitable[Response]],
        request: Any,
        timeout_s: float | None,
    ) -> AsyncGenerator[Response, None]:
        while True:
            page: Any = await self._call(method, request, timeout_s)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def _connection(self, target: str) -> Connection:
        if self._closed:
            raise errors.Unavailable("CONNECTION_CLOSED", f"the client of {self.target} is closed; make a new one")
        connection = self._connections.get(target)
        if connection is None:
            connection = self._connections[target] = self._connect(target, self._tls_files)
        return connection

    @functools.cached_property
    def _networks(self) -> network_pb2_grpc.NetworkServiceAsyncStub:
        stub: network_pb2_grpc.NetworkServiceAsyncStub = network_pb2_grpc.NetworkServiceStub(
            self._connection(self.target).channel
        )
        return stub

    @functools.cached_property
    def _endpoints(self) -> endpoint_pb2_grpc.EndpointServiceAsyncStub:
        connection = self._connection(self.target)
        stub: endpoint_pb2_grpc.EndpointServiceAsyncStub = endpoint_pb2_grpc.EndpointServiceStub(connection.channel)
        if isinstance(connection, client.Connection):
            connection.over_stream(
                stub.EndpointStream,
                endpoint_pb2.EndpointStreamRequest,
                attach=stub.AttachEndpoints,
                detach=stub.DetachEndpoints,
            )
        return stub

    @functools.cached_property
    def _sandboxes(self) -> sandbox_pb2_grpc.SandboxServiceAsyncStub:
        stub: sandbox_pb2_grpc.SandboxServiceAsyncStub = sandbox_pb2_grpc.SandboxServiceStub(
            self._connection(self.target).channel
        )
        return stub

    @functools.cached_property
    def _hosts(self) -> host_pb2_grpc.HostServiceAsyncStub:
        return host_pb2_grpc.HostServiceStub(self._async_channel(self.target))

    @functools.cached_property
    def _events(self) -> event_pb2_grpc.EventServiceAsyncStub:
        stub: event_pb2_grpc.EventServiceAsyncStub = event_pb2_grpc.EventServiceStub(
            self._connection(self.target).channel
        )
        return stub

    @functools.cached_property
    def _ipam(self) -> ipam_pb2_grpc.IpamServiceAsyncStub:
        stub: ipam_pb2_grpc.IpamServiceAsyncStub = ipam_pb2_grpc.IpamServiceStub(
            self._connection(self.ipam_target).channel
        )
        return stub

    def _async_channel(self, target: str) -> grpc_aio.Channel:
        """Return the channel as the type that stubs give asynchronous signatures for."""
        channel: grpc_aio.Channel = self._connection(target).channel
        return channel

    def _agent(self, target: str) -> agent_pb2_grpc.AgentServiceAsyncStub:
        stub = self._agents.get(target)
        if stub is None:
            stub = self._agents[target] = agent_pb2_grpc.AgentServiceStub(self._async_channel(target))
        return stub


def _connect(target: str, tls_files: tls.TlsFiles | None) -> Connection:
    return client.Connection(target, tls_files=tls_files)


def new_request_id() -> str:
    """Return a fresh idempotency key."""
    return str(uuid.uuid4())


def _batches(items: Iterable[Item]) -> Iterable[list[Item]]:
    rest = iter(items)
    while batch := list(itertools.islice(rest, BATCH_LIMIT)):
        yield batch


def _batch_id(request_id: str, number: int) -> str:
    """Return the key of one call of several: the first one has the caller's own, so that one call is the usual case."""
    return request_id if number == 0 else f"{request_id}/{number}"


def _given(**fields: Any) -> dict[str, Any]:
    """Return the fields that are given: what a spec is made of, and what its mask names."""
    return {name: value for name, value in fields.items() if value is not None}
