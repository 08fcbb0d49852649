"""What the kernel refuses, and what nobody should ask: told by name, and nothing of it stays."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import netweft_client
import pytest
from netweft.controller.v1 import endpoint_pb2, endpoint_pb2_grpc
from netweft_cli import netns, rtnl
from netweft_client import (
    AttachItem,
    DetachItem,
    EndpointSpec,
    HostNamespace,
    NamespacePath,
    NamespacePid,
    SandboxSpec,
    SubnetSpec,
)
from netweft_common import errors, status
from netweft_controller.engine import requests

from tests.e2e import support
from tests.support.netns import require_tool

pytestmark = [pytest.mark.e2e, pytest.mark.netns]

STEADY = "steady"
TROUBLED, FRESH = "hostA", "hostB"


@pytest.fixture(scope="module")
def cluster():
    require_tool("ip")
    # What a host could not remove, it tries again as often as it looks for drift.
    environ = {**support.QUICK, **support.NONE_AHEAD, "NETWEFT_AGENT_REPAIR_INTERVAL": "1s"}
    with support.running(TROUBLED, FRESH, environ=environ) as cluster:
        with cluster.client() as client:
            # What a host makes for the first endpoint of a network is there from the start.
            client.create_network(STEADY, driver="overlay", subnets=[SubnetSpec(subnet="10.41.0.0/16")])
            client.attach_endpoint(EndpointSpec(network=STEADY, name="resident"), box("resident"))
        yield cluster


@pytest.fixture
def client(cluster):
    with cluster.client() as client:
        yield client


def box(name: str, host: str = TROUBLED, **fields) -> SandboxSpec:
    return SandboxSpec(container_id=name, host=host, **fields)


def bad(sandbox: SandboxSpec | None = None, *, network: str = STEADY, **fields) -> AttachItem:
    return AttachItem(endpoint=EndpointSpec(network=network, name="bad", **fields), sandbox=sandbox or box("bad"))


GOOD = AttachItem(endpoint=EndpointSpec(network=STEADY, name="good"), sandbox=box("good"))


def world(cluster: support.Cluster, client: netweft_client.Client) -> dict[str, object]:
    """Return everything that there is: records, leases, links, namespaces, resources of hosts."""
    hosts = list(client.list_hosts())
    leases = [lease for pool in client.list_pools() for lease in client.list_leases(pool.id)]
    return {
        "networks": sorted(one.name for one in client.list_networks()),
        "endpoints": sorted(one.name for one in client.list_endpoints()),
        "sandboxes": sorted(one.container_id for one in client.list_sandboxes()),
        "leases": sorted(f"{lease.address} {lease.owner.key}" for lease in leases),
        **{f"links {one.name}": sorted(support.links(cluster, one.name)) for one in hosts},
        **{f"namespaces {one.name}": sorted(support.namespaces(cluster, one.name)) for one in hosts},
        **{f"resources {one.name}": client.observe(one.agent_target).resources for one in hosts},
    }  # fmt: skip


# Troubles: each makes something that stands in the way, takes it away at the end, and says what to ask


class Trouble:
    """What a trouble may use: the cluster, a folder, and what is undone at the end."""

    def __init__(self, cluster: support.Cluster, client: netweft_client.Client, folder: Path) -> None:
        self.cluster = cluster
        self.client = client
        self.folder = folder
        self.stack = contextlib.ExitStack()
        self.request_id = f"trouble-{folder.name}"

    @property
    def endpoint_id(self) -> str:
        """Id that the bad item's endpoint will have."""
        return requests.request("AttachEndpoints", self.request_id, b"").id_for("endpoint", "0")

    @property
    def sandbox_id(self) -> str:
        return requests.request("AttachEndpoints", self.request_id, b"").id_for("sandbox", "0")

    def space(self) -> Path:
        """Return a namespace as a container runtime makes one."""
        path = self.folder / "space"
        netns.create(path)
        self.stack.callback(netns.remove, path)
        netns.call(path, lambda: rtnl.set_up("lo"))
        return path

    def ip(self, where: Path, command: str, undo: str = "") -> None:
        inside(where, "ip", *command.split())
        if undo:
            self.stack.callback(inside, where, "ip", *undo.split())

    def network(self, name: str, **fields) -> netweft_client.Network:
        made = self.client.create_network(name, **fields)
        self.stack.callback(self.client.delete_network, made.id)
        return made

    def file(self, name: str) -> Path:
        path = self.folder / name
        path.write_text("mine\n")
        return path


def inside(where: Path, *command: str) -> str:
    done = netns.call(where, lambda: subprocess.run(command, capture_output=True, text=True, timeout=20, check=False))
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def interface_name_taken(trouble: Trouble) -> AttachItem:
    space = trouble.space()
    trouble.ip(space, "link add web0 type bridge", "link del web0")
    return bad(box("bad", namespace=NamespacePath(path=str(space))), interface_name="web0")


def regular_file(trouble: Trouble) -> AttachItem:
    return bad(box("bad", namespace=NamespacePath(path=str(trouble.file("plain")))))


def folder(trouble: Trouble) -> AttachItem:
    return bad(box("bad", namespace=NamespacePath(path=str(trouble.folder))))


def symbolic_link(trouble: Trouble) -> AttachItem:
    path = trouble.folder / "pointer"
    path.symlink_to(trouble.space())
    return bad(box("bad", namespace=NamespacePath(path=str(path))))


def vanished(trouble: Trouble) -> AttachItem:
    return bad(box("bad", namespace=NamespacePath(path=str(trouble.folder / "gone"))))


def another_kind(trouble: Trouble) -> AttachItem:
    return bad(box("bad", namespace=NamespacePath(path=f"/proc/{os.getpid()}/ns/uts")))


def pid_gone(trouble: Trouble) -> AttachItem:
    child = subprocess.Popen(["true"])
    child.wait(timeout=15)
    return bad(box("bad", namespace=NamespacePid(pid=child.pid)))


def default_route_taken(trouble: Trouble) -> AttachItem:
    space = trouble.space()
    trouble.ip(space, "link add lan0 type bridge", "link del lan0")
    trouble.ip(space, "link set lan0 up")
    trouble.ip(space, "address add 198.51.100.2/24 dev lan0")
    trouble.ip(space, "route add default via 198.51.100.1")
    return bad(box("bad", namespace=NamespacePath(path=str(space))))


def hosts_file_of_the_system(trouble: Trouble) -> AttachItem:
    del trouble
    return bad(box("bad", hosts_path="/etc/hosts"))


def hosts_file_below_a_file(trouble: Trouble) -> AttachItem:
    plain = trouble.cluster.agent_dir(TROUBLED) / "plain"
    plain.write_text("mine\n")
    trouble.stack.callback(plain.unlink)
    return bad(box("bad", hosts_path=str(plain / "hosts")))


def resolv_conf_is_a_folder(trouble: Trouble) -> AttachItem:
    path = trouble.cluster.agent_dir(TROUBLED) / "resolv.conf"
    path.mkdir()
    trouble.stack.callback(path.rmdir)
    return bad(box("bad", resolv_conf_path=str(path)))


def bridge_name_taken(trouble: Trouble) -> AttachItem:
    host = trouble.cluster.host(TROUBLED)
    trouble.network("taken", host=TROUBLED, options={"com.docker.network.bridge.name": "lan9"})
    trouble.ip(host, "link add lan9 type veth peer name lan8", "link del lan9")
    return bad(network="taken")


def host_end_taken(trouble: Trouble) -> AttachItem:
    host = trouble.cluster.host(TROUBLED)
    name = f"nwv-{trouble.endpoint_id[:11]}"
    trouble.network("local", host=TROUBLED)
    trouble.ip(host, f"link add {name} type bridge", f"link del {name}")
    return bad(network="local")


def vni_taken(trouble: Trouble) -> AttachItem:
    host = trouble.cluster.host(TROUBLED)
    vni = trouble.network("tunnel", driver="overlay").claims["vni"]
    trouble.ip(host, f"link add vx9 type vxlan id {vni} dstport 4789 local 192.0.2.1", "link del vx9")
    return bad(network="tunnel")


def mtu_too_small_for_ipv6(trouble: Trouble) -> AttachItem:
    trouble.network("small", host=TROUBLED, enable_ipv6=True, options={"mtu": "1000"})
    return bad(network="small")


def namespace_place_taken(trouble: Trouble) -> AttachItem:
    place = trouble.cluster.agent_dir(TROUBLED) / "netns" / f"sandbox-{trouble.sandbox_id}"
    place.mkdir()
    trouble.stack.callback(place.rmdir)
    return bad()


def hosts_own_namespace(trouble: Trouble) -> AttachItem:
    return bad(box("bad", namespace=HostNamespace()))


def table_owned_by_another(trouble: Trouble) -> AttachItem:
    """Only the process that made such a table may change it (nft(8), flags owner)."""
    require_tool("nft")
    host = trouble.cluster.host(FRESH)
    owner = netns.call(
        host,
        lambda: subprocess.Popen(
            ["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ),
    )
    assert owner.stdin is not None
    trouble.stack.callback(owner.communicate, timeout=10)
    owner.stdin.write("add table inet netweft { flags owner; }\n")
    owner.stdin.flush()
    support.wait_until(lambda: inside(host, "nft", "list", "tables"), lambda text: "netweft" in text, timeout_s=5)
    trouble.network("fresh", host=FRESH)
    return bad(box("bad", FRESH), network="fresh")


TROUBLES: dict[Callable[[Trouble], AttachItem], tuple[type[errors.NetweftError], tuple[str, ...]]] = {
    interface_name_taken: (errors.FailedPrecondition, ("web0",)),
    regular_file: (errors.InvalidArgument, ("/plain", "another kind of file", "give a path")),
    folder: (errors.InvalidArgument, ("another kind of file",)),
    symbolic_link: (errors.InvalidArgument, ("/pointer", "symbolic link")),
    vanished: (errors.NotFound, ("/gone", "does not exist")),
    another_kind: (errors.InvalidArgument, ("/ns/uts",)),
    pid_gone: (errors.NotFound, ("/proc/", "does not exist")),
    default_route_taken: (errors.FailedPrecondition, ("0.0.0.0/0", "remove it")),
    hosts_file_of_the_system: (errors.FailedPrecondition, ("/etc/hosts", "give a path")),
    hosts_file_below_a_file: (errors.KernelError, ("/plain/hosts",)),
    resolv_conf_is_a_folder: (errors.KernelError, ("/resolv.conf", "EISDIR")),
    bridge_name_taken: (errors.FailedPrecondition, ("lan9",)),
    host_end_taken: (errors.FailedPrecondition, ("nwv-",)),
    vni_taken: (errors.FailedPrecondition, ("VNI", "UDP port 4789", "the host has", "remove it")),
    mtu_too_small_for_ipv6: (errors.KernelError, ("ip address add", "/64 dev nwb-", "EINVAL")),
    namespace_place_taken: (errors.KernelError, ("netns/sandbox-", "EISDIR")),
    hosts_own_namespace: (errors.FailedPrecondition, ("host's own namespace",)),
    table_owned_by_another: (errors.KernelError, ("inet netweft", "EPERM")),
}


@pytest.mark.parametrize(
    ("prepare", "told"),
    TROUBLES.items(),
    ids=[prepare.__name__.replace("_", " ") for prepare in TROUBLES],
)
def test_what_the_kernel_refuses_is_told_and_leaves_nothing(cluster, client, tmp_path, prepare, told):
    assert [] == support.settled(cluster)
    trouble = Trouble(cluster, client, tmp_path)
    before = world(cluster, client)
    with trouble.stack:
        item = prepare(trouble)
        given = seen_inside(item)
        prepared = world(cluster, client)

        refused, good = client.attach_endpoints([item, GOOD], request_id=trouble.request_id)
        print(f"\nTOLD {prepare.__name__}: {refused!r}")

        assert isinstance(good, netweft_client.Attached)
        client.detach_endpoint("good", network=STEADY, delete_sandbox=True)
        left = support.wait_until(lambda: world(cluster, client), lambda now: now == prepared, timeout_s=10)
        assert prepared == left
        assert given == seen_inside(item)
        kind, words = told
        assert isinstance(refused, kind), refused
        assert [] == [word for word in words if word not in refused.message], refused.message
    assert before == support.wait_until(lambda: world(cluster, client), lambda now: now == before, timeout_s=10)


def seen_inside(item: AttachItem) -> set[str]:
    """Return the links in a namespace that was given by path."""
    assert isinstance(item.sandbox, SandboxSpec)
    source = item.sandbox.namespace
    if not isinstance(source, NamespacePath):
        return set()
    try:
        return {link.name for link in netns.call(Path(source.path), rtnl.links)}
    except errors.NotFound:
        return set()


# Bad input over the real API: told by field, and not even a revision is used up


def net(name: str = "never", **fields):
    return lambda client: client.create_network(name, **{"host": TROUBLED, **fields})


def subnet(**fields):
    return net(subnets=[SubnetSpec(**{"subnet": "10.50.0.0/24", **fields})])


def attach(*, name: str = "never", network: str = STEADY, sandbox: SandboxSpec | None = None, **fields):
    def ask(client: netweft_client.Client) -> None:
        client.attach_endpoint(EndpointSpec(network=network, name=name, **fields), sandbox or box("never"))

    return ask


def in_box(container_id: str = "never", host: str = TROUBLED, **fields):
    return attach(sandbox=box(container_id, host, **fields))


MEGABYTE = "x" * (1 << 20)
INVALID, MISSING, PRECONDITION = errors.InvalidArgument, errors.NotFound, errors.FailedPrecondition
ITEM, SPEC = "items[0].endpoint", "items[0].sandbox.spec"

BAD_INPUT = {
    "name: empty": (net(""), INVALID, "name", "1 to 63"),
    "name: a space": (net("red name"), INVALID, "name", "red name"),
    "name: 64 bytes": (net("x" * 64), INVALID, "name", "1 to 63"),
    "name: begins with a dash": (net("-x"), INVALID, "name", "starting with"),
    "name: a letter beyond ASCII": (net("nätz"), INVALID, "name", "nätz"),
    "name: a line break": (net("red\n"), INVALID, "name", "1 to 63"),
    "subnet: host bits": (subnet(subnet="10.50.0.1/24"), INVALID, "subnets[0].subnet", "write 10.50.0.0/24"),
    "subnet: no length": (subnet(subnet="10.50.0.0"), INVALID, "subnets[0].subnet", "no prefix length"),
    "subnet: no CIDR": (subnet(subnet="nonsense"), INVALID, "subnets[0].subnet", "nonsense"),
    "subnet: length 33": (subnet(subnet="10.50.0.0/33"), INVALID, "subnets[0].subnet", "10.50.0.0/33"),
    "subnet: loopback": (subnet(subnet="127.5.0.0/16"), INVALID, "subnets[0].subnet", "loopback"),
    "subnet: multicast": (subnet(subnet="224.0.1.0/24"), INVALID, "subnets[0].subnet", "multicast"),
    "subnet: IPv6 where it is off": (subnet(subnet="fd00:50::/64"), INVALID, "subnets[0].subnet", "enable_ipv6"),
    "subnet: twice": (
        net(subnets=[SubnetSpec(subnet="10.50.0.0/24"), SubnetSpec(subnet="10.50.0.128/25")]),
        INVALID, "subnets[1].subnet", "10.50.0.0/24",
    ),
    "subnet: seventeen": (
        net(subnets=[SubnetSpec(subnet=f"10.50.{number}.0/24") for number in range(17)]), INVALID, "subnets", "16",
    ),
    "subnet: of another network": (
        net(driver="overlay", host="", subnets=[SubnetSpec(subnet="10.41.7.0/24")]), PRECONDITION, "", "10.41.0.0/16",
    ),
    "gateway: outside": (subnet(gateway="10.51.0.1"), INVALID, "subnets[0].gateway", "not in the subnet"),
    "gateway: network address": (subnet(gateway="10.50.0.0"), INVALID, "subnets[0].gateway", "network address"),
    "gateway: broadcast address": (subnet(gateway="10.50.0.255"), INVALID, "subnets[0].gateway", "broadcast"),
    "gateway: with a length": (subnet(gateway="10.50.0.1/24"), INVALID, "subnets[0].gateway", "without prefix"),
    "gateway: other family": (subnet(gateway="fd00::1"), INVALID, "subnets[0].gateway", "not in the subnet"),
    "gateway: without a subnet": (subnet(subnet="", gateway="10.50.0.1"), INVALID, "subnets[0].gateway", "subnet"),
    "range: outside": (subnet(ip_range="10.51.0.0/25"), INVALID, "subnets[0].ip_range", "not inside"),
    "range: host bits": (subnet(ip_range="10.50.0.1/25"), INVALID, "subnets[0].ip_range", "host bits"),
    "aux: outside": (subnet(aux_addresses={"a": "10.51.0.9"}), INVALID, "subnets[0].aux_addresses['a']", "not in"),
    "aux: the gateway": (
        subnet(gateway="10.50.0.1", aux_addresses={"a": "10.50.0.1"}),
        INVALID, "subnets[0].aux_addresses['a']", "gateway",
    ),
    "aux: twice": (
        subnet(aux_addresses={"a": "10.50.0.9", "b": "10.50.0.9"}),
        INVALID, "subnets[0].aux_addresses['b']", "10.50.0.9",
    ),
    "driver: unknown": (net(driver="nonsense"), INVALID, "driver", "bridge, host, null, overlay"),
    "option: unknown": (net(options={"nonsense": "1"}), INVALID, "options", "bridge_name, icc, masquerade, mtu"),
    "option: no number": (net(options={"mtu": "big"}), INVALID, "options", "whole number"),
    "option: too small": (net(options={"mtu": "67"}), INVALID, "options", "68"),
    "option: too large": (net(options={"mtu": "9" * 19}), INVALID, "options", "65535"),
    "option: absurd": (net(options={"mtu": "9" * 5000}), INVALID, "options", "bytes"),
    "option: neither true nor false": (net(options={"icc": "perhaps"}), INVALID, "options", "true nor false"),
    "option: a bridge of 16 bytes": (net(options={"bridge_name": "b" * 16}), INVALID, "options", "match"),
    "option: a bridge with a slash": (net(options={"bridge_name": "a/b"}), INVALID, "options", "match"),
    "label: a megabyte": (net(labels={"big": MEGABYTE}), INVALID, "labels", "big"),
    "label: a key of a megabyte": (net(labels={MEGABYTE: "big"}), INVALID, "labels", "256"),
    "label: no key": (net(labels={"": "x"}), INVALID, "labels", "key"),
    "labels: 129": (net(labels={str(number): "" for number in range(129)}), INVALID, "labels", "128"),
    "family: none": (net(enable_ipv4=False), INVALID, "disable_ipv4", "IPv4, IPv6 or both"),
    "ipam driver: unknown": (net(ipam_driver="nonsense"), INVALID, "ipam_driver", "default, null"),
    "address space: malformed": (net(address_space="a b"), INVALID, "address_space", "A-Za-z0-9"),
    "host: unknown": (net(host="nowhere"), MISSING, "", "nowhere"),
    "host: of an overlay": (net(driver="overlay"), INVALID, "host", "leave the host out"),
    "request id: 129 bytes": (net(request_id="x" * 129), INVALID, "request_id", "128"),
    "request id: a control character": (net(request_id="a\x07"), INVALID, "request_id", "printable"),
    "network: unknown": (attach(network="nowhere"), MISSING, "", "nowhere"),
    "network: none": (attach(network=""), INVALID, f"{ITEM}.network", ""),
    "endpoint: name": (attach(name="a/b"), INVALID, f"{ITEM}.name", "a/b"),
    "address: outside": (attach(addresses=("10.42.0.9",)), INVALID, f"{ITEM}.addresses[0]", "10.42.0.9"),
    "address: network": (attach(addresses=("10.41.0.0",)), INVALID, f"{ITEM}.addresses[0]", "network address"),
    "address: broadcast": (attach(addresses=("10.41.255.255",)), INVALID, f"{ITEM}.addresses[0]", "broadcast"),
    "address: the gateway's": (attach(addresses=("10.41.0.1",)), PRECONDITION, "", "10.41.0.1"),
    "address: malformed": (attach(addresses=("10.41.0",)), INVALID, f"{ITEM}.addresses[0]", "10.41.0"),
    "address: two": (attach(addresses=("10.41.0.8", "10.41.0.9")), INVALID, f"{ITEM}.addresses", ""),
    "address: IPv6 where it is off": (attach(addresses=("fd00::9",)), INVALID, f"{ITEM}.addresses[0]", "fd00::9"),
    "MAC: multicast": (attach(mac_address="01:00:5e:00:00:01"), INVALID, f"{ITEM}.mac_address", "multicast"),
    "MAC: malformed": (attach(mac_address="02:00"), INVALID, f"{ITEM}.mac_address", "02:00"),
    "interface: 16 bytes": (attach(interface_name="i" * 16), INVALID, f"{ITEM}.interface_name", "15 bytes"),
    "interface: letters of 2 bytes": (attach(interface_name="ä" * 15), INVALID, f"{ITEM}.interface_name", "15 bytes"),
    "interface: a slash": (attach(interface_name="a/b"), INVALID, f"{ITEM}.interface_name", "a/b"),
    "interface: dots": (attach(interface_name=".."), INVALID, f"{ITEM}.interface_name", "'..'"),
    "interface: a space": (attach(interface_name="a b"), INVALID, f"{ITEM}.interface_name", "space"),
    "dns name: malformed": (attach(dns_names=("a b",)), INVALID, f"{ITEM}.dns_names[0]", "a b"),
    "endpoint option: unknown": (attach(options={"nonsense": "1"}), INVALID, f"{ITEM}.options", "no options"),
    "endpoint label: a megabyte": (attach(labels={"big": MEGABYTE}), INVALID, f"{ITEM}.labels", "big"),
    "container: none": (in_box(""), INVALID, f"{SPEC}.container_id", "1 to 128"),
    "container: a slash": (in_box("a/b"), INVALID, f"{SPEC}.container_id", "a/b"),
    "container: 129 bytes": (in_box("c" * 129), INVALID, f"{SPEC}.container_id", "128"),
    "container's host: none of several": (in_box(host=""), INVALID, f"{SPEC}.host", "hostA, hostB"),
    "container's host: unknown": (in_box(host="nowhere"), MISSING, "", "nowhere"),
    "hostname: malformed": (in_box(hostname="a b"), INVALID, f"{SPEC}.hostname", "a b"),
    "namespace: relative": (
        in_box(namespace=NamespacePath(path="run/netns/x")), INVALID, f"{SPEC}.namespace.path", "run/netns/x",
    ),
    "namespace: dots": (
        in_box(namespace=NamespacePath(path="/run/../etc")), INVALID, f"{SPEC}.namespace.path", "..",
    ),
    "namespace: pid 0": (in_box(namespace=NamespacePid(pid=0)), INVALID, f"{SPEC}.namespace.pid", ""),
    "namespace: absurd pid": (in_box(namespace=NamespacePid(pid=1 << 31)), INVALID, f"{SPEC}.namespace.pid", ""),
    "hosts path: relative": (in_box(hosts_path="etc/hosts"), INVALID, f"{SPEC}.hosts_path", "etc/hosts"),
    "name server: malformed": (
        in_box(dns=netweft_client.Dns(servers=("one",))), INVALID, f"{SPEC}.dns.servers[0]", "one",
    ),
    "extra host: malformed": (
        in_box(extra_hosts=(netweft_client.ExtraHost(name="db", address="x"),)),
        INVALID, f"{SPEC}.extra_hosts[0].address", "x",
    ),
    "detach: none": (lambda client: raw(client, "Detach", 0), INVALID, "items", "1 to 1024"),
    "detach: 1,025": (lambda client: raw(client, "Detach", 1025), INVALID, "items", "1025"),
    "attach: none": (lambda client: raw(client, "Attach", 0), INVALID, "items", "1 to 1024"),
    "attach: 1,025": (lambda client: raw(client, "Attach", 1025), INVALID, "items", "1025"),
    "plan: none": (lambda client: client.plan_attach([]), INVALID, "items", "1 to 1024"),
    "filter: unknown": (lambda client: list(client.list_networks("colour=red")), INVALID, "filters[0]", "colour"),
    "sandbox: unknown": (lambda client: client.delete_sandbox("nowhere"), MISSING, "", "nowhere"),
    "endpoint: unknown": (lambda client: client.delete_endpoint("nowhere", network=STEADY), MISSING, "", "nowhere"),
}  # fmt: skip


def raw(client: netweft_client.Client, verb: str, count: int) -> None:
    """Call with any number of items; the client itself makes several calls of many."""
    items = {
        "Attach": endpoint_pb2.AttachItem(
            endpoint=endpoint_pb2.EndpointSpec(network=STEADY),
            sandbox=endpoint_pb2.SandboxRef(spec=endpoint_pb2.SandboxSpec(host=TROUBLED, container_id="never")),
        ),
        "Detach": endpoint_pb2.DetachItem(endpoint="resident", network=STEADY),
    }
    request = getattr(endpoint_pb2, f"{verb}EndpointsRequest")(items=[items[verb]] * count)
    with grpc.insecure_channel(client.target) as channel:
        stub = endpoint_pb2_grpc.EndpointServiceStub(channel)
        try:
            getattr(stub, f"{verb}Endpoints")(request, timeout=10)
        except grpc.RpcError as error:
            raise status.from_rpc_error(error, target=client.target, method=verb) from error


def revision(client: netweft_client.Client) -> int:
    """Return the revision of the whole cluster: every change of any object makes a new one."""
    with contextlib.closing(client.watch_batches()) as batches:
        return next(batches).revision


@pytest.fixture(scope="module")
def at_rest(cluster):
    """Everything that there is, and the revision, when nothing is under way any more."""
    assert [] == support.settled(cluster)
    with cluster.client() as client:
        return revision(client), world(cluster, client)


@pytest.mark.parametrize("case", BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_told_by_field_and_changes_nothing(client, at_rest, case):
    ask, kind, field, words = case

    with pytest.raises(errors.NetweftError) as told:
        ask(client)

    assert kind is type(told.value), told.value
    assert field in told.value.metadata.get("field", ""), told.value.metadata
    assert words in told.value.message
    assert len(told.value.message) < 1000
    assert at_rest[0] == revision(client)


def test_after_all_the_bad_input_everything_is_as_it_was(cluster, client, at_rest):
    assert at_rest == (revision(client), world(cluster, client))


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("NetworkService/CreateNetwork", b"\x12\x02\xff\xfe"),
        ("EndpointService/AttachEndpoints", b"\x12\x06\x0a\x04\x0a\x02\xff\xfe"),
        ("SandboxService/CreateSandbox", b"\xff\xff\xff\xff"),
        ("HostService/GetHost", b"\x0a\x7f"),
    ],
    ids=["a name that is not UTF-8", "an item that is not UTF-8", "no message", "a message that ends too early"],
)
def test_bytes_that_are_no_request_are_refused_and_harm_nobody(client, at_rest, method, body):
    with grpc.insecure_channel(client.target) as channel:
        call = channel.unary_unary(f"/netweft.controller.v1.{method}", lambda data: data, lambda data: data)
        with pytest.raises(grpc.RpcError) as told:
            call(body, timeout=10)

    assert grpc.StatusCode.INVALID_ARGUMENT is told.value.code()
    assert at_rest[0] == revision(client)


def test_of_four_overlapping_networks_created_at_once_exactly_one_is_made(cluster, client):
    subnets = ["10.60.0.0/16", "10.60.0.0/17", "10.60.0.0/18", "10.60.0.0/19"]

    def create(number: int) -> netweft_client.Network | errors.NetweftError:
        with cluster.client() as mine:
            try:
                return mine.create_network(
                    f"race{number}", driver="overlay", subnets=[SubnetSpec(subnet=subnets[number])]
                )
            except errors.NetweftError as error:
                return error

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(create, range(4)))

    made = [one for one in answers if isinstance(one, netweft_client.Network)]
    refused = [one for one in answers if isinstance(one, errors.NetweftError)]
    assert 1 == len(made), answers
    assert {errors.FailedPrecondition} == {type(one) for one in refused}
    assert all("10.60.0.0/" in one.message for one in refused)
    client.delete_network(made[0].id)
    assert [] == support.settled(cluster)


def test_of_many_endpoints_that_want_one_address_at_once_exactly_one_gets_it(cluster, client):
    def ask(number: int) -> netweft_client.Attached | errors.NetweftError:
        with cluster.client() as mine:
            try:
                return mine.attach_endpoint(
                    EndpointSpec(network=STEADY, name=f"race{number}", addresses=("10.41.0.77",)), box(f"race{number}")
                )
            except errors.NetweftError as error:
                return error

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(6)))

    made = [one for one in answers if isinstance(one, netweft_client.Attached)]
    refused = [one for one in answers if isinstance(one, errors.NetweftError)]
    assert 1 == len(made), answers
    assert {errors.FailedPrecondition} == {type(one) for one in refused}
    assert all("10.41.0.77" in one.message for one in refused)
    client.detach_endpoints([DetachItem(endpoint=made[0].endpoint.id, delete_sandbox=True)])
    assert [] == support.settled(cluster)
