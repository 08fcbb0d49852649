"""IPAM and agents as small servers that keep the contract and fail on demand."""

from __future__ import annotations

import ipaddress
from collections import defaultdict

from netweft.agent.v1 import agent_pb2, agent_pb2_grpc
from netweft.common.v1 import endpoint_pb2, plan_pb2, sandbox_pb2
from netweft.ipam.v1 import ipam_pb2, ipam_pb2_grpc
from netweft_common import errors, exchange, status


class FakeIpam(ipam_pb2_grpc.IpamServiceServicer):
    """Lowest free address, epochs, idempotence; `fail` holds errors to answer once by method name."""

    def __init__(self):
        self.pools = {}
        self.leases = defaultdict(dict)
        self.by_owner = {}
        self.lowest = defaultdict(int)
        self.epoch = 0
        self.fail = {}
        self.calls = defaultdict(int)
        self.predefined = iter(f"172.{n}.0.0/16" for n in range(17, 250))
        self.predefined6 = iter(f"fd00:0:0:{n:x}::/64" for n in range(1, 250))
        self.now_s = 0
        self.hosts = {}

    def _call(self, method):
        self.calls[method] += 1
        if error := self.fail.pop(method, None):
            raise error

    async def RequestPool(self, request, context):
        self._call("RequestPool")
        subnet = request.subnet or next(self.predefined6 if request.ipv6 else self.predefined)
        prefix = ipaddress.ip_network(subnet)
        for pool in self.pools.values():
            other = ipaddress.ip_network(pool.subnet)
            if (
                pool.address_space == request.address_space
                and prefix.version == other.version
                and prefix.overlaps(other)
            ):
                raise errors.FailedPrecondition("POOL_OVERLAP", f"{subnet} overlaps {pool.subnet}")
        pool_id = f"{request.address_space}/{subnet}" + (f"/{request.ip_range}" if request.ip_range else "")
        pool = ipam_pb2.Pool(
            id=pool_id,
            address_space=request.address_space,
            subnet=subnet,
            ip_range=request.ip_range,
            labels=request.labels,
        )
        pool.create_time.FromSeconds(self.now_s)
        self.pools[pool_id] = pool
        return ipam_pb2.RequestPoolResponse(pool=pool)

    async def ReleasePool(self, request, context):
        self._call("ReleasePool")
        if request.pool_id not in self.pools:
            raise errors.NotFound("POOL_NOT_FOUND", "no such pool")
        kept = {
            ip: lease
            for ip, lease in self.leases[request.pool_id].items()
            if not request.release_infrastructure or lease.owner.kind == ipam_pb2.OWNER_KIND_ENDPOINT
        }
        if kept:
            raise errors.FailedPrecondition("POOL_IN_USE", "leases are held")
        self.leases.pop(request.pool_id, None)
        self.lowest.pop(request.pool_id, None)
        del self.pools[request.pool_id]
        return ipam_pb2.ReleasePoolResponse()

    async def SetHosts(self, request, context):
        self._call("SetHosts")
        self.hosts = None if request.any else {host.id: host.name for host in request.hosts}
        return ipam_pb2.SetHostsResponse()

    async def ListPools(self, request, context):
        self._call("ListPools")
        for pool in self.pools.values():
            pool.use.leased = len(self.leases[pool.id])
        return ipam_pb2.ListPoolsResponse(pools=list(self.pools.values()))

    async def RequestAddresses(self, request, context):
        self._call("RequestAddresses")
        return ipam_pb2.RequestAddressesResponse(results=[self._lease(item) for item in request.items])

    def _lease(self, item):
        pool = self.pools.get(item.pool_id)
        if pool is None:
            return self._error(errors.NotFound("POOL_NOT_FOUND", "no such pool"))
        held = self.leases[item.pool_id]
        lease = held.get(self.by_owner.get((item.pool_id, item.owner.key)))
        if lease and lease.owner.key == item.owner.key and item.address in ("", lease.address.partition("/")[0]):
            return ipam_pb2.AddressResult(lease=lease)
        if item.address in held:
            return self._error(errors.FailedPrecondition("ADDRESS_IN_USE", f"{item.address} is leased"))
        subnet = ipaddress.ip_network(pool.subnet)
        address = item.address or self._lowest(pool, held)
        if not address:
            return self._error(errors.Exhausted("POOL_EXHAUSTED", "no address is left"))
        self.epoch += 1
        lease = ipam_pb2.Lease(
            pool_id=item.pool_id, address=f"{address}/{subnet.prefixlen}", owner=item.owner, epoch=self.epoch
        )
        lease.create_time.FromSeconds(self.now_s)
        held[address] = lease
        self.by_owner[item.pool_id, item.owner.key] = address
        return ipam_pb2.AddressResult(lease=lease)

    def _lowest(self, pool, held):
        subnet = ipaddress.ip_network(pool.subnet)
        given = ipaddress.ip_network(pool.ip_range or pool.subnet)
        for number in range(self.lowest[pool.id], given.num_addresses):
            address = given[number]
            if address not in (subnet.network_address, subnet.broadcast_address) and str(address) not in held:
                # Below it all are held; a release starts from the bottom again.
                self.lowest[pool.id] = number
                return str(address)
        return ""

    async def ReleaseAddresses(self, request, context):
        self._call("ReleaseAddresses")
        for item in request.items:
            lease = self.leases[item.pool_id].get(item.address)
            if lease and lease.owner.key == item.owner_key and item.epoch in (0, lease.epoch):
                del self.leases[item.pool_id][item.address]
                self.lowest[item.pool_id] = 0
        return ipam_pb2.ReleaseAddressesResponse(results=[status.to_item_status(None)] * len(request.items))

    def AddressStream(self, requests, context):
        methods = {"request": self.RequestAddresses, "release": self.ReleaseAddresses}
        return exchange.serve(requests, context, ipam_pb2.AddressStreamResponse, methods)

    async def ListLeases(self, request, context):
        self._call("ListLeases")
        return ipam_pb2.ListLeasesResponse(leases=list(self.leases[request.pool_id].values()))

    def endpoint_leases(self):
        return [
            lease.address
            for held in self.leases.values()
            for lease in held.values()
            if lease.owner.kind == ipam_pb2.OWNER_KIND_ENDPOINT
        ]

    @staticmethod
    def _error(error):
        return ipam_pb2.AddressResult(status=status.to_item_status(error))


class FakeAgent(agent_pb2_grpc.AgentServiceServicer):
    """A kernel of dictionaries, fed as agents are; `refuse` maps names of endpoints and containers to errors."""

    def __init__(self):
        self.objects = {}
        self.revisions = {}
        self.refuse = {}
        self.calls = defaultdict(int)
        self.fail = {}
        self.before_answer = None
        self.applies = []

    async def Apply(self, request, context):
        self.calls["Apply"] += 1
        if error := self.fail.pop("Apply", None):
            raise error
        self.applies.append(request)
        statuses = [self._apply(change) for change in request.changes]
        if self.before_answer is not None:
            await self.before_answer()
        return agent_pb2.ApplyResponse(statuses=statuses)

    def _apply(self, change):
        which = change.WhichOneof("object")
        if which == "gone":
            kind = {1: "network", 2: "sandbox", 3: "endpoint", 4: "peer"}[change.gone.kind]
            key = (kind, change.gone.id)
            if change.revision > self.revisions.get(key, 0):
                self.objects.pop(key, None)
                self.revisions[key] = change.revision
            return agent_pb2.ObjectStatus(object=change.gone, revision=change.revision)
        value = getattr(change, which)
        key = (which, value.endpoint_id if which == "peer" else value.id)
        kinds = {"network": 1, "sandbox": 2, "endpoint": 3, "peer": 4}
        ref = agent_pb2.ObjectRef(kind=kinds[which], id=key[1])
        name = getattr(value, "name", "") or getattr(value, "container_id", "")
        if name in self.refuse:
            return agent_pb2.ObjectStatus(
                object=ref, revision=change.revision, status=status.to_item_status(self.refuse[name])
            )
        if which == "endpoint":
            for needed, id_ in (("network", value.network_id), ("sandbox", value.sandbox_id)):
                if (needed, id_) not in self.objects:
                    error = errors.NotFound(f"{needed.upper()}_UNKNOWN", f"this host was not told of {needed} {id_}")
                    return agent_pb2.ObjectStatus(
                        object=ref, revision=change.revision, status=status.to_item_status(error)
                    )
        if change.revision > self.revisions.get(key, 0):
            self.objects[key] = value
            self.revisions[key] = change.revision
        elif key not in self.objects:
            error = errors.Conflict("STALE", f"{key} is gone at a later revision")
            return agent_pb2.ObjectStatus(object=ref, revision=change.revision, status=status.to_item_status(error))
        return agent_pb2.ObjectStatus(
            object=ref,
            revision=change.revision,
            netns_path=f"/run/netns/{value.container_id}" if which == "sandbox" else "",
            interface_name=(value.interface_name or "eth0") if which == "endpoint" else "",
            ports=[self._assigned(port) for port in value.ports] if which == "endpoint" else (),
            was_applied=True,
        )

    @staticmethod
    def _assigned(port):
        given = endpoint_pb2.PublishedPort()
        given.CopyFrom(port)
        given.assigned_port = port.host_port or 40000 + port.container_port
        return given

    async def RefreshSandbox(self, request, context):
        command = f"ip link set eth0 up # {request.sandbox_id}"
        return agent_pb2.RefreshSandboxResponse(repaired=[plan_pb2.PlanStep(command=command)])

    async def GetStatistics(self, request, context):
        counters = sandbox_pb2.InterfaceStatistics(interface_name="eth0", endpoint_id="e", rx_bytes=7, tx_packets=2**40)
        return agent_pb2.GetStatisticsResponse(interfaces=[counters])

    async def Plan(self, request, context):
        steps = [
            plan_pb2.PlanStep(command=f"ip addr add {address} dev {change.endpoint.name}")
            for change in request.changes
            if change.WhichOneof("object") == "endpoint"
            for address in change.endpoint.addresses
        ]
        return agent_pb2.PlanResponse(steps=steps)

    def names(self, kind):
        return sorted(
            getattr(value, "name", "") or getattr(value, "container_id", "")
            for (known, _), value in self.objects.items()
            if known == kind
        )
