"""A namespace for tests; and what failed is reported with the last words of every process that had to do with it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import netweft_client
import pytest
from netweft_cli import netns

from tests.e2e import support
from tests.support import logs

NETWEFT = Path(sys.executable).parent / "netweft"


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Path]:
    """A network namespace that is not ours; it goes whatever happens, for pytest cannot remove a mount."""
    path = tmp_path / "space"
    netns.create(path)
    yield path
    netns.remove(path)


@pytest.fixture
def client(cluster: support.Cluster) -> Iterator[netweft_client.Client]:
    """A client of the module's cluster; its sandboxes are gone after each test."""
    with cluster.client() as client:
        yield client
        for sandbox in list(client.list_sandboxes()):
            client.delete_sandbox(sandbox.id, force=True)


@pytest.fixture
def run(cluster: support.Cluster) -> Callable[..., str]:
    """A function that runs `netweft` for the module's cluster and returns all that it writes."""
    environ = {**os.environ, "NETWEFT_RUN_DIR": str(cluster.layout.run_dir)}

    def command(*arguments: str) -> str:
        done = subprocess.run(
            [NETWEFT, *arguments], env=environ, capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout + done.stderr

    return command


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what processes said; their run directory may be gone before anybody could look."""
    report = yield
    if report.failed:
        report.sections += logs.tails().items()
        logs.copy(item.nodeid.partition("::")[2])
    if call.when == "teardown":
        logs.forget_ended()
    return report
