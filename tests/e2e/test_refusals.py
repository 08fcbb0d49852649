"""What the kernel refuses, and what nobody should ask: told by name, and nothing of it stays."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import netweft_client
import pytest
from netweft_cli import netns, rtnl
from netweft_client import (
    AttachItem,
    EndpointSpec,
    HostNamespace,
    NamespacePath,
    NamespacePid,
    SandboxSpec,
    SubnetSpec,
)
from netweft_common import errors
from netweft_controller.engine import requests

from tests.e2e import support
from tests.support.netns import require_tool

pytestmark = [pytest.mark.e2e, pytest.mark.netns, pytest.mark.xdist_group("refusals")]

STEADY = "steady"
TROUBLED, FRESH = "hostA", "hostB"


@pytest.fixture(scope="module")
def cluster():
    require_tool("ip")
    with support.running(TROUBLED, FRESH, environ=support.QUICK) as cluster:
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
    child.wait()
    return bad(box("bad", namespace=NamespacePid(pid=child.pid)))


def default_route_taken(trouble: Trouble) -> AttachItem:
    space = trouble.space()
    trouble.ip(space, "link add lan0 type bridge", "link del lan0")
    trouble.ip(space, "link set lan0 up")
    trouble.ip(space, "address add 198.51.100.2/24 dev lan0")
    trouble.ip(space, "route add default via 198.51.100.1")
    return bad(box("bad", namespace=NamespacePath(path=str(space))))


def hosts_file_below_a_file(trouble: Trouble) -> AttachItem:
    return bad(box("bad", hosts_path=str(trouble.file("plain") / "hosts")))


def resolv_conf_is_a_folder(trouble: Trouble) -> AttachItem:
    path = trouble.folder / "resolv.conf"
    path.mkdir()
    return bad(box("bad", resolv_conf_path=str(path)))


def bridge_name_taken(trouble: Trouble) -> AttachItem:
    host = trouble.cluster.host(TROUBLED)
    trouble.network("taken", host=TROUBLED, options={"com.docker.network.bridge.name": "lan9"})
    trouble.ip(host, "link add lan9 type bridge", "link del lan9")
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
