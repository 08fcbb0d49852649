"""A machine that joins by a token: its certificate, its work, its next certificates, and its end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from netweft_cli import layout, netns, processes, reach, stack
from netweft_common import credentials, tls

from tests.e2e import support
from tests.support import logs

pytestmark = [pytest.mark.e2e, pytest.mark.netns]

NETWEFT = Path(sys.executable).parent / "netweft"
H1, H2 = "192.0.2.1", "192.0.2.2"
CENTRE = "192.0.2.254"
CONTROLLER, JOINING, IPAM, AGENT = 7700, 7701, 7710, 7720


class Cluster:
    """A store, IPAM and a controller with an authority of its own, and two machines that are no hosts yet."""

    def __init__(self, folder: Path) -> None:
        self.stack = stack.Stack(layout.plan(folder / "run", names=("h1", "h2")))
        self.run_dir = self.stack.layout.run_dir
        self.ca = folder / "ca"

    def start(self) -> None:
        self.run_dir.mkdir()
        self.stack._make_underlay(lambda _: None)
        self.stack.start("store")
        self.netweft("ca", "init", str(self.ca))
        store = ("--store-url", self.stack.layout.effective_store_url)
        self.serve("ipam", f"127.0.0.1:{IPAM}", f"{CENTRE}:{IPAM}", options=store)
        self.serve(
            "controller", f"{CENTRE}:{CONTROLLER}",
            options=(
                *store, "--ipam-target", f"127.0.0.1:{IPAM}", "--ca-key", str(self.ca / "ca.key"),
                "--join-listen", f"{CENTRE}:{JOINING}", "--certificate-life", "12s",
            ),
        )  # fmt: skip

    def serve(self, name: str, *listen: str, options) -> None:
        addresses = [word for target in listen for word in ("--address", target.rpartition(":")[0])]
        cert, key = self.netweft("ca", "issue", str(self.ca), name, "one", *addresses).split()
        command = (
            *stack.service(name), *(f"--listen={target}" for target in listen),
            f"--tls-ca={self.ca / 'ca.pem'}", f"--tls-cert={cert}", f"--tls-key={key}", *options,
        )  # fmt: skip
        self.run(name, command, self.stack.layout.underlay_netns)

    def run(self, name: str, command, where: Path) -> None:
        self.stack.processes.start([processes.Spec(name=name, command=command, netns=where)], timeout_s=30)

    def home(self, name: str) -> Path:
        return self.run_dir / "hosts" / name

    def namespace(self, name: str) -> Path:
        found = self.stack.layout.netns(next(host for host in self.stack.layout.hosts if host.name == name))
        assert found is not None
        return found

    def netweft(self, *arguments: str, where: Path | None = None, text: str = "", files: tls.TlsFiles | None = None):
        """Run the command line; what it prints, or what went wrong."""
        environ = {
            **os.environ,
            "NETWEFT_RUN_DIR": str(self.run_dir / "none"),
            "NETWEFT_TARGET": f"{CENTRE}:{CONTROLLER}",
        }
        environ["NETWEFT_TARGET_IPAM"] = f"{CENTRE}:{IPAM}"
        if files is not None:
            shown = {"CA": files.ca, "CERT": files.cert, "KEY": files.key}
            environ |= {f"NETWEFT_TLS_{name}": str(path) for name, path in shown.items()}

        def call():
            return subprocess.run(
                [NETWEFT, *arguments], input=text, capture_output=True, text=True, timeout=60, check=False, env=environ
            )

        done = netns.call(where, call) if where is not None else call()
        return done.stdout if done.returncode == 0 else done.stderr

    def join(self, name: str, address: str, token: str, state: str = "state") -> str:
        """Join from inside the machine's namespace."""
        return self.netweft(
            "host", "join", f"{CENTRE}:{JOINING}", "--state-dir", str(self.home(name) / state), "--name", name,
            "--controller", f"{CENTRE}:{CONTROLLER}", "--ipam", f"{CENTRE}:{IPAM}", "--listen", f"{address}:{AGENT}",
            "--vtep", address, where=self.namespace(name), text=token,
        )  # fmt: skip

    def start_agent(self, name: str) -> None:
        config = self.home(name) / "state" / "agent.toml"
        command = (*stack.service("agent"), f"--config={config}", f"--run-dir={self.home(name) / 'run'}")
        self.run(f"agent-{name}", command, self.namespace(name))


@pytest.fixture(scope="module")
def cluster():
    folder = Path(tempfile.mkdtemp(prefix="nw-"))
    made = Cluster(folder)
    try:
        with logs.kept(made.run_dir):
            made.start()
            yield made
    finally:
        left = made.stack.down()
        shutil.rmtree(folder)
    assert () == left.lines


@pytest.fixture(scope="module")
def user(cluster):
    cert, key = cluster.netweft("ca", "issue", str(cluster.ca), "client", "somebody").split()
    files = tls.TlsFiles(ca=cluster.ca / "ca.pem", cert=Path(cert), key=Path(key))

    def call(*arguments: str):
        return cluster.netweft(*arguments, where=cluster.stack.layout.underlay_netns, files=files)

    return call


def test_two_machines_join_by_tokens_and_their_containers_talk(cluster, user):
    tokens = [user("host", "token"), user("host", "token", "second")]

    answers = [cluster.join("h1", H1, tokens[0]), cluster.join("h2", H2, tokens[1])]
    for name in ("h1", "h2"):
        cluster.start_agent(name)

    assert "joined as h1" in answers[0]
    assert "joined as second" in answers[1]
    assert "has joined" in answers[0] or "start its agent" in answers[0]
    assert support.wait_until(lambda: user("host", "ls", "-o", "name").split() == ["h1", "second"], bool)
    user("network", "create", "front", "-d", "overlay", "--subnet", "10.71.0.0/16")
    user("attach", "front", "c1", "--host", "h1")
    user("attach", "front", "c2", "--host", "second")
    sandboxes = {one["container_id"]: one for one in json.loads(user("sandbox", "ls", "-o", "json"))}
    assert reach.reach(Path(sandboxes["c1"]["netns_path"]), "10.71.0.3", timeout_s=10)


def test_a_token_is_good_once_and_a_host_joins_once(cluster, user):
    token = user("host", "token", "third")

    first = cluster.join("h1", H1, token)
    second = cluster.join("h1", H1, token, state="another")
    third = cluster.join("h1", H1, token, state="a-third")

    assert "already" in first
    assert "joined as third" in second
    assert "used up" in third
    user("host", "rm", "third")


def test_certificates_are_renewed_while_the_agent_works(cluster, user):
    files = credentials.files(cluster.home("h1") / "state" / "tls")
    first = files.cert.read_bytes()
    assert support.wait_until(lambda: files.cert.read_bytes() != first, bool)
    second = files.cert.read_bytes()
    # Longer than the first one was good, so that everything has to have been taken up.
    assert support.wait_until(lambda: files.cert.read_bytes() != second, bool)
    time.sleep(6)

    answer = user("attach", "front", "c3", "--host", "h1")

    assert "c3" in answer
    assert "ready" in user("host", "ls", "--filter", "name=h1")


def test_a_cordoned_host_is_shown_and_takes_nothing_until_it_is_uncordoned(user):
    user("host", "cordon", "h1")

    refused = user("attach", "front", "c4", "--host", "h1")
    listed = user("host", "ls", "--filter", "name=h1")
    user("host", "uncordon", "h1")

    assert "cordoned" in refused
    assert "ready, cordoned" in listed
    assert "c4" in user("attach", "front", "c4", "--host", "h1")


def test_a_drained_host_leaves_and_its_certificate_is_worth_nothing(cluster, user):
    state = cluster.home("h2") / "state"
    host_id = (state / "host-id").read_text().strip()
    certificate = credentials.files(state / "tls").cert
    assert "second" in user("host", "drain", "second")
    # A fresh one: it must not have run out by itself when it is shown.
    before = certificate.read_bytes()
    assert support.wait_until(lambda: certificate.read_bytes() != before, bool)
    kept = Path(shutil.copytree(state / "tls", cluster.home("h2") / "old-tls", symlinks=True))

    left = cluster.netweft("host", "leave", "--state-dir", str(state), where=cluster.namespace("h2"))

    after = cluster.netweft("host", "ls", where=cluster.namespace("h2"), files=credentials.files(kept))
    log = cluster.stack.processes.log_path("ipam")
    # Its agent still runs, and speaks to IPAM by the certificate that it has.
    refused = support.wait_until(log.read_text, lambda text: f"agent/{host_id} is no host" in text)

    assert "left" in left
    assert "no host of this cluster" in after
    assert f"agent/{host_id} is no host of this cluster" in refused
    assert ["h1"] == user("host", "ls", "-o", "name").split()
    assert host_id not in user("host", "ls", "-o", "json")
