"""Controller, IPAM and agents over TCP with certificates, each in a namespace of its own: who may do what."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool
from netweft.agent.v1 import agent_pb2
from netweft.controller.v1 import endpoint_pb2, event_pb2, host_pb2, network_pb2, sandbox_pb2
from netweft.ipam.v1 import ipam_pb2
from netweft_agent.rpc import servicer
from netweft_cli import layout, netns, processes, reach, stack
from netweft_cni import plugin
from netweft_common import identity, tls
from netweft_controller import app as controller_app
from netweft_ipam import app as ipam_app

from tests.e2e import support, support_tls
from tests.support import logs
from tests.support.netns import Netns

pytestmark = [pytest.mark.e2e, pytest.mark.netns]

NETWEFT = Path(sys.executable).parent / "netweft"
CALLS = Path(__file__).with_name("support_rpc.py")
H1, H2 = "192.0.2.1", "192.0.2.2"
CENTRE = "192.0.2.254"
"""Address of the namespace between the hosts, where controller and IPAM run."""
LOOPBACK = "127.0.0.1"
CONTROLLER, IPAM, AGENT = 7700, 7710, 7720
HOSTS = "netweft.controller.v1.HostService"
NETWORKS = "netweft.controller.v1.NetworkService"
AGENTS = "netweft.agent.v1.AgentService"
LEASES = "netweft.ipam.v1.IpamService"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Two hosts and what is between them; every path between processes is TCP with certificates."""

    stack: stack.Stack
    authority: support_tls.Authority
    stranger: support_tls.Authority

    @property
    def between(self) -> Path:
        return self.stack.layout.underlay_netns

    def host(self, name: str) -> Path:
        found = self.stack.layout.netns(next(host for host in self.stack.layout.hosts if host.name == name))
        assert found is not None
        return found

    def host_id(self, name: str) -> str:
        return (self.stack.layout.run_dir / "hosts" / name / "state" / "host-id").read_text().strip()

    def start(self, name: str, where: Path, *listen: str, identity: str, options: Sequence[str] = ()) -> None:
        addresses = [target.rpartition(":")[0] for target in listen]
        files = self.authority.issue(name, identity, addresses=addresses)
        command = (
            *stack.service(name.partition("-")[0]), *(f"--listen={target}" for target in listen),
            f"--tls-ca={files.ca}", f"--tls-cert={files.cert}", f"--tls-key={files.key}", *options,
        )  # fmt: skip
        self.stack.processes.start([processes.Spec(name=name, command=command, netns=where)], timeout_s=30)

    def log(self, name: str) -> str:
        return self.stack.processes.log_path(name).read_text(errors="replace")

    def netweft(self, files: tls.TlsFiles, *arguments: str, target: str = f"{CENTRE}:{CONTROLLER}") -> str:
        """Run the command line between the hosts, with a certificate."""
        environ = {
            **os.environ,
            "NETWEFT_RUN_DIR": str(self.stack.layout.run_dir / "none"),
            "NETWEFT_TARGET": target,
            "NETWEFT_TARGET_IPAM": f"{CENTRE}:{IPAM}",
            "NETWEFT_TLS_CA": str(files.ca),
            "NETWEFT_TLS_CERT": str(files.cert),
            "NETWEFT_TLS_KEY": str(files.key),
        }
        done = _inside(self.between, [NETWEFT, *arguments], env=environ)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def call(self, where: Path, *calls: dict[str, object]) -> list[dict[str, str]]:
        """Make calls from inside a namespace."""
        done = _inside(where, [sys.executable, CALLS], input=json.dumps(calls))
        assert done.returncode == 0, done.stderr
        found: list[dict[str, str]] = json.loads(done.stdout)
        return found


def _inside(where: Path, command, **options) -> subprocess.CompletedProcess[str]:
    return netns.call(
        where,
        lambda: subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options),
    )


@pytest.fixture(scope="module")
def cluster():
    # A unix socket's path is short: pytest's own directories may be too long.
    folder = Path(tempfile.mkdtemp(prefix="nw-"))
    made = stack.Stack(layout.plan(folder / "run", names=("h1", "h2")))
    parts = Cluster(made, support_tls.Authority(folder / "tls"), support_tls.Authority(folder / "stranger"))
    try:
        with logs.kept(made.layout.run_dir):
            made.layout.run_dir.mkdir()
            made._make_underlay(lambda _: None)
            made.start("store")
            store = ("--store-url", made.layout.effective_store_url)
            parts.start(
                "ipam",
                parts.between,
                f"{LOOPBACK}:{IPAM}",
                f"{CENTRE}:{IPAM}",
                identity="netweft://ipam/one",
                options=store,
            )
            parts.start(
                "controller", parts.between, f"{LOOPBACK}:{CONTROLLER}", f"{CENTRE}:{CONTROLLER}",
                identity="netweft://controller/one", options=(*store, "--ipam-target", f"{LOOPBACK}:{IPAM}"),
            )  # fmt: skip
            for name, address in (("h1", H1), ("h2", H2)):
                home = made.layout.run_dir / "hosts" / name
                parts.start(
                    f"agent-{name}", parts.host(name), f"{LOOPBACK}:{AGENT}", f"{address}:{AGENT}",
                    identity=f"netweft://agent/{name}",
                    options=(
                        "--advertise", f"{address}:{AGENT}", "--controller", f"{CENTRE}:{CONTROLLER}",
                        "--ipam", f"{CENTRE}:{IPAM}", "--lease-interval", "200ms", "--host-name", name,
                        "--vtep-address", address, "--state-dir", str(home / "state"), "--run-dir", str(home / "run"),
                    ),
                )  # fmt: skip
            yield parts
    finally:
        left = made.down()
        shutil.rmtree(folder)
    assert () == left.lines


@pytest.fixture(scope="module")
def user(cluster):
    return cluster.authority.issue("user", "netweft://client/somebody")


def shown(files: tls.TlsFiles) -> dict[str, str]:
    """Return how a call names its certificate."""
    return {"ca": str(files.ca), "cert": str(files.cert), "key": str(files.key)}


def test_containers_are_attached_over_tcp_and_talk_across_hosts(cluster, user):
    cluster.netweft(user, "network", "create", "overlay", "-d", "overlay", "--subnet", "10.71.0.0/16")
    cluster.netweft(user, "attach", "overlay", "c1", "--host", "h1")
    cluster.netweft(user, "attach", "overlay", "c2", "--host", "h2")
    sandboxes = {one["container_id"]: one for one in json.loads(cluster.netweft(user, "sandbox", "ls", "-o", "json"))}
    endpoints = json.loads(cluster.netweft(user, "endpoint", "ls", "-o", "json"))
    leases = json.loads(cluster.netweft(user, "lease", "ls", "--network", "overlay", "-o", "json"))

    assert {"10.71.0.2/16", "10.71.0.3/16"} == {one["addresses"][0] for one in endpoints}
    assert 3 == len(leases)
    assert reach.reach(Path(sandboxes["c1"]["netns_path"]), "10.71.0.3", timeout_s=10)
    assert reach.reach(Path(sandboxes["c2"]["netns_path"]), "10.71.0.2", timeout_s=10)

    cluster.netweft(user, "detach", "overlay", "c1", "c2", "--delete-sandbox")
    cluster.netweft(user, "network", "rm", "overlay")
    assert [] == json.loads(cluster.netweft(user, "endpoint", "ls", "-o", "json"))


def test_runtimes_of_two_hosts_share_a_network_by_the_cni_plugin(cluster, user):
    cluster.netweft(user, "network", "create", "pods", "-d", "overlay", "--subnet", "10.72.0.0/16")
    config = json.dumps({"cniVersion": "1.1.0", "name": "pods", "type": "netweft"})

    def call(verb, host, box):
        environ = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": "same-id-on-each-host",
            "CNI_NETNS": str(box.path),
            "CNI_IFNAME": "eth0",
            "NETWEFT_CNI_SOCKET": str(cluster.stack.layout.run_dir / "hosts" / host / "run" / "cni.sock"),
        }
        done = subprocess.run([plugin.__file__], input=config, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        return json.loads(done.stdout) if done.stdout else None

    with Netns("one") as one, Netns("two") as two:
        first, second = call("ADD", "h1", one), call("ADD", "h2", two)
        addresses = [result["ips"][0]["address"] for result in (first, second)]
        reached = reach.reach(one.path, addresses[1].partition("/")[0], timeout_s=10)
        listed = json.loads(cluster.netweft(user, "lease", "ls", "--network", "pods", "-o", "json"))
        call("DEL", "h1", one)
        call("DEL", "h2", two)

    assert reached
    assert {bare.partition("/")[0] for bare in addresses} < {one["address"].partition("/")[0] for one in listed}
    assert ["eth0"] == [one["name"] for one in first["interfaces"]]
    cluster.netweft(user, "network", "rm", "pods")


def test_the_loopback_listener_demands_a_certificate_too(cluster, user):
    names = cluster.netweft(user, "host", "ls", "-o", "name", target=f"{LOOPBACK}:{CONTROLLER}").split()

    assert ["h1", "h2"] == names
    [bare] = cluster.call(cluster.between, {"target": f"{LOOPBACK}:{CONTROLLER}", "method": f"{NETWORKS}/ListNetworks"})
    assert "UNAVAILABLE" == bare["code"]


TARGETS = {
    "controller": (f"{CENTRE}:{CONTROLLER}", f"{NETWORKS}/ListNetworks"),
    "ipam": (f"{CENTRE}:{IPAM}", f"{LEASES}/ListPools"),
    "agent": (f"{H1}:{AGENT}", f"{AGENTS}/GetFacts"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_who_shows_no_certificate_of_ours_is_not_served(cluster, user, name):
    target, method = TARGETS[name]
    ours = str(cluster.authority.ca)
    foreign = cluster.stranger.issue("foreign", "netweft://admin/root")
    nameless = cluster.authority.issue("nameless")
    ambiguous = cluster.authority.issue("ambiguous", "netweft://client/a", "netweft://admin/a")
    roleless = cluster.authority.issue("roleless", "netweft://king/arthur")
    local = cluster.authority.issue("local", "netweft://local/me")
    calls = {
        "plain text": {},
        "no certificate": {"ca": ours},
        "another authority's": {**shown(foreign), "ca": ours},
        "a server of ours that is not trusted": {**shown(user), "ca": str(cluster.stranger.ca)},
        "without a name": shown(nameless),
        "with two names": shown(ambiguous),
        "an unknown role": shown(roleless),
        "a role that no certificate gives": shown(local),
        "ours": shown(user),
    }

    answers = cluster.call(cluster.between, *({"target": target, "method": method, **one} for one in calls.values()))

    refused, unknown = ["UNAVAILABLE"] * 4, ["UNAUTHENTICATED"] * 4
    assert dict(zip(calls, [*refused, *unknown, "OK"], strict=True)) == {
        what: answer["code"] for what, answer in zip(calls, answers, strict=True)
    }
    for answer in answers[4:8]:
        assert "netweft://<role>/<name>" in answer["message"]


ROLES = ("client/c", "admin/a", "agent/h1", "controller/c", "ipam/i")


@pytest.mark.parametrize(
    ("target", "method", "request_", "allowed"),
    [
        (f"{CENTRE}:{CONTROLLER}", f"{NETWORKS}/ListNetworks", {}, {"client", "admin", "agent"}),
        (f"{CENTRE}:{IPAM}", f"{LEASES}/ListPools", {}, {"client", "admin", "agent", "controller"}),
        (f"{CENTRE}:{IPAM}", f"{LEASES}/ReleasePool", {"pool_id": "x/10.0.0.0/8"}, {"admin", "controller"}),
        (f"{CENTRE}:{IPAM}", f"{LEASES}/ReleaseAddresses", {}, {"admin", "controller"}),
        (f"{CENTRE}:{IPAM}", f"{LEASES}/RequestAddresses", {}, {"admin", "controller"}),
        (f"{CENTRE}:{IPAM}", f"{LEASES}/ReassertLeases", {}, {"admin", "agent", "controller"}),
        (f"{CENTRE}:{CONTROLLER}", f"{HOSTS}/DeleteHost", {"host": "nowhere"}, {"client", "admin"}),
        (f"{CENTRE}:{CONTROLLER}", f"{HOSTS}/RegisterHost", {"host": {"id": "f" * 32, "name": "-"}}, {"admin"}),
        (f"{CENTRE}:{CONTROLLER}", f"{HOSTS}/ReportHost", {"host_id": "f" * 32}, {"admin"}),
        (f"{H1}:{AGENT}", f"{AGENTS}/Apply", {}, {"controller", "admin"}),
        (f"{H1}:{AGENT}", f"{AGENTS}/Plan", {}, {"controller", "admin"}),
        (f"{H1}:{AGENT}", f"{AGENTS}/DeleteSandbox", {"sandbox_id": "f" * 32}, {"controller", "admin"}),
        (f"{H1}:{AGENT}", f"{AGENTS}/Observe", {}, {"client", "controller", "admin"}),
    ],
    ids=lambda value: value.rpartition("/")[2] if isinstance(value, str) and "/" in value else "",
)
def test_each_role_may_do_its_own(cluster, target, method, request_, allowed):
    calls = [
        {
            "target": target,
            "method": method,
            "request": request_,
            # Not agent-h1: the agent would read its own files anew, as it does for renewed ones.
            **shown(cluster.authority.issue(f"calls-as-{role.replace('/', '-')}", f"netweft://{role}")),
        }
        for role in ROLES
    ]

    answers = cluster.call(cluster.between, *calls)

    served = {
        role.partition("/")[0]
        for role, answer in zip(ROLES, answers, strict=True)
        if answer["code"] not in ("PERMISSION_DENIED", "UNAVAILABLE")
    }
    assert allowed == served, answers


@pytest.mark.parametrize(
    ("module", "access"),
    [
        (ipam_pb2, ipam_app.ACCESS),
        (agent_pb2, servicer.ACCESS),
        *(
            (module, {**controller_app.ACCESS, **controller_app.JOIN_ACCESS})
            for module in (endpoint_pb2, event_pb2, host_pb2, network_pb2, sandbox_pb2)
        ),
    ],
    ids=lambda value: value.__name__.rpartition(".")[2] if hasattr(value, "__name__") else "",
)
def test_every_method_says_who_may_call_it(module, access):
    methods = [
        f"/{service.full_name}/{method.name}"
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]

    assert [] == [method for method in methods if not identity.roles_of(access, method)]
    assert [] == [name for name in access if name.startswith(f"/{module.DESCRIPTOR.package}.") and is_gone(name)]


def is_gone(name: str) -> bool:
    """Return whether a table of roles speaks of a method that no service has."""
    service, _, method = name[1:].rpartition("/")
    try:
        found = descriptor_pool.Default().FindServiceByName(service)
    except KeyError:
        return True
    return method != "*" and method not in found.methods_by_name


def test_an_agent_acts_for_its_own_host_only(cluster, user):
    mine, theirs = cluster.host_id("h1"), cluster.host_id("h2")
    before = json.loads(cluster.netweft(user, "host", "inspect", "h2", "-o", "json"))
    held = shown(cluster.authority.issue("h1", "netweft://agent/h1"))
    fresh = shown(cluster.authority.issue("h3", "netweft://agent/h3"))
    elsewhere = "192.0.2.99:7720"
    foreign: list[tuple[dict[str, str], str, dict[str, object]]] = [
        (held, "RegisterHost", {"host": {"id": theirs, "name": "h2", "agent_target": elsewhere}}),
        (held, "RegisterHost", {"host": {"id": theirs, "name": "h1", "agent_target": elsewhere}}),
        (fresh, "RegisterHost", {"host": {"id": theirs, "name": "h3", "agent_target": elsewhere}}),
        (held, "ReportHost", {"host_id": theirs}),
        (held, "WatchHost", {"host_id": theirs}),
    ]
    own: list[tuple[dict[str, str], str, dict[str, object]]] = [
        (held, "ReportHost", {"host_id": mine}),
        (held, "WatchHost", {"host_id": mine}),
    ]

    answers = cluster.call(
        cluster.host("h1"),
        *(
            {"target": f"{CENTRE}:{CONTROLLER}", "method": f"{HOSTS}/{method}", "request": request, **files}
            for files, method, request in (*foreign, *own)
        ),
    )

    assert ["PERMISSION_DENIED"] * 5 + ["OK"] * 2 == [answer["code"] for answer in answers]
    for answer in answers[:5]:
        assert re.search(r"agent h[13] may not act for host", answer["message"])
    after = json.loads(cluster.netweft(user, "host", "inspect", "h2", "-o", "json"))
    assert before[0]["agent_target"] == after[0]["agent_target"]
    assert before[0]["revision"] == after[0]["revision"]


def test_an_agent_renews_and_reasserts_for_its_own_host_only(cluster):
    mine, theirs = cluster.host_id("h1"), cluster.host_id("h2")
    by_name = shown(cluster.authority.issue("h1", "netweft://agent/h1"))
    by_id = shown(cluster.authority.issue("h1-id", f"netweft://agent/{mine}"))
    nobody = shown(cluster.authority.issue("h3", "netweft://agent/h3"))
    controller = shown(cluster.authority.issue("c", "netweft://controller/c"))
    # The agents of this cluster have told IPAM by their certificates who they are.
    for name in ("h1", "h2"):
        said = support.wait_until(
            lambda name=name: cluster.log(f"agent-{name}"), lambda text: "leases reported" in text
        )
        assert "leases reported" in said
    own = [(by_name, mine), (by_id, mine), (controller, theirs)]
    foreign = [(by_name, theirs), (by_id, theirs), (nobody, mine)]
    methods = ("RenewLeases", "ReassertLeases")
    asked = [(files, method, host_id) for files, host_id in (*own, *foreign) for method in methods]

    answers = cluster.call(
        cluster.host("h1"),
        *(
            {
                "target": f"{CENTRE}:{IPAM}",
                "method": f"{LEASES}/{method}",
                "request": {"host_id": host_id, **({"store_epoch": "none"} if method == "ReassertLeases" else {})},
                **files,
            }
            for files, method, host_id in asked
        ),
    )

    # An epoch that is none is refused too, but only to whom it was asked by rights.
    assert ["OK", "FAILED_PRECONDITION"] * 3 + ["PERMISSION_DENIED"] * 6 == [answer["code"] for answer in answers]
    for answer in answers[6:]:
        assert re.search(r"agent \w+ may not act for host", answer["message"])


@pytest.mark.parametrize("name", ["ipam", "controller", "agent"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), ("refusing to listen at 192.0.2.254:7799 without TLS", "set tls_ca, tls_cert and tls_key")),
        (("--tls-ca", "/nowhere/ca.pem"), ("tls_cert, tls_key", "together")),
        (
            ("--tls-ca", "/nowhere/ca.pem", "--tls-cert", "/nowhere/c.pem", "--tls-key", "/nowhere/c.key"),
            ("/nowhere/", "cannot read"),
        ),
    ],
    ids=["no certificate", "half of it", "no such file"],
)
def test_a_service_does_not_start_beyond_loopback_without_a_certificate(cluster, tmp_path, name, options, words):
    more = {
        "ipam": ("--store-url", cluster.stack.layout.effective_store_url),
        "controller": (
            "--store-url", cluster.stack.layout.effective_store_url, "--ipam-target", f"unix:{tmp_path}/ipam.sock",
        ),
        "agent": ("--state-dir", str(tmp_path / "state"), "--run-dir", str(tmp_path / "run"), "--host-name", "x"),
    }  # fmt: skip

    done = _inside(cluster.between, [*stack.service(name), "--listen", f"{CENTRE}:7799", *more[name], *options])

    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert [] == [word for word in words if word not in said], said


def test_the_command_line_does_not_call_beyond_loopback_without_a_certificate(cluster):
    environ = {**os.environ, "NETWEFT_TARGET": f"{CENTRE}:{CONTROLLER}", "NETWEFT_TARGET_IPAM": f"{CENTRE}:{IPAM}"}

    done = _inside(cluster.between, [NETWEFT, "network", "ls"], env=environ)

    assert done.returncode != 0
    assert "without TLS" in done.stderr


def test_a_restarted_agent_and_controller_find_each_other_over_tcp(cluster, user):
    for name in ("controller", "agent-h1"):
        process = cluster.stack.processes.find(name)
        assert process is not None
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")[:-1]
        where = cluster.between if name == "controller" else cluster.host("h1")
        cluster.stack.processes.stop(name, grace_s=10, kill=True)
        words = tuple(word.decode() for word in command)
        # What was started has the descriptor to tell its readiness; the next one gets its own.
        at = words.index("--ready-fd")
        spec = processes.Spec(name=name, command=words[:at] + words[at + 2 :], netns=where)
        cluster.stack.processes.start([spec], timeout_s=30)

    ready = support.wait_until(
        lambda: cluster.netweft(user, "host", "ls", "-f", "state=ready", "-o", "name").split(),
        lambda names: names == ["h1", "h2"],
    )

    assert ["h1", "h2"] == ready
